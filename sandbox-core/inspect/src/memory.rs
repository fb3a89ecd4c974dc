//! The memory of a container: of each process and mapping as the kernel accounts for it
//! (proc_pid_smaps(5)), and of the whole by its cgroup, which also counts what no mapping shows.
//! Mappings of the same file, and those that have the same name, are added up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::ops::AddAssign;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::types::HostPid;
use serde::Serialize;

use crate::status::Status;

/// Bytes of memory, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Address space.
    pub size: u64,
    /// Present in memory.
    pub resident: u64,
    /// Present, each page divided by the number of those that share it.
    pub proportional: u64,
    /// Present, and of no file.
    pub anonymous: u64,
    /// Present, and of a file.
    pub file: u64,
    /// Present, and shared with other processes.
    pub shared: u64,
    /// Swapped out.
    pub swapped: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.size += other.size;
        self.resident += other.resident;
        self.proportional += other.proportional;
        self.anonymous += other.anonymous;
        self.file += other.file;
        self.shared += other.shared;
        self.swapped += other.swapped;
    }
}

/// The memory of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfProcess {
    /// All mappings together.
    pub total: Usage,
    /// Tables of the kernel's, by which the process finds its memory.
    pub page_tables: u64,
    /// The mappings, by name: a file's path, `[heap]`, `[stack]`, `[anonymous]`.
    pub mappings: BTreeMap<String, Usage>,
}

/// The memory that the cgroup of a container is charged for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfCgroup {
    /// All of it.
    pub usage: u64,
    /// The limit. `None` if there is none.
    pub limit: Option<u64>,
    /// Of no file.
    pub anonymous: u64,
    /// Of files: what the kernel keeps to be fast counts as well.
    pub file: u64,
    /// The part of `file` that is of a tmpfs or shared without a file.
    pub shared: u64,
    /// Of the kernel itself, on behalf of the container.
    pub kernel: u64,
    /// The part of `kernel` that is stacks of threads. `None` where the kernel does not say.
    pub kernel_stacks: Option<u64>,
    /// The part of `kernel` that is page tables. `None` where the kernel does not say.
    pub page_tables: Option<u64>,
    /// The part of `kernel` that is objects: inodes, names, sockets. `None` where the kernel does
    /// not say.
    pub slab: Option<u64>,
    /// Buffers of sockets.
    pub sockets: u64,
    /// Swapped out.
    pub swapped: u64,
}

/// Reads the memory of a process. `None` if it has ended, or is a thread of the kernel's.
pub fn of_process(pid: HostPid) -> Option<OfProcess> {
    let smaps = File::open(format!("/proc/{}/smaps", pid.0)).ok()?;
    let mappings = mappings(BufReader::new(smaps));
    let mut total = Usage::default();
    mappings.values().for_each(|usage| total += *usage);
    let page_tables = Status::of(pid.0).and_then(|status| status.bytes("VmPTE"));
    Some(OfProcess { total, page_tables: page_tables.unwrap_or(0), mappings })
}

/// Adds up the mappings of smaps by their names.
fn mappings(mut smaps: impl BufRead) -> BTreeMap<String, Usage> {
    let mut all: BTreeMap<String, Usage> = BTreeMap::new();
    let (mut name, mut usage) = (String::new(), None);
    let mut line = Vec::new();
    loop {
        line.clear();
        let ended = smaps.read_until(b'\n', &mut line).unwrap_or(0) == 0;
        let text = String::from_utf8_lossy(&line);
        let header = header(text.trim_end());
        if (ended || header.is_some())
            && let Some(usage) = usage.take()
        {
            *all.entry(std::mem::take(&mut name)).or_default() += usage;
        }
        match header {
            _ if ended => return all,
            Some(of) => (name, usage) = (of, Some(Usage::default())),
            None => usage.iter_mut().for_each(|usage| count(&text, usage)),
        }
    }
}

/// Returns the name of a mapping if a line begins one:
/// `55d0-55d2 r-xp 00001000 08:01 1234    /usr/bin/sleep`.
fn header(line: &str) -> Option<String> {
    let mut fields = line.splitn(6, ' ');
    let range = fields.next()?;
    let (from, to) = range.split_once('-')?;
    let hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !hexadecimal(from) || !hexadecimal(to) {
        return None;
    }
    let path = fields.nth(4).unwrap_or("").trim_start();
    Some(if path.is_empty() {
        "[anonymous]".to_owned()
    } else {
        crate::calls::printable(path.as_bytes())
    })
}

/// Counts a line such as `Rss:   8 kB`.
fn count(line: &str, usage: &mut Usage) {
    let Some((key, rest)) = line.split_once(':') else { return };
    let Some(bytes) = kibibytes(rest) else { return };
    match key {
        "Size" => usage.size += bytes,
        "Rss" => {
            usage.resident += bytes;
            usage.file += bytes;
        }
        "Pss" => usage.proportional += bytes,
        "Shared_Clean" | "Shared_Dirty" => usage.shared += bytes,
        // After `Rss`, of which it is a part.
        "Anonymous" => {
            usage.anonymous += bytes;
            usage.file = usage.file.saturating_sub(bytes);
        }
        "Swap" => usage.swapped += bytes,
        _ => {}
    }
}

