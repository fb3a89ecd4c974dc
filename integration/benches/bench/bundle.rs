//! The preparations of containerd before it calls a shim for a container: the
//! bundle, a writable snapshot, the log FIFO and the FIFOs of the streams. None
//! of it is timed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use containerd_shim_protos::api::Mount;
use integration::spec;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::lab::Lab;

/// A container's bundle, which is removed on drop.
#[derive(Debug)]
pub struct Bundle {
    /// The container's ID.
    pub id: String,
    /// The directory with `config.json`.
    pub path: PathBuf,
    snapshot: PathBuf,
    layer: PathBuf,
    // containerd holds the shim's log open while the shim lives.
    _log: File,
}

/// The differences between containers' specs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape<'a> {
    /// Its command.
    pub args: &'a [&'a str],
    /// Whether it gets the seccomp profile of Kubernetes' `RuntimeDefault`.
    /// `ctr run` gives none by default.
    pub seccomp: bool,
    /// Its part in a pod.
    pub place: Place<'a>,
    /// Whether it sees the host's /usr, read-only.
    pub usr: bool,
    /// Its CPU shares, if its engine gives it some.
    pub shares: Option<u64>,
}

/// A container's part in a pod.
#[derive(Clone, Copy, Debug, Default)]
pub enum Place<'a> {
    /// None: it is alone.
    #[default]
    Alone,
    /// It is the pause container.
    Pause,
    /// It is in the pod of the pause container with this ID and host PID.
    In(&'a str, u32),
}

impl Bundle {
    /// Prepares a bundle.
    pub fn new(lab: &Lab, id: &str, shape: &Shape<'_>) -> Result<Bundle> {
        let path = lab.directory().join("bundles").join(id);
        let snapshot = lab.directory().join("snapshots").join(id);
        for folder in [path.join("rootfs"), snapshot.join("fs"), snapshot.join("work")] {
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let spec = spec_of(lab, id, shape).to_string();
        fs::write(path.join("config.json"), spec).context("write config.json")?;
        let log = fifo(&path.join("log"), OFlag::O_RDWR)?;
        Ok(Bundle { id: id.to_owned(), path, snapshot, layer: lab.root(), _log: log })
    }

    /// Returns the overlay mount that containerd's snapshotter describes.
    pub fn rootfs(&self) -> Mount {
        let folder = |name: &str| self.snapshot.join(name).to_string_lossy().into_owned();
        Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                "index=off".into(),
                format!("workdir={}", folder("work")),
                format!("upperdir={}", folder("fs")),
                format!("lowerdir={}", self.layer.display()),
            ],
            ..Default::default()
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        let _ = fs::remove_dir_all(&self.snapshot);
    }
}

/// The FIFOs for output and errors of one process, which are removed on drop.
#[derive(Debug)]
pub struct Streams {
    /// Path of the FIFO for output.
    pub stdout: String,
    /// Path of the FIFO for errors.
    pub stderr: String,
    /// The reader's end of the output, nonblocking.
    pub output: File,
    _errors: File,
}

impl Streams {
    /// Makes the FIFOs and opens the readers' ends, as a client does before it
    /// requests the process.
    pub fn new(lab: &Lab, id: &str) -> Result<Streams> {
        let path = |name: &str| lab.directory().join("fifo").join(format!("{id}-{name}"));
        let (stdout, stderr) = (path("stdout"), path("stderr"));
        Ok(Streams {
            output: fifo(&stdout, OFlag::O_RDONLY)?,
            _errors: fifo(&stderr, OFlag::O_RDONLY)?,
            stdout: stdout.to_string_lossy().into_owned(),
            stderr: stderr.to_string_lossy().into_owned(),
        })
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.stdout);
        let _ = fs::remove_file(&self.stderr);
    }
}

fn fifo(path: &Path, mode: OFlag) -> Result<File> {
    mkfifo(path, Mode::from_bits_truncate(0o700))
        .with_context(|| format!("mkfifo {}", path.display()))?;
    let mut options = OpenOptions::new();
    options.read(true).write(mode == OFlag::O_RDWR).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(path).with_context(|| format!("open {}", path.display()))
}

fn spec_of(lab: &Lab, id: &str, shape: &Shape<'_>) -> Value {
    let mut spec = spec::container(shape.args, &lab.cgroup_of(id));
    if shape.seccomp {
        spec["linux"]["seccomp"] = seccomp();
    }
    if shape.usr {
        spec::add_bind(&mut spec, "/usr", "/usr", &["rbind", "ro"]);
    }
    if let Some(shares) = shape.shares {
        spec["linux"]["resources"]["cpu"] = json!({ "shares": shares });
    }
    let network = lab.network().to_string_lossy().into_owned();
    match shape.place {
        Place::Alone => {}
        Place::Pause => {
            spec["annotations"] = annotations("sandbox", id);
            share(&mut spec, "network", network);
        }
        Place::In(pause, pid) => {
            spec["annotations"] = annotations("container", pause);
            for (kind, name) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
                share(&mut spec, kind, format!("/proc/{pid}/ns/{name}"));
            }
        }
    }
    spec
}

/// Returns the profile that all runtimes get, if one is wanted.
pub fn seccomp() -> Value {
    serde_json::from_str(include_str!("seccomp.json")).expect("seccomp.json is JSON")
}

/// Returns the annotations by which shims group containers, as containerd's CRI
/// writes them.
fn annotations(kind: &str, sandbox: &str) -> Value {
    json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": sandbox,
    })
}

fn share(spec: &mut Value, kind: &str, path: String) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a spec has namespaces");
    let namespace = namespaces.iter_mut().find(|namespace| namespace["type"] == kind);
    namespace.expect("a spec has each namespace")["path"] = json!(path);
}
