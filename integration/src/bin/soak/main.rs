//! Asks a containerd for everything, at random, from several clients, while processes are
//! killed and stopped, and checks each answer: `ci/soak` says how to run it.
//!
//! ```text
//!   clients ── requests ──▶ containerd ──▶ shims ──▶ sandboxes
//!      │                        ▲            ▲          ▲
//!      │  lives, with           └── faults ──┴──────────┘
//!      │  their histories       (kill, stop, go on)
//!      ▼
//!   world: what was asked, what was wrong       events: each once, and in order
//! ```
//! A *life* is that of one container or pod, from its creation to its deletion (`containers`,
//! `pods`). Who was struck by a fault may answer anything, but is deleted in the end, and leaves
//! nothing.

mod api;
mod containers;
mod events;
mod faults;
mod history;
mod long_life;
mod pods;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use integration::containerd::{Containerd, Version};
use integration::state_mount::StateMount;
use integration::{image, leaks};

use api::Api;
use events::Events;
use world::World;

/// What is to be done.
#[derive(Clone, Debug)]
struct Order {
    duration: Duration,
    clients: u64,
    seed: u64,
    faults: bool,
    /// One container that lives for long, instead.
    long_life: bool,
}

const USAGE: &str =
    "usage: soak MINUTES [--seed NUMBER] [--clients NUMBER] [--calm]\n       soak --long-life";

fn main() -> ExitCode {
    let order = match parse(&mut std::env::args().skip(1)) {
        Ok(order) => order,
        Err(what) => {
            eprintln!("soak: {what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // CRI asks for sandboxes in two ways: of itself, and of the shim, if that has such a service.
    let first = Containerd::start(Version::V2_1);
    let second = if first.runtime_name().contains("palisade") {
        Containerd::start_with_sandboxer()
    } else {
        Containerd::start(Version::V2_1)
    };
    let daemons = [first, second];
    for daemon in &daemons {
        daemon.prepare_cri();
        let root = containers::root(daemon);
        std::fs::create_dir(&root).expect("make a directory");
        image::unpack_busybox(&root);
    }
    let world = Arc::new(World::new(order.seed));
    let states: Vec<StateMount> = daemons.iter().map(StateMount::on).collect();
    let mut level = true;
    if order.long_life {
        let times = long_life::Times::MANY;
        level = long_life::live(&Api::new(&daemons[0], &world), times);
    } else {
        soak(&daemons, &states, &world, &order);
    }
    // A shim whose client has given up ends itself once it has had nothing to do for a while.
    let until = Instant::now() + Duration::from_secs(60);
    let is_clear = |daemon: &Containerd| leaks::left_of(&daemon.traces()).is_empty();
    while !daemons.iter().all(is_clear) && Instant::now() < until {}
    drop(states);
    let left: Vec<String> = daemons.into_iter().flat_map(Containerd::end).collect();
    if world.report(&left) && level { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lets all clients live, while faults strike, until the time is over.
fn soak(daemons: &[Containerd], states: &[StateMount], world: &Arc<World>, order: &Order) {
    println!(
        "soak: {} s, {} clients, seed {}, {}",
        order.duration.as_secs(),
        order.clients,
        order.seed,
        if order.faults { "with faults" } else { "calm" }
    );
    let events: Vec<Arc<Events>> =
        daemons.iter().map(|daemon| Events::follow(daemon, world)).collect();
    let until = Instant::now() + order.duration;
    std::thread::scope(|scope| {
        for client in 0..order.clients {
            let daemon = &daemons[usize::try_from(client).unwrap_or(0) % daemons.len()];
            let events = &events[usize::try_from(client).unwrap_or(0) % daemons.len()];
            scope.spawn(move || live(client, daemon, events, world, order, until));
        }
        if order.faults {
            scope.spawn(|| faults::strike(daemons, states, world, order.seed, until));
        }
    });
    for events in &events {
        events.end();
    }
    // Whatever strikes, no shim takes it for an attack.
    let is_blamed =
        |line: &&str| line.contains("the sandbox process of") && line.contains(" was killed: ");
    for daemon in daemons {
        daemon.log().lines().filter(is_blamed).for_each(|line| world.wrong_in_a_log(line));
    }
}

/// One client: one life after the other.
fn live(
    client: u64,
    daemon: &Containerd,
    events: &Arc<Events>,
    world: &Arc<World>,
    order: &Order,
    until: Instant,
) {
    let mut chance = fastrand::Rng::with_seed(order.seed.wrapping_add(client << 32));
    let api = Api::new(daemon, world);
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let name = format!("c{client}-{number}");
        // CRI takes longer, so that about half of the time is its.
        if chance.u8(..4) == 0 {
            pods::live(&api, &name, &mut chance);
        } else {
            containers::live(&api, events, &name, &mut chance);
        }
    }
}

fn parse(args: &mut dyn Iterator<Item = String>) -> Result<Order, String> {
    let nanoseconds = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
    let mut order = Order {
        duration: Duration::ZERO,
        clients: 6,
        seed: u64::from(nanoseconds),
        faults: true,
        long_life: false,
    };
    while let Some(arg) = args.next() {
        let mut number = |flag: &str| {
            let text = args.next().ok_or_else(|| format!("{flag}: a number is missing"))?;
            text.parse::<u64>().map_err(|_| format!("{flag} {text:?}: expected a number"))
        };
        match arg.as_str() {
            "--seed" => order.seed = number("--seed")?,
            "--clients" => order.clients = number("--clients")?.max(1),
            "--calm" => order.faults = false,
            "--long-life" => order.long_life = true,
            minutes => {
                let minutes = minutes.parse::<f64>().ok().filter(|m| *m > 0.0 && *m < 100_000.0);
                let minutes = minutes.ok_or_else(|| format!("{arg:?}: expected minutes"))?;
                order.duration = Duration::from_secs_f64(minutes * 60.0);
            }
        }
    }
    if order.duration.is_zero() && !order.long_life {
        return Err("for how many minutes?".to_owned());
    }
    Ok(order)
}
