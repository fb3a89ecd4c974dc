//! The systemd driver. It requests the cgroup over D-Bus, as a transient scope
//! or slice (org.freedesktop.systemd1(5); systemd's CGROUP_DELEGATION.md).
//! Needs systemd 244.
//!
//! Each call opens a connection and closes it again, so the shim keeps no
//! descriptor through which a sandbox could reach systemd.

use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use oci_spec::runtime::LinuxResources;
use rustbus::RpcConn;
use rustbus::connection::{Timeout, ll_conn::force_finish_on_error};
use rustbus::message_builder::{
    MarshalledMessage, MarshalledMessageBody, MessageBuilder, MessageType,
};
use rustbus::wire::ObjectPath;
use rustbus::wire::errors::{MarshalError, UnmarshalError};
use rustbus::wire::unmarshal::traits::Variant;

use super::Cgroup;
use super::hierarchy::Hierarchies;
use super::path::{Unit, expand_slice};
use super::properties::{self, Property, Systemd};
use crate::error::{Context, Error, Result};
use crate::spec::plan::UnitProperty;
use crate::sys::child::Child;
use crate::sys::clone::SingleThreaded;

/// Time for a call or a job of systemd, as with runc.
const SYSTEMD_TIMEOUT: Duration = Duration::from_secs(30);

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Starts the unit with its limits. The caller then writes the limits into the
/// files.
pub(super) fn create(
    id: &str,
    unit: &Unit,
    hierarchies: &Hierarchies,
    resources: &LinuxResources,
    properties: &[UnitProperty],
) -> Result<Cgroup> {
    let mut bus = Bus::connect()?;
    // A scope must have a process from the start, but no process of the
    // container exists yet.
    let holder = match unit.name.ends_with(".scope") {
        true => Some(holder().context(|| "clone a first process for a systemd scope")?),
        false => None,
    };
    let systemd = Systemd { version: bus.version(), v2: hierarchies.mode.is_v2() };
    let mut all = properties::of_unit(id, unit, systemd, holder.as_ref(), resources);
    all.extend(properties::of_resources(resources, systemd, None)?);
    // systemd uses the last value of each property.
    all.extend(properties.iter().map(properties::of_annotation));
    bus.start(&unit.name, &all)?;
    let made = placed(&mut bus, unit, hierarchies).inspect_err(|_| {
        if let Err(e) = bus.stop(&unit.name) {
            log::warn!("after a failed create: {e}");
        }
    });
    Ok(Cgroup { holder: Mutex::new(holder), ..made? })
}

/// Clones a process that waits, to be the first one of a scope: systemd makes no empty ones,
/// and removes those that become empty.
fn holder() -> std::io::Result<Child> {
    #[cfg(not(test))]
    let alone = SingleThreaded::prove()?;
    #[cfg(test)]
    let alone = SingleThreaded::in_a_test();
    Child::idle(&alone, CloneFlags::empty())
}

/// Returns the cgroup in which systemd put the unit. systemd reports it, since
/// its own root need not be the hierarchy's.
fn placed(bus: &mut Bus, unit: &Unit, hierarchies: &Hierarchies) -> Result<Cgroup> {
    let reported = bus.control_group(&unit.name)?;
    // A slice without processes may have no cgroup yet.
    if reported.is_empty() {
        return expected(unit, hierarchies);
    }
    at(Path::new(reported.trim_start_matches('/')), unit, hierarchies)
}

/// Returns the cgroup in which systemd puts the unit, where its own root is the hierarchy's.
pub(super) fn expected(unit: &Unit, hierarchies: &Hierarchies) -> Result<Cgroup> {
    let slice = expand_slice(&unit.slice).unwrap_or_default();
    at(&slice.join(&unit.name), unit, hierarchies)
}

fn at(below: &Path, unit: &Unit, hierarchies: &Hierarchies) -> Result<Cgroup> {
    let mut cgroup = hierarchies.cgroup(|_| Ok(below.to_owned()))?;
    cgroup.saved.unit = Some(unit.name.clone());
    Ok(cgroup)
}

/// Changes the limits that systemd knows.
pub(super) fn update(unit: &str, cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let mut bus = Bus::connect()?;
    let systemd = Systemd { version: bus.version(), v2: cgroup.saved.v2 };
    let changes = properties::of_resources(resources, systemd, Some(cgroup))?;
    if changes.is_empty() {
        return Ok(());
    }
    let mut call = manager_call("SetUnitProperties");
    push(&mut call, |body| body.push_param3(unit, true, &changes[..]))?;
    bus.call(call).map(drop).map_err(|e| e.of("SetUnitProperties", unit))
}

