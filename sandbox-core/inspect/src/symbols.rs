//! Names of functions: of the kernel by its own list, of programs and libraries by their symbols
//! and, where they have it or it is installed by build ID below `/usr/lib/debug` of the container or
//! of the host, their debug information, and of code that a JIT has written by its map in the
//! container's `/tmp` (`perf-PID.map`).
//!
//! All of that can be written by containers while it is read: of files there are copies, and sizes
//! are bounded.

use std::collections::HashMap;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};

use crate::calls::printable_name;
use crate::copies::{Budget, Copy, plain_file};
use crate::images::{Images, Place};
use crate::status::Status;

/// The largest map of a JIT that is read.
const LARGEST_MAP: u64 = 64 << 20;

/// The longest name, in bytes: some of C++ are long, and some could be as long as a file.
const LONGEST_NAME: usize = 2048;

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function {
    /// Its name, or an offset in hexadecimal digits where it is not known.
    pub name: String,
    /// The file that it is in, as the process sees it; `[kernel]`, `[vdso]` or `[jit]`.
    pub file: String,
    /// The line of its source, if debug information says it.
    pub line: Option<(String, u32)>,
}

/// Looks up names, and keeps those that it has found.
pub struct Symbols {
    symbolizer: Symbolizer,
    found: HashMap<Place, Vec<Function>>,
    /// By the index of a file: `None` if it is not read.
    programs: HashMap<usize, Option<Program>>,
    budget: Budget,
    /// By process: address, size and name of each function, in the order of addresses.
    jits: HashMap<i32, Vec<(u64, u64, String)>>,
}

/// A file, and what is installed beside it.
struct Program {
    own: Copy,
    debug: Option<Copy>,
}

impl Default for Symbols {
    fn default() -> Self {
        // Files that a container's file names are not looked for.
        let nowhere: Option<[PathBuf; 0]> = Some([]);
        let symbolizer = Symbolizer::builder().set_debug_dirs(nowhere).build();
        let (found, programs, jits) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { symbolizer, found, programs, budget: Budget::default(), jits }
    }
}

impl Symbols {
    /// Returns the functions at a place: the innermost first, if the compiler has put some into
    /// others.
    pub fn at(&mut self, images: &Images, place: Place) -> &[Function] {
        if !self.found.contains_key(&place) {
            let functions = self.look_up(images, place);
            self.found.insert(place, functions);
        }
        &self.found[&place]
    }

    fn look_up(&mut self, images: &Images, place: Place) -> Vec<Function> {
        match place {
            Place::Kernel(address) => {
                let kernel = Kernel { vmlinux: MaybeDefault::None, ..Default::default() };
                self.symbolize(&Source::Kernel(kernel), Input::AbsAddr(address), "[kernel]")
                    .unwrap_or_else(|| vec![unknown(address, "[kernel]")])
            }
            Place::File(index, offset) => self.of_file(images, index, offset),
            Place::Memory(pid, address) => vec![self.of_jit(pid, address)],
            Place::Vdso(offset) => vec![unknown(offset, "[vdso]")],
        }
    }

    /// Looks a function up in what is installed for a file, then in the file, with its debug
    /// information and without.
    fn of_file(&mut self, images: &Images, index: usize, offset: u64) -> Vec<Function> {
        let image = images.get(index);
        let budget = &mut self.budget;
        self.programs.entry(index).or_insert_with(|| {
            let own = Copy::of(image.file(), budget)?;
            let debug = own.debug_information(image.pid, budget);
            Some(Program { own, debug })
        });
        let program = self.programs.get(&index).and_then(Option::as_ref);
        let found = program.and_then(|program| {
            let elf =
                |copy: &Copy, debug_syms| Source::Elf(Elf { debug_syms, ..Elf::new(copy.path()) });
            let installed = program.debug.as_ref().zip(program.own.address(offset));
            let installed = installed.and_then(|(debug, address)| {
                self.symbolize(&elf(debug, true), Input::VirtOffset(address), &image.path)
            });
            let own = |debug| {
                let at = Input::FileOffset(offset);
                self.symbolize(&elf(&program.own, debug), at, &image.path)
            };
            installed.or_else(|| own(true)).or_else(|| own(false))
        });
        found.unwrap_or_else(|| vec![unknown(offset, &image.path)])
    }

