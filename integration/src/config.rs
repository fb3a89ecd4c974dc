//! containerd's configuration as a user of Palisade writes it, and the settings
//! that separate several containerds on one machine.

use std::path::Path;

use crate::image;
use crate::slot::Slot;
use crate::version::Version;

/// The settings on which the configuration depends.
#[derive(Debug)]
pub struct Settings<'a> {
    /// The version of containerd.
    pub version: Version,
    /// The slot with the directory, the bridge and the subnet.
    pub slot: &'a Slot,
    /// The runtime, such as `io.containerd.palisade.v1`.
    pub runtime: &'a str,
    /// The content of the runtime's table `options`. Without one if empty.
    pub options: &'a str,
    /// The maker of sandboxes in containerd 2: `podsandbox` runs a pause
    /// container, `shim` calls the runtime's Sandbox service.
    pub sandboxer: &'a str,
}

/// Returns the text of `config.toml`.
pub fn config_toml(settings: &Settings<'_>) -> String {
    let directory = settings.slot.directory();
    let common = common(&directory);
    let (version, cri) = match settings.version {
        Version::V1_6 | Version::V1_7 => (2, cri_1(settings, &directory)),
        Version::V2_1 => (3, cri_2(settings, &directory)),
    };
    format!("version = {version}\n{common}{cri}{}", options(settings))
}

/// Returns the table of another runtime handler of CRI's.
pub fn handler_toml(version: Version, name: &str, keys: &str) -> String {
    format!("\n[plugins.\"{}\".containerd.runtimes.{name}]\n{keys}\n", plugin(version))
}

/// Returns the name of the plugin that makes pods.
fn plugin(version: Version) -> &'static str {
    match version {
        Version::V1_6 | Version::V1_7 => "io.containerd.grpc.v1.cri",
        Version::V2_1 => "io.containerd.cri.v1.runtime",
    }
}

/// Returns the table with the runtime's options, for the pods that CRI makes.
fn options(settings: &Settings<'_>) -> String {
    let plugin = plugin(settings.version);
    match settings.options {
        "" => String::new(),
        options => {
            format!("\n[plugins.\"{plugin}\".containerd.runtimes.palisade.options]\n{options}\n")
        }
    }
}

/// Returns the addresses, and the list of plugins that a test does not need,
/// since each costs time at every start.
fn common(directory: &Path) -> String {
    let d = directory.display();
    format!(
        r#"
root = "{d}/root"
state = "{d}/state"
disabled_plugins = [
    "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart",
    "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.differ.v1.erofs",
]

[grpc]
address = "{d}/c.sock"

[ttrpc]
address = "{d}/c.sock.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
path = "{d}/opt"

[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "shared"
"#
    )
}

fn cri_1(settings: &Settings<'_>, directory: &Path) -> String {
    let (d, runtime, pause) = (directory.display(), settings.runtime, image::PAUSE);
    // containerd 1.6 knows no CDI.
    let cdi = match settings.version {
        Version::V1_6 => String::new(),
        _ => format!("enable_cdi = true\ncdi_spec_dirs = [\"{d}/cdi\"]"),
    };
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
{cdi}

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{d}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "palisade"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.palisade]
runtime_type = "{runtime}"
pod_annotations = ["dev.palisade.*"]
"#
    )
}

fn cri_2(settings: &Settings<'_>, directory: &Path) -> String {
    let (d, runtime, pause) = (directory.display(), settings.runtime, image::PAUSE);
    let sandboxer = settings.sandboxer;
    format!(
        r#"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
cdi_spec_dirs = ["{d}/cdi"]

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{d}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "palisade"

# Otherwise each start runs runc for its features, which takes two more programs.
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "{runtime}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.palisade]
runtime_type = "{runtime}"
sandboxer = "{sandboxer}"
pod_annotations = ["dev.palisade.*"]
"#
    )
}

/// Returns the pods' network: a bridge with addresses from files of this test.
pub fn cni_conflist(slot: &Slot) -> String {
    let (bridge, subnet, directory) = (slot.bridge(), slot.subnet(), slot.directory());
    let name = slot.name();
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "{name}",
  "plugins": [{{
    "type": "bridge",
    "bridge": "{bridge}",
    "isGateway": true,
    "ipMasq": false,
    "ipam": {{
      "type": "host-local",
      "dataDir": "{directory}/ipam",
      "ranges": [[{{ "subnet": "{subnet}.0/24" }}]],
      "routes": [{{ "dst": "0.0.0.0/0" }}]
    }}
  }}]
}}
"#,
        directory = directory.display()
    )
}
