//! Pods as Kubernetes runs them: over CRI, with the runtime handler `palisade`
//! and a bridge network.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::Status;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tonic::transport::Channel;

use crate::containerd::Containerd;
use crate::{image, keep, wait};

/// The name under which containerd's configuration lists the runtime.
pub const HANDLER: &str = "palisade";

/// Calls one RPC of CRI's runtime service: connects, sends, unwraps the reply.
macro_rules! cri_call {
    ($containerd:expr, $method:ident, $request:expr) => {{
        let containerd = $containerd;
        let request = $request;
        containerd
            .block_on(async { containerd.runtime_service().await.$method(request).await })
            .map(|answer| answer.into_inner())
    }};
}

/// A result with CRI's message as the error.
pub type Result<T> = std::result::Result<T, Status>;

impl Containerd {
    async fn runtime_service(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.connect().await.channel())
    }

    /// Waits until CRI has the network and the images.
    pub fn prepare_cri(&self) {
        wait::until("CRI and its network are ready", || {
            let status = cri_call!(self, status, StatusRequest { verbose: false }).ok()?;
            let conditions = status.status?.conditions;
            conditions.iter().all(|condition| condition.status).then_some(())
        });
        self.wait_for_cri_images();
    }

    /// Whether CRI reports that a runtime handler runs pods with user namespaces.
    /// The kubelet goes by that.
    pub fn handler_has_user_namespaces(&self, name: &str) -> bool {
        let status = cri_call!(self, status, StatusRequest { verbose: false });
        let handlers = status.expect("ask for CRI's status").runtime_handlers;
        let handler = handlers.into_iter().find(|handler| handler.name == name);
        let features = handler.expect("a handler of this name").features;
        features.is_some_and(|features| features.user_namespaces)
    }

    /// Waits until CRI has the images. It learns of an import by an event, so a
    /// little later, and may still be starting.
    pub(crate) fn wait_for_cri_images(&self) {
        wait::until("CRI knows the images", || {
            [image::BUSYBOX, image::PAUSE].iter().all(|name| self.cri_has_image(name)).then_some(())
        });
    }

    fn cri_has_image(&self, name: &str) -> bool {
        let spec = ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: false };
        let status = self.block_on(async {
            ImageServiceClient::new(self.connect().await.channel()).image_status(request).await
        });
        status.is_ok_and(|status| status.get_ref().image.is_some())
    }

    /// Returns the configuration of a pod, as the kubelet writes it.
    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.directory().join("logs").join(name).to_string_lossy().into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.pods_cgroup(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(pod_namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs an ordinary pod.
    pub fn pod(&self, name: &str) -> Pod<'_> {
        self.pod_with(name, |_| ())
    }

    /// Runs a pod with a changed configuration.
    pub fn pod_with(&self, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod<'_> {
        let pod = self.try_pod(name, change);
        pod.unwrap_or_else(|e| panic!("run pod {name}: {}", e.message()))
    }

    /// Runs a pod, or returns the error.
    pub fn try_pod(
        &self,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod<'_>> {
        self.try_pod_by(HANDLER, name, change)
    }

    /// Runs a pod with a runtime handler. An empty one is containerd's default.
    pub fn try_pod_by(
        &self,
        handler: &str,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod<'_>> {
        self.prepare_cri();
        let mut config = self.pod_config(name);
        change(&mut config);
        fs::create_dir_all(&config.log_directory).expect("make the pod's log directory");
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let id = cri_call!(self, run_pod_sandbox, request)?.pod_sandbox_id;
        self.track(&id);
        Ok(Pod { containerd: self, id, config })
    }
}

/// Returns a pod's default namespaces: shared network and IPC, and separate
/// PIDs.
pub fn pod_namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        ipc: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

