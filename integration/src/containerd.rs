//! A private containerd with its own root, state, sockets, namespace and
//! network, and real executables. It is started for one test and stopped at its
//! end, which also checks that nothing was left behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use containerd_client::Client;
use containerd_client::tonic::{Request, metadata::MetadataValue};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use crate::config::{Settings, cni_conflist, config_toml, handler_toml};
use crate::leaks::Traces;
use crate::node::{self, Node};
use crate::prepared::Prepared;
use crate::rootless::User;
use crate::slot::Slot;
use crate::{built, cgroup, image, keep, leaks, wait};

pub use crate::built::{palisade_executables, repository};
pub use crate::version::Version;

/// A running containerd. Dropping it stops it and checks for leaks.
#[derive(Debug)]
pub struct Containerd {
    /// Its version.
    pub version: Version,
    slot: Slot,
    sandboxer: &'static str,
    runtime_name: String,
    runtime: Runtime,
    process: Mutex<Option<Child>>,
    ids: Mutex<BTreeSet<String>>,
    prepared: Prepared,
    /// A line of shell that starts it, up to the command.
    starter: Option<String>,
    /// Set if an ordinary user runs it.
    user: Option<User>,
    /// Set if it is the node's own rather than private to the test.
    node: Option<Node>,
    /// Set once [`Containerd::end`] has cleared it away.
    is_ended: bool,
}

impl Containerd {
    /// Starts one and waits until it replies.
    pub fn start(version: Version) -> Containerd {
        Containerd::start_with_options(version, |_| String::new())
    }

    /// Starts one by a line of shell to which its command is appended, such as `umask 077;
    /// exec nice`, so that it inherits what that line makes.
    pub fn start_by(version: Version, starter: &'static str) -> Containerd {
        let mut containerd = Containerd::prepare(version, "podsandbox", |_| String::new());
        containerd.bring_images();
        containerd.starter = Some(starter.to_owned());
        containerd.launch();
        containerd
    }

    /// Starts one that an ordinary user runs, changed as the story needs it. It has the images
    /// in the test's namespace.
    pub fn start_rootless(change: impl FnOnce(&mut User)) -> Containerd {
        let containerd = Containerd::prepare_rootless(change);
        containerd.launch();
        containerd.import_archive(&containerd.namespace(), &image::archive());
        containerd
    }

    /// As [`Containerd::start_rootless`], without the images.
    pub fn start_rootless_without_images(change: impl FnOnce(&mut User)) -> Containerd {
        let containerd = Containerd::prepare_rootless(change);
        containerd.launch();
        containerd
    }

    fn prepare_rootless(change: impl FnOnce(&mut User)) -> Containerd {
        let mut containerd = Containerd::prepare(Version::V2_1, "podsandbox", |_| String::new());
        let mut user = User::of(&containerd.slot);
        change(&mut user);
        let directory = containerd.directory();
        fs::create_dir(directory.join("user")).expect("make the user's directory");
        lchown(&directory, Some(user.id), Some(user.id)).expect("chown the test's directory");
        user.own(&directory.join("user"));
        containerd.starter = Some(user.starter(&directory));
        containerd.user = Some(user);
        containerd
    }

    /// Returns the user who runs it, if that is not root.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// Gives a file to the user who runs it.
    pub(crate) fn hand_over(&self, path: &Path) {
        if let Some(user) = &self.user {
            user.own(path);
        }
    }

