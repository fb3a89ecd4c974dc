//! A private containerd: own root, state, sockets, namespace and network, real
//! executables. It is started for one test and taken down at its end, and with
//! it goes the check that nothing was left behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use containerd_client::Client;
use containerd_client::tonic::{Request, metadata::MetadataValue};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use crate::config::{Settings, cni_conflist, config_toml};
use crate::node::{self, Node};
use crate::prepared::{Prepared, link_or_copy};
use crate::slot::Slot;
use crate::{cgroup, image, keep, leaks, wait};

/// The containerds that the suite knows; each is fetched by `ci/containerd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian bookworm's.
    V1_6,
    /// Debian trixie's.
    V1_7,
    /// Debian forky's.
    V2_1,
}

impl Version {
    /// Its number, as `ci/containerd` takes it.
    pub fn number(self) -> &'static str {
        match self {
            Version::V1_6 => "1.6",
            Version::V1_7 => "1.7",
            Version::V2_1 => "2.1",
        }
    }

    /// The folder with its executables: `.cache/containerd-VERSION/bin`.
    pub(crate) fn executables(self) -> PathBuf {
        let folder = repository().join(format!(".cache/containerd-{}/bin", self.number()));
        let hint = format!("run: ci/containerd {}", self.number());
        assert!(
            folder.join("containerd").is_file(),
            "no containerd in {}; {hint}",
            folder.display()
        );
        folder
    }
}

/// A running containerd. Dropping it ends it and checks for leaks.
#[derive(Debug)]
pub struct Containerd {
    /// Which one.
    pub version: Version,
    slot: Slot,
    sandboxer: &'static str,
    runtime_name: String,
    runtime: Runtime,
    process: Mutex<Option<Child>>,
    ids: Mutex<BTreeSet<String>>,
    prepared: Prepared,
    /// Of the node itself, rather than private to the test.
    node: Option<Node>,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub fn start(version: Version) -> Containerd {
        Containerd::start_with_options(version, |_| String::new())
    }

