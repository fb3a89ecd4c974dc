//! The user log: what was refused to a container is told, once, with what to set. It changes no
//! answer, ends no line, waits for no reader, and has bounds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use integration::container::{NewContainer, options};
use integration::containerd::{Containerd, Version};
use integration::events::{Subscriber, TaskEvent};
use integration::host::cpu_time;
use integration::stdio::Streams;
use integration::{image, on_each_containerd, sandbox, spec, wait};
use serde_json::{Value, json};

on_each_containerd!(
    each_refusal_of_the_baseline_is_told_with_what_to_set,
    what_takes_a_capability_is_told,
    the_refusals_of_an_exec_stand_in_its_container_s_log,
);

on_each_containerd!(starting a_pod_turns_it_on_by_an_annotation);

/// Adds the program that makes refused calls.
fn add_program(spec: &mut Value) {
    let path = image::sibling("surfaces");
    spec::add_bind(spec, path.to_str().expect("an ASCII path"), "/surfaces", &["bind", "ro"]);
}

fn surfaces<'a>(
    containerd: &'a Containerd,
    id: &str,
    option: &str,
    args: &[&str],
) -> NewContainer<'a> {
    let args: Vec<&str> = ["/surfaces"].iter().chain(args).copied().collect();
    containerd.container(id, args).spec(add_program).options(options(option, ""))
}

const POD: &str = "user_log = 'pod'";

/// Returns the lines of a log without their time.
fn lines(log: &str) -> Vec<String> {
    let ours = log.lines().filter_map(|line| {
        let (time, rest) = line.trim_end().split_once(" palisade: ")?;
        assert!(time.len() == 20 && time.ends_with('Z'), "{line}");
        Some(rest.to_owned())
    });
    ours.collect()
}

/// Returns lines with the PIDs taken out.
fn without_pids(lines: Vec<String>) -> Vec<String> {
    let cut = |line: String| match line.split_once("(pid ") {
        Some((before, after)) => {
            let (_, rest) = after.split_once(", ").expect("a user after the PID");
            format!("{before}({rest}")
        }
        None => line,
    };
    lines.into_iter().map(cut).collect()
}

/// Runs calls in a container and returns what they answered, and the log.
fn run(containerd: &Containerd, id: &str, option: &str, args: &[&str]) -> (String, Vec<String>) {
    let container = surfaces(containerd, id, option, args).start();
    let (code, output) = container.finish();
    let errors = container.stdio().errors();
    assert_eq!(code, 0, "{output}{errors}");
    (output, without_pids(lines(&errors)))
}

