//! Files of proc.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, SeekFrom, StatVfsMountFlags};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags};

use super::super::protocol::Operation;
use super::served::{Mounted, run};
use crate::sys::mount::attach_at;
use crate::views::File;

/// All that is in each container's directory, by the kernel's path of it.
const KERNELS: [(&str, &str); 15] = [
    ("cpuinfo", "/proc/cpuinfo"),
    ("diskstats", "/proc/diskstats"),
    ("loadavg", "/proc/loadavg"),
    ("meminfo", "/proc/meminfo"),
    ("stat", "/proc/stat"),
    ("swaps", "/proc/swaps"),
    ("uptime", "/proc/uptime"),
    ("threads-max", "/proc/sys/kernel/threads-max"),
    ("pressure", "/proc/pressure"),
    ("pressure/cpu", "/proc/pressure/cpu"),
    ("pressure/io", "/proc/pressure/io"),
    ("pressure/memory", "/proc/pressure/memory"),
    ("cpu/online", "/sys/devices/system/cpu/online"),
    ("cpu/possible", "/sys/devices/system/cpu/possible"),
    ("cpu/present", "/sys/devices/system/cpu/present"),
];

#[test]
fn files_look_like_the_kernel_s() {
    let mounted = Mounted::new();
    let look = |path: &Path| {
        let stat = fs::metadata(path).unwrap();
        // What is of proc says the sizes that sysfs does.
        let of_proc = stat.blksize() == 1024;
        let size = if of_proc && stat.is_file() { 4096 } else { stat.size() };
        let block = if of_proc { 4096 } else { stat.blksize() };
        let owner = (stat.uid(), stat.gid());
        (stat.mode(), stat.nlink(), owner, size, block, stat.blocks())
    };
    for (path, kernels) in KERNELS {
        if !Path::new(kernels).exists() {
            println!("this kernel has no {kernels}");
            continue;
        }
        assert_eq!(look(&mounted.path(&format!("1/{path}"))), look(Path::new(kernels)), "{path}");
    }
    for directory in ["cpu", "node"] {
        let kernels = format!("/sys/devices/system/{directory}");
        let ours = mounted.path(&format!("1/{directory}"));
        assert_eq!(look(&ours), look(Path::new(&kernels)), "{directory}");
    }
    let made = fs::metadata(mounted.path("1/stat")).unwrap().modified().unwrap();
    assert!(made.elapsed().unwrap().as_secs() < 60);
}

#[test]
fn programs_read_and_list_them() {
    let mounted = Mounted::new();
    let text: String = (0..100).map(|line| format!("Line{line}: {line} kB\n")).collect();
    let said = text.clone();
    mounted.tell(move |_, texts| texts.say(1, File::Meminfo, said));
    let path = mounted.path("1/meminfo").to_str().unwrap().to_owned();
    assert_eq!(run("cat", &[&path]), text);
    assert_eq!(run("dd", &["bs=1", "status=none", &format!("if={path}")]), text);
    assert_eq!(run("head", &["-n", "3", &path]), "Line0: 0 kB\nLine1: 1 kB\nLine2: 2 kB\n");
    assert_eq!(run("grep", &["-c", "", &path]), "100\n");
    assert_eq!(run("stat", &["--format=%A %h %s %F", &path]), "-r--r--r-- 1 4096 regular file\n");
    let listed = run("ls", &["-l", mounted.path("1").to_str().unwrap()]);
    let names: Vec<_> =
        listed.lines().skip(1).map(|line| line.rsplit(' ').next().unwrap()).collect();
    let expected = [
        "cpu",
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "node",
        "pressure",
        "stat",
        "swaps",
        "threads-max",
        "uptime",
    ];
    assert_eq!(names, expected);
    assert_eq!(mounted.names("1/pressure"), ["cpu", "io", "memory"]);
    assert_eq!(mounted.names(""), ["1", "2"]);
}

#[test]
fn each_container_has_its_own() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.say(1, File::Stat, "one"));
    mounted.tell(|_, texts| texts.say(2, File::Stat, "two"));
    assert_eq!((mounted.read("1/stat"), mounted.read("2/stat")), ("one".into(), "two".into()));
    assert_eq!(mounted.read("1/pressure/../../2/stat"), "two");
}

