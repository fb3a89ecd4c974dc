//! Writes system calls as strace does: the name, the arguments by name, and what pointers point at,
//! where the thread's memory can be read. For the stacks of threads that are in a call, and for
//! traces.
//!
//! | file | content |
//! |---|---|
//! | `table.rs` | the calls and the kinds of their arguments |
//! | `names.rs` | the names of values and bits |
//! | `doing.rs` | the call that a thread is in |
//! | `inside.rs` | the memory and the open files of the thread |
//! | `memory.rs` | what pointers point at |

mod doing;
mod inside;
mod memory;
mod names;
mod table;

use nix::errno::Errno;
use sandbox_core::spec::baseline::name_of;
pub use sandbox_core::spec::baseline::native;
use sandbox_core::types::Call;

pub use doing::Doing;
pub use inside::{Inside, Nothing, Process};
pub use memory::{printable, printable_name};

use table::Kind;

/// The longest argument that is written.
const LONGEST: usize = 160;

/// What a call waits for, if it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Something of a socket's.
    Network,
    /// One of several files to become ready.
    Readiness,
    /// A file, a pipe or a terminal.
    File,
    /// A disk.
    Disk,
    /// Another thread: a lock, or a condition.
    Lock,
    /// A moment.
    Time,
    /// A process.
    Process,
    /// A signal.
    Signal,
}

impl Waits {
    /// Returns the name, in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Readiness => "readiness",
            Self::File => "file",
            Self::Disk => "disk",
            Self::Lock => "lock",
            Self::Time => "time",
            Self::Process => "process",
            Self::Signal => "signal",
        }
    }
}

/// Returns the name of a call: `openat`, or `call 9999`.
pub fn name(call: &Call) -> String {
    name_of(call).unwrap_or_else(|| format!("call {}", call.number))
}

/// Writes a call in one line: `openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC)`.
pub fn describe(call: &Call, inside: &dyn Inside) -> String {
    let name = name(call);
    let Some(parameters) = table::parameters(&name) else {
        return sandbox_core::spec::refused::written(call);
    };
    let arguments = parameters.iter().enumerate();
    let written = arguments.filter_map(|(at, (_, kind))| write(*kind, at, call, inside));
    format!("{name}({})", written.collect::<Vec<_>>().join(", "))
}

/// Returns the arguments of a call with their names. Those of a call that is not known have numbers
/// for names.
pub fn arguments(call: &Call, inside: &dyn Inside) -> Vec<(&'static str, String)> {
    let Some(parameters) = table::parameters(&name(call)) else {
        let names = ["1", "2", "3", "4", "5", "6"].into_iter();
        return names.zip(call.arguments.map(memory::plain)).collect();
    };
    let all = parameters.iter().enumerate();
    all.filter_map(|(at, (name, kind))| Some((*name, write(*kind, at, call, inside)?))).collect()
}

/// Writes what a call has returned: a number, or the name of an error and what it means.
pub fn outcome(returned: i64) -> String {
    match i32::try_from(returned) {
        // Between -1 and -4095 an error (`MAX_ERRNO`); those from 512 on stay in the kernel.
        Ok(negative @ -4095..=-1) => match Errno::from_raw(-negative) {
            Errno::UnknownErrno if (-516..=-512).contains(&negative) => "interrupted".to_owned(),
            Errno::UnknownErrno => format!("error {}", -negative),
            known => format!("{known:?} ({})", known.desc()),
        },
        _ if !(0..=1 << 32).contains(&returned) => format!("{returned:#x}"),
        _ => returned.to_string(),
    }
}

/// Returns what a call waits for, if it can wait. `inside` says whether a file is a socket.
pub fn waits(call: &Call, inside: &dyn Inside) -> Option<Waits> {
    let file = || inside.file(memory::lower(call.arguments[0]).cast_signed());
    match table::waits(&name(call))? {
        Waits::File if file().is_some_and(|file| file.starts_with("socket:")) => {
            Some(Waits::Network)
        }
        other => Some(other),
    }
}

/// Writes one argument. `None` if the call does not take it with its other arguments.
fn write(kind: Kind, at: usize, call: &Call, inside: &dyn Inside) -> Option<String> {
    let all = &call.arguments;
    let value = all[at];
    let lower = memory::lower(value);
    let text = match kind {
        Kind::File => file(lower.cast_signed(), inside),
        Kind::Directory if lower.cast_signed() == names::AT_FDCWD => "AT_FDCWD".to_owned(),
        Kind::Directory => file(lower.cast_signed(), inside),
        Kind::Number => lower.cast_signed().to_string(),
        Kind::Size => value.to_string(),
        Kind::Offset => value.cast_signed().to_string(),
        Kind::Address => memory::pointer(value),
        Kind::Name(known) => names::named(known, u64::from(lower)),
        Kind::Bits(known) => names::bits(known, u64::from(lower)),
        Kind::Choice(choice, known) => {
            let rest = u64::from(lower & !choice.mask);
            let chosen = names::named(choice.names, u64::from(lower & choice.mask));
            if rest == 0 { chosen } else { format!("{chosen}|{}", names::bits(known, rest)) }
        }
        Kind::Mode => format!("{:#o}", lower & 0o7777),
        // open(2) takes a mode only if it may make a file.
        Kind::ModeOfNew(flags) if all[flags] & names::MAKES_FILE == 0 => return None,
        Kind::ModeOfNew(_) => format!("{:#o}", lower & 0o7777),
        Kind::Signal => names::signal(lower.cast_signed()),
        Kind::Text => memory::text(inside, value),
        Kind::Content(size) => memory::content(inside, value, all[size]),
        Kind::Texts => memory::texts(inside, value),
        Kind::SocketAddress(size) => memory::socket_address(inside, value, all[size]),
        Kind::Time => memory::time(inside, value),
        Kind::Polled(number) => memory::polled(inside, value, all[number]),
        Kind::Futex => memory::futex(inside, value),
        // The fourth argument of futex(2) is a time only where the call waits.
        Kind::FutexTime if names::futex_waits(memory::lower(all[1])) => memory::time(inside, value),
        Kind::FutexTime => return None,
        Kind::How => memory::open_how(inside, value),
    };
    Some(shortened(text))
}

fn file(number: i32, inside: &dyn Inside) -> String {
    match inside.file(number) {
        Some(path) => format!("{number}<{}>", memory::printable(path.as_bytes())),
        None => number.to_string(),
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests;
