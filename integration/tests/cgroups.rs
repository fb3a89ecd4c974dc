//! A container's cgroup on the host, beyond its limits: its owner, the cgroups
//! below it, and its end.

use std::path::PathBuf;

use integration::container::{NewContainer, options};
use integration::containerd::{Containerd, Version};
use integration::{cgroup, host, sandbox, wait};
use serde_json::{Value, json};

/// Gives a container its own cgroup namespace, with a mount of it.
fn with_own_cgroups(container: NewContainer<'_>, options: Value) -> NewContainer<'_> {
    container.spec(|s| {
        let namespaces = s["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.push(json!({ "type": "cgroup" }));
        s["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": options,
        }));
    })
}

/// Returns a container's cgroup, even if its processes have moved below it.
fn cgroup_of(containerd: &Containerd, id: &str) -> PathBuf {
    let names = [id.to_owned(), cgroup::scope(containerd.slot(), id)];
    let mine = |path: &PathBuf| {
        let belongs = cgroup::belongs(&path.to_string_lossy(), containerd.slot());
        belongs && names.iter().any(|name| path.ends_with(name))
    };
    host::cgroups().into_iter().find(mine).unwrap_or_else(|| panic!("no cgroup of {id}"))
}

#[test]
fn devices_are_what_the_spec_allows() {
    let containerd = Containerd::start(Version::V2_1);
    let device = |path: &str, minor: u32| json!({ "path": path, "type": "c", "major": 10, "minor": minor, "fileMode": 0o666 });
    let run = |id: &str, rules: Value| {
        let look = "for d in null zero net/tun fuse; do (: < /dev/$d) 2>/dev/null && echo $d; done";
        let container = containerd.shell(id, look).spec(|s| {
            s["linux"]["devices"] = json!([device("/dev/net/tun", 200), device("/dev/fuse", 229)]);
            s["linux"]["resources"]["devices"] = rules;
        });
        container.start().finish().1
    };
    let none = json!({ "allow": false, "access": "rwm" });
    let allowed = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" });
    assert_eq!(run("closed", json!([none])), "null\nzero\nnet/tun\n");
    assert_eq!(run("open", json!([none, allowed])), "null\nzero\nnet/tun\nfuse\n");
}

/// Makes device nodes and opens them. Prints of each what is not refused: mknod, read, write.
const PROBE: &str = "cd /; allowed() { case $1 in *'not permitted'*) ;; *) printf $2;; esac; }; \
    try() { printf \"$1$2:$3 \"; allowed \"$(mknod n $1 $2 $3 2>&1)\" m; \
            allowed \"$( (: < n) 2>&1)\" r; allowed \"$( (: >> n) 2>&1)\" w; rm -f n; echo; }; \
    try c 1 3; try c 1 5; try c 1 7; try c 1 8; try c 1 9; try c 1 11; try c 5 0; try c 5 1; \
    try c 5 2; try c 10 200; try c 10 229; try c 136 0; try b 7 0; try b 7 1";

/// In a pod without a user namespace a container makes any node, so that only its cgroup
/// decides which it opens. The list that every container has is runc's, whatever the rules say.
#[test]
fn without_a_user_namespace_devices_are_those_of_runc() {
    const RUNC: &str = "io.containerd.runc.v2";
    let containerd = Containerd::start(Version::V2_1);
    let run = |id: &str, runtime: &str, rules: &Value| {
        let container = containerd.shell(id, PROBE).runtime(runtime).spec(|s| {
            s["linux"]["resources"]["devices"] = rules.clone();
        });
        let container = match runtime {
            RUNC => container,
            _ => container.options(options("userns = 'never'", "")),
        };
        container.start().finish().1
    };
    let none = json!({ "allow": false, "access": "rwm" });
    let all = json!({ "allow": true, "access": "rwm" });
    let rule = |allow: bool, kind: &str, major: i64, minor: i64, access: &str| json!({ "allow": allow, "type": kind, "major": major, "minor": minor, "access": access });
    let fuse = |allow, access| rule(allow, "c", 10, 229, access);
    let cases = [
        json!([]),
        json!([none]),
        json!([none, fuse(true, "rwm"), fuse(false, "w")]),
        json!([none, rule(false, "c", 1, 3, "rwm"), rule(false, "b", -1, -1, "m")]),
        json!([all]),
        json!([all, fuse(false, "rw"), rule(false, "c", 5, 1, "w"), rule(false, "b", 7, 0, "rwm")]),
        json!([all, rule(false, "c", 1, 9, "rwm"), rule(false, "c", 10, 200, "w")]),
    ];
    for (number, rules) in cases.iter().enumerate() {
        let ours = run(&format!("ours-{number}"), containerd.runtime_name(), rules);
        assert_eq!(ours, run(&format!("runcs-{number}"), RUNC, rules), "{rules}");
        if number < 2 {
            // Whatever runc does: the host's console, its log, its disks and FUSE are shut.
            for shut in ["c5:1 m\n", "c1:11 m\n", "c10:229 m\n", "b7:0 m\n"] {
                assert!(ours.contains(shut), "{ours}");
            }
            assert!(ours.contains("c1:3 mrw\n") && ours.contains("c10:200 mrw\n"), "{ours}");
        }
    }
}

