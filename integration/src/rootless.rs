//! A containerd that an ordinary user runs: root of a user namespace with subordinate IDs, and
//! of a mount namespace in which it has a `/run` of its own. RootlessKit makes the same with
//! newuidmap(1); here the test, which is root, writes the maps, so that no user and no file of
//! the machine is needed.

use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::slot::Slot;
use crate::{host, wait};

/// The user, and what its user namespace has.
#[derive(Clone, Debug)]
pub struct User {
    /// The user's ID on the host, which no other test has.
    pub id: u32,
    /// Its first subordinate ID: 1 inside.
    pub first: u32,
    /// The number of its subordinate IDs.
    pub count: u32,
    /// Lines of shell that run as root of the user namespace, before containerd.
    pub prepare: String,
    /// The name of the test's cgroup.
    name: String,
    /// A cgroup of version 2 that is delegated to the user, with containerd in one below it.
    pub delegated: Option<PathBuf>,
    /// Whether setgroups(2) is denied inside, as in a user namespace without newgidmap(1).
    pub denies_groups: bool,
}

impl User {
    /// Returns a user with as many subordinate IDs as adduser(8) gives.
    pub fn of(slot: &Slot) -> User {
        let number = u32::from(slot.number());
        User {
            id: 20_000 + number,
            first: 0x9000_0000 + number * 0x2_0000,
            count: 65536,
            prepare: String::new(),
            name: format!("{}-delegated", slot.name()),
            delegated: None,
            denies_groups: false,
        }
    }

    /// Delegates a cgroup of version 2 to the user, and shows version 2 alone.
    pub fn delegate_cgroup(&mut self) {
        let usual = Path::new("/sys/fs/cgroup");
        let root = match usual.join("cgroup.controllers").exists() {
            true => usual.to_owned(),
            false => usual.join("unified"),
        };
        assert!(root.join("cgroup.procs").exists(), "no cgroup2 is mounted");
        let group = root.join(&self.name);
        fs::create_dir_all(group.join("containerd")).expect("mkdir of a cgroup");
        for cgroup in [group.clone(), group.join("containerd")] {
            for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                let path = if file.is_empty() { cgroup.clone() } else { cgroup.join(file) };
                lchown(&path, Some(self.id), Some(self.id)).expect("chown of a cgroup");
            }
        }
        self.prepare = format!("mount --bind {} /sys/fs/cgroup &&", root.display());
        self.delegated = Some(group);
    }

    /// Removes the cgroup that was delegated, once containerd has ended.
    pub(crate) fn remove_cgroup(&self) {
        let Some(group) = &self.delegated else { return };
        let own = group.join("containerd");
        wait::until("containerd has left its cgroup", || {
            fs::remove_dir(&own).is_ok().then_some(()).or((!own.exists()).then_some(()))
        });
        let _ = fs::remove_dir(group);
    }

    /// Returns the line of shell that starts a command as this user. The process keeps its ID.
    pub(crate) fn starter(&self, directory: &Path) -> String {
        let Self { id, first, count, prepare, delegated, denies_groups, .. } = self;
        let map = match count {
            0 => format!("0 {id} 1\\n"),
            _ => format!("0 {id} 1\\n1 {first} {count}\\n"),
        };
        let deny = if *denies_groups { "echo deny > /proc/$$/setgroups;" } else { "" };
        let join = delegated
            .as_ref()
            .map(|group| format!("echo $$ > {}/containerd/cgroup.procs;", group.display()));
        let join = join.unwrap_or_default();
        let look = "readlink /proc/$$/ns/user";
        let runtime = directory.join("user");
        format!(
            "{join} own=$({look}); ( while [ \"$({look})\" = \"$own\" ]; do sleep 0.01; done; {deny} \
               printf '{map}' > /proc/$$/uid_map; printf '{map}' > /proc/$$/gid_map ) & \
             export XDG_RUNTIME_DIR={}; \
             exec setpriv --reuid {id} --regid {id} --clear-groups \
             unshare --user --mount --propagation slave sh -c \
             'until grep -q . /proc/self/gid_map; do sleep 0.01; done; \
              exec sh -c \"mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/containerd && \
                           {prepare} exec \\\"\\$@\\\"\" sh \"$@\"' sh",
            runtime.display(),
        )
    }

    /// Returns a command that the user runs in the namespaces of one of its processes.
    pub(crate) fn command_beside(&self, pid: i32, program: &Path) -> Command {
        let id = self.id.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "nsenter"]);
        command.args(["--preserve-credentials", "--user", "--mount", "--target"]);
        command.arg(pid.to_string()).arg(program);
        command
    }

    /// Gives a file or a directory to the user.
    pub(crate) fn own(&self, path: &Path) {
        let owned = lchown(path, Some(self.id), Some(self.id));
        owned.unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).expect("read a directory").flatten() {
                self.own(&entry.path());
            }
        }
    }

    /// Returns the processes of the user that are left after some time: one that has ended is
    /// listed until the kernel has destroyed it.
    pub(crate) fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + wait::patience(10);
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the processes of the user and of its subordinate IDs.
    fn processes(&self) -> Vec<String> {
        let is_mine =
            |id: u32| id == self.id || (self.first..self.first + self.count).contains(&id);
        let mine = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
            ids.split_whitespace().filter_map(|id| id.parse().ok()).any(is_mine).then_some(())
        };
        let all = host::processes().into_iter().filter(|process| mine(process.pid).is_some());
        all.map(|process| format!("process {}: {}", process.pid, process.args.join(" "))).collect()
    }
}
