//! Lives of pods, over CRI, as the kubelet asks.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fastrand::Rng;
use integration::{cgroup, image};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tonic::transport::Channel;

use crate::api::{Api, Failure};
use crate::containers::{counting, numbers, repeat};
use crate::history::Life;

/// One pod.
struct Pod<'a> {
    api: &'a Api<'a>,
    life: Arc<Life>,
    config: PodSandboxConfig,
    id: String,
}

/// Calls one RPC of CRI's runtime service.
macro_rules! cri {
    ($pod:expr, $what:expr, $method:ident, $request:expr) => {
        $pod.api.ask(&$pod.life, $what, $request, async |client, request| {
            service(client).$method(request).await
        })
    };
}

fn service(client: containerd_client::Client) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(client.channel())
}

/// The memory of a pod in which it runs out: enough for all but one that takes all there is.
const LITTLE: u64 = 64 << 20;

/// Lives one life: a pod with up to three containers.
pub fn live(api: &Api<'_>, name: &str, chance: &mut Rng) {
    let name = format!("soak-{name}");
    let life = api.world.begin(&name);
    let mut config = api.daemon.pod_config(&name);
    let has_little = chance.u8(..5) == 0 && cgroup::Driver::of_tests() == cgroup::Driver::Cgroupfs;
    let narrow = has_little.then(|| cgroup::Narrow::new(api.daemon.slot(), &name, LITTLE));
    if let Some(narrow) = &narrow {
        config.linux.get_or_insert_default().cgroup_parent = narrow.parent();
    }
    fs::create_dir_all(&config.log_directory).expect("make the pod's log directory");
    let mut pod = Pod { api, life: Arc::clone(&life), config, id: String::new() };
    if pod.runs() {
        if has_little {
            pod.runs_out_of_memory();
        }
        for number in 0..chance.u8(1..4) {
            pod.has_a_container(&format!("container-{number}"), chance);
        }
    }
    pod.is_removed();
    let _ = fs::remove_dir_all(&pod.config.log_directory);
    api.world.end(&life);
}

