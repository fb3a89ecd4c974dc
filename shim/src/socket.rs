//! The shim's own socket: finds its path in an address, makes it and removes it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use crate::error::{Context, Error, Result};

/// Returns the path in an address such as `unix:///run/containerd/s/…`.
pub(crate) fn path(address: &str) -> PathBuf {
    PathBuf::from(address.trim().strip_prefix("unix://").unwrap_or(address.trim()))
}

/// Makes a new socket. `None` if a shim serves at that address already. Replaces the socket
/// of a dead shim.
pub(crate) fn listen(address: &str) -> Result<Option<UnixListener>> {
    let path = path(address);
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .context(|| format!("mkdir {}", directory.display()))?;
    }
    for _ in 0..2 {
        match UnixListener::bind(&path) {
            Ok(listener) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                    .context(|| format!("chmod {}", path.display()))?;
                return Ok(Some(listener));
            }
            Err(e) if e.kind() != std::io::ErrorKind::AddrInUse => {
                return Err(Error::internal(format!("bind {}: {e}", path.display())));
            }
            Err(_) if UnixStream::connect(&path).is_ok() => return Ok(None),
            Err(_) => remove(address),
        }
    }
    Err(Error::internal(format!(
        "bind {}: in use, but no process accepts connections there",
        path.display()
    )))
}

/// Removes a file only if it is a socket.
pub(crate) fn remove(address: &str) {
    let path = path(address);
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        remove(&format!("unix://{}", file.display()));
        assert!(file.exists());
        let socket = directory.path().join("socket");
        let address = format!("unix://{}", socket.display());
        drop(UnixListener::bind(&socket).unwrap());
        remove(&address);
        assert!(!socket.exists());
        remove(&address);
        remove("");
    }

    #[test]
    fn the_second_start_of_a_group_finds_the_first_socket() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/s/x", directory.path().display());
        let first = listen(&address).unwrap().expect("a new socket");
        assert!(listen(&address).unwrap().is_none());
        drop(first);
        assert!(listen(&address).unwrap().is_some(), "a dead socket is replaced");
    }
}
