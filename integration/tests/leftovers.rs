//! What a shim leaves that is killed at any moment is taken away by containerd's clean-up, and
//! what that could not take away by the next shim.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use containerd_shim_protos::api::{
    ConnectRequest, DeleteRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
    WaitSandboxRequest,
};
use integration::container::pidfd;
use integration::containerd::{Containerd, Version, palisade_executables};
use integration::killer::{Fate, Killer};
use integration::shim::{Bundle, Shim};
use integration::{host, leaks, spec, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use prost::Message;

type Outcome<T> = Result<T, String>;

/// Returns the process that serves for a bundle.
fn serving(bundle: &Bundle) -> i32 {
    let is_it = |args: &[String]| {
        args.first().is_some_and(|program| program.ends_with("containerd-shim-palisade-v1"))
            && args.windows(2).any(|pair| pair == ["-id", bundle.id.as_str()])
            && args.contains(&bundle.namespace)
    };
    let all = host::processes();
    all.iter().find(|process| is_it(&process.args)).expect("the shim that serves").pid
}

fn kill_now(pid: i32) {
    let ended = pidfd(pid);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
    assert!(wait::readable(&ended, wait::deadline()), "process {pid} lives on");
}

/// Creates and starts a container. Returns its process.
fn run(shim: &Shim<'_>, id: &str) -> Outcome<i32> {
    let pid = shim.create()?;
    let start = StartRequest { id: id.to_owned(), ..Default::default() };
    shim.tasks.start(shim.context(), &start).map_err(|error| error.to_string())?;
    Ok(pid.cast_signed())
}

/// Kills a container and deletes it.
fn end(shim: &Shim<'_>, id: &str) -> Outcome<()> {
    shim.kill(9)?;
    let wait = WaitRequest { id: id.to_owned(), ..Default::default() };
    shim.tasks.wait(shim.context(), &wait).map_err(|error| error.to_string())?;
    shim.delete().map(drop)
}

/// The containers of a pod: the one that makes the sandbox, and another.
fn pod(containerd: &Containerd) -> [Bundle; 2] {
    ["root", "other"].map(|id| Bundle::new(containerd, id, "sleep 1000"))
}

/// Runs the other container of a pod.
fn join<'a>(root: (&Bundle, i32), other: &'a Bundle) -> Outcome<Shim<'a>> {
    other.respec(|config| spec::join_sandbox(config, &root.0.id, root.1, &["network"]));
    let shim = other.start_shim()?;
    run(&shim, &other.id)?;
    Ok(shim)
}

/// The life of a pod, from the first Create to the Shutdown.
fn live(root: (&Bundle, &Shim<'_>), other: &Bundle) -> Outcome<()> {
    let pid = run(root.1, &root.0.id)?;
    let shim = join((root.0, pid), other)?;
    end(&shim, &other.id)?;
    end(root.1, &root.0.id)?;
    root.1.shutdown();
    Ok(())
}

#[test]
fn a_shim_that_is_killed_at_any_moment_leaves_nothing_that_delete_does_not_find() {
    let containerd = Containerd::start(Version::V2_1);
    let [root, other] = pod(&containerd);
    let mut moments = BTreeMap::new();
    for number in 0.. {
        let shim = root.start_shim().expect("start the shim");
        let killer = Killer::before(serving(&root), number);
        let lived = live((&root, &shim), &other);
        let fate = killer.fate();
        for bundle in [&other, &root] {
            let deleted = bundle.delete();
            assert!(deleted.status.success(), "killed {fate:?} ({number}): {deleted:?}");
        }
        let left = leaks::left_of(&containerd.traces());
        assert!(left.is_empty(), "killed {fate:?} ({number}): {}", left.join(", "));
        match fate {
            Fate::KilledBefore(call) => *moments.entry(call).or_insert(0) += 1,
            Fate::Ended => {
                assert_eq!(lived, Ok(()), "after {number} moments");
                break;
            }
        }
    }
    // Each kind of thing was there and was not.
    for call in ["mkdir", "symlink", "clone3", "rename", "write", "sendmsg", "unlinkat"] {
        assert!(moments.contains_key(call), "never killed before {call}: {moments:?}");
    }
}

/// The end of a request: `None` if its shim is gone, and an error if that answered with one.
fn answered<T>(answer: ttrpc::Result<T>) -> Outcome<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ttrpc::Error::RpcStatus(status)) => Err(status.message),
        Err(_) => Ok(None),
    }
}

