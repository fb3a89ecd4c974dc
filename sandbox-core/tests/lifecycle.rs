//! Runs the sandbox as the shim does, without a shim: real cgroups, a real
//! boot, a real gofer. Needs root and busybox-static.

#[path = "lifecycle/any_request.rs"]
mod any_request;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use sandbox_core::cgroup::{Cgroup, Driver};
use sandbox_core::control::message::{Donations, Done, Request, Upward};
use sandbox_core::sandbox::state::StateDirectory;
use sandbox_core::sandbox::{
    Checked, Config, NewSandbox, Process, ReceiveOutcome, ReceivedFds, Sandbox,
};
use sandbox_core::spec::plan::Plan;
use sandbox_core::spec::{self, Context, ProcessDefaults};
use sandbox_core::sys::process::{Rlimit, set_rlimit};
use sandbox_core::types::{Capacity, IdPool, Limited, ProcessId, Userns};
use serde_json::{Value, json};

const CAPACITY: Capacity =
    Capacity { cpus: 2, memory: 1 << 30, limited: Limited { cpus: false, memory: false } };

/// A bundle, a state directory and a cgroup, which are removed on drop.
struct Fixture {
    directory: tempfile::TempDir,
    id: String,
    cgroup: Option<Cgroup>,
    tells_refusals: bool,
}

impl Fixture {
    fn new(name: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bundle = directory.path().join("bundle");
        let bin = bundle.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        let mut spec = default_spec(args);
        change(&mut spec);
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let id = format!("{name}-{}", std::process::id());
        Self { directory, id, cgroup: None, tells_refusals: false }
    }

    fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    fn config(&self) -> Config {
        Config {
            userns: Userns::Auto,
            id_pool: IdPool { start: 0x7000_0000, size: 65536 * 64, ..IdPool::default() },
            state_root: self.directory.path().join("run"),
            palisade: env!("CARGO_BIN_EXE_palisade-sandbox").into(),
            debug: true,
            user_log: false,
        }
    }

    fn plan(&self) -> Plan {
        let bundle = self.bundle();
        let context = Context {
            id: &self.id,
            bundle: &bundle,
            rootfs_mounts_given: false,
            userns: Userns::Auto,
            id_pool: IdPool::default(),
            baseline: Default::default(),
            tells_refusals: self.tells_refusals,
            views: None,
            sandbox: None,
            other_containers: &[],
        };
        spec::plan(&spec::load(&bundle).unwrap(), &context).unwrap()
    }

    fn start(&mut self) -> Pod {
        let (plan, config) = (self.plan(), self.config());
        let path = format!("/palisade-test-{}", self.id);
        let cgroup =
            Cgroup::create(&self.id, &path, Driver::Cgroupfs, &plan.host.resources, &[]).unwrap();
        let directory = StateDirectory::locate(&config.state_root, "test", &self.id).unwrap();
        directory.create().unwrap();
        let sandbox = Sandbox::spawn(NewSandbox {
            directory: &directory,
            address: "unix:///nowhere",
            id: &self.id,
            namespace: "test",
            plan: &plan,
            cgroup: &cgroup,
            cpus: 2,
            memory: 1 << 30,
            config: &config,
        })
        .unwrap();
        self.cgroup = Some(cgroup);
        let pod = Pod { sandbox, plan };
        if pod.sandbox.has_user_namespace() {
            wait(pod.sandbox.start_sync());
            pod.sandbox.finish_namespaces().expect("namespaces");
        }
        pod.deliver_mounts();
        wait(pod.sandbox.start_sync());
        if let Err(error) = pod.sandbox.finish_start() {
            panic!("{error}");
        }
        pod
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.remove();
        }
    }
}

struct Pod {
    sandbox: Sandbox,
    plan: Plan,
}

impl Pod {
    fn call(
        &self,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Done, ReceivedFds), String> {
        let wanted = self.sandbox.send(request, fds).unwrap();
        match self.next() {
            (Upward::Reply { number, outcome }, fds) if number == wanted => {
                outcome.map(|done| (done, fds)).map_err(|failure| failure.message)
            }
            (other, _) => panic!("expected a reply, got {other:?}"),
        }
    }

