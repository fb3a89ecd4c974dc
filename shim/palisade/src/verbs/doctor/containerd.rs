//! containerd and its configuration: what containerd itself makes of the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use sandbox_inspect::status::Status;
use toml::{Table, Value};

use super::executables::SHIM;
use super::{Finding, program};

/// CAP_SYS_RESOURCE
const SYS_RESOURCE: u64 = 1 << 24;

const RUNTIME: &str = "io.containerd.palisade.v1";

/// A version: major, minor and patch.
type Version = (u32, u32, u32);

/// A running containerd.
#[derive(Debug)]
struct Daemon {
    pid: i32,
    executable: PathBuf,
}

/// What is known of containerd.
#[derive(Debug)]
pub(super) struct Configuration {
    file: PathBuf,
    daemon: Option<Daemon>,
    version: Option<(Version, String)>,
    /// The whole configuration, with imports and defaults.
    table: Result<Table>,
}

impl Configuration {
    /// Asks containerd. The one that runs with this file is preferred to another.
    pub(super) fn read(file: &Path) -> Self {
        let daemon = daemon(file);
        let program = daemon.as_ref().map_or(Path::new("containerd"), |d| &d.executable);
        let said = program::run(Command::new(program).arg("--version"), "");
        let version = said.ok().and_then(|text| version_in(&text));
        let mut dump = Command::new(program);
        match file.exists() {
            true => dump.arg("--config").arg(file).args(["config", "dump"]),
            false => dump.args(["config", "default"]),
        };
        let table = program::run(&mut dump, "").and_then(|text| Ok(text.parse::<Table>()?));
        Self { file: file.to_owned(), daemon, version, table }
    }

    /// Returns the directory of images.
    pub(super) fn root(&self) -> PathBuf {
        let root = self.table.as_ref().ok().and_then(|table| table.get("root")?.as_str());
        PathBuf::from(root.unwrap_or("/var/lib/containerd"))
    }

    /// Returns `SystemdCgroup` of Palisade's runtime.
    pub(super) fn systemd_cgroup(&self) -> Option<bool> {
        let table = self.table.as_ref().ok()?;
        let (_, runtime) = runtimes(table).into_iter().next()?;
        runtime.get("options")?.get("SystemdCgroup")?.as_bool()
    }

    fn version(&self) -> Option<Version> {
        self.version.as_ref().map(|(version, _)| *version)
    }
}

/// Finds the containerd that runs with this file, or else any.
fn daemon(file: &Path) -> Option<Daemon> {
    let of = |pid: i32| {
        let args = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args: Vec<String> =
            args.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        let named = Path::new(args.first()?).file_name()? == "containerd";
        let with_file = args.iter().any(|arg| {
            Path::new(arg.trim_start_matches("--config=").trim_start_matches("-c=")) == file
        });
        let executable = PathBuf::from(format!("/proc/{pid}/exe"));
        named.then_some((with_file, Daemon { pid, executable }))
    };
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // `max_by_key` takes the last of several.
    pids.filter_map(of).max_by_key(|(with_file, _)| *with_file).map(|(_, daemon)| daemon)
}

/// Reads `containerd github.com/containerd/containerd/v2 v2.1.9 COMMIT`.
fn version_in(text: &str) -> Option<(Version, String)> {
    let word = text.split_whitespace().nth(2)?;
    let mut numbers = word.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some(((next()?, next()?, next().unwrap_or(0)), word.trim_start_matches('v').to_owned()))
}

/// Returns the table of CRI: `containerd` of its plugin.
fn cri(table: &Table) -> Option<&Table> {
    let plugins = table.get("plugins")?;
    ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
        .iter()
        .find_map(|name| plugins.get(name)?.get("containerd")?.as_table())
}

/// Returns the runtimes of CRI's that are Palisade.
fn runtimes(table: &Table) -> Vec<(&String, &Value)> {
    let all = cri(table).and_then(|cri| cri.get("runtimes")?.as_table());
    let is_ours = |runtime: &Value| {
        let text = |key: &str| runtime.get(key).and_then(Value::as_str).unwrap_or("");
        text("runtime_type") == RUNTIME || text("runtime_path").ends_with(SHIM)
    };
    all.into_iter().flatten().filter(|(_, runtime)| is_ours(runtime)).collect()
}

/// Looks at containerd.
pub(super) fn look(configuration: &Configuration) -> Vec<Finding> {
    let mut findings = vec![runs(configuration)];
    let about = format!("containerd's {}", configuration.file.display());
    let table = match &configuration.table {
        Ok(table) => table,
        Err(error) => {
            findings.push(Finding::fault(
                about,
                format!("{error:#}"),
                "containerd does not start with a configuration that it cannot read, and what \
                 cannot be asked is not known",
                &format!("containerd --config {} config dump", configuration.file.display()),
            ));
            return findings;
        }
    };
    let disabled = table.get("disabled_plugins").and_then(Value::as_array);
    let is_cri = |name: &Value| matches!(name.as_str(), Some("cri" | "io.containerd.grpc.v1.cri"));
    if disabled.is_some_and(|names| names.iter().any(is_cri)) {
        findings.push(Finding::warning(
            about.clone(),
            "disabled_plugins names cri",
            "Kubernetes cannot use this containerd; ctr, nerdctl and Docker can",
            &format!("take cri out of disabled_plugins in {}", configuration.file.display()),
        ));
    }
    let ours = runtimes(table);
    if ours.is_empty() {
        findings.push(Finding::warning(
            about,
            "no runtime of CRI's is Palisade",
            "Kubernetes cannot choose it; ctr, nerdctl and Docker can",
            "palisade-containerd add && systemctl restart containerd",
        ));
    }
    if !ours.is_empty() {
        findings.extend(oom_score(configuration, table));
    }
    for (name, runtime) in ours {
        findings.extend(entry(configuration, table, name, runtime));
    }
    findings
}

