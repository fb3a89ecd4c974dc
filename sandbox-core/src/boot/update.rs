//! Update: receives the new capacity of a container or of the sandbox.

use super::Boot;
use crate::control::message::Done;
use crate::error::Result;
use crate::types::Capacity;

impl Boot {
    /// Logs the new capacity. Views are not made from it: they are read from the cgroup's files,
    /// whoever changes these.
    pub(super) fn update(
        &mut self,
        number: u64,
        container: Option<&str>,
        capacity: Capacity,
    ) -> Result<()> {
        if let Some(id) = container {
            self.containers.get(id)?;
        }
        log::debug!("{} now has {capacity:?}", container.unwrap_or("the sandbox"));
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }
}
