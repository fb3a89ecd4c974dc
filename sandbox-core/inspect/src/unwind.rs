//! Unwinds the stacks of programs that keep no frame pointers, by their `.eh_frame`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};
use object::read::{Object, ObjectSection, ObjectSegment, ReadCache};

use crate::frames::Checked;
use crate::images::{Image, Images, Mapped};

/// The most frames of a stack.
pub const DEEPEST: usize = 256;

/// The largest section that is read: a container can write any number there.
const LARGEST_SECTION: u64 = 128 << 20;

/// The largest stack: what is further away is no frame pointer.
const LARGEST_STACK: u64 = 64 << 20;

/// How far a return address is looked for.
const SEARCHED: u64 = 16 << 10;

/// How many return addresses are tried.
const GUESSES: usize = 16;

/// Stands for a frame pointer that is not known. No stack is there, so whatever needs it fails.
const UNKNOWN: u64 = 8;

/// The bytes of a section. Files are shared by processes.
type Bytes = Arc<[u8]>;

/// The registers at which a stack begins.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// `rip`
    pub ip: u64,
    /// `rsp`
    pub sp: u64,
    /// `rbp`, if it is known.
    pub bp: Option<u64>,
}

/// A stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwound {
    /// The addresses, the innermost first: return addresses point behind the call.
    pub frames: Vec<u64>,
    /// The frames that were found by a guess.
    pub guessed: Vec<usize>,
    /// Why it ends before its beginning.
    pub ends: Option<String>,
}

/// What can be read of a thread.
pub trait Memory {
    /// Returns the eight bytes at an address of its stack.
    fn word(&mut self, address: u64) -> Option<u64>;
    /// Whether an instruction that calls is right before an address.
    fn has_call_before(&mut self, address: u64) -> bool;
}

/// What is known of files and of processes.
#[derive(Default)]
pub struct Stacks {
    /// By the index of a file: `None` if it has no unwind information.
    files: HashMap<usize, Option<Sections>>,
    processes: HashMap<i32, Process>,
}

struct Process {
    /// The number of mappings that it was made from.
    mappings: usize,
    unwinder: UnwinderX86_64<Bytes>,
    cache: CacheX86_64,
}

/// The sections of a file.
#[derive(Clone)]
struct Sections {
    info: ExplicitModuleSectionInfo<Bytes>,
    /// The addresses and the offsets of segments with code.
    segments: Vec<(Range<u64>, u64)>,
}

impl Stacks {
    /// Unwinds a stack.
    ///
    /// Where the frame pointer is needed and not known, the nearest return address on the stack
    /// counts from which one gets further, and what lies before it is the caller's frame pointer.
    pub fn unwind(
        &mut self,
        images: &Images,
        pid: i32,
        registers: Registers,
        memory: &mut impl Memory,
    ) -> Unwound {
        let mappings = images.mappings(pid);
        let known = self.processes.get(&pid).is_some_and(|p| p.mappings == mappings.len());
        if !known {
            let process = self.process(images, pid);
            self.processes.insert(pid, process);
        }
        let Some(process) = self.processes.get_mut(&pid) else { return Unwound::default() };
        let Registers { ip, sp, bp } = registers;
        let mut at = UnwindRegsX86_64::new(ip, sp, bp.unwrap_or(UNKNOWN));
        let mut address = FrameAddress::from_instruction_pointer(ip);
        let mut found = Unwound { frames: vec![ip], ..Unwound::default() };
        let code = |address| images.has_code(pid, address);
        // Of its function nothing is known: of a JIT's, or one of Go's.
        let bare = match images.mapped(pid, ip) {
            Some(Mapped::File(index, _)) => !matches!(self.files.get(&index), Some(Some(_))),
            _ => true,
        };
        loop {
            if found.frames.len() == DEEPEST {
                found.ends = Some(format!("only {DEEPEST} frames are shown"));
                return found;
            }
            let before = at;
            let mut bytes = |address| memory.word(address).ok_or(());
            let outcome =
                process.unwinder.unwind_frame(address, &mut at, &mut process.cache, &mut bytes);
            let next = match outcome {
                Ok(None) => return found,
                // What is no code was no return address. After a guess, it may be any.
                Ok(Some(next))
                    if code(next.wrapping_sub(1))
                        && (found.guessed.is_empty() || memory.has_call_before(next)) =>
                {
                    next
                }
                other => {
                    let is_leaf = bare && found.frames.len() == 1;
                    let guessed =
                        bp.is_none().then(|| process.guess(&before, is_leaf, code, memory));
                    let Some((next, registers)) = guessed.flatten() else {
                        found.ends = Some(match other {
                            _ if before.bp() == UNKNOWN => "its frame pointer is not known".into(),
                            Ok(next) => format!("no code is at {:#x}", next.unwrap_or(0)),
                            Err(error) => why(error),
                        });
                        return found;
                    };
                    found.guessed.push(found.frames.len());
                    at = registers;
                    next
                }
            };
            found.frames.push(next);
            let Some(next) = FrameAddress::from_return_address(next) else { return found };
            address = next;
        }
    }

