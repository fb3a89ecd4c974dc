//! Says in words what was refused to a container: the call with its arguments, the rule, and what
//! allows it. The user log tells it.

mod arguments;
mod profile;

use nix::errno::Errno;

use super::baseline::{Held, held, is_native, name_of};
use super::plan::{Plan, Test, WatchedCall};
use super::resolve::capabilities::names_of;
use crate::types::Call;

/// `CAP_NET_RAW`
const NET_RAW: u8 = 13;

/// What a container's user log tells about one call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// The call with its arguments: `socket(AF_ALG, SOCK_SEQPACKET, 0)`.
    pub call: String,
    /// The errno's name, where a program of seccomp refused it.
    pub errno: Option<String>,
    /// What refused it.
    pub by: Rule,
    /// The rule that refused it: a part of a sentence.
    pub rule: String,
    /// What to set so that it is allowed: a part of a sentence.
    pub instead: String,
}

/// What refuses a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The baseline: the part of `baseline_allow` that allows the call, or the list of the strict
    /// one.
    Baseline(Option<&'static str>),
    /// The spec's seccomp profile alone.
    Profile,
    /// That the process lacks the capability of this number.
    Capability(u8),
}

impl Rule {
    /// Returns the kind of rule: `baseline`, `profile` or `capability`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Baseline(_) => "baseline",
            Self::Profile => "profile",
            Self::Capability(_) => "capability",
        }
    }

    /// Returns the name of the baseline's part, or of the capability. Empty if there is none.
    pub fn name(self) -> String {
        match self {
            Self::Baseline(part) => part.unwrap_or("strict").to_owned(),
            Self::Profile => String::new(),
            Self::Capability(number) => 1_u64
                .checked_shl(number.into())
                .map(|mask| names_of(mask).collect())
                .unwrap_or_default(),
        }
    }
}

/// Explains a call that was refused with an errno, or about which the kernel decided. `None` if
/// the container lacks nothing for it.
pub fn explain(plan: &Plan, call: &Call, errno: Option<u16>) -> Option<Refused> {
    let name = name_of(call);
    let name = name.as_deref().unwrap_or_default();
    let (by, (rule, instead)) = match errno {
        Some(_) => by_program(plan, name, call),
        None => by_kernel(plan, taken(plan, call).find(|watched| holds(watched, call))?.capability),
    };
    let errno = errno.map(|errno| match Errno::from_raw(errno.into()) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    });
    Some(Refused { call: arguments::describe(name, call), errno, by, rule, instead })
}

/// Writes a call with its arguments, as far as registers say something.
pub fn written(call: &Call) -> String {
    arguments::describe(name_of(call).as_deref().unwrap_or_default(), call)
}

/// Lists what a call takes that the container lacks, for some arguments.
fn taken<'a>(plan: &'a Plan, call: &Call) -> impl Iterator<Item = &'a WatchedCall> {
    let (native, number) = (is_native(call), call.number);
    let calls = plan.container.watch.iter().flat_map(|watch| &watch.calls);
    calls.filter(move |watched| native && watched.number == number)
}

/// Whether it takes that for these arguments.
fn holds(watched: &WatchedCall, call: &Call) -> bool {
    let lower = |argument: u8| call.arguments.get(usize::from(argument)).map_or(0, |v| *v as u32);
    watched.tests.iter().all(|test| match *test {
        Test::AnyOf { argument, bits } => lower(argument) & bits != 0,
        Test::Equals { argument, mask, value } => lower(argument) & mask == value,
    })
}

/// Explains the refusal of a seccomp program: the baseline's, the profile's, or both.
fn by_program(plan: &Plan, name: &str, call: &Call) -> (Rule, (String, String)) {
    let baseline = plan.host.confined.and_then(|confined| held(&confined, call));
    let refuses = |profile| profile::refuses(profile, name, &call.arguments);
    let profile = plan.host.seccomp.as_ref().is_some_and(refuses);
    // Engines' profiles allow calls together with the capability that they take.
    let granted =
        taken(plan, call).find_map(|watched| watched.capability).map(|number| 1 << number);
    let by = baseline.map_or(Rule::Profile, |held| Rule::Baseline(held.part));
    let sentences = match (baseline, profile) {
        (Some(held), false) => (rule_of(held), allow(held)),
        (Some(held), true) => (
            format!("{} and the spec's seccomp profile", rule_of(held)),
            format!("{}, and {}", allow(held), other_profile(granted)),
        ),
        (None, _) => ("refused by the spec's seccomp profile".to_owned(), other_profile(granted)),
    };
    (by, sentences)
}

fn rule_of(held: Held) -> String {
    match held.part {
        Some(part) => format!("refused by the baseline ({part})"),
        None => "refused by the baseline's strict list".to_owned(),
    }
}

fn allow(held: Held) -> String {
    let part = held.part.map_or_else(
        || "baseline = \"default\"".to_owned(),
        |part| format!("baseline_allow = [\"{part}\"]"),
    );
    match held.granted_by {
        0 => part,
        any_of => format!("{part}, or {}", add(any_of)),
    }
}

fn other_profile(granted_by: Option<u64>) -> String {
    let profile = "another seccompProfile";
    match granted_by {
        None => profile.to_owned(),
        Some(any_of) => format!("{}, or {profile}", add(any_of)),
    }
}

/// Explains what the kernel refuses.
fn by_kernel(plan: &Plan, capability: Option<u8>) -> (Rule, (String, String)) {
    let Some(capability) = capability else {
        let sentences = (
            "refused by the baseline (user_namespaces)".to_owned(),
            "baseline_allow = [\"user_namespaces\"]".to_owned(),
        );
        return (Rule::Baseline(Some("user_namespaces")), sentences);
    };
    let (mask, name) = (1 << capability, names_of(1 << capability).collect::<String>());
    let process = plan.container.process.as_ref();
    let can_have = process.map_or(0, |p| p.capabilities.bounding | p.capabilities.permitted);
    let sentences = match can_have & mask == 0 {
        true => (format!("needs {name}, which the container does not have"), add(mask)),
        // Sockets are made for who has it, whatever the network.
        false if capability == NET_RAW => (
            format!("needs {name}, which this process does not have"),
            "running it as root".to_owned(),
        ),
        false => (
            format!("needs {name} over the host, which nothing in a user namespace has"),
            "userns = \"never\" for this pod".to_owned(),
        ),
    };
    (Rule::Capability(capability), sentences)
}

/// Returns how a pod gets one of these capabilities.
fn add(any_of: u64) -> String {
    let names: Vec<_> = names_of(any_of).collect();
    let short = names.iter().map(|name| name.trim_start_matches("CAP_"));
    let each: Vec<_> = short.map(|name| format!("[\"{name}\"]")).collect();
    format!("securityContext.capabilities.add: {}", each.join(" or "))
}
