//! Counts how often an idle pod wakes.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::Bench;
use crate::pod::{Plan, Pod, overhead_of};
use crate::procs::{Activity, activity};
use crate::report::Unit;

const PART: &str = "idle pod, one minute";
const PODS: usize = 5;
const SETTLE: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);

/// Measures all runtimes in the same minute.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut fleets = Vec::new();
    for runtime in &bench.runtimes {
        let pod = || Pod::up(&bench.lab, runtime, Plan::new(&bench.lab, 1)?);
        fleets.push((0..PODS).map(|_| pod()).collect::<Result<Vec<Pod>>>()?);
    }
    thread::sleep(SETTLE);
    let looks: Vec<(Vec<i32>, Activity)> = fleets
        .iter()
        .map(|pods| {
            let pids = overhead_of(pods);
            let before = activity(&pids);
            (pids, before)
        })
        .collect();
    thread::sleep(MINUTE);
    for (runtime, (pids, before)) in looks.iter().enumerate() {
        let after = activity(pids);
        let woke = after.switches.saturating_sub(before.switches) as f64 / PODS as f64;
        let cpu = after.cpu.saturating_sub(before.cpu) / PODS as u32;
        bench.report.record(PART, "context switches", runtime, Unit::Count, woke);
        bench.report.time(PART, "CPU time", runtime, cpu);
    }
    let pods = fleets.into_iter().flatten();
    pods.into_iter().try_for_each(|pod| pod.down(&bench.lab))
}
