//! `binary://` output: a program of the user that takes both streams
//! (containerd, `core/runtime/v2/logging`). It gets stdout and stderr as
//! descriptors 3 and 4, and reports by descriptor 5 that it is ready.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use sandbox_core::sys::open_files::AsInherited;
use tokio::io::Interest;
use tokio::sync::oneshot;

use super::Owner;
use crate::error::{Context, Error, Result};
use crate::ready::register;

/// Time in which a logger must report that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a logger may run after its streams have ended.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// A logger's program and arguments.
#[derive(Debug, PartialEq)]
pub(super) struct Uri {
    path: String,
    args: Vec<String>,
    /// Whether end of file on descriptor 5 is an error (`binary-v2`).
    strict: bool,
}

/// Parses `binary:///path?key=value&flag`: each key and each value is an
/// argument.
pub(super) fn uri(text: &str) -> Option<Uri> {
    let (strict, rest) = match text.strip_prefix("binary://") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("binary-v2://")?),
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Go's Query() has a value for each key, which may be empty.
        args.extend([key, value].map(|text| unescape(&text.replace('+', " "))));
    }
    Some(Uri { path: unescape(path), args, strict })
}

/// Decodes percent-encoding.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let hex = |b: u8| (b as char).to_digit(16);
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                let value = hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0);
                bytes.push(value as u8);
                rest = tail;
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A running logger, which ends by itself once both streams have ended. When
/// this is dropped nothing is written any more. A logger that then runs on for
/// too long is killed.
pub(super) struct Logger(
    #[expect(dead_code, reason = "its drop is what counts")] oneshot::Sender<()>,
);

/// Starts the logger and waits until it is ready. Returns the write ends of its
/// two streams.
pub(super) async fn start(uri: &Uri, owner: &Owner<'_>) -> Result<(Logger, [OwnedFd; 2])> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context(|| "pipe for a logger");
    let ((out_read, out), (err_read, err), (ready_read, ready)) = (pipe()?, pipe()?, pipe()?);
    for stream in [&out, &err] {
        owner.chown(stream).context(|| "chown of a logger's pipe")?;
    }
    let pid = spawn(uri, owner, [&out_read, &err_read, &ready])?;
    drop(ready);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context(|| "pidfd_open of the logger")?;
    let (logger, unused) = oneshot::channel();
    tokio::spawn(reap(pid, pidfd, unused));
    let ready = tokio::time::timeout(READY_TIMEOUT, first_byte(ready_read)).await;
    match ready {
        Ok(Ok(0)) if uri.strict => {
            Err(Error::internal(format!("the logger {} ended without being ready", uri.path)))
        }
        Ok(Ok(_)) => Ok((Logger(logger), [out, err])),
        Ok(Err(e)) => {
            Err(Error::internal(format!("read the readiness of the logger {}: {e}", uri.path)))
        }
        Err(_) => Err(Error::internal(format!(
            "the logger {} was not ready within {} s",
            uri.path,
            READY_TIMEOUT.as_secs()
        ))),
    }
}

async fn first_byte(fd: OwnedFd) -> std::io::Result<usize> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    let fd = register(fd, Interest::READABLE)?;
    fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut [0u8; 1])?)).await
}

