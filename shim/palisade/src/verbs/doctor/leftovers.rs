//! What is left of dead shims.
//!
//! | what | belongs to nobody if |
//! |---|---|
//! | a sandbox's state, with the cgroups, IDs and socket that it names | the shim and the sandbox process that it names have ended, by the inodes of their pidfds |
//! | state that names no shim | no shim lives that has not recorded itself elsewhere |
//! | an ID range | its owner has no state |
//! | a cgroup of Palisade's by its name | no state names it, it has no process, it is old (`strays.rs`) |
//! | a socket of a shim's | nothing listens, and no socket of the kernel's has that name |
//! | a program of seccomp's half written | the gofer that wrote it has ended |
//! | FIFOs of `palisade exec` | the command that made them has ended |
//!
//! While the state is judged and removed, it is locked (`Claim`), and its directory stays until
//! the end, so that neither containerd's `delete` nor a Create of the same ID can come between.
//! Seccomp's whole programs stay: a Create may be about to open one.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use sandbox_core::sandbox::state::{State, StateDirectory, sandboxes};
use sandbox_core::sandbox::{Claim, Ranges, give_back_ownerless};

use super::executables::{Options, SHIM};
use super::{Finding, ids, strays};
use crate::node::living;

/// The directory of containerd's shims' sockets.
const SOCKETS: &str = "/run/containerd/s";

/// A socket is left alone for this long after it was made: its shim may be about to listen.
const YOUNG: Duration = Duration::from_secs(10);

const MEND: &str = "palisade doctor --fix-leftovers";

/// What is known of a sandbox's owners.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// It has a shim, or is being made: not a leftover.
    Living,
    /// Its shim has ended, but not its sandbox process.
    HalfDead(i32),
    /// Nobody.
    Nobody,
}

/// Where to look, and for whose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) state_root: &'a Path,
    /// Only pods of this namespace of containerd's, and nothing that has none.
    pub(super) namespace: Option<&'a str>,
    pub(super) options: Option<&'a Options>,
}

impl Scope<'_> {
    fn sandboxes(&self) -> Result<Vec<(String, StateDirectory)>> {
        let mut found = sandboxes(self.state_root)?;
        found.retain(|(namespace, _)| self.namespace.is_none_or(|wanted| wanted == namespace));
        Ok(found)
    }
}

/// Finds leftovers.
pub(super) fn look(scope: Scope<'_>) -> Vec<Finding> {
    if !sees_all_processes() {
        return vec![blind()];
    }
    let mut findings = Vec::new();
    let about = "state of a dead pod";
    match scope.sandboxes() {
        Err(error) => {
            let why = "it is not known what dead pods have left";
            findings.push(Finding::warning(about, error.to_string(), why, "run as root"));
        }
        Ok(found) => {
            for (namespace, directory) in found {
                let owner = judge(|| directory.read().ok().flatten(), scope.state_root);
                findings.extend(describe(&namespace, &directory, &owner));
            }
        }
    }
    if scope.namespace.is_none() {
        findings.extend(of_no_namespace(scope));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("leftovers", "none"));
    }
    findings
}

fn of_no_namespace(scope: Scope<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ranges = Ranges::read(scope.state_root, ids::pool(scope.options)).unwrap_or_default();
    for (link, owner) in ranges.ownerless {
        let found = format!("{} of {owner}, which has no state", link.display());
        let why = "fewer pods fit";
        findings.push(Finding::warning("ID range without owner", found, why, MEND));
    }
    for cgroup in stray_cgroups(scope.state_root) {
        let found = cgroup.display().to_string();
        let why = "the kernel keeps its counters, and containers of the same name meet its limits";
        findings.push(Finding::warning("cgroup that no pod has", found, why, MEND));
    }
    for socket in dead_sockets() {
        let found = socket.display().to_string();
        let why = "containerd clears it away only for a container of the same name";
        findings.push(Finding::warning("socket that nobody serves", found, why, MEND));
    }
    for file in torn_programs(scope.state_root) {
        let found = file.display().to_string();
        let why = "it takes memory until the node starts anew";
        findings.push(Finding::warning("seccomp program half written", found, why, MEND));
    }
    for directory in abandoned_fifos(scope.state_root) {
        let found = directory.display().to_string();
        let why = "it takes memory until the node starts anew";
        findings.push(Finding::warning("FIFOs of a killed palisade exec", found, why, MEND));
    }
    findings
}

