//! The waits for the kernel during each operation: their number, their length,
//! and where in the kernel they were.
//!
//! A wait that begins and ends between a request and its answer may have held up
//! the answer: it is *on the road*. One that ends later has not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use containerd_shim_protos::api::{Empty, PauseRequest, ResumeRequest, UpdateTaskRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
    StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
};
use integration::trace::{Kind, Tracer, Wait, now};
use integration::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::burst::exec;
use crate::Bench;
use crate::bundle::{Bundle, Place, Shape};
use crate::lab::Lab;
use crate::report::{Summary, Unit};
use crate::runtime::Runtime;
use crate::shim::{Process, SHUTDOWN_TIMEOUT, Shim, watch};

const NUMBER: &str = "waits on the road, number";
const SUM: &str = "waits on the road, sum";
const LONGEST: &str = "waits on the road, longest";
const GRACE: &str = "grace periods on the road, number";
const SUMMARY: &str = "waits on the road, all operations";

/// Time between operations. The kernel waits the longest where it has not done
/// the same lately, as between the requests of a kubelet.
const SETTLE: Duration = Duration::from_millis(100);

/// The limit above which a wait on the road is a fault.
const LONG_MS: f64 = 1.0;

/// Measures all, or says why it cannot.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut tracer = match Tracer::new(bench.lab.directory()) {
        Ok(tracer) => tracer,
        Err(e) => {
            bench.report.add_note(format!("waits are not measured, for want of tracefs: {e}"));
            return Ok(());
        }
    };
    let mut found = Found::default();
    let mut unable = Vec::new();
    for turn in 0..=bench.runs.div_ceil(5) {
        for number in 0..bench.runtimes.len() {
            for (scenario, run) in SCENARIOS {
                if unable.contains(&(number, scenario)) {
                    continue;
                }
                let mut course = Course::new(scenario);
                let outcome = run(&bench.lab, &bench.runtimes[number], &mut course);
                let waits = tracer.take().map_err(Error::msg)?;
                if let Err(e) = outcome {
                    // Not every shim has a Sandbox service.
                    ensure!(scenario != ALONE || number > 0, e);
                    unable.push((number, scenario));
                    let name = &bench.runtimes[number].name;
                    bench.report.add_note(format!("{name}: waits: {scenario}: {e:#}"));
                } else if turn > 0 {
                    // The first turn only warms caches.
                    found.record(bench, number, &course, waits);
                }
            }
        }
    }
    let names: Vec<&str> = bench.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
    let (json, text) = (found.json(&names), found.table(&names));
    bench.report.add_section("waits", json, text);
    Ok(())
}

