//! Exec probes: a hundred pods, in each of which `true` is run once a second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::burst::{exec, fleet, told};
use crate::Bench;
use crate::cost::CpuClock;
use crate::lab::Lab;
use crate::pod::Pod;
use crate::report::Unit;
use crate::shim::Shim;

const PART: &str = "exec probes, 100 pods";
const PODS: usize = 100;
const PERIOD: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 20;

/// One runtime after the other: it is the machine's CPU time that is shared.
pub fn run(bench: &mut Bench) -> Result<()> {
    for runtime in 0..bench.runtimes.len() {
        let outcome = probe_one(bench, runtime);
        told(bench, runtime, outcome)?;
    }
    Ok(())
}

fn probe_one(bench: &mut Bench, runtime: usize) -> Result<()> {
    let pods = fleet(&bench.lab, &bench.runtimes[runtime], PODS)?;
    let clock = CpuClock::new(&bench.lab);
    let (before, began) = (clock.read()?, Instant::now());
    let times = probe_all(&bench.lab, &pods)?;
    let (used, took) = (clock.read()?.saturating_sub(before), began.elapsed());
    pods.into_iter().try_for_each(|pod| pod.down(&bench.lab))?;

    let share = 100.0 * used.as_secs_f64() / took.as_secs_f64();
    bench.report.record(PART, "CPU used, % of one", runtime, Unit::Count, share);
    let rate = times.len() as f64 / took.as_secs_f64();
    bench.report.record(PART, "probes done per second", runtime, Unit::Count, rate);
    bench.report.time(PART, "CPU time of one", runtime, used / times.len() as u32);
    times.into_iter().for_each(|took| bench.report.time(PART, "one", runtime, took));
    Ok(())
}

fn probe_all(lab: &Lab, pods: &[Pod]) -> Result<Vec<Duration>> {
    let begin = Instant::now();
    thread::scope(|scope| {
        let probes: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                // Spread over the second, as kubelet's are.
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

/// A probe that is late does not make up for it: kubelet waits for the answer.
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
