//! The shim of one sandbox, which every request gets.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox_core::control::message::{Done, Request};
use sandbox_core::sandbox::ReceivedFds;
use tokio::sync::watch;

use super::boot::BootClient;
use super::changed_level::ForAWhile;
use super::one_heap_profile::OneHeapProfile;
use super::table::Table;
use crate::descriptors::Descriptors;
use crate::error::Result;
use crate::events::Events;
use crate::options::Options;
use crate::spans::Spans;
use crate::tally::Tally;

/// The shim of one sandbox.
pub(crate) struct Shim {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The address at which it serves.
    pub(super) address: String,
    pub(crate) events: Events,
    pub(crate) descriptors: Arc<Descriptors>,
    /// The spans of its requests.
    pub(crate) spans: Spans,
    /// The node's options, which `start` passed on.
    pub(crate) options: Options,
    /// The shim's end, set once.
    pub(crate) end: watch::Sender<End>,
    /// The number of exits that are known and not published yet.
    pub(super) pending_exits: watch::Sender<usize>,
    /// The requests that are carried out to their end, whether or not their client is there.
    pub(crate) requests: Tally,
    /// A log level that an operator has set.
    pub(super) log_level: ForAWhile,
    /// A heap profile that is being taken.
    pub(crate) heap_profile: OneHeapProfile,
    table: Mutex<Table>,
}

/// Whether the shim is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    No,
    Now,
    /// Once the clients have closed their connections. If a connection closes
    /// right after a reply, Go's ttrpc client may report the reply as lost, and
    /// containerd then fails ShutdownSandbox.
    OnceAlone,
}

impl Shim {
    pub(crate) fn new(
        namespace: &str,
        address: &str,
        events: Events,
        descriptors: Arc<Descriptors>,
        options: Options,
    ) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_string(),
            address: address.to_string(),
            events,
            descriptors,
            spans: Spans::new(options.spans),
            options,
            end: watch::Sender::new(End::No),
            pending_exits: watch::Sender::default(),
            requests: Tally::default(),
            log_level: ForAWhile::default(),
            heap_profile: OneHeapProfile::default(),
            table: Mutex::default(),
        })
    }

    /// Locks the table. A panic elsewhere leaves it as consistent as it was.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is no container, no Create and no record of a pod.
    pub(crate) fn has_nothing(&self) -> bool {
        let table = self.table();
        table.is_empty() && table.pod.is_none()
    }

    /// Sends a request to boot and waits for the reply. Fails if boot is frozen
    /// or dead, since there would be none.
    pub(super) async fn ask(
        &self,
        boot: &BootClient,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Done, ReceivedFds)> {
        boot.check_alive()?;
        self.table().check_resumed(boot)?;
        boot.ask(request, descriptors)?.await
    }
}

/// Waits until a flag is raised; for ever, if it never is.
pub(crate) async fn raised(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|raised| *raised).await.is_err() {
        std::future::pending().await
    }
}
