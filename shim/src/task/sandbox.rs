//! The sandbox, for code that awaits: requests with their replies, and the one
//! task that listens to boot until it is gone.
//!
//! Whatever comes up from boot is hostile: numbers and names are looked up in
//! the table, and what is not there is ignored.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::control::message::{Donations, Done, Request, Upward};
use sandbox_core::sandbox::{Along, Heard, Sandbox, printable};
use sandbox_core::spec::SandboxFacts;
use sandbox_core::spec::plan::Plan;
use tokio::io::Interest;
use tokio::sync::{oneshot, watch};

use super::lifecycle::State;
use super::relay::Allowance;
use super::table::{KILLED, Reply, Shim, Table};
use super::{delete, exits};
use crate::error::{Context, Error, Result};
use crate::ready::{readable, register};
use crate::stdio::Donated;

/// How long the kernel may take to take a sandbox away.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many messages of boot are taken before others get their turn.
const MESSAGES_AT_ONCE: usize = 32;

/// How many times that is listened to a boot that is dead: more than a socket
/// holds.
const LAST_ROUNDS: usize = 64;

/// How many messages that mean nothing are put up with at once, and how many a
/// second in the long run. An honest boot may tell an exit that is known.
const STRAYS: u32 = 1000;
const STRAYS_A_SECOND: u32 = 1;

/// A running boot.
pub(crate) struct Boot {
    pub(super) handle: Sandbox,
    /// ID of the root container, which is the sandbox's.
    pub(super) root: String,
    pub(super) facts: SandboxFacts,
    /// The root container's cgroup, in which boot is until the end.
    pub(crate) cgroup: Arc<Cgroup>,
    /// A sandbox takes the mounts of one gofer at a time.
    gofers: tokio::sync::Mutex<()>,
    /// Why boot is no more.
    gone: watch::Sender<Option<String>>,
    /// Numbers of requests whose answers nobody waits for.
    told: Mutex<HashSet<u64>>,
    /// For messages that mean nothing.
    strays: Mutex<Allowance>,
}

impl Boot {
    /// Of a sandbox that was just spawned; takes it down again if its
    /// namespaces cannot be looked at.
    pub(super) fn new(
        handle: Sandbox,
        root: &str,
        cgroup: Arc<Cgroup>,
        plan: &Plan,
    ) -> Result<Self> {
        let mappings = plan.host.mappings.clone();
        let facts = SandboxFacts::read(handle.pid(), handle.has_user_namespace(), mappings);
        let facts = facts.inspect_err(|_| drop(handle.destroy()))?;
        Ok(Self {
            handle,
            root: root.to_string(),
            facts,
            cgroup,
            gofers: tokio::sync::Mutex::default(),
            gone: watch::Sender::new(None),
            told: Mutex::default(),
            strays: Mutex::new(Allowance::new(STRAYS, STRAYS_A_SECOND)),
        })
    }

