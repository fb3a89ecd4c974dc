//! `start`: brings up the shim of a container's group, or finds it, and tells
//! containerd its address.
//!
//! The listening socket is made here, so that containerd can connect at once,
//! while the serving process is still coming up: nobody waits for it. That
//! process is a clone of this one, which has loaded all that it needs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use containerd_shim::bootstrap::any_is;
use containerd_shim::{Flags, StartOpts, api};
use containerd_shim_protos::protobuf::Message;
use rustix::fs::OFlags;
use rustix::process::{Signal, pidfd_send_signal, setpgid};
use sandbox_core::sandbox::Executable;
use sandbox_core::sys::clone::{Cloned, SingleThreaded, clone_into};
use sandbox_core::sys::descriptor::detach_stdio;
use sandbox_core::sys::process::exit_now;
use serde::Deserialize;

use crate::answer::tell;
use crate::error::{Context, Error, Result};
use crate::options::{self, Options, is_runtime_options};
use crate::serve::{self, Serving};
use crate::{bootstrap, socket};

/// Annotations that name the group (the pod) a container belongs to, in the
/// order in which they count: runc's group label, containerd's CRI, CRI-O.
const GROUPS: [&str; 4] = [
    "io.containerd.palisade.v1.group",
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// The part of config.json that grouping needs.
#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

pub(crate) fn start(flags: &Flags) -> Result<()> {
    let (options, dialect) = bootstrap::read(flags)?;
    // Missing or unusable: said here, where containerd shows it best.
    Executable::check(&options::palisade()?)?;
    let group = group(Path::new("config.json"), &options.id)?;
    let address = options.socket_address(&group);
    let answer = dialect.answer(&address)?;
    // For containerd 1.x, which looks here after a restart.
    fs::write("address", &address).context(|| "write the bundle's address file")?;
    let Some(listener) = socket::listen(&address)? else {
        return tell("address", &answer);
    };
    let told = spawn(options, &address, listener).and_then(|server| {
        // Nobody would ever call a shim of which nobody knows.
        tell("address", &answer).inspect_err(|_| {
            let _ = pidfd_send_signal(&server, Signal::KILL);
        })
    });
    told.inspect_err(|_| socket::remove(&address))
}

/// The group's ID: the container's own when no annotation names one, or when
/// there is no spec, as for a sandbox that is asked for itself.
fn group(config: &Path, id: &str) -> Result<String> {
    let opening = || format!("open {} of the bundle", config.display());
    // A FIFO in its place must not hold containerd up.
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(config);
    let file = match file {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(id.to_string()),
        file => file.context(opening)?,
    };
    if !file.metadata().context(opening)?.is_file() {
        let message = format!("{} of the bundle is no regular file", config.display());
        return Err(Error::invalid(message));
    }
    let spec: Annotated = serde_json::from_reader(BufReader::new(file))
        .map_err(|e| Error::invalid(format!("{} is not valid: {e}", config.display())))?;
    let annotations = spec.annotations.unwrap_or_default();
    let group = GROUPS.iter().find_map(|name| annotations.get(*name)).filter(|g| !g.is_empty());
    Ok(group.map_or(id, String::as_str).to_string())
}

/// Clones the serving process: its own process group, containerd's
/// oom_score_adj plus one, and nothing of ours but the socket. Returns its pidfd.
fn spawn(options: StartOpts, address: &str, listener: UnixListener) -> Result<OwnedFd> {
    adjust_oom_score();
    // containerd 2.3 may send extensions that are for others.
    let config = Options::read(options.extensions.iter().find(|any| is_runtime_options(any)))?;
    let alone = SingleThreaded::prove().context(|| "clone the serving process")?;
    match clone_into(&alone, 0, None).context(|| "clone3 of the serving process")? {
        Cloned::Parent { pid, pidfd } => match confine(&options, &config, pid) {
            Ok(()) => Ok(pidfd),
            Err(error) => {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                Err(error)
            }
        },
        Cloned::Child => {
            let debug = options.debug || config.debug;
            let StartOpts { id, namespace, ttrpc_address: events, .. } = options;
            let (address, options) = (address.to_string(), config);
            become_server(Serving { id, namespace, events, address, options, debug }, listener)
        }
    }
}

/// Serves as the child, and never returns into the code of `start`.
fn become_server(serving: Serving, listener: UnixListener) -> ! {
    // containerd waits for the end of the pipes that these are.
    let detached = detach_stdio().and_then(|()| Ok(setpgid(None, None)?));
    let served = detached
        .context(|| "detach from containerd")
        .and_then(|()| serve::serve(serving, listener));
    if let Err(error) = &served {
        // The parent has gone: only the log is left.
        log::error!("{error}");
    }
    exit_now(i32::from(served.is_err()))
}

/// The serving process inherits what is set here: containerd must outlive it.
fn adjust_oom_score() {
    let parent = format!("/proc/{}/oom_score_adj", std::os::unix::process::parent_id());
    let score = fs::read_to_string(parent).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score.filter(|score| *score < 1000) {
        // Refused only where containerd itself is confined; then the shim
        // keeps containerd's, which is what it would get from a fork.
        let _ = fs::write("/proc/self/oom_score_adj", (score + 1).to_string());
    }
}

/// Puts the shim into the cgroup that the options ask for, in each hierarchy
/// that has it.
fn confine(options: &StartOpts, config: &Options, pid: i32) -> Result<()> {
    let runc = options.extensions.iter().find(|any| any_is::<api::Options>(any));
    let runc = runc.and_then(|any| api::Options::parse_from_bytes(&any.value).ok());
    let cgroup = runc.map_or_else(|| config.shim_cgroup.clone(), |runc| runc.shim_cgroup);
    if cgroup.is_empty() {
        return Ok(());
    }
    let root = Path::new("/sys/fs/cgroup");
    let mut roots: Vec<PathBuf> = vec![root.to_path_buf()];
    roots.extend(fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()));
    let mut joined = 0;
    for hierarchy in roots {
        let procs = hierarchy.join(cgroup.trim_start_matches('/')).join("cgroup.procs");
        if procs.exists() {
            fs::write(&procs, pid.to_string())
                .context(|| format!("put the shim into {}", procs.display()))?;
            joined += 1;
        }
    }
    if joined == 0 {
        return Err(Error::invalid(format!(
            "shim_cgroup {cgroup:?} does not exist below {}",
            root.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, json).unwrap();
        file
    }

    #[test]
    fn containers_of_a_pod_are_grouped() {
        for name in GROUPS {
            let file = config(&format!(r#"{{"process":{{}},"annotations":{{"{name}":"pod"}}}}"#));
            assert_eq!(group(file.path(), "c").unwrap(), "pod");
        }
    }

    #[test]
    fn a_container_alone_is_its_own_group() {
        for json in ["{}", r#"{"annotations":null}"#, r#"{"annotations":{"a":"b"}}"#] {
            assert_eq!(group(config(json).path(), "c").unwrap(), "c");
        }
        assert_eq!(group(Path::new("/nowhere/config.json"), "c").unwrap(), "c");
    }

    #[test]
    fn a_broken_config_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = group(directory.path(), "c").unwrap_err().to_string();
        assert!(error.contains(&*directory.path().to_string_lossy()), "{error}");
        let error = group(config("{").path(), "c").unwrap_err().to_string();
        assert!(error.contains("is not valid"), "{error}");
    }
}
