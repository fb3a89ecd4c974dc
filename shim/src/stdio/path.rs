//! What a path names: a FIFO, as a rule. Others are served as containerd's shim
//! for runc serves them.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, major, minor, open, stat};

use super::{Input, Owner, Sink, fifo, file, unsupported};
use crate::error::{Context, Error, Result};

/// Opens what input comes from. `None` is /dev/null.
pub(super) fn input(uri: &str) -> Result<Option<Input>> {
    let path = uri.strip_prefix("fifo://").unwrap_or(uri);
    if path.is_empty() {
        return Ok(None);
    }
    if let Some((scheme, _)) = path.split_once("://") {
        return Err(unsupported(uri, scheme));
    }
    let stat = stat(path).context(|| format!("stat {path}"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => {
            let fifo::Input { read_end, write_end } = fifo::Input::open(path)?;
            Ok(Some(Input { read_end, write_end: Some(write_end) }))
        }
        FileType::CharacterDevice if is_null(&stat) => Ok(None),
        FileType::RegularFile | FileType::CharacterDevice => {
            Ok(Some(Input { read_end: open_other(path, OFlags::RDONLY)?, write_end: None }))
        }
        other => Err(refusal(path, other)),
    }
}

/// Opens a place for output. `None` is /dev/null.
pub(super) fn output(path: &str, owner: &Owner<'_>) -> Result<Option<Sink>> {
    let stat = stat(path).context(|| format!("stat {path}"))?;
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Sink::Fifo(fifo::Output::open(path)?),
        FileType::CharacterDevice if is_null(&stat) => return Ok(None),
        FileType::RegularFile => Sink::File(file::open(path, owner)?),
        FileType::CharacterDevice => Sink::Device(open_other(path, OFlags::WRONLY)?),
        other => return Err(refusal(path, other)),
    }))
}

/// Opens a file or a device, which may be a terminal.
fn open_other(path: &str, access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).context(|| format!("open {path}"))
}

fn is_null(stat: &Stat) -> bool {
    (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
}

fn refusal(path: &str, kind: FileType) -> Error {
    Error::invalid(format!(
        "stdio {path:?} is a {kind:?}; expected a FIFO, a file or a character device"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    const OWNER: Owner<'_> = Owner { uid: 0, gid: 0, namespace: "n", container: "c" };

    #[test]
    fn the_null_device_is_no_stream() {
        assert!(input("/dev/null").unwrap().is_none());
        assert!(output("/dev/null", &OWNER).unwrap().is_none());
    }

    #[test]
    fn a_file_is_appended_to_and_not_made() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one ").unwrap();
        let path = file.path().to_str().unwrap();
        let Some(Sink::File(fd)) = output(path, &OWNER).unwrap() else { panic!("no file") };
        File::from(fd).write_all(b"two").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one two");
        assert!(input(path).unwrap().is_some_and(|input| input.write_end.is_none()));
        let error = output("/nowhere/file", &OWNER).err().unwrap();
        assert!(error.to_string().contains("/nowhere/file"), "{error}");
    }

    #[test]
    fn what_is_no_stream_is_refused_by_name() {
        for error in [input("/tmp").err().unwrap(), output("/tmp", &OWNER).err().unwrap()] {
            assert!(error.to_string().contains("\"/tmp\" is a Directory"), "{error}");
        }
        for uri in ["ttrpc+unix:///run/s?streaming_id=a-stdin", "grpc+vsock://3:1024"] {
            for error in
                [input(uri).err().unwrap(), super::super::output(uri, &OWNER).err().unwrap()]
            {
                let error = error.to_string();
                assert!(error.contains(uri) && error.contains("io_type = \"fifo\""), "{error}");
            }
        }
        assert!(input("https://example").err().unwrap().to_string().contains("binary://"));
    }
}
