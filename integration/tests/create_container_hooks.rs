//! `createContainer` hooks, which prepare a container's root file system before it runs: what
//! NVIDIA's and other CDI specifications consist of. Each story also passes under runc, but those of the Sandbox service and of descriptors.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use integration::containerd::{Containerd, Version};
use integration::spec::add_bind;
use integration::{leaks, on_each_containerd, wait};
use k8s_cri::v1::CdiDevice;
use serde_json::{Value, json};

on_each_containerd!(
    a_hook_works_on_the_root_file_system_and_its_mounts,
    a_hook_s_mounts_are_there,
    a_hook_has_no_descriptor_of_the_runtime,
    a_hook_that_fails_or_hangs_ends_the_create,
    a_create_that_is_cancelled_ends_its_hook,
);

/// The beginning of each hook: finds the container's root as NVIDIA's hooks do, from the state
/// on standard input and the bundle's config.json.
const FIND_ROOT: &str = r#"#!/bin/sh
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
state=$(cat)
field() { printf %s "$state" | tr -d ' \n' | sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"; }
bundle=$(field bundle)
root=$(tr -d ' \n' < "$bundle/config.json" | sed -n 's/.*"root":{[^}]*"path":"\([^"]*\)".*/\1/p')
case $root in /*) ;; *) root=$bundle/$root ;; esac
"#;

fn hook(containerd: &Containerd, name: &str, script: &str) -> PathBuf {
    let path = containerd.directory().join("bin").join(name);
    fs::write(&path, format!("{FIND_ROOT}{script}")).expect("write a hook");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

fn hooks(path: &Path) -> impl Fn(&mut Value) {
    let path = path.to_owned();
    move |spec| {
        let hook = json!({ "path": path, "args": ["a-hook", "arg"], "env": ["COLOUR=blue"] });
        spec["hooks"]["createContainer"] = json!([hook]);
    }
}

/// What `nvidia-cdi-hook update-ldcache`, `create-symlinks` and `chmod` do.
const PREPARE: &str = r#"
[ "$(field status)" = creating ] && [ "$(field pid)" -gt 0 ] && [ "$COLOUR,$1" = blue,arg ]
[ "$(id -u)" = 0 ] && [ -d /etc/apt ]
mkdir -p "$root/etc/ld.so.conf.d" "$root/usr/lib"
echo /usr/lib/vendor > "$root/etc/ld.so.conf.d/vendor.conf"
ln -s libvendor.so.1 "$root/usr/lib/libvendor.so"
chroot "$root" /bin/busybox sh -c '/bin/busybox cat /etc/ld.so.conf.d/* > /etc/ld.so.cache'
echo tmpfs > "$root/run/of-hook"
echo volume > "$root/volume/of-hook"
[ -d "$root/dev/vendor" ] && chmod 750 "$root/dev/vendor"
[ -d "$root/proc/self" ]
if echo x 2>/dev/null > "$root/protected/file"; then exit 9; fi
"#;

/// What it leaves running would keep the mount of the runtime's executable, which no program of
/// a container may find. runc 1.1 passes some.
fn a_hook_has_no_descriptor_of_the_runtime(containerd: Containerd) {
    let script = "[ \"$(ls /proc/self/fd | tr '\\n' ' ')\" = '0 1 2 3 ' ]\n\
                  grep -q '^NoNewPrivs:.0$' /proc/self/status\n\
                  grep -q '^Seccomp:.0$' /proc/self/status";
    let path = hook(&containerd, "descriptors", script);
    let container = containerd.shell("descriptors", "echo done").spec(hooks(&path)).start();
    assert_eq!(container.finish(), (0, "done\n".to_owned()));
}

/// The files belong to the container's root, on an overlay and on a directory, whether its root
/// is read-only or not.
fn a_hook_works_on_the_root_file_system_and_its_mounts(containerd: Containerd) {
    let path = hook(&containerd, "prepare", PREPARE);
    for (id, read_only) in [("prepared", false), ("read-only", true)] {
        let volume = containerd.directory().join(format!("volume-{id}"));
        fs::create_dir(&volume).expect("mkdir");
        let source = volume.to_str().expect("ASCII").to_owned();
        let script = "cat /etc/ld.so.cache /run/of-hook /volume/of-hook; \
            readlink /usr/lib/libvendor.so; stat -c '%u %a' /etc/ld.so.cache /etc/ld.so.conf.d \
            /usr/lib/libvendor.so /run/of-hook /volume/of-hook /dev/vendor; ls /dev/vendor; \
            echo more >> /run/of-hook && echo more >> /volume/of-hook && echo mine; \
            touch /x 2>/dev/null && echo writable; stat -c %a /run";
        let container = containerd.shell(id, script).spec(hooks(&path)).spec(|s| {
            add_bind(s, &source, "/volume", &["rbind", "rw"]);
            add_bind(s, &source, "/protected", &["rbind", "ro"]);
            s["root"]["readonly"] = read_only.into();
            s["linux"]["devices"] =
                json!([{ "path": "/dev/vendor/one", "type": "c", "major": 1, "minor": 3 }]);
        });
        let (code, output) = container.start().finish();
        let writable = if read_only { "" } else { "writable\n" };
        let wanted = format!(
            "/usr/lib/vendor\ntmpfs\nvolume\nlibvendor.so.1\n0 644\n0 755\n0 777\n0 644\n0 644\n\
             0 750\none\nmine\n{writable}755\n"
        );
        assert_eq!((output, code), (wanted, 0), "{id}");
        assert_eq!(fs::read_to_string(volume.join("of-hook")).expect("read"), "volume\nmore\n");
    }
    // Nothing is left at the bundle's path, or would be found in the next container.
    let plain = containerd.shell("plain", "ls -A /run; ls /etc/ld.so.cache 2>/dev/null; echo done");
    assert_eq!(plain.start().finish().1, "done\n");
}

/// As NVIDIA's hook that hides device parameters: a file on a tmpfs, bound over one of proc.
fn a_hook_s_mounts_are_there(containerd: Containerd) {
    let host = containerd.directory().join("of-host");
    fs::write(&host, "of the host\n").expect("write");
    let script = format!(
        "mkdir \"$root/scratch\" && mount -t tmpfs -o mode=700 none \"$root/scratch\"\n\
         echo hidden > \"$root/scratch/file\"\n\
         mount --bind \"$root/scratch/file\" \"$root/proc/uptime\"\n\
         : > \"$root/run/host\" && mount --bind {0} \"$root/run/host\"\n\
         mount -o remount,bind,ro \"$root/run/host\"\n",
        host.display()
    );
    let path = hook(&containerd, "mounting", &script);
    let script = "cat /proc/uptime /scratch/file /run/host; stat -c '%u %a' /scratch /run/host; \
        echo x 2>/dev/null > /run/host || echo read-only; echo x > /scratch/mine && echo mine";
    let container = containerd.shell("mounted", script).spec(hooks(&path)).start();
    let (code, output) = container.finish();
    let wanted = "hidden\nhidden\nof the host\n0 700\n0 644\nread-only\nmine\n";
    assert_eq!((output.as_str(), code), (wanted, 0));
    let table = fs::read("/proc/self/mounts").expect("read the mounts");
    let table = String::from_utf8_lossy(&table);
    assert!(!table.contains("/scratch "), "a hook's mount is on the host");
}

/// Its words are quoted, nothing is left, and what it prepared is tidied up.
fn a_hook_that_fails_or_hangs_ends_the_create(containerd: Containerd) {
    let tidied = containerd.directory().join("tidied");
    let tidy = hook(&containerd, "tidy", &format!(": > {}", tidied.display()));
    let failing = hook(&containerd, "failing", "echo no library is left >&2\nexit 3\n");
    let container = containerd.shell("unlucky", "true").spec(hooks(&failing)).spec(|s| {
        s["hooks"]["poststop"] = json!([{ "path": tidy }]);
    });
    let refused = container.try_create().expect_err("the hook fails");
    for words in ["exit status 3", "no library is left"] {
        assert!(refused.message().contains(words), "{words:?} is missing in {}", refused.message());
    }
    if !containerd.runtime_name().contains("runc") {
        assert!(refused.message().contains("bin/failing"), "{}", refused.message());
        assert!(tidied.is_file(), "nothing has tidied up");
    }
    // runc waits for what a hook has started as well, even after its timeout.
    let is_runc = containerd.runtime_name().contains("runc");
    let hang = if is_runc { "exec sleep 1000\n" } else { "sleep 1000 & wait\n" };
    let hanging = hook(&containerd, "hanging", hang);
    let container = containerd.shell("hanging", "true").spec(hooks(&hanging)).spec(|s| {
        s["hooks"]["createContainer"][0]["timeout"] = 1.into();
    });
    container.try_create().expect_err("the hook hangs");
    let missing = containerd.shell("missing", "true").spec(hooks(Path::new("/no/such/hook")));
    let refused = missing.try_create().expect_err("there is no such hook");
    assert!(refused.message().contains("/no/such/hook"), "{}", refused.message());
}

/// As Ctrl-C in `ctr run` does. Nothing of the hook is left.
fn a_create_that_is_cancelled_ends_its_hook(containerd: Containerd) {
    let begun = containerd.directory().join("begun");
    let script = format!("sleep 12345 & : > {}; wait\n", begun.display());
    let path = hook(&containerd, "endless", &script);
    let container = containerd.shell("abandoned", "true").spec(hooks(&path));
    if containerd.runtime_name().contains("runc") {
        // runc goes on.
        return;
    }
    let abandoned = container.cancel_create(&begun);
    wait::until("the hook has gone", || {
        let processes = fs::read_dir("/proc").expect("read /proc").flatten();
        let mut lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
        let left = lines.any(|line| line.starts_with(b"sleep\x0012345"));
        (!left).then_some(())
    });
    assert_eq!(leaks::left_of(&containerd.traces()), [""; 0]);
    drop(abandoned);
}

/// A device of a CDI specification, as the kubelet asks for it: hooks, a node and a library.
fn a_cdi_device_is_prepared_by_its_hooks(containerd: Containerd) {
    let prepare = hook(
        &containerd,
        "cdi",
        &PREPARE
            .replace("/volume/", "/usr/")
            .replace("if echo x 2>/dev/null > \"$root/protected/file\"; then exit 9; fi", ""),
    );
    let library = containerd.directory().join("libvendor.so.1");
    fs::write(&library, "a library\n").expect("write");
    let cdi = json!({
        "cdiVersion": "0.5.0",
        "kind": "vendor.example/device",
        "devices": [{ "name": "one", "containerEdits": {
            "deviceNodes": [{ "path": "/dev/vendor/one", "hostPath": "/dev/null" }],
        } }],
        "containerEdits": {
            "env": ["VENDOR=yes"],
            "mounts": [{ "hostPath": library, "containerPath": "/usr/lib/libvendor.so.1",
                         "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"] }],
            "hooks": [{ "hookName": "createContainer", "path": prepare,
                        "args": ["cdi", "arg"], "env": ["COLOUR=blue"] }],
        },
    });
    let folder = containerd.directory().join("cdi");
    fs::create_dir_all(&folder).expect("mkdir");
    fs::write(folder.join("vendor.json"), cdi.to_string()).expect("write");
    let pod = containerd.pod("cdi");
    let container = pod.container("main", "sleep 1000", |config| {
        config.cdi_devices.push(CdiDevice { name: "vendor.example/device=one".into() });
    });
    let script = "cat /etc/ld.so.cache /usr/lib/libvendor.so /usr/of-hook; \
        stat -c '%u %a' /etc/ld.so.cache /dev/vendor; [ -c /dev/vendor/one ] && echo $VENDOR";
    let wanted = "/usr/lib/vendor\na library\nvolume\n0 644\n0 750\nyes";
    assert_eq!(container.ask(script), wanted);
}

#[test]
fn a_cdi_device_works_with_containerd_1_7() {
    a_cdi_device_is_prepared_by_its_hooks(Containerd::start(Version::V1_7));
}

#[test]
fn a_cdi_device_works_with_containerd_2_1() {
    a_cdi_device_is_prepared_by_its_hooks(Containerd::start(Version::V2_1));
}

#[test]
fn a_cdi_device_works_with_the_sandbox_service() {
    a_cdi_device_is_prepared_by_its_hooks(Containerd::start_with_sandboxer());
}
