//! Makes an overlay root file system whose layers are idmapped into the
//! sandbox.
//!
//! The layers of a snapshotter are siblings. So one detached clone of the
//! directory above them is idmapped, and the layers are opened below it. A
//! clone for each layer would cost the kernel 60 µs each to destroy.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::MountAttrFlags;

use crate::error::{Context, Error, Result};
use crate::gofer::filesystem::{is_read_only, refused};
use crate::gofer::idmap::{mapped_clone, missing};
use crate::gofer::options::Options;
use crate::gofer::overlay_attached;
use crate::gofer::rootfs::{Mapping, already_shifted, place};
use crate::gofer::serve::Gofer;
use crate::gofer::users::{Users, as_root_of};
use crate::sys::mount::{Depth, FsContext, FsError, open_beneath};

/// The first Linux whose overlay takes layers on detached mounts
/// (`clone_private_mount`), and by descriptors opened with `O_PATH`.
const LAYERS_BY_DESCRIPTOR: (u32, u32) = (6, 15);

/// An overlay's options, without the layers, and its opened layers.
pub(super) struct Overlay {
    pub(super) lower: Vec<Lower>,
    pub(super) upper: Option<Upper>,
    pub(super) options: Options,
    /// The detached mounts on which the layers are.
    pub(super) mounts: Vec<OwnedFd>,
}

/// A layer that is only read.
pub(super) struct Lower {
    pub(super) layer: Layer,
    /// Whether it only holds data for metadata-only copies above (`::` in
    /// `lowerdir`).
    pub(super) data_only: bool,
}

/// The layer that is written, and the kernel's work directory.
pub(super) struct Upper {
    pub(super) upper: Layer,
    pub(super) work: Layer,
}

/// An opened directory.
pub(super) struct Layer {
    dir: OwnedFd,
    /// Index into [`Overlay::mounts`], below which `path` is. With `None`,
    /// `path` is a path of the host.
    pub(super) mount: Option<usize>,
    pub(super) path: PathBuf,
}

/// Makes the overlay of a Create request, with the options of overlayfs (kernel
/// documentation, filesystems/overlayfs).
pub(super) fn make(mut options: Options, mapping: Mapping, gofer: &mut Gofer) -> Result<OwnedFd> {
    let paths = Paths::take(&mut options)?;
    // The users for which the layers must be shifted.
    let users = match &gofer.users {
        Some(users) if !already_shifted(&paths.lower[0].0, users)? => Some(users),
        _ => None,
    };
    let sandbox = users.map(Users::namespace);
    let (lower, upper, creator) = match &mapping {
        Mapping::Own(namespace) => (Some(namespace.as_fd()), None, None),
        Mapping::Sandbox => (sandbox, sandbox, users),
    };
    let overlay = paths.open(options, lower, upper)?;
    let made = mount(&overlay, creator)?;
    // It is read-only if the kernel cannot write to the work directory, which
    // the kernel only logs.
    if overlay.upper.is_some() && !overlay.options.read_only && is_read_only(&made)? {
        return Err(Error::internal(
            "it came back read-only, since the kernel could not use its workdir; \
             the kernel's log says why",
        ));
    }
    gofer.leftovers.extend(overlay.mounts);
    Ok(made)
}

fn mount(overlay: &Overlay, creator: Option<&Users>) -> Result<OwnedFd> {
    match by_descriptor(overlay, creator)? {
        Ok(mount) => Ok(mount),
        Err(_) if older_than(LAYERS_BY_DESCRIPTOR) => overlay_attached::make(overlay, creator),
        Err(e) => Err(refused("mounting it", &e)),
    }
}

