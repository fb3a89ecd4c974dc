//! A private Docker with its own data, state, socket and containerd. It is in
//! its own mount and network namespaces, so that its mounts and its bridge are
//! private and end with it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::built::{install_palisade, repository, runtime_name};

use crate::ctr::Finished;
use crate::leaks::{self, Traces};
use crate::slot::Slot;
use crate::{cgroup, image, keep, version, wait};

/// The Dockers of the suite. `ci/docker` fetches each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one of Debian trixie, with its containerd 1.7.
    V26,
    /// The one of Debian forky, with its containerd 2.1.
    V28,
}

impl Version {
    fn executables(self) -> [PathBuf; 2] {
        let (number, containerd) = match self {
            Version::V26 => ("26", version::Version::V1_7),
            Version::V28 => ("28", version::Version::V2_1),
        };
        let folder = repository().join(format!(".cache/docker-{number}/bin"));
        let hint = format!("run: ci/docker {number}");
        assert!(folder.join("dockerd").is_file(), "no Docker in {}; {hint}", folder.display());
        [folder, containerd.executables()]
    }
}

/// The place and the owners of Docker's root file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Overlay mounts with the image's owners: Docker's default.
    Overlays,
    /// Overlay mounts whose owners Docker has shifted (`userns-remap`).
    Remapped,
    /// Plain directories (`storage-driver` `vfs`).
    Directories,
}

/// The range of host IDs that [`Roots::Remapped`] gives to containers.
pub const REMAPPED_TO: u32 = 1_000_000;

/// The image of the containers, as Docker names it.
pub const IMAGE: &str = "palisade.test/busybox:docker";

/// A running Docker. Dropping it stops it and checks for leaks.
#[derive(Debug)]
pub struct Docker {
    version: Version,
    slot: Slot,
    runtime: String,
    process: Mutex<Option<Child>>,
    ids: Mutex<BTreeSet<String>>,
}

impl Docker {
    /// Starts one and gives it the image.
    pub fn start(version: Version, roots: Roots) -> Docker {
        keep::clear_away();
        let slot = Slot::take();
        leaks::clear_away(&slot);
        keep::mark(&slot);
        let docker = Docker {
            version,
            slot,
            runtime: runtime_name(),
            process: Mutex::default(),
            ids: Mutex::default(),
        };
        docker.lay_out(roots);
        docker.launch();
        docker.import_image();
        docker
    }

    /// Returns the directory of this test's files.
    pub fn directory(&self) -> PathBuf {
        self.slot.directory()
    }

    /// Returns the file with the options of the runtime `palisade-configured`.
    pub fn options(&self) -> PathBuf {
        self.directory().join("palisade.toml")
    }

    /// Returns the name of the cgroup above all containers.
    pub fn cgroup(&self) -> String {
        cgroup::group(&self.slot)
    }

    fn lay_out(&self, roots: Roots) {
        let directory = self.directory();
        for folder in ["", "bin", "client", "cid"] {
            fs::create_dir_all(directory.join(folder)).expect("make the test's directory");
        }
        // Users of the sandbox's range pass through it to root file systems.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).expect("chmod");
        install_palisade(&directory.join("bin"), &self.runtime);
        let subordinate = format!("nobody:{REMAPPED_TO}:65536\n");
        fs::write(directory.join("subid"), subordinate).expect("write subid");
        fs::write(directory.join("daemon.json"), self.configuration(roots).to_string())
            .expect("write daemon.json");
    }

