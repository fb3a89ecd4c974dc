//! `palisade`: what an operator types. It looks into the pods of this node, measures them, and acts
//! on them.
//!
//! | file | content |
//! |---|---|
//! | `arguments.rs` | the command line |
//! | `node/` | the pods of this node, from the state on disk and the kernel |
//! | `select.rs` | the pod or container that a name on the command line means |
//! | `shim.rs` | calls of a pod's shim, which never wait for ever |
//! | `follow.rs` | what shims send in streams, until they end |
//! | `show.rs` | tables and JSON |
//! | `metrics/` | what `palisade metrics` serves |
//! | `exit.rs` | exit statuses |
//! | `verbs/` | one file for each verb |
//!
//! Nothing of it runs on a node unless somebody types it, and no pod runs slower while nobody does.

#![deny(unsafe_code)]

mod arguments;
mod exit;
mod follow;
mod metrics;
mod node;
mod select;
mod shim;
mod show;
mod verbs;

use std::process::ExitCode;

use clap::CommandFactory;

use arguments::Arguments;

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(Arguments::command).complete();
    let arguments = Arguments::read();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(verbs::run(&arguments)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("palisade: {error:#}");
            exit::of(&error)
        }
    }
}
