//! A pod as containerd's CRI makes it: first the pause container, then the
//! others in its namespaces, all with one shim.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::bundle::{Bundle, Place, Shape};
use crate::lab::Lab;
use crate::procs;
use crate::runtime::Runtime;
use crate::shim::{Process, Shim, watch};

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    /// Its shim.
    pub shim: Shim,
    /// The time that its shim took to start it.
    pub took: Duration,
    pause: Bundle,
    containers: Vec<Bundle>,
    shim_pid: u32,
    /// The processes in its containers, without the pause container's.
    workload: Vec<u32>,
}

/// A prepared pod.
#[derive(Debug)]
pub struct Plan {
    pause: Bundle,
    /// The IDs and commands of its other containers.
    containers: Vec<(String, &'static [&'static str])>,
}

/// The command of a container that only waits.
const IDLE: &[&str] = &["/pause"];

/// The command of one that never waits: eight loops. It ends at SIGTERM, as programs do.
const BUSY: &[&str] = &[
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; for n in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait",
];

impl Plan {
    /// Prepares one container without a pod, as `ctr run` makes it.
    pub fn alone(lab: &Lab) -> Result<Plan> {
        let id = lab.fresh_id("alone");
        let shape = Shape { args: IDLE, seccomp: true, ..Default::default() };
        Ok(Plan { pause: Bundle::new(lab, &id, &shape)?, containers: Vec::new() })
    }

    /// Prepares a pod with this many containers besides the pause container.
    pub fn new(lab: &Lab, containers: usize) -> Result<Plan> {
        let id = lab.fresh_id("pod");
        let shape = Shape { args: IDLE, seccomp: true, place: Place::Pause, ..Default::default() };
        let pause = Bundle::new(lab, &id, &shape)?;
        let containers = (0..containers).map(|number| (format!("{id}-{number}"), IDLE)).collect();
        Ok(Plan { pause, containers })
    }

    /// Prepares a pod in which one container waits, and another one has eight busy loops. Its
    /// pause container has as little of the CPU as containerd gives it.
    pub fn beside_busy_loops(lab: &Lab) -> Result<Plan> {
        let id = lab.fresh_id("busy");
        let place = Place::Pause;
        let shape =
            Shape { args: IDLE, seccomp: true, place, shares: Some(2), ..Default::default() };
        let pause = Bundle::new(lab, &id, &shape)?;
        let containers = vec![(format!("{id}-idle"), IDLE), (format!("{id}-loops"), BUSY)];
        Ok(Plan { pause, containers })
    }
}

impl Pod {
    /// Starts it.
    pub fn up(lab: &Lab, runtime: &Runtime, plan: Plan) -> Result<Pod> {
        let Plan { pause, containers } = plan;
        let began = Instant::now();
        let mut shim = Shim::start(lab, runtime, &pause)?;
        let pid = shim.create(runtime, &pause, None)?;
        shim.start_process(Process { container: &pause.id, exec: "" })?;
        let mut pod = Pod {
            shim,
            took: began.elapsed(),
            pause,
            containers: Vec::new(),
            shim_pid: 0,
            workload: Vec::new(),
        };
        for (id, args) in containers {
            pod.add(lab, runtime, &id, args, pid)?;
        }
        pod.shim_pid = pod.shim.pid(&pod.pause.id)?;
        Ok(pod)
    }

    fn add(
        &mut self,
        lab: &Lab,
        runtime: &Runtime,
        id: &str,
        args: &[&str],
        pause: u32,
    ) -> Result<()> {
        let place = Place::In(&self.pause.id, pause);
        let shape = Shape { args, seccomp: true, place, ..Default::default() };
        let bundle = Bundle::new(lab, id, &shape)?;
        // From here on the shim's time is measured. containerd makes the
        // bundle.
        let began = Instant::now();
        self.shim.join(lab, runtime, &bundle)?;
        self.workload.push(self.shim.create(runtime, &bundle, None)?);
        self.shim.start_process(Process { container: id, exec: "" })?;
        self.took += began.elapsed();
        self.containers.push(bundle);
        Ok(())
    }

    /// Returns the ID of one of its containers.
    pub fn container(&self) -> &str {
        &self.containers.first().unwrap_or(&self.pause).id
    }

    /// Returns the processes of its containers, without the pause container's.
    pub fn workload(&self) -> &[u32] {
        &self.workload
    }

    /// Returns the shim's process ID.
    pub fn shim_pid(&self) -> i32 {
        self.shim_pid.cast_signed()
    }

    /// Stops its first container that is left, as StopContainer does. Returns the time from
    /// the signal, which the container obeys, to the reply to Delete.
    pub fn stop_first(&mut self, lab: &Lab) -> Result<Duration> {
        ensure!(!self.containers.is_empty(), "no container is left to stop");
        let container = self.containers.remove(0);
        let began = Instant::now();
        self.end(lab, &container.id, Signal::SIGTERM)?;
        Ok(began.elapsed())
    }

    fn end(&mut self, lab: &Lab, id: &str, signal: Signal) -> Result<()> {
        let init = Process { container: id, exec: "" };
        let exit = lab.events().expect(id, "");
        self.shim.signal(init, signal)?;
        exit.wait()?;
        self.shim.delete(init)
    }

    /// Ends it, as the kubelet does: the containers first.
    pub fn down(mut self, lab: &Lab) -> Result<()> {
        let process = watch(self.shim_pid)?;
        let pause = self.pause.id.clone();
        let containers: Vec<String> = self.containers.iter().map(|c| c.id.clone()).collect();
        for id in containers.iter().chain([&pause]) {
            self.end(lab, id, Signal::SIGKILL)?;
        }
        self.shim.shutdown(&pause, &process).context("end a pod").map(drop)
    }
}

/// Returns the processes that these pods cost: the shims and all that they
/// started, except for the programs of the pods' owner.
pub fn overhead_of(pods: &[Pod]) -> Vec<i32> {
    let shims: Vec<i32> = pods.iter().map(Pod::shim_pid).collect();
    let mut all = procs::with_descendants(&shims);
    all.retain(|pid| !pods.iter().any(|pod| pod.workload.contains(&pid.cast_unsigned())));
    all
}