    /// boot's process ID.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.handle.pid().0).unwrap_or_default()
    }

    /// Lets a gofer bring a container's root file system and mounts.
    pub(super) async fn bring_mounts(&self, plan: &Plan, rootfs: Vec<RootfsMount>) -> Result<()> {
        let _one_at_a_time = self.gofers.lock().await;
        let gofer = self.handle.gofer(plan, rootfs)?;
        let mut gone = self.gone.subscribe();
        tokio::select! {
            answered = readable(gofer.as_fd()) => answered?,
            // It may wait for a boot that takes no mounts.
            _ = gone.wait_for(Option::is_some) => return Err(self.gone_error()),
        }
        Ok(gofer.finish()?)
    }

    /// Asks boot and waits for the answer.
    pub(super) async fn ask(
        &self,
        shim: &Shim,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Done, Along)> {
        let reply = {
            let mut table = shim.table();
            self.can_answer(&table)?;
            let number = self.handle.send(request, descriptors)?;
            let (sender, reply) = oneshot::channel();
            table.replies.insert(number, sender);
            reply
        };
        match reply.await {
            Ok((Ok(done), descriptors)) => Ok((done, descriptors)),
            Ok((Err(mut failure), _)) => {
                failure.message = one_line(&failure.message);
                Err(sandbox_core::Error::from(failure).into())
            }
            Err(_) => Err(self.gone_error()),
        }
    }

    /// Lets boot forget a container, and kill it if it is still at its gate. A
    /// dead boot has forgotten everything; a hostile one may pretend not to hear.
    pub(super) async fn forget(&self, shim: &Shim, id: &str) {
        if self.is_frozen(&shim.table()) {
            // It hears of that when it goes on.
            return self.forget_ended(id);
        }
        let request = Request::Delete { container: id.to_string() };
        match tokio::time::timeout(PATIENCE, self.ask(shim, request, &[])).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => log::debug!("container {id}: {error}"),
            Err(_) => log::warn!("container {id}: the sandbox does not answer"),
        }
        self.remove_state(id);
    }

    /// The same for a container that has ended, of which boot keeps nothing
    /// that anybody would have to wait for, or cannot be waited for.
    pub(super) fn forget_ended(&self, id: &str) {
        self.tell(Request::Delete { container: id.to_string() });
        self.remove_state(id);
    }

    fn remove_state(&self, id: &str) {
        if let Err(error) = self.handle.remove_container(id) {
            log::warn!("container {id}: {error}");
        }
    }

    /// Tells boot something whose answer nobody waits for.
    pub(super) fn tell(&self, request: Request) {
        match self.handle.send(request, &[]) {
            Ok(number) => drop(lock(&self.told).insert(number)),
            Err(error) => log::debug!("tell the sandbox: {error}"),
        }
    }

    /// A frozen boot would never answer, a dead one neither.
    fn can_answer(&self, table: &Table) -> Result<()> {
        if self.gone.borrow().is_some() {
            return Err(self.gone_error());
        }
        if self.is_frozen(table) {
            return Err(Error::state(format!("sandbox {} is paused; resume it first", self.root)));
        }
        Ok(())
    }

    fn is_frozen(&self, table: &Table) -> bool {
        let frozen = |c: &super::table::Container| c.is_root() && c.init.state() == State::Paused;
        table.containers().any(frozen)
    }

    fn gone_error(&self) -> Error {
        let why = self.gone.borrow().clone().unwrap_or_default();
        Error::internal(format!("the sandbox process of {} is gone{why}", self.root))
    }

    /// Until it is no more, and all that ended with it was told.
    pub(crate) async fn ended(&self) {
        let _ = self.gone.subscribe().wait_for(Option::is_some).await;
    }

    /// Kills it and waits for that.
    pub(crate) async fn end(&self) -> Result<()> {
        self.handle.kill()?;
        let ended = tokio::time::timeout(PATIENCE, self.ended()).await;
        ended.map_err(|_| {
            let root = &self.root;
            Error::internal(format!("sandbox {root} does not end {PATIENCE:?} after SIGKILL"))
        })
    }

    /// Takes the sandbox and its root's cgroup away.
    pub(super) async fn tear_down(&self) {
        let warn = |what: &str, outcome: std::result::Result<(), sandbox_core::Error>| {
            if let Err(error) = outcome {
                log::warn!("{what} of sandbox {}: {error}", self.root);
            }
        };
        warn("the end", self.handle.kill());
        let ended = tokio::time::timeout(PATIENCE, readable(self.handle.pidfd())).await;
        if !matches!(ended, Ok(Ok(()))) {
            // Not destroyed: `delete` finds it by the state that stays.
            return log::error!("sandbox {} does not end {PATIENCE:?} after SIGKILL", self.root);
        }
        // The cgroup first: its directory tells whether something is left.
        warn("removal of the cgroup", self.cgroup.remove());
        warn("removal of the state", self.handle.destroy());
    }
}

impl Shim {
    /// Wakes what is paused: frozen processes do not die, on cgroup v1.
    pub(crate) fn thaw_all(&self) {
        let paused = |c: &&super::table::Container| c.init.state() == State::Paused;
        for container in self.table().containers().filter(paused) {
            if let Err(error) = container.cgroup.thaw_if_there() {
                log::warn!("container {}: {error}", container.id);
            }
        }
    }

    /// Begins to take a sandbox away that has ended and that nobody wants any
    /// more. As long as containers are left, that is up to the last one's Delete.
    pub(crate) fn let_go(&self, boot: &Arc<Boot>) {
        let mut table = self.table();
        let is_there = match &table.sandbox {
            super::table::Sandbox::Made(made) => Arc::ptr_eq(made, boot),
            _ => false,
        };
        if is_there && table.is_empty() {
            delete::take_down(&mut table, boot.clone());
        }
    }

    /// The same to its end, whoever began with it.
    pub(crate) async fn release(&self, boot: &Arc<Boot>) {
        self.let_go(boot);
        let tear_down = self.table().tear_down.take();
        if let Some(tear_down) = tear_down {
            let _ = tear_down.await;
        }
    }

    /// The end of everything, at the node's request rather than containerd's.
    pub(crate) async fn kill_sandbox(&self) {
        let (boot, cgroups) = {
            let table = self.table();
            let Table { sandbox: super::table::Sandbox::Made(boot), .. } = &*table else { return };
            let others = table.containers().filter(|c| !c.is_root());
            (boot.clone(), others.map(|c| c.cgroup.clone()).collect::<Vec<_>>())
        };
        boot.tear_down().await;
        // By then the listening task has told all exits.
        let _ = tokio::time::timeout(PATIENCE, boot.ended()).await;
        for cgroup in cgroups {
            let _ = cgroup.remove();
        }
    }
}

/// Never contended, since there is one thread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sentence of boot's, for an error: cut, and without control characters.
fn one_line(text: &str) -> String {
    printable(text.as_bytes()).trim_end().replace('\n', " ")
}

/// What goes along with a Create or an Exec, beyond the container's stdio.
pub(super) struct Gifts {
    pub(super) donations: Donations,
    procs: Vec<OwnedFd>,
    seccomp: Option<OwnedFd>,
}

