//! The shim's own socket: finds its path in an address, makes it and removes it.
//!
//! Several processes may be about to use one path: the shim that serves there, one that has ended
//! there, and a `start` for each container of a group. So a socket is only removed
//!
//! - by its own shim, while that listens: nobody replaces a socket that accepts connections;
//! - or under the lock of the directory, once no process accepts connections there.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sandbox_core::directories::{self, Lock, make_below};

use crate::error::{Context, Error, Result};

/// Returns the path in an address such as `unix:///run/containerd/s/…`.
pub(crate) fn path(address: &str) -> PathBuf {
    PathBuf::from(address.trim().strip_prefix("unix://").unwrap_or(address.trim()))
}

/// Whether a shim serves at that address.
pub(crate) fn is_served(address: &str) -> bool {
    UnixStream::connect(path(address)).is_ok()
}

/// Makes a new socket. `None` if a shim serves at that address already. Replaces the socket
/// of a dead shim.
pub(crate) fn listen(address: &str) -> Result<Option<UnixListener>> {
    let path = path(address);
    let bind = || format!("bind {}", path.display());
    let directory = path.parent().unwrap_or(&path);
    loop {
        match make_below(directory, 0o711, || UnixListener::bind(&path)) {
            Ok(listener) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                    .context(|| format!("chmod {}", path.display()))?;
                return Ok(Some(listener));
            }
            Err(e) if e.kind() != io::ErrorKind::AddrInUse => return Err(e).context(bind),
            Err(_) if UnixStream::connect(&path).is_ok() => return Ok(None),
            Err(_) => remove_dead(&path)?,
        }
    }
}

/// Removes the socket of a dead shim, if it is there. Another `start` may do so at the same time, and then have a
/// new one there.
pub(crate) fn remove_dead(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(path);
    let what = || format!("lock {}", directory.display());
    let _alone = match directories::lock(directory).context(what)? {
        Lock::Taken(lock) => lock,
        Lock::NoDirectory => return Ok(()),
        Lock::OfAnother | Lock::OfARemoved => {
            let why = "another process removes sockets there";
            return Err(Error::internal(format!("{}: {why}", what())));
        }
    };
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("stat {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        let what = "is no socket; expected one, or nothing";
        return Err(Error::internal(format!("{} {what}", path.display())));
    }
    if UnixStream::connect(path).is_err() {
        remove_file(path)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the socket of a shim that does not reply. Until the kernel has ended that, its socket
/// takes connections, so that [`remove_dead`] would leave it.
pub(crate) fn remove(address: &str) {
    let path = path(address);
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

/// The socket at which this shim serves. It listens until this value is dropped, which removes it.
pub(crate) struct Own {
    listener: UnixListener,
    path: PathBuf,
    /// Its file system and inode.
    identity: Option<(u64, u64)>,
}

impl Own {
    /// Takes the socket that was made at that address.
    pub(crate) fn of(listener: &UnixListener, address: &str) -> Result<Self> {
        let path = path(address);
        let listener = listener.try_clone().context(|| "dup of the listening socket")?;
        let identity = identity(&path);
        Ok(Self { listener, path, identity })
    }

    /// Removes it, unless it is gone. No client can connect from then on, and a `start` makes a
    /// new one.
    pub(crate) fn remove(&self) {
        if self.is_there()
            && let Err(error) = remove_file(&self.path)
        {
            log::warn!("{error}");
        }
    }

    /// Removes it, unless a client is about to connect. Returns whether it is removed.
    pub(crate) fn remove_if_unused(&self) -> Result<bool> {
        if !self.is_there() {
            return Ok(true);
        }
        let rename = |from: &Path, to: &Path| {
            let renamed = renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
            renamed.context(|| format!("rename {} to {}", from.display(), to.display()))
        };
        // Nobody finds it for a moment. Whoever has found it before waits to be accepted.
        let aside = self.path.with_extension("unused");
        rename(&self.path, &aside)?;
        let mut waiting = [PollFd::new(&self.listener, PollFlags::IN)];
        let waits = poll(&mut waiting, Some(&Timespec::default())).context(|| "poll")? > 0;
        if waits {
            // Unless a `start` has made a new one meanwhile.
            if rename(&aside, &self.path).is_ok() {
                return Ok(false);
            }
        }
        remove_file(&aside)?;
        Ok(!waits)
    }

    fn is_there(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then(|| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_sockets_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(remove_dead(&file).unwrap_err().to_string().contains("is no socket"));
        assert!(file.exists());
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        remove_dead(&socket).unwrap();
        assert!(socket.exists());
        drop(listener);
        for _ in 0..2 {
            remove_dead(&socket).unwrap();
            assert!(!socket.exists());
        }
        remove_dead(Path::new("/nowhere/socket")).unwrap();
        remove(&format!("unix://{}", file.display()));
        assert!(file.exists());
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

    /// As by a `start` that takes it for another's.
    #[test]
    fn a_shim_removes_no_socket_but_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/x", directory.path().display());
        let first = listen(&address).unwrap().expect("a new socket");
        let own = Own::of(&first, &address).unwrap();
        fs::remove_file(path(&address)).unwrap();
        let second = listen(&address).unwrap().expect("another socket");
        own.remove();
        drop(own);
        assert!(path(&address).exists());
        drop(Own::of(&second, &address).unwrap());
        assert!(!path(&address).exists());
    }

    #[test]
    fn a_socket_to_which_a_client_connects_stays() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/x", directory.path().display());
        let listener = listen(&address).unwrap().expect("a new socket");
        let own = Own::of(&listener, &address).unwrap();
        let client = UnixStream::connect(path(&address)).unwrap();
        assert!(!own.remove_if_unused().unwrap());
        assert!(path(&address).exists());
        listener.accept().unwrap();
        drop(client);
        assert!(own.remove_if_unused().unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    /// Each finds a dead socket, and one of them replaces it.
    #[test]
    fn of_many_starts_at_once_one_makes_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/x", directory.path().display());
        for _ in 0..100 {
            drop(listen(&address).unwrap().expect("a new socket"));
            let made = std::thread::scope(|scope| {
                let starts = [(); 4].map(|()| scope.spawn(|| listen(&address).unwrap()));
                starts.map(|start| start.join().unwrap())
            });
            assert_eq!(made.iter().flatten().count(), 1);
            assert!(path(&address).exists());
        }
    }
}
