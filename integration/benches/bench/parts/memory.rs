//! What an idle pod of one container costs in memory, alone and among many.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::Bench;
use crate::pod::{Plan, Pod, overhead_of};
use crate::procs::{memory_available, pss};
use crate::report::Unit;

const PART: &str = "memory per pod";

/// How many pods there are when a look is taken.
const LOOKS: [usize; 3] = [1, 20, 200];

/// How long pods are left alone before that.
const SETTLE: Duration = Duration::from_secs(1);

/// One runtime after the other: it is the machine's memory that is looked at.
pub fn run(bench: &mut Bench) -> Result<()> {
    for runtime in 0..bench.runtimes.len() {
        let mut pods: Vec<Pod> = Vec::new();
        let before = memory_available()?;
        for look in LOOKS {
            while pods.len() < look {
                let plan = Plan::new(&bench.lab, 1)?;
                pods.push(Pod::up(&bench.lab, &bench.runtimes[runtime], plan)?);
            }
            thread::sleep(SETTLE);
            record(bench, runtime, &pods, before)?;
        }
        pods.into_iter().try_for_each(|pod| pod.down(&bench.lab))?;
    }
    Ok(())
}

fn record(bench: &mut Bench, runtime: usize, pods: &[Pod], before: f64) -> Result<()> {
    let count = pods.len();
    let each = |sum: f64| sum / count as f64;
    let all = overhead_of(pods).into_iter().map(pss).sum::<Result<f64>>()?;
    let shims = pods.iter().map(|pod| pss(pod.shim_pid())).sum::<Result<f64>>()?;
    let gone = before - memory_available()?;
    let figures = [
        (format!("PSS at {count}"), each(all)),
        (format!("PSS of the shim alone at {count}"), each(shims)),
        (format!("MemAvailable at {count}"), each(gone)),
    ];
    for (what, value) in figures {
        bench.report.record(PART, &what, runtime, Unit::MiB, value);
    }
    Ok(())
}