/// Stops the unit with all its processes. A unit that is gone already is a
/// success.
pub(super) fn stop(unit: &str) -> Result<()> {
    match Bus::connect() {
        Ok(mut bus) => bus.stop(unit),
        // The directory can still be removed without systemd, and must be.
        Err(e) => {
            log::debug!("{unit} is removed without systemd: {e}");
            Ok(())
        }
    }
}

/// The system bus.
struct Bus(RpcConn);

/// An error reply, or no reply.
struct Failed {
    name: String,
    message: String,
}

impl Failed {
    fn of(self, call: &str, unit: &str) -> Error {
        Error::internal(format!("systemd {call} {unit}: {} {}", self.name, self.message))
    }
}

impl From<MarshalError> for Failed {
    fn from(error: MarshalError) -> Failed {
        Failed { name: "unsendable call:".to_owned(), message: error.to_string() }
    }
}

impl From<UnmarshalError> for Failed {
    fn from(error: UnmarshalError) -> Failed {
        Failed { name: "unreadable answer:".to_owned(), message: error.to_string() }
    }
}

impl From<rustbus::connection::Error> for Failed {
    fn from(error: rustbus::connection::Error) -> Failed {
        Failed { name: "no answer on the system bus:".to_owned(), message: error.to_string() }
    }
}

impl Bus {
    fn connect() -> Result<Bus> {
        let conn = RpcConn::system_conn(Timeout::Duration(SYSTEMD_TIMEOUT)).map_err(|e| {
            Error::internal(format!(
                "the systemd cgroup driver needs systemd on the system bus (D-Bus): {e}"
            ))
        })?;
        Ok(Bus(conn))
    }

    fn call(
        &mut self,
        mut message: MarshalledMessage,
    ) -> std::result::Result<MarshalledMessage, Failed> {
        let timeout = Timeout::Duration(SYSTEMD_TIMEOUT);
        let sent = self.0.send_message(&mut message)?;
        let serial = sent.write(timeout).map_err(force_finish_on_error)?;
        let answer = self.0.wait_response(serial, timeout)?;
        if answer.typ != MessageType::Error {
            return Ok(answer);
        }
        let message = answer.body.parser().get::<&str>().unwrap_or_default().to_owned();
        Err(Failed { name: answer.dynheader.error_name.unwrap_or_default(), message })
    }

    /// Calls StartTransientUnit and waits for the end of its job.
    fn start(&mut self, unit: &str, properties: &[Property]) -> Result<()> {
        self.watch_jobs()?;
        let message = || -> Result<MarshalledMessage> {
            let mut call = manager_call("StartTransientUnit");
            push(&mut call, |body| body.push_param2(unit, "replace"))?;
            push(&mut call, |body| body.push_param(properties))?;
            // No auxiliary units.
            push(&mut call, |body| body.push_param::<&[(&str, &[Property])]>(&[]))?;
            Ok(call)
        };
        let mut answer = self.call(message()?);
        if answer.as_ref().is_err_and(|e| e.name.ends_with(".UnitExists")) {
            // A unit that failed stays listed until it is reset.
            self.reset_failed(unit);
            answer = self.call(message()?);
        }
        let answer = answer.map_err(|e| e.of("StartTransientUnit", unit))?;
        match self.job_result(&answer, unit)?.as_str() {
            "done" => Ok(()),
            other => {
                self.reset_failed(unit);
                Err(Error::internal(format!(
                    "systemd could not start {unit}: its job ended as {other:?}"
                )))
            }
        }
    }

    fn stop(&mut self, unit: &str) -> Result<()> {
        self.watch_jobs()?;
        let mut call = manager_call("StopUnit");
        push(&mut call, |body| body.push_param2(unit, "replace"))?;
        match self.call(call) {
            Ok(answer) => self.job_result(&answer, unit).map(drop)?,
            Err(e) if e.name.ends_with(".NoSuchUnit") => return Ok(()),
            Err(e) => return Err(e.of("StopUnit", unit)),
        }
        self.reset_failed(unit);
        Ok(())
    }

