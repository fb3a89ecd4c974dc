//! The memory that an idle pod of one container costs, alone and among many.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::Bench;
use crate::pod::{Plan, Pod, overhead_of};
use crate::procs::{memory_available, pss};
use crate::report::Unit;

const PART: &str = "memory per pod";

/// The numbers of pods at which memory is measured.
const LOOKS: [usize; 3] = [1, 20, 200];

/// Time for which pods are idle before that.
const SETTLE: Duration = Duration::from_secs(1);

/// Measures one runtime after the other, since they share the machine's memory.
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