/// Makes a request of a shim, and returns from the function once the shim is gone.
macro_rules! ask {
    ($shim:expr, $service:ident, $method:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
        let request = $request { $($field: $value.into(),)* ..Default::default() };
        match answered($shim.$service.$method($shim.context(), &request))? {
            Some(answer) => answer,
            None => return Ok(()),
        }
    }};
}

/// A Start and an Exec, and the end of both.
fn start_and_exec(shim: &Shim<'_>, id: &str) -> Outcome<()> {
    ask!(shim, tasks, start, StartRequest { id: id });
    let process = spec::process(&["sh", "-c", "exit 7"]).to_string();
    let process = Any { value: process.into_bytes(), ..Default::default() };
    ask!(shim, tasks, exec, ExecProcessRequest { id: id, exec_id: "exec", spec: Some(process) });
    ask!(shim, tasks, start, StartRequest { id: id, exec_id: "exec" });
    let ended = ask!(shim, tasks, wait, WaitRequest { id: id, exec_id: "exec" });
    assert_eq!(ended.exit_status, 7, "the exec's");
    let deleted = ask!(shim, tasks, delete, DeleteRequest { id: id, exec_id: "exec" });
    assert_eq!(deleted.exit_status, 7, "the exec's");
    ask!(shim, tasks, kill, KillRequest { id: id, signal: 9u32 });
    let ended = ask!(shim, tasks, wait, WaitRequest { id: id });
    assert_eq!(ended.exit_status, 137, "the init's");
    ask!(shim, tasks, delete, DeleteRequest { id: id });
    shim.shutdown();
    Ok(())
}

/// The life of a sandbox without a container.
fn sandbox(shim: &Shim<'_>, bundle: &Bundle, config: &[u8]) -> Outcome<()> {
    let id = bundle.id.as_str();
    let path = bundle.path.to_string_lossy();
    let type_url = "runtime.v1.PodSandboxConfig".to_owned();
    let options = Any { type_url, value: config.to_vec(), ..Default::default() };
    ask!(
        shim,
        sandboxes,
        create_sandbox,
        CreateSandboxRequest { sandbox_id: id, bundle_path: path, options: Some(options) }
    );
    let started = ask!(shim, sandboxes, start_sandbox, StartSandboxRequest { sandbox_id: id });
    assert!(started.pid > 0);
    ask!(shim, sandboxes, stop_sandbox, StopSandboxRequest { sandbox_id: id });
    let ended = ask!(shim, sandboxes, wait_sandbox, WaitSandboxRequest { sandbox_id: id });
    assert_eq!(ended.exit_status, 0, "it was stopped");
    ask!(shim, sandboxes, shutdown_sandbox, ShutdownSandboxRequest { sandbox_id: id });
    Ok(())
}