#[test]
fn any_offset_and_any_size_read_the_same_text() {
    let mounted = Mounted::new();
    let text: Vec<u8> = (0..1500_u32).map(|at| (at % 251) as u8).collect();
    let said = text.clone();
    mounted.tell(move |_, texts| texts.say(1, File::Cpuinfo, said));
    let file = fs::File::from(mounted.open("1/cpuinfo"));
    for size in [1, 2, 7, 100, 512, 1024, 1499, 1500, 1501, 4096, 70_000, 200_000] {
        let mut buffer = vec![0; size];
        for offset in
            (0..1600).step_by(37).chain([1499, 1500, 1501, 1 << 40, i64::MAX as u64 - 200_000])
        {
            let read = file.read_at(&mut buffer, offset).unwrap();
            let from = usize::try_from(offset).unwrap().min(text.len());
            let to = (from + size).min(text.len());
            assert_eq!(buffer[..read], text[from..to], "{size} bytes at {offset}");
        }
    }
    // Ahead part by part.
    let parts = mounted.open("1/cpuinfo");
    let (mut whole, mut buffer) = (Vec::<u8>::new(), [0; 13]);
    loop {
        let read = rustix::io::read(&parts, &mut buffer).unwrap();
        whole.extend(&buffer[..read]);
        if read == 0 {
            break;
        }
    }
    assert_eq!(whole, text);
}

#[test]
fn a_text_longer_than_one_request_is_read_whole() {
    let mounted = Mounted::new();
    let text: Vec<u8> = (0..2_000_000_u32).map(|at| (at / 7) as u8).collect();
    let said = text.clone();
    mounted.tell(move |_, texts| texts.say(1, File::Cpuinfo, said));
    assert_eq!(fs::read(mounted.path("1/cpuinfo")).unwrap(), text);
    let asked = mounted.tell(|_, texts| texts.asked.len());
    assert_eq!(asked, 1, "parts of different texts");
}

#[test]
fn sendfile_never_ends_a_text_too_early() {
    let mounted = Mounted::new();
    let text: Vec<u8> = (0..100_000_u32).map(|at| (at / 7) as u8).collect();
    for (path, file) in [("1/cpuinfo", File::Cpuinfo), ("1/meminfo", File::Meminfo)] {
        let said = text.clone();
        mounted.tell(move |_, texts| texts.say(1, file, said));
        // As busybox's cat does: it begins with sendfile, and reads when that fails.
        let file = mounted.open(path);
        let copy = rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let copy = fs::File::from(copy);
        loop {
            match rustix::fs::sendfile(&copy, &file, None, 1 << 20) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, rustix::io::Errno::INVAL);
                    io::copy(&mut io::BufReader::new(fs::File::from(file)), &mut &copy).unwrap();
                    break;
                }
            }
        }
        let mut copied = vec![0; text.len() + 1];
        let length = copy.read_at(&mut copied, 0).unwrap();
        assert!(copied[..length] == text[..length] && length == text.len(), "{path}: {length}");
    }
}

#[test]
fn programs_that_look_for_the_end_find_that_of_the_text() {
    let mounted = Mounted::new();
    for lines in [3, 100, 1000, 10_000] {
        let text: String = (0..lines).map(|line| format!("line {line}\n")).collect();
        let said = text.clone();
        mounted.tell(move |_, texts| {
            texts.say(1, File::Cpuinfo, &said);
            texts.say(1, File::Swaps, &said[..said.len().min(4000)]);
        });
        let long = mounted.path("1/cpuinfo").to_str().unwrap().to_owned();
        let short = mounted.path("1/swaps").to_str().unwrap().to_owned();
        assert_eq!(run("tail", &["-n", "1", &long]), format!("line {}\n", lines - 1));
        assert_eq!(run("tail", &["-c", "3", &long]), &text[text.len() - 3..]);
        assert_eq!(run("wc", &["-c", &long]), format!("{} {long}\n", text.len()));
        // A copy is made from the size that stat says.
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy");
        run("cp", &[&long, copy.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&copy).unwrap(), text);
        let text = &text[..text.len().min(4000)];
        let last = text.lines().last().unwrap();
        assert_eq!(run("tail", &["-n", "1", &short]).trim_end(), last);
        assert_eq!(run("wc", &["-c", &short]), format!("{} {short}\n", text.len()));
    }
}

#[test]
fn a_file_that_is_kept_open_says_what_is_new_from_its_start() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.say(1, File::Stat, "the first text"));
    let (file, other) = (mounted.open("1/stat"), mounted.open("1/stat"));
    let mut buffer = [0; 9];
    rustix::io::read(&file, &mut buffer).unwrap();
    assert_eq!(&buffer, b"the first");
    mounted.tell(|_, texts| texts.say(1, File::Stat, "another, of another length"));
    // A reader goes on with the text that it began; one that begins gets the new one.
    let read = rustix::io::read(&file, &mut buffer).unwrap();
    assert_eq!(&buffer[..read], b" text");
    assert_eq!(rustix::io::read(&file, &mut buffer), Ok(0));
    rustix::io::read(&other, &mut buffer).unwrap();
    assert_eq!(&buffer, b"another, ");
    rustix::fs::seek(&file, SeekFrom::Start(0)).unwrap();
    rustix::io::read(&file, &mut buffer).unwrap();
    assert_eq!(&buffer, b"another, ");
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Current(2)), Ok(11));
    rustix::io::read(&file, &mut buffer).unwrap();
    assert_eq!(&buffer, b" another ");
    // What another reader of the same file reads does not matter.
    let read = rustix::io::read(&other, &mut buffer).unwrap();
    assert_eq!(&buffer[..read], b"of anothe");
}

