//! One line for each stack: the frames from the outermost to the innermost, with semicolons
//! between, and a number. What flamegraph.pl, inferno and speedscope read.

use crate::profile::{Line, Profile};

/// Returns the lines. A stack begins with the container and the thread, whose names `container`
/// tells by index; the number is of microseconds.
pub fn folded(profile: &Profile, container: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for line in &profile.lines {
        text += &frames(line, &container).join(";");
        text += &format!(" {}\n", line.weight.time.div_ceil(1000));
    }
    text
}

/// Returns the frames of a line, the outermost first.
pub(super) fn frames(line: &Line, container: impl Fn(usize) -> String) -> Vec<String> {
    let mut frames = vec![
        clean(&container(line.who.container)),
        clean(&format!("{} {}", line.thread, line.who.pid)),
    ];
    frames.extend(line.stack.iter().rev().map(|function| {
        let mark = if function.file == "[kernel]" { "_[k]" } else { "" };
        format!("{}{mark}", clean(&function.name))
    }));
    frames.extend(line.detail.as_deref().map(|detail| clean(&format!("({detail})"))));
    frames
}

/// Takes out what divides frames and lines: names are the containers'.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c == ';' || c.is_control() { '_' } else { c }).collect()
}
