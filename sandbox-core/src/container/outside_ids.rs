//! The IDs that a container's users have in boot's user namespace, which numbers them as
//! the host does.

use crate::error::{Error, Result};
use crate::spec::plan::{ContainerPlan, FsOption, Mappings};

/// A translation of IDs inside to IDs outside.
#[derive(Clone, Debug)]
pub(crate) struct OutsideIds(pub(crate) Mappings);

impl OutsideIds {
    /// Translates a user ID.
    ///
    /// # Errors
    /// The error names `field` if no ID stands for it.
    pub(crate) fn uid(&self, field: &str, inside: u32) -> Result<u32> {
        self.0.uid_outside(inside).ok_or_else(|| unmapped(field, inside))
    }

    fn gid(&self, field: &str, inside: u32) -> Result<u32> {
        self.0.gid_outside(inside).ok_or_else(|| unmapped(field, inside))
    }

    /// Translates the owners among the options of file systems that boot mounts: the
    /// kernel takes them for IDs of the mounter's user namespace.
    pub(crate) fn apply(&self, plan: &mut ContainerPlan) -> Result<()> {
        for (index, mount) in plan.mounts.iter_mut().enumerate() {
            for option in mount.source.options_mut() {
                self.translate(&format!("mounts[{index}].options"), option)?;
            }
        }
        Ok(())
    }

    fn translate(&self, field: &str, option: &mut FsOption) -> Result<()> {
        let (key, Some(value)) = option else { return Ok(()) };
        // The kernel refuses what is no number.
        let Ok(inside) = value.parse() else { return Ok(()) };
        let outside = match key.as_str() {
            "uid" => self.uid(field, inside)?,
            "gid" => self.gid(field, inside)?,
            _ => return Ok(()),
        };
        *value = outside.to_string();
        Ok(())
    }
}

fn unmapped(field: &str, id: u32) -> Error {
    Error::invalid(format!("{field}: the ID {id} does not exist in the sandbox"))
}
