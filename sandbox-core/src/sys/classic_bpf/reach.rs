//! What a program does with calls of which the number and the architecture are known.

use super::{
    AND, ARCHITECTURE_AT, FROM_REGISTER, IF_SET, JUMP, LOAD, LOAD_NUMBER, NUMBER_AT, RETURN,
    RETURN_HELD, STORE, STORE_X, Step, TO_X,
};

/// How a program begins with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It has this result, whatever the call's arguments are.
    Result(u32),
    /// It comes to this instruction, which is its first one or loads an argument: of what was
    /// held before it, only what its first one takes counts.
    At(usize),
}

/// Returns how a program begins with a call. The same holds for all calls that it does not tell
/// apart by a comparison of their number.
///
/// `None` if a jump leads out of the program, which the kernel does not load.
pub fn beginning(program: &[Step], number: u32, architecture: u32) -> Option<Beginning> {
    let (mut at, mut held) = (0, None);
    loop {
        let step = program.get(at)?;
        at = match step.code {
            LOAD if step.operand == NUMBER_AT => {
                held = Some(number);
                at + 1
            }
            LOAD if step.operand == ARCHITECTURE_AT => {
                held = Some(architecture);
                at + 1
            }
            LOAD_NUMBER => {
                held = Some(step.operand);
                at + 1
            }
            LOAD => return Some(Beginning::At(at)),
            JUMP => at + 1 + step.operand as usize,
            RETURN => return Some(Beginning::Result(step.operand)),
            code if step.branches() && code & !FROM_REGISTER != IF_SET => {
                match held.and_then(|value| step.decides(value, None)) {
                    Some(true) => at + 1 + usize::from(step.if_true),
                    Some(false) => at + 1 + usize::from(step.if_false),
                    None => return Some(Beginning::At(0)),
                }
            }
            _ => return Some(Beginning::At(0)),
        };
    }
}

/// Where a call comes into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The instruction, which takes nothing that was held before it.
    pub at: usize,
    /// The call's number. `None` for more than one.
    pub number: Option<u32>,
    /// The call's architecture.
    pub architecture: u32,
}

/// A part of a program.
#[derive(Debug, Default)]
pub struct Part {
    /// Its instructions, with jumps to match.
    pub code: Vec<Step>,
    /// Where each instruction of the whole program comes to stand.
    places: Vec<usize>,
}

impl Part {
    /// Returns where an instruction of the whole program stands that is in this part.
    pub fn place(&self, at: usize) -> Option<usize> {
        self.places.get(at).copied()
    }
}

/// Returns the part of a program that calls can reach.
///
/// `None` if a jump leads out of the program, which the kernel does not load.
pub fn reachable(program: &[Step], starts: &[Start]) -> Option<Part> {
    let mut reached = vec![false; program.len()];
    for start in starts {
        mark(program, start, &mut reached)?;
    }
    let mut places = Vec::with_capacity(program.len());
    let mut next = 0;
    for reached in &reached {
        places.push(next);
        next += usize::from(*reached);
    }
    let distance = |from: usize, to: usize| Some(places.get(to)? - places[from] - 1);
    let mut code = Vec::with_capacity(next);
    for (at, step) in program.iter().enumerate().filter(|(at, _)| reached[*at]) {
        let mut step = *step;
        if step.code == JUMP {
            step.operand = distance(at, at + 1 + step.operand as usize)? as u32;
        } else if step.branches() {
            let targets = [step.if_true, step.if_false].map(|far| at + 1 + usize::from(far));
            match targets.map(|to| reached.get(to).copied().unwrap_or_default()) {
                // It is only ever decided in one way.
                [true, false] => step = Step::jump(distance(at, targets[0])?),
                [false, true] => step = Step::jump(distance(at, targets[1])?),
                _ => {
                    step.if_true = distance(at, targets[0])? as u8;
                    step.if_false = distance(at, targets[1])? as u8;
                }
            }
        }
        code.push(step);
    }
    Some(Part { code, places })
}

/// What is known of the value that a program holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Known(u32),
    Unknown,
}

/// Marks the instructions that a call can reach. Jumps lead forwards only.
fn mark(program: &[Step], start: &Start, reached: &mut [bool]) -> Option<()> {
    let mut held = vec![Held::Nothing; program.len()];
    *held.get_mut(start.at)? = Held::Unknown;
    for at in start.at..program.len() {
        let value = held[at];
        if value == Held::Nothing {
            continue;
        }
        reached[at] = true;
        let step = program[at];
        let mut to = |target: usize, value: Held| {
            let there = held.get_mut(target)?;
            *there = match *there {
                Held::Nothing => value,
                same if same == value => value,
                _ => Held::Unknown,
            };
            Some(())
        };
        match (step.code, value) {
            (JUMP, _) => to(at + 1 + step.operand as usize, value)?,
            (RETURN, _) | (RETURN_HELD, _) => {}
            (LOAD, _) if step.operand == NUMBER_AT => {
                to(at + 1, start.number.map_or(Held::Unknown, Held::Known))?;
            }
            (LOAD, _) if step.operand == ARCHITECTURE_AT => {
                to(at + 1, Held::Known(start.architecture))?;
            }
            (AND, Held::Known(known)) => to(at + 1, Held::Known(known & step.operand))?,
            (STORE | STORE_X | TO_X, _) => to(at + 1, value)?,
            _ if step.branches() => {
                let decided = match value {
                    Held::Known(known) => step.decides(known, None),
                    _ => None,
                };
                if decided != Some(false) {
                    to(at + 1 + usize::from(step.if_true), value)?;
                }
                if decided != Some(true) {
                    to(at + 1 + usize::from(step.if_false), value)?;
                }
            }
            _ => to(at + 1, Held::Unknown)?,
        }
    }
    Some(())
}