/// A scenario's name, and its function.
type Scenario = (&'static str, fn(&Lab, &Runtime, &mut Course) -> Result<()>);

const ALONE: &str = "one container";
const SCENARIOS: [Scenario; 3] = [(ALONE, alone), ("pod", pod), ("Sandbox service", sandbox)];

/// The operations of one scenario, in the order of time.
struct Course {
    scenario: &'static str,
    marks: Vec<Mark>,
}

/// One operation: from its request to its answer.
struct Mark {
    operation: String,
    began: Duration,
    ended: Duration,
}

impl Course {
    fn new(scenario: &'static str) -> Course {
        Course { scenario, marks: Vec::new() }
    }

    /// Carries out an operation, some time after the last one.
    fn step<T>(&mut self, what: &str, operation: impl FnOnce() -> Result<T>) -> Result<T> {
        thread::sleep(SETTLE);
        let began = now();
        let outcome = operation().with_context(|| what.to_owned())?;
        let operation = format!("{}: {what}", self.scenario);
        self.marks.push(Mark { operation, began, ended: now() });
        Ok(outcome)
    }

    /// Returns the operation during or after which a wait began.
    fn mark_of(&self, wait: &Wait) -> Option<&Mark> {
        self.marks.iter().rev().find(|mark| mark.began <= wait.began)
    }
}

/// A container without a pod, as `ctr run` makes it.
fn alone(lab: &Lab, runtime: &Runtime, course: &mut Course) -> Result<()> {
    let id = lab.fresh_id("waits");
    let shape = Shape { args: &["/pause"], seccomp: true, ..Default::default() };
    let bundle = Bundle::new(lab, &id, &shape)?;
    let init = Process { container: &id, exec: "" };
    let mut shim = course.step("start", || Shim::start(lab, runtime, &bundle))?;
    course.step("Create", || shim.create(runtime, &bundle, None))?;
    course.step("Start", || shim.start_process(init))?;
    course.step("Exec to event, Delete", || exec(lab, &mut shim, &id))?;
    while_it_runs(course, &mut shim, &id)?;
    let process = watch(shim.pid(&id)?)?;
    end(lab, course, &mut shim, "", &id)?;
    course.step("Shutdown to process gone", || shim.shutdown(&id, &process))?;
    thread::sleep(SETTLE);
    Ok(())
}

/// A pod with one container besides the pause container.
fn pod(lab: &Lab, runtime: &Runtime, course: &mut Course) -> Result<()> {
    let pause = lab.fresh_id("waits");
    let shape =
        Shape { args: &["/pause"], seccomp: true, place: Place::Pause, ..Default::default() };
    let bundle = Bundle::new(lab, &pause, &shape)?;
    let mut shim = course.step("start", || Shim::start(lab, runtime, &bundle))?;
    let pid = course.step("Create, pause", || shim.create(runtime, &bundle, None))?;
    let init = Process { container: &pause, exec: "" };
    course.step("Start, pause", || shim.start_process(init))?;
    let second = in_pod(lab, runtime, course, &mut shim, &pause, pid)?;
    exit(lab, course, &mut shim, &second)?;
    let process = watch(shim.pid(&pause)?)?;
    end(lab, course, &mut shim, ", pause", &pause)?;
    course.step("Shutdown to process gone", || shim.shutdown(&pause, &process))?;
    thread::sleep(SETTLE);
    Ok(())
}

/// A pod that the Sandbox service makes, with one container.
fn sandbox(lab: &Lab, runtime: &Runtime, course: &mut Course) -> Result<()> {
    let id = lab.fresh_id("waits");
    let shape = Shape { args: &["/pause"], place: Place::Pause, ..Default::default() };
    let bundle = Bundle::new(lab, &id, &shape)?;
    let mut shim = course.step("start", || Shim::start(lab, runtime, &bundle))?;
    let bundle_path = bundle.path.to_string_lossy().into_owned();
    let request =
        CreateSandboxRequest { sandbox_id: id.clone(), bundle_path, ..Default::default() };
    course.step("CreateSandbox", || {
        shim.ask_sandbox::<CreateSandboxResponse>("CreateSandbox", &request)
    })?;
    let request = StartSandboxRequest { sandbox_id: id.clone(), ..Default::default() };
    let started: StartSandboxResponse =
        course.step("StartSandbox", || shim.ask_sandbox("StartSandbox", &request))?;
    ensure!(started.pid != 0, "this shim makes no sandboxes by the Sandbox service");
    let second = in_pod(lab, runtime, course, &mut shim, &id, started.pid)?;
    let process = watch(shim.pid(&second.id)?)?;
    end(lab, course, &mut shim, "", &second.id)?;
    let request = StopSandboxRequest { sandbox_id: id.clone(), ..Default::default() };
    course
        .step("StopSandbox", || shim.ask_sandbox::<StopSandboxResponse>("StopSandbox", &request))?;
    let request = ShutdownSandboxRequest { sandbox_id: id.clone(), ..Default::default() };
    course.step("ShutdownSandbox to process gone", move || {
        shim.ask_sandbox::<ShutdownSandboxResponse>("ShutdownSandbox", &request)?;
        // The shim goes once its client has hung up.
        drop(shim);
        ensure!(wait::readable(&process, SHUTDOWN_TIMEOUT), "the shim does not end");
        Ok(())
    })?;
    thread::sleep(SETTLE);
    Ok(())
}

/// Runs a second container in a pod. Returns its bundle.
fn in_pod(
    lab: &Lab,
    runtime: &Runtime,
    course: &mut Course,
    shim: &mut Shim,
    pause: &str,
    pid: u32,
) -> Result<Bundle> {
    let id = format!("{pause}-0");
    let place = Place::In(pause, pid);
    let shape = Shape { args: &["/pause"], seccomp: true, place, ..Default::default() };
    let bundle = Bundle::new(lab, &id, &shape)?;
    course.step("Create", || {
        shim.join(lab, runtime, &bundle)?;
        shim.create(runtime, &bundle, None)
    })?;
    course.step("Start", || shim.start_process(Process { container: &id, exec: "" }))?;
    course.step("Exec to event, Delete", || exec(lab, shim, &id))?;
    // A probe's second time finds what the first one has left.
    course.step("Exec once more", || exec(lab, shim, &id))?;
    while_it_runs(course, shim, &id)?;
    Ok(bundle)
}

/// Asks for what only a running container can be asked for.
fn while_it_runs(course: &mut Course, shim: &mut Shim, id: &str) -> Result<()> {
    let resources = json!({ "cpu": { "shares": 512 }, "pids": { "limit": 100 } });
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: resources.to_string().into_bytes(),
        ..Default::default()
    };
    let update = UpdateTaskRequest {
        id: id.to_owned(),
        resources: MessageField::some(resources),
        ..Default::default()
    };
    let pause = PauseRequest { id: id.to_owned(), ..Default::default() };
    let resume = ResumeRequest { id: id.to_owned(), ..Default::default() };
    course.step("Update", || shim.call::<Empty>("Update", &update))?;
    course.step("Pause", || shim.call::<Empty>("Pause", &pause))?;
    course.step("Resume", || shim.call::<Empty>("Resume", &resume))?;
    Ok(())
}

