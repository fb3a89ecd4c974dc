//! `process`: of a container's init, or of an exec'd process.

use std::collections::HashMap;

use oci_spec::runtime::{
    Box as ConsoleSize, Linux, LinuxPersonality, LinuxPersonalityDomain, Process, User,
};

use super::check::{absolute, refuse, without_nul};
use super::facts::may_raise_limits;
use super::ids::{Ids, Range};
use super::scheduling::memory_policy;
use super::{capabilities, labels, rlimits, scheduling};
use crate::error::Result;
use crate::spec::plan::{CpuAffinity, Plan, ProcessPlan, Terminal};
use crate::sys::process::MemoryPolicy;

/// The properties that an exec'd process takes from its container rather than
/// from its own `process` object.
#[derive(Clone, Debug)]
pub struct ProcessDefaults {
    /// The container's `linux.personality`.
    pub personality: Option<u64>,
    /// The container's `linux.memoryPolicy`.
    pub memory_policy: Option<MemoryPolicy>,
    /// Whether the process keeps the session keyring that it inherits (runc's
    /// `--no-new-keyring`).
    pub no_new_keyring: bool,
    /// The user and group IDs that exist in the container.
    pub ids: Ids,
    /// Whether the process is in a user namespace, where limits must stand in for
    /// some capabilities, and this process may raise them that far.
    pub limits_stand_in: bool,
}

impl ProcessDefaults {
    /// Takes the properties from the container's plan.
    pub fn of(plan: &Plan) -> Self {
        let process = plan.container.process.as_ref();
        Self {
            personality: process.and_then(|process| process.personality),
            memory_policy: process.and_then(|process| process.memory_policy.clone()),
            no_new_keyring: process.is_some_and(|process| process.no_new_keyring),
            ids: Ids::of(
                plan.container.user_namespace,
                plan.host.mappings.as_ref(),
                Range { size: plan.host.range_size, foreign: Some(plan.host.foreign_ids.clone()) },
            ),
            limits_stand_in: plan.container.user_namespace && may_raise_limits(),
        }
    }
}

/// Resolves the `process` of an Exec request, which has its own user,
/// capabilities, limits and labels (containerd, `client/task.go`, `Exec`).
pub fn plan_process(process: &Process, defaults: &ProcessDefaults) -> Result<ProcessPlan> {
    let mut plan = common(process, defaults)?;
    if let Some(affinity) = process.exec_cpu_affinity() {
        plan.cpu_affinity = scheduling::cpu_affinity(affinity)?;
    }
    Ok(plan)
}

/// Resolves the init. `execCPUAffinity` does not apply to it (runtime-spec,
/// `config.md`).
pub(super) fn first(
    process: &Process,
    linux: &Linux,
    ids: Ids,
    user_namespace: bool,
) -> Result<ProcessPlan> {
    let defaults = ProcessDefaults {
        personality: linux.personality().as_ref().map(persona).transpose()?,
        memory_policy: linux.memory_policy().as_ref().map(memory_policy).transpose()?,
        no_new_keyring: false,
        ids,
        limits_stand_in: user_namespace && may_raise_limits(),
    };
    if let Some(affinity) = process.exec_cpu_affinity() {
        // It is for execs, whose clients copy it from here.
        scheduling::cpu_affinity(affinity)?;
    }
    common(process, &defaults)
}