    fn next(&self) -> (Upward, ReceivedFds) {
        loop {
            match self.sandbox.receive() {
                Ok(ReceiveOutcome::Message(unchecked)) => match unchecked.check() {
                    Ok(Checked::Message(message, received)) => return (message, received),
                    other => panic!("{other:?}"),
                },
                Ok(ReceiveOutcome::Nothing) => wait(self.sandbox.control()),
                other => panic!("{other:?}{}", self.sandbox.describe_end()),
            }
        }
    }

    fn deliver_mounts(&self) {
        let gofer = self.sandbox.gofer(&self.plan, Vec::new(), None).unwrap();
        wait(gofer.as_fd());
        gofer.finish().unwrap();
    }

    fn delete(&self) -> Result<Done, String> {
        let request = Request::Delete { container: self.container() };
        self.call(request, &[]).map(|(done, _)| done)
    }

    /// Starts the created container and waits until it has ended.
    fn run(&self) {
        self.call(Request::Start { container: self.container() }, &[]).unwrap();
        let exited = Upward::Exited { process: ProcessId::init(self.container()), status: 0 };
        assert_eq!(self.next().0, exited);
    }

    fn create(&self, stdout: BorrowedFd<'_>) -> Result<Process, String> {
        let seccomp = self.sandbox.seccomp(&self.plan).unwrap();
        let donations = Donations {
            stdout: true,
            stderr: true,
            seccomp: seccomp.as_ref().map(|s| s.1),
            ..Donations::default()
        };
        let mut fds = vec![stdout, stdout];
        fds.extend(seccomp.as_ref().map(|s| s.0.as_fd()));
        let plan = Box::new(self.plan.container.clone());
        let (_, received) =
            self.call(Request::Create { plan, donations, capacity: CAPACITY }, &fds)?;
        received.process.ok_or_else(|| "no process".to_owned())
    }

    fn exec(&self, id: &str, args: &[&str], stdout: BorrowedFd<'_>) -> Result<Process, String> {
        let process = spec::load_process(process(args).to_string().as_bytes()).unwrap();
        let plan = spec::plan_process(&process, &ProcessDefaults::of(&self.plan)).unwrap();
        let donations = Donations { stdout: true, stderr: true, ..Donations::default() };
        let request = Request::Exec {
            container: self.plan.container.id.clone(),
            exec: id.into(),
            process: Box::new(plan),
            donations,
        };
        let (_, received) = self.call(request, &[stdout, stdout])?;
        received.process.ok_or_else(|| "no process".to_owned())
    }

    fn container(&self) -> String {
        self.plan.container.id.clone()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.sandbox.tear_down();
    }
}

fn wait(fd: BorrowedFd<'_>) {
    let timeout = Timespec::try_from(Duration::from_secs(20)).unwrap();
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing happened for 20 seconds");
}

fn read_all(pipe: OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(pipe).read_to_string(&mut text).unwrap();
    text
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn process(args: &[&str]) -> Value {
    let caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": { "uid": 0, "gid": 0 },
        "noNewPrivileges": true,
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
    })
}

fn default_spec(args: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let namespaces =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|t| json!({ "type": t }));
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": { "path": "rootfs" },
        "hostname": "inside",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

/// CAP_SYS_RESOURCE, with which a process of the host raises hard limits.
fn may_raise_limits() -> bool {
    let has = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
    has.unwrap()
}

fn a_limit_above_the_shims_own_takes_privilege_and_reaches_one_process_alone() {
    // All that follows starts with this limit.
    let own = Rlimit { resource: libc::RLIMIT_NOFILE, soft: 4000, hard: 4000 };
    set_rlimit(own).unwrap();
    let show = "ulimit -n; ulimit -Hn; ulimit -e; ulimit -r; ulimit -l";
    let mut world = Fixture::new("limits", &["busybox", "sh", "-c", show], |spec| {
        let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 4500, "hard": 5000 });
        spec["process"]["rlimits"] = json!([limit]);
        spec["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": -5 });
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_SYS_NICE", "CAP_IPC_LOCK"]);
        }
    });
    let pod = world.start();
    let raised = pod.sandbox.raise_limits(pod.plan.container.process.as_ref().unwrap());
    if !may_raise_limits() {
        let message = raised.unwrap_err().to_string();
        let expected =
            "process.rlimits: RLIMIT_NOFILE: hard limit 5000; expected at most 4000, containerd's";
        assert!(message.contains(expected), "{message}");
        return;
    }
    raised.unwrap();
    let (output, stdout) = pipe();
    pod.create(stdout.as_fd()).unwrap();
    let (exec_output, exec_stdout) = pipe();
    let look = "ulimit -n; ulimit -Hn; ulimit -e; ulimit -r; ulimit -l; cat /proc/1/stat";
    pod.exec("look", &["busybox", "sh", "-c", look], exec_stdout.as_fd()).unwrap();
    drop(exec_stdout);
    let of_exec = read_all(exec_output);
    // The init's nice value is 5 below that of this process.
    assert!(of_exec.starts_with("4000\n4000\n0\n0\n") && of_exec.contains(" 15 -5 "), "{of_exec}");
    assert!(!of_exec.contains("unlimited"), "{of_exec}");
    pod.next();
    pod.run();
    drop(stdout);
    assert_eq!(read_all(output), "4500\n5000\n40\n99\nunlimited\n");
}

