//! One container and its processes, as the shim sees them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sandbox_core::cgroup::stats::Stats;
use sandbox_core::cgroup::{CapacityPolicy, Cgroup, OomWatch, ResourcesInForce};
use sandbox_core::control::message::Done;
use sandbox_core::sandbox::{self, HeldMounts, ReceivedFds, keeps_busy, processes_beside};
use sandbox_core::spec::plan::{Plan, ProcessPlan, Terminal};
use sandbox_core::types::{HostPid, ProcessId};
use tokio::sync::watch;

use super::boot::BootClient;
use super::create_plan::CreatePlan;
use super::joining::CgroupsToJoin;
use super::lifecycle::{Asked, Program, State};
use super::metrics;
use crate::error::{Code, Error, Result};
use crate::exit::Exit;
use crate::options::{OnPowerless, Options};
use crate::stdio::{Io, Stdio};

/// One container.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: String,
    pub(super) plan: Arc<Plan>,
    /// The options that it was made with.
    pub(super) options: Options,
    pub(super) boot: Arc<BootClient>,
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) capacity_policy: CapacityPolicy,
    pub(super) resources: ResourcesInForce,
    pub(super) on_powerless: OnPowerless,
    /// The annotations of updates that were told to have no effect.
    pub(super) told_annotations: BTreeSet<String>,
    pub(super) oom: Option<OomWatch>,
    /// The number of out-of-memory kills that are published.
    pub(super) oom_kills: u64,
    pub(super) init: Process,
    /// What its Start needs, if that restores it from a checkpoint.
    pub(super) restore: Option<Arc<CreatePlan>>,
    /// Its mounts, until its exit is published.
    pub(super) mounts: HeldMounts,
    /// Whether Delete waits until its mounts are gone.
    pub(super) keeps_busy: bool,
    pub(super) execs: HashMap<String, Process>,
    /// The number of execs that have begun to start and have no published exit.
    /// The init's exit waits for them.
    pub(super) unfinished_execs: watch::Sender<usize>,
    /// The last statistics of a cgroup that systemd removes when it is empty.
    pub(super) last_stats: Option<Any>,
    /// Whether a Checkpoint is under way, which freezes and thaws it.
    pub(super) is_being_saved: bool,
}

impl Container {
    pub(super) fn new(
        plan: &CreatePlan,
        boot: Arc<BootClient>,
        cgroup: Arc<Cgroup>,
        oom: Option<OomWatch>,
        (init, mounts): (Process, HeldMounts),
    ) -> Self {
        Self {
            id: plan.id.clone(),
            bundle: plan.bundle.clone(),
            plan: plan.plan.clone(),
            options: plan.options.clone(),
            boot,
            cgroup,
            capacity_policy: plan.capacity_policy(),
            resources: ResourcesInForce::new(&plan.plan.host.resources),
            on_powerless: plan.options.on_powerless,
            told_annotations: BTreeSet::new(),
            oom,
            oom_kills: 0,
            init,
            restore: None,
            mounts,
            keeps_busy: keeps_busy(&plan.plan, &plan.rootfs),
            execs: HashMap::default(),
            unfinished_execs: watch::Sender::default(),
            last_stats: None,
            is_being_saved: false,
        }
    }

    /// Returns the init, or an exec by its ID.
    pub(super) fn process(&mut self, exec: Option<&str>) -> Result<&mut Process> {
        let Some(exec) = exec else { return Ok(&mut self.init) };
        let missing =
            || Error::not_found(format!("exec {exec} does not exist in container {}", self.id));
        self.execs.get_mut(exec).ok_or_else(missing)
    }

    /// Whether this is the root container, in whose cgroup boot is.
    pub(super) fn is_root(&self) -> bool {
        self.boot.root == self.id
    }

    /// Whether boot stands in for this container's process: it is the
    /// well-known pause container.
    pub(super) fn is_pause(&self) -> bool {
        self.plan.container.process.is_none()
    }

