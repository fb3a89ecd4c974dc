//! What the kernel is answered, as bytes (`linux/fuse.h`).

use rustix::fs::FileType;

use super::protocol::MAX_WRITE;

/// The version of the protocol's number 7 that this server speaks: Linux 5.4's.
pub(super) const MINOR: u32 = 31;

/// The features that are used: entries with attributes in each listing (`FUSE_DO_READDIRPLUS`,
/// without `_AUTO`, which leaves it to the kernel), and lookups beside each other in one
/// directory (`FUSE_PARALLEL_DIROPS`), without which one that waits holds a lock that the next
/// waits for where no signal wakes it up.
const FEATURES: u32 = 1 << 13 | 1 << 18;

/// How long the kernel may keep what it is told of a name or a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// It never changes.
    Forever,
    /// So many seconds; zero is until the next look.
    Seconds(u64),
}

impl Validity {
    fn seconds(self) -> u64 {
        match self {
            // The kernel adds this to its clock, and cuts it at what its clock can show.
            Self::Forever => u64::from(u32::MAX),
            Self::Seconds(seconds) => seconds,
        }
    }
}

/// A moment: seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) seconds: u64,
    pub(super) nanoseconds: u32,
}

/// What stat(2) returns of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Kind and permissions.
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) block_size: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    pub(super) accessed: Moment,
    pub(super) modified: Moment,
    pub(super) changed: Moment,
    pub(super) valid: Validity,
}

/// What a lookup returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) node: u64,
    /// How long the name leads to the node.
    pub(super) valid: Validity,
    pub(super) attributes: Attributes,
}

/// `struct fuse_init_out`
pub(super) fn init(offered: u32) -> Vec<u8> {
    let mut bytes = Bytes::default();
    bytes.u32(7).u32(MINOR).u32(0).u32(FEATURES & offered);
    // max_background and congestion_threshold: the kernel's own.
    bytes.u32(0).u32(MAX_WRITE).u32(1);
    // max_pages, map_alignment, flags2 and what is unused.
    bytes.zeros(64 - 28);
    bytes.0
}

/// `struct fuse_entry_out`
pub(super) fn found(found: &Found) -> Vec<u8> {
    let mut bytes = Bytes::default();
    bytes.found(found);
    bytes.0
}

/// `struct fuse_attr_out`
pub(super) fn attributes(attributes: &Attributes) -> Vec<u8> {
    let mut bytes = Bytes::default();
    bytes.u64(attributes.valid.seconds()).u32(0).u32(0).attributes(attributes);
    bytes.0
}

/// `struct fuse_open_out`
pub(super) fn opened(handle: u64, flags: u32) -> Vec<u8> {
    let mut bytes = Bytes::default();
    bytes.u64(handle).u32(flags).u32(0);
    bytes.0
}

/// `struct fuse_statfs_out`: as those of proc and sysfs, without blocks.
pub(super) fn file_system() -> Vec<u8> {
    let mut bytes = Bytes::default();
    bytes.zeros(40);
    let (block, name, fragment) = (4096, 255, 4096);
    bytes.u32(block).u32(name).u32(fragment).zeros(28);
    bytes.0
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: FileType,
    /// Where a listing goes on behind it.
    pub(super) next: u64,
    /// What a lookup of it returns; without it, the kernel looks it up when it is used.
    pub(super) found: Option<Found>,
}

/// The reply to a request for a directory's entries.
#[derive(Debug)]
pub(super) struct Listing {
    bytes: Bytes,
    room: usize,
    plus: bool,
}

impl Listing {
    /// The most that a reply has, whatever the kernel would take.
    const MAX: usize = 16 * 1024;

    pub(super) fn new(room: u32, plus: bool) -> Self {
        let room = usize::try_from(room).map_or(Self::MAX, |room| room.min(Self::MAX));
        Self { bytes: Bytes::default(), room, plus }
    }

