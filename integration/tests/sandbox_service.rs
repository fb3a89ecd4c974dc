//! containerd's Sandbox service: a sandbox without a pause container. The
//! stories of `cri_pod.rs` run with it as well.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, ShutdownRequest, StartRequest, StateRequest,
};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest,
    SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, WaitSandboxRequest, WaitSandboxResponse,
};
use integration::containerd::{Containerd, Version};
use integration::cri::pod_security;
use integration::shim::{Bundle, Shim};
use integration::{cgroup, host, leaks, wait};
use k8s_cri::v1::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use prost::Message;
use serde_json::json;

/// A sandbox of a shim, with the nine requests.
struct Sandbox<'a> {
    shim: Shim<'a>,
    bundle: &'a Bundle,
}

type Result<T> = std::result::Result<T, String>;

/// Calls one request about the sandbox.
macro_rules! ask {
    ($sandbox:expr, $method:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
        let sandbox = $sandbox;
        let request =
            $request { sandbox_id: sandbox.bundle.id.clone(), $($field: $value,)* ..Default::default() };
        sandbox.shim.sandboxes.$method(sandbox.shim.context(), &request).map_err(|e| e.to_string())
    }};
}

impl<'a> Sandbox<'a> {
    fn of(bundle: &'a Bundle) -> Self {
        Self { shim: bundle.start_shim().expect("start a shim"), bundle }
    }

    /// Creates it from a pod's configuration and starts it. Returns boot's
    /// process ID.
    fn run(&self, config: &PodSandboxConfig) -> i32 {
        self.create(config).expect("create the sandbox");
        self.start().expect("start the sandbox")
    }

    fn create(&self, config: &PodSandboxConfig) -> Result<()> {
        self.create_from("runtime.v1.PodSandboxConfig", config.encode_to_vec())
    }

    fn create_from(&self, type_url: &str, value: Vec<u8>) -> Result<()> {
        let options = Any { type_url: type_url.into(), value, ..Default::default() };
        let bundle_path = self.bundle.path.to_string_lossy().into_owned();
        let request = ask!(
            self,
            create_sandbox,
            CreateSandboxRequest { bundle_path: bundle_path, options: Some(options).into() }
        );
        request.map(drop)
    }

    fn start(&self) -> Result<i32> {
        Ok(self.started()?.pid.cast_signed())
    }

    fn started(&self) -> Result<StartSandboxResponse> {
        ask!(self, start_sandbox, StartSandboxRequest {})
    }

    fn shim_pid(&self) -> i32 {
        let connect = self.shim.tasks.connect(self.shim.context(), &ConnectRequest::default());
        connect.expect("ask for its process").shim_pid.cast_signed()
    }

    /// Returns its state directory.
    fn state(&self) -> PathBuf {
        Path::new("/run/palisade").join(&self.bundle.namespace).join(&self.bundle.id)
    }

    fn status(&self) -> Result<SandboxStatusResponse> {
        ask!(self, sandbox_status, SandboxStatusRequest { verbose: true })
    }

    /// Returns the bytes of memory that its metrics show.
    fn memory(&self) -> u64 {
        let metrics = ask!(self, sandbox_metrics, SandboxMetricsRequest {});
        let data = metrics.expect("ask for its metrics").metrics.data.clone().unwrap_or_default();
        if host::has_cgroup_v2_only() {
            v2::Metrics::parse_from_bytes(&data.value).expect("decode them").memory.usage
        } else {
            v1::Metrics::parse_from_bytes(&data.value).expect("decode them").memory.usage.usage
        }
    }

    fn wait(&self) -> Result<WaitSandboxResponse> {
        ask!(self, wait_sandbox, WaitSandboxRequest {})
    }

    fn stop(&self) -> Result<()> {
        ask!(self, stop_sandbox, StopSandboxRequest {}).map(drop)
    }

    fn shut_down(&self) -> Result<()> {
        ask!(self, shutdown_sandbox, ShutdownSandboxRequest {}).map(drop)
    }
}

fn containerd() -> Containerd {
    Containerd::start(Version::V2_1)
}

/// Returns the configuration of a pod without a network of CNI, which
/// containerd would make.
fn config(containerd: &Containerd, name: &str) -> PodSandboxConfig {
    containerd.pod_config(name)
}