impl Pod<'_> {
    fn runs(&mut self) -> bool {
        let request = RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: "palisade".to_owned(),
        };
        match cri!(self, "RunPodSandbox", run_pod_sandbox, request) {
            Ok(made) => self.id = made.pod_sandbox_id,
            Err(failure) => {
                self.fails("RunPodSandbox", &failure);
            }
        }
        if self.id.is_empty() {
            return false;
        }
        self.api.daemon.track(&self.id);
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        if let Ok(status) = cri!(self, "PodSandboxStatus", pod_sandbox_status, request) {
            let info = status.info.get("info").and_then(|info| serde_json::from_str(info).ok());
            let pid = info.and_then(|info: serde_json::Value| info["pid"].as_i64());
            let pid = pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
            self.life.init.store(pid, Ordering::SeqCst);
        }
        true
    }

    /// A container takes all memory of the pod. It is killed for that, and nothing else is.
    fn runs_out_of_memory(&self) {
        self.api.world.count("a pod runs out of memory");
        let Some(id) = self.create("greedy", "exec tail /dev/zero") else { return };
        let request = StartContainerRequest { container_id: id.clone() };
        if let Err(failure) = cri!(self, "StartContainer", start_container, request) {
            return self.fails("StartContainer", &failure);
        }
        let mut last = String::new();
        let has_ended = repeat(|| {
            let status = self.status(&id);
            let Some(status) = status else {
                return self.life.may_answer_anything(&self.api.world);
            };
            last = format!("{:?}, {}, {}", status.state(), status.exit_code, status.reason);
            status.state() == ContainerState::ContainerExited
        });
        let is_right = has_ended && last == "ContainerExited, 137, OOMKilled";
        self.api.expect(&self.life, is_right, || format!("all memory was taken: {last}"));
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        let status = cri!(self, "PodSandboxStatus", pod_sandbox_status, request);
        let state = status.ok().and_then(|status| status.status).map(|status| status.state());
        self.api.expect(&self.life, state == Some(PodSandboxState::SandboxReady), || {
            format!("a pod of whose memory one container took all is {state:?}")
        });
    }

    fn status(&self, id: &str) -> Option<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        cri!(self, "ContainerStatus", container_status, request).ok()?.status
    }

    fn fails(&self, what: &str, failure: &Failure) {
        self.api.expect(&self.life, false, || format!("{what}: {}", failure.words()));
    }

    /// A container that is asked for something, and stopped.
    fn has_a_container(&self, name: &str, chance: &mut Rng) {
        let code = chance.u8(..100);
        let script = format!("trap 'exit {code}' TERM; echo ready; sleep 1000 & wait");
        let Some(id) = self.create(name, &script) else { return };
        let request = StartContainerRequest { container_id: id.clone() };
        if let Err(failure) = cri!(self, "StartContainer", start_container, request) {
            return self.fails("StartContainer", &failure);
        }
        for _ in 0..chance.u8(..5) {
            match chance.u8(..4) {
                0..3 => self.exec(&id, chance),
                _ => self.update(&id, chance),
            }
        }
        // It ends by itself only once its shell waits; it may be killed before, at the end of
        // the grace.
        let request = StopContainerRequest { container_id: id.clone(), timeout: 10 };
        if let Err(failure) = cri!(self, "StopContainer", stop_container, request) {
            self.fails("StopContainer", &failure);
        }
        self.has_ended(&id);
        if chance.bool() {
            let request = RemoveContainerRequest { container_id: id };
            if let Err(failure) = cri!(self, "RemoveContainer", remove_container, request) {
                self.fails("RemoveContainer", &failure);
            }
        }
    }

    fn create(&self, name: &str, script: &str) -> Option<String> {
        let log_path = format!("{name}.log");
        let security = self.config.linux.clone().unwrap_or_default().security_context;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image::BUSYBOX.to_owned(), ..Default::default() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: log_path.clone(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: security.and_then(|security| security.namespace_options),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        match cri!(self, "CreateContainer", create_container, request) {
            Ok(created) => {
                self.api.daemon.track(&created.container_id);
                Some(created.container_id)
            }
            Err(failure) => {
                self.fails("CreateContainer", &failure);
                None
            }
        }
    }

    fn exec(&self, id: &str, chance: &mut Rng) {
        let (script, code, lines) = counting(chance);
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: ["sh", "-c", &script].map(str::to_owned).to_vec(),
            timeout: 0,
        };
        let expected = numbers(lines);
        match cri!(self, "ExecSync", exec_sync, request) {
            Ok(done) => {
                let is_right =
                    done.exit_code == i32::from(code) && done.stdout == expected.as_bytes();
                self.api.expect(&self.life, is_right, || {
                    let length = done.stdout.len();
                    format!("ExecSync {script:?}: {} with {length} bytes", done.exit_code)
                });
            }
            Err(failure) => self.fails("ExecSync", &failure),
        }
    }

    fn update(&self, id: &str, chance: &mut Rng) {
        let limits = LinuxContainerResources {
            memory_limit_in_bytes: chance.i64(64..512) << 20,
            cpu_shares: chance.i64(2..2048),
            ..Default::default()
        };
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..Default::default()
        };
        let what = "UpdateContainerResources";
        if let Err(failure) = cri!(self, what, update_container_resources, request) {
            self.fails(what, &failure);
        }
    }

    fn has_ended(&self, id: &str) {
        let state = self.status(id).map(|status| status.state());
        self.api.expect(&self.life, state == Some(ContainerState::ContainerExited), || {
            format!("a stopped container is {state:?}")
        });
    }

    /// Stops and removes all of it. Whatever has befallen it, that succeeds in the end.
    fn is_removed(&self) {
        let mut last = String::new();
        let is_gone = repeat(|| {
            let Ok(ids) = self.sandboxes() else { return false };
            for id in &ids {
                let stop = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
                if let Err(failure) = cri!(self, "StopPodSandbox", stop_pod_sandbox, stop) {
                    last = failure.words();
                    self.fails("StopPodSandbox", &failure);
                }
                let remove = RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
                if let Err(failure) = cri!(self, "RemovePodSandbox", remove_pod_sandbox, remove) {
                    last = failure.words();
                    self.fails("RemovePodSandbox", &failure);
                }
            }
            ids.is_empty()
        });
        self.life.init.store(0, Ordering::SeqCst);
        if !is_gone {
            self.api.world.wrong(&self.life, &format!("it cannot be removed: {last}"));
        }
    }

    /// Returns the sandboxes that CRI knows of this name, also of one whose creation failed.
    fn sandboxes(&self) -> Result<Vec<String>, Failure> {
        let listed =
            cri!(self, "ListPodSandbox", list_pod_sandbox, ListPodSandboxRequest::default());
        let name = &self.life.id;
        let of_it =
            |pod: &PodSandbox| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == *name);
        Ok(listed?.items.into_iter().filter(of_it).map(|pod| pod.id).collect())
    }
}
