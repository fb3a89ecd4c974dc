//! `file://` output: appended to a file, which is made if it does not exist.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Owner;
use crate::error::{Context, Error, Result};

/// Opens the file for a container and makes its user the owner.
pub(super) fn open(path: &str, owner: &Owner<'_>) -> Result<OwnedFd> {
    let path = Path::new(path.split('?').next().unwrap_or(path));
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::invalid(format!("stdio file://{shown}: expected an absolute path")));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context(|| format!("mkdir {}", parent.display()))?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .context(|| format!("open {shown}"))?;
    // A device such as /dev/null belongs to all users and stays so.
    if file.metadata().context(|| format!("stat {shown}"))?.is_file() {
        owner.chown(&file).context(|| format!("chown {shown}"))?;
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
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
