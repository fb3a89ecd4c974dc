//! The process of a spec: what runc takes is taken, and means the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use integration::container::NewContainer;
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{on_each_containerd, spec, wait};
use serde_json::json;

on_each_containerd!(
    a_directory_that_only_root_may_enter_can_be_the_users,
    a_working_directory_that_is_a_file_is_refused,
    the_last_of_two_variables_counts,
    a_capability_that_no_kernel_knows_is_ignored_with_a_warning,
    the_domain_name_can_be_set_by_its_sysctl,
    a_swappiness_of_minus_one_is_none,
    a_created_container_takes_execs,
    execs_end_when_a_created_container_is_killed,
    execs_end_when_a_created_container_is_deleted,
    signal_zero_probes,
    every_signal_of_the_kernel_is_sent,
    a_passwd_file_is_bytes,
);

fn folder(containerd: &Containerd, name: &str, mode: u32) -> PathBuf {
    let path = containerd.directory().join(name);
    fs::create_dir(&path).expect("make a folder");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    path
}

fn in_folder<'a>(containerd: &'a Containerd, mode: u32, uid: u32) -> NewContainer<'a> {
    let source = folder(containerd, "folder", mode);
    let source = source.to_str().expect("an ASCII path");
    containerd.shell("inside", "pwd").bind(source, "/folder", &["bind"]).spec(|s| {
        s["process"]["cwd"] = json!("/folder");
        s["process"]["user"] = json!({ "uid": uid, "gid": uid });
    })
}

fn a_directory_that_only_root_may_enter_can_be_the_users(containerd: Containerd) {
    let container = in_folder(&containerd, 0o700, 1000).start();
    assert_eq!(container.finish(), (0, "/folder\n".to_owned()));
}

fn a_working_directory_that_is_a_file_is_refused(containerd: Containerd) {
    let container = containerd.shell("lost", "pwd").spec(|s| {
        s["process"]["cwd"] = json!("/etc/passwd");
    });
    let refused = container.try_create().and_then(|container| container.start());
    let error = refused.expect_err("a file is no directory");
    assert!(error.message().to_lowercase().contains("not a directory"), "{error}");
}

fn the_last_of_two_variables_counts(containerd: Containerd) {
    let container = containerd.shell("twice", "echo $FRUIT; env | grep -c FRUIT").spec(|s| {
        s["process"]["env"] = json!(["FRUIT=plum", "PATH=/nowhere", "PATH=/bin", "FRUIT=pear"]);
    });
    assert_eq!(container.start().finish(), (0, "pear\n1\n".to_owned()));
}

fn a_capability_that_no_kernel_knows_is_ignored_with_a_warning(containerd: Containerd) {
    let container = containerd.shell("flies", "grep CapBnd /proc/self/status").spec(|s| {
        for set in ["bounding", "effective", "permitted"] {
            s["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_FLY"]);
        }
    });
    let container = container.start();
    assert_eq!(container.finish(), (0, "CapBnd:\t0000000000000001\n".to_owned()));
    assert!(
        containerd.runtime_name().contains("runc") || containerd.log().contains("CAP_FLY"),
        "{}",
        containerd.log()
    );
}

/// Docker's `--domainname` is this sysctl.
fn the_domain_name_can_be_set_by_its_sysctl(containerd: Containerd) {
    let container = containerd.shell("named", "cat /proc/sys/kernel/domainname").spec(|s| {
        s["linux"]["sysctl"] =
            json!({ "kernel.domainname": "plum.example", "kernel.msgmax": "4096" });
    });
    assert_eq!(container.start().finish(), (0, "plum.example\n".to_owned()));
}

fn a_swappiness_of_minus_one_is_none(containerd: Containerd) {
    let container = containerd.shell("swaps", "echo fine").spec(|s| {
        s["linux"]["resources"]["memory"] = json!({ "swappiness": u64::MAX });
    });
    assert_eq!(container.start().finish(), (0, "fine\n".to_owned()));
}

fn a_created_container_takes_execs(containerd: Containerd) {
    let container = containerd.shell("early", "cat /note").create();
    let (code, output) = container.exec_shell("writes", "echo from the exec >/note; echo $$");
    assert_eq!(code, 0, "{output}");
    container.start().expect("start it");
    assert_eq!(container.finish(), (0, "from the exec\n".to_owned()));
}

fn execs_end_when_a_created_container_is_killed(containerd: Containerd) {
    let container = containerd.container("unborn", ["echo", "never"]).create();
    let exec = container.exec("stays", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    container.kill(9).expect("kill the container");
    assert_eq!((exec.wait().code, container.wait().code), (137, 137));
}

fn execs_end_when_a_created_container_is_deleted(containerd: Containerd) {
    let container = containerd.container("unborn", ["echo", "never"]).create();
    let exec = container.exec("stays", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    let pidfd = integration::container::pidfd(exec.pid());
    container.delete_task().expect("delete it");
    assert!(wait::readable(&pidfd, wait::deadline()), "the exec outlives its container");
}

fn signal_zero_probes(containerd: Containerd) {
    let container = containerd.container("probed", ["sleep", "1000"]).start();
    container.kill(0).expect("it is there");
    container.kill(9).expect("kill it");
    container.wait();
    let error = container.kill(0).expect_err("it has ended");
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
}

/// 32 and 33 are taken by libc and not by the kernel. Go's runtime, which starts runc's
/// processes, makes them ignore these.
fn every_signal_of_the_kernel_is_sent(containerd: Containerd) {
    let container = containerd.container("host", ["sleep", "1000"]).start();
    let of_libc = if containerd.runtime_name().contains("runc") { 34..34 } else { 32..34 };
    for signal in [1, 15, 31, 34, 50, 64].into_iter().chain(of_libc) {
        let process = spec::process(&["sleep", "1000"]);
        let exec = container.exec(&format!("signal-{signal}"), process, Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        exec.kill(signal).expect("send the signal");
        assert_eq!(exec.wait().code, 128 + signal.unsigned_abs());
    }
    container.kill(65).expect_err("the kernel has 64");
    let exec = container.exec("one-of-all", spec::process(&["sleep", "1000"]), Streams::Null);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    container.kill_all(40).expect("send a real-time signal to all");
    assert_eq!(exec.wait().code, 128 + 40);
}

fn a_passwd_file_is_bytes(containerd: Containerd) {
    let passwd = containerd.directory().join("passwd");
    let lines = b"root:x:0:0:M\xfcller:/root:/bin/sh\nalice:x:1000:1000::/h\xf6me:/bin/sh\n";
    fs::write(&passwd, lines).expect("write a passwd file");
    let source = passwd.to_str().expect("an ASCII path");
    let container = containerd.shell("latin-1", "printf %s \"$HOME\" | od -An -tx1");
    let container = container.bind(source, "/etc/passwd", &["bind", "ro"]).spec(|s| {
        s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    assert_eq!(container.start().finish(), (0, " 2f 68 f6 6d 65\n".to_owned()));
}
