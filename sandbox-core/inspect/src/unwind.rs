//! Unwinds the stacks of programs that keep no frame pointers, by their `.eh_frame`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder};
use object::read::{Object, ObjectSection, ObjectSegment, ReadCache};

use crate::images::{Image, Images, Mapped};

/// The most frames of a stack.
pub const DEEPEST: usize = 256;

/// The bytes of a section. Files are shared by processes.
type Bytes = Arc<[u8]>;

/// The registers at which a stack begins.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// `rip`
    pub ip: u64,
    /// `rsp`
    pub sp: u64,
    /// `rbp`
    pub bp: u64,
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
    /// Returns the addresses of a stack, the innermost first: return addresses point behind the
    /// call. `read` returns the eight bytes at an address of the stack.
    pub fn unwind(
        &mut self,
        images: &Images,
        pid: i32,
        registers: Registers,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Vec<u64> {
        let mappings = images.mappings(pid);
        let known = self.processes.get(&pid).is_some_and(|p| p.mappings == mappings.len());
        if !known {
            let process = self.process(images, pid);
            self.processes.insert(pid, process);
        }
        let Some(process) = self.processes.get_mut(&pid) else { return Vec::new() };
        let mut read = |address| read(address).ok_or(());
        let first = UnwindRegsX86_64::new(registers.ip, registers.sp, registers.bp);
        let mut frames =
            process.unwinder.iter_frames(registers.ip, first, &mut process.cache, &mut read);
        let mut found = Vec::new();
        while found.len() < DEEPEST
            && let Ok(Some(frame)) = frames.next()
        {
            found.push(frame.address());
        }
        found
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

/// Reads the sections of a file that say how to unwind.
fn sections(image: &Image) -> Option<Sections> {
    let cache = ReadCache::new(image.file().try_clone().ok()?);
    let file = object::File::parse(&cache).ok()?;
    let section = |name: &str| {
        let section = file.section_by_name(name)?;
        let data: Bytes = section.data().ok()?.into();
        Some((section.address()..section.address() + section.size(), data))
    };
    let (eh_frame_svma, eh_frame) = section(".eh_frame")?;
    let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").unzip();
    let (text_svma, text) = section(".text").unzip();
    let info = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma,
        text,
        got_svma: section(".got").map(|(range, _)| range),
        eh_frame_svma: Some(eh_frame_svma),
        eh_frame: Some(eh_frame),
        eh_frame_hdr_svma,
        eh_frame_hdr,
        ..Default::default()
    };
    let segments =
        file.segments().map(|s| (s.address()..s.address() + s.size(), s.file_range().0)).collect();
    Some(Sections { info, segments })
}
