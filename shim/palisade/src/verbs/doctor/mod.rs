//! `palisade doctor`: whether this machine can run Palisade, and how well.
//!
//! | file | findings |
//! |---|---|
//! | `kernel.rs` | the kernel and its features, each by trying it (`trial.rs`) |
//! | `cgroups.rs` | cgroups, and who makes them |
//! | `limits.rs` | limits of the kernel for the whole machine |
//! | `ids.rs` | the host IDs for pods |
//! | `containerd.rs` | containerd and its configuration |
//! | `executables.rs` | Palisade's own files |
//! | `leftovers.rs` | what is left of dead shims (`strays.rs`: cgroups) |
//!
//! `program.rs` runs other programs for a bounded time.

mod cgroups;
mod containerd;
mod executables;
mod ids;
mod kernel;
mod leftovers;
mod limits;
mod program;
mod strays;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::arguments::{Common, Format};
use crate::{node, show};

/// Says whether this machine can run Palisade and how well, and finds what dead pods have left
///
/// Each finding is ok, a warning (it works, but less well or not everything) or a fault (pods do
/// not run). A feature of the kernel is tried, on objects of the command's own that are gone
/// afterwards. The exit status is 1 if there is a fault, and 0 otherwise.
#[derive(Clone, Debug, Args)]
pub(crate) struct Doctor {
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// Palisade's options
    #[arg(long, value_name = "FILE", default_value = "/etc/palisade/config.toml")]
    options: PathBuf,
    /// Removes what belongs to no pod, and says what it removed: the state, cgroups, IDs and
    /// sockets of pods whose shim and sandbox process have both ended
    ///
    /// A pod that lives or is being made is never touched, and it may be run twice, or beside pods
    /// that start.
    #[arg(long)]
    fix_leftovers: bool,
}

/// How a finding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    about: String,
    /// What was found.
    found: String,
    /// Why it matters. Empty if all is well.
    why: String,
    /// The line that mends it. Empty if all is well.
    mend: String,
}

impl Finding {
    fn ok(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            about: about.into(),
            found: found.into(),
            why: String::new(),
            mend: String::new(),
        }
    }

    fn warning(about: impl Into<String>, found: impl Into<String>, why: &str, mend: &str) -> Self {
        Self { verdict: Verdict::Warning, ..Self::ok(about, found) }.explained(why, mend)
    }

    fn fault(about: impl Into<String>, found: impl Into<String>, why: &str, mend: &str) -> Self {
        Self { verdict: Verdict::Fault, ..Self::ok(about, found) }.explained(why, mend)
    }

    fn explained(self, why: &str, mend: &str) -> Self {
        Self { why: why.to_owned(), mend: mend.to_owned(), ..self }
    }
}

/// Looks, and prints what was found.
pub(crate) async fn doctor(common: &Common, flags: &Doctor) -> Result<ExitCode> {
    let state_root = node::state_root(Some(common));
    let options = executables::options(&flags.options);
    let known = options.as_ref().ok();
    let namespace = common.namespace.as_deref();
    let scope = leftovers::Scope { state_root: &state_root, namespace, options: known };
    if flags.fix_leftovers {
        return print(common, &leftovers::fix(scope));
    }
    let configuration = containerd::Configuration::read(&flags.containerd_config);
    let mut findings = Vec::new();
    if !rustix::process::geteuid().is_root() {
        findings.push(Finding::warning(
            "user",
            "not root",
            "what only root may try is reported as missing",
            "sudo palisade doctor",
        ));
    }
    findings.extend(kernel::look(&configuration.root()));
    findings.extend(cgroups::look(known, &configuration));
    findings.extend(limits::look());
    findings.extend(ids::look(&state_root, known));
    findings.extend(containerd::look(&configuration));
    findings.extend(executables::look(&flags.options, options.as_ref()));
    findings.extend(leftovers::look(scope));
    print(common, &findings)
}

fn print(common: &Common, findings: &[Finding]) -> Result<ExitCode> {
    match common.format {
        Format::Json => show::json(&findings)?,
        Format::Table => {
            let mut table = show::table(&["VERDICT", "ABOUT", "FOUND"]);
            for finding in findings {
                let verdict = match finding.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warning => "warning",
                    Verdict::Fault => "fault",
                };
                let mut found = finding.found.clone();
                if finding.verdict != Verdict::Ok {
                    found = format!("{found}\nwhy:  {}\nmend: {}", finding.why, finding.mend);
                }
                table.add_row([verdict.to_owned(), finding.about.clone(), found]);
            }
            show::print(&table)?;
        }
    }
    let worst = findings.iter().map(|finding| finding.verdict).max();
    Ok(ExitCode::from(u8::from(worst == Some(Verdict::Fault))))
}
