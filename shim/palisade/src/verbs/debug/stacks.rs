//! `palisade debug stacks`: what each thread of a pod does now.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use sandbox_core::types::HostPid;
use sandbox_inspect::processes::Process;
use sandbox_inspect::stacks::{self, Found, Frame, Seen, Thread};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::arguments::{Common, Format, Target};
use crate::exit::Failure;
use crate::node::Node;
use crate::select::{self, Selected, short};
use crate::show;
use crate::verbs::ps;

/// How long a thread may take that is looked at: programs with much debug information take seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many threads with the same stack are named.
const NAMED: usize = 12;

/// The widest name of a function behind which files are aligned.
const WIDEST: usize = 60;

/// Flags of `palisade debug stacks`.
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Shows for each thread its state, the system call that it is in with its \
    arguments, what it waits for, and its stack in the kernel and in the program: of the containers' \
    processes, and of the pod's sandbox process and shim. Threads of a process that have the same \
    stack are shown together.\n\n\
    Nothing is stopped, and no call is interrupted. A thread that waits is read from its memory; one \
    that runs is sampled by the kernel when it is next on a CPU. Functions have names where the \
    program's file has symbols, debug information is installed below /usr/lib/debug of the \
    container or of this machine, or a JIT writes /tmp/perf-PID.map. A stack that cannot be \
    followed to its beginning says where and why. A frame with a ? was found by a guess, on which \
    those below it rest: the kernel does not show the frame pointer of a thread that waits."
)]
pub(crate) struct Stacks {
    #[command(flatten)]
    target: Target,
    /// Only this process, by its PID on this machine
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
}

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Container,
    Sandbox,
    Shim,
}

/// A process, as it is printed in JSON.
#[derive(Serialize)]
struct Looked {
    /// Null of the shim, which is in none.
    container: Option<String>,
    #[serde(skip)]
    called: String,
    part: Part,
    pid: i32,
    pid_inside: i32,
    command: String,
    /// Whether its cgroup is frozen.
    paused: bool,
    threads: Vec<Thread>,
}

/// What is printed in JSON.
#[derive(Serialize)]
struct Document<'a> {
    pod: &'a str,
    /// Whether all threads were looked at.
    complete: bool,
    processes: Vec<Looked>,
}

