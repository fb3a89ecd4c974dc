//! Any sequence of the Sandbox service's requests, of containers that come and go, and of deaths
//! of the sandbox process, against a model of what containerd expects of a shim.
//!
//! The model knows nothing of the shim's states: it remembers what happened, as a client does.
//! After each step all that can be seen of the sandbox is compared with it, and in the end
//! nothing may be left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest, StartRequest, StateRequest,
    Status, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, ShutdownSandboxRequest, StartSandboxRequest,
    StopSandboxRequest, WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_api::{SandboxStatusRequest, SandboxStatusResponse};
use integration::container::pidfd;
use integration::containerd::{Containerd, Version};
use integration::sandbox::sandboxes_of;
use integration::shim::{Bundle, Shim};
use integration::{leaks, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost::Message;
use serde_json::{Value, json};
use ttrpc::Code;

/// Each takes about a tenth of a second.
const SEQUENCES: u32 = 80;

const KILLED: u32 = 128 + 9;

/// What happens to a shim.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// CreateSandbox, of one that can start or not.
    CreateSandbox(bool),
    StartSandbox,
    StopSandbox,
    /// A client begins to wait for the sandbox.
    WaitSandbox,
    /// The sandbox process is killed.
    BootDies,
    /// The requests for one of the containers.
    Create(u8),
    Start(u8),
    Kill(u8),
    Delete(u8),
}

fn events() -> impl Strategy<Value = Event> {
    let one = 0..2u8;
    prop_oneof![
        3 => weighted(0.9).prop_map(Event::CreateSandbox),
        4 => Just(Event::StartSandbox),
        2 => Just(Event::StopSandbox),
        1 => Just(Event::WaitSandbox),
        2 => Just(Event::BootDies),
        5 => one.clone().prop_map(Event::Create),
        3 => one.clone().prop_map(Event::Start),
        2 => one.clone().prop_map(Event::Kill),
        3 => one.prop_map(Event::Delete),
    ]
}

/// The answer to a request: the code of a refusal, or what it said.
type Answer<T> = Result<T, Code>;

const REFUSED: Code = Code::FAILED_PRECONDITION;

/// What happened so far.
#[derive(Clone, Debug, Default)]
struct Model {
    pod: Option<Pod>,
    /// The sandbox process, and what has to be taken away with it.
    sandbox: Option<Sandbox>,
    containers: BTreeMap<u8, Life>,
}

#[derive(Clone, Debug)]
struct Pod {
    can_start: bool,
    was_started: bool,
    ended: Option<u32>,
}

#[derive(Clone, Debug)]
struct Sandbox {
    /// The container that made it, where the Sandbox service did not.
    root: Option<u8>,
    lives: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    AtItsGate,
    Running,
    Ended,
}

