//! What has passed the network of a process: `/proc/PID/net/dev` (proc_pid_net(5)).

use std::fs;

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// Bytes, packets, errors and drops.
    pub(crate) received: [u64; 4],
    pub(crate) sent: [u64; 4],
}

/// Reads the interfaces, but the one that leads back to itself.
pub(crate) fn interfaces(pid: i32) -> Vec<Interface> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

/// Parses a line such as `  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0`.
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let four = |at: usize| numbers.get(at..at + 4)?.try_into().ok();
    Some(Interface { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        for (line, name) in [
            ("  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0", "eth0"),
            ("net1:10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0", "net1"),
        ] {
            let read = interface(line).unwrap();
            assert_eq!(
                (read.name.as_str(), read.received, read.sent),
                (name, [10, 2, 3, 4], [50, 6, 7, 8])
            );
        }
        assert_eq!(interface(" face |bytes    packets errs drop fifo frame"), None);
        assert_eq!(interface("x: 1 2"), None);
    }
}
