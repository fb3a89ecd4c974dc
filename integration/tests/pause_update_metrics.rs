//! Operations on a running container: pause, update, metrics.

use std::fs;
use std::time::Duration;

use containerd_client::tonic::Code;
use containerd_client::types::v1::Status;
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::Message;
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{host, on_each_containerd, spec, wait};
use serde_json::json;

on_each_containerd!(
    a_paused_container_does_not_run,
    a_paused_container_can_be_killed,
    a_paused_container_that_was_killed_needs_no_resume,
    an_exec_waits_for_a_paused_container_to_resume_or_is_refused,
    pausing_twice_and_resuming_a_running_container_are_refused_or_harmless,
    killing_an_exec_resumes_nothing,
    limits_are_set_and_change,
    an_update_that_the_kernel_refuses_changes_nothing,
    metrics_show_the_usage,
    the_processes_of_a_container_are_listed,
    pause_and_resume_with_ctr,
);

mod needs_v1 {
    use integration::containerd::{Containerd, Version};
    use integration::host;
    use serde_json::json;

    /// With each update CRI sends the spec's devices, as they were before a
    /// hook added one. On version 1 the list can be read.
    #[test]
    fn an_update_keeps_the_devices_that_a_hook_has_added() {
        let containerd = Containerd::start(Version::V2_1);
        let container = containerd.container("hooked", ["sleep", "1000"]).start();
        let devices = host::cgroup_directory(container.pid(), "devices");
        std::fs::write(devices.join("devices.allow"), "c 10:229 rwm").expect("add a device");
        let changed = json!({
            "devices": [{ "allow": false, "access": "rwm" }], "cpu": { "shares": 512 },
        });
        container.update(&changed).expect("update it");
        let listed = host::cgroup_value(container.pid(), "devices", "devices.list");
        assert!(listed.contains("c 10:229 rwm") && listed.contains("c 1:3 rwm"), "{listed}");
        assert_eq!(host::cgroup_value(container.pid(), "cpu", "cpu.shares"), "512");
    }
}

