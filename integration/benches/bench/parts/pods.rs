//! Pods of one, five and twenty containers, started and ended.

use std::time::Instant;

use anyhow::Result;

use crate::Bench;
use crate::pod::{Plan, Pod};

const PART: &str = "pods";

/// The numbers of containers besides the pause container.
const CONTAINERS: [usize; 3] = [1, 5, 20];

/// Measures all.
pub fn run(bench: &mut Bench) -> Result<()> {
    for turn in 0..=bench.runs.div_ceil(2) {
        for runtime in 0..bench.runtimes.len() {
            for containers in CONTAINERS {
                let plan = Plan::new(&bench.lab, containers)?;
                let pod = Pod::up(&bench.lab, &bench.runtimes[runtime], plan)?;
                let up = pod.took;
                let began = Instant::now();
                pod.down(&bench.lab)?;
                let down = began.elapsed();
                if turn > 0 {
                    bench.report.time(PART, &format!("{containers} up"), runtime, up);
                    bench.report.time(PART, &format!("{containers} down"), runtime, down);
                }
            }
        }
    }
    Ok(())
}
