//! Checks that the things that documents name exist: links, source files, functions, the tests of
//! the threat model, and the messages of docs/troubleshooting.md.

use std::fs;
use std::path::{Path, PathBuf};

use integration::containerd::repository;

/// Every document of the repository, by its path in it.
fn documents() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from("integration/kubernetes/README.md")];
    for folder in ["", "docs"] {
        let entries = fs::read_dir(repository().join(folder)).expect("read a folder of documents");
        let names =
            entries.map(|entry| Path::new(folder).join(entry.expect("an entry").file_name()));
        all.extend(names.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    all
}

fn text(document: &Path) -> String {
    let path = repository().join(document);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// A document without its blocks of code.
fn prose(document: &Path) -> String {
    let text = text(document);
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

/// Returns the targets of a document's links.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)).collect()
}

/// Returns what stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The headings of a document, as a forge makes anchors of them.
fn anchors(document: &Path) -> Vec<String> {
    let prose = prose(document);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let kept = |c: char| match c {
        ' ' => Some('-'),
        _ if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    headings
        .map(|line| line.trim_start_matches('#').trim().chars().filter_map(kept).collect())
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut found = 0;
    for document in documents() {
        let folder = document.parent().expect("a folder");
        for link in links(&prose(&document)) {
            if link.starts_with("https:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            let shown = format!("{}: {link}", document.display());
            assert!(repository().join(&target).exists(), "{shown}");
            if !anchor.is_empty() {
                assert!(anchors(&target).iter().any(|known| known == anchor), "{shown}");
            }
            found += 1;
        }
    }
    assert!(found > 30, "{found} links");
}

/// A path in backquotes is one of the repository, or below one of these folders.
const ROOTS: [&str; 3] = ["", "sandbox-core/src", "integration/tests"];

fn find(name: &str) -> Option<PathBuf> {
    ROOTS.iter().map(|root| repository().join(root).join(name)).find(|path| path.exists())
}

#[test]
fn every_source_file_that_is_named_is_there() {
    let mut found = 0;
    for document in documents() {
        for name in quoted(&prose(&document)) {
            let name = name.trim_end_matches('/');
            if name.ends_with(".rs") && name.chars().all(|c| c.is_ascii_graphic()) {
                assert!(find(name).is_some(), "{}: there is no {name}", document.display());
                found += 1;
            }
        }
    }
    assert!(found > 100, "{found} names");
}

/// Returns all source files of a folder, without what is generated there.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![repository().join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read a folder of sources") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true if path.ends_with("target") => {}
                true => folders.push(path),
                false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found
}

/// Whether a line of code has the word, and not only a comment or the name of a lint.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| code.contains(word))
}

#[test]
fn unsafe_code_stands_where_the_rules_say() {
    let text = prose(Path::new("CONTRIBUTING.md"));
    let rule = text.split("- `unsafe` stands only in ").nth(1).expect("the rule");
    let rule = rule.split("Each SAFETY").next().expect("the places");
    let places = quoted(rule);
    let mut used = vec![false; places.len()];
    // This file has the words in strings.
    let all = ["sandbox-core", "shim", "integration"].into_iter().flat_map(rust_files);
    for path in all.filter(|path| !path.ends_with("integration/tests/documents.rs")) {
        let source = fs::read_to_string(&path).expect("read a source file");
        if source.lines().any(is_unsafe) {
            let name = path.strip_prefix(repository()).expect("a file of the repository");
            let place =
                places.iter().position(|place| name.starts_with(place.trim_end_matches('/')));
            let place = place.unwrap_or_else(|| panic!("unsafe code in {}", name.display()));
            used[place] = true;
        }
    }
    assert!(used.iter().all(|used| *used), "none in one of {places:?}: {used:?}");
}

/// Every `file.rs` of ARCHITECTURE.md that names of its functions follow, in
/// parentheses.
fn named_functions() -> Vec<(String, Vec<String>)> {
    let prose = prose(Path::new("ARCHITECTURE.md"));
    let prose = prose.split_whitespace().collect::<Vec<_>>().join(" ");
    let files = prose.split(".rs` (`").collect::<Vec<_>>();
    let followed = files.windows(2).map(|pair| {
        let file = pair[0].rsplit('`').next().expect("a name");
        let names = pair[1].split(')').next().expect("a list of names");
        let names = names.split(['`', ',', ' ']).filter(|name| !name.is_empty());
        (format!("{file}.rs"), names.map(str::to_owned).collect())
    });
    followed.collect()
}

#[test]
fn every_function_that_the_architecture_names_is_there() {
    let named = named_functions();
    assert!(named.len() > 40, "{} files", named.len());
    for (file, functions) in named {
        let path = find(&file).unwrap_or_else(|| panic!("there is no {file}"));
        let source = fs::read_to_string(&path).expect("read a source file");
        for function in functions {
            let is_defined =
                ["(", "<"].map(|next| source.contains(&format!("fn {function}{next}")));
            assert!(is_defined.contains(&true), "{file} has no {function}");
        }
    }
}

/// The rows of the threat model's table.
fn rules() -> Vec<Rule> {
    let document = text(Path::new("docs/threat-model.md"));
    let rows = document.lines().skip_while(|line| !line.starts_with("|---|---|---|")).skip(1);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, enforced, attacked] = cells[..] else { panic!("three cells in {row}") };
        Rule { rule: rule.into(), enforced: enforced.into(), attacked: attacked.into() }
    })
    .collect()
}