/// Returns the security context of a pod's configuration.
pub fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Returns the security context of a container's configuration.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Returns the limits in a container's configuration.
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A running pod, which is stopped and removed on drop.
#[derive(Debug)]
pub struct Pod<'a> {
    containerd: &'a Containerd,
    /// Its ID, which is its root container's and its sandbox's.
    pub id: String,
    /// The configuration that it was made from.
    pub config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Starts a container that runs a line of shell.
    pub fn shell(&self, name: &str, script: &str) -> PodContainer<'a> {
        self.container(name, script, |_| ())
    }

    /// Starts a container with a changed configuration.
    pub fn container(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> PodContainer<'a> {
        let container = self.create(name, 0, script, change);
        let container =
            container.unwrap_or_else(|e| panic!("create container {name}: {}", e.message()));
        container.start().unwrap_or_else(|e| panic!("start container {name}: {}", e.message()));
        container
    }

    /// Creates a container without starting it. `attempt` is the kubelet's
    /// count of restarts.
    pub fn create(
        &self,
        name: &str,
        attempt: u32,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<PodContainer<'a>> {
        let mut config = self.container_config(name, attempt, script);
        change(&mut config);
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        // The kubelet makes the directory.
        fs::create_dir_all(log.parent().expect("a directory")).expect("make a log's directory");
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let id = cri_call!(self.containerd, create_container, request)?.container_id;
        self.containerd.track(&id);
        Ok(PodContainer { containerd: self.containerd, id, log })
    }

    fn container_config(&self, name: &str, attempt: u32, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            image: Some(ImageSpec { image: image::BUSYBOX.to_owned(), ..Default::default() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}/{attempt}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: pod_security(&mut self.config.clone())
                        .namespace_options
                        .clone(),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// Returns the status that CRI reports.
    pub fn status(&self) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let status = cri_call!(self.containerd, pod_sandbox_status, request);
        status.expect("ask for the pod's status").status.expect("a status")
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.status().state() == PodSandboxState::SandboxReady
    }

    /// Returns its address in the pods' network.
    pub fn ip(&self) -> String {
        self.status().network.expect("a pod with a network").ip
    }

    /// Returns CRI's verbose information about the sandbox, as JSON.
    pub fn verbose_info(&self) -> serde_json::Value {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        let status = cri_call!(self.containerd, pod_sandbox_status, request);
        let info = status.expect("ask for the pod's status").info;
        serde_json::from_str(&info["info"]).expect("CRI's notes are JSON")
    }

    /// Returns the host's process ID of its root container.
    pub fn pid(&self) -> i32 {
        let pid = self.verbose_info()["pid"].as_i64().expect("a process ID in CRI's notes");
        pid.try_into().expect("a process ID")
    }

    /// Returns the URL of a port-forwarding session.
    pub fn port_forward(&self, port: i32) -> String {
        let request = PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port] };
        cri_call!(self.containerd, port_forward, request).expect("ask for port forwarding").url
    }

    /// Calls PodSandboxStats.
    pub fn stats(&self) -> PodSandboxStats {
        let request = PodSandboxStatsRequest { pod_sandbox_id: self.id.clone() };
        let stats = cri_call!(self.containerd, pod_sandbox_stats, request);
        stats.expect("ask for the pod's stats").stats.expect("stats")
    }

    /// Calls StopPodSandbox.
    pub fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        cri_call!(self.containerd, stop_pod_sandbox, request).map(|_| ())
    }

    /// Calls RemovePodSandbox.
    pub fn remove(&self) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        cri_call!(self.containerd, remove_pod_sandbox, request).map(|_| ())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if keep::keeps() {
            return;
        }
        let stopped = self.stop();
        let removed = self.remove();
        if !std::thread::panicking() {
            stopped.expect("stop the pod");
            removed.expect("remove the pod");
        }
    }
}

/// A container of a pod. Its pod removes it.
#[derive(Debug)]
pub struct PodContainer<'a> {
    containerd: &'a Containerd,
    /// Its ID.
    pub id: String,
    /// The file to which containerd writes its output.
    pub log: PathBuf,
}

