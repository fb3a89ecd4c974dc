//! Palisade's own notes in an image: what a restore has to know, and to compare with its plan,
//! before it has any process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{read_regular, tmpfs};
use crate::error::{Context, Error, FailureKind, Result};
use crate::spec::plan::{ContainerPlan, IdMapping, Mappings, MountSource, Namespaces};

/// Its name in the folder.
pub const NAME: &str = "palisade.json";

/// The form of the notes that this version writes and reads.
pub const FORMAT: u32 = 1;

/// The most bytes of the file.
const MAX_SIZE: u64 = 1 << 20;

/// The notes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Palisade's version.
    pub palisade: String,
    /// criu's version, such as `4.2.1`.
    pub criu: String,
    /// The architecture of the machine, as Rust calls it.
    pub architecture: String,
    /// The container's ID.
    pub container: String,
    /// The host name that the container had.
    pub hostname: String,
    /// Its NIS domain name.
    pub domainname: String,
    /// The terminal's size, if the init has a terminal.
    pub terminal: Option<Size>,
    /// The files of outside that processes had open, each of which a descriptor must stand for.
    pub inherited: Vec<Inherited>,
    /// The namespaces that the container does not share with its sandbox.
    pub own: OwnNamespaces,
    /// The IDs that the container has.
    pub ids: Ids,
    /// Where the plan's mounts are, in its order.
    pub mounts: Vec<PathBuf>,
    /// The file systems in memory that were saved.
    pub tmpfs: Vec<SavedTmpfs>,
    /// The name of the image of the IDs, such as `userns-7.img`, in whose place
    /// [`super::images::user_namespace_image`] comes.
    pub user_namespace_image: Option<String>,
    /// Whether established TCP connections are in it. They are closed otherwise.
    pub open_tcp: bool,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A file of outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    /// Its name in the images: [`super::criu::InheritFd::key`].
    pub key: String,
    /// What stands for it.
    pub stream: Stream,
}

/// What stands for a file of outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The init's standard input.
    Stdin,
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// The slave side of its terminal.
    Terminal,
    /// The sandbox's `/dev/null`.
    Null,
}

/// Which namespaces are the container's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNamespaces {
    /// IPC.
    pub ipc: bool,
    /// UTS.
    pub uts: bool,
    /// Time.
    pub time: bool,
}

impl From<Namespaces> for OwnNamespaces {
    fn from(Namespaces { ipc, uts, time, .. }: Namespaces) -> Self {
        Self { ipc, uts, time }
    }
}

/// The IDs of a container, as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Users.
    pub users: Vec<Range>,
    /// Groups.
    pub groups: Vec<Range>,
}

/// A range of IDs inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first.
    pub first: u32,
    /// Their number.
    pub count: u32,
}

impl From<&Mappings> for Ids {
    fn from(mappings: &Mappings) -> Self {
        let range = |line: &IdMapping| Range { first: line.inside, count: line.size };
        let ranges = |lines: &[IdMapping]| lines.iter().map(range).collect();
        Self { users: ranges(&mappings.uids), groups: ranges(&mappings.gids) }
    }
}

/// A file system in memory that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTmpfs {
    /// Its place in the container.
    pub destination: PathBuf,
    /// Its archive: [`tmpfs::file_name`].
    pub file: String,
}

