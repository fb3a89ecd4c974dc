//! Wrong bundles and requests. Each is refused in one sentence that names the
//! fault, and leaves nothing behind.

use std::fs;
use std::path::Path;

use containerd_client::tonic::Code;
use integration::container::options;
use integration::containerd::{Containerd, Version};
use integration::on_each_containerd;
use integration::shim::{Bundle, symlink};
use serde_json::{Value, json};

on_each_containerd!(
    a_spec_that_is_wrong_is_refused_by_containerd_s_error,
    an_id_is_taken_once,
    one_of_two_creates_at_once_succeeds,
    options_with_an_unknown_key_are_refused,
    a_symlink_leads_no_mount_out_of_the_container,
);

/// Makes a bundle. Its containerd may be of any version.
fn bundle(containerd: &Containerd, id: &str) -> Bundle {
    Bundle::new(containerd, id, "exit 7")
}

#[track_caller]
fn assert_names(refusal: &str, wanted: &[&str]) {
    for words in wanted {
        assert!(refusal.contains(words), "{words:?} is missing in: {refusal}");
    }
    assert!(refusal.trim().lines().count() <= 2, "more than a sentence: {refusal}");
    assert!(!refusal.contains("panicked"), "{refusal}");
}

#[test]
fn a_good_bundle_runs() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = bundle(&containerd, "good");
    let shim = bundle.start_shim().expect("start the shim");
    shim.create().expect("create the container");
    assert_eq!(shim.run_to_end(), Ok(7));
    shim.shutdown();
}

#[test]
fn a_missing_config_is_named() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = bundle(&containerd, "missing");
    fs::remove_file(bundle.config()).expect("remove config.json");
    assert_names(&bundle.refusal(), &["config.json"]);
}

#[test]
fn a_broken_config_is_named() {
    let containerd = Containerd::start(Version::V2_1);
    for (id, text) in [
        ("empty", ""),
        ("cut-off", "{\"ociVersion\": \"1.0.2\", \"process\": {"),
        ("no-object", "[1, 2, 3]"),
        ("binary", "\u{0}\u{1}\u{2}"),
        ("trailing", "{\"ociVersion\": \"1.0.2\"} and more"),
    ] {
        let bundle = bundle(&containerd, id);
        fs::write(bundle.config(), text).expect("write config.json");
        assert_names(&bundle.refusal(), &["config.json"]);
    }
}

#[test]
fn a_config_that_is_no_file_is_refused() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = bundle(&containerd, "directory");
    fs::remove_file(bundle.config()).expect("remove config.json");
    fs::create_dir(bundle.config()).expect("make a directory");
    assert_names(&bundle.refusal(), &["config.json"]);
    fs::remove_dir(bundle.config()).expect("remove the directory");
    let fifo = nix::unistd::mkfifo(&bundle.config(), nix::sys::stat::Mode::S_IRWXU);
    fifo.expect("mkfifo");
    assert_names(&bundle.refusal(), &["config.json", "regular file"]);
}

/// Properties that the specification does not know are ignored, as it demands
/// (config.md, "Extensibility").
#[test]
fn unknown_fields_are_ignored() {
    let containerd = Containerd::start(Version::V2_1);
    let bundle = bundle(&containerd, "future").spec(|s| {
        s["fromTheFuture"] = json!({ "deep": [1] });
        s["process"]["alsoNew"] = json!(true);
    });
    let shim = bundle.start_shim().expect("start the shim");
    shim.create().expect("create the container");
    assert_eq!(shim.run_to_end(), Ok(7));
    shim.shutdown();
}