/// Nests cgroups, from the working directory on, until no path reaches the last.
const NEST: &str = "n=$(printf %200s | tr ' ' n); i=0; \
                    while [ $i -lt 25 ]; do mkdir $n && cd -P $n || exit 8; i=$((i+1)); done;";

/// The hierarchies of version 1 cannot be delegated, but the one without controllers.
mod needs_v1 {
    use integration::events::{Subscriber, TaskEvent};

    use super::*;

    const LOOK: &str = "cd /sys/fs/cgroup/systemd; mkdir -p below/deeper 2>/dev/null && echo made; \
        (echo $$ > below/deeper/tasks) 2>/dev/null && echo joined; \
        grep -o name=systemd:.* /proc/self/cgroup; \
        (echo 1 > notify_on_release) 2>/dev/null && echo released; \
        for d in ../*/; do mkdir $d/made 2>/dev/null && echo $d; done; \
        (echo 33554432 > ../memory/memory.limit_in_bytes) 2>/dev/null && echo raised; \
        (echo $$ > ../memory/cgroup.procs) 2>/dev/null && echo attached; rmdir made 2>/dev/null; :";

    #[test]
    fn a_container_may_divide_the_hierarchy_without_controllers() {
        let containerd = Containerd::start(Version::V2_1);
        let run = |id: &str, option: &str| {
            let container = with_own_cgroups(containerd.shell(id, LOOK), json!([option]))
                .spec(|s| s["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20 }));
            container.start().finish()
        };
        let divided = "made\njoined\nname=systemd:/below/deeper\n../systemd/\n";
        assert_eq!(run("writable", "rw"), (0, divided.to_owned()));
        // Read-only, it is no part of what the container may change.
        assert_eq!(run("read-only", "ro"), (0, "name=systemd:/\n".to_owned()));
    }

    /// What the container made goes with it, its processes in there as well.
    #[test]
    fn what_a_container_nests_in_it_goes_with_the_container() {
        let containerd = Containerd::start(Version::V2_1);
        let nest = format!("{NEST} echo $$ > tasks; echo nested; exec sleep 1000");
        let script = format!("cd /sys/fs/cgroup/systemd; {nest}");
        let container = with_own_cgroups(containerd.shell("deep", &script), json!(["rw"])).start();
        container.stdio().wait_for_output("nested");
        assert_eq!(container.processes().len(), 1);
        assert_eq!(container.exec_shell("look", "grep name=systemd /proc/self/cgroup").0, 0);
        container.kill_all(9).expect("kill all");
        assert_eq!(container.wait().code, 137);
        container.delete_task().expect("delete it");
        let left = host::cgroups();
        let left: Vec<_> =
            left.iter().filter(|path| path.to_string_lossy().contains("/deep")).collect();
        assert_eq!(left, [] as [&PathBuf; 0]);
    }

    #[test]
    fn what_cannot_be_written_is_told_or_refused() {
        let containerd = Containerd::start(Version::V2_1);
        let new = |id: &str, option: &str, node: &str| {
            let container = with_own_cgroups(containerd.shell(id, "true"), json!([option]));
            container.options(options(node, ""))
        };
        let events = Subscriber::new(&containerd);
        assert_eq!(new("told", "rw", "").start().finish().0, 0);
        let seen = events.until(|event| matches!(event, TaskEvent::Powerless(_)));
        let Some(TaskEvent::Powerless(sentence)) = seen.last() else { panic!("{seen:?}") };
        for part in ["container told", "cgroup", "only name=systemd", "userns"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        let refuse = "on_powerless = 'refuse'";
        let refused = new("refused", "rw", refuse).try_create().expect_err("it has no effect");
        assert!(refused.message().contains("cgroup version 1"), "{refused}");
        assert_eq!(new("read-only", "ro", refuse).start().finish().0, 0);
        let never = format!("userns = 'never'\n{refuse}");
        assert_eq!(new("host-root", "rw", &never).start().finish().0, 0);
    }
}

mod needs_v2 {
    use std::fs;
    use std::time::Duration;

    use containerd_shim_protos::cgroups_v2::metrics as v2;
    use containerd_shim_protos::protobuf::Message;
    use integration::cri::{pod_security, resources, security};
    use integration::events::{Subscriber, TaskEvent};
    use integration::spec;
    use integration::stdio::Streams;

    use k8s_cri::v1::NamespaceMode;

    use super::*;

    #[test]
    fn unified_values_arrive_and_are_refused_by_name() {
        let containerd = Containerd::start(Version::V2_1);
        let unified = |id: &str, values: Value| {
            let container = containerd.container(id, ["sleep", "1000"]);
            container.spec(|s| s["linux"]["resources"]["unified"] = values)
        };
        let values = json!({
            "memory.high": "50331648", "memory.oom.group": "1", "pids.max": "55",
            "cpu.weight": "50", "cpu.max": "30000 60000",
        });
        let container = unified("unified", values.clone()).start();
        for (file, value) in values.as_object().expect("an object") {
            assert_eq!(host::cgroup_value(container.pid(), "", file), *value, "{file}");
        }
        let changed = json!({ "unified": { "memory.high": "max", "pids.max": "66" } });
        container.update(&changed).expect("update it");
        assert_eq!(host::cgroup_value(container.pid(), "", "memory.high"), "max");
        assert_eq!(host::cgroup_value(container.pid(), "", "pids.max"), "66");
        assert_eq!(host::cgroup_value(container.pid(), "", "cpu.weight"), "50");

        for (id, file, value) in [
            ("unknown", "no.such", "1"),
            ("wrong", "memory.max", "lots"),
            ("not-ours", "cgroup.kill", "1"),
        ] {
            let refused = unified(id, json!({ file: value })).try_create().expect_err(file);
            assert!(refused.message().contains("linux.resources.unified"), "{refused}");
            assert!(refused.message().contains(file), "{refused}");
        }
    }

    /// If only the init were killed, the other process would survive. boot is
    /// in the same cgroup and ends with it. The OOM is published nevertheless.
    #[test]
    fn a_container_with_oom_group_is_killed_as_a_whole() {
        let containerd = Containerd::start(Version::V2_1);
        let events = Subscriber::new(&containerd);
        let hungry = "dd if=/dev/zero of=/dev/shm/blob bs=1M count=48; sleep 1000";
        let together = json!({ "memory.oom.group": "1" });
        let container = containerd.shell("hungry", hungry).spec(|s| {
            s["linux"]["resources"]["memory"] = json!({ "limit": 24 << 20 });
            s["linux"]["resources"]["unified"] = together;
        });
        let container = container.start();
        assert_eq!(container.wait().code, 137);
        container.delete_task().expect("delete it");
        let seen = events.until(|event| matches!(event, TaskEvent::Delete(..)));
        let at = |wanted: &TaskEvent| seen.iter().position(|event| event == wanted);
        let oom = at(&TaskEvent::Oom("hungry".into())).expect("an OOM event");
        let exit = at(&TaskEvent::Exit("hungry".into(), "hungry".into(), 137));
        assert!(Some(oom) < exit, "{seen:?}");

        let pod = containerd.pod("hungry-pod");
        let container = pod.container("main", hungry, |config| {
            let resources = resources(config);
            resources.memory_limit_in_bytes = 24 << 20;
            resources.unified.insert("memory.oom.group".into(), "1".into());
        });
        assert_eq!(container.wait_for_reason("OOMKilled").exit_code, 137);
        assert!(pod.is_ready(), "the rest of the pod lives on");
    }

    #[test]
    fn every_process_starts_in_its_container_s_cgroup() {
        let containerd = Containerd::start(Version::V2_1);
        let container = containerd.shell("family", "sleep 1000 & sleep 1000").start();
        let exec = container.exec("more", spec::process(&["sleep", "1000"]), Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        let cgroup = host::cgroup_directory(container.pid(), "");
        assert_eq!(host::cgroup_directory(exec.pid(), ""), cgroup);
        // boot is in it as well, and no process of another container.
        let boot = sandbox::boot_of(container.shim());
        let mut members: Vec<i32> = sandbox::descendants(boot.pid).iter().map(|p| p.pid).collect();
        members.push(boot.pid);
        members.sort_unstable();
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).expect("read cgroup.procs");
        let mut listed: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
        listed.sort_unstable();
        assert_eq!(listed, members);
    }

    #[test]
    fn a_container_sees_its_own_cgroup_as_the_root() {
        let containerd = Containerd::start(Version::V2_1);
        let look = "cat /proc/self/cgroup; cd /sys/fs/cgroup; cat memory.max; \
                    mkdir below 2>/dev/null || echo read-only; echo max > memory.max || echo limited";
        let container = containerd.shell("own", &format!("({look}) 2>/dev/null"));
        let options = json!(["nosuid", "noexec", "nodev", "relatime", "ro"]);
        let container = with_own_cgroups(container, options)
            .spec(|s| s["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }));
        let (code, output) = container.start().finish();
        assert_eq!((code, output.as_str()), (0, "0::/\n67108864\nread-only\nlimited\n"));
    }

    /// A cgroup with processes cannot enable controllers for those below. So a container
    /// that may do that finds its init below the cgroup that is its root.
    #[test]
    fn a_container_with_writable_cgroups_enables_controllers_at_once() {
        let containerd = Containerd::start(Version::V2_1);
        let enable = "cat /proc/self/cgroup; cd /sys/fs/cgroup; \
                      echo +pids +memory > cgroup.subtree_control && echo enabled; \
                      cat cgroup.subtree_control; mkdir workers; echo 20 > workers/pids.max; \
                      for f in memory.max pids.max cgroup.freeze cgroup.kill; do \
                      (echo max > $f) 2>/dev/null && echo raised $f; done; \
                      (cat palisade/cgroup.procs; echo 1 > palisade/cgroup.freeze) 2>/dev/null; \
                      sh -c 'echo $$ > workers/cgroup.procs; cat /proc/self/cgroup'; \
                      stat -c %u:%g . cgroup.procs init.scope/cgroup.procs; cat memory.max";
        let new = |id: &str, script: &str, option: &str| {
            with_own_cgroups(containerd.shell(id, script), json!([option]))
                .spec(|s| s["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }))
                .spec(|s| s["linux"]["resources"]["pids"] = json!({ "limit": 100 }))
        };
        let (code, output) = new("enables", enable, "rw").start().finish();
        // boot's process is in another PID namespace.
        let expected =
            "0::/init.scope\nenabled\nmemory pids\n0\n0::/workers\n0:0\n0:0\n0:0\n67108864\n";
        assert_eq!((code, output.as_str()), (0, expected));

        // The control: with a process in the root itself it is refused.
        let busy = "cd /sys/fs/cgroup; echo $$ > cgroup.procs; cat /proc/self/cgroup; \
                    (echo +memory > cgroup.subtree_control) 2>&1 | grep -o 'resource busy'";
        assert_eq!(new("busy", busy, "rw").start().finish().1, "0::/\nresource busy\n");
        // And only who may divide the cgroup is put below it.
        let look = "cat /proc/self/cgroup; ls -d /sys/fs/cgroup/init.scope 2>/dev/null";
        assert_eq!(new("plain", look, "ro").start().finish().1, "0::/\n");
    }

    /// All that is done to a container is done to its cgroup, though its processes
    /// are below it.
    #[test]
    fn a_container_below_its_cgroup_is_run_watched_and_removed_as_any() {
        let containerd = Containerd::start(Version::V2_1);
        let events = Subscriber::new(&containerd);
        let script = "cd /sys/fs/cgroup; cat /go > /dev/null; \
                      echo +memory +pids > cgroup.subtree_control && echo enabled; \
                      mkdir -p work/shop; echo +memory > work/cgroup.subtree_control; \
                      echo 8388608 > work/shop/memory.max; \
                      sh -c 'echo $$ > work/shop/cgroup.procs; exec tail /dev/zero'; echo killed; \
                      NEST echo $$ > cgroup.procs; cat /proc/self/cgroup | cut -c 1-12; echo nested; \
                      exec sleep 1000";
        let script = script.replace("NEST", NEST);
        let go = containerd.directory().join("go");
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("mkfifo");
        let container = with_own_cgroups(containerd.shell("below", &script), json!(["rw"]))
            .bind(&go.to_string_lossy(), "/go", &["bind", "rw"])
            .spec(|s| s["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }))
            .start();
        let cgroup = cgroup_of(&containerd, "below");
        assert_eq!(host::cgroup_directory(container.pid(), ""), cgroup.join("init.scope"));

        // An exec is beside the init, and so not in the way.
        let exec = container.exec("long", spec::process(&["sleep", "1000"]), Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        assert_eq!(host::cgroup_directory(exec.pid(), ""), cgroup.join("init.scope"));
        fs::write(&go, "go").expect("let it go on");
        container.stdio().wait_for_output("enabled");

        // The kill is in a cgroup of the container's, and its limit the container's own.
        container.stdio().wait_for_output("killed");
        let oom = events.until(|event| matches!(event, TaskEvent::Oom(_)));
        assert_eq!(oom.last(), Some(&TaskEvent::Oom("below".into())));
        let metric = container.metrics();
        let data = metric.data.expect("statistics").value;
        let stats = v2::Metrics::parse_from_bytes(&data).expect("of version 2");
        assert_eq!(stats.memory.usage_limit, 64 << 20);
        assert!(stats.pids.current >= 2, "{:?}", stats.pids);

        container.stdio().wait_for_output("nested");
        assert_eq!(container.processes().len(), 2, "{:?}", container.processes());
        container.update(&json!({ "memory": { "limit": 96 << 20 } })).expect("update it");
        let limit = fs::read_to_string(cgroup.join("memory.max")).expect("read memory.max");
        assert_eq!(limit.trim(), (96 << 20).to_string());
        container.pause().expect("pause it");
        let frozen = fs::read_to_string(cgroup.join("work/cgroup.events")).expect("its events");
        assert!(frozen.contains("frozen 1"), "{frozen}");
        container.resume().expect("resume it");
        container.kill_all(9).expect("kill all");
        assert_eq!((exec.wait().code, container.wait().code), (137, 137));
        container.delete_task().expect("delete it");
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }

    /// In a pod, boot is in the pause container's cgroup. A privileged container's cgroups
    /// are mounted writable.
    #[test]
    fn a_container_of_a_pod_enables_controllers_too() {
        let containerd = Containerd::start(Version::V2_1);
        let pod = containerd.pod_with("divides", |config| pod_security(config).privileged = true);
        let script = "cat /proc/self/cgroup; echo +pids > /sys/fs/cgroup/cgroup.subtree_control && \
                      echo enabled; exec sleep 1000";
        let container = pod.container("main", script, |config| security(config).privileged = true);
        container.wait_for_log("enabled");
        assert_eq!(container.ask("cat /proc/self/cgroup"), "0::/init.scope");
        container.stop(Duration::ZERO).expect("stop it");
        assert_eq!(container.wait().exit_code, 137);
    }

    /// CRI's way to ask for it without privilege (KEP-5474, containerd's issue 14040).
    #[test]
    fn a_handler_with_cgroup_writable_lets_its_pods_divide_their_cgroups() {
        let keys = "runtime_type = \"io.containerd.palisade.v1\"\ncgroup_writable = true";
        let containerd = Containerd::start_with_handler(Version::V2_1, "writable", keys);
        let script = "cd /sys/fs/cgroup; cat /proc/self/cgroup; mkdir work && \
                      echo +memory > cgroup.subtree_control && echo 8388608 > work/memory.max && \
                      cat work/memory.max; (echo max > memory.max) 2>/dev/null || echo limited; \
                      echo done; exec sleep 1000";
        let lines = |handler: &str, name: &str| -> Vec<String> {
            let pod = containerd.try_pod_by(handler, name, |_| ()).expect("run a pod");
            let container = pod.container("main", script, |config| {
                resources(config).memory_limit_in_bytes = 64 << 20;
            });
            container.wait_for_log("done");
            let lines = container.log_lines().into_iter();
            lines.filter(|(stream, _)| stream == "stdout").map(|(_, line)| line).collect()
        };
        let divided = ["0::/init.scope", "8388608", "limited", "done"];
        assert_eq!(lines("writable", "may"), divided);
        // The control: without that key the mount is read-only.
        assert_eq!(lines("palisade", "may-not"), ["0::/", "limited", "done"]);
    }

    /// Mounted writable, the cgroup is the container's own to divide, as the
    /// runtime specification demands. Its limits are not.
    #[test]
    fn a_container_may_divide_its_cgroup_but_not_raise_its_limits() {
        let containerd = Containerd::start(Version::V2_1);
        let divide = "set -e; cd /sys/fs/cgroup; mkdir init workers; echo $$ > init/cgroup.procs; \
                      echo +pids +memory > cgroup.subtree_control; echo 20 > workers/pids.max; \
                      mkdir threads; echo threaded > threads/cgroup.type || echo none; \
                      (echo max > memory.max) 2>/dev/null && exit 9; \
                      (echo max > pids.max) 2>/dev/null && exit 9; \
                      sh -c 'echo $$ > workers/cgroup.procs; exec sleep 1000' & \
                      until grep -q . workers/cgroup.procs; do :; done; echo divided; wait";
        let container = with_own_cgroups(containerd.shell("divided", divide), json!(["rw"]))
            .spec(|s| s["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }))
            .spec(|s| s["linux"]["resources"]["pids"] = json!({ "limit": 100 }));
        let container = container.start();
        container.stdio().wait_for_output("divided");
        let cgroup = cgroup_of(&containerd, "divided");
        let value = |file: &str| {
            let read = fs::read_to_string(cgroup.join(file));
            read.unwrap_or_else(|e| panic!("read {file}: {e}")).trim().to_owned()
        };
        assert_eq!(
            (value("memory.max").as_str(), value("workers/pids.max").as_str()),
            ("67108864", "20")
        );

        // Whatever is done to a container also reaches its cgroups below, and
        // does not undo the division.
        assert_eq!(container.processes().len(), 2, "{:?}", container.processes());
        container.pause().expect("pause it");
        assert!(value("workers/cgroup.events").contains("frozen 1"));
        container.resume().expect("resume it");
        container.update(&json!({ "pids": { "limit": 90 } })).expect("update it");
        assert_eq!((value("pids.max").as_str(), value("workers/pids.max").as_str()), ("90", "20"));
        assert_eq!(container.exec_shell("look", "cat /proc/self/cgroup").0, 0);
        container.kill_all(9).expect("kill all");
        assert_eq!(container.wait().code, 137);
    }

    /// A threaded cgroup lists no processes, but a process can still join it.
    #[test]
    fn an_exec_joins_an_init_that_threads_its_cgroup() {
        let containerd = Containerd::start(Version::V2_1);
        let thread = "set -e; cd /sys/fs/cgroup; mkdir app app/threads; \
                      echo threaded > app/threads/cgroup.type; \
                      echo $$ > app/threads/cgroup.procs; echo +pids > cgroup.subtree_control; \
                      echo threaded; exec sleep 1000";
        let container = with_own_cgroups(containerd.shell("threaded", thread), json!(["rw"]));
        let container = container.start();
        container.stdio().wait_for_output("threaded");
        let place = host::cgroup_directory(container.pid(), "");
        assert!(place.ends_with("app/threads"), "{}", place.display());
        let (code, output) = container.exec_shell("look", "cat /proc/self/cgroup");
        assert_eq!((code, output.as_str()), (0, "0::/app/threads\n"));

        let exec = container.exec("stays", spec::process(&["sleep", "1000"]), Streams::Null);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        assert_eq!(container.processes().len(), 2, "{:?}", container.processes());
        container.pause().expect("pause it");
        let events = fs::read_to_string(place.join("cgroup.events")).expect("read cgroup.events");
        assert!(events.contains("frozen 1"), "{events}");
        container.resume().expect("resume it");
        container.kill_all(9).expect("kill all");
        assert_eq!((exec.wait().code, container.wait().code), (137, 137));
    }

    #[test]
    fn a_disk_is_throttled_and_weighed() {
        let containerd = Containerd::start(Version::V2_1);
        let disk = fs::metadata(containerd.directory()).expect("stat the test's directory");
        let disk = std::os::linux::fs::MetadataExt::st_dev(&disk);
        let (major, minor) = (nix::sys::stat::major(disk), nix::sys::stat::minor(disk));
        let at = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
        let limited = |id: &str, limits: Value| {
            let container = containerd.container(id, ["sleep", "1000"]);
            container.spec(|s| s["linux"]["resources"]["blockIO"] = limits)
        };
        let limits = json!({
            "weight": 505, "throttleReadBpsDevice": at(1 << 20), "throttleWriteIOPSDevice": at(500),
        });
        let container = limited("slow", limits).start();
        let max = || host::cgroup_value(container.pid(), "", "io.max");
        assert_eq!(max(), format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=500"));
        let cgroup = host::cgroup_directory(container.pid(), "");
        let weights = ["io.bfq.weight", "io.weight"].map(|file| cgroup.join(file));
        let weight = weights.iter().find_map(|file| fs::read_to_string(file).ok());
        let weight = weight.expect("a weight: the io controller is there");
        assert!(["default 505", "default 5000"].contains(&weight.trim()), "{weight}");

        let changed = json!({ "blockIO": { "throttleReadBpsDevice": at(2 << 20) } });
        container.update(&changed).expect("update it");
        assert_eq!(max(), format!("{major}:{minor} rbps=2097152 wbps=max riops=max wiops=500"));

        let nowhere =
            json!({ "throttleReadBpsDevice": [{ "major": 4000, "minor": 1, "rate": 1 }] });
        let refused = limited("nowhere", nowhere).try_create().expect_err("no such disk");
        assert!(refused.message().contains("blockIO.throttleReadBpsDevice"), "{refused}");
        let leaf = limited("leaf", json!({ "leafWeight": 100 })).try_create().expect_err("v1 only");
        assert!(leaf.message().contains("blockIO.leafWeight"), "{leaf}");
    }

    #[test]
    fn killing_all_reaches_forking_processes_and_cgroups_below() {
        let containerd = Containerd::start(Version::V2_1);
        let script = "f() { while :; do (:) & done; }; f & f & sleep 1000";
        let container = containerd
            .shell("rabbits", script)
            .spec(|s| s["linux"]["resources"]["pids"] = json!({ "limit": 60 }))
            .start();
        wait::until("they multiply", || (container.processes().len() > 4).then_some(()));
        container.kill_all(9).expect("kill all");
        assert_eq!(container.wait().code, 137);
    }

    /// In the pod's PID namespace the kernel does not end the other processes
    /// with the container's init.
    #[test]
    fn no_process_escapes_by_forking_in_a_pod_that_shares_its_pids() {
        let containerd = Containerd::start(Version::V2_1);
        let pod = containerd.pod_with("family", |config| {
            let options = pod_security(config).namespace_options.as_mut();
            options.expect("namespace options").pid = NamespaceMode::Pod.into();
        });
        let script = "f() { while :; do (:) & done; }; f & f & exec sleep 1000";
        let container = pod.container("rabbits", script, |config| {
            resources(config).unified.insert("pids.max".into(), "60".into());
        });
        let cgroup = host::cgroup_directory(container.pid(), "");
        let members = || {
            let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            listed.lines().count()
        };
        assert_eq!(host::cgroup_value(container.pid(), "", "pids.max"), "60");
        wait::until("they multiply", || (members() > 4).then_some(()));
        container.stop(Duration::ZERO).expect("stop it");
        assert_eq!((container.wait().exit_code, members()), (137, 0));
        assert!(pod.is_ready());
    }
}

/// Tests of units, which only the systemd driver makes.
mod needs_systemd {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use integration::cgroup::Driver;

    use super::*;

    fn start() -> Containerd {
        assert_eq!(Driver::of_tests(), Driver::Systemd, "ci/choose-tests leaves this test out");
        Containerd::start(Version::V2_1)
    }

    fn systemctl(args: &[&str]) -> String {
        let ran = Command::new("systemctl").args(args).output().expect("run systemctl");
        assert!(ran.status.success(), "systemctl {args:?}: {ran:?}");
        String::from_utf8_lossy(&ran.stdout).trim().to_owned()
    }

    fn show(unit: &str, property: &str) -> String {
        systemctl(&["show", unit, "--value", "--property", property])
    }

    /// Returns systemd's log of a unit.
    fn journal(unit: &str) -> String {
        let ran = Command::new("journalctl").args(["--unit", unit, "--output", "cat"]).output();
        String::from_utf8_lossy(&ran.expect("run journalctl").stdout).into_owned()
    }

    fn is_forgotten(unit: &str) {
        wait::until("systemd forgets the unit", || {
            (show(unit, "LoadState") == "not-found").then_some(())
        });
    }

    #[test]
    fn a_scope_holds_the_container_and_goes_with_it() {
        let containerd = start();
        let container = containerd.container("scoped", ["sleep", "1000"]).spec(|s| {
            let resources = &mut s["linux"]["resources"];
            resources["memory"] = json!({ "limit": 64 << 20 });
            resources["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
            resources["pids"] = json!({ "limit": 100 });
        });
        let container = container.start();
        let unit = &cgroup::scope(containerd.slot(), "scoped");
        let slice = cgroup::group(containerd.slot());
        assert_eq!(show(unit, "ActiveState"), "active");
        assert_eq!(show(unit, "Slice"), slice);
        assert_eq!(
            (show(unit, "MemoryMax"), show(unit, "TasksMax")),
            ("67108864".into(), "100".into())
        );
        assert_eq!(show(unit, "CPUQuotaPerSecUSec"), "500ms");
        let place = host::cgroup_directory(container.pid(), "");
        assert!(place.ends_with(format!("{slice}/{unit}")), "{}", place.display());

        // The process that kept the scope alive at first is gone.
        let children = host::children(container.shim());
        assert_eq!(children.len(), 1, "{children:?}");

        let changed = json!({ "memory": { "limit": 128 << 20 }, "pids": { "limit": 200 } });
        container.update(&changed).expect("update it");
        systemctl(&["daemon-reload"]);
        assert_eq!(
            (show(unit, "MemoryMax"), show(unit, "TasksMax")),
            ("134217728".into(), "200".into())
        );
        assert_eq!(host::memory_limit(container.pid()), 128 << 20);
        assert_eq!(host::cpu_quota(container.pid()), (50_000, 100_000));

        container.kill(9).expect("kill it");
        assert_eq!(container.wait().code, 137);
        container.delete_task().expect("delete it");
        is_forgotten(unit);
    }

    #[test]
    fn annotations_are_properties_of_the_scope() {
        let containerd = start();
        let container = containerd.container("annotated", ["sleep", "1000"]).spec(|s| {
            s["annotations"] = json!({
                "org.systemd.property.Description": "'what it is for'",
                "org.systemd.property.TimeoutStopSec": "7",
                "org.systemd.property.Documentation": "['man:sleep(1)', 'man:pause(2)']",
                "org.systemd.property.SendSIGHUP": "true",
            });
        });
        let container = container.start();
        let unit = &cgroup::scope(containerd.slot(), "annotated");
        assert_eq!(show(unit, "Description"), "what it is for");
        assert_eq!(show(unit, "TimeoutStopUSec"), "7s");
        let documentation = show(unit, "Documentation").replace('"', "");
        assert_eq!(documentation, "man:sleep(1) man:pause(2)");
        assert_eq!(show(unit, "SendSIGHUP"), "yes");
        drop(container);

        let refused = containerd.container("unknown", ["sleep", "1000"]).spec(|s| {
            s["annotations"] = json!({ "org.systemd.property.Colour": "'red'" });
        });
        let refused = refused.try_create().expect_err("systemd knows no colours");
        assert!(refused.message().contains("Colour"), "{}", refused.message());
    }

    #[test]
    fn a_pod_s_containers_have_scopes_in_its_slice() {
        let containerd = start();
        let pod = containerd.pod("sliced");
        let container = pod.shell("main", "sleep 1000");
        let slice = cgroup::group(containerd.slot());
        for (id, pid) in [(&pod.id, pod.pid()), (&container.id, container.pid())] {
            let unit = format!("cri-containerd-{id}.scope");
            assert_eq!(
                (show(&unit, "ActiveState"), show(&unit, "Slice")),
                ("active".into(), slice.clone())
            );
            assert!(host::cgroup_directory(pid, "").ends_with(&unit));
        }
        // Neither scope keeps the process that kept it alive at first.
        let shim = sandbox::shim_of(container.pid());
        assert_eq!(host::children(shim).len(), 1, "{:?}", host::children(shim));
    }

    #[test]
    fn killing_a_scope_ends_its_container() {
        let containerd = start();
        let container = containerd.container("stopped", ["sleep", "1000"]).start();
        let unit = cgroup::scope(containerd.slot(), "stopped");
        systemctl(&["kill", "--signal", "KILL", &unit]);
        assert_eq!(container.wait().code, 137);
        container.delete_task().expect("delete it");
    }

    /// systemd stops all scopes when the node shuts down. A scope that does not
    /// end by SIGTERM keeps the node up until systemd's timeout.
    #[test]
    fn a_pod_s_scopes_stop_on_sigterm() {
        let containerd = start();
        let pod = containerd.pod("shutdown");
        let script = "trap 'exit 7' TERM; echo listening; while :; do sleep 0.1; done";
        let container = pod.shell("main", script);
        container.wait_for_log("listening");
        systemctl(&["stop", &cgroup::group(containerd.slot())]);
        assert_eq!(container.wait().exit_code, 7);
        wait::until("CRI notices", || (!pod.is_ready()).then_some(()));
        let unit = format!("cri-containerd-{}.scope", pod.id);
        let log = wait::until("systemd logs the end of the scope", || {
            let log = journal(&unit);
            log.contains("Deactivated").then_some(log)
        });
        assert!(!log.contains("timed out") && !log.contains("Killing"), "{log}");
    }

    /// Makes a root file system with this machine's systemd, which runs `unit`.
    fn root_with_systemd(root: &Path, unit: &str) {
        for directory in ["etc/systemd/system", "usr", "proc", "sys", "dev", "run", "tmp", "var"] {
            fs::create_dir_all(root.join(directory)).expect("make a directory");
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("symlink");
        }
        for (name, text) in [
            ("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\n"),
            ("etc/machine-id", ""),
            ("etc/systemd/system/probe.service", unit),
        ] {
            fs::write(root.join(name), text).expect("write a file");
        }
    }

    /// Boots that systemd as the init of an ordinary container.
    fn with_systemd<'a>(containerd: &'a Containerd, id: &str, unit: &str) -> NewContainer<'a> {
        let root = containerd.directory().join(format!("{id}-root"));
        root_with_systemd(&root, unit);
        let systemd = ["/usr/lib/systemd/systemd", "--unit=probe.service", "--log-target=console"];
        let container = containerd.container(id, systemd).root(&root);
        with_own_cgroups(container, json!(["rw"])).bind("/usr", "/usr", &["rbind", "ro"]).spec(
            |s| {
                s["process"]["env"] = json!(["PATH=/usr/bin", "container=test"]);
                for place in ["/run/lock", "/tmp"] {
                    s["mounts"]
                        .as_array_mut()
                        .expect("mounts")
                        .push(json!({ "destination": place, "type": "tmpfs", "source": "tmpfs" }));
                }
            },
        )
    }

    /// systemd takes the init's cgroup for its own place, and what is above for its root. So
    /// its units have the limits that they name, within the container's.
    #[test]
    fn systemd_boots_as_an_init_and_limits_its_units() {
        let containerd = start();
        let unit = "[Unit]\nDefaultDependencies=no\nSuccessAction=exit\nSuccessActionExitStatus=5\n\
                    FailureAction=exit\nFailureActionExitStatus=6\n[Service]\nType=oneshot\n\
                    MemoryMax=64M\nTasksMax=33\nStandardOutput=file:/seen\n\
                    ExecStart=sh -c 'cat /proc/1/cgroup /proc/self/cgroup; \
                    cd /sys/fs/cgroup/system.slice/probe.service; cat memory.max pids.max'\n";
        let container = with_systemd(&containerd, "boots", unit).start();
        let exit = container.wait().code;
        let seen = fs::read_to_string(containerd.directory().join("boots-root/seen"));
        let seen =
            seen.unwrap_or_else(|e| panic!("exit {exit}, {e}: {}", container.stdio().output()));
        let expected = "0::/init.scope\n0::/system.slice/probe.service\n67108864\n33\n";
        assert_eq!((exit, seen.as_str()), (5, expected));
        container.delete_task().expect("delete it");
    }

    /// SIGRTMIN+3 is the stop signal of such images.
    #[test]
    fn systemd_as_an_init_takes_execs_and_stops_by_its_signal() {
        let containerd = start();
        let unit = "[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=file:/seen\n\
                    ExecStart=sh -c 'echo up; exec sleep 1000'\n";
        let container = with_systemd(&containerd, "stops", unit).start();
        let seen = containerd.directory().join("stops-root/seen");
        wait::until("systemd has started its unit", || {
            fs::read_to_string(&seen).is_ok_and(|seen| seen == "up\n").then_some(())
        });
        let (code, output) = container.exec_shell("beside", "cat /proc/self/cgroup");
        assert_eq!((code, output.as_str()), (0, "0::/init.scope\n"));
        assert_eq!(container.processes().len(), 2, "{:?}", container.processes());
        container.kill(37).expect("ask systemd to halt");
        assert_eq!(container.wait().code, 0);
        container.delete_task().expect("delete it");
    }

    #[test]
    fn a_unit_is_cleaned_up_after_a_shim_that_died() {
        let containerd = start();
        let container = containerd.container("orphan", ["sleep", "1000"]).start();
        let shim = nix::unistd::Pid::from_raw(container.shim());
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).expect("kill the shim");
        is_forgotten(&cgroup::scope(containerd.slot(), "orphan"));
    }
}