impl Model {
    fn is_ready(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.was_started && pod.ended.is_none())
    }

    fn lives(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.lives)
    }

    /// Lets something happen. Returns how a client is answered.
    fn happens(&mut self, event: Event) -> Answer<()> {
        match event {
            Event::CreateSandbox(can_start) => self.create_sandbox(can_start),
            Event::StartSandbox => self.start_sandbox(),
            Event::StopSandbox => {
                self.pod.as_ref().ok_or(Code::NOT_FOUND)?;
                self.ends(0);
                Ok(())
            }
            Event::WaitSandbox => self.pod.as_ref().map(|_| ()).ok_or(Code::NOT_FOUND),
            Event::BootDies => {
                if self.lives() {
                    self.ends(KILLED);
                }
                Ok(())
            }
            Event::Create(id) => self.create(id),
            Event::Start(id) => match self.container(id)? {
                life @ Life::AtItsGate => {
                    *life = Life::Running;
                    Ok(())
                }
                Life::Running | Life::Ended => Err(REFUSED),
            },
            Event::Kill(id) => match self.container(id)? {
                Life::Ended => Err(Code::NOT_FOUND),
                life => {
                    *life = Life::Ended;
                    Ok(())
                }
            },
            Event::Delete(id) => {
                if *self.container(id)? == Life::Running {
                    return Err(REFUSED);
                }
                self.containers.remove(&id);
                self.is_torn_down_if_unused();
                Ok(())
            }
        }
    }

    fn create_sandbox(&mut self, can_start: bool) -> Answer<()> {
        // A shim has one sandbox, whoever made it.
        if self.pod.is_some() || self.sandbox.is_some() {
            return Err(Code::ALREADY_EXISTS);
        }
        self.pod = Some(Pod { can_start, was_started: false, ended: None });
        Ok(())
    }

    fn start_sandbox(&mut self) -> Answer<()> {
        let pod = self.pod.as_mut().ok_or(Code::NOT_FOUND)?;
        if pod.was_started || pod.ended.is_some() {
            return Err(REFUSED);
        }
        if !pod.can_start {
            pod.ended = Some(KILLED);
            return Err(Code::UNKNOWN);
        }
        pod.was_started = true;
        self.sandbox = Some(Sandbox { root: None, lives: true });
        Ok(())
    }

    /// The sandbox ends, if it has not, and all in it.
    fn ends(&mut self, status: u32) {
        if let Some(pod) = &mut self.pod {
            pod.ended.get_or_insert(status);
        }
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.lives = false;
            self.containers.values_mut().for_each(|life| *life = Life::Ended);
        }
        self.is_torn_down_if_unused();
    }

    fn create(&mut self, id: u8) -> Answer<()> {
        if self.pod.is_some() && !self.is_ready() {
            return Err(REFUSED);
        }
        if self.containers.contains_key(&id) {
            return Err(Code::ALREADY_EXISTS);
        }
        match &self.sandbox {
            None => self.sandbox = Some(Sandbox { root: Some(id), lives: true }),
            Some(sandbox) if !sandbox.lives => return Err(REFUSED),
            // The sandbox still has this ID, its state and its cgroup.
            Some(sandbox) if sandbox.root == Some(id) => return Err(Code::ALREADY_EXISTS),
            Some(_) => {}
        }
        self.containers.insert(id, Life::AtItsGate);
        Ok(())
    }

    fn container(&mut self, id: u8) -> Answer<&mut Life> {
        self.containers.get_mut(&id).ok_or(Code::NOT_FOUND)
    }

    /// A pod keeps its sandbox until it is stopped, other sandboxes go with the last container.
    fn is_torn_down_if_unused(&mut self) {
        if self.containers.is_empty() && !self.is_ready() {
            self.sandbox = None;
        }
    }

    fn state(&self, id: u8) -> Answer<Status> {
        match self.containers.get(&id).ok_or(Code::NOT_FOUND)? {
            Life::AtItsGate => Ok(Status::CREATED),
            Life::Running => Ok(Status::RUNNING),
            Life::Ended => Ok(Status::STOPPED),
        }
    }
}

/// A shim, and what is asked of it.
struct Client<'a> {
    shim: Shim<'a>,
    pid: i32,
    bundle: &'a Bundle,
    containers: &'a [Bundle; 2],
    config: Vec<u8>,
}

/// Calls a request of a service.
macro_rules! ask {
    ($client:expr, $service:ident, $method:ident, $request:expr) => {{
        let shim = &$client.shim;
        shim.$service.$method(shim.context(), &$request).map_err(code)
    }};
}

/// Returns the code of a refusal. Every request is answered.
fn code(error: ttrpc::Error) -> Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        error => panic!("no answer: {error}"),
    }
}

impl<'a> Client<'a> {
    fn of(bundle: &'a Bundle, containers: &'a [Bundle; 2], config: Vec<u8>) -> Self {
        let shim = bundle.start_shim().expect("start a shim");
        let connect = shim.tasks.connect(shim.context(), &ConnectRequest::default());
        let pid = connect.expect("ask for its process").shim_pid.cast_signed();
        Self { shim, pid, bundle, containers, config }
    }

    fn id(&self) -> String {
        self.bundle.id.clone()
    }

    fn container(&self, id: u8) -> String {
        self.containers[usize::from(id)].id.clone()
    }

    /// Lets something happen. Returns the answer.
    fn asks(&self, event: Event) -> Answer<()> {
        match event {
            Event::CreateSandbox(can_start) => self.create_sandbox(can_start),
            Event::StartSandbox => {
                let request = StartSandboxRequest { sandbox_id: self.id(), ..Default::default() };
                ask!(self, sandboxes, start_sandbox, request).map(drop)
            }
            Event::StopSandbox => {
                let request = StopSandboxRequest { sandbox_id: self.id(), ..Default::default() };
                ask!(self, sandboxes, stop_sandbox, request).map(drop)
            }
            Event::WaitSandbox => self.status().map(drop),
            Event::BootDies => {
                for boot in sandboxes_of(self.pid) {
                    let ended = pidfd(boot.pid);
                    kill(Pid::from_raw(boot.pid), Signal::SIGKILL).expect("kill it");
                    assert!(wait::readable(&ended, wait::deadline()), "it lives on");
                }
                Ok(())
            }
            Event::Create(id) => {
                let bundle = &self.containers[usize::from(id)];
                bundle.respec(|spec| spec["linux"]["namespaces"] = self.namespaces());
                let request = CreateTaskRequest {
                    id: bundle.id.clone(),
                    bundle: bundle.path.to_string_lossy().into_owned(),
                    ..Default::default()
                };
                ask!(self, tasks, create, request).map(drop)
            }
            Event::Start(id) => {
                let request = StartRequest { id: self.container(id), ..Default::default() };
                ask!(self, tasks, start, request).map(drop)
            }
            Event::Kill(id) => {
                let id = self.container(id);
                let request = KillRequest { id, signal: 9, ..Default::default() };
                ask!(self, tasks, kill, request).map(drop)
            }
            Event::Delete(id) => {
                let request = DeleteRequest { id: self.container(id), ..Default::default() };
                let deleted = ask!(self, tasks, delete, request)?;
                assert_eq!(deleted.exit_status, KILLED, "nothing ends by itself");
                assert!(deleted.exited_at.is_some());
                Ok(())
            }
        }
    }

