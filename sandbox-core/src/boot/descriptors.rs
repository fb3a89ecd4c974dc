//! Adopts the descriptors that the flags announce.

use std::fs::File;
use std::io::Read;
use std::os::fd::{OwnedFd, RawFd};

use crate::control::donation::BootFlags;
use crate::error::{Context, Result};
use crate::sys::descriptor::adopt;

/// The descriptors that boot keeps until it exits.
pub(super) struct Descriptors {
    pub(super) log: OwnedFd,
    pub(super) panic_log: OwnedFd,
    pub(super) control: OwnedFd,
    pub(super) mounts: OwnedFd,
    pub(super) user_log: Option<OwnedFd>,
    pub(super) device: Option<OwnedFd>,
    certificate: OwnedFd,
}

impl Descriptors {
    /// Adopts each announced number once. Returns start-sync separately, since
    /// boot closes it as soon as it is up.
    pub(super) fn adopt(flags: &BootFlags) -> Result<(Self, OwnedFd)> {
        let take = |flag: &str, number: RawFd| adopt(number).context(|| format!("{flag}={number}"));
        let start_sync = take("--start-sync-fd", flags.start_sync_fd)?;
        let adopted = Self {
            log: take("--log-fd", flags.log_fd)?,
            panic_log: take("--panic-log-fd", flags.panic_log_fd)?,
            control: take("--controller-fd", flags.controller_fd)?,
            mounts: take("--mounts-fd", flags.mounts_fd)?,
            user_log: flags.user_log_fd.map(|fd| take("--user-log-fd", fd)).transpose()?,
            device: flags.device_fd.map(|fd| take("--device-fd", fd)).transpose()?,
            certificate: take("--birth-fd", flags.birth_fd)?,
        };
        Ok((adopted, start_sync))
    }

    /// Reads the birth certificate.
    pub(super) fn read_certificate(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.certificate.try_clone().context(|| "dup of --birth-fd")?;
        File::from(file).read_to_end(&mut bytes).context(|| "read --birth-fd")?;
        Ok(bytes)
    }
}
