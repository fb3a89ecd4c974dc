//! Learns by inotify that pods come and go.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Directories beside the namespaces, in which much happens that is no pod's.
const NO_NAMESPACES: [&str; 2] = ["ranges", "seccomp"];

/// Watches the state of all pods.
pub(crate) struct Watch {
    root: PathBuf,
    inotify: AsyncFd<OwnedFd>,
}

impl Watch {
    #[expect(
        deprecated,
        reason = "unsound for types whose as_raw_fd changes or dangles; OwnedFd's does neither"
    )]
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .context("inotify_init1 (fs.inotify.max_user_instances may be too low)")?;
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Self { root: root.to_owned(), inotify })
    }

    /// Watches every directory in which a pod can appear. To be called before the pods are read,
    /// so that none is overlooked.
    pub(crate) fn cover(&self) -> Result<()> {
        if !self.watch(&self.root)? {
            // The first pod of this node makes it.
            let parent = self.root.parent().unwrap_or(&self.root);
            self.watch(parent)?;
            // It may have been made just now.
            self.watch(&self.root)?;
        }
        for namespace in directories(&self.root) {
            let name = namespace.file_name().unwrap_or_default();
            if NO_NAMESPACES.iter().all(|other| name != *other) && self.watch(&namespace)? {
                for pod in directories(&namespace) {
                    self.watch(&pod)?;
                }
            }
        }
        Ok(())
    }

    /// Watches a directory, again or for the first time. Returns whether it exists.
    fn watch(&self, directory: &Path) -> Result<bool> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(self.inotify.get_ref(), directory, flags) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "inotify_add_watch {} (fs.inotify.max_user_watches may be too low)",
                    directory.display()
                )
            }),
        }
    }

    /// Waits until something has changed in a directory that is watched.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        let mut ready = self.inotify.readable().await.context("wait for inotify")?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error).context("read from inotify"),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

fn directories(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let kind = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(kind).map(|entry| entry.path()).collect()
}