    /// Makes systemd forget a unit that failed. Most have not failed and are
    /// forgotten already.
    fn reset_failed(&mut self, unit: &str) {
        let mut call = manager_call("ResetFailedUnit");
        if call.body.push_param(unit).is_ok() {
            let _ = self.call(call);
        }
    }

    fn watch_jobs(&mut self) -> Result<()> {
        let rule = format!("type='signal',interface='{MANAGER}',member='JobRemoved'");
        let call = rustbus::standard_messages::add_match(&rule);
        self.call(call).map(drop).map_err(|e| e.of("AddMatch", "JobRemoved"))
    }

    /// Waits for the end of the job that a reply names.
    fn job_result(&mut self, answer: &MarshalledMessage, unit: &str) -> Result<String> {
        let broken = |_| Error::internal(format!("systemd: unreadable answer about {unit}"));
        let job = answer.body.parser().get::<ObjectPath<&str>>().map_err(broken)?;
        let deadline = Instant::now() + SYSTEMD_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let signal = self.0.wait_signal(Timeout::Duration(left)).map_err(|e| {
                Error::internal(format!(
                    "systemd: job of {unit} not done within {} s: {e}",
                    SYSTEMD_TIMEOUT.as_secs()
                ))
            })?;
            if signal.dynheader.member.as_deref() != Some("JobRemoved") {
                continue;
            }
            let mut body = signal.body.parser();
            let (_, path, _, result) =
                body.get4::<u32, ObjectPath<&str>, &str, &str>().map_err(broken)?;
            if path == job {
                return Ok(result.to_owned());
            }
        }
    }

    fn control_group(&mut self, unit: &str) -> Result<String> {
        let mut call = manager_call("GetUnit");
        push(&mut call, |body| body.push_param(unit))?;
        let answer = self.call(call).map_err(|e| e.of("GetUnit", unit))?;
        let broken = |_| Error::internal(format!("systemd: unreadable answer about {unit}"));
        let object = answer.body.parser().get::<ObjectPath<&str>>().map_err(broken)?;
        let kind = if unit.ends_with(".slice") { "Slice" } else { "Scope" };
        let interface = format!("{SERVICE}.{kind}");
        let answer = self.property(object.as_ref(), &interface, "ControlGroup");
        answer.map_err(|e| e.of("Get ControlGroup", unit))
    }

    /// Returns the number of systemd's version, requested once. 0, which stands
    /// for no new features, if systemd does not report it.
    fn version(&mut self) -> u32 {
        static VERSION: OnceLock<u32> = OnceLock::new();
        if let Some(version) = VERSION.get() {
            return *version;
        }
        match self.property(PATH, MANAGER, "Version") {
            Ok(text) => *VERSION.get_or_init(|| number_of(&text)),
            Err(e) => {
                log::debug!("{}", e.of("Get Version", "of itself"));
                0
            }
        }
    }

    /// Returns a property that is a text.
    fn property(
        &mut self,
        object: &str,
        interface: &str,
        name: &str,
    ) -> std::result::Result<String, Failed> {
        let mut call = MessageBuilder::new()
            .call("Get")
            .with_interface("org.freedesktop.DBus.Properties")
            .on(object)
            .at(SERVICE)
            .build();
        call.body.push_param2(interface, name)?;
        let answer = self.call(call)?;
        let value: Variant = answer.body.parser().get()?;
        Ok(value.get()?)
    }
}

/// Returns the number in a version such as `257.9-1~deb13u1` or `v245.4`.
fn number_of(version: &str) -> u32 {
    let digits = version.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

fn manager_call(method: &str) -> MarshalledMessage {
    MessageBuilder::new().call(method).with_interface(MANAGER).on(PATH).at(SERVICE).build()
}

/// Adds arguments to a call. Only a string with a zero byte cannot be sent.
fn push(
    call: &mut MarshalledMessage,
    add: impl FnOnce(&mut MarshalledMessageBody) -> std::result::Result<(), MarshalError>,
) -> Result<()> {
    add(&mut call.body).map_err(|e| Error::invalid(format!("systemd: argument of a call: {e}")))
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn the_number_of_a_version_is_found() {
        for (version, number) in [("257.9-1~deb13u1", 257), ("v245.4", 245), ("252", 252), ("", 0)]
        {
            assert_eq!(number_of(version), number, "{version}");
        }
    }
}
