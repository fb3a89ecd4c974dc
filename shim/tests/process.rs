//! The executable as containerd uses it: started by `start`, called over ttrpc, ended by
//! Shutdown, cleaned up after by `delete`. These tests run no container; `integration/` has
//! those that do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, ConnectRequest, ConnectResponse, DeleteResponse, ShutdownRequest,
    StateRequest,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::{self, Code, context};
use containerd_shim_protos::types::introspection::RuntimeInfo;

const NAMESPACE: &str = "palisade-shim-test";

/// A directory with the shim, a file in place of `palisade-sandbox`, bundles and sockets.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = Self(directory);
        fs::copy(env!("CARGO_BIN_EXE_containerd-shim-palisade-v1"), node.shim()).unwrap();
        // start only checks that it can be executed.
        fs::write(node.path("palisade-sandbox"), "").unwrap();
        fs::set_permissions(node.path("palisade-sandbox"), fs::Permissions::from_mode(0o755))
            .unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shim(&self) -> PathBuf {
        self.path("containerd-shim-palisade-v1")
    }

    /// Whether a process runs that was started from this directory. A process that has ended
    /// has no command line.
    fn runs_a_shim(&self) -> bool {
        let shim = self.shim();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        lines.into_iter().any(|line| line.starts_with(shim.as_os_str().as_encoded_bytes()))
    }

    fn bundle(&self, id: &str, config: &str) -> PathBuf {
        let bundle = self.path(id);
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        nix::unistd::mkfifo(&bundle.join("log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        bundle
    }

    fn run(&self, id: &str, action: &[&str], bundle: &Path, input: &[u8]) -> Output {
        self.command(id, action, bundle, input).output().unwrap()
    }

    fn command(&self, id: &str, action: &[&str], bundle: &Path, input: &[u8]) -> Command {
        let stdin = self.path("stdin");
        fs::write(&stdin, input).unwrap();
        let mut command = Command::new(self.shim());
        command
            .args(["-namespace", NAMESPACE, "-id", id, "-address", "/containerd.sock"])
            .args(action)
            .current_dir(bundle)
            .env("TTRPC_ADDRESS", self.path("nobody.sock"))
            .stdin(Stdio::from(fs::File::open(stdin).unwrap()));
        command
    }

    /// Runs `start` as containerd 2.3 does, which names the socket's directory.
    fn start(&self, id: &str, config: &str) -> String {
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: NAMESPACE.into(),
            containerd_ttrpc_address: self.path("nobody.sock").display().to_string(),
            containerd_grpc_address: "/containerd.sock".into(),
            socket_dir: Some(self.path("s").display().to_string()),
            ..Default::default()
        };
        let bundle = self.bundle(id, config);
        let output = self.run(id, &["start"], &bundle, &params.write_to_bytes().unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(fs::read_to_string(bundle.join("address")).unwrap(), result.address);
        result.address
    }
}

async fn task_client(address: &str) -> (Client, TaskClient) {
    let client = Client::connect(address).await.unwrap();
    (client.clone(), TaskClient::new(client))
}

fn code<T>(outcome: ttrpc::Result<T>) -> Code {
    match outcome {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("this should have failed"),
    }
}

#[tokio::test]
async fn a_shim_serves_its_group_until_it_is_shut_down() {
    let node = Node::new();
    let pod = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
    let address = node.start("pod", pod);
    assert_eq!(node.start("container", pod), address, "one shim for the pod");

    let (client, task) = task_client(&address).await;
    let ctx = context::with_timeout(5_000_000_000);
    let connected = task.connect(ctx.clone(), &ConnectRequest::new()).await.unwrap();
    let pid = connected.shim_pid;

    // It has one thread, so that it may clone boot. containerd outlives it.
    assert_eq!(fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
    let score = |pid: &str| -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    assert_eq!(score(&pid.to_string()), (score("self") + 1).min(1000));
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }

    let state = StateRequest { id: "pod".into(), ..Default::default() };
    assert_eq!(code(task.state(ctx.clone(), &state).await), Code::NOT_FOUND);
    let checkpoint =
        CheckpointTaskRequest { id: "pod".into(), path: "/images".into(), ..Default::default() };
    assert_eq!(code(task.checkpoint(ctx.clone(), &checkpoint).await), Code::NOT_FOUND);

    // containerd 1.x knows the service by its older name.
    let request = ttrpc::Request {
        service: "containerd.task.v2.Task".into(),
        method: "Connect".into(),
        timeout_nano: 5_000_000_000,
        ..Default::default()
    };
    let response = client.request(request).await.unwrap();
    assert_eq!(ConnectResponse::parse_from_bytes(&response.payload).unwrap().shim_pid, pid);

    // While it lives, `delete` for one of its containers harms no other.
    let output = node.run("container", &["delete"], &node.path("container"), b"");
    assert!(output.status.success());
    task.connect(ctx.clone(), &ConnectRequest::new()).await.unwrap();

    let socket = PathBuf::from(address.strip_prefix("unix://").unwrap());
    assert!(socket.exists());
    task.shutdown(ctx, &ShutdownRequest::new()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while socket.exists() {
        assert!(Instant::now() < deadline, "the shim does not go");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn delete_can_be_repeated_and_needs_no_shim() {
    let node = Node::new();
    let bundle = node.bundle("gone", "{}");
    for _ in 0..2 {
        let output = node.run("gone", &["delete"], &bundle, b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((response.pid, response.exit_status), (0, 137));
        assert!(response.exited_at.seconds > 0);
    }
}

#[test]
fn info_describes_the_runtime() {
    let node = Node::new();
    let output = node.run("", &["-info"], node.0.path(), b"");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.palisade.v1");
    assert!(info.features.type_url.ends_with("features/Features"));
}

/// containerd would never call a shim whose address it does not know.
#[test]
fn a_start_whose_result_is_not_read_leaves_no_shim() {
    let node = Node::new();
    let bundle = node.bundle("unheard", "{}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut start = node.command("unheard", &["start"], &bundle, b"");
    let output = start.stdout(writer).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(errors.contains("write the address to stdout"), "{errors}");
    let address = fs::read_to_string(bundle.join("address")).unwrap();
    assert!(!Path::new(address.strip_prefix("unix://").unwrap()).exists());
    let deadline = Instant::now() + Duration::from_secs(5);
    while node.runs_a_shim() {
        assert!(Instant::now() < deadline, "the shim does not go");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_impossible_start_fails_with_one_sentence() {
    let node = Node::new();
    let broken = node.bundle("broken", "{");
    let output = node.run("broken", &["start"], &broken, b"");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(errors.starts_with("palisade: config.json is not valid"), "{errors}");
    assert_eq!(errors.lines().count(), 1);

    fs::remove_file(node.path("palisade-sandbox")).unwrap();
    let output = node.run("broken", &["start"], &broken, b"");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("palisade-sandbox is missing"), "{errors}");
    assert_eq!(errors.lines().count(), 1);
}
