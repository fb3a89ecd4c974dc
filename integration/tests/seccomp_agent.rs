//! Seccomp rules about which an agent on the host decides (`SCMP_ACT_NOTIFY`): it gets the
//! state of each process and its listener, as from runc.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::stdio::Streams;
use integration::{on_each_containerd, spec};
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

on_each_containerd!(
    an_agent_decides_about_the_calls_of_init_and_execs,
    an_agent_decides_where_no_privileges_can_be_gained,
    without_an_agent_nothing_starts,
    calls_fail_once_the_agent_is_gone,
);

/// What the agent answers, which nothing else does: EDQUOT.
const ANSWER: i32 = nix::errno::Errno::EDQUOT as i32;
const REFUSED: &str = "quota exceeded";

/// A socket to which the shim sends listeners.
struct Agent {
    directory: tempfile::TempDir,
    states: Receiver<Value>,
    /// The listeners, if the agent does not answer.
    kept: Receiver<OwnedFd>,
}

impl Agent {
    /// Starts an agent that refuses each call that it is asked about, if it answers.
    fn start(answers: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("agent")).expect("a socket");
        let (states, received) = channel();
        let (keep, kept) = channel();
        // It ends with the test's process.
        thread::spawn(move || serve(&listener, answers, &states, &keep));
        Self { directory, states: received, kept }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    /// Returns the next state that was sent.
    fn state(&self) -> Value {
        self.states.recv().expect("the agent serves")
    }

    /// Returns a profile whose mkdir is up to the agent.
    fn profile(&self) -> Value {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": self.path(),
            "listenerMetadata": "of the test",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        })
    }
}

fn serve(listener: &UnixListener, answers: bool, states: &Sender<Value>, keep: &Sender<OwnedFd>) {
    for connection in listener.incoming() {
        let (state, listener) = receive(&connection.expect("a connection"));
        if answers {
            thread::spawn(move || answer(&listener));
        } else if keep.send(listener).is_err() {
            return;
        }
        if states.send(state).is_err() {
            return;
        }
    }
}

/// Receives one state with one descriptor, to the end of the connection.
fn receive(connection: &UnixStream) -> (Value, OwnedFd) {
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(connection, parts, &mut ancillary, RecvFlags::empty());
        let length = received.expect("receive").bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if length == 0 {
            break;
        }
        text.extend_from_slice(&bytes[..length]);
    }
    assert_eq!(descriptors.len(), 1, "one descriptor for one state");
    (serde_json::from_slice(&text).expect("a state"), descriptors.remove(0))
}

/// Refuses calls until no process has the program any more.
fn answer(listener: &OwnedFd) {
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut ready, None).expect("poll");
        if !ready[0].revents().contains(PollFlags::IN) {
            return;
        }
        let fd = listener.as_fd().as_raw_fd();
        // The process may be gone already.
        let Ok(request) = ScmpNotifReq::receive(fd) else { continue };
        let refusal = ScmpNotifResp::new_error(request.id, -ANSWER, ScmpNotifRespFlags::empty());
        let _ = refusal.respond(fd);
    }
}

const MKDIR: &str = "mkdir /made 2>&1; ls -d /made 2>&1";

/// The state and the effect are the same as with runc.
fn an_agent_decides_about_the_calls_of_init_and_execs(containerd: Containerd) {
    let ours = containerd.runtime_name().to_owned();
    for runtime in [&*ours, "io.containerd.runc.v2"] {
        let agent = Agent::start(true);
        let id = format!("asks-{}", if runtime == ours { "us" } else { "runc" });
        let container = containerd.shell(&id, &format!("{MKDIR}; echo done; sleep 1000"));
        let container = container.runtime(runtime).spec(|spec| {
            spec["linux"]["seccomp"] = agent.profile();
            spec["process"]["noNewPrivileges"] = false.into();
            spec["annotations"] = json!({ "of": "the test" });
        });
        let container = container.start();
        let output = container.stdio().wait_for_output("done\n");
        assert!(output.contains(REFUSED) && output.contains("No such file"), "{output}");
        let state = agent.state();
        assert_eq!(state["pid"], container.pid());
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "of the test");
        assert_eq!(state["state"]["id"], *id);
        assert_eq!(state["state"]["pid"], container.pid());
        assert_eq!(state["state"]["status"], "creating");
        assert_eq!(state["state"]["annotations"]["of"], "the test");
        assert!(state["state"]["bundle"].as_str().is_some_and(|path| path.ends_with(&id)));
        // An exec has a listener of its own.
        let (code, output) = container.exec_shell("exec", MKDIR);
        assert!(code != 0 && output.contains(REFUSED), "{output}");
        let of_exec = agent.state();
        assert_ne!(of_exec["pid"], container.pid());
        assert_eq!(of_exec["state"]["pid"], container.pid());
        assert_eq!(of_exec["state"]["status"], "running");
    }
    // Without the profile there is nobody to ask.
    let control = containerd.shell("control", &format!("{MKDIR}; sleep 1000")).start();
    assert_eq!(control.stdio().wait_for_output("\n"), "/made\n");
}

