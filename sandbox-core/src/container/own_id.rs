//! The IDs under which boot runs: its own, and for a moment those of the containers'
//! root, where the kernel looks at IDs rather than at capabilities. boot's user namespace
//! numbers IDs as the host does.

use nix::unistd::{Uid, seteuid};

use crate::control::donation::Birth;
use crate::error::{Context, Result};
use crate::spec::plan::Mappings;
use crate::sys::process::set_dumpable;

/// boot's own ID.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnId {
    uid: u32,
    /// Whether no container has it.
    exclusive: bool,
    root: ContainerRoot,
}

/// The IDs that the root of the pod's containers has in boot's user namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContainerRoot {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl OwnId {
    /// Reads the ID from the birth certificate.
    pub(crate) fn of(birth: &Birth) -> Self {
        let root = birth.mappings.as_ref().and_then(Mappings::root_outside).unwrap_or((0, 0));
        let root = ContainerRoot { uid: root.0, gid: root.1 };
        let uid = birth.own_id.unwrap_or(root.uid);
        Self { uid, exclusive: birth.own_id.is_some(), root }
    }

    /// Protects boot's files in /proc from the containers. Each change of an ID undoes it:
    /// the kernel then makes the process not dumpable, and gives its files to the host's
    /// root, so that boot cannot write them either. If boot has no ID of its own, that is
    /// the better protection.
    pub(crate) fn close_proc_files(self) -> Result<()> {
        set_dumpable(self.exclusive).context(|| "prctl PR_SET_DUMPABLE")
    }

    /// Returns the IDs of the containers' root.
    pub(crate) fn container_root(self) -> ContainerRoot {
        self.root
    }

    /// Becomes the containers' root, for steps that the kernel allows only to the root of
    /// the user namespace that owns a namespace, whatever its capabilities.
    pub(crate) fn leave(self) -> Result<()> {
        let root = self.root.uid;
        seteuid(Uid::from_raw(root)).context(|| format!("seteuid {root}"))
    }

    /// Takes boot's own ID again.
    pub(crate) fn restore(self) -> Result<()> {
        seteuid(Uid::from_raw(self.uid)).context(|| format!("seteuid {}", self.uid))
    }
}
