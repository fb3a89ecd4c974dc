//! What a process is, has and may.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::Mode;
use rustix::process::{getpriority_process, setpriority_process, umask as set_umask};
use rustix::thread::{CapabilitySet, capabilities as get_capabilities, set_capabilities};

use crate::{Check, Given, Result, same, status, stays};

/// The environment, as the process has it and as others see it.
pub fn environment(_: &Given) -> Result<Check> {
    let own = || Ok(format!("{:?}", std::env::vars_os().collect::<Vec<_>>()));
    let mut inside = stays("the environment", own)?;
    let mut seen = stays("/proc/self/environ", || Ok(fs::read_to_string("/proc/self/environ")?))?;
    Ok(Box::new(move || {
        inside()?;
        seen()
    }))
}

/// The command line, the name and the executable.
pub fn command_line(_: &Given) -> Result<Check> {
    stays("the command line", || {
        let [arguments, name] = ["cmdline", "comm"].map(|file| format!("/proc/self/{file}"));
        let executable = fs::read_link("/proc/self/exe")?;
        let [arguments, name] = [fs::read_to_string(arguments)?, fs::read_to_string(name)?];
        Ok(format!("{arguments:?} {name:?} {}", executable.display()))
    })
}

/// The host name.
pub fn host_name(_: &Given) -> Result<Check> {
    stays("the host name", || Ok(fs::read_to_string("/proc/sys/kernel/hostname")?))
}

/// Users and groups: real, effective, saved, for files; and those of new files.
pub fn user(_: &Given) -> Result<Check> {
    let mut inside = stays("the user", || Ok(status(&["Uid", "Gid"])?.concat()))?;
    Ok(Box::new(move || {
        inside()?;
        let path = "/tmp/carried-owner";
        let _ = fs::remove_file(path);
        fs::write(path, "")?;
        let made = fs::metadata(path)?;
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        same("the owner of a new file", (made.uid(), made.gid()), own)
    }))
}

/// Supplementary groups.
pub fn groups(_: &Given) -> Result<Check> {
    stays("the groups", || Ok(status(&["Groups"])?.concat()))
}

/// Capabilities, of which one is given up.
pub fn capabilities(_: &Given) -> Result<Check> {
    let mut sets = get_capabilities(None)?;
    sets.effective.remove(CapabilitySet::KILL);
    set_capabilities(None, sets)?;
    stays("the capabilities", || {
        Ok(status(&["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])?.concat())
    })
}

/// Whether new privileges can be gained.
pub fn no_new_privs(_: &Given) -> Result<Check> {
    stays("NoNewPrivs", || Ok(status(&["NoNewPrivs"])?.concat()))
}

/// Filters of system calls.
pub fn seccomp(_: &Given) -> Result<Check> {
    stays("seccomp", || Ok(status(&["Seccomp", "Seccomp_filters"])?.concat()))
}

/// The mode of new files.
pub fn umask(_: &Given) -> Result<Check> {
    set_umask(Mode::from_raw_mode(0o027));
    Ok(Box::new(|| {
        same("the mask", status(&["Umask"])?.concat().as_str(), "Umask:\t0027")?;
        let path = "/tmp/carried-umask";
        let _ = fs::remove_file(path);
        fs::write(path, "")?;
        same("the mode of a new file", fs::metadata(path)?.mode() & 0o777, 0o640)
    }))
}

/// Limits, of which some were lowered.
pub fn rlimits(_: &Given) -> Result<Check> {
    for (resource, soft) in [(Resource::RLIMIT_NOFILE, 333), (Resource::RLIMIT_CORE, 0)] {
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, soft, hard)?;
    }
    stays("the limits", || Ok(fs::read_to_string("/proc/self/limits")?))
}

/// The current directory.
pub fn cwd(_: &Given) -> Result<Check> {
    fs::create_dir_all("/tmp/carried-cwd/below")?;
    std::env::set_current_dir("/tmp/carried-cwd/below")?;
    fs::write("in-it", "")?;
    Ok(Box::new(|| {
        let is = std::env::current_dir()?;
        same("the directory", is.to_str(), Some("/tmp/carried-cwd/below"))?;
        Ok(fs::metadata("in-it").map(drop)?)
    }))
}

/// The nice value.
pub fn nice(_: &Given) -> Result<Check> {
    setpriority_process(None, 7)?;
    Ok(Box::new(|| same("the nice value", getpriority_process(None)?, 7)))
}

/// How soon the kernel kills it when memory is short.
pub fn oom_score(_: &Given) -> Result<Check> {
    fs::write("/proc/self/oom_score_adj", "345")?;
    stays("the score", || Ok(fs::read_to_string("/proc/self/oom_score_adj")?))
}
