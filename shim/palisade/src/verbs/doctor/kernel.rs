//! The kernel and its features, each by trying it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use sandbox_core::cgroup::Mode as CgroupMode;
use sandbox_core::sandbox::state::Identity;
use sandbox_core::sys::child::Child;
use sandbox_core::sys::clone::{Cloned, SingleThreaded, clone_into};
use sandbox_core::sys::mount::{
    AttrChange, Depth, FsContext, PropagationKind, attach_at, clone_mount, mount_of, mount_setattr,
    mount_setattr_at,
};
use sandbox_core::sys::namespace::NEW_TIME;
use sandbox_core::sys::pidfd::mount_namespace_of;
use sandbox_core::sys::process::{SECCOMP_NEW_LISTENER, exit_now, load_seccomp};
use sandbox_core::sys::seccomp_listener::SECCOMP_WAIT_KILLABLE;
use sandbox_core::sys::{confine, kernel};

use super::trial::{Users, in_child, nested_users};
use super::{Finding, Verdict};

/// A feature: what is lost without it, and the line that mends it.
struct Feature {
    about: &'static str,
    without: Verdict,
    why: &'static str,
    mend: &'static str,
}

/// Looks at the kernel. `containerd_root` is where containerd keeps images.
pub(super) fn look(containerd_root: &Path) -> Vec<Finding> {
    let mut findings = vec![version()];
    findings.extend(sysctls());
    let mut check = |feature: Feature, tried: Result<()>| {
        let Feature { about, without, why, mend } = feature;
        findings.push(match tried {
            Ok(()) => Finding::ok(about, "works"),
            Err(error) => Finding { verdict: without, ..Finding::ok(about, format!("{error:#}")) }
                .explained(why, mend),
        });
    };
    for (feature, tried) in process_features() {
        check(feature, tried);
    }
    let users = Users::new();
    for (feature, tried) in mount_features(&users) {
        check(feature, tried);
    }
    for place in [containerd_root, Path::new("/var/lib/kubelet")] {
        findings.push(idmapped_place(place, &users));
    }
    findings
}

fn version() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mend = "install Linux 6.12 or later";
    let found = format!("Linux {release}");
    match kernel::version() {
        Some(version) if version < (5, 12) => {
            Finding::fault("kernel", found, "mount_setattr(2) is missing: no pod can be made", mend)
        }
        Some(version) if version < (6, 3) => Finding::warning(
            "kernel",
            found,
            "only pods whose spec asks for a user namespace get one",
            mend,
        ),
        Some(version) if version < (6, 9) => Finding::warning(
            "kernel",
            found,
            "after the death of a shim, its sandbox process cannot be told from a later process \
             with the same PID",
            mend,
        ),
        _ => Finding::ok("kernel", found),
    }
}

/// The switches of user namespaces, which each distribution has in another place.
fn sysctls() -> Vec<Finding> {
    let number = |name: &str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let mut findings = Vec::new();
    let name = "user.max_user_namespaces";
    match number(name) {
        Some(0) => findings.push(Finding::fault(
            name,
            "0",
            "no pod gets a user namespace: root in a container would be root on the host",
            "sysctl -w user.max_user_namespaces=65536",
        )),
        // Each pod has two, of an owner of its own, and the gofer makes some for a moment.
        Some(few) if few < 16 => findings.push(Finding::warning(
            name,
            few.to_string(),
            "a pod has two, and the host's root makes one for each pod",
            "sysctl -w user.max_user_namespaces=65536",
        )),
        Some(enough) => findings.push(Finding::ok(name, enough.to_string())),
        None => findings.push(Finding::fault(
            name,
            "the kernel has no user namespaces",
            "root in a container would be root on the host",
            "use a kernel with CONFIG_USER_NS=y",
        )),
    }
    // Debian's and Ubuntu's own; other kernels do not have them.
    let own = [
        ("kernel.unprivileged_userns_clone", 0, 1),
        ("kernel.apparmor_restrict_unprivileged_userns", 1, 0),
    ];
    for (name, bad, good) in own {
        match number(name) {
            Some(value) if value == bad => findings.push(Finding::warning(
                name,
                value.to_string(),
                "a pod's namespaces are made for a user of its own, which this may refuse, and \
                 rootless containerd cannot run; the trials below say what works",
                &format!("sysctl -w {name}={good}"),
            )),
            Some(value) => findings.push(Finding::ok(name, value.to_string())),
            None => {}
        }
    }
    findings
}

