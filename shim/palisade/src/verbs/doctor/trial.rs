//! Tries a feature of the kernel on objects of this command's own: in children that end with the
//! trial, and on mounts that are nowhere.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_core::spec::plan::{IdMapping, Mappings};
use sandbox_core::sys::child::Child;
use sandbox_core::sys::clone::SingleThreaded;
use sandbox_core::sys::process::become_root;

/// The time that a child has.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `work` in a child in new namespaces. The child ends with it, or is killed.
pub(super) fn in_child(namespaces: CloneFlags, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (reader, mut writer) = std::io::pipe().context("make a pipe")?;
    let child = Child::run(&SingleThreaded::prove()?, namespaces, || {
        let text = work().map_or_else(|error| format!("{error:#}"), |()| "done".to_owned());
        let _ = writer.write_all(text.as_bytes());
    })
    .context("clone a child into the namespaces")?;
    drop(writer);
    let text = read_all(reader)?;
    drop(child);
    match text.as_str() {
        "done" => Ok(()),
        "" => Err(anyhow!("the child that tried it was killed")),
        why => Err(anyhow!("{why}")),
    }
}

/// Reads what a child writes, for a bounded time.
fn read_all(mut reader: PipeReader) -> Result<String> {
    let wait = Timespec { tv_sec: PATIENCE.as_secs().try_into()?, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&wait))? == 0 {
        bail!("it did not end within {} seconds", PATIENCE.as_secs());
    }
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(text)
}

/// A user namespace with 65536 IDs, whose only process waits.
pub(super) struct Users {
    _child: Child,
    namespace: OwnedFd,
}

impl Users {
    pub(super) fn new() -> Result<Self> {
        let child = Child::idle(&SingleThreaded::prove()?, CloneFlags::CLONE_NEWUSER)
            .context("clone a process into a new user namespace")?;
        let process = format!("/proc/{}", child.pid());
        mappings().write(&process)?;
        let namespace = File::open(format!("{process}/ns/user"))?.into();
        Ok(Self { _child: child, namespace })
    }
}

impl AsFd for Users {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn mappings() -> Mappings {
    let line = IdMapping { inside: 0, outside: 0x4000_0000, size: 65536 };
    Mappings { uids: vec![line], gids: vec![line] }
}

/// Makes a user namespace below another one.
pub(super) fn nested_users() -> Result<()> {
    let (mut ready, mut go) = std::io::pipe()?;
    let (answer, mut writer) = std::io::pipe()?;
    let child = Child::run(&SingleThreaded::prove()?, CloneFlags::CLONE_NEWUSER, || {
        let mapped = ready.read_exact(&mut [0]);
        // Only a user that the namespace knows can make one below it.
        let made = mapped.and_then(|()| become_root());
        let made = made.and_then(|()| Ok(nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?));
        let text = made.map_or_else(|error| error.to_string(), |()| "done".to_owned());
        let _ = writer.write_all(text.as_bytes());
    })?;
    drop(writer);
    mappings().write(format!("/proc/{}", child.pid()))?;
    go.write_all(b"x")?;
    match read_all(answer)?.as_str() {
        "done" => Ok(()),
        why => bail!("{why}"),
    }
}