fn a_container_is_created_started_joined_and_ends() {
    let mut world =
        Fixture::new("lifecycle", &["busybox", "sh", "-c", "echo hello; id -u; hostname"], |_| {});
    let pod = world.start();
    let (output, stdout) = pipe();
    let init = pod.create(stdout.as_fd()).unwrap();
    assert!(Path::new(&format!("/proc/{}", init.pid.0)).exists());

    let (exec_output, exec_stdout) = pipe();
    pod.exec("before", &["busybox", "echo", "joined"], exec_stdout.as_fd()).unwrap();
    drop(exec_stdout);
    assert_eq!(read_all(exec_output), "joined\n");
    let exited = |exec: Option<&str>| Upward::Exited {
        process: ProcessId { container: pod.container(), exec: exec.map(Into::into) },
        status: 0,
    };
    assert_eq!(pod.next().0, exited(Some("before")));

    pod.call(Request::Start { container: pod.container() }, &[]).unwrap();
    drop(stdout);
    assert_eq!(read_all(output), "hello\n0\ninside\n");
    assert_eq!(pod.next().0, exited(None));
    pod.delete().unwrap();
}

/// As the shim cancels a Create whose client has gone: it does not wait for a
/// reply.
fn a_cancelled_create_leaves_no_process() {
    let mut world = Fixture::new("cancelled", &["busybox", "echo", "again"], |_| {});
    let pod = world.start();
    let (output, stdout) = pipe();
    let donations = Donations { stdout: true, stderr: true, ..Donations::default() };
    let plan = Box::new(pod.plan.container.clone());
    let create = Request::Create { plan, donations, capacity: CAPACITY };
    let fds = [stdout.as_fd(), stdout.as_fd()];
    let create = pod.sandbox.send(create, &fds).unwrap();
    let delete = Request::Delete { container: pod.container() };
    let delete = pod.sandbox.send(delete, &[]).unwrap();
    let mut replies = [pod.next(), pod.next()].map(|(message, _)| message);
    replies.sort_by_key(|message| match message {
        Upward::Reply { number, .. } => *number,
        other => panic!("expected a reply, got {other:?}"),
    });
    // The process may have been at its gate already.
    assert!(matches!(&replies[0], Upward::Reply { number, .. } if *number == create));
    assert_eq!(replies[1], Upward::Reply { number: delete, outcome: Ok(Done::Ok) });

    pod.deliver_mounts();
    pod.create(stdout.as_fd()).unwrap();
    pod.run();
    drop(stdout);
    assert_eq!(read_all(output), "again\n");
}

fn mounts_without_a_create_go_to_no_other_container() {
    let mut world = Fixture::new("renamed", &["busybox", "cat", "/which"], |_| {});
    for (root, text) in [("rootfs", "first"), ("other", "second")] {
        let bin = world.bundle().join(root).join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        fs::write(world.bundle().join(root).join("which"), text).unwrap();
    }
    let mut pod = world.start();
    let (output, stdout) = pipe();
    pod.create(stdout.as_fd()).unwrap();
    pod.delete().unwrap();

    pod.deliver_mounts();
    let error = pod.delete().unwrap_err();
    assert!(error.contains("no container"), "{error}");
    pod.plan.host.rootfs = world.bundle().join("other");
    pod.deliver_mounts();
    pod.create(stdout.as_fd()).unwrap();
    pod.run();
    drop(stdout);
    assert_eq!(read_all(output), "second");
}

