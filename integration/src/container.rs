//! Containers as a program runs them: over containerd's API, step by step, with
//! any spec and any streams.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::*;
use containerd_client::tonic::{Code, Status};
use containerd_client::types::v1::ProcessInfo;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use containerd_client::types::{Descriptor, Metric, Mount};
use prost::Message;
use prost_types::Any;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use crate::containerd::Containerd;
use crate::stdio::{Stdio, Streams};
use crate::{attack, checkpoint, image, keep, sandbox, spec, wait};

/// Type URLs of containerd's runtime-spec types.
const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A result with containerd's reply as the error.
pub type Result<T> = std::result::Result<T, Status>;

impl Containerd {
    /// Prepares a container that runs a command. It can be changed and is then
    /// created.
    pub fn container<S: AsRef<str>>(&self, id: &str, args: impl AsRef<[S]>) -> NewContainer<'_> {
        self.track(id);
        NewContainer {
            containerd: self,
            id: id.to_owned(),
            spec: spec::container(args.as_ref(), &self.cgroups_path(id)),
            streams: Streams::Captured,
            options: None,
            input: None,
            output: None,
            runtime: self.runtime_name().to_owned(),
            root: None,
            checkpoint: None,
        }
    }

    /// Prepares a container that runs a line of shell.
    pub fn shell(&self, id: &str, script: &str) -> NewContainer<'_> {
        self.container(id, ["sh", "-c", script])
    }
}

/// A prepared container.
#[derive(Debug)]
pub struct NewContainer<'a> {
    containerd: &'a Containerd,
    id: String,
    spec: Value,
    streams: Streams,
    options: Option<Any>,
    input: Option<String>,
    output: Option<String>,
    runtime: String,
    root: Option<PathBuf>,
    checkpoint: Option<Descriptor>,
}

impl<'a> NewContainer<'a> {
    /// Sets another runtime than the one under test, to compare with.
    pub fn runtime(mut self, name: &str) -> Self {
        self.runtime = name.to_owned();
        self
    }

    /// Changes the spec.
    pub fn spec(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Sets the streams.
    pub fn streams(mut self, streams: Streams) -> Self {
        self.streams = streams;
        self.spec["process"]["terminal"] = (streams == Streams::Terminal).into();
        self
    }

    /// Sets another destination of the output: a FIFO, or a URI that the shim
    /// supports, which also takes the errors.
    pub fn output_to(mut self, place: &str) -> Self {
        self.output = Some(place.to_owned());
        self
    }

    /// Sets another origin of the input: a path.
    pub fn input_from(mut self, place: &str) -> Self {
        self.input = Some(place.to_owned());
        self
    }

    /// Sets runtime options, as containerd's clients attach them.
    pub fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// Takes the baseline away, which shuts parts of the kernel that the story uses. Other
    /// runtimes than ours have none.
    pub fn without_baseline(self) -> Self {
        match self.runtime.contains("palisade") {
            true => self.options(options("baseline = 'off'", "")),
            false => self,
        }
    }

    /// Sets another root file system than the image's: a directory.
    pub fn root(mut self, directory: &Path) -> Self {
        self.root = Some(directory.to_owned());
        self
    }

    /// Restores it from a checkpoint.
    pub fn from_checkpoint(mut self, checkpoint: &Descriptor) -> Self {
        self.checkpoint = Some(checkpoint.clone());
        self
    }

    /// Takes the protection away: every capability, all devices, no user
    /// namespace, and no baseline. `change` is what the story changes.
    pub fn privileged(self, change: impl FnOnce(&mut Value)) -> Self {
        self.spec(change)
            .spec(attack::unprotect)
            .options(options("userns = \"never\"\nbaseline = \"off\"", ""))
    }

    /// Adds a bind mount.
    pub fn bind(self, source: &str, destination: &str, options: &[&str]) -> Self {
        self.spec(|s| spec::add_bind(s, source, destination, options))
    }

    /// Creates the container and its task, and starts it.
    pub fn start(self) -> Container<'a> {
        let container = self.create();
        container.start().unwrap_or_else(|e| panic!("start {}: {}", container.id, e.message()));
        container
    }

