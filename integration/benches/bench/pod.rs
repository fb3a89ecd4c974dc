//! A pod as containerd's CRI makes it: first the pause container, then the
//! others in its namespaces, all with one shim.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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
    ids: Vec<String>,
}

impl Plan {
    /// Prepares one container without a pod, as `ctr run` makes it.
    pub fn alone(lab: &Lab) -> Result<Plan> {
        let id = lab.fresh_id("alone");
        let shape = Shape { args: &["/pause"], seccomp: true, ..Default::default() };
        Ok(Plan { pause: Bundle::new(lab, &id, &shape)?, ids: Vec::new() })
    }

    /// Prepares a pod with this many containers besides the pause container.
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
    /// Starts it.
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

    /// Returns the shim's process ID.
    pub fn shim_pid(&self) -> i32 {
        self.shim_pid.cast_signed()
    }

    /// Ends it, as the kubelet does: the containers first.
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

/// Returns the processes that these pods cost: the shims and all that they
/// started, except for the programs of the pods' owner.
pub fn overhead_of(pods: &[Pod]) -> Vec<i32> {
    let shims: Vec<i32> = pods.iter().map(Pod::shim_pid).collect();
    let mut all = procs::with_descendants(&shims);
    all.retain(|pid| !pods.iter().any(|pod| pod.workload.contains(&pid.cast_unsigned())));
    all
}
