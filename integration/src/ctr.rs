//! Containers as a person runs them: with `ctr`.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use crate::container::{discard, pidfd};
use crate::containerd::Containerd;
use crate::{image, wait};

/// The output of a command, and its end.
#[derive(Debug)]
pub struct Finished {
    /// The exit code, or 128 + n after signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Finished {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Finished {
    /// Returns itself if the command succeeded, and panics otherwise.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "it failed with: {}{}", self.stdout, self.stderr);
        self
    }
}

impl Containerd {
    /// Runs `ctr ARGUMENTS` in the test's namespace.
    pub fn ctr<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        let mut command = self.ctr_in_namespace();
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        command.output().expect("run ctr").into()
    }

    fn ctr_in_namespace(&self) -> Command {
        let mut command = self.ctr_command();
        command.args(["--namespace", &self.namespace()]);
        command
    }

    /// Prepares `ctr run` of a container with this ID. Flags and the command
    /// follow.
    pub fn run(&self, id: &str) -> Run<'_> {
        self.track(id);
        Run { containerd: self, id: id.to_owned(), flags: Vec::new() }
    }
}

/// A prepared `ctr run`. What it leaves is removed on drop.
#[derive(Debug)]
pub struct Run<'a> {
    containerd: &'a Containerd,
    id: String,
    flags: Vec<String>,
}

impl<'a> Run<'a> {
    /// Adds a flag of `ctr run`, with its value if it has one.
    pub fn flag<const N: usize>(mut self, flag: [&str; N]) -> Self {
        self.flags.extend(flag.map(str::to_owned));
        self
    }

    fn command(&self, extra: &[&str], args: &[&str]) -> Command {
        let mut command = self.containerd.ctr_in_namespace();
        command.args(["run", "--runtime", self.containerd.runtime_name()]);
        command.args(["--cgroup", &self.containerd.cgroups_path(&self.id)]);
        command.args(extra).args(&self.flags).args([image::BUSYBOX, &self.id]).args(args);
        command
    }

    /// Runs `ctr run --rm` to its end.
    pub fn output<const N: usize>(self, args: [&str; N]) -> Finished {
        self.command(&["--rm"], &args).output().expect("run ctr").into()
    }

    /// Starts `ctr run --rm`, with pipes to its streams.
    pub fn interactive<const N: usize>(self, args: [&str; N]) -> Interactive {
        Interactive::spawn(self.command(&["--rm"], &args))
    }

    /// Runs `ctr run --detach`.
    pub fn detached<const N: usize>(self, args: [&str; N]) -> Detached<'a> {
        let ran: Finished =
            self.command(&["--detach", "--null-io"], &args).output().expect("run ctr").into();
        ran.succeeded();
        Detached { containerd: self.containerd, id: self.id.clone() }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            discard(self.containerd, &self.id);
        }
    }
}

/// A `ctr` that runs in parallel to the test.
#[derive(Debug)]
pub struct Interactive {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Interactive {
    fn spawn(mut command: Command) -> Interactive {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run ctr");
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Interactive { child, stdout, stderr }
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("an open stdin").write_all(bytes).expect("write to ctr");
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        let ended = wait::readable(pidfd(self.child.id().cast_signed()), wait::deadline());
        if !ended {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("wait for ctr");
        let read = |reader: &mut Option<JoinHandle<Vec<u8>>>| {
            reader.take().expect("a reader").join().expect("read ctr's output")
        };
        let (stdout, stderr) = (read(&mut self.stdout), read(&mut self.stderr));
        Output { status, stdout, stderr }.into()
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("read ctr's output");
        all
    })
}

/// A container started by `ctr run --detach`, which is removed on drop.
#[derive(Debug)]
pub struct Detached<'a> {
    containerd: &'a Containerd,
    /// Its ID.
    pub id: String,
}

impl Detached<'_> {
    /// Runs `ctr task exec` with a new exec ID.
    pub fn exec<const N: usize>(&self, exec_id: &str, args: [&str; N]) -> Finished {
        self.exec_with(exec_id, &[], &args)
    }

    /// Runs `ctr task exec` with flags.
    pub fn exec_with(&self, exec_id: &str, flags: &[&str], args: &[&str]) -> Finished {
        let mut command = self.containerd.ctr_in_namespace();
        command.args(["task", "exec", "--exec-id", exec_id]).args(flags).arg(&self.id).args(args);
        command.output().expect("run ctr").into()
    }

    /// Starts `ctr task exec`, with pipes to its streams.
    pub fn exec_interactive<const N: usize>(&self, exec_id: &str, args: [&str; N]) -> Interactive {
        let mut command = self.containerd.ctr_in_namespace();
        command.args(["task", "exec", "--exec-id", exec_id, &self.id]).args(args);
        Interactive::spawn(command)
    }

    /// Runs `ctr task kill` with a signal and further flags.
    pub fn kill(&self, signal: &str, flags: &[&str]) -> Finished {
        let mut command = vec!["task", "kill", "--signal", signal];
        command.extend(flags);
        command.push(&self.id);
        self.containerd.ctr(command)
    }

    /// Returns `RUNNING`, `STOPPED`, ... as `ctr task list` prints it.
    pub fn status(&self) -> String {
        let listed = self.containerd.ctr(["task", "list"]).succeeded();
        let line =
            listed.stdout.lines().find(|line| line.split_whitespace().next() == Some(&self.id));
        let line = line.unwrap_or_else(|| panic!("no {} in:\n{}", self.id, listed.stdout));
        line.split_whitespace().last().expect("three columns").to_owned()
    }

    /// Returns the host's process ID of its init, from `ctr task list`.
    pub fn pid(&self) -> i32 {
        let listed = self.containerd.ctr(["task", "list"]).succeeded();
        let line =
            listed.stdout.lines().find(|line| line.split_whitespace().next() == Some(&self.id));
        let column = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        column.unwrap_or_else(|| panic!("no process ID of {} in:\n{}", self.id, listed.stdout))
    }

    /// Waits until its init has ended.
    pub fn wait_stopped(&self) {
        wait::until("the task stops", || (self.status() == "STOPPED").then_some(()));
    }

    /// Runs `ctr task delete`.
    pub fn delete(&self) -> Finished {
        self.containerd.ctr(["task", "delete", &self.id])
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        discard(self.containerd, &self.id);
    }
}