/// Sends a signal to the shim of a bundle at each moment of some requests, one after the other.
/// Whoever asks is answered rightly, or not at all. After a SIGTERM the shim takes all away itself;
/// after a SIGKILL `delete` does.
fn at_each_moment(
    containerd: &Containerd,
    (bundle, signal): (&Bundle, Signal),
    before: impl Fn(&Shim<'_>),
    ask: impl Fn(&Shim<'_>) -> Outcome<()>,
) {
    let is_kill = signal == Signal::SIGKILL;
    for number in 0.. {
        let shim = bundle.start_shim().expect("start the shim");
        before(&shim);
        let served = pidfd(serving(bundle));
        let killer = Killer::sending(signal, serving(bundle), number);
        let outcome = ask(&shim);
        // It ends once nobody is connected.
        drop(shim);
        let fate = killer.fate();
        let when = format!("{signal} {fate:?} ({number})");
        match (&outcome, &fate) {
            (Ok(()), _) => {}
            (Err(why), Fate::KilledBefore(_)) if !is_kill => {
                assert!(is_right(why), "{when}: {why}")
            }
            (Err(why), _) => panic!("{when}: {why}"),
        }
        assert!(wait::readable(&served, wait::deadline()), "{when}: the shim lives on");
        let none_left = || {
            let left = leaks::left_of(&containerd.traces());
            assert!(left.is_empty(), "{when}: {}", left.join(", "));
        };
        if !is_kill {
            none_left();
        }
        let deleted = bundle.delete();
        assert!(deleted.status.success(), "{when}: {deleted:?}");
        none_left();
        if fate == Fate::Ended {
            assert!(number > 10, "it has ended with {number} calls");
            return;
        }
    }
}

/// Whether a request that was under way as the shim was told to end is refused for that.
fn is_right(why: &str) -> bool {
    [
        "was cancelled",
        "is ending",
        "is at its end",
        "does not exist",
        "is gone",
        "already finished",
        "is not running",
        "a stopped process",
    ]
    .iter()
    .any(|words| why.contains(words))
}

#[test]
fn a_shim_that_is_killed_while_it_starts_and_execs_leaves_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = Bundle::new(&containerd, "root", "sleep 1000");
    let create = |shim: &Shim<'_>| _ = shim.create().expect("create a container");
    let ask = |shim: &Shim<'_>| start_and_exec(shim, &bundle.id);
    at_each_moment(&containerd, (&bundle, Signal::SIGKILL), create, ask);
}

#[test]
fn a_shim_that_is_killed_while_it_starts_a_sandbox_leaves_nothing() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = Bundle::of_sandbox(&containerd);
    let config = containerd.pod_config("moments").encode_to_vec();
    let ask = |shim: &Shim<'_>| sandbox(shim, &bundle, &config);
    at_each_moment(&containerd, (&bundle, Signal::SIGKILL), |_| (), ask);
}

/// As systemd does when the node shuts down.
#[test]
fn a_shim_that_is_told_to_end_while_it_starts_a_sandbox_takes_it_away() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = Bundle::of_sandbox(&containerd);
    let config = containerd.pod_config("terminated").encode_to_vec();
    let ask = |shim: &Shim<'_>| sandbox(shim, &bundle, &config);
    at_each_moment(&containerd, (&bundle, Signal::SIGTERM), is_up, ask);
}

#[test]
fn a_shim_that_is_told_to_end_while_it_creates_takes_all_away() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = Bundle::new(&containerd, "root", "sleep 1000");
    let ask = |shim: &Shim<'_>| {
        let request = shim.request();
        let Some(_) = answered(shim.tasks.create(shim.context(), &request))? else { return Ok(()) };
        start_and_exec(shim, &bundle.id)
    };
    at_each_moment(&containerd, (&bundle, Signal::SIGTERM), is_up, ask);
}

/// Waits until a shim answers: it listens for signals by then.
fn is_up(shim: &Shim<'_>) {
    shim.tasks.connect(shim.context(), &ConnectRequest::default()).expect("its process");
}

/// Starts a shim that has nothing to do, and returns what it has logged once it has ended.
fn next_shim(containerd: &Containerd, id: &str) -> String {
    let next = Bundle::new(containerd, id, "true");
    let log = next.path.join("log");
    mkfifo(&log, Mode::S_IRWXU).expect("mkfifo");
    let mut read = OpenOptions::new();
    read.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
    let mut read = read.open(&log).expect("open the log");
    let shim = next.start_shim().expect("start the next shim");
    let ended = pidfd(serving(&next));
    shim.shutdown();
    assert!(wait::readable(&ended, wait::deadline()), "the next shim does not end");
    let mut logged = vec![0; 65536];
    let length = read.read(&mut logged).unwrap_or(0);
    String::from_utf8_lossy(&logged[..length]).into_owned()
}

