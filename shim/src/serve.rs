//! The serving process: one thread, for ever. The sandbox clones its processes
//! from this one, which is safe only as long as it has no other thread. So
//! nothing here uses tokio's blocking pool (its file system, process and
//! standard stream modules all do).

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use sandbox_core::sandbox::{self, Finished};
use sandbox_core::sys::let_go;
use tokio::signal::unix::{SignalKind, signal};

use crate::descriptors::Descriptors;
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::options::{self, Options};
use crate::tally::Tally;
use crate::task::{self, End, Shim};
use crate::{connections, idle, logging, operator, sandbox_service, socket};

/// The time that the replies to the last requests may take.
const REPLIES_TIMEOUT: Duration = Duration::from_millis(500);

/// The time that a client has to read the last reply and close its connection.
const HANGUP_TIMEOUT: Duration = Duration::from_secs(2);

/// The inputs of the serving process.
pub(crate) struct Serving {
    pub(crate) id: String,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// containerd's ttrpc address, to which events are sent.
    pub(crate) events: String,
    /// The shim's own address.
    pub(crate) address: String,
    /// The node's options.
    pub(crate) options: Options,
    pub(crate) debug: bool,
}

/// Serves until containerd's Shutdown, a signal, or a time in which nobody needs it.
pub(crate) fn serve(serving: Serving, listener: UnixListener) -> Result<()> {
    let own = socket::Own::of(&listener, &serving.address)?;
    listener.set_nonblocking(true).context(|| "FIONBIO on the listening socket")?;
    if let Err(error) = logging::init(Path::new("log"), &serving.id, serving.debug) {
        // There is no log to write this to.
        eprintln!("palisade: open the log FIFO of the bundle: {error}");
    }
    // Before there is a boot, from which descriptors come.
    let_go::prepare().context(|| "prepare to close mounts")?;
    let descriptors = Arc::new(Descriptors::begin());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context(|| "start the event loop")?;
    let outcome = runtime.block_on(run(serving, listener, &own, descriptors));
    let_go::close_rest();
    outcome
}

/// Serves at an address of the administrator's own, for a shim that is started
/// by hand.
pub(crate) fn serve_by_hand(flags: &Flags) -> Result<()> {
    if flags.socket.is_empty() {
        return Err(Error::invalid("-socket is missing; containerd calls this program with start"));
    }
    let listener = UnixListener::bind(socket::path(&flags.socket))
        .context(|| format!("bind {}", flags.socket))?;
    let events = std::env::var("TTRPC_ADDRESS")
        .map_err(|_| Error::invalid("TTRPC_ADDRESS is not set: where would events go to?"))?;
    let serving = Serving {
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        events,
        address: flags.socket.clone(),
        options: Options::read(None)?,
        debug: flags.debug,
    };
    serve(serving, listener)
}

/// Finishes what the clean-ups of dead shims of this namespace could not. As a rule there is
/// nothing.
fn finish_what_is_left(namespace: &str) {
    for finished in sandbox::finish(&options::state_root(), namespace) {
        let Finished { id, left, address, outcome } = finished;
        // A shim that was started for the same group meanwhile may have a new one there.
        if let Some(address) = address
            && let Err(error) = socket::remove_dead(&socket::path(&address))
        {
            log::warn!("sandbox {id}: {error}");
        }
        match outcome {
            Ok(()) => log::info!("removed what was left of sandbox {id}: {left}"),
            Err(error) => log::warn!(
                "sandbox {id} has left {left}, which cannot be removed yet: {error}; the next \
                 shim of this namespace tries again, or palisade doctor --fix-leftovers"
            ),
        }
    }
}

async fn run(
    serving: Serving,
    listener: UnixListener,
    own: &socket::Own,
    descriptors: Arc<Descriptors>,
) -> Result<()> {
    let events = Events::new(&serving.namespace, &serving.id, &serving.events, &descriptors);
    tokio::spawn(task::close_what_is_let_go(descriptors.clone()));
    tokio::spawn(task::give_memory_back());
    finish_what_is_left(&serving.namespace);
    let Serving { namespace, address, options, .. } = serving;
    let shim = Shim::new(&namespace, &address, events, descriptors.clone(), options);
    let connections = Tally::default();
    let listener = connections::accept(listener, &connections, descriptors)?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task::services(&shim))
        .register_service(sandbox_service::services(&shim))
        .register_service(operator::services(&shim));
    server.start().await.context(|| "serve")?;
    log::debug!("serving as process {}", std::process::id());
    let mut end = shim.end.subscribe();
    let mut terminate = signal(SignalKind::terminate()).context(|| "listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "listen for SIGINT")?;
    tokio::select! {
        _ = end.wait_for(|end| *end != End::No) => {}
        _ = terminate.recv() => task::end_by_signal(&shim).await,
        _ = interrupt.recv() => task::end_by_signal(&shim).await,
        () = idle::unneeded(&shim, &connections, own) => task::end_unneeded(&shim).await,
    }
    // While it listens: a `start` for the same ID makes a new one from now on.
    own.remove();
    if *end.borrow() == End::OnceAlone {
        let _ = tokio::time::timeout(HANGUP_TIMEOUT, connections.none()).await;
    }
    // Waits for the replies to the requests that are being carried out.
    let _ = tokio::time::timeout(REPLIES_TIMEOUT, server.shutdown()).await;
    Ok(())
}
