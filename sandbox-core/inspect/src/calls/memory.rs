//! Writes what the pointers of a call point at. What is read is the container's, and so hostile: it
//! is bounded, and no character of it reaches a terminal that is not printable.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::inside::Inside;
use super::names;

/// The longest string that is read.
const TEXT: usize = 128;
/// The most of a buffer that is shown.
const CONTENT: usize = 32;
/// The most entries of an array that are shown.
const ENTRIES: usize = 8;

/// Returns the lower half, which is all that the kernel looks at for an `int`.
pub(super) fn lower(value: u64) -> u32 {
    value as u32
}

/// Writes a number, in hexadecimal if it is large.
pub(super) fn plain(value: u64) -> String {
    if value < 1024 { value.to_string() } else { format!("{value:#x}") }
}

pub(super) fn pointer(address: u64) -> String {
    if address == 0 { "NULL".to_owned() } else { format!("{address:#x}") }
}

/// Escapes what is not printable, also what would change the order of a terminal's characters.
pub fn printable(bytes: &[u8]) -> String {
    let mut all = String::new();
    for chunk in bytes.utf8_chunks() {
        all.extend(chunk.valid().chars().flat_map(char::escape_debug));
        for byte in chunk.invalid() {
            let _ = write!(all, "\\x{byte:02x}");
        }
    }
    all
}

/// As [`printable`], for names that are shown without quotes: it leaves quotes as they are.
pub fn printable_name(name: &str) -> String {
    let mut all = String::new();
    for c in name.chars() {
        match c {
            '\'' | '"' | '\\' => all.push(c),
            c => all.extend(c.escape_debug()),
        }
    }
    all
}

fn read(inside: &dyn Inside, address: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let all = address != 0 && inside.read(address, &mut bytes) == length;
    all.then_some(bytes)
}

/// A string that ends with a zero.
pub(super) fn text(inside: &dyn Inside, address: u64) -> String {
    let mut bytes = [0; TEXT];
    let read = if address == 0 { 0 } else { inside.read(address, &mut bytes) };
    match (read, bytes[..read].iter().position(|byte| *byte == 0)) {
        (0, _) => pointer(address),
        (_, Some(end)) => format!("\"{}\"", printable(&bytes[..end])),
        (_, None) => format!("\"{}\"...", printable(&bytes[..read])),
    }
}

/// The beginning of a buffer.
pub(super) fn content(inside: &dyn Inside, address: u64, size: u64) -> String {
    let shown = usize::try_from(size).unwrap_or(CONTENT).min(CONTENT);
    match read(inside, address, shown) {
        Some(bytes) if shown as u64 == size => format!("\"{}\"", printable(&bytes)),
        Some(bytes) => format!("\"{}\"...", printable(&bytes)),
        None => pointer(address),
    }
}

/// A list of strings, such as the arguments of execve(2).
pub(super) fn texts(inside: &dyn Inside, address: u64) -> String {
    let mut all = Vec::new();
    for at in 0..=ENTRIES as u64 {
        let word = read(inside, address.saturating_add(8 * at), 8);
        let Some(word) = word.as_deref().map(|bytes| number(bytes, 0, 8)) else { break };
        match word {
            0 => return format!("[{}]", all.join(", ")),
            _ if all.len() == ENTRIES => break,
            text_at => all.push(text(inside, text_at)),
        }
    }
    if all.is_empty() { pointer(address) } else { format!("[{}, ...]", all.join(", ")) }
}

/// The address of a socket (`struct sockaddr` of several families).
pub(super) fn socket_address(inside: &dyn Inside, address: u64, size: u64) -> String {
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(128);
    match read(inside, address, size) {
        Some(bytes) if size >= 2 => address_of(&bytes),
        _ => pointer(address),
    }
}

fn address_of(bytes: &[u8]) -> String {
    let family = number(bytes, 0, 2);
    let port = |bytes: &[u8]| u16::from_be_bytes([bytes[2], bytes[3]]);
    match (family, bytes.len()) {
        (1, _) => match &bytes[2..] {
            [] => "unix".to_owned(),
            [0, name @ ..] => format!("unix:@{}", printable(name)),
            path => {
                let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
                format!("unix:{}", printable(&path[..end]))
            }
        },
        (2, 8..) => {
            let ip: [u8; 4] = bytes[4..8].try_into().unwrap_or_default();
            format!("{}:{}", Ipv4Addr::from(ip), port(bytes))
        }
        (10, 24..) => {
            let ip: [u8; 16] = bytes[8..24].try_into().unwrap_or_default();
            format!("[{}]:{}", Ipv6Addr::from(ip), port(bytes))
        }
        (16, 12..) => {
            format!("netlink:{} groups {:#x}", number(bytes, 4, 4), number(bytes, 8, 4))
        }
        _ => names::named(names::FAMILIES, family),
    }
}

/// A `struct timespec`.
pub(super) fn time(inside: &dyn Inside, address: u64) -> String {
    match read(inside, address, 16) {
        Some(bytes) => {
            let (seconds, nanoseconds) = (number(&bytes, 0, 8), number(&bytes, 8, 8));
            let fraction = format!("{nanoseconds:09}");
            match fraction.trim_end_matches('0') {
                "" => format!("{}s", seconds.cast_signed()),
                fraction => format!("{}.{fraction}s", seconds.cast_signed()),
            }
        }
        None => pointer(address),
    }
}

/// An array of `struct pollfd`: the files, and what for.
pub(super) fn polled(inside: &dyn Inside, address: u64, entries: u64) -> String {
    let shown = usize::try_from(entries).unwrap_or(ENTRIES).min(ENTRIES);
    let Some(bytes) = read(inside, address, 8 * shown) else { return pointer(address) };
    let mut all: Vec<String> = bytes
        .chunks_exact(8)
        .map(|entry| {
            let (file, events) = (lower(number(entry, 0, 4)).cast_signed(), number(entry, 4, 2));
            let file = super::file(file, inside);
            format!("{file}:{}", names::bits(names::POLL_EVENTS, events))
        })
        .collect();
    if shown as u64 != entries {
        all.push("...".to_owned());
    }
    format!("[{}]", all.join(", "))
}

/// A futex: where it is, and its value now.
pub(super) fn futex(inside: &dyn Inside, address: u64) -> String {
    match read(inside, address, 4) {
        Some(bytes) => format!("{address:#x}[{}]", lower(number(&bytes, 0, 4)).cast_signed()),
        None => pointer(address),
    }
}

/// A `struct open_how` (openat2(2)).
pub(super) fn open_how(inside: &dyn Inside, address: u64) -> String {
    let Some(bytes) = read(inside, address, 24) else { return pointer(address) };
    let flags = names::open_flags(number(&bytes, 0, 8));
    let resolve = names::bits(names::RESOLVE, number(&bytes, 16, 8));
    format!("{{flags={flags}, mode={:#o}, resolve={resolve}}}", number(&bytes, 8, 8))
}

/// A number of so many bytes, as the machine stores it: its lowest byte first.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut all = [0; 8];
    if let Some(part) = bytes.get(at..at + size) {
        all[..size].copy_from_slice(part);
    }
    u64::from_le_bytes(all)
}
