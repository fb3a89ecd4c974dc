//! Counts the pods that the machine can hold: one after the other, until the machine
//! fails or there are 500.

use anyhow::Result;

use crate::Bench;
use crate::pod::{Plan, Pod};
use crate::procs::memory_available;
use crate::report::Unit;

const PART: &str = "density";
const MOST: usize = 500;

/// Below this, the machine counts as out of memory.
const RESERVE: f64 = 512.0;

/// Measures one runtime after the other.
pub fn run(bench: &mut Bench) -> Result<()> {
    for runtime in 0..bench.runtimes.len() {
        let mut pods = Vec::new();
        let before = memory_available()?;
        while pods.len() < MOST && memory_available()? > RESERVE {
            let plan = Plan::new(&bench.lab, 1)?;
            match Pod::up(&bench.lab, &bench.runtimes[runtime], plan) {
                Ok(pod) => {
                    let (from, to) = (pods.len() / 100 * 100 + 1, pods.len() / 100 * 100 + 100);
                    bench.report.time(PART, &format!("up, pods {from} to {to}"), runtime, pod.took);
                    pods.push(pod);
                }
                Err(e) => {
                    eprintln!("bench: density: pod {}: {e:#}", pods.len() + 1);
                    break;
                }
            }
        }
        let count = pods.len() as f64;
        let each = (before - memory_available()?) / count.max(1.0);
        bench.report.record(PART, "pods", runtime, Unit::Count, count);
        bench.report.record(PART, "MemAvailable per pod", runtime, Unit::MiB, each);
        for pod in pods {
            let began = std::time::Instant::now();
            pod.down(&bench.lab)?;
            bench.report.time(PART, "down", runtime, began.elapsed());
        }
    }
    Ok(())
}
