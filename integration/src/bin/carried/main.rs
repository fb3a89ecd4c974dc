//! Sets up one of everything that a checkpoint carries: threads, sessions, timers, sockets,
//! locks, deleted files, memory of all kinds, and what a process is allowed. Tests run it in a
//! container, save it, bring it back elsewhere, and let it look at itself.
//!
//! After everything is set up it prints `ready`. For each line on its standard input, and for
//! each SIGUSR1, it looks at everything again and prints `ok NAME` or `wrong NAME: WHY` for
//! each thing, then `done N`, the N-th time.
//!
//! `carried [--memory MIB] [--volume FOLDER] [--port FIRST] [--ready FILE] [--only NAME,...]
//! [--without NAME,...]`: how much memory to fill, a folder on a volume (without one, what is
//! named `volume-...` is left out), the first of the ports to listen on, a file to write once
//! it is ready, and which things to set up.

mod allowed;
mod descriptors;
mod files;
mod memory;
mod processes;
mod signals;
mod sockets;
mod system_v;
mod timers;

use std::error::Error;
use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Looks whether a thing is as it was set up.
type Check = Box<dyn FnMut() -> Result<()>>;

/// Sets a thing up.
type SetUp = fn(&Given) -> Result<Check>;

/// All things, in the order in which they are set up: `memory-of-child` forks, which takes a
/// process with one thread; what other things change of the process itself comes last.
const THINGS: &[(&str, SetUp)] = &[
    ("memory-of-child", memory::shared_with_child),
    ("memory", memory::filled),
    ("memory-of-file", memory::of_file),
    ("memory-of-shm", memory::of_shm),
    ("memory-protected", memory::protected),
    ("child", processes::child_of_same_session),
    ("group", processes::group),
    ("session", processes::session),
    ("daemon", processes::daemon),
    ("zombie", processes::zombie),
    ("stopped", processes::stopped),
    ("threads", processes::threads),
    ("pidfd", processes::pidfd),
    ("clock", timers::clock),
    ("timerfd", timers::far),
    ("timerfd-ticking", timers::ticking),
    ("itimer", timers::interval_timer),
    ("posix-timer", timers::posix),
    ("epoll", descriptors::epoll),
    ("eventfd", descriptors::eventfd),
    ("pipe", descriptors::pipe),
    ("fifo", descriptors::fifo),
    ("memfd", descriptors::memfd),
    ("devices", descriptors::devices),
    ("numbers", descriptors::numbers),
    ("tcp", sockets::tcp),
    ("tcp6", sockets::tcp6),
    ("udp", sockets::udp),
    ("tcp-established", sockets::established),
    ("unix-path", sockets::unix_path),
    ("unix-abstract", sockets::unix_abstract),
    ("unix-connected", sockets::unix_connected),
    ("unix-pair", sockets::unix_pair),
    ("unix-messages", sockets::unix_messages),
    ("position", files::position),
    ("deleted", files::deleted),
    ("flock", files::flock),
    ("lock", files::lock),
    ("directory", files::directory),
    ("run", files::run),
    ("shm", files::shm),
    ("volume-file", files::volume_file),
    ("volume-deleted", files::volume_deleted),
    ("volume-flock", files::volume_flock),
    ("volume-inotify", files::volume_inotify),
    ("shared-memory", system_v::shared_memory),
    ("semaphores", system_v::semaphores),
    ("messages", system_v::messages),
    ("signal-handlers", signals::handlers),
    ("signal-mask", signals::mask),
    ("signal-pending", signals::pending),
    ("environment", allowed::environment),
    ("command-line", allowed::command_line),
    ("host-name", allowed::host_name),
    ("user", allowed::user),
    ("groups", allowed::groups),
    ("capabilities", allowed::capabilities),
    ("no-new-privs", allowed::no_new_privs),
    ("seccomp", allowed::seccomp),
    ("umask", allowed::umask),
    ("rlimits", allowed::rlimits),
    ("cwd", allowed::cwd),
    ("nice", allowed::nice),
    ("oom-score", allowed::oom_score),
];

