//! Mount options as mount(8) writes them, told apart: what belongs to the mount
//! and what to the file system.

use crate::error::{Error, Result};
use crate::spec::plan::FsOption;

/// The options of one mount.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    /// `MOUNT_ATTR_` bits.
    pub(super) attributes: u64,
    /// For the file system.
    pub(super) fs: Vec<FsOption>,
    /// Bind, rather than make a file system; and whether recursively.
    pub(super) bind: Option<bool>,
    /// `ro` is among them.
    pub(super) read_only: bool,
}

impl Options {
    /// Later options win over earlier ones, as with mount(8).
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        let (bits, on) = match option {
            "" | "defaults" => return Ok(()),
            "bind" => {
                self.bind.get_or_insert(false);
                return Ok(());
            }
            "rbind" => {
                self.bind = Some(true);
                return Ok(());
            }
            "loop" => {
                return Err(Error::invalid(
                    "the option \"loop\" is not supported: name a block device as the source",
                ));
            }
            "ro" | "rw" => {
                self.read_only = option == "ro";
                (libc::MOUNT_ATTR_RDONLY, self.read_only)
            }
            "nosuid" => (libc::MOUNT_ATTR_NOSUID, true),
            "suid" => (libc::MOUNT_ATTR_NOSUID, false),
            "nodev" => (libc::MOUNT_ATTR_NODEV, true),
            "dev" => (libc::MOUNT_ATTR_NODEV, false),
            "noexec" => (libc::MOUNT_ATTR_NOEXEC, true),
            "exec" => (libc::MOUNT_ATTR_NOEXEC, false),
            "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, true),
            "diratime" => (libc::MOUNT_ATTR_NODIRATIME, false),
            "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, true),
            "symfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, false),
            "noatime" | "relatime" | "strictatime" | "atime" | "norelatime" => {
                // Three values of one field; relatime is zero and the default.
                self.attributes &= !libc::MOUNT_ATTR__ATIME;
                match option {
                    "noatime" => (libc::MOUNT_ATTR_NOATIME, true),
                    "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, true),
                    _ => return Ok(()),
                }
            }
            _ => {
                let (key, value) = match option.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (option, None),
                };
                self.fs.push((key.to_owned(), value));
                return Ok(());
            }
        };
        self.attributes = if on { self.attributes | bits } else { self.attributes & !bits };
        Ok(())
    }

    /// Takes the value of an option out.
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
    fn options_of_the_mount_and_of_the_file_system_are_told_apart() {
        let mut options =
            parse(&["rbind", "ro", "noatime", "relatime", "nodev", "dev", "a=b=c", "d"]).unwrap();
        assert_eq!(options.bind, Some(true));
        assert!(options.read_only);
        assert_eq!(options.attributes, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.take("a").as_deref(), Some("b=c"));
        assert_eq!(options.fs, [("d".to_owned(), None)]);
    }

    #[test]
    fn the_last_of_two_options_wins_and_loop_is_refused() {
        assert!(!parse(&["ro", "rw"]).unwrap().read_only);
        assert_eq!(parse(&["rbind", "bind"]).unwrap().bind, Some(true));
        assert!(parse(&["loop"]).unwrap_err().to_string().contains("loop"));
    }
}
