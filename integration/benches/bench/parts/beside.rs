//! Beside a container of the pod that keeps eight loops running: a hundred exec probes a second,
//! each of which has the one second that the kubelet gives it, and StopContainer.

use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Result, anyhow, bail};
use integration::wait;

use super::burst::{exec, tolerated};
use crate::Bench;
use crate::lab::Lab;
use crate::pod::{Plan, Pod};
use crate::report::Unit;
use crate::runtime::Runtime;
use crate::shim::Shim;

const PART: &str = "beside busy loops";

/// So many probes are due in each period, spread over it. Each has its own client, which waits
/// for the reply before its next one.
const PROBES: u32 = 100;
const PERIOD: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 10;

/// Measures one runtime after the other, since they share the machine's CPU time.
pub fn run(bench: &mut Bench) -> Result<()> {
    for _ in 0..bench.runs.div_ceil(50) {
        for runtime in 0..bench.runtimes.len() {
            let outcome = probes(bench, runtime);
            tolerated(bench, runtime, outcome)?;
        }
    }
    for _ in 0..bench.runs.div_ceil(5) {
        for runtime in 0..bench.runtimes.len() {
            let outcome = stops(bench, runtime);
            tolerated(bench, runtime, outcome)?;
        }
    }
    Ok(())
}

/// Starts the pod, and waits until its containers take a SIGTERM and the loops run.
fn busy(lab: &Lab, runtime: &Runtime) -> Result<Pod> {
    let pod = Pod::up(lab, runtime, Plan::beside_busy_loops(lab)?)?;
    let &[idle, loops] = pod.workload() else { bail!("two containers, not {pod:?}") };
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    wait::until("the container that waits does so", || {
        read(format!("/proc/{idle}/wchan")).contains("sigtimedwait").then_some(())
    });
    wait::until("eight loops run", || {
        let children = read(format!("/proc/{loops}/task/{loops}/children"));
        (children.split_whitespace().count() == 8).then_some(())
    });
    Ok(pod)
}

fn probes(bench: &mut Bench, runtime: usize) -> Result<()> {
    let lab = &bench.lab;
    let pod = busy(lab, &bench.runtimes[runtime])?;
    let begin = Instant::now();
    let (times, failures) = thread::scope(|scope| {
        let (lab, pod) = (&bench.lab, &pod);
        let first = |number| begin + PERIOD * number / PROBES;
        let probes: Vec<_> =
            (0..PROBES).map(|number| scope.spawn(move || probe(lab, pod, first(number)))).collect();
        let (mut times, mut failures) = (Vec::new(), Vec::new());
        for probe in probes {
            let (took, failed) = probe.join().map_err(|_| anyhow!("a prober panicked"))?;
            times.extend(took);
            failures.extend(failed);
        }
        anyhow::Ok((times, failures))
    })?;
    pod.down(&bench.lab)?;

    let in_time = times.iter().filter(|took| **took <= PERIOD).count();
    let share = 100.0 * in_time as f64 / f64::from(PROBES * ROUNDS);
    bench.report.record(PART, "probes within their second, %", runtime, Unit::Count, share);
    bench.report.record(PART, "probes refused", runtime, Unit::Count, failures.len() as f64);
    let longest = times.iter().max().copied().unwrap_or_default();
    bench.report.time(PART, "the longest probe", runtime, longest);
    times.into_iter().for_each(|took| bench.report.time(PART, "one probe", runtime, took));
    if let Some(failure) = failures.first() {
        eprintln!("bench: {PART}: {}: {failure}", bench.runtimes[runtime].name);
    }
    Ok(())
}

/// Probes a container, as the kubelet does: a probe that is late is not made up for. Returns the
/// times of those that were answered, and why the others were not.
fn probe(lab: &Lab, pod: &Pod, first: Instant) -> (Vec<Duration>, Vec<String>) {
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    let mut next = first;
    let end = first + PERIOD * ROUNDS;
    let mut connected = None;
    while next < end {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let shim = connected.take().map_or_else(|| Shim::connect(&pod.shim.address), Ok);
        let probed = shim.and_then(|mut shim| Ok((exec(lab, &mut shim, pod.container())?, shim)));
        match probed {
            Ok((took, shim)) => {
                times.push(took);
                connected = Some(shim);
            }
            // The next one gets a connection of its own.
            Err(e) => failures.push(format!("{e:#}")),
        }
        while next < Instant::now() {
            next += PERIOD;
        }
    }
    (times, failures)
}

/// Stops the container that waits, and then the busy one.
fn stops(bench: &mut Bench, runtime: usize) -> Result<()> {
    let lab = &bench.lab;
    let mut pod = busy(lab, &bench.runtimes[runtime])?;
    let idle = pod.stop_first(lab)?;
    let busy = pod.stop_first(lab)?;
    pod.down(lab)?;
    bench.report.time(PART, "StopContainer", runtime, idle);
    bench.report.time(PART, "StopContainer of the loops", runtime, busy);
    Ok(())
}
