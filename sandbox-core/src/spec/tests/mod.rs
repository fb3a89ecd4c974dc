//! Specs as programs write them, and the plans that they become.

mod baseline;
mod load;
mod mounts;
mod pods;
mod process;
mod properties;
mod refusals;
mod refused;
mod seccomp;
mod valid;
mod views;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::baseline::Baseline;
use super::plan::{MountPlan, Plan, ProcessPlan, Views};
use super::{Context, NamespaceId, SandboxFacts};
use crate::Result;
use crate::types::{HostPid, IdPool, Userns};

/// Written by `ctr oci spec` of containerd 1.6.20 (which omits the arguments),
/// by `ctr containers create` (with `--seccomp`; with `--privileged
/// --net-host`), by `runc spec` of runc 1.1.5, and after containerd's
/// `pkg/cri/server`. `@` is the bundle.
pub(super) const CTR: &str = include_str!("fixtures/ctr.json");
const CTR_SECCOMP: &str = include_str!("fixtures/ctr-seccomp.json");
const CTR_PRIVILEGED: &str = include_str!("fixtures/ctr-privileged.json");
const CTR_OPTIONS: &str = include_str!("fixtures/ctr-options.json");
const RUNC: &str = include_str!("fixtures/runc.json");
const RUNC_ROOTLESS: &str = include_str!("fixtures/runc-rootless.json");
const CRI_SANDBOX: &str = include_str!("fixtures/cri-sandbox.json");
const CRI_CONTAINER: &str = include_str!("fixtures/cri-container.json");

/// A bundle, its spec, and the rest that a plan depends on.
struct Story {
    bundle: TempDir,
    spec: Value,
    userns: Userns,
    rootfs_mounts_given: bool,
    sandbox: Option<SandboxFacts>,
    baseline: Baseline,
    tells_refusals: bool,
    views: Option<Views>,
}

impl Story {
    fn of(fixture: &str) -> Self {
        let bundle = tempfile::tempdir().expect("a temporary directory");
        for directory in ["rootfs", "shm"] {
            fs::create_dir(bundle.path().join(directory)).expect("mkdir");
        }
        for file in ["hosts", "resolv.conf"] {
            fs::write(bundle.path().join(file), "").expect("write");
        }
        let text = fixture.replace("\"@/", &format!("\"{}/", bundle.path().display()));
        let spec = serde_json::from_str(&text).expect("a fixture is JSON");
        Self {
            bundle,
            spec,
            userns: Userns::Auto,
            rootfs_mounts_given: false,
            sandbox: None,
            baseline: Baseline::default(),
            tells_refusals: false,
            views: None,
        }
    }

    /// Sets the value at a JSON pointer, and makes the objects on the way.
    fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let mut at = &mut self.spec;
        for key in pointer.trim_start_matches('/').split('/') {
            let key = key.replace("~1", "/");
            at = match (at, key.parse::<usize>()) {
                (Value::Array(list), Ok(index)) => {
                    if index == list.len() {
                        list.push(Value::Null);
                    }
                    &mut list[index]
                }
                (object, _) => {
                    if object.is_null() {
                        *object = Value::Object(Default::default());
                    }
                    &mut object[key]
                }
            };
        }
        *at = value.into();
        self
    }

    fn userns(mut self, userns: Userns) -> Self {
        self.userns = userns;
        self
    }

    /// Makes it a later container of this sandbox.
    fn inside(mut self, facts: SandboxFacts) -> Self {
        self.sandbox = Some(facts);
        self
    }

    fn write(&self) {
        let json = serde_json::to_vec(&self.spec).expect("JSON");
        fs::write(self.bundle.path().join("config.json"), json).expect("write config.json");
    }

    fn plan(&self) -> Result<Plan> {
        self.write();
        let spec = super::load(self.bundle.path())?;
        let context = Context {
            id: "c1",
            bundle: self.bundle.path(),
            rootfs_mounts_given: self.rootfs_mounts_given,
            userns: self.userns,
            id_pool: IdPool::default(),
            baseline: self.baseline,
            tells_refusals: self.tells_refusals,
            views: self.views,
            sandbox: self.sandbox.as_ref(),
            other_containers: &[],
        };
        super::plan(&spec, &context)
    }

    #[track_caller]
    fn accepted(&self) -> Plan {
        self.plan().unwrap_or_else(|error| panic!("should be accepted, but: {error}"))
    }

    /// Checks that the plan is refused with an error that holds `expected`.
    #[track_caller]
    fn refused(&self, expected: &str) {
        match self.plan() {
            Ok(_) => panic!("should be refused with {expected:?}"),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains(expected), "{message:?} does not hold {expected:?}");
                assert_eq!(error.kind, crate::error::FailureKind::Invalid);
            }
        }
    }
}

/// A sandbox as a later container finds it. A plan only compares the identity
/// of namespaces, so those of this process will do. Its mount namespace stands
/// for a network namespace that is not the host's.
fn sandbox() -> SandboxFacts {
    let own = HostPid(std::process::id() as i32);
    let facts = SandboxFacts::read(own, true, None).expect("namespaces of this process");
    SandboxFacts { network: namespace("mnt"), host_network: false, ..facts }
}

fn namespace(name: &str) -> NamespaceId {
    NamespaceId::of(&Path::new("/proc/self/ns").join(name)).expect("a namespace of this process")
}

fn mount<'a>(plan: &'a Plan, destination: &str) -> &'a MountPlan {
    let mut mounts = plan.container.mounts.iter();
    mounts.find(|mount| mount.destination == Path::new(destination)).expect("a planned mount")
}

fn process(plan: &Plan) -> &ProcessPlan {
    plan.container.process.as_ref().expect("a process")
}

fn paths<const N: usize>(paths: [&str; N]) -> Vec<PathBuf> {
    paths.map(PathBuf::from).to_vec()
}