impl Gifts {
    /// `procs` are the cgroups to join, if boot is not in them already.
    pub(super) fn collect(
        boot: &Boot,
        plan: &Plan,
        procs: Vec<OwnedFd>,
        stdio: &Donated,
    ) -> Result<Self> {
        let (seccomp, flags) = boot.handle.seccomp(plan)?.unzip();
        let donations = Donations {
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
            cgroup_procs: u8::try_from(procs.len()).context(|| "count the cgroup hierarchies")?,
            seccomp: flags,
        };
        Ok(Self { donations, procs, seccomp })
    }

    /// All descriptors, in the order that [`Donations`] says.
    pub(super) fn descriptors<'a>(&'a self, stdio: &'a Donated) -> Vec<BorrowedFd<'a>> {
        let ours = self.procs.iter().chain(&self.seccomp).map(AsFd::as_fd);
        stdio.descriptors().chain(ours).collect()
    }
}

/// Listens to boot until it is gone, and then tells everybody.
pub(super) async fn listen(shim: Arc<Shim>, boot: Arc<Boot>) {
    let heard = hear_out(&shim, &boot).await;
    // It talks nonsense, or no more: it must not live on unheard. That it ends
    // its talk is how it dies.
    let _ = boot.handle.kill();
    let _ = readable(boot.handle.pidfd()).await;
    let why = match heard.and_then(|()| hear_last(&shim, &boot)) {
        Ok(()) => boot.handle.last_words(),
        Err(error) => {
            log::warn!("the sandbox process of {} was killed: {error}", boot.root);
            format!(": it was killed, since {error}")
        }
    };
    gone(&shim, &boot, why);
}

/// Until boot says no more.
async fn hear_out(shim: &Arc<Shim>, boot: &Boot) -> Result<()> {
    let interest = Interest::READABLE;
    let control = register(boot.handle.control(), interest).context(|| "epoll")?;
    let pidfd = register(boot.handle.pidfd(), interest).context(|| "epoll")?;
    loop {
        tokio::select! {
            biased;
            ready = control.readable() => {
                let mut ready = ready.context(|| "wait for the sandbox")?;
                match hear_some(shim, boot)? {
                    Ear::Closed => return Ok(()),
                    Ear::HeardAll => ready.clear_ready(),
                    // A boot that never stops talking must not keep containerd
                    // from being heard.
                    Ear::MoreWaits => tokio::task::yield_now().await,
                }
            }
            _ = pidfd.readable() => return Ok(()),
        }
    }
}

/// What boot said before it died counts. It may have given its end of the
/// channel away, so not without bounds.
fn hear_last(shim: &Arc<Shim>, boot: &Boot) -> Result<()> {
    for _ in 0..LAST_ROUNDS {
        if hear_some(shim, boot)? != Ear::MoreWaits {
            break;
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Ear {
    HeardAll,
    MoreWaits,
    Closed,
}

/// Takes what boot has said, up to a bound.
fn hear_some(shim: &Arc<Shim>, boot: &Boot) -> Result<Ear> {
    for _ in 0..MESSAGES_AT_ONCE {
        match boot.handle.receive()? {
            Heard::Message(message, along) => {
                let means_something = dispatch(shim, boot, message, along);
                if !means_something && !lock(&boot.strays).take(1) {
                    return Err(Error::internal("it never stops saying what means nothing"));
                }
            }
            Heard::Nothing => return Ok(Ear::HeardAll),
            Heard::Closed => return Ok(Ear::Closed),
        }
    }
    Ok(Ear::MoreWaits)
}

/// False when the message means nothing.
fn dispatch(shim: &Arc<Shim>, boot: &Boot, message: Upward, along: Along) -> bool {
    match message {
        Upward::Reply { number, outcome } => match shim.table().replies.remove(&number) {
            Some(waiting) => {
                // Who asked may have lost patience.
                let _: std::result::Result<(), Reply> = waiting.send((outcome, along));
                true
            }
            None => lock(&boot.told).remove(&number),
        },
        Upward::Exited { process, status } => {
            exits::ended(shim, &process.container, process.exec_id(), status)
        }
    }
}

/// The kernel has taken the whole pod along.
fn gone(shim: &Arc<Shim>, boot: &Boot, why: String) {
    if let Err(error) = boot.handle.reap() {
        log::warn!("{error}");
    }
    boot.gone.send_replace(Some(why));
    let orphans: Vec<_> = {
        let mut table = shim.table();
        // Dropping them tells who waits.
        table.replies.clear();
        for id in table.reserved() {
            table.ended_in_creation(&id, KILLED);
        }
        let ids = |c: &super::table::Container| {
            let execs = c.execs.keys().map(|exec| (c.id.clone(), exec.clone()));
            execs.chain([(c.id.clone(), String::new())]).collect::<Vec<_>>()
        };
        table.containers().filter(|c| c.boot.root == boot.root).flat_map(ids).collect()
    };
    for (container, exec) in orphans {
        exits::ended(shim, &container, &exec, KILLED);
    }
}
