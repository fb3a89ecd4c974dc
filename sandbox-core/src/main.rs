//! The `palisade-sandbox` executable: the sandbox process and its gofer. The shim
//! starts both; people run it only to print its version.

use std::ffi::OsString;
use std::process::ExitCode;

use sandbox_core::boot;
use sandbox_core::control::donation::BootFlags;
use sandbox_core::gofer;
use sandbox_core::sys::descriptor::{adopt, cloexec_from};
use sandbox_core::sys::heap;

/// The system's allocator, into which `palisade debug heap-profile` looks.
#[global_allocator]
static ALLOCATOR: heap::Sampling = heap::Sampling;

const USAGE: &str = "\
palisade-sandbox: the sandbox process of the containerd runtime io.containerd.palisade.v1

containerd-shim-palisade-v1 starts this program:
  palisade-sandbox --log-fd=N --panic-log-fd=N boot ... ID   becomes a sandbox process
  palisade-sandbox gofer --request-fd=N                      opens the files of a container

  palisade-sandbox --version                                 prints the version";

fn main() -> ExitCode {
    heap::stack_begins_here();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let given = |flag: &str| args.iter().any(|arg| arg == flag);
    if given("boot") {
        return boot(args);
    }
    if given("gofer") {
        return gofer(&args);
    }
    if given("--version") {
        println!("palisade-sandbox {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    println!("{USAGE}");
    if args.is_empty() || given("--help") { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn boot(args: Vec<OsString>) -> ExitCode {
    match BootFlags::parse(args) {
        Ok(flags) => boot::run(&flags),
        Err(error) => refuse(&error),
    }
}

fn gofer(args: &[OsString]) -> ExitCode {
    let number = args.iter().find_map(|a| a.to_str()?.strip_prefix("--request-fd=")?.parse().ok());
    let Some(number) = number else {
        return refuse(&"gofer: --request-fd=N is missing; the gofer is started by the shim");
    };
    // The hooks that it runs get nothing of this, neither the mount of the executable.
    match cloexec_from(3).and_then(|()| adopt(number)) {
        Ok(socket) => gofer::run(socket),
        Err(error) => refuse(&format!("gofer: --request-fd={number}: {error}")),
    }
}

fn refuse(message: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("palisade-sandbox: {message}");
    ExitCode::from(2)
}