#[test]
fn a_sandbox_s_life() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    sandbox.create(&config(&containerd, "life")).expect("create it");
    let status = sandbox.status().expect("ask for its status");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));

    let started = sandbox.started().expect("start it");
    let spec = started.spec.into_option().expect("the spec that it was made from");
    assert_eq!(spec.type_url, "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    let spec: serde_json::Value = serde_json::from_slice(&spec.value).expect("JSON");
    assert_eq!(spec["hostname"], "life");
    let pid = started.pid.cast_signed();
    let boot = host::process(pid).expect("the sandbox process");
    assert_eq!(boot.args[0], "palisade-sandbox");
    let status = sandbox.status().expect("ask for its status");
    assert_eq!((status.state.as_str(), status.pid.cast_signed()), ("SANDBOX_READY", pid));
    assert_eq!(status.sandbox_id, bundle.id);
    assert!(status.created_at.seconds > 0 && status.exited_at.is_none());
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).expect("JSON");
    assert_eq!(info["pid"], pid);

    ask!(&sandbox, ping_sandbox, PingRequest {}).expect("ping it");
    let platform = ask!(&sandbox, platform, PlatformRequest {}).expect("ask for its platform");
    assert_eq!(platform.platform.os, "linux");
    assert!(["amd64", "arm64"].contains(&platform.platform.architecture.as_str()));

    let metrics = ask!(&sandbox, sandbox_metrics, SandboxMetricsRequest {});
    let metrics = metrics.expect("ask for its metrics").metrics;
    let version = if host::has_cgroup_v2_only() { "v2" } else { "v1" };
    assert_eq!(metrics.data.type_url, format!("io.containerd.cgroups.{version}.Metrics"));
    assert_eq!(metrics.id, bundle.id);

    thread::scope(|scope| {
        let waiters = [scope.spawn(|| sandbox.wait()), scope.spawn(|| sandbox.wait())];
        sandbox.stop().expect("stop it");
        for waiter in waiters {
            let ended = waiter.join().expect("a waiter").expect("wait for it");
            assert_eq!(ended.exit_status, 0);
            assert!(ended.exited_at.seconds > 0);
        }
    });
    let status = sandbox.status().expect("ask for its status");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));
    assert!(status.exited_at.is_some());
    sandbox.stop().expect("stop it once more");
    let error = ask!(&sandbox, ping_sandbox, PingRequest {}).expect_err("it is not alive");
    assert!(error.contains("is at its end"), "{error}");
    sandbox.shut_down().expect("shut it down");
    wait::until("the shim is gone", || sandbox.status().is_err().then_some(()));
}

/// Returns the bundle of a container that joins a sandbox.
fn container_of(containerd: &Containerd, boot: i32, id: &str, script: &str) -> Bundle {
    Bundle::new(containerd, id, script).spec(|spec| {
        let shared = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
        let shared = shared
            .map(|(kind, file)| json!({ "type": kind, "path": format!("/proc/{boot}/ns/{file}") }));
        let own = [json!({ "type": "mount" }), json!({ "type": "pid" })];
        spec["linux"]["namespaces"] = [&shared[..], &own[..]].concat().into();
    })
}

fn create_request(bundle: &Bundle) -> CreateTaskRequest {
    CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// The Create is rolled back, and nothing more is created.
#[test]
fn shutting_a_sandbox_down_ends_the_create_of_its_container() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let boot = sandbox.run(&config(&containerd, "ends"));
    let (begun, never) =
        (containerd.directory().join("begun"), containerd.directory().join("never"));
    mkfifo(&never, Mode::S_IRWXU).expect("mkfifo");
    let script = format!(": > {}; read x < {}", begun.display(), never.display());
    let container = container_of(&containerd, boot, "late", "sleep 1000").spec(|spec| {
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        spec["hooks"] = json!({ "createRuntime": [hook] });
    });
    let address = std::fs::read_to_string(bundle.path.join("address")).expect("its address");
    thread::scope(|scope| {
        let creating = scope.spawn(|| {
            let other = bundle.connect(&address).expect("connect once more");
            other.create_with(&create_request(&container))
        });
        wait::until("its hook runs", || begun.exists().then_some(()));
        sandbox.shut_down().expect("shut it down");
        let error = creating.join().expect("the one that creates").expect_err("it is cancelled");
        assert!(error.contains("cancelled"), "{error}");
    });
    assert_eq!(leaks::left_of(&containerd.traces()), [""; 0]);
}

