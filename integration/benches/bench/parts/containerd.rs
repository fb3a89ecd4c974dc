//! With a whole containerd: `ctr run`, `ctr task exec`, and a pod over CRI.
//! Each runtime gets its own containerd, so that none has to search through
//! another's database.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::tonic::transport::Channel;
use integration::containerd::{Containerd, Version};
use integration::cri::HANDLER;
use integration::image::BUSYBOX;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};

use crate::Bench;
use crate::lab::in_bundle;
use crate::runtime::Runtime;

const CTR: &str = "containerd, ctr";
const CRI: &str = "containerd, CRI pod";

/// Measures all, where there is a containerd.
pub fn run(bench: &mut Bench) -> Result<()> {
    if in_bundle() {
        // It would take an image, a network and its programs as well.
        bench.report.add_note("containerd is not measured: a bundle has none".to_owned());
        return Ok(());
    }
    let start = |runtime: &Runtime| Daemon::start(runtime);
    let daemons = bench.runtimes.iter().map(start).collect::<Result<Vec<Daemon>>>()?;
    for turn in 0..=bench.runs.div_ceil(2) {
        for (runtime, daemon) in daemons.iter().enumerate() {
            let ran = daemon.run(turn)?;
            let exec = daemon.exec(turn)?;
            let pod = daemon.pod(turn)?;
            if turn > 0 {
                bench.report.time(CTR, "run --rm true", runtime, ran);
                bench.report.time(CTR, "task exec true", runtime, exec);
                for (what, took) in pod {
                    bench.report.time(CRI, what, runtime, took);
                }
            }
        }
    }
    daemons.iter().try_for_each(Daemon::end)
}

/// A containerd with one runtime and an idle container for execs.
struct Daemon {
    containerd: Containerd,
    kind: String,
    engine: Option<String>,
    cri: RuntimeServiceClient<Channel>,
}

impl Daemon {
    fn start(runtime: &Runtime) -> Result<Daemon> {
        let containerd = Containerd::start(Version::V2_1);
        containerd.kill();
        let kind = configure(&containerd, runtime)?;
        containerd.launch();
        // Waits until CRI and the pods' network are ready.
        drop(containerd.pod("warm"));
        let cri = RuntimeServiceClient::new(containerd.client().channel());
        let daemon = Daemon { containerd, kind, engine: runtime.engine.clone(), cri };
        daemon.ctr_run("idle", &["--detach"], &["sleep", "100000"])?;
        Ok(daemon)
    }

    fn end(&self) -> Result<()> {
        self.ctr(&["task", "delete", "--force", "idle"])?;
        self.ctr(&["container", "delete", "idle"]).map(drop)
    }

    /// Runs one command to its end.
    fn ctr(&self, arguments: &[&str]) -> Result<Duration> {
        let mut command: Command = self.containerd.ctr_command();
        command.args(["--namespace", &self.containerd.namespace()]).args(arguments);
        let began = Instant::now();
        let output = command.output().context("run ctr")?;
        let took = began.elapsed();
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {}: {stderr}", arguments.join(" "));
        Ok(took)
    }

    fn ctr_run(&self, id: &str, flags: &[&str], command: &[&str]) -> Result<Duration> {
        self.containerd.track(id);
        let mut arguments = vec!["run", "--runtime", &self.kind];
        if let Some(engine) = &self.engine {
            arguments.extend(["--runc-binary", engine]);
        }
        arguments.extend(flags);
        arguments.extend([BUSYBOX, id]);
        arguments.extend(command);
        self.ctr(&arguments)
    }

    fn run(&self, turn: usize) -> Result<Duration> {
        self.ctr_run(&format!("run-{turn}"), &["--rm"], &["true"])
    }

    fn exec(&self, turn: usize) -> Result<Duration> {
        self.ctr(&["task", "exec", "--exec-id", &format!("exec-{turn}"), "idle", "true"])
    }

    /// Starts and ends a pod with one container.
    fn pod(&self, turn: usize) -> Result<[(&'static str, Duration); 3]> {
        let config = Some(self.containerd.pod_config(&format!("pod-{turn}")));
        let mut cri = self.cri.clone();
        let request =
            RunPodSandboxRequest { config: config.clone(), runtime_handler: HANDLER.to_owned() };
        let began = Instant::now();
        let answer = self.containerd.block_on(cri.run_pod_sandbox(request))?;
        let sandbox = began.elapsed();
        let pod_sandbox_id = answer.into_inner().pod_sandbox_id;
        self.containerd.track(&pod_sandbox_id);

        let request = CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
            config: Some(container_config()),
            sandbox_config: config,
        };
        let began = Instant::now();
        let answer = self.containerd.block_on(cri.create_container(request))?;
        let container_id = answer.into_inner().container_id;
        self.containerd.track(&container_id);
        let request = StartContainerRequest { container_id };
        self.containerd.block_on(cri.start_container(request))?;
        let container = began.elapsed();

        let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        let began = Instant::now();
        self.containerd.block_on(cri.stop_pod_sandbox(request))?;
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.containerd.block_on(cri.remove_pod_sandbox(request))?;
        Ok([
            ("RunPodSandbox", sandbox),
            ("CreateContainer + StartContainer", container),
            ("StopPodSandbox + RemovePodSandbox", began.elapsed()),
        ])
    }
}

fn container_config() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "idle".into(), attempt: 0 }),
        image: Some(ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
        command: ["sleep", "100000"].map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

/// Sets the runtime in containerd's configuration, and puts its shim into
/// containerd's PATH. Returns the runtime's type.
fn configure(containerd: &Containerd, runtime: &Runtime) -> Result<String> {
    let name = runtime.shim.file_name().context("--shim names a file")?;
    let kind = runtime_type(&name.to_string_lossy())?;
    let link = containerd.directory().join("bin").join(name);
    if link.exists() {
        fs::remove_file(&link)?;
    }
    symlink(&runtime.shim, &link).with_context(|| format!("make {}", link.display()))?;
    let path = containerd.directory().join("config.toml");
    let was = format!("runtime_type = {:?}", containerd.runtime_name());
    let config = fs::read_to_string(&path)?;
    ensure!(config.contains(&was), "no {was} in {}", path.display());
    fs::write(&path, config.replace(&was, &format!("runtime_type = {kind:?}")))?;
    if let Some(engine) = &runtime.engine {
        let handler = format!("containerd.runtimes.{HANDLER}.options]\nBinaryName = {engine:?}\n");
        let table = format!("\n[plugins.\"io.containerd.cri.v1.runtime\".{handler}");
        fs::write(&path, fs::read_to_string(&path)? + &table)?;
    }
    Ok(kind)
}

/// Returns the type `io.containerd.NAME.vN` of `containerd-shim-NAME-vN`.
fn runtime_type(executable: &str) -> Result<String> {
    let name = executable.strip_prefix("containerd-shim-").and_then(|n| n.rsplit_once('-'));
    let (name, version) =
        name.with_context(|| format!("{executable} is not named containerd-shim-NAME-vN"))?;
    Ok(format!("io.containerd.{name}.{version}"))
}
