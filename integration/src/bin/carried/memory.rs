//! Memory: private, shared with a child, of files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use rustix::pipe::pipe;

use crate::{Check, Given, Result, same};

const PAGE: usize = 4096;

/// Memory of the size that was asked for, with a content that does not compress.
pub fn filled(given: &Given) -> Result<Check> {
    let mut content = vec![0; given.memory << 20];
    fastrand::Rng::with_seed(17).fill(&mut content);
    let was = checksum(&content);
    Ok(Box::new(move || same("the checksum", checksum(&content), was)))
}

/// FNV-1a over words: fast enough for a gigabyte.
fn checksum(content: &[u8]) -> u64 {
    let words = content
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// Anonymous memory that a forked child writes to when it is asked.
pub fn shared_with_child(_: &Given) -> Result<Check> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping takes no other's place.
    let at = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, access, MapFlags::SHARED) }?;
    // SAFETY: the mapping is never taken away, is aligned, and holds zeros, which are a number.
    let counter: &'static AtomicU64 = unsafe { &*at.cast() };
    let [(asked, ask), (answer, answered)] = [pipe()?, pipe()?];
    // SAFETY: the process has one thread: this is the first thing that is set up.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            drop((ask, answer));
            let (mut asked, mut answered) = (File::from(asked), File::from(answered));
            while asked.read_exact(&mut [0]).is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = answered.write_all(&[0]);
            }
            std::process::exit(0);
        }
        nix::unistd::ForkResult::Parent { .. } => drop((asked, answered)),
    }
    let (mut ask, mut answer) = (File::from(ask), File::from(answer));
    counter.store(1000, Ordering::SeqCst);
    let mut was = 1000;
    Ok(Box::new(move || {
        ask.write_all(&[0])?;
        answer.read_exact(&mut [0])?;
        was += 1;
        same("what the child has counted", counter.load(Ordering::SeqCst), was)
    }))
}

/// A file in the root file system that is mapped and shared.
pub fn of_file(_: &Given) -> Result<Check> {
    mapped(Path::new("/tmp/carried-mapped"))
}

/// A file in /dev/shm that is mapped and shared.
pub fn of_shm(_: &Given) -> Result<Check> {
    mapped(Path::new("/dev/shm/carried-mapped"))
}

/// Maps a file, and looks whether what is written to one is read from the other.
fn mapped(path: &Path) -> Result<Check> {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    file.set_len(2 * PAGE as u64)?;
    file.write_all_at(b"mapped", PAGE as u64)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping takes no other's place.
    let at = unsafe { mmap(std::ptr::null_mut(), 2 * PAGE, access, MapFlags::SHARED, &file, 0) }?;
    let at = at.cast::<u8>() as usize;
    drop(file);
    let (path, mut round) = (path.to_owned(), 0u64);
    Ok(Box::new(move || {
        // SAFETY: the mapping is never taken away, and the file keeps its length.
        let there = unsafe { std::slice::from_raw_parts((at + PAGE) as *const u8, 6) };
        same("what is mapped", there, b"mapped")?;
        round += 1;
        // SAFETY: as above; nothing else refers to these bytes.
        unsafe { (at as *mut u64).write(round) };
        let content = fs::read(&path)?;
        same("what is written there", &content[..8], &round.to_ne_bytes()[..])
    }))
}

/// Pages that may be read only, or not at all.
pub fn protected(_: &Given) -> Result<Check> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping takes no other's place.
    let at = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * PAGE, access, MapFlags::PRIVATE) }?;
    // SAFETY: both pages are this function's.
    unsafe { mprotect(at, PAGE, MprotectFlags::READ) }?;
    let second = at.wrapping_byte_add(PAGE);
    // SAFETY: as above.
    unsafe { mprotect(second, PAGE, MprotectFlags::empty()) }?;
    let begin = format!("{:x}-", at as usize);
    let next = format!("{:x}-", second as usize);
    Ok(Box::new(move || {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let access = |begin: &str| {
            let line = maps.lines().find(|line| line.starts_with(begin));
            line.and_then(|line| line.split(' ').nth(1)).map(str::to_owned)
        };
        same("the first page", access(&begin).as_deref(), Some("r--p"))?;
        same("the second page", access(&next).as_deref(), Some("---p"))
    }))
}
