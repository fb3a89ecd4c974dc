//! `linux.netDevices`: network devices that are moved from the host.

use oci_spec::runtime::Linux;

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::{NetDevice, Network};

/// Resolves the devices, in the order of their names on the host.
pub(super) fn plan(linux: &Linux, network: &Network) -> Result<Vec<NetDevice>> {
    let mut devices = Vec::new();
    for (name, device) in linux.net_devices().iter().flatten() {
        if *network == Network::Host {
            return refuse(
                "linux.netDevices",
                "the pod has the host's network; expected a network namespace of its own",
            );
        }
        check(name, || format!("linux.netDevices[{name:?}]"))?;
        // Go programs write an absent name as an empty one.
        let new_name = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(name);
        check(new_name, || format!("linux.netDevices[{name:?}].name"))?;
        devices.push(NetDevice { name: name.clone(), new_name: new_name.clone() });
    }
    devices.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(devices)
}

/// Checks a name as the kernel does: `dev_valid_name`.
fn check(name: &str, field: impl FnOnce() -> String) -> Result<()> {
    let wrong = |letter: char| letter.is_whitespace() || matches!(letter, '/' | ':' | '\0');
    if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || name.contains(wrong) {
        return refuse(
            field(),
            format!(
                "{name:?} is no name of a network device: up to 15 bytes, no blank, '/' or ':'"
            ),
        );
    }
    Ok(())
}
