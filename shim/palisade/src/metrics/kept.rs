//! The pods of a node, with what is kept between two scrapes: parsed names, open directories of
//! cgroups, and the pages in which shims count. A scrape reads directories, and parses only what is
//! new: an inode number tells a pod or a container from a later one with the same ID.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sandbox_core::cgroup::Cgroup;
use sandbox_core::cgroup::stats::Meter;
use sandbox_core::sandbox::counters::Counters;
use sandbox_core::sandbox::state::{State, StateDirectory};

use super::totals::Totals;
use crate::node::Names;

/// The labels of a pod or a container, in cAdvisor's names.
pub(super) type Labels = Vec<(&'static str, String)>;

/// The pods, as of the last scrape.
#[derive(Debug)]
pub(crate) struct Kept {
    root: PathBuf,
    /// Only pods of this namespace of containerd's.
    namespace: Option<String>,
    pub(super) pods: HashMap<Key, KeptPod>,
    /// What the shims of pods that are gone have counted.
    pub(super) ended: Totals,
}

/// containerd's namespace, and the sandbox's ID.
pub(super) type Key = (String, String);

/// What is kept of one pod.
#[derive(Debug)]
pub(super) struct KeptPod {
    inode: u64,
    directory: StateDirectory,
    /// `None` while the pod is made.
    pub(super) state: Option<State>,
    /// Whether its files cannot be read.
    pub(super) torn: bool,
    counters: Option<Counters>,
    pub(super) labels: Labels,
    /// The cgroup above those of its containers, if Kubernetes made one.
    pub(super) meter: Option<Meter>,
    /// Whether its network is the node's.
    pub(super) host_network: bool,
    pub(super) containers: HashMap<String, KeptContainer>,
}

/// What is kept of one container.
#[derive(Debug)]
pub(super) struct KeptContainer {
    inode: u64,
    names: Names,
    /// The time of its creation, in seconds.
    pub(super) created: f64,
    cgroup: Cgroup,
    /// `None` if it has no cgroup that counts.
    pub(super) meter: Option<Meter>,
    pub(super) labels: Labels,
    /// Whether boot is in its cgroup.
    pub(super) is_root: bool,
}

impl Kept {
    pub(crate) fn new(root: &Path, namespace: Option<&str>) -> Self {
        let namespace = namespace.map(str::to_owned);
        Self { root: root.to_owned(), namespace, pods: HashMap::new(), ended: Totals::default() }
    }

    /// Looks which pods and containers there are now.
    ///
    /// # Errors
    /// The error names the directory of the state, if that cannot be read. There may be none.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        let mut present = HashSet::new();
        for (namespace, _) in directories(&self.root)? {
            if self.namespace.as_ref().is_some_and(|only| *only != namespace) {
                continue;
            }
            for (id, inode) in directories(&self.root.join(&namespace))? {
                let key = (namespace.clone(), id);
                if self.refresh_pod(&key, inode) {
                    present.insert(key);
                }
            }
        }
        let gone: Vec<Key> =
            self.pods.keys().filter(|key| !present.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| self.forget(key));
        Ok(())
    }

    /// Returns what all shims have counted since the first scrape.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.ended.clone();
        self.pods.values().filter_map(|pod| pod.counters.as_ref()).for_each(|one| totals.add(one));
        totals
    }

    /// Looks at one directory. Returns whether it is a pod's.
    fn refresh_pod(&mut self, key: &Key, inode: u64) -> bool {
        let (namespace, id) = key;
        if self.pods.get(key).is_some_and(|pod| pod.inode != inode) {
            self.forget(key);
        }
        let Ok(directory) = StateDirectory::locate(&self.root, namespace, id) else { return false };
        // What Palisade keeps beside the namespaces has no containers.
        let Some(files) = files(&directory.path().join("containers")) else { return false };
        let pod = self.pods.entry(key.clone()).or_insert_with(|| KeptPod::new(inode, directory));
        pod.refresh(key, files);
        true
    }

    /// Keeps only what the shim of a pod has counted: its page stays mapped until now.
    fn forget(&mut self, key: &Key) {
        if let Some(counters) = self.pods.remove(key).and_then(|pod| pod.counters) {
            self.ended.add(&counters);
        }
    }
}

impl KeptPod {
    fn new(inode: u64, directory: StateDirectory) -> Self {
        Self {
            inode,
            directory,
            state: None,
            torn: false,
            counters: None,
            labels: Labels::new(),
            meter: None,
            host_network: false,
            containers: HashMap::new(),
        }
    }