    /// Starts one whose configuration gives CRI's runtime a table `options`,
    /// which may name files of the directory that the test gets.
    pub fn start_with_options(
        version: Version,
        options: impl FnOnce(&Path) -> String,
    ) -> Containerd {
        let containerd = Containerd::prepare(version, "podsandbox", options);
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// Starts a containerd 2.1 that asks Palisade for sandboxes themselves.
    pub fn start_with_sandboxer() -> Containerd {
        let containerd = Containerd::prepare(Version::V2_1, "shim", |_| String::new());
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// Starts one whose shims find another program in the place of `palisade`,
    /// and the real one beside it as `palisade-honest`.
    pub fn start_with_boot(version: Version, program: &Path) -> Containerd {
        let containerd = Containerd::prepare(version, "podsandbox", |_| String::new());
        let bin = containerd.directory().join("bin");
        fs::rename(bin.join("palisade"), bin.join("palisade-honest")).expect("move palisade");
        fs::copy(program, bin.join("palisade")).expect("copy the other program");
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// The node's own, as systemd starts it with the configuration of its
    /// distribution. Only for a machine that is thrown away afterwards.
    pub fn of_the_node(version: Version) -> Containerd {
        let mut containerd = Containerd::prepare(version, "podsandbox", |_| String::new());
        containerd.node = Some(Node::prepare(&containerd.slot, &version.executables()));
        containerd.launch();
        containerd
    }

    fn prepare(
        version: Version,
        sandboxer: &'static str,
        options: impl FnOnce(&Path) -> String,
    ) -> Containerd {
        keep::clear_away();
        let slot = Slot::take();
        leaks::clear_away(&slot);
        keep::mark(&slot);
        let containerd = Containerd {
            version,
            sandboxer,
            runtime_name: runtime_name(),
            runtime: tokio_runtime(),
            process: Mutex::new(None),
            ids: Mutex::default(),
            prepared: Prepared::of(version, &slot),
            node: None,
            slot,
        };
        let options = options(&containerd.directory());
        containerd.lay_out(&options);
        containerd
    }

    /// Writes the directory: configuration, network, and a folder with the
    /// runtime's executables for containerd's PATH.
    fn lay_out(&self, options: &str) {
        let directory = self.directory();
        for folder in ["", "bin", "cni", "fifo"] {
            fs::create_dir_all(directory.join(folder)).expect("make the test's directory");
        }
        // Users of the sandbox's range walk through it to root file systems.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).expect("chmod");
        let settings = Settings {
            version: self.version,
            slot: &self.slot,
            runtime: &self.runtime_name,
            options,
            sandboxer: self.sandboxer,
        };
        fs::write(directory.join("config.toml"), config_toml(&settings))
            .expect("write config.toml");
        fs::write(directory.join("cni/10-bridge.conflist"), cni_conflist(&self.slot))
            .expect("write the network's configuration");
        install_palisade(&directory.join("bin"), &self.runtime_name);
    }

    /// Gives it a root with the images in both namespaces, the test's and CRI's.
    fn bring_images(&self) {
        let root = self.directory().join("root");
        if self.prepared.lend(&root) {
            return;
        }
        let archive = self.directory().join("images.tar");
        fs::write(&archive, image::archive()).expect("write the images");
        self.launch();
        self.import(&self.namespace(), &archive);
        self.import("k8s.io", &archive);
        self.wait_for_cri_images();
        self.stop();
        self.prepared.keep(&root);
        for of_import in ["images.tar", "log"] {
            fs::remove_file(self.directory().join(of_import)).expect("remove a file");
        }
    }

    /// The name of the snapshot that holds the busybox image.
    pub fn busybox_snapshot(&self) -> String {
        self.prepared.busybox_snapshot()
    }

    /// Starts the daemon on what is in the directory, and waits until it
    /// answers. After [`Containerd::kill`] this is the restart.
    pub fn launch(&self) {
        if self.node.is_some() {
            node::systemctl("start");
            return wait::until("containerd answers", || self.answers().then_some(()));
        }
        let mut process = self.process();
        assert!(process.is_none(), "containerd runs already");
        let log = File::options().create(true).append(true).open(self.directory().join("log"));
        let child = Command::new(self.version.executables().join("containerd"))
            .arg("--config")
            .arg(self.directory().join("config.toml"))
            .args(["--log-level", &std::env::var("PALISADE_TEST_LOG").unwrap_or("info".into())])
            .env_clear()
            .env("PATH", self.path())
            // It lives for one test: what it would collect is not worth the time.
            .env("GOGC", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("open containerd's log"))
            .spawn()
            .expect("start containerd");
        *process = Some(child);
        drop(process);
        wait::until("containerd answers", || self.answers().then_some(()));
    }

    /// Whether it does.
    pub fn answers(&self) -> bool {
        let exited = self.process().as_mut().map(|child| child.try_wait());
        if let Some(Ok(Some(status))) = exited {
            panic!("containerd ended while starting: {status}\n{}", self.log());
        }
        self.block_on(async {
            let Ok(client) = Client::from_path(self.address()).await else {
                return false;
            };
            client.version().version(()).await.is_ok()
        })
    }

    /// SIGKILL: what a crash, or a careless administrator, does.
    pub fn kill(&self) {
        let mut child = self.process().take().expect("containerd runs");
        child.kill().expect("kill containerd");
        child.wait().expect("wait for containerd");
    }

    /// The daemon's process ID.
    pub fn pid(&self) -> i32 {
        let process = self.process();
        process.as_ref().expect("containerd runs").id().try_into().expect("a process ID")
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Everything of this test on disk.
    pub fn directory(&self) -> PathBuf {
        self.slot.directory()
    }

    /// The socket of containerd's API.
    pub fn address(&self) -> PathBuf {
        if self.node.is_some() {
            return node::SOCKET.into();
        }
        self.directory().join("c.sock")
    }

    /// The containerd namespace that tests use; CRI uses `k8s.io`.
    pub fn namespace(&self) -> String {
        self.slot.name()
    }

    /// The cgroup that pods are put below.
    pub fn pods_cgroup(&self) -> String {
        cgroup::parent(&self.slot)
    }

    /// The cgroup of a container, as a spec says it.
    pub fn cgroups_path(&self, id: &str) -> String {
        cgroup::path(&self.slot, id)
    }

    /// The name of the runtime under test.
    pub fn runtime_name(&self) -> &str {
        &self.runtime_name
    }

    /// The test's numbers and names.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// What containerd has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// PATH of containerd and `ctr`: the executables under test come first.
    pub fn path(&self) -> String {
        let own = self.directory().join("bin");
        let theirs = self.version.executables();
        format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display(), theirs.display())
    }

    /// Remembers an ID that the test uses, for the leak check.
    pub fn track(&self, id: &str) {
        self.ids.lock().expect("no test panics in here").insert(id.to_owned());
    }

    /// The IDs that the test used.
    pub fn tracked(&self) -> BTreeSet<String> {
        self.ids.lock().map(|ids| ids.clone()).unwrap_or_default()
    }

    /// Runs the asynchronous clients to their end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let bounded = async { tokio::time::timeout(2 * wait::deadline(), future).await };
        self.runtime.block_on(bounded).expect("containerd answers in time")
    }

    /// Runs something beside the test.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// A connection to containerd's API.
    pub fn client(&self) -> Client {
        let connected = self.block_on(Client::from_path(self.address()));
        connected.unwrap_or_else(|e| panic!("connect to containerd: {e}\n{}", self.log()))
    }

    /// A request in the test's containerd namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = MetadataValue::try_from(self.namespace()).expect("an ASCII name");
        request.metadata_mut().insert("containerd-namespace", namespace);
        request
    }

    /// Makes the images available in CRI's namespace, where they are not from the
    /// start: in the node's own.
    pub fn import_images_for_cri(&self) {
        self.import_archive("k8s.io", &image::archive());
        self.wait_for_cri_images();
    }

    /// `ctr image import` of an archive's content.
    pub fn import_archive(&self, namespace: &str, content: &[u8]) {
        let archive = self.directory().join(format!("images-{namespace}.tar"));
        fs::write(&archive, content).expect("write the images");
        self.import(namespace, &archive);
    }

    fn import(&self, namespace: &str, archive: &Path) {
        let mut command = self.ctr_command();
        command.args(["--namespace", namespace, "image", "import"]);
        if self.version == Version::V2_1 {
            // Else a service does it that unpacks for its own platform only.
            command.arg("--local");
        }
        let imported = command.arg(archive).output().expect("run ctr");
        let said = String::from_utf8_lossy(&imported.stderr);
        assert!(imported.status.success(), "ctr image import: {said}");
    }

    /// `ctr --address ...`, still without a namespace.
    pub fn ctr_command(&self) -> Command {
        let mut command = Command::new(self.version.executables().join("ctr"));
        command.arg("--address").arg(self.address());
        command.env_clear().env("PATH", self.path()).stdin(Stdio::null());
        command
    }

    /// Ends the daemon, politely at first.
    fn stop(&self) {
        let Some(mut child) = self.process().take() else {
            return;
        };
        let pid = Pid::from_raw(child.id().try_into().expect("a process ID"));
        let _ = kill(pid, Signal::SIGTERM);
        let pidfd = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pidfd, rustix::process::PidfdFlags::empty());
        if !pidfd.is_ok_and(|fd| wait::readable(fd, wait::patience(10))) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if keep::keeps() && self.node.is_none() {
            let client = self.ctr_command();
            let (ctr, address) = (client.get_program().display(), self.address());
            let command =
                format!("{ctr} --address {} --namespace {}", address.display(), self.namespace());
            return keep::report(&self.slot, &command);
        }
        let left = if thread::panicking() { Vec::new() } else { leaks::after_test(self) };
        self.stop();
        if thread::panicking() || !left.is_empty() {
            eprintln!("--- containerd {} logged:\n{}", self.version.number(), self.log());
        }
        leaks::clear_away(&self.slot);
        leaks::clear_sockets(self);
        if !left.is_empty() {
            panic!("the test left behind:\n  {}", left.join("\n  "));
        }
        if !thread::panicking() && self.node.is_none() {
            self.prepared.give_back();
        }
    }
}

fn tokio_runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("start a runtime")
}

/// The runtime under test. Another one can be named to try out a test itself:
/// what holds for containers anywhere must pass with runc as well.
pub(crate) fn runtime_name() -> String {
    std::env::var("PALISADE_TEST_RUNTIME").unwrap_or("io.containerd.palisade.v1".into())
}

/// Puts what was built into a folder of a daemon's PATH.
pub(crate) fn install_palisade(folder: &Path, runtime_name: &str) {
    for name in ["containerd-shim-palisade-v1", "palisade"] {
        let built = palisade_executables().join(name);
        if built.is_file() {
            link_or_copy(&built, &folder.join(name)).expect("link an executable");
        } else if runtime_name.contains("palisade") {
            panic!("{} is missing; run: cargo build --release", built.display());
        }
    }
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository")
}

/// Where `cargo build --release` puts the two executables.
pub fn palisade_executables() -> PathBuf {
    match std::env::var_os("PALISADE_TEST_EXECUTABLES") {
        Some(folder) => folder.into(),
        None => repository().join("target/x86_64-unknown-linux-gnu/release"),
    }
}
