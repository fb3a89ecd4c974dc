//! What a container is told of its CPUs and memory, made of real cgroups.

use super::*;
use crate::views::File;
use crate::views::files::{OwnState, sysinfo, text};
use crate::views::host::Host;
use crate::views::sources::Sources;

mod needs_v1 {
    use super::*;

    #[test]
    fn texts_say_the_limits_and_follow_them() {
        needs(!is_v2(), "cgroup version 1");
        follow_the_limits();
    }

    #[test]
    fn limits_of_the_pod_count_for_its_containers() {
        needs(!is_v2(), "cgroup version 1");
        let pod = Scratch::new(&limits(64, 50_000));
        let child = Scratch { cgroup: child_of(&pod.cgroup), children: Vec::new() };
        let mut view = View::of(&child.cgroup);
        assert_eq!(view.meminfo("MemTotal"), 65536);
        assert_eq!(view.cpus(), [highest_cpu()]);
        pod.cgroup.update(&limits(128, 250_000)).unwrap();
        assert_eq!(view.meminfo("MemTotal"), 131_072);
        assert_eq!(view.cpus(), online());
        drop(child);
    }
}

mod needs_v2 {
    use super::*;

    #[test]
    fn texts_say_the_limits_and_follow_them() {
        needs(is_v2(), "cgroup version 2");
        follow_the_limits();
    }
}

mod needs_v2_mount {
    use super::*;
    use crate::cgroup::tests::needs_v2_mount::scratch;

    #[test]
    fn times_threads_and_pressure_are_the_cgroup_s_own() {
        let mut scratch = scratch(&LinuxResources::default());
        let mut view = View::of(&scratch.cgroup);
        assert_eq!(view.stat("cpu")[..3], [0, 0, 0]);
        scratch.run("sleep 60 & while :; do :; done");
        until(|| view.stat("cpu")[0] >= 5);
        until(|| view.stat("procs_running")[0] >= 2);
        let loadavg = view.text(File::Loadavg);
        assert!(loadavg.contains(" 2/2 "), "{loadavg}");
        let dir = scratch.cgroup.any_dir().unwrap();
        let pressures = [
            (File::PressureCpu, "cpu.pressure"),
            (File::PressureIo, "io.pressure"),
            (File::PressureMemory, "memory.pressure"),
        ];
        // No averages of a moment ago.
        scratch.cgroup.freeze().unwrap();
        for (file, name) in pressures {
            until(|| view.text(file) == fs::read_to_string(dir.join(name)).unwrap());
        }
        scratch.cgroup.thaw().unwrap();
        // The controllers are not in this hierarchy: the machine's memory, and all its CPUs.
        if !is_v2() {
            assert_eq!(view.cpus(), online());
            let kernels = fs::read_to_string("/proc/meminfo").unwrap();
            assert_eq!(view.text(File::Meminfo).lines().next(), kernels.lines().next());
            assert_eq!(view.text(File::Diskstats), "");
        }
    }
}

/// A container's views, from files that are opened once.
struct View {
    sources: Sources,
    host: Host,
    own: OwnState,
}

impl View {
    fn of(cgroup: &Cgroup) -> View {
        let opened = cgroup.view_sources().unwrap();
        let sources = Sources::new(cgroup.is_v2(), opened.own, opened.above);
        View { sources, host: Host::new("/proc"), own: OwnState::default() }
    }

