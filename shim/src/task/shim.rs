//! The shim of one sandbox: what every request gets.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox_core::control::message::{Done, Request};
use sandbox_core::sandbox::Along;
use tokio::sync::watch;

use super::boot::BootClient;
use super::table::Table;
use crate::error::Result;
use crate::events::Events;
use crate::options::Options;

/// The shim of one sandbox.
pub(crate) struct Shim {
    /// containerd's namespace.
    pub(crate) namespace: String,
    pub(crate) events: Events,
    /// The node's options, as `start` was given them.
    pub(crate) options: Options,
    /// Set once, when the shim is to end.
    pub(crate) end: watch::Sender<End>,
    /// How many exits are known and not published yet.
    pub(super) pending_exits: watch::Sender<usize>,
    table: Mutex<Table>,
}

/// Whether the shim is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    No,
    Now,
    /// Once the clients have hung up. If the connection closes right after a
    /// reply, Go's ttrpc client may report the reply as lost, and containerd then
    /// fails ShutdownSandbox.
    OnceAlone,
}

impl Shim {
    pub(crate) fn new(namespace: &str, events: Events, options: Options) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_string(),
            events,
            options,
            end: watch::Sender::new(End::No),
            pending_exits: watch::Sender::default(),
            table: Mutex::default(),
        })
    }

    /// Locks the table. A panic elsewhere leaves it as consistent as it was.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks boot and waits for the reply. A frozen boot would never reply, a dead
    /// one neither.
    pub(super) async fn ask(
        &self,
        boot: &BootClient,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Done, Along)> {
        boot.check_alive()?;
        self.table().check_resumed(boot)?;
        boot.ask(request, descriptors)?.await
    }
}

/// Waits until a flag is raised, and for ever if it never is.
pub(crate) async fn raised(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|raised| *raised).await.is_err() {
        std::future::pending().await
    }
}