/// What the caller gives.
struct Given {
    memory: usize,
    volume: Option<PathBuf>,
    port: u16,
    ready: Option<PathBuf>,
    only: Vec<String>,
    without: Vec<String>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, role] = &args[..]
        && flag == "--child"
    {
        return processes::be_child(role);
    }
    let given = given(&args);
    let mut usr1 = signals::block();
    let mut things: Vec<(&str, Check)> = THINGS
        .iter()
        .filter(|(name, _)| given.wants(name))
        .map(|thing| set_up(thing, &given))
        .collect();
    println!("ready");
    if let Some(ready) = &given.ready {
        fs::write(ready, "ready\n").unwrap_or_else(|e| panic!("write {}: {e}", ready.display()));
    }
    let mut input = Some(std::io::stdin());
    let mut round = 0;
    while asked(&mut input, &mut usr1) {
        for (name, check) in &mut things {
            match check() {
                Ok(()) => println!("ok {name}"),
                Err(why) => println!("wrong {name}: {why}"),
            }
        }
        round += 1;
        println!("done {round}");
    }
}

fn set_up((name, set_up): &(&'static str, SetUp), given: &Given) -> (&'static str, Check) {
    match set_up(given) {
        Ok(check) => (name, check),
        Err(why) => {
            println!("cannot set up {name}: {why}");
            std::process::exit(1);
        }
    }
}

/// Waits for a line on the standard input or a signal. Returns whether there can be more.
fn asked(input: &mut Option<std::io::Stdin>, usr1: &mut SignalFd) -> bool {
    loop {
        let mut polled = vec![PollFd::new(&*usr1, PollFlags::IN)];
        if let Some(input) = &*input {
            polled.push(PollFd::new(input, PollFlags::IN));
        }
        match poll(&mut polled, None) {
            Ok(_) => {}
            // What the handlers of `signals` do, and a checkpoint.
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("poll: {error}"),
        }
        let [by_signal, by_line] =
            [0, 1].map(|at| polled.get(at).is_some_and(|p| !p.revents().is_empty()));
        if by_signal {
            usr1.read_signal().expect("read a signalfd");
            return true;
        }
        if by_line && let Some(open) = input {
            match open.read(&mut [0; 256]) {
                // Nothing more comes this way; a signal still can.
                Ok(0) => *input = None,
                Ok(_) => return true,
                Err(error) => panic!("read the standard input: {error}"),
            }
        }
    }
}

fn given(args: &[String]) -> Given {
    let mut given = Given {
        memory: 1,
        volume: None,
        port: 7000,
        ready: None,
        only: Vec::new(),
        without: Vec::new(),
    };
    let names = |list: &str| list.split(',').map(str::to_owned).collect();
    for pair in args.chunks(2) {
        let [flag, value] = pair else { panic!("{} takes a value", pair[0]) };
        match flag.as_str() {
            "--memory" => given.memory = value.parse().expect("--memory takes a number of MiB"),
            "--volume" => given.volume = Some(value.into()),
            "--port" => given.port = value.parse().expect("--port takes a port"),
            "--ready" => given.ready = Some(value.into()),
            "--only" => given.only = names(value),
            "--without" => given.without.extend::<Vec<_>>(names(value)),
            _ => panic!("{flag}: --memory, --volume, --port, --ready, --only or --without"),
        }
    }
    for name in given.only.iter().chain(&given.without) {
        assert!(THINGS.iter().any(|(known, _)| known == name), "no thing is named {name}");
    }
    given
}

impl Given {
    fn wants(&self, name: &str) -> bool {
        let has = |list: &[String]| list.iter().any(|listed| listed == name);
        (self.only.is_empty() || has(&self.only))
            && !has(&self.without)
            && (self.volume.is_some() || !name.starts_with("volume-"))
    }

    /// Returns a path on the volume.
    fn on_volume(&self, name: &str) -> PathBuf {
        self.volume.as_ref().expect("things of the volume are set up with one").join(name)
    }
}

/// Compares what is with what was.
fn same<T: PartialEq + Debug>(what: &str, is: T, was: T) -> Result<()> {
    if is == was {
        return Ok(());
    }
    Err(format!("{what} was {was:?} and is {is:?}").into())
}

/// Returns fields of /proc/self/status.
fn status(names: &[&str]) -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let lines = text
        .lines()
        .filter(|line| line.split_once(':').is_some_and(|(name, _)| names.contains(&name)));
    Ok(lines.map(str::to_owned).collect())
}

/// Makes a check that a text read from somewhere is what it is now.
fn stays(what: &'static str, read: impl Fn() -> Result<String> + 'static) -> Result<Check> {
    let was = read()?;
    Ok(Box::new(move || same(what, read()?, was.clone())))
}
