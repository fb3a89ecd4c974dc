//! Updates that the kernel refuses in part. The values that were written before
//! are restored, as runc does.

use oci_spec::runtime::{LinuxMemory, LinuxResources};
use serde_json::{Value, json};

use super::Cgroup;
use crate::error::{Context, Result};

/// The resources of a container: its spec's, as changed by all updates since.
#[derive(Clone, Debug)]
pub struct ResourcesInForce(LinuxResources);

impl ResourcesInForce {
    /// Starts with the resources with which a cgroup was made.
    pub fn new(resources: &LinuxResources) -> ResourcesInForce {
        let mut limits = resources.clone();
        // Devices need not be kept, since no update changes them.
        limits.set_devices(None);
        ResourcesInForce(limits)
    }

    /// Returns them. Devices are not among them.
    pub fn get(&self) -> &LinuxResources {
        &self.0
    }

    /// As [`Cgroup::update`]. After a failure it restores the limits that the
    /// spec or an update has mentioned, and those of the CPU.
    pub fn update(&mut self, cgroup: &Cgroup, change: &LinuxResources) -> Result<()> {
        let after = self.with(change)?;
        let checked = cgroup.check(change)?;
        if let Err(error) = cgroup.write(&checked) {
            let restored = self.under(change).and_then(|before| cgroup.update(&before));
            if let Err(e) = restored {
                log::warn!("{}: after a refused update: {e}", cgroup.name());
            }
            return Err(error);
        }
        *self = after;
        Ok(())
    }

    fn with(&self, change: &LinuxResources) -> Result<ResourcesInForce> {
        let mut all = to_json(&self.0)?;
        merge(&mut all, to_json(change)?);
        let mut all = from_json(all)?;
        if let Some(memory) = all.memory() {
            all.set_memory(Some(plausible(*memory)));
        }
        Ok(ResourcesInForce::new(&all))
    }

    /// Returns the present values of what `change` mentions.
    fn under(&self, change: &LinuxResources) -> Result<LinuxResources> {
        let mut before = default_cpu();
        merge(&mut before, to_json(&self.0)?);
        keep_mentioned(&mut before, &to_json(change)?);
        from_json(before)
    }
}

/// Returns the values with which a new cgroup starts. They cover only CPU time:
/// processes and memory may have a default limit of systemd, which must not be
/// lifted.
fn default_cpu() -> Value {
    json!({ "cpu": { "shares": 1024, "quota": -1, "period": 100_000, "burst": 0, "idle": 0 } })
}

/// Drops an implausible swap limit. In the spec, swap includes memory. A
/// smaller value is left after an update of the memory alone, and only the
/// kernel knows what it became.
fn plausible(memory: LinuxMemory) -> LinuxMemory {
    let mut memory = memory;
    let is_less = |swap: &i64| (1..memory.limit().unwrap_or(0)).contains(swap);
    if memory.swap().as_ref().is_some_and(is_less) {
        memory.set_swap(None);
    }
    memory
}

fn to_json(resources: &LinuxResources) -> Result<Value> {
    serde_json::to_value(resources).context(|| "write limits down")
}

fn from_json(limits: Value) -> Result<LinuxResources> {
    serde_json::from_value(limits).context(|| "read limits")
}

/// Merges objects. Other values replace what was there, unless they request
/// nothing.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from.into_iter().filter(|(key, value)| requests(key, value)) {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Whether a value requests a limit. Zero requests none, except for these keys.
fn requests(key: &str, value: &Value) -> bool {
    const ZEROS: [&str; 3] = ["burst", "idle", "swappiness"];
    !value.is_null() && (value.as_f64() != Some(0.0) || ZEROS.contains(&key))
}

fn keep_mentioned(of: &mut Value, asked: &Value) {
    let (Value::Object(of), Value::Object(asked)) = (of, asked) else { return };
    of.retain(|key, _| asked.get(key).is_some_and(|value| requests(key, value)));
    for (key, value) in of {
        keep_mentioned(value, &asked[key]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(value: Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_the_values_of_a_refused_update_are_restored() {
        let spec = json!({
            "cpu": { "shares": 512, "quota": 50_000 },
            "memory": { "limit": 1 << 30 },
            "unified": { "memory.high": "1000", "pids.max": "5" },
        });
        let mut limits = ResourcesInForce::new(&resources(spec));
        limits = limits.with(&resources(json!({ "cpu": { "shares": 256 } }))).unwrap();
        let asked = json!({
            "cpu": { "shares": 2, "period": 1000 },
            "pids": { "limit": 7 },
            "unified": { "memory.high": "2000" },
        });
        let before = limits.under(&resources(asked)).unwrap();
        let expected = json!({
            "cpu": { "shares": 256, "period": 100_000 },
            "unified": { "memory.high": "1000" },
        });
        assert_eq!(before, resources(expected));
    }

    #[test]
    fn zeros_change_nothing() {
        let spec = json!({ "pids": { "limit": 5 }, "blockIO": { "weight": 300 } });
        let limits = ResourcesInForce::new(&resources(spec.clone()));
        let zeros = json!({ "pids": { "limit": 0 }, "blockIO": { "weight": 0 } });
        let after = limits.with(&resources(zeros)).unwrap();
        assert_eq!(after.0, resources(spec));
    }

    #[test]
    fn a_swap_limit_below_the_memory_limit_is_not_restored() {
        let limits =
            ResourcesInForce::new(&resources(json!({ "memory": { "limit": 64, "swap": 96 } })));
        let asked = resources(json!({ "memory": { "limit": 100 } }));
        let limits = limits.with(&asked).unwrap();
        assert_eq!(limits.0, asked);
        let again = resources(json!({ "memory": { "limit": 10, "swap": 20 } }));
        assert_eq!(limits.under(&again).unwrap(), asked);
    }
}