    /// Forgets a process, which executes another program.
    pub fn forget(&mut self, pid: i32) {
        self.processes.remove(&pid);
    }

    fn process(&mut self, images: &Images, pid: i32) -> Process {
        let mappings = images.mappings(pid);
        let mut unwinder = UnwinderX86_64::new();
        for mapping in mappings {
            let Mapped::File(index, offset) = mapping.what else { continue };
            let sections = self.files.entry(index).or_insert_with(|| sections(images.get(index)));
            let Some(sections) = sections else { continue };
            let segment = sections.segments.iter().find(|(_, at)| {
                // Mappings begin at a page.
                *at & !0xfff == offset & !0xfff
            });
            let Some((addresses, at)) = segment else { continue };
            // Where address 0 of the file would be.
            let base =
                mapping.start.wrapping_sub(addresses.start.wrapping_sub(at - offset.min(*at)));
            let name = images.get(index).path.clone();
            let range = mapping.start..mapping.end;
            unwinder.add_module(Module::new(name, range, base, sections.info.clone()));
        }
        Process { mappings: mappings.len(), unwinder, cache: CacheX86_64::new() }
    }
}

impl Process {
    /// Guesses who has called a function whose frame pointer is not known.
    fn guess(
        &mut self,
        registers: &UnwindRegsX86_64,
        is_leaf: bool,
        code: impl Fn(u64) -> bool + Copy,
        memory: &mut impl Memory,
    ) -> Option<(u64, UnwindRegsX86_64)> {
        let mut from = registers.sp();
        if !is_leaf {
            from = from.checked_add(8)?;
        }
        let end = registers.sp().saturating_add(SEARCHED);
        let mut nearest = None;
        for _ in 0..GUESSES {
            let Some((next, sp, bp)) = return_address(registers.sp(), from..end, code, memory)
            else {
                break;
            };
            let guessed = (next, UnwindRegsX86_64::new(next, sp, bp));
            nearest.get_or_insert(guessed);
            // What an earlier call has left there leads nowhere.
            if let Some(address) = FrameAddress::from_return_address(next) {
                let mut further = guessed.1;
                let mut bytes = |address| memory.word(address).ok_or(());
                match self.unwinder.unwind_frame(address, &mut further, &mut self.cache, &mut bytes)
                {
                    Ok(None) => return Some(guessed),
                    Ok(Some(caller))
                        if code(caller.wrapping_sub(1)) && memory.has_call_before(caller) =>
                    {
                        return Some(guessed);
                    }
                    _ => {}
                }
            }
            from = sp;
        }
        nearest
    }
}

/// Looks for a return address in a part of a stack. Returns it, and the caller's stack pointer and
/// frame pointer.
fn return_address(
    sp: u64,
    part: Range<u64>,
    code: impl Fn(u64) -> bool,
    memory: &mut impl Memory,
) -> Option<(u64, u64, u64)> {
    for at in part.step_by(8) {
        let back = memory.word(at)?;
        if !code(back.wrapping_sub(1)) || !memory.has_call_before(back) {
            continue;
        }
        // The caller may use the register for something else.
        let saved = at.checked_sub(8).filter(|saved| *saved >= sp).and_then(|s| memory.word(s));
        let plausible = |bp: &u64| *bp > at && *bp - at < LARGEST_STACK && bp.is_multiple_of(8);
        return Some((back, at + 8, saved.filter(plausible).unwrap_or(UNKNOWN)));
    }
    None
}

/// Whether an instruction that calls ends where these bytes do: `call rel32`, or `call r/m64`.
pub(crate) fn ends_with_call(bytes: [u8; 7]) -> bool {
    let indirect = |length: usize| {
        let at = 7 - length;
        bytes[at] == 0xff && bytes[at + 1] >> 3 & 7 == 2
    };
    bytes[2] == 0xe8 || (2..=7).any(indirect)
}