fn a_paused_container_does_not_run(containerd: Containerd) {
    let ticks = containerd.directory().join("ticks");
    fs::create_dir(&ticks).expect("make a directory");
    fs::set_permissions(&ticks, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");
    let script = "n=0; while :; do n=$((n+1)); echo $n > /ticks/new; mv /ticks/new /ticks/now; sleep 0.002; done";
    let container = containerd.shell("clock", script);
    let container = container.bind(&ticks.to_string_lossy(), "/ticks", &["bind", "rw"]).start();
    let now = || -> u64 {
        let tick = fs::read_to_string(ticks.join("now")).ok();
        tick.and_then(|tick| tick.trim().parse().ok()).unwrap_or(0)
    };
    wait::until("the clock ticks", || (now() > 2).then_some(()));

    container.pause().expect("pause it");
    let stood_at = now();
    // No event shows that nothing happens. The time of some fifty ticks must
    // do.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(now(), stood_at, "the clock went on");

    container.resume().expect("resume it");
    wait::until("the clock ticks again", || (now() > stood_at).then_some(()));
}

fn a_paused_container_can_be_killed(containerd: Containerd) {
    let container = containerd.container("frozen", ["sleep", "1000"]).start();
    container.pause().expect("pause it");
    container.kill(9).expect("kill it");
    // On cgroup v1 a frozen process dies once it is thawed.
    let _ = container.resume();
    assert_eq!(container.wait().code, 137);
}

/// As under runc, which refuses a Resume after that too, with a code that says nothing.
fn a_paused_container_that_was_killed_needs_no_resume(containerd: Containerd) {
    for round in 0..5 {
        let id = format!("killed-{round}");
        let container = containerd.container(&id, ["sleep", "1000"]).start();
        container.pause().expect("pause it");
        container.kill(9).expect("kill it");
        let refused = container.resume().expect_err("it is on its way to its end");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert_eq!(container.wait().code, 137);
    }
}

fn an_exec_waits_for_a_paused_container_to_resume_or_is_refused(containerd: Containerd) {
    let container = containerd.container("frozen", ["sleep", "1000"]).start();
    container.pause().expect("pause it");
    let exec = container.exec("early", spec::process(&["true"]), Streams::Null);
    let refused = exec.and_then(|exec| exec.start()).expect_err("the container is paused");
    assert!(refused.message().contains("paused"), "{refused}");
    container.resume().expect("resume it");
    assert_eq!(container.exec_shell("late", "echo fine"), (0, "fine\n".to_owned()));
}

fn pausing_twice_and_resuming_a_running_container_are_refused_or_harmless(containerd: Containerd) {
    let container = containerd.container("frozen", ["sleep", "1000"]).start();
    let _ = container.resume();
    assert_eq!(container.exec_shell("one", "echo runs").1, "runs\n");
    container.pause().expect("pause it");
    let _ = container.pause();
    container.resume().expect("resume it");
    assert_eq!(container.exec_shell("two", "echo runs").1, "runs\n");
}

fn killing_an_exec_resumes_nothing(containerd: Containerd) {
    let container = containerd.container("paused", ["sleep", "1000"]).start();
    let exec = container.exec("killed", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    container.pause().expect("pause it");
    exec.kill(9).expect("kill the exec");
    assert_eq!(container.status(), Status::Paused);
    container.resume().expect("resume it");
    assert_eq!(exec.wait().code, 137);
}

fn limits_are_set_and_change(containerd: Containerd) {
    let container = containerd.container("limited", ["sleep", "1000"]).spec(|s| {
        let resources = &mut s["linux"]["resources"];
        resources["memory"] = json!({ "limit": 64 << 20 });
        resources["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
        resources["pids"] = json!({ "limit": 100 });
    });
    let container = container.start();
    let pid = container.pid();
    assert_eq!((host::memory_limit(pid), host::cpu_quota(pid)), (64 << 20, (50_000, 100_000)));
    assert_eq!(host::cgroup_value(pid, "pids", "pids.max"), "100");

    let changed = json!({
        "memory": { "limit": 128 << 20 },
        "cpu": { "quota": 150_000, "period": 100_000 },
        "pids": { "limit": 200 },
    });
    container.update(&changed).expect("update it");
    assert_eq!((host::memory_limit(pid), host::cpu_quota(pid)), (128 << 20, (150_000, 100_000)));
    assert_eq!(host::cgroup_value(pid, "pids", "pids.max"), "200");

    // All or nothing: one refused limit refuses the others.
    let refused = json!({
        "memory": { "limit": 256 << 20 },
        "unified": { "cgroup.kill": "1" },
    });
    container.update(&refused).expect_err("an invalid limit");
    assert_eq!(host::memory_limit(pid), 128 << 20);
}

fn an_update_that_the_kernel_refuses_changes_nothing(containerd: Containerd) {
    let container = containerd.container("limited", ["sleep", "1000"]).spec(|s| {
        s["linux"]["resources"]["cpu"] = json!({ "shares": 512 });
    });
    let container = container.start();
    let pid = container.pid();
    let before = (host::cpu_shares(pid), host::cpu_quota(pid));

    // The kernel allows no burst above the quota. The burst is written last.
    let refused = json!({
        "cpu": { "shares": 128, "quota": 60_000, "period": 120_000, "burst": 1_000_000 },
    });
    let error = container.update(&refused).expect_err("the burst is too large");
    assert!(error.message().contains("linux.resources.cpu.burst"), "{error}");
    assert_eq!((host::cpu_shares(pid), host::cpu_quota(pid)), before);

    let changed = json!({ "cpu": { "shares": 256, "quota": 50_000, "period": 100_000 } });
    container.update(&changed).expect("update it");
    let after = (host::cpu_shares(pid), host::cpu_quota(pid));
    assert_ne!(after.0, before.0);
    assert_eq!(after.1, (50_000, 100_000));
    container.update(&refused).expect_err("the burst is still too large");
    assert_eq!((host::cpu_shares(pid), host::cpu_quota(pid)), after);
}

fn metrics_show_the_usage(containerd: Containerd) {
    let script = "dd if=/dev/zero of=/dev/shm/blob bs=1M count=8 2>/dev/null; \
                  n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; echo worked; sleep 1000";
    let container = containerd.shell("worker", script).start();
    container.stdio().wait_for_output("worked");
    let data = container.metrics().data.expect("metrics with data");
    if host::has_cgroup_v2_only() {
        assert!(data.type_url.ends_with("io.containerd.cgroups.v2.Metrics"), "{}", data.type_url);
        let metrics = v2::Metrics::parse_from_bytes(&data.value).expect("metrics of cgroup v2");
        return check_v2(&metrics);
    }
    assert!(data.type_url.ends_with("io.containerd.cgroups.v1.Metrics"), "{}", data.type_url);
    let metrics = Metrics::parse_from_bytes(&data.value).expect("metrics of cgroup v1");
    assert!(metrics.cpu.usage.total > 1_000_000, "{:?}", metrics.cpu);
    assert!(metrics.memory.usage.usage >= 8 << 20, "{:?}", metrics.memory.usage);
    assert!(metrics.pids.current >= 1, "{:?}", metrics.pids);
}

fn check_v2(metrics: &v2::Metrics) {
    assert!(metrics.cpu.usage_usec > 1000, "{:?}", metrics.cpu);
    assert!(metrics.memory.usage >= 8 << 20, "{:?}", metrics.memory);
    assert!(metrics.memory.shmem >= 8 << 20, "{:?}", metrics.memory);
    assert!(metrics.memory.max_usage >= metrics.memory.shmem, "{:?}", metrics.memory);
    assert_eq!(metrics.memory.usage_limit, u64::MAX);
    assert!(metrics.pids.current >= 1, "{:?}", metrics.pids);
    assert_eq!(metrics.memory_events.as_ref().map(|events| events.oom_kill), Some(0));
    assert!(metrics.io.is_some(), "{metrics:?}");
    // The metrics have the pressure if the kernel accounts for it.
    let pressure = fs::exists("/proc/pressure/memory").expect("look into /proc");
    assert_eq!(metrics.cpu.psi.is_some(), pressure, "{:?}", metrics.cpu);
    assert_eq!(metrics.memory.psi.is_some(), pressure, "{:?}", metrics.memory);
    assert_eq!(metrics.io.psi.is_some(), pressure, "{:?}", metrics.io);
    if pressure {
        assert!(metrics.cpu.psi.some.total > 0, "{:?}", metrics.cpu.psi);
    }
}

fn the_processes_of_a_container_are_listed(containerd: Containerd) {
    let container = containerd.shell("parent", "sleep 1000 & sleep 1000 & wait").start();
    let exec = container.exec("extra", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    let listed = wait::until("all four are listed", || {
        let processes = container.processes();
        (processes.len() == 4).then_some(processes)
    });
    let of_exec = listed.iter().find(|process| process.pid == exec.pid().unsigned_abs());
    let details = of_exec.and_then(|process| process.info.as_ref()).expect("details of the exec");
    assert!(details.type_url.ends_with("ProcessDetails"), "{}", details.type_url);
    assert!(details.value.windows(5).any(|part| part == b"extra"), "{details:?}");
    assert!(listed.iter().any(|process| process.pid == container.pid().unsigned_abs()));
}

fn pause_and_resume_with_ctr(containerd: Containerd) {
    let container = containerd.run("frozen").detached(["sleep", "1000"]);
    containerd.ctr(["task", "pause", "frozen"]).succeeded();
    assert_eq!(container.status(), "PAUSED");
    containerd.ctr(["task", "resume", "frozen"]).succeeded();
    assert_eq!(container.status(), "RUNNING");
}
