//! `process.rlimits`, setrlimit(2).

use oci_spec::runtime::{PosixRlimit, PosixRlimitType as Type};
use rustix::process::Resource;

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::{CapabilitySets, Powerless};
use crate::sys::process::{Rlimit, rlimit_of};

/// Resolves the limits. Each may be given once, with its soft limit below its
/// hard limit.
pub(super) fn plan(limits: &[PosixRlimit]) -> Result<Vec<Rlimit>> {
    let mut planned: Vec<Rlimit> = Vec::with_capacity(limits.len());
    for (i, limit) in limits.iter().enumerate() {
        let field = || format!("process.rlimits[{i}]");
        let (resource, soft, hard) = (number(limit.typ()), limit.soft(), limit.hard());
        if soft > hard {
            return refuse(
                field(),
                format!("{}: soft limit {soft} is above hard limit {hard}", limit.typ()),
            );
        }
        if planned.iter().any(|other| other.resource == resource) {
            return refuse(field(), format!("{} is given twice", limit.typ()));
        }
        planned.push(Rlimit { resource, soft, hard });
    }
    Ok(planned)
}

/// The limits that stand in for capabilities that the kernel asks of the first user
/// namespace alone: the capability's number, the limit's, and its highest value.
const STAND_INS: [(u32, Resource, u64); 3] = [
    (CAP_IPC_LOCK, Resource::Memlock, u64::MAX),
    (CAP_SYS_NICE, Resource::Nice, 40),
    (CAP_SYS_NICE, Resource::Rtprio, 99),
];
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_NICE: u32 = 23;

/// Adds the limits that stand in for granted capabilities. A limit of the spec counts.
pub(super) fn stand_in(granted: &CapabilitySets, limits: &mut Vec<Rlimit>) {
    let reachable = granted.permitted | granted.bounding;
    for (capability, resource, highest) in STAND_INS {
        let resource = resource as u32;
        if reachable & 1 << capability != 0 && limits.iter().all(|l| l.resource != resource) {
            limits.push(Rlimit { resource, soft: highest, hard: highest });
        }
    }
}

/// Limits that count for a user, and for all of a user namespace together at most what its
/// maker had (the kernel's `set_userns_rlimit_max`).
const COUNTED: [Resource; 3] = [Resource::Nproc, Resource::Sigpending, Resource::Msgqueue];

/// Lists the limits that a process in a user namespace cannot use up.
pub(super) fn cut(limits: &[Rlimit]) -> Vec<Powerless> {
    let counted = |limit: &&Rlimit| COUNTED.iter().any(|c| *c as u32 == limit.resource);
    let cut = |limit: &Rlimit| {
        let own = rlimit_of(0, limit.resource).ok().filter(|own| own.soft < limit.soft)?;
        Some(Powerless {
            field: "process.rlimits".into(),
            lost: format!(
                "{}: the sandbox's processes together get at most {}, containerd's own limit",
                limit.name(),
                own.soft
            ),
            instead: "raise the limit in containerd's unit".into(),
            by_default: false,
        })
    };
    limits.iter().filter(counted).filter_map(cut).collect()
}

fn number(kind: Type) -> u32 {
    let resource = match kind {
        Type::RlimitCpu => Resource::Cpu,
        Type::RlimitFsize => Resource::Fsize,
        Type::RlimitData => Resource::Data,
        Type::RlimitStack => Resource::Stack,
        Type::RlimitCore => Resource::Core,
        Type::RlimitRss => Resource::Rss,
        Type::RlimitNproc => Resource::Nproc,
        Type::RlimitNofile => Resource::Nofile,
        Type::RlimitMemlock => Resource::Memlock,
        Type::RlimitAs => Resource::As,
        Type::RlimitLocks => Resource::Locks,
        Type::RlimitSigpending => Resource::Sigpending,
        Type::RlimitMsgqueue => Resource::Msgqueue,
        Type::RlimitNice => Resource::Nice,
        Type::RlimitRtprio => Resource::Rtprio,
        Type::RlimitRttime => Resource::Rttime,
    };
    resource as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(capabilities: &[u32]) -> CapabilitySets {
        let permitted = capabilities.iter().fold(0, |mask, bit| mask | 1 << bit);
        CapabilitySets { permitted, ..CapabilitySets::default() }
    }

    #[test]
    fn limits_stand_in_for_what_is_granted_and_the_spec_does_not_limit() {
        let memlock = Rlimit { resource: Resource::Memlock as u32, soft: 5, hard: 6 };
        let mut limits = vec![memlock];
        stand_in(&granted(&[CAP_IPC_LOCK, CAP_SYS_NICE]), &mut limits);
        let nice = Rlimit { resource: 13, soft: 40, hard: 40 };
        let realtime = Rlimit { resource: 14, soft: 99, hard: 99 };
        assert_eq!(limits, [memlock, nice, realtime]);
        let mut limits = Vec::new();
        stand_in(&granted(&[0]), &mut limits);
        assert_eq!(limits, []);
    }

    #[test]
    fn a_limit_above_the_makers_is_told() {
        let own = rlimit_of(0, Resource::Msgqueue as u32).unwrap();
        let same = Rlimit { hard: u64::MAX, ..own };
        let above = Rlimit { soft: u64::MAX, ..same };
        assert_eq!(cut(&[same]), []);
        let told = cut(&[above]);
        assert!(told[0].lost.contains(&own.soft.to_string()), "{}", told[0]);
    }
}