    fn symbolize(&self, source: &Source<'_>, at: Input<u64>, file: &str) -> Option<Vec<Function>> {
        // The file is a container's, and its reader may trip over it.
        let looked = AssertUnwindSafe(|| self.symbolizer.symbolize_single(source, at));
        let symbol = match catch_unwind(looked) {
            Ok(Ok(Symbolized::Sym(symbol))) => symbol,
            Ok(Ok(Symbolized::Unknown(_)) | Err(_)) | Err(_) => return None,
        };
        let line = |info: &blazesym::symbolize::CodeInfo<'_>| {
            Some((clean(&info.to_path().to_string_lossy()), info.line?))
        };
        let function =
            |name: &str, line| Function { name: clean(name), file: file.to_owned(), line };
        let own = symbol.code_info.as_deref().and_then(line);
        let inlined = symbol.inlined.iter().rev();
        let mut all: Vec<Function> = inlined
            .map(|inner| function(&inner.name, inner.code_info.as_ref().and_then(line)))
            .collect();
        all.push(function(&symbol.name, own));
        Some(all)
    }

    fn of_jit(&mut self, pid: i32, address: u64) -> Function {
        let functions = self.jits.entry(pid).or_insert_with(|| read_map(pid));
        let after = functions.partition_point(|(start, ..)| *start <= address);
        match functions[..after]
            .last()
            .filter(|(start, size, _)| address < start.saturating_add(*size))
        {
            Some((.., name)) => Function { name: name.clone(), file: "[jit]".into(), line: None },
            None => unknown(address, "[jit]"),
        }
    }
}

/// Makes a name printable, and not too long.
fn clean(name: &str) -> String {
    let mut text = printable_name(name);
    if text.len() > LONGEST_NAME {
        let end = (0..=LONGEST_NAME).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn unknown(at: u64, file: &str) -> Function {
    Function { name: format!("{at:#x}"), file: file.to_owned(), line: None }
}

/// Reads the map that a JIT has written, as perf(1) expects it: in the process's own `/tmp`, named
/// after its PID there. Nothing, if there is none.
fn read_map(pid: i32) -> Vec<(u64, u64, String)> {
    let Some(inside) = Status::of(pid).and_then(|status| status.inside()) else {
        return Vec::new();
    };
    let root = format!("/proc/{pid}/root");
    let file = plain_file(Path::new(&root), &format!("tmp/perf-{inside}.map"));
    let mut text = Vec::new();
    if let Some(file) = file {
        // What was read until an error counts.
        let _ = file.take(LARGEST_MAP).read_to_end(&mut text);
    }
    parse_map(&text)
}

/// Parses lines as in `7f0012340000 1a0 LazyCompile:~main /app/index.js:1`.
fn parse_map(text: &[u8]) -> Vec<(u64, u64, String)> {
    let text = String::from_utf8_lossy(text);
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let mut all: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ' ');
            let (start, size) = (hex(parts.next()?)?, hex(parts.next()?)?);
            Some((start, size, clean(parts.next()?)))
        })
        .collect();
    // A function that was compiled anew at the same place comes later, and counts.
    all.sort_by_key(|(start, ..)| *start);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn a_function_with_this_name() -> u64 {
        std::hint::black_box(7)
    }

    #[test]
    fn a_function_of_this_program_has_its_name_and_its_line() {
        let mut images = Images::default();
        let pid = i32::try_from(std::process::id()).unwrap();
        let address = a_function_with_this_name as fn() -> u64 as usize as u64;
        let place = images.place(pid, address).unwrap();
        let mut symbols = Symbols::default();
        let found = symbols.at(&images, place);
        assert!(found[0].name.contains("a_function_with_this_name"), "{found:?}");
        let (file, line) = found[0].line.clone().expect("a line");
        assert!(file.ends_with("symbols.rs") && line > 100, "{file}:{line}");
        assert_eq!(a_function_with_this_name(), 7);
    }

    #[test]
    fn what_has_no_name_is_shown_by_its_offset() {
        let mut symbols = Symbols::default();
        let found = symbols.at(&Images::default(), Place::Vdso(0x10)).to_vec();
        assert_eq!((found[0].name.as_str(), found[0].file.as_str()), ("0x10", "[vdso]"));
    }

    #[test]
    fn a_map_of_a_jit_is_parsed() {
        let map =
            b"7f02 10 late\n7f00 2 LazyCompile:~main /app/index.js:1\nnonsense\n7f01 x y\n\xff\n";
        let functions = parse_map(map);
        let names: Vec<&str> = functions.iter().map(|(.., name)| name.as_str()).collect();
        assert_eq!(names, ["LazyCompile:~main /app/index.js:1", "late"]);
        assert_eq!((functions[0].0, functions[0].1), (0x7f00, 2));
    }
}
