//! Measures the parts of a Create by themselves, each in medians:
//!
//! `cargo bench -p sandbox-core --bench parts [-- PART...]`
//!
//! with the parts `spec`, `seccomp`, `cgroup` and `gofer`. Run it as root and
//! alone. `ci/bench` measures what a client of containerd waits for.

#[allow(dead_code, reason = "shared with the gofer's tests, which use all of it")]
#[path = "../tests/gofer/harness.rs"]
mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxResources, LinuxSeccomp};
use sandbox_core::cgroup::{CapacityPolicy, Cgroup, Driver};
use sandbox_core::spec::{self, Context, seccomp};
use sandbox_core::types::{IdPool, Userns};
use serde_json::{Value, json};

const CTR: &str = include_str!("../src/spec/tests/fixtures/ctr.json");
const CTR_SECCOMP: &str = include_str!("../src/spec/tests/fixtures/ctr-seccomp.json");
const CTR_PRIVILEGED: &str = include_str!("../src/spec/tests/fixtures/ctr-privileged.json");

fn main() {
    // cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 4] = [
        ("spec", measure_spec),
        ("seccomp", measure_seccomp),
        ("cgroup", measure_cgroup),
        ("gofer", measure_gofer),
    ];
    for name in &wanted {
        assert!(parts.iter().any(|(part, _)| part == name), "no part {name}");
    }
    for (name, measure) in parts {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            println!("{name}");
            measure();
        }
    }
}

/// The times of one step.
#[derive(Default)]
struct Step(Vec<Duration>);

impl Step {
    /// Measures one more run of it.
    fn time<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        self.0.push(start.elapsed());
        result
    }

    fn print(mut self, name: &str) {
        self.0.sort_unstable();
        let at = |percent: usize| self.0[(self.0.len() - 1) * percent / 100];
        println!("  {name:28} median {:9.1?}   95 % {:9.1?}", at(50), at(95));
    }
}

/// Reads config.json, makes the plan of it, and hashes its seccomp profile.
fn measure_spec() {
    for (name, fixture) in
        [("ctr", CTR), ("ctr, seccomp", CTR_SECCOMP), ("privileged", CTR_PRIVILEGED)]
    {
        let bundle = tempfile::tempdir().expect("make a bundle");
        write_bundle(bundle.path(), fixture);
        let context = Context {
            id: "c1",
            bundle: bundle.path(),
            rootfs_mounts_given: true,
            userns: Userns::Auto,
            id_pool: IdPool::default(),
            baseline: Default::default(),
            tells_refusals: false,
            views: None,
            sandbox: None,
            other_containers: &[],
        };
        let (mut load, mut plan, mut key) = (Step::default(), Step::default(), Step::default());
        for _ in 0..2000 {
            let loaded = load.time(|| spec::load(bundle.path())).expect("load the spec");
            let planned = plan.time(|| spec::plan(&loaded, &context)).expect("plan it");
            key.time(|| planned.host.seccomp.as_ref().map(|p| seccomp::key(p, None)));
        }
        for (step, what) in [(load, "load"), (plan, "plan"), (key, "key of seccomp")] {
            step.print(&format!("{name}: {what}"));
        }
    }
}

fn write_bundle(bundle: &Path, fixture: &str) {
    for folder in ["rootfs", "shm"] {
        fs::create_dir(bundle.join(folder)).expect("make a folder");
    }
    for file in ["hosts", "resolv.conf"] {
        fs::write(bundle.join(file), "").expect("write a file");
    }
    let text = fixture.replace("\"@/", &format!("\"{}/", bundle.display()));
    let mut spec: Value = serde_json::from_str(&text).expect("a fixture is JSON");
    let args = &mut spec["process"]["args"];
    if args.is_null() {
        *args = json!(["sh"]);
    }
    fs::write(bundle.join("config.json"), spec.to_string()).expect("write config.json");
}

/// Compiles containerd's default profile.
fn measure_seccomp() {
    let spec: Value = serde_json::from_str(CTR_SECCOMP).expect("a fixture is JSON");
    let profile: LinuxSeccomp =
        serde_json::from_value(spec["linux"]["seccomp"].clone()).expect("a profile");
    let mut compile = Step::default();
    for _ in 0..50 {
        compile.time(|| seccomp::compile(&profile)).expect("compile it");
    }
    compile.print("compile");
}

/// Makes the cgroups of a container with limits, uses them, and removes them.
fn measure_cgroup() {
    let resources: LinuxResources = serde_json::from_value(json!({
        "cpu": { "shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0" },
        "memory": { "limit": 64 << 20 },
        "pids": { "limit": 100 },
    }))
    .expect("resources");
    const STEPS: [&str; 8] =
        ["create", "procs", "attach", "capacity", "stats", "oom watch", "kill", "remove"];
    let mut steps: [Step; STEPS.len()] = Default::default();
    for number in 0..100 {
        let id = format!("palisade-bench-{}-{number}", std::process::id());
        let path = format!("/{id}");
        let [create, open, attach, capacity, stats, watch, kill, remove] = &mut steps;
        let made = create.time(|| Cgroup::create(&id, &path, Driver::Cgroupfs, &resources, &[]));
        let cgroup = made.expect("make the cgroups");
        let procs = open.time(|| cgroup.procs()).expect("open their files");
        let mut child = Command::new("sleep").arg("9").spawn().expect("run sleep");
        let pid = child.id().to_string();
        attach.time(|| {
            for file in &procs {
                rustix::io::write(file, pid.as_bytes()).expect("join a cgroup");
            }
        });
        capacity.time(|| cgroup.capacity(CapacityPolicy::default())).expect("ask for it");
        stats.time(|| cgroup.stats()).expect("ask for them");
        drop(watch.time(|| cgroup.oom_watch()).expect("watch it"));
        kill.time(|| cgroup.kill_all()).expect("kill the process");
        child.wait().expect("wait for it");
        remove.time(|| cgroup.remove()).expect("remove the cgroups");
    }
    for (step, name) in steps.into_iter().zip(STEPS) {
        step.print(name);
    }
}

/// Runs the gofer for the first container of a pod, from its clone to its answer.
fn measure_gofer() {
    let (host, sandbox) = (harness::Host::new(), harness::Sandbox::new());
    let request = harness::first_of_pod(&host);
    let runs = (0..50).map(|_| harness::gofer(&request, Some(&sandbox)).time);
    Step(runs.collect()).print("first container of a pod");
}
