//! Attacks, and the proof that each could succeed.
//!
//! An attack is a line of shell. A test runs it where a protection must stop
//! it. [`Containerd::attacks_work`] runs the same line where that protection is
//! absent, and there it must succeed: a line that fails everywhere proves
//! nothing. The `Control` of each line names that place. A control does the
//! host no harm: each line has a mount namespace and a `/tmp` of its own, and
//! writes into files of the host only what they hold already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::containerd::Containerd;
use crate::{image, spec};

/// The place where an attack succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    /// The host: root in the files of the test image, in the host's namespaces.
    Host,
    /// The test's container, but with every capability, all devices and no user
    /// namespace.
    Privileged,
}

/// Lines of shell, each with its control.
#[derive(Clone, Debug)]
pub struct Attacks(Vec<(String, Control)>);

impl Attacks {
    /// Makes attacks of lines that succeed on the host.
    pub fn on_host<L: Into<String>>(lines: impl IntoIterator<Item = L>) -> Attacks {
        Attacks::with(Control::Host, lines)
    }

    /// Makes attacks of lines that succeed in a container without a user
    /// namespace and with every capability, as runc makes privileged ones.
    pub fn privileged<L: Into<String>>(lines: impl IntoIterator<Item = L>) -> Attacks {
        Attacks::with(Control::Privileged, lines)
    }

    fn with<L: Into<String>>(control: Control, lines: impl IntoIterator<Item = L>) -> Attacks {
        Attacks(lines.into_iter().map(|line| (line.into(), control)).collect())
    }

    /// Adds more attacks.
    pub fn and(mut self, more: Attacks) -> Attacks {
        self.0.extend(more.0);
        self
    }

    /// Returns a script that prints each line that succeeds, and then `done`.
    pub fn script(&self) -> String {
        let tried = self.0.iter().map(|(line, _)| {
            format!("if ( {line} ) >/dev/null 2>&1; then printf '%s\\n' {}; fi\n", quote(line))
        });
        tried.chain(["echo done\n".to_owned()]).collect()
    }

    /// Returns a script that prints each line that fails, with its errors.
    fn control_script(&self, control: Control) -> String {
        let lines = self.0.iter().filter(|(_, wanted)| *wanted == control);
        let tried = lines.map(|(line, _)| {
            let apart = quote(&format!("mount -t tmpfs none /tmp && cd / && {{ {line}\n}}"));
            format!(
                "errors=$(unshare -m sh -c {apart} 2>&1 >/dev/null) || \
                 printf '%s: %s\\n' {} \"$errors\"\n",
                quote(line)
            )
        });
        tried.chain(["echo done\n".to_owned()]).collect()
    }

    fn have(&self, control: Control) -> bool {
        self.0.iter().any(|(_, wanted)| *wanted == control)
    }
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Makes a new root of the files in `$1`, with all that the host shows of its
/// kernel, and runs the shell line `$2` in there. `$3` is the source of its
/// `/proc`.
const ENTER: &str = "set -e\n\
    mount --bind \"$1\" \"$1\"; cd \"$1\"\n\
    for tree in sys dev; do mount --rbind /$tree $tree; done\n\
    if [ \"$3\" = new ]; then mount -t proc proc proc; else mount --rbind /proc proc; fi\n\
    pivot_root . old\n\
    umount -l old\n\
    exec /bin/sh -c \"$2\"\n";

impl Containerd {
    /// Checks that a container stops all attacks, and runs their controls.
    pub fn holds(&self, id: &str, attacks: &Attacks, change: impl Fn(&mut Value)) {
        // Each rule holds by itself: the baseline would keep most of these attacks from starting.
        let container = self.shell(id, &attacks.script()).spec(&change).without_baseline();
        assert_eq!(container.start().finish(), (0, "done\n".to_owned()), "{id}");
        self.attacks_work(id, attacks, change);
    }

    /// Runs the controls of attacks: each must succeed. `change` is the test's
    /// change of its container.
    pub fn attacks_work(&self, id: &str, attacks: &Attacks, change: impl FnOnce(&mut Value)) {
        if attacks.have(Control::Host) {
            let output = self.on_host(&attacks.control_script(Control::Host));
            assert_eq!(output, "done\n", "{id}: attacks that fail on the host");
        }
        if attacks.have(Control::Privileged) {
            let script = attacks.control_script(Control::Privileged);
            let container = self.shell(&format!("{id}-control"), &script).privileged(change);
            let output = container.start().finish();
            assert_eq!(output, (0, "done\n".to_owned()), "{id}: attacks that fail unprotected");
        }
    }

    /// Runs the controls of attacks that succeed on the host, as root that sees
    /// the same processes as the process of this PID.
    pub fn attacks_work_among(&self, pid: i32, attacks: &Attacks) {
        let output = self.on_host_among(pid, &attacks.control_script(Control::Host));
        assert_eq!(output, "done\n", "attacks that fail for the host's root");
    }

    /// Runs shell on the host, in the files of the test image and a mount
    /// namespace of its own. Returns its output.
    pub fn on_host(&self, script: &str) -> String {
        self.run_on_host(Command::new("unshare"), script, "the host's")
    }

    /// Does the same in the PID namespace of a process, with a `/proc` of that
    /// namespace.
    pub fn on_host_among(&self, pid: i32, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--pid", "--", "unshare"]);
        self.run_on_host(command, script, "new")
    }

    fn run_on_host(&self, mut unshare: Command, script: &str, proc: &str) -> String {
        let root = self.unprotected_root();
        let root = root.to_str().expect("an ASCII path");
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        unshare.args([root, script, proc]);
        unshare.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let ran = unshare.output().expect("run unshare or nsenter (util-linux)");
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "a control on the host: {errors}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// Returns a directory with the test image's files and `/attacker`.
    fn unprotected_root(&self) -> PathBuf {
        let root = self.directory().join("unprotected");
        if !root.exists() {
            for folder in ["old", "volume"] {
                fs::create_dir_all(root.join(folder)).expect("make a folder");
            }
            image::unpack_busybox(&root);
            fs::copy(attacker(), root.join("attacker")).expect("copy the attacker");
        }
        root
    }
}

/// Returns the path of the built `integration/src/bin/attacker.rs`.
pub fn attacker() -> PathBuf {
    image::sibling("attacker")
}

/// Adds `/attacker` to a container: `integration/src/bin/attacker.rs`.
pub fn add_attacker(spec: &mut Value) {
    let path = attacker();
    spec::add_bind(spec, path.to_str().expect("an ASCII path"), "/attacker", &["bind", "ro"]);
}

/// Gives a spec every capability of the host and all devices.
pub fn unprotect(spec: &mut Value) {
    spec::add_capabilities_of_host(&mut spec["process"]);
    spec["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
}

/// Returns a line that writes into a file the text that it holds already.
pub fn rewrite(file: &str) -> String {
    format!("held=$(cat {file}) && echo \"$held\" > {file}")
}

/// Returns a line that succeeds for a process that sees another process of the
/// host whose root has this file. `attempt` has `$p` for a directory in
/// `/proc`.
pub fn by_any_process(attempt: &str) -> String {
    format!("for p in /proc/[0-9]*; do {attempt} && exit 0; done; exit 1")
}

/// Whether the host's kernel has a file that tests attack.
pub fn host_has(file: &str) -> bool {
    Path::new(file).exists()
}