    /// Adds an entry: `struct fuse_direntplus` or `struct fuse_dirent`. Returns false, and adds
    /// nothing, if there is no room for it.
    pub(super) fn add(&mut self, entry: &Entry<'_>) -> bool {
        let before = self.bytes.0.len();
        if self.plus {
            match &entry.found {
                Some(found) => self.bytes.found(found),
                None => self.bytes.zeros(Bytes::FOUND),
            };
        }
        let Ok(length) = u32::try_from(entry.name.len()) else {
            return false;
        };
        self.bytes.u64(entry.inode).u64(entry.next).u32(length);
        self.bytes.u32(u32::from(kind(entry.kind)));
        self.bytes.0.extend_from_slice(entry.name);
        let end = self.bytes.0.len().next_multiple_of(8);
        self.bytes.0.resize(end, 0);
        let fits = end <= self.room;
        if !fits {
            self.bytes.0.truncate(before);
        }
        fits
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes.0
    }
}

/// The kinds as readdir(3) numbers them, of what this file system has.
fn kind(kind: FileType) -> u8 {
    match kind {
        FileType::Directory => libc::DT_DIR,
        FileType::RegularFile => libc::DT_REG,
        FileType::Symlink => libc::DT_LNK,
        _ => libc::DT_UNKNOWN,
    }
}

#[derive(Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    /// The size of `struct fuse_entry_out`.
    const FOUND: usize = 128;

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    fn found(&mut self, found: &Found) -> &mut Self {
        // The generation is always zero: no node's number is used for another.
        self.u64(found.node).u64(0);
        self.u64(found.valid.seconds()).u64(found.attributes.valid.seconds());
        self.u32(0).u32(0).attributes(&found.attributes)
    }

    /// `struct fuse_attr`
    fn attributes(&mut self, of: &Attributes) -> &mut Self {
        let moments = [of.accessed, of.modified, of.changed];
        self.u64(of.inode).u64(of.size).u64(0);
        moments.iter().for_each(|moment| _ = self.u64(moment.seconds));
        moments.iter().for_each(|moment| _ = self.u32(moment.nanoseconds));
        self.u32(of.mode).u32(of.links).u32(of.owner.0).u32(of.owner.1);
        // No device; no flags.
        self.u32(0).u32(of.block_size).u32(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: Attributes = Attributes {
        inode: 1,
        size: 2,
        mode: 0o100_444,
        links: 1,
        block_size: 1024,
        owner: (3, 4),
        accessed: Moment { seconds: 5, nanoseconds: 6 },
        modified: Moment { seconds: 7, nanoseconds: 8 },
        changed: Moment { seconds: 9, nanoseconds: 10 },
        valid: Validity::Forever,
    };

    #[test]
    fn replies_have_the_kernel_s_sizes() {
        let found = Found { node: 2, valid: Validity::Forever, attributes: ATTRIBUTES };
        assert_eq!(super::found(&found).len(), Bytes::FOUND);
        assert_eq!(init(u32::MAX).len(), 64);
        assert_eq!(attributes(&ATTRIBUTES).len(), 104);
        assert_eq!(opened(1, 1).len(), 16);
        assert_eq!(file_system().len(), 80);
    }

    #[test]
    fn a_listing_never_outgrows_its_room() {
        for room in 0..1000 {
            let mut listing = Listing::new(room, room % 2 == 0);
            for name in [&b"a"[..], b"meminfo", b"cpuinfo2", &[b'x'; 255]].repeat(4) {
                let kind = FileType::RegularFile;
                listing.add(&Entry { name, inode: 1, kind, next: 1, found: None });
            }
            let bytes = listing.into_bytes();
            assert!(bytes.len() <= room as usize && bytes.len().is_multiple_of(8));
        }
    }

    #[test]
    fn no_feature_is_used_that_the_kernel_lacks() {
        assert_eq!(init(1 << 13)[12..16], (1_u32 << 13).to_ne_bytes());
    }
}
