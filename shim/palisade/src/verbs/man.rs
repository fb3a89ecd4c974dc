//! `palisade man`: the manual pages, which the package has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};

use crate::arguments::Arguments;

/// Flags of `palisade man`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Man {
    /// An existing directory, into which a page for each verb is written
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes `palisade.8` and a page for each verb.
pub(crate) fn man(flags: &Man) -> Result<ExitCode> {
    let mut command = Arguments::command();
    command.build();
    write(&command, "palisade", &flags.directory)?;
    Ok(ExitCode::SUCCESS)
}

fn write(command: &Command, name: &str, directory: &Path) -> Result<()> {
    // clap wants a name that lives as long as the program: there are a few dozen.
    let titled = command.clone().name(&*name.to_owned().leak());
    let mut page = Vec::new();
    clap_mangen::Man::new(titled).section("8").render(&mut page)?;
    let path = directory.join(format!("{name}.8"));
    fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        if verb.get_name() != "help" {
            write(verb, &format!("{name}-{}", verb.get_name()), directory)?;
        }
    }
    Ok(())
}
