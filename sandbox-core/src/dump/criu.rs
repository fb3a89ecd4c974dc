//! criu as a child of the shim.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use nix::unistd::{Uid, setresuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal, setsid,
};
use rustix::thread::{CapabilitySet, capabilities};

use crate::checkpoint::criu::{self, Received, Request, Response};
use crate::error::{Context, Error, FailureKind, Result};
use crate::sys::child::Child;
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::descriptor::{close_copy, close_others, detach_stdio, donate};
use crate::sys::namespace::{self, NEW_TIME};
use crate::sys::process::{
    die_with_parent, execute, exit_now, keep_capabilities_over_execve, reset_signals,
    separate_ids_from_capabilities,
};
use crate::types::HostPid;

/// The time in which all of criu ends that was killed.
const END_TIMEOUT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Finds criu: the option, or else the first in `PATH`.
///
/// # Errors
/// `State` says what to install or to set.
pub fn find(option: &Path, path: Option<&OsStr>) -> Result<PathBuf> {
    let missing = |what: String| {
        Error::new(
            FailureKind::State,
            format!(
                "{what}; containers are saved and brought back by criu: install the package criu \
                 on the node, or set the option criu"
            ),
        )
    };
    let is_executable = |path: &Path| {
        let mode = path.metadata().map(|found| (found.is_file(), found.permissions().mode()));
        mode.is_ok_and(|(is_file, mode)| is_file && mode & 0o111 != 0)
    };
    if !option.as_os_str().is_empty() {
        return match is_executable(option) {
            true => Ok(option.to_owned()),
            false => {
                Err(missing(format!("the option criu: {} is no executable", option.display())))
            }
        };
    }
    let folders = path.map(std::env::split_paths).into_iter().flatten();
    let mut found = folders.map(|folder| folder.join("criu"));
    let absolute = |path: &PathBuf| path.is_absolute() && is_executable(path);
    found.find(absolute).ok_or_else(|| missing("there is no criu in the shim's PATH".into()))
}

/// The namespaces of a container's init.
#[derive(Debug)]
pub struct Init {
    pidfd: OwnedFd,
    user_namespace: OwnedFd,
    /// Those that criu does not save, since the sandbox or the host owns them: it is inside.
    shared: CloneFlags,
}

impl Init {
    /// Opens them. `shares_ipc`: whether the container shares its sandbox's IPC namespace.
    pub fn open(pidfd: BorrowedFd<'_>, pid: HostPid, shares_ipc: bool) -> Result<Self> {
        let mut shared = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
        shared.set(CloneFlags::CLONE_NEWIPC, shares_ipc);
        let time = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/time")).ok();
        shared.set(NEW_TIME, time(&pid.0.to_string()) != time("self"));
        let path = format!("/proc/{}/ns/user", pid.0);
        let user_namespace = File::open(&path).context(|| format!("open {path}"))?.into();
        let pidfd = pidfd.try_clone_to_owned().context(|| "dup")?;
        Ok(Self { pidfd, user_namespace, shared })
    }

    /// Enters those that are shared. This process stays root of the host, with the host's mounts
    /// and PIDs.
    fn enter(&self) -> Result<()> {
        setns(&self.pidfd, self.shared)
            .context(|| "enter the container's network, UTS, IPC and time namespaces for criu")
    }
}

/// Whose rights criu has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// This process's: root's.
    Root,
    /// This process's as well, as another user, who made the sandbox's user namespace.
    /// The kernel gives that user over it what root may lack on the host (as inside a container):
    /// CAP_SYS_RESOURCE, with which limits of others are read.
    Maker(u32),
}

impl Rights {
    fn needed_over(user_namespace: &OwnedFd) -> Result<Self> {
        let own = capabilities(None).context(|| "capget")?.effective;
        if own.contains(CapabilitySet::SYS_RESOURCE) {
            return Ok(Self::Root);
        }
        let what = || "find the maker of the sandbox's user namespace";
        let sandbox = namespace::parent(user_namespace).context(what)?;
        Ok(Self::Maker(namespace::maker(sandbox).context(what)?))
    }

    fn take(self) -> Result<()> {
        let Self::Maker(user) = self else { return Ok(()) };
        let what = || format!("become user {user} for criu");
        let (user, root) = (Uid::from_raw(user), Uid::from_raw(0));
        separate_ids_from_capabilities().context(what)?;
        // The real user as well: with another, an execve would clear what comes last here.
        setresuid(user, user, root).context(what)?;
        keep_capabilities_over_execve().context(what)?;
        // A change of user has cleared it.
        die_with_parent().context(what)
    }
}

/// criu, ready for a request. Dropping this value kills it: the processes that it holds then run
/// on.
#[derive(Debug)]
pub struct Dumper {
    socket: OwnedFd,
    started: OwnedFd,
    rights: Rights,
    guard: Child,
}

