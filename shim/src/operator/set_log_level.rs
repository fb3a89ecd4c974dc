//! SetLogLevel: changes what the shim and boot log, at once and for a while.

use std::sync::Arc;
use std::time::Duration;

use operator_api::operator::{SetLogLevelRequest, SetLogLevelResponse};
use sandbox_core::control::message::LogLevel;

use crate::error::{Error, Result};
use crate::task::{Shim, log_level};

/// The names of the levels.
const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

pub(super) async fn set_log_level(
    shim: Arc<Shim>,
    request: SetLogLevelRequest,
) -> Result<SetLogLevelResponse> {
    let level = LEVELS.iter().find(|(name, _)| *name == request.level);
    let (_, level) = level.ok_or_else(|| {
        let known = LEVELS.map(|(name, _)| name).join(", ");
        Error::invalid(format!("level {:?}: expected one of {known}", request.level))
    })?;
    let time = (request.seconds > 0).then(|| Duration::from_secs(request.seconds.into()));
    let before = log_level::set(&shim, *level, time).await?;
    let name = LEVELS.iter().find(|(_, level)| *level == before).map(|(name, _)| *name);
    let before = name.unwrap_or_default().to_owned();
    Ok(SetLogLevelResponse { before, ..Default::default() })
}