    /// Creates the container and its task.
    pub fn create(self) -> Container<'a> {
        let id = self.id.clone();
        self.try_create().unwrap_or_else(|e| panic!("create {id}: {}", e.message()))
    }

    /// Creates the container and its task. Returns the error if that is
    /// refused, and then removes the container again.
    pub fn try_create(self) -> Result<Container<'a>> {
        let (request, container) = self.prepare()?;
        let containerd = container.containerd;
        let created = containerd.block_on(async {
            containerd.connect().await.tasks().create(containerd.request(request)).await
        });
        created.map(|created| {
            container.pid.store(pid(created.get_ref().pid), Ordering::Relaxed);
            container
        })
    }

    /// Starts to create the task, and disconnects once that file exists.
    pub fn cancel_create(self, reached: &Path) -> Container<'a> {
        let (request, container) = self.prepare().expect("prepare a container");
        let containerd = container.containerd;
        let mut tasks = containerd.block_on(containerd.connect()).tasks();
        let request = containerd.request(request);
        let mut creation = containerd.spawn(async move { tasks.create(request).await });
        wait::until("the creation gets there", || {
            if creation.is_finished() {
                panic!(
                    "the creation ended before it was cancelled: {:?}",
                    containerd.block_on(&mut creation)
                );
            }
            reached.exists().then_some(())
        });
        creation.abort();
        container
    }

    /// Starts to create the task, and disconnects after a while.
    pub fn give_up_create(self, after: Duration) -> Container<'a> {
        let (request, container) = self.prepare().expect("prepare a container");
        let containerd = container.containerd;
        let mut tasks = containerd.block_on(containerd.connect()).tasks();
        let request = containerd.request(request);
        containerd.block_on(async move {
            let _ = tokio::time::timeout(after, tasks.create(request)).await;
        });
        container
    }

    /// Creates the task, while another client deletes it without a pause, from before it is there.
    pub fn create_amid_deletes(self) -> Result<Container<'a>> {
        let (request, container) = self.prepare().expect("prepare a container");
        let containerd = container.containerd;
        let [mut creator, mut deleter] =
            [(); 2].map(|()| containerd.block_on(containerd.connect()).tasks());
        let request = containerd.request(request);
        let creation = containerd.spawn(async move { creator.create(request).await });
        while !creation.is_finished() {
            let request = DeleteTaskRequest { container_id: container.id.clone() };
            let _ = containerd.block_on(deleter.delete(containerd.request(request)));
        }
        let created = containerd.block_on(creation).expect("the creating task");
        created.map(|created| {
            container.pid.store(pid(created.get_ref().pid), Ordering::Relaxed);
            container
        })
    }

    /// Creates the container without its task. Returns it with the request for
    /// the task.
    fn prepare(self) -> Result<(CreateTaskRequest, Container<'a>)> {
        let containerd = self.containerd;
        // The container comes first, since it keeps containerd from collecting
        // its snapshot.
        containerd.block_on(async {
            let container = containerd_client::services::v1::Container {
                id: self.id.clone(),
                image: image::BUSYBOX.to_owned(),
                runtime: Some(Runtime {
                    name: self.runtime.clone(),
                    options: self.options.clone(),
                }),
                spec: Some(any(SPEC_URL, &self.spec)),
                snapshotter: "overlayfs".to_owned(),
                snapshot_key: self.root.as_ref().map_or(self.id.clone(), |_| String::new()),
                ..Default::default()
            };
            let request = CreateContainerRequest { container: Some(container) };
            containerd.connect().await.containers().create(containerd.request(request)).await
        })?;
        let rootfs = match &self.root {
            None => containerd.prepare_rootfs(&self.id)?,
            Some(directory) => vec![Mount {
                r#type: "bind".to_owned(),
                source: directory.display().to_string(),
                options: vec!["rbind".to_owned(), "rw".to_owned()],
                ..Default::default()
            }],
        };
        let fifos = containerd.directory().join("fifo").join(&self.id);
        let stdio = Stdio::new(fifos.clone(), self.streams);
        containerd.hand_over(&fifos);
        let place = self.output;
        let uri = place.clone().filter(|place| place.contains("://"));
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            stdin: self.input.unwrap_or_else(|| stdio.stdin()),
            stdout: place.unwrap_or_else(|| stdio.stdout()),
            stderr: uri.unwrap_or_else(|| stdio.stderr()),
            terminal: stdio.terminal(),
            checkpoint: self.checkpoint,
            ..Default::default()
        };
        let (id, pid, stdio) = (self.id, AtomicI32::new(0), Mutex::new(stdio));
        Ok((request, Container { containerd, id, pid, stdio }))
    }
}

/// A container with its task, which is removed on drop.
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    /// Its ID.
    pub id: String,
    pid: AtomicI32,
    stdio: Mutex<Stdio>,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + signal.
    pub code: u32,
    /// The time of its end, in seconds since 1970.
    pub at: i64,
}

