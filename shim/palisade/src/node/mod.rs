//! The pods of this node: what Palisade has recorded about them on disk, what their bundles call
//! them, and what the kernel says of them. Asks no shim.

mod names;
pub(crate) mod network;
pub(crate) mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use sandbox_core::cgroup::Cgroup;
use sandbox_core::sandbox::state::{self, Identity, State};

pub(crate) use names::Names;

use crate::arguments::Common;

/// All pods whose state is recorded.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// In the order of their namespaces and IDs.
    pub(crate) pods: Vec<Pod>,
}

/// One pod: a sandbox, and the containers in it.
#[derive(Debug)]
pub(crate) struct Pod {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The sandbox's ID.
    pub(crate) id: String,
    /// Its directory below the state root.
    pub(crate) directory: PathBuf,
    /// What its shim has recorded. `None` while the sandbox is made, and after it was torn down.
    pub(crate) state: Option<State>,
    /// Why the state could not be read.
    pub(crate) trouble: Option<String>,
    /// The root container first, the others in the order of their IDs.
    pub(crate) containers: Vec<Container>,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) cgroup: Cgroup,
    /// When it was recorded, which is when it was created.
    pub(crate) created: Option<SystemTime>,
    /// What its bundle calls it and its pod.
    pub(crate) names: Names,
}

/// Returns the directory of the state of all pods.
pub(crate) fn state_root(common: Option<&Common>) -> PathBuf {
    if let Some(root) = common.and_then(|common| common.state.clone()) {
        return root;
    }
    let of_root = rustix::process::getuid().is_root();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !of_root).map(PathBuf::from);
    runtime.unwrap_or_else(|| PathBuf::from("/run")).join("palisade")
}

impl Node {
    /// Reads the state below a directory, of all namespaces.
    ///
    /// # Errors
    /// The error names a directory that cannot be read. A pod whose files are torn is listed with
    /// its trouble.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let directories = state::sandboxes(root)
            .with_context(|| format!("read the state of the pods in {}", root.display()))?;
        Ok(Self { pods: directories.iter().map(|(n, d)| Pod::read(n, d)).collect() })
    }

    /// Reads what the flags choose.
    pub(crate) fn of(common: &Common) -> Result<Self> {
        let mut node = Self::read(&state_root(Some(common)))?;
        if let Some(namespace) = &common.namespace {
            node.pods.retain(|pod| pod.namespace == *namespace);
        }
        Ok(node)
    }
}

impl Pod {
    fn read(namespace: &str, directory: &state::StateDirectory) -> Self {
        let path = directory.path().to_owned();
        let id = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let mut pod = Self {
            namespace: namespace.to_owned(),
            id: id.unwrap_or_default(),
            directory: path,
            state: None,
            trouble: None,
            containers: Vec::new(),
        };
        match directory.read() {
            Ok(state) => pod.state = state,
            Err(error) => pod.trouble = Some(error.to_string()),
        }
        match directory.container_ids() {
            Ok(ids) => ids.into_iter().for_each(|id| pod.read_container(directory, id)),
            Err(error) => pod.trouble = Some(error.to_string()),
        }
        let root = pod.id.clone();
        pod.containers.sort_by(|a, b| (a.id != root, &a.id).cmp(&(b.id != root, &b.id)));
        pod
    }

    /// Adds a container, or why it cannot be read.
    fn read_container(&mut self, directory: &state::StateDirectory, id: String) {
        let file = self.directory.join(format!("containers/{id}.json"));
        let created = fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
        let state = directory.container(&id);
        match state.and_then(|state| state.map(|one| Container::of(id, one, created)).transpose()) {
            Ok(container) => self.containers.extend(container),
            Err(error) => self.trouble = Some(error.to_string()),
        }
    }

    /// Returns the pod's name as Kubernetes has it, or that of its sandbox.
    pub(crate) fn name(&self) -> &str {
        self.names().and_then(|names| names.pod.as_deref()).unwrap_or("")
    }

    /// Returns its namespace in Kubernetes.
    pub(crate) fn kubernetes_namespace(&self) -> &str {
        self.names().and_then(|names| names.namespace.as_deref()).unwrap_or("")
    }

    /// Returns the directory of its logs, which the kubelet chose.
    pub(crate) fn logs(&self) -> Option<&Path> {
        self.containers.iter().find_map(|container| container.names.logs.as_deref())
    }

    fn names(&self) -> Option<&Names> {
        self.containers.iter().map(|container| &container.names).find(|names| names.pod.is_some())
    }

    /// Returns the PID of boot, if it lives.
    pub(crate) fn boot(&self) -> Option<i32> {
        living(self.state.as_ref()?.boot)
    }

    /// Returns the PID of the shim, if it lives.
    pub(crate) fn shim(&self) -> Option<i32> {
        living(self.state.as_ref()?.shim?)
    }
}

impl Container {
    fn of(
        id: String,
        state: state::ContainerState,
        created: Option<SystemTime>,
    ) -> sandbox_core::Result<Self> {
        let names = Names::of_bundle(&state.bundle);
        let cgroup = Cgroup::open(state.cgroup)?;
        Ok(Self { id, bundle: state.bundle, cgroup, created, names })
    }

    /// Returns its name as Kubernetes or Docker has it.
    pub(crate) fn name(&self) -> &str {
        self.names.container.as_deref().unwrap_or("")
    }
}

/// Returns the PID of a process that is still the same, and has not ended.
pub(crate) fn living(identity: Identity) -> Option<i32> {
    let process = identity.open()?;
    // A pidfd is readable once its process has ended, though nobody has waited for it yet.
    let mut polled = [PollFd::new(&process, PollFlags::IN)];
    let ended = rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default()));
    (ended == Ok(0)).then_some(identity.pid)
}
