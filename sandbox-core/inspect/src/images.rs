//! The programs and libraries that processes have mapped. A file is opened when a process is first
//! seen, through the kernel, so that its symbols can be read whatever its path means on the host,
//! and after the process has ended.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

/// The descriptors that are left for other things than programs.
const SPARE: u64 = 300;

/// Where an instruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// An address of the kernel.
    Kernel(u64),
    /// An offset in a file: the index of the file.
    File(usize, u64),
    /// An address in memory that no file is mapped to, of a process: what a JIT has written.
    Memory(i32, u64),
    /// In the kernel's own page of code in each process.
    Vdso(u64),
}

/// A file with code.
#[derive(Debug)]
pub struct Image {
    /// Its path as the process sees it.
    pub path: String,
    /// A process that has it mapped.
    pub(crate) pid: i32,
    file: File,
}

impl Image {
    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A part of a process's memory with code.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// What is mapped.
    pub what: Mapped,
}

/// What a part of memory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A file, from an offset on.
    File(usize, u64),
    /// The kernel's page.
    Vdso,
    /// Nothing of a file.
    Memory,
}

/// All files that were seen.
#[derive(Debug)]
pub struct Images {
    all: Vec<Image>,
    /// How many are opened: a container can map more than this process may have open.
    most: u64,
    /// By device and inode.
    known: HashMap<(u64, u64), usize>,
    /// By process.
    mappings: HashMap<i32, Vec<Mapping>>,
    /// By process: memory that a file system in user space serves, which may never answer.
    served: HashMap<i32, Arc<[Range<u64>]>>,
}

impl Default for Images {
    fn default() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = limit.saturating_sub(SPARE);
        Self {
            all: Vec::new(),
            most,
            known: HashMap::new(),
            mappings: HashMap::new(),
            served: HashMap::new(),
        }
    }
}

impl Images {
    /// Returns a file.
    pub fn get(&self, index: usize) -> &Image {
        &self.all[index]
    }

    /// Returns the place of an address in a process. `None` if nothing is there that the process
    /// may execute.
    pub fn place(&mut self, pid: i32, address: u64) -> Option<Place> {
        if self.mapping(pid, address).is_none() {
            // It was mapped since, or the process has executed another program.
            let mappings = self.read(pid);
            let old = self.mappings.entry(pid).or_default();
            if !mappings.is_empty() {
                *old = mappings;
            }
        }
        let mapping = self.mapping(pid, address)?;
        Some(match mapping.what {
            Mapped::File(index, offset) => Place::File(index, address - mapping.start + offset),
            Mapped::Vdso => Place::Vdso(address - mapping.start),
            Mapped::Memory => Place::Memory(pid, address),
        })
    }

    /// Returns the memory of a process that a file system in user space serves. Whoever reads it may
    /// wait for ever, so long as the container lives.
    pub(crate) fn served(&mut self, pid: i32) -> Arc<[Range<u64>]> {
        if !self.served.contains_key(&pid) {
            let mappings = self.read(pid);
            self.mappings.insert(pid, mappings);
        }
        self.served.get(&pid).cloned().unwrap_or_default()
    }

    /// Returns what a process has mapped at an address, as far as it was read.
    pub(crate) fn mapped(&self, pid: i32, address: u64) -> Option<Mapped> {
        self.mapping(pid, address).map(|mapping| mapping.what)
    }

    /// Whether a process has code at an address, as far as its mappings were read.
    pub(crate) fn has_code(&self, pid: i32, address: u64) -> bool {
        self.mapping(pid, address).is_some()
    }

    /// Forgets what a process had mapped: it executes another program.
    pub fn forget(&mut self, pid: i32) {
        self.mappings.remove(&pid);
    }

    /// Returns what a process has mapped, as far as it was read.
    pub fn mappings(&self, pid: i32) -> &[Mapping] {
        self.mappings.get(&pid).map_or(&[], Vec::as_slice)
    }

    fn mapping(&self, pid: i32, address: u64) -> Option<&Mapping> {
        let mappings = self.mappings(pid);
        let after = mappings.partition_point(|mapping| mapping.start <= address);
        mappings[..after].last().filter(|mapping| address < mapping.end)
    }

