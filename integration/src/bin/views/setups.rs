//! What containers are run under.

use std::path::{Path, PathBuf};

use integration::container::NewContainer;
use integration::spec;
use serde_json::{Value, json};

/// A runtime, with or without lxcfs.
#[derive(Clone, Debug)]
pub enum Setup {
    Runc,
    /// runc, with the files of the lxcfs that is mounted there.
    Lxcfs(PathBuf),
    Palisade,
}

impl Setup {
    /// Returns all of them, for an lxcfs that is mounted there.
    pub fn all(lxcfs: &Path) -> [Setup; 3] {
        [Setup::Runc, Setup::Lxcfs(lxcfs.to_owned()), Setup::Palisade]
    }

    /// Returns a word for the IDs of containers.
    pub fn word(&self) -> &'static str {
        match self {
            Setup::Runc => "runc",
            Setup::Lxcfs(_) => "lxcfs",
            Setup::Palisade => "palisade",
        }
    }

    /// Returns its name in a table.
    pub fn title(&self) -> &'static str {
        match self {
            Setup::Runc => "runc",
            Setup::Lxcfs(_) => "runc and lxcfs",
            Setup::Palisade => "Palisade",
        }
    }

    /// Sets the runtime of a container, and mounts what it takes.
    pub fn apply<'a>(&self, container: NewContainer<'a>) -> NewContainer<'a> {
        match self {
            Setup::Palisade => container.runtime("io.containerd.palisade.v1"),
            Setup::Runc => container.runtime("io.containerd.runc.v2"),
            Setup::Lxcfs(at) => {
                container.runtime("io.containerd.runc.v2").spec(|spec| bind_files(spec, at))
            }
        }
    }
}

/// Binds all files of lxcfs over the kernel's, as its manual and its hook for LXC do.
fn bind_files(spec: &mut Value, at: &Path) {
    let files =
        ["cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"];
    let files = files.map(|name| format!("proc/{name}"));
    for file in files.iter().map(String::as_str).chain(["sys/devices/system/cpu"]) {
        let source = at.join(file);
        let source = source.to_str().expect("an ASCII path");
        spec::add_bind(spec, source, &format!("/{file}"), &["rbind", "ro"]);
    }
}

/// CPUs and memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The quota of CPU time, in thousandths of a CPU.
    pub millicpus: u64,
    pub bytes: u64,
}

impl Limits {
    /// Returns them as the spec's resources.
    pub fn resources(self) -> Value {
        json!({
            "cpu": { "quota": self.millicpus * 100, "period": 100_000 },
            "memory": { "limit": self.bytes },
        })
    }

    /// Returns how many CPUs a program should count, on a machine with so many.
    pub fn cpus(self, of_machine: u64) -> u64 {
        self.millicpus.div_ceil(1000).clamp(1, of_machine)
    }
}
