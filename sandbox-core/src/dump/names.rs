//! The names of a container's UTS namespace.

use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};

use super::visit::Visit;
use crate::error::{Context, Error, Result};

/// What a machine is called inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its host name.
    pub host: String,
    /// Its NIS domain name.
    pub domain: String,
}

/// Begins to read the names that an init sees, by its pidfd: see [`parse`].
pub fn read(init: BorrowedFd<'_>) -> Result<Visit> {
    Visit::begin(&[init], || {
        setns(init, CloneFlags::CLONE_NEWUTS).context(|| "enter the container's UTS namespace")?;
        let names = rustix::system::uname();
        let (host, domain) = (names.nodename().to_bytes(), names.domainname().to_bytes());
        Ok([host, b"\0", domain].concat())
    })
}

/// Reads the report.
///
/// # Errors
/// `Invalid` if a name is no plain text.
pub fn parse(report: &[u8]) -> Result<Names> {
    let plain = |name: &[u8]| {
        let name = std::str::from_utf8(name).ok().filter(|name| !name.contains(char::is_control));
        name.map(str::to_owned)
            .ok_or_else(|| Error::invalid("the container's host name is no plain text"))
    };
    let (host, domain) = match report.iter().position(|byte| *byte == 0) {
        Some(at) => (&report[..at], &report[at + 1..]),
        None => (report, &[][..]),
    };
    Ok(Names { host: plain(host)?, domain: plain(domain)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_be_empty_and_is_plain_text() {
        let names = |host: &str, domain: &str| Names { host: host.into(), domain: domain.into() };
        assert_eq!(parse(b"web\0").unwrap(), names("web", ""));
        assert_eq!(parse(b"web\0(none)").unwrap(), names("web", "(none)"));
        assert!(parse(b"\x1b[0m\0").is_err() && parse(b"\xff\0").is_err());
    }
}
