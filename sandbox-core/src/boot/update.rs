//! Update: receives the new capacity of a container or of the sandbox.

use super::Boot;
use crate::control::message::Done;
use crate::error::Result;
use crate::types::Capacity;

impl Boot {
    /// Has the processes that come later announce what the kernel would tell them wrongly by
    /// system calls. All else that tells of limits reads them at each look.
    pub(super) fn update(
        &mut self,
        number: u64,
        container: Option<&str>,
        capacity: Capacity,
    ) -> Result<()> {
        if let Some(id) = container {
            self.containers.get(id)?.join_info.filter.limit(capacity.limited);
            self.limits_changed(id);
        }
        log::debug!("{} now has {capacity:?}", container.unwrap_or("the sandbox"));
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }
}
