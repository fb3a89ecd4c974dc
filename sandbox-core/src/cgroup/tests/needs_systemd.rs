//! The systemd driver, on a host that runs systemd.

use super::*;

fn create(id: &str, resources: &LinuxResources) -> Result<Cgroup> {
    let path = format!("palisade-tests.slice:palisade:{id}");
    Cgroup::create(id, &path, Driver::Systemd, resources, &[])
}

fn show(id: &str, property: &str) -> String {
    let unit = format!("palisade-{id}.scope");
    let output = Command::new("systemctl").args(["show", &unit, "-P", property]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Waits until systemd has forgotten the unit, which happens a moment after its
/// job is done.
fn is_forgotten(id: &str) {
    until(|| show(id, "LoadState") == "not-found");
}

#[test]
fn a_scope_lives_from_create_to_remove() {
    needs(Path::new("/run/systemd/system").exists(), "systemd");
    let id = unique();
    let cgroup = create(&id, &memory(64 << 20)).unwrap();
    let mut scratch = Scratch { cgroup, children: Vec::new() };
    let dir = scratch.cgroup.any_dir().unwrap().to_owned();
    let place = format!("palisade.slice/palisade-tests.slice/palisade-{id}.scope");
    assert!(dir.ends_with(&place), "{}", dir.display());
    assert_eq!(show(&id, "ActiveState"), "active");
    assert_eq!(show(&id, "Delegate"), "yes");
    assert_eq!(scratch.cgroup.pids().unwrap(), [], "our own process is none of the container's");

    scratch.run("exec sleep 60");
    scratch.cgroup.settled();
    assert_eq!(scratch.cgroup.pids().unwrap().len(), 1);
    assert_eq!(show(&id, "ActiveState"), "active");

    scratch.cgroup.freeze().unwrap();
    scratch.cgroup.thaw().unwrap();
    scratch.cgroup.kill_all().unwrap();
    scratch.cgroup.remove().unwrap();
    assert!(!scratch.cgroup.exists());
    is_forgotten(&id);
    scratch.cgroup.remove().unwrap();
}

#[test]
fn systemd_knows_the_limits_and_keeps_them_at_a_reload() {
    needs(Path::new("/run/systemd/system").exists(), "systemd");
    let id = unique();
    let resources = LinuxResourcesBuilder::default()
        .cpu(LinuxCpuBuilder::default().shares(1024u64).quota(150_000i64).build().unwrap())
        .memory(LinuxMemoryBuilder::default().limit(64i64 << 20).build().unwrap())
        .pids(LinuxPidsBuilder::default().limit(77).build().unwrap())
        .build()
        .unwrap();
    let scratch = Scratch { cgroup: create(&id, &resources).unwrap(), children: Vec::new() };
    assert_eq!(show(&id, "TasksMax"), "77");
    // Shares alone must not touch the quota.
    scratch.cgroup.update(&cpu(|c| c.shares(2048u64))).unwrap();
    scratch.cgroup.update(&cpu(|c| c.period(50_000u64))).unwrap();
    scratch.cgroup.update(&memory(32 << 20)).unwrap();
    reload();
    if scratch.cgroup.saved.v2 {
        assert_eq!(scratch.file("cpu", "cpu.max"), "150000 50000");
        assert_eq!(scratch.file("memory", "memory.max"), (32 << 20).to_string());
        assert_eq!(scratch.file("pids", "pids.max"), "77");
    }
    assert_eq!(show(&id, "CPUQuotaPerSecUSec"), "3s");
}

fn reload() {
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
}

fn unified<const N: usize>(files: [(&str, &str); N]) -> LinuxResources {
    let files = files.map(|(name, value)| (name.to_owned(), value.to_owned()));
    LinuxResourcesBuilder::default().unified(files).build().unwrap()
}

#[test]
fn files_that_systemd_writes_by_itself_stay_as_they_are() {
    needs(is_v2() && Path::new("/run/systemd/system").exists(), "systemd on cgroup version 2");
    let id = unique();
    let mut resources =
        unified([("memory.oom.group", "1"), ("cpu.idle", "1"), ("cpu.weight", "50")]);
    resources.set_cpu(cpu(|c| c.shares(1024u64)).cpu().clone());
    let io = LinuxBlockIoBuilder::default().weight(505u16).build().unwrap();
    resources.set_block_io(Some(io));
    let scratch = Scratch { cgroup: create(&id, &resources).unwrap(), children: Vec::new() };
    let dir = scratch.cgroup.any_dir().unwrap().to_owned();
    let all_are = |expected: &[(&str, &str)]| {
        reload();
        for (name, value) in expected.iter().filter(|(name, _)| dir.join(name).exists()) {
            assert_eq!(scratch.file("any", name), *value, "{name}");
        }
    };
    assert!(dir.join("memory.oom.group").exists() && dir.join("cpu.idle").exists());
    all_are(&[("memory.oom.group", "1"), ("cpu.idle", "1"), ("io.weight", "default 5000")]);
    assert_eq!(show(&id, "OOMPolicy"), "kill");

    // What is not mentioned stays as it is.
    scratch.cgroup.update(&memory(64 << 20)).unwrap();
    all_are(&[("memory.oom.group", "1"), ("cpu.idle", "1"), ("memory.max", "67108864")]);
    scratch.cgroup.update(&cpu(|c| c.idle(0))).unwrap();
    all_are(&[("cpu.idle", "0"), ("cpu.weight", "100")]);
    scratch.cgroup.update(&unified([("cpu.weight", "50"), ("io.weight", "300")])).unwrap();
    all_are(&[("cpu.idle", "0"), ("cpu.weight", "50"), ("io.weight", "default 300")]);
    scratch.cgroup.update(&cpu(|c| c.idle(1).shares(512u64))).unwrap();
    all_are(&[("cpu.idle", "1"), ("memory.oom.group", "1")]);
}

#[test]
fn a_quota_is_rounded_in_the_file_as_well() {
    needs(is_v2() && Path::new("/run/systemd/system").exists(), "systemd on cgroup version 2");
    let id = unique();
    let cgroup = create(&id, &cpu(|c| c.quota(33_333i64).period(100_000u64))).unwrap();
    let scratch = Scratch { cgroup, children: Vec::new() };
    let stays = |max: &str| {
        assert_eq!(scratch.file("cpu", "cpu.max"), max);
        reload();
        assert_eq!(scratch.file("cpu", "cpu.max"), max);
    };
    stays("34000 100000");
    scratch.cgroup.update(&cpu(|c| c.period(30_000u64))).unwrap();
    stays("34200 30000");
    scratch.cgroup.update(&cpu(|c| c.quota(-1i64))).unwrap();
    // Without a quota systemd knows no period but the default one. Whether it
    // writes that before or after us shows once it has looked at the unit
    // again.
    reload();
    assert_eq!(scratch.file("cpu", "cpu.max"), "max 100000");
}

#[test]
fn a_limit_below_the_usage_is_refused_before_systemd_sets_it() {
    needs(is_v2() && Path::new("/run/systemd/system").exists(), "systemd on cgroup version 2");
    let id = unique();
    let cgroup = create(&id, &memory(64 << 20)).unwrap();
    let mut scratch = Scratch { cgroup, children: Vec::new() };
    let shell = scratch.run("exec sleep 60");
    scratch.cgroup.settled();
    let checked = |memory: LinuxMemoryBuilder| {
        let memory = memory.check_before_update(true).build().unwrap();
        scratch.cgroup.update(&LinuxResourcesBuilder::default().memory(memory).build().unwrap())
    };
    let limit = |bytes: i64| LinuxMemoryBuilder::default().limit(bytes);
    for (memory, field) in [(limit(4096), "limit"), (limit(64 << 20).swap(4096), "swap")] {
        let error = checked(memory).unwrap_err().to_string();
        assert!(error.starts_with(&format!("linux.resources.memory.{field}: ")), "{error}");
    }
    assert_eq!(show(&id, "MemoryMax"), (64 << 20).to_string());
    checked(limit(32 << 20)).unwrap();
    assert_eq!(show(&id, "MemoryMax"), (32 << 20).to_string());
    assert!(Path::new(&format!("/proc/{shell}/exe")).exists(), "no process was killed");
}

#[test]
fn a_refused_limit_leaves_no_unit() {
    needs(Path::new("/run/systemd/system").exists(), "systemd");
    let id = unique();
    // Only the kernel finds the fault, so the unit exists by then.
    let error = create(&id, &cpu(|c| c.quota(10_000i64).burst(20_000u64))).unwrap_err();
    assert!(error.to_string().starts_with("linux.resources.cpu.burst"), "{error}");
    is_forgotten(&id);
}

#[test]
fn another_process_can_remove_a_unit() {
    needs(Path::new("/run/systemd/system").exists(), "systemd");
    let id = unique();
    let scratch = Scratch { cgroup: create(&id, &memory(8 << 20)).unwrap(), children: Vec::new() };
    let found = Cgroup::open(scratch.cgroup.saved().clone()).unwrap();
    found.remove().unwrap();
    assert!(!found.exists());
    is_forgotten(&id);
}
