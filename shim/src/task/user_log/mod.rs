//! The user log: tells what was refused to a container, and what to set if it should be allowed.
//!
//! boot writes records into a pipe. To the shim they are hostile: a record counts only for a
//! container that has a user log, its texts are cut and escaped, and its call is a number that is
//! looked up in tables. Each line is told once for each container, program, call and rule;
//! repeats are counted, and told when the container ends, and once an hour.
//!
//! ```text
//!   boot ─record─► pipe ─► relay ─► Told ─line─► the container's log, or a file
//!                                  │           └► an event of containerd
//!                                  └ counts what is told already
//! ```

mod line;
mod logs;
mod place;
mod told;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::ttrpc::{Code, Status};
use rustix::io::Errno;
use sandbox_core::control::refusal::Refusal;
use sandbox_core::types::ProcessId;
use tokio::io::Interest;
use tokio::time::Instant;

use self::line::{Death, Line};
pub(super) use self::logs::UserLogs;
use self::logs::{Inner, OfContainer};
use self::place::{Place, cut};
use self::told::Told;
use super::boot::BootClient;
use super::create_plan::CreatePlan;
use super::shim::Shim;
use crate::error::{Error, Result};
use crate::options::UserLogFormat;
use crate::ready::register;

/// The topic of what was refused.
const TOPIC: &str = "/palisade/refused";

/// The exit status of a process that a seccomp program killed: 128 + SIGSYS.
const KILLED_BY_SECCOMP: u32 = 128 + 31;

/// The bytes of the pipe that are read at once: more than a correct boot ever writes together.
const AT_ONCE: usize = 16 << 10;

/// The time for which the shim does not read after much was written.
const PAUSE: Duration = Duration::from_millis(500);

/// The bytes from which on the shim pauses.
const MUCH: usize = 4 << 10;

/// The time between two accounts of repeats.
const ACCOUNTS: Duration = Duration::from_secs(3600);

/// Begins the user log of a container, if it has one. Fails if its place cannot be written.
pub(super) fn begin(shim: &Shim, boot: &BootClient, plan: &CreatePlan) -> Result<()> {
    let Some(place) = Place::of(&plan.options.user_log, &plan.id, &boot.root, &shim.namespace)?
    else {
        return Ok(());
    };
    if plan.plan.container.process.is_none() {
        return Ok(());
    }
    if boot.sandbox.user_log().is_none() {
        return Err(Error::invalid(
            "user_log: the pod was made without one; set it for the pod and all its containers \
             (by the option, or by an annotation of the pod)",
        ));
    }
    let told = Told::new(plan.plan.clone());
    let format = plan.options.user_log_format;
    let log = OfContainer { told, place, format, lost: 0 };
    boot.user_logs.lock().containers.insert(plan.id.clone(), log);
    Ok(())
}

