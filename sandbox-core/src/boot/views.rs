//! Serves the views of the pod's containers, and has the shim open what they are made from.
//!
//! ```text
//!   somebody looks ──▶ are the container's files there? ──▶ read them, answer
//!                        └ no: ask the shim, once; the look waits ──▶ they come ──▶ answer
//! ```
//! boot alone answers what a newborn asks while it binds its views, so boot never waits for a
//! newborn.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Boot;
use super::events::VIEWS as TOKEN;
use crate::container::own_id::OwnId;
use crate::container::paths::{PROC, VIEWS};
use crate::container::steps::views::Which;
use crate::control::donation::Birth;
use crate::control::message::{Upward, ViewFile};
use crate::cpu_set::CpuSet;
use crate::error::{Context, Error, Result};
use crate::spec::plan::{ContainerPlan, Views as Counting};
use crate::sys::mount::{FsContext, attach_at};
use crate::types::ViewSource;
use crate::views::File;
use crate::views::files::{self, OwnState};
use crate::views::fuse::{Answer, Content, Served, Server, Sysfs, Unanswered};
use crate::views::host::Host;
use crate::views::sources::Sources;

/// The views of all containers of the pod.
pub(super) struct Views {
    /// `None` if containers see the kernel's files.
    server: Option<Server>,
    told: Told,
    /// The number of containers that there ever were.
    ever: u32,
    /// Whether cgroups are of version 2.
    v2: bool,
}

/// What containers are told.
struct Told {
    host: Host,
    sysfs_cpu: Option<OwnedFd>,
    sysfs_node: Option<OwnedFd>,
    containers: HashMap<u32, Container>,
    /// Whether the kernel's `possible` is told: a pod without a user namespace may use bpf(2),
    /// which copies as many numbers as the kernel has CPUs.
    all_possible: bool,
    /// Those at whose views somebody looks whose files are not there.
    to_ask: RefCell<Vec<u32>>,
}

struct Container {
    id: String,
    counting: Counting,
    sources: Collected,
    state: OwnState,
}

/// The files that a container's views are made from.
enum Collected {
    /// Nobody has looked.
    Nothing,
    /// They are on their way.
    Some {
        own: Vec<(ViewSource, OwnedFd)>,
        above: Vec<(ViewSource, OwnedFd)>,
    },
    All(Sources),
}

impl Views {
    /// Mounts the file system, if there is a device. Without one, or if that fails, containers
    /// see the kernel's files.
    pub(super) fn mount(device: Option<OwnedFd>, birth: &Birth, owner: OwnId) -> Self {
        let told = Told {
            host: Host::new(PROC),
            sysfs_cpu: None,
            sysfs_node: None,
            containers: HashMap::new(),
            all_possible: birth.mappings.is_none(),
            to_ask: RefCell::default(),
        };
        let serve = || {
            let missing = || Error::internal("/dev/fuse cannot be opened");
            serve(device.ok_or_else(missing)?, owner)
        };
        let warn =
            |error: &Error| log::warn!("no views, containers see the kernel's files: {error}");
        let server = birth.views.then(serve).and_then(|server| server.inspect_err(warn).ok());
        Self { server, told, ever: 0, v2: birth.cgroup_v2 }
    }

    /// Returns what to watch.
    pub(super) fn device(&self) -> Option<BorrowedFd<'_>> {
        self.server.as_ref().map(Server::as_fd)
    }

    /// Adds a container. Returns the views that it gets, if any.
    pub(super) fn add(&mut self, plan: &ContainerPlan) -> Option<Which> {
        let counting = plan.views?;
        let server = self.server.as_mut()?;
        self.ever += 1;
        server.add_container(self.ever);
        plan.masked_paths.iter().for_each(|path| server.hide(self.ever, path));
        let container = Container {
            id: plan.id.clone(),
            counting,
            sources: Collected::Nothing,
            state: OwnState::default(),
        };
        self.told.containers.insert(self.ever, container);
        Some(Which { serial: self.ever, pressure: self.v2 })
    }

    /// Looks at what a container's views are made from. If that is not there,
    /// [`Boot::ask_for_sources`] asks for it.
    pub(super) fn look<T>(
        &mut self,
        id: &str,
        make: impl FnOnce(&Sources, &mut Host, &mut OwnState) -> std::io::Result<T>,
    ) -> Answer<T> {
        let serial = self.told.number_of(id).ok_or(Errno::STALE)?;
        self.told.answer(serial, make)
    }

    /// Removes a container. Who still reads is refused.
    pub(super) fn remove(&mut self, id: &str) {
        let Some(serial) = self.told.number_of(id) else { return };
        self.told.containers.remove(&serial);
        if let Some(server) = &mut self.server {
            server.remove_container(serial);
        }
    }
}

/// Mounts the file system at [`VIEWS`].
fn serve(device: OwnedFd, owner: OwnId) -> Result<Server> {
    use std::os::fd::AsRawFd;
    let what = || "mount the views";
    let root = owner.container_root();
    let context = FsContext::open("fuse").context(what)?;
    for (key, value) in [
        ("source", "views".to_owned()),
        // Before Linux 6.11 it takes no descriptor as such.
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40555".to_owned()),
        ("user_id", root.uid.to_string()),
        ("group_id", root.gid.to_string()),
    ] {
        context.string(key, &value).context(what)?;
    }
    for key in ["allow_other", "default_permissions", "ro"] {
        context.flag(key).context(what)?;
    }
    context.create().context(what)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = context.mount(attributes).context(what)?;
    attach_at(&mount, VIEWS).context(what)?;
    Server::new(device, (root.uid, root.gid)).context(what)
}

