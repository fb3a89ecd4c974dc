//! The files of outside that a container's processes have open, and which of its streams each is.

use std::collections::HashSet;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use sandbox_core::checkpoint::manifest::{Inherited, Stream};
use sandbox_core::dump::processes::{FileId, OutsideKind, Seen};

use super::container::Process;
use crate::error::{Error, Result};

/// The streams of an init.
#[derive(Debug)]
pub(super) struct OwnStreams {
    stdout: Option<FileId>,
    stderr: Option<FileId>,
    terminal: bool,
    /// Whether a logger has the other end of its output.
    logger: bool,
}

impl OwnStreams {
    /// Finds out what files they are.
    pub(super) fn of(init: &Process) -> Self {
        let stdio = &init.stdio;
        Self {
            stdout: file_of(&stdio.stdout),
            stderr: file_of(&stdio.stderr),
            terminal: stdio.terminal,
            logger: stdio.stdout.starts_with("binary://"),
        }
    }
}

/// Returns the file that a stream's URI names; `None` if that is none, or is gone.
fn file_of(uri: &str) -> Option<FileId> {
    let path = ["fifo://", "file://"].iter().find_map(|scheme| uri.strip_prefix(scheme));
    let path = path.unwrap_or(uri);
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some(FileId { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino })
}

/// Returns the files of outside, with what stands for each when they come back.
///
/// # Errors
/// A file is none of the init's streams.
pub(super) fn inherited(seen: &Seen, own: &OwnStreams) -> Result<Vec<Inherited>> {
    let mut inherited = Vec::new();
    for file in &seen.outside {
        let stream = match file.kind {
            OutsideKind::Null => Stream::Null,
            OutsideKind::Terminal if own.terminal => Stream::Terminal,
            _ if own.stdout == Some(file.id) => Stream::Stdout,
            _ if own.stderr == Some(file.id) => Stream::Stderr,
            _ => {
                return Err(Error::state(format!(
                    "{}, which is neither in the container's mounts nor one of its streams, and \
                     cannot be saved",
                    file.holder
                )));
            }
        };
        inherited.push(Inherited { key: file.key.clone(), stream });
    }
    let of_shim = own_pipes();
    for half in &seen.halves {
        let is_stream = of_shim.contains(&half.key) || (own.logger && half.writes);
        let stream = match (half.writes, half.descriptor) {
            _ if !is_stream => continue,
            (false, _) => Stream::Stdin,
            (true, 2) => Stream::Stderr,
            (true, _) => Stream::Stdout,
        };
        inherited.push(Inherited { key: half.key.clone(), stream });
    }
    Ok(inherited)
}

/// Lists the pipes of which this process has an end.
fn own_pipes() -> HashSet<String> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let links = links.map(|link| link.to_string_lossy().into_owned());
    links.filter(|link| link.starts_with("pipe:[")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use sandbox_core::dump::processes::{Half, Outside};

    use super::*;

    fn outside(kind: OutsideKind, inode: u64) -> Outside {
        let id = FileId { device: (0, 1), inode };
        Outside { key: format!("file[1:{inode:x}]"), id, kind, holder: "process 5 (cat)".into() }
    }

    #[test]
    fn files_of_outside_are_streams_or_refused() {
        let file = |inode| Some(FileId { device: (0, 1), inode });
        let own = OwnStreams { stdout: file(5), stderr: file(6), terminal: false, logger: false };
        let of = |kind, inode| {
            let seen = Seen { outside: vec![outside(kind, inode)], ..Seen::default() };
            inherited(&seen, &own).map(|all| all[0].stream)
        };
        assert_eq!(of(OutsideKind::Null, 9).unwrap(), Stream::Null);
        assert_eq!(of(OutsideKind::Other, 5).unwrap(), Stream::Stdout);
        assert_eq!(of(OutsideKind::Other, 6).unwrap(), Stream::Stderr);
        for (kind, inode) in [(OutsideKind::Other, 7), (OutsideKind::Terminal, 7)] {
            let error = of(kind, inode).unwrap_err().to_string();
            assert!(error.contains("process 5 (cat)"), "{error}");
        }
    }

    #[test]
    fn pipes_to_the_shim_are_streams_and_others_are_the_container_s() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
        let key = link.to_string_lossy().into_owned();
        let half = |key: &str, writes| Half { key: key.into(), inode: 1, writes, descriptor: 2 };
        let own = OwnStreams { stdout: None, stderr: None, terminal: false, logger: false };
        let halves = vec![half(&key, false), half("pipe:[1]", true)];
        let seen = Seen { halves, ..Seen::default() };
        let found = inherited(&seen, &own).unwrap();
        assert_eq!(found, [Inherited { key, stream: Stream::Stdin }]);
        let found = inherited(&seen, &OwnStreams { logger: true, ..own }).unwrap();
        assert_eq!(found[1].stream, Stream::Stderr);
    }
}
