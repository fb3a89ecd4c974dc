//! `delete`: cleans up after a shim that is gone, or that containerd has
//! forgotten. containerd calls it with the bundle as working directory whenever
//! it loses its connection, for the sandbox and for each container in it. It
//! allows five seconds.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_shim::Flags;
use containerd_shim_protos::api::{ConnectRequest, DeleteRequest, DeleteResponse, ShutdownRequest};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::sandbox_api::{SandboxStatusRequest, ShutdownSandboxRequest};
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::shim_sync::{Client, TaskClient};
use containerd_shim_protos::ttrpc::{self, context};

use sandbox_core::sandbox::Claim;

use crate::answer::print;
use crate::error::{Code, Context, Result};
use crate::exit::KILLED;
use crate::{options, socket};

pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let bundle = if flags.bundle.is_empty() { Path::new(".") } else { Path::new(&flags.bundle) };
    let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
    let pid = match living(&address) {
        // Only containerd's connection for a container has ended. Each container of a living
        // pod ends so, after its Delete.
        Some(shim) => {
            shut_down(&shim, &flags.id);
            None
        }
        None => {
            let claim = Claim::of(&options::state_root(), &flags.namespace, &flags.id)?;
            // First, since this process may be killed as well.
            claim.as_ref().map_or(Ok(()), Claim::note)?;
            socket::remove(&address);
            claim.map_or(Ok(None), Claim::clean_up)?
        }
    };
    let response = DeleteResponse {
        pid: pid.and_then(|pid| u32::try_from(pid.0).ok()).unwrap_or_default(),
        exit_status: KILLED,
        exited_at: Some(Timestamp::from(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().context(|| "encode the DeleteResponse")?;
    print("DeleteResponse", &bytes)
}

/// Time in which a shim must reply. containerd allows five seconds for `delete`
/// altogether.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns a client of the shim that lives at that address, if one does. It is
/// not enough that it accepts a connection: the socket of a process that is
/// being killed listens until the kernel has destroyed the process.
fn living(address: &str) -> Option<Client> {
    if address.is_empty() {
        return None;
    }
    UnixStream::connect(socket::path(address)).ok()?;
    let client = Client::connect(address.trim()).ok()?;
    let reply =
        TaskClient::new(client.clone()).connect(within(REPLY_TIMEOUT), &ConnectRequest::default());
    // A refusal is a reply too.
    matches!(reply, Ok(_) | Err(ttrpc::Error::RpcStatus(_))).then_some(client)
}

/// Ends the container or the sandbox of that ID, if a living shim has it. containerd calls
/// `delete` when it has dropped its connection for that ID, and then forgets it.
fn shut_down(shim: &Client, id: &str) {
    let sandboxes = SandboxClient::new(shim.clone());
    let status = SandboxStatusRequest { sandbox_id: id.to_string(), ..Default::default() };
    if sandboxes.sandbox_status(within(REPLY_TIMEOUT / 2), &status).is_ok() {
        let request = ShutdownSandboxRequest { sandbox_id: id.to_string(), ..Default::default() };
        // The shutdown goes on even if no process receives the reply.
        let _ = sandboxes.shutdown_sandbox(within(REPLY_TIMEOUT / 2), &request);
        return;
    }
    let tasks = TaskClient::new(shim.clone());
    let request = DeleteRequest { id: id.to_string(), ..Default::default() };
    match tasks.delete(within(REPLY_TIMEOUT), &request) {
        // A container that runs: a Shutdown ends it first.
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::FAILED_PRECONDITION => {
            let request = ShutdownRequest { id: id.to_string(), ..Default::default() };
            let _ = tasks.shutdown(within(REPLY_TIMEOUT), &request);
        }
        // As a rule it was deleted before.
        _ => {}
    }
}

fn within(time: Duration) -> ttrpc::context::Context {
    context::with_timeout(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_without_a_shim_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let address = format!("unix://{}", socket.display());
        let listener = UnixListener::bind(&socket).unwrap();
        // A dying process lets clients connect and then closes the connection.
        let dying = std::thread::spawn(move || listener.incoming().take(2).for_each(drop));
        assert!(living(&address).is_none());
        dying.join().unwrap();
        assert!(living(&address).is_none(), "no process listens any more");
        assert!(living("").is_none());
    }
}
