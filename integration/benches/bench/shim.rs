//! A shim as containerd uses it: the executable is run with `start`, prints an
//! address, and serves Tasks there until Shutdown.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, ShutdownRequest, StartRequest,
    StartResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options as RuncOptions;
use integration::{spec, wait};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::bundle::{Bundle, Streams};
use crate::lab::Lab;
use crate::runtime::Runtime;
use crate::wire::{Client, NAMESPACE};

/// Time in which a shim must exit after Shutdown.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// A process of a container: the container's ID, and the exec's or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// The container.
    pub container: &'a str,
    /// The exec ID, empty for the container's init.
    pub exec: &'a str,
}

/// A connected shim.
#[derive(Debug)]
pub struct Shim {
    /// Its address.
    pub address: Address,
    client: Client,
}

/// The result of `start`.
#[derive(Clone, Debug)]
pub struct Address {
    address: String,
    version: u32,
}

impl Shim {
    /// Runs `start` for a bundle and connects to the address that it prints.
    pub fn start(lab: &Lab, runtime: &Runtime, bundle: &Bundle) -> Result<Shim> {
        let address = start(lab, runtime, bundle)?;
        Shim::connect(&address)
    }

    /// Opens another connection to a shim.
    pub fn connect(address: &Address) -> Result<Shim> {
        let client = Client::connect(&address.address, address.version)?;
        Ok(Shim { address: address.clone(), client })
    }

    /// Finds the shim for one more container of its pod, as containerd does:
    /// from version 3 of the protocol on it knows the address; before, `start`
    /// prints it.
    pub fn join(&mut self, lab: &Lab, runtime: &Runtime, bundle: &Bundle) -> Result<()> {
        if self.address.version < 3 {
            let address = start(lab, runtime, bundle)?;
            ensure!(
                address.address == self.address.address,
                "`start` of {} in a pod printed {}, expected its shim's {}",
                bundle.id,
                address.address,
                self.address.address
            );
        }
        Ok(())
    }

    /// Calls any method.
    pub fn call<A: Message>(&mut self, method: &str, request: &impl Message) -> Result<A> {
        self.client.call(method, request)
    }

    /// Calls a method of the Sandbox service.
    pub fn ask_sandbox<A: Message>(&mut self, method: &str, request: &impl Message) -> Result<A> {
        self.client.call_service("containerd.runtime.sandbox.v1.Sandbox", method, request)
    }

    /// Calls Create. Returns the host's PID of the container's init.
    pub fn create(
        &mut self,
        runtime: &Runtime,
        bundle: &Bundle,
        streams: Option<&Streams>,
    ) -> Result<u32> {
        let request = CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.path.to_string_lossy().into_owned(),
            rootfs: vec![bundle.rootfs()],
            stdout: streams.map_or(String::new(), |streams| streams.stdout.clone()),
            stderr: streams.map_or(String::new(), |streams| streams.stderr.clone()),
            options: options(runtime)?,
            ..Default::default()
        };
        let created: CreateTaskResponse = self.call("Create", &request)?;
        Ok(created.pid)
    }

    /// Calls Start. Returns the host's PID.
    pub fn start_process(&mut self, process: Process<'_>) -> Result<u32> {
        let request = StartRequest {
            id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            ..Default::default()
        };
        let started: StartResponse = self.call("Start", &request)?;
        Ok(started.pid)
    }

    /// Calls Exec, which only adds a process. Start runs it.
    pub fn exec(
        &mut self,
        process: Process<'_>,
        args: &[&str],
        streams: Option<&Streams>,
    ) -> Result<()> {
        let described = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: spec::process(args).to_string().into_bytes(),
            ..Default::default()
        };
        let request = ExecProcessRequest {
            id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            spec: MessageField::some(described),
            stdout: streams.map_or(String::new(), |streams| streams.stdout.clone()),
            stderr: streams.map_or(String::new(), |streams| streams.stderr.clone()),
            ..Default::default()
        };
        self.call::<Empty>("Exec", &request).map(drop)
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self, process: Process<'_>) -> Result<()> {
        self.signal(process, Signal::SIGKILL)
    }

    /// Sends a signal.
    pub fn signal(&mut self, process: Process<'_>, signal: Signal) -> Result<()> {
        let request = KillRequest {
            id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            signal: signal as u32,
            ..Default::default()
        };
        self.call::<Empty>("Kill", &request).map(drop)
    }

    /// Calls Delete.
    pub fn delete(&mut self, process: Process<'_>) -> Result<()> {
        let request = DeleteRequest {
            id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            ..Default::default()
        };
        self.call::<DeleteResponse>("Delete", &request).map(drop)
    }

    /// Returns the shim's own process ID.
    pub fn pid(&mut self, container: &str) -> Result<u32> {
        Ok(self.connect_to(container)?.shim_pid)
    }

    /// Returns the host's PID of a container's init.
    pub fn process_id(&mut self, container: &str) -> Result<u32> {
        Ok(self.connect_to(container)?.task_pid)
    }

    fn connect_to(&mut self, container: &str) -> Result<ConnectResponse> {
        let request = ConnectRequest { id: container.to_owned(), ..Default::default() };
        self.call("Connect", &request)
    }

    /// Calls Shutdown and waits for the end of the process. Returns its time.
    pub fn shutdown(&mut self, container: &str, process: &OwnedFd) -> Result<Instant> {
        let request = ShutdownRequest { id: container.to_owned(), ..Default::default() };
        // A shim may exit before it has sent its reply.
        let answered = self.call::<Empty>("Shutdown", &request);
        if !wait::readable(process, SHUTDOWN_TIMEOUT) {
            bail!(
                "the shim lives {SHUTDOWN_TIMEOUT:?} after Shutdown of {container} ({answered:?})"
            );
        }
        Ok(Instant::now())
    }
}

