//! Containers of a pod that shares its PIDs see the sandbox process. They must
//! not be able to affect it, or each other's processes before these belong to
//! their containers.

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::mpsc;
use std::thread;

use integration::attack::{Attacks, add_attacker};
use integration::containerd::{Containerd, Version};
use integration::cri::{Pod, PodContainer, pod_security, security};
use integration::stdio::Streams;
use integration::{host, on_each_containerd, sandbox, spec, wait};
use k8s_cri::v1::{Capability, Int64Value, NamespaceMode, PodSandboxConfig};
use nix::errno::Errno;
use nix::libc::SYS_execve;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

on_each_containerd!(boot_is_out_of_reach_for_a_pod_that_shares_its_pids);

fn share_pids(config: &mut PodSandboxConfig) {
    let options = pod_security(config).namespace_options.as_mut();
    options.expect("namespace options").pid = NamespaceMode::Pod.into();
}

/// Lists what an unrestricted process can do to boot.
fn attacks_on_pid_1() -> Attacks {
    Attacks::on_host([
        "cat /proc/1/environ",
        "cat /proc/1/maps | grep .",
        "cat /proc/1/auxv",
        "cat /proc/1/syscall",
        "cat /proc/1/stack",
        "cat /proc/1/io",
        "cat /proc/1/personality",
        // The files' owner sees their numbers, and nothing else.
        "for fd in /proc/1/fd/*; do readlink $fd && exit 0; done; exit 1",
        "for fd in /proc/1/fd/*; do (: < $fd) && exit 0; done; exit 1",
        "ls /proc/1/map_files/ | grep .",
        // Not what lies in them: the host's root is no user of the file system of the views.
        "echo /proc/1/root/* | grep -v [*]",
        "echo /proc/1/cwd/* | grep -v [*]",
        "readlink /proc/1/exe",
        "head -c 1 /proc/1/exe",
        "readlink /proc/1/ns/mnt",
        ": < /proc/1/mem",
        "echo 1 > /proc/1/clear_refs",
        "echo 0x33 > /proc/1/coredump_filter",
        "nsenter -t 1 -m true",
        "nsenter -t 1 -n true",
        // Root of the host is no user there.
        "id=$(awk 'NR == 1 { print $1 }' /proc/1/uid_map); nsenter -t 1 -U -S $id -G $id true",
        "echo 0 > /proc/1/timerslack_ns",
    ])
}

/// Returns the attacks that succeed in a container of a pod.
fn succeeded(container: &PodContainer<'_>, attacks: &Attacks) -> String {
    container.ask(&attacks.script())
}

fn alive(pod: &Pod<'_>, container: &PodContainer<'_>) {
    let boot = host::process(pod.pid()).expect("the sandbox process lives");
    assert_eq!(boot.args[0], "palisade-sandbox");
    assert_eq!(container.ask("echo fine"), "fine");
}

fn boot_is_out_of_reach_for_a_pod_that_shares_its_pids(containerd: Containerd) {
    let pod = containerd.pod_with("shared", share_pids);
    let attacks = attacks_on_pid_1();
    let users = [("root", 0), ("the-user-boot-runs-as", 65534), ("alice", 1000)];
    for (name, user) in users {
        let container = pod.container(name, "sleep 1000", |config| {
            let security = security(config);
            security.run_as_user = Some(Int64Value { value: user });
            security.run_as_group = Some(Int64Value { value: user });
            let all = Capability {
                add_capabilities: vec!["SYS_PTRACE".into(), "KILL".into(), "SYS_ADMIN".into()],
                ..Default::default()
            };
            security.capabilities = Some(all);
        });
        assert_eq!(succeeded(&container, &attacks), "done", "{name}");
        container.exec("for s in $(seq 64); do for n in 1 2 3; do kill -$s 1; done; done");
        alive(&pod, &container);
        // The same signals end another process of the container.
        container
            .ask("sleep 1000 & for s in $(seq 64); do kill -$s $!; done; wait $!; test $? -gt 128");
    }
    assert!(pod.is_ready());
    containerd.attacks_work_among(pod.pid(), &attacks);
}