    fn refresh(&mut self, key: &Key, files: Vec<(String, u64)>) {
        self.torn = false;
        if self.state.is_none() {
            match self.directory.read() {
                Ok(state) => self.state = state,
                Err(_) => self.torn = true,
            }
        }
        if self.counters.is_none() {
            // Shims of versions before have none.
            self.counters = self.directory.counters().ok();
        }
        let before = self.containers.len();
        self.containers.retain(|id, kept| {
            files.iter().any(|(name, inode)| name == id && *inode == kept.inode)
        });
        let mut changed = self.labels.is_empty() || self.containers.len() != before;
        for (id, inode) in files {
            if self.containers.contains_key(&id) {
                continue;
            }
            match KeptContainer::read(&self.directory, key, &id, inode) {
                Ok(Some(container)) => {
                    changed = true;
                    self.containers.insert(id, container);
                }
                Ok(None) => {}
                Err(_) => self.torn = true,
            }
        }
        if changed {
            self.name(key);
        }
    }

    /// Makes the labels of the pod and its containers.
    fn name(&mut self, (namespace, id): &Key) {
        let with_names = self.containers.values().find(|container| container.names.pod.is_some());
        let names = with_names.map(|container| container.names.clone());
        let of_kubernetes = names.is_some();
        let names = names.unwrap_or_default();
        self.host_network = self.containers.values().any(|container| container.names.host_network);
        let of_pod = labels([("namespace", names.namespace), ("pod", names.pod)]);
        for (id, container) in &mut self.containers {
            container.name(id, &of_pod, of_kubernetes);
        }
        let of_pods_cgroup = self.containers.values().find(|_| of_kubernetes);
        self.meter = of_pods_cgroup.and_then(|one| one.cgroup.meter_of_parent().ok().flatten());
        let own =
            [("sandbox", Some(id.clone())), ("containerd_namespace", Some(namespace.clone()))];
        self.labels = [of_pod, labels(own)].concat();
    }

    /// Returns the labels of the pod's cgroup.
    pub(super) fn labels_of_cgroup(&self, meter: &Meter) -> Labels {
        let of_pod = self.labels.iter().filter(|(key, _)| ["namespace", "pod"].contains(key));
        std::iter::once(("id", meter.path().to_owned())).chain(of_pod.cloned()).collect()
    }
}

impl KeptContainer {
    fn read(
        directory: &StateDirectory,
        (_, sandbox): &Key,
        id: &str,
        inode: u64,
    ) -> sandbox_core::Result<Option<Self>> {
        let Some(state) = directory.container(id)? else { return Ok(None) };
        let file = directory.path().join(format!("containers/{id}.json"));
        let created = fs::metadata(file).and_then(|metadata| metadata.modified());
        let cgroup = Cgroup::open(state.cgroup)?;
        Ok(Some(Self {
            inode,
            names: Names::of_bundle(&state.bundle),
            created: seconds(created.unwrap_or(UNIX_EPOCH)),
            meter: cgroup.meter()?,
            cgroup,
            labels: Labels::new(),
            is_root: id == sandbox,
        }))
    }

    fn name(&mut self, id: &str, of_pod: &Labels, of_kubernetes: bool) {
        let names = &self.names;
        // As cAdvisor calls the container that only holds the pod.
        let is_pause = names.is_pause || self.is_root && of_kubernetes && names.container.is_none();
        let called = if is_pause { Some("POD".to_owned()) } else { names.container.clone() };
        let own = labels([
            ("id", self.meter.as_ref().map(|meter| meter.path().to_owned())),
            ("name", Some(id.to_owned())),
            ("image", names.image.clone()),
            ("container", called.or_else(|| Some(id.to_owned()))),
        ]);
        self.labels = [own, of_pod.clone()].concat();
    }
}

fn labels<const N: usize>(all: [(&'static str, Option<String>); N]) -> Labels {
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Returns the names and inode numbers of the directories in a directory, if there is one.
fn directories(path: &Path) -> Result<Vec<(String, u64)>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => {
            other.with_context(|| format!("read the state of the pods in {}", path.display()))?
        }
    };
    let named = entries.flatten().filter_map(|entry| {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name().into_string().ok()?;
        is_directory.then(|| (name, entry.ino()))
    });
    Ok(named.collect())
}

/// Returns the IDs of the containers in a directory, with inode numbers. `None` if there is no such
/// directory.
fn files(path: &Path) -> Option<Vec<(String, u64)>> {
    let entries = fs::read_dir(path).ok()?.flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name.strip_suffix(".json")?.to_owned(), entry.ino()))
    });
    Some(named.collect())
}
