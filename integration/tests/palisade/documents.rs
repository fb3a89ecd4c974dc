//! docs/operating.md is true: what it says to type is typed.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::containerd::{Containerd, Version};
use integration::{built, wait};

use crate::Ran;
use crate::terminals::Terminal;

/// Verbs that end only when they are told to.
const FOLLOW: [&str; 3] = ["palisade events", "palisade spans", "palisade top"];

/// Returns the lines of the document that begin with `# palisade`.
fn lines() -> Vec<String> {
    let text = fs::read_to_string(built::repository().join("docs/operating.md")).expect("read");
    let typed = text.lines().filter_map(|line| line.strip_prefix("# palisade "));
    typed.map(|rest| format!("palisade {rest}")).collect()
}

/// Types a line in a directory.
fn type_in(line: &str, directory: &Path) -> Ran {
    let path = std::env::var("PATH").expect("a PATH");
    let path = format!("{}:{path}", built::palisade_executables().display());
    let follows = FOLLOW.iter().any(|verb| line.starts_with(verb)) && !line.contains("--once");
    // Ctrl-C ends it.
    let line = if follows { format!("timeout -s INT 1 {line}") } else { line.to_owned() };
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).env("PATH", path).current_dir(directory);
    shell.stdin(std::process::Stdio::null()).output().expect("run sh").into()
}

/// The pod `web-0` of the namespace `shop`, whose container is `app`, as in the document.
#[test]
fn what_the_document_for_operators_says_can_be_typed() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod_with("web-0", |config| {
        config.metadata.as_mut().expect("metadata").namespace = "shop".to_owned();
    });
    let script = "echo daemon:x:1:1::/:/bin/sh >>/etc/passwd; echo tty:x:5: >>/etc/group\n\
                  trap 'echo again' HUP\n\
                  while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05; done";
    let app = pod.shell("app", script);
    let pid = app.pid().to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let mut typed = 0;
    for line in lines() {
        // Those of other pods that start beside this are no leftovers, but in a test's control.
        // A port of the machine's is asked for by the story of the metrics.
        if line.contains("--fix-leftovers") || line.starts_with("palisade metrics") {
            continue;
        }
        typed += 1;
        let line = line.replace("4711", &pid);
        // Nobody waits for so long here.
        let line = line.replace("--duration 10m", "--duration 1s");
        let line = line.replace("--duration 10s", "--duration 1s");
        if line.contains(" -it ") {
            let args: Vec<&str> = line.split_whitespace().skip(1).collect();
            let mut terminal = Terminal::run(24, 80, &args);
            terminal.type_in("exit\r");
            terminal.ends_with(0);
            continue;
        }
        let ran = type_in(&line, directory.path());
        println!("# {line}\n{}{}", ran.out, ran.errors);
        let warns = line == "palisade doctor" && ran.code == Some(1);
        // A pod of another test's may be stopped meanwhile.
        let warns = warns || line == "palisade list" && ran.code == Some(4);
        let follows = ran.code == Some(124);
        assert!(ran.code == Some(0) || warns || follows, "{line}: {ran:?}");
    }
    assert!(typed > 20, "{typed}");
    wait::until("the signal arrives", || {
        app.log_lines().iter().any(|(_, line)| line == "again").then_some(())
    });
}
