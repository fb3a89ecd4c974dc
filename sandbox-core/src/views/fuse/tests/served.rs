//! A server in a thread of its own, and its file system on a mount that is nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::pipe::pipe;

use super::super::protocol::Operation;
use super::super::{Answer, Content, Served, Server, Sysfs, Unanswered};
use crate::cpu_set::CpuSet;
use crate::sys::mount::FsContext;
use crate::views::File;

/// Texts that a test says.
pub(super) struct Texts {
    /// By container and file; any other text names its file and how often it was asked for.
    pub(super) said: BTreeMap<(u32, String), Answer<Vec<u8>>>,
    pub(super) cpus: Answer<CpuSet>,
    /// Whether the host's sysfs is there.
    pub(super) sysfs: bool,
    /// What is asked for: the file's name, and the kernel's text.
    pub(super) asked: Vec<(File, Option<Vec<u8>>)>,
    pub(super) cpu: OwnedFd,
    node: OwnedFd,
}

impl Texts {
    pub(super) fn new() -> Self {
        let open = |path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        Self {
            said: BTreeMap::new(),
            cpus: Ok(CpuSet::parse("0-65535").unwrap()),
            sysfs: true,
            asked: Vec::new(),
            cpu: open("/sys/devices/system/cpu").unwrap(),
            node: open("/sys/devices/system/node").unwrap(),
        }
    }

    pub(super) fn say(&mut self, serial: u32, file: File, text: impl AsRef<[u8]>) {
        self.said.insert((serial, format!("{file:?}")), Ok(text.as_ref().to_vec()));
    }

    pub(super) fn wait(&mut self, serial: u32, file: File) {
        self.said.insert((serial, format!("{file:?}")), Err(Unanswered::Wait));
    }
}

impl Content for Texts {
    fn text(&mut self, serial: u32, file: File, kernels: Option<&[u8]>) -> Answer<Vec<u8>> {
        self.asked.push((file, kernels.map(<[u8]>::to_vec)));
        let made_up = || Ok(format!("{serial} {file:?} {}\n", self.asked.len()).into_bytes());
        self.said.get(&(serial, format!("{file:?}"))).cloned().unwrap_or_else(made_up)
    }

    fn cpus(&mut self, _: u32) -> Answer<CpuSet> {
        self.cpus.clone()
    }

    fn sysfs(&self, _: u32) -> Answer<Sysfs<'_>> {
        if !self.sysfs {
            return Err(Errno::NOENT.into());
        }
        Ok(Sysfs { cpu: self.cpu.as_fd(), node: Some(self.node.as_fd()) })
    }
}

type Order = Box<dyn FnOnce(&mut Server, &mut Texts) + Send>;

/// A file system that is served. Ends with this.
pub(super) struct Mounted {
    pub(super) mount: OwnedFd,
    orders: Option<Sender<Order>>,
    bell: OwnedFd,
    pub(super) thread: Option<JoinHandle<Served>>,
}

impl Mounted {
    /// Mounts it with the options that boot mounts it with, and makes directories for the
    /// containers 1 and 2.
    pub(super) fn new() -> Self {
        Self::with(&["allow_other", "default_permissions", "ro"])
    }

    /// Mounts it so that the server is asked for what is written.
    pub(super) fn writable() -> Self {
        Self::with(&["allow_other", "default_permissions"])
    }

    fn with(flags: &[&str]) -> Self {
        let device =
            rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let context = FsContext::open("fuse").unwrap();
        context.string("fd", device.as_raw_fd().to_string()).unwrap();
        for (key, value) in [("rootmode", "40555"), ("user_id", "0"), ("group_id", "0")] {
            context.string(key, value).unwrap();
        }
        for flag in flags {
            context.flag(flag).unwrap();
        }
        context.create().unwrap();
        let mount = context.mount(MountAttrFlags::empty()).unwrap();
        let (woken, bell) = pipe().unwrap();
        let (orders, taken) = channel();
        let mut server = Server::new(device, (0, 0)).unwrap();
        server.add_container(1);
        server.add_container(2);
        let thread = std::thread::spawn(move || serve(server, &woken, &taken));
        Self { mount, orders: Some(orders), bell, thread: Some(thread) }
    }

    /// Has the server's thread do something between two requests, and returns its result.
    pub(super) fn tell<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Server, &mut Texts) -> T + Send + 'static,
    ) -> T {
        let (sender, done) = channel();
        let order = Box::new(move |server: &mut Server, texts: &mut Texts| {
            sender.send(order(server, texts)).unwrap();
        });
        self.orders.as_ref().unwrap().send(order).unwrap();
        rustix::io::write(&self.bell, b"x").unwrap();
        done.recv().unwrap()
    }

    /// Returns a path in it that programs can use as well.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/fd/{}/{path}", std::process::id(), self.mount.as_raw_fd()).into()
    }

    pub(super) fn open(&self, path: &str) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(self.path(path), flags, Mode::empty()).unwrap()
    }

    pub(super) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Returns the names in a directory, in order.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut names: Vec<_> = fs::read_dir(self.path(path)).unwrap().map(name).collect();
        names.sort();
        names
    }

    /// Returns what the kernel has asked for since this was called last, but for what it asks
    /// some time after a file was closed.
    pub(super) fn requests(&self) -> Vec<Operation> {
        let all = self.tell(|server, _| std::mem::take(&mut server.taken));
        let late = |operation: &Operation| {
            matches!(
                operation,
                Operation::Release { .. }
                    | Operation::ReleaseDirectory
                    | Operation::Forget { .. }
                    | Operation::BatchForget { .. }
            )
        };
        all.into_iter().filter(|operation| !late(operation)).collect()
    }

    /// Waits until a server's test holds: a deadline only for one that never will.
    pub(super) fn wait_until(&self, holds: impl Fn(&mut Server) -> bool + Clone + Send + 'static) {
        for _ in 0..10_000 {
            let holds = holds.clone();
            if self.tell(move |server, _| holds(server)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("waited in vain");
    }

    /// Ends the server, as when boot dies.
    pub(super) fn kill(&mut self) {
        self.orders = None;
        rustix::io::write(&self.bell, b"x").unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.kill();
        }
    }
}

/// As boot's loop does.
fn serve(mut server: Server, woken: &OwnedFd, orders: &Receiver<Order>) -> Served {
    let mut texts = Texts::new();
    loop {
        let mut ready = [PollFd::new(&server, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        poll(&mut ready, None).unwrap();
        let woken_up = !ready[1].revents().is_empty();
        if !ready[0].revents().is_empty() && server.serve_some(&mut texts).unwrap() == Served::Ended
        {
            return Served::Ended;
        }
        if woken_up {
            rustix::io::read(woken, &mut [0; 1]).unwrap();
            let Ok(order) = orders.recv() else {
                return Served::Open;
            };
            order(&mut server, &mut texts);
        }
    }
}

/// Runs a program and returns what it prints.
pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program} {arguments:?}: {status} {stderr}");
    String::from_utf8(stdout).unwrap()
}
