//! Containers of a containerd that an ordinary user runs. What holds under runc there holds
//! under Palisade, and what cannot be given is named.

use std::fs;

use integration::container::{NewContainer, options};
use integration::containerd::Containerd;
use integration::events::{Subscriber, TaskEvent};
use integration::stdio::Streams;
use integration::{host, spec, wait};
use serde_json::{Value, json};

const RUNC: &str = "io.containerd.runc.v2";

/// Asks for no cgroup, as clients do that know where they are.
fn without_cgroup(spec: &mut Value) {
    spec["linux"]["cgroupsPath"] = "".into();
}

/// Runs a line of shell to its end under both runtimes. Returns what ours says, which is what
/// runc's says.
fn as_under_runc(containerd: &Containerd, id: &str, script: &str) -> String {
    let run = |id: String, runtime: &str| {
        let container = containerd.shell(&id, script).runtime(runtime).spec(without_cgroup);
        container.start().finish()
    };
    let ours = run(format!("{id}-ours"), containerd.runtime_name());
    assert_eq!(ours, run(format!("{id}-runcs"), RUNC), "{script}");
    assert_eq!(ours.0, 0, "{}", ours.1);
    ours.1
}

#[test]
fn files_belong_to_the_users_that_they_have_in_the_image() {
    let containerd = Containerd::start_rootless(|_| ());
    let look = "id -u; stat -c '%u:%g %a' / /bin/busybox /home/alice; cat /proc/self/setgroups; \
        echo x > /x && chown 1000:1000 /x && chmod 4755 /x && stat -c '%u:%g %a' /x; \
        mkdir /tmp/d && chown 65534:65534 /tmp/d && stat -c %u /tmp/d; \
        stat -fc %T /; cut -d' ' -f5 /proc/self/mountinfo | sort; ls /dev /dev/pts; hostname; \
        for d in null zero full random urandom tty ptmx; do stat -c '%n %t:%T' /dev/$d; done; \
        echo gone > /dev/null && head -c 3 /dev/zero | wc -c; (: > /dev/full) || echo full; \
        mount -t tmpfs t /mnt 2>&1; rm /x; cat /proc/sys/kernel/hostname";
    let said = as_under_runc(&containerd, "files", look);
    assert!(said.starts_with("0\n0:0 755\n0:0 755\n1000:1000 700\nallow\n1000:1000 4755\n65534\n"));
    // The same user on the host.
    let user = containerd.user().expect("a user").clone();
    let container = containerd.shell("sleeps", "sleep 1000").spec(without_cgroup).start();
    let uid = |pid| host::status(pid, "Uid");
    assert_eq!(uid(container.pid()), [user.id.to_string().as_str(); 4].join("\t"));
    let mut alice = spec::process(&["sh", "-c", "id -u; stat -Lc %u /proc/self; exec sleep 1000"]);
    alice["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [10] });
    let exec = container.exec("alice", alice, Streams::Captured).expect("exec");
    exec.start().expect("start the exec");
    exec.stdio().wait_for_output("1000\n1000\n");
    assert_eq!(uid(exec.pid()), [(user.first + 999).to_string().as_str(); 4].join("\t"));
    assert_eq!(host::status(exec.pid(), "Groups"), (user.first + 9).to_string());
    container.kill(9).expect("kill");
    assert_eq!((container.wait().code, exec.wait().code), (137, 137));
}

/// boot and its containers have users, namespaces and capabilities of their own, below those of
/// containerd's user.
#[test]
fn each_sandbox_has_user_namespaces_of_its_own() {
    let containerd = Containerd::start_rootless(|_| ());
    let one = containerd.shell("one", "sleep 1000").spec(without_cgroup).start();
    let two = containerd.shell("two", "sleep 1000").spec(without_cgroup).start();
    let user = containerd.user().expect("a user").clone();
    let namespace =
        |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a user namespace");
    let boot = |pid: i32| host::process(pid).expect("it runs").parent;
    let all = [containerd.pid(), boot(one.pid()), one.pid(), boot(two.pid()), two.pid()];
    let mut different: Vec<_> = all.iter().map(|pid| namespace(*pid)).collect();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), all.len(), "{different:?}");
    // The last subordinate ID, which no container has.
    let own = (user.first + 65535).to_string();
    assert_eq!(host::status(boot(one.pid()), "Uid"), [own.as_str(); 4].join("\t"));
    let inside = one.exec_shell("map", "cat /proc/self/uid_map; chown 65536:65536 /tmp 2>&1");
    let map: Vec<_> =
        inside.1.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    // No line reaches over one of the map above.
    assert_eq!(map[..2], [["0", "0", "1"], ["1", "1", "65535"]]);
    assert!(inside.1.contains("Invalid argument"), "{}", inside.1);
    // Neither the user's processes nor the other sandbox's can be seen or signalled.
    let look = "ls -d /proc/[0-9]* | wc -l; kill -9 -1; id -u";
    let seen = one.exec_shell("kill", look).1;
    assert!(seen.lines().next().and_then(|n| n.trim().parse::<u32>().ok()) <= Some(6), "{seen}");
    assert!(two.exec_shell("lives", "true").0 == 0);
    for container in [&one, &two] {
        container.kill_all(9).expect("kill all");
        assert_eq!(container.wait().code, 137);
    }
    assert!(containerd.log().contains("each of its other sandboxes"), "{}", containerd.log());
}

