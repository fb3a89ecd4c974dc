//! Tells what a spec grants or asks for and has no effect in its sandbox: once for each
//! container, in containerd's log and by an event, or by refusing it.

use containerd_shim_protos::ttrpc::{Code, Status};
use sandbox_core::spec::plan::Powerless;

use super::shim::Shim;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::options::OnPowerless;

/// Refuses what has no effect if the options say so. What containers get by default was not
/// asked for, and is never refused.
pub(super) fn check(on_powerless: OnPowerless, found: &[Powerless]) -> Result<()> {
    let mut asked = found.iter().filter(|powerless| !powerless.by_default);
    match (on_powerless, asked.next()) {
        (OnPowerless::Refuse, Some(powerless)) => {
            Err(Error::invalid(format!("{powerless} (option on_powerless = \"refuse\")")))
        }
        _ => Ok(()),
    }
}

/// Logs everything that has no effect, and publishes what somebody may have asked for.
pub(super) fn tell(shim: &Shim, id: &str, found: &[Powerless]) {
    for powerless in found {
        if powerless.by_default {
            log::debug!("container {id}: {powerless}");
            continue;
        }
        log::warn!("container {id}: {powerless}");
        shim.events.publish(&event(id, powerless));
    }
}

/// An event is a message that `ctr events` and each client of containerd can decode
/// without knowing Palisade.
impl Event for Status {
    const TOPIC: &'static str = "/palisade/powerless";
    const TYPE_PACKAGE: &'static str = "google.rpc";
}

fn event(id: &str, powerless: &Powerless) -> Status {
    let mut status = Status::new();
    status.set_code(Code::FAILED_PRECONDITION);
    status.set_message(format!("container {id}: {powerless}"));
    status
}