    /// Reads what a process has mapped with code. Nothing, if it has ended.
    fn read(&mut self, pid: i32) -> Vec<Mapping> {
        let text = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let devices = served_devices(pid);
        let is_served = |line: &&str| line.split(' ').nth(3).is_some_and(|d| devices.contains(d));
        let range = |line: &str| start_and_end(line.split(' ').next()?);
        let served = text.lines().filter(is_served).filter_map(range).map(|(from, to)| from..to);
        self.served.insert(pid, served.collect());
        text.lines().filter(|line| !is_served(line)).filter_map(|l| self.parse(pid, l)).collect()
    }

    /// Parses a line, as in `7f00-7f10 r-xp 00001000 fd:00 123   /usr/lib/libc.so.6`.
    fn parse(&mut self, pid: i32, line: &str) -> Option<Mapping> {
        let mut parts = line.splitn(6, ' ');
        let range = parts.next()?;
        let flags = parts.next()?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let offset = hex(parts.next()?)?;
        let (_device, _inode) = (parts.next()?, parts.next()?);
        let path = parts.next().unwrap_or("").trim_start();
        if flags.as_bytes().get(2) != Some(&b'x') {
            return None;
        }
        let (start, end) = start_and_end(range)?;
        let what = match path {
            "[vdso]" => Mapped::Vdso,
            "[vsyscall]" => return None,
            path if path.starts_with('/') => self
                .open(pid, start, end, path)
                .map_or(Mapped::Memory, |index| Mapped::File(index, offset)),
            _ => Mapped::Memory,
        };
        Some(Mapping { start, end, what })
    }

    fn open(&mut self, pid: i32, start: u64, end: u64, path: &str) -> Option<usize> {
        // Without the zeros that `maps` begins numbers with.
        let file = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")).ok()?;
        let metadata = file.metadata().ok().filter(|metadata| metadata.is_file())?;
        let key = (metadata.dev(), metadata.ino());
        let next = self.all.len();
        let index = *self.known.entry(key).or_insert(next);
        if index == next {
            if self.all.len() as u64 >= self.most {
                self.known.remove(&key);
                return None;
            }
            let path = crate::calls::printable_name(path.trim_end_matches(" (deleted)"));
            self.all.push(Image { path, pid, file });
        }
        Some(index)
    }
}

fn start_and_end(range: &str) -> Option<(u64, u64)> {
    let (start, end) = range.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Returns the devices of file systems in user space that a process has mounted, but for that of its
/// root, which the host provides.
fn served_devices(pid: i32) -> HashSet<String> {
    let text = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    devices(&String::from_utf8_lossy(&text))
}

/// Parses lines as in `36 35 0:50 /root /at rw,noatime shared:1 - fuse.name source rw`.
fn devices(mounts: &str) -> HashSet<String> {
    let (mut found, mut root) = (HashSet::new(), "");
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(at)) = (words.nth(2), words.nth(1)) else { continue };
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        if at == "/" {
            root = device;
        }
        if kind.is_some_and(|kind| kind.starts_with("fuse")) {
            found.insert(device);
        }
    }
    found.remove(root);
    // `maps` has both numbers in hexadecimal digits.
    let padded = |device: &str| {
        let (major, minor) = device.split_once(':')?;
        let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
        Some(format!("{major:02x}:{minor:02x}"))
    };
    found.into_iter().filter_map(padded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_file_systems_in_user_space_are_found() {
        let mounts = "1 0 0:35 / / rw - fuse.overlayfs fuse-overlayfs rw\n\
            2 1 0:300 / /proc rw,nosuid - proc proc rw\n\
            3 1 0:18 /x /proc/meminfo rw shared:1 - fuse palisade rw\n";
        assert_eq!(devices(mounts), HashSet::from(["00:12".to_owned()]));
    }

    #[test]
    fn an_address_of_this_program_is_found_in_its_file() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut images = Images::default();
        let address = an_address_of_this_program_is_found_in_its_file as fn() as usize as u64;
        let Some(Place::File(index, offset)) = images.place(pid, address) else {
            panic!("the test's own code")
        };
        assert!(offset > 0);
        let own = std::env::current_exe().unwrap();
        assert_eq!(images.get(index).path, own.to_str().unwrap());
        assert_eq!(
            images.get(index).file().metadata().unwrap().ino(),
            fs::metadata(own).unwrap().ino()
        );
        assert_eq!(images.place(pid, 0x10), None);
        let on_the_stack = &raw const pid as u64;
        assert_eq!(images.place(pid, on_the_stack), None, "no code is there");
    }
}
