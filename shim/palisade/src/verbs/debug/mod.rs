//! `palisade debug`: looks inside the processes of a pod, from the host.

mod heap_profile;
mod log_level;
mod memory;
mod output;
mod profile;
mod stacks;
mod stop;
mod trace;
mod values;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::arguments::Common;

/// The open files that are enough.
const MOST_FILES: u64 = 16_384;

/// The verbs below `debug`.
#[derive(Debug, Subcommand)]
pub(crate) enum Debug {
    /// Changes what the shim and the sandbox process of a pod log, for a while
    LogLevel(log_level::LogLevel),
    /// Shows what memory the processes of a pod or a container have, by mapping
    Memory(memory::Memory),
    /// Shows what each thread of a pod does now: its call, what it waits for, and its stack
    Stacks(stacks::Stacks),
    /// Shows in which functions the CPU time of a pod goes
    CpuProfile(profile::CpuProfile),
    /// Shows where the threads of a pod wait, and what for
    BlockProfile(profile::BlockProfile),
    /// Shows for which locks the threads of a pod wait
    MutexProfile(profile::MutexProfile),
    /// Shows what the shim and the sandbox process of a pod allocate and hold, by call site
    HeapProfile(heap_profile::HeapProfile),
    /// Records what the threads of a pod do, for ui.perfetto.dev
    Trace(trace::Trace),
}

impl Debug {
    /// Whether the verb writes a profile, which has forms of its own.
    pub(crate) fn is_profile(&self) -> bool {
        matches!(
            self,
            Self::CpuProfile(_)
                | Self::BlockProfile(_)
                | Self::MutexProfile(_)
                | Self::HeapProfile(_)
        )
    }
}

/// Carries out what was typed.
pub(crate) async fn debug(common: &Common, verb: &Debug) -> Result<ExitCode> {
    // Events, and the programs of a pod, take more descriptors than most shells allow.
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(MOST_FILES, |most| most.min(MOST_FILES));
    if limit.current.is_some_and(|now| now < current) {
        let raised = Rlimit { current: Some(current), ..limit };
        setrlimit(Resource::Nofile, raised).context("raise the number of open files")?;
    }
    match verb {
        Debug::LogLevel(flags) => log_level::log_level(common, flags).await,
        Debug::Memory(flags) => memory::memory(common, flags).await,
        Debug::Stacks(flags) => stacks::stacks(common, flags).await,
        Debug::CpuProfile(flags) => profile::cpu(common, flags).await,
        Debug::BlockProfile(flags) => profile::block(common, flags).await,
        Debug::MutexProfile(flags) => profile::mutex(common, flags).await,
        Debug::HeapProfile(flags) => heap_profile::heap_profile(common, flags).await,
        Debug::Trace(flags) => trace::trace(common, flags).await,
    }
}