#[test]
fn what_a_user_does_with_a_container_works() {
    let containerd = Containerd::start_rootless(|_| ());
    let finished =
        containerd.run("ctr").flag(["--cgroup", ""]).output(["sh", "-c", "echo hi; exit 3"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (3, "hi\n"), "{}", finished.stderr);
    // Its streams.
    let cat = containerd.shell("cat", "cat; echo end >&2").streams(Streams::Piped);
    let cat = cat.spec(without_cgroup).start();
    cat.stdio().write(b"through\n");
    cat.stdio().wait_for_output("through\n");
    cat.stdio().close_stdin();
    cat.close_io().expect("close its input");
    assert_eq!(cat.wait().code, 0);
    let terminal = containerd.shell("terminal", "tty; stty size; echo > /dev/console; echo done");
    let terminal = terminal.streams(Streams::Terminal).spec(without_cgroup).start();
    terminal.stdio().wait_for_output("done");
    assert_eq!(terminal.wait().code, 0);
    // Signals, for one process and for all of the container, which no cgroup lists.
    let traps = "trap 'wait; echo got; exit 5' USR1; (trap 'echo got; exit 0' USR1; echo up; \
                 while :; do sleep 0.1; done) & echo up; while :; do sleep 0.1; done";
    let container = containerd.shell("signals", traps).spec(without_cgroup).start();
    let beside = containerd.shell("beside", "sleep 1000").spec(without_cgroup).start();
    container.stdio().wait_for_output("up\nup\n");
    let listed: Vec<_> = container.processes().iter().map(|process| process.pid).collect();
    assert!(listed.len() >= 2 && listed.contains(&(container.pid() as u32)), "{listed:?}");
    container.kill_all(10).expect("signal all");
    assert_eq!(container.finish(), (5, "up\nup\ngot\ngot\n".to_owned()));
    assert_eq!(beside.processes().len(), 1);
    beside.kill(9).expect("kill");
    assert_eq!(beside.wait().code, 137);
}

/// The network of a container is its own as it is for root.
#[test]
fn a_new_network_is_the_containers_own() {
    let containerd = Containerd::start_rootless(|_| ());
    let caps = |spec: &mut Value| {
        without_cgroup(spec);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set]
                .as_array_mut()
                .expect("a set")
                .push("CAP_NET_ADMIN".into());
        }
        spec["linux"]["sysctl"] =
            json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" });
    };
    let look = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced; \
        ip link add v0 type veth peer name v1 2>&1; ip address add 10.9.9.9/24 dev lo && echo set; \
        ls /sys/class/net; ping -c 1 -w 5 127.0.0.1 > /dev/null && echo pong; \
        nc -l -p 80 & sleep 0.2; echo x | nc -w 1 127.0.0.1 80; wait";
    let container = containerd.shell("net", look).spec(caps).start();
    let (_, said) = container.finish();
    assert!(
        said.starts_with("1\n1\n") && said.contains("set\n") && said.contains("pong\n"),
        "{said}"
    );
}

