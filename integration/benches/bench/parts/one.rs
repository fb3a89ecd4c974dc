//! One container alone, from the shim's start to its end, phase by phase; and
//! the operations on a running container.

use std::io::Read;
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, ensure};
use containerd_shim_protos::api::{
    PidsRequest, PidsResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
};
use containerd_shim_protos::protobuf::Message;
use integration::wait;

use crate::Bench;
use crate::bundle::{Bundle, Shape, Streams};
use crate::cost::{Census, CpuClock};
use crate::lab::Lab;
use crate::pod::{Plan, Pod};
use crate::report::Unit;
use crate::runtime::Runtime;
use crate::shim::{Process, Shim, watch};

const PART: &str = "one container";
const EXEC: &str = "exec";
const SECOND: &str = "exec, second container of a pod";
const CALLS: &str = "calls";

/// Number of times that CPU time and processes are counted: they hardly vary.
const COUNTS: usize = 5;

/// Time for an operation that has been started.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Measures all.
pub fn run(bench: &mut Bench) -> Result<()> {
    for turn in 0..=bench.runs {
        for runtime in 0..bench.runtimes.len() {
            let phases = one_container(&bench.lab, &bench.runtimes[runtime]);
            // The first turn only warms caches.
            match phases {
                Ok(phases) if turn > 0 => phases.record(bench, runtime),
                Ok(_) => {}
                Err(e) => fail(bench, PART, runtime, &e)?,
            }
        }
    }
    for runtime in 0..bench.runtimes.len() {
        count(bench, PART, runtime, 1, |bench| {
            one_container(&bench.lab, &bench.runtimes[runtime]).map(drop)
        })?;
    }
    in_a_running_container(bench)?;
    in_a_second_container(bench)
}

/// Records a failure, which is a figure too. A runtime that fails occasionally
/// is still measured, one that fails repeatedly is not.
fn fail(bench: &mut Bench, part: &'static str, runtime: usize, why: &Error) -> Result<()> {
    const MOST: usize = 10;
    let name = &bench.runtimes[runtime].name;
    eprintln!("bench: {part}: {name}: {why:#}");
    bench.report.record(part, "failures", runtime, Unit::Count, 1.0);
    let rows = bench.report.rows().iter();
    let mut failures = rows.filter(|row| row.part == part && row.what == "failures");
    let count = failures.next().map_or(0, |row| row.values[runtime].len());
    ensure!(count < MOST, "{part}: {name} has failed {MOST} times");
    Ok(())
}

/// The times of one container's life.
pub struct Phases {
    start: Duration,
    create: Duration,
    start_task: Duration,
    first_byte: Duration,
    exit_to_event: Duration,
    start_to_event: Duration,
    delete: Duration,
    shutdown: Duration,
}

impl Phases {
    fn record(&self, bench: &mut Bench, runtime: usize) {
        let total = self.start
            + self.create
            + self.start_to_event.max(self.start_task)
            + self.delete
            + self.shutdown;
        let phases = [
            ("start: executable to address", self.start),
            ("Create", self.create),
            ("Start", self.start_task),
            ("Start to first byte of output", self.first_byte),
            ("process gone to TaskExit", self.exit_to_event),
            ("Start to TaskExit", self.start_to_event),
            ("Delete", self.delete),
            ("Shutdown to process gone", self.shutdown),
            ("all of it", total),
        ];
        for (what, took) in phases {
            bench.report.time(PART, what, runtime, took);
        }
    }
}

/// Runs `echo` in a container.
pub fn one_container(lab: &Lab, runtime: &Runtime) -> Result<Phases> {
    let id = lab.fresh_id("one");
    let shape = Shape { args: &["/bin/echo", "out"], ..Default::default() };
    let bundle = Bundle::new(lab, &id, &shape)?;
    let streams = Streams::new(lab, &id)?;
    let init = Process { container: &id, exec: "" };
    let exit = lab.events().expect(&id, "");
    let output = first_byte(streams.output.try_clone()?);

    let began = Instant::now();
    let mut shim = Shim::start(lab, runtime, &bundle)?;
    let started = Instant::now();
    let pid = shim.create(runtime, &bundle, Some(&streams))?;
    let created = Instant::now();

    let (process, shim_process) = (watch(pid)?, watch(shim.pid(&id)?)?);
    let gone = thread::spawn(move || wait::readable(process, OPERATION_TIMEOUT).then(Instant::now));

    let asked = Instant::now();
    shim.start_process(init)?;
    let answered = Instant::now();
    let exit = exit.success()?;
    let first_byte = join(output)?.context("the container wrote nothing")?;
    let gone = join(gone)?.context("the container's process does not end")?;

    let deleting = Instant::now();
    shim.delete(init)?;
    let deleted = Instant::now();
    let ended = shim.shutdown(&id, &shim_process)?;
    Ok(Phases {
        start: started - began,
        create: created - started,
        start_task: answered - asked,
        first_byte: first_byte.saturating_duration_since(asked),
        exit_to_event: exit.at.saturating_duration_since(gone),
        start_to_event: exit.at.saturating_duration_since(asked),
        delete: deleted - deleting,
        shutdown: ended - deleted,
    })
}