impl Told {
    fn number_of(&self, id: &str) -> Option<u32> {
        self.containers.iter().find_map(|(serial, c)| (c.id == id).then_some(*serial))
    }

    /// Answers from a container's files, once they are there.
    fn answer<T>(
        &mut self,
        serial: u32,
        make: impl FnOnce(&Sources, &mut Host, &mut OwnState) -> std::io::Result<T>,
    ) -> Answer<T> {
        let Self { host, containers, to_ask, .. } = self;
        let container = containers.get_mut(&serial).ok_or(Errno::STALE)?;
        match &mut container.sources {
            Collected::All(sources) => make(sources, host, &mut container.state)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO).into()),
            _ => {
                to_ask.borrow_mut().push(serial);
                Err(Unanswered::Wait)
            }
        }
    }
}

impl Content for Told {
    fn text(&mut self, serial: u32, file: File, kernels: Option<&[u8]>) -> Answer<Vec<u8>> {
        let all_possible = self.all_possible;
        self.answer(serial, |sources, host, state| match kernels {
            None => files::text(file, sources, host, state),
            Some(kernels) if all_possible && file == File::CpuPossible => Ok(kernels.to_vec()),
            Some(kernels) => files::text_of_kernels(file, kernels, sources, host),
        })
    }

    fn cpus(&mut self, serial: u32) -> Answer<CpuSet> {
        self.answer(serial, |sources, host, _| Ok(sources.cpus(host)?.told))
    }

    fn sysfs(&self, serial: u32) -> Answer<Sysfs<'_>> {
        if let Some(cpu) = &self.sysfs_cpu {
            let node = self.sysfs_node.as_ref().map(AsFd::as_fd);
            return Ok(Sysfs { cpu: cpu.as_fd(), node });
        }
        let container = self.containers.get(&serial).ok_or(Errno::STALE)?;
        if matches!(container.sources, Collected::All(_)) {
            return Err(Errno::NOENT.into());
        }
        self.to_ask.borrow_mut().push(serial);
        Err(Unanswered::Wait)
    }
}

impl Boot {
    /// Answers who looks at views.
    pub(super) fn serve_views(&mut self) {
        let Views { server, told, .. } = &mut self.views;
        let Some(open) = server.as_mut() else { return };
        let served = open.serve_some(told);
        self.served(served);
    }

    /// Takes files that the shim has opened.
    pub(super) fn collect_view_sources(
        &mut self,
        id: &str,
        opened: Vec<ViewFile>,
        descriptors: Vec<OwnedFd>,
    ) {
        let told = &mut self.views.told;
        let mut of_container = told.containers.values_mut().find(|container| container.id == id);
        for (file, descriptor) in opened.into_iter().zip(descriptors) {
            let sources = of_container.as_mut().map(|container| &mut container.sources);
            match (file, sources) {
                (ViewFile::SysfsCpu, _) => told.sysfs_cpu = Some(descriptor),
                (ViewFile::SysfsNode, _) => told.sysfs_node = Some(descriptor),
                (ViewFile::Own(source), Some(Collected::Some { own, .. })) => {
                    own.push((source, descriptor));
                }
                (ViewFile::Above(source), Some(Collected::Some { above, .. })) => {
                    above.push((source, descriptor));
                }
                // The container is gone.
                _ => {}
            }
        }
    }

    /// Answers who waits for a container's views, now that all files are there.
    pub(super) fn resume_views(&mut self, id: &str) {
        let Views { server, told, v2, .. } = &mut self.views;
        let Some(serial) = told.number_of(id) else { return };
        let Some(container) = told.containers.get_mut(&serial) else { return };
        if let Collected::Some { own, above } = &mut container.sources {
            let sources = Sources::new(*v2, mem::take(own), mem::take(above));
            let Counting { cpu_from_quota, cpu_minimum } = container.counting;
            container.sources = Collected::All(sources.counting(cpu_from_quota, cpu_minimum));
        }
        if let Some(server) = server {
            server.resume(serial, told);
            self.ask_for_sources();
        }
        self.answer_waiting(id);
    }

    /// Asks the shim for what is missing, and ends the service that the kernel has ended.
    fn served(&mut self, served: std::io::Result<Served>) {
        self.ask_for_sources();
        match served {
            Ok(Served::Open) => return,
            Ok(Served::Ended) => log::error!("the kernel has ended the views"),
            Err(error) => log::error!("no views any more: {error}"),
        }
        if let Some(server) = self.views.server.take() {
            self.events.forget(server.as_fd());
        }
    }

    /// Asks the shim for the files of each container whose views somebody looks at for the first
    /// time.
    pub(super) fn ask_for_sources(&mut self) {
        let told = &mut self.views.told;
        let mut asked = Vec::new();
        for serial in told.to_ask.take() {
            let Some(container) = told.containers.get_mut(&serial) else { continue };
            if let nothing @ Collected::Nothing = &mut container.sources {
                *nothing = Collected::Some { own: Vec::new(), above: Vec::new() };
                asked.push(container.id.clone());
            }
        }
        for container in asked {
            self.send(&Upward::ViewSources { container });
        }
    }

    /// Watches for who looks at views.
    pub(super) fn watch_views(&self) -> Result<()> {
        self.views.device().map_or(Ok(()), |device| self.events.watch(device, TOKEN))
    }
}
