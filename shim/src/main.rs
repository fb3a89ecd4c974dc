//! The containerd shim of Palisade: one process for each sandbox, between
//! containerd's ttrpc and the sandbox's control channel.
//!
//! | command | what it does |
//! |---|---|
//! | `start` | [`start`]: starts the serving process of the container's group |
//! | `delete` | [`delete`]: cleans up after a serving process that died |
//! | `-info` | [`info`]: describes the runtime |
//! | `options` | [`check_options`]: reads options for `palisade doctor` |
//! | without an action | serves until containerd's Shutdown |

#![deny(unsafe_code)]

mod answer;
mod bootstrap;
mod check_options;
mod connections;
mod delete;
mod descriptors;
mod error;
mod events;
mod exit;
mod idle;
mod info;
mod listeners;
mod logging;
mod operator;
mod options;
mod ready;
mod rootless;
mod sandbox_service;
mod serve;
mod socket;
mod spans;
mod start;
mod stdio;
mod tally;
mod task;
mod user_log_option;

use std::process::ExitCode;

use containerd_shim::Flags;
use sandbox_core::sys::heap;

use crate::error::{Error, Result};

/// The runtime's name in containerd's configuration.
const RUNTIME: &str = "io.containerd.palisade.v1";

/// The system's allocator, into which `palisade debug heap-profile` looks.
#[global_allocator]
static ALLOCATOR: heap::Sampling = heap::Sampling;

fn main() -> ExitCode {
    heap::stack_begins_here();
    sandbox_core::sys::confine::refuse_new_code();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what start and delete print.
            eprintln!("palisade: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let flags: Flags =
        containerd_shim::parse(&arguments).map_err(|e| Error::invalid(e.to_string()))?;
    if flags.version {
        println!("{RUNTIME} {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return info::info();
    }
    match flags.action.as_str() {
        "start" => start::start(&flags),
        "delete" => delete::delete(&flags),
        "options" => check_options::check_options(),
        "" => serve::serve_by_hand(&flags),
        action => Err(Error::invalid(format!(
            "unknown action {action:?}: expected start, delete or options"
        ))),
    }
}
