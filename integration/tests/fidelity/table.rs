//! The table of differences in docs/compatibility.md, which is what the test
//! goes by.

use crate::Difference;

const PAGE: &str = include_str!("../../../docs/compatibility.md");

/// The lines of the page between which the table stands.
const MARKS: [&str; 2] = ["<!-- fidelity begins", "<!-- fidelity ends"];

/// One line: a difference and its reason. `*` stands for any text.
#[derive(Debug)]
pub struct Entry {
    requests: Vec<String>,
    /// The only version of cgroups under which it occurs.
    version: Option<u32>,
    /// Whether it occurs in some runs only: a race of runc's.
    sometimes: bool,
    fact: String,
    runc: String,
    palisade: String,
}

/// Reads the table. Panics if a line has no reason.
pub fn read() -> Vec<Entry> {
    let (_, rest) = PAGE.split_once(MARKS[0]).expect("the page has the first mark");
    let (table, _) = rest.split_once(MARKS[1]).expect("the page has the second mark");
    let lines = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines.map(entry).collect()
}

fn entry(line: &str) -> Entry {
    let cells: Vec<String> =
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
    let [requests, fact, runc, palisade, why] =
        <[String; 5]>::try_from(cells).unwrap_or_else(|cells| panic!("not five cells: {cells:?}"));
    assert!(why.len() > 5, "no reason in: {line}");
    let (requests, sometimes) = match requests.strip_suffix(" (sometimes)") {
        Some(requests) => (requests, true),
        None => (requests.as_str(), false),
    };
    let (requests, version) = match requests.split_once(" (version ") {
        Some((requests, version)) => (requests, version.trim_end_matches(')').parse().ok()),
        None => (requests, None),
    };
    let requests = requests.split(", ").map(str::to_owned).collect();
    Entry { requests, version, sometimes, fact, runc, palisade }
}

impl Entry {
    /// Whether it is about this difference.
    pub fn argues(&self, found: &Difference) -> bool {
        self.requests.iter().any(|name| name == "all" || name == found.request)
            && matches(&self.fact, &found.fact)
            && matches(&self.runc, &found.runc)
            && matches(&self.palisade, &found.palisade)
    }

    /// Whether it must occur on a host with this version of cgroups. What is said of all hosts
    /// is proven by version 1's, since some of it is about an older runc.
    pub fn must_occur(&self, version: u32) -> bool {
        !self.sometimes && self.version.unwrap_or(1) == version
    }
}

/// Whether a text matches a pattern with any number of `*`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[test]
fn patterns_match_any_text_between_their_parts() {
    for (pattern, text) in [("a", "a"), ("a*", "abc"), ("*c", "abc"), ("a*c*e", "abcde"), ("*", "")]
    {
        assert!(matches(pattern, text), "{pattern} {text}");
    }
    for (pattern, text) in [("a", "ab"), ("a*", "ba"), ("*c", "ac d"), ("a*c*e", "abde")] {
        assert!(!matches(pattern, text), "{pattern} {text}");
    }
}
