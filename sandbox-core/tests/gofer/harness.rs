//! A sandbox to make mounts for, a gofer to make them, and ways to look at them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal};
use sandbox_core::control::gofer::*;
use sandbox_core::control::packet::{Received, receive_packet, send_packet};
use sandbox_core::spec::plan::*;
use sandbox_core::sys::mount::*;

/// First host ID of every sandbox here.
pub const HOST_ROOT: u32 = 1_000_000;

pub fn mappings(outside: u32) -> Mappings {
    let map = vec![IdMapping { inside: 0, outside, size: 65536 }];
    Mappings { uids: map.clone(), gids: map }
}

/// A place on the host: a directory, in a mount namespace of this thread's own.
pub struct Host {
    pub dir: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests run as root");
        change("/", PropagationKind::Private);
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn text(&self, below: &str) -> String {
        self.path(below).to_str().unwrap().to_owned()
    }

    /// A file, with the directories above it.
    pub fn write(&self, below: &str, content: &str) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub fn mkdir(&self, below: &str) -> PathBuf {
        fs::create_dir_all(self.path(below)).unwrap();
        self.path(below)
    }

    /// Mounts a new file system at a new directory.
    pub fn mount(&self, fs_type: &str, below: &str) -> PathBuf {
        let context = FsContext::open(fs_type).unwrap();
        context.create().unwrap();
        let path = self.mkdir(below);
        attach_at(context.mount(MountAttrFlags::empty()).unwrap(), &path).unwrap();
        path
    }

    /// Returns the mount table. Mounts go away by themselves when another process on the
    /// machine removes their mount point, so only new ones mean anything.
    pub fn mounts(&self) -> BTreeSet<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        table.lines().map(str::to_owned).collect()
    }

    /// The line of the mount table for a mount that is attached for a moment.
    pub fn table_line(&self, mount: &OwnedFd) -> String {
        let point = self.mkdir("attached");
        attach_at(mount, &point).unwrap();
        let table = self.mounts();
        let suffix = point.to_str().unwrap();
        table.into_iter().find(|line| line.contains(suffix)).unwrap()
    }
}

pub fn change(path: impl AsRef<Path>, kind: PropagationKind) {
    let change = AttrChange { propagation: Some(kind), ..AttrChange::default() };
    mount_setattr_at(path.as_ref(), Depth::Tree, change).unwrap();
}

