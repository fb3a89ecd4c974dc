//! Streams: every byte arrives, with every kind of stream that containerd
//! requests.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{image, on_each_containerd, spec, wait};
use serde_json::json;

on_each_containerd!(
    sixty_four_mebibytes_arrive_through_both_streams,
    sixty_four_mebibytes_arrive_through_ctr,
    sixty_four_mebibytes_go_in,
    close_io_ends_the_input_after_what_was_written,
    output_without_a_stream_is_dropped,
    a_user_can_open_its_streams_again,
    an_exec_s_exit_is_published_though_a_child_holds_its_streams,
    the_reader_may_go_and_come_back,
    input_that_is_opened_again_ends,
    input_of_an_exec_that_is_opened_again_ends,
    streams_that_are_opened_again_are_pipes,
    a_client_of_a_process_that_reads_no_more_gets_an_error,
    an_exec_s_streams_carry_sixty_four_mebibytes,
    delete_ends_an_exec_s_output_whoever_holds_it,
    output_goes_to_a_file,
    output_goes_to_what_a_path_names,
    input_comes_from_what_a_path_names,
    a_flood_from_the_background_ends_at_delete,
    a_terminal_that_is_held_in_the_background_ends_at_delete,
    output_goes_to_a_logger,
);

/// Prints a line with the checksum, then the bytes.
const BLOB: &str = "dd if=/dev/urandom of=/tmp/$1 bs=1M count=64 2>/dev/null; \
                    sha256sum < /tmp/$1 | cut -c1-64; cat /tmp/$1";

fn intact(output: &[u8]) {
    let (sum, blob) = output.split_at(65);
    assert_eq!(blob.len(), 64 << 20);
    let sum = String::from_utf8_lossy(sum);
    assert_eq!(image::sha256(blob), sum.trim_end());
}

fn sixty_four_mebibytes_arrive_through_both_streams(containerd: Containerd) {
    let script = format!("blob() {{ {BLOB}; }}; blob a & blob b >&2; wait");
    let container = containerd.shell("loud", &script).start();
    assert_eq!(container.wait().code, 0);
    intact(&container.stdio().output_bytes());
    intact(&container.stdio().errors_bytes());
}

fn sixty_four_mebibytes_arrive_through_ctr(containerd: Containerd) {
    let mut command = containerd.ctr_command();
    containerd.track("loud");
    command.args(["--namespace", &containerd.namespace(), "run", "--rm"]);
    command.args(["--cgroup", &containerd.cgroups_path("loud")]);
    command.args(["--runtime", containerd.runtime_name(), image::BUSYBOX, "loud"]);
    command.args(["sh", "-c", &format!("blob() {{ {BLOB}; }}; blob a")]);
    let output = command.stdin(Stdio::null()).output().expect("run ctr");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    intact(&output.stdout);
}

