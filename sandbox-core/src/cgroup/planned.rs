//! A cgroup before it is made, so that it can be written down first.

use std::path::PathBuf;

use super::path::Unit;
use super::{SavedCgroup, resctrl};
use crate::error::Result;
use crate::spec::plan::IntelRdt;

/// A cgroup that is to be made: [`Cgroup::plan`](super::Cgroup::plan).
#[derive(Debug)]
pub struct Planned {
    id: String,
    saved: SavedCgroup,
    way: Way,
    /// The resctrl file system, and what is wanted of it.
    resctrl: Option<(PathBuf, IntelRdt)>,
}

/// The way in which it is made.
#[derive(Debug)]
pub(super) enum Way {
    Mkdir,
    /// systemd makes it.
    Unit(Unit),
    /// Where it is delegated to the shim's user; or nowhere, for this reason.
    WhereDelegated(Option<String>),
}

impl Planned {
    pub(super) fn new(id: &str, saved: SavedCgroup, way: Way) -> Self {
        Self { id: id.to_owned(), saved, way, resctrl: None }
    }

    /// Adds the container's groups of the resctrl file system, which are made and removed with
    /// the cgroup.
    pub fn with_resctrl(mut self, wanted: &IntelRdt) -> Result<Self> {
        let root = resctrl::root_of_host()?;
        self.saved.resctrl = Some(resctrl::plan(&root, &self.id, wanted));
        self.resctrl = Some((root, wanted.clone()));
        Ok(self)
    }

    /// Returns the description of what will be made. As a rule that of the cgroup is the same
    /// then: systemd may put a unit elsewhere, and less may be delegated.
    pub fn saved(&self) -> &SavedCgroup {
        &self.saved
    }

    /// Whether it exists already. Such a one is used if it is empty, but it may be another
    /// container's.
    pub fn exists(&self) -> bool {
        self.saved.dirs.first().is_some_and(|dir| dir.path.exists())
    }

    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    /// Returns the resctrl file system, and what is wanted of it.
    pub(super) fn resctrl(&self) -> Option<&(PathBuf, IntelRdt)> {
        self.resctrl.as_ref()
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the description of the cgroup alone.
    pub(super) fn without_resctrl(&self) -> SavedCgroup {
        SavedCgroup { resctrl: None, ..self.saved.clone() }
    }
}
