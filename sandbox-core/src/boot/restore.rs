//! Restore: makes a container from a checkpoint.
//!
//! ```text
//! boot                      the builder              criu, which the builder clones
//!  clones the builder ────▶ builds the tree ───────▶ starts
//!  asks to restore ────────────────────────────────▶ makes the first process, and waits
//!  names that process ────▶ adds its proc, enters
//!                           U2, waits
//!  lets criu go on ────────────────────────────────▶ the first process joins the builder's
//!                                                    mounts; waits
//!  lets the builder go on ▶ ends
//!  lets criu go on ────────────────────────────────▶ restores all tasks, which stand still; waits
//!  looks at the tasks
//!  lets criu go on ────────────────────────────────▶ lets them run, and ends
//!  replies to the shim
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::table::{Container, Init};
use super::thread_status::ThreadStatus;
use super::{Boot, logger};
use crate::checkpoint::criu::{
    self, InheritFd, JoinNamespace, Options, Received, Request, Response,
};
use crate::container::channel::Channel;
use crate::container::donated::Donated;
use crate::container::filter::Filter;
use crate::container::join_info::JoinInfo;
use crate::container::paths::PROC;
use crate::container::shared_names;
use crate::container::steps::shared_memory;
use crate::control::message::{Donations, Inherited, Saved};
use crate::control::newborn::{self, AtGate, NewbornMessage, send_root_task};
use crate::control::packet::pair;
use crate::error::{Context, Error, FailureKind, Result};
use crate::newborn::builder;
use crate::newborn::init::Newborn;
use crate::newborn::restorer::{self, Restoring};
use crate::newborn::work::{IMAGES, LOG, MOUNTS, WORK};
use crate::newborn::{self as newborns};
use crate::spec::plan::{ContainerPlan, MountSource, ProcessPlan};
use crate::sys::clone::Cloned;
use crate::types::{Limited, PodPid, ProcessId};

/// The tokens of restores in the event loop: three for each.
pub(super) const FIRST: u64 = 1 << 60;
pub(super) const LAST: u64 = (1 << 61) - 1;

/// How much criu logs: errors and warnings, or all.
const QUIET: i32 = 2;
const CHATTY: i32 = 4;

/// The restores under way, by the first of their tokens.
#[derive(Default)]
pub(super) struct Restores {
    all: BTreeMap<u64, Restore>,
    ever: u64,
}

/// A container that criu restores.
struct Restore {
    /// Number of the request to which boot will reply.
    number: u64,
    plan: Box<ContainerPlan>,
    join_info: Rc<JoinInfo>,
    criu: OwnedFd,
    /// The process that builds the mounts.
    builder: OwnedFd,
    to_builder: Option<Channel>,
    /// Reports why criu could not be executed.
    to_restorer: Option<Channel>,
    restorer: Option<newborn::Restorer>,
    /// The container's first process, once criu has made it.
    first: Option<(PodPid, OwnedFd)>,
    /// What the builder has handed over.
    handed_over: Option<AtGate>,
    /// The tasks that must end before the others run: those that were zombies.
    dying: Vec<OwnedFd>,
}

/// From whom something has come: the offset of the token.
const OF_CRIU: u64 = 0;
const OF_BUILDER: u64 = 1;
const OF_RESTORER: u64 = 2;
const STRIDE: u64 = 3;