    /// Starts one whose configuration has the table `options` for CRI's
    /// runtime. The options may name files in the test's directory.
    pub fn start_with_options(
        version: Version,
        options: impl FnOnce(&Path) -> String,
    ) -> Containerd {
        let containerd = Containerd::prepare(version, "podsandbox", options);
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// Starts one whose CRI's runtime reads its options from a file with this text.
    pub fn start_with_option_file(version: Version, text: &str) -> Containerd {
        let file = |directory: &Path| directory.join("options.toml");
        let containerd = Self::start_with_options(version, |directory| {
            format!("ConfigPath = {:?}", file(directory))
        });
        fs::write(file(&containerd.directory()), text).expect("write the options");
        containerd
    }

    /// Starts one whose CRI has another runtime handler, with these keys. `BIN`
    /// in them is the folder with Palisade's executables.
    pub fn start_with_handler(version: Version, name: &str, keys: &str) -> Containerd {
        let containerd = Containerd::prepare(version, "podsandbox", |_| String::new());
        let directory = containerd.directory();
        let keys = keys.replace("BIN", &directory.join("bin").to_string_lossy());
        let config = directory.join("config.toml");
        let mut text = fs::read_to_string(&config).expect("read config.toml");
        text += &handler_toml(version, name, &keys);
        fs::write(&config, text).expect("write config.toml");
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// Starts a containerd 2.1 that calls Palisade's Sandbox service.
    pub fn start_with_sandboxer() -> Containerd {
        let containerd = Containerd::prepare(Version::V2_1, "shim", |_| String::new());
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// Starts one whose shims find another program in place of `palisade-sandbox`, with
    /// the real one beside it as `palisade-sandbox-honest`.
    pub fn start_with_boot(version: Version, program: &Path) -> Containerd {
        let containerd = Containerd::prepare(version, "podsandbox", |_| String::new());
        let bin = containerd.directory().join("bin");
        let sandbox = bin.join("palisade-sandbox");
        fs::rename(&sandbox, bin.join("palisade-sandbox-honest")).expect("move palisade-sandbox");
        fs::copy(program, &sandbox).expect("copy the other program");
        containerd.bring_images();
        containerd.launch();
        containerd
    }

    /// Returns the node's own, started by systemd with the distribution's
    /// configuration. Only for a machine that is thrown away afterwards.
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
            runtime_name: built::runtime_name(),
            runtime: tokio_runtime(),
            process: Mutex::new(None),
            ids: Mutex::default(),
            prepared: Prepared::of(version, &slot),
            starter: None,
            user: None,
            node: None,
            is_ended: false,
            slot,
        };
        let options = options(&containerd.directory());
        containerd.lay_out(&options);
        containerd
    }

    /// Writes the directory: the configuration, the network, and a folder with
    /// the runtime's executables for containerd's PATH.
    fn lay_out(&self, options: &str) {
        let directory = self.directory();
        for folder in ["", "bin", "cni", "fifo"] {
            fs::create_dir_all(directory.join(folder)).expect("make the test's directory");
        }
        // Users of the sandbox's range pass through it to root file systems.
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
        built::install_palisade(&directory.join("bin"), &self.runtime_name);
    }

    /// Gives it a root with the images in both namespaces, the test's and
    /// CRI's.
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

    /// Returns the name of the snapshot that holds the busybox image.
    pub fn busybox_snapshot(&self) -> String {
        match &self.user {
            Some(_) => image::busybox_diff_id(),
            None => self.prepared.busybox_snapshot(),
        }
    }

    /// Starts the daemon with the files of the directory, and waits until it
    /// replies. After [`Containerd::kill`] this is a restart.
    pub fn launch(&self) {
        if self.node.is_some() {
            node::systemctl("start");
            return wait::until("containerd answers", || self.answers().then_some(()));
        }
        let mut process = self.process();
        assert!(process.is_none(), "containerd runs already");
        let log = File::options().create(true).append(true).open(self.directory().join("log"));
        let program = self.version.executables().join("containerd");
        let child = started_by(self.starter.as_deref(), &program)
            .arg("--config")
            .arg(self.directory().join("config.toml"))
            .args(["--log-level", &std::env::var("PALISADE_TEST_LOG").unwrap_or("info".into())])
            .env_clear()
            .env("PATH", self.path())
            // It runs for one test only, in which garbage collection is not
            // worth the time.
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

    /// Whether it replies.
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

    /// Sends SIGKILL, as in a crash.
    pub fn kill(&self) {
        let mut child = self.process().take().expect("containerd runs");
        child.kill().expect("kill containerd");
        child.wait().expect("wait for containerd");
    }

    /// Returns the daemon's process ID.
    pub fn pid(&self) -> i32 {
        let process = self.process();
        process.as_ref().expect("containerd runs").id().try_into().expect("a process ID")
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the directory of this test's files.
    pub fn directory(&self) -> PathBuf {
        self.slot.directory()
    }

    /// Returns the socket of containerd's API.
    pub fn address(&self) -> PathBuf {
        if self.node.is_some() {
            return node::SOCKET.into();
        }
        self.directory().join("c.sock")
    }

    /// Returns the containerd namespace of the test. CRI uses `k8s.io`.
    pub fn namespace(&self) -> String {
        self.slot.name()
    }

    /// Returns the cgroup above the pods.
    pub fn pods_cgroup(&self) -> String {
        cgroup::parent(&self.slot)
    }

    /// Returns the cgroup of a container, in the form of a spec.
    pub fn cgroups_path(&self, id: &str) -> String {
        cgroup::path(&self.slot, id)
    }

    /// Returns the name of the runtime under test.
    pub fn runtime_name(&self) -> &str {
        &self.runtime_name
    }

    /// Returns the test's slot.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Returns containerd's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// Returns PATH of containerd and `ctr`, with the executables under test
    /// first.
    pub fn path(&self) -> String {
        let own = self.directory().join("bin");
        let theirs = self.version.executables();
        format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display(), theirs.display())
    }

    /// Remembers an ID of the test, for the leak check.
    pub fn track(&self, id: &str) {
        self.ids.lock().expect("no test panics in here").insert(id.to_owned());
    }

    /// Returns the IDs of the test.
    pub fn tracked(&self) -> BTreeSet<String> {
        self.ids.lock().map(|ids| ids.clone()).unwrap_or_default()
    }

    /// Returns by what the test's containers are known.
    pub fn traces(&self) -> Traces<'_> {
        Traces {
            slot: &self.slot,
            ids: self.tracked().into_iter().collect(),
            address: self.address(),
            namespaces: vec![self.namespace(), "k8s.io".into()],
        }
    }

    /// Runs an asynchronous client to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let bounded = async { tokio::time::timeout(2 * wait::deadline(), future).await };
        self.runtime.block_on(bounded).expect("containerd answers in time")
    }