/// Returns why a stack ends, for people.
fn why(error: framehop::Error) -> String {
    match error {
        framehop::Error::CouldNotReadStack(at) => {
            format!("its memory at {at:#x} was not read, or is none of the stack")
        }
        framehop::Error::FramepointerUnwindingMovedBackwards => {
            "the function has neither unwind information nor a frame pointer".to_owned()
        }
        other => format!("the stack makes no sense here: {other}"),
    }
}

/// Reads the sections of a file that say how to unwind.
fn sections(image: &Image) -> Option<Sections> {
    let cache = ReadCache::new(image.file().try_clone().ok()?);
    let file = object::File::parse(&cache).ok()?;
    let section = |name: &str| {
        let section = file.section_by_name(name).filter(|s| s.size() <= LARGEST_SECTION)?;
        let data: Bytes = section.data().ok()?.into();
        Some((section.address()..section.address().checked_add(section.size())?, data))
    };
    let (eh_frame_svma, eh_frame) = section(".eh_frame")?;
    let table = section(".eh_frame_hdr");
    let (text_svma, text) = section(".text").unzip();
    let got_svma = section(".got").map(|(range, _)| range);
    let start = |range: &Option<Range<u64>>| range.as_ref().map_or(0, |range| range.start);
    let bases = gimli::BaseAddresses::default()
        .set_eh_frame(eh_frame_svma.start)
        .set_eh_frame_hdr(table.as_ref().map_or(0, |(range, _)| range.start))
        .set_text(start(&text_svma))
        .set_got(start(&got_svma));
    let checked = Checked::of(&eh_frame, &bases)?;
    // Without the table all functions are read once more.
    let table = table.filter(|(_, table)| checked.has_all_of(table, &bases));
    let (eh_frame_hdr_svma, eh_frame_hdr) = table.unzip();
    let info = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma,
        text,
        got_svma,
        eh_frame_svma: Some(eh_frame_svma),
        eh_frame: Some(eh_frame),
        eh_frame_hdr_svma,
        eh_frame_hdr,
        ..Default::default()
    };
    let end = |s: &object::Segment<'_, '_, _>| s.address().saturating_add(s.size());
    let segments = file.segments().map(|s| (s.address()..end(&s), s.file_range().0)).collect();
    Some(Sections { info, segments })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack at 0x1000, and calls before these addresses.
    struct Made<'a>(&'a [u64], &'a [u64]);

    impl Memory for Made<'_> {
        fn word(&mut self, address: u64) -> Option<u64> {
            let at = usize::try_from(address.checked_sub(0x1000)? / 8).ok()?;
            self.0.get(at).copied()
        }

        fn has_call_before(&mut self, address: u64) -> bool {
            self.1.contains(&address)
        }
    }

    #[test]
    fn the_nearest_return_address_is_found() {
        let code = |address: u64| (0x5000..0x6000).contains(&address);
        // A function's address that nobody returns to, then a frame, and one without a pointer.
        let mut made = Made(&[7, 0x5008, 0x1030, 0x5010, 3, 9, 0x5020], &[0x5010, 0x5020, 0x9000]);
        let mut find = |sp, from| return_address(sp, from..0x1100, code, &mut made);
        assert_eq!(find(0x1000, 0x1008), Some((0x5010, 0x1020, 0x1030)));
        assert_eq!(find(0x1018, 0x1018), Some((0x5010, 0x1020, UNKNOWN)));
        assert_eq!(find(0x1018, 0x1020), Some((0x5020, 0x1038, UNKNOWN)));
        assert_eq!(return_address(0x1000, 0x1008..0x1100, |_| false, &mut made), None);
    }

    #[test]
    fn calls_are_known() {
        assert!(ends_with_call([0, 0, 0xe8, 1, 2, 3, 4]), "call rel32");
        assert!(ends_with_call([0, 0, 0, 0, 0, 0xff, 0xd0]), "call *%rax");
        assert!(ends_with_call([0, 0xff, 0x15, 1, 2, 3, 4]), "call *rel32(%rip)");
        assert!(!ends_with_call([0x90; 7]), "nop");
        assert!(!ends_with_call([0, 0, 0, 0, 0, 0xff, 0xe0]), "jmp *%rax");
    }
}