/// Only the host decides how the kernel treats boot.
#[test]
fn root_of_a_container_does_not_change_how_the_kernel_treats_boot() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod_with("limits", share_pids);
    let attacks = Attacks::on_host([
        "taskset -p 1 1",
        "renice -n 5 -p 1",
        "ionice -c 3 -p 1",
        "echo 1000 > /proc/1/oom_score_adj",
        "ls /proc/1/fd",
    ]);
    // The user nobody is not boot's, nor is the last ID of the range.
    for user in [0, 1000, 65534, 65535] {
        let container = pod.container(&format!("user-{user}"), "sleep 1000", |config| {
            security(config).run_as_user = Some(Int64Value { value: user });
            security(config).run_as_group = Some(Int64Value { value: user });
        });
        assert_eq!(succeeded(&container, &attacks), "done", "as {user}");
        alive(&pod, &container);
    }
    containerd.attacks_work_among(pod.pid(), &attacks);
}

/// Makes a container one of the pod `pod` that shares its PIDs, as CRI does.
fn in_pod(spec: &mut Value, boot: i32) {
    spec::join_sandbox(spec, "pod", boot, &["pid", "network"]);
}

/// A created container takes execs, and its init is PID 1 of what they see.
#[test]
fn a_process_at_its_gate_is_out_of_reach_for_the_execs_of_its_container() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("at-gate", ["sleep", "1000"]).spec(add_attacker).create();
    let executable = |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).expect("stat").ino();
    let boot = sandbox::boot_of(container.shim()).pid;
    assert_eq!(executable(container.pid()), executable(boot));
    let mut attack = spec::process(&["/attacker", "process", "1"]);
    spec::add_all_capabilities(&mut attack);
    let attack = container.exec("attack", attack, Streams::Captured).expect("add an exec");
    attack.start().expect("start it");
    assert_eq!(attack.wait().code, 0);
    // Whoever has CAP_SYS_NICE in the pod's user namespace sets this, as with runc.
    assert_eq!(attack.stdio().output(), "wrote /proc/1/timerslack_ns\ndone\n");
    container.start().expect("the init is unharmed");
    assert_eq!(container.exec_shell("after", "echo alive").1, "alive\n");
}

/// At its gate, a container's init is a copy of boot. If all run as one user,
/// only its not being dumpable protects it from another container.
#[test]
fn a_process_at_its_gate_is_out_of_reach_for_other_containers() {
    let containerd = Containerd::start(Version::V2_1);
    for user_namespace in [true, false] {
        let root = containerd.container("pod", ["sleep", "1000"]).spec(|s| {
            let namespaces = s["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| user_namespace || namespace["type"] != "network");
        });
        let root = root.start();
        let boot = sandbox::boot_of(root.shim()).pid;
        let other = containerd.container("other", ["sleep", "1000"]).spec(|s| {
            add_attacker(s);
            in_pod(s, boot);
        });
        let other = other.start();
        let at_gate = containerd.container("at-gate", ["sleep", "1000"]);
        let at_gate = at_gate.spec(|s| in_pod(s, boot)).create();
        let own = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
        assert_eq!(own(boot) != own(std::process::id().cast_signed()), user_namespace);
        assert_eq!(sandbox::boot_of(other.shim()).pid, boot, "one pod");
        // Still a copy of boot, in the PID namespace that the other container sees.
        let executable = |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).expect("stat").ino();
        assert_eq!(executable(at_gate.pid()), executable(boot));
        let seen = host::status(at_gate.pid(), "NSpid");
        let seen = seen.split_whitespace().last().expect("a PID");
        assert_eq!(other.exec_shell("see", &format!("test -e /proc/{seen}/comm")).0, 0);
        for (name, pid) in [("at-gate", seen), ("boot", "1")] {
            let mut attack = spec::process(&["/attacker", "process", pid]);
            if user_namespace {
                spec::add_all_capabilities(&mut attack);
            }
            let attack = other.exec(&format!("attack-{name}"), attack, Streams::Captured);
            let attack = attack.expect("add an exec");
            attack.start().expect("start it");
            assert_eq!(attack.wait().code, 0);
            // Whoever has CAP_SYS_NICE in the pod's user namespace sets this, as with runc.
            let accepted = match user_namespace && name == "at-gate" {
                true => format!("wrote /proc/{pid}/timerslack_ns\ndone\n"),
                false => "done\n".to_owned(),
            };
            assert_eq!(attack.stdio().output(), accepted, "{name}, {user_namespace}");
            // The host's root can do all of it, but not enter its own user namespace.
            let control = format!("/attacker --control process {pid}");
            let failing = containerd.on_host_among(boot, &control);
            let wanted = match user_namespace {
                true => "done\n",
                false => {
                    "entered its CloneFlags(CLONE_NEWUSER)\n\
                          entered its CloneFlags(CLONE_NEWNS | CLONE_NEWUSER)\ndone\n"
                }
            };
            assert_eq!(failing, wanted, "{name}, {user_namespace}");
        }
        at_gate.start().expect("start it");
        assert_ne!(executable(at_gate.pid()), executable(boot));
    }
}