/// Starts the logger with posix_spawn(3), the only way to run a program with
/// more than three descriptors without code of ours between fork and exec.
fn spawn(uri: &Uri, owner: &Owner<'_>, donated: [&OwnedFd; 3]) -> Result<Pid> {
    let failed = |e: nix::Error| Error::internal(format!("run the logger {}: {e}", uri.path));
    // Move the descriptors away from the numbers that they will get.
    let high = donated.map(|fd| fcntl_dupfd_cloexec(fd, 16).context(|| "dup of a logger's pipe"));
    let mut actions = PosixSpawnFileActions::init().map_err(failed)?;
    let mut kept = Vec::new();
    for (target, fd) in (3..).zip(high) {
        let fd = fd?;
        actions.add_dup2(fd.as_raw_fd(), target as RawFd).map_err(failed)?;
        kept.push(fd);
    }
    let mut attributes = PosixSpawnAttr::init().map_err(failed)?;
    // Rust ignores SIGPIPE, and an ignored signal stays ignored over execve.
    let mut defaults = SigSet::empty();
    defaults.add(NixSignal::SIGPIPE);
    attributes.set_sigdefault(&defaults).map_err(failed)?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF).map_err(failed)?;
    let text = |text: &str| {
        CString::new(text).map_err(|_| Error::invalid(format!("logger {text:?} has a NUL in it")))
    };
    let path = text(&uri.path)?;
    let args = std::iter::once(uri.path.as_str()).chain(uri.args.iter().map(String::as_str));
    let args = args.map(text).collect::<Result<Vec<_>>>()?;
    let env = [
        text(&format!("CONTAINER_ID={}", owner.container))?,
        text(&format!("CONTAINER_NAMESPACE={}", owner.namespace))?,
    ];
    let _limit = AsInherited::begin().context(|| "prlimit RLIMIT_NOFILE")?;
    let pid = posix_spawn(path.as_c_str(), &actions, &attributes, &args, &env).map_err(failed)?;
    Pid::from_raw(pid.as_raw()).ok_or_else(|| Error::internal("posix_spawn gave no process"))
}

/// Reaps the logger. Ends it by signals if it runs on after its streams have
/// ended.
async fn reap(pid: Pid, pidfd: OwnedFd, unused: oneshot::Receiver<()>) {
    let Ok(pidfd) = register(pidfd, Interest::READABLE) else {
        return;
    };
    tokio::select! {
        _ = pidfd.readable() => {}
        _ = unused => {
            for signal in [Signal::TERM, Signal::KILL] {
                if tokio::time::timeout(EXIT_GRACE, pidfd.readable()).await.is_ok() {
                    break;
                }
                let _ = pidfd_send_signal(&pidfd, signal);
            }
            let _ = pidfd.readable().await;
        }
    }
    let _ = waitpid(Some(pid), WaitOptions::NOHANG);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_query_makes_the_arguments() {
        let parsed = uri("binary:///usr/bin/log%20ger+x?id=a%2Fb&flag&text=two+words").unwrap();
        assert_eq!(parsed.path, "/usr/bin/log ger+x");
        assert_eq!(parsed.args, ["id", "a/b", "flag", "", "text", "two words"]);
        assert!(!parsed.strict && uri("binary-v2:///x").unwrap().strict);
        assert_eq!(uri("/a/fifo"), None);
    }

    /// Returns a logger that is a shell script.
    fn script(directory: &tempfile::TempDir, text: &str) -> Uri {
        let path = directory.path().join("logger");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let out = directory.path().join("out").display().to_string();
        Uri { path: path.display().to_string(), args: vec![out], strict: false }
    }

    const OWNER: Owner<'_> = Owner { uid: 0, gid: 0, namespace: "n", container: "c" };

    #[tokio::test]
    async fn a_logger_gets_both_streams() {
        let directory = tempfile::tempdir().unwrap();
        let text = "echo >&5; exec 5>&-; { cat <&3; cat <&4; echo $CONTAINER_ID $CONTAINER_NAMESPACE; } > $1.new; mv $1.new $1";
        let (logger, [out, err]) = start(&script(&directory, text), &OWNER).await.unwrap();
        std::fs::File::from(out).write_all(b"to stdout\n").unwrap();
        std::fs::File::from(err).write_all(b"to stderr\n").unwrap();
        let path = directory.path().join("out");
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if path.exists() {
                break;
            }
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "to stdout\nto stderr\nc n\n");
        drop(logger);
    }

    #[tokio::test]
    async fn a_logger_that_fails_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Uri { path: "/nowhere/logger".into(), args: vec![], strict: false };
        let error = start(&missing, &OWNER).await.err().unwrap().to_string();
        assert!(error.contains("/nowhere/logger"), "{error}");
        let dies = Uri { strict: true, ..script(&directory, "exit 1") };
        let error = start(&dies, &OWNER).await.err().unwrap().to_string();
        assert!(error.contains("without being ready"), "{error}");
    }
}
