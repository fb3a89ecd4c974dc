//! Finds the program and the home directory inside the container.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{Access, AtFlags, CWD, accessat, statat};

use crate::error::{Error, Result};
use crate::spec::plan::ProcessPlan;

/// More bytes than any real passwd file has.
const MAX_PASSWD: u64 = 1 << 20;

/// Returns the program that `args[0]` names: itself if it holds a slash, otherwise the
/// first executable file with that name in `PATH`. Runs last, as the process's user, so
/// that it finds a file that can be executed.
pub(super) fn program(process: &ProcessPlan) -> Result<CString> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let found = if name.contains('/') {
        executable(name).map_err(|e| refused(name, &e)).map(|()| name.to_owned())
    } else {
        search(name, process)
    }?;
    CString::new(found).map_err(|_| Error::invalid("process.args[0] holds a NUL byte"))
}

fn search(name: &str, process: &ProcessPlan) -> Result<String> {
    let path = process.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let mut refusal = None;
    for directory in path.split(':').filter(|d| d.starts_with('/')) {
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => refusal = refusal.or(Some(refused(&candidate, &e))),
        }
    }
    let missing = || Error::invalid(format!("exec: {name:?}: executable file not found in $PATH"));
    Err(refusal.unwrap_or_else(missing))
}

/// Checks that this process may execute a file, as execve(2) would.
fn executable(path: &str) -> io::Result<()> {
    let stat = statat(CWD, path, AtFlags::empty())?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    Ok(accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// Returns the error for a program that cannot be executed. Docker and the kubelet search
/// it for the kernel's messages.
pub(super) fn refused(program: &str, error: &io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::EISDIR) => "is a directory".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => error.to_string(),
    };
    Error::invalid(format!("exec: {program:?}: {why}"))
}

/// Returns the home directory of the process's user from the image's /etc/passwd, or `/`
/// if there is none. Linux defines neither the file nor a path as text, so these are bytes.
pub(super) fn home_directory(process: &ProcessPlan) -> Vec<u8> {
    home_in(&read_passwd().unwrap_or_default(), process.uid).unwrap_or(b"/").to_vec()
}

/// Finds the home directory of a user in a passwd file. The first line counts; one with an
/// empty directory has none.
fn home_in(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    let uid = uid.to_string();
    let line = passwd
        .split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).is_some_and(|field| *field == uid.as_bytes()))?;
    line.get(5).copied().filter(|home| !home.is_empty())
}

/// Reads the image's file, which may be a FIFO or endless.
fn read_passwd() -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/etc/passwd")?;
    let mut text = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MAX_PASSWD).read_to_end(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::home_in;

    #[test]
    fn a_passwd_file_is_bytes() {
        let passwd = b"root:x:0:0:\xff\xfe:/root:/bin/sh\n# \xe9\nbroken\n\
                       a:x:7:7::/h\xf6me:/bin/sh\nlater:x:7:7::/other:\nnone:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0), Some(&b"/root"[..]));
        assert_eq!(home_in(passwd, 7), Some(&b"/h\xf6me"[..]));
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }
}
