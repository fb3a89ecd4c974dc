//! The process that is asked for: the container's own, with another command.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Exec, terminal};

/// Makes the process from the spec in the container's bundle, as `ctr task exec` does.
pub(super) fn make(flags: &Exec, user: Option<Value>, bundle: &Path) -> Result<Value> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut spec: Value =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    let process = spec["process"].take();
    if !process.is_object() {
        bail!("{}: the container has no process", path.display());
    }
    Ok(change(process, flags, user))
}

fn change(mut process: Value, flags: &Exec, user: Option<Value>) -> Value {
    process["args"] = json!(flags.command);
    process["terminal"] = json!(flags.tty);
    // That of the container's own process, and what it was started with.
    for key in ["consoleSize", "commandLine", "execCPUAffinity"] {
        process.as_object_mut().map(|process| process.remove(key));
    }
    if let Some((width, height)) = terminal::size().filter(|_| flags.tty) {
        process["consoleSize"] = json!({"width": width, "height": height});
    }
    if let Some(cwd) = &flags.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = user {
        process["user"] = user;
    }
    let mut variables: Vec<String> =
        serde_json::from_value(process["env"].take()).unwrap_or_default();
    if flags.tty && !variables.iter().any(|variable| variable.starts_with("TERM=")) {
        variables.push(format!("TERM={}", std::env::var("TERM").unwrap_or("xterm".into())));
    }
    for variable in &flags.env {
        let name = &variable[..=variable.find('=').unwrap_or(0)];
        variables.retain(|other| !other.starts_with(name));
        variables.push(variable.clone());
    }
    process["env"] = json!(variables);
    process
}

/// Parses a directory in a container.
pub(super) fn directory(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err("expected a path that begins with /".to_owned()),
    }
}

/// Parses `NAME=VALUE`.
pub(super) fn variable(text: &str) -> Result<String, String> {
    match text.find('=') {
        Some(1..) => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        exec: Exec,
    }

    fn changed(args: &[&str]) -> Value {
        let line = Line::parse_from([&["exec"], args].concat());
        let process = json!({
            "args": ["sleep"], "cwd": "/", "env": ["A=1", "AB=2"], "noNewPrivileges": true,
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "capabilities": {"bounding": ["CAP_CHOWN"]}, "consoleSize": {"width": 1, "height": 2},
        });
        let user = line.exec.user.as_ref().map(|user| user.of_container(0).unwrap());
        change(process, &line.exec, user)
    }

    #[test]
    fn it_is_the_containers_process_with_another_command() {
        let process = changed(&["id", "--", "ls", "-l"]);
        assert_eq!(
            process,
            json!({
                "args": ["ls", "-l"], "cwd": "/", "env": ["A=1", "AB=2"], "noNewPrivileges": true,
                "user": {"uid": 5, "gid": 6, "additionalGids": [7]}, "terminal": false,
                "capabilities": {"bounding": ["CAP_CHOWN"]},
            })
        );
    }

    #[test]
    fn flags_replace_parts_of_it() {
        let process = changed(&["-u", "1:2", "-w", "/tmp", "-e", "A=3", "-e", "C=", "id", "ls"]);
        assert_eq!(process["user"], json!({"uid": 1, "gid": 2}));
        assert_eq!(process["cwd"], "/tmp");
        assert_eq!(process["env"], json!(["AB=2", "A=3", "C="]));
    }

    #[test]
    fn a_wrong_flag_says_what_was_expected() {
        assert!(directory("tmp").is_err());
        assert!(variable("A").is_err() && variable("=1").is_err());
    }
}
