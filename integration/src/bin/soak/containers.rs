//! Lives of containers, over containerd's API.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::*;
use containerd_client::types::Mount;
use containerd_client::types::v1::Status;
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use fastrand::Rng;
use integration::container::any;
use integration::containerd::Containerd;
use integration::stdio::{Stdio, Streams};
use integration::{host, image, spec, wait};
use serde_json::{Value, json};

use crate::api::{Api, Failure};
use crate::events::{Done, Events};
use crate::history::Life;

const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

const SIGKILL: u32 = 9;

/// One container, and the client's side of it.
pub struct Container<'a> {
    api: &'a Api<'a>,
    pub(crate) life: Arc<Life>,
    done: Done,
    /// How many execs it was asked for.
    execs: u32,
    /// The CPU time at the last look, in nanoseconds.
    cpu: u64,
}

/// The root file system that all containers share.
pub fn root(daemon: &Containerd) -> PathBuf {
    daemon.directory().join("root-of-all")
}

/// Lives one life, of a kind that chance chooses.
pub fn live(api: &Api<'_>, events: &Arc<Events>, name: &str, chance: &mut Rng) {
    let mut container = Container::new(api, name);
    let life = Arc::clone(&container.life);
    match chance.u8(..16) {
        0..6 => container.runs_to_its_end(chance),
        6..12 => container.serves(chance),
        12 => container.crashes(chance),
        13 => container.runs_out_of_memory(),
        14 => container.is_given_up(chance),
        _ => container.cannot_start(),
    }
    container.is_deleted();
    let all = !life.may_be_silent(&api.world);
    if let Err(what) = events.judge(&life.id, &container.done, all) {
        // What struck it may have been noted since.
        if !life.may_be_silent(&api.world) || !what.starts_with("no event") {
            api.world.wrong(&life, &what);
        }
    }
    api.world.end(&life);
}

impl<'a> Container<'a> {
    /// Begins the life of one that is not made yet.
    pub fn new(api: &'a Api<'a>, name: &str) -> Self {
        let id = format!("soak-{name}");
        api.daemon.track(&id);
        let life = api.world.begin(&id);
        Self { api, life, done: Done::default(), execs: 0, cpu: 0 }
    }
}

