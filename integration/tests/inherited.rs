//! What a container's processes inherit from containerd, and what not. The table "What a
//! process inherits" of `docs/decisions.md` has the reasons.

use std::fs;

use integration::container::{Container, NewContainer};
use integration::containerd::{Containerd, Version};
use integration::shim::Bundle;
use integration::stdio::Streams;
use integration::{on_each_containerd, spec};

on_each_containerd!(
    starting what_containerd_inherited_does_not_reach_a_container,
    all_cpus_are_the_containers,
    a_limit_above_containerds_own,
);

on_each_containerd!(
    a_cpuset_is_kept,
    each_process_has_its_own_limits,
    priorities_rise_and_memory_is_locked,
    an_exec_finds_the_inits_keys,
    no_other_container_has_a_containers_keys,
);

/// Shows mask, ignored and blocked signals, nice value, and limits of this process itself.
const LOOK: &str = "umask; cat /proc/self/status | grep -E 'SigIgn|SigBlk' | tr -s '\\t\\n' '  '; \
                    echo; cut -d' ' -f19 /proc/self/stat; ulimit -Hn";

fn runc(containerd: &Containerd) -> bool {
    containerd.runtime_name() == "io.containerd.runc.v2"
}

/// containerd's nice value and limits are what its unit's author wants for containers. The
/// mask and the signals are accidents. runc lets the mask through to an exec, and SIGHUP;
/// Go's runtime, which starts runc's processes, ignores signal 32. An older one raises the
/// soft limit on files, so that is not compared.
fn what_containerd_inherited_does_not_reach_a_container(version: Version) {
    let starter = "umask 077; trap '' HUP; ulimit -Sn 3000; ulimit -Hn 4000; exec nice -n 5";
    let containerd = Containerd::start_by(version, starter);
    let container = containerd.shell("clean", &format!("{LOOK}; sleep 1000"));
    let container = container.spec(|s| {
        s["process"]["rlimits"] = serde_json::json!([]);
    });
    let container = container.start();
    let seen = container.stdio().wait_for_output("\n4000\n");
    let mut process = spec::process(&["sh", "-c", LOOK]);
    process["rlimits"] = serde_json::json!([]);
    let in_exec = run(&container, "look", process);
    if runc(&containerd) {
        let passed_on = |text: &str| text.lines().skip(2).collect::<Vec<_>>().join(" ");
        assert_eq!((passed_on(&seen), passed_on(&in_exec)), ("5 4000".into(), "5 4000".into()));
        assert!(seen.starts_with("0022\n"), "{seen}");
        return;
    }
    let clean = "0022\nSigBlk: 0000000000000000 SigIgn: 0000000000000000 \n5\n4000\n";
    assert_eq!((seen.as_str(), in_exec.as_str()), (clean, clean));
}

fn run(container: &Container<'_>, id: &str, process: serde_json::Value) -> String {
    let exec = container.exec(id, process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    let code = exec.wait().code;
    let output = exec.stdio().output();
    assert_eq!(code, 0, "{output}");
    output
}

/// Returns limits of a spec.
fn limits(list: &[(&str, u64)]) -> serde_json::Value {
    let limit = |(kind, value): &(&str, u64)| serde_json::json!({ "type": format!("RLIMIT_{kind}"), "soft": value, "hard": value });
    list.iter().map(limit).collect()
}

/// CAP_SYS_RESOURCE, with which hard limits can be raised, in the mask of capabilities(7).
fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("read this process's status");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a mask");
    u64::from_str_radix(mask.trim(), 16).expect("a hexadecimal mask") & 1 << 24 != 0
}

