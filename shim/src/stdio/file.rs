//! `file://` output: appended to a file, which is made if it does not exist.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sandbox_core::directories::make_below;

use super::Owner;
use crate::error::{Context, Error, Result};

/// Opens the file for a container and makes its user the owner.
pub(super) fn open(path: &str, owner: &Owner<'_>) -> Result<OwnedFd> {
    let path = Path::new(path.split('?').next().unwrap_or(path));
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::invalid(format!("stdio file://{shown}: expected an absolute path")));
    }
    let mut appended = OpenOptions::new();
    appended.append(true).create(true).mode(0o600);
    let parent = path.parent().unwrap_or(path);
    let file = make_below(parent, 0o777, || appended.open(path));
    let file = file.context(|| format!("open {shown}"))?;
    // A device such as /dev/null belongs to all users and stays so.
    if file.metadata().context(|| format!("stat {shown}"))?.is_file() {
        owner.chown(&file).context(|| format!("chown {shown}"))?;
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn output_is_appended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/log");
        let owner = Owner { uid: 7, gid: 8, namespace: "n", container: "c" };
        for line in ["one\n", "two\n"] {
            let fd = open(path.to_str().unwrap(), &owner).unwrap();
            File::from(fd).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (7, 8, 0o600));
        assert!(open("relative", &owner).unwrap_err().to_string().contains("absolute"));
    }
}
