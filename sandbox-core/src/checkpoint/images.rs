//! The few images of criu's that Palisade rewrites, once, after they were saved, so that they can
//! be brought back in any sandbox, with any IDs, any number of times:
//!
//! | image | what changes | why |
//! |---|---|---|
//! | `inventory.img` | criu's own mount and user namespaces become those of the container's init | criu then makes neither: Palisade makes the mounts, and criu starts in the pod's user namespace |
//! | `userns-N.img` | IDs outside become those inside | no range of the host's is left in it |
//! | `files.img` | files and unix sockets name no mount | the mounts of a restore are others |
//! | the same | a timer that has expired and was not read expires again after its interval | the kernel has it stand still until it is read (timerfd_create(2)), and criu saves it as one that is off |
//!
//! An image is a magic number (that of `inventory.img` has 4 bytes, those of others 8), and then
//! entries: a length of 32 bits in little endian, and a message of protobuf. All that is not
//! rewritten is copied as it is. The processes that were saved shape what is in it: lengths are
//! bounded, and nothing here is followed.

use std::fs::{File, Permissions};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::fields::{Value, fields, number_in, put_message, put_number};
use super::{open_regular, read_regular};
use crate::error::{Context, Error, Result};
use crate::spec::plan::{IdMapping, Mappings};

/// The longest entry: `seccomp.img` has all programs in one, of 32 KiB at most each.
const MAX_ENTRY: u32 = 16 << 20;

/// The first four bytes of `inventory.img`.
const INVENTORY: u32 = 0x5831_3116;
/// The first four bytes of all other images, after which come those of each.
pub(super) const COMMON: u32 = 0x5456_4319;
const IDS: u32 = 0x5443_2030;
const FILES: u32 = 0x5630_3138;
const USER_NAMESPACE: u32 = 0x5547_4906;

/// Fields of criu's `task_kobj_ids_entry`: IDs of the namespaces of a task.
const MOUNT_NAMESPACE_ID: u32 = 9;
const USER_NAMESPACE_ID: u32 = 10;

/// An image that is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// `inventory.img`.
    Inventory {
        /// The namespaces of the container's init.
        ids: RootIds,
    },
    /// `userns-N.img`.
    UserNamespace,
    /// `files.img`.
    Files,
}

/// The namespaces of the container's init, as the images number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootIds {
    /// Its mount namespace.
    pub mount_namespace: u32,
    /// Its user namespace, if that was saved: `userns-N.img` has this number.
    pub user_namespace: Option<u32>,
}

impl RootIds {
    /// Reads them from `ids-1.img` in a folder of images. The init is PID 1 there.
    pub fn read(folder: BorrowedFd<'_>) -> Result<Self> {
        let name = "ids-1.img";
        let image = read_regular(folder, name, MAX_ENTRY.into())?;
        Self::parse(&image).map_err(|e| Error::invalid(format!("{name} of the checkpoint: {e}")))
    }

    /// Reads them from the bytes of `ids-1.img`.
    pub fn parse(mut image: &[u8]) -> Result<Self> {
        take_magic(&mut image, &[COMMON, IDS])?;
        let entry = next_entry(&mut image)?.ok_or_else(|| Error::invalid("it is empty"))?;
        let id = |field| -> Result<Option<u32>> {
            let Some(id) = number_in(&entry, field)? else { return Ok(None) };
            let wrong = || Error::invalid(format!("namespace {id} has too high a number"));
            Ok(Some(u32::try_from(id).map_err(|_| wrong())?))
        };
        let missing = || Error::invalid("it names no mount namespace");
        Ok(Self {
            mount_namespace: id(MOUNT_NAMESPACE_ID)?.ok_or_else(missing)?,
            user_namespace: id(USER_NAMESPACE_ID)?,
        })
    }

    /// Returns the name of the image that has the IDs of the user namespace.
    pub fn user_namespace_image(&self) -> Option<String> {
        self.user_namespace.map(|number| format!("userns-{number}.img"))
    }
}

/// Rewrites the images in a folder. What was rewritten before stays as it is.
///
/// # Errors
/// `NotFound` if an image is missing, `Invalid` if it is none of criu's. Each image is the old or
/// the new one then.
pub fn make_portable(folder: BorrowedFd<'_>) -> Result<()> {
    let ids = RootIds::read(folder)?;
    rewrite(folder, "inventory.img", Image::Inventory { ids })?;
    if let Some(name) = ids.user_namespace_image() {
        rewrite(folder, &name, Image::UserNamespace)?;
    }
    rewrite(folder, "files.img", Image::Files)
}

