//! `palisade mounts`: what a container's processes see of file systems.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sandbox_inspect::calls::printable;
use sandbox_inspect::mounts::{self, Mount};
use sandbox_inspect::processes::{self, Process};
use serde::Serialize;

use crate::arguments::{Common, Format, Target};
use crate::exit::Failure;
use crate::node::Node;
use crate::{select, show};

/// Flags of `palisade mounts`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Shows the mounts of the container's first process, from the kernel.\n\n\
    SOURCE is what was mounted, with the directory of it in brackets where that is not the \
    whole. LOCKED are the flags that nobody inside can take off, not even root with all \
    capabilities; each was tried, on a copy of the mount that no process sees. A question mark \
    stands where another mount covers this one. MAPPED says whether the owners of files are \
    shown with other numbers (idmapped mounts)."
)]
pub(crate) struct Mounts {
    #[command(flatten)]
    target: Target,
}

/// A mount, as it is printed in JSON.
#[derive(Serialize)]
struct Row<'a> {
    destination: String,
    source: &'a str,
    root: String,
    r#type: &'a str,
    options: &'a [String],
    file_system_options: &'a [String],
    propagation: &'a [String],
    idmapped: bool,
    /// Null if it could not be tried.
    locked: Option<&'a [&'static str]>,
}

/// Lists mounts.
pub(crate) async fn mounts(common: &Common, flags: &Mounts) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let (pod, container) = select::find(&node, &flags.target.id)?.one_container()?;
    let all = Process::of(&container.cgroup)?;
    let ended = || Failure::Failed(format!("the container {} has no process", container.id));
    let first = processes::first(&all, pod.boot()).ok_or_else(ended)?;
    let mounts = mounts::of(first.pid)?;
    match common.format {
        Format::Table => print(&mounts)?,
        Format::Json => show::json(&mounts.iter().map(row).collect::<Vec<_>>())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(mounts: &[Mount]) -> Result<()> {
    let mut table = show::table(&["DESTINATION", "SOURCE", "TYPE", "OPTIONS", "LOCKED", "MAPPED"]);
    for mount in mounts {
        let options = mount.options.iter().filter(|option| *option != "idmapped");
        table.add_row([
            path(&mount.destination),
            source(mount),
            mount.kind.clone(),
            options.map(String::as_str).collect::<Vec<_>>().join(","),
            mount.locked.as_ref().map_or_else(|| "?".to_owned(), |locked| locked.join(",")),
            if mount.idmapped { "idmapped" } else { "" }.to_owned(),
        ]);
    }
    show::print(&table)
}

fn source(mount: &Mount) -> String {
    let source = printable(mount.source.as_bytes());
    match path(&mount.root) {
        root if root == "/" => source,
        root => format!("{source}[{root}]"),
    }
}

/// Writes a path, whose characters are the container's.
fn path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    printable(path.as_os_str().as_bytes())
}

fn row(mount: &Mount) -> Row<'_> {
    Row {
        destination: path(&mount.destination),
        source: &mount.source,
        root: path(&mount.root),
        r#type: &mount.kind,
        options: &mount.options,
        file_system_options: &mount.file_system_options,
        propagation: &mount.propagation,
        idmapped: mount.idmapped,
        locked: mount.locked.as_deref(),
    }
}
