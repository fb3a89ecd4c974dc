//! The client's side of a process's streams: FIFOs as containerd's Go client
//! makes them, and threads that read them.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::keep;
use crate::wait::deadline;

/// The streams that a process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// None: all are /dev/null.
    Null,
    /// Output and errors.
    Captured,
    /// Input, output and errors.
    Piped,
    /// A terminal: input and one output.
    Terminal,
}

/// The FIFOs of one process, and the output that came through them.
#[derive(Debug)]
pub struct Stdio {
    streams: Streams,
    directory: PathBuf,
    stdin: Option<File>,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
}

impl Stdio {
    /// Makes FIFOs in a new directory. Their readers wait for the shim.
    pub fn new(directory: PathBuf, streams: Streams) -> Stdio {
        fs::create_dir_all(&directory).expect("make a directory for FIFOs");
        let mut stdio = Stdio { streams, directory, stdin: None, stdout: None, stderr: None };
        for path in [stdio.stdin(), stdio.stdout(), stdio.stderr()] {
            if !path.is_empty() {
                mkfifo(path.as_str(), Mode::from_bits_truncate(0o700)).expect("mkfifo");
            }
        }
        stdio.stdout = reader(&stdio.stdout());
        stdio.stderr = reader(&stdio.stderr());
        stdio
    }

    fn path(&self, name: &str, wanted: bool) -> String {
        match wanted {
            true => self.directory.join(name).to_string_lossy().into_owned(),
            false => String::new(),
        }
    }

    /// Returns the path of the FIFO for input, or an empty one if there is
    /// none, as the next two do.
    pub fn stdin(&self) -> String {
        self.path("in", matches!(self.streams, Streams::Piped | Streams::Terminal))
    }

    /// Returns the path of the FIFO for output.
    pub fn stdout(&self) -> String {
        self.path("out", self.streams != Streams::Null)
    }

    /// Returns the path of the FIFO for errors.
    pub fn stderr(&self) -> String {
        self.path("err", matches!(self.streams, Streams::Piped | Streams::Captured))
    }

    /// Whether the process has a terminal.
    pub fn terminal(&self) -> bool {
        self.streams == Streams::Terminal
    }

    /// Writes input. The process must have been created, or the FIFO has no
    /// reader.
    pub fn write(&mut self, bytes: &[u8]) {
        let path = self.stdin();
        let stdin = self.stdin.get_or_insert_with(|| {
            OpenOptions::new().write(true).open(&path).expect("open the FIFO for input")
        });
        stdin.write_all(bytes).expect("write input");
    }

    /// Closes this side of the input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Returns all output up to its end.
    pub fn output(&mut self) -> String {
        String::from_utf8_lossy(&self.output_bytes()).into_owned()
    }

    /// Returns all output up to its end, as bytes.
    pub fn output_bytes(&mut self) -> Vec<u8> {
        self.stdout.take().expect("captured output, taken once").into_end()
    }

    /// Returns all errors up to their end.
    pub fn errors(&mut self) -> String {
        String::from_utf8_lossy(&self.errors_bytes()).into_owned()
    }

    /// Returns all errors up to their end, as bytes.
    pub fn errors_bytes(&mut self) -> Vec<u8> {
        self.stderr.take().expect("captured errors, taken once").into_end()
    }

    /// Waits until the output so far contains a text, and returns it all.
    pub fn wait_for_output(&self, text: &str) -> String {
        self.stdout.as_ref().expect("captured output").wait_for(text)
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        // A reader whose FIFO the shim never opened waits in open(2). This
        // releases it.
        for path in [self.stdout(), self.stderr()] {
            let flags = OFlag::O_NONBLOCK.bits();
            let _ = OpenOptions::new().write(true).custom_flags(flags).open(&path);
        }
        if !keep::keeps() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn reader(path: &str) -> Option<Reader> {
    (!path.is_empty()).then(|| Reader::start(Path::new(path)))
}

/// A thread that reads a FIFO to its end.
#[derive(Debug)]
struct Reader {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    thread: JoinHandle<()>,
}

/// What was read so far.
#[derive(Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    is_all: bool,
}

impl Reader {
    fn start(path: &Path) -> Reader {
        let seen = Arc::<(Mutex<Seen>, Condvar)>::default();
        let (path, shared) = (path.to_owned(), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let mut fifo = match File::open(path) {
                Ok(fifo) => fifo,
                // The streams were dropped before.
                Err(e) if e.kind() == ErrorKind::NotFound => return,
                Err(e) => panic!("open a FIFO for reading: {e}"),
            };
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = fifo.read(&mut chunk) {
                let mut seen = shared.0.lock().expect("no panic while locked");
                seen.bytes.extend_from_slice(&chunk[..n]);
                drop(seen);
                shared.1.notify_all();
            }
            shared.0.lock().expect("no panic while locked").is_all = true;
            shared.1.notify_all();
        });
        Reader { seen, thread }
    }

    fn wait_for(&self, text: &str) -> String {
        let (lock, changed) = &*self.seen;
        let has = |seen: &Seen| String::from_utf8_lossy(&seen.bytes).contains(text);
        let seen = lock.lock().expect("no panic while locked");
        let wanted = |seen: &mut Seen| !seen.is_all && !has(seen);
        let (seen, _) = changed.wait_timeout_while(seen, deadline(), wanted).expect("no panic");
        let found = has(&seen);
        let seen = String::from_utf8_lossy(&seen.bytes).into_owned();
        assert!(found, "waited in vain for {text:?}; so far: {seen:?}");
        seen
    }

    fn into_end(self) -> Vec<u8> {
        self.thread.join().expect("read a FIFO");
        std::mem::take(&mut self.seen.0.lock().expect("no panic while locked").bytes)
    }
}
