//! System calls that others can make wait, cut short.

use std::cell::OnceCell;
use std::io;
use std::mem;
use std::ptr;
use std::time::Duration;

thread_local! {
    static TIMER: OnceCell<Timer> = const { OnceCell::new() };
}

/// Makes a system call that should not wait. One that waits all the same is
/// interrupted after `patience` (`EINTR`): timer_create(2), signal(7). Begun
/// anew it would wait again, so do not do that without bounds.
pub fn interrupt_after<T>(patience: Duration, call: impl FnOnce() -> T) -> io::Result<T> {
    TIMER.with(|timer| {
        let timer = match timer.get() {
            Some(timer) => timer,
            None => {
                let new = Timer::new()?;
                timer.get_or_init(|| new)
            }
        };
        // Repeated, in case the first comes just before the call.
        timer.set(patience)?;
        let result = call();
        timer.set(Duration::ZERO)?;
        Ok(result)
    })
}

/// Sends `SIGALRM` to the thread that made it. Not inherited by a child.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> io::Result<Self> {
        catch_alarms()?;
        // SAFETY: sigevent is plain data, for which zero is valid.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: the kernel reads `event` and stores a timer's number; both
        // outlive the call.
        check(unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        })?;
        Ok(Self(timer))
    }

    /// Lets it go off again and again; never when zero.
    fn set(&self, every: Duration) -> io::Result<()> {
        let every = libc::timespec {
            tv_sec: every.as_secs().cast_signed(),
            tv_nsec: every.subsec_nanos().into(),
        };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: `spec` outlives the call; no old value is asked for. The
        // timer is this thread's, or else the kernel refuses the number.
        check(unsafe { libc::timer_settime(self.0, 0, &raw const spec, ptr::null_mut()) })
    }
}

/// `SIGALRM` does nothing but interrupt. Children that execute something else
/// get the default action back.
fn catch_alarms() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: sigaction is plain data, for which zero is valid: no flags (so no
    // SA_RESTART) and an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler touches nothing, so it may interrupt anything;
    // `action` outlives the call and no old action is asked for.
    check(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_waits_is_interrupted_and_one_that_does_not_is_not() {
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