/// From its clone to its execve, a process is a copy of boot, which no container gets at.
/// After that it is an ordinary process of a pod that shares its PIDs, as with runc.
#[test]
fn a_newborn_is_out_of_reach_for_other_containers() {
    let containerd = Containerd::start(Version::V2_1);
    let root = containerd.container("pod", ["sleep", "1000"]).without_baseline().start();
    let boot = sandbox::boot_of(root.shim()).pid;
    let copy = fs::read_to_string(format!("/proc/{boot}/comm")).expect("boot's name");
    let attack = ["/attacker", "newborns", copy.trim_end(), "/"];
    let attacker = containerd.container("attacker", attack).spec(|s| {
        add_attacker(s);
        in_pod(s, boot);
        spec::add_all_capabilities(&mut s["process"]);
    });
    let attacker = attacker.without_baseline().start();
    attacker.stdio().wait_for_output("waiting");
    for number in 0..20 {
        let prey = containerd.container(&format!("prey-{number}"), ["sleep", "1000"]);
        let prey = prey.spec(|s| in_pod(s, boot)).start();
        assert_eq!(prey.exec_shell(&format!("exec-{number}"), "echo fine").1, "fine\n");
        prey.kill(9).expect("kill it");
        assert_eq!(prey.wait().code, 137);
    }
    attacker.kill(9).expect("kill the attacker");
    assert_eq!(attacker.finish(), (137, "waiting\n".to_owned()));
    assert!(host::process(boot).is_some(), "boot lives");

    // The same attacks without the protection: in the attacker's own container, where
    // a process may be in a user namespace that has no maps yet.
    let attack = ["/attacker", "newborns", "sleep", "/bin/busybox"];
    let control = containerd.container("control", attack).spec(|s| {
        add_attacker(s);
        spec::add_all_capabilities(&mut s["process"]);
    });
    let control = control.without_baseline().start();
    control.stdio().wait_for_output("waiting");
    let prey = |id: &str, args: &[&str]| {
        let mut process = spec::process(args);
        spec::add_all_capabilities(&mut process);
        let exec = control.exec(id, process, Streams::Null).expect("add an exec");
        exec.start().expect("start it");
        exec
    };
    let ordinary = prey("ordinary", &["sh", "-c", "exec 5< /; exec sleep 1000"]);
    let found = [
        "opened descriptor 5, /,",
        "opened mem",
        "opened environ",
        "opened fd/0",
        "opened ns/mnt",
        "opened exe",
        "opened root/",
        "opened cwd/",
        "wrote mem",
        "traced the start",
        "took a descriptor",
        "entered CloneFlags(CLONE_NEWNS)",
    ];
    for what in found {
        control.stdio().wait_for_output(&format!("{what} of "));
    }
    let unmapped = prey("unmapped", &["unshare", "-U", "sleep", "1000"]);
    let found =
        ["wrote setgroups", "wrote uid_map", "entered CloneFlags(CLONE_NEWNS | CLONE_NEWUSER)"];
    for what in found {
        control.stdio().wait_for_output(&format!("{what} of "));
    }
    drop((ordinary, unmapped));
}

