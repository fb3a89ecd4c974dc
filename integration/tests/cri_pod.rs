//! Pods over CRI, as the kubelet uses it.

use std::fs;
use std::time::{Duration, Instant};

use integration::containerd::Containerd;
use integration::cri::{pod_security, resources, security};
use integration::{host, on_each_containerd, on_each_cri, wait};
use k8s_cri::v1::{DnsConfig, Int64Value, LinuxContainerResources, NamespaceMode};

on_each_cri!(
    a_pod_runs_and_goes,
    containers_share_network_and_ipc_but_not_pids,
    containers_share_pids_if_the_pod_does,
    a_container_ends_though_another_holds_its_output,
    a_debug_container_joins_the_pids_of_its_target,
    output_is_logged_and_the_log_can_be_reopened,
    a_container_restarts_in_a_living_pod,
    a_container_that_listens_to_sigterm_ends_at_once,
    a_container_that_ignores_sigterm_is_killed_after_its_grace_period,
    stats_show_a_container_s_usage,
    limits_change_while_it_runs,
    the_network_carries_traffic,
    names_and_dns_are_the_pod_s,
    sysctls_are_set,
    privileged_pods_see_the_host,
    stopping_twice_is_fine,
);

// Not with `sandboxer = "shim"`: containerd 2.1.9 itself crashes there before
// it calls the runtime (a nil spec in `core/runtime/v2/bundle.go`, NewBundle).
on_each_containerd!(host_network_pods_share_the_host_s_network);

fn a_pod_runs_and_goes(containerd: Containerd) {
    let pod = containerd.pod("hello");
    assert!(pod.is_ready());
    let container = pod.shell("main", "echo hello from $(hostname); exit 3");
    let status = container.wait();
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    container.wait_for_log("hello from hello");
    container.remove().expect("remove the container");

    pod.stop().expect("stop the pod");
    assert!(!pod.is_ready());
}

fn containers_share_network_and_ipc_but_not_pids(containerd: Containerd) {
    let pod = containerd.pod("shared");
    let server = pod.shell(
        "server",
        "mkdir /tmp/www; echo fine > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www",
    );
    let client = pod.shell("client", "sleep 1000");
    wait::until("the server replies to the client on localhost", || {
        let answer = client.exec("wget -q -O - http://127.0.0.1:8080/");
        (answer.stdout == "fine\n").then_some(())
    });
    for namespace in ["net", "ipc"] {
        let ask = format!("readlink /proc/self/ns/{namespace}");
        assert_eq!(server.ask(&ask), client.ask(&ask), "{namespace}");
    }
    for namespace in ["pid", "mnt"] {
        let ask = format!("readlink /proc/self/ns/{namespace}");
        assert_ne!(server.ask(&ask), client.ask(&ask), "{namespace}");
    }
    assert_eq!(client.ask("cat /proc/1/comm"), "sleep");
    client.ask("echo note > /dev/shm/note");
    assert_eq!(server.ask("cat /dev/shm/note"), "note");
}

/// containerd waits for the end of a container's output before it takes the
/// container for ended. With runc, it waits for the other one.
fn a_container_ends_though_another_holds_its_output(containerd: Containerd) {
    let pod = containerd.pod_with("held", |config| {
        let options = integration::cri::pod_security(config).namespace_options.as_mut();
        options.expect("namespace options").pid = NamespaceMode::Pod.into();
    });
    let talks = pod.shell("talks", "echo one; until [ -e /tmp/end ]; do sleep 0.1; done; echo two");
    let holds = pod.shell(
        "holds",
        "for p in /proc/[0-9]*; do \
           grep -q 'echo two' $p/cmdline && ! grep -q HOLDS $p/cmdline && exec 3> $p/fd/1 && break; \
         done; echo HOLDS >&3; touch /tmp/holds; exec sleep 1000",
    );
    integration::wait::until("the other holds its output", || {
        (holds.exec("[ -e /tmp/holds ]").code == 0).then_some(())
    });
    talks.wait_for_log("HOLDS");
    talks.ask("touch /tmp/end");
    assert_eq!(talks.wait().exit_code, 0);
    talks.wait_for_log("two");
    talks.remove().expect("remove it");
}

fn containers_share_pids_if_the_pod_does(containerd: Containerd) {
    let pod = containerd.pod_with("family", |config| {
        let options = pod_security(config).namespace_options.as_mut();
        options.expect("namespace options").pid = NamespaceMode::Pod.into();
    });
    let first = pod.shell("first", "exec sleep 1111");
    let second = pod.shell("second", "exec sleep 2222");
    let ask = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^[12]\\{4\\}$'";
    assert_eq!(first.ask(ask), "2");
    assert_eq!(second.ask(ask), "2");
    assert_ne!(first.ask("cat /proc/1/comm"), "sleep");
    // One may signal the other. Its end is published, and the first lives on.
    first.ask("for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' < $p/cmdline)\" = 'sleep 2222 ' ] && kill -9 ${p#/proc/}; done; true");
    assert_eq!(second.wait().exit_code, 137);
    assert_eq!(first.ask("echo still here"), "still here");
}

