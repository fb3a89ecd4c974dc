//! Readers whose answer is not there yet, and what ends their wait.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;

use super::super::{Served, Unanswered};
use super::served::Mounted;
use crate::cpu_set::CpuSet;
use crate::sys::alarm::interrupt_after;
use crate::views::File;

/// Reads a file in a thread of its own.
fn reader(mounted: &Mounted, path: &str) -> JoinHandle<io::Result<String>> {
    let path = mounted.path(path);
    let small = thread::Builder::new().stack_size(128 * 1024);
    small.spawn(move || fs::read_to_string(path)).unwrap()
}

#[test]
fn a_reader_waits_and_keeps_nobody_else_waiting() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.wait(1, File::Meminfo));
    let waiting = [reader(&mounted, "1/meminfo"), reader(&mounted, "1/meminfo")];
    mounted.wait_until(|server| server.count_waiting(1) == 2);
    assert!(mounted.read("1/stat").starts_with("1 Stat"));
    assert!(mounted.read("2/meminfo").starts_with("2 Meminfo"));
    // Not yet: they go on to wait.
    mounted.tell(|server, texts| server.resume(1, texts));
    assert_eq!(mounted.tell(|server, _| server.count_waiting(1)), 2);
    mounted.tell(|server, texts| {
        texts.say(1, File::Meminfo, "now");
        server.resume(2, texts);
        assert_eq!(server.count_waiting(1), 2);
        server.resume(1, texts);
    });
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap().unwrap(), "now");
    }
    // And an error, if what they waited for will never come.
    mounted.tell(|_, texts| texts.wait(1, File::Meminfo));
    let waiting = reader(&mounted, "1/meminfo");
    mounted.wait_until(|server| server.count_waiting(1) == 1);
    mounted.tell(|server, texts| {
        texts.said.insert((1, "Meminfo".into()), Err(Errno::NODEV.into()));
        server.resume(1, texts);
    });
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn listing_and_looking_up_wait_as_well() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.cpus = Err(Unanswered::Wait));
    let path = mounted.path("1/cpu");
    let listed = thread::spawn(move || fs::read_dir(path).unwrap().count());
    let path = mounted.path("1/cpu/cpu0");
    let found = thread::spawn(move || fs::metadata(path).unwrap().is_dir());
    mounted.wait_until(|server| server.count_waiting(1) == 2);
    // What does not need it is there.
    assert!(mounted.read("1/stat").starts_with("1 Stat"));
    mounted.tell(|server, texts| {
        texts.cpus = Ok(CpuSet::parse("0").unwrap());
        server.resume(1, texts);
    });
    // The directory's own attributes are asked for first.
    mounted.wait_until(|server| server.count_waiting(1) == 0);
    assert!(found.join().unwrap() && listed.join().unwrap() > 3);
}

#[test]
fn a_signal_ends_the_wait() {
    let mounted = Mounted::new();
    let file = mounted.open("1/meminfo");
    mounted.tell(|_, texts| texts.wait(1, File::Meminfo));
    let read = || rustix::io::read(&file, &mut [0; 100]);
    let read = interrupt_after(Duration::from_millis(20), read).unwrap();
    assert_eq!(read, Err(Errno::INTR));
    assert_eq!(mounted.tell(|server, _| server.count_waiting(1)), 0);
    // The same descriptor reads when the text is there.
    mounted.tell(|_, texts| texts.say(1, File::Meminfo, "text"));
    assert_eq!(rustix::io::read(&file, &mut [0; 100]), Ok(4));
}

#[test]
fn a_reader_that_waits_can_be_killed() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.wait(1, File::Meminfo));
    let path = mounted.path("1/meminfo");
    let mut cat = Command::new("cat").arg(path).stdout(Stdio::null()).spawn().unwrap();
    mounted.wait_until(|server| server.count_waiting(1) == 1);
    cat.kill().unwrap();
    assert!(!cat.wait().unwrap().success());
    mounted.wait_until(|server| server.count_waiting(1) == 0);
}

#[test]
fn a_reader_can_be_killed_while_the_server_stands_still() {
    let mounted = Mounted::new();
    let (go_on, stopped) = channel::<()>();
    let (stops, stands) = channel();
    thread::scope(|scope| {
        // As a boot that is stopped: it takes no request.
        let stand = move || {
            stops.send(()).unwrap();
            stopped.recv().unwrap();
        };
        scope.spawn(|| mounted.tell(move |_, _| stand()));
        stands.recv().unwrap();
        let path = mounted.path("1/meminfo");
        let mut cat = Command::new("cat").arg(path).stdout(Stdio::null()).spawn().unwrap();
        let asleep = format!("/proc/{}/wchan", cat.id());
        while fs::read_to_string(&asleep).unwrap() != "request_wait_answer" {
            thread::sleep(Duration::from_millis(1));
        }
        cat.kill().unwrap();
        assert!(!cat.wait().unwrap().success());
        go_on.send(()).unwrap();
    });
    assert!(mounted.read("1/meminfo").starts_with("1 Meminfo"));
}

#[test]
fn readers_fail_when_the_server_ends() {
    let mut mounted = Mounted::new();
    let file = mounted.open("1/stat");
    mounted.tell(|_, texts| texts.wait(1, File::Meminfo));
    let waiting = reader(&mounted, "1/meminfo");
    mounted.wait_until(|server| server.count_waiting(1) == 1);
    mounted.kill();
    assert_eq!(waiting.join().unwrap().unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
    assert!(rustix::io::read(&file, &mut [0; 9]).is_err());
    assert!(fs::read(mounted.path("1/stat")).is_err());
}

#[test]
fn readers_fail_when_their_container_is_gone() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| texts.wait(1, File::Meminfo));
    let waiting = reader(&mounted, "1/meminfo");
    mounted.wait_until(|server| server.count_waiting(1) == 1);
    mounted.tell(|server, _| server.remove_container(1));
    assert_eq!(waiting.join().unwrap().unwrap_err().raw_os_error(), Some(libc::ESTALE));
}

#[test]
fn only_so_many_wait_for_one_container() {
    let mounted = Mounted::new();
    mounted.tell(|_, texts| {
        texts.wait(1, File::Meminfo);
        texts.wait(2, File::Meminfo);
    });
    let readers: Vec<_> = (0..300).map(|_| reader(&mounted, "1/meminfo")).collect();
    mounted.wait_until(|server| {
        let asked =
            |operation: &&_| matches!(operation, super::super::protocol::Operation::Read { .. });
        server.taken.iter().filter(asked).count() == 300
    });
    assert_eq!(mounted.tell(|server, _| server.count_waiting(1)), 256);
    // Another container has its own.
    let other = reader(&mounted, "2/meminfo");
    mounted.wait_until(|server| server.count_waiting(2) == 1);
    mounted.tell(|server, texts| {
        texts.said.clear();
        server.resume(1, texts);
        server.resume(2, texts);
    });
    let results: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 300 - 256);
    assert!(refused.iter().all(|error| error.raw_os_error() == Some(libc::ENOMEM)));
    assert!(other.join().unwrap().is_ok());
}

#[test]
fn the_server_notices_when_nothing_is_mounted_any_more() {
    let Mounted { mount, thread, .. } = &mut Mounted::new();
    let thread = thread.take().unwrap();
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    drop(std::mem::replace(mount, null.unwrap()));
    assert_eq!(thread.join().unwrap(), Served::Ended);
}