fn by_descriptor(
    overlay: &Overlay,
    creator: Option<&Users>,
) -> Result<std::result::Result<OwnedFd, FsError>> {
    let configure = || {
        let context = FsContext::open("overlay")?;
        context.string("source", "overlay")?;
        for Lower { layer, data_only } in &overlay.lower {
            context.fd(if *data_only { "datadir+" } else { "lowerdir+" }, &layer.dir)?;
        }
        if let Some(Upper { upper, work }) = &overlay.upper {
            context.fd("upperdir", &upper.dir)?;
            context.fd("workdir", &work.dir)?;
        }
        for (key, value) in &overlay.options.fs {
            context.option(key, value.as_deref())?;
        }
        if overlay.options.read_only {
            context.flag("ro")?;
        }
        Ok(context)
    };
    let context = match configure() {
        Ok(context) => context,
        Err(e) => return Ok(Err(e)),
    };
    // overlayfs accesses the layers as the user who creates it. On an idmapped
    // mount the host's root is an unmapped user, whose files cannot be made.
    let created = as_root_of(creator, || Ok(context.create()))?;
    let attributes = MountAttrFlags::from_bits_retain(overlay.options.attributes as u32);
    Ok(created.and_then(|()| context.mount(attributes)))
}

/// Whether the kernel is older than a version.
fn older_than(version: (u32, u32)) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < version,
        _ => false,
    }
}

/// The directories that the options name.
struct Paths {
    /// The lower layers from the top down, never empty, each with whether it is
    /// a data-only layer.
    lower: Vec<(PathBuf, bool)>,
    /// The upper and the work directory.
    upper: Option<(PathBuf, PathBuf)>,
}

impl Paths {
    fn take(options: &mut Options) -> Result<Self> {
        let lower = split_layers(&options.take("lowerdir").unwrap_or_default());
        let upper = match (options.take("upperdir"), options.take("workdir")) {
            (Some(upper), Some(work)) => Some((PathBuf::from(upper), PathBuf::from(work))),
            (None, None) => None,
            _ => return Err(Error::invalid("upperdir and workdir must be given together")),
        };
        if lower.is_empty() {
            return Err(Error::invalid("the option lowerdir is missing"));
        }
        let paths = Self { lower, upper };
        if let Some(path) = paths.all().find(|path| !path.is_absolute()) {
            return Err(Error::invalid(format!("the layer {path:?} is no absolute path")));
        }
        Ok(paths)
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        let lower = self.lower.iter().map(|(path, _)| path.as_path());
        lower.chain(self.upper.iter().flat_map(|(upper, work)| [upper.as_path(), work.as_path()]))
    }

    fn open(
        self,
        options: Options,
        lower: Option<BorrowedFd<'_>>,
        upper: Option<BorrowedFd<'_>>,
    ) -> Result<Overlay> {
        let mut mounts = Vec::new();
        // With the same mapping they can all be on one mount.
        let together = lower.is_some() && upper.is_some();
        let group: Vec<&Path> = if together {
            self.all().collect()
        } else {
            self.lower.iter().map(|(path, _)| path.as_path()).collect()
        };
        let mut layers = open_layers(&group, lower, &mut mounts)?.into_iter();
        let lowers = self.lower.iter().zip(layers.by_ref());
        let lowers = lowers.map(|(&(_, data_only), layer)| Lower { layer, data_only }).collect();
        let upper = match &self.upper {
            None => None,
            Some((path, work)) => Some(match (layers.next(), layers.next()) {
                (Some(upper), Some(work)) if upper.mount == work.mount => Upper { upper, work },
                _ => open_upper(path, work, upper, &mut mounts)?,
            }),
        };
        Ok(Overlay { lower: lowers, upper, options, mounts })
    }
}

/// Opens the upper and the work directory on a mount of their own.
fn open_upper(
    upper: &Path,
    work: &Path,
    namespace: Option<BorrowedFd<'_>>,
    mounts: &mut Vec<OwnedFd>,
) -> Result<Upper> {
    let mut layers = open_layers(&[upper, work], namespace, mounts)?.into_iter();
    match (layers.next(), layers.next()) {
        (Some(upper), Some(work)) if upper.mount == work.mount => Ok(Upper { upper, work }),
        _ => Err(Error::invalid(format!(
            "upperdir {} and workdir {} are not on the same mount",
            upper.display(),
            work.display()
        ))),
    }
}