/// execve closes them only after it has given the process the program's memory, into which a
/// container's CAP_SYS_PTRACE reaches.
#[test]
fn a_newborn_has_given_up_what_boot_holds_when_it_executes() {
    let containerd = Containerd::start(Version::V2_1);
    let root = containerd.container("pod", ["sleep", "1000"]).start();
    let other = containerd.container("other", ["sleep", "1000"]);
    let boot = sandbox::boot_of(root.shim()).pid;
    let other = other.spec(|s| in_pod(s, boot)).start();
    // What it holds for itself and two containers, none of which is for another process.
    let held = host::descriptors(boot);
    assert!(held.len() > 10, "{held:?}");

    let executing = Executing::of_children(boot);
    for streams in [Streams::Null, Streams::Piped, Streams::Terminal] {
        let name = format!("exec-{streams:?}").to_lowercase();
        let exec = other.exec(&name, spec::process(&["sleep", "1000"]), streams);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        executing.assert_hold_streams_and_channels();
    }
    for (name, streams) in [("piped", Streams::Piped), ("terminal", Streams::Terminal)] {
        let container = containerd.container(name, ["sleep", "1000"]).streams(streams);
        let container = container.spec(|s| in_pod(s, boot)).start();
        executing.assert_hold_streams_and_channels();
        assert_eq!(container.exec_shell("again", "echo fine").1, "fine\n");
        executing.assert_hold_streams_and_channels();
    }
}

/// The descriptors of each process that a process makes, as it calls execve.
struct Executing(mpsc::Receiver<BTreeMap<u32, String>>);

impl Executing {
    /// Traces the process from a thread of its own, until this test's process ends.
    fn of_children(pid: i32) -> Self {
        let (ready, is_ready) = mpsc::channel();
        let (found, executing) = mpsc::channel();
        thread::spawn(move || {
            let parent = Pid::from_raw(pid);
            let options = Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACESYSGOOD;
            ptrace::seize(parent, options).expect("trace it");
            ready.send(()).expect("the test waits");
            // Only this thread's: the harness waits for its own children.
            let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            while let Ok(stopped) = waitpid(None, Some(own)) {
                let Some(child) = stopped.pid() else { continue };
                let goes_on = match stopped {
                    WaitStatus::PtraceSyscall(_) if child != parent && calls_execve(child) => {
                        let sent = found.send(host::descriptors(child.as_raw()));
                        sent.map_or(Ok(()), |()| ptrace::detach(child, None))
                    }
                    WaitStatus::Exited(..) | WaitStatus::Signaled(..) => Ok(()),
                    WaitStatus::Stopped(_, signal) => ptrace::syscall(child, signal),
                    _ if child == parent => ptrace::cont(child, None),
                    _ => ptrace::syscall(child, None),
                };
                // ESRCH: it was killed meanwhile.
                assert!(matches!(goes_on, Ok(()) | Err(Errno::ESRCH)), "{goes_on:?}");
            }
        });
        is_ready.recv().expect("the thread traces it");
        Self(executing)
    }

    /// Checks what the next one holds: its streams, the channel to boot, and its log.
    fn assert_hold_streams_and_channels(&self) {
        let patience = wait::patience(10);
        let held = self.0.recv_timeout(patience).expect("a process executes its program");
        let others: Vec<_> = held.iter().filter(|(number, _)| **number > 2).collect();
        assert_eq!(others.len(), 2, "{held:?}");
        let kinds = ["socket:", "pipe:"];
        let harmless = |(_, to): &(&u32, &String)| kinds.iter().any(|kind| to.starts_with(kind));
        assert!(others.iter().all(harmless), "{held:?}");
    }
}

