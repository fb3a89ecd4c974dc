//! What a thread does at this moment (`/proc/PID/syscall`, proc_pid_syscall(5)).

use std::fs;
use std::io::{Error, ErrorKind, Result};

use sandbox_core::types::Call;

use super::native;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It runs, or waits for nothing but a CPU.
    Runs,
    /// It waits in the kernel.
    Waits {
        /// The call that it waits in. `None` if it came there by a fault or a signal.
        call: Option<Call>,
        /// Its stack pointer in the program.
        sp: u64,
        /// Where it is in the program.
        ip: u64,
    },
}

impl Doing {
    /// Reads what a thread does.
    ///
    /// # Errors
    /// Fails if it has ended, or may not be looked at.
    pub fn of(thread: i32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{thread}/syscall"))?;
        Self::parse(&text).ok_or_else(|| Error::new(ErrorKind::InvalidData, text))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let first = words.next()?;
        if first == "running" {
            return Some(Self::Runs);
        }
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        // Below 0 it is in no call.
        let call = match first.parse::<u32>() {
            Ok(number) => {
                let mut arguments = [0; 6];
                for argument in &mut arguments {
                    *argument = hex()?;
                }
                Some(native(number, arguments))
            }
            Err(_) => None,
        };
        Some(Self::Waits { call, sp: hex()?, ip: hex()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_of_a_thread_is_read() {
        let text = "232 0x4 0x7f 0x1 0xffffffffffffffff 0x0 0x8 0x7ffd 0x7f01\n";
        let Some(Doing::Waits { call: Some(call), sp, ip }) = Doing::parse(text) else {
            panic!("{text}")
        };
        assert_eq!((call.number, call.arguments[3]), (232, u64::MAX));
        assert_eq!((sp, ip), (0x7ffd, 0x7f01));
        assert_eq!(Doing::parse("running\n"), Some(Doing::Runs));
        let none = Doing::Waits { call: None, sp: 0x7ffd, ip: 0x7f01 };
        assert_eq!(Doing::parse("-1 0x7ffd 0x7f01\n"), Some(none));
        assert_eq!(Doing::parse("232 0x4\n"), None);
    }
}