#[test]
fn one_listing_is_all_that_binding_takes() {
    let mounted = Mounted::new();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_owned();
    let listed = std::thread::scope(|scope| {
        // Only this thread gets another mount namespace.
        scope
            .spawn(|| {
                nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).unwrap();
                attach_at(&mounted.mount, &place).unwrap();
                // The first of all asks for the root as well.
                assert!(fs::metadata(place.join("3")).is_err());
                mounted.requests();
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let container = rustix::fs::open(place.join("1"), flags, Mode::empty()).unwrap();
                let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
                let mut entries = rustix::fs::RawDir::new(&container, &mut buffer);
                entries.next().unwrap().unwrap();
                let listed = mounted.requests();
                for (path, _) in KERNELS.iter().filter(|(path, _)| !path.contains('/')) {
                    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                    let mount = rustix::mount::open_tree(&container, *path, flags).unwrap();
                    drop(mount);
                }
                for directory in ["cpu", "node"] {
                    rustix::mount::open_tree(&container, directory, OpenTreeFlags::OPEN_TREE_CLONE)
                        .unwrap();
                }
                listed
            })
            .join()
            .unwrap()
    });
    let lookup = Operation::Lookup { name: b"1".to_vec() };
    assert_eq!(listed[0], lookup);
    let [_, Operation::OpenDirectory, Operation::ReadDirectory { plus: true, .. }] = &listed[..]
    else {
        panic!("{listed:?}");
    };
    assert_eq!(mounted.requests(), []);
}

#[test]
fn a_stat_after_a_read_asks_for_nothing() {
    let mounted = Mounted::new();
    mounted.read("1/meminfo");
    mounted.requests();
    fs::metadata(mounted.path("1/meminfo")).unwrap();
    assert_eq!(mounted.requests(), []);
    // What open(2) and read(2) cost once the name is known: the last read finds the end.
    mounted.read("1/meminfo");
    let asked = mounted.requests();
    let reads = asked.iter().filter(|one| matches!(one, Operation::Read { .. })).count();
    assert!(matches!(asked[0], Operation::Open { .. }) && reads + 1 == asked.len(), "{asked:?}");
}

#[test]
fn nothing_can_be_changed() {
    let mounted = Mounted::new();
    let refused = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    for path in ["1/meminfo", "1/threads-max", "1/pressure/cpu", "1/cpu/online"] {
        let path = mounted.path(path);
        assert_eq!(refused(fs::write(&path, "1")), Some(libc::EROFS));
        assert_eq!(refused(fs::remove_file(&path)), Some(libc::EROFS));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        assert_eq!(refused(fs::set_permissions(&path, mode)), Some(libc::EROFS));
    }
    for path in ["1/new", "1/pressure/new", "new"] {
        assert_eq!(refused(fs::write(mounted.path(path), "1")), Some(libc::EROFS));
        assert_eq!(refused(fs::create_dir(mounted.path(path))), Some(libc::EROFS));
    }
}

#[test]
fn a_mount_that_can_be_written_refuses_as_the_kernel_s_files_do() {
    let mounted = Mounted::writable();
    let error = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    for (path, kernels) in
        [("meminfo", "/proc/meminfo"), ("cpu/online", "/sys/devices/system/cpu/online")]
    {
        let ours = mounted.path(&format!("1/{path}"));
        assert_eq!(error(fs::write(&ours, "1")), error(fs::write(kernels, "1")), "{path}");
        let remove = |path: &Path| error(fs::remove_file(path));
        assert_eq!(remove(&ours), remove(Path::new(kernels)), "{path}");
    }
    for path in ["1/new", "1/cpu/new", "1/pressure/new"] {
        assert_eq!(error(fs::write(mounted.path(path), "1")), Some(libc::EACCES));
        assert_eq!(error(fs::create_dir(mounted.path(path))), Some(libc::EPERM));
        let link = std::os::unix::fs::symlink("/", mounted.path(path));
        assert_eq!(error(link), Some(libc::EPERM));
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    assert_eq!(error(fs::set_permissions(mounted.path("1/stat"), mode)), Some(libc::EPERM));
    let moved = fs::rename(mounted.path("1/stat"), mounted.path("1/meminfo"));
    assert_eq!(error(moved), Some(libc::EPERM));
    let xattr = rustix::fs::setxattr(
        mounted.path("1/stat").as_path(),
        "user.a",
        &[0; 60_000],
        rustix::fs::XattrFlags::empty(),
    );
    assert!(xattr.is_err());
    assert!(mounted.read("1/stat").starts_with("1 Stat"));
}

#[test]
fn readers_beside_each_other_get_whole_texts() {
    let mounted = Mounted::new();
    let say = |letter: u8| {
        let text = vec![letter; usize::from(letter) * 30];
        mounted.tell(move |_, texts| {
            for serial in [1, 2] {
                for file in [File::Stat, File::Cpuinfo, File::Meminfo] {
                    texts.say(serial, file, &text);
                }
            }
        });
    };
    say(b'A');
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let path = mounted.path(["1/stat", "1/cpuinfo", "2/stat", "2/meminfo"][reader % 4]);
            scope.spawn(move || (0..60).for_each(|_| read_one_letter(&path, 200 + reader * 500)));
        }
        // Each text is another than the one before.
        (b'B'..=b'z').cycle().take(200).for_each(say);
    });
}

