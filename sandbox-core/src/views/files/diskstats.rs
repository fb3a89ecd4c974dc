//! `/proc/diskstats`

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::views::sources::{Device, DeviceIo};

/// The bytes of a sector, whatever the disk's are: iostats.rst.
const SECTOR: u64 = 512;

/// Returns the lines of the devices that the container has used, in the kernel's order.
///
/// A cgroup counts operations and bytes. Merged operations, times and flushes stay 0, as in the
/// kernel's own file when it does not measure them (`queue/iostats`).
pub(super) fn text(kernels: &str, used: &BTreeMap<Device, DeviceIo>) -> String {
    let mut text = String::new();
    for line in kernels.lines() {
        let mut fields = line.split_ascii_whitespace();
        let numbers = (number(fields.next()), number(fields.next()));
        let ((Some(major), Some(minor)), Some(name)) = (numbers, fields.next()) else {
            continue;
        };
        let Some(DeviceIo { bytes, operations, .. }) = used.get(&(major, minor)) else {
            continue;
        };
        let [read, written, discarded] = bytes.map(|bytes| bytes / SECTOR);
        let [reads, writes, discards] = operations;
        let known = [
            *reads, 0, read, 0, // with merged ones and milliseconds between and after
            *writes, 0, written, 0, //
            0, 0, 0, // in flight, and milliseconds
            *discards, 0, discarded, 0, //
            0, 0, // flushes
        ];
        let _ = write!(text, "{major:4} {minor:7} {name}");
        // As many as this kernel has.
        for value in known.iter().zip(fields).map(|(value, _)| value) {
            let _ = write!(text, " {value}");
        }
        text.push('\n');
    }
    text
}

fn number(field: Option<&str>) -> Option<u32> {
    field?.parse().ok()
}