/// Also `delete` may be killed: containerd gives it five seconds. It has made a note of what it
/// does by then, unless nothing is done.
#[test]
fn a_delete_that_is_killed_at_any_moment_is_finished_by_the_next_shim() {
    let containerd = Containerd::start(Version::V2_1);
    let [root, other] = pod(&containerd);
    let at = |folder: &str| PathBuf::from(folder).join(&root.namespace).join(&root.id);
    let (noted, state) = (at("/run/palisade/.unfinished"), at("/run/palisade"));
    for number in 0.. {
        let shim = root.start_shim().expect("start the shim");
        let pid = run(&shim, &root.id).expect("run the first container");
        join((&root, pid), &other).expect("run another");
        kill_now(serving(&root));
        let (deleting, go) = root.delete_when_told();
        let killer = Killer::before(deleting, number);
        go.go();
        let fate = killer.fate();
        let (is_noted, has_state) = (noted.is_symlink(), state.is_dir());
        let logged = next_shim(&containerd, &format!("next-{number}"));
        if fate == Fate::Ended {
            assert!(!logged.contains("what was left"), "there was nothing: {logged}");
            assert!(number > 20, "it has begun and ended with {number} calls");
            break;
        }
        let is_told = logged.contains("removed what was left of sandbox root");
        assert_eq!(is_noted && has_state, is_told, "killed {fate:?} ({number}): {logged}");
        // It had not begun.
        if !is_noted {
            assert!(root.delete().status.success());
        }
        let left = leaks::left_of(&containerd.traces());
        assert!(left.is_empty(), "killed {fate:?} ({number}): {}", left.join(", "));
    }
    assert_eq!(leaks::left_of(&containerd.traces()), Vec::<String>::new());
}

/// A directory below a container's cgroup that cannot be removed as long as something is mounted
/// there.
struct Busy(PathBuf);

impl Busy {
    fn make(container: i32) -> Self {
        let place = host::cgroup_directory(container, "pids").join("busy");
        fs::create_dir(&place).expect("make a cgroup below");
        let none = None::<&str>;
        mount(Some("busy"), &place, Some("tmpfs"), MsFlags::empty(), none).expect("mount there");
        Self(place)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_busy_cgroup_that_delete_could_not_remove_is_removed_by_the_next_shim() {
    let containerd = Containerd::start(Version::V2_1);
    let [root, _] = pod(&containerd);
    let shim = root.start_shim().expect("start the shim");
    let busy = Busy::make(run(&shim, &root.id).expect("run a container"));
    kill_now(serving(&root));
    let deleted = root.delete();
    let said = String::from_utf8_lossy(&deleted.stderr).into_owned();
    assert!(!deleted.status.success() && said.contains("still busy after 3s"), "{said}");

    let logged = next_shim(&containerd, "still-busy");
    assert!(logged.contains("sandbox root has left cgroup /"), "{logged}");
    assert!(logged.contains("which cannot be removed yet: rmdir /"), "{logged}");
    drop(busy);
    let logged = next_shim(&containerd, "no-longer");
    assert!(logged.contains("removed what was left of sandbox root: cgroup /"), "{logged}");
    assert_eq!(leaks::left_of(&containerd.traces()), Vec::<String>::new());
}

/// The same for a shim that goes on, and ends as it should.
#[test]
fn a_busy_cgroup_that_its_shim_could_not_remove_is_removed_by_the_next_shim() {
    let containerd = Containerd::start(Version::V2_1);
    let [root, other] = pod(&containerd);
    let shim = root.start_shim().expect("start the shim");
    let pid = run(&shim, &root.id).expect("run a container");
    let joined = join((&root, pid), &other).expect("run another");
    let other_pid = {
        let state = containerd_shim_protos::api::StateRequest {
            id: other.id.clone(),
            ..Default::default()
        };
        joined.tasks.state(joined.context(), &state).expect("its state").pid.cast_signed()
    };
    let busy = Busy::make(other_pid);
    end(&joined, &other.id).expect("delete it");
    let served = pidfd(serving(&root));
    end(&shim, &root.id).expect("delete the first");
    shim.shutdown();
    assert!(wait::readable(&served, wait::deadline()), "the shim does not end");
    assert!(!leaks::left_of(&containerd.traces()).is_empty(), "the cgroup is busy");
    drop(busy);
    let doctor = palisade_executables().join("palisade");
    let mut doctor = Command::new(doctor);
    doctor.args(["--namespace", &root.namespace, "doctor", "--fix-leftovers"]);
    let said = doctor.output().expect("run the doctor");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("removed"), "{said}");
    assert_eq!(leaks::left_of(&containerd.traces()), Vec::<String>::new());
}
