//! `start`: starts the shim of a container's group, or finds it, and prints its
//! address for containerd.
//!
//! This process makes the listening socket, so that containerd can connect at
//! once while the serving process still starts. The serving process is a clone
//! of this one, which has loaded all that it needs.

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
use nix::sched::CloneFlags;
use rustix::fs::OFlags;
use rustix::process::{Signal, pidfd_send_signal, setpgid};
use sandbox_core::sandbox::Executable;
use sandbox_core::sys::clone::{Cloned, SingleThreaded, clone_into};
use sandbox_core::sys::descriptor::detach_stdio;
use sandbox_core::sys::process::exit_now;
use serde::Deserialize;

use crate::answer::print;
use crate::error::{Context, Error, Result};
use crate::options::{self, Options, is_runtime_options};
use crate::serve::{self, Serving};
use crate::{bootstrap, rootless, socket};

/// Annotations that name the group (the pod) of a container, in order of
/// precedence: runc's group label, containerd's CRI, CRI-O.
pub(crate) const GROUPS: [&str; 4] = [
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
    rootless::check()?;
    // A missing or unusable executable is reported here, where containerd shows
    // it best.
    Executable::check(&options::palisade()?)?;
    let group = group(Path::new("config.json"), &options.id)?;
    let address = options.socket_address(&group);
    let result = dialect.encode(&address)?;
    // containerd 1.x reads this file after a restart.
    fs::write("address", &address).context(|| "write the bundle's address file")?;
    let Some(listener) = socket::listen(&address)? else {
        return print("address", &result);
    };
    let served = serve_and_print(options, &address, listener, &result);
    if served.is_err() {
        socket::remove(&address);
    }
    served
}

/// Brings up the serving process, and prints its address. Kills it if that fails: no
/// client would ever connect to a shim whose address is unknown.
fn serve_and_print(
    options: StartOpts,
    address: &str,
    listener: UnixListener,
    result: &[u8],
) -> Result<()> {
    let server = spawn(options, address, listener)?;
    let printed = print("address", result);
    if printed.is_err() {
        let _ = pidfd_send_signal(&server, Signal::KILL);
    }
    printed
}

/// Returns the group's ID: the container's own if no annotation names one, or if there
/// is no spec, as for a sandbox of the Sandbox service.
fn group(config: &Path, id: &str) -> Result<String> {
    let opening = || format!("open {} of the bundle", config.display());
    // Nonblocking, since a FIFO in its place must not block containerd.
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

/// Clones the serving process, with a process group of its own, containerd's
/// oom_score_adj plus one, and no descriptor of this process but the socket. Returns its pidfd.
fn spawn(options: StartOpts, address: &str, listener: UnixListener) -> Result<OwnedFd> {
    adjust_oom_score();
    // containerd 2.3 may send extensions for other programs.
    let config = Options::read(options.extensions.iter().find(|any| is_runtime_options(any)))?;
    let alone = SingleThreaded::prove().context(|| "clone the serving process")?;
    match clone_into(&alone, CloneFlags::empty(), None)
        .context(|| "clone3 of the serving process")?
    {
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
    // containerd waits until the other ends of its pipes are closed.
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

/// Sets the oom_score_adj that the serving process inherits: containerd must
/// outlive it.
fn adjust_oom_score() {
    let parent = format!("/proc/{}/oom_score_adj", std::os::unix::process::parent_id());
    let score = fs::read_to_string(parent).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score.filter(|score| *score < 1000) {
        // This is refused only if containerd itself is confined. Then the shim
        // keeps containerd's score, as after a fork.
        let _ = fs::write("/proc/self/oom_score_adj", (score + 1).to_string());
    }
}

/// Moves the shim into the cgroup that the options name, in each hierarchy that
/// has it.
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