/// Reads a file in parts, and checks that they are of one text.
fn read_one_letter(path: &Path, size: usize) {
    let file = fs::File::open(path).unwrap();
    let (mut text, mut part) = (Vec::<u8>::new(), vec![0; size]);
    loop {
        let read = rustix::io::read(&file, &mut part[..]).unwrap();
        if read == 0 {
            break;
        }
        text.extend(&part[..read]);
    }
    let letter = text[0];
    assert_eq!(text.len(), usize::from(letter) * 30);
    assert!(text.iter().all(|byte| *byte == letter));
}

#[test]
fn what_is_not_there_is_not_found() {
    let mounted = Mounted::new();
    let long = "x".repeat(256);
    let found = |path: &str| fs::read(mounted.path(path)).unwrap_err().raw_os_error();
    for path in ["3", "01", "1/kcore", "1/possible", "1/pressure/irq", "-1", "4294967297"] {
        assert_eq!(found(path), Some(libc::ENOENT), "{path}");
    }
    assert_eq!(found("1/stat/x"), Some(libc::ENOTDIR));
    assert_eq!(found("1"), Some(libc::EISDIR));
    assert_eq!(found(&format!("1/{long}")), Some(libc::ENAMETOOLONG));
    let statistics = rustix::fs::statvfs(mounted.path("1").as_path()).unwrap();
    assert_eq!((statistics.f_blocks, statistics.f_namemax), (0, 255));
    assert!(statistics.f_flag.contains(StatVfsMountFlags::RDONLY));
    let names = &mut [0_u8; 64][..];
    let error = rustix::fs::listxattr(mounted.path("1/stat").as_path(), names).unwrap_err();
    assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
}

#[test]
fn a_container_that_is_gone_is_no_longer_served() {
    let mounted = Mounted::new();
    let (file, directory) = (mounted.open("1/stat"), mounted.open("1/cpu"));
    let below = mounted.open("1/cpu/vulnerabilities");
    mounted.tell(|server, _| server.remove_container(1));
    let gone = |error: rustix::io::Errno| error == rustix::io::Errno::STALE;
    assert!(gone(rustix::io::read(&file, &mut [0; 9]).unwrap_err()));
    for directory in [&directory, &below] {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut entries = rustix::fs::RawDir::new(directory, &mut buffer);
        assert!(gone(entries.next().unwrap().unwrap_err()));
    }
    for path in ["1/stat", "1/cpu/online", "1/cpu/vulnerabilities"] {
        let error = rustix::fs::openat(CWD, mounted.path(path), OFlags::RDONLY, Mode::empty());
        let error = error.unwrap_err();
        assert!(gone(error) || error == rustix::io::Errno::NOENT, "{path}: {error}");
    }
    assert!(mounted.read("2/stat").starts_with("2 Stat"));
    assert_eq!(mounted.names(""), ["2"]);
}

#[test]
fn many_open_files_take_nothing_of_the_server() {
    let mounted = Mounted::new();
    let text = vec![b'x'; 100_000];
    mounted.tell(move |_, texts| texts.say(1, File::Cpuinfo, text));
    let files: Vec<_> = (0..800).map(|_| mounted.open("1/cpuinfo")).collect();
    for file in &files {
        assert_eq!(rustix::io::read(file, &mut [0; 10]), Ok(10));
    }
    // Their texts are no longer all there, and each still has an end.
    for file in &files {
        let mut buffer = vec![0; 200_000];
        let rest = rustix::io::read(file, &mut buffer).unwrap();
        assert!(rest == 100_000 - 10 && buffer[..rest].iter().all(|byte| *byte == b'x'));
    }
}
