//! The lines of a user log: sentences for people, JSON for machines. Names that a container
//! chooses are escaped, so that none ends a line, or looks like the rest of one.

use std::time::SystemTime;

use sandbox_core::spec::refused::Refused;
use serde_json::{Value, json};

use crate::listeners::Happening;
use operator_api::time::rfc3339;

/// One line.
pub(super) enum Line<'a> {
    Refused(&'a RefusedCall),
    Death(Death<'a>),
    Account(&'a Account),
}

/// A call that was refused to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedCall {
    pub(super) program: String,
    /// Its PID in the container; zero if it was gone.
    pub(super) pid: i32,
    /// Its user in the container.
    pub(super) uid: u32,
    pub(super) refused: Refused,
}

/// The end of a process by SIGSYS.
pub(super) struct Death<'a> {
    /// The exec's ID; `None` for the init.
    pub(super) exec: Option<&'a str>,
    /// Whether the spec's profile kills.
    pub(super) kills: bool,
}

/// What was counted and not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) repeated: Vec<Repeated>,
    /// Refused calls that are not listed.
    pub(super) others: u64,
    /// Lines that the log had no room for.
    pub(super) lost: u64,
}

/// Something that was told, and came again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) program: String,
    pub(super) call: String,
    pub(super) times: u64,
}

impl Account {
    pub(super) fn is_empty(&self) -> bool {
        self.repeated.is_empty() && self.others == 0 && self.lost == 0
    }
}

/// Quotes a name that a container or a client chose.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.escape_debug())
}

impl Line<'_> {
    /// Returns the line with its time.
    pub(super) fn text(&self, at: SystemTime, container: &str) -> String {
        format!("{} palisade: {}", rfc3339(at), self.sentence(container))
    }

    /// Returns the line without its time.
    pub(super) fn sentence(&self, container: &str) -> String {
        match self {
            Line::Refused(RefusedCall { program, pid, uid, refused }) => {
                let Refused { call, errno, rule, instead, .. } = refused;
                let errno = errno.as_ref().map(|errno| format!(" = {errno}")).unwrap_or_default();
                let program = quoted(program);
                format!(
                    "container {container}: {program} (pid {pid}, user {uid}): {call}{errno}: \
                     {rule}; allowed by {instead}"
                )
            }
            Line::Death(death) => format!("container {container}: {}", death.sentence()),
            Line::Account(account) => format!("container {container}: {}", account.sentence()),
        }
    }

    /// Returns the line as an object of JSON.
    pub(super) fn json(&self, at: SystemTime, container: &str) -> String {
        let mut object = self.fields();
        object["event"] = self.kind().into();
        object["time"] = rfc3339(at).into();
        object["container"] = container.into();
        // JSON leaves some signs as they are that end a line elsewhere.
        let escaped = |c: char| match c {
            ' '..='~' => c.to_string(),
            _ => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        };
        object.to_string().chars().map(escaped).collect()
    }

    /// Returns what listeners are told.
    pub(super) fn happening(&self, container: &str) -> Happening {
        let (kind, container) = (self.kind(), container.to_owned());
        Happening { kind, container, exec: None, fields: self.fields() }
    }

    fn kind(&self) -> &'static str {
        match self {
            Line::Refused(_) => "refused",
            Line::Death(_) => "killed",
            Line::Account(_) => "repeated",
        }
    }

    fn fields(&self) -> Value {
        match self {
            Line::Refused(RefusedCall { program, pid, uid, refused }) => json!({
                "program": program,
                "pid": pid,
                "uid": uid,
                "call": refused.call,
                "errno": refused.errno,
                "rule": refused.rule,
                "allowed_by": refused.instead,
            }),
            Line::Death(death) => json!({
                "exec": death.exec,
                "signal": "SIGSYS",
                "rule": death.rule(),
            }),
            Line::Account(account) => {
                let one = |Repeated { program, call, times }: &Repeated| -> Value {
                    json!({ "program": program, "call": call, "times": times })
                };
                json!({
                    "repeated": account.repeated.iter().map(one).collect::<Vec<_>>(),
                    "others": account.others,
                    "lost_lines": account.lost,
                })
            }
        }
    }
}