fn sixty_four_mebibytes_go_in(containerd: Containerd) {
    let container = containerd.container("sums", ["sha256sum"]).streams(Streams::Piped).start();
    let blob: Vec<u8> =
        (0..64_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    container.stdio().write(&blob);
    container.stdio().close_stdin();
    container.close_io().expect("close the input");
    let (code, output) = container.finish();
    assert_eq!((code, &output[..64]), (0, image::sha256(&blob).as_str()));
}

fn close_io_ends_the_input_after_what_was_written(containerd: Containerd) {
    let container = containerd.container("cat", ["cat"]).streams(Streams::Piped).start();
    container.stdio().write(b"the last words");
    container.stdio().close_stdin();
    container.close_io().expect("close the input");
    assert_eq!(container.finish(), (0, "the last words".to_owned()));

    let host = containerd.container("host", ["sleep", "1000"]).start();
    let exec =
        host.exec("cat-again", spec::process(&["cat"]), Streams::Piped).expect("add an exec");
    exec.start().expect("start it");
    exec.stdio().write(b"of an exec");
    exec.stdio().close_stdin();
    exec.close_io().expect("close the input");
    assert_eq!(exec.wait().code, 0);
    assert_eq!(exec.stdio().output(), "of an exec");
}

fn output_without_a_stream_is_dropped(containerd: Containerd) {
    let script = "echo out && echo err >&2 && ! read line && [ -c /dev/fd/0 ] && exit 5";
    let container = containerd.shell("mute", script).streams(Streams::Null).start();
    assert_eq!(container.wait().code, 5);
}

/// Shells do so for `> /dev/stdout`. The pipe must belong to the process's
/// user.
fn a_user_can_open_its_streams_again(containerd: Containerd) {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo fd > /proc/self/fd/1";
    let container = containerd.shell("alice", script);
    let container = container.spec(|s| s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    let container = container.start();
    assert_eq!(container.wait().code, 0, "{}", container.stdio().errors());
    assert_eq!(container.stdio().output(), "out\nfd\n");
    assert_eq!(container.stdio().errors(), "err\n");
}

fn an_exec_s_exit_is_published_though_a_child_holds_its_streams(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let process = spec::process(&["sh", "-c", "sleep 1000 & echo started"]);
    let exec = container.exec("leaves-a-child", process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    exec.stdio().wait_for_output("started");
    container.kill(9).expect("end the child too");
    container.wait();
}

/// The client has gone by then: a FIFO without a writer would be opened for
/// ever.
fn input_that_is_opened_again_ends(containerd: Containerd) {
    for (n, path) in ["/dev/stdin", "/proc/self/fd/0", "/dev/fd/0"].into_iter().enumerate() {
        for uid in [0, 1000] {
            let script = format!("cat >/dev/null; cat {path}; echo $? >&2; cat {path}");
            let container = containerd.shell(&format!("again-{n}-{uid}"), &script);
            let container = container.streams(Streams::Piped).spec(|s| {
                s["process"]["user"] = json!({ "uid": uid, "gid": uid });
            });
            let container = container.start();
            container.stdio().write(b"read before");
            container.stdio().close_stdin();
            container.close_io().expect("close the input");
            assert_eq!(container.wait().code, 0, "{path} as {uid}");
            assert_eq!(container.stdio().errors(), "0\n", "{path} as {uid}");
            assert_eq!(container.stdio().output(), "", "{path} as {uid}");
        }
    }
}

/// As `echo echo hello | ctr task exec ... sh /dev/stdin` does.
fn input_of_an_exec_that_is_opened_again_ends(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    for n in 0..20 {
        let mut process = spec::process(&["sh", "/dev/stdin"]);
        let uid = n % 2 * 1000;
        process["user"] = json!({ "uid": uid, "gid": uid });
        let exec = container.exec(&format!("script-{n}"), process, Streams::Piped);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        exec.stdio().write(b"echo hello");
        exec.stdio().close_stdin();
        exec.close_io().expect("close the input");
        assert_eq!(exec.wait().code, 0, "{}", exec.stdio().errors());
        assert_eq!(exec.stdio().output(), "hello\n");
        exec.delete().expect("delete it");
    }
}

/// Whatever a pipe does: it can be opened in both directions, without waiting,
/// with the bytes in it.
fn streams_that_are_opened_again_are_pipes(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let script = "echo 1 > /dev/stdout; echo 2 > /dev/stderr; echo 3 >> /proc/self/fd/1; \
                  exec 3<> /dev/stdout 4< /dev/stdin 5> /dev/stderr; echo 4 >&3; echo 5 >&5; \
                  read line <&4; echo got $line";
    for uid in [0, 1000] {
        let mut process = spec::process(&["sh", "-c", script]);
        process["user"] = json!({ "uid": uid, "gid": uid });
        let exec = container.exec(&format!("opens-{uid}"), process, Streams::Piped);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        exec.stdio().write(b"input\n");
        assert_eq!(exec.wait().code, 0, "{}", exec.stdio().errors());
        assert_eq!(exec.stdio().output(), "1\n3\n4\ngot input\n", "as {uid}");
        assert_eq!(exec.stdio().errors(), "2\n5\n", "as {uid}");
    }
}

/// runc's shim reads on for as long as nothing comes, and then once more.
fn a_client_of_a_process_that_reads_no_more_gets_an_error(containerd: Containerd) {
    if containerd.runtime_name().contains("runc") {
        return;
    }
    let script = "read line; exec <&-; echo $line; sleep 1000";
    let container = containerd.shell("deaf", script).streams(Streams::Piped).start();
    let mut client = File::options().write(true).open(container.stdio().stdin()).expect("open");
    client.write_all(b"one\n").expect("write what it reads");
    container.stdio().wait_for_output("one");
    let error = wait::until("the client gets an error", || client.write_all(b"x").err());
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

fn an_exec_s_streams_carry_sixty_four_mebibytes(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let script = format!("blob() {{ {BLOB}; }}; blob a & blob b >&2; wait");
    let process = spec::process(&["sh", "-c", &script]);
    let exec = container.exec("loud", process, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    intact(&exec.stdio().output_bytes());
    intact(&exec.stdio().errors_bytes());

    let exec = container.exec("sums", spec::process(&["sha256sum"]), Streams::Piped);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    let blob: Vec<u8> =
        (0..64_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    exec.stdio().write(&blob);
    exec.stdio().close_stdin();
    exec.close_io().expect("close the input");
    assert_eq!(exec.wait().code, 0);
    assert_eq!(exec.stdio().output()[..64], image::sha256(&blob));
}

/// It goes on to write, in vain. With runc, SIGPIPE kills it.
fn delete_ends_an_exec_s_output_whoever_holds_it(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let script = "(until [ -e /tmp/deleted ]; do sleep 0.01; done; cat /bin/busybox; \
                  echo late > /dev/stdout; echo late > /dev/stderr; touch /tmp/survived; \
                  exec sleep 1000) & echo started; echo err >&2";
    let process = spec::process(&["sh", "-c", script]);
    let exec = container.exec("leaves-a-child", process, Streams::Piped).expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    exec.delete().expect("delete it");
    assert_eq!(exec.stdio().output(), "started\n");
    assert_eq!(exec.stdio().errors(), "err\n");
    assert_eq!(container.exec_shell("go", "touch /tmp/deleted").0, 0);
    if containerd.runtime_name().contains("runc") {
        return;
    }
    wait::until("the child has written all", || {
        (container.exec_shell("look", "[ -e /tmp/survived ]").0 == 0).then_some(())
    });
}

/// Without a reader, the container gets neither SIGPIPE nor an error, and its
/// output waits for the next reader.
fn the_reader_may_go_and_come_back(containerd: Containerd) {
    let fifo = containerd.directory().join("fifo/shared");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let place = fifo.to_string_lossy().into_owned();
    let opener = std::thread::spawn(move || File::open(fifo).expect("open the FIFO"));
    let script = "n=0; while [ $n -lt 50 ]; do echo line $n || exit 9; n=$((n+1)); echo $n > /tmp/n; sleep 0.01; done; \
                  while [ ! -e /tmp/end ]; do sleep 0.01; done";
    let container = containerd.shell("writer", script).output_to(&place).start();
    let first_reader = opener.join().expect("the first reader");
    let mut lines = Vec::new();
    read_lines(first_reader, 3, &mut lines);
    wait::until("it has written everything without a reader", || {
        (container.exec_shell("look", "cat /tmp/n").1 == "50\n").then_some(())
    });
    let second_reader = File::open(&place).expect("open the FIFO again");
    read_lines(second_reader, 47, &mut lines);
    let wanted: Vec<String> = (0..50).map(|n| format!("line {n}")).collect();
    assert_eq!(lines, wanted);
    container.exec_shell("end", "touch /tmp/end");
    assert_eq!(container.wait().code, 0);
}

/// Reads byte by byte, to leave the rest for the next reader.
fn read_lines(from: File, count: usize, lines: &mut Vec<String>) {
    let reader = BufReader::with_capacity(1, from);
    lines.extend(reader.lines().take(count).map(|line| line.expect("a line")));
}

fn output_goes_to_a_file(containerd: Containerd) {
    let file = containerd.directory().join("output.log");
    let uri = format!("file://{}", file.display());
    let container =
        containerd.shell("to-file", "echo one; echo two; exit 4").output_to(&uri).start();
    assert_eq!(container.wait().code, 4);
    assert_eq!(fs::read_to_string(&file).expect("read the file"), "one\ntwo\n");
}

/// A path need not be that of a FIFO.
fn output_goes_to_what_a_path_names(containerd: Containerd) {
    let file = containerd.directory().join("plain.log");
    fs::write(&file, "zero\n").expect("make a file");
    let container = containerd.shell("plain", "echo one; echo two; exit 4");
    let container = container.output_to(&file.to_string_lossy()).start();
    assert_eq!(container.wait().code, 4);
    container.delete_task().expect("delete it");
    assert_eq!(fs::read_to_string(&file).expect("read the file"), "zero\none\ntwo\n");

    let container = containerd.shell("null", "echo one; exit 5").output_to("/dev/null").start();
    assert_eq!(container.wait().code, 5);

    let directory = containerd.directory();
    let refused = containerd.shell("nonsense", "true").output_to(&directory.to_string_lossy());
    assert!(refused.try_create().is_err(), "a directory");
}

fn input_comes_from_what_a_path_names(containerd: Containerd) {
    let file = containerd.directory().join("plain.input");
    let blob = vec![b'x'; 1 << 20];
    fs::write(&file, &blob).expect("make a file");
    let container = containerd.container("plain", ["sha256sum"]);
    let container = container.input_from(&file.to_string_lossy()).start();
    let (code, output) = container.finish();
    assert_eq!((code, &output[..64]), (0, image::sha256(&blob).as_str()));

    let container = containerd.shell("null", "cat; cat /dev/stdin; exit 5");
    let container = container.input_from("/dev/null").start();
    assert_eq!(container.finish(), (5, String::new()));

    let container = containerd.shell("zero", "head -c 100000 | tr '\\0' x | sha256sum");
    let container = container.input_from("/dev/zero").start();
    let (code, output) = container.finish();
    assert_eq!((code, &output[..64]), (0, image::sha256(&blob[..100_000]).as_str()));
}

/// Neither the exit nor Delete waits for the end of the flood, and other
/// execs are served meanwhile.
fn a_flood_from_the_background_ends_at_delete(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    for n in 0..3 {
        let process = spec::process(&["sh", "-c", "yes & yes >&2 & echo started; exit 3"]);
        let exec = container.exec(&format!("floods-{n}"), process, Streams::Captured);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        assert_eq!(exec.wait().code, 3);
        assert_eq!(exec.delete().expect("delete it"), 3);
        let output = exec.stdio().output();
        assert!(output.contains("started"), "{} bytes", output.len());
        exec.stdio().errors_bytes();
        assert_eq!(container.exec_shell(&format!("other-{n}"), "echo hello").1, "hello\n");
    }
}

fn a_terminal_that_is_held_in_the_background_ends_at_delete(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let script = "trap '' HUP; sleep 1000 & echo started";
    let exec = container.exec("held", spec::process(&["sh", "-c", script]), Streams::Terminal);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    assert_eq!(exec.wait().code, 0);
    exec.delete().expect("delete it");
    assert_eq!(exec.stdio().output(), "started\r\n");
}

/// A logger gets the streams as descriptors 3 and 4, and reports by closing 5
/// that it is ready. Its environment names the container and the namespace.
fn output_goes_to_a_logger(containerd: Containerd) {
    let logger = containerd.directory().join("bin/logger");
    let file = containerd.directory().join("logged");
    let script = format!(
        // containerd's shim sends SIGTERM to a logger when its container is
        // deleted.
        "#!/bin/sh\ntrap '' TERM\nexec 5>&-\n\
         {{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $1=$2\"; cat <&3; }} > {}\n",
        file.display()
    );
    fs::write(&logger, script).expect("write the logger");
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).expect("chmod");
    let uri = format!("binary://{}?fruit=pear", logger.display());
    let container = containerd.shell("to-logger", "echo one; echo two").output_to(&uri).start();
    assert_eq!(container.wait().code, 0);
    container.delete_task().expect("delete it");
    let wanted = format!("to-logger {} fruit=pear\none\ntwo\n", containerd.namespace());
    wait::until(&format!("the logger has written {wanted:?}"), || {
        (fs::read_to_string(&file).ok()? == wanted).then_some(())
    });
}
