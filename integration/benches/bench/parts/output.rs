//! One GiB through a container's standard output, compared with the same
//! program writing into the same kind of pipe without a container.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::wait;

use crate::Bench;
use crate::bundle::{Bundle, Shape, Streams};
use crate::lab::busybox;
use crate::procs::activity;
use crate::report::Unit;
use crate::shim::{Process, Shim, watch};

const PART: &str = "1 GiB of output";
const BYTES: u64 = 1 << 30;
const WRITER: [&str; 5] = ["/bin/busybox", "dd", "if=/dev/zero", "bs=64k", "count=16384"];
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(120);

/// Measures a bare pipe before each container, so that both see the same
/// machine.
pub fn run(bench: &mut Bench) -> Result<()> {
    for _ in 0..bench.runs.div_ceil(10) {
        for runtime in 0..bench.runtimes.len() {
            let bare = bare_pipe(bench)?;
            let (through, shim) = container(bench, runtime)?;
            bench.report.time(PART, "bare pipe", runtime, bare);
            bench.report.time(PART, "through the container's stdout", runtime, through);
            bench.report.time(PART, "CPU time of the shim", runtime, shim);
            let ratio = through.as_secs_f64() / bare.as_secs_f64();
            bench.report.record(PART, "share of the bare pipe's time", runtime, Unit::Count, ratio);
        }
    }
    Ok(())
}

fn bare_pipe(bench: &Bench) -> Result<Duration> {
    let streams = Streams::new(&bench.lab, &bench.lab.fresh_id("bare"))?;
    let output = streams.output.try_clone()?;
    let reader = std::thread::spawn(move || drain(output));
    let stdout = OpenOptions::new().write(true).open(&streams.stdout)?;
    let mut child =
        Command::new(busybox()?).args(&WRITER[1..]).stdout(stdout).stderr(Stdio::null()).spawn()?;
    let took = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    child.wait()?;
    took
}

fn container(bench: &Bench, runtime: usize) -> Result<(Duration, Duration)> {
    let (lab, runtime) = (&bench.lab, &bench.runtimes[runtime]);
    let id = lab.fresh_id("output");
    let bundle = Bundle::new(lab, &id, &Shape { args: &WRITER, ..Default::default() })?;
    let streams = Streams::new(lab, &id)?;
    let init = Process { container: &id, exec: "" };
    let exit = lab.events().expect(&id, "");
    let mut shim = Shim::start(lab, runtime, &bundle)?;
    shim.create(runtime, &bundle, Some(&streams))?;
    let shim_pid = shim.pid(&id)?;
    let shim_process = watch(shim_pid)?;
    let before = activity(&[shim_pid.cast_signed()]).cpu;
    let output = streams.output.try_clone()?;
    let reader = std::thread::spawn(move || drain(output));
    shim.start_process(init)?;
    let took = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    exit.success()?;
    let shim_cpu = activity(&[shim_pid.cast_signed()]).cpu.saturating_sub(before);
    shim.delete(init)?;
    shim.shutdown(&id, &shim_process)?;
    Ok((took, shim_cpu))
}

/// Reads it all. Returns the time from the first bytes to the last.
fn drain(mut output: File) -> Result<Duration> {
    let mut chunk = vec![0; 256 << 10];
    let mut began = None;
    let mut left = BYTES;
    while left > 0 {
        match output.read(&mut chunk) {
            Ok(n @ 1..) => left = left.saturating_sub(n as u64),
            Ok(_) => ensure!(began.is_none(), "output ended {left} bytes too early"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                ensure!(
                    wait::readable(&output, OUTPUT_TIMEOUT),
                    "output stopped {left} bytes too early"
                );
                began.get_or_insert_with(Instant::now);
            }
            Err(e) => return Err(e).context("read output"),
        }
    }
    Ok(began.context("output came before it was waited for")?.elapsed())
}
