//! The ID under which boot runs. boot changes it for a moment where the kernel requires
//! the root of a user namespace.

use nix::unistd::{Uid, seteuid};

use crate::control::donation::Birth;
use crate::error::{Context, Result};
use crate::sys::process::set_dumpable;
use crate::types::OVERFLOW_ID;

/// The ID under which boot runs inside its user namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnId {
    id: u32,
    /// Whether no container has it.
    exclusive: bool,
}

impl OwnId {
    /// Reads the ID from the birth certificate.
    pub(crate) fn of(birth: &Birth) -> Self {
        Self { id: birth.own_id.unwrap_or(OVERFLOW_ID), exclusive: birth.own_id.is_some() }
    }

    /// Protects boot's files in /proc from the containers. Each change of an ID undoes it:
    /// the kernel then makes the process not dumpable, and gives its files to the root of
    /// the user namespace, which is the containers' as well. If boot has no ID of its own,
    /// that is still the better protection.
    pub(crate) fn close_proc_files(self) -> Result<()> {
        set_dumpable(self.exclusive).context(|| "prctl PR_SET_DUMPABLE")
    }

    /// Returns the ID as a number.
    pub(crate) fn id(self) -> u32 {
        self.id
    }

    /// Becomes the root of boot's user namespace, for steps that the kernel allows only to
    /// root, whatever its capabilities.
    pub(crate) fn leave(self) -> Result<()> {
        seteuid(Uid::from_raw(0)).context(|| "seteuid 0")
    }

    /// Takes boot's own ID again.
    pub(crate) fn restore(self) -> Result<()> {
        seteuid(Uid::from_raw(self.id)).context(|| format!("seteuid {}", self.id))
    }
}