    /// Returns the namespaces of a container: what a sandbox shares that runs, or all its own.
    fn namespaces(&self) -> Value {
        let boot = sandboxes_of(self.pid).first().map(|boot| boot.pid);
        let shared = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
        let shared = shared.map(|(kind, file)| match boot {
            Some(boot) => json!({ "type": kind, "path": format!("/proc/{boot}/ns/{file}") }),
            None => json!({ "type": kind }),
        });
        let own = [json!({ "type": "mount" }), json!({ "type": "pid" })];
        [&shared[..], &own[..]].concat().into()
    }

    fn create_sandbox(&self, can_start: bool) -> Answer<()> {
        let type_url = "runtime.v1.PodSandboxConfig".to_owned();
        let options = Any { type_url, value: self.config.clone(), ..Default::default() };
        let request = CreateSandboxRequest {
            sandbox_id: self.id(),
            bundle_path: self.bundle.path.to_string_lossy().into_owned(),
            options: Some(options).into(),
            // It is looked at when it is entered.
            netns_path: if can_start { "" } else { "/proc/self/ns/mnt" }.to_owned(),
            ..Default::default()
        };
        ask!(self, sandboxes, create_sandbox, request).map(drop)
    }

    fn status(&self) -> Answer<SandboxStatusResponse> {
        let request = SandboxStatusRequest { sandbox_id: self.id(), ..Default::default() };
        ask!(self, sandboxes, sandbox_status, request)
    }

    fn wait(&self) -> Answer<u32> {
        let request = WaitSandboxRequest { sandbox_id: self.id(), ..Default::default() };
        ask!(self, sandboxes, wait_sandbox, request).map(|ended| ended.exit_status)
    }

    /// Compares what there is with what there should be.
    fn is(&self, model: &Model) {
        let ended = model.pod.as_ref().and_then(|pod| pod.ended);
        if let Some(ended) = ended {
            assert_eq!(self.wait(), Ok(ended), "WaitSandbox");
        }
        for (id, _) in model.containers.iter().filter(|(_, life)| **life == Life::Ended) {
            let request = WaitRequest { id: self.container(*id), ..Default::default() };
            let exit = ask!(self, tasks, wait, request).map(|ended| ended.exit_status);
            assert_eq!(exit, Ok(KILLED), "Wait for {id}");
        }
        for id in 0..2 {
            let request = StateRequest { id: self.container(id), ..Default::default() };
            let state = ask!(self, tasks, state, request).map(|state| state.status.unwrap());
            assert_eq!(state, model.state(id), "State of {id}");
        }
        self.has_status_of(model);
        self.has_a_sandbox_as(model);
    }

    fn has_status_of(&self, model: &Model) {
        let ping = PingRequest { sandbox_id: self.id(), ..Default::default() };
        let pinged = ask!(self, sandboxes, ping_sandbox, ping).map(drop);
        let other = PingRequest { sandbox_id: "another".to_owned(), ..Default::default() };
        assert_eq!(ask!(self, sandboxes, ping_sandbox, other).map(drop), Err(Code::NOT_FOUND));
        let Some(pod) = &model.pod else {
            assert_eq!(self.status().map(drop), Err(Code::NOT_FOUND), "SandboxStatus");
            assert_eq!(pinged, Err(Code::NOT_FOUND), "PingSandbox");
            return;
        };
        let status = self.status().expect("SandboxStatus");
        let is_ready = model.is_ready();
        let state = if is_ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" };
        assert_eq!(pinged, if is_ready { Ok(()) } else { Err(REFUSED) }, "PingSandbox");
        assert_eq!(status.state, state, "SandboxStatus");
        assert_eq!(status.exited_at.is_some(), pod.ended.is_some(), "SandboxStatus: exited_at");
        let boot = is_ready.then(|| sandboxes_of(self.pid)[0].pid.cast_unsigned());
        assert_eq!(status.pid, boot.unwrap_or(0), "SandboxStatus: pid");
    }