impl Container<'_> {
    /// It prints something, and exits with some code.
    fn runs_to_its_end(&mut self, chance: &mut Rng) {
        let (code, lines) = (chance.u8(..), [3, 300, 30_000][chance.usize(..3)]);
        let script = format!("seq 1 {lines}; exit {code}");
        let Some(stdio) = self.create(&["sh", "-c", &script], |_| ()) else { return };
        self.start();
        self.ends_with(code.into());
        self.prints(stdio, move |output| output == numbers(lines).as_bytes());
    }

    /// It waits, and is asked for all there is.
    fn serves(&mut self, chance: &mut Rng) {
        // It ends at SIGTERM, with a code that no signal has.
        let code = chance.u8(..100);
        let script = format!("trap 'exit {code}' TERM; echo ready; sleep 1000 & wait");
        let Some(stdio) = self.create(&["sh", "-c", &script], |_| ()) else { return };
        if !self.start() {
            return;
        }
        let ready = output_within(move || {
            stdio.wait_for_output("ready\n");
            stdio
        });
        self.api.expect(&self.life, ready.is_some(), || "it does not print".to_owned());
        for _ in 0..chance.u8(1..12) {
            match chance.u8(..10) {
                0..4 => self.exec(chance),
                4 => self.exec_is_killed(),
                5 => self.is_paused(),
                6 => self.is_updated(chance),
                7 => self.lists_its_processes(),
                8 => self.is_measured(),
                _ => self.has_state(Status::Running),
            }
        }
        if chance.bool() {
            self.kill("", 15, false);
            self.ends_with(code.into());
        } else {
            self.kill("", SIGKILL, chance.bool());
            self.ends_with(128 + SIGKILL);
        }
    }

    fn crashes(&mut self, chance: &mut Rng) {
        let signal = [4, 6, 7, 8, 11][chance.usize(..5)];
        let Some(_stdio) = self.create(&["sleep", "1000"], |_| ()) else { return };
        if !self.start() {
            return;
        }
        // The init of a PID namespace gets no signal that it does not handle; an exec does.
        self.exec_of(&format!("kill -{signal} $$"), 128 + signal, 0);
        self.kill("", SIGKILL, false);
        self.ends_with(128 + SIGKILL);
    }

    fn runs_out_of_memory(&mut self) {
        let small = |spec: &mut Value| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
        };
        let Some(_stdio) = self.create(&["sh", "-c", "exec tail /dev/zero"], small) else { return };
        if self.start() {
            self.ends_with(128 + SIGKILL);
        }
    }

    /// The client asks for it, and does not wait for the answer.
    fn is_given_up(&mut self, chance: &mut Rng) {
        let Some((request, _stdio)) = self.prepare(&["sleep", "1000"], |_| ()) else { return };
        let time = Duration::from_millis(chance.u64(..40));
        let created = self.api.ask_within(&self.life, "create, and give up", time, request, create);
        // Whether it was made in time, and told, nobody knows.
        self.life.strike("the client has given up", true);
        if let Ok(created) = created {
            self.life.init.store(pid(created.pid), Ordering::SeqCst);
            self.start();
        }
    }

    fn cannot_start(&mut self) {
        let Some((request, _stdio)) = self.prepare(&["/no/such/program"], |_| ()) else { return };
        let created = self.api.ask(&self.life, "create what cannot start", request, create);
        let refused = match created {
            Ok(_) => {
                self.done.created = true;
                let started = self.ask_to_start();
                matches!(started, Err(Failure::Refused(_)))
            }
            Err(failure) => matches!(failure, Failure::Refused(_)),
        };
        self.api.expect(&self.life, refused, || "a program that is not there started".to_owned());
    }

    /// Makes the container and its task. `None` if that failed, which is noted.
    pub(crate) fn create(
        &mut self,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Option<Stdio> {
        let (request, stdio) = self.prepare(args, change)?;
        match self.api.ask(&self.life, "create", request, create) {
            Ok(created) => {
                self.done.created = true;
                self.life.init.store(pid(created.pid), Ordering::SeqCst);
                Some(stdio)
            }
            Err(failure) => {
                self.api.expect(&self.life, false, || format!("create: {}", failure.words()));
                None
            }
        }
    }

    fn prepare(
        &mut self,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Option<(CreateTaskRequest, Stdio)> {
        let id = self.life.id.clone();
        let mut spec = spec::container(args, &self.api.daemon.cgroups_path(&id));
        change(&mut spec);
        let name = self.api.daemon.runtime_name().to_owned();
        let container = containerd_client::services::v1::Container {
            id: id.clone(),
            image: image::BUSYBOX.to_owned(),
            runtime: Some(Runtime { name, options: None }),
            spec: Some(any(SPEC, &spec)),
            ..Default::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        let made =
            self.api.ask(&self.life, "create container", request, async |client, request| {
                client.containers().create(request).await
            });
        if let Err(failure) = made {
            let words = failure.words();
            self.api.expect(&self.life, false, || format!("create container: {words}"));
            return None;
        }
        let stdio = Stdio::new(self.fifos("init"), Streams::Captured);
        let root = root(self.api.daemon);
        let request = CreateTaskRequest {
            container_id: id,
            rootfs: vec![Mount {
                r#type: "bind".to_owned(),
                source: root.display().to_string(),
                options: vec!["rbind".to_owned(), "rw".to_owned()],
                ..Default::default()
            }],
            stdin: stdio.stdin(),
            stdout: stdio.stdout(),
            stderr: stdio.stderr(),
            ..Default::default()
        };
        Some((request, stdio))
    }

    fn fifos(&self, name: &str) -> PathBuf {
        self.api.daemon.directory().join("fifo").join(format!("{}-{name}", self.life.id))
    }

    fn ask_to_start(&mut self) -> Result<StartResponse, Failure> {
        let request = StartRequest { container_id: self.life.id.clone(), exec_id: String::new() };
        self.api.ask(&self.life, "start", request, start)
    }

    /// Starts the init. Returns whether it started.
    pub(crate) fn start(&mut self) -> bool {
        let started = self.ask_to_start();
        self.done.started = started.is_ok();
        match started {
            Ok(started) => self.life.init.store(pid(started.pid), Ordering::SeqCst),
            Err(failure) => {
                self.api.expect(&self.life, false, || format!("start: {}", failure.words()));
            }
        }
        self.done.started
    }

    /// Waits for the end of the init.
    fn ends_with(&mut self, code: u32) {
        if !self.done.started {
            return;
        }
        let exit = self.wait("");
        self.life.init.store(0, Ordering::SeqCst);
        self.api.expect(&self.life, exit == Some(code), || {
            format!("it ended with {exit:?}, not with {code}")
        });
        if exit.is_some() {
            self.has_state(Status::Stopped);
        }
    }

    /// Waits for a process. `None` if there is no answer.
    fn wait(&self, exec_id: &str) -> Option<u32> {
        let request =
            WaitRequest { container_id: self.life.id.clone(), exec_id: exec_id.to_owned() };
        let what = if exec_id.is_empty() { "wait" } else { "wait for an exec" };
        let ended = self.api.ask(&self.life, what, request, async |client, request| {
            client.tasks().wait(request).await
        });
        ended.ok().map(|ended| ended.exit_status)
    }

    /// Reads the output to its end.
    fn prints(&self, mut stdio: Stdio, is_right: impl FnOnce(&[u8]) -> bool) {
        let output = output_within(move || stdio.output_bytes());
        let is_right = output.as_deref().is_some_and(is_right);
        self.api.expect(&self.life, is_right, || match output {
            Some(output) => format!("it printed {} other bytes", output.len()),
            None => "its output does not end".to_owned(),
        });
    }

    fn kill(&self, exec_id: &str, signal: u32, all: bool) {
        let request = KillRequest {
            container_id: self.life.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
        };
        let killed = self.api.ask(&self.life, "kill", request, async |client, request| {
            client.tasks().kill(request).await
        });
        if let Err(failure) = killed {
            self.api.expect(&self.life, false, || format!("kill: {}", failure.words()));
        }
    }

    pub(crate) fn exec(&mut self, chance: &mut Rng) {
        let (script, code, lines) = counting(chance);
        self.exec_of(&script, code.into(), lines);
    }

    /// Runs a line of shell, which prints the numbers up to one, and ends with a code.
    fn exec_of(&mut self, script: &str, code: u32, lines: u32) {
        self.exec_with(script, code, move |output| output == numbers(lines).as_bytes());
    }

    /// Runs a line of shell, which prints what is right, and ends with a code.
    pub(crate) fn exec_with(
        &mut self,
        script: &str,
        code: u32,
        is_right: impl FnOnce(&[u8]) -> bool,
    ) {
        let Some((exec, stdio)) = self.begin_exec(&["sh", "-c", script]) else { return };
        let exit = self.wait(&exec);
        self.life.exec.store(0, Ordering::SeqCst);
        self.api.expect(&self.life, exit == Some(code), || {
            format!("exec {exec} ended with {exit:?}, not with {code}")
        });
        self.prints(stdio, is_right);
        self.delete_exec(exec, code);
    }

    fn exec_is_killed(&mut self) {
        let Some((exec, _stdio)) = self.begin_exec(&["sleep", "1000"]) else { return };
        self.kill(&exec, SIGKILL, false);
        let exit = self.wait(&exec);
        self.life.exec.store(0, Ordering::SeqCst);
        self.api.expect(&self.life, exit == Some(128 + SIGKILL), || {
            format!("exec {exec} was killed and ended with {exit:?}")
        });
        self.delete_exec(exec, 128 + SIGKILL);
    }

    /// Starts an exec. Returns its ID, if it started.
    fn begin_exec(&mut self, args: &[&str]) -> Option<(String, Stdio)> {
        self.execs += 1;
        let exec_id = format!("exec-{}", self.execs);
        let stdio = Stdio::new(self.fifos(&exec_id), Streams::Captured);
        let request = ExecProcessRequest {
            container_id: self.life.id.clone(),
            exec_id: exec_id.clone(),
            stdout: stdio.stdout(),
            stderr: stdio.stderr(),
            spec: Some(any(PROCESS, &spec::process(args))),
            ..Default::default()
        };
        let added = self.api.ask(&self.life, "exec", request, async |client, request| {
            client.tasks().exec(request).await
        });
        if let Err(failure) = added {
            self.api.expect(&self.life, false, || format!("exec: {}", failure.words()));
            return None;
        }
        let request = StartRequest { container_id: self.life.id.clone(), exec_id: exec_id.clone() };
        match self.api.ask(&self.life, "start an exec", request, start) {
            Ok(started) => {
                self.life.exec.store(pid(started.pid), Ordering::SeqCst);
                Some((exec_id, stdio))
            }
            Err(failure) => {
                self.api.expect(&self.life, false, || format!("start exec: {}", failure.words()));
                None
            }
        }
    }

    fn delete_exec(&mut self, exec_id: String, code: u32) {
        let request =
            DeleteProcessRequest { container_id: self.life.id.clone(), exec_id: exec_id.clone() };
        let deleted =
            self.api.ask(&self.life, "delete an exec", request, async |client, request| {
                client.tasks().delete_process(request).await
            });
        let exit = deleted.map(|deleted| deleted.exit_status);
        let is_right = matches!(exit, Ok(exit) if exit == code);
        self.api.expect(&self.life, is_right, || format!("delete of {exec_id}: {exit:?}"));
        self.done.execs.push(exec_id);
    }

    pub(crate) fn is_paused(&self) {
        let request = PauseTaskRequest { container_id: self.life.id.clone() };
        let paused = self.api.ask(&self.life, "pause", request, async |client, request| {
            client.tasks().pause(request).await
        });
        self.api.expect(&self.life, paused.is_ok(), || format!("pause: {paused:?}"));
        if paused.is_ok() {
            self.has_state(Status::Paused);
        }
        let request = ResumeTaskRequest { container_id: self.life.id.clone() };
        let resumed = self.api.ask(&self.life, "resume", request, async |client, request| {
            client.tasks().resume(request).await
        });
        self.api.expect(&self.life, resumed.is_ok(), || format!("resume: {resumed:?}"));
        self.has_state(Status::Running);
    }

    pub(crate) fn is_updated(&self, chance: &mut Rng) {
        let limit = chance.u64(64..512) << 20;
        let shares = chance.u64(2..2048);
        let resources = json!({ "memory": { "limit": limit }, "cpu": { "shares": shares } });
        let request = UpdateTaskRequest {
            container_id: self.life.id.clone(),
            resources: Some(any(RESOURCES, &resources)),
            ..Default::default()
        };
        let updated = self.api.ask(&self.life, "update", request, async |client, request| {
            client.tasks().update(request).await
        });
        self.api.expect(&self.life, updated.is_ok(), || format!("update: {updated:?}"));
        let metrics = self.metrics();
        let told = metrics.map(|metrics| metrics.memory().usage().limit());
        // The kernel counts pages.
        let is_told = host::has_cgroup_v2_only() || told == Some(limit);
        self.api.expect(&self.life, is_told, || format!("a limit of {limit} is told as {told:?}"));
    }

    fn lists_its_processes(&self) {
        let request = ListPidsRequest { container_id: self.life.id.clone() };
        let listed =
            self.api.ask(&self.life, "list processes", request, async |client, request| {
                client.tasks().list_pids(request).await
            });
        let init = self.life.init.load(Ordering::SeqCst);
        let pids: Option<Vec<i32>> =
            listed.ok().map(|l| l.processes.iter().map(|process| pid(process.pid)).collect());
        let has_init = pids.as_ref().is_some_and(|pids| pids.contains(&init));
        self.api.expect(&self.life, has_init, || format!("no init {init} among {pids:?}"));
    }

    /// CPU time grows.
    fn is_measured(&mut self) {
        let Some(metrics) = self.metrics() else { return };
        if host::has_cgroup_v2_only() {
            return;
        }
        let (before, now) = (self.cpu, metrics.cpu().usage().total());
        self.api.expect(&self.life, now >= before && now > 0, || {
            format!("the CPU time was {before} ns and is {now} ns")
        });
        self.cpu = now;
    }

    /// Asks for the metrics of version 1; those of version 2 are empty so.
    fn metrics(&self) -> Option<Metrics> {
        let request = MetricsRequest { filters: vec![format!("id=={}", self.life.id)] };
        let asked = self.api.ask(&self.life, "metrics", request, async |client, request| {
            client.tasks().metrics(request).await
        });
        let metric = asked.ok().and_then(|asked| asked.metrics.into_iter().next());
        let data = metric.and_then(|metric| metric.data);
        self.api.expect(&self.life, data.is_some(), || "there are no metrics".to_owned());
        data.map(|data| Metrics::parse_from_bytes(&data.value).unwrap_or_default())
    }

    fn has_state(&self, expected: Status) {
        let request = GetRequest { container_id: self.life.id.clone(), exec_id: String::new() };
        let asked = self.api.ask(&self.life, "state", request, async |client, request| {
            client.tasks().get(request).await
        });
        let state = asked.ok().and_then(|asked| asked.process).map(|process| process.status());
        self.api.expect(&self.life, state == Some(expected), || {
            format!("its state is {state:?}, not {expected:?}")
        });
    }

    /// Deletes all of it. Whatever has befallen it, that succeeds in the end.
    pub(crate) fn is_deleted(&self) {
        let mut answers: BTreeMap<String, u32> = BTreeMap::new();
        let is_gone = repeat(|| match self.delete_task() {
            Ok(()) => true,
            Err(failure) if failure.is_not_found() => true,
            Err(failure) => {
                *answers.entry(failure.words()).or_default() += 1;
                self.end_by_force();
                false
            }
        });
        self.life.init.store(0, Ordering::SeqCst);
        if !is_gone {
            self.api.world.wrong(&self.life, &format!("it cannot be deleted: {answers:?}"));
        }
        let is_gone = repeat(|| {
            let request = DeleteContainerRequest { id: self.life.id.clone() };
            let deleted =
                self.api.ask(&self.life, "delete container", request, async |client, request| {
                    client.containers().delete(request).await
                });
            deleted.is_ok_and(|()| true) || self.has_no_container()
        });
        if !is_gone {
            self.api.world.wrong(&self.life, "the container cannot be deleted");
        }
    }

    fn has_no_container(&self) -> bool {
        let request = GetContainerRequest { id: self.life.id.clone() };
        let asked = self.api.ask(&self.life, "look for a container", request, async |client, r| {
            client.containers().get(r).await
        });
        asked.is_err_and(|failure| failure.is_not_found())
    }

    fn delete_task(&self) -> Result<(), Failure> {
        let request = DeleteTaskRequest { container_id: self.life.id.clone() };
        let deleted = self.api.ask(&self.life, "delete", request, async |client, request| {
            client.tasks().delete(request).await
        });
        deleted.map(|_| ())
    }

    fn end_by_force(&self) {
        let resume = ResumeTaskRequest { container_id: self.life.id.clone() };
        let _ = self.api.ask(&self.life, "resume, to delete", resume, async |client, request| {
            client.tasks().resume(request).await
        });
        let kill = KillRequest {
            container_id: self.life.id.clone(),
            signal: SIGKILL,
            all: true,
            ..Default::default()
        };
        let _ = self.api.ask(&self.life, "kill, to delete", kill, async |client, request| {
            client.tasks().kill(request).await
        });
    }
}

/// A line of shell that prints the numbers up to one and ends with a code, both of which chance
/// chooses.
pub fn counting(chance: &mut Rng) -> (String, u8, u32) {
    let (code, lines) = (chance.u8(..), [0, 3, 3000][chance.usize(..3)]);
    (format!("seq 1 {lines}; exit {code}"), code, lines)
}

/// What `seq` prints.
pub fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

/// Does something until it succeeds; `false` if it never does.
pub fn repeat(mut act: impl FnMut() -> bool) -> bool {
    wait::try_until(2 * wait::deadline(), || act().then_some(())).is_some()
}

/// Waits for something that may never come in another thread.
fn output_within<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(read()));
    receiver.recv_timeout(2 * wait::deadline()).ok()
}

async fn create(
    client: containerd_client::Client,
    request: containerd_client::tonic::Request<CreateTaskRequest>,
) -> Result<containerd_client::tonic::Response<CreateTaskResponse>, containerd_client::tonic::Status>
{
    client.tasks().create(request).await
}

async fn start(
    client: containerd_client::Client,
    request: containerd_client::tonic::Request<StartRequest>,
) -> Result<containerd_client::tonic::Response<StartResponse>, containerd_client::tonic::Status> {
    client.tasks().start(request).await
}

fn pid(number: u32) -> i32 {
    number.try_into().unwrap_or(0)
}
