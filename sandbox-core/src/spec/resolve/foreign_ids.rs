//! The IDs that a spec names beyond those of its sandbox's range, such as OpenShift's
//! 1000680000.

use std::collections::BTreeSet;

use crate::spec::plan::{ContainerPlan, DeviceNode, FsOption, MountSource};

/// Lists the users and groups of a container, its devices and its file systems that are not
/// among the first `size` IDs, ascending.
pub(super) fn of(container: &ContainerPlan, devices: &[DeviceNode], size: u32) -> Vec<u32> {
    let process = container.process.iter().flat_map(|process| {
        [process.uid, process.gid].into_iter().chain(process.additional_gids.iter().copied())
    });
    let devices = devices.iter().flat_map(|device| [device.uid, device.gid]);
    let mounts = container.mounts.iter().flat_map(|mount| owners(&mount.source));
    let named: BTreeSet<u32> = process.chain(devices).chain(mounts).collect();
    named.range(size..u32::MAX).copied().collect()
}

fn owners(source: &MountSource) -> impl Iterator<Item = u32> {
    let owner = |(key, _): &&FsOption| matches!(key.as_str(), "uid" | "gid");
    source.options().iter().filter(owner).filter_map(|(_, value)| value.as_ref()?.parse().ok())
}
