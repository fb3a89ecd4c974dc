//! The image of a checkpoint that holds its seccomp programs (criu's `seccomp.proto`).
//!
//! Each thread's image names the last program of its chain, and each program the one before it.
//! The first of a chain is the container's own, which Palisade loaded. It is written anew: the
//! container's plan decides what it may call, not the checkpoint, which anybody may have made. It
//! is also not the one that was saved where boot answered calls, as nobody listens to that one.

use super::fields::{Value, fields, number_in, put_message, put_number};
use super::images::{COMMON, next_entry, take_magic};
use crate::error::{Error, Result};
use crate::sys::process::SECCOMP_TSYNC;

/// Its name in the folder.
pub const NAME: &str = "seccomp.img";

/// The most bytes of it: a process has a few programs of 32 KiB at most.
pub const MAX_SIZE: u64 = 16 << 20;

const SECCOMP: u32 = 0x6441_3049;

/// The field of the image's only entry that holds a program (`SeccompEntry.seccomp_filters`).
const PROGRAM: u32 = 1;
/// The fields of a program (`SeccompFilter`): its instructions, the one before it, its flags.
const INSTRUCTIONS: u32 = 1;
const BEFORE: u32 = 2;
const FLAGS: u32 = 3;

/// Returns the image with this program at the start of each chain.
///
/// # Errors
/// `Invalid` if it is no such image, or if there is no program to put there.
pub fn with_program(image: &[u8], program: &[u8], flags: u32) -> Result<Vec<u8>> {
    let bad = |e: Error| Error::invalid(format!("{NAME} of the checkpoint: {e}"));
    rewrite(image, program, flags).map_err(bad)
}

fn rewrite(image: &[u8], program: &[u8], flags: u32) -> Result<Vec<u8>> {
    let mut rest = image;
    take_magic(&mut rest, &[COMMON, SECCOMP])?;
    let magic = &image[..image.len() - rest.len()];
    let entry = next_entry(&mut rest)?.ok_or_else(|| Error::invalid("it is empty"))?;
    if next_entry(&mut rest)?.is_some() {
        return Err(Error::invalid("it has more than one entry"));
    }
    let mut made = Vec::new();
    for field in fields(&entry)? {
        let (PROGRAM, Value::Bytes(saved)) = (field.number, field.value) else {
            return Err(Error::invalid("it has more than programs"));
        };
        if number_in(saved, BEFORE)?.is_some() {
            put_message(PROGRAM, saved, &mut made);
            continue;
        }
        // Without a program there is nothing to begin a chain with.
        if program.is_empty() {
            return Err(Error::invalid("it has programs, and the container's plan has none"));
        }
        let mut new = Vec::new();
        put_message(INSTRUCTIONS, program, &mut new);
        // One of the threads loads it for all, if criu says so.
        let for_all = number_in(saved, FLAGS)?.unwrap_or(0) & u64::from(SECCOMP_TSYNC);
        put_number(FLAGS, u64::from(flags) | for_all, &mut new);
        put_message(PROGRAM, &new, &mut made);
    }
    let size = u32::try_from(made.len()).map_err(|_| Error::invalid("it is too long"))?;
    Ok([magic, &size.to_le_bytes(), &made].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(programs: &[(&[u8], Option<u64>)]) -> Vec<u8> {
        let mut entry = Vec::new();
        for (instructions, before) in programs {
            let mut program = Vec::new();
            put_message(INSTRUCTIONS, instructions, &mut program);
            before.iter().for_each(|before| put_number(BEFORE, *before, &mut program));
            put_number(FLAGS, 1, &mut program);
            put_message(PROGRAM, &program, &mut entry);
        }
        let size = u32::try_from(entry.len()).unwrap();
        [&COMMON.to_le_bytes()[..], &SECCOMP.to_le_bytes(), &size.to_le_bytes(), &entry].concat()
    }

    /// The container may have added programs of its own, which stay.
    #[test]
    fn the_first_program_of_each_chain_is_the_plan_s() {
        let saved = image(&[(b"old", None), (b"the program's own", Some(0)), (b"other", None)]);
        let made = with_program(&saved, b"new", 0).unwrap();
        let expected = [(b"new".as_slice(), None), (b"the program's own", Some(0)), (b"new", None)];
        assert_eq!(made, image(&expected));
    }

    #[test]
    fn a_program_is_never_dropped_for_a_plan_that_has_none() {
        let error = with_program(&image(&[(b"old", None)]), b"", 0).unwrap_err().to_string();
        assert!(error.contains("the container's plan has none"), "{error}");
    }

    #[test]
    fn an_image_that_is_cut_off_or_lies_about_its_size_is_refused() {
        let whole = image(&[(b"old", None), (b"more", Some(0))]);
        for length in 0..whole.len() {
            assert!(with_program(&whole[..length], b"new", 0).is_err(), "{length}");
        }
        for at in 0..12 {
            let mut lying = whole.clone();
            lying[at] ^= 0x80;
            assert!(with_program(&lying, b"new", 0).is_err(), "{at}");
        }
    }
}
