//! The shim's side of boot, for code that awaits: requests with their replies,
//! and boot's end.
//!
//! `listen.rs` receives boot's messages. It finds the request of a reply here
//! by its number, and ignores a reply without a request: boot may be hostile.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::control::gofer::RootfsMount;
use sandbox_core::control::message::{Donations, Done, Request};
use sandbox_core::error::Failure;
use sandbox_core::sandbox::{GoferRun, LaunchedGofer, ReceivedFds, Sandbox, printable};
use sandbox_core::spec::SandboxFacts;
use sandbox_core::spec::plan::{Plan, Powerless};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::agent::Agent;
use super::allowance::Allowance;
use super::joining::CgroupsToJoin;
use super::user_log::UserLogs;
use crate::descriptors::Descriptors;
use crate::error::{Code, Context, Error, Result};
use crate::ready::{readable, writable};
use crate::stdio::Donated;

/// The number of stray messages that are accepted at once, and per second in the
/// long run. Even a correct boot may report an exit that the shim already has.
const STRAYS: u32 = 1000;
const STRAYS_A_SECOND: u32 = 1;

/// The number of raw sockets that are opened for a pod at once, and per second in the long run,
/// and that boot may ask for at a time: it asks for half as many (`boot/raw_sockets.rs`).
const RAW_SOCKETS: u32 = 128;
const RAW_SOCKETS_A_SECOND: u32 = 32;
const RAW_SOCKETS_AT_A_TIME: usize = 64;

/// The time after which the shim tries again what it had no descriptor for.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(10);

/// boot's reply, with its descriptors.
pub(super) type Reply = (std::result::Result<Done, Failure>, ReceivedFds);

/// Whether a message of boot refers to something that the shim has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relevance {
    Known,
    Stray,
}

/// The shim's side of a running boot.
pub(crate) struct BootClient {
    pub(super) sandbox: Sandbox,
    /// The ID of the root container, which is the sandbox's.
    pub(super) root: String,
    facts: OnceLock<SandboxFacts>,
    /// The root container's cgroup, in which boot stays until its end.
    pub(crate) cgroup: Arc<Cgroup>,
    /// The cgroups of deleted containers that were busy then.
    left: Mutex<Vec<Arc<Cgroup>>>,
    /// A sandbox takes the mounts of one gofer at a time.
    gofers: tokio::sync::Mutex<()>,
    /// The reason why boot is gone, once it is.
    gone: watch::Sender<Option<String>>,
    /// The requests without a reply, by number.
    requests: Mutex<HashMap<u64, Asked>>,
    /// The agents for seccomp listeners, by the ID of their container.
    agents: Mutex<HashMap<String, Arc<Agent>>>,
    /// The cgroups of containers at whose views nobody has looked, by the containers' IDs.
    views_of: Mutex<HashMap<String, Arc<Cgroup>>>,
    /// The containers for which raw sockets are opened, by their ID.
    raw_sockets_for: Mutex<HashSet<String>>,
    raw_sockets: Mutex<Allowance>,
    /// The raw sockets that are asked for at a time.
    raw_sockets_at_a_time: Arc<Semaphore>,
    strays: Mutex<Allowance>,
    /// Whether it has got the directories of sysfs for views.
    has_sysfs: AtomicBool,
    /// What its containers are told.
    pub(super) user_logs: UserLogs,
    /// Requests wait for room in the control channel.
    unsent: Notify,
}

/// A request without a reply.
struct Asked {
    waiting: Option<oneshot::Sender<Reply>>,
    /// The agent to which the listener of its process goes, until that has come.
    agent: Option<Arc<Agent>>,
}

impl BootClient {
    /// Takes a sandbox that was just spawned.
    pub(super) fn new(sandbox: Sandbox, root: &str, cgroup: Arc<Cgroup>) -> Self {
        Self {
            sandbox,
            root: root.to_string(),
            facts: OnceLock::new(),
            cgroup,
            left: Mutex::default(),
            gofers: tokio::sync::Mutex::default(),
            gone: watch::Sender::new(None),
            requests: Mutex::default(),
            agents: Mutex::default(),
            views_of: Mutex::default(),
            raw_sockets_for: Mutex::default(),
            raw_sockets: Mutex::new(Allowance::new(RAW_SOCKETS, RAW_SOCKETS_A_SECOND)),
            raw_sockets_at_a_time: Arc::new(Semaphore::new(RAW_SOCKETS_AT_A_TIME)),
            strays: Mutex::new(Allowance::new(STRAYS, STRAYS_A_SECOND)),
            has_sysfs: AtomicBool::new(false),
            user_logs: UserLogs::default(),
            unsent: Notify::new(),
        }
    }

