//! `ctr run`, as a new user tries it: output, exit codes, and the sentence of a
//! failure.

use integration::containerd::Containerd;
use integration::ctr::Finished;
use integration::on_each_containerd;

on_each_containerd!(
    output_and_exit_code_arrive,
    true_and_false_differ,
    a_missing_program_is_named,
    a_file_that_cannot_be_executed_is_named,
    a_missing_working_directory_is_named,
    an_unknown_user_is_named,
    input_reaches_the_container_and_its_end_too,
    a_read_only_root_cannot_be_written,
    environment_and_working_directory_are_the_spec_s,
    a_running_task_is_not_deleted,
    the_task_lists_show_running_processes,
    an_id_can_be_used_again,
);

/// The output arrives with its streams separate, and `ctr` ends with the
/// container's exit code.
fn output_and_exit_code_arrive(containerd: Containerd) {
    let ran = containerd.run("talks").output(["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "out\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("err\n"), "{}", ran.stderr);
}

fn true_and_false_differ(containerd: Containerd) {
    assert_eq!(containerd.run("yes").output(["true"]).succeeded().stdout, "");
    assert_eq!(containerd.run("no").output(["false"]).code, 1);
}

/// Checks that the container is not started, and that `ctr` fails with the
/// reason.
#[track_caller]
fn refused(ran: &Finished, wanted: &[&str]) {
    assert_ne!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout, "");
    for words in wanted {
        assert!(ran.stderr.contains(words), "{words:?} is missing in: {}", ran.stderr);
    }
}

fn a_missing_program_is_named(containerd: Containerd) {
    let ran = containerd.run("missing").output(["no-such-program"]);
    refused(&ran, &["no-such-program", "not found"]);
    let ran = containerd.run("missing-path").output(["/bin/no-such-program"]);
    refused(&ran, &["/bin/no-such-program", "no such file or directory"]);
}

fn a_file_that_cannot_be_executed_is_named(containerd: Containerd) {
    let ran = containerd.run("not-executable").output(["/etc/not-executable"]);
    refused(&ran, &["/etc/not-executable", "ermission denied"]);
}

/// runc makes a missing working directory. So must every runtime that runs the
/// same images. A directory cannot be made where a file is.
fn a_missing_working_directory_is_named(containerd: Containerd) {
    let ran = containerd.run("makes").flag(["--cwd", "/made/for/me"]).output(["pwd"]);
    assert_eq!(ran.succeeded().stdout, "/made/for/me\n");
    let ran = containerd.run("cannot").flag(["--cwd", "/etc/passwd/inner"]).output(["pwd"]);
    refused(&ran, &["/etc/passwd"]);
}

/// `ctr` itself looks up names of users. Numbers need no entry.
fn an_unknown_user_is_named(containerd: Containerd) {
    let sleeper = containerd.run("sleeper").detached(["sleep", "1000"]);
    let ran = sleeper.exec_with("unknown", &["--user", "mallory"], &["id"]);
    refused(&ran, &["no users found"]);
    let ran = sleeper.exec_with("number", &["--user", "4711:4712"], &["sh", "-c", "id -u; id -g"]);
    assert_eq!(ran.succeeded().stdout, "4711\n4712\n");
}

/// `ctr task exec` closes the input when its own ends; `ctr run` does not.
fn input_reaches_the_container_and_its_end_too(containerd: Containerd) {
    let mut head = containerd.run("head").interactive(["head", "-n", "2"]);
    head.write(b"one line\nand another\n");
    assert_eq!(head.finish().succeeded().stdout, "one line\nand another\n");

    let sleeper = containerd.run("sleeper").detached(["sleep", "1000"]);
    let mut cat = sleeper.exec_interactive("cat", ["cat"]);
    cat.write(b"one line\nand no end of line");
    cat.close_stdin();
    assert_eq!(cat.finish().succeeded().stdout, "one line\nand no end of line");
}

fn a_read_only_root_cannot_be_written(containerd: Containerd) {
    let ran = containerd.run("ro").flag(["--read-only"]).output(["touch", "/file"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
    containerd.run("rw").output(["touch", "/file"]).succeeded();
}

fn environment_and_working_directory_are_the_spec_s(containerd: Containerd) {
    let run = containerd.run("asks").flag(["--env", "FRUIT=a pear"]).flag(["--cwd", "/home"]);
    let ran = run.output(["sh", "-c", "echo $FRUIT; pwd"]).succeeded();
    assert_eq!(ran.stdout, "a pear\n/home\n");
}

fn a_running_task_is_not_deleted(containerd: Containerd) {
    let sleeper = containerd.run("sleeper").detached(["sleep", "1000"]);
    let deleted = sleeper.delete();
    assert_ne!(deleted.code, 0);
    assert!(deleted.stderr.contains("running"), "{}", deleted.stderr);
    assert_eq!(sleeper.status(), "RUNNING");

    sleeper.kill("SIGKILL", &[]).succeeded();
    sleeper.wait_stopped();
    sleeper.delete().succeeded();
}

fn the_task_lists_show_running_processes(containerd: Containerd) {
    let parent = containerd.run("parent").detached(["sh", "-c", "sleep 1000 & wait"]);
    let first = parent.pid();
    let listed = integration::wait::until("both processes are listed", || {
        let listed = containerd.ctr(["task", "ps", "parent"]).succeeded().stdout;
        let pids: Vec<i32> = listed
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect();
        (pids.len() == 2).then_some(pids)
    });
    assert!(listed.contains(&first), "{first} is not in {listed:?}");

    let metrics = containerd.ctr(["task", "metrics", "parent"]).succeeded().stdout;
    assert!(metrics.contains("parent") && metrics.contains("memory"), "{metrics}");
}

fn an_id_can_be_used_again(containerd: Containerd) {
    for round in ["first", "second"] {
        let ran = containerd.run("phoenix").output(["echo", round]).succeeded();
        assert_eq!(ran.stdout.trim(), round);
    }
}