/// Reads the records of boot until the pipe is closed.
pub(super) async fn relay(shim: Arc<Shim>, boot: Arc<BootClient>) {
    let Some(pipe) = boot.sandbox.user_log() else { return };
    let Ok(pipe) = register(pipe, Interest::READABLE) else { return };
    let mut accounts = Instant::now() + ACCOUNTS;
    loop {
        tokio::select! {
            ready = pipe.readable() => {
                let Ok(mut ready) = ready else { return };
                match drain(&shim, &boot) {
                    Drained::Ended => return,
                    Drained::Bytes { length, empty } => {
                        if empty {
                            ready.clear_ready();
                        }
                        // A boot that writes much must not keep the shim busy.
                        if length >= MUCH {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
            }
            () = tokio::time::sleep_until(accounts) => {
                accounts = Instant::now() + ACCOUNTS;
                for (id, log) in &mut boot.user_logs.lock().containers {
                    log.account(&shim, id);
                }
            }
        }
    }
}

enum Drained {
    Bytes {
        length: usize,
        /// Whether the pipe is empty now.
        empty: bool,
    },
    /// Nothing more comes, or nothing that could be read.
    Ended,
}

/// Reads what is in the pipe now, up to a bound.
fn drain(shim: &Shim, boot: &BootClient) -> Drained {
    let Some(pipe) = boot.sandbox.user_log() else { return Drained::Ended };
    let (mut buffer, mut all) = ([0; 4096], 0);
    while all < AT_ONCE {
        match rustix::io::read(pipe, &mut buffer) {
            Err(Errno::AGAIN) => return Drained::Bytes { length: all, empty: true },
            Ok(0) | Err(_) => return Drained::Ended,
            Ok(length) => {
                all += length;
                if !take(shim, boot, &buffer[..length]) {
                    return Drained::Ended;
                }
            }
        }
    }
    Drained::Bytes { length: all, empty: false }
}

/// Tells what is left of a container whose init has ended, and how a process ended if a seccomp
/// program killed it. To be called before the exit is published, which ends the log.
pub(super) fn ended(shim: &Shim, boot: &BootClient, id: &ProcessId, status: u32) {
    if !boot.user_logs.has(&id.container) {
        return;
    }
    drain(shim, boot);
    if status == KILLED_BY_SECCOMP {
        tell_death(shim, &boot.user_logs, id);
    }
    if id.is_init()
        && let Some(log) = boot.user_logs.lock().containers.get_mut(&id.container)
    {
        log.account(shim, &id.container);
    }
}

/// Takes bytes from boot. Returns false once they are no records.
fn take(shim: &Shim, boot: &BootClient, bytes: &[u8]) -> bool {
    let mut inner = boot.user_logs.lock();
    let Inner { records, broken, containers } = &mut *inner;
    let taken = records.take(bytes, |record: Refusal| {
        let Some(log) = containers.get_mut(&record.container) else { return };
        let plan = log.told.plan();
        let inside = |uid| boot.sandbox.uid_inside(&plan, uid);
        if let Some(refused) = log.told.take(&record, boot.sandbox.counters(), inside) {
            log.tell(shim, &record.container, &Line::Refused(&refused));
        }
    });
    if let Err(error) = taken
        && !std::mem::replace(broken, true)
    {
        log::warn!("sandbox {}: {error}; its user log ends here", boot.root);
    }
    !*broken
}

fn tell_death(shim: &Shim, logs: &UserLogs, id: &ProcessId) {
    let mut inner = logs.lock();
    let Some(log) = inner.containers.get_mut(&id.container) else { return };
    if let Some(kills) = log.told.death() {
        log.tell(shim, &id.container, &Line::Death(Death { exec: id.exec.as_deref(), kills }));
    }
}

impl OfContainer {
    /// Tells what was counted since the last account, if anything was.
    fn account(&mut self, shim: &Shim, container: &str) {
        if let Some(account) = self.told.account(std::mem::take(&mut self.lost)) {
            self.tell(shim, container, &Line::Account(&account));
        }
    }

    fn tell(&mut self, shim: &Shim, container: &str, line: &Line<'_>) {
        let now = SystemTime::now();
        let text = match self.format {
            UserLogFormat::Text => line.text(now, container),
            UserLogFormat::Json => line.json(now, container),
        };
        let written = match &self.place {
            Place::Pod => note(shim, container, &cut(text)),
            Place::File(path) => place::append(path, cut(text)),
        };
        if let Err(why) = written {
            self.lost += 1;
            log::debug!("container {container}: the user log has lost a line: {why}");
        }
        // As many as containerd takes: they are less than its own.
        if shim.events.has_room().is_ok() {
            let mut status = Status::new();
            status.set_code(Code::PERMISSION_DENIED);
            status.set_message(line.sentence(container));
            shim.events.publish_status(TOPIC, &status, || line.happening(container));
        }
    }
}

/// Writes a line into a container's own output.
fn note(shim: &Shim, container: &str, line: &str) -> std::result::Result<(), String> {
    let mut table = shim.table();
    let container = table.container(container).map_err(|error| error.to_string())?;
    container.init.io.note(line).map_err(|error| error.to_string())
}
