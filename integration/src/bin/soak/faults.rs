//! Kills and stops processes at random.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use integration::containerd::Containerd;
use integration::host::HostProcess;
use integration::sandbox::{sandboxes_of, shim_above};
use integration::slot::Slot;
use integration::state_mount::StateMount;
use integration::{cgroup, host};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, Uid, getrlimit, prlimit};
use rustix::thread::set_thread_res_uid;
use sandbox_core::sys::namespace;

use crate::history::Life;
use crate::world::World;

/// Strikes until the time is over.
pub fn strike(
    daemons: &[Containerd],
    states: &[StateMount],
    world: &Arc<World>,
    seed: u64,
    until: Instant,
) {
    let mut chance = Rng::with_seed(!seed);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(chance.u64(20..400)));
        match chance.u8(..64) {
            0 => kill_daemon(&daemons[chance.usize(..daemons.len())], world),
            1 => stop_daemon(&daemons[chance.usize(..daemons.len())], world, &mut chance),
            2 => fill(&states[chance.usize(..states.len())], world, &mut chance),
            _ => strike_life(daemons[0].slot(), world, &mut chance),
        }
    }
}

/// Fills the file system of a daemon's state for a while.
fn fill(state: &StateMount, world: &World, chance: &mut Rng) {
    world.count("fault: the state's file system is full for a while");
    world.begin_outage();
    state.fill_but(chance.usize(..4));
    std::thread::sleep(Duration::from_millis(chance.u64(50..500)));
    state.empty();
    world.end_outage();
}

fn kill_daemon(daemon: &Containerd, world: &World) {
    world.count("fault: containerd is killed");
    world.begin_outage();
    daemon.kill();
    daemon.launch();
    // CRI takes a little longer, and refuses requests until then.
    daemon.prepare_cri();
    world.end_outage();
}

/// A daemon that is stopped for less than its clients wait gives the same answers later.
fn stop_daemon(daemon: &Containerd, world: &World, chance: &mut Rng) {
    world.count("fault: containerd is stopped for a while");
    pause(daemon.pid(), chance);
}

/// Strikes one of the lives, or a pod's shim.
fn strike_life(slot: &Slot, world: &World, chance: &mut Rng) {
    let lives: Vec<Arc<Life>> =
        world.lives().into_iter().filter(|life| life.init.load(Ordering::SeqCst) > 0).collect();
    if lives.is_empty() {
        return;
    }
    let life = &lives[chance.usize(..lives.len())];
    let init = life.init.load(Ordering::SeqCst);
    match chance.u8(..8) {
        0 => {
            world.count("fault: init is killed");
            life.strike("its init is killed", false);
            end(init);
        }
        1 => {
            let exec = life.exec.load(Ordering::SeqCst);
            if exec > 0 {
                world.count("fault: an exec is killed");
                life.strike("its exec is killed", false);
                end(exec);
            }
        }
        2 => {
            if let Some(shim) = shim_above(init) {
                world.count("fault: a shim is killed");
                life.strike("its shim is killed", true);
                end(shim.pid);
            }
        }
        3 => {
            if let Some(helper) = helper_of(init, chance) {
                world.count(&format!("fault: {} is killed", role(&helper)));
                life.strike(&format!("{} is killed", role(&helper)), false);
                end(helper.pid);
            }
        }
        4 => {
            let shim = shim_above(init);
            let struck = if chance.bool() { shim } else { helper_of(init, chance) };
            if let Some(struck) = struck {
                let fault = format!("{} has no descriptors left for a while", role(&struck));
                life.strike(&fault, false);
                if let Some(few) = Few::begin(struck.pid, chance) {
                    world.count(&format!("fault: {fault}"));
                    std::thread::sleep(Duration::from_millis(chance.u64(10..1000)));
                    drop(few);
                }
            }
        }
        5 if cgroup::Driver::of_tests() == cgroup::Driver::Cgroupfs => {
            if let Some(shim) = shim_above(init) {
                world.count("fault: a shim's cgroup has no memory left for a while");
                // The kernel kills it, or what it starts, or refuses what is asked of it.
                life.strike("its shim's cgroup has no memory left", true);
                take_memory(slot, &shim, chance);
                if host::process(shim.pid).is_none() {
                    world.count("a shim ended as its cgroup had no memory left");
                }
            }
        }
        6 => {
            if let Some(shim) = shim_above(init) {
                world.count("fault: a shim is stopped for a while");
                life.note("FAULT: its shim is stopped for a while");
                pause(shim.pid, chance);
            }
        }
        _ => {
            if let Some(helper) = helper_of(init, chance) {
                world.count(&format!("fault: {} is stopped for a while", role(&helper)));
                life.note(format!("FAULT: {} is stopped for a while", role(&helper)));
                pause(helper.pid, chance);
            }
        }
    }
}

/// Returns one of the processes that a shim has for its pod.
fn helper_of(init: i32, chance: &mut Rng) -> Option<HostProcess> {
    let helpers = sandboxes_of(shim_above(init)?.pid);
    (!helpers.is_empty()).then(|| helpers[chance.usize(..helpers.len())].clone())
}

fn role(helper: &HostProcess) -> &'static str {
    let is = |place: usize, what: &str| helper.args.get(place).is_some_and(|a| a.contains(what));
    match (is(0, "containerd-shim"), is(1, "gofer")) {
        (true, _) => "a shim",
        (_, true) => "a gofer",
        _ => "boot",
    }
}

/// A process that ended meanwhile is left alone.
fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// The time in which a process can open a few files more, and no other.
struct Few {
    pid: i32,
    before: Rlimit,
}

impl Few {
    /// Begins it. `None` if the process has ended.
    fn begin(pid: i32, chance: &mut Rng) -> Option<Self> {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        // All have the hard limit of their containerd, and that has this process's. It stays.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let few = Rlimit { current: Some(open + chance.u64(..8)), maximum };
        Some(Self { pid, before: limit(pid, few)? })
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let _ = limit(self.pid, self.before);
    }
}

/// Sets the limits of open files of a process, and returns those that it had. `None` if it has
/// ended.
fn limit(pid: i32, limits: Rlimit) -> Option<Rlimit> {
    let _maker = AsMaker::begin(pid)?;
    prlimit(Some(rustix::process::Pid::from_raw(pid)?), Resource::Nofile, limits).ok()
}

/// The time in which this thread's effective user is the maker of the user namespace of a process,
/// who may set limits there: root has no CAP_SYS_RESOURCE everywhere.
struct AsMaker;

impl AsMaker {
    fn begin(pid: i32) -> Option<Self> {
        let users = fs::File::open(format!("/proc/{pid}/ns/user")).ok()?;
        let maker = namespace::maker(users).ok()?;
        set_thread_res_uid(Uid::ROOT, Uid::from_raw(maker), Uid::ROOT).ok()?;
        Some(Self)
    }
}

impl Drop for AsMaker {
    fn drop(&mut self) {
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).expect("be root again");
    }
}

/// Moves a process into a cgroup in which it gets next to no more memory, and back if it lives on.
fn take_memory(slot: &Slot, process: &HostProcess, chance: &mut Rng) {
    let before = host::cgroup_directory_of(process, "memory");
    let name = format!("narrow-{}", process.pid);
    let narrow = cgroup::Narrow::new(slot, &name, chance.u64(1..64) << 12);
    if narrow.take(process.pid) {
        std::thread::sleep(Duration::from_millis(chance.u64(10..1000)));
        narrow.let_go(&before);
    }
}

fn pause(pid: i32, chance: &mut Rng) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(chance.u64(10..1000)));
    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
}
