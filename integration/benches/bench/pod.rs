//! A pod as containerd's CRI makes it: the pause container first, then the
//! others in its namespaces, all served by one shim.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bundle::{Bundle, Place, Shape};
use crate::lab::Lab;
use crate::procs;
use crate::runtime::Runtime;
use crate::shim::{Process, Shim, watch};

/// A pod that is up.
#[derive(Debug)]
pub struct Pod {
    /// Its shim.
    pub shim: Shim,
    /// How long its shim took to bring it up.
    pub took: Duration,
    pause: Bundle,
    containers: Vec<Bundle>,
    shim_pid: u32,
    /// Of what runs in its containers, the pause container's process excepted.
    workload: Vec<u32>,
}

/// A pod to come.
#[derive(Debug)]
pub struct Plan {
    pause: Bundle,
    ids: Vec<String>,
}

impl Plan {
    /// Prepares a pod of this many containers besides the pause container.
    pub fn new(lab: &Lab, containers: usize) -> Result<Plan> {
        let id = lab.fresh_id("pod");
        let shape =
            Shape { args: &["/pause"], seccomp: true, place: Place::Pause, ..Default::default() };
        let pause = Bundle::new(lab, &id, &shape)?;
        let ids = (0..containers).map(|number| format!("{id}-{number}")).collect();
        Ok(Plan { pause, ids })
    }
}

impl Pod {
    /// Brings it up.
    pub fn up(lab: &Lab, runtime: &Runtime, plan: Plan) -> Result<Pod> {
        let Plan { pause, ids } = plan;
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
        for id in ids {
            pod.add(lab, runtime, &id, pid)?;
        }
        pod.shim_pid = pod.shim.pid(&pod.pause.id)?;
        Ok(pod)
    }

    fn add(&mut self, lab: &Lab, runtime: &Runtime, id: &str, pause: u32) -> Result<()> {
        let place = Place::In(&self.pause.id, pause);
        let shape = Shape { args: &["/pause"], seccomp: true, place, ..Default::default() };
        let bundle = Bundle::new(lab, id, &shape)?;
        // From here on it is the shim's time; the bundle is containerd's.
        let began = Instant::now();
        self.shim.join(lab, runtime, &bundle)?;
        self.workload.push(self.shim.create(runtime, &bundle, None)?);
        self.shim.start_process(Process { container: id, exec: "" })?;
        self.took += began.elapsed();
        self.containers.push(bundle);
        Ok(())
    }

    /// The ID of one of its containers.
    pub fn container(&self) -> &str {
        &self.containers.first().unwrap_or(&self.pause).id
    }

    /// The shim's process ID.
    pub fn shim_pid(&self) -> i32 {
        self.shim_pid.cast_signed()
    }

    /// Takes it down, as kubelet does: the containers first.
    pub fn down(mut self, lab: &Lab) -> Result<()> {
        let process = watch(self.shim_pid)?;
        let pause = self.pause.id.clone();
        let containers: Vec<String> = self.containers.iter().map(|c| c.id.clone()).collect();
        for id in containers.iter().chain([&pause]) {
            let init = Process { container: id, exec: "" };
            let exit = lab.events().expect(id, "");
            self.shim.kill(init)?;
            exit.wait()?;
            self.shim.delete(init)?;
        }
        self.shim.shutdown(&pause, &process).context("end a pod").map(drop)
    }
}

/// What it costs to have these pods: the shims and whatever they started, except
/// for what the pods' owner wanted to run.
pub fn overhead_of(pods: &[Pod]) -> Vec<i32> {
    let shims: Vec<i32> = pods.iter().map(Pod::shim_pid).collect();
    let mut all = procs::with_descendants(&shims);
    all.retain(|pid| !pods.iter().any(|pod| pod.workload.contains(&pid.cast_unsigned())));
    all
}
