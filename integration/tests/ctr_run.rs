//! `ctr run`, as somebody tries it first.

use integration::containerd::Containerd;
use integration::on_each_containerd;

on_each_containerd!(output_and_exit_code_arrive);

/// What the container writes comes out, stream by stream, and its exit code is
/// that of `ctr`.
fn output_and_exit_code_arrive(containerd: Containerd) {
    let ran = containerd
        .run("talks")
        .output(["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (3, "out\n"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("err\n"), "{}", ran.stderr);
}
