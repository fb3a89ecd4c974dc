//! Exec probes: a hundred pods, each of which runs `true` once a second, in a
//! container beside the pause container, where the kubelet's probes run; and a
//! hundred containers alone, where they run in the root container.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::burst::{exec, fleet, tolerated};
use crate::Bench;
use crate::cost::CpuClock;
use crate::lab::Lab;
use crate::pod::Pod;
use crate::report::Unit;
use crate::shim::Shim;

/// The name of the part, and the number of containers besides the pod's root.
const PARTS: [(&str, usize); 2] =
    [("exec probes, 100 pods", 1), ("exec probes, 100 root containers", 0)];
const PODS: usize = 100;
const PERIOD: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 20;

/// Measures one runtime after the other, since they share the machine's CPU
/// time.
pub fn run(bench: &mut Bench) -> Result<()> {
    for (part, containers) in PARTS {
        for runtime in 0..bench.runtimes.len() {
            let outcome = probe_one(bench, runtime, part, containers);
            tolerated(bench, runtime, outcome)?;
        }
    }
    Ok(())
}

fn probe_one(
    bench: &mut Bench,
    runtime: usize,
    part: &'static str,
    containers: usize,
) -> Result<()> {
    let pods = fleet(&bench.lab, &bench.runtimes[runtime], PODS, containers)?;
    let clock = CpuClock::new(&bench.lab);
    let (before, began) = (clock.read()?, Instant::now());
    let times = probe_all(&bench.lab, &pods)?;
    let (used, took) = (clock.read()?.saturating_sub(before), began.elapsed());
    pods.into_iter().try_for_each(|pod| pod.down(&bench.lab))?;

    let share = 100.0 * used.as_secs_f64() / took.as_secs_f64();
    bench.report.record(part, "CPU used, % of one", runtime, Unit::Count, share);
    let rate = times.len() as f64 / took.as_secs_f64();
    bench.report.record(part, "probes done per second", runtime, Unit::Count, rate);
    bench.report.time(part, "CPU time of one", runtime, used / times.len() as u32);
    times.into_iter().for_each(|took| bench.report.time(part, "one", runtime, took));
    Ok(())
}

fn probe_all(lab: &Lab, pods: &[Pod]) -> Result<Vec<Duration>> {
    let begin = Instant::now();
    thread::scope(|scope| {
        let probes: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                // Spread over the second, as the kubelet's are.
                let first = begin + PERIOD * number as u32 / PODS as u32;
                scope.spawn(move || probe(lab, pod, first))
            })
            .collect();
        let mut times = Vec::new();
        for probe in probes {
            times.extend(probe.join().map_err(|_| anyhow!("a prober panicked"))??);
        }
        Ok(times)
    })
}

/// Probes a pod. A late probe is not made up for: the kubelet waits for the
/// reply.
fn probe(lab: &Lab, pod: &Pod, first: Instant) -> Result<Vec<Duration>> {
    let mut shim = Shim::connect(&pod.shim.address)?;
    let mut times = Vec::new();
    let mut next = first;
    let end = first + PERIOD * ROUNDS;
    while next < end {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        times.push(exec(lab, &mut shim, pod.container())?);
        while next < Instant::now() {
            next += PERIOD;
        }
    }
    Ok(times)
}
