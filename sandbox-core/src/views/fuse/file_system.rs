//! What the file system has and says.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::nodes::{Node, Nodes, Passed, Tree};
use super::places::{LONG_VALID, Place};
use super::protocol::Operation;
use super::reply::{self, Attributes, Entry, Found, Listing, Moment, Validity};
use super::snapshots::Snapshots;
use super::{Answer, Content, Unanswered, sysfs};
use crate::views::File;

/// The longest name of a file, as everywhere.
const MAX_NAME: usize = 255;

/// Each read(2) asks this server, whatever was read before: `FOPEN_DIRECT_IO`.
const DIRECT: u32 = 1;

/// A close asks this server nothing: `FOPEN_NOFLUSH`. Such a request could not be interrupted, not
/// even by SIGKILL. Linux 5.16 and later.
const NO_FLUSH: u32 = 1 << 5;

/// `FATTR_MODE`, `FATTR_UID` and `FATTR_GID`
const OWNERSHIP: u32 = 0b111;

/// `FATTR_SIZE`
const SIZE: u32 = 1 << 3;

/// The containers, and what the kernel was told of them.
#[derive(Debug)]
pub(super) struct FileSystem {
    owner: (u32, u32),
    made: Moment,
    containers: BTreeSet<u32>,
    /// What containers do not see of the host's sysfs.
    hidden: HashSet<Passed>,
    pub(super) nodes: Nodes,
    snapshots: Snapshots,
    opened: u64,
}

/// A directory or file of the host's sysfs, as a container sees it.
struct Below<'a> {
    serial: u32,
    tree: Tree,
    path: &'a str,
}