/// containerd 2.4 makes the kubelet's pod statistics of it, and its own sandboxes return the
/// pod's cgroup.
#[test]
fn its_metrics_count_the_whole_pod() {
    const USED: u64 = 32 << 20;
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let boot = sandbox.run(&config(&containerd, "counted"));
    assert!(sandbox.memory() < USED, "a sandbox alone: {}", sandbox.memory());

    let script = "head -c 33554432 /dev/zero > /dev/shm/x; sleep 1000";
    let container = container_of(&containerd, boot, "eats", script);
    sandbox.shim.create_with(&create_request(&container)).expect("create a container");
    let start = StartRequest { id: container.id.clone(), ..Default::default() };
    sandbox.shim.tasks.start(sandbox.shim.context(), &start).expect("start it");
    wait::until("the pod's metrics count it", || (sandbox.memory() >= USED).then_some(()));
    sandbox.shut_down().expect("shut it down");
}

#[test]
fn a_sandbox_without_a_pods_cgroup_has_no_metrics() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let mut config = config(&containerd, "beside-others");
    config.linux.get_or_insert_default().cgroup_parent.clear();
    sandbox.run(&config);
    let metrics = ask!(&sandbox, sandbox_metrics, SandboxMetricsRequest {});
    let error = metrics.expect_err("nothing counts this pod alone");
    assert!(error.contains("linux.cgroup_parent"), "{error}");
    sandbox.shut_down().expect("shut it down");
}

/// A start that hangs is cancelled.
#[test]
fn stopping_a_sandbox_that_starts_ends_it() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    sandbox.create(&config(&containerd, "busy")).expect("create it");
    let frozen = cgroup::Frozen::new(containerd.slot());
    thread::scope(|scope| {
        let start = scope.spawn(|| sandbox.start());
        wait::until("it is being started", || {
            let status = sandbox.status().expect("ask for its status");
            status.info["info"].contains("being started").then_some(())
        });
        // It has had no time to go far.
        for process in host::children(sandbox.shim_pid()) {
            kill(Pid::from_raw(process.pid), Signal::SIGSTOP).expect("stop the sandbox process");
        }
        drop(frozen);
        sandbox.stop().expect("stop it");
        let error = start.join().expect("who starts it").expect_err("it was stopped");
        assert!(error.contains("was cancelled"), "{error}");
    });
    assert_eq!(sandbox.wait().expect("wait for it").exit_status, 0);
    assert!(!sandbox.state().exists());
    sandbox.shut_down().expect("shut it down");
}

/// That containerd does not know the sandbox, and treats the shim as leaked.
#[test]
fn a_containerd_that_has_forgotten_it_ends_it_by_the_task_service() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let pid = sandbox.run(&config(&containerd, "forgotten"));
    let of_a_container = ShutdownRequest { id: "a-container".into(), ..Default::default() };
    sandbox.shim.tasks.shutdown(sandbox.shim.context(), &of_a_container).expect("an answer");
    assert_eq!(sandbox.status().expect("its status").state, "SANDBOX_READY");
    sandbox.shim.shutdown();
    wait::until("the sandbox process is gone", || host::process(pid).is_none().then_some(()));
    wait::until("the shim is gone", || sandbox.status().is_err().then_some(()));
    assert!(!sandbox.state().exists());
}

/// containerd does this once it has lost its connection to the shim for good.
#[test]
fn delete_ends_a_sandbox_that_lives() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let pid = sandbox.run(&config(&containerd, "let-go"));
    let deleted = bundle.delete();
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    wait::until("the sandbox process is gone", || host::process(pid).is_none().then_some(()));
    wait::until("nothing is left of it", || (!sandbox.state().exists()).then_some(()));
}

#[test]
fn a_sandbox_is_no_task() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    sandbox.run(&config(&containerd, "no-task"));
    let request = StateRequest { id: bundle.id.clone(), ..Default::default() };
    let error = sandbox.shim.tasks.state(sandbox.shim.context(), &request).unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
    sandbox.shut_down().expect("shut it down");
}

#[test]
fn its_exit_is_reported_however_it_ends() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let pid = sandbox.run(&config(&containerd, "killed"));
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the sandbox process");
    assert_eq!(sandbox.wait().expect("wait for it").exit_status, 137);
    assert_eq!(sandbox.status().expect("its status").state, "SANDBOX_NOTREADY");
    wait::until("nothing is left of it", || (!sandbox.state().exists()).then_some(()));
    sandbox.stop().expect("stop what has ended");
    sandbox.shut_down().expect("shut it down");
}