/// Opens directories with their owners mapped. Those on the same mount as the
/// directory above them all share one clone of it. Each other directory gets
/// its own clone.
fn open_layers(
    paths: &[&Path],
    namespace: Option<BorrowedFd<'_>>,
    mounts: &mut Vec<OwnedFd>,
) -> Result<Vec<Layer>> {
    let Some(namespace) = namespace else {
        let open =
            |path: &&Path| Ok(Layer { dir: place(path)?, mount: None, path: path.to_path_buf() });
        return paths.iter().map(open).collect();
    };
    let above = above_all(paths);
    let host = place(&above)?;
    let here = mount_id(&host, Path::new(""))?;
    let shared = mounts.len();
    mounts.push(mapped_clone(&above, Depth::Top, Some(namespace))?);
    let mut layers = Vec::with_capacity(paths.len());
    for &path in paths {
        let below = path.strip_prefix(&above).unwrap_or(path);
        // A mount below (such as a layer made by FUSE) is not in the clone.
        // There its mount point would look like an empty layer.
        let inside =
            mount_id(&host, below).map_err(|e| Error::new(e.kind, named(path, &e)))? == here;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = inside
            .then(|| open_beneath(&mounts[shared], below, flags, Mode::empty()).ok())
            .flatten();
        layers.push(match opened {
            Some(dir) => Layer { dir, mount: Some(shared), path: below.to_owned() },
            None => {
                // Also a layer to which an absolute symlink leads.
                let own = mapped_clone(path, Depth::Top, Some(namespace))?;
                let dir = own.try_clone().context(|| "dup")?;
                mounts.push(own);
                Layer { dir, mount: Some(mounts.len() - 1), path: PathBuf::from(".") }
            }
        });
    }
    Ok(layers)
}

fn named(path: &Path, error: &Error) -> String {
    format!("the layer {}: {error}", path.display())
}

fn mount_id(dir: &OwnedFd, path: &Path) -> Result<u64> {
    let stat = rustix::fs::statx(dir, path, AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    Ok(stat.map_err(|e| missing(path, &e.into()))?.stx_mnt_id)
}

/// Returns the deepest directory that holds all paths.
fn above_all(paths: &[&Path]) -> PathBuf {
    let parent = |path: &Path| path.parent().unwrap_or(path).to_owned();
    let Some((first, rest)) = paths.split_first() else { return PathBuf::from("/") };
    rest.iter().fold(parent(first), |above, path| {
        let path = parent(path);
        let same = above.components().zip(path.components()).take_while(|(a, b)| a == b);
        same.map(|(a, _)| a).collect::<Vec<Component<'_>>>().iter().collect()
    })
}

/// Splits `lowerdir` at colons. A backslash escapes the next character.
/// Data-only layers follow two colons.
fn split_layers(text: &str) -> Vec<(PathBuf, bool)> {
    let mut layers = Vec::new();
    let mut layer = String::new();
    let mut data_only = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => layer.extend(characters.next()),
            ':' if layer.is_empty() => data_only = true,
            ':' => layers.push((PathBuf::from(std::mem::take(&mut layer)), data_only)),
            other => layer.push(other),
        }
    }
    if !layer.is_empty() {
        layers.push((PathBuf::from(layer), data_only));
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_plain_colons() {
        let split = split_layers(r"/a\:b:/c\\d::/data:");
        let split: Vec<_> = split.iter().map(|(p, d)| (p.to_str().unwrap(), *d)).collect();
        assert_eq!(split, [("/a:b", false), (r"/c\d", false), ("/data", true)]);
        assert!(split_layers("").is_empty());
    }

    #[test]
    fn the_directory_above_all_layers_is_found() {
        let above = |paths: &[&str]| {
            above_all(&paths.iter().map(Path::new).collect::<Vec<_>>()).display().to_string()
        };
        assert_eq!(above(&["/s/1/fs", "/s/2/fs", "/s/3/work"]), "/s");
        assert_eq!(above(&["/s/12/fs", "/s/1/fs"]), "/s");
        assert_eq!(above(&["/s/1/fs", "/s/1/work"]), "/s/1");
        assert_eq!(above(&["/a/fs", "/b/fs"]), "/");
        assert_eq!(above(&["/"]), "/");
    }
}