    fn text(&mut self, file: File) -> String {
        let text = text(file, &self.sources, &mut self.host, &mut self.own).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn meminfo(&mut self, name: &str) -> u64 {
        let text = self.text(File::Meminfo);
        let line = text.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Returns the values of a line of `stat`.
    fn stat(&mut self, name: &str) -> Vec<u64> {
        let text = self.text(File::Stat);
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split_ascii_whitespace().skip(1).map(|value| value.parse().unwrap()).collect()
    }

    /// Returns the CPUs told, about which all files agree.
    fn cpus(&mut self) -> Vec<u32> {
        let list = self.text(File::CpuOnline);
        let cpus: Vec<u32> = crate::cpu_set::CpuSet::parse(&list).unwrap().iter().collect();
        let stat = self.text(File::Stat);
        let names = stat.lines().filter_map(|line| line.split(' ').next()?.strip_prefix("cpu"));
        let lines: Vec<u32> = names.filter_map(|number| number.parse().ok()).collect();
        let cpuinfo = self.text(File::Cpuinfo);
        let blocks = cpuinfo.lines().filter_map(|line| line.strip_prefix("processor\t: "));
        let blocks: Vec<u32> = blocks.map(|number| number.parse().unwrap()).collect();
        assert_eq!((&cpus, &cpus), (&lines, &blocks));
        assert_eq!(self.text(File::CpuPresent), list);
        cpus
    }
}

fn online() -> Vec<u32> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    crate::cpu_set::CpuSet::parse(&list).unwrap().iter().collect()
}

fn highest_cpu() -> u32 {
    *online().last().unwrap()
}

/// Limits memory, the CPU time of 100 ms, and threads.
fn limits(mib: i64, quota: i64) -> LinuxResources {
    let mut limits = cpu(|c| c.quota(quota).period(100_000u64));
    limits.set_memory(*memory(mib << 20).memory());
    limits.set_pids(Some(LinuxPidsBuilder::default().limit(77).build().unwrap()));
    limits
}

fn follow_the_limits() {
    let mut scratch = Scratch::new(&limits(64, 150_000));
    let mut view = View::of(&scratch.cgroup);
    assert_eq!(view.meminfo("MemTotal"), 65536);
    assert_eq!(view.cpus().len(), online().len().min(2));
    assert_eq!(view.text(File::ThreadsMax), "77\n");
    let empty = view.text(File::Loadavg);
    assert!(empty.starts_with("0.00 0.00 0.00 1/0 "), "{empty}");

    // One that runs and one that sleeps, and 8 MiB of a file.
    let folder = tempfile::tempdir().unwrap();
    let before = (view.meminfo("Cached"), view.meminfo("MemFree"));
    scratch.run(&format!(
        "head -c 8388608 /dev/zero > {}/f; sleep 60 & while :; do :; done",
        folder.path().display()
    ));
    until(|| view.meminfo("Cached") >= before.0 + 8192);
    assert!(view.meminfo("MemFree") <= before.1 - 8192);
    assert!(view.meminfo("MemAvailable") >= view.meminfo("MemFree") + 8000);
    until(|| view.stat("cpu")[0] >= 5);
    until(|| view.stat("procs_running")[0] >= 2);
    let loadavg = view.text(File::Loadavg);
    let all = loadavg.split([' ', '/']).nth(4).unwrap();
    assert!(["2", "3"].contains(&all), "{loadavg}");
    let info = sysinfo(&view.sources, &mut view.host, &mut view.own).unwrap();
    assert_eq!((info.totalram, info.mem_unit), (64 << 20, 1));
    let idle = view.stat("cpu")[3];

    scratch.cgroup.update(&limits(128, 50_000)).unwrap();
    assert_eq!(view.meminfo("MemTotal"), 131_072);
    assert_eq!(view.cpus(), [highest_cpu()]);
    assert!(view.stat("cpu")[3] >= idle);
    scratch.cgroup.update(&limits(-1, -1)).unwrap_or_else(|_| {
        // 2^20 less one MiB is more than this machine has.
        scratch.cgroup.update(&limits((1 << 20) - 1, -1)).unwrap();
    });
    let kernels = fs::read_to_string("/proc/meminfo").unwrap();
    assert_eq!(view.text(File::Meminfo).lines().next(), kernels.lines().next());
    assert_eq!(view.cpus(), online());

    // A cgroup that is gone.
    scratch.cgroup.kill_all().unwrap();
    scratch.children.drain(..).for_each(|mut child| drop(child.wait()));
    scratch.cgroup.remove().unwrap();
    let error = text(File::Meminfo, &view.sources, &mut view.host, &mut view.own).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NODEV.raw_os_error()));
}