impl Boot {
    pub(super) fn restore(
        &mut self,
        number: u64,
        mut plan: Box<ContainerPlan>,
        (donations, descriptors): (Donations, Vec<OwnedFd>),
        limited: Limited,
        saved: &Saved,
    ) -> Result<()> {
        self.containers.check_free(&plan.id)?;
        let mounts = self.mounts.take(&plan.id)?;
        for (_, index) in &saved.tmpfs {
            // Its content comes from the checkpoint.
            if let Some(MountSource::Tmpfs { copy_up, .. }) =
                plan.mounts.get_mut(*index).map(|mount| &mut mount.source)
            {
                *copy_up = false;
            }
        }
        shared_names::set_shared(&plan, self.own_id)?;
        let ids = self.ids.clone();
        if let Some(ids) = &ids {
            ids.apply(&mut plan)?;
        }
        let process = plan.process.as_ref();
        let process = process.ok_or_else(|| Error::invalid("a pause container has no state"))?;
        let mut donated = Donated::sort(donations, descriptors)?;
        let profile = donated.seccomp.take();
        let filter = Filter::new(&plan.baseline, profile, plan.watch.as_ref(), limited);
        let root = self.own_id.container_root();
        shared_memory::make_if_wanted(&plan, root)?;
        let (to_builder, builders) = Channel::pair()?;
        let (to_restorer, restorers) = Channel::pair()?;
        let (criu, criu_s) = pair().context(|| "socketpair for criu")?;
        let log = self.log.as_fd();
        let newborn = Newborn {
            plan: &plan,
            process,
            limits: &self.limits,
            donated: &donated,
            filter: &filter,
            users: self.users.as_ref(),
            times_of: None,
            ids: ids.as_ref(),
            root,
            views: self.views.add(&plan),
            channel: newborns::Channel { boot: builders.as_fd(), log },
            alone: &self.alone,
        };
        let restoring = Restoring {
            newborn,
            saved,
            criu: criu_s.as_fd(),
            restorer: newborns::Channel { boot: restorers.as_fd(), log },
            own_pids: self.own_pid_namespace.as_fd(),
        };
        let builder = match self.clone_newborn(nix::sched::CloneFlags::CLONE_NEWNS, &donated)? {
            (Cloned::Child, birth) => builder::run(restoring, mounts, birth),
            (Cloned::Parent { pidfd, .. }, _) => pidfd,
        };
        drop((builders, restorers, criu_s));
        criu::request(&criu, &Request::restore(options(saved)))?;
        let join_info = Rc::new(JoinInfo::new(&plan, filter, ids));
        let restore = Restore {
            number,
            join_info: Rc::clone(&join_info),
            criu,
            builder,
            to_builder: Some(to_builder),
            to_restorer: Some(to_restorer),
            restorer: None,
            first: None,
            handed_over: None,
            dying: Vec::new(),
            plan,
        };
        let token = FIRST + STRIDE * self.restores.ever;
        self.restores.ever += 1;
        self.containers.insert(restore.plan.id.clone(), Container { init: None, join_info });
        let watched = self.watch_restore(token, &restore);
        self.restores.all.insert(token, restore);
        if let Err(error) = watched {
            self.restore_failed(token, error);
        }
        Ok(())
    }

    fn watch_restore(&self, token: u64, restore: &Restore) -> Result<()> {
        self.events.watch(&restore.criu, token + OF_CRIU)?;
        let builder = restore.to_builder.iter().map(|channel| (channel, OF_BUILDER));
        let restorer = restore.to_restorer.iter().map(|channel| (channel, OF_RESTORER));
        builder.chain(restorer).try_for_each(|(channel, of)| self.events.watch(channel, token + of))
    }

    /// Takes what has come for a restore.
    pub(super) fn go_on_restoring(&mut self, token: u64) {
        let from = (token - FIRST) % STRIDE;
        let token = token - from;
        let Some(mut restore) = self.restores.all.remove(&token) else { return };
        logger::belongs_to(restore.number);
        let gone_on = match from {
            OF_CRIU => self.hear_criu(&mut restore),
            OF_BUILDER => self.hear_builder(&mut restore).map(|()| false),
            _ => self.hear_restorer(&mut restore).map(|()| false),
        };
        let restore_is_done = match gone_on {
            Ok(done) => done,
            Err(error) => {
                self.restores.all.insert(token, restore);
                return self.restore_failed(token, error);
            }
        };
        match restore_is_done {
            true => self.restored(restore),
            false => drop(self.restores.all.insert(token, restore)),
        }
    }

