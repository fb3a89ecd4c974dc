//! The user that is asked for, and what the container's own `/etc/passwd` and `/etc/group` make of
//! it, as with docker. Both files are the container's: hostile.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, open, openat};
use sandbox_core::sys::mount::open_in_root;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::shim::PATIENCE;
use crate::show;

/// The most that is read of one of the files.
const SIZE: u64 = 4 << 20;

const EXPECTED: &str =
    "expected USER or USER:GROUP, each a name in the container or a number, such as 1000:1000";

/// The user and the group that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    user: Id,
    group: Option<Id>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

/// Parses `USER` or `USER:GROUP`.
pub(super) fn parse(text: &str) -> Result<User, String> {
    match text.split_once(':') {
        None => Ok(User { user: Id::parse(text)?, group: None }),
        Some((user, group)) => Ok(User { user: Id::parse(user)?, group: Some(Id::parse(group)?) }),
    }
}

impl Id {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains([':', ',', '\n', '\0']) {
            return Err(EXPECTED.into());
        }
        if text.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
            // The kernel has no user 2^32 - 1: it stands for "unchanged".
            let number = text.parse().ok().filter(|number| *number < u32::MAX);
            return number.map(Self::Number).ok_or_else(|| EXPECTED.into());
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// Whether an entry of one of the files is the one that is meant.
    fn is(&self, name: &str, number: u32) -> bool {
        match self {
            Self::Number(own) => *own == number,
            Self::Name(own) => own == name,
        }
    }

    fn number(&self) -> Option<u32> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(_) => None,
        }
    }
}

impl User {
    /// Returns the user of the process, as OCI has it. The files are those of the container that
    /// the process belongs to.
    ///
    /// # Errors
    /// The error names the file that cannot be read, or that has no such name.
    pub(super) fn of_container(&self, process: u32) -> Result<Value> {
        if let (Id::Number(uid), Some(Id::Number(gid))) = (&self.user, &self.group) {
            return Ok(json!({"uid": uid, "gid": gid}));
        }
        let files = Files::read(process).with_context(
            || "look the user up in the container; --user UID:GID, in numbers, needs no file of it",
        )?;
        self.of_files(&files)
    }

    /// A number counts as the user of that number; one that the files do not have, has the group
    /// 0. A group that is named is the only one.
    fn of_files(&self, files: &Files) -> Result<Value> {
        let entry = passwd(&files.passwd).find(|entry| self.user.is(entry.name, entry.uid));
        let (uid, gid) = match (&entry, &self.user) {
            (Some(entry), _) => (entry.uid, entry.gid),
            (None, Id::Number(uid)) => (*uid, 0),
            (None, Id::Name(name)) => {
                bail!("--user {name:?}: there is no such user in the container's /etc/passwd")
            }
        };
        if let Some(wanted) = &self.group {
            let group = groups(&files.group).find(|group| wanted.is(group.name, group.gid));
            let Some(gid) = group.map(|group| group.gid).or(wanted.number()) else {
                let Id::Name(name) = wanted else { unreachable!("a number is its own") };
                bail!("--user: there is no group {name:?} in the container's /etc/group")
            };
            return Ok(json!({"uid": uid, "gid": gid}));
        }
        let member = |group: &Group<'_>| {
            entry.as_ref().is_some_and(|entry| group.members.split(',').any(|m| m == entry.name))
        };
        let further: Vec<u32> =
            groups(&files.group).filter(member).map(|group| group.gid).collect();
        Ok(json!({"uid": uid, "gid": gid, "additionalGids": further}))
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Returns the entries of passwd(5). Lines that are none are left out.
fn passwd(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next().filter(|name| !name.is_empty())?, fields.next()?);
        Some(Entry { name, uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

/// Returns the entries of group(5).
fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next().filter(|name| !name.is_empty())?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or("").trim() })
    })
}

/// What the container has. A file that it lacks is empty.
#[derive(Default, Serialize, Deserialize)]
struct Files {
    passwd: String,
    group: String,
}

/// The verb of the child that reads the files.
const VERB: &str = "read-users";

/// Flags of `palisade read-users`, which only `palisade exec --user` runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReadUsers {
    /// The host's PID of a process of the container
    process: u32,
}

/// Reads the files of a container for the command that has started this one.
pub(crate) fn read_users(flags: &ReadUsers) -> Result<ExitCode> {
    let read = Files::of(flags.process).map_err(|error| format!("{error:#}"));
    show::line(&serde_json::to_string(&read)?)?;
    Ok(ExitCode::SUCCESS)
}

