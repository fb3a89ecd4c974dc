//! Many at once: 50 pods, and 30 execs in one container.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::Bench;
use crate::bundle::Streams;
use crate::lab::Lab;
use crate::pod::{Plan, Pod};
use crate::runtime::Runtime;
use crate::shim::{Process, Shim};

const PODS: usize = 50;
const EXECS: usize = 30;

/// Measures both.
pub fn run(bench: &mut Bench) -> Result<()> {
    for _ in 0..bench.runs.div_ceil(20) {
        for runtime in 0..bench.runtimes.len() {
            let outcome = pods_at_once(bench, runtime);
            tolerated(bench, runtime, outcome)?;
        }
    }
    for _ in 0..bench.runs.div_ceil(10) {
        for runtime in 0..bench.runtimes.len() {
            let outcome = execs_at_once(bench, runtime);
            tolerated(bench, runtime, outcome)?;
        }
    }
    Ok(())
}

/// Prints the failure of a peer, which is then left out. The first runtime,
/// with which all others are compared, must succeed.
pub fn tolerated(bench: &Bench, runtime: usize, outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if runtime > 0 => {
            eprintln!("bench: {}: {error:#}", bench.runtimes[runtime].name);
            Ok(())
        }
        other => other,
    }
}

fn pods_at_once(bench: &mut Bench, number: usize) -> Result<()> {
    const PART: &str = "50 pods at once";
    let (lab, runtime) = (&bench.lab, &bench.runtimes[number]);
    let plans = (0..PODS).map(|_| Plan::new(lab, 1)).collect::<Result<Vec<Plan>>>()?;
    let ready = Barrier::new(PODS);
    let (pods, all) = at_once(plans, |plan| {
        ready.wait();
        let began = Instant::now();
        Ok((Pod::up(lab, runtime, plan)?, began.elapsed()))
    })?;
    let (pods, times): (Vec<Pod>, Vec<Duration>) = pods.into_iter().unzip();
    at_once(pods, |pod| pod.down(lab))?;
    times.into_iter().for_each(|took| bench.report.time(PART, "one of them up", number, took));
    bench.report.time(PART, "all of them up", number, all);
    Ok(())
}

fn execs_at_once(bench: &mut Bench, number: usize) -> Result<()> {
    const PART: &str = "30 execs at once";
    let (lab, runtime) = (&bench.lab, &bench.runtimes[number]);
    let pod = Pod::up(lab, runtime, Plan::new(lab, 1)?)?;
    let connect = |_| Shim::connect(&pod.shim.address);
    let shims = (0..EXECS).map(connect).collect::<Result<Vec<Shim>>>()?;
    let ready = Barrier::new(EXECS);
    let (times, all) = at_once(shims, |mut shim| {
        ready.wait();
        exec(lab, &mut shim, pod.container())
    })?;
    pod.down(lab)?;
    times.into_iter().for_each(|took| bench.report.time(PART, "one of them", number, took));
    bench.report.time(PART, "all of them", number, all);
    Ok(())
}

/// Runs `true` in a container. Returns the time from the request to the exit
/// event.
pub fn exec(lab: &Lab, shim: &mut Shim, container: &str) -> Result<Duration> {
    let id = lab.fresh_id("exec");
    let streams = Streams::new(lab, &id)?;
    let process = Process { container, exec: &id };
    let exit = lab.events().expect(container, &id);
    let began = Instant::now();
    shim.exec(process, &["/bin/true"], Some(&streams))?;
    shim.start_process(process)?;
    let exit = exit.success()?;
    shim.delete(process)?;
    Ok(exit.at - began)
}

/// Calls a function with each of these, in a thread for each. Returns the
/// results and the whole time.
fn at_once<T: Send, R: Send>(
    with: Vec<T>,
    doing: impl Fn(T) -> Result<R> + Sync,
) -> Result<(Vec<R>, Duration)> {
    thread::scope(|scope| {
        let began = Instant::now();
        let doing = &doing;
        let threads: Vec<_> =
            with.into_iter().map(|item| scope.spawn(move || doing(item))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<R>>| {
            thread.join().map_err(|_| anyhow!("a thread of the benchmark panicked"))?
        };
        let outcomes = threads.into_iter().map(join).collect::<Result<Vec<R>>>()?;
        Ok((outcomes, began.elapsed()))
    })
}

/// Starts this many pods, for other parts, with a container for [`exec`]: one
/// besides the pause container, or without any, the root container.
pub fn fleet(lab: &Lab, runtime: &Runtime, count: usize, containers: usize) -> Result<Vec<Pod>> {
    let plan = || if containers == 0 { Plan::alone(lab) } else { Plan::new(lab, containers) };
    (0..count).map(|_| Pod::up(lab, runtime, plan()?)).collect()
}
