//! Updates that the kernel refuses in part: what was written before that is set
//! back, as runc does.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::Cgroup;
use crate::error::{Context, Result};

/// The limits of a container: its spec's, as changed by all updates since.
#[derive(Clone, Debug)]
pub struct LimitsInForce(Value);

impl LimitsInForce {
    /// Those that a cgroup was made with.
    pub fn new(resources: &LinuxResources) -> Result<LimitsInForce> {
        to_json(resources).map(LimitsInForce)
    }

    /// [`Cgroup::update`], after whose failure the limits are what they were.
    /// Unknown is only what neither the spec nor an update has mentioned, unless
    /// it is a limit that everybody starts without.
    pub fn update(&mut self, cgroup: &Cgroup, change: &LinuxResources) -> Result<()> {
        let asked = to_json(change)?;
        if let Err(error) = cgroup.update(change) {
            let set_back = self.under(&asked).and_then(|before| cgroup.update(&before));
            if let Err(e) = set_back {
                log::warn!("{}: after a refused update: {e}", cgroup.name());
            }
            return Err(error);
        }
        merge(&mut self.0, asked);
        Ok(())
    }

    /// What is in force of that which `asked` mentions.
    fn under(&self, asked: &Value) -> Result<LinuxResources> {
        let mut before = unlimited();
        merge(&mut before, self.0.clone());
        keep_mentioned(&mut before, asked);
        serde_json::from_value(before).context(|| "read limits that were in force")
    }
}

/// The limits of a cgroup that nobody has limited.
fn unlimited() -> Value {
    json!({
        "cpu": { "shares": 1024, "quota": -1, "period": 100_000, "burst": 0, "idle": 0 },
        "memory": { "limit": -1, "reservation": -1, "swap": -1 },
        "pids": { "limit": -1 },
    })
}

fn to_json(resources: &LinuxResources) -> Result<Value> {
    serde_json::to_value(resources).context(|| "write limits down")
}

/// Objects are merged; what else there is replaces what was there.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, from) => *into = from,
    }
}

fn keep_mentioned(of: &mut Value, asked: &Value) {
    let (Value::Object(of), Value::Object(asked)) = (of, asked) else { return };
    let mentioned = |key: &String, asked: &Map<String, Value>| {
        asked.get(key).is_some_and(|value| !value.is_null())
    };
    of.retain(|key, _| mentioned(key, asked));
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
    fn what_an_update_mentions_is_set_back_and_nothing_else() {
        let spec = json!({
            "cpu": { "shares": 512, "quota": 50_000 },
            "memory": { "limit": 1 << 30 },
            "unified": { "memory.high": "1000", "pids.max": "5" },
        });
        let mut limits = LimitsInForce::new(&resources(spec)).unwrap();
        merge(&mut limits.0, json!({ "cpu": { "shares": 256 } }));
        let asked = json!({
            "cpu": { "shares": 2, "period": 1000 },
            "pids": { "limit": 7 },
            "unified": { "memory.high": "2000" },
        });
        let before = limits.under(&asked).unwrap();
        let expected = json!({
            "cpu": { "shares": 256, "period": 100_000 },
            "pids": { "limit": -1 },
            "unified": { "memory.high": "1000" },
        });
        assert_eq!(before, resources(expected));
    }
}
