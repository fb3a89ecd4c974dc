//! Checkpoint: saves a container's processes and what Palisade knows of them into a folder, of
//! which a Create can make the same container again.
//!
//! ```text
//!   refuse ─► start criu ─► freeze ─► save tmpfs ─► criu saves ─► thaw ─► make portable ─► event
//!                             └──────────── frozen ───────────────┘
//! ```
//! However it ends, the container is frozen or runs as it did before, unless it is to end. When the
//! shim ends, so do criu and the pod.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{CheckpointTaskRequest, Empty};
use containerd_shim_protos::events::task::TaskCheckpointed;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::process::Signal;
use sandbox_core::cgroup::Cgroup;
use sandbox_core::checkpoint::criu::{
    FIRST_VERSION, IGNORE_CGROUPS, Options, Request, Response, Version, VersionText, last_error,
    log_tail,
};
use sandbox_core::checkpoint::manifest::{FORMAT, Manifest, SavedTmpfs, Size};
use sandbox_core::checkpoint::{images, open_regular, tmpfs};
use sandbox_core::dump::criu::{Dumper, Init, find, has_inotify};
use sandbox_core::dump::mounts::MountTable;
use sandbox_core::dump::processes::{Seen, look};
use sandbox_core::dump::program;
use sandbox_core::dump::visit::Visit;
use sandbox_core::dump::{names, tmpfs as dump_tmpfs};
use sandbox_core::sandbox::Process;
use sandbox_core::spec::plan::{ContainerPlan, MountSource, Plan};
use sandbox_core::types::{HostPid, ProcessId};

use super::boot::BootClient;
use super::checkpoint_options::CheckpointOptions;
use super::container::Container;
use super::lifecycle::State;
use super::savable;
use super::saved_streams::{OwnStreams, inherited};
use super::shim::Shim;
use super::{exits, oom};
use crate::error::{Context, Error, Result};
use crate::ready::readable;
use crate::spans::step;

/// The name of criu's log.
const LOG: &str = "dump.log";

/// The time that criu has at least, and the memory that it must save in each second beyond.
const PATIENCE: Duration = Duration::from_secs(60);
const BYTES_A_SECOND: u64 = 10 << 20;

/// The time that a clone of the shim has to look at something.
const VISIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time, in seconds, in which criu must have stopped all processes.
const SEIZE_SECONDS: u32 = 10;

/// The most bytes of a deleted file that is still open, which criu saves with the processes.
const GHOST_LIMIT: u32 = 1 << 30;

pub(super) async fn checkpoint(shim: Arc<Shim>, request: CheckpointTaskRequest) -> Result<Empty> {
    let options = CheckpointOptions::read(request.options.as_ref(), &request.path)?;
    shim.events.has_room()?;
    let saving = Saving::begin(&shim, &request.id)?;
    let folder = Folder::make(Path::new(&request.path), options.work.as_deref())?;
    let saved = save(&saving, &folder, &options).await;
    let frozen = saved.map_err(|error| {
        folder.clear();
        saving.explain(error)
    })?;
    if let Some(frozen) = frozen {
        saving.end_container();
        frozen.leave();
    }
    shim.events.publish(&TaskCheckpointed {
        container_id: request.id,
        checkpoint: request.path,
        ..Default::default()
    });
    Ok(Empty::default())
}

