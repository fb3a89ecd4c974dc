//! What the documents name is there: links, source files, and the tests of the
//! threat model.

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

/// Returns the texts between two marks.
fn between<'a>(text: &'a str, begin: &str, end: char) -> Vec<&'a str> {
    text.split(begin).skip(1).filter_map(|rest| Some(rest.split_once(end)?.0)).collect()
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
    for document in documents() {
        let folder = document.parent().expect("a folder");
        for link in between(&prose(&document), "](", ')') {
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
        }
    }
}

/// A path in backquotes is one of the repository, or below one of these folders.
const ROOTS: [&str; 3] = ["", "sandbox-core/src", "integration/tests"];

fn find(name: &str) -> Option<PathBuf> {
    ROOTS.iter().map(|root| repository().join(root).join(name)).find(|path| path.exists())
}

#[test]
fn every_source_file_that_is_named_is_there() {
    for document in documents() {
        for name in between(&prose(&document), "`", '`') {
            let name = name.trim_end_matches('/');
            if name.ends_with(".rs") && name.chars().all(|c| c.is_ascii_graphic()) {
                assert!(find(name).is_some(), "{}: there is no {name}", document.display());
            }
        }
    }
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

/// The rows of the threat model's table: where a rule is enforced, and what
/// attacks it.
fn rules() -> Vec<(String, String)> {
    let document = text(Path::new("docs/threat-model.md"));
    let rows = document.lines().skip_while(|line| !line.starts_with("|---|---|---|")).skip(1);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, enforced, attacked] = cells[..] else { panic!("three cells in {row}") };
        (enforced.to_owned(), attacked.to_owned())
    })
    .collect()
}

#[test]
fn every_rule_of_the_threat_model_is_enforced_and_attacked_where_it_says() {
    let rules = rules();
    assert!(rules.len() > 20, "{} rules", rules.len());
    for (enforced, attacked) in rules {
        let files = enforced.split('`').skip(1).step_by(2);
        assert!(files.clone().count() > 0, "no file enforces {enforced}");
        for file in files {
            assert!(find(file).is_some(), "there is no {file}");
        }
        for of_one_file in attacked.split("; ") {
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
}
