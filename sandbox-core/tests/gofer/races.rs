//! Another container that writes to a volume and exchanges a directory of it for a trap, while
//! the gofer looks.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use sandbox_core::sys::mount::open_plain_beneath;

use crate::harness::*;
use crate::hooks::with_hook;

const ROUNDS: usize = 150;

/// A volume whose `sub` is by turns a directory and a trap, in which a symlink of the name
/// `leaf` leads to a secret of the host.
struct Volume {
    path: PathBuf,
}

impl Volume {
    fn new(host: &Host, leaf: &str) -> Volume {
        host.write("target/secret", "of the host");
        let path = host.mkdir("volume");
        host.mkdir(&format!("volume/sub/{leaf}"));
        host.mkdir("volume/trap");
        symlink(host.path("target"), path.join("trap").join(leaf)).unwrap();
        Volume { path }
    }

    /// Exchanges the two as fast as it can, while `work` runs.
    fn exchanging<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (sub, trap) = (self.path.join("sub"), self.path.join("trap"));
                while !stopped.load(Ordering::Relaxed) {
                    renameat_with(CWD, &sub, CWD, &trap, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let _stop = Stop(&stopped);
            work()
        })
    }

    /// Whether a program that looks twice is led astray: it sees a directory, and then reads the
    /// secret by the same path.
    fn leads_astray(&self, leaf: &str) -> bool {
        let place = self.path.join("sub").join(leaf);
        (0..1_000_000).any(|_| {
            fs::symlink_metadata(&place).is_ok_and(|seen| seen.is_dir())
                && fs::read(place.join("secret")).is_ok()
        })
    }
}

/// Whether a directory of the volume, as it was delivered, is the host's.
fn leaked(mount: &impl std::os::fd::AsFd, below: impl AsRef<Path>) -> bool {
    open_plain_beneath(mount, below.as_ref().join("secret"), OFlags::PATH).is_ok()
}

/// A mount below a volume that has to be looked up for itself, since the tree cannot be mapped
/// as a whole.
#[test]
fn no_mount_below_a_volume_is_looked_up_by_its_path() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let volume = Volume::new(&host, "nested");
    host.mount("mqueue", "volume/sub/nested");
    let mut request = request();
    request.mounts = vec![bind(0, &volume.path)];
    let (mut taken, mut refused) = (0, 0);
    volume.exchanging(|| {
        assert!(volume.leads_astray("nested"), "no look-up was led astray");
        for round in 0..ROUNDS {
            let run = gofer(&request, Some(&sandbox));
            if run.answer.is_err() {
                assert!(!run.error().contains("secret"), "{}", run.error());
                refused += 1;
                continue;
            }
            taken += 1;
            for place in ["sub/nested", "trap/nested"] {
                assert!(!leaked(run.mount(0), place), "round {round}: {place} is the host's");
            }
        }
    });
    println!("{taken} taken, {refused} refused");
    assert!(taken > 0, "the gofer refused all");
}

/// A mount that a hook of the host made on a volume.
#[test]
fn no_mount_of_a_hook_is_looked_up_by_its_path() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let volume = Volume::new(&host, "made");
    let mut request = asking_for(vec![snapshots(&host)]);
    request.mounts = vec![bind(0, &volume.path)];
    // The hook is led astray itself in every other round. What it mounts then is nowhere in the
    // container.
    let request = with_hook(&host, request, "mount -t tmpfs none 0/sub/made || true");
    let mut carried = 0;
    volume.exchanging(|| {
        assert!(volume.leads_astray("made"), "no look-up was led astray");
        for round in 0..ROUNDS {
            let run = gofer(&request, Some(&sandbox));
            for (slot, mount) in &run.delivered {
                let leaks = leaked(mount, "");
                assert!(!leaks, "round {round}: {slot:?} is the host's");
                carried +=
                    usize::from(matches!(slot, sandbox_core::control::gofer::Slot::OfHook { .. }));
            }
        }
    });
    println!("{carried} mounts of hooks");
    assert!(carried > 0, "no mount of a hook was delivered");
}