/// Then the program is loaded last, after Start.
fn an_agent_decides_where_no_privileges_can_be_gained(containerd: Containerd) {
    let agent = Agent::start(true);
    let container = containerd.shell("asks", &format!("{MKDIR}; echo done; sleep 1000"));
    let container = container.spec(|spec| {
        spec["linux"]["seccomp"] = agent.profile();
        spec["process"]["noNewPrivileges"] = true.into();
    });
    let container = container.start();
    let output = container.stdio().wait_for_output("done\n");
    assert!(output.contains(REFUSED), "{output}");
    assert_eq!(agent.state()["pid"], container.pid());
    let mut process = spec::process(&["sh", "-c", MKDIR]);
    process["noNewPrivileges"] = true.into();
    let exec = container.exec("exec", process, Streams::Captured).expect("an exec");
    exec.start().expect("it starts");
    exec.wait();
    assert!(exec.stdio().output().contains(REFUSED));
    assert_eq!(agent.state()["pid"], exec.pid());
}

/// A process without the agent that its profile names never runs.
fn without_an_agent_nothing_starts(containerd: Containerd) {
    let agent = Agent::start(true);
    let with = |id: &str, no_new_privileges: bool, path: PathBuf| {
        let container = containerd.shell(id, "echo ran; sleep 1000");
        container.spec(|spec| {
            spec["linux"]["seccomp"] = agent.profile();
            spec["linux"]["seccomp"]["listenerPath"] = json!(path);
            spec["process"]["noNewPrivileges"] = no_new_privileges.into();
        })
    };
    let nowhere = agent.directory.path().join("nowhere");
    let refused = |error: &str| {
        let named = error.contains("linux.seccomp.listenerPath") && error.contains("nowhere");
        assert!(named, "{error}");
    };
    let error = with("early", false, nowhere.clone()).try_create().map(drop);
    refused(error.expect_err("there is no agent").message());
    let late = with("late", true, nowhere).create();
    refused(late.start().expect_err("there is no agent").message());
    assert_eq!(late.stdio().output(), "");
    // Nor does an exec, once the agent is gone.
    let path = agent.path();
    let container = with("execs", false, path.clone()).start();
    container.stdio().wait_for_output("ran\n");
    std::fs::remove_file(&path).expect("the agent goes");
    let exec = container.exec("exec", spec::process(&["true"]), Streams::Captured);
    let error = exec.expect("an exec").start().expect_err("there is no agent");
    assert!(error.message().contains("linux.seccomp.listenerPath"), "{}", error.message());
    assert!(is_running(&container));
}

fn is_running(container: &Container<'_>) -> bool {
    std::path::Path::new(&format!("/proc/{}", container.pid())).exists()
}

/// The kernel's own rule for a listener that nobody has: ENOSYS.
fn calls_fail_once_the_agent_is_gone(containerd: Containerd) {
    let agent = Agent::start(false);
    let script = "read line; mkdir /made 2>&1; echo done; sleep 1000";
    let container = containerd.shell("asks", script);
    let container = container.streams(Streams::Piped).spec(|spec| {
        spec["linux"]["seccomp"] = agent.profile();
    });
    let container = container.start();
    agent.state();
    drop(agent.kept.recv().expect("a listener"));
    container.stdio().write(b"go on\n");
    let output = container.stdio().wait_for_output("done\n");
    assert!(output.contains("not implemented"), "{output}");
}

/// Several profiles that have no meaning are refused by field.
#[test]
fn a_profile_without_a_meaning_is_refused() {
    let containerd = Containerd::start(Version::V2_1);
    let agent = Agent::start(true);
    let refused = |id: &str, change: &dyn Fn(&mut Value), words: &str| {
        let container = containerd.shell(id, "true").spec(|spec| {
            spec["linux"]["seccomp"] = agent.profile();
            change(&mut spec["linux"]["seccomp"]);
        });
        let error = container.try_create().map(drop).expect_err("it has no meaning");
        assert!(error.message().contains(words), "{}", error.message());
    };
    let without_path = |profile: &mut Value| {
        profile.as_object_mut().expect("an object").remove("listenerPath");
    };
    refused("path", &without_path, "linux.seccomp.listenerPath");
    let all = |profile: &mut Value| profile["defaultAction"] = "SCMP_ACT_NOTIFY".into();
    refused("all", &all, "linux.seccomp.defaultAction");
    let write = |profile: &mut Value| profile["syscalls"][0]["names"] = json!(["write"]);
    refused("write", &write, "linux.seccomp.syscalls[0].names");
}
