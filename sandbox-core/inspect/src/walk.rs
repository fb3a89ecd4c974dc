//! Walks the stack of a thread: of one that the kernel has sampled, or of one that waits.

use perf_event::data::Sample;

use crate::images::{Images, Place};
use crate::unwind::{Memory, Registers, Stacks, Unwound};

/// The kernel's marks between the parts of a stack (`PERF_CONTEXT_*`).
const KERNEL: u64 = -128_i64 as u64;
const USER: u64 = -512_i64 as u64;
const MARKS: u64 = -4095_i64 as u64;

/// Knows the programs of processes, and how to unwind them.
#[derive(Default)]
pub(crate) struct Walker {
    pub(crate) images: Images,
    stacks: Stacks,
}

/// A stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The kernel's part, the innermost first.
    pub(crate) kernel: Vec<Place>,
    /// The program's part.
    pub(crate) user: Vec<Place>,
    /// Those of the program's that were found by a guess.
    pub(crate) guessed: Vec<usize>,
    /// Why the program's part ends before its beginning.
    pub(crate) ends: Option<String>,
}

impl Walker {
    /// Walks what was sampled.
    pub(crate) fn sample(&mut self, pid: i32, sample: &Sample<'_>) -> Walked {
        let (kernel, by_pointers) = parts(sample.callchain().unwrap_or_default());
        let mut unwound = self.unwound(pid, sample);
        if unwound.frames.len() <= by_pointers.len() {
            unwound.frames = by_pointers;
        }
        let kernel = kernel.iter().enumerate().map(|(at, a)| Place::Kernel(back(at, *a)));
        Walked { kernel: kernel.collect(), ..self.places(pid, unwound) }
    }

    /// Walks the program's stack of a thread that waits.
    pub(crate) fn waiting(
        &mut self,
        pid: i32,
        (ip, sp): (u64, u64),
        memory: &mut impl Memory,
    ) -> Walked {
        let unwound = match self.images.place(pid, ip) {
            Some(_) => {
                self.stacks.unwind(&self.images, pid, Registers { ip, sp, bp: None }, memory)
            }
            None => Unwound {
                ends: Some(format!("no code is at {ip:#x}, where it was last")),
                ..Unwound::default()
            },
        };
        self.places(pid, unwound)
    }

    /// Learns what a process has mapped, before it ends.
    pub(crate) fn learn(&mut self, pid: i32) {
        self.images.place(pid, 0);
    }

    /// Walks a stack whose registers and memory were copied.
    pub(crate) fn copied(
        &mut self,
        pid: i32,
        registers: Registers,
        memory: &mut impl Memory,
    ) -> Walked {
        let unwound = match self.images.place(pid, registers.ip) {
            Some(_) => self.stacks.unwind(&self.images, pid, registers, memory),
            None => Unwound::default(),
        };
        self.places(pid, unwound)
    }

    fn places(&mut self, pid: i32, unwound: Unwound) -> Walked {
        let Unwound { frames, guessed, ends } = unwound;
        let mut user = Vec::with_capacity(frames.len());
        for (at, address) in frames.into_iter().enumerate() {
            let address = back(at, address);
            user.push(self.images.place(pid, address).unwrap_or(Place::Memory(pid, address)));
        }
        Walked { kernel: Vec::new(), user, guessed, ends }
    }

    /// Unwinds the program's stack from the copy in the sample.
    fn unwound(&mut self, pid: i32, sample: &Sample<'_>) -> Unwound {
        let registers = sample.regs_user().map(|registers| &*registers.regs);
        let (Some([_, bp, sp, ip]), Some(copy)) = (registers, sample.stack_user()) else {
            return Unwound::default();
        };
        let (bp, sp, ip) = (*bp, *sp, *ip);
        // It is learnt what the process has mapped.
        if self.images.place(pid, ip).is_none() {
            return Unwound::default();
        }
        let registers = Registers { ip, sp, bp: Some(bp) };
        self.stacks.unwind(&self.images, pid, registers, &mut Sampled { sp, copy })
    }
}

/// The copy of a stack in a sample.
struct Sampled<'a> {
    sp: u64,
    copy: &'a [u8],
}

impl Memory for Sampled<'_> {
    fn word(&mut self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.sp)?).ok()?;
        let bytes = self.copy.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn has_call_before(&mut self, _: u64) -> bool {
        // Its frame pointer is known, so nothing is guessed.
        false
    }
}

/// The first address is where the thread is; the others lie behind a call.
fn back(index: usize, address: u64) -> u64 {
    address.saturating_sub(u64::from(index > 0))
}

/// Divides a stack into the kernel's part and the program's.
fn parts(chain: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let (mut kernel, mut user) = (Vec::new(), Vec::new());
    let mut now: Option<&mut Vec<u64>> = None;
    for address in chain {
        match *address {
            KERNEL => now = Some(&mut kernel),
            USER => now = Some(&mut user),
            mark if mark >= MARKS => now = None,
            address => {
                if let Some(part) = &mut now {
                    part.push(address);
                }
            }
        }
    }
    (kernel, user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_has_a_part_in_the_kernel_and_one_in_the_program() {
        let chain = [KERNEL, 0xffff_ffff_8100_0000, USER, 0x40_1000, 0x40_2000];
        assert_eq!(parts(&chain), (vec![0xffff_ffff_8100_0000], vec![0x40_1000, 0x40_2000]));
        assert_eq!(parts(&[USER, 1]), (vec![], vec![1]));
        assert_eq!(parts(&[]), (vec![], vec![]));
    }
}