/// Waits for a container that ends without a request, and deletes it.
fn exit(lab: &Lab, course: &mut Course, shim: &mut Shim, bundle: &Bundle) -> Result<()> {
    let init = Process { container: &bundle.id, exec: "" };
    let pid = Pid::from_raw(shim.process_id(&bundle.id)?.cast_signed());
    let exit = lab.events().expect(&bundle.id, "");
    course.step("exit to event", || {
        kill(pid, Signal::SIGKILL)?;
        exit.wait()
    })?;
    course.step("Delete", || shim.delete(init))
}

/// Kills a container and deletes it.
fn end(lab: &Lab, course: &mut Course, shim: &mut Shim, which: &str, id: &str) -> Result<()> {
    let init = Process { container: id, exec: "" };
    let exit = lab.events().expect(id, "");
    course.step(&format!("Kill{which}, to event"), || {
        shim.kill(init)?;
        exit.wait()
    })?;
    course.step(&format!("Delete{which}"), || shim.delete(init))
}

/// All waits of all runtimes, by operation.
#[derive(Default)]
struct Found {
    /// The operations, in the order of time.
    operations: Vec<String>,
    /// The turns in which an operation was carried out, by runtime.
    turns: BTreeMap<(usize, String), usize>,
    /// The lengths in milliseconds of the waits that have all of these in
    /// common.
    waits: BTreeMap<Key, Vec<f64>>,
    /// One full stack of each of these.
    stacks: BTreeMap<Key, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    operation: String,
    runtime: usize,
    on_the_road: bool,
    kind: Kind,
    process: String,
    chain: String,
}