/// Where the kernel lets containerd, an init and its execs get it, and no other process does.
fn a_limit_above_containerds_own(version: Version) {
    let containerd = Containerd::start_by(version, "ulimit -n 4000; exec");
    let script = "ulimit -Hn; ulimit -n; sleep 1000";
    let container = containerd.shell("many-files", script).spec(|s| {
        s["process"]["rlimits"] = limits(&[("NOFILE", 5000)]);
    });
    if !may_raise_limits() {
        let error = container.try_create().and_then(|c| c.start()).expect_err("it takes privilege");
        let named = "process.rlimits: RLIMIT_NOFILE: hard limit 5000; expected at most 4000";
        assert!(runc(&containerd) || error.message().contains(named), "{error}");
        return;
    }
    let container = container.start();
    assert_eq!(container.stdio().wait_for_output("5000\n5000\n"), "5000\n5000\n");
    let mut process = spec::process(&["sh", "-c", "ulimit -Hn"]);
    process["rlimits"] = limits(&[("NOFILE", 6000)]);
    assert_eq!(run(&container, "more", process.clone()), "6000\n");
    process["rlimits"] = limits(&[]);
    assert_eq!(run(&container, "default", process), "4000\n");
}

/// A limit below containerd's is lowered for one process alone.
fn each_process_has_its_own_limits(containerd: Containerd) {
    let script = "ulimit -Hn; sleep 1000";
    let container = containerd.shell("few-files", script).spec(|s| {
        s["process"]["rlimits"] = limits(&[("NOFILE", 100)]);
    });
    let container = container.start();
    assert_eq!(container.stdio().wait_for_output("100\n"), "100\n");
    let mut process = spec::process(&["sh", "-c", "ulimit -Hn"]);
    process["rlimits"] = limits(&[("NOFILE", 200)]);
    assert_eq!(run(&container, "more", process), "200\n");
}

/// In a user namespace, CAP_SYS_NICE and CAP_IPC_LOCK count for nothing, and limits stand in
/// for them.
fn priorities_rise_and_memory_is_locked(containerd: Containerd) {
    let script = "/usr/bin/perl -e 'setpriority(0, 0, -5); print getpriority(0, 0), qq(\\n)'; \
                  ulimit -l";
    let container = with_perl(containerd.shell("fast", script)).spec(|s| {
        for set in ["bounding", "effective", "permitted"] {
            s["process"]["capabilities"][set] = serde_json::json!(["CAP_SYS_NICE", "CAP_IPC_LOCK"]);
        }
    });
    let (code, output) = container.start().finish();
    match may_raise_limits() || runc(&containerd) {
        true => assert!(output.starts_with("-5\n"), "{code} {output}"),
        false => {
            assert!(!output.starts_with("-5\n"), "{output}");
            let log = containerd.log();
            for told in ["CAP_SYS_NICE: priorities rise", "CAP_IPC_LOCK: memory is locked"] {
                assert!(log.contains(told), "{log}");
            }
        }
    }
    assert!(
        !may_raise_limits() || output.ends_with("unlimited\n") || runc(&containerd),
        "{output}"
    );
}

const CPUS: &str = "grep Cpus_allowed_list /proc/self/status";

/// Since Linux 6.2 joining a cpuset does not undo an affinity. runc undoes it since 1.3; an
/// older one leaves containers on containerd's CPUs.
fn all_cpus_are_the_containers(version: Version) {
    let containerd = Containerd::start_by(version, "exec taskset --cpu-list 0");
    let own = fs::read_to_string("/proc/self/status").expect("read this process's status");
    let own = own.lines().find(|line| line.starts_with("Cpus_allowed_list")).expect("a list");
    let container = containerd.shell("roams", &format!("{CPUS}; sleep 1000")).start();
    let seen = container.stdio().wait_for_output("\n");
    assert_eq!(seen.trim(), own);
    assert_eq!(container.exec_shell("look", CPUS).1.trim(), own);
    let mut process = spec::process(&["sh", "-c", CPUS]);
    process["execCPUAffinity"] = serde_json::json!({ "final": "0" });
    assert_eq!(run(&container, "bound", process), "Cpus_allowed_list:\t0\n");
}