fn runs(configuration: &Configuration) -> Finding {
    let version = match &configuration.version {
        Some((_, text)) => text.clone(),
        None => {
            return Finding::fault(
                "containerd",
                "there is none, or it does not say its version",
                "nothing else calls Palisade",
                "apt install containerd",
            );
        }
    };
    let mend = "install containerd 1.7 or 2.1";
    match (&configuration.daemon, configuration.version()) {
        (_, Some(old)) if old < (1, 6, 0) => {
            Finding::fault("containerd", version, "it speaks to shims in another way", mend)
        }
        (None, _) => Finding::warning(
            "containerd",
            format!("{version}, does not run"),
            "pods that run go on, but none can be made",
            "systemctl start containerd",
        ),
        (Some(daemon), _) => Finding::ok("containerd", format!("{version}, PID {}", daemon.pid)),
    }
}

/// Looks at one runtime of CRI's.
fn entry(
    configuration: &Configuration,
    table: &Table,
    name: &str,
    runtime: &Value,
) -> Vec<Finding> {
    let about = |what: &str| format!("runtime {name}: {what}");
    let text = |key: &str| runtime.get(key).and_then(Value::as_str).unwrap_or("");
    let file = configuration.file.display();
    let version = configuration.version().unwrap_or_default();
    let mut findings = Vec::new();

    let kind = text("runtime_type");
    let path = text("runtime_path");
    let found = [kind, path].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
    findings.push(match missing_shim(configuration, path) {
        None => Finding::ok(about("runtime_type"), found.join(", ")),
        Some(missing) => Finding::fault(
            about("runtime_type"),
            missing,
            "containerd cannot start the shim",
            "install Palisade into a directory of containerd's PATH, or set runtime_path",
        ),
    });

    let annotations = runtime.get("pod_annotations").and_then(Value::as_array);
    let passes =
        |pattern: &Value| matches!(pattern.as_str(), Some("dev.palisade.*" | "dev.*" | "*"));
    findings.push(match annotations.is_some_and(|patterns| patterns.iter().any(passes)) {
        true => Finding::ok(about("pod_annotations"), "dev.palisade.*"),
        false => Finding::warning(
            about("pod_annotations"),
            "dev.palisade.* is not passed",
            "annotations of pods that choose options are without effect",
            &format!("add pod_annotations = [\"dev.palisade.*\"] to the runtime in {file}"),
        ),
    });

    findings.push(match text("sandboxer") {
        "shim" if version < (2, 0, 0) => Finding::warning(
            about("sandboxer"),
            "shim",
            "containerd 1.x does not know it",
            &format!("take sandboxer out of the runtime in {file}"),
        ),
        "shim" if version < (2, 2, 0) => Finding::warning(
            about("sandboxer"),
            "shim",
            "containerd 2.1 crashes when it then starts a pod in the host's network",
            "install containerd 2.2 or later, or take sandboxer out",
        ),
        "" => Finding::ok(about("sandboxer"), "podsandbox"),
        other => Finding::ok(about("sandboxer"), other),
    });

    let snapshotter = Some(text("snapshotter")).filter(|name| !name.is_empty());
    let snapshotter = snapshotter.or_else(|| default_snapshotter(table)).unwrap_or("overlayfs");
    findings.push(match snapshotter {
        "fuse-overlayfs" | "stargz" | "soci" => Finding::warning(
            about("snapshotter"),
            snapshotter,
            "it mounts by FUSE, which cannot map owners: its pods are refused a user namespace",
            "use overlayfs, or set userns = \"never\" in /etc/palisade/config.toml",
        ),
        other => Finding::ok(about("snapshotter"), other),
    });

    findings.push(match asks_for_features(version, kind) {
        true => Finding::ok(about("-info"), "containerd asks for the features"),
        false => Finding::warning(
            about("-info"),
            "containerd asks only runc's shim for its features",
            "the kubelet rejects pods with hostUsers: false; without the field they have a user \
             namespace all the same",
            "install containerd 2.2.7 or 2.3.4, or leave hostUsers out (docs/configuring-containerd.md)",
        ),
    });
    findings
}

/// Whether containerd asks this runtime for its features: other types than runc's only from its
/// pull request 13504 on.
fn asks_for_features(version: Version, runtime_type: &str) -> bool {
    // Before 2.0 it asks none, and the kubelet needs none of it.
    let only_runc =
        ((2, 0, 0)..(2, 2, 7)).contains(&version) || ((2, 3, 0)..(2, 3, 4)).contains(&version);
    !only_runc || runtime_type == "io.containerd.runc.v2"
}

