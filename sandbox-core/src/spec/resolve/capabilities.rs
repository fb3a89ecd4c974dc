//! `process.capabilities`, capabilities(7).

use std::sync::OnceLock;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::CapabilitySets;

/// Resolves the five sets to bit masks. Without the section all are empty, as
/// in runc.
///
/// The parser has refused names that no kernel knows. Capabilities that only
/// this kernel does not know are left out with a debug message, since
/// containerd writes those of its own kernel headers.
pub(super) fn plan(capabilities: Option<&LinuxCapabilities>) -> Result<CapabilitySets> {
    let Some(capabilities) = capabilities else {
        return Ok(CapabilitySets::default());
    };
    let mut sets = CapabilitySets {
        bounding: mask(capabilities.bounding()),
        effective: mask(capabilities.effective()),
        inheritable: mask(capabilities.inheritable()),
        permitted: mask(capabilities.permitted()),
        ambient: mask(capabilities.ambient()),
    };
    // capset(2) would fail with EPERM.
    if let Some(name) = first(sets.effective & !sets.permitted) {
        return refuse(
            "process.capabilities.effective",
            format!("{name} is not in process.capabilities.permitted"),
        );
    }
    // PR_CAP_AMBIENT_RAISE would fail, too. But `runc spec` itself writes
    // ambient capabilities that are not inheritable, and runc starts without
    // them.
    let possible = sets.permitted & sets.inheritable;
    if let Some(name) = first(sets.ambient & !possible) {
        log::debug!("ambient {name} is left out: it is not both permitted and inheritable");
    }
    sets.ambient &= possible;
    Ok(sets)
}

fn mask(set: &Option<Capabilities>) -> u64 {
    let wanted = set.iter().flatten().fold(0, |mask, &capability| mask | 1 << number(capability));
    let known = known();
    if wanted & !known != 0 {
        log::debug!(
            "capabilities {:#x} are not known to this kernel and left out",
            wanted & !known
        );
    }
    wanted & known
}

/// Returns the capabilities of the running kernel as a bit mask. It does not
/// change.
fn known() -> u64 {
    static KNOWN: OnceLock<u64> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
        let last: Option<u32> = last.and_then(|text| text.trim().parse().ok());
        // If it cannot be read, capset(2) refuses what the kernel does not
        // know.
        last.filter(|&last| last < 63).map_or(u64::MAX, |last| (1 << (last + 1)) - 1)
    })
}

fn first(mask: u64) -> Option<String> {
    NUMBERS
        .iter()
        .find(|&&(_, number)| mask & 1 << number != 0)
        .map(|(name, _)| format!("CAP_{name}"))
}

/// Returns the names of all capabilities that a spec can grant, as far as a
/// kernel has them.
pub fn capability_names() -> impl Iterator<Item = String> {
    NUMBERS.iter().map(|(name, _)| format!("CAP_{name}"))
}

/// Returns the names of the capabilities of a bit mask.
pub fn names_of(mask: u64) -> impl Iterator<Item = String> {
    let set = NUMBERS.iter().filter(move |(_, number)| mask & 1 << number != 0);
    set.map(|(name, _)| format!("CAP_{name}"))
}

/// Returns the kernel's number of a capability.
fn number(capability: Capability) -> u32 {
    NUMBERS.iter().find(|(known, _)| *known == capability).map_or(0, |&(_, number)| number)
}

/// The capabilities' numbers, from `linux/capability.h`.
const NUMBERS: [(Capability, u32); 41] = [
    (Capability::Chown, 0),
    (Capability::DacOverride, 1),
    (Capability::DacReadSearch, 2),
    (Capability::Fowner, 3),
    (Capability::Fsetid, 4),
    (Capability::Kill, 5),
    (Capability::Setgid, 6),
    (Capability::Setuid, 7),
    (Capability::Setpcap, 8),
    (Capability::LinuxImmutable, 9),
    (Capability::NetBindService, 10),
    (Capability::NetBroadcast, 11),
    (Capability::NetAdmin, 12),
    (Capability::NetRaw, 13),
    (Capability::IpcLock, 14),
    (Capability::IpcOwner, 15),
    (Capability::SysModule, 16),
    (Capability::SysRawio, 17),
    (Capability::SysChroot, 18),
    (Capability::SysPtrace, 19),
    (Capability::SysPacct, 20),
    (Capability::SysAdmin, 21),
    (Capability::SysBoot, 22),
    (Capability::SysNice, 23),
    (Capability::SysResource, 24),
    (Capability::SysTime, 25),
    (Capability::SysTtyConfig, 26),
    (Capability::Mknod, 27),
    (Capability::Lease, 28),
    (Capability::AuditWrite, 29),
    (Capability::AuditControl, 30),
    (Capability::Setfcap, 31),
    (Capability::MacOverride, 32),
    (Capability::MacAdmin, 33),
    (Capability::Syslog, 34),
    (Capability::WakeAlarm, 35),
    (Capability::BlockSuspend, 36),
    (Capability::AuditRead, 37),
    (Capability::Perfmon, 38),
    (Capability::Bpf, 39),
    (Capability::CheckpointRestore, 40),
];
