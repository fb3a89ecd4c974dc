use std::ffi::CString;
use std::os::fd::AsRawFd;

use sandbox_core::types::HostPid;

use super::*;

/// This process, seen as if it were a container's.
fn myself() -> Process {
    Process::open(HostPid(std::process::id().cast_signed()))
}

fn call(number: i64, given: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..given.len()].copy_from_slice(given);
    native(u32::try_from(number).unwrap(), all)
}

fn at<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>().addr() as u64
}

#[test]
fn paths_and_flags_are_written() {
    let path = CString::new("/etc/pass\u{202e}wd\n").unwrap();
    let open = call(
        libc::SYS_openat,
        &[(-100i64).cast_unsigned(), at(path.as_bytes()), 0o2_000_100, 0o644],
    );
    assert_eq!(
        describe(&open, &myself()),
        r#"openat(AT_FDCWD, "/etc/pass\u{202e}wd\n", O_RDONLY|O_CREAT|O_CLOEXEC, 0o644)"#
    );
    let read = call(libc::SYS_openat, &[(-100i64).cast_unsigned(), 0x1000, 0, 0o644]);
    assert_eq!(describe(&read, &Nothing), "openat(AT_FDCWD, 0x1000, O_RDONLY)");
}

#[test]
fn files_are_written_by_their_paths() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let number = null.as_raw_fd();
    let read = call(libc::SYS_read, &[number.cast_unsigned().into(), 0x7f00_0000_1000, 4096]);
    assert_eq!(
        describe(&read, &myself()),
        format!("read({number}</dev/null>, 0x7f0000001000, 4096)")
    );
    assert_eq!(waits(&read, &myself()), Some(Waits::File));
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = call(libc::SYS_read, &[one.as_raw_fd().cast_unsigned().into(), 0, 1]);
    assert_eq!(waits(&socket, &myself()), Some(Waits::Network));
}

#[test]
fn what_is_waited_for_is_read_from_memory() {
    let futex = [7i32];
    let time = [1u64, 500_000_000];
    let wait = call(libc::SYS_futex, &[at(&futex), 0x80, 7, at(&time)]);
    let text = describe(&wait, &myself());
    assert!(text.ends_with("[7], FUTEX_WAIT|FUTEX_PRIVATE_FLAG, 7, 1.5s)"), "{text}");
    assert_eq!(waits(&wait, &Nothing), Some(Waits::Lock));
    let wake = call(libc::SYS_futex, &[0x1000, 0x81, 1, 99]);
    assert_eq!(describe(&wake, &Nothing), "futex(0x1000, FUTEX_WAKE|FUTEX_PRIVATE_FLAG, 1)");

    let mut address = [0u8; 16];
    address[..8].copy_from_slice(&[2, 0, 0x1f, 0x90, 10, 0, 0, 7]);
    let connect = call(libc::SYS_connect, &[u32::MAX.into(), at(&address), 16]);
    assert_eq!(describe(&connect, &myself()), "connect(-1, 10.0.0.7:8080)");

    let files = [u64::from(u32::MAX) | 5 << 32];
    let poll = call(libc::SYS_poll, &[at(&files), 1, u64::from(u32::MAX)]);
    assert_eq!(describe(&poll, &myself()), "poll([-1:POLLIN|POLLOUT], 1, -1)");
}

#[test]
fn what_is_executed_and_written_is_shown() {
    let (program, argument) = (CString::new("/bin/sh").unwrap(), CString::new("-c").unwrap());
    let list = [at(program.as_bytes()), at(argument.as_bytes()), 0];
    let exec = call(libc::SYS_execve, &[at(program.as_bytes()), at(&list)]);
    assert_eq!(describe(&exec, &myself()), r#"execve("/bin/sh", ["/bin/sh", "-c"])"#);
    let write = call(libc::SYS_write, &[u32::MAX.into(), at(b"hello\x1b\xff".as_slice()), 7]);
    assert_eq!(describe(&write, &myself()), r#"write(-1, "hello\u{1b}\xff", 7)"#);
    let kill = call(libc::SYS_kill, &[1, 15]);
    assert_eq!(describe(&kill, &Nothing), "kill(1, SIGTERM)");
}

#[test]
fn other_calls_are_written_by_the_user_log_s_table_or_by_number() {
    assert_eq!(describe(&call(libc::SYS_bpf, &[5]), &Nothing), "bpf(BPF_PROG_LOAD)");
    assert_eq!(name(&call(9999, &[])), "call 9999");
    assert_eq!(arguments(&call(9999, &[3]), &Nothing)[0], ("1", "3".to_owned()));
}

#[test]
fn outcomes_have_names() {
    assert_eq!(outcome(-2), "ENOENT (No such file or directory)");
    assert_eq!(outcome(-512), "interrupted");
    assert_eq!(outcome(17), "17");
    assert_eq!(outcome(0x7f12_3456_7000), "0x7f1234567000");
}

#[test]
fn nothing_that_is_written_is_long_or_breaks_a_line() {
    let wild = vec![b'\n'; 4096];
    for number in 0..500 {
        let text = describe(&call(number, &[at(wild.as_slice()); 6]), &myself());
        assert!(text.len() < 6 * (LONGEST + 10) && !text.contains('\n'), "{text}");
    }
}
