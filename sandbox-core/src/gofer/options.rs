//! Separates mount options in the form of mount(8) into those of the mount and those of
//! the file system.

use rustix::mount::MountAttrFlags;

use crate::error::{Error, Result};
use crate::spec::mount_options::{Meaning, fs_option, meaning};
use crate::spec::plan::FsOption;

/// The options of one mount.
#[derive(Debug, PartialEq)]
pub(super) struct Options {
    /// The attributes of the mount.
    pub(super) attributes: MountAttrFlags,
    /// The options of the file system.
    pub(super) fs: Vec<FsOption>,
    /// For a bind, whether it is recursive; `None` if a file system is made.
    pub(super) bind: Option<bool>,
    /// Whether the source is a file, to be mounted by a loop device. Only a root file system
    /// may have that: neither runc nor the kernel knows it for a mount of the spec.
    pub(super) by_loop_device: bool,
}

impl Options {
    /// Parses options. Later ones replace earlier ones, as with mount(8).
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self {
            attributes: MountAttrFlags::empty(),
            fs: Vec::new(),
            bind: None,
            by_loop_device: false,
        };
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        match meaning(option) {
            Some(Meaning::Attributes(change)) if !change.recursive => {
                // A new mount has none that could be cleared.
                change.apply(&mut self.attributes, &mut MountAttrFlags::empty());
            }
            Some(Meaning::Bind { recursive }) => {
                self.bind = Some(recursive || self.bind == Some(true));
            }
            Some(Meaning::Nothing) => {}
            Some(Meaning::Refused(_)) if option == "loop" => self.by_loop_device = true,
            Some(Meaning::Refused(why)) => {
                return Err(Error::invalid(format!(
                    "the option {option:?} is not supported: {why}"
                )));
            }
            // A root file system has no other: the kernel refuses what its type
            // does not know.
            _ => self.fs.push(fs_option(option)),
        }
        Ok(())
    }

    /// Whether `ro` is among them, and no `rw` after it.
    pub(super) fn read_only(&self) -> bool {
        self.attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY)
    }

    /// Removes an option and returns its value.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        let place = self.fs.iter().position(|(k, value)| k == key && value.is_some())?;
        self.fs.remove(place).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Options> {
        Options::parse(&options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_the_mount_and_of_the_file_system_are_separated() {
        let mut options =
            parse(&["rbind", "ro", "noatime", "relatime", "nodev", "dev", "a=b=c", "d"]).unwrap();
        assert_eq!(options.bind, Some(true));
        assert!(options.read_only());
        assert_eq!(options.attributes, MountAttrFlags::MOUNT_ATTR_RDONLY);
        assert_eq!(options.take("a").as_deref(), Some("b=c"));
        assert_eq!(options.fs, [("d".to_owned(), None)]);
    }

    #[test]
    fn the_last_of_two_options_wins() {
        assert!(!parse(&["ro", "rw"]).unwrap().read_only());
        assert_eq!(parse(&["rbind", "bind"]).unwrap().bind, Some(true));
        assert!(parse(&["remount"]).unwrap_err().to_string().contains("remount"));
        let by_file = parse(&["ro", "loop"]).unwrap();
        assert!(by_file.by_loop_device && by_file.read_only() && by_file.fs.is_empty());
    }
}