/// Saves the container. It is still frozen if it is to end.
async fn save<'a>(
    saving: &'a Saving,
    folder: &Folder,
    options: &CheckpointOptions,
) -> Result<Option<Frozen<'a>>> {
    // First all that can be known while it runs: what cannot be saved is refused before anything
    // is frozen.
    let span = step("look at what is to be saved");
    let Saving { pid, plan, .. } = saving;
    let criu = find(&saving.criu, std::env::var_os("PATH").as_deref())?;
    has_inotify()?;
    program::check(&savable::own_program(&saving.boot, plan)?)?;
    let mounts = MountTable::of(*pid)?;
    saving.check_mounts(&mounts).await?;
    let external = mounts.external()?;
    let seen = saving.look(&mounts)?;
    inherited(&seen, &saving.streams)?;
    saving.warn_of_others(&seen);
    let init = saving.process.pidfd.as_fd();
    let names = names::parse(&report(names::read(init)?).await?)?;
    let shares_ipc = !plan.container.namespaces.ipc;
    let dumper = Dumper::start(&criu, &Init::open(init, *pid, shares_ipc)?)?;
    let version = version_of(&dumper, &criu).await?;
    drop(span);

    // Then what takes a moment at which nothing changes.
    let span = step("save the container, frozen");
    let frozen = Frozen::begin(saving)?;
    let seen = saving.look(&mounts)?;
    let files = inherited(&seen, &saving.streams)?;
    let tmpfs = save_tmpfs(saving, folder).await?;
    let keys = files.iter().map(|file| &file.key).filter(|key| !key.starts_with("pipe:"));
    let wanted = Options {
        images_dir_fd: folder.number(),
        work_dir_fd: folder.number_of_work(),
        pid: pid.0,
        leave_running: true,
        ext_unix_sk: options.external_unix_sockets,
        tcp_established: options.open_tcp,
        tcp_close: !options.open_tcp,
        file_locks: true,
        log_level: 4,
        log_file: LOG.into(),
        manage_cgroups_mode: IGNORE_CGROUPS,
        ghost_limit: GHOST_LIMIT,
        external: external.into_iter().chain(keys.cloned()).collect(),
        freeze_cgroup: frozen.cgroup_path()?,
        timeout: SEIZE_SECONDS,
        unprivileged: dumper.is_unprivileged(),
        ..Options::default()
    };
    dumper.ask(&Request::dump(wanted))?;
    let patience = PATIENCE + Duration::from_secs(seen.memory / BYTES_A_SECOND);
    let answer = answer_of(&dumper, patience).await;
    let is_unprivileged = dumper.is_unprivileged();
    // It is gone before the container goes on.
    drop(dumper);
    let dumped = answer.and_then(|answer| match answer.success {
        true => Ok(()),
        false => Err(folder.error(&answer)),
    });
    let frozen = if options.exit && dumped.is_ok() { Some(frozen) } else { frozen.end()? };
    drop(span);
    dumped?;

    // Last what makes an image of it that any sandbox can have.
    let _span = step("make the image portable");
    if is_unprivileged {
        folder.take_over()?;
    }
    images::make_portable(folder.images.as_fd())?;
    let ids = images::RootIds::read(folder.images.as_fd())?;
    let manifest = Manifest {
        format: FORMAT,
        palisade: env!("CARGO_PKG_VERSION").into(),
        criu: VersionText(&version).to_string(),
        architecture: std::env::consts::ARCH.into(),
        container: saving.id.clone(),
        hostname: names.host,
        domainname: names.domain,
        terminal: saving.terminal,
        inherited: files,
        own: plan.container.namespaces.into(),
        ids: saving.boot.sandbox.ids_of(plan),
        mounts: plan.container.mounts.iter().map(|mount| mount.destination.clone()).collect(),
        tmpfs,
        user_namespace_image: ids.user_namespace_image(),
        open_tcp: options.open_tcp,
    };
    manifest.write(folder.images.as_fd())?;
    Ok(frozen)
}

/// Saves what is in the container's file systems in memory.
async fn save_tmpfs(saving: &Saving, folder: &Folder) -> Result<Vec<SavedTmpfs>> {
    let mut saved = Vec::new();
    for (index, destination) in tmpfs_of(&saving.plan.container) {
        let file = tmpfs::file_name(index);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let archive = openat(&folder.images, &file, flags, Mode::RUSR | Mode::WUSR)
            .context(|| format!("make {file} of the checkpoint"))?;
        let init = saving.process.pidfd.as_fd();
        let visit = dump_tmpfs::save(init, &destination, &File::from(archive))?;
        // It may be as large as the memory that the container has.
        report_within(visit, PATIENCE).await?;
        saved.push(SavedTmpfs { destination, file });
    }
    Ok(saved)
}

