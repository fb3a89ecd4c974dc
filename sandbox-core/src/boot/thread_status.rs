//! What boot's proc says of a thread: proc_pid_status(5).

use std::fs;

use crate::container::paths::PROC;

/// The status of a thread.
pub(super) struct ThreadStatus(String);

impl ThreadStatus {
    /// Reads it. `None` if the thread is gone.
    pub(super) fn of(thread: i32) -> Option<Self> {
        let bytes = fs::read(format!("{PROC}/{thread}/status")).ok()?;
        Some(Self(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Returns the value of a field. The name of the thread is the first one, with its line
    /// breaks escaped, so that it cannot pass for another.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_passes_for_a_field() {
        let text = "Name:\tCapEff: x\\nCapEff:\t1\nUid:\t7\t8\nCapEff:\t2\n";
        let status = ThreadStatus(text.to_owned());
        assert_eq!(status.field("CapEff"), Some("2"));
        assert_eq!(status.field("Name"), Some("CapEff: x\\nCapEff:\t1"));
        assert_eq!(status.field("Uid"), Some("7\t8"));
        assert_eq!(status.field("Ui"), None);
    }
}
