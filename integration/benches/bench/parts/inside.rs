//! The cost of work inside a container. This program itself is in the
//! container's root file system. Run as `/bench inside` it does the work and
//! prints the times. All runtimes get the same seccomp profile.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write, pipe};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::bundle::{Bundle, Shape, Streams};
use crate::report::Unit;
use crate::shim::{Process, Shim, watch};

const PART: &str = "inside a container";

/// The host's compiler, which the container sees below /usr.
const COMPILER: &str = "/usr/bin/gcc";

/// Measures the runtimes by turns.
pub fn run(bench: &mut Bench) -> Result<()> {
    for _ in 0..bench.runs.div_ceil(5) {
        for runtime in 0..bench.runtimes.len() {
            for line in printed(bench, runtime)?.lines() {
                let (what, nanos) = line.rsplit_once(' ').context("a name and a number")?;
                bench.report.record(PART, what, runtime, Unit::Ns, nanos.parse()?);
            }
        }
    }
    Ok(())
}

/// Runs the work in a container. Returns its output.
fn printed(bench: &Bench, runtime: usize) -> Result<String> {
    let (lab, runtime) = (&bench.lab, &bench.runtimes[runtime]);
    let id = lab.fresh_id("inside");
    let shape = Shape {
        args: &["/bench", "inside"],
        seccomp: true,
        usr: Path::new(COMPILER).exists(),
        ..Default::default()
    };
    let bundle = Bundle::new(lab, &id, &shape)?;
    let streams = Streams::new(lab, &id)?;
    let init = Process { container: &id, exec: "" };
    let exit = lab.events().expect(&id, "");
    let mut shim = Shim::start(lab, runtime, &bundle)?;
    shim.create(runtime, &bundle, Some(&streams))?;
    let shim_process = watch(shim.pid(&id)?)?;
    shim.start_process(init)?;
    exit.success()?;
    let mut printed = vec![0; 4096];
    let length = (&streams.output).read(&mut printed).context("read the results")?;
    shim.delete(init)?;
    shim.shutdown(&id, &shim_process)?;
    printed.truncate(length);
    Ok(String::from_utf8(printed)?)
}

/// Does the work of `/bench inside`.
pub fn work() -> Result<()> {
    let mut results = vec![
        ("getppid", each(200_000, || black_box(nix::unistd::getppid()).as_raw() >= 0)),
        ("open, read, close", each(50_000, || open_and_read().is_ok())),
        ("pipe there and back", ping_pong(20_000)?),
        ("fork and exec", each(300, || Command::new("/bin/true").status().is_ok())),
    ];
    if Path::new(COMPILER).exists() {
        results.push(("compile a C file", compile()?));
    }
    // In one piece, as the reader reads once.
    let text: String =
        results.iter().map(|(what, took)| format!("{what} {}\n", took.as_nanos())).collect();
    std::io::stdout().write_all(text.as_bytes()).context("print the results")
}

fn each(times: u32, mut work: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    let done = (0..times).filter(|_| work()).count();
    assert_eq!(done, times as usize, "each of {times} is to succeed");
    began.elapsed() / times
}

fn open_and_read() -> std::io::Result<usize> {
    File::open("/etc/passwd")?.read(&mut [0; 256])
}

/// Sends a byte from one thread to another and back.
fn ping_pong(times: u32) -> Result<Duration> {
    let (mut there_out, mut there_in) = pipe()?;
    let (mut back_out, mut back_in) = pipe()?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while there_out.read_exact(&mut byte).is_ok() && back_in.write_all(&byte).is_ok() {}
    });
    let took =
        each(times, || there_in.write_all(b"x").is_ok() && back_out.read_exact(&mut [0]).is_ok());
    drop(there_in);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))?;
    Ok(took)
}

fn compile() -> Result<Duration> {
    let functions = (0..300).map(|n| {
        format!("int f{n}(int a, int *b) {{ for (int i = 0; i < a; i++) b[i] += i * {n}; return b[0]; }}\n")
    });
    fs::write("/tmp/work.c", functions.collect::<String>())?;
    let began = Instant::now();
    let status = Command::new(COMPILER)
        .args(["-O2", "-c", "-o", "/tmp/work.o", "/tmp/work.c"])
        .env("PATH", "/usr/bin:/bin")
        .stdout(Stdio::null())
        .status()
        .context("run the compiler")?;
    ensure!(status.success(), "the compiler: {status}");
    Ok(began.elapsed())
}
