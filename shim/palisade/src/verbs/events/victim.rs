//! Which process the kernel has killed for lack of memory: only its log says so.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use serde_json::{Value, json};

/// The longest record of the kernel's log.
const RECORD: usize = 8 << 10;

/// Returns the process that was killed last in a container's cgroup. `None` if the log cannot be
/// read or does not say.
pub(super) fn of(container: &str) -> Option<Value> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").ok()?;
    let mut record = vec![0; RECORD];
    let mut found = None;
    loop {
        match log.read(&mut record) {
            Ok(0) => return found,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                found = victim(&text, container).or(found);
            }
            // Records were overwritten: the next read goes on with the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return found,
        }
    }
}

/// Reads a record, as in
/// `6,1001,77,-;oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/x/ID,task=stress,pid=7,uid=0`.
fn victim(record: &str, container: &str) -> Option<Value> {
    let (_, message) = record.lines().next()?.split_once(';')?;
    let fields = message.strip_prefix("oom-kill:")?;
    // The command's name comes last but two, and may contain anything.
    let (rest, uid) = fields.rsplit_once(",uid=")?;
    let (rest, pid) = rest.rsplit_once(",pid=")?;
    let (rest, command) = rest.split_once(",task=")?;
    let (_, cgroup) = rest.split_once(",task_memcg=")?;
    is_below(cgroup, container).then_some(())?;
    let number = |text: &str| text.parse::<u32>().ok();
    Some(json!({ "pid": number(pid)?, "command": command, "uid": number(uid)? }))
}

/// Whether a cgroup is a container's, or one below. systemd names a scope `PREFIX-ID.scope`.
fn is_below(cgroup: &str, container: &str) -> bool {
    let is_it = |name: &str| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        name == container || name.strip_suffix(container).is_some_and(|rest| rest.ends_with('-'))
    };
    !container.is_empty() && cgroup.split('/').any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cgroup: &str, command: &str) -> String {
        format!(
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,\
             oom_memcg=/pods,task_memcg={cgroup},task={command},pid=7,uid=1073807360\n KEY=value\n"
        )
    }

    #[test]
    fn the_kernel_says_which_process_it_killed() {
        let expected = json!({ "pid": 7, "command": "a,pid=1", "uid": 1_073_807_360 });
        for cgroup in ["/pods/web", "/pods/web/inner", "/a.slice/cri-containerd-web.scope"] {
            assert_eq!(victim(&record(cgroup, "a,pid=1"), "web"), Some(expected.clone()));
        }
    }

    #[test]
    fn other_records_are_passed_over() {
        for cgroup in ["/pods/webb", "/pods/cobweb", "/"] {
            assert_eq!(victim(&record(cgroup, "a"), "web"), None);
        }
        for record in ["", "6,1,2,-;usb 1-1: new device", "6,1,2,-;oom-kill:", "oom-kill:,task="] {
            assert_eq!(victim(record, "web"), None);
        }
    }
}