/// `kubectl debug --target`.
fn a_debug_container_joins_the_pids_of_its_target(containerd: Containerd) {
    let pod = containerd.pod("debugged");
    let target = pod.shell("target", "exec sleep 1111");
    let other = pod.shell("other", "exec sleep 2222");
    let debugger = pod.container("debugger", "exec sleep 3333", |config| {
        let options = security(config).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        options.target_id = target.id.clone();
    });
    let ask = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep '^[123]\\{4\\}$' | sort | xargs";
    assert_eq!(debugger.ask(ask), "1111 3333");
    assert_eq!(target.ask(ask), "1111 3333");
    assert_eq!(other.ask(ask), "2222");
    assert_eq!(debugger.ask("cat /proc/1/cmdline | tr '\\0' ' '"), "sleep 1111");
    assert_ne!(
        debugger.ask("readlink /proc/self/ns/mnt"),
        target.ask("readlink /proc/self/ns/mnt")
    );
    // Only its own end is published; the target's end also ends the debug
    // container.
    debugger.stop(Duration::ZERO).expect("stop the debugger");
    assert_eq!(debugger.wait().exit_code, 137);
    let again = pod.container("again", "exec sleep 3333", |config| {
        let options = security(config).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        options.target_id = target.id.clone();
    });
    target.stop(Duration::ZERO).expect("stop the target");
    assert_eq!((target.wait().exit_code, again.wait().exit_code), (137, 137));
    assert_eq!(other.ask("echo still here"), "still here");
}

fn output_is_logged_and_the_log_can_be_reopened(containerd: Containerd) {
    let pod = containerd.pod("logs");
    let container = pod.shell(
        "writer",
        "echo one; echo two >&2; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo three; sleep 1000",
    );
    container.wait_for_log("one");
    container.wait_for_log("two");
    let streams = container.log_lines();
    assert!(streams.contains(&("stdout".into(), "one".into())), "{streams:?}");
    assert!(streams.contains(&("stderr".into(), "two".into())), "{streams:?}");

    let rotated = container.log.with_extension("rotated");
    fs::rename(&container.log, &rotated).expect("rotate the log");
    container.reopen_log().expect("reopen the log");
    container.ask("touch /tmp/go");
    container.wait_for_log("three");
    assert!(!container.log_lines().iter().any(|(_, line)| line == "one"));
    assert!(fs::read_to_string(&rotated).expect("the old log").contains("one"));
}

fn a_container_restarts_in_a_living_pod(containerd: Containerd) {
    let pod = containerd.pod("restarts");
    let other = pod.shell("other", "sleep 1000");
    let address = pod.ip();
    for attempt in 0..3 {
        let script = format!("echo attempt {attempt}; exit {attempt}");
        let container = pod.create("main", attempt, &script, |_| ()).expect("create it");
        container.start().expect("start it");
        assert_eq!(container.wait().exit_code, attempt.cast_signed());
        container.wait_for_log(&format!("attempt {attempt}"));
        container.remove().expect("remove it");
    }
    assert_eq!(other.ask("echo untouched"), "untouched");
    assert_eq!(pod.ip(), address);
}

fn a_container_that_listens_to_sigterm_ends_at_once(containerd: Containerd) {
    let pod = containerd.pod("polite");
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let container = pod.shell("main", script);
    container.wait_for_log("ready");
    let asked = Instant::now();
    container.stop(Duration::from_secs(30)).expect("stop it");
    assert!(asked.elapsed() < Duration::from_secs(20), "it did not get SIGTERM");
    let status = container.wait();
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    container.wait_for_log("bye");
}

fn a_container_that_ignores_sigterm_is_killed_after_its_grace_period(containerd: Containerd) {
    let pod = containerd.pod("stubborn");
    let container = pod.shell("main", "trap '' TERM; echo ready; while :; do sleep 0.01; done");
    container.wait_for_log("ready");
    let asked = Instant::now();
    container.stop(Duration::from_secs(1)).expect("stop it");
    assert!(asked.elapsed() >= Duration::from_secs(1), "its grace period was cut short");
    assert_eq!(container.wait().exit_code, 137);
}

fn stats_show_a_container_s_usage(containerd: Containerd) {
    let pod = containerd.pod("stats");
    let script = "dd if=/dev/zero of=/dev/shm/blob bs=1M count=8 2>/dev/null; \
                  n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; echo worked; sleep 1000";
    let container = pod.shell("main", script);
    container.wait_for_log("worked");
    let stats = container.stats();
    let cpu = stats.cpu.expect("CPU").usage_core_nano_seconds.expect("CPU time").value;
    assert!(cpu > 1_000_000, "{cpu} ns");
    let memory = stats.memory.expect("memory");
    let usage = memory.usage_bytes.or(memory.working_set_bytes).expect("memory in use").value;
    assert!(usage > 100_000, "{usage} bytes");
}