/// A process that is PID 1 of new user, PID and network namespaces.
pub struct Sandbox {
    outer: Child,
    inner: u32,
    pub users: OwnedFd,
    pub mappings: Mappings,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::with_root(HOST_ROOT)
    }

    pub fn with_root(host_root: u32) -> Self {
        let mut outer = Command::new("unshare")
            .args(["-U", "-p", "-n", "--fork", "sleep", "1000"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = outer.id();
        let deadline = Instant::now() + Duration::from_secs(20);
        let inner = loop {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let inner = children.trim();
            let comm = fs::read_to_string(format!("/proc/{inner}/comm"));
            if comm.is_ok_and(|comm| comm == "sleep\n") {
                break inner.parse().unwrap();
            }
            assert!(Instant::now() < deadline && outer.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        };
        let text = format!("0 {host_root} 65536\n");
        fs::write(format!("/proc/{pid}/uid_map"), &text).unwrap();
        fs::write(format!("/proc/{pid}/gid_map"), &text).unwrap();
        let users = namespace(inner, "user");
        Self { outer, inner, users, mappings: mappings(host_root) }
    }

    pub fn network(&self) -> OwnedFd {
        namespace(self.inner, "net")
    }

    pub fn pids(&self) -> OwnedFd {
        namespace(self.inner, "pid")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // unshare ends with its child.
        let pid = Pid::from_raw(self.inner as i32).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        self.outer.wait().unwrap();
    }
}

fn namespace(pid: u32, name: &str) -> OwnedFd {
    fs::File::open(format!("/proc/{pid}/ns/{name}")).unwrap().into()
}

/// Returns a request with a harmless value in every field.
pub fn request() -> GoferRequest {
    GoferRequest {
        container: "c".to_owned(),
        own_user_namespace: false,
        user_namespace: None,
        sandbox_proc: false,
        default_devices: false,
        rootless: false,
        rootfs: RootfsSource::None,
        attach_at: None,
        attached_at: None,
        mounts: Vec::new(),
        devices: Vec::new(),
        seccomp: None,
        hooks: None,
        checkpoint: None,
    }
}

pub fn bind(index: usize, source: impl Into<PathBuf>) -> RequestedMount {
    let source = source.into();
    let source = DeliveredSource::Bind { source, recursive: true, idmap: IdmapChoice::Sandbox };
    RequestedMount { index, source, propagation: None }
}

pub fn mount(fs_type: &str, source: &str, options: &[&str]) -> RootfsMount {
    RootfsMount {
        fs_type: fs_type.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

/// Two layers and room above, as containerd's overlayfs snapshotter has them.
pub fn snapshots(host: &Host) -> RootfsMount {
    host.write("snapshots/1/fs/etc/base", "base");
    host.write("snapshots/1/fs/etc/hidden", "below");
    let file = host.write("snapshots/2/fs/etc/hidden", "above");
    chown(file, Some(1000), Some(1000)).unwrap();
    fs::create_dir_all(host.path("snapshots/2/fs/tmp")).unwrap();
    fs::set_permissions(host.path("snapshots/2/fs/tmp"), fs::Permissions::from_mode(0o1777))
        .unwrap();
    symlink("/etc/passwd", host.path("snapshots/2/fs/link")).unwrap();
    host.mkdir("snapshots/3/fs");
    host.mkdir("snapshots/3/work");
    let at = |below: &str| host.text(&format!("snapshots/{below}"));
    mount(
        "overlay",
        "overlay",
        &[
            "index=off",
            &format!("workdir={}", at("3/work")),
            &format!("upperdir={}", at("3/fs")),
            &format!("lowerdir={}:{}", at("2/fs"), at("1/fs")),
        ],
    )
}

pub fn asking_for(mounts: Vec<RootfsMount>) -> GoferRequest {
    let mut request = request();
    request.rootfs = RootfsSource::Mounts(mounts);
    request
}

/// Asks for what the first container of a pod has in Kubernetes.
pub fn first_of_pod(host: &Host) -> GoferRequest {
    let mut request = asking_for(vec![snapshots(host)]);
    request.sandbox_proc = true;
    request.default_devices = true;
    for index in 0..8 {
        host.write(&format!("volumes/{index}/name"), "");
        request.mounts.push(bind(index, host.path(&format!("volumes/{index}"))));
    }
    let source = DeliveredSource::Sysfs;
    request.mounts.push(RequestedMount { index: 8, source, propagation: None });
    request
}

/// The result of one run.
pub struct Run {
    pub answer: GoferAnswer,
    pub delivered: Vec<(Slot, OwnedFd)>,
    /// Slots of each packet.
    pub packets: Vec<usize>,
    /// From before the clone to the answer.
    #[allow(dead_code, reason = "benches/parts.rs prints it")]
    pub time: Duration,
}

impl Run {
    pub fn get(&self, slot: Slot) -> &OwnedFd {
        self.answer.as_ref().unwrap();
        let found = self.delivered.iter().find(|(s, _)| *s == slot);
        &found.unwrap_or_else(|| panic!("{slot:?} is missing")).1
    }

    pub fn rootfs(&self) -> &OwnedFd {
        self.get(Slot::Rootfs)
    }

    pub fn mount(&self, index: usize) -> &OwnedFd {
        self.get(Slot::Mount { index, is_file: false })
    }

    /// The sentence of a run that was to fail.
    pub fn error(&self) -> &str {
        &self.answer.as_ref().expect_err("the gofer should have refused").message
    }
}

/// Runs the gofer for a request, with the descriptors that belong to it.
pub fn gofer(request: &GoferRequest, sandbox: Option<&Sandbox>) -> Run {
    gofer_in(request, sandbox, || Ok(()))
}

/// Runs the gofer as a child of a thread that did something to itself before.
pub fn gofer_in(
    request: &GoferRequest,
    sandbox: Option<&Sandbox>,
    before: impl FnOnce() -> std::io::Result<()> + Send,
) -> Run {
    let mut request = request.clone();
    request.user_namespace = sandbox.map(|s| s.mappings.clone());
    let (boot, channel) = pair();
    let network = sandbox.map(Sandbox::network).unwrap_or_else(|| namespace_of_self("net"));
    let pids = sandbox.map(Sandbox::pids);
    let mut fds = vec![channel.as_fd()];
    fds.extend(sandbox.map(|s| s.users.as_fd()));
    if request.wants_network() {
        fds.push(network.as_fd());
    }
    if request.sandbox_proc {
        fds.extend(pids.as_ref().map(AsFd::as_fd));
    }
    let bytes = postcard::to_stdvec(&request).unwrap();
    let mut run = raw(&bytes, &fds, before);
    drop(fds);
    drop(channel);
    while let Received::Packet { bytes, fds, .. } = receive_packet(&boot, 65536, 32).unwrap() {
        let delivery: Delivery = postcard::from_bytes(&bytes).unwrap();
        let fds = fds.take();
        assert_eq!((delivery.container.as_str(), delivery.slots.len()), ("c", fds.len()));
        run.packets.push(fds.len());
        run.delivered.extend(delivery.slots.into_iter().zip(fds));
    }
    run
}

fn namespace_of_self(name: &str) -> OwnedFd {
    namespace(std::process::id(), name)
}

/// Sends any bytes and descriptors to a gofer, and waits until nothing of it is
/// left. The thread that starts it lives as long: with it goes its child.
pub fn raw(
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    before: impl FnOnce() -> std::io::Result<()> + Send,
) -> Run {
    let in_thread = || {
        before().unwrap();
        run(bytes, fds)
    };
    std::thread::scope(|scope| scope.spawn(in_thread).join().unwrap())
}

fn run(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Run {
    let (ours, theirs) = pair();
    // Its standard input cannot be announced: the shell gives it another number.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" gofer --request-fd=3 3<&0 0</dev/null"]);
    command.arg(env!("CARGO_BIN_EXE_palisade-sandbox")).process_group(0).stdin(theirs);
    let start = Instant::now();
    send_packet(&ours, bytes, fds).unwrap();
    let mut child = command.spawn().unwrap();
    drop(command);
    let received = receive_packet(&ours, 65536, 0).unwrap();
    let time = start.elapsed();
    let Received::Packet { bytes, .. } = received else {
        panic!("no answer: {received:?}, {:?}", child.wait());
    };
    assert!(child.wait().unwrap().success());
    let group = Pid::from_raw(child.id() as i32).unwrap();
    let left = rustix::process::test_kill_process_group(group);
    assert_eq!(left, Err(rustix::io::Errno::SRCH), "the gofer left processes behind");
    let answer = postcard::from_bytes(&bytes).unwrap();
    Run { answer, delivered: Vec::new(), packets: Vec::new(), time }
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// Owner of what a path leads to below a mount, as the host sees it.
pub fn owner(mount: impl AsFd, path: &str) -> (u32, u32) {
    let stat =
        rustix::fs::statat(mount, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH).unwrap();
    (stat.st_uid, stat.st_gid)
}

/// Owner on disk.
pub fn owner_at(path: impl AsRef<Path>) -> (u32, u32) {
    owner(CWD, path.as_ref().to_str().unwrap())
}

pub fn read(mount: impl AsFd, path: &str) -> std::io::Result<String> {
    let file = rustix::fs::openat(mount, path, OFlags::CLOEXEC, Mode::empty())?;
    std::io::read_to_string(fs::File::from(file))
}

/// Writes a file below a mount as a user of the host.
pub fn write_as(id: u32, mount: impl AsFd, path: &str, content: &str) -> std::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    let before = (setfsuid(uid), setfsgid(gid));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(mount, path, flags, Mode::from_raw_mode(0o644));
    setfsuid(before.0);
    setfsgid(before.1);
    std::io::Write::write_all(&mut fs::File::from(file?), content.as_bytes())
}

pub fn list(mount: impl AsFd, path: &str) -> Vec<String> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if path.is_empty() { "." } else { path };
    let dir = rustix::fs::openat(mount, path, flags, Mode::empty()).unwrap();
    let names = Dir::read_from(dir).unwrap().map(|e| e.unwrap().file_name().to_owned());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}
