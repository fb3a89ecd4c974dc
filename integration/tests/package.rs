//! The files of the Debian package besides the executables.
//! `palisade-containerd` is run with each containerd and the configurations
//! that nodes have: it adds the runtime, changes nothing else, and removes it
//! without a trace. It is run with Debian's tools, which the package uses, and
//! with busybox's, which a cluster's installer uses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::containerd::{Version, repository};

/// The origin of `sed`, `awk`, `diff` and the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tools {
    Debian,
    Busybox,
}

/// Makes one test of each story, a `fn(Node)`, for every containerd and all
/// tools.
macro_rules! on_each_node {
    ($($story:ident),+ $(,)?) => {$(
        integration::tests_of! { $story:
            containerd_1_6 => crate::Node(crate::Version::V1_6, crate::Tools::Debian),
            containerd_1_7 => crate::Node(crate::Version::V1_7, crate::Tools::Debian),
            containerd_2_1 => crate::Node(crate::Version::V2_1, crate::Tools::Debian),
            containerd_1_6_busybox => crate::Node(crate::Version::V1_6, crate::Tools::Busybox),
            containerd_1_7_busybox => crate::Node(crate::Version::V1_7, crate::Tools::Busybox),
            containerd_2_1_busybox => crate::Node(crate::Version::V2_1, crate::Tools::Busybox),
        }
    )+};
}

/// The containerd and the tools of a node.
#[derive(Clone, Copy, Debug)]
struct Node(Version, Tools);

on_each_node!(
    a_node_without_a_configuration_gets_one,
    runtimes_that_containerd_has_by_default_stay,
    settings_of_the_file_stay,
    a_drop_in_is_used_where_it_loses_nothing,
    a_configuration_that_is_too_old_is_left_alone,
    a_runtime_that_the_administrator_wrote_is_left_alone,
);

// Only 2.x reports the files that it would import.
integration::tests_of! { a_drop_in_that_was_not_proven_does_not_stay:
    containerd_2_1 => crate::Node(crate::Version::V2_1, crate::Tools::Debian),
    containerd_2_1_busybox => crate::Node(crate::Version::V2_1, crate::Tools::Busybox),
}

// 1.6 ignores a drop-in that it cannot read.
integration::tests_of! { an_unreadable_configuration_can_be_removed:
    containerd_1_7 => crate::Node(crate::Version::V1_7, crate::Tools::Debian),
    containerd_2_1 => crate::Node(crate::Version::V2_1, crate::Tools::Debian),
    containerd_1_7_busybox => crate::Node(crate::Version::V1_7, crate::Tools::Busybox),
    containerd_2_1_busybox => crate::Node(crate::Version::V2_1, crate::Tools::Busybox),
}

const PALISADE: &str = "containerd.runtimes.palisade]";
const RUNC: &str = "containerd.runtimes.runc]";

/// A directory with a configuration, a containerd that reads it, and tools.
struct Configured {
    directory: tempfile::TempDir,
    path: String,
    _busybox: tempfile::TempDir,
}

impl Configured {
    fn new(Node(version, tools): Node) -> Configured {
        let busybox = tempfile::tempdir().expect("make a folder");
        let containerd = executables(version);
        let containerd = containerd.display();
        let path = match tools {
            Tools::Debian => format!("{containerd}:/usr/sbin:/usr/bin:/sbin:/bin"),
            Tools::Busybox => {
                install_busybox(busybox.path());
                format!("{}:{containerd}", busybox.path().display())
            }
        };
        let directory = tempfile::tempdir().expect("make a folder");
        Configured { directory, path, _busybox: busybox }
    }