/// Calls one RPC of containerd's task service: connects, sends, unwraps the
/// reply.
macro_rules! task_call {
    ($containerd:expr, $method:ident, $request:expr) => {{
        let containerd = $containerd;
        let request = containerd.request($request);
        containerd
            .block_on(async { containerd.connect().await.tasks().$method(request).await })
            .map(|answer| answer.into_inner())
    }};
}

impl Container<'_> {
    /// Returns the host's process ID of its init.
    pub fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Returns its streams.
    pub fn stdio(&self) -> MutexGuard<'_, Stdio> {
        self.stdio.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts the init.
    pub fn start(&self) -> Result<()> {
        let request = StartRequest { container_id: self.id.clone(), ..Default::default() };
        let started = task_call!(self.containerd, start, request)?;
        self.pid.store(pid(started.pid), Ordering::Relaxed);
        Ok(())
    }

    /// Waits for the end of the init.
    pub fn wait(&self) -> Exit {
        self.wait_for("")
    }

    fn wait_for(&self, exec_id: &str) -> Exit {
        let request = WaitRequest { container_id: self.id.clone(), exec_id: exec_id.into() };
        let containerd = self.containerd;
        let request = containerd.request(request);
        let ended = containerd.block_on(async {
            let mut tasks = containerd.connect().await.tasks();
            tokio::time::timeout(wait::deadline(), tasks.wait(request)).await
        });
        let ended = ended.unwrap_or_else(|_| panic!("{} {exec_id} does not end", self.id));
        exit(&ended.expect("wait for a process").into_inner())
    }

    /// Waits for the init. Returns its exit code and its output.
    pub fn finish(&self) -> (u32, String) {
        let exit = self.wait();
        (exit.code, self.stdio().output())
    }

    /// Sends a signal to the init.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.signal("", signal, false)
    }

    /// Sends a signal to all processes of the container.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        self.signal("", signal, true)
    }

    fn signal(&self, exec_id: &str, signal: i32, all: bool) -> Result<()> {
        let request = KillRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            signal: signal.try_into().expect("a signal number"),
            all,
        };
        task_call!(self.containerd, kill, request)
    }

    /// Runs a line of shell in the container. Returns its exit code and output.
    pub fn exec_shell(&self, exec_id: &str, script: &str) -> (u32, String) {
        let exec = self.exec(exec_id, spec::process(&["sh", "-c", script]), Streams::Captured);
        let exec = exec.unwrap_or_else(|e| panic!("exec {exec_id}: {}", e.message()));
        exec.start().unwrap_or_else(|e| panic!("start exec {exec_id}: {}", e.message()));
        let exit = exec.wait();
        let output = exec.stdio().output();
        (exit.code, output)
    }

    /// Adds a process without starting it.
    pub fn exec(&self, exec_id: &str, mut process: Value, streams: Streams) -> Result<Exec<'_>> {
        let fifos = self.containerd.directory().join("fifo").join(exec_id);
        let stdio = Stdio::new(fifos.clone(), streams);
        self.containerd.hand_over(&fifos);
        process["terminal"] = stdio.terminal().into();
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            stdin: stdio.stdin(),
            stdout: stdio.stdout(),
            stderr: stdio.stderr(),
            terminal: stdio.terminal(),
            spec: Some(any(PROCESS_URL, &process)),
        };
        task_call!(self.containerd, exec, request)?;
        let id = exec_id.to_owned();
        Ok(Exec { container: self, id, pid: AtomicI32::new(0), stdio: Mutex::new(stdio) })
    }

    /// Pauses it.
    pub fn pause(&self) -> Result<()> {
        task_call!(self.containerd, pause, PauseTaskRequest { container_id: self.id.clone() })
    }

    /// Resumes it.
    pub fn resume(&self) -> Result<()> {
        task_call!(self.containerd, resume, ResumeTaskRequest { container_id: self.id.clone() })
    }

    /// Changes its resources, given as the JSON of the spec's
    /// `linux.resources`.
    pub fn update(&self, resources: &Value) -> Result<()> {
        self.update_with(resources, &[])
    }

    /// Changes its resources, with annotations.
    pub fn update_with(&self, resources: &Value, annotations: &[(&str, &str)]) -> Result<()> {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let request = UpdateTaskRequest {
            container_id: self.id.clone(),
            resources: Some(any(RESOURCES_URL, resources)),
            annotations: annotations.collect(),
        };
        task_call!(self.containerd, update, request)
    }

    /// Returns its processes, as the shim lists them.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let request = ListPidsRequest { container_id: self.id.clone() };
        task_call!(self.containerd, list_pids, request).expect("list processes").processes
    }

    /// Returns the state that containerd reports, even `STOPPED`.
    pub fn state(&self) -> Result<Process> {
        let request = GetRequest { container_id: self.id.clone(), ..Default::default() };
        Ok(task_call!(self.containerd, get, request)?.process.expect("an answer with a process"))
    }

    /// Returns its status.
    pub fn status(&self) -> TaskStatus {
        self.state().expect("ask for the state").status()
    }

    /// Returns its metrics.
    pub fn metrics(&self) -> Metric {
        let request = MetricsRequest { filters: vec![format!("id=={}", self.id)] };
        let metrics = task_call!(self.containerd, metrics, request).expect("ask for metrics");
        metrics.metrics.into_iter().next().expect("metrics of this container")
    }

    /// Closes its standard input.
    pub fn close_io(&self) -> Result<()> {
        let request =
            CloseIoRequest { container_id: self.id.clone(), stdin: true, ..Default::default() };
        task_call!(self.containerd, close_io, request)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let request =
            ResizePtyRequest { container_id: self.id.clone(), width, height, ..Default::default() };
        task_call!(self.containerd, resize_pty, request)
    }

    /// Deletes the task and keeps the container. Returns the exit code.
    pub fn delete_task(&self) -> Result<u32> {
        let request = DeleteTaskRequest { container_id: self.id.clone() };
        Ok(task_call!(self.containerd, delete, request)?.exit_status)
    }

    /// Requests a second task.
    pub fn create_task_again(&self) -> Result<()> {
        let request = CreateTaskRequest { container_id: self.id.clone(), ..Default::default() };
        task_call!(self.containerd, create, request).map(|_| ())
    }

    /// Makes a checkpoint, with options of runc's shim. Returns where containerd has it.
    pub fn checkpoint_image(&self, options: Option<Any>) -> Result<Descriptor> {
        let container_id = self.id.clone();
        let containerd = self.containerd;
        let request = CheckpointTaskRequest { container_id, options, ..Default::default() };
        let mut request = containerd.request(request);
        let made = containerd.block_on(async {
            let client = containerd.connect().await;
            // Without one containerd collects the images as soon as anything else is deleted.
            let lease = containerd.request(CreateRequest::default());
            let lease = client.leases().create(lease).await.expect("make a lease").into_inner();
            let lease = lease.lease.expect("a lease").id;
            let name = lease.parse().expect("an ASCII name");
            request.metadata_mut().insert("containerd-lease", name);
            client.tasks().checkpoint(request).await
        })?;
        Ok(made.into_inner().descriptors.into_iter().next().expect("a checkpoint"))
    }

    /// Makes a checkpoint in a folder of its own, of which containerd makes no image.
    pub fn checkpoint_to(&self, folder: &Path, wanted: &checkpoint::Options) -> Result<()> {
        let image_path = folder.display().to_string();
        let options = checkpoint::Options { image_path, ..wanted.clone() };
        let options = Some(options.any());
        let container_id = self.id.clone();
        let request = CheckpointTaskRequest { container_id, options, ..Default::default() };
        task_call!(self.containerd, checkpoint, request).map(drop)
    }

    /// Returns the shim's process ID.
    pub fn shim(&self) -> i32 {
        sandbox::shim_of(self.pid())
    }

    /// Returns a descriptor that becomes readable when the init ends.
    pub fn pidfd(&self) -> OwnedFd {
        pidfd(self.pid())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        discard(self.containerd, &self.id);
    }
}

