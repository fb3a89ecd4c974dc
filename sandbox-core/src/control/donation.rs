//! The flags and the birth certificate that boot gets at its start. The
//! flags name each descriptor by the number that it has in boot; `--birth-fd`
//! holds the certificate.
//!
//! Both directions are here: the shim writes ([`BootFlags::to_args`],
//! [`Birth::encode`]), boot reads ([`BootFlags::parse`], [`Birth::decode`]).

use std::ffi::OsString;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::plan::Mappings;

/// boot's name in process lists.
pub const BOOT_ARGV0: &str = "palisade-sandbox";

/// The byte that boot writes to start-sync once it is up. Any other byte begins
/// a sentence: the reason why boot cannot start.
pub const STARTED: u8 = 1;

/// The byte that the clone which becomes boot writes to start-sync before, once it is in
/// its namespaces.
pub const PREPARED: u8 = 2;

/// The flags of `palisade-sandbox boot`, in the order they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFlags {
    /// The pipe for log lines.
    pub log_fd: RawFd,
    /// Whether boot logs at debug level.
    pub debug: bool,
    /// The file for the message of a panic.
    pub panic_log_fd: RawFd,
    /// The control channel.
    pub controller_fd: RawFd,
    /// The channel on which the gofer's mounts arrive.
    pub mounts_fd: RawFd,
    /// The birth certificate.
    pub birth_fd: RawFd,
    /// The pipe on which boot reports that it is up.
    pub start_sync_fd: RawFd,
    /// The pipe for records of refused system calls, if there is a user log.
    pub user_log_fd: Option<RawFd>,
    /// `/dev/fuse`, opened in boot's user namespace, if containers get views.
    pub device_fd: Option<RawFd>,
    /// Whether boot drops the capabilities that it does not need.
    pub apply_caps: bool,
    /// The number of CPUs that the sandbox is told it has.
    pub cpu_num: u32,
    /// The bytes of memory that the sandbox is told it has.
    pub total_memory: u64,
    /// The sandbox's ID.
    pub id: String,
}

impl BootFlags {
    /// Returns the command line, `argv[0]` included.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec![BOOT_ARGV0.to_owned()];
        args.extend([
            format!("--log-fd={}", self.log_fd),
            format!("--panic-log-fd={}", self.panic_log_fd),
            format!("--debug={}", self.debug),
            "boot".to_owned(),
            format!("--controller-fd={}", self.controller_fd),
            format!("--mounts-fd={}", self.mounts_fd),
            format!("--birth-fd={}", self.birth_fd),
            format!("--start-sync-fd={}", self.start_sync_fd),
            format!("--apply-caps={}", self.apply_caps),
            format!("--cpu-num={}", self.cpu_num),
            format!("--total-memory={}", self.total_memory),
        ]);
        args.extend(self.user_log_fd.map(|fd| format!("--user-log-fd={fd}")));
        args.extend(self.device_fd.map(|fd| format!("--device-fd={fd}")));
        args.push(self.id.clone());
        args
    }

    /// Parses the arguments that [`BootFlags::to_args`] wrote, without
    /// `argv[0]`.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut given = Given::default();
        for arg in args {
            let arg = arg
                .into_string()
                .map_err(|a| Error::invalid(format!("boot: argument {a:?} is not UTF-8")))?;
            given.take(arg)?;
        }
        Ok(Self {
            log_fd: given.required("--log-fd")?,
            debug: given.required("--debug")?,
            panic_log_fd: given.required("--panic-log-fd")?,
            controller_fd: given.required("--controller-fd")?,
            mounts_fd: given.required("--mounts-fd")?,
            birth_fd: given.required("--birth-fd")?,
            start_sync_fd: given.required("--start-sync-fd")?,
            user_log_fd: given.optional("--user-log-fd")?,
            device_fd: given.optional("--device-fd")?,
            apply_caps: given.required("--apply-caps")?,
            cpu_num: given.required("--cpu-num")?,
            total_memory: given.required("--total-memory")?,
            id: given.id()?,
        })
    }
}

/// The arguments of a command line, sorted into flags and others.
#[derive(Default)]
struct Given {
    flags: Vec<(String, String)>,
    others: Vec<String>,
}