    /// Waits until boot is in its namespaces, and reads which these are.
    pub(super) async fn enter_namespaces(&self, plan: &Plan) -> Result<()> {
        if self.sandbox.has_user_namespace() {
            readable(self.sandbox.start_sync()).await?;
            self.sandbox.finish_namespaces()?;
        }
        let (user_namespace, mappings) =
            (self.sandbox.has_user_namespace(), plan.host.mappings.clone());
        let facts = SandboxFacts::read(self.sandbox.pid(), user_namespace, mappings)?;
        let (nested_users, views) = (plan.host.nested_users, plan.host.views);
        let _ = self.facts.set(SandboxFacts { nested_users, views, ..facts });
        Ok(())
    }

    /// Waits until a program of a container may run.
    pub(super) async fn let_programs_run(&self) -> Result<()> {
        match self.sandbox.executable_protected() {
            Some(protected) => readable(protected).await?,
            None => return Ok(()),
        }
        match self.sandbox.executable_protected() {
            None => Ok(()),
            Some(_) => Err(Error::internal("a process still has the mount of the executable")),
        }
    }

    /// Returns the facts on which the plans of later containers depend. `None` before boot
    /// is in its namespaces.
    pub(super) fn facts(&self) -> Option<&SandboxFacts> {
        self.facts.get()
    }

    /// Whether boot gets the directories of sysfs now: once.
    pub(super) fn gets_sysfs(&self) -> bool {
        !self.has_sysfs.swap(true, Ordering::Relaxed)
    }