fn kibibytes(text: &str) -> Option<u64> {
    let number = text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    number.checked_mul(1024)
}

/// Reads what a cgroup is charged for. `None` if the memory of the container is not counted, or it
/// is gone.
pub fn of_cgroup(cgroup: &Cgroup) -> Option<OfCgroup> {
    let folder = cgroup.paths().find(|path| path.join("memory.stat").is_file())?;
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let stat = text("memory.stat")?;
    if let Some(usage) = number("memory.current") {
        let limit = number("memory.max");
        let swapped = number("memory.swap.current").unwrap_or(0);
        return Some(OfCgroup { usage, limit, swapped, ..version_2(&stat) });
    }
    let usage = number("memory.usage_in_bytes")?;
    // Without a limit it is the largest number of pages.
    let limit = number("memory.limit_in_bytes").filter(|limit| *limit < i64::MAX as u64 & !0xfffff);
    let kernel = number("memory.kmem.usage_in_bytes").unwrap_or(0);
    Some(OfCgroup { usage, limit, kernel, ..version_1(&stat) })
}

fn line(stat: &str, key: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn version_2(stat: &str) -> OfCgroup {
    let get = |key: &str| line(stat, key).unwrap_or(0);
    // `kernel` is there since Linux 5.18.
    let parts = || get("kernel_stack") + get("pagetables") + get("percpu") + get("slab");
    OfCgroup {
        anonymous: get("anon"),
        file: get("file"),
        shared: get("shmem"),
        kernel: line(stat, "kernel").unwrap_or_else(parts),
        kernel_stacks: line(stat, "kernel_stack"),
        page_tables: line(stat, "pagetables"),
        slab: line(stat, "slab"),
        sockets: get("sock"),
        ..OfCgroup::default()
    }
}

/// The keys that begin with `total_` count the cgroups below as well.
fn version_1(stat: &str) -> OfCgroup {
    let get = |key: &str| line(stat, key).unwrap_or(0);
    OfCgroup {
        anonymous: get("total_rss"),
        file: get("total_cache"),
        shared: get("total_shmem"),
        swapped: get("total_swap"),
        ..OfCgroup::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
5000-6000 r-xp 00001000 08:01 1234                       /usr/bin/sl eep\n\
Size:                  8 kB\nRss:                   8 kB\nPss:                   3 kB\n\
Shared_Clean:          4 kB\nShared_Dirty:          0 kB\nAnonymous:             4 kB\n\
Swap:                  0 kB\nVmFlags: rd ex mr\n\
7000-8000 rw-p 00000000 00:00 0 \nSize:    4 kB\nRss:    4 kB\nAnonymous:   4 kB\nSwap:  12 kB\n\
8000-9000 r--p 00000000 08:01 1234                       /usr/bin/sl eep\nSize:   4 kB\n";

    #[test]
    fn mappings_of_one_name_are_added_up() {
        let all = mappings(SMAPS.as_bytes());
        let file = all["/usr/bin/sl eep"];
        assert_eq!((file.size, file.resident, file.proportional), (12 << 10, 8 << 10, 3 << 10));
        assert_eq!((file.anonymous, file.file, file.shared), (4 << 10, 4 << 10, 4 << 10));
        let anonymous = all["[anonymous]"];
        assert_eq!((anonymous.anonymous, anonymous.file, anonymous.swapped), (4096, 0, 12 << 10));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let two =
            version_2("anon 1\nfile 2\nkernel 9\nkernel_stack 3\npagetables 4\nslab 5\nsock 6\n");
        assert_eq!((two.anonymous, two.file, two.kernel, two.sockets), (1, 2, 9, 6));
        assert_eq!((two.page_tables, two.slab), (Some(4), Some(5)));
        assert_eq!(version_2("kernel_stack 3\nslab 5\n").kernel, 8);
        let one = version_1("rss 7\ntotal_rss 1\ntotal_cache 2\ntotal_shmem 3\ntotal_swap 4\n");
        assert_eq!((one.anonymous, one.file, one.shared, one.swapped), (1, 2, 3, 4));
        assert_eq!(one.page_tables, None);
    }

    #[test]
    fn what_this_process_holds_is_found() {
        let held = vec![1u8; 32 << 20];
        let me = of_process(HostPid(std::process::id().cast_signed())).unwrap();
        assert!(me.total.anonymous >= held.len() as u64, "{:?}", me.total);
        assert!(me.page_tables > 0 && me.mappings.keys().any(|name| name == "[stack]"));
    }
}