/// A change to a good spec, and the parts of its refusal.
type Mistake = (&'static str, fn(&mut Value), &'static [&'static str]);

const MISTAKES: &[Mistake] = &[
    ("no-version", |s| drop(s.as_object_mut().map(|s| s.remove("ociVersion"))), &["ociVersion"]),
    ("far-version", |s| s["ociVersion"] = json!("9.0.0"), &["ociVersion", "9.0.0"]),
    ("no-process", |s| s["process"] = Value::Null, &["process"]),
    ("no-args", |s| s["process"]["args"] = json!([]), &["process.args"]),
    ("args-type", |s| s["process"]["args"] = json!("sh"), &["process.args"]),
    ("relative-cwd", |s| s["process"]["cwd"] = json!("home"), &["process.cwd", "home", "absolute"]),
    ("user-type", |s| s["process"]["user"]["uid"] = json!("root"), &["process.user.uid"]),
    (
        "user-range",
        |s| s["process"]["user"]["uid"] = json!(u32::MAX),
        &["process.user.uid", "4294967295"],
    ),
    (
        "rlimit",
        |s| s["process"]["rlimits"] = json!([{ "type": "RLIMIT_JOY", "soft": 1, "hard": 1 }]),
        &["RLIMIT_JOY"],
    ),
    ("namespace", |s| s["linux"]["namespaces"] = json!([{ "type": "astral" }]), &["astral"]),
    (
        "twice",
        |s| {
            s["linux"]["namespaces"] =
                json!([{ "type": "pid" }, { "type": "pid" }, { "type": "mount" }])
        },
        &["pid"],
    ),
    ("no-root", |s| s["root"] = json!({ "path": "nowhere" }), &["nowhere"]),
    (
        "mount-type",
        |s| s["mounts"] = json!([{ "destination": "/m", "type": "wishfs", "source": "w" }]),
        &["mounts[0]", "wishfs"],
    ),
    (
        "mount-source",
        |s| s["mounts"] = json!([{ "destination": "/m", "type": "bind", "source": "/no/such/thing", "options": ["bind"] }]),
        &["/no/such/thing"],
    ),
    (
        "mount-option",
        |s| s["mounts"] = json!([{ "destination": "/m", "type": "bind", "source": "/etc", "options": ["bind", "sparkling"] }]),
        &["sparkling"],
    ),
    ("sysctl", |s| s["linux"]["sysctl"] = json!({ "vm.swappiness": "1" }), &["vm.swappiness"]),
    (
        "sysctl-path",
        |s| s["linux"]["sysctl"] = json!({ "net/../../vm/swappiness": "1" }),
        &["net/../../vm/swappiness"],
    ),
    (
        "seccomp",
        |s| s["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_CHEER" }),
        &["seccomp", "SCMP_ACT_CHEER"],
    ),
    (
        "cgroup-dots",
        |s| s["linux"]["cgroupsPath"] = json!("/a/../../../etc"),
        &["cgroupsPath", ".."],
    ),
    (
        "hook",
        |s| s["hooks"] = json!({ "createRuntime": [{ "path": "relative/hook" }] }),
        &["hook", "relative/hook"],
    ),
    ("apparmor", |s| s["process"]["apparmorProfile"] = json!("strict"), &["apparmor"]),
    ("resctrl", |s| s["linux"]["intelRdt"] = json!({ "closID": "gold" }), &["intelRdt"]),
];

#[test]
fn each_mistake_in_a_spec_is_named() {
    let containerd = Containerd::start(Version::V2_1);
    let mut missing = Vec::new();
    for (id, mistake, wanted) in MISTAKES {
        let bundle = bundle(&containerd, id).spec(*mistake);
        let refusal = bundle.refusal().to_lowercase();
        if !wanted.iter().all(|words| refusal.contains(&words.to_lowercase())) {
            missing.push(format!("{id}: {wanted:?} in: {refusal}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// containerd shows the sentence to the user.
fn a_spec_that_is_wrong_is_refused_by_containerd_s_error(containerd: Containerd) {
    let container = containerd.shell("wrong", "true").spec(|s| s["process"]["cwd"] = json!("home"));
    let refused = container.try_create().expect_err("the spec is wrong");
    assert_names(refused.message(), &["process.cwd", "home", "absolute"]);

    let container = containerd.shell("no-source", "true");
    let container = container.bind("/no/such/thing", "/thing", &["rbind", "ro"]);
    let refused = container.try_create().expect_err("the source is missing");
    assert_names(refused.message(), &["/no/such/thing"]);
    let fine = containerd.shell("fine", "exit 0").start();
    assert_eq!(fine.wait().code, 0);
}

fn an_id_is_taken_once(containerd: Containerd) {
    let first = containerd.container("same", ["sleep", "1000"]).start();
    let second = containerd.ctr([
        "run",
        "--rm",
        "--runtime",
        containerd.runtime_name(),
        integration::image::BUSYBOX,
        "same",
        "true",
    ]);
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains("already exists"), "{}", second.stderr);
    let again = first.create_task_again().expect_err("the task exists");
    assert_eq!(again.code(), Code::AlreadyExists, "{again}");
    assert_eq!(first.exec_shell("look", "echo unharmed").1, "unharmed\n");
}

/// Two Create requests for one ID in one shim, at the same time.
fn one_of_two_creates_at_once_succeeds(containerd: Containerd) {
    let bundle = Bundle::new(&containerd, "contested", "exit 7");
    let shims = [(); 2].map(|()| bundle.start_shim().expect("start or find the shim"));
    let outcomes = std::thread::scope(|scope| {
        shims
            .each_ref()
            .map(|shim| scope.spawn(|| shim.create()))
            .map(|t| t.join().expect("a create"))
    });
    let refusals: Vec<&String> =
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refusals.len(), 1, "{outcomes:?}");
    assert_names(refusals[0], &["contested", "already exists"]);
    assert_eq!(shims[0].run_to_end(), Ok(7));
    shims[0].shutdown();
}

fn options_with_an_unknown_key_are_refused(containerd: Containerd) {
    let container = containerd.shell("optional", "true").options(options("colour = \"red\"", ""));
    let refused = container.try_create().expect_err("there is no such option");
    assert_names(refused.message(), &["colour"]);

    let file = containerd.directory().join("palisade.toml");
    fs::write(&file, "userns = \"sometimes\"\n").expect("write a file of options");
    let from_file = options("", &file.to_string_lossy());
    let container = containerd.shell("from-file", "true").options(from_file);
    let refused = container.try_create().expect_err("there is no such choice");
    assert_names(refused.message(), &["sometimes"]);

    let fine = options("userns = \"never\"", "");
    let container = containerd.shell("fine", "cat /proc/self/uid_map").options(fine).start();
    let (code, map) = container.finish();
    assert_eq!(code, 0);
    assert!(map.split_whitespace().eq(["0", "0", "4294967295"]), "{map}");
}

/// The image's `/etc/outside` and the bundle's own links point up and out. A
/// mount there stays inside the container, or is refused.
fn a_symlink_leads_no_mount_out_of_the_container(containerd: Containerd) {
    let secret = containerd.directory().join("secret");
    fs::create_dir(&secret).expect("make a directory");
    let bundle = Bundle::new(
        &containerd,
        "climber",
        "[ -d /tmp/inner ] && [ -e /tmp/inner/mounted ] && exit 7",
    );
    let volume = containerd.directory().join("volume");
    fs::create_dir(&volume).expect("make a directory");
    fs::write(volume.join("mounted"), "").expect("write a file");
    symlink(&"../".repeat(20), &bundle.path.join("rootfs/up"));
    symlink(&secret.to_string_lossy(), &bundle.path.join("rootfs/absolute"));
    let bundle = bundle.spec(|s| {
        for destination in ["/etc/outside/inner", "/up/escaped", "/absolute/escaped"] {
            let source = volume.to_string_lossy();
            integration::spec::add_bind(s, &source, destination, &["rbind", "rw"]);
        }
    });
    // Followed on the host, each leads out of the root file system.
    for (link, outside) in [("up", Path::new("/")), ("absolute", &secret)] {
        let followed = fs::canonicalize(bundle.path.join("rootfs").join(link));
        assert_eq!(followed.expect("follow a link"), outside, "{link}");
    }
    let shim = bundle.start_shim().expect("start the shim");
    let created = shim.create();
    assert!(!Path::new("/escaped").exists(), "a directory was made on the host");
    assert!(!secret.join("escaped").exists(), "a directory was made on the host");
    created.expect("the mounts land inside");
    assert_eq!(shim.run_to_end(), Ok(7));
    shim.shutdown();
}
