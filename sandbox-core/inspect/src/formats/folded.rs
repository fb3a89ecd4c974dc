//! One line for each stack: the frames from the outermost to the innermost, with semicolons
//! between, and a number. What flamegraph.pl, inferno and speedscope read.

use super::{Measure, Unit};
use crate::profile::{Line, Profile};

/// Returns the lines. A stack begins with the container and the thread, whose names `container`
/// tells by index; the number is of microseconds or of bytes.
pub fn folded(profile: &Profile, measure: Measure, container: impl Fn(usize) -> String) -> String {
    let number = |weight: u64| match measure.unit {
        Unit::Nanoseconds => weight.div_ceil(1000),
        Unit::Bytes => weight,
    };
    let mut text = String::new();
    for line in &profile.lines {
        text += &frames(line, &container).join(";");
        text += &format!(" {}\n", number(line.weight.time));
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