impl Dumper {
    /// Starts criu inside the namespaces that it must share with the init of a container.
    pub fn start(criu: &Path, init: &Init) -> Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (socket, theirs) = pair.context(|| "socketpair for criu")?;
        let (started, report) = pipe_with(PipeFlags::CLOEXEC).context(|| "pipe")?;
        let command = Command::new(criu)?;
        let rights = Rights::needed_over(&init.user_namespace)?;
        let alone = SingleThreaded::prove().context(|| "clone the shim")?;
        let parent = getpid();
        let child = Child::run(&alone, CloneFlags::empty(), || {
            let of_criu = [theirs.as_fd(), report.as_fd()];
            let kept = [&init.pidfd, &theirs, &report].map(AsFd::as_fd);
            let guarded = close_others(&kept).context(|| "close_range");
            let guarded = guarded.and_then(|()| detach_stdio().context(|| "open /dev/null"));
            let guarded = guarded.and_then(|()| {
                guard(parent, &of_criu, || {
                    let entered = init.enter().and_then(|()| rights.take());
                    let error = match entered.and_then(|()| command.execute(&theirs)) {
                        Err(error) => error,
                        Ok(never) => match never {},
                    };
                    let _ = rustix::io::write(&report, error.to_string().as_bytes());
                })
            });
            if let Err(error) = guarded {
                let _ = rustix::io::write(&report, error.to_string().as_bytes());
            }
        });
        let child = child.context(|| "clone the shim")?;
        rustix::io::ioctl_fionbio(&socket, true).context(|| "FIONBIO")?;
        Ok(Self { socket, started, rights, guard: child })
    }

    /// Returns a descriptor that is readable once [`Dumper::take`] has something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether criu runs as another user than root, to whom its files then belong.
    pub fn is_unprivileged(&self) -> bool {
        self.rights != Rights::Root
    }

    /// Sends a request.
    pub fn ask(&self, request: &Request) -> Result<()> {
        criu::request(&self.socket, request)
    }

    /// Takes an answer; `None` if there is none yet.
    ///
    /// # Errors
    /// criu could not be started, was killed, or sent what is no answer.
    pub fn take(&self) -> Result<Option<Response>> {
        match criu::receive(&self.socket)? {
            Received::WouldBlock => Ok(None),
            Received::Response(response) => Ok(Some(response)),
            Received::Closed => Err(self.end()),
        }
    }

    /// Says why criu has ended.
    fn end(&self) -> Error {
        let mut why = vec![0; 4096];
        // Its last writer has ended, or executed criu.
        let length = rustix::io::read(&self.started, &mut *why).unwrap_or(0);
        match length {
            0 => Error::internal("criu ended before it answered: it was killed, or has crashed"),
            _ => Error::internal(String::from_utf8_lossy(&why[..length]).into_owned()),
        }
    }
}

impl Drop for Dumper {
    /// Kills criu and all that it has cloned, and waits until they are gone: they hold its socket.
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.guard.pid()) {
            // It is there as long as the guard is not collected. Before that has made it, the guard
            // has no child.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let mut end = [PollFd::new(&self.socket, PollFlags::RDHUP | PollFlags::HUP)];
        let _ = poll(&mut end, Some(&END_TIMEOUT));
    }
}

/// Clones a child for `work`, in a process group of its own with all that it clones, and waits for
/// its end, or for that of the shim. Then kills the group, this process too: criu may have been
/// killed amid children of its, which would wait for it for ever.
fn guard(parent: Pid, of_child: &[BorrowedFd<'_>], work: impl FnOnce()) -> Result<()> {
    let what = || "guard criu";
    let mut signals = SigSet::empty();
    signals.add(nix::sys::signal::SIGTERM);
    signals.add(nix::sys::signal::SIGCHLD);
    signals.thread_block().context(what)?;
    setsid().context(what)?;
    // What the kernel sends when the shim ends, it may have sent in its other form before this.
    set_parent_process_death_signal(Some(Signal::TERM)).context(what)?;
    if getppid() != Some(parent) {
        exit_now(1);
    }
    let alone = SingleThreaded::prove().context(what)?;
    match clone_into(&alone, CloneFlags::empty(), None).context(|| "clone criu")? {
        Cloned::Child => {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            work();
            exit_now(127)
        }
        Cloned::Parent { .. } => {
            for descriptor in of_child {
                close_copy(*descriptor).context(what)?;
            }
            // Both signals end it.
            signals.wait().context(what)?;
            let _ = kill_process_group(getpid(), Signal::KILL);
            exit_now(0)
        }
    }
}

/// criu's command line, but for the socket.
struct Command {
    path: CString,
    env: Vec<CString>,
}

impl Command {
    fn new(criu: &Path) -> Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).context(|| "the path of criu");
        let path = text(criu.as_os_str())?;
        let mut search = std::ffi::OsString::from("PATH=");
        search.push(std::env::var_os("PATH").unwrap_or_default());
        Ok(Self { path, env: vec![text(&search)?] })
    }

    fn execute(&self, socket: &OwnedFd) -> Result<std::convert::Infallible> {
        let what = || format!("execute {}", self.path.to_string_lossy());
        reset_signals().context(what)?;
        let number = donate(socket).context(what)?.to_string();
        let number = CString::new(number).context(what)?;
        let args = [self.path.clone(), c"swrk".to_owned(), number];
        execute(&self.path, &args, &self.env).context(what)
    }
}

/// Whether an instance of inotify, of which criu needs one, can be had: with those of the host's
/// root used up, criu ends without saying why.
pub fn has_inotify() -> Result<()> {
    use rustix::fs::inotify::{CreateFlags, init};
    match init(CreateFlags::CLOEXEC) {
        Ok(_) => Ok(()),
        Err(Errno::MFILE) => Err(Error::internal(
            "the host's root has no instance of inotify left, of which criu needs one; raise \
             fs.inotify.max_user_instances",
        )),
        Err(e) => Err(e).context(|| "inotify_init1"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn criu_is_the_option_s_or_the_first_in_path() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = folder.path().join(name).join("criu");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (plain, first, second) = (make("a", 0o644), make("b", 0o755), make("c", 0o755));
        let search = std::env::join_paths([&plain, &first, &second].map(|p| p.parent().unwrap()));
        let search = search.unwrap();
        assert_eq!(find(Path::new(""), Some(&search)).unwrap(), first);
        assert_eq!(find(&second, Some(&search)).unwrap(), second);
        for error in [find(&plain, Some(&search)), find(Path::new(""), None)] {
            let error = error.unwrap_err();
            assert_eq!(error.kind, FailureKind::State);
            assert!(error.to_string().contains("install the package criu"), "{error}");
        }
    }
}