/// Limits that no cgroup holds are told by name, or refused.
#[test]
fn limits_are_told_where_no_cgroup_was_delegated() {
    let containerd = Containerd::start_rootless(|_| ());
    let events = Subscriber::new(&containerd);
    let limited = |id: &str| -> NewContainer<'_> {
        containerd.shell(id, "echo $(cat /proc/self/oom_score_adj)").spec(|spec| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20 });
            spec["linux"]["resources"]["cpu"] = json!({ "shares": 1024, "quota": 50_000 });
            spec["process"]["oomScoreAdj"] = (-500).into();
        })
    };
    assert_eq!(limited("told").start().finish().0, 0);
    let seen = events.until(|event| matches!(event, TaskEvent::Exit(..)));
    let told = seen.iter().filter_map(|event| match event {
        TaskEvent::Powerless(sentence) => Some(sentence.as_str()),
        _ => None,
    });
    let told = told.collect::<Vec<_>>().join("\n");
    for field in ["memory.limit", "cpu.quota", "process.oomScoreAdj"] {
        assert!(told.contains(field), "{told}");
    }
    // By the driver of the host's cgroups.
    let why = ["Permission denied", "names a unit of systemd"];
    assert!(why.iter().any(|why| told.contains(why)), "{told}");
    assert!(!told.contains("cpu.shares"), "{told}");
    let refused = limited("refused").options(options("on_powerless = 'refuse'", "")).try_create();
    let refused = refused.map(drop).expect_err("it is refused").message().to_owned();
    assert!(refused.contains("linux.resources.") || refused.contains("oomScoreAdj"), "{refused}");
    // What needs a cgroup is refused when it is asked for.
    let container = containerd.shell("alone", "sleep 1000").spec(without_cgroup).start();
    let error = container.pause().expect_err("it cannot be frozen").message().to_owned();
    assert!(error.contains("no cgroup with a freezer"), "{error}");
    let error = container.update(&json!({ "memory": { "limit": 1 << 24 } }));
    let error = error.expect_err("it has no limits").message().to_owned();
    assert!(error.contains("linux.resources.memory"), "{error}");
    assert_eq!(container.exec_shell("lives", "echo yes"), (0, "yes\n".to_owned()));
    container.kill(9).expect("kill");
    container.wait();
    // Nothing else would tell such a container's processes from others.
    let shared = containerd.shell("shared", "true").spec(|spec| {
        without_cgroup(spec);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let error = shared.try_create().map(drop).expect_err("refused").message().to_owned();
    assert!(error.contains("linux.namespaces: pid"), "{error}");
}

mod needs_v2_mount {
    use super::*;

    /// Where a cgroup was delegated, a container has one of its own below it.
    #[test]
    fn a_delegated_cgroup_holds_the_container() {
        let containerd = Containerd::start_rootless(|user| user.delegate_cgroup());
        let group = containerd.user().and_then(|user| user.delegated.clone()).expect("a cgroup");
        let container = containerd.shell("held", "sleep 1000 & sleep 1001").spec(without_cgroup);
        let container = container.start();
        let own = group.join("held");
        let procs = || fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
        wait::until("both processes are there", || (procs().lines().count() == 3).then_some(()));
        assert!(procs().lines().any(|pid| pid == container.pid().to_string()), "{}", procs());
        let frozen = || fs::read_to_string(own.join("cgroup.events")).expect("its events");
        container.pause().expect("pause");
        assert!(frozen().contains("frozen 1"), "{}", frozen());
        container.resume().expect("resume");
        assert!(frozen().contains("frozen 0"), "{}", frozen());
        assert_eq!(container.exec_shell("lives", "echo yes"), (0, "yes\n".to_owned()));
        container.kill_all(9).expect("kill all");
        assert_eq!(container.wait().code, 137);
        container.delete_task().expect("delete it");
        assert!(!own.exists());
        // A path that cannot be made leaves it where containerd is.
        let elsewhere = containerd.shell("elsewhere", "cat /proc/self/cgroup").spec(|spec| {
            spec["linux"]["cgroupsPath"] = "/not-delegated/elsewhere".into();
        });
        let (code, said) = elsewhere.start().finish();
        assert!(code == 0 && said.contains("0::/\n"), "{said}");
        assert!(!group.join("elsewhere").exists());
    }
}

/// The host's devices are bound, and no other can be.
#[test]
fn devices_are_the_host_s() {
    let containerd = Containerd::start_rootless(|_| ());
    let with = |id: &str, script: &str, device: Value| {
        containerd.shell(id, script).spec(|spec| {
            without_cgroup(spec);
            spec["linux"]["devices"] = json!([device]);
        })
    };
    let before = fs::metadata("/dev/null").expect("stat /dev/null");
    let attack = "chmod 600 /dev/null; chown 1000 /dev/null; mknod /n c 1 3; rm /dev/null; \
                  mv /dev/zero /dev/null; echo x > /dev/null; stat -c %t:%T /dev/kmsg /dev/null";
    let kmsg =
        json!({ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 });
    let (_, said) = with("kmsg", attack, kmsg).start().finish();
    assert!(said.contains("1:b\n"), "{said}");
    let after = fs::metadata("/dev/null").expect("stat /dev/null");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        (before.mode(), before.uid(), before.rdev()),
        (after.mode(), after.uid(), after.rdev())
    );
    for (device, why) in [
        (
            json!({ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 1 }),
            "the host's is another",
        ),
        (json!({ "path": "/dev/no-such", "type": "c", "major": 1, "minor": 1 }), "No such file"),
    ] {
        let error = with("wrong", "true", device).try_create().map(drop).expect_err("refused");
        assert!(error.message().contains(why), "{}", error.message());
    }
}

