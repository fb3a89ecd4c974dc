//! Classic BPF, as seccomp programs have it: `linux/filter.h`, `linux/bpf_common.h`.

mod reach;
mod search;

pub use self::reach::{Beginning, Part, Start, beginning, reachable};
pub use self::search::search;
use super::seccomp_listener::Data;

/// One instruction: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub code: u16,
    /// How many instructions a branch skips if it holds.
    pub if_true: u8,
    /// How many it skips if not.
    pub if_false: u8,
    /// A value, an offset or a distance, by the code.
    pub operand: u32,
}

impl Step {
    /// A jump over so many instructions.
    pub const fn jump(distance: usize) -> Self {
        Self { code: JUMP, if_true: 0, if_false: 0, operand: distance as u32 }
    }

    /// Ends the program with this result.
    pub const fn returns(operand: u32) -> Self {
        Self { code: RETURN, if_true: 0, if_false: 0, operand }
    }

    /// Loads the word at an offset of `struct seccomp_data`.
    pub const fn load(offset: u32) -> Self {
        Self { code: LOAD, if_true: 0, if_false: 0, operand: offset }
    }

    /// Loads the lower half of an argument.
    pub const fn load_argument(index: u32) -> Self {
        Self::load(ARGUMENTS_AT + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 })
    }

    /// Reads one from the machine's own form.
    pub fn of(bytes: &[u8; 8]) -> Self {
        let [a, b, if_true, if_false, operand @ ..] = *bytes;
        let code = u16::from_ne_bytes([a, b]);
        Self { code, if_true, if_false, operand: u32::from_ne_bytes(operand) }
    }

    /// Returns the machine's own form.
    pub fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.code.to_ne_bytes();
        let [c, d, e, f] = self.operand.to_ne_bytes();
        [a, b, self.if_true, self.if_false, c, d, e, f]
    }

    /// Whether it is a branch.
    pub fn branches(self) -> bool {
        self.code & CLASS == BRANCH && self.code != JUMP
    }

    /// Returns how a branch decides. `None` without the register that it compares with, and for
    /// what is no branch.
    pub fn decides(self, value: u32, x: Option<u32>) -> Option<bool> {
        let with = if self.code & FROM_REGISTER == 0 { self.operand } else { x? };
        Some(match self.code & !FROM_REGISTER {
            IF_EQUAL => value == with,
            IF_MORE => value > with,
            IF_AT_LEAST => value >= with,
            IF_SET => value & with != 0,
            _ => return None,
        })
    }
}

