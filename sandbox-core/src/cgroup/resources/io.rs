//! `linux.resources.blockIO`

use std::path::{Path, PathBuf};

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::error::Result as LibraryResult;
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice, LinuxWeightDevice};

use super::{Steps, dir_for, unsupported};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};

/// blkio-controller.rst; cgroup-v2.rst, "IO Interface Files"; bfq-iosched.rst.
pub(super) fn apply(cg: &Cgroup, io: &LinuxBlockIo) -> Result<()> {
    let v2 = cg.saved.v2;
    let dir = match dir_for(cg, if v2 { "io" } else { "blkio" }, "blockIO") {
        Ok(dir) => dir,
        Err(_) if is_empty(io) => return Ok(()),
        Err(e) => return Err(e),
    };
    let set = &BlkIoController::new(dir.to_owned(), PathBuf::new(), v2);
    let mut steps = Steps::default();
    weights(&mut steps, dir, v2, io)?;
    leaf_weights(&mut steps, set, io)?;
    type Throttle = fn(&BlkIoController, u64, u64, u64) -> LibraryResult<()>;
    let throttles: [(&'static str, &Option<Vec<LinuxThrottleDevice>>, Throttle); 4] = [
        (
            "blockIO.throttleReadBpsDevice",
            io.throttle_read_bps_device(),
            BlkIoController::throttle_read_bps_for_device,
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            io.throttle_write_bps_device(),
            BlkIoController::throttle_write_bps_for_device,
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            io.throttle_read_iops_device(),
            BlkIoController::throttle_read_iops_for_device,
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            io.throttle_write_iops_device(),
            BlkIoController::throttle_write_iops_for_device,
        ),
    ];
    for (field, devices, throttle) in throttles {
        for device in devices.iter().flatten() {
            let (major, minor) = number(field, device.major(), device.minor())?;
            let rate = device.rate();
            steps.library(field, move || throttle(set, major, minor, rate));
        }
    }
    steps.settle()
}

fn is_empty(io: &LinuxBlockIo) -> bool {
    *io == LinuxBlockIo::default()
}

/// Adds the weights. They go to the bfq scheduler's files if these exist, because
/// only bfq and, on version 2, the io.cost controller use weights at all.
fn weights(steps: &mut Steps<'_>, dir: &Path, v2: bool, io: &LinuxBlockIo) -> Result<()> {
    let (plain, bfq, device) = if v2 {
        ("io.weight", "io.bfq.weight", "io.bfq.weight")
    } else {
        ("blkio.weight", "blkio.bfq.weight", "blkio.bfq.weight_device")
    };
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        let field = "blockIO.weight";
        match dir.join(bfq) {
            path if path.exists() => steps.plain(field, path, weight),
            _ if v2 => steps.plain(field, dir.join(plain), io_weight(weight)),
            _ => steps.plain(field, dir.join(plain), weight),
        }
    }
    for wd in io.weight_device().iter().flatten() {
        let Some(weight) = wd.weight().filter(|w| *w != 0) else {
            continue;
        };
        let field = "blockIO.weightDevice";
        let (major, minor) = number(field, wd.major(), wd.minor())?;
        match dir.join(device) {
            path if path.exists() => steps.plain(field, path, format!("{major}:{minor} {weight}")),
            _ if v2 => {
                let line = format!("{major}:{minor} {}", io_weight(weight));
                steps.plain(field, dir.join("io.weight"), line);
            }
            _ => {
                let line = format!("{major}:{minor} {weight}");
                steps.plain(field, dir.join("blkio.weight_device"), line);
            }
        }
    }
    Ok(())
}

fn leaf_weight(io: &LinuxBlockIo) -> Option<u16> {
    io.leaf_weight().filter(|w| *w != 0)
}

fn leaf_weight_for(device: &LinuxWeightDevice) -> Option<u16> {
    device.leaf_weight().filter(|w| *w != 0)
}

/// Refuses leaf weights on version 2, which has none.
pub(super) fn check(v2: bool, io: &LinuxBlockIo) -> Result<()> {
    let mut devices = io.weight_device().iter().flatten();
    if v2 && (leaf_weight(io).is_some() || devices.any(|wd| leaf_weight_for(wd).is_some())) {
        return Err(unsupported("blockIO.leafWeight", "cgroup version 2 has no leaf weights"));
    }
    Ok(())
}

/// Adds the leaf weights of the cfq scheduler, which Linux 5.0 removed.
fn leaf_weights<'a>(
    steps: &mut Steps<'a>,
    set: &'a BlkIoController,
    io: &LinuxBlockIo,
) -> Result<()> {
    if let Some(weight) = leaf_weight(io) {
        steps.library("blockIO.leafWeight", move || set.set_leaf_weight(weight.into()));
    }
    for wd in io.weight_device().iter().flatten() {
        let Some(weight) = leaf_weight_for(wd) else { continue };
        let field = "blockIO.weightDevice.leafWeight";
        let (major, minor) = number(field, wd.major(), wd.minor())?;
        steps.library(field, move || set.set_leaf_weight_for_device(major, minor, weight.into()));
    }
    Ok(())
}

fn number(field: &str, major: i64, minor: i64) -> Result<(u64, u64)> {
    match (u64::try_from(major), u64::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok((major, minor)),
        _ => Err(Error::invalid(format!(
            "linux.resources.{field}: {major}:{minor}, expected a device number"
        ))),
    }
}

/// Converts 10 to 1000 of version 1 to 1 to 10000 of version 2, linearly, as runc does.
pub(in crate::cgroup) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::io_weight;

    #[test]
    fn weights_keep_their_extremes() {
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}
