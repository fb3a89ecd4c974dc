//! Finds out which rule of the baseline refuses a call, for people. The program decides; a test
//! holds this to it, call by call.

use super::program::{NEW_CALLS, NEW_USER, OUT_OF_BAND, X32_BIT};
use super::rules::{
    ABIS, AF_PACKET, CLONE_FLAGS, FAMILIES, FAMILIES_BY_PART, MULTICAST, PERSONALITY, STRICT,
    SocketOptions, TCP_ULP, TERMINAL_INPUT, WHOLE, capability,
};
use super::{Allowed, Confined, Level};
use crate::types::Call;

/// A rule of the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The part of `baseline_allow` that allows the call; `None` if only the list of the strict
    /// baseline lacks it.
    pub part: Option<&'static str>,
    /// The capabilities of which each allows it, too.
    pub granted_by: u64,
}

/// Returns the name of a call, if its architecture has one of this number.
pub fn name_of(call: &Call) -> Option<String> {
    ABIS.iter().find(|abi| abi.audit == call.audit)?.name(call.number)
}

/// Returns the call of the machine's own architecture with this number.
pub fn native(number: u32, arguments: [u64; 6]) -> Call {
    Call { audit: ABIS[0].audit, number, arguments }
}

/// Whether a call is one of the machine's own architecture, x32 not counted.
pub fn is_native(call: &Call) -> bool {
    call.audit == ABIS[0].audit && call.number < X32_BIT
}

/// Returns the rule that refuses a call; `None` if the baseline allows it.
pub fn held(confined: &Confined, call: &Call) -> Option<Held> {
    let (level, allowed) = (confined.baseline.level, confined.baseline.allowed);
    if level == Level::Off {
        return None;
    }
    let strict = level == Level::Strict;
    let none = Held { part: None, granted_by: 0 };
    let by = |part: Allowed, granted_by: u64| {
        let is_held = !allowed.contains(part) && confined.capabilities & granted_by == 0;
        is_held.then(|| Held { part: part.names().next(), granted_by })
    };
    let native = call.audit == ABIS[0].audit;
    let Some(abi) = ABIS.iter().find(|abi| abi.audit == call.audit) else { return Some(none) };
    if strict && !native {
        return Some(none);
    }
    if native && cfg!(target_arch = "x86_64") && call.number >= X32_BIT {
        return by(Allowed::X32, 0);
    }
    let name = abi.name(call.number);
    let name = name.as_deref().unwrap_or_default();
    if let Some(rule) = WHOLE.iter().find(|rule| rule.names.contains(&name)) {
        return by(rule.part, rule.granted_by);
    }
    if let Some(held) = by_arguments(confined, name, call, &by) {
        return Some(held);
    }
    if !strict || looked_at(confined, name) {
        return None;
    }
    // What newer calls than the list's are, no name says either.
    let named = STRICT.iter().filter(|(_, _, names)| names.contains(&name));
    let mut held = none;
    for (granted_by, part, _) in named.filter(|_| call.number < NEW_CALLS || !name.is_empty()) {
        let grants = *granted_by == 0 || confined.capabilities & granted_by != 0;
        if grants || (*part != Allowed::NONE && allowed.contains(*part)) {
            return None;
        }
        held.granted_by |= granted_by;
        held.part = held.part.or_else(|| part.names().next());
    }
    Some(held)
}

/// Whether a call's arguments decide, so that the list of the strict baseline does not.
fn looked_at(confined: &Confined, name: &str) -> bool {
    let admin = confined.capabilities & capability::SYS_ADMIN != 0;
    let nested = confined.filters_user_namespaces;
    match name {
        "unshare" => nested && admin,
        _ => false,
    }
}

/// Returns the rule that refuses a call for its arguments.
fn by_arguments(
    confined: &Confined,
    name: &str,
    call: &Call,
    by: &impl Fn(Allowed, u64) -> Option<Held>,
) -> Option<Held> {
    let argument = |index: u32| call.arguments[index as usize] as u32;
    let allowed = confined.baseline.allowed;
    let strict = confined.baseline.level == Level::Strict;
    let is = |(level, options, _): &SocketOptions| {
        argument(1) == *level && options.contains(&argument(2))
    };
    match name {
        "socket" | "socketpair" => family(argument(0), by),
        "setsockopt" if is(&TCP_ULP) => by(Allowed::TCP_ULP, 0),
        "setsockopt" if strict && MULTICAST.iter().any(is) => by(Allowed::MULTICAST, 0),
        "sendto" | "sendmmsg" if argument(3) & OUT_OF_BAND != 0 => by(Allowed::MSG_OOB, 0),
        "sendmsg" if argument(2) & OUT_OF_BAND != 0 => by(Allowed::MSG_OOB, 0),
        "socketcall" => {
            let all = Allowed::SOCKETS.with(Allowed::TCP_ULP).with(Allowed::MSG_OOB);
            by(Allowed::SOCKETCALL, 0).filter(|_| !allowed.contains(all))
        }
        "ioctl" if TERMINAL_INPUT.contains(&argument(1)) => by(Allowed::TIOCSTI, 0),
        "personality" if argument(0) != u32::MAX && argument(0) & !PERSONALITY != 0 => {
            by(Allowed::PERSONALITY, 0)
        }
        "clone" if argument(CLONE_FLAGS) & NEW_USER != 0 => {
            by(Allowed::USER_NAMESPACES, 0).filter(|_| confined.filters_user_namespaces)
        }
        "unshare" if argument(0) & NEW_USER != 0 => {
            by(Allowed::USER_NAMESPACES, 0).filter(|_| confined.filters_user_namespaces)
        }
        "clone3" => by(Allowed::USER_NAMESPACES, 0).filter(|_| confined.filters_user_namespaces),
        _ => None,
    }
}

/// Returns the rule that refuses a family of sockets.
fn family(family: u32, by: &impl Fn(Allowed, u64) -> Option<Held>) -> Option<Held> {
    if FAMILIES.contains(&family) {
        return None;
    }
    if family == AF_PACKET {
        return by(Allowed::SOCKETS, capability::NET_RAW);
    }
    // The narrower part is the better answer.
    let sockets = by(Allowed::SOCKETS, 0)?;
    match FAMILIES_BY_PART.iter().find(|(known, _)| *known == family) {
        Some((_, part)) => by(*part, 0),
        None => Some(sockets),
    }
}
