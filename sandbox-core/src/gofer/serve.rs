//! Serves one request, from the socket to the reply.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use rustix::event::PollFlags;
use rustix::fs::Mode;

use crate::control::encoding::Message;
use crate::control::gofer::{GoferAnswer, GoferRequest, RequestedMount, Slot};
use crate::control::packet::{Received, receive_packet, send_packet};
use crate::error::{Context, Error, Result};
use crate::gofer::confine::confine;
use crate::gofer::delivery::{Outbox, wait_for};
use crate::gofer::hook_view::Carried;
use crate::gofer::means::Gofer;
use crate::gofer::{bind, checkpoint, devices, filesystem, hooks, rootfs, seccomp};
use crate::spec::plan::{DeliveredSource, Powerless};
use crate::sys::confine::refuse_new_code;
use crate::sys::process::die_with_parent;

/// Larger than any request: one with a large seccomp profile and thousands of
/// mounts has less than a tenth of this.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// Serves the one request that comes over `socket` and replies there. Fails
/// only if it cannot reply.
pub fn run(socket: OwnedFd) -> ExitCode {
    // The shim executes it by the number of a descriptor.
    let _ = rustix::thread::set_name(c"palisade-gofer");
    refuse_new_code();
    let mut leftovers = Vec::new();
    let answer: GoferAnswer = receive(&socket)
        .and_then(|(request, fds)| serve(request, fds, &mut leftovers))
        .map_err(Into::into);
    let replied = reply(&socket, &answer);
    // Each takes a grace period of the kernel to close. Nobody waits for the gofer's end.
    drop(leftovers);
    match replied {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("palisade-sandbox gofer: answering {answer:?}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(
    request: GoferRequest,
    fds: Vec<OwnedFd>,
    leftovers: &mut Vec<OwnedFd>,
) -> Result<Vec<Powerless>> {
    // The modes of device nodes are used as they are given.
    rustix::process::umask(Mode::empty());
    if request.hooks.is_none() {
        confine()?;
    }
    let (channel, mut gofer) = Gofer::equip(&request, fds)?;
    if let Some(place) = &request.attached_at {
        rootfs::take_away(place)?;
    }
    if let Some(place) = &request.attach_at {
        rootfs::attach(&request.rootfs, &mut gofer, place)?;
        return Ok(gofer.powerless);
    }
    let mut outbox = Outbox::new(channel, request.container.clone());

    if let Some(pids) = &gofer.pids {
        outbox.put(Slot::SandboxProc, filesystem::proc_of(pids)?)?;
    }
    if request.default_devices {
        outbox
            .put(Slot::DefaultDevices, devices::default(gofer.users.as_ref(), request.rootless)?)?;
    }
    // Their view of the root file system is gone before it is made for the container.
    let mut carried = match &request.hooks {
        Some(job) => {
            let carried = hooks::run(job, &request, &mut gofer)?;
            confine()?;
            carried
        }
        None => Carried::default(),
    };
    if let Some(root) = rootfs::make(&request.rootfs, &mut gofer)? {
        outbox.put(Slot::Rootfs, root)?;
    }
    if !request.devices.is_empty() {
        let made = match request.rootless {
            true => devices::bind(&request.devices, &mut gofer)?,
            false => devices::make(&request.devices, gofer.users.as_ref())?,
        };
        outbox.put(Slot::Devices, made)?;
    }
    for mount in &request.mounts {
        let (fd, is_file) = match carried.made.remove(&mount.index) {
            Some(made) => (made, false),
            None => make(mount, &mut gofer)?,
        };
        outbox.put(Slot::Mount { index: mount.index, is_file }, fd)?;
    }
    for (path, fd, is_file) in carried.of_hooks {
        outbox.put(Slot::OfHook { path, is_file }, fd)?;
    }
    if let Some(source) = &request.checkpoint {
        outbox.put(Slot::Images, checkpoint::images(&source.images, gofer.users.as_ref())?)?;
        outbox.put(Slot::Programs, checkpoint::programs(&source.programs)?)?;
    }
    outbox.finish()?;
    *leftovers = gofer.leftovers;

    // Last, so that boot can already attach the mounts.
    request.seccomp.as_ref().map_or(Ok(()), seccomp::ensure)?;
    Ok(gofer.powerless)
}

/// Makes one mount of the spec. Also returns whether its root is not a
/// directory.
fn make(mount: &RequestedMount, gofer: &mut Gofer) -> Result<(OwnedFd, bool)> {
    let users = gofer.users.as_ref();
    let made = match &mount.source {
        DeliveredSource::Bind { source, recursive, idmap } => {
            let opened = bind::open(source, (*recursive).into(), idmap, mount.propagation, users);
            opened.map(|opened| {
                let foreign = opened.foreign.map(|owner| of_nobody(mount.index, source, owner));
                gofer.powerless.extend(foreign);
                (opened.mount, opened.is_file)
            })
        }
        DeliveredSource::Sysfs => {
            let made = filesystem::sysfs(gofer.network.as_ref(), gofer.rootless);
            made.map(|fd| (fd, false))
        }
        DeliveredSource::FileSystem { fs_type, source, options } => {
            filesystem::fresh(fs_type, source, options, users).map(|fd| (fd, false))
        }
    };
    made.map_err(|e| Error::new(e.kind, format!("mounts[{}]: {e}", mount.index)))
}

/// Names a volume that belongs to nobody in its container.
fn of_nobody(index: usize, source: &Path, (uid, gid): (u32, u32)) -> Powerless {
    Powerless {
        field: format!("mounts[{index}]"),
        lost: format!(
            "{} belongs to {uid}:{gid}, which does not exist in the container and reads as nobody",
            source.display()
        ),
        instead: "name the ID in the container's user or supplementary groups, or set the option \
                  ids_per_sandbox"
            .into(),
        by_default: false,
    }
}

fn receive(socket: &OwnedFd) -> Result<(GoferRequest, Vec<OwnedFd>)> {
    // Without its parent, no process would wait for the reply.
    die_with_parent().context(|| "prctl PR_SET_PDEATHSIG")?;
    loop {
        match receive_packet(socket, MAX_REQUEST, 4).context(|| "receiving the request")? {
            Received::Packet { bytes, fds, .. } => {
                return Ok((GoferRequest::decode(&bytes)?, fds.take()));
            }
            Received::WouldBlock => wait_for(socket, PollFlags::IN)?,
            Received::Closed => {
                return Err(Error::internal("the shim closed the socket without a request"));
            }
        }
    }
}

fn reply(socket: &OwnedFd, answer: &GoferAnswer) -> Result<()> {
    send_packet(socket, &answer.encode()?, &[]).context(|| "send the answer")
}
