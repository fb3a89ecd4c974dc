//! `/proc/swaps`

use std::fmt::Write;
use std::io;

use super::memory;
use crate::views::host::Host;
use crate::views::sources::Sources;

/// Returns the text of `/proc/swaps`. A limit does not say in which of the machine's areas the
/// container's part lies, so the part is told as one area without a file.
pub(super) fn text(sources: &Sources, host: &mut Host) -> io::Result<String> {
    let told = memory::told(sources, &host.read("meminfo")?)?;
    let kernels = host.read_lines("swaps")?;
    if told.swap_is_machines {
        return Ok(kernels);
    }
    let mut text: String = kernels.split_inclusive('\n').take(1).collect();
    let (size, used) = (told.swap_total, told.swap_total - told.swap_free);
    if size > 0 {
        // The kernel's columns: 40 for the name, and tabs.
        let tab = |number| if number < 10_000_000 { "\t" } else { "" };
        let _ =
            writeln!(text, "{:<40}virtual\t\t{size}\t{}{used}\t{}0", "none", tab(size), tab(used));
    }
    Ok(text)
}