#[test]
fn each_request_is_valid_in_its_state_only() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let config = config(&containerd, "times");
    let refused = |outcome: Result<()>, wanted: &str| {
        let error = outcome.expect_err(wanted);
        assert!(error.contains(wanted), "{error}");
    };
    refused(sandbox.start().map(drop), "does not exist");
    refused(sandbox.wait().map(drop), "does not exist");
    sandbox.create(&config).expect("create it");
    refused(sandbox.create(&config), "this shim has a sandbox already");
    let metrics = ask!(&sandbox, sandbox_metrics, SandboxMetricsRequest {});
    refused(metrics.map(drop), "is not started yet");

    let container = Bundle::new(&containerd, "early", "true");
    let request = CreateTaskRequest {
        id: "early".into(),
        bundle: container.path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    refused(sandbox.shim.create_with(&request).map(drop), "is not started yet");
    sandbox.start().expect("start it");
    refused(sandbox.start().map(drop), "is running");
    sandbox.stop().expect("stop it");
    refused(sandbox.start().map(drop), "is at its end");
    refused(sandbox.shim.create_with(&request).map(drop), "is at its end");
    sandbox.shut_down().expect("shut it down");
}

#[test]
fn an_invalid_sandbox_is_refused_by_name() {
    let containerd = containerd();
    let good = config(&containerd, "bad");
    let mut sysctl = good.clone();
    sysctl.linux.get_or_insert_default().sysctls.insert("kernel.panic".into(), "1".into());
    let mut user = good.clone();
    pod_security(&mut user).namespace_options.get_or_insert_default().userns_options =
        Some(UserNamespace { mode: NamespaceMode::Target.into(), ..Default::default() });
    let mapped = |mappings: &[(u32, u32)]| {
        let ids = |(container_id, host_id): &(u32, u32)| IdMapping {
            container_id: *container_id,
            host_id: *host_id,
            length: 65536,
        };
        let ids: Vec<_> = mappings.iter().map(ids).collect();
        let mut config = good.clone();
        let user = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
        let options = pod_security(&mut config).namespace_options.get_or_insert_default();
        options.userns_options = Some(user);
        config.encode_to_vec()
    };
    let mut annotation = good.clone();
    annotation.annotations.insert("dev.palisade.nonsense".into(), "1".into());
    let pod = "runtime.v1.PodSandboxConfig";
    for (type_url, value, wanted) in [
        ("some.other.Type", Vec::new(), "options: are a some.other.Type; expected a runtime.v1"),
        (pod, vec![0xff], "options: are no runtime.v1.PodSandboxConfig"),
        (pod, sysctl.encode_to_vec(), "kernel.panic"),
        (pod, user.encode_to_vec(), "userns_options.mode: Ok(TARGET); expected POD or NODE"),
        (pod, annotation.encode_to_vec(), "dev.palisade.nonsense is unknown"),
        (pod, mapped(&[]), "linux.uidMappings"),
        (pod, mapped(&[(1, 700_000_000)]), "linux.uidMappings"),
        (pod, mapped(&[(0, 700_000_000), (0, 800_000_000)]), "linux.uidMappings"),
    ] {
        let bundle = Bundle::of_sandbox(&containerd);
        let sandbox = Sandbox::of(&bundle);
        let error = sandbox.create_from(type_url, value).expect_err(wanted);
        assert!(error.contains(wanted), "{error}");
        // containerd then does this.
        sandbox.shut_down().expect("shut the shim down");
    }
}

#[test]
fn a_failed_start_leaves_nothing() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: config(&containerd, "fails").encode_to_vec(),
        ..Default::default()
    };
    let created = ask!(
        &sandbox,
        create_sandbox,
        CreateSandboxRequest {
            bundle_path: bundle.path.to_string_lossy().into_owned(),
            netns_path: "/proc/self/ns/mnt".to_owned(),
            options: Some(options).into()
        }
    );
    created.expect("create it: the namespace is looked at when it is entered");
    let error = sandbox.start().expect_err("no network namespace");
    assert!(error.contains("/proc/self/ns/mnt"), "{error}");
    assert_eq!(sandbox.wait().expect("wait for it").exit_status, 137);
    sandbox.shut_down().expect("shut it down");
}

/// After a crash of the shim, `delete` finds the sandbox by its state.
#[test]
fn a_shim_s_death_is_cleaned_up() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let pid = sandbox.run(&config(&containerd, "crash"));
    let shim = integration::sandbox::shim_of(pid);
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("kill the shim");
    wait::until("the sandbox process is gone", || host::process(pid).is_none().then_some(()));
    let deleted = bundle.delete();
    assert_eq!(deleted.status.into_raw(), 0, "{}", String::from_utf8_lossy(&deleted.stderr));
}

