//! SetLogLevel: changes what boot logs, at once.

use super::Boot;
use crate::control::message::{Done, LogLevel};

impl Boot {
    pub(super) fn set_log_level(&self, number: u64, level: LogLevel) {
        log::set_max_level(level.into());
        self.reply(number, Ok(Done::Ok));
    }
}
