//! Limits of the kernel for the whole machine, which many pods reach.

use std::fs;

use super::Finding;

/// A sysctl, the least that many pods need, and what happens below that.
struct Limit {
    name: &'static str,
    least: u64,
    why: &'static str,
}

const LIMITS: [Limit; 11] = [
    Limit {
        name: "fs.inotify.max_user_instances",
        least: 512,
        why: "the kubelet and containerd watch files as root, and `too many open files` follows",
    },
    Limit {
        name: "fs.inotify.max_user_watches",
        least: 65536,
        why: "programs that watch directories fail with `no space left on device`",
    },
    Limit {
        name: "kernel.keys.maxkeys",
        least: 200,
        why: "each container has a session keyring; the pod's users share this many keys",
    },
    Limit {
        name: "kernel.keys.maxbytes",
        least: 20000,
        why: "keys of a user together; a keyring that cannot be made stops a container",
    },
    Limit {
        name: "kernel.keys.root_maxkeys",
        least: 10000,
        why: "containers without a user namespace have keyrings of the host's root",
    },
    Limit {
        name: "kernel.pid_max",
        least: 65536,
        why: "all processes and threads of all pods share these numbers",
    },
    Limit { name: "kernel.threads-max", least: 32768, why: "all threads of all pods together" },
    Limit {
        name: "user.max_pid_namespaces",
        least: 1024,
        why: "each container has one, and none can be made beyond that",
    },
    Limit {
        name: "user.max_mnt_namespaces",
        least: 1024,
        why: "each container has one, and none can be made beyond that",
    },
    Limit {
        name: "user.max_net_namespaces",
        least: 1024,
        why: "each pod has one, and none can be made beyond that",
    },
    Limit {
        name: "user.max_cgroup_namespaces",
        least: 1024,
        why: "each container has one, and none can be made beyond that",
    },
];

/// Looks at the limits.
pub(super) fn look() -> Vec<Finding> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
    LIMITS.iter().filter_map(|limit| Some(judge(limit, &read(limit.name).ok()?))).collect()
}

fn judge(limit: &Limit, text: &str) -> Finding {
    let Limit { name, least, why } = limit;
    match text.trim().parse::<u64>() {
        Ok(number) if number < *least => Finding::warning(
            *name,
            format!("{number}, less than {least}"),
            why,
            &format!("sysctl -w {name}={}", least.max(&65536)),
        ),
        Ok(number) => Finding::ok(*name, number.to_string()),
        Err(_) => Finding::ok(*name, text.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_low_limit_is_a_warning_with_the_line_that_raises_it() {
        let low = judge(&LIMITS[0], "128\n");
        assert_eq!(low.verdict, Verdict::Warning);
        assert_eq!(low.mend, "sysctl -w fs.inotify.max_user_instances=65536");
        assert_eq!(judge(&LIMITS[0], "512\n").verdict, Verdict::Ok);
    }
}
