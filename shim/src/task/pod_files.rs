//! Provides the things that containerd leaves to a sandbox of its Sandbox
//! service: files with the pod's host name, hosts and name servers, and its
//! shared memory (`internal/cri/server/container_create.go`,
//! `linuxContainerMounts`).

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder, Spec};
use sandbox_core::spec::plan::{MountSource, Plan};

use crate::error::{Context, Result};

/// The node's own files, which pods have by default.
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Files in the sandbox's bundle, which are removed with it.
#[derive(Clone)]
pub(crate) struct PodFiles {
    bundle: PathBuf,
    /// `None` if the client is not CRI: it provides its own.
    wanted: Option<Wanted>,
}

/// The pod's configuration of the files.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// The host name; if empty, the node's.
    pub(crate) hostname: String,
    /// The content of `resolv.conf`; if `None`, the node's.
    pub(crate) resolv_conf: Option<String>,
}

/// The files' names in the bundle, and their paths in containers.
const PLACES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", HOSTS), ("resolv.conf", RESOLV_CONF)];

impl PodFiles {
    pub(crate) fn new(bundle: &Path, wanted: Option<Wanted>) -> Self {
        Self { bundle: bundle.to_path_buf(), wanted }
    }

    /// Writes the files, before the first container is created.
    pub(crate) fn write(&self) -> Result<()> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let hostname = match wanted.hostname.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            name => name.to_string(),
        };
        let of_the_node = |path| fs::read(path).unwrap_or_default();
        let resolv_conf = wanted
            .resolv_conf
            .as_ref()
            .map_or_else(|| of_the_node(RESOLV_CONF), |text| text.clone().into_bytes());
        let contents = [format!("{hostname}\n").into_bytes(), of_the_node(HOSTS), resolv_conf];
        for ((name, _), content) in PLACES.iter().zip(contents) {
            let path = self.bundle.join(name);
            fs::write(&path, content).context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// Adds the files that a container's spec does not mount itself. They are writable
    /// if its root is.
    pub(super) fn provide(&self, spec: &mut Spec) -> Result<()> {
        if self.wanted.is_none() {
            return Ok(());
        }
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (name, place) in PLACES {
            if !mounts.iter().any(|mount| mount.destination() == Path::new(place)) {
                mounts.push(bind(&self.bundle.join(name), place, read_only)?);
            }
        }
        spec.set_mounts(Some(mounts));
        Ok(())
    }

    /// Replaces the `/dev/shm` of a container that shares its pod's IPC namespace by
    /// the pod's.
    pub(super) fn share_memory(&self, plan: &mut Plan) {
        if self.wanted.is_none() || plan.container.namespaces.ipc {
            return;
        }
        let is_shm = |place: &Path| place == Path::new("/dev/shm");
        for mount in plan.container.mounts.iter_mut().filter(|mount| is_shm(&mount.destination)) {
            if let MountSource::Tmpfs { options, copy_up: false } = &mount.source {
                mount.source = MountSource::SharedMemory(options.clone());
            }
        }
    }
}

fn bind(source: &Path, place: &str, read_only: bool) -> Result<Mount> {
    let access = if read_only { "ro" } else { "rw" };
    let options = ["rbind", "rprivate", access].map(str::to_string).to_vec();
    let mount = MountBuilder::default().source(source).destination(place).typ("bind");
    mount.options(options).build().context(|| "mounts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_own_mounts_stay() {
        let bundle = tempfile::tempdir().unwrap();
        let wanted = Wanted { hostname: String::new(), resolv_conf: None };
        let files = PodFiles::new(bundle.path(), Some(wanted));
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![bind(Path::new("/volumes/hosts"), HOSTS, true).unwrap()]));
        files.provide(&mut spec).unwrap();
        let mounts = spec.mounts().clone().unwrap();
        let sources: Vec<_> = mounts.iter().filter_map(|m| m.source().clone()).collect();
        let wanted = ["hostname", "resolv.conf"].map(|name| bundle.path().join(name));
        assert_eq!(sources, [&[PathBuf::from("/volumes/hosts")], &wanted[..]].concat());
    }
}
