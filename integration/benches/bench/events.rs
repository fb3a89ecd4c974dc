//! The server at `TTRPC_ADDRESS`: the events service to which shims publish. It
//! records the time of each exit and passes it to the part that waits for it.

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;

use crate::wire;

/// More time than any exit takes.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// An exit as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// The time at which the event was read from the socket.
    pub at: Instant,
    /// Its exit status.
    pub status: u32,
}

type Waiting = Arc<Mutex<HashMap<String, Sender<Exit>>>>;

/// A running events service.
#[derive(Debug)]
pub struct Events {
    waiting: Waiting,
}

/// An exit that a part waits for.
#[derive(Debug)]
pub struct Awaited {
    process: String,
    receiver: Receiver<Exit>,
}

impl Events {
    /// Listens on a socket with this path while the program runs.
    pub fn serve(path: &Path) -> Result<Events> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        let waiting = Waiting::default();
        let shared = Arc::clone(&waiting);
        thread::spawn(move || {
            for shim in listener.incoming().flatten() {
                let waiting = Arc::clone(&shared);
                thread::spawn(move || {
                    if let Err(e) = receive(shim, &waiting) {
                        eprintln!("bench: the events service: {e:#}");
                    }
                });
            }
        });
        Ok(Events { waiting })
    }

    /// Registers for an exit before it can happen: of a container's init if the
    /// exec ID is empty.
    pub fn expect(&self, container: &str, exec: &str) -> Awaited {
        let process = if exec.is_empty() { container } else { exec };
        let process = format!("{container}/{process}");
        let (sender, receiver) = channel();
        lock(&self.waiting).insert(process.clone(), sender);
        Awaited { process, receiver }
    }
}

impl Awaited {
    /// Waits for the exit.
    pub fn wait(self) -> Result<Exit> {
        let exit = self.receiver.recv_timeout(EXIT_TIMEOUT);
        exit.with_context(|| format!("no TaskExit of {} within {EXIT_TIMEOUT:?}", self.process))
    }

    /// Waits for the exit, which must be a success.
    pub fn success(self) -> Result<Exit> {
        let process = self.process.clone();
        let exit = self.wait()?;
        if exit.status != 0 {
            bail!("{process} ended with {}, expected 0", exit.status);
        }
        Ok(exit)
    }
}

fn receive(mut shim: UnixStream, waiting: &Waiting) -> Result<()> {
    while let Some((stream, request)) = wire::read_request(&mut shim)? {
        let at = Instant::now();
        let forwarded = ForwardRequest::parse_from_bytes(&request.payload)?;
        let envelope = forwarded.envelope.unwrap_or_default();
        if envelope.topic == "/tasks/exit" {
            let exit = TaskExit::parse_from_bytes(&envelope.event.unwrap_or_default().value)?;
            let process = format!("{}/{}", exit.container_id, exit.id);
            if let Some(waiter) = lock(waiting).remove(&process) {
                // The measurement was aborted, so nothing waits any more.
                let _ = waiter.send(Exit { at, status: exit.exit_status });
            }
        }
        wire::reply_empty(&mut shim, stream)?;
    }
    Ok(())
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<String, Sender<Exit>>> {
    waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