/// Returns the mounts, by index, whose content is saved: each tmpfs but `/dev`, which is made anew
/// with all devices, and those below another mount of the same place.
fn tmpfs_of(plan: &ContainerPlan) -> Vec<(usize, PathBuf)> {
    let last_at = |index: usize, place: &Path| {
        plan.mounts.iter().rposition(|mount| mount.destination == place) == Some(index)
    };
    let all = plan.mounts.iter().enumerate().filter(|(index, mount)| {
        matches!(mount.source, MountSource::Tmpfs { .. })
            && mount.destination != Path::new("/dev")
            && last_at(*index, &mount.destination)
    });
    all.map(|(index, mount)| (index, mount.destination.clone())).collect()
}

/// Asks criu for its version.
///
/// # Errors
/// It is too old.
async fn version_of(dumper: &Dumper, criu: &Path) -> Result<Version> {
    dumper.ask(&Request::version())?;
    let answer = answer_of(dumper, PATIENCE).await?;
    let unclear = || Error::internal(format!("{} does not say its version", criu.display()));
    let version = answer.version.filter(|_| answer.success).ok_or_else(unclear)?;
    if !version.suffices() {
        let (major, minor) = FIRST_VERSION;
        return Err(Error::state(format!(
            "{} is criu {}; {major}.{minor} or newer is needed",
            criu.display(),
            VersionText(&version)
        )));
    }
    Ok(version)
}

/// Waits for criu's answer.
async fn answer_of(dumper: &Dumper, patience: Duration) -> Result<Response> {
    let answer = async {
        loop {
            if let Some(answer) = dumper.take()? {
                return Ok(answer);
            }
            readable(dumper.socket()).await?;
        }
    };
    let answered = tokio::time::timeout(patience, answer).await;
    answered
        .unwrap_or_else(|_| Err(Error::internal(format!("criu did not answer in {patience:?}"))))
}

/// Waits for the report of a clone.
async fn report(visit: Visit) -> Result<Vec<u8>> {
    report_within(visit, VISIT_TIMEOUT).await
}

async fn report_within(mut visit: Visit, patience: Duration) -> Result<Vec<u8>> {
    let report = async {
        loop {
            if let Some(report) = visit.take()? {
                return Ok(report);
            }
            readable(visit.as_fd()).await?;
        }
    };
    let reported = tokio::time::timeout(patience, report).await;
    reported.unwrap_or_else(|_| {
        Err(Error::internal(format!("a clone of the shim did not report in {patience:?}")))
    })
}

/// A container that is being saved. Dropping this value ends that.
struct Saving {
    shim: Arc<Shim>,
    id: String,
    pid: HostPid,
    process: Arc<Process>,
    plan: Arc<Plan>,
    boot: Arc<BootClient>,
    cgroup: Arc<Cgroup>,
    /// Its mounts as they were made, if it has left them.
    made: Option<OwnedFd>,
    was_paused: bool,
    streams: OwnStreams,
    terminal: Option<Size>,
    terminal_number: Option<u32>,
    /// The option that names criu.
    criu: PathBuf,
}

impl Saving {
    /// Begins to save a container that runs or is paused, and that can be saved as far as its
    /// plan says.
    fn begin(shim: &Arc<Shim>, id: &str) -> Result<Self> {
        let mut table = shim.table();
        let container = table.container(id)?;
        savable::check_plan(container)?;
        container.check_not_being_saved()?;
        let was_paused = match container.init.state {
            State::Running(_) => false,
            State::Paused(_) => true,
            _ => return Err(container.not_running()),
        };
        let process = container.init.state.process().cloned();
        let process = process.ok_or_else(|| container.not_running())?;
        let made = container.mounts.left_by_init().map(OwnedFd::try_clone).transpose();
        let size = container.init.io.size()?;
        let saving = Self {
            shim: shim.clone(),
            id: id.to_owned(),
            pid: process.pid,
            process,
            plan: container.plan.clone(),
            boot: container.boot.clone(),
            cgroup: container.cgroup.clone(),
            made: made.context(|| "dup")?,
            was_paused,
            streams: OwnStreams::of(&container.init),
            terminal_number: container.init.io.terminal_number(),
            terminal: size.map(|size| Size { width: size.width, height: size.height }),
            criu: container.options.criu.clone(),
        };
        container.is_being_saved = true;
        Ok(saving)
    }