impl Manifest {
    /// Writes the notes into a folder, in the place of those that are there.
    pub fn write(&self, folder: BorrowedFd<'_>) -> Result<()> {
        let new = format!("{NAME}.new");
        let what = || format!("write {NAME} of the checkpoint");
        match unlinkat(folder, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).context(what),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(folder, &new, flags, Mode::RUSR | Mode::WUSR).context(what)?;
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::internal(format!("{}: {e}", what())))?;
        let written = File::from(file)
            .write_all(&text)
            .context(what)
            .and_then(|()| renameat(folder, &new, folder, NAME).context(what));
        written.inspect_err(|_| {
            let _ = unlinkat(folder, &new, AtFlags::empty());
        })
    }

    /// Reads the notes of a folder, which anybody may have written.
    ///
    /// # Errors
    /// `Invalid` says what is wrong with them, or that there are none.
    pub fn read(folder: BorrowedFd<'_>) -> Result<Self> {
        let bytes = match read_regular(folder, NAME, MAX_SIZE) {
            Err(e) if e.kind == FailureKind::NotFound => {
                return Err(Error::invalid(format!(
                    "the checkpoint has no {NAME}: it was not made by Palisade"
                )));
            }
            bytes => bytes?,
        };
        Self::parse(&bytes)
    }

    /// Reads the bytes of the notes, as [`Manifest::read`] does.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        /// What all formats have.
        #[derive(Deserialize)]
        struct Any {
            format: u32,
        }
        let bad = |why: String| Error::invalid(format!("{NAME} of the checkpoint: {why}"));
        let any: Any = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if any.format != FORMAT {
            return Err(bad(format!(
                "format: it is {}, and this version of Palisade reads {FORMAT}",
                any.format
            )));
        }
        let notes: Self = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        notes.check().map_err(bad)?;
        Ok(notes)
    }

    /// Checks what the notes name: nothing of it is a path out of the folder or the container.
    fn check(&self) -> std::result::Result<(), String> {
        if self.architecture != std::env::consts::ARCH {
            let own = std::env::consts::ARCH;
            return Err(format!("architecture: it is {:?}, this is {own}", self.architecture));
        }
        let is_place = |path: &Path| {
            let inside = |part| matches!(part, Component::RootDir | Component::Normal(_));
            path.is_absolute() && path.components().all(inside)
        };
        let places = self.mounts.iter().chain(self.tmpfs.iter().map(|tmpfs| &tmpfs.destination));
        if let Some(path) = places.into_iter().find(|path| !is_place(path)) {
            return Err(format!("{path:?} is no place in a container"));
        }
        let digits = |text: &str| {
            !text.is_empty() && text.len() < 10 && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        let is_archive = |name: &str| within(name, "tmpfs-", ".tar").is_some_and(digits);
        if let Some(tmpfs) = self.tmpfs.iter().find(|tmpfs| !is_archive(&tmpfs.file)) {
            return Err(format!("tmpfs.file: {:?} is no {}", tmpfs.file, tmpfs::file_name(0)));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.tmpfs.iter().find(|tmpfs| !seen.insert(&tmpfs.destination)) {
            return Err(format!("tmpfs: {:?} is there twice", twice.destination));
        }
        let image = self.user_namespace_image.as_deref();
        if image.is_some_and(|name| !within(name, "userns-", ".img").is_some_and(digits)) {
            return Err(format!("user_namespace_image: {image:?} is no userns-1.img"));
        }
        let is_key = |key: &str| {
            let kinds = ["file[", "pipe:[", "tty["];
            let inner = kinds.iter().find_map(|kind| within(key, kind, "]"));
            inner.is_some_and(|inner| {
                let plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b':';
                !inner.is_empty() && inner.len() < 64 && inner.bytes().all(plain)
            })
        };
        match self.inherited.iter().find(|inherited| !is_key(&inherited.key)) {
            Some(inherited) => Err(format!("inherited.key: {:?} names no file", inherited.key)),
            None => Ok(()),
        }
    }

    /// Checks that a container of this plan can have what was saved.
    ///
    /// # Errors
    /// `Invalid` names the field of the spec, or of the request, and what was expected.
    pub fn check_plan(&self, plan: &ContainerPlan) -> Result<()> {
        let Some(process) = &plan.process else {
            return Err(Error::invalid(
                "a checkpoint is restored as a container that has a process of its own, which the \
                 pause container has not",
            ));
        };
        if process.terminal.is_some() != self.terminal.is_some() {
            let had = if self.terminal.is_some() { "a terminal" } else { "no terminal" };
            return Err(Error::invalid(format!(
                "process.terminal: the container that was saved had {had}; expected the same"
            )));
        }
        if !plan.namespaces.pid {
            return Err(Error::invalid(
                "linux.namespaces: pid: expected a namespace of the container's own: processes \
                 come back with the PIDs that they had",
            ));
        }
        let own = OwnNamespaces::from(plan.namespaces);
        let kinds = [
            ("ipc", self.own.ipc, own.ipc),
            ("uts", self.own.uts, own.uts),
            ("time", self.own.time, own.time),
        ];
        if let Some((kind, had, _)) = kinds.into_iter().find(|(_, had, has)| had != has) {
            let had = if had { "one of its own" } else { "its sandbox's" };
            return Err(Error::invalid(format!(
                "linux.namespaces: {kind}: the container that was saved had {had}; expected the same"
            )));
        }
        let has = |place: &Path| plan.mounts.iter().any(|mount| mount.destination == place);
        if let Some(missing) = self.mounts.iter().find(|place| !has(place)) {
            return Err(Error::invalid(format!(
                "mounts: the container that was saved had a mount at {}; expected one",
                missing.display()
            )));
        }
        let is_tmpfs = |saved: &&SavedTmpfs| self.mount_of(saved, plan).is_none();
        match self.tmpfs.iter().find(is_tmpfs) {
            None => Ok(()),
            Some(saved) => Err(Error::invalid(format!(
                "mounts: the container that was saved had a tmpfs at {}; expected one",
                saved.destination.display()
            ))),
        }
    }

    /// Returns the index, in the plan's mounts, of the tmpfs that takes what was saved.
    pub fn mount_of(&self, saved: &SavedTmpfs, plan: &ContainerPlan) -> Option<usize> {
        plan.mounts.iter().rposition(|mount| {
            mount.destination == saved.destination
                && matches!(mount.source, MountSource::Tmpfs { .. })
        })
    }

    /// Checks that a sandbox with these mappings has all IDs that the container had.
    ///
    /// # Errors
    /// `Invalid` names the first range that it lacks.
    pub fn check_ids(&self, mappings: &Mappings) -> Result<()> {
        let has = Ids::from(mappings);
        for (kind, wanted, has) in
            [("user", &self.ids.users, &has.users), ("group", &self.ids.groups, &has.groups)]
        {
            if let Some(Range { first, count }) = wanted.iter().find(|range| !covers(has, range)) {
                return Err(Error::invalid(format!(
                    "the container that was saved had {count} {kind} IDs from {first} on, which \
                     this sandbox has not; set ids_per_sandbox, or the spec's mappings, as they \
                     were then"
                )));
            }
        }
        Ok(())
    }
}

/// Whether ranges have all IDs of another.
fn covers(ranges: &[Range], wanted: &Range) -> bool {
    let end = |range: &Range| u64::from(range.first) + u64::from(range.count);
    let mut from = u64::from(wanted.first);
    while from < end(wanted) {
        let next = ranges.iter().find(|r| u64::from(r.first) <= from && from < end(r));
        match next {
            Some(range) => from = end(range),
            None => return false,
        }
    }
    true
}

/// Returns what is between two parts of a text.
fn within<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn notes() -> Manifest {
        Manifest {
            format: FORMAT,
            palisade: "0.1.0".into(),
            criu: "4.2.1".into(),
            architecture: std::env::consts::ARCH.into(),
            container: "c1".into(),
            hostname: "host".into(),
            domainname: "(none)".into(),
            terminal: None,
            inherited: vec![Inherited { key: "file[1b:e2012]".into(), stream: Stream::Stdout }],
            own: OwnNamespaces { ipc: true, uts: true, time: false },
            ids: Ids { users: vec![Range { first: 0, count: 65536 }], groups: Vec::new() },
            mounts: vec!["/proc".into(), "/dev/shm".into()],
            tmpfs: vec![SavedTmpfs { destination: "/dev/shm".into(), file: "tmpfs-3.tar".into() }],
            user_namespace_image: Some("userns-7.img".into()),
            open_tcp: false,
        }
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let handle = File::open(folder.path()).unwrap();
        let missing = Manifest::read(handle.as_fd()).unwrap_err();
        assert_eq!(missing.kind, FailureKind::Invalid);
        assert!(missing.to_string().contains("not made by Palisade"));
        notes().write(handle.as_fd()).unwrap();
        notes().write(handle.as_fd()).unwrap();
        assert_eq!(Manifest::read(handle.as_fd()).unwrap(), notes());
        let names = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [NAME]);
    }

    #[test]
    fn notes_lead_nowhere() {
        type Spoil = fn(&mut Manifest);
        let spoil: [(Spoil, &str); 9] = [
            (|m| m.format = 2, "format"),
            (|m| m.architecture = "vax".into(), "architecture"),
            (|m| m.mounts.push("proc".into()), "no place"),
            (|m| m.mounts.push("/a/../b".into()), "no place"),
            (|m| m.tmpfs[0].file = "tmpfs-../x.tar".into(), "tmpfs.file"),
            (|m| m.tmpfs[0].file = "/etc/passwd".into(), "tmpfs.file"),
            (|m| m.tmpfs.push(m.tmpfs[0].clone()), "twice"),
            (|m| m.user_namespace_image = Some("../userns-7.img".into()), "user_namespace_image"),
            (|m| m.inherited[0].key = "file[1b:/etc]".into(), "inherited.key"),
        ];
        for (spoil, expected) in spoil {
            let mut notes = notes();
            spoil(&mut notes);
            let error = Manifest::parse(&serde_json::to_vec(&notes).unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
        assert!(Manifest::parse(b"{").is_err() && Manifest::parse(b"{\"format\":1}").is_err());
    }

    #[test]
    fn a_sandbox_has_the_ids_in_any_number_of_ranges() {
        let lines = |lines: &[(u32, u32)]| {
            let line = |(inside, size): &(u32, u32)| IdMapping {
                inside: *inside,
                outside: 1 << 30,
                size: *size,
            };
            let uids = lines.iter().map(line).collect();
            Mappings { uids, gids: Vec::new() }
        };
        assert!(notes().check_ids(&lines(&[(0, 65536)])).is_ok());
        assert!(notes().check_ids(&lines(&[(0, 1), (1, 100_000)])).is_ok());
        for less in [&[(0, 65535)][..], &[(1, 65535)], &[(0, 5), (6, 70_000)], &[]] {
            let error = notes().check_ids(&lines(less)).unwrap_err().to_string();
            assert!(error.contains("65536 user IDs from 0"), "{error}");
        }
    }
}