fn a_cpuset_is_kept(containerd: Containerd) {
    let container = containerd.shell("stays", &format!("{CPUS}; sleep 1000"));
    let container = container.spec(|s| {
        s["linux"]["resources"]["cpu"]["cpus"] = "0".into();
    });
    let container = container.start();
    let seen = container.stdio().wait_for_output("\n");
    assert_eq!(seen, "Cpus_allowed_list:\t0\n");
    assert_eq!(container.exec_shell("look", CPUS).1, "Cpus_allowed_list:\t0\n");
}

/// Gives a container this machine's perl, which can make any system call.
fn with_perl(container: NewContainer<'_>) -> NewContainer<'_> {
    ["/usr", "/lib", "/lib64"].into_iter().fold(container, |container, place| {
        let source = fs::canonicalize(place).expect("a directory of the host");
        container.bind(source.to_str().expect("an ASCII path"), place, &["bind", "ro"])
    })
}

/// Adds a key to the session keyring: add_key(2) on x86-64.
const ADD: &str = "/usr/bin/perl -e '($t, $n, $p) = (q(user), q(secret), q(word)); \
                   exit(syscall(248, $t, $n, $p, 4, -3) < 0)'";

/// Looks for it: keyctl(2), KEYCTL_SEARCH.
const FIND: &str = "/usr/bin/perl -e '($t, $n) = (q(user), q(secret)); \
                    exit(syscall(250, 10, -3, $t, $n, 0) < 0)'";

fn an_exec_finds_the_inits_keys(containerd: Containerd) {
    let container =
        with_perl(containerd.shell("has-keys", &format!("{ADD} && echo added; sleep 1000")));
    let container = container.without_baseline().start();
    container.stdio().wait_for_output("added\n");
    assert_eq!(container.exec_shell("finds", FIND).0, 0);
    let mut process = spec::process(&["sh", "-c", FIND]);
    process["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
    assert_eq!(run(&container, "as-alice", process), "");
}

/// The key is there: the container itself finds it.
fn no_other_container_has_a_containers_keys(containerd: Containerd) {
    let first = with_perl(containerd.shell("first", &format!("{ADD} && echo added; sleep 1000")));
    let first = first.without_baseline().start();
    first.stdio().wait_for_output("added\n");
    let other = with_perl(containerd.shell("other", &format!("{FIND}; echo $?")));
    assert_eq!(other.without_baseline().start().finish(), (0, "1\n".to_owned()));
    assert_eq!(first.exec_shell("finds", FIND).0, 0);
}

/// What boot gives up (memory that becomes code: PR_GET_MDWE, prctl(2)) is its own matter: programs
/// that compile as they run do so in init and in execs, and gain privileges where they may.
#[test]
fn containerd_2_1_no_program_is_bound_by_what_boot_gives_up() {
    let containerd = Containerd::start(Version::V2_1);
    let look = "/usr/bin/perl -e 'print syscall(157, 66, 0, 0, 0, 0), qq( ), \
                syscall(9, 0, 4096, 7, 34, -1, 0) > 0 ? qq(code) : qq(none), qq(\n)'; \
                grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status";
    let wanted = "0 code\nNoNewPrivs:\t0\nSeccomp:\t0\n";
    let container = with_perl(containerd.shell("free", &format!("{look}; echo ready; sleep 1000")));
    let container = container.spec(|s| s["process"]["noNewPrivileges"] = false.into());
    // The baseline is a filter of the container's own.
    let container = container.without_baseline().start();
    let printed = container.stdio().wait_for_output("ready\n");
    assert_eq!(printed, format!("{wanted}ready\n"));
    let mut process = spec::process(&["sh", "-c", look]);
    process["noNewPrivileges"] = false.into();
    assert_eq!(run(&container, "exec", process), wanted);
}

/// A user may have 200 keys, and root of the host a million. Each pod's users are its own.
#[test]
fn containerd_2_1_keys_are_limited_for_each_pod() {
    let containerd = Containerd::start(Version::V2_1);
    let script = "/usr/bin/perl -e '$| = 1; ($t, $p) = (q(user), q(word)); \
                  while ($n < 300) { $k = qq(key-$n); \
                  last if syscall(248, $t, $k, $p, 4, -3) < 0; $n++ } print qq($n\n)'; \
                  sleep 1000";
    let hog = with_perl(containerd.shell("hog", script)).without_baseline().start();
    let got: u32 = hog.stdio().wait_for_output("\n").trim().parse().expect("a number");
    if runc(&containerd) {
        assert_eq!(got, 300, "there it is the host's root");
        return;
    }
    assert!(got > 100 && got <= 200, "{got} keys");
    assert_ne!(hog.exec_shell("more", ADD).0, 0);
    let other = with_perl(containerd.shell("other", ADD)).without_baseline().start();
    assert_eq!(other.finish().0, 0, "another pod");
    let host = std::process::Command::new("sh").args(["-c", ADD]).status().expect("run sh");
    assert!(host.success(), "the host's root");
    // A pod that has none left still starts containers and processes.
    assert_eq!(hog.exec_shell("runs", "echo runs"), (0, "runs\n".to_owned()));
}

/// Another container of the pod, in the same user namespace, knows the name of the keyring
/// and joins it: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING. Under runc it has the keys then.
#[test]
fn containerd_2_1_no_container_of_the_pod_joins_a_keyring_by_its_name() {
    let containerd = Containerd::start(Version::V2_1);
    let first = with_perl(containerd.shell("first", &format!("{ADD} && echo added; sleep 1000")));
    let first = first.without_baseline().start();
    first.stdio().wait_for_output("added\n");
    let script = "/usr/bin/perl -e '($n, $t, $k) = (q(_ses.first), q(user), q(secret)); \
                  syscall(250, 1, $n) > 0 or die; \
                  print syscall(250, 10, -3, $t, $k, 0) < 0 ? qq(none\n) : qq(found\n)'";
    let other = with_perl(containerd.shell("other", script)).spec(|s| {
        spec::join_sandbox(s, "first", first.pid(), &["network"]);
    });
    let found = if runc(&containerd) { "found\n" } else { "none\n" };
    assert_eq!(other.without_baseline().start().finish(), (0, found.to_owned()));
    assert_eq!(first.exec_shell("finds", FIND).0, 0);
}

/// A user may have 200 keys. With a keyring of its own each exec that goes on took one.
#[test]
fn containerd_2_1_execs_take_no_keys() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.container("busy", ["sleep", "1000"]).start();
    for n in 0..210 {
        let (code, output) =
            container.exec_shell(&format!("exec-{n}"), "sleep 1000 >/dev/null 2>&1 &");
        assert_eq!((code, output.as_str()), (0, ""), "exec {n}");
    }
}

/// Go's runtime keeps most of this from a shim that a real containerd starts. The process of
/// PID 1 is the program itself.
#[test]
fn containerd_2_1_a_shim_that_was_started_oddly_makes_clean_containers() {
    let containerd = Containerd::start(Version::V2_1);
    let starter = "umask 077; exec taskset --cpu-list 0 \
                   env --ignore-signal=HUP,PIPE,USR1,CHLD,RTMIN --block-signal=USR2,TERM";
    let bundle =
        Bundle::new(&containerd, "odd", &format!("({LOOK}; {CPUS}) >/result; umask >/own"));
    let bundle = bundle.started_by(starter);
    let shim = bundle.start_shim().expect("start the shim");
    shim.create().expect("create the container");
    assert_eq!(shim.run_to_end(), Ok(0));
    shim.shutdown();
    let result = fs::read_to_string(bundle.path.join("rootfs/result")).expect("the output");
    let none = "0022\nSigBlk: 0000000000000000 SigIgn: 0000000000000000 \n";
    assert!(result.starts_with(none), "{result}");
    assert!(!result.contains("Cpus_allowed_list:\t0\n"), "{result}");
}
