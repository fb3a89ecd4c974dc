//! The machine of the figures.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::runtime::Runtime;

/// Returns processor, memory, kernel, cgroups and the runtimes' versions.
pub fn describe(runtimes: &[Runtime]) -> Value {
    let versions = runtimes.iter().map(|runtime| {
        let engine =
            runtime.engine.as_deref().map(|engine| version(Path::new(engine), "--version"));
        json!({ "name": runtime.name, "shim": version(&runtime.shim, "-v"), "engine": engine })
    });
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "processors": std::thread::available_parallelism().map_or(0, |count| count.get()),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cgroups": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" },
        "load": read("/proc/loadavg"),
        "runtimes": versions.collect::<Vec<Value>>(),
    })
}

/// Returns the same in one line, for people.
pub fn sentence(machine: &Value) -> String {
    let text = |name: &str| machine[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{} x {}, {}, Linux {}, cgroup {}, load {}",
        machine["processors"],
        text("processor"),
        text("memory"),
        text("kernel"),
        text("cgroups"),
        text("load"),
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let content = read(path);
    let line = content.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn version(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    output.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}