    /// Runs a future in parallel to the test.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Returns a connection to containerd's API.
    pub fn client(&self) -> Client {
        let connected = self.block_on(Client::from_path(self.address()));
        connected.unwrap_or_else(|e| panic!("connect to containerd: {e}\n{}", self.log()))
    }

    /// Returns a request in the test's containerd namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = MetadataValue::try_from(self.namespace()).expect("an ASCII name");
        request.metadata_mut().insert("containerd-namespace", namespace);
        request
    }

    /// Imports the images into CRI's namespace, for the node's own containerd,
    /// which does not start with them.
    pub fn import_images_for_cri(&self) {
        self.import_archive("k8s.io", &image::archive());
        self.wait_for_cri_images();
    }

    /// Runs `ctr image import` on an archive with this content.
    pub fn import_archive(&self, namespace: &str, content: &[u8]) {
        let archive = self.directory().join(format!("images-{namespace}.tar"));
        fs::write(&archive, content).expect("write the images");
        self.import(namespace, &archive);
    }

    fn import(&self, namespace: &str, archive: &Path) {
        let mut command = self.ctr_command();
        command.args(["--namespace", namespace, "image", "import"]);
        if self.version == Version::V2_1 {
            // Otherwise a service imports them that unpacks only for its own platform.
            command.arg("--local");
        }
        let imported = command.arg(archive).output().expect("run ctr");
        let stderr = String::from_utf8_lossy(&imported.stderr);
        assert!(imported.status.success(), "ctr image import: {stderr}");
    }

    /// Returns the command `ctr --address ...`, without a namespace.
    pub fn ctr_command(&self) -> Command {
        let ctr = self.version.executables().join("ctr");
        // An ordinary user's works where its containerd does.
        let mut command = match &self.user {
            None => Command::new(ctr),
            Some(user) => user.command_beside(self.pid(), &ctr),
        };
        command.arg("--address").arg(self.address());
        command.env_clear().env("PATH", self.path()).stdin(Stdio::null());
        command
    }

    /// Returns the sockets of shims in the `/run` of an ordinary user's containerd.
    fn own_sockets(&self) -> Vec<String> {
        let sockets = format!("/proc/{}/root/run/containerd/s", self.pid());
        let found = fs::read_dir(sockets).into_iter().flatten().flatten();
        found.map(|socket| format!("socket {}", socket.path().display())).collect()
    }

    /// Stops the daemon, first with SIGTERM.
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

impl Containerd {
    /// Ends it and clears away what it has left, which is returned.
    pub fn end(mut self) -> Vec<String> {
        self.is_ended = true;
        self.finish()
    }

    fn finish(&self) -> Vec<String> {
        let mut left =
            if thread::panicking() { Vec::new() } else { leaks::left_of(&self.traces()) };
        if self.user.is_some() && !thread::panicking() {
            left.extend(self.own_sockets());
        }
        self.stop();
        if let (Some(user), false) = (&self.user, thread::panicking()) {
            left.extend(user.left());
            user.remove_cgroup();
        }
        if !self.is_ended && (thread::panicking() || !left.is_empty()) {
            eprintln!("--- containerd {} logged:\n{}", self.version.number(), self.log());
        }
        leaks::clear_away(&self.slot);
        leaks::clear_sockets(&self.traces());
        left
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        if keep::keeps() && self.node.is_none() {
            let client = self.ctr_command();
            let (ctr, address) = (client.get_program().display(), self.address());
            let command =
                format!("{ctr} --address {} --namespace {}", address.display(), self.namespace());
            return keep::report(&self.slot, &command);
        }
        let left = self.finish();
        if !left.is_empty() {
            panic!("the test left behind:\n  {}", left.join("\n  "));
        }
        if !thread::panicking() && self.node.is_none() && self.user.is_none() {
            self.prepared.give_back();
        }
    }
}

/// Returns a command that runs a program by a line of shell, if there is one.
pub(crate) fn started_by(starter: Option<&str>, program: &Path) -> Command {
    let Some(starter) = starter else {
        return Command::new(program);
    };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{starter} \"$@\""), "sh"]).arg(program);
    command
}

fn tokio_runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("start a runtime")
}