    /// Returns the configuration that an administrator would write into
    /// `/etc/docker/daemon.json`, with settings that separate it from the
    /// machine's own Docker.
    fn configuration(&self, roots: Roots) -> serde_json::Value {
        let directory = self.directory();
        let (driver, parent) = match cgroup::Driver::of_tests() {
            cgroup::Driver::Cgroupfs => ("cgroupfs", cgroup::parent(&self.slot)),
            cgroup::Driver::Systemd => ("systemd", self.cgroup()),
        };
        let mut configuration = json!({
            "data-root": directory.join("data"),
            "exec-root": directory.join("x"),
            "pidfile": directory.join("pid"),
            "hosts": [format!("unix://{}", self.socket().display())],
            "iptables": false,
            "ip-masq": false,
            "cgroup-parent": parent,
            "exec-opts": [format!("native.cgroupdriver={driver}")],
            "storage-driver": if roots == Roots::Directories { "vfs" } else { "overlay2" },
            "runtimes": {
                "palisade": { "runtimeType": self.runtime },
                "palisade-configured": {
                    "runtimeType": self.runtime,
                    "options": { "ConfigPath": self.options() },
                },
            },
        });
        if roots == Roots::Remapped {
            configuration["userns-remap"] = "nobody:nogroup".into();
        }
        configuration
    }

