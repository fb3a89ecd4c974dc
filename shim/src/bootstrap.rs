//! Reads how containerd calls `start`, and prints the result in the form that
//! it expects.
//!
//! | containerd | calls with | result |
//! |---|---|---|
//! | up to 1.6 | flags; no `MAX_SHIM_VERSION` | the plain address |
//! | 1.7 | flags, `MAX_SHIM_VERSION=2`; options on stdin | the plain address |
//! | 2.0 to 2.2 | exactly the same as 1.7 | JSON, version 3 |
//! | from 2.3 | `BootstrapParams` on stdin | `BootstrapResult` |
//!
//! 1.7 refuses version 3, and 2.x needs it to reuse the sandbox's shim without
//! running this program again, but they call in the same way. Only containerd's
//! own executable, which is the parent, distinguishes them: Go writes the module path
//! into it, and a module of major version 2 has `/v2` in its path.
//! containerd-shim's own bootstrap returns JSON to both, so it is not used.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim::{Flags, StartOpts};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::error::{Context, Error, Result};

/// The bound that containerd sets itself, which is more than it ever sends.
const MAX_INPUT: u64 = 10 << 20;

/// Version of the task API that the shim announces: `containerd.task.v3.Task`.
const TASK_API_VERSION: i32 = 3;

/// The form in which containerd expects the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The address alone, which means version 2.
    Plain,
    /// `{"version":3,"address":…,"protocol":"ttrpc"}`
    Json,
    /// A `BootstrapResult`.
    Protobuf,
}

impl Dialect {
    /// Returns the bytes to print on stdout.
    pub(crate) fn encode(self, address: &str) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(address.as_bytes().to_vec()),
            Self::Json => serde_json::to_vec(&serde_json::json!({
                "version": TASK_API_VERSION,
                "address": address,
                "protocol": "ttrpc",
            }))
            .context(|| "encode the result of start"),
            Self::Protobuf => BootstrapResult {
                version: TASK_API_VERSION,
                address: address.to_string(),
                protocol: "ttrpc".to_string(),
                ..Default::default()
            }
            .write_to_bytes()
            .context(|| "encode the result of start"),
        }
    }
}

/// Reads the call from the environment, stdin and the parent.
pub(crate) fn read(flags: &Flags) -> Result<(StartOpts, Dialect)> {
    let mut input = Vec::new();
    std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input).context(|| "read stdin")?;
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let (options, dialect) = parse(flags, &input, &env)?;
    Ok((
        options,
        dialect.unwrap_or_else(|| if parent_is_v2() { Dialect::Json } else { Dialect::Plain }),
    ))
}

/// Parses the call. If the dialect is `None`, the parent decides.
fn parse(
    flags: &Flags,
    input: &[u8],
    env: &dyn Fn(&str) -> String,
) -> Result<(StartOpts, Option<Dialect>)> {
    if let Some(params) = bootstrap_params(flags, input)? {
        return Ok((params.into(), Some(Dialect::Protobuf)));
    }
    let mut params = BootstrapParams {
        instance_id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        containerd_ttrpc_address: env("TTRPC_ADDRESS"),
        containerd_grpc_address: flags.address.clone(),
        containerd_binary: flags.publish_binary.clone(),
        ..Default::default()
    };
    if params.containerd_ttrpc_address.is_empty() {
        return Err(Error::invalid("TTRPC_ADDRESS is not set: where would events go to?"));
    }
    if let Some(any) = Any::parse_from_bytes(input).ok().filter(|any| !any.type_url.is_empty()) {
        params.extensions.push(Extension { value: Some(any).into(), ..Default::default() });
    }
    let mut options = StartOpts::from(params);
    options.debug = flags.debug;
    let dialect = match env("MAX_SHIM_VERSION").parse::<i32>() {
        Err(_) => Some(Dialect::Plain),
        Ok(version) if version >= TASK_API_VERSION => Some(Dialect::Json),
        Ok(_) => None,
    };
    Ok((options, dialect))
}

/// Decodes the message of containerd 2.3. The `Any` of an older one decodes as
/// a `BootstrapParams` too, with its type URL as the ID, but has no address.
fn bootstrap_params(flags: &Flags, input: &[u8]) -> Result<Option<BootstrapParams>> {
    let Some(mut params) = BootstrapParams::parse_from_bytes(input)
        .ok()
        .filter(|p| !p.containerd_ttrpc_address.is_empty())
    else {
        return Ok(None);
    };
    if params.instance_id != flags.id || params.namespace != flags.namespace {
        return Err(Error::invalid(format!(
            "BootstrapParams on stdin are for {}/{}, the command line is for {}/{}",
            params.namespace, params.instance_id, flags.namespace, flags.id
        )));
    }
    if flags.debug {
        params.log_level = containerd_shim::bootstrap::LogLevel::LOG_LEVEL_DEBUG.into();
    }
    Ok(Some(params))
}

fn parent_is_v2() -> bool {
    let path = format!("/proc/{}/exe", std::os::unix::process::parent_id());
    // If the executable cannot be read, use the form that all understand.
    File::open(path).ok().and_then(|exe| modules(&exe)).is_some_and(|m| is_v2(&m))
}

fn is_v2(modules: &[u8]) -> bool {
    let needle = b"github.com/containerd/containerd/v2";
    modules.windows(needle.len()).any(|window| window == needle)
}