    fn with(node: Node, text: &str) -> Configured {
        let configured = Configured::new(node);
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

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path);
        command.env("PALISADE_CONTAINERD_CONFIG", self.file());
        // Other tests run sandboxes meanwhile.
        command.env("PALISADE_REMOVE", "anyway");
        command
    }

    fn palisade_containerd(&self, verb: &str) -> Output {
        let script = repository().join("shim/package/palisade-containerd");
        self.command("sh").arg(script).arg(verb).output().expect("run palisade-containerd")
    }

    /// Puts a script in front of containerd, which then becomes containerd.
    fn before_containerd(&mut self, Node(version, _): Node, lines: &str) {
        let front = self.directory.path().join("bin");
        fs::create_dir_all(&front).expect("make a folder");
        let lines = lines.replace("DROP_IN", self.drop_in().to_str().expect("UTF-8"));
        let containerd = executables(version).join("containerd");
        let script = format!("#!/bin/sh\n{lines}\nexec {} \"$@\"\n", containerd.display());
        fs::write(front.join("containerd"), script).expect("write a script");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(front.join("containerd"), mode).expect("chmod");
        self.path = format!("{}:{}", front.display(), self.path);
    }

    /// Returns what it prints. It must succeed.
    #[track_caller]
    fn printed(&self, verb: &str) -> String {
        let output = self.palisade_containerd(verb);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "palisade-containerd {verb}: {error}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Returns containerd's reading of the configuration.
    fn dump(&self) -> String {
        let mut command = self.command("containerd");
        let output = command.arg("--config").arg(self.file()).args(["config", "dump"]).output();
        let output = output.expect("run containerd; ci/containerd fetches it");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Adds the runtime twice and removes it twice.
    #[track_caller]
    fn adds_and_removes(&self) -> String {
        let before = fs::read(self.file()).ok();
        assert_ne!(self.printed("add"), "", "it prints its changes");
        assert_eq!(self.printed("add"), "", "nothing was left to do");
        let dump = self.dump();
        assert!(dump.contains(PALISADE), "{dump}");
        if before.is_some() {
            let mode = self.file().metadata().expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o640, "the file is as secret as it was");
        }
        assert_ne!(self.printed("remove"), "", "it prints its changes");
        assert_eq!(self.printed("remove"), "", "nothing was left to do");
        assert_eq!(fs::read(self.file()).ok(), before, "the configuration is what it was");
        assert!(!self.drop_in().exists());
        dump
    }
}

fn executables(version: Version) -> PathBuf {
    repository().join(format!(".cache/containerd-{}/bin", version.number()))
}

fn install_busybox(folder: &Path) {
    let installed = Command::new("busybox").args(["--install", "-s"]).arg(folder).status();
    assert!(installed.expect("run busybox; ci/setup installs it").success());
}

fn a_node_without_a_configuration_gets_one(node: Node) {
    let dump = Configured::new(node).adds_and_removes();
    assert!(dump.contains(RUNC), "{dump}");
}

fn runtimes_that_containerd_has_by_default_stay(node: Node) {
    let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/usr/lib/cni\"\n";
    for text in ["version = 2\n", "version = 2", debian] {
        let dump = Configured::with(node, text).adds_and_removes();
        assert!(dump.contains(RUNC), "{dump}");
    }
}

fn settings_of_the_file_stay(node: Node) {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let text = format!(
        "version = 2\n[{cri}]\nsandbox_image = \"own/pause\"\n[{cri}.containerd.runtimes.own]\n\
         runtime_type = \"io.containerd.runc.v2\"\n[{cri}.containerd.runtimes.own.options]\nSystemdCgroup = true"
    );
    let dump = Configured::with(node, &text).adds_and_removes();
    for wanted in ["own/pause", ".runtimes.own]", "SystemdCgroup = true"] {
        assert!(dump.contains(wanted), "no {wanted} in {dump}");
    }
}

fn a_drop_in_is_used_where_it_loses_nothing(node: Node) {
    for folder in ["FOLDER/conf.d", "conf.d"] {
        let text = format!(
            "version = 2\nimports = [\"{folder}/*.toml\"]\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"own/pause\"\n"
        );
        let configured = Configured::with(node, &text);
        configured.printed("add");
        assert_eq!(configured.drop_in().exists(), node.0 == Version::V2_1, "{folder}");
        configured.printed("remove");
        assert!(configured.adds_and_removes().contains("own/pause"), "{folder}");
    }
}

fn a_drop_in_that_was_not_proven_does_not_stay(node: Node) {
    let text = "version = 2\nimports = [\"FOLDER/conf.d/*.toml\"]\n";
    for (then, status) in [("exit 1", 1), ("kill -TERM $PPID", 143)] {
        let mut configured = Configured::with(node, text);
        let before = fs::read(configured.file()).expect("the configuration");
        configured.before_containerd(node, &format!("if [ -e DROP_IN ]; then {then}; fi"));
        let output = configured.palisade_containerd("add");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{then}: {stderr}");
        assert!(!configured.drop_in().exists(), "{then}: {stderr}");
        assert_eq!(fs::read(configured.file()).ok(), Some(before), "{then}");
    }
}

