//! Tells what a spec grants or asks for and has no effect in its sandbox: once for each
//! container, in containerd's log and by an event, or by refusing it.

use containerd_shim_protos::ttrpc::{Code, Status};
use sandbox_core::spec::plan::Powerless;
use serde_json::json;

use super::shim::Shim;
use crate::error::{Error, Result};
use crate::listeners::Happening;
use crate::options::OnPowerless;

/// The topic of what has no effect.
const TOPIC: &str = "/palisade/powerless";

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
        let happening = || Happening {
            kind: "powerless",
            container: id.to_owned(),
            exec: None,
            fields: json!({
                "field": powerless.field, "lost": powerless.lost, "instead": powerless.instead,
            }),
        };
        shim.events.publish_status(TOPIC, &status(id, powerless), happening);
    }
}

fn status(id: &str, powerless: &Powerless) -> Status {
    let mut status = Status::new();
    status.set_code(Code::FAILED_PRECONDITION);
    status.set_message(format!("container {id}: {powerless}"));
    status
}