    /// Starts the daemon and waits until it replies.
    fn launch(&self) {
        let log = File::create(self.directory().join("log")).expect("make Docker's log");
        let prepare = "ip link set lo up && mount --bind \"$0/subid\" /etc/subuid && \
                       mount --bind \"$0/subid\" /etc/subgid && exec dockerd \"$@\"";
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "slave", "sh", "-c", prepare])
            .arg(self.directory())
            .arg("--config-file")
            .arg(self.directory().join("daemon.json"))
            .env_clear()
            .env("PATH", self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start Docker");
        *self.process.lock().expect("an unpoisoned lock") = Some(child);
        wait::until("Docker answers", || {
            let mut process = self.process.lock().expect("an unpoisoned lock");
            if let Ok(Some(status)) = process.as_mut().expect("a process").try_wait() {
                drop(process);
                panic!("Docker ended while starting: {status}\n{}", self.log());
            }
            (self.docker(["version"]).code == 0).then_some(())
        });
    }

    fn import_image(&self) {
        let layer = self.directory().join("layer.tar");
        fs::write(&layer, image::busybox_layer()).expect("write the image");
        let layer = layer.to_string_lossy();
        self.docker(["import", "--change", "ENV PATH=/bin", &layer, IMAGE]).succeeded();
    }

    fn socket(&self) -> PathBuf {
        self.directory().join("d.sock")
    }

    /// Returns PATH, with the executables under test first.
    fn path(&self) -> String {
        let [docker, containerd] = self.version.executables();
        let own = self.directory().join("bin");
        let folders = [own, docker, containerd].map(|folder| folder.display().to_string());
        format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folders.join(":"))
    }

    /// Returns Docker's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// Returns the command `docker ARGUMENTS`.
    pub fn command<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.version.executables()[0].join("docker"));
        command.args(["--host", &format!("unix://{}", self.socket().display())]);
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        command.env_clear().env("PATH", self.path());
        command.env("DOCKER_CONFIG", self.directory().join("client")).stdin(Stdio::null());
        command
    }

    /// Runs `docker ARGUMENTS` to its end.
    pub fn docker<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        self.command(arguments).output().expect("run docker").into()
    }

    /// Runs `docker run --runtime palisade` with flags to its end.
    pub fn run<S: AsRef<str>>(&self, flags: &[&str], args: impl AsRef<[S]>) -> Finished {
        self.run_by("palisade", flags, args)
    }

    /// Runs it with another runtime.
    pub fn run_by<S: AsRef<str>>(
        &self,
        runtime: &str,
        flags: &[&str],
        args: impl AsRef<[S]>,
    ) -> Finished {
        self.finish_run(self.run_command(runtime, flags, args))
    }

    /// Returns the command `docker run`, for [`Docker::finish_run`].
    pub fn run_command<S: AsRef<str>>(
        &self,
        runtime: &str,
        flags: &[&str],
        args: impl AsRef<[S]>,
    ) -> Command {
        let mut command = self.command(["run", "--runtime", runtime, "--cidfile"]);
        command.arg(self.directory().join("cid/next")).args(flags).arg(IMAGE);
        command.args(args.as_ref().iter().map(AsRef::as_ref));
        command
    }

    /// Runs a command to its end, and remembers the container's ID.
    pub fn finish_run(&self, mut command: Command) -> Finished {
        let ran = command.output().expect("run docker").into();
        let noted = self.directory().join("cid/next");
        if let Ok(id) = fs::read_to_string(&noted) {
            self.ids.lock().expect("an unpoisoned lock").insert(id);
            fs::remove_file(noted).expect("remove the ID's file");
        }
        ran
    }

    /// Runs `docker run --detach --name NAME`. The container is removed with
    /// Docker.
    pub fn detached<S: AsRef<str>>(&self, name: &str, flags: &[&str], args: impl AsRef<[S]>) {
        let flags = [&["--detach", "--name", name], flags].concat();
        self.run(&flags, args).succeeded();
    }

    /// Returns the output of `docker exec NAME sh -c SCRIPT`, without its last
    /// line feed.
    #[track_caller]
    pub fn ask(&self, name: &str, script: &str) -> String {
        self.docker(["exec", name, "sh", "-c", script]).succeeded().stdout.trim_end().to_owned()
    }

    /// Returns the output of `docker inspect --format`.
    #[track_caller]
    pub fn inspect(&self, name: &str, format: &str) -> String {
        let output = self.docker(["inspect", "--format", format, name]).succeeded().stdout;
        output.trim_end().to_owned()
    }

    /// Returns the host's process ID of a container's init.
    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        self.inspect(name, "{{.State.Pid}}").parse().expect("a process ID")
    }

    fn remove_containers(&self) {
        let all = self.docker(["ps", "--all", "--quiet"]).stdout;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            self.docker([&["rm", "--force", "--volumes"][..], &all].concat());
        }
    }

    fn left(&self) -> Vec<String> {
        self.remove_containers();
        let ids = self.ids.lock().expect("an unpoisoned lock").iter().cloned().collect();
        leaks::left_of(&Traces {
            slot: &self.slot,
            ids,
            address: self.directory().join("x/containerd/containerd.sock"),
            namespaces: vec!["moby".into()],
        })
    }

    fn stop(&self) {
        let Some(mut child) = self.process.lock().ok().and_then(|mut process| process.take())
        else {
            return;
        };
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        let pidfd = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pidfd, rustix::process::PidfdFlags::empty());
        if !pidfd.is_ok_and(|fd| wait::readable(fd, wait::patience(20))) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if keep::keeps() {
            let client = format!("docker --host unix://{}", self.socket().display());
            return keep::report(&self.slot, &client);
        }
        let left = if thread::panicking() { Vec::new() } else { self.left() };
        if thread::panicking() {
            self.remove_containers();
        }
        self.stop();
        if thread::panicking() || !left.is_empty() {
            eprintln!("--- {:?} logged:\n{}", self.version, self.log());
        }
        leaks::clear_away(&self.slot);
        // Docker made the cgroup above its containers for the test.
        cgroup::clear_away(&self.slot);
        if !left.is_empty() {
            panic!("the test left behind:\n  {}", left.join("\n  "));
        }
    }
}

/// Makes one test of each story, a `fn(Docker)`, for every Docker of the suite,
/// with the root file systems that are named beside it.
#[macro_export]
macro_rules! on_each_docker {
    ($($roots:ident: $($story:ident),+ $(,)?);+ $(;)?) => {$($(
        $crate::tests_of! { $story:
            docker_26 => $crate::docker::Docker::start(
                $crate::docker::Version::V26, $crate::docker::Roots::$roots
            ),
            docker_28 => $crate::docker::Docker::start(
                $crate::docker::Version::V28, $crate::docker::Roots::$roots
            ),
        }
    )+)+};
}
