//! Start: opens the gate of a created container.

use super::Boot;
use super::table::{Pending, Stage};
use crate::control::message::Done;
use crate::error::{Context, Error, FailureKind, Result};
use crate::types::ProcessId;

impl Boot {
    pub(super) fn start(&mut self, number: u64, id: &str) -> Result<()> {
        let Some(init) = &mut self.containers.get(id)?.init else {
            self.reply(number, Ok(Done::Ok));
            return Ok(());
        };
        let wrong = || Error::new(FailureKind::State, format!("container {id} is not at its gate"));
        let channel = init.gate.take().ok_or_else(wrong)?;
        let pidfd = init.pidfd.try_clone().context(|| "dup of a pidfd")?;
        let pid = init.pid;
        channel.let_go_on()?;
        self.expect(Pending {
            number,
            process: ProcessId::init(id),
            pid,
            pidfd,
            terminal: None,
            channel,
            stage: Stage::Executing,
            mappings: None,
            hands_listener_over: false,
        })
    }
}