fn each_refusal_of_the_baseline_is_told_with_what_to_set(containerd: Containerd) {
    for (id, told) in [
        (
            "one",
            vec![
                ("io_uring", "io_uring_setup(1) = ENOSYS", "io_uring", ""),
                ("user namespace by unshare", "unshare(CLONE_NEWUSER)", "user_namespaces", ""),
                (
                    "bpf",
                    "bpf(BPF_OBJ_GET_INFO_BY_FD) = EPERM",
                    "bpf",
                    ", or securityContext.capabilities.add: [\"SYS_ADMIN\"] or [\"BPF\"]",
                ),
                (
                    "perf",
                    "perf_event_open(..., 0, -1, -1) = EPERM",
                    "perf",
                    ", or securityContext.capabilities.add: [\"SYS_ADMIN\"] or [\"PERFMON\"]",
                ),
                (
                    "userfaultfd",
                    "userfaultfd(UFFD_USER_MODE_ONLY) = EPERM",
                    "userfaultfd",
                    ", or securityContext.capabilities.add: [\"SYS_PTRACE\"]",
                ),
                ("add_key", "add_key = EPERM", "keys", ""),
                ("request_key", "request_key = EPERM", "keys", ""),
                ("keyctl", "keyctl(KEYCTL_GET_KEYRING_ID) = EPERM", "keys", ""),
                ("AF_ALG", "socket(AF_ALG, 0xf, 0) = EAFNOSUPPORT", "alg", ""),
                ("AF_VSOCK", "socket(AF_VSOCK, 0xf, 0) = EAFNOSUPPORT", "vsock", ""),
            ],
        ),
        (
            "two",
            vec![
                ("user namespace by clone", "clone(CLONE_NEWUSER|0x11)", "user_namespaces", ""),
                ("AF_XDP", "socket(AF_XDP, 0xf, 0) = EAFNOSUPPORT", "sockets", ""),
                (
                    "socketpair of AF_TIPC",
                    "socketpair(AF_TIPC, 0xf, 0) = EAFNOSUPPORT",
                    "sockets",
                    "",
                ),
                ("TCP_ULP", "setsockopt(3, SOL_TCP, TCP_ULP) = ENOPROTOOPT", "tcp_ulp", ""),
                ("MSG_OOB by sendto", "sendto(3, ..., 1, MSG_OOB) = EOPNOTSUPP", "msg_oob", ""),
                ("MSG_OOB by sendmsg", "sendmsg(3, ..., MSG_OOB) = EOPNOTSUPP", "msg_oob", ""),
                ("MSG_OOB by sendmmsg", "sendmmsg(3, ..., 1, MSG_OOB) = EOPNOTSUPP", "msg_oob", ""),
                ("TIOCSTI", "ioctl(-1, TIOCSTI) = EPERM", "tiocsti", ""),
                ("personality", "personality(READ_IMPLIES_EXEC) = EPERM", "personality", ""),
                ("AF_ALG by i386", "socket(AF_ALG, 0xf, 0) of i386 = EAFNOSUPPORT", "alg", ""),
            ],
        ),
    ] {
        let names: Vec<&str> = ["some"].into_iter().chain(told.iter().map(|t| t.0)).collect();
        let (with, log) = run(&containerd, id, POD, &names);
        let (without, none) = run(&containerd, &format!("{id}-off"), "", &names);
        assert_eq!(with, without, "the log changes no answer");
        assert!(!with.contains("reached") && none.is_empty(), "{with}{none:?}");
        let expected: Vec<_> = told
            .iter()
            .map(|(_, call, part, or)| {
                format!(
                    "container {id}: \"exe\" (user 0): {call}: refused by the baseline ({part}); \
                     allowed by baseline_allow = [\"{part}\"]{or}"
                )
            })
            .collect();
        assert_eq!(log, expected);
    }
}

/// The kernel decides, with the same answers as without a log.
fn what_takes_a_capability_is_told(containerd: Containerd) {
    let drop_all = |spec: &mut Value| spec["process"]["capabilities"] = json!({});
    let start = |id: &str, option: &str, change: &dyn Fn(&mut Value)| {
        let container =
            surfaces(&containerd, id, option, &["mighty"]).spec(|spec| change(spec)).start();
        let (code, output) = container.finish();
        assert_eq!(code, 0, "{output}");
        let errors = container.stdio().errors();
        (output, without_pids(lines(&errors)))
    };
    let (with, log) = start("with", POD, &drop_all);
    let (without, _) = start("without", "", &drop_all);
    assert_eq!(with, without);
    // Ten lines at once, and the rest in one.
    assert_eq!(log.len(), 11, "{log:?}");
    assert_eq!(
        log[0],
        "container with: \"exe\" (user 0): mount(..., ..., ..., MS_BIND): needs CAP_SYS_ADMIN, \
         which the container does not have; allowed by securityContext.capabilities.add: \
         [\"SYS_ADMIN\"]"
    );
    assert!(log[8].contains("mknodat(-100, ..., S_IFCHR|0o600, 1:1): needs CAP_MKNOD"), "{log:?}");
    let needs = |line: &String| line.contains(": needs CAP_") && line.contains("allowed by");
    assert!(log[..10].iter().all(needs), "{log:?}");
    assert!(log[10].contains("refused again: ") && log[10].contains("not listed"), "{log:?}");
    let harmless = log.iter().any(|line| line.contains("S_IFIFO") || line.contains("SOCK_DGRAM"));
    assert!(!harmless, "{log:?}");
}

