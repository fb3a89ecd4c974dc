//! The place of a user log's lines: the container's own output, or a file of the host.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::error::{Error, Result};
use crate::options::UserLog;

/// The size at which a file takes no more lines.
const MOST: u64 = 16 << 20;

/// The longest line. It has the room of one write that is mixed with no other (pipe(7)).
const LONGEST: usize = 3500;

/// The place of one container's lines.
pub(in crate::task) enum Place {
    Pod,
    File(PathBuf),
}

impl Place {
    /// Returns the place that the option names; `None` if it is off.
    pub(super) fn of(
        option: &UserLog,
        container: &str,
        pod: &str,
        namespace: &str,
    ) -> Result<Option<Self>> {
        let name = match option {
            UserLog::Off => return Ok(None),
            UserLog::Pod => return Ok(Some(Self::Pod)),
            UserLog::File(name) => name,
        };
        let path = name.path(container, pod, namespace).ok_or_else(|| {
            Error::invalid(format!("user_log: the ID {container:?} or {pod:?} cannot be in a path"))
        })?;
        open(&path).map_err(|why| Error::invalid(format!("user_log: {why}")))?;
        Ok(Some(Self::File(path)))
    }
}

/// Cuts a line to the longest. All is ASCII, but for what an option or an ID may bring.
pub(super) fn cut(mut line: String) -> String {
    while line.len() > LONGEST {
        line.pop();
    }
    line
}

/// Appends a line by one write. Opens the file each time, so that it may be moved away.
pub(super) fn append(path: &Path, mut line: String) -> std::result::Result<(), String> {
    line.push('\n');
    let mut file = open(path)?;
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    if size.saturating_add(line.len() as u64) > MOST {
        return Err(format!("{} has reached its size of {MOST} bytes", path.display()));
    }
    file.write_all(line.as_bytes()).map_err(|error| format!("write {}: {error}", path.display()))
}

/// Opens a file of ours at the end. Where a part of the path is a symbolic link, or the file is
/// none or has another name, who owns a directory on the way could lead root to another file.
fn open(path: &Path) -> std::result::Result<File, String> {
    let shown = path.display();
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW;
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(CWD, path, flags, Mode::from_raw_mode(0o640), resolve);
    let file = opened.map(File::from).map_err(|error| match error {
        rustix::io::Errno::LOOP => {
            format!("{shown}: a part of the path is a symbolic link; name the real path")
        }
        other => format!("open {shown}: {}", std::io::Error::from(other)),
    })?;
    let metadata = file.metadata().map_err(|error| format!("stat {shown}: {error}"))?;
    match metadata.is_file() && metadata.nlink() == 1 {
        true => Ok(file),
        false => Err(format!("{shown}: expected a plain file with one name")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn lines_are_appended_to_a_file_of_bounded_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        append(&path, "one".into()).unwrap();
        append(&path, "two".into()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(MOST - 3).unwrap();
        assert!(append(&path, "four".into()).unwrap_err().contains("size"));
        append(&path, "tw".into()).unwrap();
        assert_eq!(path.metadata().unwrap().len(), MOST);
        // It was moved away.
        std::fs::rename(&path, directory.path().join("log.1")).unwrap();
        append(&path, "three".into()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn no_link_and_no_other_kind_of_file_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("secret"), "kept").unwrap();
        symlink(at("secret"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        symlink(directory.path(), at("directory")).unwrap();
        std::fs::hard_link(at("secret"), at("hard")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["link", "dangling", "directory/log", "hard", "fifo", ".", "missing/log"] {
            let error = append(&at(name), "line".into()).unwrap_err();
            assert!(error.contains(directory.path().to_str().unwrap()), "{name}: {error}");
        }
        assert_eq!(std::fs::read_to_string(at("secret")).unwrap(), "kept");
        assert!(!at("nowhere").exists() && !at("log").exists());
    }
}