/// Returns the bytes of a `userns-N.img` by which criu gives the user namespace that it makes
/// these mappings, outside of which is criu's own user namespace. It takes the place of the one in
/// the folder, in which IDs outside are those inside.
pub fn user_namespace_image(mappings: &Mappings) -> Vec<u8> {
    let mut entry = Vec::new();
    for (field, lines) in [(1, &mappings.uids), (2, &mappings.gids)] {
        for line in lines {
            put_message(field, &extent(line), &mut entry);
        }
    }
    let mut image = [COMMON.to_le_bytes(), USER_NAMESPACE.to_le_bytes()].concat();
    // 340 lines at most, of 20 bytes.
    image.extend_from_slice(&u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes());
    image.extend(entry);
    image
}

/// Encodes criu's `uid_gid_extent`.
fn extent(line: &IdMapping) -> Vec<u8> {
    let mut extent = Vec::new();
    for (field, value) in [(1, line.inside), (2, line.outside), (3, line.size)] {
        put_number(field, value.into(), &mut extent);
    }
    extent
}

/// Rewrites an image in its folder. The new one takes the place of the old one when it is whole.
fn rewrite(folder: BorrowedFd<'_>, name: &str, image: Image) -> Result<()> {
    let old = open_regular(folder, name)?;
    let new_name = format!("{name}.new");
    match unlinkat(folder, &new_name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e).context(|| format!("remove {new_name} of the checkpoint")),
    }
    let written = write_new(folder, &new_name, old, image).and_then(|()| {
        renameat(folder, &new_name, folder, name)
            .context(|| format!("rename {new_name} of the checkpoint"))
    });
    written.map_err(|error| {
        let _ = unlinkat(folder, &new_name, AtFlags::empty());
        Error::new(error.kind, format!("rewrite {name} of the checkpoint: {error}"))
    })
}

fn write_new(folder: BorrowedFd<'_>, name: &str, old: File, image: Image) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let new = openat(folder, name, flags, Mode::RUSR | Mode::WUSR).context(|| "make a new one")?;
    let new = File::from(new);
    let mode = old.metadata().context(|| "stat")?.permissions().mode() & 0o777;
    new.set_permissions(Permissions::from_mode(mode)).context(|| "chmod the new one")?;
    portable(image, BufReader::new(old), BufWriter::new(new))
}

/// Writes an image anew, in the form in which it can be brought back anywhere.
///
/// # Errors
/// `Invalid` if it is no such image of criu's.
pub fn portable(image: Image, mut old: impl Read, mut new: impl Write) -> Result<()> {
    let magic: &[u32] = match image {
        Image::Inventory { .. } => &[INVENTORY],
        Image::UserNamespace => &[COMMON, USER_NAMESPACE],
        Image::Files => &[COMMON, FILES],
    };
    let mut write = |bytes: &[u8]| new.write_all(bytes).context(|| "write");
    write(&take_magic(&mut old, magic)?)?;
    while let Some(entry) = next_entry(&mut old)? {
        let entry = match image {
            Image::Inventory { ids } => inventory_entry(&entry, ids),
            Image::UserNamespace => user_namespace_entry(&entry),
            Image::Files => files_entry(&entry),
        }?;
        let length = u32::try_from(entry.len()).map_err(|_| too_long())?;
        write(&length.to_le_bytes())?;
        write(&entry)?;
    }
    new.flush().context(|| "write")
}

/// Reads the magic numbers that an image begins with, and returns them.
pub(super) fn take_magic(image: &mut impl Read, expected: &[u32]) -> Result<Vec<u8>> {
    let expected: Vec<u8> = expected.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    let mut found = vec![0; expected.len()];
    match image.read_exact(&mut found) {
        Err(e) if e.kind() != ErrorKind::UnexpectedEof => Err(e).context(|| "read"),
        Ok(()) if found == expected => Ok(found),
        _ => Err(Error::invalid("it is no such image of criu's: its first bytes are others")),
    }
}