/// A row of the threat model's table.
struct Rule {
    rule: String,
    enforced: String,
    attacked: String,
}

#[test]
fn every_rule_of_the_threat_model_is_enforced_and_attacked_where_it_says() {
    let rules = rules();
    assert!(rules.len() > 20, "{} rules", rules.len());
    for Rule { enforced, attacked, .. } in rules {
        let files = enforced.split('`').skip(1).step_by(2);
        assert!(files.clone().count() > 0, "no file enforces {enforced}");
        for file in files {
            assert!(find(file).is_some(), "there is no {file}");
        }
        assert_attacked(&attacked);
    }
}

/// Checks that the tests of a cell exist.
fn assert_attacked(by: &str) {
    for of_one_file in by.split("; ") {
        let mut parts = of_one_file.split('`').skip(1);
        let file = parts.next().unwrap_or_else(|| panic!("no file in {of_one_file:?}"));
        let path = find(file).unwrap_or_else(|| panic!("there is no {file}"));
        let source = fs::read_to_string(&path).expect("read a test");
        let stories = parts.next().unwrap_or_default().split(", ").map(str::trim);
        for story in stories.filter(|story| !story.is_empty()) {
            assert!(source.contains(&format!("fn {story}(")), "{file} has no {story}");
        }
    }
}

#[test]
fn every_vulnerability_of_the_threat_model_is_tried_where_it_says() {
    let document = text(Path::new("docs/threat-model.md"));
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| CVE-")).collect();
    assert!(rows.len() >= 14, "{} vulnerabilities", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, _, _, attacked] = cells[..] else { panic!("four cells in {row}") };
        assert_attacked(attacked);
    }
}

