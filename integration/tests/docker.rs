//! Containers under Docker, as a user runs them: `docker run --runtime
//! palisade`. Docker mounts an overlay itself, which cannot be idmapped. So in
//! most stories Docker shifts the owners (`userns-remap`), and the last ones
//! show the alternatives.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use integration::docker::{Docker, REMAPPED_TO};
use integration::{host, on_each_docker};

on_each_docker!(
    Remapped: a_container_runs, users_volumes_and_read_only_roots_are_the_flags,
        execs_return_output_and_exit_code, a_container_stops_and_starts_again, files_go_in_and_out,
        limits_hold_and_change, running_containers_are_shown_and_paused, names_and_sysctls_are_the_flags,
        containers_reach_each_other_over_the_bridge, an_init_collects_orphans;
    Directories: a_directory_gives_each_container_users_of_its_own;
    Overlays: an_overlay_is_refused_by_name, options_come_from_a_file;
);

fn host_user(docker: &Docker, name: &str) -> u32 {
    let users = host::status(docker.pid(name), "Uid");
    users.split_whitespace().next().and_then(|id| id.parse().ok()).expect("a user ID")
}

fn a_container_runs(docker: Docker) {
    let ran = docker.run(&["--network=none"], ["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "out\n", "err\n"));
    let ran = docker.run(&["--network=none", "--rm"], ["no-such-program"]);
    assert_eq!(ran.code, 127, "{}", ran.stderr);
    assert!(ran.stderr.contains("no-such-program"), "{}", ran.stderr);

    let ran = docker.run(&["--network=none", "--tty"], ["tty"]).succeeded();
    assert_eq!(ran.stdout.trim_end(), "/dev/pts/0");

    let mut cat = docker.run_command("palisade", &["--network=none", "--interactive"], ["cat"]);
    let input = docker.directory().join("input");
    fs::write(&input, "typed").expect("write the input");
    cat.stdin(Stdio::from(fs::File::open(&input).expect("open the input")));
    assert_eq!(docker.finish_run(cat).succeeded().stdout, "typed");

    docker.detached("sleeper", &["--network=none"], ["sleep", "1000"]);
    assert_eq!(host_user(&docker, "sleeper"), REMAPPED_TO);
}

fn users_volumes_and_read_only_roots_are_the_flags(docker: Docker) {
    let ran = docker.run(&["--network=none", "--user", "alice"], ["sh", "-c", "id -un; id -g"]);
    assert_eq!(ran.succeeded().stdout, "alice\n1000\n");

    let volume = docker.directory().join("volume");
    fs::create_dir(&volume).expect("make a directory");
    let bind = format!("{}:/volume", volume.display());
    let script = "echo mine > /volume/file && stat -c %u:%g /volume/file";
    let ran = docker.run(&["--network=none", "--volume", &bind], ["sh", "-c", script]);
    assert_eq!(ran.succeeded().stdout, "0:0\n");
    assert_eq!(fs::read_to_string(volume.join("file")).expect("read the file"), "mine\n");

    for script in ["echo kept > /volume/file", "grep kept /volume/file"] {
        docker.run(&["--network=none", "-v", "named:/volume"], ["sh", "-c", script]).succeeded();
    }

    let flags = ["--network=none", "--read-only", "--tmpfs", "/tmp"];
    let ran = docker.run(&flags, ["sh", "-c", "touch /tmp/file && ! touch /file"]).succeeded();
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
}

fn execs_return_output_and_exit_code(docker: Docker) {
    docker.detached("host", &["--network=none"], ["sleep", "1000"]);
    let ran = docker.docker(["exec", "host", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (5, "out\n", "err\n"));

    let flags = ["exec", "--user", "alice", "--workdir", "/home", "--env", "FRUIT=pear", "host"];
    let ran = docker.docker([&flags[..], &["sh", "-c", "id -un; pwd; echo $FRUIT"]].concat());
    assert_eq!(ran.succeeded().stdout, "alice\n/home\npear\n");

    let ran = docker.docker(["exec", "--tty", "host", "tty"]).succeeded();
    assert!(ran.stdout.starts_with("/dev/pts/"), "{}", ran.stdout);

    let mut cat = docker.command(["exec", "--interactive", "host", "cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run docker");
    cat.stdin.take().expect("a pipe").write_all(b"typed").expect("write to docker");
    let cat = cat.wait_with_output().expect("wait for docker");
    assert_eq!(cat.stdout, b"typed");

    docker.docker(["exec", "--detach", "host", "touch", "/done"]).succeeded();
    integration::wait::until("the detached exec has run", || {
        (docker.docker(["exec", "host", "test", "-e", "/done"]).code == 0).then_some(())
    });
}

fn a_container_stops_and_starts_again(docker: Docker) {
    let script = "trap 'echo bye; exit 7' TERM; echo hello; touch /$(ls / | wc -l).made; \
                  while :; do sleep 0.05; done";
    docker.detached("phoenix", &["--network=none"], ["sh", "-c", script]);
    let logged = |wanted: &str| {
        integration::wait::until(&format!("it has logged {wanted:?}"), || {
            (docker.docker(["logs", "phoenix"]).stdout == wanted).then_some(())
        });
    };
    logged("hello\n");
    docker.docker(["stop", "phoenix"]).succeeded();
    assert_eq!(docker.inspect("phoenix", "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
    logged("hello\nbye\n");

    docker.docker(["start", "phoenix"]).succeeded();
    logged("hello\nbye\nhello\n");
    docker.docker(["restart", "phoenix"]).succeeded();
    logged("hello\nbye\nhello\nbye\nhello\n");
    let made = docker.ask("phoenix", "ls -d /*.made | wc -l");
    assert_eq!(made, "3", "each run finds what those before it have made");

    docker.docker(["kill", "phoenix"]).succeeded();
    assert_eq!(docker.inspect("phoenix", "{{.State.ExitCode}}"), "137");
    docker.docker(["rm", "phoenix"]).succeeded();
}

/// Both sides see each other's changes at once, since there is only one mount
/// of these files, not two (docs/docker.md).
fn files_go_in_and_out(docker: Docker) {
    docker.detached("box", &["--network=none"], ["sleep", "1000"]);
    let copy = docker.directory().join("copy");
    let (inside, copy) = ("box:/etc/settings", copy.to_string_lossy().into_owned());
    // The container has looked for the file, and listed the directory.
    assert_eq!(
        docker.ask("box", "cat /etc/settings 2>&1; ls /etc | grep -c settings || :"),
        "cat: can't open '/etc/settings': No such file or directory\n0"
    );
    for content in ["first", "second"] {
        fs::write(&copy, content).expect("write a file");
        docker.docker(["cp", &copy, inside]).succeeded();
        assert_eq!(
            docker.ask("box", "cat /etc/settings; ls /etc | grep settings"),
            format!("{content}settings")
        );
    }
    // The other way round: Docker has read the file that is replaced.
    for content in ["third", "fourth"] {
        docker.ask("box", &format!("echo {content} > /etc/new && mv /etc/new /etc/settings"));
        docker.docker(["cp", inside, &copy]).succeeded();
        assert_eq!(fs::read_to_string(&copy).expect("read the copy"), format!("{content}\n"));
    }

    docker.ask("box", "rm /etc/group; mkdir /made");
    let listed = docker.docker(["diff", "box"]).succeeded().stdout;
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["A /etc/settings", "A /made", "C /etc", "D /etc/group"]);

    docker.docker(["commit", "box", "committed"]).succeeded();
    let args = ["run", "--rm", "--network=none", "--runtime=palisade", "committed", "sh", "-c"];
    let script = "stat -c %u:%g /made; cat /etc/settings; ls /etc/group";
    let ran = docker.docker([&args[..], &[script]].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "0:0\nfourth\n"), "{}", ran.stderr);

    let exported = docker.command(["export", "box"]).output().expect("run docker");
    let mut archive = tar::Archive::new(exported.stdout.as_slice());
    let paths: Vec<String> = archive
        .entries()
        .expect("an archive")
        .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
        .collect();
    assert!(paths.iter().any(|path| path == "made/"), "{paths:?}");
}

fn limits_hold_and_change(docker: Docker) {
    let flags = ["--network=none", "--memory=64m", "--cpus=1.5", "--pids-limit=50"];
    docker.detached("limited", &flags, ["sleep", "1000"]);
    let pid = docker.pid("limited");
    assert_eq!(host::memory_limit(pid), 64 << 20);
    assert_eq!(host::cpu_quota(pid), (150_000, 100_000));
    assert_eq!(host::cgroup_value(pid, "pids", "pids.max"), "50");
    let below = host::process(pid).expect("it runs").cgroup;
    assert!(below.contains(&format!("{}/", docker.cgroup())), "{below}");

    docker.docker(["update", "--memory=96m", "--memory-swap=96m", "limited"]).succeeded();
    assert_eq!(host::memory_limit(pid), 96 << 20);

    let flags = ["--network=none", "--memory=20m", "--memory-swap=20m", "--name=greedy"];
    assert_eq!(docker.run(&flags, ["tail", "/dev/zero"]).code, 137);
    assert_eq!(docker.inspect("greedy", "{{.State.OOMKilled}}"), "true");
}

fn running_containers_are_shown_and_paused(docker: Docker) {
    docker.detached("shown", &["--network=none"], ["sh", "-c", "sleep 1000 & sleep 2000"]);
    let shown = docker.docker(["top", "shown"]).succeeded().stdout;
    assert!(shown.contains("sleep 1000") && shown.contains("sleep 2000"), "{shown}");
    let flags = ["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "shown"];
    let stats = docker.docker(flags).succeeded().stdout;
    assert!(stats.starts_with("shown ") && stats.contains("iB / "), "{stats}");

    docker.docker(["pause", "shown"]).succeeded();
    assert_eq!(docker.inspect("shown", "{{.State.Status}}"), "paused");
    docker.docker(["unpause", "shown"]).succeeded();
    assert_eq!(docker.ask("shown", "echo on"), "on");
}

fn names_and_sysctls_are_the_flags(docker: Docker) {
    let flags = [
        "--network=none",
        "--hostname=pear",
        "--shm-size=8m",
        "--ulimit=nofile=99:99",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--sysctl=net.core.somaxconn=77",
        "--sysctl=kernel.msgmax=7777",
        "--sysctl=fs.mqueue.msg_max=15",
        "--device=/dev/null:/dev/nothing",
    ];
    let script = "hostname; ulimit -n; df -k /dev/shm | tail -1 | awk '{ print $2 }'; cd /proc/sys; \
                  cat net/core/somaxconn kernel/msgmax fs/mqueue/msg_max; \
                  grep CapEff /proc/self/status | cut -f2; echo lost > /dev/nothing && echo fine";
    let ran = docker.run(&flags, ["sh", "-c", script]).succeeded();
    let wanted = "pear\n99\n8192\n77\n7777\n15\n0000000000000000\nfine\n";
    assert_eq!(ran.stdout, wanted, "{}", ran.stderr);
}

/// A hook of Docker makes the network, in a namespace that belongs to the
/// sandbox. The hook gets the ID of the container's init.
fn containers_reach_each_other_over_the_bridge(docker: Docker) {
    let serve = "mkdir /www && echo served > /www/page && exec httpd -f -p 80 -h /www";
    docker.detached("server", &[], ["sh", "-c", serve]);
    let address = docker.inspect("server", "{{.NetworkSettings.Networks.bridge.IPAddress}}");
    assert!(docker.ask("server", "ip -4 addr show eth0").contains(&format!(" {address}/")));
    let fetch = format!(
        "for n in $(seq 100); do wget -qO- http://{address}/page && exit; sleep 0.1; done; exit 1"
    );
    assert_eq!(docker.run(&[], ["sh", "-c", &fetch]).succeeded().stdout, "served\n");

    let flags = ["--network=container:server"];
    let ran = docker.run(&flags, ["wget", "-qO-", "http://127.0.0.1/page"]).succeeded();
    assert_eq!(ran.stdout, "served\n");
}

fn an_init_collects_orphans(docker: Docker) {
    docker.detached("tended", &["--network=none", "--init"], ["sleep", "1000"]);
    assert!(docker.ask("tended", "cat /proc/1/cmdline").starts_with("/sbin/docker-init"));
    docker.ask("tended", "sh -c 'sh -c true & true'");
    integration::wait::until("the orphan is collected", || {
        docker.ask("tended", "ps -o stat | grep -c Z || :").eq("0").then_some(())
    });
}

/// Without `userns-remap`, each container has its own range, as everywhere.
fn a_directory_gives_each_container_users_of_its_own(docker: Docker) {
    for name in ["one", "two"] {
        docker.detached(name, &["--network=none"], ["sleep", "1000"]);
    }
    let (one, two) = (host_user(&docker, "one"), host_user(&docker, "two"));
    assert!(one >= 1 << 30 && two >= 1 << 30 && one.abs_diff(two) >= 65536, "{one} and {two}");

    let file = docker.directory().join("file");
    fs::write(&file, "fresh").expect("write a file");
    assert_eq!(docker.ask("one", "ls /etc | grep -c fresh || :"), "0");
    docker.docker(["cp", &file.to_string_lossy(), "one:/etc/fresh"]).succeeded();
    assert_eq!(docker.ask("one", "cat /etc/fresh; stat -c :%u:%g /etc/fresh"), "fresh:0:0");
    docker.ask("one", "echo kept > /kept");
    docker.docker(["restart", "--time=0", "one"]).succeeded();
    assert_eq!(docker.ask("one", "cat /kept"), "kept");
}

fn an_overlay_is_refused_by_name(docker: Docker) {
    let ran = docker.run(&["--network=none"], ["true"]);
    assert_ne!(ran.code, 0);
    for words in ["/merged", "cannot be idmapped", "userns-remap", "userns = \"never\""] {
        assert!(ran.stderr.contains(words), "{words:?} is missing in: {}", ran.stderr);
    }
    // A container without a user namespace needs no mapped owners.
    for flags in [["--network=none", "--privileged"], ["--network=host", "--init"]] {
        assert_eq!(docker.run(&flags, ["id", "-u"]).succeeded().stdout, "0\n");
    }
}

fn options_come_from_a_file(docker: Docker) {
    let run = |flags: &[&str]| {
        let flags = [&["--network=none"], flags].concat();
        docker.run_by("palisade-configured", &flags, ["sh", "-c", "cat /proc/self/uid_map"])
    };
    fs::write(docker.options(), "userns = \"never\"\n").expect("write the options");
    let map = run(&[]).succeeded().stdout;
    assert!(map.split_whitespace().eq(["0", "0", "4294967295"]), "{map}");

    fs::write(docker.options(), "colour = \"red\"\n").expect("write the options");
    let refused = run(&[]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("colour"), "{}", refused.stderr);

    fs::write(docker.options(), "allow_annotations = [\"userns\"]\n").expect("write the options");
    run(&["--annotation=dev.palisade.userns=never"]).succeeded();
    assert_eq!(run(&["--annotation=dev.palisade.colour=red"]).stdout, "");
}
