//! What the kernel asks (`linux/fuse.h`), from bytes.
//!
//! Written by hand: of some fifty operations a file system that nobody can change needs a third,
//! and the crates that speak the protocol bring threads or a loop of their own, which boot does
//! not have.

use std::fmt;

/// The bytes of the longest request that is taken. The kernel refuses to hand out requests to a
/// buffer below 8 KiB, and splits or refuses what does not fit: with [`MAX_WRITE`], only values
/// of extended attributes.
pub const MAX_REQUEST: usize = 8192;

/// The bytes that one write request may carry: the least that the kernel accepts.
pub const MAX_WRITE: u32 = 4096;

/// The node of the file system's root.
pub const ROOT: u64 = 1;

/// `FUSE_GETATTR_FH`
const GETATTR_OPEN: u32 = 1;

/// `FUSE_READ_LOCKOWNER`: who reads is named, which is a program.
const READ_OWNED: u32 = 1 << 1;

/// The longest name that a request may have.
const MAX_NAME: usize = 1024;

/// A request of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The number that the reply must have.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// What is asked.
    pub operation: Operation,
}

/// What the kernel asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The first request: which version the kernel speaks, and which features it offers.
    Init {
        /// The protocol's number, 7.
        major: u32,
        /// The version of it.
        minor: u32,
        /// The features that the kernel has.
        flags: u32,
    },
    /// The node of a name in a directory.
    Lookup {
        /// One component of a path: not empty, without `/` and NUL. `.` and `..` are possible.
        name: Vec<u8>,
    },
    /// The kernel drops so many of the lookups that it was told of. No reply.
    Forget {
        /// How many.
        lookups: u64,
    },
    /// Several of those, each a node and a count. No reply.
    BatchForget {
        /// At most as many as fit into [`MAX_REQUEST`].
        forgotten: Vec<(u64, u64)>,
    },
    /// stat(2), and what else needs what the kernel no longer keeps
    GetAttributes {
        /// Whether it is for a file that is open: lseek(2) to its end.
        open: bool,
    },
    /// chmod(2), chown(2), truncate(2), utimensat(2)
    SetAttributes {
        /// Which of them: `FATTR_*`
        what: u32,
    },
    /// readlink(2)
    ReadLink,
    /// open(2)
    Open {
        /// The flags of open(2)
        flags: u32,
    },
    /// read(2)
    Read {
        /// The handle that the reply to [`Operation::Open`] named.
        handle: u64,
        /// Where to read.
        offset: u64,
        /// How much at most.
        size: u32,
        /// Whether a program reads by itself, rather than the kernel for a cache of its own.
        direct: bool,
    },
    /// write(2); the bytes are left where they are.
    Write,
    /// The last close(2) of what was opened once.
    Release {
        /// The handle.
        handle: u64,
    },
    /// open(2) of a directory
    OpenDirectory,
    /// getdents(2)
    ReadDirectory {
        /// The `d_off` of the entry before, or zero.
        offset: u64,
        /// The bytes that the reply may have.
        size: u32,
        /// Whether each entry comes with what a lookup of it returns.
        plus: bool,
    },
    /// The last close(2) of a directory.
    ReleaseDirectory,
    /// statfs(2)
    StatFs,
    /// lseek(2) to the next data or the next hole.
    SeekData,
    /// A signal came to the process that waits for the reply to a request.
    Interrupt {
        /// The number of that request.
        of: u64,
    },
    /// mknod(2) and open(2) with `O_CREAT`
    Create,
    /// What else would change a directory: mkdir(2), unlink(2), rename(2) and so on.
    Change,
    /// The end of the file system.
    Destroy,
    /// What this server does not have.
    Other,
}

/// Bytes that are no request.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The number by which the request can be refused, if that much of it is there.
    pub unique: Option<u64>,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request of the kernel's FUSE has an unexpected form")
    }
}

/// Parses one request, as one read(2) of the device returns it.
///
/// # Errors
/// [`Malformed`] if the length that it says is not the length that it has, or what its
/// operation needs is missing.
pub fn parse(bytes: &[u8]) -> Result<Request, Malformed> {
    let mut fields = Fields(bytes);
    let header = Header::take(&mut fields).ok_or(Malformed { unique: None })?;
    let malformed = Malformed { unique: (header.unique != 0).then_some(header.unique) };
    if usize::try_from(header.length) != Ok(bytes.len()) {
        return Err(malformed);
    }
    let operation = operation(header.opcode, fields).ok_or(malformed)?;
    Ok(Request { unique: header.unique, node: header.node, operation })
}

/// `struct fuse_in_header`, without the IDs of the caller: what a file says does not depend on
/// who reads it.
struct Header {
    length: u32,
    opcode: u32,
    unique: u64,
    node: u64,
}

impl Header {
    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        let header = Self {
            length: fields.u32()?,
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
        };
        // uid, gid, pid, and the length of extensions, which only Create would have.
        fields.skip(16)?;
        Some(header)
    }
}