/// Splits a patch without extended headers into its file and the lines that it expects in each
/// place.
fn expected_by(patch: &str) -> (&str, Vec<String>) {
    let (_, rest) = patch.split_once("\n+++ b/").expect("a patch of one file");
    let (file, places) = rest.split_once('\n').expect("a line with the file");
    let expected = |place: &str| {
        let lines = place.lines().skip(1).filter_map(|line| {
            let is_there = line.is_empty() || line.starts_with([' ', '-']);
            is_there.then(|| line.get(1..).unwrap_or_default())
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    (file, places.split("\n@@ ").map(expected).collect())
}

#[test]
fn every_protection_that_ci_mutate_takes_away_is_there() {
    let folder = repository().join("ci/mutations");
    let rules = rules();
    let mut found = 0;
    for entry in fs::read_dir(folder).expect("read the folder of mutations") {
        let path = entry.expect("an entry").path();
        let shown = path.display();
        let patch = fs::read_to_string(&path).expect("read a mutation");
        let line = |key: &str| patch.lines().find_map(|line| line.strip_prefix(key));
        let rule = line("Rule: ").unwrap_or_else(|| panic!("{shown} names no rule"));
        let of_it = rules.iter().find(|row| row.rule.starts_with(rule));
        let of_it = of_it.unwrap_or_else(|| panic!("{shown}: no rule begins with {rule:?}"));
        let test = line("Test: ").and_then(|test| test.split_once(' '));
        let (_, test) = test.unwrap_or_else(|| panic!("{shown} names no place and test"));
        assert!(of_it.attacked.contains(test), "{shown}: {test} does not attack {rule:?}");
        let (file, expected) = expected_by(&patch);
        let source = fs::read_to_string(repository().join(file)).expect("read a source file");
        for lines in expected {
            assert!(source.contains(&lines), "{shown} does not fit {file} any more: {lines}");
        }
        found += 1;
    }
    assert!(found > 30, "{found} mutations");
}

/// The beginnings of messages in docs/troubleshooting.md that containerd, the kubelet or the C
/// library writes, in whole or in part.
const MESSAGES_OF_OTHERS: [&str; 5] = [
    "runtime \"io.",
    "no runtime for",
    "RuntimeClass handler",
    "Permission denied",
    "clone3 of the sandbox process",
];

/// Returns all source files of the product, each sentence in one line.
fn sources() -> String {
    let mut folders = vec![repository().join("shim/src"), repository().join("sandbox-core/src")];
    let mut all = fs::read_to_string(repository().join("shim/package/palisade-containerd"))
        .expect("read palisade-containerd");
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read a folder of sources") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => all.push_str(&fs::read_to_string(&path).expect("read a source file")),
            }
        }
    }
    let lines = all.replace("\\\n", "").replace("\\\"", "\"");
    lines.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the parts of a message, of some length, between its values: words in capitals,
/// numbers, paths and quotations. Many sentences get what is expected as a value.
fn literals(message: &str) -> Vec<String> {
    let is_value = |word: &str| {
        let word = word.trim_matches(|c: char| ",;:().".contains(c));
        let in_capitals = |word: &str| word.chars().all(|c| c.is_ascii_uppercase() || c == '…');
        word.split('.').any(in_capitals)
            || word == "expected"
            || word.contains(['"', '/', '=', '['])
            || word.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut parts = vec![String::new()];
    for word in message.split_whitespace() {
        let last = parts.last_mut().expect("a part");
        if is_value(word) {
            parts.push(String::new());
            continue;
        }
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(word);
        if word.ends_with([':', ';']) {
            last.pop();
            parts.push(String::new());
        }
    }
    parts.retain(|part| part.len() > 15);
    parts
}

#[test]
fn every_message_in_the_headings_of_troubleshooting_is_in_the_source() {
    let sources = sources();
    let document = text(Path::new("docs/troubleshooting.md"));
    let headings = document.split("\n\n").filter(|part| {
        part.strip_prefix("**").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let mut found = 0;
    let mut missing = Vec::new();
    for heading in headings {
        let heading = heading.split_whitespace().collect::<Vec<_>>().join(" ");
        for message in quoted(&heading) {
            let literals = literals(message);
            let is_ours = !MESSAGES_OF_OTHERS.iter().any(|other| message.starts_with(other));
            if is_ours && !literals.is_empty() {
                found += 1;
                if !literals.iter().all(|literal| sources.contains(literal)) {
                    missing.push(message.to_owned());
                }
            }
        }
    }
    assert!(found > 15, "{found} messages");
    assert_eq!(missing, Vec::<String>::new(), "the source has no such messages");
}