fn describe(namespace: &str, directory: &StateDirectory, owner: &Owner) -> Option<Finding> {
    let found = format!("{} ({namespace})", directory.path().display());
    match owner {
        Owner::Living => None,
        Owner::HalfDead(boot) => Some(Finding::warning(
            "pod without a shim",
            format!("{found}: the sandbox process {boot} goes on without its shim"),
            "nobody can stop, see or remove it",
            &format!("kill -9 {boot} && {MEND}"),
        )),
        Owner::Nobody => Some(Finding::warning(
            "state of a dead pod",
            found,
            "its cgroups and IDs stay taken; containerd clears them away when it starts, if it \
             still knows the pod",
            MEND,
        )),
    }
}

/// Judges a sandbox whose shim may be about to record itself: one that is nobody's is looked at
/// again after all living shims were found to have done so.
fn judge(state: impl Fn() -> Option<State>, state_root: &Path) -> Owner {
    match owner(state().as_ref(), state_root) {
        Owner::Nobody => match state() {
            Some(state) => owner(Some(&state), state_root),
            None => Owner::Nobody,
        },
        known => known,
    }
}

/// Judges a sandbox by what its shim has recorded.
fn owner(state: Option<&State>, state_root: &Path) -> Owner {
    match state {
        // Without pidfs any process with the PID counts as the same: nothing is removed then.
        Some(state) if state.shim.and_then(living).is_some() => Owner::Living,
        Some(state) if living(state.boot).is_some() => Owner::HalfDead(state.boot.pid),
        Some(state) if state.shim.is_some() => Owner::Nobody,
        // A shim that makes a sandbox, or one of a version before, has recorded itself nowhere.
        _ if unrecorded_shims(state_root) => Owner::Living,
        _ => Owner::Nobody,
    }
}

/// The inode number of the first PID namespace: the kernel's `PROC_PID_INIT_INO`.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether the PIDs in the state are those that this process sees: in a container they would all
/// seem dead. A node that is a container itself has containerd or a shim in it.
fn sees_all_processes() -> bool {
    let own = fs::metadata("/proc/self/ns/pid").map(|metadata| metadata.ino());
    own.is_ok_and(|inode| inode == FIRST_PID_NAMESPACE)
        || !running(|program| program == "containerd" || program == SHIM).is_empty()
}

fn blind() -> Finding {
    Finding::warning(
        "leftovers",
        "not looked for: this is a PID namespace without containerd",
        "the living cannot be told from the dead by PIDs of another namespace",
        "run it on the node, or in a pod with hostPID: true",
    )
}

/// Whether a shim lives that no state names.
fn unrecorded_shims(state_root: &Path) -> bool {
    // The processes first: one that is recorded afterwards is missed by neither.
    let running = shims();
    let recorded: BTreeSet<i32> = sandboxes(state_root)
        .unwrap_or_default()
        .iter()
        .filter_map(|(_, directory)| directory.read().ok()??.shim)
        .filter_map(living)
        .collect();
    running.iter().any(|pid| !recorded.contains(pid))
}

/// Returns the PIDs of all living shims of Palisade's.
fn shims() -> Vec<i32> {
    running(|program| program == SHIM)
}

/// Returns the PIDs of the programs with such a name.
fn running(is_wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let wanted = |pid: &i32| {
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = args.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program).into_owned();
        is_wanted(program.rsplit('/').next().unwrap_or_default())
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(wanted).collect()
}

/// Removes leftovers, and says what was removed.
pub(super) fn fix(scope: Scope<'_>) -> Vec<Finding> {
    if !sees_all_processes() {
        return vec![blind()];
    }
    let mut done = Vec::new();
    for (namespace, directory) in scope.sandboxes().unwrap_or_default() {
        let id = directory.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let found = format!("{} ({namespace})", directory.path().display());
        match remove_state(scope.state_root, &namespace, &id.unwrap_or_default()) {
            Ok(Removal::Removed) => done.push(Finding::ok("removed", found)),
            Ok(Removal::Left(owner)) => done.extend(describe(&namespace, &directory, &owner)),
            Err(error) => done.push(failed(&found, &error)),
        }
    }
    if scope.namespace.is_none() {
        done.extend(fix_of_no_namespace(scope));
    }
    if done.is_empty() {
        done.push(Finding::ok("leftovers", "none"));
    }
    done
}

