//! boot, for code that awaits: requests with their replies, and its end.
//!
//! `listen.rs` receives what boot sends. It finds the request of a reply here by
//! its number, and ignores a reply to what was not asked: boot may be hostile.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox_core::cgroup::Cgroup;
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::control::message::{Donations, Done, Request};
use sandbox_core::error::Failure;
use sandbox_core::sandbox::{Along, Sandbox, printable};
use sandbox_core::spec::SandboxFacts;
use sandbox_core::spec::plan::Plan;
use tokio::sync::{oneshot, watch};

use super::allowance::Allowance;
use crate::error::{Context, Error, Result};
use crate::ready::readable;
use crate::stdio::Donated;

/// How many stray messages are put up with at once, and how many a second in the
/// long run. An honest boot may report an exit that is known.
const STRAYS: u32 = 1000;
const STRAYS_A_SECOND: u32 = 1;

/// What boot replied: the descriptors come along.
pub(super) type Reply = (std::result::Result<Done, Failure>, Along);

/// Whether a message of boot's refers to something that the shim knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relevance {
    Known,
    Stray,
}

/// The shim's side of a running boot.
pub(crate) struct BootClient {
    pub(super) sandbox: Sandbox,
    /// ID of the root container, which is the sandbox's.
    pub(super) root: String,
    pub(super) facts: SandboxFacts,
    /// The root container's cgroup, in which boot is until the end.
    pub(crate) cgroup: Arc<Cgroup>,
    /// A sandbox takes the mounts of one gofer at a time.
    gofers: tokio::sync::Mutex<()>,
    /// Why boot is no more.
    gone: watch::Sender<Option<String>>,
    /// Requests without a reply, by number, and who waits for it; `None` where
    /// no task does.
    requests: Mutex<HashMap<u64, Option<oneshot::Sender<Reply>>>>,
    strays: Mutex<Allowance>,
}

impl BootClient {
    /// Looks at the namespaces of a sandbox that was just spawned, and tears the
    /// sandbox down again if that fails.
    pub(super) fn new(
        sandbox: Sandbox,
        root: &str,
        cgroup: Arc<Cgroup>,
        plan: &Plan,
    ) -> Result<Self> {
        let mappings = plan.host.mappings.clone();
        let facts = SandboxFacts::read(sandbox.pid(), sandbox.has_user_namespace(), mappings);
        let facts = match facts {
            Ok(facts) => facts,
            Err(error) => {
                if let Err(left) = sandbox.destroy() {
                    log::warn!("removal of the state of sandbox {root}: {left}");
                }
                return Err(error.into());
            }
        };
        Ok(Self {
            sandbox,
            root: root.to_string(),
            facts,
            cgroup,
            gofers: tokio::sync::Mutex::default(),
            gone: watch::Sender::new(None),
            requests: Mutex::default(),
            strays: Mutex::new(Allowance::new(STRAYS, STRAYS_A_SECOND)),
        })
    }

    /// Returns boot's process ID.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.sandbox.pid().0).unwrap_or_default()
    }

    /// Lets a gofer bring a container's root file system and mounts.
    pub(super) async fn bring_mounts(&self, plan: &Plan, rootfs: Vec<RootfsMount>) -> Result<()> {
        let _one_at_a_time = self.gofers.lock().await;
        let gofer = self.sandbox.gofer(plan, rootfs)?;
        let mut gone = self.gone.subscribe();
        tokio::select! {
            answered = readable(gofer.as_fd()) => answered?,
            // It may wait for a boot that takes no mounts.
            _ = gone.wait_for(Option::is_some) => return Err(self.gone_error()),
        }
        Ok(gofer.finish()?)
    }

    /// Sends a request. The future ends with the reply.
    pub(super) fn ask<'a>(
        &'a self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<impl Future<Output = Result<(Done, Along)>> + use<'a>> {
        let number = self.sandbox.send(request, descriptors)?;
        let (sender, reply) = oneshot::channel();
        lock(&self.requests).insert(number, Some(sender));
        Ok(async move {
            match reply.await {
                Ok((Ok(done), descriptors)) => Ok((done, descriptors)),
                Ok((Err(mut failure), _)) => {
                    failure.message = one_line(&failure.message);
                    Err(sandbox_core::Error::from(failure).into())
                }
                Err(_) => Err(self.gone_error()),
            }
        })
    }

    /// Sends a request whose reply no task waits for.
    pub(super) fn send(&self, request: Request) {
        match self.sandbox.send(request, &[]) {
            Ok(number) => {
                lock(&self.requests).insert(number, None);
            }
            Err(error) => log::debug!("send to the sandbox: {error}"),
        }
    }

    /// Hands a reply to the task that waits for it.
    pub(super) fn take_reply(&self, number: u64, reply: Reply) -> Relevance {
        let Some(waiting) = lock(&self.requests).remove(&number) else { return Relevance::Stray };
        if let Some(waiting) = waiting {
            // The task may have stopped waiting.
            let _: std::result::Result<(), Reply> = waiting.send(reply);
        }
        Relevance::Known
    }

    /// Counts a message that refers to nothing, and refuses too many.
    pub(super) fn take_stray(&self) -> Result<()> {
        match lock(&self.strays).take(1) {
            true => Ok(()),
            false => Err(Error::internal("it never stops saying what means nothing")),
        }
    }

    /// Refuses a request to a boot that is no more.
    pub(super) fn check_alive(&self) -> Result<()> {
        match *self.gone.borrow() {
            None => Ok(()),
            Some(_) => Err(self.gone_error()),
        }
    }

    /// boot is no more, for this reason: ends every request.
    pub(super) fn set_gone(&self, why: String) {
        self.gone.send_replace(Some(why));
        // Dropping the senders ends those that wait.
        lock(&self.requests).clear();
    }

    fn gone_error(&self) -> Error {
        let why = self.gone.borrow().clone().unwrap_or_default();
        Error::internal(format!("the sandbox process of {} is gone{why}", self.root))
    }

    /// Waits until boot is no more and all that ended with it was reported.
    pub(crate) async fn ended(&self) {
        let _ = self.gone.subscribe().wait_for(Option::is_some).await;
    }
}

/// The descriptors of a Create or an Exec beyond the process's stdio.
pub(super) struct ExtraFds {
    pub(super) donations: Donations,
    procs: Vec<OwnedFd>,
    seccomp: Option<OwnedFd>,
}

impl ExtraFds {
    /// Collects them. `procs` are the cgroups to join, if boot is not in them
    /// already.
    pub(super) fn collect(
        boot: &BootClient,
        plan: &Plan,
        procs: Vec<OwnedFd>,
        stdio: &Donated,
    ) -> Result<Self> {
        let (seccomp, flags) = boot.sandbox.seccomp(plan)?.unzip();
        let donations = Donations {
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
            cgroup_procs: u8::try_from(procs.len()).context(|| "count the cgroup hierarchies")?,
            seccomp: flags,
        };
        Ok(Self { donations, procs, seccomp })
    }

    /// Returns all descriptors, in the order that [`Donations`] says.
    pub(super) fn descriptors<'a>(&'a self, stdio: &'a Donated) -> Vec<BorrowedFd<'a>> {
        let ours = self.procs.iter().chain(&self.seccomp).map(AsFd::as_fd);
        stdio.descriptors().chain(ours).collect()
    }
}

/// Locks what is never contended, since there is one thread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a sentence of boot's for an error: cut, and without control characters.
fn one_line(text: &str) -> String {
    printable(text.as_bytes()).trim_end().replace('\n', " ")
}
