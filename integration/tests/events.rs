//! Events: each is published once, and in order.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_client::tonic::Code;
use containerd_client::types::v1::Status;
use integration::containerd::Containerd;
use integration::cri::resources;
use integration::events::{Subscriber, TaskEvent};
use integration::stdio::Streams;
use integration::{on_each_containerd, spec, wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

on_each_containerd!(
    a_container_s_life,
    a_process_that_ends_at_once,
    an_end_is_in_the_state_before_its_event_and_delete_comes_after_it,
    execs_end_before_the_container,
    pause_and_resume,
    out_of_memory_comes_before_the_end,
    cri_reports_out_of_memory_as_the_reason,
    fifty_short_lives_are_all_published,
);

fn is_delete_of(id: &str) -> impl Fn(&TaskEvent) -> bool {
    move |event| matches!(event, TaskEvent::Delete(of, _) if of == id)
}

fn a_container_s_life(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.shell("life", "exit 3").create();
    container.start().expect("start it");
    container.wait();
    container.delete_task().expect("delete it");
    let (id, pid) = ("life".to_owned(), container.pid().unsigned_abs());
    assert_eq!(
        events.until(is_delete_of("life")),
        [
            TaskEvent::Create(id.clone(), pid),
            TaskEvent::Start(id.clone(), pid),
            TaskEvent::Exit(id.clone(), id.clone(), 3),
            TaskEvent::Delete(id, 3),
        ]
    );
}

/// Such a process may end before the reply to Start. Its start is still
/// published before its exit.
fn a_process_that_ends_at_once(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("host", ["sleep", "1000"]).start();
    for round in 0..10 {
        let exec = format!("brief-{round}");
        let process = container.exec(&exec, spec::process(&["true"]), Streams::Null);
        let process = process.expect("add an exec");
        process.start().expect("start it");
        process.wait();
        let is_exit = |event: &TaskEvent| matches!(event, TaskEvent::Exit(..));
        let seen = events.until(is_exit);
        let mut seen = seen.iter().filter(|event| {
            !matches!(event, TaskEvent::Create(..) | TaskEvent::Start(..) | TaskEvent::Delete(..))
        });
        let id = || "host".to_owned();
        assert_eq!(seen.next(), Some(&TaskEvent::ExecAdded(id(), exec.clone())));
        let pid = process.pid().unsigned_abs();
        assert_eq!(seen.next(), Some(&TaskEvent::ExecStarted(id(), exec.clone(), pid)));
        assert_eq!(seen.next(), Some(&TaskEvent::Exit(id(), exec.clone(), 0)));
    }
}

/// The exit of a process waits for the client that has yet to read its output. Its state does not:
/// a client that asks must not take it for alive.
fn an_end_is_in_the_state_before_its_event_and_delete_comes_after_it(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let place = containerd.directory().join("unread");
    mkfifo(&place, Mode::S_IRWXU).expect("mkfifo");
    let floods = containerd.container("floods", ["yes"]).streams(Streams::Terminal);
    let container = floods.output_to(&place.to_string_lossy()).start();
    let unread = File::options().read(true).write(true).open(&place).expect("open the FIFO");
    wait::until("the FIFO is full", || (!takes_more(&unread)).then_some(()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| container.wait().code);
        container.kill(9).expect("kill it");
        let state = wait::until("the state says that it has ended", || {
            let state = container.state().expect("ask for the state");
            (state.status() == Status::Stopped).then_some(state)
        });
        assert_eq!(state.exit_status, 137);
        assert!(state.exited_at.is_some_and(|at| at.seconds > 0), "{state:?}");
        assert_eq!(container.kill(9).expect_err("it has ended").code(), Code::NotFound);
        let deletes = scope.spawn(|| container.delete_task().expect("delete it"));
        container.processes();
        assert!(!waits.is_finished() && !deletes.is_finished(), "nobody has read the output");
        scope.spawn(|| read_until(&done, &unread));
        assert_eq!((waits.join().expect("wait"), deletes.join().expect("delete")), (137, 137));
        done.store(true, Ordering::Relaxed);
    });
    let seen = events.until(is_delete_of("floods"));
    let exit = TaskEvent::Exit("floods".into(), "floods".into(), 137);
    assert_eq!(seen[seen.len() - 2..], [exit, TaskEvent::Delete("floods".into(), 137)]);
}