/// The output of a command in a container, and its end.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl PodContainer<'_> {
    /// Calls StartContainer.
    pub fn start(&self) -> Result<()> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        cri_call!(self.containerd, start_container, request).map(|_| ())
    }

    /// Calls CheckpointContainer, which writes an archive.
    pub fn checkpoint(&self, archive: &Path) -> Result<()> {
        let request = CheckpointContainerRequest {
            container_id: self.id.clone(),
            location: archive.to_string_lossy().into_owned(),
            timeout: 0,
        };
        cri_call!(self.containerd, checkpoint_container, request).map(|_| ())
    }

    /// Calls ExecSync with a line of shell.
    pub fn exec(&self, script: &str) -> Answer {
        self.try_exec(&["sh", "-c", script], 0).unwrap_or_else(|e| panic!("exec {script}: {e}"))
    }

    /// Returns the trimmed output of a line of shell, which must succeed.
    #[track_caller]
    pub fn ask(&self, script: &str) -> String {
        let answer = self.exec(script);
        assert_eq!(answer.code, 0, "{script}: {answer:?}");
        answer.stdout.trim().to_owned()
    }

    /// Calls ExecSync, with a timeout in seconds (zero for none).
    pub fn try_exec(&self, args: &[&str], timeout: i64) -> Result<Answer> {
        let cmd = args.iter().map(|arg| (*arg).to_owned()).collect();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout };
        let answer = cri_call!(self.containerd, exec_sync, request)?;
        Ok(Answer {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// Returns the URL of an Exec session.
    pub fn exec_url(&self, args: &[&str], stdin: bool, tty: bool) -> String {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: args.iter().map(|arg| (*arg).to_owned()).collect(),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };
        cri_call!(self.containerd, exec, request).expect("ask for an exec session").url
    }

    /// Returns the URL of an Attach session.
    pub fn attach_url(&self, stdin: bool, tty: bool) -> String {
        let container_id = self.id.clone();
        let request = AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
        cri_call!(self.containerd, attach, request).expect("ask for an attach session").url
    }

    /// Returns the status that CRI reports.
    pub fn status(&self) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let status = cri_call!(self.containerd, container_status, request);
        status.expect("ask for the container's status").status.expect("a status")
    }

    /// Returns the host's process ID of its init.
    pub fn pid(&self) -> i32 {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        let status = cri_call!(self.containerd, container_status, request);
        let info = status.expect("ask for the container's status").info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("notes in JSON");
        info["pid"].as_i64().expect("a process ID").try_into().expect("a process ID")
    }

    /// Waits until CRI has seen its end. Returns the status then.
    pub fn wait(&self) -> ContainerStatus {
        wait::until("the container's end", || {
            let status = self.status();
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
    }

    /// Waits until CRI has seen its end with this reason. containerd 2.1
    /// handles the events of its tasks in one order and their ends in another
    /// (as `handleContainerExit` in internal/cri/server/events.go of 2.3
    /// explains): CRI may learn last what the shim published first.
    pub fn wait_for_reason(&self, reason: &str) -> ContainerStatus {
        wait::until(&format!("the container's end as {reason}"), || {
            let status = self.status();
            (status.state() == ContainerState::ContainerExited && status.reason == reason)
                .then_some(status)
        })
    }

    /// Returns the lines that it has written so far, with their streams: its
    /// log without the times.
    pub fn log_lines(&self) -> Vec<(String, String)> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let parsed = log.lines().filter_map(|line| {
            let mut parts = line.splitn(4, ' ');
            let (_time, stream, _tag) = (parts.next()?, parts.next()?, parts.next()?);
            Some((stream.to_owned(), parts.next()?.to_owned()))
        });
        parsed.collect()
    }

    /// Waits until a line appears in its log.
    pub fn wait_for_log(&self, wanted: &str) {
        wait::until(&format!("{wanted:?} in {}", self.log.display()), || {
            self.log_lines().iter().any(|(_, line)| line == wanted).then_some(())
        });
    }

    /// Calls ReopenContainerLog.
    pub fn reopen_log(&self) -> Result<()> {
        let request = ReopenContainerLogRequest { container_id: self.id.clone() };
        cri_call!(self.containerd, reopen_container_log, request).map(|_| ())
    }

    /// Calls ContainerStats.
    pub fn stats(&self) -> ContainerStats {
        let request = ContainerStatsRequest { container_id: self.id.clone() };
        let stats = cri_call!(self.containerd, container_stats, request);
        stats.expect("ask for the container's stats").stats.expect("stats")
    }

    /// Calls UpdateContainerResources.
    pub fn update(&self, limits: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        cri_call!(self.containerd, update_container_resources, request).map(|_| ())
    }

    /// Calls StopContainer with a grace period.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        let timeout = grace.as_secs().try_into().expect("a short time");
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        cri_call!(self.containerd, stop_container, request).map(|_| ())
    }

    /// Calls RemoveContainer.
    pub fn remove(&self) -> Result<()> {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        cri_call!(self.containerd, remove_container, request).map(|_| ())
    }
}
