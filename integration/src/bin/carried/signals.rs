//! Signals: what is blocked, handled, ignored and pending.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, raise, sigaction, sigprocmask,
};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::{Check, Given, Result, same, status};

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn handle(_: i32) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// Blocks SIGUSR1, and returns the descriptor from which it is read; and SIGIO, which must
/// stay pending. No thread may be there yet: one that blocks neither would take them.
pub fn block() -> SignalFd {
    let usr1 = SigSet::from(Signal::SIGUSR1);
    (usr1 | SigSet::from(Signal::SIGIO)).thread_block().expect("block SIGUSR1 and SIGIO");
    SignalFd::with_flags(&usr1, SfdFlags::SFD_CLOEXEC).expect("signalfd")
}

/// A handler, and a signal that is ignored.
pub fn handlers(_: &Given) -> Result<Check> {
    let handler = SigHandler::Handler(handle);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::from(Signal::SIGHUP));
    // SAFETY: the handler only adds to an atomic number.
    unsafe { sigaction(Signal::SIGUSR2, &action) }?;
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: nothing handles it.
    unsafe { sigaction(Signal::SIGTTOU, &ignore) }?;
    let was = status(&["SigIgn", "SigCgt"])?;
    Ok(Box::new(move || {
        let before = HANDLED.load(Ordering::SeqCst);
        raise(Signal::SIGUSR2)?;
        raise(Signal::SIGTTOU)?;
        same("how often it was handled", HANDLED.load(Ordering::SeqCst), before + 1)?;
        same("the handlers", status(&["SigIgn", "SigCgt"])?, was.clone())
    }))
}

/// The mask. What else is set up blocks more.
pub fn mask(_: &Given) -> Result<Check> {
    let blocked = [Signal::SIGQUIT, Signal::SIGWINCH];
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked.into_iter().collect()), None)?;
    let wanted = [blocked[0], blocked[1], Signal::SIGUSR1];
    Ok(Box::new(move || wanted.iter().try_for_each(|signal| in_set("SigBlk", *signal))))
}

/// Signals that are blocked and pending: one for the process, one for its first thread.
pub fn pending(_: &Given) -> Result<Check> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(Signal::SIGPROF)), None)?;
    nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGIO)?;
    raise(Signal::SIGPROF)?;
    Ok(Box::new(|| {
        let wanted = [("SigPnd", Signal::SIGPROF), ("ShdPnd", Signal::SIGIO)];
        wanted.iter().try_for_each(|(set, signal)| in_set(set, *signal))
    }))
}

/// Looks whether a signal is in a set of /proc/self/status.
fn in_set(set: &str, signal: Signal) -> Result<()> {
    let line = status(&[set])?.concat();
    let bits = u64::from_str_radix(line.split_whitespace().last().unwrap_or_default(), 16)?;
    match bits >> (signal as u32 - 1) & 1 {
        1 => Ok(()),
        _ => Err(format!("{signal} is not in {line:?}").into()),
    }
}
