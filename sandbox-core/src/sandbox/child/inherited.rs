//! What boot, and with it each process of the pod, would inherit from containerd and must
//! not. `docs/decisions.md` lists what else a process inherits, and why that stays.

use rustix::fs::Mode;
use rustix::process::umask;

use crate::error::{Context, Result};
use crate::sys::process::{MAX_CPU, forget_inherited_signals, set_cpu_affinity};

/// The file mode creation mask of boot, which makes mount points with it.
const UMASK: u32 = 0o022;

/// Resets it, once for all processes of the pod.
pub(super) fn reset() -> Result<()> {
    forget_inherited_signals().context(|| "reset the inherited signals")?;
    umask(Mode::from_raw_mode(UMASK));
    // Since Linux 6.2 a process keeps an affinity that was asked for when it joins a cpuset.
    // Asked for all CPUs, it runs on all that its cpuset has, whichever that is.
    set_cpu_affinity(0..=MAX_CPU).context(|| "reset the inherited CPU affinity")
}
