//! `palisade exec`: runs a program in a container, by the pod's shim alone.
//!
//! | file | content |
//! |---|---|
//! | `process.rs` | the process that is asked for, made from the container's own |
//! | `streams.rs` | input and output: FIFOs of the command's own |
//! | `terminal.rs` | this command's terminal |
//! | `user.rs` | the user, looked up in the container |

mod process;
mod streams;
mod terminal;
mod user;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::Args;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, DeleteRequest, ExecProcessRequest, KillRequest,
    ResizePtyRequest, StartRequest, StateRequest, WaitRequest,
};
use operator_api::operator::ExecDetachedRequest;
use protobuf::well_known_types::any::Any;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::{Common, Format, Target};
use crate::exit::Failure;
use crate::node::{self, Container, Node, Pod};
use crate::shim::{PATIENCE, Shim, bounded};
use crate::{select, show};
use streams::{Event, Streams};
use terminal::RawMode;
pub(crate) use user::{ReadUsers, read_users};

/// The status if the process could not be asked for, as docker's.
const FAILED: u8 = 125;
/// The status if the program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The status if there is no such program.
const NOT_FOUND: u8 = 127;

/// The time that a process has to end after SIGTERM or SIGHUP, before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Runs a program in a container
///
/// It runs as the container's own process does: its user, capabilities, environment and directory,
/// as far as no flag says otherwise. containerd is not needed. The exit status is the program's;
/// 125 if it could not be asked for, 126 if it cannot be executed and 127 if it is not there.
/// Ctrl-C, SIGTERM and SIGHUP are passed on; a second Ctrl-C, or two seconds after the others,
/// kill the program.
#[derive(Clone, Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    target: Target,
    /// Passes this command's input on, which has to be a terminal if the program gets one
    #[arg(long, short)]
    interactive: bool,
    /// Gives the program a terminal
    #[arg(long, short)]
    tty: bool,
    /// Prints the name of the exec, and does not wait for its end. What the program reads and
    /// prints is /dev/null
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// The user in the container, and its group: names of the container's own /etc/passwd and
    /// /etc/group, or numbers
    #[arg(long, short, value_name = "USER[:GROUP]", value_parser = user::parse)]
    user: Option<user::User>,
    /// The directory in the container
    #[arg(long, short = 'w', value_name = "DIRECTORY", value_parser = process::directory)]
    cwd: Option<String>,
    /// A further variable of the environment
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = process::variable)]
    env: Vec<String>,
    /// The program, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs the program. Errors have docker's statuses, so that they are not taken for the program's.
pub(crate) async fn exec(common: &Common, flags: &Exec) -> Result<ExitCode> {
    match run(common, flags).await {
        Ok(status) => Ok(ExitCode::from(status)),
        Err(error) => {
            eprintln!("palisade: {error:#}");
            Ok(ExitCode::from(status_of(&error.to_string())))
        }
    }
}

/// Returns the status for an error: of those of the program, `newborn/lookup.rs` of sandbox-core
/// has the words, which are runc's.
fn status_of(error: &str) -> u8 {
    let Some(why) = error.strip_prefix("exec: ") else { return FAILED };
    match why.ends_with("no such file or directory") || why.ends_with("not found in $PATH") {
        true => NOT_FOUND,
        false => NOT_EXECUTABLE,
    }
}

async fn run(common: &Common, flags: &Exec) -> Result<u8> {
    if common.format == Format::Json {
        let why = "--format json: exec prints what the program prints; expected no --format";
        return Err(Failure::Failed(why.into()).into());
    }
    terminal::check(flags.interactive && flags.tty)?;
    let node = Node::of(common)?;
    let (pod, container) = select::find(&node, &flags.target.id)?.one_container()?;
    let shim = Shim::connect(pod).await?;
    let user = match &flags.user {
        Some(user) => Some(user.of_container(init(&shim, container).await?)?),
        None => None,
    };
    let process = process::make(flags, user, &container.bundle)?;
    if flags.detach {
        return detach(&shim, container, &process).await;
    }
    let directory = OwnDirectory::make(common)?;
    let streams = Streams::make(&directory.path, flags.interactive, flags.tty)?;
    let signals = Signals::listen()?;
    let mut exec = Running { shim, pod, container, name: directory.name.clone(), begun: false };
    let outcome = exec.carry_out(flags, &process, streams, signals).await;
    exec.delete().await;
    outcome
}

/// Returns the PID of a container's first process.
async fn init(shim: &Shim, container: &Container) -> Result<u32> {
    let request = StateRequest { id: container.id.clone(), ..Default::default() };
    Ok(shim.ask(shim.task().state(bounded(), &request)).await?.pid)
}

/// Has the shim run a process that nobody waits for.
async fn detach(shim: &Shim, container: &Container, process: &Value) -> Result<u8> {
    let request = ExecDetachedRequest {
        id: container.id.clone(),
        exec_id: new_name(),
        process: serde_json::to_vec(process)?,
        ..Default::default()
    };
    shim.ask(shim.operator().exec_detached(bounded(), &request)).await?;
    show::line(&request.exec_id)?;
    Ok(0)
}

/// Returns a name for an exec. It has a `:` in it, which containerd's IDs may not have: so it meets
/// none.
fn new_name() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("palisade:{}:{now}", std::process::id())
}

/// A directory for FIFOs, which nobody but this user enters. Its name is the exec's, too.
struct OwnDirectory {
    path: PathBuf,
    name: String,
}

impl OwnDirectory {
    fn make(common: &Common) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name = new_name();
        // No namespace of containerd's begins with a dot.
        let path = node::state_root(Some(common)).join(format!(".exec-{name}"));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("mkdir {}", path.display()))?;
        Ok(Self { path, name })
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The signals that this command takes.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    resize: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            resize: signal(SignalKind::window_change())?,
        })
    }
}

