//! Processes and threads.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Write, stdin};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpgrp, getpid, getppid, getsid, kill_process,
    pidfd_open, setpgid, setsid, waitid,
};
use rustix::thread::gettid;

use crate::{Check, Given, Result, same};

/// Does what a child of that role does.
#[expect(clippy::zombie_processes, reason = "the daemon's parent ends at once")]
pub fn be_child(role: &str) {
    match role {
        "child" => {}
        "group" => setpgid(None, None).expect("setpgid"),
        "session" => drop(setsid().expect("setsid")),
        // The leader of the session ends; the session goes on.
        "daemon" => {
            setsid().expect("setsid");
            command("child").spawn().expect("run this program again");
            return;
        }
        "gone" => std::process::exit(7),
        _ => panic!("no child is called {role}"),
    }
    for line in stdin().lines() {
        let _ = line.expect("read the standard input");
        println!("{}", place_of_self());
    }
}

fn place_of_self() -> String {
    let (pid, parent) = (getpid(), getppid());
    format!("pid {pid:?}, parent {parent:?}, group {:?}, session {:?}", getpgrp(), getsid(None))
}

fn command(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--child", role]);
    command
}

/// A child that says where it stands when it is asked.
struct Asked {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Asked {
    fn new(role: &str) -> Result<Asked> {
        let mut child = command(role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (ask, answers) = (child.stdin.take(), child.stdout.take());
        let (ask, answers) = ask.zip(answers).ok_or("a child without pipes")?;
        Ok(Asked { child, ask, answers: BufReader::new(answers) })
    }

    fn place(&mut self) -> Result<String> {
        self.ask.write_all(b"\n")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn stays(mut self) -> Result<Check> {
        let was = self.place()?;
        Ok(Box::new(move || same("its place", self.place()?, was.clone())))
    }
}

/// A child in the session and group of its parent.
pub fn child_of_same_session(_: &Given) -> Result<Check> {
    Asked::new("child")?.stays()
}

/// A child with a process group of its own.
pub fn group(_: &Given) -> Result<Check> {
    Asked::new("group")?.stays()
}

/// A child with a session of its own.
pub fn session(_: &Given) -> Result<Check> {
    Asked::new("session")?.stays()
}

/// A process whose parent, the leader of its session, has ended.
pub fn daemon(_: &Given) -> Result<Check> {
    let mut daemon = Asked::new("daemon")?;
    daemon.child.wait()?;
    daemon.stays()
}

/// A child that has ended and that nobody has waited for.
pub fn zombie(_: &Given) -> Result<Check> {
    let child = Pid::from_child(&command("gone").spawn()?);
    let look = move || -> Result<Option<i32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(child), options)?.and_then(|ended| ended.exit_status()))
    };
    look()?;
    Ok(Box::new(move || same("its exit status", look()?, Some(7))))
}

/// A child that was stopped by a signal.
pub fn stopped(_: &Given) -> Result<Check> {
    let mut child = Asked::new("child")?;
    let was = child.place()?;
    let stop = |pid: Pid| -> Result<()> {
        kill_process(pid, Signal::STOP)?;
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED)?;
        Ok(())
    };
    stop(child.pid())?;
    Ok(Box::new(move || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.pid().as_raw_nonzero()))?;
        let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next());
        same("its state", state, Some("T"))?;
        kill_process(child.pid(), Signal::CONT)?;
        same("its place", child.place()?, was.clone())?;
        stop(child.pid())
    }))
}

/// A descriptor of a child.
pub fn pidfd(_: &Given) -> Result<Check> {
    let child = Asked::new("child")?;
    let pidfd = pidfd_open(child.pid(), PidfdFlags::empty())?;
    Ok(Box::new(move || {
        let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&pidfd));
        let info = fs::read_to_string(info)?;
        let of = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
        same("its process", of, Some(child.pid().as_raw_nonzero().to_string().as_str()))?;
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        same("how many ended", poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?, 0)
    }))
}

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// What a thread says of itself: its ID, its name, its thread-local number.
type Said = (i32, String, usize);

/// Threads with names and thread-local data.
pub fn threads(_: &Given) -> Result<Check> {
    let threads = (1..=4).map(start_thread).collect::<Result<Vec<_>>>()?;
    let ask = |(ask, answer): &(Sender<()>, Receiver<Said>)| -> Result<Said> {
        ask.send(())?;
        Ok(answer.recv()?)
    };
    let was = threads.iter().map(ask).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        same("the threads", threads.iter().map(ask).collect::<Result<Vec<_>>>()?, was.clone())
    }))
}

fn start_thread(number: usize) -> Result<(Sender<()>, Receiver<Said>)> {
    let ((ask, asked), (answer, answers)) = (channel(), channel());
    thread::Builder::new().name(format!("carried-{number}")).spawn(move || {
        NUMBER.set(number * 1000);
        while let Ok(()) = asked.recv() {
            let name = fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
            let _ = answer.send((gettid().as_raw_nonzero().get(), name, NUMBER.get()));
        }
    })?;
    Ok((ask, answers))
}
