//! What is passed through of this machine's sysfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::protocol::Operation;
use super::served::Mounted;
use crate::cpu_set::CpuSet;
use crate::views::File;

const KERNELS: &str = "/sys/devices/system";

/// Compares all below a directory, and returns how many files there are.
fn compare(ours: &Path, kernels: &Path) -> usize {
    let names = |path: &Path| {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(names(ours), names(kernels), "{}", kernels.display());
    let compare_one = |name| {
        let (ours, kernels) = (ours.join(&name), kernels.join(&name));
        let stat = [&ours, &kernels].map(|path| fs::symlink_metadata(path).unwrap());
        let [our_stat, kernels_stat] =
            stat.each_ref().map(|stat| (stat.mode(), stat.size(), stat.nlink(), stat.blksize()));
        assert_eq!(our_stat, kernels_stat, "{}", kernels.display());
        if stat[1].is_symlink() {
            assert_eq!(fs::read_link(ours).unwrap(), fs::read_link(kernels).unwrap());
            return 0;
        }
        if stat[1].is_dir() {
            return compare(&ours, &kernels);
        }
        let text = |path: &Path| fs::read(path).map_err(|error| error.raw_os_error());
        let (before, our_text, after) = (text(&kernels), text(&ours), text(&kernels));
        // What the server makes, and what moves meanwhile, cannot be compared.
        let made = ["online", "possible", "present", "cpulist", "cpumap", "meminfo"];
        if before == after && !made.iter().any(|made| name == *made) {
            assert_eq!(our_text, before, "{}", kernels.display());
        }
        1
    };
    names(kernels).into_iter().map(compare_one).sum()
}

#[test]
fn a_container_with_all_cpus_sees_all() {
    let mounted = Mounted::new();
    for tree in ["cpu", "node"] {
        let files = compare(&mounted.path("1").join(tree), &Path::new(KERNELS).join(tree));
        assert!(files > 10, "{files}");
    }
}

#[test]
fn what_counts_cpus_and_memory_is_made_of_the_kernel_s_text() {
    let mounted = Mounted::new();
    let files = [
        ("cpu/possible", File::CpuPossible),
        ("node/node0/cpulist", File::NodeCpulist(0)),
        ("node/node0/cpumap", File::NodeCpumap(0)),
        ("node/node0/meminfo", File::NodeMeminfo(0)),
    ];
    for (path, file) in files {
        assert!(mounted.read(&format!("1/{path}")).starts_with(&format!("1 {file:?}")));
        let kernels = fs::read(Path::new(KERNELS).join(path)).unwrap();
        let asked = mounted.tell(|_, texts| texts.asked.pop().unwrap());
        let first_line = |text: &[u8]| text.split(|byte| *byte == b'\n').next().map(<[u8]>::to_vec);
        assert_eq!((asked.0, first_line(&asked.1.unwrap())), (file, first_line(&kernels)));
    }
    for file in ["online", "present"] {
        mounted.read(&format!("1/cpu/{file}"));
        assert_eq!(mounted.tell(|_, texts| texts.asked.pop().unwrap().1), None);
    }
    // A file of another name, or in another directory, is none of them.
    assert!(mounted.read("1/node/online").starts_with('0'));
}

#[test]
fn only_the_container_s_cpus_have_directories() {
    let mounted = Mounted::new();
    let with = |cpus: &str| {
        let cpus = CpuSet::parse(cpus).unwrap();
        mounted.tell(move |_, texts| texts.cpus = Ok(cpus));
    };
    let cpus = |directory: &str| {
        let mut names = mounted.names(directory);
        names.retain(|name| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok()));
        names
    };
    let links = || fs::metadata(mounted.path("1/cpu")).unwrap().nlink();
    let all = fs::read_dir(Path::new(KERNELS).join("cpu")).unwrap().count();
    with("0");
    assert_eq!((cpus("1/cpu"), cpus("1/node/node0")), (vec!["cpu0".into()], vec!["cpu0".into()]));
    let directories = fs::read_dir(mounted.path("1/cpu")).unwrap();
    let directories =
        directories.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
    assert_eq!(links(), 2 + directories.count() as u64);
    assert!(!mounted.path("1/cpu/cpu1").exists());
    assert!(fs::symlink_metadata(mounted.path("1/node/node0/cpu1")).is_err());
    assert_eq!(mounted.names("1/cpu").len() + 1, all);
    // An Update gives it the other, and takes the first away.
    with("0-1");
    assert!(mounted.path("1/cpu/cpu1/topology").is_dir());
    assert_eq!(cpus("1/cpu"), ["cpu0", "cpu1"]);
    with("1");
    assert!(mounted.path("1/cpu/cpu1/topology").is_dir() && !mounted.path("1/cpu/cpu0").exists());
    assert_eq!((cpus("1/cpu"), cpus("1/node/node0")), (vec!["cpu1".into()], vec!["cpu1".into()]));
}

