//! `start`: starts the shim of a container's group, or finds it, and prints its
//! address for containerd.
//!
//! This process makes the listening socket, so that containerd can connect at
//! once while the serving process still starts. The serving process is a clone
//! of this one, which has loaded all that it needs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use containerd_shim::bootstrap::any_is;
use containerd_shim::{Flags, StartOpts, api};
use containerd_shim_protos::protobuf::Message;
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal, setpgid};
use sandbox_core::control::packet::{Received, receive_packet, send_packet};
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
    if socket::is_served(&address) {
        return print("address", &result);
    }
    let server = spawn(options, &address)?;
    let served = listen_and_print(&server, &address, &result);
    if served.is_err() {
        // No client would ever connect to a shim whose address is unknown.
        let _ = pidfd_send_signal(&server.pidfd, Signal::KILL);
    }
    served
}

/// A serving process that waits for its listening socket. If it gets none, it ends.
struct Server {
    pidfd: OwnedFd,
    channel: OwnedFd,
}

/// Makes the listening socket, hands it to the serving process, and prints its address.
fn listen_and_print(server: &Server, address: &str, result: &[u8]) -> Result<()> {
    // Another container's `start` may be faster.
    let Some(listener) = socket::listen(address)? else {
        return print("address", result);
    };
    let handed_over = send_packet(&server.channel, b"!", &[listener.as_fd()])
        .context(|| "hand the serving process its socket")
        .and_then(|()| print("address", result));
    if handed_over.is_err() {
        // Only this one: its drop removes it.
        let _own = socket::Own::of(&listener, address);
    }
    handed_over
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
/// oom_score_adj plus one, and no descriptor of this process but its end of a channel.
///
/// It is there before its socket is, and removes that if this process ends in between:
/// containerd kills it as soon as a client gives up, and nobody else would know of the socket.
fn spawn(options: StartOpts, address: &str) -> Result<Server> {
    adjust_oom_score();
    // containerd 2.3 may send extensions for other programs.
    let config = Options::read(options.extensions.iter().find(|any| is_runtime_options(any)))?;
    let flags = SocketFlags::CLOEXEC;
    let (channel, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .context(|| "socketpair")?;
    let starter = pidfd_open(getpid(), PidfdFlags::empty()).context(|| "pidfd_open of itself")?;
    let alone = SingleThreaded::prove().context(|| "clone the serving process")?;
    match clone_into(&alone, CloneFlags::empty(), None)
        .context(|| "clone3 of the serving process")?
    {
        Cloned::Parent { pid, pidfd } => match confine(&options, &config, pid) {
            Ok(()) => Ok(Server { pidfd, channel }),
            Err(error) => {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                Err(error)
            }
        },
        Cloned::Child => {
            drop(channel);
            let debug = options.debug || config.debug;
            let StartOpts { id, namespace, ttrpc_address: events, .. } = options;
            let (address, options) = (address.to_string(), config);
            let serving = Serving { id, namespace, events, address, options, debug };
            become_server(serving, theirs, starter)
        }
    }
}

/// Serves as the child, and never returns into the code of `start`.
fn become_server(serving: Serving, channel: OwnedFd, starter: OwnedFd) -> ! {
    // containerd waits until the other ends of its pipes are closed.
    let detached = detach_stdio().and_then(|()| Ok(setpgid(None, None)?));
    let served =
        detached.context(|| "detach from containerd").and_then(|()| {
            match take_listener(channel)? {
                Some(listener) => {
                    drop(starter);
                    serve::serve(serving, listener)
                }
                None => remove_socket_of(&starter, &serving.address),
            }
        });
    if let Err(error) = &served {
        // The parent has gone: only the log is left.
        log::error!("{error}");
    }
    exit_now(i32::from(served.is_err()))
}

/// Waits for the listening socket. `None` if the parent has ended, or needs no serving process.
fn take_listener(channel: OwnedFd) -> Result<Option<UnixListener>> {
    match receive_packet(&channel, 1, 1).context(|| "receive the listening socket")? {
        Received::Packet { fds, .. } => Ok(fds.take().pop().map(UnixListener::from)),
        Received::Closed | Received::WouldBlock => Ok(None),
    }
}

/// Removes the socket that the parent has made and not handed over.
fn remove_socket_of(parent: &OwnedFd, address: &str) -> Result<()> {
    // The kernel may close its end of the channel before its socket.
    poll(&mut [PollFd::new(parent, PollFlags::IN)], None).context(|| "wait for the parent")?;
    socket::remove_dead(&socket::path(address))
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