    /// Returns boot's process ID.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.sandbox.pid().0).unwrap_or_default()
    }

    /// Starts the gofer for [`BootClient::deliver_mounts`], so that it is ready when it is needed;
    /// `None` while another one delivers.
    pub(super) fn launch_gofer(&self) -> Result<Option<LaunchedGofer>> {
        let free = self.gofers.try_lock().is_ok();
        Ok(free.then(|| self.sandbox.launch_gofer()).transpose()?)
    }

    /// Lets a gofer deliver a container's root file system and mounts.
    /// Returns what the gofer found to be without effect.
    pub(super) async fn deliver_mounts(
        &self,
        plan: &Plan,
        rootfs: Vec<RootfsMount>,
        launched: Option<LaunchedGofer>,
    ) -> Result<Vec<Powerless>> {
        let _one_at_a_time = self.gofers.lock().await;
        self.finish(self.sandbox.gofer(plan, rootfs, launched)?).await
    }

    /// Lets a gofer attach a container's root file system at its bundle.
    pub(super) async fn attach_rootfs(&self, plan: &Plan, rootfs: Vec<RootfsMount>) -> Result<()> {
        let _one_at_a_time = self.gofers.lock().await;
        self.finish(self.sandbox.attach_rootfs(plan, rootfs)?).await.map(drop)
    }

    /// Waits for a gofer's reply.
    async fn finish(&self, gofer: GoferRun) -> Result<Vec<Powerless>> {
        let mut gone = self.gone.subscribe();
        tokio::select! {
            answered = readable(gofer.as_fd()) => answered?,
            // The gofer may wait for a boot that takes no mounts.
            _ = gone.wait_for(Option::is_some) => return Err(self.gone_error()),
        }
        Ok(gofer.finish()?)
    }

    /// Sends a request. The future ends with the reply.
    pub(super) fn ask<'a>(
        &'a self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<impl Future<Output = Result<(Done, ReceivedFds)>> + use<'a>> {
        let agent = self.agent_of(&request);
        let number = self.send_numbered(request, descriptors)?;
        let (sender, reply) = oneshot::channel();
        lock(&self.requests).insert(number, Asked { waiting: Some(sender), agent });
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

    /// Sends a request to which boot does not reply.
    pub(super) fn tell(&self, request: Request, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.send_numbered(request, descriptors) {
            log::debug!("send to the sandbox: {error}");
        }
    }

    /// Sends a request for whose reply no task waits.
    pub(super) fn send(&self, request: Request) {
        match self.send_numbered(request, &[]) {
            Ok(number) => {
                lock(&self.requests).insert(number, Asked { waiting: None, agent: None });
            }
            Err(error) => log::debug!("send to the sandbox: {error}"),
        }
    }

    fn send_numbered(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> sandbox_core::Result<u64> {
        let number = self.sandbox.send(request, descriptors)?;
        if self.sandbox.has_unsent() {
            self.unsent.notify_one();
        }
        Ok(number)
    }

    /// Sends what does not fit into the control channel at once, for ever.
    pub(super) async fn send_rest(&self, descriptors: &Descriptors) -> Result<Infallible> {
        loop {
            self.unsent.notified().await;
            while self.sandbox.has_unsent() {
                match writable(self.sandbox.control()).await {
                    Err(error) if error.is_for_want_of_descriptors() => {
                        descriptors.run_out();
                        tokio::time::sleep(NO_DESCRIPTOR_PAUSE).await;
                    }
                    waited => waited?,
                }
                self.sandbox.send_rest()?;
            }
        }
    }

    /// Passes a reply to the task that waits for it.
    pub(super) fn take_reply(&self, number: u64, reply: Reply) -> Relevance {
        let Some(asked) = lock(&self.requests).remove(&number) else { return Relevance::Stray };
        if let Some(waiting) = asked.waiting {
            // The task may have stopped waiting.
            let _: std::result::Result<(), Reply> = waiting.send(reply);
        }
        Relevance::Known
    }

    /// Names the agent to which a container's listeners go.
    pub(super) fn set_agent(&self, id: &str, agent: Agent) {
        lock(&self.agents).insert(id.to_owned(), Arc::new(agent));
    }

    /// Lets boot ask, once, for what the views of a container are made from.
    pub(super) fn let_view(&self, id: &str, cgroup: &Arc<Cgroup>) {
        lock(&self.views_of).insert(id.to_owned(), cgroup.clone());
    }

    /// Takes the cgroup of a container whose views boot may ask for, and has not asked for.
    pub(super) fn take_viewed(&self, id: &str) -> Option<Arc<Cgroup>> {
        lock(&self.views_of).remove(id)
    }

    /// Forgets the agent of a container.
    pub(super) fn forget_agent(&self, id: &str) {
        lock(&self.agents).remove(id);
    }

    /// Returns the agent to which the process that a request makes or starts hands its listener.
    fn agent_of(&self, request: &Request) -> Option<Arc<Agent>> {
        let id = match request {
            Request::Create { plan, .. } => &plan.id,
            Request::Start { container } | Request::Exec { container, .. } => container,
            _ => return None,
        };
        lock(&self.agents).get(id).cloned()
    }

    /// Takes the agent of a request whose process has a listener. A process has one, so that
    /// boot can send as many as there are requests, and each to this agent only.
    pub(super) fn take_agent(&self, of: u64) -> Option<Arc<Agent>> {
        lock(&self.requests).get_mut(&of)?.agent.take()
    }

    /// Has raw sockets opened for a container.
    pub(super) fn let_make_raw_sockets(&self, id: &str) {
        lock(&self.raw_sockets_for).insert(id.to_owned());
    }

    /// Ends that.
    pub(super) fn forbid_raw_sockets(&self, id: &str) {
        lock(&self.raw_sockets_for).remove(id);
    }

    /// Leaves the cgroup of a container that is deleted for the sandbox's end, on disk as well.
    pub(super) fn leave(&self, id: &str, cgroup: Arc<Cgroup>) {
        if let Err(error) = self.sandbox.directory().retire_container(id) {
            log::warn!("container {id}: {error}");
        }
        lock(&self.left).push(cgroup);
    }

    /// Takes what was left.
    pub(super) fn take_left(&self) -> Vec<Arc<Cgroup>> {
        std::mem::take(&mut lock(&self.left))
    }

    /// Takes a place among those who wait for a raw socket, if the container may have one.
    pub(super) fn raw_socket_for(&self, id: &str) -> Option<OwnedSemaphorePermit> {
        let may = lock(&self.raw_sockets_for).contains(id);
        let place = || self.raw_sockets_at_a_time.clone().try_acquire_owned().ok();
        may.then(place).flatten()
    }

    /// Takes one raw socket of the pod's share, if one is left.
    pub(super) fn take_raw_socket(&self) -> bool {
        lock(&self.raw_sockets).take(1)
    }

    /// Counts a message that refers to nothing, and fails if there were too
    /// many.
    pub(super) fn take_stray(&self) -> Result<()> {
        match lock(&self.strays).take(1) {
            true => Ok(()),
            false => Err(Error::internal("it sends too many messages without a meaning")),
        }
    }

    /// Refuses a request if boot is gone.
    pub(super) fn check_alive(&self) -> Result<()> {
        let is_gone = self.gone.borrow().is_some();
        match is_gone {
            false => Ok(()),
            // It locks `gone` as well.
            true => Err(self.gone_error()),
        }
    }

    /// Records that boot is gone, with the reason, and ends every request.
    pub(super) fn set_gone(&self, reason: String) {
        self.gone.send_replace(Some(reason));
        // Dropping the senders ends the tasks that wait.
        lock(&self.requests).clear();
    }

    fn gone_error(&self) -> Error {
        let reason = self.gone.borrow().clone().unwrap_or_default();
        Error::state(format!("the sandbox process of {} is gone{reason}", self.root))
    }

    /// Returns the error of a request that needed boot. If that is ending, this is the reason,
    /// whatever the kernel said to what was tried.
    pub(super) fn explain(&self, error: Error) -> Error {
        if error.code != Code::UNKNOWN || !self.sandbox.is_ending() {
            return error;
        }
        log::debug!("{}: {error}", self.root);
        match self.gone.borrow().is_some() {
            true => self.gone_error(),
            false => Error::state(format!(
                "sandbox {} is ending: its sandbox process was killed or has failed",
                self.root
            )),
        }
    }

    /// Waits until boot is gone and all exits that follow from it are reported.
    pub(crate) async fn ended(&self) {
        let _ = self.gone.subscribe().wait_for(Option::is_some).await;
    }
}

/// The descriptors of a Create or an Exec beside the process's stdio.
pub(super) struct ExtraFds {
    pub(super) donations: Donations,
    cgroups: CgroupsToJoin,
    seccomp: Option<OwnedFd>,
}

impl ExtraFds {
    /// Collects the descriptors. `cgroups` are those to join, if boot is
    /// not in them already; `seccomp` is the program of a container that is made,
    /// with its flags: boot keeps it for the container's execs.
    pub(super) fn collect(
        cgroups: CgroupsToJoin,
        seccomp: Option<(OwnedFd, u32)>,
        stdio: &Donated,
    ) -> Result<Self> {
        let (seccomp, flags) = seccomp.unzip();
        let donations = Donations {
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
            cgroup_directory: cgroups.directory.is_some(),
            cgroup_procs: u8::try_from(cgroups.procs.len())
                .context(|| "count the cgroup hierarchies")?,
            init_procs: cgroups.of_init.is_some(),
            seccomp: flags,
        };
        Ok(Self { donations, cgroups, seccomp })
    }

    /// Returns all descriptors, in the order that [`Donations`] documents.
    pub(super) fn descriptors<'a>(&'a self, stdio: &'a Donated) -> Vec<BorrowedFd<'a>> {
        let CgroupsToJoin { directory, procs, of_init } = &self.cgroups;
        let ours =
            directory.iter().chain(procs).chain(of_init).chain(&self.seccomp).map(AsFd::as_fd);
        stdio.descriptors().chain(ours).collect()
    }
}

/// Locks a mutex that is never contended, since there is one thread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes one line of a sentence from boot: cut, and without control characters.
fn one_line(text: &str) -> String {
    printable(text.as_bytes()).trim_end().replace('\n', " ")
}
