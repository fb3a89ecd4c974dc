//! Runs another program for a bounded time.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The time that it has. `containerd config dump` of a large configuration takes less than one.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Runs a program with this input. Returns what it writes.
///
/// # Errors
/// The error is what it says on its standard error, if it does not succeed.
pub(super) fn run(command: &mut Command, input: &str) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (mut stdin, mut output, mut errors) = (memory()?, memory()?, memory()?);
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    // A file in memory takes all that is written: nobody has to read meanwhile.
    command.stdin(Stdio::from(stdin)).stdout(output.try_clone()?).stderr(errors.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("run {name}"))?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE))?;
    if ended == 0 {
        child.kill()?;
    }
    let status = child.wait()?;
    if ended == 0 {
        bail!("{name} did not end within {} seconds", PATIENCE.tv_sec);
    }
    if status.success() {
        return read(&mut output);
    }
    bail!("{}", read(&mut errors)?.trim())
}

fn memory() -> Result<File> {
    let file = memfd_create("palisade doctor", MemfdFlags::CLOEXEC).context("memfd_create")?;
    Ok(File::from(file))
}

fn read(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_its_output_or_its_error() {
        assert_eq!(run(&mut Command::new("cat"), "input").unwrap(), "input");
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo why >&2; exit 1"]);
        assert_eq!(run(&mut fails, "").unwrap_err().to_string(), "why");
        assert!(run(&mut Command::new("/no/such"), "").is_err());
    }
}