    /// The sandbox process and its state are there as long as the sandbox is needed.
    fn has_a_sandbox_as(&self, model: &Model) {
        let wanted = model.sandbox.as_ref().map(|sandbox| match sandbox.root {
            Some(root) => self.state(&self.container(root)),
            None => self.state(&self.id()),
        });
        let found = || {
            let states =
                [self.id(), self.container(0), self.container(1)].map(|id| self.state(&id));
            let states: Vec<PathBuf> = states.into_iter().filter(|state| state.exists()).collect();
            (states, !sandboxes_of(self.pid).is_empty())
        };
        let wanted = (Vec::from_iter(wanted), model.lives());
        // It is torn down after the answer.
        let is_so = wait::try_until(wait::patience(10), || (found() == wanted).then_some(()));
        assert!(is_so.is_some(), "states, and whether boot lives: {:?}, not {wanted:?}", found());
    }

    fn state(&self, sandbox: &str) -> PathBuf {
        Path::new("/run/palisade").join(&self.bundle.namespace).join(sandbox)
    }

    /// Ends the shim. Nothing is left by it.
    fn shuts_down(self, containerd: &Containerd) {
        let ended = pidfd(self.pid);
        let request = ShutdownSandboxRequest { sandbox_id: self.id(), ..Default::default() };
        ask!(self, sandboxes, shutdown_sandbox, request).expect("ShutdownSandbox");
        drop(self.shim);
        assert!(wait::readable(&ended, wait::deadline()), "the shim does not end");
        let left = leaks::left_of(&containerd.traces());
        assert!(left.is_empty(), "left: {}", left.join(", "));
    }
}

/// Takes a shim away that was found to be wrong, so that the next one is another.
struct Cleared<'a>(i32, [&'a Bundle; 3]);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
            self.1.iter().for_each(|bundle| drop(bundle.delete()));
        }
    }
}

/// A client that waits for the sandbox over a connection of its own.
fn waiter<'s>(
    scope: &'s thread::Scope<'s, '_>,
    client: &'s Client<'_>,
) -> ScopedJoinHandle<'s, Answer<u32>> {
    let (connected, connects) = std::sync::mpsc::channel();
    let waiting = scope.spawn(move || {
        let address = std::fs::read_to_string(client.bundle.path.join("address"));
        let other = client.bundle.connect(&address.expect("its address")).expect("connect");
        let _ = connected.send(());
        let request = WaitSandboxRequest { sandbox_id: client.id(), ..Default::default() };
        let ended = other.sandboxes.wait_sandbox(other.context(), &request);
        ended.map(|ended| ended.exit_status).map_err(code)
    });
    connects.recv().expect("it connects");
    waiting
}

/// Lets all of it happen to a shim.
fn live(client: &Client<'_>, events: &[Event]) -> Model {
    let mut model = Model::default();
    thread::scope(|scope| {
        let mut waiters = Vec::new();
        for (number, event) in events.iter().enumerate() {
            eprintln!("{number}: {event:?} of {model:?}");
            let expected = model.happens(*event);
            assert_eq!(client.asks(*event), expected, "{number}: {event:?}");
            if matches!(event, Event::WaitSandbox) && expected.is_ok() {
                waiters.push(waiter(scope, client));
            }
            client.is(&model);
        }
        // Who waits is answered when it ends.
        if !waiters.is_empty() {
            model.happens(Event::StopSandbox).expect("there is one");
            client.asks(Event::StopSandbox).expect("stop it");
        }
        let ended = model.pod.as_ref().and_then(|pod| pod.ended);
        for waiter in waiters {
            assert_eq!(waiter.join().expect("who waits").ok(), ended, "a client that waits");
        }
    });
    model
}

#[test]
fn a_sandbox_is_what_containerd_expects_whatever_is_asked_in_any_order() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = Bundle::of_sandbox(&containerd);
    let containers = ["one", "two"].map(|id| Bundle::new(&containerd, id, "sleep 1000"));
    let config = containerd.pod_config("any-order").encode_to_vec();
    let settings = Config {
        cases: SEQUENCES,
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..Config::default()
    };
    let lived = TestRunner::new(settings).run(&vec(events(), 1..24), |events| {
        let client = Client::of(&bundle, &containers, config.clone());
        let _cleared = Cleared(client.pid, [&bundle, &containers[0], &containers[1]]);
        live(&client, &events);
        client.shuts_down(&containerd);
        Ok(())
    });
    if let Err(failure) = lived {
        panic!("{failure}");
    }
}
