//! `hooks` (runtime-spec, `config.md`, "POSIX-platform Hooks").

use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};

use super::check::{absolute, refuse, without_nul};
use crate::error::Result;
use crate::spec::plan::{HookPlan, HostHooks};

/// Returns the hooks that run on the host, and those that run inside the
/// container.
pub(super) fn plan(spec: &Spec) -> Result<(HostHooks, Vec<HookPlan>)> {
    let Some(hooks) = spec.hooks() else {
        return Ok(Default::default());
    };
    // Both kinds run at the same point. The deprecated one comes first, as in
    // runc.
    let mut create_runtime = list("prestart", hooks.prestart())?;
    create_runtime.extend(list("createRuntime", hooks.create_runtime())?);
    let host = HostHooks {
        create_runtime,
        create_container: list("createContainer", hooks.create_container())?,
        poststart: list("poststart", hooks.poststart())?,
        poststop: list("poststop", hooks.poststop())?,
    };
    Ok((host, list("startContainer", hooks.start_container())?))
}

fn list(point: &str, hooks: &Option<Vec<Hook>>) -> Result<Vec<HookPlan>> {
    let hooks = hooks.as_deref().unwrap_or_default();
    hooks.iter().enumerate().map(|(i, hook)| one(&format!("hooks.{point}[{i}]"), hook)).collect()
}

fn one(field: &str, hook: &Hook) -> Result<HookPlan> {
    let path = absolute(|| format!("{field}.path"), hook.path())?;
    let args = hook.args().as_deref().unwrap_or_default();
    let env = hook.env().as_deref().unwrap_or_default();
    for (name, strings) in [("args", args), ("env", env)] {
        for (i, string) in strings.iter().enumerate() {
            without_nul(|| format!("{field}.{name}[{i}]"), string)?;
        }
    }
    let args =
        if args.is_empty() { vec![path.to_string_lossy().into_owned()] } else { args.to_vec() };
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds @ 1..) => Some(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => {
            return refuse(
                format!("{field}.timeout"),
                format!("is {seconds}; expected more than 0 seconds"),
            );
        }
    };
    Ok(HookPlan { path: path.into(), args, env: env.to_vec(), timeout })
}