fn process_features() -> Vec<(Feature, Result<()>)> {
    let mend = "use a newer kernel";
    let feature = |about, without, why| Feature { about, without, why, mend };
    use Verdict::{Fault, Warning};
    vec![
        (
            Feature {
                about: "user namespaces",
                without: Fault,
                why: "root in a container would be root on the host",
                mend: "use a kernel with CONFIG_USER_NS=y, and look at the sysctls above",
            },
            Users::new().map(drop),
        ),
        (
            feature(
                "nested user namespaces",
                Fault,
                "a pod has two, so that what is mounted for it is locked",
            ),
            nested_users(),
        ),
        (
            feature(
                "birth in a cgroup (clone3)",
                Warning,
                "containers move into their cgroups after their birth, which takes longer",
            ),
            birth_in_a_cgroup(),
        ),
        (
            feature(
                "namespaces of a pidfd",
                Warning,
                "what keeps a volume busy is found by PID, which is less sure",
            ),
            pidfd_open(getpid(), PidfdFlags::empty())
                .context("pidfd_open")
                .and_then(|pidfd| mount_namespace_of(pidfd).context("PIDFD_GET_MNT_NAMESPACE"))
                .map(drop),
        ),
        (
            feature(
                "identity of processes (pidfs)",
                Warning,
                "leftovers of a dead pod cannot be told from a living one",
            ),
            identities(),
        ),
        (
            feature("time namespaces", Warning, "containers see the host's uptime"),
            in_child(NEW_TIME, || Ok(())),
        ),
        (
            feature(
                "seccomp user notification",
                Fault,
                "profiles with SCMP_ACT_NOTIFY and views need it",
            ),
            in_child(CloneFlags::empty(), || listen(0)),
        ),
        (
            feature(
                "seccomp, killable waits",
                Warning,
                "a signal can interrupt a call that waits for Palisade's answer",
            ),
            in_child(CloneFlags::empty(), || listen(SECCOMP_WAIT_KILLABLE)),
        ),
        (
            Feature {
                about: "Landlock with scopes",
                without: Warning,
                why: "the gofer, which opens a container's files as root, is not kept from signals \
                      and abstract sockets",
                mend: "use Linux 6.12 or later, with landlock in lsm= of its command line",
            },
            in_child(CloneFlags::empty(), || {
                ensure!(confine::leave_others_alone()?, "the kernel knows none");
                Ok(())
            }),
        ),
    ]
}

/// Loads a filter that allows everything, with a listener.
fn listen(flags: u32) -> Result<()> {
    let [low, high] = (libc::BPF_RET as u16).to_ne_bytes();
    let allow = [&[low, high, 0, 0][..], &libc::SECCOMP_RET_ALLOW.to_ne_bytes()].concat();
    let listener = load_seccomp(&allow, SECCOMP_NEW_LISTENER | flags).context("seccomp(2)")?;
    ensure!(listener.is_some(), "the kernel returned no listener");
    Ok(())
}

fn birth_in_a_cgroup() -> Result<()> {
    if !CgroupMode::of_host()?.is_v2() {
        // Version 1 has no such birth, and Palisade asks for none.
        return Ok(());
    }
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let directory = fs::File::open(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))?;
    use std::os::fd::AsFd;
    match clone_into(&SingleThreaded::prove()?, CloneFlags::empty(), Some(directory.as_fd()))
        .context("clone3 with CLONE_INTO_CGROUP")?
    {
        Cloned::Child => exit_now(0),
        Cloned::Parent { pidfd, .. } => {
            drop(sandbox_core::sys::child::KillOnDrop::new(pidfd));
            Ok(())
        }
    }
}

fn identities() -> Result<()> {
    let child = Child::idle(&SingleThreaded::prove()?, CloneFlags::empty())?;
    let own = Identity::of_this_process()?;
    let other = rustix::fs::fstat(&child)?;
    ensure!(own.pidfd_inode != other.st_ino, "all processes have the same pidfd inode");
    Ok(())
}

fn mount_features(users: &Result<Users>) -> Vec<(Feature, Result<()>)> {
    let mend = "use a newer kernel";
    let feature = |about, without, why| Feature { about, without, why, mend };
    use Verdict::{Fault, Warning};
    let mapped = |mount: OwnedFd| map(&mount, users);
    vec![
        (
            feature("proc by fsopen(2)", Fault, "a container cannot be given a /proc"),
            made("proc").map(drop),
        ),
        (
            feature(
                "idmapped tmpfs",
                Warning,
                "only pods whose spec asks for a user namespace get one",
            ),
            made("tmpfs").and_then(mapped),
        ),
        (
            Feature {
                about: "overlay of idmapped layers",
                without: Fault,
                why: "images of containerd's overlayfs cannot be given to a user namespace",
                mend: "modprobe overlay, and use Linux 5.19 or later",
            },
            in_child(CloneFlags::CLONE_NEWNS, || overlay(users)),
        ),
        (
            Feature {
                about: "/dev/fuse",
                without: Warning,
                why: "views are files of FUSE: without them containers see the host's CPUs and \
                      memory",
                mend: "modprobe fuse",
            },
            fuse(),
        ),
    ]
}