/// Reads the next entry; `None` at the end.
pub(super) fn next_entry(image: &mut impl Read) -> Result<Option<Vec<u8>>> {
    let cut = || Error::invalid("it ends in the midst of an entry");
    let mut length = Vec::new();
    image.by_ref().take(4).read_to_end(&mut length).context(|| "read")?;
    if length.is_empty() {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length.try_into().map_err(|_| cut())?);
    if length > MAX_ENTRY {
        return Err(too_long());
    }
    let mut entry = Vec::new();
    image.by_ref().take(length.into()).read_to_end(&mut entry).context(|| "read")?;
    if entry.len() != length as usize {
        return Err(cut());
    }
    Ok(Some(entry))
}

fn too_long() -> Error {
    Error::invalid(format!("it has an entry of more than {MAX_ENTRY} bytes"))
}

/// Sets the namespaces in the IDs of criu itself: field 3 of an `inventory_entry`.
fn inventory_entry(entry: &[u8], root: RootIds) -> Result<Vec<u8>> {
    const OWN_IDS: u32 = 3;
    let mut new = Vec::with_capacity(entry.len() + 8);
    for field in fields(entry)? {
        if field.number != OWN_IDS {
            new.extend_from_slice(field.raw);
            continue;
        }
        let mut ids = without(field.value.message()?, MOUNT_NAMESPACE_ID)?;
        put_number(MOUNT_NAMESPACE_ID, root.mount_namespace.into(), &mut ids);
        if let Some(user) = root.user_namespace {
            ids = without(&ids, USER_NAMESPACE_ID)?;
            put_number(USER_NAMESPACE_ID, user.into(), &mut ids);
        }
        put_message(OWN_IDS, &ids, &mut new);
    }
    Ok(new)
}

/// Sets the first ID outside (2) to the first inside (1) in each extent of a `userns_entry`.
fn user_namespace_entry(entry: &[u8]) -> Result<Vec<u8>> {
    const FIRST: u32 = 1;
    const OUTSIDE: u32 = 2;
    let mut new = Vec::with_capacity(entry.len());
    for field in fields(entry)? {
        let Value::Bytes(extent) = field.value else {
            new.extend_from_slice(field.raw);
            continue;
        };
        let first = number_in(extent, FIRST)?;
        let first = first.ok_or_else(|| Error::invalid("a range of IDs has no beginning"))?;
        let mut changed = without(extent, OUTSIDE)?;
        put_number(OUTSIDE, first, &mut changed);
        put_message(field.number, &changed, &mut new);
    }
    Ok(new)
}

/// Takes the mount out of a regular file (3: field 7) and of a unix socket (16: field 17) of a
/// `file_entry`.
fn files_entry(entry: &[u8]) -> Result<Vec<u8>> {
    let mut new = Vec::with_capacity(entry.len());
    for field in fields(entry)? {
        let mount = match field.number {
            3 => 7,
            TIMER => {
                put_message(TIMER, &ticking(field.value.message()?)?, &mut new);
                continue;
            }
            16 => 17,
            _ => {
                new.extend_from_slice(field.raw);
                continue;
            }
        };
        put_message(field.number, &without(field.value.message()?, mount)?, &mut new);
    }
    Ok(new)
}

/// A timer among the files: `timerfd_entry`.
const TIMER: u32 = 12;

/// Lets a timer that has expired unread go on: the time until it expires, in seconds and
/// nanoseconds, becomes its interval.
fn ticking(timer: &[u8]) -> Result<Vec<u8>> {
    const EXPIRED: u32 = 5;
    const LEFT: [u32; 2] = [7, 8];
    const INTERVAL: [u32; 2] = [9, 10];
    let number = |field| Ok::<u64, Error>(number_in(timer, field)?.unwrap_or(0));
    let left = [number(LEFT[0])?, number(LEFT[1])?];
    let interval = [number(INTERVAL[0])?, number(INTERVAL[1])?];
    if number(EXPIRED)? == 0 || left != [0, 0] || interval == [0, 0] {
        return Ok(timer.to_vec());
    }
    let mut new = timer.to_vec();
    for (field, value) in LEFT.into_iter().zip(interval) {
        new = without(&new, field)?;
        put_number(field, value, &mut new);
    }
    Ok(new)
}

/// Copies a message without one of its fields.
fn without(message: &[u8], number: u32) -> Result<Vec<u8>> {
    let kept = fields(message)?.into_iter().filter(|field| field.number != number);
    Ok(kept.flat_map(|field| field.raw).copied().collect())
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
