//! What `/proc` says of a container's processes: which are saved, what they have of outside, and
//! what cannot be saved.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, makedev, statx};
use rustix::io::Errno;

use super::mounts::MountTable;
use crate::error::{Context, Error, Result};
use crate::types::HostPid;

/// The most descriptors of all processes.
const MAX_DESCRIPTORS: usize = 1 << 18;

/// The kinds of character devices that criu knows: memory, terminals, pseudo terminals.
const MEMORY: u32 = 1;
const TERMINALS: [u32; 2] = [4, 5];
const PSEUDO_TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;
/// `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// The namespaces of which all processes must be in the init's.
const NAMESPACES: [&str; 9] =
    ["user", "pid", "pid_for_children", "mnt", "net", "ipc", "uts", "cgroup", "time"];

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// The init and its descendants, which are saved.
    pub tree: Vec<HostPid>,
    /// The other processes of the container, which are not: those that execs have made.
    pub beside: Vec<Named>,
    /// The bytes of memory of those that are saved.
    pub memory: u64,
    /// Files that are not in the container's mounts.
    pub outside: Vec<Outside>,
    /// Pipes of which the saved processes have one end only.
    pub halves: Vec<Half>,
}

/// A process for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its ID on the host.
    pub pid: HostPid,
    /// Its name, which it chooses itself.
    pub name: String,
}

/// A file of outside that is open in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Its name for criu: `file[1b:e2012]`, or `tty[8800:a0]`.
    pub key: String,
    /// The device and the number of the file.
    pub id: FileId,
    /// Its kind, as far as it matters.
    pub kind: OutsideKind,
    /// Who has it, and what it is called there, for people.
    pub holder: String,
}

/// A file's device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The device of its file system.
    pub device: (u32, u32),
    /// Its number there.
    pub inode: u64,
}

/// The kind of a file of outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutsideKind {
    /// `/dev/null`.
    Null,
    /// A terminal.
    Terminal,
    /// Anything else.
    Other,
}

/// A pipe of which the container has one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// Its name for criu: `pipe:[4711]`.
    pub key: String,
    /// Its number.
    pub inode: u64,
    /// Whether it is the end that writes.
    pub writes: bool,
    /// The lowest descriptor that a process has it as.
    pub descriptor: u32,
}

/// Looks at the processes of a container: `members` are all in its cgroup but boot. `terminal` is
/// the number of the pseudo terminal whose other side is outside.
///
/// # Errors
/// `Invalid` names what cannot be saved, and who has it.
pub fn look(
    init: HostPid,
    members: &[HostPid],
    mounts: &MountTable,
    terminal: Option<u32>,
) -> Result<Seen> {
    let mut seen = Seen::default();
    let parents: HashMap<i32, Process> =
        members.iter().filter_map(|pid| Some((pid.0, Process::read(*pid)?))).collect();
    for (pid, process) in &parents {
        let named = Named { pid: HostPid(*pid), name: process.name.clone() };
        match is_below(*pid, init.0, &parents) {
            true => {
                seen.tree.push(named.pid);
                seen.memory = seen.memory.saturating_add(process.memory);
            }
            false => seen.beside.push(named),
        }
    }
    seen.tree.sort_unstable();
    seen.beside.sort_by_key(|process| process.pid.0);
    let wanted = namespaces_of(init)?;
    let mut open =
        Open { mounts, terminal, descriptors: 0, outside: BTreeMap::new(), pipes: BTreeMap::new() };
    for pid in seen.tree.clone() {
        let Some(process) = parents.get(&pid.0) else { continue };
        check_namespaces(pid, process, &wanted)?;
        if let Some(why) = process.held() {
            return Err(refused(pid, process, why));
        }
        open.look(pid, process)?;
    }
    seen.halves = open.halves();
    seen.outside = open.outside.into_values().collect();
    Ok(seen)
}