fn operation(opcode: u32, mut fields: Fields<'_>) -> Option<Operation> {
    Some(match opcode {
        1 => Operation::Lookup { name: fields.name()? },
        2 => Operation::Forget { lookups: fields.u64()? },
        3 => Operation::GetAttributes { open: fields.u32()? & GETATTR_OPEN != 0 },
        4 => Operation::SetAttributes { what: fields.u32()? },
        5 => Operation::ReadLink,
        6 | 9..=13 | 45 => Operation::Change,
        8 | 35 | 51 => Operation::Create,
        14 => Operation::Open { flags: fields.u32()? },
        15 => {
            let (handle, offset, size) = fields.range()?;
            Operation::Read { handle, offset, size, direct: fields.u32()? & READ_OWNED != 0 }
        }
        16 => Operation::Write,
        17 => Operation::StatFs,
        18 => Operation::Release { handle: fields.u64()? },
        26 => Operation::Init {
            major: fields.u32()?,
            minor: fields.u32()?,
            flags: {
                let _readahead = fields.u32()?;
                fields.u32()?
            },
        },
        27 => Operation::OpenDirectory,
        28 | 44 => {
            let (_, offset, size) = fields.range()?;
            Operation::ReadDirectory { offset, size, plus: opcode == 44 }
        }
        29 => Operation::ReleaseDirectory,
        36 => Operation::Interrupt { of: fields.u64()? },
        38 => Operation::Destroy,
        42 => Operation::BatchForget { forgotten: fields.forgotten()? },
        46 => Operation::SeekData,
        _ => Operation::Other,
    })
}

/// The rest of a request. Takes a field from its front, if there are bytes enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    /// Takes a string that ends with NUL and with the request.
    fn name(&mut self) -> Option<Vec<u8>> {
        let (end, name) = self.0.split_last()?;
        let plain = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&b'/');
        (*end == 0 && plain && !name.contains(&0)).then(|| name.to_vec())
    }

    /// Takes the front of `struct fuse_read_in`: a handle, an offset and a size.
    fn range(&mut self) -> Option<(u64, u64, u32)> {
        Some((self.u64()?, self.u64()?, self.u32()?))
    }

    /// Takes `struct fuse_batch_forget_in` and its list.
    fn forgotten(&mut self) -> Option<Vec<(u64, u64)>> {
        let count = usize::try_from(self.u32()?).ok()?;
        self.skip(4)?;
        // The list must be there before room for it is made.
        if self.0.len() / 16 < count {
            return None;
        }
        (0..count).map(|_| Some((self.u64()?, self.u64()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a request as the kernel encodes it.
    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(40 + body.len()).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(7_u64.to_ne_bytes());
        bytes.extend(9_u64.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        bytes
    }

    fn operation(opcode: u32, body: &[u8]) -> Option<Operation> {
        parse(&request(opcode, body)).ok().map(|request| request.operation)
    }

    #[test]
    fn a_request_has_its_number_and_its_node() {
        let found = parse(&request(3, &[0; 16])).unwrap();
        let expected =
            Request { unique: 7, node: 9, operation: Operation::GetAttributes { open: false } };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_request_that_lies_about_its_length_is_refused_by_its_number() {
        let mut longer = request(3, &[0; 16]);
        longer.push(0);
        assert_eq!(parse(&longer), Err(Malformed { unique: Some(7) }));
        let short = &request(3, &[0; 16])[..40];
        assert_eq!(parse(short), Err(Malformed { unique: Some(7) }));
        assert_eq!(parse(&short[..39]), Err(Malformed { unique: None }));
    }

    #[test]
    fn a_name_is_one_component() {
        let name = |bytes: &[u8]| operation(1, bytes);
        assert_eq!(name(b"stat\0"), Some(Operation::Lookup { name: b"stat".to_vec() }));
        for wrong in [&b""[..], b"\0", b"stat", b"a/b\0", b"a\0b\0", &[b'a'; 1026]] {
            assert_eq!(name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_list_of_forgotten_nodes_is_as_long_as_it_says() {
        let list = |count: u32, there: usize| {
            let mut body = count.to_ne_bytes().to_vec();
            body.extend([0; 4]);
            body.extend([1; 16].repeat(there));
            operation(42, &body)
        };
        let one = u64::from_ne_bytes([1; 8]);
        let forgotten = vec![(one, one); 2];
        assert_eq!(list(2, 2), Some(Operation::BatchForget { forgotten }));
        assert_eq!(list(3, 2), None);
        assert_eq!(list(u32::MAX, 2), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn any_bytes_are_a_request_or_an_error(
            opcode in 0_u32..60, body in proptest::collection::vec(any::<u8>(), 0..120), cut in 0_usize..160,
        ) {
            let whole = request(opcode, &body);
            let _ = parse(&body);
            let _ = parse(&whole[..cut.min(whole.len())]);
            if let Ok(Request { operation: Operation::Lookup { name }, .. }) = parse(&whole) {
                prop_assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
            }
        }
    }
}
