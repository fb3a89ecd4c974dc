//! Clocks and timers.

use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timer::{Expiration as Expires, Timer, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags as FdFlags};
use nix::time::{ClockId as Clock, clock_gettime};

use crate::{Check, Given, Result};

const HOUR: Duration = Duration::from_secs(3600);

/// The monotonic clock goes on.
pub fn clock(_: &Given) -> Result<Check> {
    let read = || clock_gettime(Clock::CLOCK_MONOTONIC).map(Duration::from);
    let mut was = read()?;
    Ok(Box::new(move || {
        let before = std::mem::replace(&mut was, read()?);
        match before < was && was - before < HOUR {
            true => Ok(()),
            false => Err(format!("CLOCK_MONOTONIC was {before:?} and is {was:?}").into()),
        }
    }))
}

/// Makes a check of a timer that was armed to expire in an hour.
fn in_an_hour(left: impl Fn() -> Result<Option<Duration>> + 'static) -> Check {
    let mut was = HOUR;
    Box::new(move || {
        let left = left()?.ok_or("it is not armed")?;
        if left.is_zero() || left > was {
            return Err(format!("{was:?} were left, and now {left:?}").into());
        }
        was = left;
        Ok(())
    })
}

/// A timer that is read, far in the future.
pub fn far(_: &Given) -> Result<Check> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::OneShot(TimeSpec::from_duration(HOUR)), FdFlags::empty())?;
    Ok(in_an_hour(move || {
        Ok(timer.get()?.map(|expires| match expires {
            Expiration::OneShot(left)
            | Expiration::IntervalDelayed(left, _)
            | Expiration::Interval(left) => left.into(),
        }))
    }))
}

/// A timer that expires again and again.
pub fn ticking(_: &Given) -> Result<Check> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::Interval(TimeSpec::milliseconds(20)), FdFlags::empty())?;
    Ok(Box::new(move || {
        // Once for all the time before, and once more.
        timer.wait()?;
        Ok(timer.wait()?)
    }))
}

/// setitimer(2).
pub fn interval_timer(_: &Given) -> Result<Check> {
    let hour = libc::timeval { tv_sec: 3600, tv_usec: 0 };
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let wanted = libc::itimerval { it_interval: never, it_value: hour };
    // SAFETY: the structure outlives the call, which needs no other.
    let set =
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const wanted, std::ptr::null_mut()) };
    nix::errno::Errno::result(set)?;
    Ok(in_an_hour(|| {
        let mut left = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
        };
        // SAFETY: the structure outlives the call.
        let got = unsafe { libc::getitimer(libc::ITIMER_REAL, &raw mut left) };
        nix::errno::Errno::result(got)?;
        let (seconds, rest) = (left.it_value.tv_sec, left.it_value.tv_usec);
        let left =
            Duration::from_secs(seconds.try_into()?) + Duration::from_micros(rest.try_into()?);
        Ok((!left.is_zero()).then_some(left))
    }))
}

/// timer_create(2).
pub fn posix(_: &Given) -> Result<Check> {
    let notify = SigevNotify::SigevSignal { signal: Signal::SIGURG, si_value: 0 };
    let mut timer = Timer::new(Clock::CLOCK_MONOTONIC, SigEvent::new(notify))?;
    timer.set(Expires::OneShot(TimeSpec::from_duration(HOUR)), TimerSetTimeFlags::empty())?;
    Ok(in_an_hour(move || {
        Ok(timer.get()?.map(|expires| match expires {
            Expires::OneShot(left)
            | Expires::IntervalDelayed(left, _)
            | Expires::Interval(left) => left.into(),
        }))
    }))
}