/// Whether a process descends from another, or is it.
fn is_below(pid: i32, root: i32, parents: &HashMap<i32, Process>) -> bool {
    let mut at = pid;
    // A process that has ended meanwhile may leave a ring of reused numbers.
    for _ in 0..=parents.len() {
        if at == root {
            return true;
        }
        match parents.get(&at) {
            Some(process) => at = process.parent,
            None => return false,
        }
    }
    false
}

struct Process {
    /// Its state, as proc_pid_stat(5) has it.
    state: char,
    parent: i32,
    name: String,
    memory: u64,
}

impl Process {
    /// Reads a process that is there, and that is no zombie without memory only.
    fn read(pid: HostPid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{}/stat", pid.0)).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name may have brackets and spaces.
        let (name, rest) = (stat.split_once('(')?.1, stat.rsplit_once(')')?.1);
        let name = name.rsplit_once(')')?.0.chars().filter(|c| !c.is_control()).collect();
        let mut fields = rest.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let pages: u64 = fields.nth(19).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        let memory = pages.saturating_mul(rustix::param::page_size() as u64);
        Some(Self { state, parent, name, memory })
    }

    /// Returns why criu would wait for it in vain.
    fn held(&self) -> Option<&'static str> {
        match self.state {
            'T' => Some("was stopped by a signal (send it SIGCONT)"),
            't' => Some("is traced by another process"),
            _ => None,
        }
    }
}

fn namespaces_of(pid: HostPid) -> Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    for name in NAMESPACES {
        if let Some(link) = namespace(pid, name)? {
            all.push((name, link));
        }
    }
    Ok(all)
}

