//! `palisade-containerd` with each containerd and the configurations that nodes
//! have: the runtime is there afterwards, nothing else changed, and it goes
//! without a trace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::containerd::{Version, repository};

/// Turns each story into a test for every containerd.
macro_rules! with_each_containerd {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            #[test]
            fn containerd_1_6() { super::$story(super::Version::V1_6); }
            #[test]
            fn containerd_1_7() { super::$story(super::Version::V1_7); }
            #[test]
            fn containerd_2_1() { super::$story(super::Version::V2_1); }
        }
    )+};
}

with_each_containerd!(
    a_node_without_a_configuration_gets_one,
    runtimes_that_containerd_has_by_default_stay,
    what_the_file_says_stays,
    a_drop_in_is_used_where_it_loses_nothing,
    a_configuration_that_is_too_old_is_left_alone,
    a_runtime_that_somebody_wrote_is_left_alone,
);

const PALISADE: &str = "containerd.runtimes.palisade]";
const RUNC: &str = "containerd.runtimes.runc]";

/// A folder with a configuration, and a containerd that reads it.
struct Configured {
    version: Version,
    directory: tempfile::TempDir,
}

impl Configured {
    fn new(version: Version) -> Configured {
        Configured { version, directory: tempfile::tempdir().expect("make a folder") }
    }

    fn with(version: Version, text: &str) -> Configured {
        let configured = Configured::new(version);
        let text = text.replace("FOLDER", configured.directory.path().to_str().expect("UTF-8"));
        fs::write(configured.file(), text).expect("write the configuration");
        fs::set_permissions(configured.file(), fs::Permissions::from_mode(0o640)).expect("chmod");
        configured
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn drop_in(&self) -> PathBuf {
        self.directory.path().join("conf.d/palisade.toml")
    }

    fn command(&self, program: &Path) -> Command {
        let containerd =
            repository().join(format!(".cache/containerd-{}/bin", self.version.number()));
        let mut command = Command::new(program);
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", containerd.display()));
        command.env("PALISADE_CONTAINERD_CONFIG", self.file());
        command
    }

    fn palisade_containerd(&self, verb: &str) -> Output {
        let script = repository().join("shim/package/palisade-containerd");
        self.command(&script).arg(verb).output().expect("run palisade-containerd")
    }

    /// What it says when all goes well.
    #[track_caller]
    fn told(&self, verb: &str) -> String {
        let output = self.palisade_containerd(verb);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "palisade-containerd {verb}: {error}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What containerd makes of it.
    fn dump(&self) -> String {
        let mut command = self.command(Path::new("containerd"));
        let output = command.arg("--config").arg(self.file()).args(["config", "dump"]).output();
        let output = output.expect("run containerd; ci/containerd fetches it");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Adds it twice and removes it twice.
    #[track_caller]
    fn adds_and_removes(&self) -> String {
        let before = fs::read(self.file()).ok();
        assert_ne!(self.told("add"), "", "it tells what it changed");
        assert_eq!(self.told("add"), "", "there was nothing left to do");
        let dump = self.dump();
        assert!(dump.contains(PALISADE), "{dump}");
        if before.is_some() {
            let mode = self.file().metadata().expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o640, "the file is as secret as it was");
        }
        assert_ne!(self.told("remove"), "", "it tells what it changed");
        assert_eq!(self.told("remove"), "", "there was nothing left to do");
        assert_eq!(fs::read(self.file()).ok(), before, "the configuration is what it was");
        assert!(!self.drop_in().exists());
        dump
    }
}

fn a_node_without_a_configuration_gets_one(version: Version) {
    let dump = Configured::new(version).adds_and_removes();
    assert!(dump.contains(RUNC), "{dump}");
}

fn runtimes_that_containerd_has_by_default_stay(version: Version) {
    let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/usr/lib/cni\"\n";
    for text in ["version = 2\n", "version = 2", debian] {
        let dump = Configured::with(version, text).adds_and_removes();
        assert!(dump.contains(RUNC), "{dump}");
    }
}

fn what_the_file_says_stays(version: Version) {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let text = format!(
        "version = 2\n[{cri}]\nsandbox_image = \"own/pause\"\n[{cri}.containerd.runtimes.own]\n\
         runtime_type = \"io.containerd.runc.v2\"\n[{cri}.containerd.runtimes.own.options]\nSystemdCgroup = true"
    );
    let dump = Configured::with(version, &text).adds_and_removes();
    for wanted in ["own/pause", ".runtimes.own]", "SystemdCgroup = true"] {
        assert!(dump.contains(wanted), "no {wanted} in {dump}");
    }
}

fn a_drop_in_is_used_where_it_loses_nothing(version: Version) {
    let text = "version = 2\nimports = [\"FOLDER/conf.d/*.toml\"]\n\
                [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"own/pause\"\n";
    let configured = Configured::with(version, text);
    configured.told("add");
    assert_eq!(configured.drop_in().exists(), version == Version::V2_1);
    configured.told("remove");
    assert!(configured.adds_and_removes().contains("own/pause"));
}

fn a_configuration_that_is_too_old_is_left_alone(version: Version) {
    let configured = Configured::with(version, "root = \"/var/lib/containerd\"\n");
    let output = configured.palisade_containerd("add");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("version = 2") && error.contains("config migrate"), "{error}");
    assert_eq!(configured.directory.path().read_dir().expect("a folder").count(), 1);
}

fn a_runtime_that_somebody_wrote_is_left_alone(version: Version) {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.palisade]\n\
                runtime_type = \"io.containerd.palisade.v1\"\n";
    let configured = Configured::with(version, text);
    assert_eq!((configured.told("add"), configured.told("remove")), (String::new(), String::new()));
    assert!(configured.dump().contains(PALISADE));
}

/// The example for containerd 2.x, where the main file imports it.
#[test]
fn the_example_of_a_drop_in_is_what_containerd_takes() {
    let text = "version = 3\nimports = [\"FOLDER/conf.d/*.toml\"]\n";
    let configured = Configured::with(Version::V2_1, text);
    fs::create_dir(configured.directory.path().join("conf.d")).expect("make the folder");
    fs::copy(repository().join("shim/package/containerd-2.toml"), configured.drop_in())
        .expect("copy it");
    let dump = configured.dump();
    assert!(
        dump.contains("containerd.runtimes.palisade]") && dump.contains("dev.palisade.*"),
        "{dump}"
    );
    assert!(dump.contains("containerd.runtimes.runc]"), "{dump}");
}
