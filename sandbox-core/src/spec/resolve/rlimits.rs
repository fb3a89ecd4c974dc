//! `process.rlimits`, setrlimit(2).

use oci_spec::runtime::{PosixRlimit, PosixRlimitType as Type};
use rustix::process::Resource;

use super::check::refuse;
use crate::error::Result;
use crate::sys::process::Rlimit;

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