/// Returns the name of a namespace; `None` if the process is gone or the kernel has no such.
fn namespace(pid: HostPid, name: &str) -> Result<Option<String>> {
    let path = format!("/proc/{}/ns/{name}", pid.0);
    match fs::read_link(&path) {
        Ok(link) => Ok(Some(link.to_string_lossy().into_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound || is_gone(&e) => Ok(None),
        // The kernel says so of a process that ends just then, too (`proc_ns_readlink`).
        Err(e)
            if e.kind() == ErrorKind::PermissionDenied
                && !Path::new(&format!("/proc/{}", pid.0)).exists() =>
        {
            Ok(None)
        }
        Err(e) => Err(e).context(|| format!("read {path}")),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::SRCH | Errno::NOENT))
}

fn check_namespaces(
    pid: HostPid,
    process: &Process,
    wanted: &[(&'static str, String)],
) -> Result<()> {
    for (name, wanted) in wanted {
        if namespace(pid, name)?.is_some_and(|own| own != *wanted) {
            let kind = match *name {
                "pid_for_children" => "PID namespace for its children",
                "user" => "user namespace",
                "pid" => "PID namespace",
                "mnt" => "mount namespace",
                "net" => "network namespace",
                "ipc" => "IPC namespace",
                "uts" => "UTS namespace",
                "cgroup" => "cgroup namespace",
                _ => "time namespace",
            };
            return Err(refused(pid, process, &format!("is in a {kind} of its own")));
        }
    }
    Ok(())
}

fn refused(pid: HostPid, process: &Process, why: &str) -> Error {
    Error::invalid(format!("process {} ({}) {why}, which cannot be saved", pid.0, process.name))
}

/// The descriptors of all processes.
struct Open<'a> {
    mounts: &'a MountTable,
    terminal: Option<u32>,
    descriptors: usize,
    outside: BTreeMap<String, Outside>,
    /// The ends that are open of each pipe, and the lowest descriptor.
    pipes: BTreeMap<u64, (bool, bool, u32)>,
}

impl Open<'_> {
    fn look(&mut self, pid: HostPid, process: &Process) -> Result<()> {
        let folder = format!("/proc/{}/fd", pid.0);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) => return Err(e).context(|| format!("read {folder}")),
        };
        for entry in entries {
            let number = match entry {
                Ok(entry) => entry.file_name().to_str().and_then(|name| name.parse().ok()),
                Err(e) if is_gone(&e) => break,
                Err(e) => return Err(e).context(|| format!("read {folder}")),
            };
            let Some(number) = number else { continue };
            self.descriptors += 1;
            if self.descriptors > MAX_DESCRIPTORS {
                return Err(Error::invalid(format!(
                    "the container's processes have more than {MAX_DESCRIPTORS} descriptors, which \
                     are too many to be saved"
                )));
            }
            match self.descriptor(pid, process, number) {
                Err(Refusal::Gone) => {}
                Err(Refusal::Said(error)) => return Err(error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn descriptor(
        &mut self,
        pid: HostPid,
        process: &Process,
        number: u32,
    ) -> std::result::Result<(), Refusal> {
        let path = format!("/proc/{}/fd/{number}", pid.0);
        let link = fs::read_link(&path).map_err(|e| Refusal::of(e, &path))?;
        let link = link.to_string_lossy();
        if let Some(what) = unsavable(&link) {
            return Err(refused(pid, process, &format!("has {what} open")).into());
        }
        if let Some(inode) = link.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']')) {
            let inode = inode.parse().map_err(|_| Refusal::Gone)?;
            let info = Info::read(pid, number)?;
            let (reads, writes) = info.access();
            let ends = self.pipes.entry(inode).or_insert((false, false, number));
            *ends = (ends.0 || reads, ends.1 || writes, ends.2.min(number));
            return Ok(());
        }
        if !link.starts_with('/') || link.starts_with("/memfd:") {
            return Ok(());
        }
        let stat = stat(&path)?;
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let shown: String = link.chars().filter(|c| !c.is_control()).take(200).collect();
        let is_terminal = kind == FileType::CharacterDevice
            && (TERMINALS.contains(&device.0) || PSEUDO_TERMINALS.contains(&device.0));
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if is_device && !is_terminal && (kind == FileType::BlockDevice || device.0 != MEMORY) {
            let (major, minor) = device;
            let what = format!("has the device {shown} ({major}:{minor}) open");
            return Err(refused(pid, process, &what).into());
        }
        let mount = Info::read(pid, number)?.mount;
        let leads_out =
            PSEUDO_TERMINALS.contains(&device.0) && is_terminal && self.terminal == Some(device.1);
        if self.mounts.has(mount) && !leads_out {
            return Ok(());
        }
        let id = FileId { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino };
        let (key, kind) = if is_terminal {
            let file_system = makedev(id.device.0, id.device.1);
            (
                format!("tty[{:x}:{file_system:x}]", makedev(device.0, device.1)),
                OutsideKind::Terminal,
            )
        } else {
            let is_null = kind == FileType::CharacterDevice && device == NULL;
            let kind = if is_null { OutsideKind::Null } else { OutsideKind::Other };
            (format!("file[{mount:x}:{:x}]", id.inode), kind)
        };
        let holder = format!("process {} ({}) has {shown} open", pid.0, process.name);
        self.outside.entry(key.clone()).or_insert(Outside { key, id, kind, holder });
        Ok(())
    }

    fn halves(&self) -> Vec<Half> {
        let one_end = self.pipes.iter().filter(|(_, (reads, writes, _))| reads != writes);
        let half = |(inode, (_, writes, descriptor)): (&u64, &(bool, bool, u32))| Half {
            key: format!("pipe:[{inode}]"),
            inode: *inode,
            writes: *writes,
            descriptor: *descriptor,
        };
        one_end.map(half).collect()
    }
}

/// Why a descriptor is not looked at further.
enum Refusal {
    /// It is closed, or its process gone.
    Gone,
    Said(Error),
}

impl Refusal {
    fn of(error: std::io::Error, path: &str) -> Self {
        match is_gone(&error) {
            true => Self::Gone,
            false => Self::Said(Error::internal(format!("read {path}: {error}"))),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}

/// Returns what an anonymous file is that criu cannot save, for people.
fn unsavable(link: &str) -> Option<&'static str> {
    let kind = link.strip_prefix("anon_inode:")?;
    let kind = kind.trim_matches(['[', ']']);
    Some(match kind {
        "io_uring" => "an io_uring",
        "perf_event" => "a perf event",
        "bpf-prog" | "bpf-map" | "bpf_link" | "bpf_iter" | "btf" => "an object of BPF",
        "userfaultfd" => "a userfaultfd",
        "seccomp notify" => "a seccomp listener",
        "fanotify" => "a fanotify group",
        kind if kind.starts_with("kvm-") => "a virtual machine of KVM",
        _ => return None,
    })
}

/// Asks the kernel alone, not the program that may serve the file system.
fn stat(path: &str) -> std::result::Result<Statx, Refusal> {
    let flags = AtFlags::STATX_DONT_SYNC;
    statx(CWD, path, flags, StatxFlags::TYPE | StatxFlags::INO)
        .map_err(|e| Refusal::of(e.into(), path))
}

/// What `/proc/PID/fdinfo` says of a descriptor.
struct Info {
    flags: u32,
    mount: u64,
}

impl Info {
    fn read(pid: HostPid, number: u32) -> std::result::Result<Self, Refusal> {
        let path = format!("/proc/{}/fdinfo/{number}", pid.0);
        let text = fs::read(&path).map_err(|e| Refusal::of(e, &path))?;
        let text = String::from_utf8_lossy(&text);
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let flags = value("flags:").and_then(|flags| u32::from_str_radix(flags, 8).ok());
        let mount = value("mnt_id:").and_then(|id| id.parse().ok());
        let missing = || Refusal::Said(Error::internal(format!("{path} names no mount")));
        Ok(Self { flags: flags.unwrap_or(0), mount: mount.ok_or_else(missing)? })
    }

    /// Whether it reads, and whether it writes.
    fn access(&self) -> (bool, bool) {
        match self.flags & libc::O_ACCMODE.cast_unsigned() {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn own() -> HostPid {
        HostPid(rustix::process::getpid().as_raw_nonzero().get())
    }

    #[test]
    fn a_process_s_own_files_are_in_its_mounts_and_a_detached_one_is_not() {
        let mounts = MountTable::of(own()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let (lone, gone) = std::io::pipe().unwrap();
        drop(gone);
        let seen = look(own(), &[own()], &mounts, None).unwrap();
        assert_eq!(seen.tree, [own()]);
        assert!(seen.memory > 1 << 20 && seen.beside.is_empty());
        let of = |fd: &dyn AsRawFd| {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            fs::read_link(path).unwrap().to_string_lossy().into_owned()
        };
        let half = seen.halves.iter().find(|half| half.key == of(&lone)).unwrap();
        assert!(!half.writes && half.descriptor == lone.as_raw_fd().cast_unsigned());
        assert!(seen.halves.iter().all(|half| half.key != of(&reader)));
        // With no mount of its own, all is outside.
        let none = look(own(), &[own()], &MountTable::default(), None).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let outside = none.outside.iter().find(|outside| outside.id.inode == inode).unwrap();
        assert!(outside.key.ends_with(&format!(":{inode:x}]")), "{}", outside.key);
        assert_eq!(outside.kind, OutsideKind::Other);
    }

    #[test]
    fn who_does_not_descend_from_the_init_is_beside_it() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = HostPid(child.id().cast_signed());
        let mounts = MountTable::of(own()).unwrap();
        let seen = look(own(), &[own(), pid], &mounts, None).unwrap();
        assert_eq!(seen.tree.len(), 2);
        let seen = look(pid, &[own(), pid], &mounts, None).unwrap();
        assert_eq!((seen.tree, seen.beside.len()), (vec![pid], 1));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_criu_cannot_save_is_told_by_name() {
        for (link, what) in [
            ("anon_inode:[io_uring]", "io_uring"),
            ("anon_inode:[perf_event]", "perf"),
            ("anon_inode:bpf-map", "BPF"),
            ("anon_inode:[userfaultfd]", "userfaultfd"),
            ("anon_inode:kvm-vm", "KVM"),
        ] {
            assert!(unsavable(link).is_some_and(|found| found.contains(what)), "{link}");
        }
        for link in ["anon_inode:[eventfd]", "anon_inode:inotify", "socket:[1]", "/dev/null"] {
            assert_eq!(unsavable(link), None, "{link}");
        }
    }
}