/// Opens a descriptor that reports the end of a process.
pub fn watch(pid: u32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process ID above 0")?;
    pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("pidfd_open {pid:?}"))
}

/// Runs the executable as containerd 1.6 to 2.2 do, up to the end of its
/// output.
fn start(lab: &Lab, runtime: &Runtime, bundle: &Bundle) -> Result<Address> {
    let grpc = lab.directory().join("containerd.sock");
    let mut command = Command::new(&runtime.shim);
    command
        .args(["-namespace", NAMESPACE, "-id", &bundle.id, "-publish-binary", "containerd"])
        .arg("-address")
        .arg(&grpc)
        .arg("start")
        .current_dir(&bundle.path)
        .env("TTRPC_ADDRESS", lab.directory().join("events.sock"))
        .env("GRPC_ADDRESS", &grpc)
        .env("NAMESPACE", NAMESPACE)
        .env("MAX_SHIM_VERSION", "3")
        .env("GOMAXPROCS", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {}", runtime.shim.display()))?;
    let mut printed = String::new();
    child.stdout.take().context("a pipe")?.read_to_string(&mut printed)?;
    let status = child.wait()?;
    if !status.success() {
        let mut stderr = String::new();
        child.stderr.take().context("a pipe")?.read_to_string(&mut stderr)?;
        bail!("{} start of {}: {status}: {}", runtime.shim.display(), bundle.id, stderr.trim());
    }
    parse_address(printed.trim())
}

/// Parses JSON, as printed since containerd 2.0, or the plain address of
/// before.
fn parse_address(printed: &str) -> Result<Address> {
    if !printed.starts_with('{') {
        ensure!(printed.starts_with("unix://"), "`start` printed {printed:?}, not an address");
        return Ok(Address { address: printed.to_owned(), version: 2 });
    }
    let params: serde_json::Value = serde_json::from_str(printed)?;
    let protocol = params["protocol"].as_str().unwrap_or("ttrpc");
    ensure!(protocol == "ttrpc", "`start` offers {protocol}, expected ttrpc");
    let version = params["version"].as_u64().unwrap_or(2).try_into()?;
    let address = params["address"].as_str().context("`start` printed no address")?;
    Ok(Address { address: address.to_owned(), version })
}

/// Returns the options of runc's shims, which only name the engine.
pub fn options(runtime: &Runtime) -> Result<MessageField<Any>> {
    let Some(engine) = &runtime.engine else {
        return Ok(MessageField::none());
    };
    let options = RuncOptions { binary_name: engine.clone(), ..Default::default() };
    Ok(MessageField::some(Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes()?,
        ..Default::default()
    }))
}
