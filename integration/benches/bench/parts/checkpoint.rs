//! One container is saved, and brought back as another: a small one, and one with 100 MiB. criu must
//! be in PATH (`ci/criu` prints where it is).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CreateTaskRequest, CreateTaskResponse, Empty,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use integration::{container, wait};

use super::burst::tolerated;
use crate::Bench;
use crate::bundle::{Bundle, Shape};
use crate::lab::Lab;
use crate::runtime::Runtime;
use crate::shim::{self, Process, Shim, watch};

const PART: &str = "checkpoint";

/// What is saved: a name, and the bytes that it holds beside its own.
const SIZES: [(&str, usize); 2] = [("small", 0), ("100 MiB", 100)];

/// Measures the runtimes by turns.
pub fn run(bench: &mut Bench) -> Result<()> {
    for (name, mebibytes) in SIZES {
        for turn in 0..=bench.runs.div_ceil(3) {
            for runtime in 0..bench.runtimes.len() {
                let outcome = one(&bench.lab, &bench.runtimes[runtime], mebibytes);
                let outcome = outcome.map(|Times { saved, restored }| {
                    // The first turn only warms caches.
                    if turn > 0 {
                        bench.report.time(PART, &format!("save, {name}"), runtime, saved);
                        bench.report.time(PART, &format!("bring back, {name}"), runtime, restored);
                    }
                });
                tolerated(bench, runtime, outcome)?;
            }
        }
    }
    Ok(())
}

struct Times {
    saved: Duration,
    /// From the request to make the task to the reply that it is started.
    restored: Duration,
}

fn one(lab: &Lab, runtime: &Runtime, mebibytes: usize) -> Result<Times> {
    // One string, which nothing shares.
    let script = format!(
        "exec awk 'BEGIN {{ s = sprintf(\"%{}s\", \"\"); system(\"echo > /ready\"); \
         while (1) system(\"sleep 1000\"); print s }}'",
        (mebibytes << 20).max(1)
    );
    let shape = Shape { args: &["sh", "-c", &script], ..Shape::default() };
    let bundle = Bundle::new(lab, "saved", &shape)?;
    // containerd makes it, and runc's shim works there.
    fs::create_dir(bundle.path.join("work")).context("make a folder to work in")?;
    let mut first = Shim::start(lab, runtime, &bundle)?;
    let process = watch(first.pid("")?)?;
    let request = request_for(runtime, &bundle)?;
    first.call::<CreateTaskResponse>("Create", &request)?;
    let init = Process { container: "saved", exec: "" };
    let pid = first.start_process(init)?;
    wait::until("it holds its memory", || {
        fs::metadata(format!("/proc/{pid}/root/ready")).is_ok().then_some(())
    });
    let images = lab.directory().join("images");
    fs::create_dir(&images).context("make a folder for the images")?;
    let begun = Instant::now();
    let request =
        CheckpointTaskRequest { id: "saved".into(), path: text(&images), ..Default::default() };
    let outcome = first.call::<Empty>("Checkpoint", &request);
    let saved = begun.elapsed();
    let restored = outcome.and_then(|_| bring_back(lab, runtime, &shape, &images));
    let removed = fs::remove_dir_all(&images).context("remove the images");
    end(&mut first, init, &process)?;
    removed?;
    Ok(Times { saved, restored: restored? })
}

/// Brings it back as another container. Returns the time that Create and Start took.
fn bring_back(lab: &Lab, runtime: &Runtime, shape: &Shape<'_>, images: &Path) -> Result<Duration> {
    let bundle = Bundle::new(lab, "back", shape)?;
    fs::create_dir(bundle.path.join("work")).context("make a folder to work in")?;
    let mut second = Shim::start(lab, runtime, &bundle)?;
    let process = watch(second.pid("")?)?;
    let request = CreateTaskRequest { checkpoint: text(images), ..request_for(runtime, &bundle)? };
    let init = Process { container: "back", exec: "" };
    let begun = Instant::now();
    let started = second
        .call::<CreateTaskResponse>("Create", &request)
        .and_then(|_| second.start_process(init));
    let took = begun.elapsed();
    let ended = end(&mut second, init, &process);
    let pid = started?;
    ensure!(pid > 0, "no process came back");
    ended.map(|()| took)
}

fn end(shim: &mut Shim, init: Process<'_>, process: &std::os::fd::OwnedFd) -> Result<()> {
    let ended = shim.kill(init);
    if ended.is_ok() {
        wait::until("it is deleted", || shim.delete(init).ok());
    }
    shim.shutdown(init.container, process)?;
    ended
}

fn request_for(runtime: &Runtime, bundle: &Bundle) -> Result<CreateTaskRequest> {
    let mut options = shim::options(runtime)?;
    if options.is_none() {
        let prost_types::Any { type_url, value } = container::options("checkpoint = true", "");
        options = MessageField::some(Any { type_url, value, ..Default::default() });
    }
    Ok(CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: text(&bundle.path),
        rootfs: vec![bundle.rootfs()],
        options,
        ..Default::default()
    })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
