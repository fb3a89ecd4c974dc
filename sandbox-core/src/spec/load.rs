//! Reads config.json: opens it once and parses it once.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{Capability, Process, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};

/// The largest config.json that is read. The spec of a privileged container
/// with every device of a large machine stays below 1 MiB.
pub const MAX_SPEC: u64 = 8 * 1024 * 1024;

/// Reads and parses `config.json` of a bundle (OCI runtime-spec, `bundle.md`).
/// Properties that the specification does not have are ignored, as it demands.
/// [`super::plan()`] refuses those that it has and Palisade does not support.
pub fn load(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let shown = path.display();
    // Nonblocking, so that a FIFO in this place cannot block the caller.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat(CWD, &path, flags, Mode::empty()).map_err(|errno| {
        Error::invalid(format!(
            "{shown}: {}; the bundle must hold the container's spec",
            std::io::Error::from(errno)
        ))
    })?;
    let bytes = read(File::from(file), &path)?;
    let spec: Spec = parse(&bytes, &shown.to_string())?;
    refuse_missing_section(&bytes)?;
    check_version(spec.version())
        .map_err(|message| Error::invalid(format!("{shown}: ociVersion: {message}")))?;
    Ok(spec)
}

/// Parses the OCI `process` object that an Exec request carries.
pub fn load_process(bytes: &[u8]) -> Result<Process> {
    check_size(bytes.len() as u64, "the exec's process")?;
    parse(bytes, "the exec's process")
}

/// Refuses the one section of runtime-spec 1.3.0 that oci-spec 0.10 does not know.
fn refuse_missing_section(bytes: &[u8]) -> Result<()> {
    let mentioned = bytes.windows(SECTION.len()).any(|window| window == SECTION.as_bytes());
    // Only then is the second parse worth its time: it may be somebody's text.
    let present = mentioned
        && serde_json::from_slice::<Map<String, Value>>(bytes)
            .is_ok_and(|spec| spec.contains_key(SECTION));
    match present {
        true => Err(Error::invalid(format!(
            "{SECTION}: is a section for another platform; expected a Linux container's spec"
        ))),
        false => Ok(()),
    }
}

const SECTION: &str = "freebsd";

fn read(mut file: File, path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let metadata = file.metadata().context(|| format!("stat {shown}"))?;
    if !metadata.is_file() {
        return Err(Error::invalid(format!("{shown}: expected a regular file")));
    }
    check_size(metadata.len(), &shown.to_string())?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    // The file may have grown since stat: read at most one byte over the limit.
    (&mut file).take(MAX_SPEC + 1).read_to_end(&mut bytes).context(|| format!("read {shown}"))?;
    check_size(bytes.len() as u64, &shown.to_string())?;
    Ok(bytes)
}

fn check_size(size: u64, what: &str) -> Result<()> {
    if size > MAX_SPEC {
        return Err(Error::invalid(format!("{what}: {size} bytes; expected at most {MAX_SPEC}")));
    }
    Ok(())
}

/// Parses JSON. The fast path records no field names. Only after a failure does
/// a second parse find out where the error is.
fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    if let Some(value) = with_mended_names(bytes, what) {
        return Ok(value);
    }
    let mut from = serde_json::Deserializer::from_slice(bytes);
    let error = match serde_path_to_error::deserialize::<_, T>(&mut from) {
        Ok(_) => {
            return Err(Error::invalid(format!("{what}: text follows the JSON object")));
        }
        Err(error) => error,
    };
    let field = error.path().to_string();
    let message = error.into_inner();
    // serde_path_to_error names the document itself ".".
    let place = if field == "." { String::new() } else { format!("{field}: ") };
    Err(Error::invalid(format!("{what}: {place}{message}")))
}

/// Parses JSON once more, after a change of what oci-spec 0.10 does not take: two scheduler
/// flags, which it spells unlike the specification, lists of CPUs that are empty or hold
/// blanks, and capabilities that no kernel knows, which runc ignores with a warning, too.
/// Returns `None` if these were not the cause of the error.
fn with_mended_names<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Option<T> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    let process =
        if value.get("process").is_some() { value.get_mut("process")? } else { &mut value };
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    flags.into_iter().flatten().for_each(mend_flag);
    let lists = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut);
    lists.into_iter().for_each(mend_lists);
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    let mut ignored = Vec::new();
    for (set, members) in sets.into_iter().flatten() {
        let Some(members) = members.as_array_mut() else { continue };
        members.retain(|name| {
            let known = !name.is_string() || Capability::deserialize(name).is_ok();
            if !known {
                ignored.push(format!("process.capabilities.{set}: {name}"));
            }
            known
        });
    }
    let value = serde_json::from_value(value).ok()?;
    if !ignored.is_empty() {
        log::warn!("{what}: unknown and ignored: {}", ignored.join(", "));
    }
    Some(value)
}

fn mend_lists(lists: &mut Map<String, Value>) {
    let parts = |list: &str| {
        let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(",")
    };
    lists.retain(|_, list| list != "");
    for list in lists.values_mut() {
        if let Some(text) = list.as_str() {
            *list = parts(text).into();
        }
    }
}

fn mend_flag(flag: &mut Value) {
    const NAMES: [(&str, &str); 2] = [
        ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
        ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
    ];
    if let Some((_, ours)) = NAMES.iter().find(|(theirs, _)| flag == theirs) {
        *flag = Value::from(*ours);
    }
}

/// Checks `ociVersion`. Versions with the same major number are compatible
/// (runtime-spec, `config.md`, "Specification version").
fn check_version(version: &str) -> std::result::Result<(), String> {
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let wellformed = |part: Option<&str>| part.is_some_and(|p| p.parse::<u16>().is_ok());
    let major = numbers.next();
    let complete = wellformed(major) && wellformed(numbers.next()) && wellformed(numbers.next());
    match major {
        _ if version.is_empty() => Err("is missing; expected 1.x.y".into()),
        Some("1") if complete && numbers.next().is_none() => Ok(()),
        _ => Err(format!("{version:?} is not supported; expected 1.x.y")),
    }
}
