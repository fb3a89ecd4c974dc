//! The level at which the shim and boot log, which an operator can change for a while.

use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use sandbox_core::control::message::{LogLevel, Request};

use super::changed_level::Changed;
use super::shim::Shim;
use super::table::Sandbox;
use crate::error::{Code, Error, Result};

/// The time that boot has to take a new level: less than that which `palisade` waits for the shim.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Changes the level of both. After `time` that of before is back, or the one before that if it
/// holds only for a while. Returns the level that was in force.
pub(crate) async fn set(
    shim: &Arc<Shim>,
    level: LogLevel,
    time: Option<Duration>,
) -> Result<LogLevel> {
    let was = current();
    let replaced = shim.log_level.lock().take();
    let lasting = replaced.map_or(was, |changed| {
        changed.timer.abort();
        changed.before
    });
    if let Some(time) = time {
        let timer = tokio::spawn(return_after(shim.clone(), lasting, time)).abort_handle();
        *shim.log_level.lock() = Some(Changed { before: lasting, timer });
    }
    log::set_max_level(level.into());
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, tell_boot(shim, level)).await;
    answered.unwrap_or_else(|_| {
        Err(Error::new(
            Code::DEADLINE_EXCEEDED,
            format!(
                "the shim has the new level, and the sandbox process did not answer within {} \
                 seconds: it takes the level once it runs again",
                ANSWER_TIMEOUT.as_secs()
            ),
        ))
    })?;
    Ok(was)
}

async fn return_after(shim: Arc<Shim>, level: LogLevel, time: Duration) {
    tokio::time::sleep(time).await;
    shim.log_level.lock().take();
    log::set_max_level(level.into());
    log::info!("the log level is that of before again");
    if let Err(error) = tell_boot(&shim, level).await {
        log::warn!("return to the log level of before: {error}");
    }
}

/// Sends the level to boot, if there is one.
async fn tell_boot(shim: &Shim, level: LogLevel) -> Result<()> {
    let boot = match &shim.table().sandbox {
        Sandbox::Made(boot) => boot.clone(),
        Sandbox::None | Sandbox::Making => return Ok(()),
    };
    shim.ask(&boot, Request::SetLogLevel { level }, &[]).await.map(drop)
}

fn current() -> LogLevel {
    match log::max_level() {
        LevelFilter::Off | LevelFilter::Error => LogLevel::Error,
        LevelFilter::Warn => LogLevel::Warn,
        LevelFilter::Info => LogLevel::Info,
        LevelFilter::Debug => LogLevel::Debug,
        LevelFilter::Trace => LogLevel::Trace,
    }
}
