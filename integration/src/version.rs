//! The containerds that tests run Palisade under.

use std::path::PathBuf;

use crate::built::repository;

/// The containerds of the suite. `ci/containerd` fetches each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one of Debian bookworm.
    V1_6,
    /// The one of Debian trixie.
    V1_7,
    /// The one of Debian forky.
    V2_1,
}

impl Version {
    /// Returns its number, as `ci/containerd` takes it.
    pub fn number(self) -> &'static str {
        match self {
            Version::V1_6 => "1.6",
            Version::V1_7 => "1.7",
            Version::V2_1 => "2.1",
        }
    }

    /// Returns the folder with its executables:
    /// `.cache/containerd-VERSION/bin`.
    pub(crate) fn executables(self) -> PathBuf {
        let folder = repository().join(format!(".cache/containerd-{}/bin", self.number()));
        let hint = format!("run: ci/containerd {}", self.number());
        assert!(
            folder.join("containerd").is_file(),
            "no containerd in {}; {hint}",
            folder.display()
        );
        folder
    }
}
