//! Interrupts system calls that another process can make block.

use std::cell::OnceCell;
use std::io;
use std::ptr;
use std::time::Duration;

use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction,
};

use super::check;

thread_local! {
    static TIMER: OnceCell<Timer> = const { OnceCell::new() };
}

/// Makes a system call that should not block. If it does, it is interrupted after
/// `limit` (`EINTR`): timer_create(2), signal(7). A repeated call would block again, so
/// the caller must bound the number of repetitions.
pub fn interrupt_after<T>(limit: Duration, call: impl FnOnce() -> T) -> io::Result<T> {
    TIMER.with(|timer| {
        let timer = match timer.get() {
            Some(timer) => timer,
            None => {
                let new = Timer::new()?;
                timer.get_or_init(|| new)
            }
        };
        // The timer repeats, in case it first expires just before the call.
        timer.set(limit)?;
        let result = call();
        timer.set(Duration::ZERO)?;
        Ok(result)
    })
}

/// A timer that sends `SIGALRM` to the thread that made it. A child does not inherit it.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> io::Result<Self> {
        catch_alarms()?;
        let mut event = SigEvent::new(SigevNotify::SigevThreadId {
            signal: Signal::SIGALRM,
            thread_id: rustix::thread::gettid().as_raw_nonzero().get(),
            si_value: 0,
        })
        .sigevent();
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: the kernel reads `event` and stores a timer's number; both
        // outlive the call.
        check(unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        })?;
        Ok(Self(timer))
    }

    /// Sets the interval at which it expires. Zero stops it.
    fn set(&self, every: Duration) -> io::Result<()> {
        let every = libc::timespec {
            tv_sec: every.as_secs().cast_signed(),
            tv_nsec: every.subsec_nanos().into(),
        };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: `spec` outlives the call; no old value is requested. The
        // timer is this thread's, or else the kernel refuses the number.
        check(unsafe { libc::timer_settime(self.0, 0, &raw const spec, ptr::null_mut()) }).map(drop)
    }
}

/// Makes `SIGALRM` only interrupt, without `SA_RESTART`. A child that executes another
/// program gets the default action again.
fn catch_alarms() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches nothing, so it may interrupt anything.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_read_that_blocks_is_interrupted() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let read = || {
            let read = || rustix::io::read(&reader, &mut [0; 1]);
            interrupt_after(Duration::from_millis(10), read).unwrap()
        };
        assert_eq!(read(), Ok(1));
        assert_eq!(read(), Err(rustix::io::Errno::INTR));
    }
}