fn calls_execve(pid: Pid) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split(' ').next() == Some(&SYS_execve.to_string())
}

/// Makes the attacks of `mounts_are_locked_whatever_the_interface`, which has
/// the control, where the container sees the pod's proc.
#[test]
fn mounts_are_locked_for_a_pod_that_shares_its_pids() {
    let containerd = Containerd::start(Version::V2_1);
    let root = containerd.container("pod", ["sleep", "1000"]).without_baseline().start();
    let boot = sandbox::boot_of(root.shim()).pid;
    let volume = tempfile::tempdir_in("/var/tmp").expect("make a volume");
    let path = volume.path().to_str().expect("an ASCII path").to_owned();
    let container = containerd
        .container("sharer", ["/attacker", "mounts"])
        .spec(|s| {
            add_attacker(s);
            in_pod(s, boot);
            spec::add_all_capabilities(&mut s["process"]);
            s["root"]["readonly"] = true.into();
        })
        .bind(&path, "/volume", &["rbind", "ro", "nosuid", "nodev", "noexec"])
        .without_baseline()
        .start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
}

/// The default devices are one set for the whole pod, so no container may change it.
#[test]
fn a_container_cannot_spoil_the_devices_of_other_containers() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("devices");
    let vandal = pod.container("vandal", "sleep 1000", |config| {
        let all = Capability { add_capabilities: vec!["ALL".into()], ..Default::default() };
        security(config).capabilities = Some(all);
    });
    let victim = pod.shell("victim", "sleep 1000");
    let attacks = Attacks::privileged([
        "mount -o remount,rw,bind /dev/null; chmod 0 /dev/null",
        "mount -o remount,rw,bind /dev/null; chown 1:1 /dev/null",
        "mount -o remount,rw,bind /dev/urandom; chmod 0 /dev/urandom",
        "umount /dev/zero; rm /dev/zero",
    ]);
    assert_eq!(vandal.ask(&attacks.script()), "done");
    // A mask and a standard input are the null device as well.
    assert_eq!(vandal.ask("chmod 0 /proc/keys /proc/1/fd/0 /proc/timer_list; echo tried"), "tried");
    let mode = |container: &PodContainer<'_>, name: &str| {
        container.ask(&format!("stat -c %a:%t,%T /dev/{name}"))
    };
    assert_eq!(mode(&victim, "null"), "666:1,3");
    assert_eq!(mode(&victim, "urandom"), "666:1,9");
    assert_eq!(mode(&victim, "zero"), "666:1,5");
    let later = pod.shell("later", "sleep 1000");
    assert_eq!(mode(&later, "null"), "666:1,3");
    containerd.attacks_work("spoilt", &attacks, |_| ());
}

/// A container that reads forever cannot reach the control channel by any path.
#[test]
fn abstract_sockets_of_the_host_are_not_there() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod_with("sockets", |config| {
        let options = pod_security(config).namespace_options.as_mut();
        options.expect("namespace options").network = NamespaceMode::Node.into();
        config.hostname = String::new();
    });
    let container = pod.shell("main", "sleep 1000");
    wait::until("it runs", || (container.exec("true").code == 0).then_some(()));
    // A socket on which any process of the host listens would be seen.
    let name = format!("control-of-{}", containerd.slot().name());
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let _listener = UnixListener::bind_addr(&address).expect("listen");
    // CVE-2020-15257: a shim that listens where host-network pods can connect.
    let sockets = container.ask("cat /proc/net/unix");
    assert!(sockets.contains(&format!("@{name}")), "{sockets}");
    assert!(!sockets.contains("@/containerd-shim") && !sockets.contains("@palisade"), "{sockets}");
}
