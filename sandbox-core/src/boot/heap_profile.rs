//! HeapProfile: switches the sampler of boot's allocator on or off.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

use super::Boot;
use crate::control::message::Done;
use crate::error::{Context, Error, Result};
use crate::sys::heap;

impl Boot {
    pub(super) fn heap_profile(
        &self,
        number: u64,
        every: Option<NonZeroU32>,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        match every {
            Some(every) => {
                let table =
                    fds.first().ok_or_else(|| Error::invalid("heap-profile without a table"))?;
                heap::switch_on(table, every).context(|| "switch the sampler of allocations on")?;
            }
            None => heap::switch_off(),
        }
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }
}
