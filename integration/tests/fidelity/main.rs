//! The same requests to runc and to Palisade, and what a process inside sees of
//! each: `integration/src/bin/probe.rs` prints it line by line. The differences
//! are those of the table in docs/compatibility.md, which names and argues each,
//! and no others.

mod requests;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use integration::containerd::{Containerd, Version};

use crate::requests::Request;
use crate::table::Entry;

/// What a probe printed, by its keys.
pub type Facts = BTreeMap<String, String>;

/// A fact that the two runtimes do not share.
#[derive(Debug)]
struct Difference {
    request: &'static str,
    fact: String,
    runc: String,
    palisade: String,
}

/// Beside Debian bookworm's runc.
mod needs_v1 {
    #[test]
    fn containers_see_what_runc_shows_them_but_for_the_table_s_differences() {
        super::compare_all();
    }
}

/// Beside Debian trixie's runc, in ci/node. `ci/node rest`, which is bounded, leaves out the
/// whole list.
mod needs_v2 {
    use crate::requests::{self, Request};

    /// The requests that cgroups, AppArmor, files of the kernel and a shared root make
    /// different there.
    const CHOICE: [&str; 12] = [
        "default",
        "privileged",
        "mounts",
        "propagation",
        "devices",
        "unmasked",
        "cgroup-namespace",
        "cgroup-writable",
        "resources",
        "exec",
        "pod",
        "pod-privileged",
    ];

    #[test]
    fn a_choice_of_requests_shows_what_runc_s_do_but_for_the_table_s_differences() {
        let chosen = |request: &Request| CHOICE.contains(&request.name);
        let requests: Vec<Request> = requests::all().into_iter().filter(chosen).collect();
        assert_eq!(requests.len(), CHOICE.len());
        super::compare(&requests);
    }

    #[test]
    fn containers_see_what_runc_shows_them_but_for_the_table_s_differences() {
        super::compare_all();
    }
}

/// Compares all requests, of which together each line of the table must argue something.
fn compare_all() {
    let unused = compare(&requests::all());
    let here = if requests::cgroup_version_2() { 2 } else { 1 };
    let gone: Vec<Entry> = unused.into_iter().filter(|entry| entry.must_occur(here)).collect();
    assert!(
        gone.is_empty(),
        "docs/compatibility.md argues what does not occur any more: {gone:#?}"
    );
}

/// Makes each request to both runtimes, and returns the lines of the table that argued
/// nothing.
fn compare(requests: &[Request]) -> Vec<Entry> {
    let containerd = requests::start(Version::V2_1);
    let table = table::read();
    let mut unused: BTreeSet<usize> = (0..table.len()).collect();
    let mut faults = Vec::new();
    let mut compared = 0;
    for request in requests {
        let (runc, palisade) =
            (request.facts(&containerd, "runc"), request.facts(&containerd, "palisade"));
        compared += runc.len().max(palisade.len());
        for found in differences(request, &runc, &palisade) {
            match table.iter().position(|entry| entry.argues(&found)) {
                Some(at) => drop(unused.remove(&at)),
                None => faults.push(format!(
                    "| {} | {} | {} | {} | |",
                    found.request, found.fact, found.runc, found.palisade
                )),
            }
        }
    }
    println!("{compared} facts of {} requests", requests.len());
    assert!(faults.is_empty(), "docs/compatibility.md has no word on:\n{}", faults.join("\n"));
    let unused = table.into_iter().enumerate().filter(|(at, _)| unused.contains(at));
    unused.map(|(_, entry)| entry).collect()
}

/// Returns what differs. A fact that only one of them has is `absent` under the
/// other.
fn differences(request: &Request, runc: &Facts, palisade: &Facts) -> Vec<Difference> {
    let keys: BTreeSet<&String> = runc.keys().chain(palisade.keys()).collect();
    let value = |facts: &Facts, key: &String| facts.get(key).map_or("absent", |v| v).to_owned();
    let all = keys.into_iter().map(|key| Difference {
        request: request.name,
        fact: key.clone(),
        runc: value(runc, key),
        palisade: value(palisade, key),
    });
    all.filter(|found| found.runc != found.palisade).collect()
}

/// Returns whether the facts are there at all: an empty comparison would prove
/// nothing.
fn check(facts: &Facts, request: &str, output: &str) {
    assert!(facts.len() > 150, "{request}: only {} facts in: {output}", facts.len());
    assert!(facts.contains_key("may.more-files"), "{request}: the probe ended early: {output}");
}

/// Replaces what no two containers share.
fn facts(request: &str, output: &str, containerd: &Containerd, id: &str) -> Facts {
    let host = requests::host_namespaces();
    let mut facts = Facts::new();
    for line in output.lines() {
        let line = line.trim_end_matches('\r');
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = match key.strip_prefix("ns.") {
            Some(kind) if host.get(kind).is_some_and(|inode| inode == value) => "the host's".into(),
            Some(_) if value.contains(":[") => "its own".into(),
            _ => value.replace(id, "ID").replace(&containerd.namespace(), "SLOT"),
        };
        facts.insert(key.replace(id, "ID"), value);
    }
    check(&facts, request, output);
    facts
}