/// One exec.
struct Running<'a> {
    shim: Shim,
    pod: &'a Pod,
    container: &'a Container,
    name: String,
    /// Whether the shim knows it.
    begun: bool,
}

impl Running<'_> {
    /// Asks for the process, starts it, and waits for its end. Returns its status.
    async fn carry_out(
        &mut self,
        flags: &Exec,
        process: &Value,
        mut streams: Streams,
        mut signals: Signals,
    ) -> Result<u8> {
        let request = ExecProcessRequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            terminal: flags.tty,
            stdin: streams.stdin(),
            stdout: streams.stdout(),
            stderr: streams.stderr(),
            spec: Some(Any { value: serde_json::to_vec(process)?, ..Default::default() }).into(),
            ..Default::default()
        };
        self.shim.ask(self.shim.task().exec(bounded(), &request)).await?;
        self.begun = true;
        self.start().await?;
        let raw = if flags.tty { RawMode::of_stdin()? } else { None };
        streams.begin()?;
        self.resize(flags).await;
        let status = self.attend(flags, &mut streams, &mut signals).await?;
        // What is written is read to its end, or until the shim cuts it off.
        self.delete().await;
        streams.finish(PATIENCE).await;
        drop(raw);
        Ok(status)
    }

    /// Starts it. boot has a part in that, so that its silence is told from the shim's.
    async fn start(&self) -> Result<()> {
        let request = StartRequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            ..Default::default()
        };
        match self.shim.ask(self.shim.task().start(bounded(), &request)).await {
            Ok(_) => Ok(()),
            Err(Failure::NoAnswer(why)) => {
                let (task, nothing) = (self.shim.task(), ConnectRequest::default());
                let failure = match self.shim.ask(task.connect(bounded(), &nothing)).await {
                    Err(Failure::NoAnswer(_)) => Failure::NoAnswer(why),
                    _ => Failure::NoAnswer(format!(
                        "the sandbox process of the pod {} (PID {}): no answer within {} seconds; \
                         it may be stopped",
                        self.pod.id,
                        self.pod.boot().unwrap_or_default(),
                        PATIENCE.as_secs()
                    )),
                };
                Err(failure.into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Waits for the end of the process, and passes on what comes meanwhile.
    async fn attend(
        &self,
        flags: &Exec,
        streams: &mut Streams,
        signals: &mut Signals,
    ) -> Result<u8> {
        let request = WaitRequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            ..Default::default()
        };
        let task = self.shim.task();
        let ended = task.wait(ttrpc::context::Context::default(), &request);
        tokio::pin!(ended);
        let mut interrupts = 0;
        let mut deadline = None;
        loop {
            let patience = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = &mut ended => {
                    let status = answer.map_err(|error| self.shim.failure(error))?.exit_status;
                    return Ok(u8::try_from(status).unwrap_or(u8::MAX));
                }
                event = streams.event() => match event {
                    Event::InputEnded => self.close_input().await?,
                    Event::OutputRefused => {
                        self.kill(libc::SIGPIPE).await?;
                        deadline = Some(tokio::time::Instant::now() + GRACE);
                    }
                },
                _ = signals.interrupt.recv() => {
                    interrupts += 1;
                    self.kill(if interrupts == 1 { libc::SIGINT } else { libc::SIGKILL }).await?;
                }
                _ = signals.terminate.recv() => {
                    self.kill(libc::SIGTERM).await?;
                    deadline = Some(tokio::time::Instant::now() + GRACE);
                }
                _ = signals.hang_up.recv() => {
                    self.kill(libc::SIGHUP).await?;
                    deadline = Some(tokio::time::Instant::now() + GRACE);
                }
                _ = signals.resize.recv() => self.resize(flags).await,
                () = patience => {
                    self.kill(libc::SIGKILL).await?;
                    deadline = None;
                }
            }
        }
    }

    async fn close_input(&self) -> Result<()> {
        let request = CloseIORequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            stdin: true,
            ..Default::default()
        };
        // It may have ended meanwhile.
        let _ = self.shim.ask(self.shim.task().close_io(bounded(), &request)).await;
        Ok(())
    }

    async fn kill(&self, signal: i32) -> Result<()> {
        let request = KillRequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            signal: signal.cast_unsigned(),
            ..Default::default()
        };
        match self.shim.ask(self.shim.task().kill(bounded(), &request)).await {
            // It has ended already.
            Ok(_) | Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Gives the process's terminal the size of this command's.
    async fn resize(&self, flags: &Exec) {
        let Some((width, height)) = terminal::size().filter(|_| flags.tty) else { return };
        let request = ResizePtyRequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            width,
            height,
            ..Default::default()
        };
        // It may have ended meanwhile.
        let _ = self.shim.ask(self.shim.task().resize_pty(bounded(), &request)).await;
    }

    /// Has the shim forget it, and ends it if it runs. Idempotent.
    async fn delete(&mut self) {
        if !std::mem::take(&mut self.begun) {
            return;
        }
        let request = DeleteRequest {
            id: self.container.id.clone(),
            exec_id: self.name.clone(),
            ..Default::default()
        };
        if let Err(Failure::Failed(_)) = self.forget(&request).await
            && self.kill(libc::SIGKILL).await.is_ok()
        {
            let wait = WaitRequest {
                id: request.id.clone(),
                exec_id: self.name.clone(),
                ..Default::default()
            };
            let _ = self.shim.ask(self.shim.task().wait(bounded(), &wait)).await;
            let _ = self.forget(&request).await;
        }
    }

    async fn forget(&self, request: &DeleteRequest) -> Result<(), Failure> {
        self.shim.ask(self.shim.task().delete(bounded(), request)).await.map(drop)
    }
}
