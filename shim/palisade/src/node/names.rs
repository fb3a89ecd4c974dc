//! What containerd's clients call a pod and a container: annotations in `config.json` of a bundle.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The names of one container. Each is absent where the client has given none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The namespace of the pod in Kubernetes.
    pub(crate) namespace: Option<String>,
    /// The pod's name in Kubernetes.
    pub(crate) pod: Option<String>,
    /// The pod's UID in Kubernetes.
    pub(crate) uid: Option<String>,
    /// The container's name in its pod.
    pub(crate) container: Option<String>,
    /// The image's name.
    pub(crate) image: Option<String>,
    /// The directory of the pod's logs, which the kubelet chose.
    pub(crate) logs: Option<PathBuf>,
    /// Whether it is the pause container.
    pub(crate) is_pause: bool,
    /// Whether its network is the host's.
    pub(crate) host_network: bool,
}

/// The only part of a spec that is read: the whole can be large.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    linux: Linux,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
}

impl Names {
    /// Reads the names from a bundle. One that is gone has none.
    pub(crate) fn of_bundle(bundle: &Path) -> Self {
        let read = fs::read(bundle.join("config.json")).ok();
        let spec: Option<Spec> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        spec.map(Self::of).unwrap_or_default()
    }

    fn of(mut spec: Spec) -> Self {
        let mut take = |key: &str| spec.annotations.remove(&format!("io.kubernetes.cri.{key}"));
        let kind = take("container-type");
        let named = spec.linux.namespaces.unwrap_or_default();
        let has_network = named.iter().any(|namespace| namespace.kind == "network");
        let found = Self {
            namespace: take("sandbox-namespace"),
            pod: take("sandbox-name"),
            uid: take("sandbox-uid"),
            container: take("container-name"),
            image: take("image-name"),
            logs: take("sandbox-log-directory").map(PathBuf::from),
            is_pause: kind.as_deref() == Some("sandbox"),
            host_network: !named.is_empty() && !has_network,
        };
        let of_nerdctl = spec.annotations.remove("nerdctl/name");
        let hostname = Some(spec.hostname).filter(|name| !name.is_empty());
        match found.pod {
            Some(_) => found,
            None => Self { container: found.container.or(of_nerdctl).or(hostname), ..found },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str) -> Names {
        Names::of(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_container_is_called_as_in_kubernetes() {
        let found = names(
            r#"{"hostname": "web-0", "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.container-name": "app",
                "io.kubernetes.cri.sandbox-name": "web-0",
                "io.kubernetes.cri.sandbox-namespace": "shop"}}"#,
        );
        assert_eq!(found.namespace.as_deref(), Some("shop"));
        assert_eq!(found.pod.as_deref(), Some("web-0"));
        assert_eq!(found.container.as_deref(), Some("app"));
        assert!(!found.is_pause);
    }

    #[test]
    fn a_container_of_no_pod_has_the_name_of_its_host() {
        assert_eq!(names(r#"{"hostname": "box"}"#).container.as_deref(), Some("box"));
        assert_eq!(names("{}"), Names::default());
        assert_eq!(Names::of_bundle(Path::new("/nowhere")), Names::default());
    }
}