#[test]
fn nobody_reads_what_only_the_host_s_root_may() {
    let mounted = Mounted::new();
    // This test is the host's root, and the server as well.
    let error = fs::read(mounted.path("1/node/node0/compact")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn nothing_else_of_the_host_can_be_reached() {
    let mounted = Mounted::new();
    let open = |path: &str| fs::File::open(mounted.path(path)).map(drop);
    // The kernel resolves dots by what it has mounted, and asks for nothing.
    open("1/cpu/../stat").unwrap();
    open("1/node/node0/../../stat").unwrap();
    assert!(open("1/node/../../../cpu/online").is_err());
    assert!(open("1/cpu/online/x").is_err() && open("1/cpu/cpu00").is_err());
    // And asked by force, as only another kernel would.
    let ask = |name: &str| {
        let name = name.as_bytes().to_vec();
        mounted.tell(move |server, texts| {
            let node = super::super::nodes::Node::Place(1, super::super::places::Place::Cpu);
            let lookup = Operation::Lookup { name };
            server.files.answer(node.number(), &lookup, texts).map(|_| ())
        })
    };
    for name in [".", "..", "cpu0/../../node", "../node", "/proc", ""] {
        assert!(ask(name).is_err(), "{name:?}");
    }
    assert_eq!(ask("cpu0"), Ok(()));
}

#[test]
fn without_the_host_s_sysfs_the_files_that_are_made_are_there() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.sysfs = false);
    assert_eq!(mounted.names("1/cpu"), ["online", "present"]);
    assert_eq!(mounted.names("1/node"), [""; 0]);
    assert!(mounted.read("1/cpu/online").starts_with("1 CpuOnline"));
    assert!(!mounted.path("1/cpu/possible").exists() && !mounted.path("1/cpu/cpu0").exists());
    assert!(fs::metadata(mounted.path("1/cpu")).unwrap().is_dir());
}

#[test]
fn nothing_is_kept_of_what_the_kernel_forgets() {
    let mounted = Mounted::new();
    // A listing takes no room.
    mounted.names("1/cpu");
    mounted.names("1/node");
    assert_eq!(mounted.tell(|server, _| server.files.nodes.count()), 0);
    for _ in 0..100 {
        assert!(mounted.path("1/cpu/cpu1/topology").is_dir());
        mounted.read("1/cpu/cpu1/topology/core_id");
    }
    assert_eq!(mounted.tell(|server, _| server.files.nodes.count()), 3);
    // The kernel forgets a directory, and what is in it, when it is no longer there.
    mounted.tell(|_, texts| texts.cpus = Ok(CpuSet::parse("0").unwrap()));
    assert!(!mounted.path("1/cpu/cpu1").exists());
    mounted.wait_until(|server| server.files.nodes.count() == 0);
}

#[test]
fn a_node_that_the_server_dropped_is_looked_up_again() {
    let mounted = Mounted::new();
    let path = "1/cpu/vulnerabilities/meltdown";
    let text = mounted.read(path);
    let file = mounted.open(path);
    let drop = || mounted.tell(|server, _| server.files.nodes.remove_container(1));
    drop();
    assert_eq!(mounted.read(path), text);
    drop();
    assert!(fs::metadata(mounted.path(path)).is_ok());
    assert_eq!(rustix::io::read(&file, &mut [0; 9]), Err(rustix::io::Errno::STALE));
    let kept = mounted.names("1/cpu/vulnerabilities");
    drop();
    assert_eq!(mounted.names("1/cpu/vulnerabilities"), kept);
}

#[test]
fn no_directory_is_too_long_to_be_listed() {
    // Each page of entries goes on where the one before ended.
    let mounted = Mounted::new();
    let kernels = fs::read_dir(Path::new(KERNELS).join("node/node0")).unwrap().count();
    let names = mounted.names("1/node/node0");
    let mut once = names.clone();
    once.dedup();
    assert!(names.len() == kernels && once == names);
    mounted.tell(|_, texts| texts.cpus = Ok(CpuSet::default()));
    assert_eq!(mounted.names("1/node/node0").len(), kernels - online());
}

fn online() -> usize {
    let list = fs::read_to_string(Path::new(KERNELS).join("node/node0/cpulist")).unwrap();
    CpuSet::parse(&list).unwrap().count() as usize
}
