//! Input and output of an exec: FIFOs, and a thread for each, since a terminal or a file is read
//! and written by calls that block. The threads end with the streams, or with this command.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::fs::OFlags;
use tokio::sync::oneshot;

/// The FIFOs of one exec.
pub(super) struct Streams {
    directory: PathBuf,
    input: bool,
    terminal: bool,
    output: Option<File>,
    errors: Option<File>,
    input_ended: Option<oneshot::Receiver<()>>,
    /// How each output ended: whether this command's reader takes no more.
    outputs: Vec<oneshot::Receiver<End>>,
}

/// What this command has to tell the shim.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// There is no more input.
    InputEnded,
    /// Nobody takes the output any more.
    OutputRefused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Read,
    Refused,
}

impl Streams {
    /// Makes the FIFOs, and opens those for output, so that nothing is lost.
    pub(super) fn make(directory: &Path, input: bool, terminal: bool) -> Result<Self> {
        let mut streams = Self {
            directory: directory.to_owned(),
            input,
            terminal,
            output: None,
            errors: None,
            input_ended: None,
            outputs: Vec::new(),
        };
        for path in [streams.stdin(), streams.stdout(), streams.stderr()] {
            if !path.is_empty() {
                mkfifo(path.as_str(), Mode::S_IRUSR | Mode::S_IWUSR)
                    .with_context(|| format!("mkfifo {path}"))?;
            }
        }
        streams.output = Some(reader(&streams.stdout())?);
        streams.errors = (!terminal).then(|| reader(&streams.stderr())).transpose()?;
        Ok(streams)
    }

    fn path(&self, name: &str, wanted: bool) -> String {
        let path = || self.directory.join(name).to_string_lossy().into_owned();
        if wanted { path() } else { String::new() }
    }

    /// Returns the path of the FIFO for input; empty if there is none, as the next two.
    pub(super) fn stdin(&self) -> String {
        self.path("in", self.input)
    }

    /// Returns the path of the FIFO for output.
    pub(super) fn stdout(&self) -> String {
        self.path("out", true)
    }

    /// Returns the path of the FIFO for errors. A terminal has none.
    pub(super) fn stderr(&self) -> String {
        self.path("err", !self.terminal)
    }

    /// Begins to pass on. The shim has opened its ends by then: a FIFO without a writer would end
    /// at once.
    pub(super) fn begin(&mut self) -> Result<()> {
        for (file, to_errors) in [(self.output.take(), false), (self.errors.take(), true)] {
            let Some(file) = file else { continue };
            let flags = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
            let (sender, receiver) = oneshot::channel();
            self.outputs.push(receiver);
            thread::spawn(move || {
                let end = match to_errors {
                    false => copy(file, std::io::stdout()),
                    true => copy(file, std::io::stderr()),
                };
                let _ = sender.send(end);
            });
        }
        if self.input {
            self.begin_input()?;
        }
        Ok(())
    }

    fn begin_input(&mut self) -> Result<()> {
        let path = self.stdin();
        // Without a reader the process has ended already.
        let Ok(fifo) = open(&path, OFlags::WRONLY | OFlags::NONBLOCK) else { return Ok(()) };
        rustix::fs::fcntl_setfl(&fifo, OFlags::empty())?;
        let (sender, receiver) = oneshot::channel();
        self.input_ended = Some(receiver);
        thread::spawn(move || {
            copy(own_input(), fifo);
            let _ = sender.send(());
        });
        Ok(())
    }

    /// Waits for what this command has to tell the shim.
    pub(super) async fn event(&mut self) -> Event {
        tokio::select! {
            () = ended(&mut self.input_ended) => Event::InputEnded,
            () = refused(&mut self.outputs) => Event::OutputRefused,
        }
    }

    /// Waits for the end of the outputs, for a bounded time.
    pub(super) async fn finish(&mut self, patience: Duration) {
        let all = async {
            for receiver in self.outputs.drain(..) {
                let _ = receiver.await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }
}

/// Returns once, when this command's input has ended.
async fn ended(input: &mut Option<oneshot::Receiver<()>>) {
    match input {
        Some(receiver) => {
            let _ = receiver.await;
            *input = None;
        }
        None => std::future::pending().await,
    }
}

/// Returns once for each output that nobody takes any more.
async fn refused(outputs: &mut Vec<oneshot::Receiver<End>>) {
    while let Some(receiver) = outputs.first_mut() {
        let end = receiver.await;
        outputs.remove(0);
        if end == Ok(End::Refused) {
            return;
        }
    }
    std::future::pending().await
}

fn open(path: &str, flags: OFlags) -> Result<File> {
    let opened = rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty());
    Ok(File::from(opened.with_context(|| format!("open {path}"))?))
}

fn reader(path: &str) -> Result<File> {
    open(path, OFlags::RDONLY | OFlags::NONBLOCK)
}

/// Returns this command's input, unbuffered.
fn own_input() -> File {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    input.map_or_else(|_| File::open("/dev/null").expect("/dev/null opens"), File::from)
}

fn copy(mut from: File, mut to: impl Write) -> End {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return End::Read,
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return End::Read,
        };
        if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
            return End::Refused;
        }
    }
}