fn a_missing_program_is_named() {
    let mut world = Fixture::new("missing", &["no-such-program"], |_| {});
    let pod = world.start();
    let (_output, stdout) = pipe();
    let error = pod.create(stdout.as_fd()).unwrap_err();
    assert_eq!(error, "exec: \"no-such-program\": executable file not found in $PATH");
}

/// As systemd does when it stops the sandbox's cgroup because the node shuts
/// down: containers end by the signal if they handle it, and are not killed
/// with the sandbox.
fn a_node_that_shuts_down_ends_a_sandbox_after_its_containers() {
    let mut world = Fixture::new("shutdown", &["busybox", "sleep", "1000"], |_| {});
    let pod = world.start();
    let (_output, stdout) = pipe();
    let init = pod.create(stdout.as_fd()).unwrap();
    pod.call(Request::Start { container: pod.container() }, &[]).unwrap();
    pidfd_send_signal(pod.sandbox.pidfd(), Signal::TERM).unwrap();
    let (exec_output, exec_stdout) = pipe();
    pod.exec("goes-on", &["busybox", "echo", "still here"], exec_stdout.as_fd()).unwrap();
    drop(exec_stdout);
    assert_eq!(read_all(exec_output), "still here\n");
    assert!(matches!(
        pod.next().0,
        Upward::Exited { process: ProcessId { exec: Some(_), .. }, status: 0 }
    ));
    let mut death = [PollFd::from_borrowed_fd(pod.sandbox.pidfd(), PollFlags::IN)];
    assert_eq!(poll(&mut death, Some(&Timespec::default())), Ok(0), "boot is dead");

    init.signal(Signal::KILL.as_raw()).unwrap();
    assert!(matches!(
        pod.next().0,
        Upward::Exited { process: ProcessId { exec: None, .. }, status: 137 }
    ));
    wait(pod.sandbox.pidfd());
}

fn a_sandbox_that_runs_nothing_ends_when_the_node_shuts_down() {
    let mut world = Fixture::new("idle", &["busybox", "true"], |_| {});
    let pod = world.start();
    pidfd_send_signal(pod.sandbox.pidfd(), Signal::TERM).unwrap();
    wait(pod.sandbox.pidfd());
}

/// Refuses mkdir(2) with an errno of its own, sync(2) with success, and umask(2) as a kernel
/// that lacks it.
fn with_profile(spec: &mut Value, no_new_privileges: bool) {
    let rule = |name: &[&str], errno: u32| json!({ "names": name, "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
    spec["process"]["noNewPrivileges"] = no_new_privileges.into();
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule(&["mkdir", "mkdirat"], 95), rule(&["sync"], 0), rule(&["umask"], 38)],
    });
}

/// Returns how many seccomp listeners boot holds.
fn listeners(pod: &Pod) -> usize {
    let directory = format!("/proc/{}/fd", pod.sandbox.pid().0);
    let names = fs::read_dir(directory).unwrap().flatten().map(|fd| fs::read_link(fd.path()));
    names.flatten().filter(|name| name.to_string_lossy().contains("seccomp notify")).count()
}