/// An exec'd process of a container, which is deleted on drop.
#[derive(Debug)]
pub struct Exec<'a> {
    container: &'a Container<'a>,
    /// Its exec ID.
    pub id: String,
    pid: AtomicI32,
    stdio: Mutex<Stdio>,
}

impl Exec<'_> {
    /// Returns its process ID on the host.
    pub fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Returns its streams.
    pub fn stdio(&self) -> MutexGuard<'_, Stdio> {
        self.stdio.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        let container = self.container;
        let request = StartRequest { container_id: container.id.clone(), exec_id: self.id.clone() };
        let started = task_call!(container.containerd, start, request)?;
        self.pid.store(pid(started.pid), Ordering::Relaxed);
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self) -> Exit {
        self.container.wait_for(&self.id)
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.container.signal(&self.id, signal, false)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
            width,
            height,
        };
        task_call!(self.container.containerd, resize_pty, request)
    }

    /// Closes its standard input.
    pub fn close_io(&self) -> Result<()> {
        let request = CloseIoRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
            stdin: true,
        };
        task_call!(self.container.containerd, close_io, request)
    }

    /// Deletes it. Returns its exit code.
    pub fn delete(&self) -> Result<u32> {
        let request = DeleteProcessRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
        };
        Ok(task_call!(self.container.containerd, delete_process, request)?.exit_status)
    }
}