fn the_refusals_of_an_exec_stand_in_its_container_s_log(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = surfaces(&containerd, "web", POD, &["some", "bpf"]).spec(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
    });
    let container = container.start();
    for round in 0..3 {
        let (code, output) =
            container.exec_shell(&format!("e{round}"), "/surfaces some bpf AF_ALG");
        assert_eq!((code, output.as_str()), (0, "bpf: EPERM\nAF_ALG: EAFNOSUPPORT\n"));
    }
    let is_alg = |e: &TaskEvent| matches!(e, TaskEvent::Refused(text) if text.contains("AF_ALG"));
    let seen = events.until(is_alg);
    let Some(TaskEvent::Refused(sentence)) = seen.last() else { panic!("{seen:?}") };
    assert!(sentence.starts_with("container web: \"exe\" (pid "), "{sentence}");
    container.kill(9).expect("kill it");
    container.wait();
    let log = without_pids(lines(&container.stdio().errors()));
    assert_eq!(log.len(), 3, "{log:?}");
    assert_eq!(
        log[2],
        "container web: refused again: bpf(BPF_OBJ_GET_INFO_BY_FD) by \"exe\" 2 times, \
         socket(AF_ALG, 0xf, 0) by \"exe\" 2 times"
    );
}

fn a_pod_turns_it_on_by_an_annotation(version: Version) {
    let containerd = Containerd::start_with_option_file(version, "");
    let pod = containerd.pod_with("logs", |config| {
        config.annotations.extend([("dev.palisade.user_log".into(), "pod".into())]);
    });
    let container = pod.container("main", "unshare -m true; sleep 1000", |_| ());
    let (stream, line) = wait::until("the log tells", || {
        container.log_lines().into_iter().find(|(_, line)| line.contains(" palisade: "))
    });
    assert_eq!(stream, "stderr");
    assert!(line.contains("\"unshare\" (pid "), "{line}");
    assert!(line.contains("unshare(CLONE_NEWNS): needs CAP_SYS_ADMIN"), "{line}");
}

fn containerd() -> Containerd {
    Containerd::start(Version::V2_1)
}

/// However fast a container is refused, and whatever it invents, it costs little, and a few lines.
#[test]
fn a_flood_costs_little_and_makes_few_lines() {
    let containerd = containerd();
    for how in ["flood", "invent"] {
        let container = surfaces(&containerd, how, POD, &[how, "6"]).start();
        let shim = container.shim();
        let boot = sandbox::boot_of(shim).pid;
        let (before, begun) = (cpu_time(shim) + cpu_time(boot), Instant::now());
        std::thread::sleep(Duration::from_secs(5));
        let used = cpu_time(shim) + cpu_time(boot) - before;
        let share = used.as_secs_f64() / begun.elapsed().as_secs_f64();
        let (code, output) = container.finish();
        assert_eq!(code, 0, "{output}");
        let log = lines(&container.stdio().errors());
        println!("{how}: {:.2} % of a CPU, {} calls", share * 100.0, output.trim());
        // 250 at once and 100 in a second are answered, which takes 1 % of a CPU with executables of
        // a release, and more on an emulated machine.
        let calls: u64 = output.trim().parse().expect("a number");
        assert!((1..250 + 100 * 7).contains(&calls), "{how}: {calls} calls in six seconds");
        assert!((2..=12).contains(&log.len()), "{how}: {log:?}");
        let last = log.last().expect("an account");
        if how == "flood" {
            let again = format!("bpf(BPF_MAP_CREATE) by \"surfaces\" {} times", calls - 1);
            assert!(last.contains(&again), "{last}, {calls} calls");
        } else {
            assert!(last.contains("calls that are not listed"), "{last}");
        }
    }
}