/// As after an update to a containerd that reads less.
fn an_unreadable_configuration_can_be_removed(node: Node) {
    for imports in ["FOLDER/conf.d/*.toml", "conf.d/*.toml"] {
        let text = format!("version = 2\nimports = [\"{imports}\"]\n");
        let configured = Configured::with(node, &text);
        fs::create_dir(configured.directory.path().join("conf.d")).expect("make the folder");
        fs::write(configured.drop_in(), "# Palisade: begin\nversion =\n# Palisade: end\n")
            .expect("write a drop-in");
        assert!(!configured.dump().contains("version"), "containerd reads this");
        assert_eq!(
            configured.printed("remove"),
            format!("palisade-containerd: removed {}\n", configured.drop_in().display())
        );
        assert!(configured.dump().contains(RUNC));
    }
}

fn a_configuration_that_is_too_old_is_left_alone(node: Node) {
    let configured = Configured::with(node, "root = \"/var/lib/containerd\"\n");
    let output = configured.palisade_containerd("add");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("version = 2") && error.contains("config migrate"), "{error}");
    assert_eq!(configured.directory.path().read_dir().expect("a folder").count(), 1);
}

fn a_runtime_that_the_administrator_wrote_is_left_alone(node: Node) {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.palisade]\n\
                runtime_type = \"io.containerd.palisade.v1\"\n";
    let configured = Configured::with(node, text);
    assert_eq!(
        (configured.printed("add"), configured.printed("remove")),
        (String::new(), String::new())
    );
    assert!(configured.dump().contains(PALISADE));
}

/// The example for containerd 2.x, imported by the main file.
#[test]
fn containerd_takes_the_example_of_a_drop_in() {
    let text = "version = 3\nimports = [\"FOLDER/conf.d/*.toml\"]\n";
    let configured = Configured::with(Node(Version::V2_1, Tools::Debian), text);
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

/// Makes a directory that is a node's root, with a runtime in containerd's
/// configuration.
fn node_with_the_runtime() -> tempfile::TempDir {
    let node = tempfile::tempdir().expect("make a folder");
    fs::create_dir_all(node.path().join("etc/containerd")).expect("make a folder");
    fs::write(
        node.path().join("etc/containerd/config.toml"),
        "# Palisade: begin\n# Palisade: end\n",
    )
    .expect("write the configuration");
    node
}

fn run_a_sandbox(node: &Path) {
    let state = node.join("run/palisade/k8s.io/sandbox");
    fs::create_dir_all(&state).expect("make a folder");
    fs::write(state.join("state.json"), "{}").expect("write a state");
}

#[test]
fn the_runtime_stays_in_the_configuration_as_long_as_sandboxes_run() {
    let node = node_with_the_runtime();
    run_a_sandbox(node.path());
    for shell in [&["dash"][..], &["busybox", "sh"]] {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(repository().join("shim/package/palisade-containerd"));
        let output = command.arg("remove").env("PALISADE_ROOT", node.path()).output();
        let output = output.expect("run palisade-containerd");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("sandboxes run on this node (1,"), "{stderr}");
        let text = fs::read_to_string(node.path().join("etc/containerd/config.toml"));
        assert!(text.expect("the configuration").contains("# Palisade: begin"));
    }
}

#[test]
fn the_package_goes_when_nothing_needs_it_any_more() {
    let prerm = |node: &Path, arguments: &[&str], environment: &[(&str, &str)]| {
        let script = repository().join("shim/package/debian/prerm");
        let outputs = [&["dash"][..], &["busybox", "sh"]].map(|shell| {
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).arg(&script).args(arguments).env("DPKG_ROOT", node);
            let output = command.envs(environment.iter().copied()).output().expect("run prerm");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        });
        assert_eq!(outputs[0], outputs[1]);
        outputs[0].clone()
    };
    let node = node_with_the_runtime();
    let (goes, reason) = prerm(node.path(), &["remove"], &[]);
    assert!(!goes && reason.contains("palisade-containerd remove"), "{reason}");
    fs::create_dir(node.path().join("etc/containerd/conf.d")).expect("make a folder");
    let [file, drop_in] = ["config.toml", "conf.d/palisade.toml"]
        .map(|name| node.path().join("etc/containerd").join(name));
    fs::rename(&file, &drop_in).expect("rename the configuration");
    assert!(!prerm(node.path(), &["remove"], &[]).0);
    fs::remove_file(drop_in).expect("remove the configuration");
    assert_eq!(prerm(node.path(), &["remove"], &[]), (true, String::new()));
    run_a_sandbox(node.path());
    let (goes, reason) = prerm(node.path(), &["remove"], &[]);
    assert!(!goes && reason.contains("sandboxes run on this node (1,"), "{reason}");
    assert!(prerm(node.path(), &["remove"], &[("PALISADE_REMOVE", "anyway")]).0);
    assert!(prerm(node.path(), &["upgrade", "0.2.0"], &[]).0);
}

