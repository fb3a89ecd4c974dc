//! Palisade's own files: the executables and the options.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use super::{Finding, program};

/// The shim's name.
pub(super) const SHIM: &str = "containerd-shim-palisade-v1";

/// The executables, and how each is asked for its version.
const EXECUTABLES: [(&str, &str); 3] =
    [(SHIM, "-v"), ("palisade-sandbox", "--version"), ("palisade", "--version")];

/// What the shim says of the options.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Options {
    pub(super) userns: String,
    pub(super) id_range_start: u32,
    pub(super) id_range_size: u32,
    pub(super) ids_per_sandbox: u32,
    pub(super) cgroup_driver: String,
}

/// Returns the directory of this command's executable, where the others are.
fn directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this executable")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Reads the options, as the shim does. Without a file, they are the defaults.
pub(super) fn options(file: &Path) -> Result<Options> {
    let text = match fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.with_context(|| format!("read {}", file.display()))?,
    };
    let shim = directory()?.join(SHIM);
    let json = program::run(Command::new(&shim).arg("options"), &text)?;
    serde_json::from_str(&json)
        .map_err(|_| anyhow!("{} is of another version than this command", shim.display()))
}

/// Looks at the files.
pub(super) fn look(file: &Path, options: Result<&Options, &anyhow::Error>) -> Vec<Finding> {
    let mut findings = match directory() {
        Ok(directory) => programs(&directory),
        Err(error) => {
            vec![Finding::warning(
                "executables",
                format!("{error:#}"),
                "it is not known whether they fit together",
                "apt install --reinstall palisade",
            )]
        }
    };
    let about = format!("options {}", file.display());
    findings.push(match options {
        Err(error) => Finding::fault(
            about,
            error.to_string().trim_start_matches("palisade: "),
            "no pod can be made with options that cannot be read",
            &format!("man 5 palisade-config.toml, and edit {}", file.display()),
        ),
        Ok(_) if !file.exists() => Finding::ok(about, "none: the defaults"),
        Ok(options) if options.userns == "never" => Finding::warning(
            about,
            "userns = \"never\"",
            "root in a container is root on the host",
            "set userns = \"auto\"",
        ),
        Ok(_) => Finding::ok(about, "can be read"),
    });
    findings
}

fn programs(directory: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut versions = Vec::new();
    for (name, flag) in EXECUTABLES {
        let path = directory.join(name);
        if let Some(finding) = permissions(&path) {
            findings.push(finding);
        }
        let said = program::run(Command::new(&path).arg(flag), "");
        let version = said.ok().and_then(|text| Some(text.split_whitespace().nth(1)?.to_owned()));
        versions.push((name, version));
    }
    let mend = "apt install --reinstall palisade, or install all three of one archive";
    let own = env!("CARGO_PKG_VERSION");
    let others: Vec<String> = versions
        .iter()
        .filter(|(_, version)| version.as_deref() != Some(own))
        .map(|(name, version)| format!("{name} {}", version.as_deref().unwrap_or("does not run")))
        .collect();
    findings.push(match others.is_empty() {
        true => Finding::ok("executables", format!("{} in {}", own, directory.display())),
        false => Finding::fault(
            "executables",
            format!("this is {own}, but {}", others.join(", ")),
            "shim, sandbox process and gofer speak to each other without regard to versions",
            mend,
        ),
    });
    findings
}

/// Checks who may change a file that root executes.
fn permissions(path: &Path) -> Option<Finding> {
    let about = format!("executable {}", path.display());
    let why = "the shim runs it as root: whoever can write it is root";
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            return Some(Finding::fault(
                about,
                error.to_string(),
                "the shim looks for palisade-sandbox beside itself",
                "install the three executables into one directory",
            ));
        }
    };
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    let quoted = path.display();
    if owner != 0 {
        let found = format!("it belongs to user {owner}");
        return Some(Finding::fault(about, found, why, &format!("chown root:root {quoted}")));
    }
    if mode & 0o022 != 0 || mode & 0o6000 != 0 || mode & 0o111 != 0o111 {
        let found = format!("its mode is {mode:o}, expected 755");
        return Some(Finding::fault(about, found, why, &format!("chmod 755 {quoted}")));
    }
    let above = path.parent()?;
    let metadata = fs::metadata(above).ok()?;
    let open = metadata.uid() != 0 || metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
    open.then(|| {
        let found = format!("others than root can replace it in {}", above.display());
        Finding::fault(
            about,
            found,
            why,
            &format!("chmod 755 {0}; chown root {0}", above.display()),
        )
    })
}
