//! Hands the listeners of a container's seccomp programs to an agent: the process that
//! decides about the calls for which the profile has `SCMP_ACT_NOTIFY` (OCI runtime-spec,
//! `config-linux.md`, "The Container Process State").

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandbox_core::control::message::Request;
use sandbox_core::sandbox::{Process, ReceivedFds};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::agent::Agent;
use super::boot::{BootClient, Relevance};
use super::container::pid_of;
use super::hooks::State;
use super::shim::Shim;
use crate::error::{Context, Result};

/// The time that an agent has to take a state, if that does not fit into its socket.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Hands over the listener of a process that waits for that, and tells boot whether the
/// process may go on.
pub(super) fn hand_over(
    shim: &Arc<Shim>,
    boot: &Arc<BootClient>,
    of: u64,
    received: ReceivedFds,
) -> Relevance {
    let (Some(process), Some(listener)) = (received.process, received.listener) else {
        return Relevance::Stray;
    };
    let Some(agent) = boot.take_agent(of) else { return Relevance::Stray };
    let state = process_state(shim, &agent, &process);
    let boot = boot.clone();
    tokio::spawn(async move {
        let sending = send(&agent.path, &state, listener);
        let refused = match tokio::time::timeout(AGENT_TIMEOUT, sending).await {
            Ok(sent) => sent.err().map(|error| error.to_string()),
            Err(_) => Some(format!("the agent at {} does not read", agent.path.display())),
        };
        let refused = refused.map(|why| format!("linux.seccomp.listenerPath: {why}"));
        boot.send(Request::ListenerHandedOver { of, refused });
    });
    Relevance::Known
}

/// Has boot end a process whose listener is lost.
pub(super) fn refuse(boot: &BootClient, of: u64, why: &str) -> Relevance {
    if boot.take_agent(of).is_none() {
        return Relevance::Stray;
    }
    boot.send(Request::ListenerHandedOver { of, refused: Some(why.to_owned()) });
    Relevance::Known
}

/// Formats the state of a container's process.
fn process_state(shim: &Shim, agent: &Agent, process: &Process) -> String {
    let id = &agent.id;
    let pid = pid_of(process);
    let made = shim.table().container(id).ok().map(|container| {
        let status = if container.init.state.is_at_gate() { "created" } else { "running" };
        (container.init.pid, status)
    });
    let (init, status) = made.unwrap_or((pid, "creating"));
    let (bundle, plan) = (agent.bundle.as_str(), &*agent.plan);
    let state = State { id, pid: init, status, bundle, plan }.json();
    let mut whole = serde_json::json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "state": state,
    });
    let profile = plan.host.seccomp.as_ref();
    if let Some(metadata) = profile.and_then(|profile| profile.listener_metadata().as_ref()) {
        whole["metadata"] = metadata.as_str().into();
    }
    whole.to_string()
}

/// Sends one state with one descriptor over a connection of their own.
async fn send(path: &Path, state: &str, listener: OwnedFd) -> Result<()> {
    let socket = path.display();
    let connected = UnixStream::connect(path).await;
    let mut stream = connected.context(|| format!("connect to the agent at {socket}"))?;
    let descriptors = [listener.as_fd()];
    let first = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let parts = [IoSlice::new(state.as_bytes())];
        Ok(sendmsg(&stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)?)
    };
    let sent = stream.async_io(Interest::WRITABLE, first).await;
    let sent = sent.context(|| format!("send to the agent at {socket}"))?;
    let rest = stream.write_all(&state.as_bytes()[sent..]).await;
    rest.context(|| format!("send to the agent at {socket}"))
}
