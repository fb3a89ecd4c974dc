//! A runtime to measure, as on the command line:
//! `--shim NAME=EXECUTABLE[,engine=EXECUTABLE]`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Error, ensure};

/// A shim, and the engine that it uses if it supports more than one.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Its name in tables.
    pub name: String,
    /// The shim's executable.
    pub shim: PathBuf,
    /// `BinaryName` of runc's options.
    pub engine: Option<String>,
}

impl FromStr for Runtime {
    type Err = Error;

    fn from_str(text: &str) -> Result<Runtime, Error> {
        let usage = "--shim takes NAME=EXECUTABLE[,engine=EXECUTABLE]";
        let (name, rest) = text.split_once('=').context(usage)?;
        let (shim, engine) = match rest.split_once(",engine=") {
            Some((shim, engine)) => (shim, Some(engine.to_owned())),
            None => (rest, None),
        };
        // `start` runs in the bundle, where a relative path would name another
        // file.
        let shim = std::path::absolute(shim)?;
        ensure!(shim.is_file(), "--shim {name}: no file {}", shim.display());
        Ok(Runtime { name: name.to_owned(), shim, engine })
    }
}