/// Makes a file system on a mount that is nowhere.
fn made(kind: &str) -> Result<OwnedFd> {
    let context = FsContext::open(kind).with_context(|| format!("fsopen {kind}"))?;
    context.create().with_context(|| format!("make a {kind}"))?;
    context.mount(MountAttrFlags::empty()).with_context(|| format!("fsmount of a {kind}"))
}

fn map(mount: &OwnedFd, users: &Result<Users>) -> Result<()> {
    use std::os::fd::AsFd;
    let Ok(users) = users else { bail!("there is no user namespace to map to") };
    let change = AttrChange { idmap: Some(users.as_fd()), ..AttrChange::default() };
    mount_setattr(mount, Depth::Top, change).context("mount_setattr with MOUNT_ATTR_IDMAP")
}

/// Mounts an overlay in the child's own mount namespace, on a tmpfs.
fn overlay(users: &Result<Users>) -> Result<()> {
    let private =
        AttrChange { propagation: Some(PropagationKind::Private), ..AttrChange::default() };
    mount_setattr_at("/", Depth::Tree, private).context("make all mounts private")?;
    let tmpfs = made("tmpfs")?;
    attach_at(&tmpfs, c"/").context("move_mount")?;
    rustix::process::fchdir(&tmpfs).context("fchdir")?;
    for name in ["layer", "mapped", "upper", "work"] {
        rustix::fs::mkdirat(CWD, name, Mode::RWXU).context("mkdir")?;
    }
    let layer = clone_mount(CWD, "layer", Depth::Top).context("open_tree")?;
    map(&layer, users)?;
    attach_at(&layer, "mapped").context("move_mount")?;
    let context = FsContext::open("overlay").context("fsopen overlay")?;
    context.string("lowerdir", "mapped")?;
    context.string("upperdir", "upper")?;
    context.string("workdir", "work")?;
    context.create().context("make an overlay")?;
    context.mount(MountAttrFlags::empty()).context("fsmount of an overlay")?;
    Ok(())
}

fn fuse() -> Result<()> {
    let path = "/dev/fuse";
    let metadata = fs::metadata(path).context(path)?;
    ensure!(metadata.file_type().is_char_device(), "{path} is no device");
    fs::OpenOptions::new().read(true).write(true).open(path).context(path)?;
    FsContext::open("fuse").context("fsopen fuse")?;
    Ok(())
}

/// Maps the owners of a directory's file system.
fn idmapped_place(place: &Path, users: &Result<Users>) -> Finding {
    let about = format!("idmapped {}", place.display());
    // On a fresh node it is made later, on the file system of what is there.
    let there: PathBuf =
        place.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let clone = rustix::fs::open(&there, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("open it")
        .and_then(|fd| {
            let kind = file_system(mount_of(&fd).map_or(0, |mount| mount.id));
            let clone = clone_mount(&fd, "", Depth::Top).context("open_tree")?;
            Ok((kind, clone))
        });
    match clone {
        Err(error) => Finding::warning(
            about,
            format!("{error:#}"),
            "it is not known whether pods can have their own users there",
            "sudo palisade doctor",
        ),
        Ok((kind, clone)) => match map(&clone, users) {
            Ok(()) => Finding::ok(about, format!("works ({kind})")),
            Err(error) => Finding::warning(
                about,
                format!("{kind}: {error:#}"),
                "files there cannot be given to pods with users of their own: such pods are refused",
                "move it to ext4, xfs or btrfs, or set userns = \"never\" in /etc/palisade/config.toml",
            ),
        },
    }
}

/// Returns the type of the file system of a mount.
fn file_system(mount: u64) -> String {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let table = String::from_utf8_lossy(&table).into_owned();
    let line = table.lines().find(|line| line.split(' ').next() == Some(&mount.to_string()));
    let kind = line.and_then(|line| line.split_once(" - ")?.1.split(' ').next());
    kind.unwrap_or("a file system").to_owned()
}