    /// Looks at the processes.
    fn look(&self, mounts: &MountTable) -> Result<Seen> {
        let boot = self.boot.sandbox.pid();
        let mut members = self.cgroup.pids()?;
        members.retain(|pid| *pid != boot);
        Ok(look(self.pid, &members, mounts, self.terminal_number)?)
    }

    /// Refuses a container that has made mounts itself, which takes CAP_SYS_ADMIN.
    async fn check_mounts(&self, mounts: &MountTable) -> Result<()> {
        match &self.made {
            Some(made) => {
                let made = report(MountTable::of_namespace(made.as_fd())?).await?;
                Ok(mounts.check_unchanged(&MountTable::parse(&made))?)
            }
            None if !savable::may_mount(&self.plan.container) => Ok(()),
            None => Err(Error::state(format!(
                "container {} has CAP_SYS_ADMIN, and the shim does not know which mounts it was \
                 made with: those that it has made itself would be lost",
                self.id
            ))),
        }
    }

    /// Tells which processes are left out.
    fn warn_of_others(&self, seen: &Seen) {
        if seen.beside.is_empty() {
            return;
        }
        let named = |process: &sandbox_core::dump::processes::Named| {
            format!("{} ({})", process.pid.0, process.name)
        };
        let names: Vec<_> = seen.beside.iter().take(20).map(named).collect();
        log::warn!(
            "container {}: the checkpoint has its init and what descends from it; {} processes of \
             execs are not in it: {}",
            self.id,
            seen.beside.len(),
            names.join(", ")
        );
    }

    /// Returns the error of a Checkpoint. If the container is ending, this is the reason.
    fn explain(&self, error: Error) -> Error {
        match self.shim.table().container(&self.id) {
            Ok(container) => container.explain(error),
            Err(_) => self.boot.explain(error),
        }
    }

    /// Ends the container, which is frozen, without a further step of its own.
    fn end_container(&self) {
        let mut table = self.shim.table();
        let Ok(container) = table.container(&self.id) else { return };
        // Published first, so that this SIGKILL is not mistaken for an OOM kill.
        oom::publish(&self.shim, container, false);
        exits::ensure_exit_is_published(&self.shim, ProcessId::init(&self.id), &self.process);
        let killed = self.process.signal(Signal::KILL.as_raw());
        if let Err(error) = killed.map_err(Error::from).and_then(|()| thaw_for_good(container)) {
            log::warn!("container {}: {error}", self.id);
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if let Ok(container) = self.shim.table().container(&self.id) {
            container.is_being_saved = false;
        }
    }
}

/// Thaws a container that was sent SIGKILL: on cgroup version 1, frozen processes do not die.
fn thaw_for_good(container: &mut Container) -> Result<()> {
    let cgroup = container.cgroup.clone();
    match container.init.state {
        State::Paused(_) => container.init.state.resume(|| Ok(cgroup.thaw_if_there()?)),
        _ => Ok(cgroup.thaw_if_there()?),
    }
}

/// A time in which the container is frozen. criu may thaw it. Afterwards it is frozen or runs as
/// before.
struct Frozen<'a> {
    saving: &'a Saving,
    /// Whether it was put back, or is to end.
    ended: bool,
}

impl<'a> Frozen<'a> {
    fn begin(saving: &'a Saving) -> Result<Self> {
        if !saving.was_paused {
            saving.cgroup.freeze()?;
        }
        Ok(Self { saving, ended: false })
    }

    /// Returns the cgroup's directory in the hierarchy of the freezer.
    fn cgroup_path(&self) -> Result<String> {
        let directory = self.saving.cgroup.directory("freezer").and_then(Path::to_str);
        let missing = || Error::internal("the container has no cgroup with a freezer");
        directory.map(str::to_owned).ok_or_else(missing)
    }

    /// Puts it back.
    fn end<T>(mut self) -> Result<Option<T>> {
        self.ended = true;
        self.put_back().map(|()| None)
    }