impl Given {
    fn take(&mut self, arg: String) -> Result<()> {
        match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                self.flags.push((name.to_owned(), value.to_owned()));
            }
            None if arg.starts_with("--") => {
                return Err(Error::invalid(format!(
                    "boot: {arg} needs a value, as in {arg}=VALUE"
                )));
            }
            _ => self.others.push(arg),
        }
        Ok(())
    }

    fn optional<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some((_, value)) = self.flags.iter().find(|(n, _)| n == name) else {
            return Ok(None);
        };
        value
            .parse()
            .map(Some)
            .map_err(|_| Error::invalid(format!("boot: {name}={value} is not a value of its kind")))
    }

    fn required<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        self.optional(name)?.ok_or_else(|| {
            Error::invalid(format!(
                "boot: {name} is missing; boot is started by the shim of the same release, not by hand"
            ))
        })
    }

    fn id(&mut self) -> Result<String> {
        match &self.others[..] {
            [boot, id] if boot == "boot" => Ok(id.clone()),
            others => {
                Err(Error::invalid(format!("boot: expected `boot ... ID`, found {others:?}")))
            }
        }
    }
}

/// The birth certificate: the facts that boot needs before it takes requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The IDs of the sandbox's containers, and those that they are outside: in boot's
    /// user namespace, and on the host, whose numbers boot's keeps. `None` if the
    /// sandbox has no user namespace.
    pub mappings: Option<Mappings>,
    /// The ID that boot itself runs under, which is none of a container's;
    /// `None` if they leave no room for one.
    pub own_id: Option<u32>,
    /// Whether boot has the host's PIDs instead of being PID 1 of new ones.
    pub host_pids: bool,
    /// Whether boot's network namespace is new, so that its loopback is down
    /// and its sysctls are unset.
    pub new_network: bool,
    /// Sysctls to set in a new network namespace, as paths below `/proc/sys`.
    pub network_sysctls: Vec<(String, String)>,
    /// Whether cgroups are of version 2.
    pub cgroup_v2: bool,
    /// Whether the pod's containers get views. Without `--device-fd` they cannot.
    pub views: bool,
    /// The soft limit of open files that containers get unless their spec names one: what the
    /// shim was started with. boot inherits the one that the shim has raised.
    pub open_files: u64,
}

impl Birth {
    /// Encodes the certificate, after a line with the program's version.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = header().into_bytes();
        bytes.extend(
            postcard::to_stdvec(self).map_err(|e| Error::internal(format!("encode birth: {e}")))?,
        );
        Ok(bytes)
    }

    /// Decodes a certificate, if its writer has the same version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
        let (first, rest) = bytes.split_at(end);
        if first != header().as_bytes() {
            return Err(Error::invalid(format!(
                "the shim is of version {:?} but the palisade-sandbox executable beside it is {:?}; install both from one release",
                String::from_utf8_lossy(first).trim_end(),
                header().trim_end(),
            )));
        }
        postcard::from_bytes(rest)
            .map_err(|e| Error::internal(format!("--birth-fd holds no birth certificate: {e}")))
    }
}

fn header() -> String {
    format!("palisade {}\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> BootFlags {
        BootFlags {
            log_fd: 3,
            debug: true,
            panic_log_fd: 4,
            controller_fd: 5,
            mounts_fd: 6,
            birth_fd: 7,
            start_sync_fd: 8,
            user_log_fd: Some(9),
            device_fd: Some(10),
            apply_caps: true,
            cpu_num: 2,
            total_memory: 1 << 40,
            id: "sandbox".into(),
        }
    }

    #[test]
    fn boot_reads_the_flags_that_the_shim_wrote() {
        let args = flags().to_args().into_iter().skip(1).map(OsString::from);
        assert_eq!(BootFlags::parse(args).unwrap(), flags());
        let without = BootFlags { user_log_fd: None, device_fd: None, ..flags() };
        let args = without.to_args().into_iter().skip(1).map(OsString::from);
        assert_eq!(BootFlags::parse(args).unwrap(), without);
    }

    #[test]
    fn a_missing_flag_is_named() {
        let args = flags()
            .to_args()
            .into_iter()
            .skip(1)
            .filter(|a| !a.contains("birth"))
            .map(OsString::from);
        let error = BootFlags::parse(args).unwrap_err().to_string();
        assert!(error.contains("--birth-fd"), "{error}");
    }

    #[test]
    fn a_certificate_of_another_version_is_refused_in_a_sentence() {
        let error = Birth::decode(b"palisade 0.0.0\nwhatever").unwrap_err().to_string();
        assert!(error.contains("install both from one release"), "{error}");
    }
}
