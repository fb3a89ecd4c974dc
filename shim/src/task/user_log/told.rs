//! What was told about one container: each thing once, and not too much at a time.

use std::collections::HashMap;
use std::sync::Arc;

use oci_spec::runtime::LinuxSeccompAction as Action;
use sandbox_core::control::refusal::{Answer, Refusal};
use sandbox_core::sandbox::counters::Counters;
use sandbox_core::spec::plan::Plan;
use sandbox_core::spec::refused::{Refused, explain};

use super::line::{Account, RefusedCall, Repeated};
use crate::task::allowance::Allowance;

/// The things that are kept apart. Others are counted together.
const MOST: usize = 64;

/// The cost of a line, the lines at once, and what comes back each second: a line in half a
/// minute.
const LINE: u32 = 30;
const AT_ONCE: u32 = 10 * LINE;
const A_SECOND: u32 = 1;

/// The things that an account lists.
const LISTED: usize = 10;

/// The longest name of a program.
const LONGEST_PROGRAM: usize = 64;

/// The bounded memory of what was told.
pub(super) struct Told {
    plan: Arc<Plan>,
    /// How often each thing was refused since it was told, or since the last account.
    repeats: HashMap<Thing, u64>,
    /// The same for all that is not kept apart.
    others: u64,
    lines: Allowance,
}

/// A thing that is told once.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Thing {
    program: String,
    refused: Refused,
}

impl Told {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        let lines = Allowance::new(AT_ONCE, A_SECOND);
        Self { plan, repeats: HashMap::new(), others: 0, lines }
    }

    pub(super) fn plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Counts a record. Returns what is to be told now. `inside` translates a user of the host.
    pub(super) fn take(
        &mut self,
        record: &Refusal,
        counters: &Counters,
        inside: impl Fn(u32) -> u32,
    ) -> Option<RefusedCall> {
        let Some(call) = &record.call else {
            self.others = self.others.saturating_add(record.times);
            counters.refused(None, record.times);
            return None;
        };
        let errno = match record.answer {
            Answer::Refused(errno) => Some(errno),
            Answer::Watched => None,
        };
        let refused = explain(&self.plan, call, errno)?;
        counters.refused(Some(refused.by), record.times);
        let program = record.caller.program.chars().take(LONGEST_PROGRAM).collect();
        let thing = Thing { program, refused };
        if let Some(times) = self.repeats.get_mut(&thing) {
            *times = times.saturating_add(record.times);
            return None;
        }
        if self.repeats.len() >= MOST || !self.lines.take(LINE) {
            self.others = self.others.saturating_add(record.times);
            return None;
        }
        let Thing { program, refused } = thing.clone();
        self.repeats.insert(thing, record.times.saturating_sub(1));
        let (pid, uid) = (record.caller.pid, inside(record.caller.uid));
        Some(RefusedCall { program, pid, uid, refused })
    }

    /// Returns whether the profile kills at all, if the death of a process may be told now.
    pub(super) fn death(&mut self) -> Option<bool> {
        let kills = |action| {
            use Action::{ScmpActKill, ScmpActKillProcess, ScmpActKillThread, ScmpActTrap};
            matches!(action, ScmpActKill | ScmpActKillProcess | ScmpActKillThread | ScmpActTrap)
        };
        let profile = self.plan.host.seccomp.as_ref();
        let kills = profile.is_some_and(|profile| {
            let mut rules = profile.syscalls().iter().flatten();
            kills(profile.default_action()) || rules.any(|rule| kills(rule.action()))
        });
        self.lines.take(LINE).then_some(kills)
    }

    /// Returns what was counted since the last account; `None` if that is nothing. Where there
    /// is no more room, forgets what was not repeated.
    pub(super) fn account(&mut self, lost: u64) -> Option<Account> {
        let mut repeated: Vec<_> = self
            .repeats
            .iter()
            .filter(|(_, times)| **times > 0)
            .map(|(thing, times)| Repeated {
                program: thing.program.clone(),
                call: thing.refused.call.clone(),
                times: *times,
            })
            .collect();
        repeated.sort_unstable_by(|a, b| {
            b.times.cmp(&a.times).then_with(|| (&a.call, &a.program).cmp(&(&b.call, &b.program)))
        });
        let rest = repeated.split_off(repeated.len().min(LISTED));
        let rest = rest.iter().fold(self.others, |all, one| all.saturating_add(one.times));
        if self.repeats.len() >= MOST {
            self.repeats.retain(|_, times| *times > 0);
        }
        self.repeats.values_mut().for_each(|times| *times = 0);
        self.others = 0;
        let account = Account { repeated, others: rest, lost };
        (!account.is_empty()).then_some(account)
    }
}
