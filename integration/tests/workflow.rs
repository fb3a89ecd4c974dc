//! `.github/workflows/ci.yml`, as far as it can be checked without a runner of
//! GitHub's.

use std::fs;

use integration::containerd::repository;
use serde_norway::Value;

fn workflow() -> Value {
    let text = fs::read_to_string(repository().join(".github/workflows/ci.yml"));
    serde_norway::from_str(&text.expect("read the workflow")).expect("the workflow is YAML")
}

fn steps(workflow: &Value) -> &Vec<Value> {
    workflow["jobs"]["ci"]["steps"].as_sequence().expect("a job with steps")
}

#[test]
fn the_workflow_runs_everything() {
    let workflow = workflow();
    let runs = |step: &&Value| step["run"].as_str() == Some(".ci/run");
    assert_eq!(steps(&workflow).iter().filter(runs).count(), 1);
}

/// An action is code that can change under its name.
#[test]
fn the_workflow_pins_its_actions() {
    for action in steps(&workflow()).iter().filter_map(|step| step["uses"].as_str()) {
        let version = action.split_once("@v").map(|(_, version)| version.split('.').count());
        assert_eq!(version, Some(3), "{action}: expected NAME@vX.Y.Z");
    }
}

/// So that the promise of Cargo.toml is kept: nothing newer is needed.
#[test]
fn the_workflow_has_the_oldest_rust_that_is_promised() {
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).expect("read Cargo.toml");
    let promised = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let promised = promised.expect("a rust-version").trim_matches('"');
    let workflow = workflow();
    let image = workflow["jobs"]["ci"]["container"]["image"].as_str().expect("an image");
    assert_eq!(image, format!("rust:{promised}-bookworm"));
}