fn fix_of_no_namespace(scope: Scope<'_>) -> Vec<Finding> {
    let mut done = Vec::new();
    match give_back_ownerless(scope.state_root, ids::pool(scope.options)) {
        Ok(links) => done.extend(links.iter().map(|link| removed(link))),
        Err(error) => done.push(failed("ID ranges without owner", &error.into())),
    }
    let files = dead_sockets().into_iter().chain(torn_programs(scope.state_root));
    let mut remove = |path: PathBuf, removal: std::io::Result<()>| match removal {
        Ok(()) => done.push(removed(&path)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(error) => done.push(failed(&path.display().to_string(), &error.into())),
    };
    for file in files {
        let removal = fs::remove_file(&file);
        remove(file, removal);
    }
    for directory in abandoned_fifos(scope.state_root) {
        let removal = fs::remove_dir_all(&directory);
        remove(directory, removal);
    }
    for cgroup in stray_cgroups(scope.state_root) {
        let removal = strays::remove(&cgroup);
        remove(cgroup, removal);
    }
    done
}

enum Removal {
    Removed,
    Left(Owner),
}

/// Judges a sandbox under its lock, and cleans it up if it is nobody's.
fn remove_state(state_root: &Path, namespace: &str, id: &str) -> Result<Removal> {
    let Some(claim) = Claim::of(state_root, namespace, id)? else {
        return Ok(Removal::Left(Owner::Living));
    };
    let state = claim.state()?;
    match judge(|| claim.state().ok().flatten(), state_root) {
        Owner::Nobody => {
            claim.clean_up()?;
            if let Some(path) =
                state.and_then(|s| Some(PathBuf::from(s.address.strip_prefix("unix://")?)))
                && is_dead(&path, &kernel_sockets())
            {
                let _ = fs::remove_file(path);
            }
            Ok(Removal::Removed)
        }
        other => Ok(Removal::Left(other)),
    }
}

fn removed(path: &Path) -> Finding {
    Finding::ok("removed", path.display().to_string())
}

fn failed(what: &str, error: &anyhow::Error) -> Finding {
    let why = "it stays; nothing else was kept from being removed";
    Finding::fault("could not remove", format!("{what}: {error:#}"), why, MEND)
}

/// Returns the sockets of shims, of any runtime's, that nobody serves.
fn dead_sockets() -> Vec<PathBuf> {
    let entries = fs::read_dir(SOCKETS).into_iter().flatten().flatten();
    let candidates: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let known = kernel_sockets();
    candidates.into_iter().filter(|path| is_dead(path, &known)).collect()
}

/// Whether nothing listens at a socket's path, and nothing is about to.
fn is_dead(path: &Path, known: &BTreeSet<PathBuf>) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let age = metadata.modified().ok().and_then(|made| made.elapsed().ok());
    let refused = || match UnixStream::connect(path) {
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(_) => false,
    };
    metadata.file_type().is_socket()
        && age.is_some_and(|age| age > YOUNG)
        && !known.contains(path)
        && refused()
}

/// Returns the paths of all sockets of the kernel's, also of those that do not listen yet.
fn kernel_sockets() -> BTreeSet<PathBuf> {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let table = String::from_utf8_lossy(&table).into_owned();
    table
        .lines()
        .filter_map(|line| Some(line.split_once(" /")?.1))
        .map(|p| Path::new("/").join(p))
        .collect()
}

/// Returns the directories of FIFOs of `palisade exec` that was killed: `.exec-palisade:PID:TIME`.
fn abandoned_fifos(state_root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_root).into_iter().flatten().flatten();
    let is_abandoned = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pid = name.strip_prefix(".exec-palisade:").and_then(|name| name.split(':').next());
        pid.is_some_and(has_ended)
    };
    entries.map(|entry| entry.path()).filter(is_abandoned).collect()
}

/// Returns the cgroups that nobody will remove any more. While a shim lives that no state names,
/// any may be its: then none counts.
fn stray_cgroups(state_root: &Path) -> Vec<PathBuf> {
    if unrecorded_shims(state_root) {
        return Vec::new();
    }
    strays::find(state_root).unwrap_or_default()
}

/// Whether there is no process with a PID.
fn has_ended(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Returns seccomp programs that a gofer has begun to write and that has ended: `HASH.PID.new`.
fn torn_programs(state_root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_root.join("seccomp")).into_iter().flatten().flatten();
    let is_torn = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pid = name.strip_suffix(".new").and_then(|name| name.rsplit('.').next());
        pid.is_some_and(has_ended)
    };
    entries.map(|entry| entry.path()).filter(is_torn).collect()
}