/// A pod without a user namespace of its own is in containerd's.
#[test]
fn a_pod_in_the_host_s_network_runs_as_under_runc() {
    let containerd = Containerd::start_rootless(|_| ());
    let in_host = |spec: &mut Value| {
        without_cgroup(spec);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "network");
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/sys");
    };
    let look = "id -u; readlink /proc/self/ns/net; cat /proc/self/uid_map; ls /dev; \
                stat -c %u / /home/alice; mknod /n c 1 3 2>&1; touch /x && chown 5 /x && stat -c %u /x";
    let run = |id: &str, runtime: &str| {
        containerd.shell(id, look).runtime(runtime).spec(in_host).start().finish()
    };
    let ours = run("ours", containerd.runtime_name());
    assert_eq!(ours, run("runcs", RUNC));
    let host = fs::read_link("/proc/self/ns/net").expect("the host's network");
    assert!(ours.1.contains(&*host.to_string_lossy()), "{}", ours.1);
}

/// When the shim is killed, containerd's `delete` finds what is left in the user's state.
#[test]
fn nothing_is_left_after_the_shim_s_death() {
    let containerd = Containerd::start_rootless(|_| ());
    let container = containerd.shell("lone", "sleep 1000").spec(without_cgroup).start();
    let state = containerd.directory().join("user/palisade");
    assert!(state.join(containerd.namespace()).join("lone").exists(), "its state is the user's");
    let boot = host::process(container.pid()).expect("it runs").parent;
    let shim = host::process(boot).expect("boot runs").parent;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)
        .expect("kill the shim");
    wait::until("the state is gone", || {
        (!state.join(containerd.namespace()).exists()).then_some(())
    });
}

#[test]
fn a_user_with_few_ids_gets_them_with_a_warning() {
    let containerd = Containerd::start_rootless(|user| user.count = 1000);
    let events = Subscriber::new(&containerd);
    let container = containerd.shell("few", "cat /proc/self/uid_map; stat -c %u /home/alice");
    let (code, said) = container.spec(without_cgroup).start().finish();
    assert_eq!(code, 0);
    let numbers: Vec<_> = said.split_whitespace().collect();
    // The last one is boot's, and alice's is beyond.
    assert_eq!(numbers, ["0", "0", "1", "1", "1", "999", "65534"]);
    events.until(
        |event| matches!(event, TaskEvent::Powerless(told) if told.contains("ids_per_sandbox")),
    );
    let beyond = containerd.shell("beyond", "true").spec(|spec| {
        without_cgroup(spec);
        spec["process"]["user"]["uid"] = 1000.into();
    });
    let error = beyond.try_create().map(drop).expect_err("refused").message().to_owned();
    assert!(error.contains("the IDs 0 to 999"), "{error}");
}

#[test]
fn without_subordinate_ids_each_container_is_refused() {
    for (denies_groups, expected) in [(true, "setgroups"), (false, "two at least")] {
        let containerd = Containerd::start_rootless_without_images(|user| {
            user.denies_groups = denies_groups;
            user.count = if denies_groups { 65536 } else { 0 };
        });
        let root = containerd.directory().join("user");
        let container = containerd.shell("none", "true").spec(without_cgroup).root(&root);
        let error = container.try_create().map(drop).expect_err("refused").message().to_owned();
        assert!(error.contains(expected) && error.contains("RootlessKit"), "{error}");
    }
}