#[test]
fn no_program_s_name_ends_a_line() {
    let containerd = containerd();
    let name = "a\n\x1b[2J\" (pid 1";
    let container = surfaces(&containerd, "named", POD, &["named", name]).start();
    assert_eq!(container.finish(), (0, "EPERM\n".to_owned()));
    let log = lines(&container.stdio().errors());
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(
        log[0].starts_with("container named: \"a\\n\\u{1b}[2J\\\" (pid 1\" (pid 1, user"),
        "{log:?}"
    );
    let json = format!("{POD}\nuser_log_format = 'json'");
    let container = surfaces(&containerd, "json", &json, &["named", name]).start();
    container.finish();
    let errors = container.stdio().errors();
    let line: Value = serde_json::from_str(errors.trim()).expect("one object");
    assert_eq!(line["program"], name);
    assert_eq!((&line["container"], &line["errno"]), (&json!("json"), &json!("EPERM")));
}

#[test]
fn a_reader_that_does_not_read_is_waited_for_by_nobody() {
    let containerd = containerd();
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    // More than the FIFO takes: no line has room.
    let container = containerd
        .shell("full", "yes | head -c 1000000; sleep 1000")
        .spec(add_program)
        .output_to(fifo.to_str().expect("ASCII"))
        .options(options(POD, ""))
        .start();
    let reader = fs::File::options().read(true).write(true).open(&fifo).expect("open it");
    wait::until("it is full", || {
        let waiting = rustix::io::ioctl_fionread(&reader).unwrap_or(0);
        (waiting >= 60_000).then_some(())
    });
    let begun = Instant::now();
    for round in 0..20 {
        let (code, output) = container.exec_shell(&format!("e{round}"), "/surfaces some bpf perf");
        assert_eq!((code, output.as_str()), (0, "bpf: EPERM\nperf: EPERM\n"));
    }
    assert!(begun.elapsed() < wait::deadline(), "{:?}", begun.elapsed());
    container.kill(9).expect("kill it");
    assert_eq!(container.wait().code, 137);
}

#[test]
fn several_pods_append_to_one_file() {
    let containerd = containerd();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("refused.json");
    let option = format!("user_log = '{}'\nuser_log_format = 'json'", file.display());
    for id in ["a", "b"] {
        let (_, log) = run(&containerd, id, &option, &["some", "bpf"]);
        assert!(log.is_empty(), "nothing of it is in the pod's log: {log:?}");
    }
    let text = fs::read_to_string(&file).expect("the file");
    let objects: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let containers: Vec<_> = objects.iter().map(|line| line["container"].clone()).collect();
    assert_eq!(containers, ["a", "b"]);
    assert_eq!(objects[0]["allowed_by"].as_str().map(|s| s.contains("baseline_allow")), Some(true));
    assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o777, 0o640);
    let each = directory.path().join("%POD%-%ID%.log");
    run(&containerd, "c", &format!("user_log = '{}'", each.display()), &["some", "bpf"]);
    let own = fs::read_to_string(directory.path().join("c-c.log")).expect("its own file");
    assert_eq!(lines(&own).len(), 1, "{own}");
}

/// Who owns the directory cannot lead the shim, which is root, to another file.
#[test]
fn no_symbolic_link_is_followed() {
    let containerd = containerd();
    let directory = tempfile::tempdir().expect("a directory");
    let (file, secret) = (directory.path().join("log"), directory.path().join("secret"));
    fs::write(&secret, "kept").expect("write");
    let option = format!("user_log = '{}'", file.display());
    symlink(&secret, &file).expect("a link");
    let refused = surfaces(&containerd, "early", &option, &["some", "bpf"]).try_create();
    let error = refused.expect_err("a link").to_string();
    assert!(error.contains("user_log") && error.contains("symbolic link"), "{error}");
    // Or once it runs.
    fs::remove_file(&file).expect("remove it");
    let container = surfaces(&containerd, "late", &option, &["some", "bpf"]).create();
    fs::remove_file(&file).expect("remove it");
    symlink(&secret, &file).expect("a link");
    container.start().expect("start it");
    assert_eq!(container.finish(), (0, "bpf: EPERM\n".to_owned()));
    assert_eq!(fs::read_to_string(&secret).expect("read it"), "kept");
    let nowhere = "user_log = '/nowhere/at/all'";
    let error = surfaces(&containerd, "nowhere", nowhere, &[]).try_create();
    assert!(error.expect_err("no directory").to_string().contains("/nowhere/at/all"));
}

