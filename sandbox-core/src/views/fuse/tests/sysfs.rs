//! What is passed through of this machine's sysfs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::nodes::Node;
use super::super::places::Place;
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

/// Puts a directory of the test's own in the place of the host's `cpu`.
fn with_directory(mounted: &Mounted, make: impl FnOnce(&Path)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
    mounted.tell(|_, texts| texts.cpu = opened);
    directory
}

#[test]
fn nobody_reads_what_only_the_host_s_root_may() {
    // This test is the host's root, and the server as well.
    let mounted = Mounted::new();
    let error = |path: &str| fs::read(mounted.path(path)).unwrap_err().raw_os_error();
    assert_eq!(error("1/node/node0/compact"), Some(libc::EACCES));
    let _directory = with_directory(&mounted, |directory| {
        for (name, mode) in [("secret", 0o400), ("group", 0o440), ("public", 0o444)] {
            fs::write(directory.join(name), "text").unwrap();
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    });
    assert_eq!(
        (error("1/cpu/secret"), error("1/cpu/group")),
        (Some(libc::EACCES), Some(libc::EACCES))
    );
    assert_eq!(mounted.read("1/cpu/public"), "text");
}

#[test]
fn the_server_follows_no_link_and_opens_nothing_that_blocks() {
    let mounted = Mounted::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "outside").unwrap();
    let directory = with_directory(&mounted, |directory| {
        symlink(outside.path(), directory.join("link")).unwrap();
        fs::create_dir(directory.join("plain")).unwrap();
        fs::write(directory.join("plain/passwd"), "inside").unwrap();
        fs::write(directory.join("long"), [b'x'; 64 * 1024]).unwrap();
        fs::write(directory.join("too-long"), [b'x'; 80 * 1024]).unwrap();
        let pipe = directory.join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    });
    // What asks for what is behind the link, as no kernel would: nodes are as they were looked up.
    let look_up = |node: u64, name: &str| {
        let lookup = Operation::Lookup { name: name.as_bytes().to_vec() };
        let found = mounted.tell(move |server, texts| server.files.answer(node, &lookup, texts));
        found.map(|bytes| u64::from_ne_bytes(bytes[..8].try_into().unwrap()))
    };
    let cpu = Node::Place(1, Place::Cpu).number();
    let (link, plain) = (look_up(cpu, "link").unwrap(), look_up(cpu, "plain").unwrap());
    assert!(look_up(plain, "passwd").is_ok());
    assert_eq!(look_up(link, "passwd"), Err(Errno::LOOP.into()));
    // The kernel resolves it by itself, as the reader's own path.
    assert_eq!(fs::read_link(mounted.path("1/cpu/link")).unwrap(), outside.path());
    assert_eq!(
        fs::read(mounted.path("1/cpu/pipe")).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
    assert_eq!(mounted.read("1/cpu/long").len(), 64 * 1024);
    let long = fs::read(mounted.path("1/cpu/too-long")).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(libc::EFBIG));
    // What is exchanged for a link after it was looked up is not followed either.
    fs::rename(directory.path().join("plain"), directory.path().join("other")).unwrap();
    symlink(outside.path(), directory.path().join("plain")).unwrap();
    assert_eq!(look_up(plain, "passwd"), Err(Errno::LOOP.into()));
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
            let node = Node::Place(1, Place::Cpu);
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
    assert_eq!(rustix::io::read(&file, &mut [0; 9]), Err(Errno::STALE));
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

/// As by a masked path: also of a CPU that the container gets later.
#[test]
fn what_is_hidden_is_there_for_no_other_way_either() {
    let mounted = Mounted::new();
    let hidden = |cpu: u32| format!("{KERNELS}/cpu/cpu{cpu}/topology");
    mounted.tell(move |server, _| {
        (0..64).for_each(|cpu| server.hide(1, Path::new(&hidden(cpu))));
        server.hide(1, Path::new("/proc/meminfo"));
    });
    let cpu = mounted.path("1/cpu/cpu0");
    assert!(Path::new(KERNELS).join("cpu/cpu0/topology/core_id").exists());
    assert_eq!(
        fs::read_dir(cpu.join("topology")).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    assert!(!cpu.join("topology/core_id").exists() && !cpu.join("./topology/").exists());
    let listed = |cpu: &Path| {
        let names = fs::read_dir(cpu).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name == "topology").count()
    };
    assert_eq!(listed(&cpu), 0);
    let other = mounted.path("2/cpu/cpu0");
    assert!(other.join("topology/core_id").exists() && listed(&other) == 1);
}