    /// Takes a message of criu. Returns whether all is restored.
    fn hear_criu(&mut self, restore: &mut Restore) -> Result<bool> {
        let response = match criu::receive(&restore.criu)? {
            Received::Response(response) => response,
            Received::WouldBlock => return Ok(false),
            Received::Closed => return Err(restore.refused("it has ended without a reply")),
        };
        if let Some(notification) = response.notify.as_ref().filter(|_| response.is_notification())
        {
            self.hear_notification(restore, &notification.script, notification.pid)?;
            return Ok(false);
        }
        match response {
            Response { success: true, .. } if restore.first.is_some() => {
                check_ended(&restore.dying)?;
                Ok(true)
            }
            Response { success: true, .. } => Err(restore.unexpected("the end")),
            failed => Err(restore.refused(&failed.failure())),
        }
    }

    /// Does what criu waits for.
    fn hear_notification(
        &mut self,
        restore: &mut Restore,
        script: &str,
        pid: Option<i32>,
    ) -> Result<()> {
        match script {
            "setup-namespaces" => {
                let pid = pid.unwrap_or_default();
                let first = Pid::from_raw(pid).ok_or_else(|| restore.unexpected("no process"))?;
                let pidfd = pidfd_open(first, PidfdFlags::empty())
                    .context(|| "open the container's first process")?;
                restore.first = Some((PodPid(pid), pidfd));
                return send_root_task(restore.builder()?, PodPid(pid));
            }
            "post-setup-namespaces" => {
                restore.handed_over.as_ref().ok_or_else(|| restore.unexpected(script))?;
                return restore.builder()?.let_go_on();
            }
            "pre-resume" => {
                let first = restore.first.as_ref().ok_or_else(|| restore.unexpected(script))?.0;
                restore.dying = check_tasks(&restore.plan, &restore.join_info.filter, first)?;
                restore.join_info.set_home(first);
                // It may end as soon as it runs.
                self.containers.own(first, ProcessId::init(&restore.plan.id));
            }
            _ => {}
        }
        restore.let_criu_go_on()
    }

    /// Takes a message of the builder, or its end.
    fn hear_builder(&mut self, restore: &mut Restore) -> Result<()> {
        match restore.builder()?.receive()? {
            Some(NewbornMessage::Restorer(restorer)) => restore.restorer = Some(restorer),
            Some(NewbornMessage::AtGate(handed_over)) => {
                restore.handed_over = Some(handed_over);
                restore.let_criu_go_on()?;
            }
            Some(NewbornMessage::Failed(failure)) => return Err(failure.into()),
            Some(_) => return Err(restore.unexpected("a message of the builder")),
            None if restore.handed_over.is_none() => {
                return Err(Error::internal("the process that builds the mounts was killed"));
            }
            // It has ended as it should.
            None => {
                restore.to_builder.take().iter().for_each(|channel| self.events.forget(channel));
                restore.let_criu_go_on()?;
            }
        }
        Ok(())
    }

    /// Takes the reason why criu could not be executed, or learns that it was.
    fn hear_restorer(&mut self, restore: &mut Restore) -> Result<()> {
        let Some(channel) = restore.to_restorer.take() else { return Ok(()) };
        self.events.forget(&channel);
        match channel.receive()? {
            Some(NewbornMessage::Failed(failure)) => Err(failure.into()),
            Some(_) => Err(restore.unexpected("a message of the restorer")),
            None => Ok(()),
        }
    }

    /// Replies with the container's first process.
    fn restored(&mut self, mut restore: Restore) {
        self.forget_restore(&restore);
        let Some((pid, pidfd)) = restore.first.take() else { return };
        let AtGate { devpts, terminal, mounts } = restore.handed_over.take().unwrap_or_default();
        if let Some(devpts) = devpts {
            restore.join_info.set_terminals(devpts);
        }
        let kept = pidfd.try_clone().context(|| "dup of a pidfd");
        match (kept, self.containers.get(&restore.plan.id)) {
            (Ok(pidfd), Ok(container)) => {
                // It may have ended since it was let go on.
                let running = runs(&pidfd);
                container.init = Some(Init { pid, pidfd, gate: None, running });
            }
            (Err(error), _) | (_, Err(error)) => return self.reply(restore.number, Err(error)),
        }
        self.present(restore.number, pid, &pidfd, terminal.as_ref(), mounts.as_ref());
    }