/// Returns the module list in a Go executable. The section `.go.buildinfo`
/// holds a 32-byte header, the Go version and the list, each after its length
/// (debug/buildinfo in Go's standard library). `None` for any other file.
fn modules(exe: &File) -> Option<Vec<u8>> {
    let section = buildinfo(exe)?;
    let data = section.strip_prefix(b"\xff Go buildinf:")?.get(18..)?;
    let (length, rest) = uvarint(data)?;
    let (length, rest) = uvarint(rest.get(length..)?)?;
    rest.get(..length).map(<[u8]>::to_vec)
}

/// Returns the section's content, found by the ELF64 little-endian section
/// headers.
fn buildinfo(exe: &File) -> Option<Vec<u8>> {
    let read = |at: u64, length: usize| {
        let mut buffer = vec![0; length];
        exe.read_exact_at(&mut buffer, at).ok().map(|()| buffer)
    };
    let header = read(0, 64).filter(|h| h.starts_with(b"\x7fELF\x02\x01"))?;
    let (entry, count) = (usize::from(u16_at(&header, 58)?), usize::from(u16_at(&header, 60)?));
    let table = read(u64_at(&header, 40)?, entry * count)?;
    let section = |index: usize| table.get(index * entry..(index + 1) * entry);
    let names = section(usize::from(u16_at(&header, 62)?))?;
    let names = read(u64_at(names, 24)?, bounded(u64_at(names, 32)?)?)?;
    let found = (0..count).filter_map(section).find(|s| {
        let name = s.get(..4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
        name.and_then(|n| names.get(n..)).is_some_and(|n| n.starts_with(b".go.buildinfo\0"))
    })?;
    read(u64_at(found, 24)?, bounded(u64_at(found, 32)?)?)
}

fn bounded(size: u64) -> Option<usize> {
    usize::try_from(size).ok().filter(|s| *s <= 1 << 20)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn uvarint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0usize;
    for (i, byte) in bytes.iter().enumerate().take(9) {
        value |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            id: "a".into(),
            namespace: "n".into(),
            address: "/c.sock".into(),
            ..Default::default()
        }
    }

    fn env(max: &'static str) -> impl Fn(&str) -> String {
        move |name| match name {
            "TTRPC_ADDRESS" => "/c.sock.ttrpc".into(),
            "MAX_SHIM_VERSION" => max.into(),
            _ => String::new(),
        }
    }

    #[test]
    fn containerd_1_6_gets_the_plain_address() {
        let (options, dialect) = parse(&flags(), b"", &env("")).unwrap();
        assert_eq!((options.id.as_str(), options.ttrpc_address.as_str()), ("a", "/c.sock.ttrpc"));
        assert_eq!(dialect, Some(Dialect::Plain));
        assert_eq!(Dialect::Plain.encode("unix:///s").unwrap(), b"unix:///s");
    }

    #[test]
    fn from_1_7_to_2_2_the_parent_decides() {
        assert_eq!(parse(&flags(), b"", &env("2")).unwrap().1, None);
        assert!(is_v2(b"path\tgithub.com/containerd/containerd/v2/cmd/containerd\n"));
        assert!(is_v2(b"path\tk3s\ndep\tgithub.com/containerd/containerd/v2\tv2.1.0\n"));
        assert!(!is_v2(b"path\tgithub.com/containerd/containerd/cmd/containerd\n"));
        let answer = Dialect::Json.encode("unix:///s").unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(
            answer,
            serde_json::json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"})
        );
    }

    #[test]
    fn the_parent_is_read_without_running_it() {
        // The program that runs the tests is not containerd, but it is an ELF
        // file.
        assert_eq!(modules(&File::open("/proc/self/exe").unwrap()), None);
        // A Go program, if there is one.
        if let Ok(exe) = File::open("/usr/bin/containerd") {
            let modules = modules(&exe).unwrap();
            assert!(String::from_utf8_lossy(&modules).contains("containerd"));
        }
    }

    #[test]
    fn containerd_2_3_uses_protobuf() {
        let params = BootstrapParams {
            instance_id: "a".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "/c.sock.ttrpc".into(),
            containerd_grpc_address: "/c.sock".into(),
            socket_dir: Some("/run/elsewhere".into()),
            ..Default::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        let (options, dialect) = parse(&flags(), &bytes, &env("2")).unwrap();
        assert_eq!(dialect, Some(Dialect::Protobuf));
        assert!(options.socket_address("a").starts_with("unix:///run/elsewhere/"));
        let answer = Dialect::Protobuf.encode("unix:///s").unwrap();
        assert_eq!(BootstrapResult::parse_from_bytes(&answer).unwrap().version, 3);

        let other = Flags { id: "b".into(), ..flags() };
        assert!(parse(&other, &bytes, &env("2")).unwrap_err().to_string().contains("n/a"));
    }

    #[test]
    fn options_of_an_older_containerd_are_no_bootstrap_params() {
        let any = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![1],
            ..Default::default()
        };
        let (options, dialect) =
            parse(&flags(), &any.write_to_bytes().unwrap(), &env("2")).unwrap();
        assert_eq!(dialect, None);
        assert_eq!(options.extensions.len(), 1);
    }
}
