//! Opens what a container's views are made from, once somebody looks at one.
//!
//! boot asks, which may be hostile: it can name nothing but a container of its own pod, each once,
//! and gets files to read that say no more than the container's own statistics and the limits
//! that hold for it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::control::message::{MAX_DESCRIPTORS, Request, ViewFile};
use sandbox_core::sys::mount::open_alone;

use super::boot::{BootClient, Relevance};
use crate::error::Result;

/// The directories of sysfs that count CPUs and memory.
const SYSFS: [(&str, ViewFile); 2] = [
    ("/sys/devices/system/cpu", ViewFile::SysfsCpu),
    ("/sys/devices/system/node", ViewFile::SysfsNode),
];

/// Sends boot the files of a container, which it gets once: also while the container is being
/// made, since a path that the spec masks may lie below a view.
pub(super) fn open(boot: &Arc<BootClient>, id: &str) -> Relevance {
    let Some(cgroup) = boot.take_viewed(id) else {
        // The container may have been deleted meanwhile.
        return Relevance::Stray;
    };
    let (boot, id) = (boot.clone(), id.to_owned());
    tokio::spawn(async move {
        if let Err(error) = send(&boot, &id, &cgroup) {
            log::warn!("container {id}: its views say what the kernel's files say: {error}");
            boot.tell(request(&id, Vec::new(), true), &[]);
        }
    });
    Relevance::Known
}

fn send(boot: &BootClient, id: &str, cgroup: &Cgroup) -> Result<()> {
    let sources = cgroup.view_sources()?;
    let own = sources.own.into_iter().map(|(source, file)| (ViewFile::Own(source), file));
    let above = sources.above.into_iter().map(|(source, file)| (ViewFile::Above(source), file));
    let mut opened: Vec<(ViewFile, OwnedFd)> = own.chain(above).collect();
    if boot.gets_sysfs() {
        // A kernel for one node of memory may be built without the second.
        let there = SYSFS.iter().filter(|(path, _)| Path::new(path).exists());
        opened.extend(there.filter_map(|(path, file)| Some((*file, open_alone(*path).ok()?))));
    }
    let mut parts = opened.chunks(MAX_DESCRIPTORS).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        let files = part.iter().map(|(file, _)| *file).collect();
        let descriptors: Vec<_> = part.iter().map(|(_, file)| file.as_fd()).collect();
        boot.tell(request(id, files, last), &descriptors);
    }
    Ok(())
}

fn request(id: &str, opened: Vec<ViewFile>, complete: bool) -> Request {
    Request::ViewSources { container: id.to_owned(), opened, complete }
}
