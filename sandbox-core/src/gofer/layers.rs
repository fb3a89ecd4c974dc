//! The layers of an overlay: the directories that its options name, opened with their
//! owners mapped.
//!
//! The layers of a snapshotter are siblings. So one detached clone of the
//! directory above them is idmapped, and the layers are opened below it. A
//! clone for each layer would cost the kernel 60 µs each to destroy.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

use crate::error::{Context, Error, Result};
use crate::gofer::cloned_tree::missing;
use crate::gofer::idmap::mapped_clone;
use crate::gofer::options::Options;
use crate::sys::mount::{Depth, open_beneath};

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
    pub(super) dir: OwnedFd,
    /// Index into [`Overlay::mounts`], below which `path` is. With `None`,
    /// `path` is a path of the host.
    pub(super) mount: Option<usize>,
    pub(super) path: PathBuf,
}

/// The directories that the options name.
pub(super) struct Paths {
    /// The lower layers from the top down, never empty, each with whether it is
    /// a data-only layer.
    pub(super) lower: Vec<(PathBuf, bool)>,
    /// The upper and the work directory.
    upper: Option<(PathBuf, PathBuf)>,
}

impl Paths {
    pub(super) fn take(options: &mut Options) -> Result<Self> {
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

    pub(super) fn open(
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
                // This also holds for a layer to which an absolute symlink leads.
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

/// Opens a directory only as a place to resolve paths from.
fn place(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| missing(path, &e.into()))
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