fn default_snapshotter(table: &Table) -> Option<&str> {
    let images = table.get("plugins").and_then(|p| p.get("io.containerd.cri.v1.images"));
    let of_images = images.and_then(|images| images.get("snapshotter")?.as_str());
    of_images.or_else(|| cri(table)?.get("snapshotter")?.as_str())
}

/// Says that containerd would not find the shim.
fn missing_shim(configuration: &Configuration, path: &str) -> Option<String> {
    if !path.is_empty() {
        return (!Path::new(path).is_file()).then(|| format!("there is no {path}"));
    }
    let environment = |pid: i32| fs::read(format!("/proc/{pid}/environ")).ok();
    let of_daemon = configuration.daemon.as_ref().and_then(|daemon| environment(daemon.pid));
    let variables = of_daemon.or_else(|| environment(std::process::id().cast_signed()))?;
    let variables = String::from_utf8_lossy(&variables).into_owned();
    let search = variables.split('\0').find_map(|line| line.strip_prefix("PATH="))?;
    let found = std::env::split_paths(search).any(|folder| folder.join(SHIM).is_file());
    (!found).then(|| format!("{SHIM} is not in containerd's PATH, {search}"))
}

/// Without CAP_SYS_RESOURCE nobody can give the pause container the kubelet's score.
fn oom_score(configuration: &Configuration, table: &Table) -> Option<Finding> {
    let myself = std::process::id().cast_signed();
    let status = Status::of(configuration.daemon.as_ref().map_or(myself, |daemon| daemon.pid))?;
    let has = u64::from_str_radix(status.line("CapEff")?, 16).ok()? & SYS_RESOURCE != 0;
    let plugins = table.get("plugins")?;
    let restricted = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
        .iter()
        .find_map(|name| plugins.get(name)?.get("restrict_oom_score_adj")?.as_bool())?;
    Some(match has || restricted {
        true => Finding::ok("restrict_oom_score_adj", restricted.to_string()),
        false => Finding::fault(
            "restrict_oom_score_adj",
            "false, and containerd lacks CAP_SYS_RESOURCE",
            "no pod can be made: its lower oom_score_adj is refused by the kernel",
            &format!("set restrict_oom_score_adj = true in {}", configuration.file.display()),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn versions_are_read_as_containerd_and_distributions_write_them() {
        let of = |text| version_in(text).unwrap().0;
        assert_eq!(
            of("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1"),
            (1, 6, 20)
        );
        assert_eq!(of("containerd github.com/containerd/containerd/v2 v2.1.9 abc"), (2, 1, 9));
        assert!(version_in("containerd").is_none());
    }

    #[test]
    fn features_are_asked_for_from_two_versions_on() {
        let asks = |version| asks_for_features(version, RUNTIME);
        assert_eq!(
            [(1, 7, 24), (2, 1, 9), (2, 2, 6), (2, 2, 7), (2, 3, 0), (2, 3, 3), (2, 3, 4)]
                .map(asks),
            [true, false, false, true, false, false, true]
        );
        assert!(asks_for_features((2, 1, 9), "io.containerd.runc.v2"));
    }

    fn verdicts(version: Version, text: &str) -> Vec<(String, Verdict)> {
        let configuration = Configuration {
            file: "/c.toml".into(),
            daemon: None,
            version: Some((version, String::new())),
            table: Ok(text.parse().unwrap()),
        };
        let findings = look(&configuration).into_iter();
        findings.map(|finding| (finding.about, finding.verdict)).collect()
    }

    #[test]
    fn both_layouts_of_the_configuration_are_read() {
        for plugin in ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"] {
            let good = format!(
                "[plugins.\"{plugin}\".containerd.runtimes.p]\nruntime_type = \"{RUNTIME}\"\n\
                 runtime_path = \"/bin/sh\"\npod_annotations = [\"dev.palisade.*\"]\n"
            );
            let found = verdicts((2, 3, 4), &good);
            assert!(found[1..].iter().all(|(_, verdict)| *verdict == Verdict::Ok), "{found:?}");
            let bad = good.replace("dev.palisade", "other") + "snapshotter = \"stargz\"\n";
            let found = verdicts((2, 3, 3), &bad.replace("/bin/sh", "/no/such"));
            for (about, verdict) in [
                ("runtime p: runtime_type", Verdict::Fault),
                ("runtime p: pod_annotations", Verdict::Warning),
                ("runtime p: snapshotter", Verdict::Warning),
                ("runtime p: -info", Verdict::Warning),
            ] {
                assert!(found.contains(&(about.to_owned(), verdict)), "{about}: {found:?}");
            }
        }
    }

    #[test]
    fn a_containerd_without_cri_or_palisade_is_told() {
        let found = verdicts((1, 7, 0), "disabled_plugins = [\"cri\"]\n");
        assert_eq!(found.iter().filter(|(_, v)| *v == Verdict::Warning).count(), 3, "{found:?}");
    }
}