impl Drop for Exec<'_> {
    fn drop(&mut self) {
        if !keep::keeps() {
            let _ = self.delete();
        }
    }
}

impl Containerd {
    /// Waits for the end of a task that another process made.
    pub fn wait_for_task(&self, id: &str) -> Exit {
        let request = WaitRequest { container_id: id.to_owned(), ..Default::default() };
        exit(&task_call!(self, wait, request).expect("wait for a task"))
    }

    /// Prepares a writable root file system of the test image.
    fn prepare_rootfs(&self, id: &str) -> Result<Vec<Mount>> {
        let parent = self.busybox_snapshot();
        let request = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            parent,
            ..Default::default()
        };
        let request = self.request(request);
        let prepared =
            self.block_on(async { self.connect().await.snapshots().prepare(request).await })?;
        Ok(prepared.into_inner().mounts)
    }

    pub(crate) async fn connect(&self) -> containerd_client::Client {
        let connected = containerd_client::Client::from_path(self.address()).await;
        connected.unwrap_or_else(|e| panic!("connect to containerd: {e}"))
    }
}

/// Removes a container and whatever still runs in it, if it exists.
pub(crate) fn discard(containerd: &Containerd, id: &str) {
    if keep::keeps() {
        return;
    }
    let container_id = id.to_owned();
    let wait = WaitRequest { container_id: container_id.clone(), ..Default::default() };
    let kill = KillRequest {
        container_id: container_id.clone(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    let delete = DeleteTaskRequest { container_id: container_id.clone() };
    let resume = ResumeTaskRequest { container_id: container_id.clone() };
    containerd.block_on(async {
        let client = match containerd_client::Client::from_path(containerd.address()).await {
            Ok(client) => client,
            Err(_) => return,
        };
        let mut tasks = client.tasks();
        let deleted = tasks.delete(containerd.request(delete.clone())).await;
        if deleted.is_err_and(|e| e.code() != Code::NotFound) {
            let _ = tasks.resume(containerd.request(resume)).await;
            let _ = tasks.kill(containerd.request(kill)).await;
            let waited = tasks.wait(containerd.request(wait));
            let _ = tokio::time::timeout(crate::wait::deadline(), waited).await;
            let _ = tasks.delete(containerd.request(delete)).await;
        }
        let request = DeleteContainerRequest { id: id.to_owned() };
        let _ = client.containers().delete(containerd.request(request)).await;
        let request = RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: id.into() };
        let _ = client.snapshots().remove(containerd.request(request)).await;
    });
}

/// containerd's `runtimeoptions.v1.Options`.
#[derive(Clone, PartialEq, Message)]
struct RuntimeOptions {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// Returns Palisade's options as clients attach them to a container: their text,
/// or the path of a file.
pub fn options(body: &str, path: &str) -> Any {
    let options = RuntimeOptions {
        type_url: String::new(),
        config_path: path.to_owned(),
        config_body: body.as_bytes().to_vec(),
    };
    Any { type_url: "runtimeoptions.v1.Options".to_owned(), value: options.encode_to_vec() }
}

/// Returns a value as containerd carries it: JSON with a name of its type.
pub fn any(type_url: &str, value: &Value) -> Any {
    Any { type_url: type_url.to_owned(), value: value.to_string().into_bytes() }
}

fn exit(ended: &WaitResponse) -> Exit {
    let at = ended.exited_at.as_ref().map_or(0, |at| at.seconds);
    Exit { code: ended.exit_status, at }
}

fn pid(number: u32) -> i32 {
    number.try_into().expect("a process ID")
}

/// Returns a descriptor that becomes readable when the process ends.
pub fn pidfd(pid: i32) -> OwnedFd {
    let pid = Pid::from_raw(pid).expect("a process ID");
    pidfd_open(pid, PidfdFlags::empty()).unwrap_or_else(|e| panic!("pidfd_open {pid:?}: {e}"))
}
