//! The test image's `/pause`, which does the same as Kubernetes' pause
//! container: it waits for a signal to end, and reaps the processes that it
//! inherits as PID 1 of a shared PID namespace.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    // Blocked, so that none is lost between two waits. PID 1 would otherwise
    // ignore those without a handler.
    signals.thread_block()?;
    while signals.wait()? == Signal::SIGCHLD {
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Err(_) | Ok(WaitStatus::StillAlive)
        ) {}
    }
    Ok(())
}