impl FileSystem {
    pub(super) fn new(owner: (u32, u32)) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let made = Moment { seconds: now.as_secs(), nanoseconds: now.subsec_nanos() };
        Self {
            owner,
            made,
            containers: BTreeSet::new(),
            hidden: HashSet::new(),
            nodes: Nodes::default(),
            snapshots: Snapshots::default(),
            opened: 0,
        }
    }

    pub(super) fn add_container(&mut self, serial: u32) {
        self.containers.insert(serial);
    }

    /// Hides a path of sysfs from a container. A mount on top would not hide it for good: the
    /// kernel takes it away with its directory, as when a container gets fewer CPUs.
    pub(super) fn hide(&mut self, serial: u32, path: &Path) {
        let trees =
            [("/sys/devices/system/cpu", Tree::Cpu), ("/sys/devices/system/node", Tree::Node)];
        for (root, tree) in trees {
            let below = path.strip_prefix(root).ok().and_then(Path::to_str);
            if let Some(below) = below.filter(|below| !below.is_empty()) {
                self.hidden.insert(Passed { serial, tree, path: below.to_owned() });
            }
        }
    }

    pub(super) fn remove_container(&mut self, serial: u32) {
        self.containers.remove(&serial);
        self.hidden.retain(|hidden| hidden.serial != serial);
        self.nodes.remove_container(serial);
    }

    /// Takes note that the kernel dropped a node that it had looked up so many times.
    pub(super) fn forget(&mut self, node: u64, lookups: u64) {
        self.nodes.forget(node, lookups);
    }

    /// Takes note that the last reader of what was opened once has closed it.
    pub(super) fn release(&mut self, handle: u64) {
        self.snapshots.release(handle);
    }

    /// Returns how many bytes of texts are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.snapshots.bytes()
    }

    /// Returns the container that a node belongs to.
    pub(super) fn container_of(&self, node: u64) -> Option<u32> {
        match Node::numbered(node)? {
            Node::Root => None,
            Node::Place(serial, _) => Some(serial),
            Node::Passed(number) => self.nodes.get(number).map(|passed| passed.serial),
        }
    }

    /// Returns the body of the reply to a request.
    pub(super) fn answer(
        &mut self,
        node: u64,
        operation: &Operation,
        content: &mut impl Content,
    ) -> Answer<Vec<u8>> {
        let node = self.find(node)?;
        match operation {
            Operation::Lookup { name } => {
                let name = str::from_utf8(name).map_err(|_| Errno::NOENT)?;
                self.look_up(node, name, content).map(|found| reply::found(&found))
            }
            Operation::GetAttributes { open } => {
                let mut found = self.attributes(node, content)?;
                if *open && found.valid == LONG_VALID {
                    found.size = 0;
                }
                Ok(reply::attributes(&found))
            }
            Operation::SetAttributes { what } => self.set_attributes(node, *what),
            Operation::ReadLink => self.read_link(node, content),
            Operation::Open { flags } => {
                let flags = OFlags::from_bits_retain(*flags);
                self.open(node, flags, content)
            }
            // For sendfile(2) and splice(2) of what it takes to be in its cache, where no text stays
            // true. Programs then read(2).
            Operation::Read { direct: false, .. } => Err(Errno::INVAL.into()),
            Operation::Read { handle, offset, size, .. } => {
                self.read(node, *handle, *offset, *size, content)
            }
            // As proc answers for a file that nobody can write.
            Operation::Write => Err(Errno::IO.into()),
            // What is listed is not kept by the kernel: CPUs come and go.
            Operation::OpenDirectory => Ok(reply::opened(0, 0)),
            Operation::ReadDirectory { offset, size, plus } => {
                self.list(node, *offset, Listing::new(*size, *plus), content)
            }
            Operation::StatFs => Ok(reply::file_system()),
            // As proc and sysfs: `cp` would otherwise take a file without blocks for a hole.
            Operation::SeekData => Err(Errno::INVAL.into()),
            Operation::Create => Err(Errno::ACCESS.into()),
            Operation::Change => Err(Errno::PERM.into()),
            // access(2), extended attributes, locks, polling: the kernel asks for each kind once
            // and then does without.
            _ => Err(Errno::NOSYS.into()),
        }
    }

    /// Returns a node that is there. What the kernel still holds of a container that has gone
    /// is stale.
    fn find(&self, number: u64) -> Result<Node, Errno> {
        let node = Node::numbered(number).ok_or(Errno::STALE)?;
        let there = match node {
            Node::Root => true,
            Node::Place(serial, _) => self.containers.contains(&serial),
            Node::Passed(number) => self.nodes.get(number).is_some(),
        };
        if there { Ok(node) } else { Err(Errno::STALE) }
    }

    /// Returns what a node is in the host's sysfs, if it is passed through.
    fn below(&self, node: Node) -> Option<Below<'_>> {
        match node {
            Node::Place(serial, Place::Cpu) => Some(Below { serial, tree: Tree::Cpu, path: "" }),
            Node::Place(serial, Place::Node) => Some(Below { serial, tree: Tree::Node, path: "" }),
            Node::Passed(number) => {
                let Passed { serial, tree, path } = self.nodes.get(number)?;
                Some(Below { serial: *serial, tree: *tree, path })
            }
            _ => None,
        }
    }

    fn found(&self, serial: u32, place: Place) -> Found {
        let mut attributes = place.attributes(serial, self.owner, self.made);
        if matches!(place, Place::Cpu | Place::Node) {
            // The newborn binds them before the host's are there.
            attributes.valid = Validity::Seconds(0);
        }
        let node = Node::Place(serial, place).number();
        Found { node, valid: Validity::Forever, attributes }
    }

    fn look_up(&mut self, node: Node, name: &str, content: &mut impl Content) -> Answer<Found> {
        if name.len() > MAX_NAME {
            return Err(Errno::NAMETOOLONG.into());
        }
        // What is no name of an entry, the kernel resolves by itself.
        if matches!(name, "" | "." | "..") || name.contains('/') {
            return Err(Errno::NOENT.into());
        }
        match node {
            Node::Root => {
                let serial = name.parse().ok().filter(|serial| self.containers.contains(serial));
                // Only as it is listed: no zeros and no sign before it.
                let serial = serial.filter(|serial| serial.to_string() == name);
                return Ok(self.found(serial.ok_or(Errno::NOENT)?, Place::Container));
            }
            Node::Place(serial, place) => {
                if let Some(child) = place.child(name.as_bytes()) {
                    if child == Place::File(File::CpuPossible) {
                        root(content, serial, Tree::Cpu)?;
                    }
                    return Ok(self.found(serial, child));
                }
            }
            Node::Passed(_) => {}
        }
        let Below { serial, tree, path } = self.below(node).ok_or(Errno::NOENT)?;
        let cpu = sysfs::cpu(tree, path, name);
        if let Some(cpu) = cpu
            && !content.cpus(serial)?.contains(cpu)
        {
            return Err(Errno::NOENT.into());
        }
        let path = below(path, name);
        let passed = Passed { serial, tree, path };
        if self.hidden.contains(&passed) {
            return Err(Errno::NOENT.into());
        }
        let stat = sysfs::stat(root(content, serial, tree)?, &passed.path)?;
        let node = self.nodes.look_up(passed);
        let valid = if cpu.is_some() { Validity::Seconds(0) } else { sysfs::VALID };
        Ok(Found { node, valid, attributes: sysfs::attributes(&stat, self.owner) })
    }

    fn attributes(&self, node: Node, content: &mut impl Content) -> Answer<Attributes> {
        match node {
            Node::Root => {
                let mut attributes = Place::Container.attributes(0, self.owner, self.made);
                attributes.inode = super::protocol::ROOT;
                // As file systems say that do not count their directories.
                attributes.links = 1;
                return Ok(attributes);
            }
            Node::Place(serial, place @ (Place::Cpu | Place::Node)) => {
                return self.root_attributes(serial, place, content);
            }
            Node::Place(serial, place) => {
                return Ok(place.attributes(serial, self.owner, self.made));
            }
            Node::Passed(_) => {}
        }
        let Below { serial, tree, path } = self.below(node).ok_or(Errno::STALE)?;
        let stat = sysfs::stat(root(content, serial, tree)?, path)?;
        Ok(sysfs::attributes(&stat, self.owner))
    }

    /// Returns the attributes of `cpu` or `node`: the host's, with as many links as there are
    /// directories in it.
    fn root_attributes(
        &self,
        serial: u32,
        place: Place,
        content: &mut impl Content,
    ) -> Answer<Attributes> {
        let tree = if place == Place::Cpu { Tree::Cpu } else { Tree::Node };
        let cpus = if tree == Tree::Cpu { Some(content.cpus(serial)?) } else { None };
        let root = match root(content, serial, tree) {
            Err(Unanswered::Errno(Errno::NOENT)) => {
                return Ok(place.attributes(serial, self.owner, self.made));
            }
            root => root?,
        };
        let mut attributes = sysfs::attributes(&sysfs::stat(root, "")?, self.owner);
        attributes.inode = place.inode(serial);
        if let Some(cpus) = cpus {
            sysfs::list(root, "", 0, |entry| {
                let cpu = str::from_utf8(entry.name).ok().and_then(|n| sysfs::cpu(tree, "", n));
                let hidden = cpu.is_some_and(|cpu| !cpus.contains(cpu));
                attributes.links = attributes.links.saturating_sub(u32::from(hidden));
                Ok(true)
            })?;
        }
        Ok(attributes)
    }

    fn set_attributes(&self, node: Node, what: u32) -> Answer<Vec<u8>> {
        match node {
            // As proc, which takes O_TRUNC without effect: what is then written fails.
            Node::Place(serial, place @ Place::File(_))
                if what & SIZE != 0 && what & OWNERSHIP == 0 =>
            {
                Ok(reply::attributes(&place.attributes(serial, self.owner, self.made)))
            }
            _ => Err(Errno::PERM.into()),
        }
    }

    fn read_link(&self, node: Node, content: &impl Content) -> Answer<Vec<u8>> {
        let Below { serial, tree, path } = self.below(node).ok_or(Errno::INVAL)?;
        Ok(sysfs::link(root(content, serial, tree)?, path)?)
    }

    fn open(&mut self, node: Node, flags: OFlags, content: &impl Content) -> Answer<Vec<u8>> {
        let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
        match node {
            Node::Place(_, place @ Place::File(_)) if !place.is_of_proc() && !reads => {
                return Err(Errno::ACCESS.into());
            }
            Node::Place(_, Place::File(_)) => {}
            _ if !reads => return Err(Errno::ACCESS.into()),
            _ => {
                let Below { serial, tree, path } = self.below(node).ok_or(Errno::ISDIR)?;
                sysfs::check(root(content, serial, tree)?, path)?;
            }
        }
        self.opened += 1;
        Ok(reply::opened(self.opened, DIRECT | NO_FLUSH))
    }

    fn read(
        &mut self,
        node: Node,
        handle: u64,
        offset: u64,
        size: u32,
        content: &mut impl Content,
    ) -> Answer<Vec<u8>> {
        if offset > 0
            && let Some(part) = self.snapshots.read(handle, offset, size)
        {
            return Ok(part);
        }
        let text = self.text(node, content)?;
        Ok(self.snapshots.start(handle, text, offset, size))
    }

    fn text(&self, node: Node, content: &mut impl Content) -> Answer<Vec<u8>> {
        if let Node::Place(serial, Place::File(file)) = node {
            let kernels = match file {
                File::CpuPossible => {
                    Some(sysfs::read(root(content, serial, Tree::Cpu)?, "possible")?)
                }
                _ => None,
            };
            return content.text(serial, file, kernels.as_deref());
        }
        let Below { serial, tree, path } = self.below(node).ok_or(Errno::ISDIR)?;
        let kernels = sysfs::read(root(content, serial, tree)?, path)?;
        match sysfs::made_here(tree, path) {
            Some(file) => content.text(serial, file, Some(&kernels)),
            None => Ok(kernels),
        }
    }

    fn list(
        &self,
        node: Node,
        offset: u64,
        listing: Listing,
        content: &mut impl Content,
    ) -> Answer<Vec<u8>> {
        match (node, self.below(node)) {
            (Node::Root, _) => Ok(self.list_containers(offset, listing)),
            (Node::Place(serial, place), None) => {
                Ok(self.list_place(serial, place, offset, listing))
            }
            (_, None) => Err(Errno::NOTDIR.into()),
            (_, Some(below)) => self.list_sysfs(node, &below, offset, listing, content),
        }
    }

    /// Lists the root: only boot and newborns can look at it. A container's offset is its serial
    /// number.
    fn list_containers(&self, offset: u64, mut listing: Listing) -> Vec<u8> {
        let after = u32::try_from(offset).map_or(Bound::Included(u32::MAX), Bound::Excluded);
        for serial in self.containers.range((after, Bound::Unbounded)) {
            let found = self.found(*serial, Place::Container);
            let name = serial.to_string();
            let entry = Entry {
                name: name.as_bytes(),
                inode: found.attributes.inode,
                kind: FileType::Directory,
                next: u64::from(*serial),
                found: Some(found),
            };
            if !listing.add(&entry) {
                break;
            }
        }
        listing.into_bytes()
    }

    /// Lists what the table says of a place. Each entry comes with its attributes, so that who
    /// lists a container's directory needs no lookup for what is in it.
    fn list_place(&self, serial: u32, place: Place, offset: u64, mut listing: Listing) -> Vec<u8> {
        let up = if place == Place::Container {
            super::protocol::ROOT
        } else {
            Place::Container.inode(serial)
        };
        let dots = [(".", place.inode(serial)), ("..", up)];
        let dots = dots.map(|(name, inode)| (name, inode, FileType::Directory, None));
        // Without the kernel's, nothing is made of it.
        let there = place.children().filter(|row| row.place != Place::File(File::CpuPossible));
        let children = there.map(|row| {
            let found = self.found(serial, row.place);
            (row.name, found.attributes.inode, row.place.kind(), Some(found))
        });
        let all = dots.into_iter().chain(children).zip(1..);
        for ((name, inode, kind, found), next) in all.filter(|(_, next)| *next > offset) {
            if !listing.add(&Entry { name: name.as_bytes(), inode, kind, next, found }) {
                break;
            }
        }
        listing.into_bytes()
    }

    /// Whether a container does not see a name of a directory.
    fn hides(&self, directory: &Below<'_>, name: &[u8]) -> bool {
        let Below { serial, tree, path } = *directory;
        let Ok(name) = str::from_utf8(name) else { return false };
        let path = below(path, name);
        !self.hidden.is_empty() && self.hidden.contains(&Passed { serial, tree, path })
    }

    /// Lists a directory of sysfs, without the CPUs that the container does not have. The kernel
    /// looks up what is used of it, so that a listing takes no room in the table.
    fn list_sysfs(
        &self,
        node: Node,
        below: &Below<'_>,
        offset: u64,
        mut listing: Listing,
        content: &mut impl Content,
    ) -> Answer<Vec<u8>> {
        let Below { serial, tree, path } = *below;
        let cpus = content.cpus(serial)?;
        let place = match node {
            Node::Place(_, place) => Some(place),
            _ => None,
        };
        let root = match (root(content, serial, tree), place) {
            (Err(Unanswered::Errno(Errno::NOENT)), Some(place)) => {
                return Ok(self.list_place(serial, place, offset, listing));
            }
            (root, _) => root?,
        };
        sysfs::list(root, path, offset, |entry| {
            let cpu = str::from_utf8(entry.name).ok().and_then(|name| sysfs::cpu(tree, path, name));
            if cpu.is_some_and(|cpu| !cpus.contains(cpu)) || self.hides(below, entry.name) {
                return Ok(true);
            }
            let found = place.and_then(|place| place.child(entry.name));
            let found = found.map(|place| self.found(serial, place));
            let inode = found.map_or(entry.inode, |found| found.attributes.inode);
            let (name, kind, next) = (entry.name, entry.kind, entry.next);
            Ok(listing.add(&Entry { name, inode, kind, next, found }))
        })?;
        Ok(listing.into_bytes())
    }
}

/// Returns the path of what has a name in a directory.
fn below(directory: &str, name: &str) -> String {
    match directory {
        "" => name.to_owned(),
        directory => format!("{directory}/{name}"),
    }
}

/// Returns a root of the host's sysfs.
fn root(content: &impl Content, serial: u32, tree: Tree) -> Answer<BorrowedFd<'_>> {
    let sysfs = content.sysfs(serial)?;
    match tree {
        Tree::Cpu => Ok(sysfs.cpu),
        Tree::Node => Ok(sysfs.node.ok_or(Errno::NOENT)?),
    }
}