    /// Leaves it as it is: the container ends.
    fn leave(mut self) {
        self.ended = true;
    }

    fn put_back(&self) -> Result<()> {
        let Saving { shim, id, cgroup, was_paused, .. } = self.saving;
        // One that has ended meanwhile was thawed for good.
        let is_paused = shim.table().container(id).is_ok_and(|its| its.init.state.is_frozen());
        match *was_paused && is_paused {
            true if cgroup.is_frozen()? => Ok(()),
            true => Ok(cgroup.freeze()?),
            false => Ok(cgroup.thaw_if_there()?),
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Err(error) = self.put_back() {
            log::warn!("container {}: {error}", self.saving.id);
        }
    }
}

/// The folder that the image goes to.
struct Folder {
    path: PathBuf,
    images: OwnedFd,
    work: Option<(PathBuf, OwnedFd)>,
}

impl Folder {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// It has an image in it.
    fn make(path: &Path, work: Option<&Path>) -> Result<Self> {
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "path {path:?}: expected the absolute path of a folder for the checkpoint"
            )));
        }
        let images = make_folder(path)?;
        let work = work.map(|work| Ok::<_, Error>((work.to_owned(), make_folder(work)?)));
        let folder = Self { path: path.to_owned(), images, work: work.transpose()? };
        match folder.files()?.into_iter().find(|name| is_part_of_image(name)) {
            None => Ok(folder),
            Some(name) => Err(Error::exists(format!(
                "{} has a checkpoint in it already ({name}); name another folder",
                path.display()
            ))),
        }
    }

    /// Returns the number by which criu, whose socket this process has made, finds the folder.
    fn number(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.images.as_raw_fd()
    }

    fn number_of_work(&self) -> Option<i32> {
        use std::os::fd::AsRawFd;
        self.work.as_ref().map(|(_, work)| work.as_raw_fd())
    }

    fn files(&self) -> Result<Vec<String>> {
        let what = || format!("list {}", self.path.display());
        let entries = fs::read_dir(&self.path).context(what)?;
        let name = |entry: std::io::Result<fs::DirEntry>| -> Result<String> {
            Ok(entry.context(what)?.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect()
    }

    /// Returns the error that criu has failed with, by its log.
    fn error(&self, answer: &Response) -> Error {
        let (path, folder) = match &self.work {
            Some((path, folder)) => (path, folder),
            None => (&self.path, &self.images),
        };
        let log = open_regular(folder.as_fd(), LOG).map(log_tail).unwrap_or_default();
        let why = last_error(&log).unwrap_or_else(|| answer.failure());
        Error::internal(format!(
            "criu could not save the container, which goes on as before: {why} (its log is {})",
            path.join(LOG).display()
        ))
    }

    /// Gives the files that criu has made to root. It ran as another user.
    fn take_over(&self) -> Result<()> {
        let work = self.work.as_ref().map(|(_, work)| work);
        let names = self.files()?;
        let in_images = names.iter().map(|name| (&self.images, name.as_str()));
        for (folder, name) in in_images.chain(work.map(|work| (work, LOG))) {
            let what = || format!("chown {name} of the checkpoint");
            let file = open_regular(folder.as_fd(), name)?;
            fchown(&file, Some(0), Some(0)).context(what)?;
        }
        Ok(())
    }

    /// Removes what a failed Checkpoint has made, but for the log.
    fn clear(&self) {
        for name in self.files().unwrap_or_default() {
            if is_part_of_image(&name) || name.starts_with("stats-") {
                let _ = unlinkat(&self.images, &name, AtFlags::empty());
            }
        }
    }
}

fn make_folder(path: &Path) -> Result<OwnedFd> {
    let what = || format!("make the folder {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(path).context(what)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context(what)
}

fn is_part_of_image(name: &str) -> bool {
    let is_archive = name.starts_with("tmpfs-") && name.ends_with(".tar");
    is_archive
        || name.ends_with(".img")
        || name.ends_with(".img.new")
        || name.starts_with(sandbox_core::checkpoint::manifest::NAME)
}
