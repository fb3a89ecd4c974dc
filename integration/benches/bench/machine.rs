//! The machine of the figures.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::runtime::Runtime;

/// Returns processors, memory, kernel, cgroups and the runtimes' versions.
pub fn describe(runtimes: &[Runtime]) -> Value {
    let versions = runtimes.iter().map(
        |runtime| json!({ "name": runtime.name, "shim": shim(runtime), "engine": engine(runtime) }),
    );
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "nproc": std::thread::available_parallelism().map_or(0, |count| count.get()),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cgroup": cgroup(),
        "load": read("/proc/loadavg"),
        "rcu_expedited": read("/sys/kernel/rcu_expedited"),
        "runtimes": versions.collect::<Vec<Value>>(),
    })
}

/// Returns the same for people.
pub fn sentence(machine: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!(
        "{} x {}, {}, Linux {}, cgroup version {}, load {}",
        machine["nproc"],
        text(&machine["processor"]),
        text(&machine["memory"]),
        text(&machine["kernel"]),
        text(&machine["cgroup"]),
        text(&machine["load"]),
    )
}

/// Returns a line for each runtime with its versions.
pub fn table(machine: &Value) -> String {
    let runtimes = machine["runtimes"].as_array().into_iter().flatten();
    let line = |runtime: &Value| {
        let text = |name: &str| runtime[name].as_str().unwrap_or("").to_owned();
        let engine = Some(text("engine")).filter(|engine| !engine.is_empty());
        let engine = engine.map(|engine| format!("; {engine}")).unwrap_or_default();
        format!("- {}: {}{engine}\n", text("name"), text("shim"))
    };
    runtimes.map(line).collect()
}

/// Returns the versions of a shim and its engine.
pub fn versions(runtime: &Runtime) -> String {
    let engine = engine(runtime).map(|engine| format!("; {engine}"));
    shim(runtime) + &engine.unwrap_or_default()
}

fn shim(runtime: &Runtime) -> String {
    output(&runtime.shim, "-v").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the engine's version. A shim of runc's without one runs runc.
fn engine(runtime: &Runtime) -> Option<String> {
    let of_runc = runtime.shim.file_name().is_some_and(|name| name == "containerd-shim-runc-v2");
    let engine = runtime.engine.as_deref().or(of_runc.then_some("runc"))?;
    // The other lines are about how it was built.
    Some(output(Path::new(engine), "--version").lines().next().unwrap_or_default().to_owned())
}

/// Returns the version of the cgroups that containers are in. Hybrid ones are
/// version 1: the hierarchy of version 2 beside them has no controllers.
fn cgroup() -> &'static str {
    match Path::new("/sys/fs/cgroup") {
        root if root.join("cgroup.controllers").exists() => "2",
        root if root.join("unified/cgroup.controllers").exists() => "1 (hybrid)",
        _ => "1",
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let content = read(path);
    let line = content.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn output(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
