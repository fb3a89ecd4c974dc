//! Checks that a test leaves nothing behind. [`left_of`] looks for
//! everything that has the test's names. [`clear_away`] removes it, after the
//! check or before the next test with the same slot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{self, HostProcess};
use crate::image::sha256;
use crate::slot::Slot;
use crate::{cgroup, wait};

/// Seconds for which the check looks again. A shim ends shortly after its last
/// container was deleted, and nothing reports when.
const SHIM_EXIT_SECONDS: u32 = 10;

/// The names by which a test's containers are recognised.
#[derive(Debug)]
pub struct Traces<'a> {
    /// The test's slot.
    pub slot: &'a Slot,
    /// The IDs of its containers.
    pub ids: Vec<String>,
    /// The socket of its containerd.
    pub address: PathBuf,
    /// The containerd namespaces of the test.
    pub namespaces: Vec<String>,
}

/// Returns what is left after some time, in sentences.
pub fn left_of(traces: &Traces<'_>) -> Vec<String> {
    let deadline = Instant::now() + wait::patience(SHIM_EXIT_SECONDS);
    let mut pause = Duration::from_millis(2);
    loop {
        let left = look(traces);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

fn look(traces: &Traces<'_>) -> Vec<String> {
    let (slot, ids) = (traces.slot, &traces.ids);
    let mut left = Vec::new();
    for process in host::processes().iter().filter(|process| is_of(process, slot, ids)) {
        left.push(format!("process {}: {}", process.pid, process.args.join(" ")));
    }
    for mount in mounts_of(slot) {
        left.push(format!("mount {mount}"));
    }
    for cgroup in
        host::cgroups().iter().filter(|cgroup| belongs(&cgroup.to_string_lossy(), slot, ids))
    {
        left.push(format!("cgroup {}", cgroup.display()));
    }
    for file in shim_sockets(traces).into_iter().chain(state_files(slot, ids)) {
        left.push(format!("file {}", file.display()));
    }
    left
}

/// Whether a path belongs to one of this test's containers: it is below the
/// slot's own name, or has an ID in it that CRI generated (two tests may choose
/// the same ID). systemd names a scope `PREFIX-ID.scope`.
fn belongs(path: &str, slot: &Slot, ids: &[String]) -> bool {
    let below = cgroup::belongs(path, slot);
    let random = |id: &&String| id.len() == 64;
    below || ids.iter().filter(random).any(|id| path.contains(id.as_str()))
}

/// Whether a process belongs to this test. Shims have containerd's address in
/// their arguments. The cgroup identifies processes in pods.
fn is_of(process: &HostProcess, slot: &Slot, ids: &[String]) -> bool {
    let directory = format!("{}/", slot.directory().display());
    let name = slot.name();
    let marked = process.args.iter().any(|arg| arg.contains(&directory) || *arg == name);
    let inside = process.cgroup.lines().any(|line| belongs(&format!("{line}/"), slot, ids));
    !is_daemon(process) && (marked || inside)
}

/// Whether it is containerd or Docker, at any path.
fn is_daemon(process: &HostProcess) -> bool {
    let name = process.args.first().map(|path| path.rsplit('/').next().unwrap_or_default());
    matches!(name, Some("containerd" | "dockerd"))
}

fn mounts_of(slot: &Slot) -> Vec<String> {
    let directory = format!("{}/", slot.directory().display());
    host::mount_points().into_iter().filter(|point| point.starts_with(&directory)).collect()
}

/// Returns the sockets of containerd's shims, `/run/containerd/s/HASH`, with
/// the hash of containerd's address, namespace and ID (`SocketAddress` in its
/// shim package).
fn shim_sockets(traces: &Traces<'_>) -> Vec<PathBuf> {
    let address = &traces.address;
    let addresses = [address.clone(), PathBuf::from(format!("{}.ttrpc", address.display()))];
    let mut left = Vec::new();
    for address in &addresses {
        for namespace in &traces.namespaces {
            for id in &traces.ids {
                let named = address.join(namespace).join(id);
                let hash = sha256(named.to_string_lossy().as_bytes());
                left.push(Path::new("/run/containerd/s").join(hash));
            }
        }
    }
    left.retain(|socket| socket.exists());
    left
}

/// Returns Palisade's files that have this test's names:
/// `/run/palisade/NAMESPACE/ID/`, and user ID ranges, which are links to it.
fn state_files(slot: &Slot, ids: &[String]) -> Vec<PathBuf> {
    let mut left = Vec::new();
    let roots = [PathBuf::from("/run/palisade"), slot.directory().join("user/palisade")];
    let mut folders = roots.to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let to = fs::read_link(&path).unwrap_or_else(|_| path.clone());
            if belongs(&format!("/{}/", to.display()), slot, ids)
                && !roots.iter().any(|root| path == root.join(slot.name()))
            {
                left.push(path);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            }
        }
    }
    left
}

/// Removes the sockets of shims. Later it would be unknown whose they were.
pub fn clear_sockets(traces: &Traces<'_>) {
    for socket in shim_sockets(traces) {
        let _ = fs::remove_file(socket);
    }
}

/// Removes everything that has the slot's names, by force.
pub fn clear_away(slot: &Slot) {
    let directory = slot.directory();
    // This includes containerd. A killed process stays in its cgroup until the
    // kernel has destroyed it, and is invisible for the last part of that.
    let deadline = Instant::now() + wait::patience(SHIM_EXIT_SECONDS);
    while Instant::now() < deadline {
        let all = host::processes();
        let left: Vec<_> =
            all.iter().filter(|p| is_daemon_of(p, slot) || is_of(p, slot, &[])).collect();
        left.iter().for_each(|process| end(process.pid));
        if cgroup::clear_away(slot) && left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for point in mounts_of(slot).iter().rev() {
        let _ = umount2(point.as_str(), MntFlags::MNT_DETACH);
    }
    let stuck = mounts_of(slot);
    assert!(stuck.is_empty(), "cannot unmount {}", stuck.join(", "));
    for file in state_files(slot, &[]) {
        let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir_all(&file));
    }
    let _ = fs::remove_dir(Path::new("/run/palisade").join(slot.name()));
    let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(slot.name()));
    if Path::new("/sys/class/net").join(slot.bridge()).exists() {
        let _ = Command::new("ip").args(["link", "delete", &slot.bridge()]).status();
    }
    if directory.exists() {
        let removed = fs::remove_dir_all(&directory);
        removed.unwrap_or_else(|e| panic!("remove {}: {e}", directory.display()));
    }
}

fn is_daemon_of(process: &HostProcess, slot: &Slot) -> bool {
    let directory = format!("{}/", slot.directory().display());
    is_daemon(process) && process.args.iter().any(|arg| arg.contains(&directory))
}

fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}