fn limits_change_while_it_runs(containerd: Containerd) {
    let pod = containerd.pod("limits");
    let container = pod.container("main", "sleep 1000", |config| {
        let limits = resources(config);
        limits.memory_limit_in_bytes = 64 << 20;
        (limits.cpu_period, limits.cpu_quota, limits.cpu_shares) = (100_000, 50_000, 512);
    });
    let pid = container.pid();
    let memory = || host::memory_limit(pid);
    assert_eq!((memory(), host::cpu_quota(pid)), (64 << 20, (50_000, 100_000)));
    let limits = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_period: 100_000,
        cpu_quota: 150_000,
        ..Default::default()
    };
    container.update(limits).expect("update it");
    assert_eq!((memory(), host::cpu_quota(pid)), (96 << 20, (150_000, 100_000)));
}

fn the_network_carries_traffic(containerd: Containerd) {
    let (server, client) = (containerd.pod("server"), containerd.pod("client"));
    assert_ne!(server.ip(), client.ip());
    let _httpd = server.container(
        "httpd",
        "mkdir /tmp/www; echo served > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www",
        |_| (),
    );
    let alice = server.container(
        "alice",
        "mkdir /tmp/www; echo alice > /tmp/www/index.html; exec httpd -f -p 81 -h /tmp/www",
        |config| {
            security(config).run_as_user = Some(Int64Value { value: 1000 });
        },
    );
    let caller = client.shell("caller", "sleep 1000");
    for (port, wanted) in [(80, "served\n"), (81, "alice\n")] {
        let url = format!("http://{}:{port}/", server.ip());
        wait::until("a pod reaches another over the bridge", || {
            let answer = caller.exec(&format!("wget -q -O - {url}"));
            (answer.stdout == wanted).then_some(())
        });
    }
    assert_eq!(alice.ask("id -u"), "1000");
}

fn names_and_dns_are_the_pod_s(containerd: Containerd) {
    let pod = containerd.pod_with("names", |config| {
        config.hostname = "a-name".into();
        config.dns_config = Some(DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["example.test".into()],
            options: vec!["ndots:3".into()],
        });
    });
    let container = pod.shell("main", "sleep 1000");
    assert_eq!(container.ask("hostname"), "a-name");
    assert_eq!(container.ask("cat /etc/hostname"), "a-name");
    assert_eq!(container.ask("uname -n"), "a-name");
    let resolv = container.ask("cat /etc/resolv.conf");
    assert_eq!(resolv, "search example.test\nnameserver 192.0.2.53\noptions ndots:3");
}

fn sysctls_are_set(containerd: Containerd) {
    let pod = containerd.pod_with("sysctls", |config| {
        let linux = config.linux.as_mut().expect("a Linux pod");
        linux.sysctls.insert("net.ipv4.ip_local_port_range".into(), "20000 30000".into());
        linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    });
    let container = pod.shell("main", "sleep 1000");
    let range = container.ask("cat /proc/sys/net/ipv4/ip_local_port_range");
    assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["20000", "30000"]);
    assert_eq!(container.ask("cat /proc/sys/kernel/shm_rmid_forced"), "1");
}

fn privileged_pods_see_the_host(containerd: Containerd) {
    let pod = containerd.pod_with("privileged", |config| {
        pod_security(config).privileged = true;
        // Before 2.0, only the kubelet's log directory shows who asks.
        let pod = config.metadata.as_ref().expect("metadata");
        let name = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        config.log_directory = format!("{}/{name}", config.log_directory);
    });
    let container =
        pod.container("main", "sleep 1000", |config| security(config).privileged = true);
    let capabilities = container.ask("grep CapEff /proc/self/status | cut -f2");
    let all = host::status(1, "CapBnd");
    assert_eq!(capabilities, all, "a privileged container has what the host has");
    assert_eq!(container.ask("awk '{ print $1, $2 }' /proc/self/uid_map"), "0 0");
    assert!(container.ask("ls /dev | wc -l").parse::<u32>().expect("a number") > 15);
    assert_eq!(container.exec("mkdir /tmp/m && mount -t tmpfs none /tmp/m").code, 0);
}

fn host_network_pods_share_the_host_s_network(containerd: Containerd) {
    let pod = containerd.pod_with("host-network", |config| {
        let options = pod_security(config).namespace_options.as_mut();
        options.expect("namespace options").network = NamespaceMode::Node.into();
        config.hostname = String::new();
    });
    let container = pod.shell("main", "sleep 1000");
    let host = fs::read_link("/proc/self/ns/net").expect("this network namespace");
    assert_eq!(container.ask("readlink /proc/self/ns/net"), host.to_string_lossy());
}

fn stopping_twice_is_fine(containerd: Containerd) {
    let pod = containerd.pod("twice");
    let container = pod.shell("main", "sleep 1000");
    container.stop(Duration::ZERO).expect("stop the container");
    container.stop(Duration::ZERO).expect("stop it again");
    pod.stop().expect("stop the pod");
    pod.stop().expect("stop it again");
    assert_eq!(container.wait().exit_code, 137);
}