impl Found {
    /// Takes the waits of one scenario.
    fn record(&mut self, bench: &mut Bench, runtime: usize, course: &Course, waits: Vec<Wait>) {
        let mut on_the_road: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut grace: BTreeMap<&str, usize> = BTreeMap::new();
        for mark in &course.marks {
            if !self.operations.contains(&mark.operation) {
                self.operations.push(mark.operation.clone());
            }
            *self.turns.entry((runtime, mark.operation.clone())).or_default() += 1;
            on_the_road.entry(&mark.operation).or_default();
        }
        for wait in waits {
            let Some(mark) = course.mark_of(&wait) else { continue };
            // One that still waits has held up nothing.
            let ended = wait.ended.unwrap_or(Duration::MAX);
            let took = ended.saturating_sub(wait.began).min(SETTLE).as_secs_f64() * 1e3;
            let key = Key {
                operation: mark.operation.clone(),
                runtime,
                on_the_road: ended <= mark.ended,
                kind: wait.kind(),
                process: format!("{} of {}", wait.process, wait.father),
                chain: wait.chain().join(" < "),
            };
            if key.on_the_road && key.kind.is_of_the_kernel() {
                on_the_road.entry(&mark.operation).or_default().push(took);
                if key.kind == Kind::GracePeriod {
                    *grace.entry(&mark.operation).or_default() += 1;
                }
            }
            self.stacks.entry(key.clone()).or_insert(wait.stack);
            self.waits.entry(key).or_default().push(took);
        }
        for mark in &course.marks {
            let waits = &on_the_road[mark.operation.as_str()];
            let what = &mark.operation;
            let longest = waits.iter().copied().fold(0.0, f64::max);
            bench.report.record(NUMBER, what, runtime, Unit::Count, waits.len() as f64);
            bench.report.record(SUM, what, runtime, Unit::Ms, waits.iter().fold(0.0, |a, b| a + b));
            bench.report.record(LONGEST, what, runtime, Unit::Ms, longest);
            let grace = grace.get(mark.operation.as_str()).copied().unwrap_or(0);
            bench.report.record(GRACE, what, runtime, Unit::Count, grace as f64);
        }
        let all = || on_the_road.values().flatten();
        let name = |what: &str| format!("{}: {what}", course.scenario);
        let long = all().filter(|took| **took > LONG_MS).count() as f64;
        bench.report.record(SUMMARY, &name("above 1 ms"), runtime, Unit::Count, long);
        let grace = grace.values().sum::<usize>() as f64;
        bench.report.record(SUMMARY, &name("grace periods"), runtime, Unit::Count, grace);
    }

    /// Returns the waits of an operation and a runtime, those on the road first
    /// and the longest first.
    fn of<'a>(&'a self, operation: &str, runtime: usize) -> Vec<(&'a Key, &'a [f64], Summary)> {
        let mut waits: Vec<_> = self
            .waits
            .iter()
            .filter(|(key, _)| key.operation == operation && key.runtime == runtime)
            .filter_map(|(key, took)| Some((key, took.as_slice(), Summary::of(took)?)))
            .collect();
        waits.sort_by(|(one, _, a), (other, _, b)| {
            other.on_the_road.cmp(&one.on_the_road).then(b.median.total_cmp(&a.median))
        });
        waits
    }

    fn turns_of(&self, operation: &str, runtime: usize) -> usize {
        self.turns.get(&(runtime, operation.to_owned())).copied().unwrap_or(0)
    }

    fn json(&self, names: &[&str]) -> Value {
        let mut all = Vec::new();
        for operation in &self.operations {
            for (runtime, name) in names.iter().enumerate() {
                let turns = self.turns_of(operation, runtime);
                for (key, took, Summary { median, .. }) in self.of(operation, runtime) {
                    all.push(json!({
                        "operation": operation,
                        "runtime": name,
                        "turns": turns,
                        "on_the_road": key.on_the_road,
                        "kind": key.kind.name(),
                        "process": key.process,
                        "count": took.len(),
                        "median_ms": median,
                        "longest_ms": took.iter().copied().fold(0.0, f64::max),
                        "stack": self.stacks[key],
                    }));
                }
            }
        }
        Value::Array(all)
    }

    /// Returns the table for people.
    fn table(&self, names: &[&str]) -> String {
        let mut table = "\nwaits for the kernel, for each time the operation was carried out \
            (number, median ms, longest ms):\n"
            .to_owned();
        for operation in &self.operations {
            let _ = writeln!(table, "\n{operation}");
            for (runtime, name) in names.iter().enumerate() {
                let turns = self.turns_of(operation, runtime);
                if turns == 0 {
                    continue;
                }
                let waits = self.of(operation, runtime);
                if waits.is_empty() {
                    let _ = writeln!(table, "  {name}: none");
                }
                for (key, took, Summary { median, .. }) in waits {
                    let each = took.len() as f64 / turns as f64;
                    let longest = took.iter().copied().fold(0.0, f64::max);
                    let place = if key.on_the_road { "road " } else { "after" };
                    let long = key.on_the_road && key.kind.is_of_the_kernel() && median > LONG_MS;
                    let _ = writeln!(
                        table,
                        "{} {name:<14} {place} {each:>5.2} {median:>8.3} {longest:>8.3}  \
                         {:<12} {:<28} {}",
                        if long { "!" } else { " " },
                        key.kind.name(),
                        key.process,
                        key.chain,
                    );
                }
            }
        }
        table
    }
}