/// Waits until boot holds so many.
fn wait_for_listeners(pod: &Pod, wanted: usize) {
    for _ in 0..2000 {
        if listeners(pod) == wanted {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("boot holds {} listeners, not {wanted}", listeners(pod));
}

/// What a program refuses, and what the kernel refuses for lack of a capability, has the same
/// result if boot is asked about it, in the init and in an exec, with and without
/// no_new_privileges. The listener goes with the last process.
fn a_watched_container_gets_the_errnos_that_it_would_get() {
    let script = "busybox mkdir /a; busybox sync && echo synced; umask 0; \
        busybox mount -t tmpfs x /tmp; busybox unshare -n busybox true; busybox hostname x; \
        busybox mknod /n c 1 3; busybox mknod /p p && echo pipe; busybox chroot / busybox true; \
        busybox rm -f /p; busybox date -s 200001010000; busybox insmod /x; busybox reboot -f; echo end";
    let answers = |tells_refusals: bool, no_new_privileges: bool| {
        let args = ["busybox", "sh", "-c", &format!("exec 2>&1; {script}")];
        let mut world =
            Fixture::new("watched", &args, |spec| with_profile(spec, no_new_privileges));
        world.tells_refusals = tells_refusals;
        let pod = world.start();
        let (output, stdout) = pipe();
        pod.create(stdout.as_fd()).unwrap();
        let (exec_output, exec_stdout) = pipe();
        let exec = format!("exec 2>&1; read -t 1 nothing < /dev/null; {script}");
        pod.exec("refused", &["busybox", "sh", "-c", &exec], exec_stdout.as_fd()).unwrap();
        drop(exec_stdout);
        let of_exec = read_all(exec_output);
        pod.next();
        // That of the init, which with no_new_privileges loads its program when it is started.
        wait_for_listeners(&pod, (tells_refusals && !no_new_privileges).into());
        pod.run();
        drop(stdout);
        let of_init = read_all(output);
        wait_for_listeners(&pod, 0);
        assert!(of_init.contains("Operation not supported\n"), "{of_init}");
        assert!(of_init.ends_with("end\n") && of_init.contains("synced\n"), "{of_init}");
        assert!(of_init.contains("pipe\n"), "{of_init}");
        (of_init, of_exec)
    };
    for no_new_privileges in [true, false] {
        let without = answers(false, no_new_privileges);
        assert_eq!(answers(true, no_new_privileges), without);
    }
}

/// Returns the time for which a process was on a CPU.
fn on_cpu(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// A container that is refused as often as it can costs boot one percent of a CPU, and boot
/// serves others meanwhile.
fn a_container_that_is_refused_without_end_costs_boot_little() {
    let loops = "for i in 1 2 3 4 5 6; do while :; do umask 0; done & done; wait";
    let mut world = Fixture::new("flood", &["busybox", "sh", "-c", loops], |spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
        });
    });
    world.tells_refusals = true;
    let pod = world.start();
    let (_output, stdout) = pipe();
    pod.create(stdout.as_fd()).unwrap();
    pod.call(Request::Start { container: pod.container() }, &[]).unwrap();
    // The share that is there at once is used up.
    std::thread::sleep(Duration::from_secs(3));
    let boot = pod.sandbox.pid().0;
    let (begun, before) = (std::time::Instant::now(), on_cpu(boot));
    std::thread::sleep(Duration::from_secs(4));
    let share = (on_cpu(boot) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("boot used {:.2} % of a CPU", share * 100.0);
    assert!(share < 0.01, "boot used {:.2} % of a CPU", share * 100.0);
    let begun = std::time::Instant::now();
    for number in 0..10 {
        let (exec_output, exec_stdout) = pipe();
        pod.exec(&format!("e{number}"), &["busybox", "echo", "joined"], exec_stdout.as_fd())
            .unwrap();
        drop(exec_stdout);
        assert_eq!(read_all(exec_output), "joined\n");
        pod.next();
    }
    println!("an exec took {:?}", begun.elapsed() / 10);
    assert!(begun.elapsed() < Duration::from_secs(5), "ten execs took {:?}", begun.elapsed());
}

/// Runs the tests one after another on the main thread, whatever the command
/// line asks for.
fn main() -> std::process::ExitCode {
    let tests: [(&str, fn()); 10] = [
        (
            "any_request_leaves_a_confined_boot_up",
            any_request::any_request_leaves_a_confined_boot_up,
        ),
        (
            "a_container_is_created_started_joined_and_ends",
            a_container_is_created_started_joined_and_ends,
        ),
        ("a_cancelled_create_leaves_no_process", a_cancelled_create_leaves_no_process),
        (
            "mounts_without_a_create_go_to_no_other_container",
            mounts_without_a_create_go_to_no_other_container,
        ),
        ("a_missing_program_is_named", a_missing_program_is_named),
        (
            "a_watched_container_gets_the_errnos_that_it_would_get",
            a_watched_container_gets_the_errnos_that_it_would_get,
        ),
        (
            "a_container_that_is_refused_without_end_costs_boot_little",
            a_container_that_is_refused_without_end_costs_boot_little,
        ),
        (
            "a_limit_above_the_shims_own_takes_privilege_and_reaches_one_process_alone",
            a_limit_above_the_shims_own_takes_privilege_and_reaches_one_process_alone,
        ),
        (
            "a_node_that_shuts_down_ends_a_sandbox_after_its_containers",
            a_node_that_shuts_down_ends_a_sandbox_after_its_containers,
        ),
        (
            "a_sandbox_that_runs_nothing_ends_when_the_node_shuts_down",
            a_sandbox_that_runs_nothing_ends_when_the_node_shuts_down,
        ),
    ];
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}
