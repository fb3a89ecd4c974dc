//! What a container sees of its CPUs and its memory: the limits, live, wherever a program
//! looks. Each rule has its control: the same container under runc, which sees the host's.
//!
//! `seen` has what the files say, `bypasses` who does not see them and what nobody changes, and
//! `ends` how pods end whose processes read.

mod bypasses;
mod ends;
mod seen;

use std::fs;

use integration::container::{Container, NewContainer};
use integration::containerd::Containerd;
use integration::cri::{Pod, PodContainer, resources};
use integration::image;
use k8s_cri::v1::ContainerConfig;
use serde_json::{Value, json};

/// The runtime of the controls.
const RUNC: &str = "io.containerd.runc.v2";

/// The limits of a container.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The quota of CPU time in each 100 ms, in microseconds.
    quota: i64,
    /// Bytes of memory.
    memory: i64,
}

const SMALL: Limits = Limits { quota: 50_000, memory: 64 << 20 };
const LARGE: Limits = Limits { quota: 200_000, memory: 1 << 30 };

impl Limits {
    fn resources(self) -> Value {
        json!({
            "cpu": { "quota": self.quota, "period": 100_000 },
            "memory": { "limit": self.memory },
        })
    }

    fn set(self, spec: &mut Value) {
        for (controller, limits) in self.resources().as_object().expect("an object") {
            spec["linux"]["resources"][controller] = limits.clone();
        }
    }

    fn set_in_pod(self, config: &mut ContainerConfig) {
        let limits = resources(config);
        (limits.cpu_quota, limits.cpu_period) = (self.quota, 100_000);
        limits.memory_limit_in_bytes = self.memory;
    }

    /// Returns what a container of the runtime under test sees with them, in stories that hold
    /// for each runtime.
    fn seen_by(self, containerd: &Containerd) -> Seen {
        if containerd.runtime_name() == RUNC { host() } else { self.seen() }
    }

    /// Returns what a container sees with them.
    fn seen(self) -> Seen {
        let cpus = self.quota.unsigned_abs().div_ceil(100_000).clamp(1, host().cpus);
        Seen { memory: self.memory.unsigned_abs(), cpus }
    }
}

/// What the files of a container say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Bytes of memory.
    memory: u64,
    cpus: u64,
}

/// Prints the total of the memory in KiB, and then what counts CPUs: blocks of /proc/cpuinfo,
/// lines of /proc/stat, directories of /sys, and the list of those that are online.
const LOOK: &str = "sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo; \
    grep -c '^processor' /proc/cpuinfo; grep -c '^cpu[0-9]' /proc/stat; \
    ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l; cat /sys/devices/system/cpu/online";

/// Returns what was seen, from the output of [`LOOK`]. All that counts CPUs must agree.
#[track_caller]
fn seen_in(output: &str) -> Seen {
    let lines: Vec<&str> = output.lines().collect();
    let [memory, blocks, lines_of_stat, directories, online] = lines[..] else {
        panic!("five lines in {output:?}");
    };
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text:?}: {output}"));
    let cpus = count(online);
    let counted = [blocks, lines_of_stat, directories].map(number);
    assert_eq!(counted, [cpus; 3], "cpuinfo, stat and directories beside {online}");
    Seen { memory: number(memory) * 1024, cpus }
}

/// Returns how many CPUs a list such as `0-2,5` has.
fn count(list: &str) -> u64 {
    let number = |text: &str| text.trim().parse::<u64>().expect("the number of a CPU");
    let ranges =
        list.trim().split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges.map(|(from, to)| number(to) - number(from) + 1).sum()
}

/// Returns what the host sees.
fn host() -> Seen {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("read the CPUs");
    Seen { memory: total(&meminfo), cpus: count(&online) }
}

/// Returns the MemTotal of a /proc/meminfo, in bytes.
fn total(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|total| total.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_else(|| panic!("MemTotal in kB: {meminfo}")) * 1024
}

/// Prepares a container with limits that waits.
fn limited<'a>(containerd: &'a Containerd, id: &str, limits: Limits) -> NewContainer<'a> {
    containerd.container(id, ["sleep", "1000"]).spec(|spec| limits.set(spec))
}

/// Returns what a container sees now.
#[track_caller]
fn look(container: &Container<'_>, id: &str) -> Seen {
    seen_in(&ask(container, id, LOOK))
}

/// Returns the output of a line of shell, which must succeed.
#[track_caller]
fn ask(container: &Container<'_>, id: &str, script: &str) -> String {
    let (code, output) = container.exec_shell(id, script);
    assert_eq!(code, 0, "{script}: {output}");
    output
}

/// Adds `/views`, which reads: `integration/src/bin/views`.
fn add_reader(spec: &mut Value) {
    let path = image::sibling("views");
    let path = path.to_str().expect("an ASCII path");
    integration::spec::add_bind(spec, path, "/views", &["bind", "ro"]);
}

/// Starts a container of a pod that waits, with limits.
fn limited_in_pod<'a>(pod: &Pod<'a>, name: &str, limits: Limits) -> PodContainer<'a> {
    pod.container(name, "sleep 1000", |config| limits.set_in_pod(config))
}
