//! What a thread waits for, in a few words.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use sandbox_core::types::Call;

use super::Thread;
use crate::calls::{self, Inside, Waits, printable};
use crate::status::Status;

/// The most files of an epoll instance that are named.
const FILES: usize = 8;

/// Returns what a thread waits for. `None` where its call says all.
pub(super) fn of(
    thread: &Thread,
    status: &Status,
    call: Option<&Call>,
    inside: &dyn Inside,
    sockets: &mut Sockets,
) -> Option<String> {
    let in_kernel = |part: &str| {
        let wchan = thread.wchan.as_deref().unwrap_or_default();
        wchan.contains(part) || thread.kernel.iter().any(|function| function.contains(part))
    };
    match (thread.state.as_str(), status.number::<i32>("TracerPid", 0).unwrap_or(0)) {
        ("T", _) => return Some("SIGCONT: a signal has stopped it".to_owned()),
        ("t", tracer) => return Some(format!("its tracer, PID {tracer}")),
        _ if in_kernel("do_freezer_trap") || in_kernel("__refrigerator") => {
            return Some("the end of a pause: its cgroup is frozen".to_owned());
        }
        _ if call.is_none() && in_kernel("page_fault") => {
            return Some("a page of its memory".to_owned());
        }
        _ => {}
    }
    let call = call?;
    let first = call.arguments[0];
    // The kernel looks at the lower half.
    let file = first as i32;
    match calls::waits(call, inside)? {
        Waits::Lock if calls::name(call).starts_with("futex") => {
            Some(format!("the lock or condition at {first:#x}"))
        }
        Waits::Network | Waits::File => {
            let target = sockets.target(thread.tid, file, inside)?;
            Some(format!("descriptor {file} ({target})"))
        }
        Waits::Readiness if calls::name(call).starts_with("epoll") => {
            sockets.watched(thread.tid, file, inside)
        }
        _ => None,
    }
}

/// The sockets of networks: what they are, by inode.
#[derive(Default)]
pub(super) struct Sockets {
    /// By the link of the network namespace.
    known: HashMap<PathBuf, HashMap<String, String>>,
}

impl Sockets {
    /// Returns what a descriptor is open for: a socket with its addresses.
    fn target(&mut self, tid: i32, file: i32, inside: &dyn Inside) -> Option<String> {
        let link = inside.file(file)?;
        let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        let socket = inode.and_then(|inode| self.of(tid)?.get(inode).cloned());
        Some(socket.unwrap_or_else(|| printable(link.as_bytes())))
    }

    /// Returns those of the network of a thread, which are read once.
    fn of(&mut self, tid: i32) -> Option<&HashMap<String, String>> {
        let network = fs::read_link(format!("/proc/{tid}/ns/net")).ok()?;
        Some(self.known.entry(network).or_insert_with(|| sockets(tid)))
    }

    /// Returns the files that an epoll instance watches.
    fn watched(&mut self, tid: i32, file: i32, inside: &dyn Inside) -> Option<String> {
        let info = fs::read_to_string(format!("/proc/{tid}/fdinfo/{file}")).ok()?;
        let all = watched_files(&info);
        if all.is_empty() {
            return Some("nothing: no file is watched".to_owned());
        }
        let shown = all.iter().take(FILES).map(|file| match self.target(tid, *file, inside) {
            Some(target) => format!("{file} ({target})"),
            None => file.to_string(),
        });
        let mut text = format!("descriptors {}", shown.collect::<Vec<_>>().join(", "));
        if all.len() > FILES {
            text += &format!(" and {} more", all.len() - FILES);
        }
        Some(text)
    }
}

/// Parses lines as in `tfd:        5 events:       19 data:                5  pos:0 ino:…`.
fn watched_files(info: &str) -> Vec<i32> {
    let numbers = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
    numbers.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

/// Reads the sockets in the network of a thread.
fn sockets(tid: i32) -> HashMap<String, String> {
    let read = |table: &str| {
        let text = fs::read(format!("/proc/{tid}/net/{table}")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    };
    let mut all = HashMap::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let protocol = &table[..3];
        for (inode, addresses) in read(table).lines().filter_map(internet) {
            all.insert(inode, format!("{protocol} {addresses}"));
        }
    }
    for line in read("unix").lines().skip(1) {
        let mut words = line.split_whitespace().skip(6);
        let Some(inode) = words.next() else { continue };
        let path = words.next().map(|path| format!("unix socket {}", printable(path.as_bytes())));
        all.insert(inode.to_owned(), path.unwrap_or_else(|| "unix socket".to_owned()));
    }
    all
}

/// Parses a line of `/proc/net/tcp`: the inode, and both addresses.
fn internet(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let (own, other) = (address(words.nth(1)?)?, address(words.next()?)?);
    let inode = words.nth(6)?.to_owned();
    let to = if other.ends_with(":0") { String::new() } else { format!(" to {other}") };
    Some((inode, own + &to))
}

/// Parses an address as in `0100007F:1F90`: words as the machine stores them.
fn address(text: &str) -> Option<String> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words = ip.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Some(format!("{}:{port}", std::net::Ipv4Addr::from(four))),
        Err(_) => {
            let sixteen = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
            Some(format!("[{}]:{port}", std::net::Ipv6Addr::from(sixteen)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sockets_are_read() {
        let line = "  46: 0100007F:1F90 0700000A:01BB 01 00000000:00000000 00:00000000 00000000 \
            1000        0 10083 1 0000000000000000 20 4 30 10 -1";
        let (inode, addresses) = internet(line).unwrap();
        assert_eq!(
            (inode.as_str(), addresses.as_str()),
            ("10083", "127.0.0.1:8080 to 10.0.0.7:443")
        );
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        assert_eq!(internet(heading), None);
        let six = "00000000000000000000000001000000:0050";
        assert_eq!(address(six).as_deref(), Some("[::1]:80"));
        assert_eq!(address("x:0"), None);
    }

    #[test]
    fn files_of_an_epoll_are_read() {
        let info =
            "pos:\t0\nflags:\t02\ntfd:        5 events:       19 data: 5\ntfd: 7 events: 1\n";
        assert_eq!(watched_files(info), [5, 7]);
    }
}
