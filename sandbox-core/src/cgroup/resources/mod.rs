//! Writes `linux.resources` (runtime-spec, config-linux.md, "Control groups")
//! into a cgroup. A requested limit that cannot be applied is an error that
//! names the field. None is dropped silently.

mod bpf;
mod cpu;
mod device_policy;
mod devices;
mod io;
mod memory;
mod other;

use std::io::Error as IoError;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::error::{Error as LibraryError, ErrorKind, Result as LibraryResult};
use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

use super::{Cgroup, file};
use crate::error::{Error, Result};

pub(super) use cpu::{idle_of, weight_of_shares};
pub(super) use io::io_weight;
pub(super) use memory::{check_usage, completed, swap_beside};

/// Refuses what can never be applied, whatever the files hold, before anything
/// is changed.
pub(super) fn check(v2: bool, resources: &LinuxResources) -> Result<()> {
    if let Some(cpu) = resources.cpu() {
        cpu::check(v2, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        memory::check(v2, memory)?;
    }
    if let Some(block_io) = resources.block_io() {
        io::check(v2, block_io)?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        other::check_hugepages(limits)?;
    }
    if let Some(network) = resources.network() {
        other::check_network(v2, network)?;
    }
    if let Some(unified) = resources.unified() {
        other::check_unified(v2, unified)?;
    }
    devices::check(resources.devices().as_deref().unwrap_or_default())
}

/// Denies access to devices except as the spec allows.
pub(super) fn allow_devices(cg: &Cgroup, resources: &LinuxResources) -> Result<()> {
    devices::apply(cg, resources.devices().as_deref().unwrap_or_default())
}

/// Writes all limits except those of devices. The caller has [`check`]ed them.
pub(super) fn apply(cg: &Cgroup, resources: &LinuxResources) -> Result<()> {
    if let Some(cpu) = resources.cpu() {
        cpu::apply(cg, cpu, idle_of(resources) == Some(1))?;
    }
    if let Some(memory) = resources.memory() {
        memory::apply(cg, memory)?;
    }
    if let Some(pids) = resources.pids() {
        other::pids(cg, pids)?;
    }
    if let Some(block_io) = resources.block_io() {
        io::apply(cg, block_io)?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        other::hugepages(cg, limits)?;
    }
    if let Some(network) = resources.network() {
        other::network(cg, network)?;
    }
    if let Some(rdma) = resources.rdma() {
        other::rdma(cg, rdma)?;
    }
    // Last, since the user means these values to replace those written above.
    if let Some(unified) = resources.unified() {
        other::unified(cg, unified, idle_of(resources) == Some(1))?;
    }
    Ok(())
}

/// The reason why a value was refused.
struct Refused {
    what: String,
    errno: Option<Errno>,
}

/// One value to write, and the field that requests it.
struct Step<'a> {
    field: &'static str,
    write: Box<dyn Fn() -> std::result::Result<(), Refused> + 'a>,
}

/// The values of one controller. They constrain one another (a quota and its
/// period, memory and swap, idle and weight), so the kernel may refuse one with
/// EINVAL only because another is still the old one. Such a value is tried once
/// more after the rest.
#[derive(Default)]
struct Steps<'a>(Vec<Step<'a>>);

impl<'a> Steps<'a> {
    /// Adds a value for which cgroups-rs has a setter.
    fn library(&mut self, field: &'static str, set: impl Fn() -> LibraryResult<()> + 'a) {
        let write = Box::new(move || set().map_err(Refused::from));
        self.0.push(Step { field, write });
    }

    /// Adds a value for which it has none.
    fn plain(&mut self, field: &'static str, path: PathBuf, value: impl ToString) {
        let value = value.to_string();
        let write = Box::new(move || put(&path, &value));
        self.0.push(Step { field, write });
    }

    fn settle(self) -> Result<()> {
        let mut again = Vec::new();
        for step in self.0 {
            match (step.write)() {
                Ok(()) => {}
                Err(refused) if refused.errno == Some(Errno::INVAL) => again.push(step),
                Err(refused) => return Err(refused.of(step.field)),
            }
        }
        for step in again {
            (step.write)().map_err(|refused| refused.of(step.field))?;
        }
        Ok(())
    }
}

fn put(path: &Path, value: &str) -> std::result::Result<(), Refused> {
    file::write_io(path, value).map_err(|e| Refused::writing(path, value, &e))
}

impl Refused {
    fn writing(path: &Path, value: &str, error: &IoError) -> Refused {
        let errno = Errno::from_io_error(error);
        let what = match errno {
            Some(Errno::NOENT) => missing(path),
            _ => format!("write {value:?} to {}: {error}", path.display()),
        };
        Refused { what, errno }
    }

    fn of(self, field: &str) -> Error {
        let message = format!("linux.resources.{field}: {}", self.what);
        match self.errno {
            Some(Errno::INVAL | Errno::RANGE | Errno::NOENT | Errno::OPNOTSUPP | Errno::NODEV) => {
                Error::invalid(message)
            }
            _ => Error::internal(message),
        }
    }
}

impl From<LibraryError> for Refused {
    fn from(error: LibraryError) -> Refused {
        let cause = std::error::Error::source(&error).and_then(|c| c.downcast_ref::<IoError>());
        let (mut errno, mut why) = (None, error.to_string());
        if let Some(cause) = cause {
            (errno, why) = (Errno::from_io_error(cause), cause.to_string());
        }
        let what = match error.kind() {
            // The library opens with O_CREAT, which cgroup file systems refuse
            // with EACCES if the file does not exist.
            ErrorKind::WriteFailed(path, value) if value == "[CREATE FILE]" => {
                errno = errno.filter(|_| Path::new(path).exists()).or(Some(Errno::NOENT));
                if errno == Some(Errno::NOENT) {
                    missing(Path::new(path))
                } else {
                    format!("open {path}: {why}")
                }
            }
            ErrorKind::WriteFailed(path, value) => format!("write {value:?} to {path}: {why}"),
            _ => why,
        };
        Refused { what, errno }
    }
}

fn missing(path: &Path) -> String {
    format!("not supported here: there is no {}", path.display())
}

/// Returns the directory of a controller, or an error that names the field.
fn dir_for<'a>(cg: &'a Cgroup, controller: &str, field: &str) -> Result<&'a Path> {
    cg.dir(controller).ok_or_else(|| {
        Error::invalid(format!(
            "linux.resources.{field}: not supported here: no cgroup hierarchy has the {controller} controller"
        ))
    })
}

/// Returns the error for a field that the cgroup version has no equivalent of.
fn unsupported(field: &str, why: &str) -> Error {
    Error::invalid(format!("linux.resources.{field}: not supported here: {why}"))
}
