//! The steps of the process that becomes criu, in order. It is a copy of the newborn that builds
//! the container's mounts (`builder.rs`), and ends up as root of the containers' user namespace,
//! with what criu needs and nothing else.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::process::{chdir, chroot, fchdir};

use super::init::{Newborn, enter_pods_users};
use super::work::{WORK, Work};
use super::{Channel, names};
use crate::container::paths::{CONTAINER, DEV_NULL, PROC};
use crate::container::terminal::Terminal;
use crate::control::message::Saved;
use crate::error::{Context, Error, Result};
use crate::places;
use crate::sys::descriptor;
use crate::sys::mount::{Depth, attach_at, attach_to, clone_mount, open_place};
use crate::sys::process::{execute, exit_now, reset_signals};

/// The numbers of criu's descriptors: its socket, the standard streams of the container, the
/// container's side of its terminal, and the null device.
pub(crate) const SOCKET: RawFd = 3;
pub(crate) const STREAMS: [RawFd; 3] = [4, 5, 6];
pub(crate) const TERMINAL: RawFd = 7;
pub(crate) const NULL: RawFd = 8;

/// The input of a restore, which the newborn that builds the mounts and the one that becomes criu
/// have.
#[derive(Clone, Copy)]
pub(crate) struct Restoring<'a> {
    pub(crate) newborn: Newborn<'a>,
    pub(crate) saved: &'a Saved,
    /// The socket over which criu takes its request.
    pub(crate) criu: BorrowedFd<'a>,
    /// The channel of the process that becomes criu.
    pub(crate) restorer: Channel<'a>,
    /// boot's PID namespace.
    pub(crate) own_pids: BorrowedFd<'a>,
}

/// The input of a restorer.
pub(super) struct Restorer<'a> {
    pub(super) restoring: Restoring<'a>,
    pub(super) work: &'a Work,
    pub(super) images: OwnedFd,
    pub(super) programs: OwnedFd,
    pub(super) terminal: Option<&'a Terminal>,
}

/// Runs criu. Never returns into boot's code, of which this process is a copy.
pub(super) fn run(restorer: Restorer<'_>) -> ! {
    let Channel { boot, log } = restorer.restoring.restorer;
    // Where they are, criu gets its descriptors.
    let moved = descriptor::beyond(boot).and_then(|boot| Ok((boot, descriptor::beyond(log)?)));
    let Ok((boot, log)) = moved else { exit_now(1) };
    let channel = Channel { boot: boot.as_fd(), log: log.as_fd() };
    match to_criu(restorer, channel) {
        Err(error) => channel.report(error),
        Ok(never) => match never {},
    }
    exit_now(1)
}

fn to_criu(restorer: Restorer<'_>, channel: Channel<'_>) -> Result<Infallible> {
    let newborn = restorer.restoring.newborn;
    reset_signals().context(|| "reset signals")?;
    let sysctls = names::own_sysctls(newborn.plan)?;
    let null = open(DEV_NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open the sandbox's {DEV_NULL}"))?;
    enter_tree(&restorer)?;
    newborn.users.map_or(Ok(()), enter_pods_users)?;
    if newborn.plan.namespaces.uts {
        unshare(CloneFlags::CLONE_NEWUTS).context(|| "unshare the UTS namespace")?;
    }
    names::set_own_names(newborn.plan, sysctls)?;
    set_saved_name(&restorer)?;
    keep_descriptors(&restorer, channel, null.as_fd())?;
    execute_criu(&restorer.restoring.saved.programs)
}

/// Changes to the container's tree, in which criu finds its files at their paths. Over its proc,
/// which comes later, lie that of the pod, where criu finds all processes, and criu's directory.
fn enter_tree(restorer: &Restorer<'_>) -> Result<()> {
    let proc = clone_mount(CWD, PROC, Depth::Top).context(|| "open the pod's proc")?;
    let top = open_place(CONTAINER).context(|| "open the container's root")?;
    attach_at(&top, "/").context(|| "move the container's root over the sandbox's")?;
    fchdir(&top).context(|| "enter the container's root")?;
    chroot(".").context(|| "chroot into the container")?;
    chdir("/").context(|| "chdir /")?;
    let place = places::find(top.as_fd(), Path::new("/proc"))?
        .ok_or_else(|| Error::invalid("a container without /proc cannot be restored"))?;
    attach_to(&proc, &place).context(|| "attach the pod's proc")?;
    attach_at(&restorer.work.mount, WORK).context(|| "attach criu's directory")?;
    for (mount, name) in [(&restorer.programs, "criu"), (&restorer.images, "images")] {
        attach_at(mount, format!("{WORK}/{name}")).context(|| format!("attach {name}"))?;
    }
    Ok(())
}

/// Sets the host name that the container had, where it is its own.
fn set_saved_name(restorer: &Restorer<'_>) -> Result<()> {
    let Restoring { newborn, saved, .. } = restorer.restoring;
    if !newborn.plan.namespaces.uts {
        return Ok(());
    }
    let name = &saved.host_name;
    sethostname(name).context(|| format!("the checkpoint's host name {name:?}"))
}

/// Gives criu its descriptors, and closes all others.
fn keep_descriptors(
    restorer: &Restorer<'_>,
    channel: Channel<'_>,
    null: BorrowedFd<'_>,
) -> Result<()> {
    let Restoring { newborn, criu, .. } = restorer.restoring;
    let mut kept = vec![(criu, SOCKET), (null, NULL)];
    for (place, given) in STREAMS.into_iter().zip(&newborn.donated.stdio) {
        kept.push((given.as_ref().map_or(null, AsFd::as_fd), place));
    }
    if let Some(terminal) = restorer.terminal {
        kept.push((terminal.peer.as_fd(), TERMINAL));
    }
    (0..3)
        .try_for_each(|place| descriptor::install_stdio(null, place))
        .context(|| "install criu's streams")?;
    descriptor::keep_at(&kept, &[channel.boot, channel.log])
        .context(|| "install criu's descriptors")
}

fn execute_criu([loader, criu]: &[String; 2]) -> Result<Infallible> {
    let directory = format!("{WORK}/criu");
    let path = |name: &str| format!("{directory}/{name}");
    let args = [
        "criu".to_owned(),
        "--inhibit-cache".to_owned(),
        "--library-path".to_owned(),
        directory.clone(),
        path(criu),
        "swrk".to_owned(),
        SOCKET.to_string(),
    ];
    let c_string = |text: String| {
        CString::new(text).map_err(|_| Error::internal("criu's files have names with NUL bytes"))
    };
    let args = args.into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
    let loader = c_string(path(loader))?;
    let env = [c_string("PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned())?];
    execute(&loader, &args, &env).context(|| "execute criu")
}
