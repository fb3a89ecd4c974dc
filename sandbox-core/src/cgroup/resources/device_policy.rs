//! The devices that a container may open or make, as one list of exceptions to
//! "nothing" or to "everything".
//!
//! A container starts with no device allowed. The spec's rules are applied in
//! order, then the devices are allowed that every container has (runtime-spec,
//! config-linux.md, "Default Devices"), as in runc.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

/// The policy for devices, like the kernel's `devcgroup_behavior`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Whether devices are allowed that no exception matches.
    pub(super) allow: bool,
    /// The devices to which the opposite applies.
    pub(super) exceptions: Vec<Exception>,
}

/// One or more devices, and the access to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    /// Whether it is a block device rather than a character device.
    pub(super) block: bool,
    /// The major number, or `None` for all.
    pub(super) major: Option<u32>,
    /// The minor number, or `None` for all.
    pub(super) minor: Option<u32>,
    /// Bits of [`READ`], [`WRITE`] and [`MKNOD`].
    pub(super) access: u8,
}

/// `BPF_DEVCG_ACC_MKNOD` of bpf.h.
pub(super) const MKNOD: u8 = 1;
/// `BPF_DEVCG_ACC_READ` of bpf.h.
pub(super) const READ: u8 = 2;
/// `BPF_DEVCG_ACC_WRITE` of bpf.h.
pub(super) const WRITE: u8 = 4;

impl Policy {
    pub(super) fn from_spec(rules: &[LinuxDeviceCgroup]) -> Result<Policy> {
        let mut policy = Policy { allow: false, exceptions: Vec::new() };
        for rule in rules {
            policy.rule(rule)?;
        }
        for exception in defaults() {
            policy.allow_default(exception)?;
        }
        Ok(policy)
    }

    fn rule(&mut self, rule: &LinuxDeviceCgroup) -> Result<()> {
        let access = access(rule)?;
        let (major, minor) =
            (device_number(rule.major(), rule)?, device_number(rule.minor(), rule)?);
        let kinds: &[bool] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::B => &[true],
            LinuxDeviceType::C | LinuxDeviceType::U => &[false],
            LinuxDeviceType::A => &[true, false],
            LinuxDeviceType::P => return Err(invalid(rule, "type a, b or c; a pipe is no device")),
        };
        if kinds.len() == 2 && major.is_none() && minor.is_none() && access == READ | WRITE | MKNOD
        {
            *self = Policy { allow: rule.allow(), exceptions: Vec::new() };
            return Ok(());
        }
        for block in kinds {
            let exception = Exception { block: *block, major, minor, access };
            if rule.allow() == self.allow {
                self.remove_exceptions(exception, rule)?;
            } else {
                self.add(exception);
            }
        }
        Ok(())
    }

    fn add(&mut self, new: Exception) {
        match self.exceptions.iter_mut().find(|e| e.same_devices(&new)) {
            Some(old) => old.access |= new.access,
            None => self.exceptions.push(new),
        }
    }

    /// Allows what every container may use, also where the spec denies it: as in runc, such a
    /// denial has no effect if it names the same devices, and is refused if it names more.
    fn allow_default(&mut self, default: Exception) -> Result<()> {
        if !self.allow {
            self.add(default);
            return Ok(());
        }
        for denied in &mut self.exceptions {
            if denied.same_devices(&default) {
                denied.access &= !default.access;
            } else if denied.covers(&default) && denied.access & default.access != 0 {
                return Err(Error::invalid(format!(
                    "linux.resources.devices: deny {}: every container may use {}; expected no \
                     rule that denies it among other devices",
                    denied.line(),
                    default.line()
                )));
            }
        }
        self.exceptions.retain(|e| e.access != 0);
        Ok(())
    }

    /// Removes earlier exceptions for a rule that repeats the default. The rule
    /// must cover them as a whole: neither cgroup version can remove a part of
    /// a wildcard.
    fn remove_exceptions(&mut self, back: Exception, rule: &LinuxDeviceCgroup) -> Result<()> {
        for old in &mut self.exceptions {
            if back.covers(old) {
                old.access &= !back.access;
            } else if back.overlaps(old) {
                return Err(invalid(rule, "no rule for a part of the devices of an earlier one"));
            }
        }
        self.exceptions.retain(|e| e.access != 0);
        Ok(())
    }
}

impl Exception {
    fn same_devices(&self, other: &Exception) -> bool {
        (self.block, self.major, self.minor) == (other.block, other.major, other.minor)
    }

    fn covers(&self, other: &Exception) -> bool {
        let covers = |own: Option<u32>, other: Option<u32>| own.is_none() || own == other;
        self.block == other.block
            && covers(self.major, other.major)
            && covers(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Exception) -> bool {
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.block == other.block
            && meets(self.major, other.major)
            && meets(self.minor, other.minor)
            && self.access & other.access != 0
    }

    /// Returns the exception as a line of devices.allow.
    pub(super) fn line(&self) -> String {
        let kind = if self.block { 'b' } else { 'c' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let mut line = format!("{kind} {}:{} ", number(self.major), number(self.minor));
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                line.push(letter);
            }
        }
        line
    }
}