#[test]
fn no_container_represents_a_pod() {
    let containerd = Containerd::start_with_sandboxer();
    let pod = containerd.pod("alone");
    assert!(pod.is_ready());
    let container = pod.shell("main", "sleep 1000");
    let client = containerd.client();
    let list = containerd.block_on(async {
        let mut request = containerd_client::tonic::Request::new(ListContainersRequest::default());
        let k8s = containerd_client::tonic::metadata::MetadataValue::from_static("k8s.io");
        request.metadata_mut().insert("containerd-namespace", k8s);
        ContainersClient::new(client.channel()).list(request).await
    });
    let containers = list.expect("list the containers").into_inner().containers;
    let ids: Vec<_> = containers.into_iter().map(|container| container.id).collect();
    assert_eq!(ids, [container.id.as_str()]);
    assert_eq!(host::process(pod.pid()).expect("its process").args[0], "palisade-sandbox");
}

#[test]
fn a_pod_outlives_containerd() {
    let containerd = Containerd::start_with_sandboxer();
    let pod = containerd.pod("survivor");
    let container = pod.shell("main", "sleep 1000");
    containerd.kill();
    containerd.launch();
    wait::until("CRI answers exec again", || {
        container.try_exec(&["true"], 0).is_ok_and(|answer| answer.code == 0).then_some(())
    });
    assert!(pod.is_ready());
    let another = pod.shell("another", "sleep 1000");
    assert_eq!(another.ask("hostname"), "survivor");
}

#[test]
fn a_killed_sandbox_ends_its_pod() {
    let containerd = Containerd::start_with_sandboxer();
    let pod = containerd.pod("killed");
    let container = pod.shell("main", "sleep 1000");
    kill(Pid::from_raw(pod.pid()), Signal::SIGKILL).expect("kill the sandbox process");
    assert_eq!(container.wait().exit_code, 137);
    wait::until("CRI notices", || (!pod.is_ready()).then_some(()));
}

#[test]
fn a_paused_container_does_not_delay_its_sandbox_s_end() {
    let containerd = Containerd::start_with_sandboxer();
    let pod = containerd.pod("frozen");
    let container = pod.shell("main", "sleep 1000");
    let ctr =
        containerd.ctr_command().args(["-n", "k8s.io", "tasks", "pause", &container.id]).output();
    let ctr = ctr.expect("run ctr");
    assert!(ctr.status.success(), "{}", String::from_utf8_lossy(&ctr.stderr));
    pod.stop().expect("stop the pod");
    assert_eq!(container.wait().exit_code, 137);
}

/// CreateSandbox has annotations of its own, beside the configuration's.
#[test]
fn annotations_of_the_request_count() {
    let containerd = containerd();
    let bundle = Bundle::of_sandbox(&containerd);
    let sandbox = Sandbox::of(&bundle);
    let options = || Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: config(&containerd, "annotated").encode_to_vec(),
        ..Default::default()
    };
    let create = |key: &str, value: &str| {
        let annotations = [(key.to_owned(), value.to_owned())].into();
        ask!(
            &sandbox,
            create_sandbox,
            CreateSandboxRequest {
                bundle_path: bundle.path.to_string_lossy().into_owned(),
                options: Some(options()).into(),
                annotations: annotations
            }
        )
    };
    let error = create("dev.palisade.nonsense", "1").expect_err("there is none");
    assert!(error.contains("dev.palisade.nonsense"), "{error}");
    let error = create("dev.palisade.userns", "never").expect_err("it would loosen");
    assert!(error.contains("would loosen"), "{error}");
    create("io.kubernetes.cri-o.PrivilegedRuntime", "true").expect("others are not read");
    let boot = sandbox.start().expect("start it");
    assert_ne!(host::status(boot, "Uid").split_whitespace().next(), Some("0"));
    sandbox.shut_down().expect("shut it down");
}

/// `hostUsers: false`.
#[test]
fn a_pod_has_its_own_ids() {
    let containerd = Containerd::start_with_sandboxer();
    let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65536 }];
    let user = UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: ids(700_000_000),
        gids: ids(700_000_000),
    };
    let pod = containerd.pod_with("ids", |config| {
        let options = pod_security(config).namespace_options.get_or_insert_default();
        options.userns_options = Some(user);
    });
    let container = pod.shell("main", "sleep 1000");
    assert_eq!(host::status(container.pid(), "Uid").split_whitespace().next(), Some("700000000"));
}
