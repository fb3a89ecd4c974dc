//! How pods and containers are named on the command line, and what a wrong name answers.

use integration::containerd::{Containerd, Version};
use integration::on_each_containerd;

use crate::{command, palisade, shows};

// With `sandboxer = "shim"` no bundle names the directory of the logs, and that of the harness is
// not the kubelet's.
on_each_containerd!(a_pod_and_a_container_have_their_names_of_kubernetes);

fn a_pod_and_a_container_have_their_names_of_kubernetes(containerd: Containerd) {
    let name = format!("web-{}", std::process::id());
    let pod = containerd.pod(&name);
    let first = pod.shell("first", "echo written; exec sleep 1000");
    first.wait_for_log("written");
    // What the pod's only other container is called, in each way.
    for called in [
        name.clone(),
        format!("default/{name}"),
        format!("{name}/first"),
        format!("default/{name}/first"),
        first.id.clone(),
        first.id[..14].to_owned(),
    ] {
        let places = shows(&["logs", &called]);
        assert!(places.contains("/first/0.log"), "{called}: {places}");
    }
    let second = pod.shell("second", "exec sleep 1000");
    let ran = palisade(&["logs", &name]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.errors.contains("has 2 containers; name one of them"), "{}", ran.errors);
    assert!(ran.errors.contains("(first)") && ran.errors.contains("(second)"), "{}", ran.errors);
    assert!(shows(&["logs", &format!("{name}/second")]).contains("/second/0.log"));
    // A shell completes them.
    let completed = command(&["--", "palisade", "logs", &format!("{name}/")])
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "2")
        .env("_CLAP_IFS", "\n")
        .output()
        .expect("complete");
    let completed = String::from_utf8_lossy(&completed.stdout).into_owned();
    for whole in ["first", "second"].map(|container| format!("{name}/{container}")) {
        assert!(completed.lines().any(|line| line.trim() == whole), "{completed}");
    }
    drop(second);
}

#[test]
fn a_container_is_named_by_its_id_or_the_beginning_of_it() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let in_it = |name: &str| palisade(&["--namespace", &namespace, "logs", name]);
    let one = containerd.shell("apple", "exec sleep 1000").start();
    let two = containerd.shell("apricot", "exec sleep 1000").start();
    for called in ["apple", "app"] {
        let ran = in_it(called);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.out.contains("sandbox=apple"), "{}", ran.out);
    }
    let ran = in_it("ap");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.errors.contains("means 2 pods or containers"), "{}", ran.errors);
    for nobody in ["pear", ""] {
        let ran = in_it(nobody);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.errors.contains(&format!("is called {nobody:?}")), "{}", ran.errors);
    }
    let ran = palisade(&["--namespace", "no-such", "logs", "apple"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let ran = palisade(&["logs"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let quiet = shows(&["--namespace", &namespace, "list", "--quiet"]);
    assert_eq!(quiet.lines().collect::<Vec<_>>(), ["apple", "apricot"]);
    drop((one, two));
}

/// What is piped into a program that has read enough ends without a word.
#[test]
fn a_closed_pipe_is_no_error() {
    let mut list = command(&["list"]);
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    drop(reader);
    let output = list.stdout(writer).output().expect("run palisade");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}
