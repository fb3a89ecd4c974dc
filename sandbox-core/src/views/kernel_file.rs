//! Reads files that the kernel makes at each read.

use std::io;
use std::os::fd::AsFd;

/// The bytes that most such files are far below.
pub(super) const USUAL: usize = 4096;
/// No file is read beyond this.
const MOST: usize = 1 << 20;

/// Reads a file that the kernel makes as a whole, such as `memory.stat`, with one pread(2),
/// unless it is larger than expected. Then it is read anew, so that all is of one moment.
pub(super) fn read(fd: impl AsFd, expected: usize) -> io::Result<Vec<u8>> {
    let mut text = vec![0; expected.clamp(USUAL, MOST)];
    loop {
        let filled = read_at(&fd, &mut text, 0)?;
        if filled < text.len() || filled >= MOST {
            text.truncate(filled);
            return Ok(text);
        }
        text = vec![0; filled * 2];
    }
}

/// Reads a file that the kernel makes by lines, such as `diskstats`, of which it returns about
/// 4 KiB at once. Ends when `enough` says so of what has been read.
pub(super) fn read_lines(fd: impl AsFd, enough: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let mut text = vec![0; USUAL];
    let mut filled = 0;
    loop {
        let rest = text.get_mut(filled..).unwrap_or_default();
        match read_at(&fd, rest, filled as u64)? {
            0 => break,
            read => filled += read,
        }
        if filled >= MOST || enough(text.get(..filled).unwrap_or_default()) {
            break;
        }
        if text.len() - filled < USUAL {
            text.resize(text.len() * 2, 0);
        }
    }
    text.truncate(filled);
    Ok(text)
}

fn read_at(fd: impl AsFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::pread(&fd, &mut *buffer, offset))?)
}

/// The error for a text that the kernel would not write.
pub(super) fn nonsense(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Takes a text of the kernel's as such.
pub(super) fn utf8(text: Vec<u8>, what: &str) -> io::Result<String> {
    String::from_utf8(text).map_err(|_| nonsense(format!("{what}: expected text")))
}