/// Returns what every container may use. It may make any node, which does not mean
/// that it may open it. It may use null, zero, full, random, urandom, tty, ptmx, terminals,
/// and tun, which runc once omitted and VPNs need. The console of number 5:1 is the host's
/// and not among them: a container's own is a terminal.
fn defaults() -> impl Iterator<Item = Exception> {
    let all = READ | WRITE | MKNOD;
    let make =
        [true, false].map(|block| Exception { block, major: None, minor: None, access: MKNOD });
    let nodes = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(2)),
        (10, Some(200)),
        (136, None),
    ];
    let nodes = nodes.map(|(major, minor)| Exception {
        block: false,
        major: Some(major),
        minor,
        access: all,
    });
    make.into_iter().chain(nodes)
}

/// Parses the access. If absent, all is meant, as with runc.
fn access(rule: &LinuxDeviceCgroup) -> Result<u8> {
    let Some(letters) = rule.access().as_deref().filter(|a| !a.is_empty()) else {
        return Ok(READ | WRITE | MKNOD);
    };
    letters.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MKNOD),
        _ => Err(invalid(rule, "access made of r, w and m")),
    })
}

/// Converts a number. If it is absent or -1, all are meant.
fn device_number(number: Option<i64>, rule: &LinuxDeviceCgroup) -> Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| invalid(rule, "device numbers")),
    }
}

fn invalid(rule: &LinuxDeviceCgroup, expected: &str) -> Error {
    let verb = if rule.allow() { "allow" } else { "deny" };
    Error::invalid(format!("linux.resources.devices: {verb} {rule}: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    fn rule(
        allow: bool,
        kind: LinuxDeviceType,
        device: (i64, i64),
        access: &str,
    ) -> LinuxDeviceCgroup {
        let builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        builder.major(device.0).minor(device.1).build().unwrap()
    }

    fn lines(policy: &Policy) -> Vec<String> {
        policy.exceptions.iter().map(Exception::line).collect()
    }

    #[test]
    fn without_rules_only_the_default_devices_are_allowed() {
        let policy = Policy::from_spec(&[]).unwrap();
        assert!(!policy.allow);
        // As runc 1.1.5 and 1.3.6 write them.
        let runcs = "b *:* m;c *:* m;c 1:3 rwm;c 1:5 rwm;c 1:7 rwm;c 1:8 rwm;c 1:9 rwm;c 5:0 rwm;\
                     c 5:2 rwm;c 10:200 rwm;c 136:* rwm";
        assert_eq!(lines(&policy).join(";"), runcs);
    }

    #[test]
    fn a_privileged_container_may_use_all() {
        let all = LinuxDeviceCgroupBuilder::default().allow(true).access("rwm").build().unwrap();
        let policy = Policy::from_spec(&[all]).unwrap();
        assert_eq!(policy, Policy { allow: true, exceptions: Vec::new() });
    }

    #[test]
    fn a_default_device_cannot_be_denied() {
        use LinuxDeviceType::{B, C};
        let all = || LinuxDeviceCgroupBuilder::default().allow(true).access("rwm").build().unwrap();
        let policy = Policy::from_spec(&[
            all(),
            rule(false, C, (1, 9), "w"),
            rule(false, B, (7, 0), "rwm"),
            rule(false, C, (10, 229), "rw"),
        ]);
        assert_eq!(lines(&policy.unwrap()), ["b 7:0 rwm", "c 10:229 rw"]);
        let wider = [all(), rule(false, C, (1, -1), "w")];
        let error = Policy::from_spec(&wider).unwrap_err().to_string();
        assert!(error.contains("deny c 1:* w: every container may use c 1:3 rwm"), "{error}");
    }

    #[test]
    fn later_rules_add_to_and_remove_earlier_ones() {
        use LinuxDeviceType::{B, C};
        let policy = Policy::from_spec(&[
            rule(true, B, (8, 0), "r"),
            rule(true, B, (8, 0), "w"),
            rule(true, C, (10, 229), "rwm"),
            rule(false, C, (10, -1), "rwm"),
        ]);
        let lines = lines(&policy.unwrap());
        assert_eq!(lines[0], "b 8:0 rw");
        assert!(!lines.iter().any(|l| l.contains("10:229")), "{lines:?}");
    }

    #[test]
    fn rules_that_no_cgroup_can_express_are_refused() {
        use LinuxDeviceType::C;
        let hole = [rule(true, C, (10, -1), "rw"), rule(false, C, (10, 5), "r")];
        let error = Policy::from_spec(&hole).unwrap_err().to_string();
        assert!(error.contains("linux.resources.devices: deny c 10:5 r"), "{error}");
        assert!(Policy::from_spec(&[rule(true, C, (1, 1), "x")]).is_err());
        assert!(Policy::from_spec(&[rule(true, LinuxDeviceType::P, (1, 1), "r")]).is_err());
    }
}