/// Shows stacks.
pub(crate) async fn stacks(common: &Common, flags: &Stacks) -> Result<ExitCode> {
    let node = Node::of(common)?;
    let selected = select::find(&node, &flags.target.id)?;
    let mut processes = processes(selected)?;
    if let Some(pid) = flags.pid {
        processes.retain(|process| process.pid == pid);
        if processes.is_empty() {
            let id = selected.id();
            let why = format!("--pid {pid}: no process of {id}; `palisade ps {id}` lists them");
            return Err(Failure::NotFound(why).into());
        }
    }
    let failed = look(&mut processes).await?;
    let id = selected.id();
    if processes.iter().all(|process| process.threads.is_empty()) && failed.is_none() {
        eprintln!("palisade: {id} has no processes");
    }
    match common.format {
        Format::Json => show::json(&Document {
            pod: &selected.pod().id,
            complete: failed.is_none(),
            processes,
        })?,
        Format::Table => {
            let parts: Vec<String> =
                processes.iter().filter(|p| !p.threads.is_empty()).map(text).collect();
            show::line(parts.join("\n\n").trim_end())?;
        }
    }
    match failed {
        Some(failure) => Err(failure.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Returns the processes of what is meant. The shim is among them if the whole pod is meant.
fn processes(selected: Selected<'_>) -> Result<Vec<Looked>> {
    let (pod, mut all) = (selected.pod(), Vec::new());
    let boot = pod.boot();
    for container in ps::containers(selected) {
        let paused = container.cgroup.is_frozen().unwrap_or(false);
        for process in Process::of(&container.cgroup)? {
            let part = match Some(process.pid.0) == boot {
                true => Part::Sandbox,
                false => Part::Container,
            };
            let called = ps::called(container).to_owned();
            all.push(Looked {
                paused,
                ..looked(Some(container.id.clone()), called, part, process)
            });
        }
    }
    let whole = selected.id() == pod.id;
    let rest = [(Part::Sandbox, boot), (Part::Shim, pod.shim())];
    for (part, pid) in rest.into_iter().filter(|_| whole) {
        let known = |pid: &i32| all.iter().any(|process| process.pid == *pid);
        let process = pid.filter(|pid| !known(pid)).and_then(|pid| Process::read(HostPid(pid)));
        all.extend(process.map(|process| looked(None, short(&pod.id).to_owned(), part, process)));
    }
    if whole && pod.shim().is_none() {
        eprintln!("palisade: the shim of {} is gone, and so are its stacks", short(&pod.id));
    }
    Ok(all)
}

fn looked(container: Option<String>, called: String, part: Part, process: Process) -> Looked {
    let (pid, pid_inside, command) = (process.pid.0, process.inside, process.command);
    Looked { container, called, part, pid, pid_inside, command, paused: false, threads: Vec::new() }
}

/// Looks at the threads of processes. Returns why not at all of them.
///
/// Memory and files of a container may be served by a file system of its own, which never answers:
/// so that is done in a thread that is not waited for.
async fn look(processes: &mut [Looked]) -> Result<Option<Failure>> {
    let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (found, mut all) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let seen = stacks::look(&pids, &stopped, |one| {
            let _ = found.send(Ok(one));
        });
        let _ = found.send(Err(seen));
    });
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut at = None;
    let failure = loop {
        let next = tokio::select! {
            next = timeout(PATIENCE, all.recv()) => next,
            _ = interrupt.recv() => break Some(early("it was stopped early")),
            _ = terminate.recv() => break Some(early("it was stopped early")),
        };
        match next {
            Ok(Some(Ok(Found::Begins(index, tid)))) => {
                at = processes.get(index).map(|p| (p.pid, tid))
            }
            Ok(Some(Ok(Found::Thread(index, thread)))) => {
                if let Some(process) = processes.get_mut(index) {
                    process.threads.push(*thread);
                }
            }
            Ok(Some(Err(Seen { left_out: 0, .. }))) => break None,
            Ok(Some(Err(Seen { left_out, .. }))) => {
                let why =
                    format!("{left_out} threads are left out: they are too many; --pid chooses");
                break Some(Failure::Failed(why));
            }
            Ok(None) => return Err(anyhow!("looking at the threads ended without an answer")),
            Err(_) => break Some(silent(at)),
        }
    };
    stop.store(true, Ordering::Relaxed);
    for process in processes {
        process.threads.sort_by_key(|thread| thread.tid);
    }
    Ok(failure)
}

fn early(why: &str) -> Failure {
    Failure::Failed(format!("{why}: not all threads are shown"))
}

fn silent(at: Option<(i32, i32)>) -> Failure {
    let seconds = PATIENCE.as_secs();
    let which = at.map_or_else(String::new, |(pid, tid)| format!(" {tid} of the process {pid}"));
    Failure::Failed(format!(
        "the thread{which} could not be read within {seconds} seconds: its memory or its program \
         may be in a file system that does not answer. Not all threads are shown; --pid names others"
    ))
}

/// Returns what is printed of a process.
fn text(process: &Looked) -> String {
    let whose = match process.part {
        Part::Container => format!("{}:", process.called),
        Part::Sandbox => format!("{}, the sandbox process:", process.called),
        Part::Shim => format!("{}, the shim:", process.called),
    };
    let (pid, inside) = (process.pid, process.pid_inside);
    let paused = if process.paused { ", paused: its cgroup is frozen" } else { "" };
    let command = &process.command;
    let mut lines = vec![format!("{whose} {command} (PID {pid}, {inside} inside){paused}")];
    for threads in alike(&process.threads) {
        lines.push(String::new());
        lines.extend(of_threads(&threads));
    }
    lines.iter().map(|line| show::harmless(line)).collect::<Vec<_>>().join("\n")
}

/// Puts threads together that have the same stack, in the order of their first.
fn alike(threads: &[Thread]) -> Vec<Vec<&Thread>> {
    let mut groups: BTreeMap<_, Vec<&Thread>> = BTreeMap::new();
    for thread in threads {
        let user = thread.user.iter().map(|f| (&f.function, &f.file, &f.line)).collect::<Vec<_>>();
        let key = (&thread.state, &thread.kernel, user, &thread.ends_early);
        groups.entry(key).or_default().push(thread);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| group[0].tid);
    groups
}

/// Returns what is printed of threads that have the same stack.
fn of_threads(threads: &[&Thread]) -> Vec<String> {
    let Some(first) = threads.first() else { return Vec::new() };
    let name = |thread: &&Thread| {
        format!("\"{}\" {} ({} inside)", thread.name, thread.tid, thread.tid_inside)
    };
    let state = state(&first.state);
    let mut lines = match threads {
        [only] => vec![format!("  {}: {state}", name(only))],
        several => {
            let named = several.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
            let more = several.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            vec![format!("  {} threads, {state}: {named}{more}", several.len())]
        }
    };
    let different = |part: fn(&Thread) -> &Option<String>| {
        let more = threads.iter().filter(|thread| part(thread) != part(first)).count();
        if more > 0 { format!("   ({more} with other arguments)") } else { String::new() }
    };
    if let Some(call) = &first.call {
        lines.push(format!("    in {call}{}", different(|thread| &thread.call)));
    }
    if let Some(what) = &first.waits_for {
        lines.push(format!("    waits for {what}"));
    }
    let width = first.kernel.iter().chain(first.user.iter().map(|frame| &frame.function));
    let width = width.map(|name| name.chars().count()).max().unwrap_or(0).min(WIDEST);
    let kernel = first.kernel.iter().map(|name| format!("      {name:width$}  [kernel]"));
    lines.extend(kernel);
    lines.extend(first.user.iter().map(|frame| of_frame(frame, width)));
    if let Some(why) = &first.ends_early {
        lines.push(format!("      (the rest is not known: {why})"));
    }
    lines
}

fn of_frame(frame: &Frame, width: usize) -> String {
    let Frame { function, file, line, guessed } = frame;
    let mark = if *guessed { "?" } else { " " };
    // A file whose mount is gone has no path: boot's.
    let file = if file == "/" { "-" } else { file };
    let line = line.as_ref().map_or_else(String::new, |line| format!("  {}", end_of(line)));
    format!("    {mark} {function:width$}  {file}{line}")
}

/// Returns the last two parts of the path of a source, which is long and of the machine that built it.
fn end_of(line: &str) -> &str {
    line.rmatch_indices('/').nth(1).map_or(line, |(at, _)| &line[at + 1..])
}

/// Returns a state in a word.
fn state(letter: &str) -> String {
    let word = match letter {
        "R" => "running, or ready to run",
        "S" => "waiting",
        "D" => "waiting, and no signal ends that",
        "T" => "stopped",
        "t" => "stopped by a tracer",
        "Z" => "ended",
        "I" => "idle",
        other => other,
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: i32, function: &str) -> Thread {
        let frame = Frame {
            function: function.into(),
            file: "/bin/x".into(),
            line: Some("/build/far/src/x.c:7".into()),
            guessed: false,
        };
        let (name, state) = ("x".into(), "S".into());
        Thread { tid, tid_inside: tid, name, state, user: vec![frame], ..Thread::default() }
    }

    #[test]
    fn threads_with_the_same_stack_are_shown_together() {
        let call = |text: &str, thread: Thread| Thread { call: Some(text.into()), ..thread };
        let threads = [
            call("futex(1)", thread(1, "wait")),
            call("read(2)", thread(2, "other")),
            call("futex(3)", thread(3, "wait")),
        ];
        let groups = alike(&threads);
        let ids: Vec<Vec<i32>> = groups.iter().map(|g| g.iter().map(|t| t.tid).collect()).collect();
        assert_eq!(ids, [vec![1, 3], vec![2]]);
        let lines = of_threads(&groups[0]);
        assert!(lines[0].starts_with("  2 threads, waiting: \"x\" 1 (1 inside), "), "{lines:?}");
        assert_eq!(lines[1], "    in futex(1)   (1 with other arguments)");
        assert_eq!(lines[2], "      wait  /bin/x  src/x.c:7");
    }

    #[test]
    fn the_thread_that_could_not_be_read_is_named() {
        let text = silent(Some((7, 8))).to_string();
        assert!(text.starts_with("the thread 8 of the process 7 could not be read"), "{text}");
    }
}