impl Files {
    /// Reads them in a child, within a bound: they may be on a file system of the container's own,
    /// which never answers. No signal ends the wait for it then. The child is left behind, and ends
    /// with the container; a thread would keep this command from its end.
    fn read(process: u32) -> Result<Self> {
        // It has none of this command's ends of pipes, which others wait for.
        let child = Command::new("/proc/self/exe")
            .arg0("palisade")
            .args([VERB, &process.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.context("run a child that reads /etc/passwd")?;
        let output = child.stdout.take().context("the child's output")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            // The text of both files, in JSON.
            let read = output.take(16 * SIZE).read_to_end(&mut text);
            let _ = sender.send(read.map(|_| text));
        });
        let Ok(text) = receiver.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            bail!(
                "read /etc/passwd and /etc/group: no answer within {} seconds: they may be on a file \
                 system of the container's own",
                PATIENCE.as_secs()
            )
        };
        let _ = child.wait();
        let read: Result<Self, String> =
            serde_json::from_slice(&text?).context("read what the child has read")?;
        read.map_err(|why| anyhow!(why))
    }

    /// Reads them through the root of a process.
    fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/root");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &path, flags, Mode::empty());
        let root = root.with_context(|| format!("open {path}"))?;
        let passwd = text(&root, "/etc/passwd")?;
        Ok(Self { passwd, group: text(&root, "/etc/group")? })
    }
}

/// Reads a file below a root. No symlink in there leads out of it, and nothing but a regular file
/// is opened for reading: to open a FIFO or a device can have effects.
fn text(root: &OwnedFd, path: &str) -> Result<String> {
    let place = match open_in_root(root, path, OFlags::PATH, Mode::empty()) {
        Ok(place) => place,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        Err(e) => return Err(e).with_context(|| format!("open {path}")),
    };
    let kind = FileType::from_raw_mode(fstat(place.as_fd())?.st_mode);
    if kind != FileType::RegularFile {
        bail!("{path} is a {kind:?}; expected a regular file");
    }
    let mut bytes = Vec::new();
    let read = reopen(&place).and_then(|file| file.take(SIZE + 1).read_to_end(&mut bytes));
    if read.with_context(|| format!("read {path}"))? as u64 > SIZE {
        bail!("{path} has more than {} MiB; expected less", SIZE >> 20);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens for reading what is held by its place: the very same file.
fn reopen(place: &OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    Ok(open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn looked_up(text: &str) -> Result<Value> {
        let passwd = "\
root:x:0:0:root:/root:/bin/sh
broken
+nis
none:x:zero:0::/:
web:x:33:34:Web:/srv:/bin/sh
web:x:0:0:a second one:/:
";
        let group = "root:x:0:\nweb:x:34:\nlog:x:4:root,web\naudio:x:29:web2, web\nmail:x:8:web\n";
        let files = Files { passwd: passwd.into(), group: group.into() };
        parse(text).map_err(anyhow::Error::msg)?.of_files(&files)
    }

    #[test]
    fn names_and_numbers_are_those_of_the_container() {
        for (text, wanted) in [
            ("web", json!({"uid": 33, "gid": 34, "additionalGids": [4, 8]})),
            ("33", json!({"uid": 33, "gid": 34, "additionalGids": [4, 8]})),
            ("root", json!({"uid": 0, "gid": 0, "additionalGids": [4]})),
            ("web:mail", json!({"uid": 33, "gid": 8})),
            ("web:77", json!({"uid": 33, "gid": 77})),
            ("77", json!({"uid": 77, "gid": 0, "additionalGids": []})),
            ("77:audio", json!({"uid": 77, "gid": 29})),
        ] {
            assert_eq!(looked_up(text).unwrap(), wanted, "{text}");
        }
        for (text, wanted) in [
            ("none", "no such user in the container's /etc/passwd"),
            ("nobody", "\"nobody\""),
            ("web:nobody", "no group \"nobody\" in the container's /etc/group"),
        ] {
            let error = looked_up(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_wrong_user_says_what_was_expected() {
        for wrong in ["", "1:", ":1", "1:2:3", "-1", "4294967295", "7x", "a,b"] {
            assert!(parse(wrong).unwrap_err().contains("USER:GROUP"), "{wrong}");
        }
    }

    #[test]
    fn numbers_alone_need_no_file() {
        // There is no such process.
        let user = parse("1:2").unwrap().of_container(0);
        assert_eq!(user.unwrap(), json!({"uid": 1, "gid": 2}));
        let error = format!("{:#}", Files::of(0).err().unwrap());
        assert!(error.contains("/proc/0/root"), "{error}");
    }

    #[test]
    fn files_are_read_inside_the_root_and_only_if_they_are_files() {
        let root = tempfile::tempdir().unwrap();
        let open = || open(root.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(text(&open(), "/etc/passwd").unwrap(), "");
        fs::create_dir(root.path().join("etc")).unwrap();
        // As an image has it whose files are elsewhere, and as an attacker: out, by any number
        // of steps.
        let passwd = root.path().join("etc/passwd");
        fs::write(root.path().join("kept"), "inside").unwrap();
        symlink("../../../../../../kept", &passwd).unwrap();
        assert_eq!(text(&open(), "/etc/passwd").unwrap(), "inside");
        fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = text(&open(), "/etc/passwd").unwrap_err().to_string();
        assert!(error.contains("/etc/passwd is a Fifo"), "{error}");
        fs::remove_file(&passwd).unwrap();
        File::create(&passwd).unwrap().set_len(SIZE + 1).unwrap();
        let error = text(&open(), "/etc/passwd").unwrap_err().to_string();
        assert!(error.contains("more than 4 MiB"), "{error}");
    }
}