    /// Ends a restore, and all processes that it has made.
    fn restore_failed(&mut self, token: u64, error: Error) {
        let Some(restore) = self.restores.all.remove(&token) else { return };
        self.forget_restore(&restore);
        let restorer = restore.restorer.iter().map(|restorer| &restorer.pidfd);
        let first = restore.first.iter().map(|(_, pidfd)| pidfd);
        for process in restorer.chain([&restore.builder]).chain(first) {
            // It may be dead already.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        if let Some((pid, _)) = &restore.first {
            self.containers.disown(*pid);
        }
        self.containers.remove(&restore.plan.id);
        self.views.remove(&restore.plan.id);
        self.reply(restore.number, Err(error));
    }

    /// Ends the restore of a container, if one is under way. Returns whether it was.
    pub(super) fn cancel_restore(&mut self, id: &str) -> bool {
        let mut all = self.restores.all.iter();
        let token = all.find_map(|(token, restore)| (restore.plan.id == id).then_some(*token));
        let Some(token) = token else { return false };
        let message = format!("container {id} was deleted while it was restored");
        self.restore_failed(token, Error::new(FailureKind::State, message));
        true
    }

    fn forget_restore(&self, restore: &Restore) {
        self.events.forget(&restore.criu);
        let channels = [&restore.to_builder, &restore.to_restorer];
        channels.into_iter().flatten().for_each(|channel| self.events.forget(channel));
    }
}

impl Restore {
    fn builder(&self) -> Result<&Channel> {
        self.to_builder.as_ref().ok_or_else(|| Error::internal("the builder has ended too early"))
    }

    fn let_criu_go_on(&self) -> Result<()> {
        criu::request(&self.criu, &Request::go_on())
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::internal(format!("a restore came to {what} before its time"))
    }

    /// Returns the error for what criu could not do. The last error of its log says why.
    fn refused(&self, message: &str) -> Error {
        let log = self.restorer.as_ref().and_then(|restorer| end_of_log(&restorer.work));
        let log = log.unwrap_or_default();
        if log::log_enabled!(log::Level::Debug) {
            String::from_utf8_lossy(&log).lines().for_each(|line| log::debug!("criu: {line}"));
        }
        let reason = criu::last_error(&log).unwrap_or_else(|| message.to_owned());
        Error::new(FailureKind::Internal, format!("criu could not restore the container: {reason}"))
    }
}

/// Returns what criu is asked for.
fn options(saved: &Saved) -> Options {
    let chatty = log::log_enabled!(log::Level::Debug);
    let mut inherit_fd: Vec<InheritFd> = Vec::new();
    for (key, inherited) in &saved.inherited {
        let fd = match inherited {
            Inherited::Stream(number) => restorer::STREAMS.get(usize::from(*number)),
            Inherited::Terminal => Some(&restorer::TERMINAL),
            Inherited::Null => Some(&restorer::NULL),
        };
        // Two streams may be one file.
        if let Some(fd) = fd
            && !inherit_fd.iter().any(|known| known.key == *key)
        {
            inherit_fd.push(InheritFd { key: key.clone(), fd: *fd });
        }
    }
    Options {
        // By its path: a descriptor would be looked up among boot's.
        images_dir_fd: -1,
        images_dir: format!("{WORK}/{IMAGES}"),
        log_level: if chatty { CHATTY } else { QUIET },
        log_file: LOG.to_owned(),
        file_locks: true,
        notify_scripts: true,
        // The container's first process becomes a child of boot.
        rst_sibling: true,
        inherit_fd,
        // The shim has made the cgroups, and the builder has joined them.
        manage_cgroups_mode: criu::IGNORE_CGROUPS,
        join_ns: vec![JoinNamespace {
            ns: "mnt".to_owned(),
            ns_file: format!("{WORK}/{MOUNTS}"),
            extra_opt: None,
        }],
        tcp_established: saved.open_tcp,
        tcp_close: !saved.open_tcp,
        unprivileged: true,
        ..Options::default()
    }
}