    /// Returns its processes: those of its cgroup, boot among them if this is the root
    /// container. Without a cgroup, those of its PID namespace, or boot that stands in for it.
    pub(super) fn members(&self) -> Result<Vec<HostPid>> {
        if !self.cgroup.is_absent() {
            return Ok(self.cgroup.pids()?);
        }
        match self.init.state.process() {
            _ if self.is_pause() => Ok(vec![self.boot.sandbox.pid()]),
            Some(init) if !self.init.state.has_ended() => Ok(processes_beside(init)?),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the error of a request that needed the container. If its init or the sandbox is
    /// ending, this is the reason, whatever the kernel said to what was tried.
    pub(super) fn explain(&self, error: Error) -> Error {
        let is_ending = || match self.init.state.process() {
            Some(init) => init.is_ending(),
            None => self.init.state.has_ended(),
        };
        if error.code == Code::UNKNOWN && is_ending() {
            log::debug!("container {}: {error}", self.id);
            return self.not_running();
        }
        self.boot.explain(error)
    }

    /// Refuses what would freeze or thaw a container that is being saved.
    pub(super) fn check_not_being_saved(&self) -> Result<()> {
        match self.is_being_saved {
            false => Ok(()),
            true => Err(Error::state(format!(
                "container {} is being saved by a Checkpoint; wait until that has ended",
                self.id
            ))),
        }
    }

    /// Returns the error for a request that only a running container can carry out.
    pub(super) fn not_running(&self) -> Error {
        Error::state(format!("container {} init process is not running", self.id))
    }

    /// Opens the cgroups that an exec has to join.
    pub(super) fn cgroups_to_join(&self) -> Result<CgroupsToJoin> {
        let init = self.init.state.process().map(|init| init.pid);
        CgroupsToJoin::of_exec(self.is_root(), &self.plan, &self.cgroup, init)
    }

    /// Marks one exec as finished; the init's exit is published once none is left.
    pub(super) fn finish_exec(&self) {
        self.unfinished_execs.send_modify(|execs| *execs = execs.saturating_sub(1));
    }

    /// Reads the cgroup's statistics. If the cgroup went before they were read,
    /// they still contain the out-of-memory kills that the shim has counted:
    /// containerd 2.3 needs those.
    pub(super) fn read_stats(&self) -> Result<Any> {
        let mut stats = self.cgroup.stats()?;
        if let Stats::V2(stats) = &mut stats
            && stats.memory_events.is_none()
            && self.oom_kills > 0
        {
            stats.memory_events.get_or_insert_default().oom_kill = self.oom_kills;
        }
        metrics::encode(&stats)
    }

    /// Keeps the statistics when the init ends, since the cgroup may go before
    /// Delete: systemd removes an empty one. Cgroups that the shim made stay,
    /// with their statistics.
    pub(super) fn latch_stats(&mut self) {
        if !self.cgroup.is_of_systemd() {
            return;
        }
        let stats = self.read_stats().ok();
        // The statistics of a cgroup that went during the read mean nothing.
        if stats.is_some() && self.cgroup.exists() {
            self.last_stats = stats;
        }
    }
}

/// One process, the init of a container or an exec.
pub(super) struct Process {
    pub(super) state: State,
    pub(super) pid: u32,
    pub(super) stdio: Stdio,
    pub(super) io: Io,
    /// The exit, set once, when it is published. Clients wait for it.
    pub(super) exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// Makes an init that waits at its gate.
    pub(super) fn init(stdio: Stdio, pid: u32, program: Program, io: Io) -> Self {
        let exit = watch::Sender::new(None);
        Self { state: State::Created(program), pid, stdio, io, exit }
    }

    /// Makes a process that the shim has not requested from boot yet: an exec, or an init that
    /// is restored from a checkpoint.
    pub(super) fn planned(stdio: Stdio, plan: ProcessPlan) -> Self {
        let state = State::Planned { plan: Box::new(plan), asked: Asked::default() };
        Self { state, pid: 0, stdio, io: Io::default(), exit: watch::Sender::new(None) }
    }

    /// Attaches such a process, which boot has made. Returns its early exit, as
    /// [`State::attach`] does.
    pub(super) fn attach(&mut self, made: MadeProcess) -> Result<Option<u32>> {
        let MadeProcess { process, mut io, .. } = made;
        let pid = pid_of(&process);
        let apply = |asked: Asked| {
            if let Some(size) = asked.size {
                io.resize(size)?;
            }
            if asked.stdin_closed {
                io.close_stdin();
            }
            Ok(())
        };
        let early = self.state.attach(Arc::new(process), apply)?;
        (self.pid, self.io) = (pid, io);
        Ok(early)
    }

    /// Sets the size of the terminal, now or once there is one. Refuses a
    /// process that has ended, as runc does, whether its exit is published or
    /// not.
    pub(super) fn resize(&mut self, size: Terminal) -> Result<()> {
        if self.state.has_ended() {
            return Err(Error::state("cannot resize the terminal of a stopped process"));
        }
        match self.state.asked() {
            Some(asked) => asked.size = Some(size),
            None => self.io.resize(size)?,
        }
        Ok(())
    }

    /// Closes the standard input, now or once there is a process.
    pub(super) fn close_stdin(&mut self) {
        match self.state.asked() {
            Some(asked) => asked.stdin_closed = true,
            None => self.io.close_stdin(),
        }
    }
}

/// A process that boot has made, with its terminal attached.
pub(super) struct MadeProcess {
    pub(super) process: sandbox::Process,
    pub(super) io: Io,
    /// Mounts that it has left.
    pub(super) mounts: HeldMounts,
}

impl MadeProcess {
    /// Makes it from boot's reply.
    pub(super) fn take(reply: (Done, ReceivedFds), mut io: Io) -> Result<Self> {
        let ReceivedFds { process: Some(process), terminal, mounts, .. } = reply.1 else {
            return Err(Error::internal("the sandbox process made no process and gave no reason"));
        };
        if let Some(terminal) = terminal {
            io.attach(terminal)?;
        }
        Ok(Self { process, io, mounts })
    }
}

/// Returns a process's PID in the form of containerd's messages.
pub(super) fn pid_of(process: &sandbox::Process) -> u32 {
    u32::try_from(process.pid.0).unwrap_or_default()
}

/// Returns the ID of the process that a request names: an empty exec ID names
/// the init.
pub(super) fn process_id(container: &str, exec: &str) -> ProcessId {
    let exec = (!exec.is_empty()).then(|| exec.to_string());
    ProcessId { container: container.to_string(), exec }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// runc's shim marks a process as stopped when it reaps it.
    #[test]
    fn the_terminal_of_a_process_that_has_ended_is_not_resized() {
        let program = Program::Pause { exits_with: None };
        let mut process = Process::init(Stdio::default(), 1, program, Io::default());
        assert!(process.resize(Terminal::default()).is_ok());
        process.state.report_exit(0);
        let error = process.resize(Terminal::default()).unwrap_err();
        assert_eq!(error.code, Code::FAILED_PRECONDITION);
        process.state.exit(Exit::killed()).unwrap();
        let error = process.resize(Terminal::default()).unwrap_err();
        assert_eq!(error.code, Code::FAILED_PRECONDITION);
    }
}
