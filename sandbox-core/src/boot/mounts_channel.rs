//! Receives the mounts that the gofer delivers.

use std::os::fd::OwnedFd;

use crate::container::delivered::DeliveredMounts;
use crate::container::paths::{DEVICES, PROC};
use crate::control::encoding::Message;
use crate::control::gofer::{Delivery, Slot};
use crate::control::message::MAX_PACKET;
use crate::control::packet::{Received, SCM_MAX_FD, receive_packet};
use crate::error::{Context, Error, Result};
use crate::sys::mount::{AttrChange, Depth, attach_at, mount_setattr};

/// The receiving end of the mounts channel.
pub(super) struct MountsChannel {
    socket: OwnedFd,
    /// A delivery for a later container, received too early.
    ahead: Option<(Delivery, Vec<OwnedFd>)>,
}

impl MountsChannel {
    pub(super) fn new(channel: OwnedFd) -> Result<Self> {
        // Whatever was delivered is there when a Create asks for it: boot waits for nothing here.
        rustix::io::ioctl_fionbio(&channel, true).context(|| "make --mounts-fd nonblocking")?;
        Ok(Self { socket: channel, ahead: None })
    }

    /// Takes the mounts of a container. All have been delivered, since the shim sends Create
    /// only after the gofer has finished. Mounts of another container that come first were
    /// for one that failed, and are dropped.
    pub(super) fn take(&mut self, container: &str) -> Result<DeliveredMounts> {
        let mut taken = DeliveredMounts::default();
        loop {
            let (delivery, descriptors) = self.receive()?;
            let mine = delivery.container == container;
            for (slot, mount) in delivery.slots.into_iter().zip(descriptors) {
                match slot {
                    Slot::SandboxProc => attach(&mount, PROC)?,
                    Slot::DefaultDevices => {
                        protect_devices(&mount)?;
                        attach(&mount, DEVICES)?;
                    }
                    _ if !mine => {}
                    Slot::Rootfs => taken.rootfs = Some(mount),
                    Slot::Devices => taken.devices = Some(mount),
                    Slot::Images => taken.images = Some(mount),
                    Slot::Programs => taken.programs = Some(mount),
                    Slot::OfHook { path, is_file } => taken.of_hooks.push((path, mount, is_file)),
                    Slot::Mount { index, is_file } => {
                        taken.mounts.insert(index, (mount, is_file));
                    }
                }
            }
            if mine && delivery.last {
                return Ok(taken);
            }
        }
    }

    /// Drops the mounts of a container that will not be created, so that a later one with the
    /// same ID does not get them.
    pub(super) fn discard(&mut self, container: &str) {
        while let Ok(received) = self.receive() {
            if received.0.container != container {
                self.ahead = Some(received);
                return;
            }
        }
    }

    fn receive(&mut self) -> Result<(Delivery, Vec<OwnedFd>)> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(ahead);
        }
        let received = receive_packet(&self.socket, MAX_PACKET, SCM_MAX_FD)
            .context(|| "receive from the mounts channel")?;
        let Received::Packet { bytes, fds, .. } = received else {
            return Err(Error::internal("the gofer has delivered no mounts for this container"));
        };
        let fds = fds.take();
        let delivery = Delivery::decode(&bytes)?;
        if delivery.slots.len() != fds.len() {
            return Err(Error::internal("the gofer announced more mounts than it delivered"));
        }
        Ok((delivery, fds))
    }
}

/// Makes the default devices read-only, and with them all clones that containers get, as nodes,
/// as masks and as their standard input. All containers of the pod have the same nodes, so
/// none may change their mode or owner. Writing to a device takes no writable mount.
fn protect_devices(devices: &OwnedFd) -> Result<()> {
    mount_setattr(devices, Depth::Top, AttrChange::READ_ONLY)
        .context(|| "make the default devices read-only")
}

fn attach(mount: &OwnedFd, path: &str) -> Result<()> {
    attach_at(mount, path).context(|| format!("attach the sandbox's {path}"))
}