/// Both executables are static, so they contain the libraries.
#[test]
fn the_package_names_each_license_that_deny_toml_lets_in() {
    let copyright = fs::read_to_string(repository().join("shim/package/debian/copyright"));
    let copyright = copyright.expect("read the copyright file");
    let copyright = copyright.split_whitespace().collect::<Vec<_>>().join(" ");
    let deny = include_str!("../../deny.toml");
    let (_, allowed) = deny.split_once("allow = [").expect("a list of licenses");
    let allowed = allowed.split(']').next().expect("its end");
    for license in allowed.split('"').skip(1).step_by(2).chain(["LGPL-2.1-or-later"]) {
        assert!(copyright.contains(license), "{license}");
    }
}

/// Returns the steps of apt to install the package on a machine with these
/// packages, if Debian's containerd is available.
fn apt_would(installed: &str) -> Vec<String> {
    let manifest = include_str!("../../shim/Cargo.toml");
    let mut lines = manifest.lines();
    let recommends = lines.find_map(|line| line.strip_prefix("recommends = "));
    let recommends = recommends.expect("what the package recommends").trim_matches('"');
    let folder = tempfile::tempdir().expect("make a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["repository", "lists/partial", "cache/archives/partial", "package/DEBIAN"] {
        fs::create_dir_all(at(name)).expect("make a folder");
    }
    let write = |name: &str, text: String| fs::write(at(name), text).expect("write a file");
    let common = "Architecture: amd64\nMaintainer: nobody\nDescription: nothing\n";
    write("status", installed.replace("COMMON\n", common));
    let digest = "0".repeat(64);
    let candidate = "Package: containerd\nVersion: 1.7.24\nFilename: ./containerd.deb\nSize: 1";
    write("repository/Packages", format!("{candidate}\nSHA256: {digest}\n{common}"));
    write("sources", format!("deb [trusted=yes] file:{} ./\n", at("repository")));
    let package = format!("Package: palisade\nVersion: 1\nRecommends: {recommends}\n{common}");
    write("package/DEBIAN/control", package);
    write(
        "apt.conf",
        format!(
            "Dir \"{}\";\nDir::State \"{0}\";\nDir::State::status \"{}\";\nDir::Cache \"cache\";\n\
             Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             APT::Install-Recommends \"true\";\nAPT::Sandbox::User \"root\";\nAPT::Architecture \"amd64\";\n",
            folder.path().display(),
            at("status"),
            at("sources"),
        ),
    );
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&folder).env("APT_CONFIG", at("apt.conf"));
        let output = command.output().unwrap_or_else(|e| panic!("run {program}: {e}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    run("dpkg-deb", &["--build", "package", "palisade.deb"]);
    run("apt-get", &["update"]);
    let plan = run("apt-get", &["--simulate", "install", "./palisade.deb"]);
    let steps = plan.lines().filter(|line| line.starts_with("Inst ") || line.starts_with("Remv "));
    steps.map(|step| step.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

/// containerd.io declares that it is a containerd, but not its version, and
/// that no other can be installed.
#[test]
fn apt_keeps_the_containerd_that_is_there() {
    assert_eq!(apt_would(""), ["Inst containerd", "Inst palisade"]);
    for package in ["containerd", "containerd.io\nProvides: containerd\nConflicts: containerd"] {
        let installed =
            format!("Package: {package}\nVersion: 1.7.20\nStatus: install ok installed\nCOMMON\n");
        assert_eq!(apt_would(&installed), ["Inst palisade"], "{package}");
    }
}