/// Returns a thread that waits for the first byte of a stream and reads the
/// rest, as any client does: unread output would delay the exit.
fn first_byte(mut output: std::fs::File) -> JoinHandle<Option<Instant>> {
    thread::spawn(move || {
        let arrived = wait::readable(output.as_fd(), OPERATION_TIMEOUT).then(Instant::now);
        let mut bytes = [0; 4096];
        arrived.filter(|_| matches!(output.read(&mut bytes), Ok(1..)))
    })
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the benchmark panicked"))
}

/// An idle container for operations.
struct Running {
    id: String,
    shim: Shim,
    _bundle: Bundle,
}

impl Running {
    fn new(bench: &Bench, runtime: usize) -> Result<Running> {
        let (lab, runtime) = (&bench.lab, &bench.runtimes[runtime]);
        let id = lab.fresh_id("running");
        let shape = Shape { args: &["/pause"], ..Default::default() };
        let bundle = Bundle::new(lab, &id, &shape)?;
        let mut shim = Shim::start(lab, runtime, &bundle)?;
        shim.create(runtime, &bundle, None)?;
        shim.start_process(Process { container: &id, exec: "" })?;
        Ok(Running { id, shim, _bundle: bundle })
    }

    fn end(mut self, bench: &Bench) -> Result<()> {
        let init = Process { container: &self.id, exec: "" };
        let exit = bench.lab.events().expect(&self.id, "");
        let shim_process = watch(self.shim.pid(&self.id)?)?;
        self.shim.kill(init)?;
        exit.wait()?;
        self.shim.delete(init)?;
        self.shim.shutdown(&self.id, &shim_process).map(drop)
    }
}

fn in_a_running_container(bench: &mut Bench) -> Result<()> {
    let all = 0..bench.runtimes.len();
    let mut running =
        all.map(|runtime| Running::new(bench, runtime).map(Some)).collect::<Result<Vec<_>>>()?;
    for turn in 0..=bench.runs {
        for (runtime, slot) in running.iter_mut().enumerate() {
            let Some(running) = slot else { continue };
            // After a request without a reply no further one can be sent.
            if let Err(e) = one_turn(bench, runtime, running, turn > 0) {
                fail(bench, EXEC, runtime, &e)?;
                *slot = None;
            }
        }
    }
    for (runtime, running) in running.iter_mut().enumerate() {
        let Some(running) = running else { continue };
        count(bench, EXEC, runtime, 10, |bench| {
            exec(&bench.lab, &mut running.shim, &running.id).map(drop)
        })?;
    }
    running.into_iter().flatten().try_for_each(|running| running.end(bench))
}

/// Execs beside the pause container, which is the root container of the pod. The
/// cgroup of any other is made and entered in another way.
fn in_a_second_container(bench: &mut Bench) -> Result<()> {
    let up = |runtime: &Runtime| Pod::up(&bench.lab, runtime, Plan::new(&bench.lab, 1)?).map(Some);
    let mut pods = bench.runtimes.iter().map(up).collect::<Result<Vec<_>>>()?;
    for turn in 0..=bench.runs {
        for (runtime, slot) in pods.iter_mut().enumerate() {
            let Some(pod) = slot else { continue };
            let container = pod.container().to_owned();
            match exec(&bench.lab, &mut pod.shim, &container) {
                Ok(times) if turn > 0 => {
                    for (what, took) in times {
                        bench.report.time(SECOND, what, runtime, took);
                    }
                }
                Ok(_) => {}
                // After a request without a reply no further one can be sent.
                Err(e) => {
                    fail(bench, SECOND, runtime, &e)?;
                    *slot = None;
                }
            }
        }
    }
    for (runtime, pod) in pods.iter_mut().enumerate() {
        let Some(pod) = pod else { continue };
        let container = pod.container().to_owned();
        count(bench, SECOND, runtime, 10, |bench| {
            exec(&bench.lab, &mut pod.shim, &container).map(drop)
        })?;
    }
    pods.into_iter().flatten().try_for_each(|pod| pod.down(&bench.lab))
}

