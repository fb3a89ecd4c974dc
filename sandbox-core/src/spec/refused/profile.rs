//! Whether a profile refuses a call, by its text: for an explanation.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

/// Whether the profile refuses a call by an errno.
pub(super) fn refuses(profile: &LinuxSeccomp, name: &str, arguments: &[u64; 6]) -> bool {
    let rules = profile.syscalls().iter().flatten();
    let mut matching = rules.filter(|rule| matches(rule, name, arguments));
    let action = matching.next().map_or(profile.default_action(), LinuxSyscall::action);
    action == Action::ScmpActErrno
}

fn matches(rule: &LinuxSyscall, name: &str, arguments: &[u64; 6]) -> bool {
    let holds = |arg: &LinuxSeccompArg| {
        let Some(value) = arguments.get(arg.index()) else { return false };
        let (operand, second) = (arg.value(), arg.value_two().unwrap_or_default());
        match arg.op() {
            Operator::ScmpCmpEq => *value == operand,
            Operator::ScmpCmpNe => *value != operand,
            Operator::ScmpCmpGe => *value >= operand,
            Operator::ScmpCmpGt => *value > operand,
            Operator::ScmpCmpLe => *value <= operand,
            Operator::ScmpCmpLt => *value < operand,
            Operator::ScmpCmpMaskedEq => value & operand == second,
        }
    };
    rule.names().iter().any(|known| known == name) && rule.args().iter().flatten().all(holds)
}