/// Whether somebody who writes to a FIFO would not wait.
fn takes_more(fifo: &File) -> bool {
    let mut polled = [PollFd::new(fifo.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::ZERO).expect("poll") == 1
}

/// Reads what comes, until it is done.
fn read_until(done: &AtomicBool, mut from: &File) {
    let mut chunk = [0; 4096];
    while !done.load(Ordering::Relaxed) {
        if wait::readable(from, Duration::from_millis(10)) {
            let _ = from.read(&mut chunk).expect("read");
        }
    }
}

fn execs_end_before_the_container(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let execs: Vec<_> = (0..5)
        .map(|n| {
            let process = spec::process(&["sleep", "1000"]);
            let exec = container.exec(&format!("exec-{n}"), process, Streams::Null);
            let exec = exec.expect("add an exec");
            exec.start().expect("start it");
            exec
        })
        .collect();
    container.kill(9).expect("kill the container");
    let of_container =
        |event: &TaskEvent| matches!(event, TaskEvent::Exit(_, id, _) if id == "host");
    let seen = events.until(of_container);
    for exec in &execs {
        let exit = TaskEvent::Exit("host".into(), exec.id.clone(), 137);
        let count = seen.iter().filter(|event| **event == exit).count();
        assert_eq!(count, 1, "{exit:?} in {seen:?}");
    }
    assert_eq!(container.wait().code, 137);
}

fn pause_and_resume(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("frozen", ["sleep", "1000"]).start();
    container.pause().expect("pause it");
    container.resume().expect("resume it");
    let seen = events.until(|event| matches!(event, TaskEvent::Resumed(_)));
    let id = || "frozen".to_owned();
    let tail = &seen[seen.len() - 2..];
    assert_eq!(tail, [TaskEvent::Paused(id()), TaskEvent::Resumed(id())]);
}

/// A script that uses up the memory of its cgroup with a file in memory. Its buffer makes dd
/// the largest process there, which the kernel kills first: boot is in that cgroup too.
const HUNGRY: &str = "dd if=/dev/zero of=/dev/shm/blob bs=6M count=8; sleep 1000";

fn out_of_memory_comes_before_the_end(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.shell("hungry", &format!("exec {HUNGRY}")).spec(|s| {
        s["linux"]["resources"]["memory"] = json!({ "limit": 24 << 20 });
    });
    let container = container.start();
    assert_eq!(container.wait().code, 137);
    container.delete_task().expect("delete it");
    let seen = events.until(is_delete_of("hungry"));
    let at = |wanted: &TaskEvent| {
        let places = seen.iter().enumerate().filter(|(_, event)| *event == wanted);
        let places: Vec<usize> = places.map(|(place, _)| place).collect();
        assert_eq!(places.len(), 1, "{wanted:?} in {seen:?}");
        places[0]
    };
    let oom = at(&TaskEvent::Oom("hungry".into()));
    let exit = at(&TaskEvent::Exit("hungry".into(), "hungry".into(), 137));
    assert!(oom < exit, "{seen:?}");
}

fn cri_reports_out_of_memory_as_the_reason(containerd: Containerd) {
    let pod = containerd.pod("hungry");
    let container = pod.container("main", &format!("exec {HUNGRY}"), |config| {
        resources(config).memory_limit_in_bytes = 24 << 20;
    });
    assert_eq!(container.wait_for_reason("OOMKilled").exit_code, 137);
}

fn fifty_short_lives_are_all_published(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let execs: Vec<_> = (0..50)
        .map(|n| {
            let exec =
                container.exec(&format!("exec-{n}"), spec::process(&["true"]), Streams::Null);
            exec.expect("add an exec")
        })
        .collect();
    std::thread::scope(|scope| {
        for exec in &execs {
            scope.spawn(|| exec.start().expect("start an exec"));
        }
    });
    execs.iter().for_each(|exec| assert_eq!(exec.wait().code, 0));
    container.kill(9).expect("kill the container");
    let of_container =
        |event: &TaskEvent| matches!(event, TaskEvent::Exit(_, id, _) if id == "host");
    let seen = events.until(of_container);
    for exec in &execs {
        let (id, exec) = ("host".to_owned(), &exec.id);
        let mine: Vec<&TaskEvent> = seen
            .iter()
            .filter(|event| match event {
                TaskEvent::ExecAdded(_, of) | TaskEvent::ExecStarted(_, of, _) => of == exec,
                TaskEvent::Exit(_, of, _) => of == exec,
                _ => false,
            })
            .collect();
        assert_eq!(mine.len(), 3, "{mine:?}");
        assert_eq!(*mine[0], TaskEvent::ExecAdded(id.clone(), exec.clone()));
        assert!(matches!(mine[1], TaskEvent::ExecStarted(..)), "{mine:?}");
        assert_eq!(*mine[2], TaskEvent::Exit(id, exec.clone(), 0));
    }
}