fn one_turn(bench: &mut Bench, runtime: usize, running: &mut Running, counts: bool) -> Result<()> {
    let exec = exec(&bench.lab, &mut running.shim, &running.id)?;
    let killed = exec_and_kill(bench, running)?;
    let calls = calls(running)?;
    // The first turn only warms caches.
    if counts {
        for (what, took) in exec {
            bench.report.time(EXEC, what, runtime, took);
        }
        for (what, took) in killed.into_iter().chain(calls) {
            bench.report.time(CALLS, what, runtime, took);
        }
    }
    Ok(())
}

/// Runs `true`, with output and errors on FIFOs, as a probe does.
fn exec(lab: &Lab, shim: &mut Shim, container: &str) -> Result<[(&'static str, Duration); 4]> {
    let id = lab.fresh_id("exec");
    let streams = Streams::new(lab, &id)?;
    let process = Process { container, exec: &id };
    let exit = lab.events().expect(container, &id);
    let began = Instant::now();
    shim.exec(process, &["/bin/true"], Some(&streams))?;
    let announced = Instant::now();
    shim.start_process(process)?;
    let started = Instant::now();
    let exit = exit.success()?;
    let deleting = Instant::now();
    shim.delete(process)?;
    Ok([
        ("Exec", announced - began),
        ("Start", started - announced),
        ("Exec + Start to TaskExit", exit.at - began),
        ("Delete", deleting.elapsed()),
    ])
}

fn exec_and_kill(bench: &Bench, running: &mut Running) -> Result<[(&'static str, Duration); 2]> {
    let id = bench.lab.fresh_id("kill");
    let process = Process { container: &running.id, exec: &id };
    let exit = bench.lab.events().expect(&running.id, &id);
    running.shim.exec(process, &["/bin/sleep", "1000"], None)?;
    running.shim.start_process(process)?;
    let began = Instant::now();
    running.shim.kill(process)?;
    let killed = began.elapsed();
    let exit = exit.wait()?;
    running.shim.delete(process)?;
    Ok([("Kill", killed), ("Kill to TaskExit", exit.at - began)])
}

fn calls(running: &mut Running) -> Result<[(&'static str, Duration); 3]> {
    let id = || running.id.clone();
    let state = StateRequest { id: id(), ..Default::default() };
    let pids = PidsRequest { id: id(), ..Default::default() };
    let stats = StatsRequest { id: id(), ..Default::default() };
    Ok([
        ("State", timed::<StateResponse>(&mut running.shim, "State", &state)?),
        ("Pids", timed::<PidsResponse>(&mut running.shim, "Pids", &pids)?),
        ("Stats", timed::<StatsResponse>(&mut running.shim, "Stats", &stats)?),
    ])
}

fn timed<A: Message>(shim: &mut Shim, method: &str, request: &impl Message) -> Result<Duration> {
    let began = Instant::now();
    shim.call::<A>(method, request)?;
    Ok(began.elapsed())
}

/// Runs an operation `COUNTS` times, a few in a row each time, to measure its
/// CPU time, and once to count the processes that it starts. One runtime after
/// the other, since work that goes on after an operation would otherwise count
/// for the next runtime.
fn count(
    bench: &mut Bench,
    part: &'static str,
    runtime: usize,
    in_a_row: u32,
    mut operation: impl FnMut(&Bench) -> Result<()>,
) -> Result<()> {
    let clock = CpuClock::new(&bench.lab);
    let settle = || thread::sleep(Duration::from_millis(50));
    for _ in 0..COUNTS {
        settle();
        let before = clock.read()?;
        (0..in_a_row).try_for_each(|_| operation(bench))?;
        settle();
        let used = clock.read()?.saturating_sub(before) / in_a_row;
        bench.report.time(part, "CPU time", runtime, used);
    }
    let census = Census::begin(&bench.lab)?;
    operation(bench)?;
    settle();
    let started = census.end()?;
    let counts = [
        ("processes started", started.processes),
        ("threads started", started.threads),
        ("programs executed", started.programs),
    ];
    for (what, count) in counts {
        bench.report.record(part, what, runtime, Unit::Count, count.into());
    }
    Ok(())
}