/// Runs a program as the kernel does (`___bpf_prog_run` of what `seccomp_check_filter` lets
/// pass). `None` for what the kernel would not load. Ends: each step leads forwards.
pub fn evaluate(program: &[u8], data: &Data) -> Option<u32> {
    let (steps, _) = program.as_chunks::<8>();
    let (mut at, mut a, mut x) = (0_usize, 0_u32, 0_u32);
    let mut memory = [0_u32; 16];
    loop {
        let step = Step::of(steps.get(at)?);
        at += 1;
        let k = step.operand;
        match step.code {
            LOAD => a = data.word(k)?,
            LOAD_LENGTH => a = DATA_SIZE,
            LOAD_X_LENGTH => x = DATA_SIZE,
            LOAD_NUMBER => a = k,
            LOAD_X_NUMBER => x = k,
            LOAD_MEMORY => a = *memory.get(k as usize)?,
            LOAD_X_MEMORY => x = *memory.get(k as usize)?,
            STORE => *memory.get_mut(k as usize)? = a,
            STORE_X => *memory.get_mut(k as usize)? = x,
            TO_X => x = a,
            FROM_X => a = x,
            RETURN => return Some(k),
            RETURN_HELD => return Some(a),
            JUMP => at = at.checked_add(k as usize)?,
            NEGATE => a = a.wrapping_neg(),
            _ if step.branches() => {
                let holds = step.decides(a, Some(x))?;
                at += usize::from(if holds { step.if_true } else { step.if_false });
            }
            code if code & CLASS == ALU => {
                let by = if code & FROM_REGISTER == 0 { k } else { x };
                a = match code & OPERATION {
                    0x00 => a.wrapping_add(by),
                    0x10 => a.wrapping_sub(by),
                    0x20 => a.wrapping_mul(by),
                    // The kernel's program returns 0 at a division by zero.
                    0x30 if by == 0 => return Some(0),
                    0x30 => a / by,
                    0x40 => a | by,
                    0x50 => a & by,
                    0x60 => a.wrapping_shl(by),
                    0x70 => a.wrapping_shr(by),
                    0xa0 => a ^ by,
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
}

impl Data {
    /// Returns the word at an offset of `struct seccomp_data`.
    fn word(&self, offset: u32) -> Option<u32> {
        let halves = |value: u64| match cfg!(target_endian = "big") {
            true => [(value >> 32) as u32, value as u32],
            false => [value as u32, (value >> 32) as u32],
        };
        if offset >= DATA_SIZE || !offset.is_multiple_of(4) {
            return None;
        }
        let half = (offset / 4 % 2) as usize;
        Some(match offset {
            NUMBER_AT => self.number,
            ARCHITECTURE_AT => self.architecture,
            8..16 => halves(self.instruction_pointer)[half],
            _ => halves(self.arguments[(offset as usize - 16) / 8])[half],
        })
    }
}

/// This program's own architecture in a filter's data (`linux/audit.h`).
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: u32 = 0xc000_003e;
/// This program's own architecture in a filter's data (`linux/audit.h`).
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offset of the call's number in `struct seccomp_data`.
pub const NUMBER_AT: u32 = 0;
/// Offset of the architecture.
pub const ARCHITECTURE_AT: u32 = 4;
/// Offset of the first argument.
const ARGUMENTS_AT: u32 = 16;
/// Size of the structure.
const DATA_SIZE: u32 = 64;

/// Loads a word of the data.
pub const LOAD: u16 = 0x20;
/// Loads the size of the data.
pub const LOAD_LENGTH: u16 = 0x80;
/// Loads that into the register X.
pub const LOAD_X_LENGTH: u16 = 0x81;
/// Loads the operand.
pub const LOAD_NUMBER: u16 = 0x00;
/// Loads the operand into the register X.
pub const LOAD_X_NUMBER: u16 = 0x01;
/// Loads what was stored.
pub const LOAD_MEMORY: u16 = 0x60;
/// Loads what was stored into the register X.
pub const LOAD_X_MEMORY: u16 = 0x61;
/// Stores the value.
pub const STORE: u16 = 0x02;
/// Stores the register X.
pub const STORE_X: u16 = 0x03;
/// Copies the value to the register X.
pub const TO_X: u16 = 0x07;
/// Copies the register X to the value.
pub const FROM_X: u16 = 0x87;
/// Ends with a result.
pub const RETURN: u16 = 0x06;
/// Ends with the value as result.
pub const RETURN_HELD: u16 = 0x16;
/// Skips instructions.
pub const JUMP: u16 = 0x05;
/// Whether the value is the operand.
pub const IF_EQUAL: u16 = 0x15;
/// Whether the value is more than the operand.
pub const IF_MORE: u16 = 0x25;
/// Whether the value is the operand or more.
pub const IF_AT_LEAST: u16 = 0x35;
/// Whether the value has one of the bits of the operand.
pub const IF_SET: u16 = 0x45;
/// Keeps the bits of the operand.
pub const AND: u16 = 0x54;
/// Negates the value.
pub const NEGATE: u16 = 0x84;
/// The bits of a code that are its class.
pub const CLASS: u16 = 0x07;
/// The class of branches and jumps.
pub const BRANCH: u16 = 0x05;
/// The class of calculations.
pub const ALU: u16 = 0x04;
/// The bits of a code that are its operation.
pub const OPERATION: u16 = 0xf0;
/// Takes the register X for the operand.
pub const FROM_REGISTER: u16 = 0x08;
