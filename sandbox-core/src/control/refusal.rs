//! The records of refused system calls: boot writes them into the pipe of `--user-log-fd`, and
//! the shim reads them.
//!
//! A pipe carries no descriptors, and boot drops what does not fit. Each record is written by one
//! write(2) that the kernel does not divide, and begins with its length and a version:
//!
//! ```text
//!   length of the rest (u16)   version (u8)   a record in postcard
//! ```
//!
//! To the shim the bytes are hostile: [`Records`] keeps one record at most, and fails for ever
//! at the first that is none.

use serde::{Deserialize, Serialize};

use super::encoding::Message;
use crate::error::{Error, Result};
use crate::types::Call;

/// The longest record with its length: less than what the kernel writes in one piece (pipe(7),
/// `PIPE_BUF`).
pub const MAX_RECORD: usize = 1024;

/// The version of the records.
const VERSION: u8 = 1;

/// What boot knows about the process that made a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Its PID in its container; zero if it was gone.
    pub pid: i32,
    /// Its user, in the numbers of boot's user namespace: the host's.
    pub uid: u32,
    /// The name of its program (`comm`). A container chooses any bytes.
    pub program: String,
}

/// The kernel's answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// The seccomp program refuses it, with this errno.
    Refused(u16),
    /// The kernel decides. It is looked at since the container lacks what the call takes.
    Watched,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The container's ID.
    pub container: String,
    /// The first process that made the call.
    pub caller: Caller,
    /// The call; `None` for calls of which boot kept nothing but their number of times.
    pub call: Option<Call>,
    /// The answer.
    pub answer: Answer,
    /// How many times since the last record about it.
    pub times: u64,
}

impl Message for Refusal {
    const NAME: &str = "a record of the user log";
}

impl Refusal {
    /// Returns the bytes to be written at once.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let record = self.encode()?;
        let length = record.len() + 1;
        let mut bytes = u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes().to_vec();
        bytes.push(VERSION);
        bytes.extend(record);
        match bytes.len() <= MAX_RECORD {
            true => Ok(bytes),
            false => Err(Error::internal("a record of the user log is too long")),
        }
    }
}

/// The records in a stream of bytes.
#[derive(Debug, Default)]
pub struct Records {
    rest: Vec<u8>,
    broken: bool,
}

impl Records {
    /// Takes more bytes and returns the records that are whole now.
    ///
    /// # Errors
    /// Fails from the first bytes on that are no record: nothing shows where the next begins.
    pub fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(Refusal)) -> Result<()> {
        while !self.broken {
            let missing = self.missing()?;
            if missing == 0 {
                let record = Refusal::decode(&self.rest[3..]);
                self.rest.clear();
                each(record.inspect_err(|_| self.broken = true)?);
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.rest.extend_from_slice(now);
            bytes = later;
        }
        Err(Error::internal("the user log is broken"))
    }

    /// Returns how many bytes the next record lacks, or its beginning.
    fn missing(&mut self) -> Result<usize> {
        let [low, high, version, ..] = self.rest[..] else { return Ok(3 - self.rest.len()) };
        let length = usize::from(u16::from_le_bytes([low, high])) + 2;
        if version != VERSION || !(3..=MAX_RECORD).contains(&length) {
            self.broken = true;
            return Err(Error::internal("the user log has what is no record"));
        }
        Ok(length - self.rest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(number: u32) -> Refusal {
        Refusal {
            container: "c".repeat(76),
            caller: Caller { pid: 7, uid: 1 << 30, program: "evil\n".into() },
            call: Some(Call { audit: 0xc000_003e, number, arguments: [u64::MAX; 6] }),
            answer: Answer::Refused(1),
            times: u64::MAX,
        }
    }

    #[test]
    fn records_are_found_however_the_stream_is_cut() {
        let whole: Vec<u8> = (0..20).flat_map(|n| refusal(n).to_bytes().unwrap()).collect();
        for step in [1, 2, 3, 7, 100, whole.len()] {
            let (mut records, mut found) = (Records::default(), Vec::new());
            for part in whole.chunks(step) {
                records.take(part, |record| found.push(record)).unwrap();
                assert!(records.rest.len() < MAX_RECORD);
            }
            assert_eq!(found, (0..20).map(refusal).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_no_record_ends_the_stream() {
        let good = refusal(1).to_bytes().unwrap();
        let of_another_version = [&good[..2], &[9], &good[3..]].concat();
        let cut = [&[10, 0, VERSION], &good[3..12]].concat();
        for bad in [&[0xff; 3][..], &[0, 0, 0], &[1, 0, VERSION], &of_another_version, &cut] {
            let (mut records, mut found) = (Records::default(), 0);
            let outcome = records.take(&[&good, bad].concat(), |_| found += 1);
            assert!(outcome.is_err() && found == 1, "{bad:?}");
            assert!(records.take(&good, |_| found += 1).is_err() && found == 1);
        }
        let mut long = refusal(1);
        long.caller.program = "x".repeat(MAX_RECORD);
        assert!(long.to_bytes().is_err());
    }
}