/// Reads the end of criu's log.
fn end_of_log(work: &OwnedFd) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Some(criu::log_tail(openat(work, LOG, flags, Mode::empty()).ok()?.into()))
}

/// Whether a process has not ended.
fn runs(pidfd: &OwnedFd) -> bool {
    let mut one = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut one, Some(&Timespec::default())), Ok(0))
}

/// Refuses tasks that could do more than the plan allows. The images say what they may do, and
/// anybody may have made those. criu holds all tasks that will run, by ptrace(2). Returns the
/// others: they run criu's code, and end as the zombies that were saved.
fn check_tasks(plan: &ContainerPlan, filter: &Filter, first: PodPid) -> Result<Vec<OwnedFd>> {
    let mut dying = Vec::new();
    let Some(process) = &plan.process else { return Ok(dying) };
    let namespace_of = |pid: i32| fs::read_link(format!("{PROC}/{pid}/ns/pid")).ok();
    let own = namespace_of(first.0);
    let processes = numbers_in(PROC.into())?;
    for pid in processes.into_iter().filter(|pid| namespace_of(*pid) == own) {
        for thread in numbers_in(format!("{PROC}/{pid}/task").into())? {
            let status = ThreadStatus::of(thread);
            let status = status.ok_or_else(|| Error::internal("a restored task has gone"))?;
            if thread == pid && status.field("TracerPid") == Some("0") && pid != first.0 {
                let pid = Pid::from_raw(pid).ok_or_else(|| Error::internal("no process"))?;
                let opened = pidfd_open(pid, PidfdFlags::empty());
                dying.push(opened.context(|| "open a task that ends")?);
                break;
            }
            check_task(process, filter, &status)?;
        }
    }
    Ok(dying)
}

fn check_task(process: &ProcessPlan, filter: &Filter, status: &ThreadStatus) -> Result<()> {
    let sets = &process.capabilities;
    let allowed = sets.bounding | sets.permitted | sets.inheritable | sets.ambient;
    let refuse = |what: String| {
        let name = status.field("Name").unwrap_or_default().to_owned();
        Err(Error::invalid(format!("the checkpoint's task {name:?} {what}")))
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let has = status.field(set).and_then(|has| u64::from_str_radix(has, 16).ok());
        let more = has.unwrap_or(u64::MAX) & !allowed;
        if more != 0 {
            return refuse(format!(
                "has capabilities that the container's plan has not ({set}: {more:#x})"
            ));
        }
    }
    if process.no_new_privileges && status.field("NoNewPrivs") != Some("1") {
        return refuse("is without no_new_privs, which the container's plan has".into());
    }
    if !filter.program.is_empty() && status.field("Seccomp") != Some("2") {
        return refuse("is without a seccomp program, which the container's plan has".into());
    }
    Ok(())
}

/// Refuses a restore in which tasks live that were to end.
fn check_ended(dying: &[OwnedFd]) -> Result<()> {
    let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
    for task in dying {
        let mut one = [PollFd::new(task, PollFlags::IN)];
        // They have nothing to do but end.
        if !matches!(poll(&mut one, Some(&limit)), Ok(1)) {
            return Err(Error::invalid("a task of the checkpoint lives that was a zombie"));
        }
    }
    Ok(())
}

fn numbers_in(directory: PathBuf) -> Result<Vec<i32>> {
    let entries = fs::read_dir(&directory).context(|| format!("list {}", directory.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}