#[test]
fn a_terminal_shows_the_lines() {
    let containerd = containerd();
    let container = surfaces(&containerd, "tty", POD, &["some", "bpf"]).streams(Streams::Terminal);
    let container = container.start();
    container.wait();
    let output = container.stdio().output();
    assert!(output.contains("bpf: EPERM\r\n"), "{output:?}");
    assert!(output.contains("baseline_allow = [\"bpf\"]") && !output.contains("[^\r]\n"));
    assert_eq!(lines(&output).len(), 1, "{output:?}");
}

#[test]
fn what_a_profile_refuses_and_whom_it_kills_is_told() {
    let containerd = containerd();
    let profile = |action: &str| {
        let mut rule = json!({"names": ["getcwd", "swapoff"], "action": action});
        if action == "SCMP_ACT_ERRNO" {
            rule["errnoRet"] = 93.into();
        }
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    };
    let set =
        |action: &'static str| move |spec: &mut Value| spec["linux"]["seccomp"] = profile(action);
    let container = containerd.shell("errno", "cd /tmp && /bin/pwd").options(options(POD, ""));
    let container = container.spec(set("SCMP_ACT_ERRNO")).start();
    container.finish();
    let errors = container.stdio().errors();
    let log = without_pids(lines(&errors));
    assert_eq!(
        log.first().map(String::as_str),
        Some(
            "container errno: \"sh\" (user 0): getcwd = EPROTONOSUPPORT: refused by the spec's \
             seccomp profile; allowed by another seccompProfile"
        ),
        "{errors}"
    );
    let container = containerd.container("killed", ["swapoff", "-a"]).options(options(POD, ""));
    let container = container.spec(set("SCMP_ACT_KILL_PROCESS"));
    let container =
        container.spec(|spec| spec["process"]["args"] = json!(["sh", "-c", "exec pwd"]));
    let container = container.start();
    assert_eq!(container.wait().code, 128 + 31);
    let log = lines(&container.stdio().errors());
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(
        log[0]
            .starts_with("container killed: its init ended by SIGSYS: the spec's seccomp profile"),
        "{log:?}"
    );
}

/// Of the programs that bind a process, one can have a listener.
#[test]
fn beside_an_agent_the_log_has_no_effect_and_that_is_told() {
    let containerd = containerd();
    let agent = |spec: &mut Value| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/run/agent",
            "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}],
        });
    };
    let option = format!("{POD}\non_powerless = 'refuse'");
    let refused = surfaces(&containerd, "agent", &option, &[]).spec(agent).try_create();
    let error = refused.expect_err("an agent").to_string();
    assert!(error.contains("user_log") && error.contains("SCMP_ACT_NOTIFY"), "{error}");
}

#[test]
fn a_bad_place_is_refused_by_name() {
    let containerd = containerd();
    for (bad, named) in [
        ("user_log = 'relative'", "user_log"),
        ("user_log = '/a/%WHO%'", "%ID%"),
        ("user_log = 'pod'\nuser_log_format = 'xml'", "user_log_format"),
    ] {
        let error = surfaces(&containerd, "bad", bad, &[]).try_create();
        let error = error.expect_err(bad).to_string();
        assert!(error.contains(named), "{bad}: {error}");
    }
    assert!(!Path::new("/a").exists());
}
