//! The harness: runs Palisade under real containerds, each private to one test,
//! and checks that nothing is left behind.
//!
//! Read [`containerd`] first (how a test starts), then [`ctr`] and
//! [`container`] (a container as `ctr` and as a program runs it), [`cri`]
//! (pods, as Kubernetes runs them) and [`leaks`] (how each test ends).
//! [`cgroup`] makes the cgroups of the containers, with either cgroup driver.
//! [`node`] is the machine's own containerd, for tests of what is installed.
//! [`docker`] runs containers under Docker, [`rootless`] under a containerd of an ordinary user. [`shim`] calls the shim without a
//! containerd. [`keep`] leaves what a failing test has made, to be looked at.
//! [`attack`] has what hostile containers try, and shows that each attempt could
//! succeed. [`state_mount`] lets the state's file system be full, [`silent`] is one that never answers. [`trace`] finds the waits for the kernel. [`hostile`] names what a sandbox process does that was taken over.
//!
//! All functions panic with a sentence if something is wrong: only tests, the soak and
//! the quickstart use them.

pub mod attack;
pub mod built;
pub mod cgroup;
pub mod checkpoint;
pub mod config;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod docker;
pub mod events;
mod files;
pub mod host;
pub mod hostile;
pub mod image;
pub mod keep;
pub mod killer;
pub mod leaks;
pub mod node;
pub mod prepared;
pub mod rootless;
pub mod sandbox;
pub mod shim;
pub mod silent;
pub mod slot;
pub mod spec;
pub mod state_mount;
pub mod stdio;
pub mod stream;
pub mod trace;
pub mod version;
pub mod wait;

/// Makes one test of each named story, a `fn(Containerd)`, for every containerd
/// of the suite. `ci/choose-tests` decides which of them run on which machine.
/// After `starting`, a story is a `fn(Version)` and starts containerd itself.
/// The compiler reports a story that is not named here as dead code.
#[macro_export]
macro_rules! on_each_containerd {
    (starting $($story:ident),+ $(,)?) => {$(
        $crate::tests_of! { $story:
            containerd_1_6 => $crate::containerd::Version::V1_6,
            containerd_1_7 => $crate::containerd::Version::V1_7,
            containerd_2_1 => $crate::containerd::Version::V2_1,
        }
    )+};
    ($($story:ident),+ $(,)?) => {$(
        $crate::tests_of! { $story:
            containerd_1_6 => $crate::containerd::Containerd::start($crate::containerd::Version::V1_6),
            containerd_1_7 => $crate::containerd::Containerd::start($crate::containerd::Version::V1_7),
            containerd_2_1 => $crate::containerd::Containerd::start($crate::containerd::Version::V2_1),
        }
    )+};
}

/// Makes tests of stories about pods in the same way. They also run with a
/// containerd that calls Palisade's Sandbox service (`sandboxer = "shim"`)
/// instead of running a pause container.
#[macro_export]
macro_rules! on_each_cri {
    ($($story:ident),+ $(,)?) => {$(
        $crate::tests_of! { $story:
            containerd_1_6 => $crate::containerd::Containerd::start($crate::containerd::Version::V1_6),
            containerd_1_7 => $crate::containerd::Containerd::start($crate::containerd::Version::V1_7),
            containerd_2_1 => $crate::containerd::Containerd::start($crate::containerd::Version::V2_1),
            containerd_2_1_sandboxer => $crate::containerd::Containerd::start_with_sandboxer(),
        }
    )+};
}

/// Makes the tests of one story, each with its argument.
#[doc(hidden)]
#[macro_export]
macro_rules! tests_of {
    ($story:ident: $($test:ident => $given:expr),+ $(,)?) => {
        mod $story {
            $(
                #[test]
                fn $test() {
                    super::$story($given);
                }
            )+
        }
    };
}
