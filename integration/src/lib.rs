//! The harness: runs Palisade under real containerds, each private to one
//! test, and checks that nothing is left behind.
//!
//! Read [`containerd`] first (what a test starts with), then [`ctr`] and
//! [`container`] (a container as `ctr` and as a program runs it), [`cri`]
//! (pods, as Kubernetes runs them) and [`leaks`] (what each test ends with).
//! [`cgroup`] is where the containers are put, by either cgroup driver.
//! [`node`] is the machine's own containerd, for what is installed.
//! [`docker`] runs containers under Docker rather than a containerd of the test's.
//! [`shim`] speaks to the shim without any containerd between.
//! [`keep`] leaves what a failing test has made, to be looked at.
//!
//! Everything in here panics with a sentence when something is not as it must
//! be: its only users are tests and the quickstart.

pub mod cgroup;
pub mod config;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod docker;
pub mod events;
pub mod host;
pub mod image;
pub mod keep;
pub mod leaks;
pub mod node;
pub mod prepared;
pub mod sandbox;
pub mod shim;
pub mod slot;
pub mod spec;
pub mod stdio;
pub mod stream;
pub mod wait;

/// Turns each named story, a `fn(Containerd)`, into one test for every
/// containerd that the suite runs against; which of them run where is said in
/// `ci/choose-tests`. After `starting`, stories are a `fn(Version)` and start it
/// themselves. A story that is not named here is dead code, which the
/// compiler reports.
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

/// The same for stories of pods, which are also told to a containerd that asks
/// Palisade for the sandbox itself (`sandboxer = "shim"`) rather than for a
/// pause container.
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

/// One story's tests, each with what it is given.
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
