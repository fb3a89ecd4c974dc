//! What a spec grants or asks for and its sandbox cannot give: it is told once, or refused.

use integration::container::options;
use integration::containerd::Containerd;
use integration::events::{Subscriber, TaskEvent};
use integration::on_each_containerd;
use serde_json::{Value, json};

on_each_containerd!(
    a_capability_without_effect_is_told_once,
    a_container_that_asks_for_nothing_is_told_nothing,
    a_node_can_refuse_what_has_no_effect,
    mounts_that_cannot_be_shared_with_the_host_are_told,
    an_update_s_annotation_is_told_once,
);

/// containerd's client sends them along (`WithAnnotations`).
fn an_update_s_annotation_is_told_once(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("annotated", ["sleep", "1000"]).start();
    let resources = json!({ "pids": { "limit": 99 } });
    container.update(&resources).expect("update it");
    for _ in 0..2 {
        container.update_with(&resources, &[("example/cache", "1")]).expect("update it");
    }
    let seen = events.until(is_powerless);
    let Some(TaskEvent::Powerless(sentence)) = seen.last() else { panic!("{seen:?}") };
    for part in ["container annotated", "the update's annotation example/cache", "unified"] {
        assert!(sentence.contains(part), "{sentence}");
    }
    let ours = container.update_with(&resources, &[("dev.palisade.userns", "never")]);
    let error = ours.expect_err("an update makes no other sandbox").to_string();
    assert!(error.contains("dev.palisade.userns"), "{error}");
    container.kill(9).expect("kill it");
    let rest = events.until(|event| matches!(event, TaskEvent::Exit(..)));
    assert!(!rest.iter().any(is_powerless), "{rest:?}");

    let refuse = options("on_powerless = 'refuse'", "");
    let strict = containerd.container("strict", ["sleep", "1000"]).options(refuse).start();
    let refused = strict.update_with(&resources, &[("example/cache", "1")]);
    let error = refused.expect_err("it has no effect").to_string();
    assert!(error.contains("example/cache") && error.contains("on_powerless"), "{error}");
}

fn volume(root: &str, option: &str) -> impl Fn(&mut Value) {
    let (root, option) = (root.to_owned(), option.to_owned());
    move |spec| {
        integration::spec::add_bind(spec, "/var/tmp", "/volume", &["rbind", &option]);
        spec["linux"]["rootfsPropagation"] = json!(root);
    }
}

/// Bidirectional cannot be, and the owners of what comes later are nobody.
fn mounts_that_cannot_be_shared_with_the_host_are_told(containerd: Containerd) {
    for (id, root, option, lost) in [
        ("both", "rshared", "rshared", "never appears on the host"),
        ("slave", "rslave", "rslave", "belongs to nobody"),
        ("root-only", "rslave", "rshared", "belongs to nobody"),
        ("by-root", "rslave", "rbind", "belongs to nobody"),
    ] {
        let container =
            containerd.shell(id, "true").options(options("on_powerless = 'refuse'", ""));
        let error = container.spec(volume(root, option)).try_create().expect_err(id).to_string();
        for words in ["mounts[7].options", "/volume", lost, "userns"] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
    }
    let never = || options("userns = 'never'\non_powerless = 'refuse'", "");
    let ours = containerd.shell("ours", "true").spec(volume("rshared", "rshared"));
    assert_eq!(ours.options(never()).start().finish().0, 0, "the host's root can share");
    let refuse = || options("on_powerless = 'refuse'", "");
    let private = containerd.shell("private", "true").spec(volume("rslave", "rprivate"));
    assert_eq!(private.options(refuse()).start().finish().0, 0);
}

fn with_capability(name: &str) -> impl Fn(&mut Value) {
    let name = name.to_owned();
    move |spec| {
        for set in ["bounding", "effective", "permitted"] {
            let set = spec["process"]["capabilities"][set].as_array_mut().expect("a set");
            set.push(json!(name));
        }
    }
}

fn is_powerless(event: &TaskEvent) -> bool {
    matches!(event, TaskEvent::Powerless(_))
}

fn a_capability_without_effect_is_told_once(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    let container = containerd.container("clock", ["sleep", "1000"]);
    let container = container.spec(with_capability("CAP_SYS_TIME")).start();
    let seen = events.until(is_powerless);
    let Some(TaskEvent::Powerless(sentence)) = seen.last() else { panic!("{seen:?}") };
    for part in ["container clock", "process.capabilities", "CAP_SYS_TIME", "userns"] {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert_eq!(container.exec_shell("more", "true").0, 0);
    container.kill(9).expect("kill it");
    container.wait();
    container.delete_task().expect("delete it");
    let rest = events.until(|event| matches!(event, TaskEvent::Delete(..)));
    assert!(!rest.iter().any(is_powerless), "{rest:?}");
    let log = containerd.log();
    let warned = log.lines().filter(|line| line.contains("CAP_SYS_TIME"));
    let warned: Vec<_> = warned.filter(|line| line.contains("level=warning")).collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
}

fn a_container_that_asks_for_nothing_is_told_nothing(containerd: Containerd) {
    let events = Subscriber::new(&containerd);
    containerd.shell("plain", "true").start().finish();
    let seen = events.until(|event| matches!(event, TaskEvent::Exit(..)));
    assert!(!seen.iter().any(is_powerless), "{seen:?}");
}

fn a_node_can_refuse_what_has_no_effect(containerd: Containerd) {
    let refuse = || options("on_powerless = 'refuse'", "");
    let container = containerd.shell("clock", "true").options(refuse());
    let error = container.spec(with_capability("CAP_SYS_TIME")).try_create();
    let error = error.expect_err("CAP_SYS_TIME has no effect").to_string();
    assert!(error.contains("CAP_SYS_TIME") && error.contains("on_powerless"), "{error}");
    // What each container gets by default is not refused.
    containerd.shell("plain", "true").options(refuse()).start().finish();
}