impl Death<'_> {
    fn sentence(&self) -> String {
        let process = match self.exec {
            None => "its init".to_owned(),
            Some(exec) => format!("its exec {}", quoted(exec)),
        };
        format!("{process} ended by SIGSYS: {}", self.rule())
    }

    fn rule(&self) -> &'static str {
        match self.kills {
            true => {
                "the spec's seccomp profile kills for some calls (the kernel's log on the node \
                 has which: type=1326); allowed by another seccompProfile"
            }
            false => "a seccomp program of its own kills, or another process sent the signal",
        }
    }
}

impl Account {
    fn sentence(&self) -> String {
        let one = |Repeated { program, call, times }: &Repeated| {
            format!("{call} by {} {times} times", quoted(program))
        };
        let mut parts: Vec<_> = self.repeated.iter().map(one).collect();
        if self.others > 0 {
            parts.push(format!("{} calls that are not listed", self.others));
        }
        let mut sentence = format!("refused again: {}", parts.join(", "));
        if parts.is_empty() {
            sentence.clear();
        }
        if self.lost > 0 {
            let and = if sentence.is_empty() { "" } else { "; " };
            sentence += &format!("{and}there was no room for {} lines of this log", self.lost);
        }
        sentence
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use sandbox_core::spec::refused::Rule;

    use super::*;

    fn call(program: &str) -> RefusedCall {
        let refused = Refused {
            call: "bpf(BPF_PROG_LOAD)".into(),
            errno: Some("EPERM".into()),
            by: Rule::Baseline(Some("bpf")),
            rule: "refused by the baseline (bpf)".into(),
            instead: "baseline_allow = [\"bpf\"]".into(),
        };
        RefusedCall { program: program.into(), pid: 7, uid: 1000, refused }
    }

    #[test]
    fn a_line_says_who_what_why_and_what_instead() {
        let text = Line::Refused(&call("tool")).text(UNIX_EPOCH, "web");
        assert_eq!(
            text,
            "1970-01-01T00:00:00Z palisade: container web: \"tool\" (pid 7, user 1000): \
             bpf(BPF_PROG_LOAD) = EPERM: refused by the baseline (bpf); allowed by \
             baseline_allow = [\"bpf\"]"
        );
        let value: Value =
            serde_json::from_str(&Line::Refused(&call("tool")).json(UNIX_EPOCH, "web")).unwrap();
        assert_eq!(value["program"], "tool");
        assert_eq!(value["time"], "1970-01-01T00:00:00Z");
        assert_eq!(value["allowed_by"], "baseline_allow = [\"bpf\"]");
        let repeated = Repeated { program: "a".into(), call: "bpf".into(), times: 9 };
        let account = Account { repeated: vec![repeated], others: 3, lost: 1 };
        assert_eq!(
            Line::Account(&account).sentence("web"),
            "container web: refused again: bpf by \"a\" 9 times, 3 calls that are not listed; \
             there was no room for 1 lines of this log"
        );
    }

    #[test]
    fn no_name_ends_a_line_or_a_quotation() {
        for program in ["a\nb", "\x1b[2J", "a\" (pid 1", "\u{202e}", "\u{2028}x", "\r\0\t\u{85}"] {
            let line = call(program);
            let text = Line::Refused(&line).text(UNIX_EPOCH, "c");
            assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
            assert!(!text.contains(['\u{202e}', '\u{2028}']), "{text:?}");
            assert_eq!(text.matches("(pid").count(), 1 + program.matches("(pid").count());
            assert!(text.contains("\" (pid 7, user 1000): bpf("), "{text:?}");
            let json = Line::Refused(&line).json(UNIX_EPOCH, "c");
            assert!(json.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{json:?}");
            let value: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value["program"], program);
        }
    }
}