fn common(process: &Process, defaults: &ProcessDefaults) -> Result<ProcessPlan> {
    if process.command_line().is_some() {
        return refuse("process.commandLine", "is for Windows; expected process.args");
    }
    let user = process.user();
    let additional_gids = user.additional_gids().clone().unwrap_or_default();
    check_user(user, &additional_gids, &defaults.ids)?;
    let capabilities = capabilities::plan(process.capabilities().as_ref())?;
    let mut rlimits = rlimits::plan(process.rlimits().as_deref().unwrap_or_default())?;
    if defaults.limits_stand_in {
        rlimits::stand_in(&capabilities, &mut rlimits);
    }
    Ok(ProcessPlan {
        args: args(process.args().as_deref().unwrap_or_default())?,
        env: env(process.env().as_deref().unwrap_or_default())?,
        cwd: absolute(|| "process.cwd".into(), process.cwd())?.into(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids,
        umask: user.umask().map(umask).transpose()?,
        terminal: terminal(process.terminal(), process.console_size())?,
        capabilities,
        rlimits,
        oom_score_adj: process.oom_score_adj().map(oom_score_adj).transpose()?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        personality: defaults.personality,
        scheduler: process.scheduler().as_ref().map(scheduling::scheduler).transpose()?,
        io_priority: process.io_priority().as_ref().map(scheduling::io_priority).transpose()?,
        cpu_affinity: CpuAffinity::default(),
        memory_policy: defaults.memory_policy.clone(),
        apparmor_profile: labels::apparmor(process.apparmor_profile().as_deref())?,
        selinux_label: labels::selinux("process.selinuxLabel", process.selinux_label().as_deref())?,
        no_new_keyring: defaults.no_new_keyring,
    })
}

fn args(args: &[String]) -> Result<Vec<String>> {
    if args.first().is_none_or(String::is_empty) {
        return refuse("process.args", "expected at least the program to run");
    }
    for (i, arg) in args.iter().enumerate() {
        without_nul(|| format!("process.args[{i}]"), arg)?;
    }
    Ok(args.to_vec())
}

/// Resolves the environment. If it has a variable twice, the last one counts, as under
/// runc: programs differ in which they would see.
fn env(env: &[String]) -> Result<Vec<String>> {
    for (i, entry) in env.iter().enumerate() {
        without_nul(|| format!("process.env[{i}]"), entry)?;
        if !entry.contains('=') {
            return refuse(
                format!("process.env[{i}]"),
                format!("{entry:?} is not of the form NAME=value"),
            );
        }
    }
    fn name(entry: &str) -> &str {
        entry.split_once('=').map_or(entry, |(name, _)| name)
    }
    let last: HashMap<&str, usize> =
        env.iter().enumerate().map(|(i, entry)| (name(entry), i)).collect();
    let counts = |(i, entry): &(usize, &String)| last.get(name(entry)) == Some(i);
    Ok(env.iter().enumerate().filter(counts).map(|(_, entry)| entry.clone()).collect())
}

fn check_user(user: &User, additional: &[u32], ids: &Ids) -> Result<()> {
    if user.username().as_deref().is_some_and(|name| !name.is_empty()) {
        return refuse("process.user.username", "is for Windows; expected process.user.uid");
    }
    ids.check_uid("process.user.uid", user.uid())?;
    ids.check_gid("process.user.gid", user.gid())?;
    for (i, &gid) in additional.iter().enumerate() {
        ids.check_gid(&format!("process.user.additionalGids[{i}]"), gid)?;
    }
    Ok(())
}

fn umask(mask: u32) -> Result<u32> {
    match mask {
        0..=0o777 => Ok(mask),
        _ => refuse("process.user.umask", format!("is {mask:#o}; expected at most 0o777")),
    }
}

/// Resolves the terminal. The size counts only together with a terminal
/// (runtime-spec, `config.md`).
fn terminal(wanted: Option<bool>, size: Option<ConsoleSize>) -> Result<Option<Terminal>> {
    if wanted != Some(true) {
        return Ok(None);
    }
    let size = size.unwrap_or_default();
    match (u16::try_from(size.width()), u16::try_from(size.height())) {
        (Ok(width), Ok(height)) => Ok(Some(Terminal { width, height })),
        _ => refuse(
            "process.consoleSize",
            format!("is {} by {}; expected at most 65535 each", size.width(), size.height()),
        ),
    }
}

fn oom_score_adj(value: i32) -> Result<i32> {
    match value {
        -1000..=1000 => Ok(value),
        _ => refuse("process.oomScoreAdj", format!("is {value}; expected -1000 to 1000")),
    }
}

fn persona(personality: &LinuxPersonality) -> Result<u64> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return refuse("linux.personality.flags", "no flags are defined; expected none");
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
    })
}
