//! Moves network devices of the host into a sandbox's network namespace (`linux.netDevices`).
//!
//! The kernel takes a device's addresses and its state away when it moves. By the
//! specification, the permanent addresses of global scope are set again, and the device is
//! up; all else is for whom owns the namespace. When that goes, the kernel gives physical
//! devices back to the host.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::Visit;
use crate::error::{Context, Error, Result};
use crate::spec::plan::NetDevice;
use crate::sys::netlink::{Body, Netlink, attributes};

/// Moves devices of this thread's network namespace. An error leaves those that were moved
/// before where they are, as the specification wants it.
pub fn move_all(devices: &[NetDevice], there: BorrowedFd<'_>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let mut here = Netlink::open().context(|| "open a netlink socket")?;
    let mut target = Target::open(there)?;
    for device in devices {
        let field = || format!("linux.netDevices[{:?}]", device.name);
        move_one(device, &mut here, &mut target)
            .map_err(|e| Error::new(e.kind, format!("{}: {}", field(), e)))?;
    }
    Ok(())
}

/// Sockets in the namespace into which devices are moved.
struct Target<'a> {
    namespace: BorrowedFd<'a>,
    netlink: Netlink,
    /// For requests of netdevice(7).
    datagram: OwnedFd,
}

impl<'a> Target<'a> {
    fn open(namespace: BorrowedFd<'a>) -> Result<Self> {
        let _visit = Visit::to(namespace).context(|| "enter the sandbox's network namespace")?;
        Ok(Self {
            namespace,
            netlink: Netlink::open().context(|| "open a netlink socket")?,
            datagram: datagram()?,
        })
    }

    /// Returns the device's number, or the next one that is free there. A name need not be
    /// known: `%d` in it stands for a number that the kernel chooses.
    fn free_index(&self, wanted: u32) -> u32 {
        (wanted..).find(|index| index_to_name(&self.datagram, *index).is_err()).unwrap_or(wanted)
    }
}

fn datagram() -> Result<OwnedFd> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context(|| "socket")
}

fn move_one(device: &NetDevice, here: &mut Netlink, target: &mut Target<'_>) -> Result<()> {
    let index = name_to_index(datagram()?, &device.name)
        .context(|| "find the device in the host's network namespace")?;
    // The kernel moves first and renames then: where the name is taken, it would leave the
    // device there.
    if name_to_index(&target.datagram, &device.new_name).is_ok() {
        return Err(Error::invalid(format!(
            "the sandbox's network has a device {:?} already",
            device.new_name
        )));
    }
    // Before it is down: the kernel then drops those of IPv6.
    let addresses = addresses(here, index).context(|| "list its addresses")?;
    let new_index = target.free_index(index);
    let fd = target.namespace.as_raw_fd();
    let name = [device.new_name.as_bytes(), b"\0"].concat();
    let body = link(index, 0, 0)
        .with(libc::IFLA_IFNAME, &name)
        .with(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes())
        .with(IFLA_NEW_IFINDEX, &new_index.to_ne_bytes());
    // The kernel closes the device, moves and renames it.
    here.change(libc::RTM_NEWLINK, 0, &body)
        .context(|| format!("move it into the sandbox's network as {:?}", device.new_name))?;
    for address in addresses {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        target
            .netlink
            .change(libc::RTM_NEWADDR, flags, &address.message(new_index))
            .context(|| format!("give it the address {address} again"))?;
    }
    let up = libc::IFF_UP as u32;
    target
        .netlink
        .change(libc::RTM_NEWLINK, 0, &link(new_index, up, up))
        .context(|| "set it up in the sandbox's network")
}

/// Begins a message about a link with a `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Body {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..].copy_from_slice(&change.to_ne_bytes());
    Body::new(&fixed)
}

/// An address, as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    flags: u32,
    /// The attributes that are the same in any namespace: type and value.
    kept: Vec<(u16, Vec<u8>)>,
}

/// The length of a `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

impl Address {
    /// Reads a message, and returns the address if it belongs to the device, is permanent and
    /// of global scope.
    fn parse(content: &[u8], index: u32) -> Option<Self> {
        let fixed: &[u8; IFADDRMSG] = content.first_chunk()?;
        let [family, prefix, flags, scope, of @ ..] = *fixed;
        let mut address = Self { family, prefix, flags: flags.into(), kept: Vec::new() };
        for (kind, value) in attributes(content, IFADDRMSG) {
            match (kind, value.first_chunk()) {
                (libc::IFA_FLAGS, Some(flags)) => address.flags = u32::from_ne_bytes(*flags),
                (libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST, _) => {
                    address.kept.push((kind, value.to_vec()));
                }
                _ => {}
            }
        }
        let wanted = u32::from_ne_bytes(of) == index
            && scope == libc::RT_SCOPE_UNIVERSE
            && address.flags & libc::IFA_F_PERMANENT != 0;
        wanted.then_some(address)
    }

    fn message(&self, index: u32) -> Body {
        let [a, b, c, d] = index.to_ne_bytes();
        let fixed = [self.family, self.prefix, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d];
        let flags = self.flags & (libc::IFA_F_NODAD | libc::IFA_F_NOPREFIXROUTE);
        let body = Body::new(&fixed).with(libc::IFA_FLAGS, &flags.to_ne_bytes());
        self.kept.iter().fold(body, |body, (kind, value)| body.with(*kind, value))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let local = |kind| self.kept.iter().find(|(k, _)| *k == kind).map(|(_, value)| value);
        let value = local(libc::IFA_LOCAL).or_else(|| local(libc::IFA_ADDRESS));
        match value.map(Vec::as_slice) {
            Some(&[a, b, c, d]) => write!(f, "{}", std::net::Ipv4Addr::new(a, b, c, d))?,
            Some(long) => match <[u8; 16]>::try_from(long) {
                Ok(bytes) => write!(f, "{}", std::net::Ipv6Addr::from(bytes))?,
                Err(_) => write!(f, "{long:x?}")?,
            },
            None => f.write_str("?")?,
        }
        write!(f, "/{}", self.prefix)
    }
}

fn addresses(here: &mut Netlink, index: u32) -> io::Result<Vec<Address>> {
    let mut found = Vec::new();
    here.list(libc::RTM_GETADDR, &Body::new(&[0; IFADDRMSG]), |kind, content| {
        let one = (kind == libc::RTM_NEWADDR).then(|| Address::parse(content, index));
        found.extend(one.flatten());
    })?;
    Ok(found)
}

/// `IFLA_NEW_IFINDEX` of `linux/if_link.h`.
const IFLA_NEW_IFINDEX: u16 = 49;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_permanent_addresses_of_global_scope_are_kept() {
        let message = |index: u8, flags: u8, scope: u8| {
            let mut content = vec![2, 24, flags, scope];
            content.extend(u32::from(index).to_ne_bytes());
            for (kind, value) in [(libc::IFA_LOCAL, [10, 9, 8, 7]), (3, *b"eth0")] {
                content.extend([8, 0]);
                content.extend(kind.to_ne_bytes());
                content.extend(value);
            }
            Address::parse(&content, 5)
        };
        const PERMANENT: u8 = 0x80;
        let kept = message(5, PERMANENT, 0).expect("it is kept");
        assert_eq!(kept.to_string(), "10.9.8.7/24");
        // The label would name the device as it was called.
        assert_eq!(kept.kept.len(), 1);
        assert_eq!(message(6, PERMANENT, 0), None);
        assert_eq!(message(5, 0, 0), None);
        assert_eq!(message(5, PERMANENT, 253), None);
        assert_eq!(Address::parse(&[2, 24], 5), None);
    }
}
