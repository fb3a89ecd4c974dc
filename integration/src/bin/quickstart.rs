//! The demonstration of `ci/quickstart`: a container and a pod under Palisade,
//! in a private containerd that is removed afterwards.

use integration::containerd::{Containerd, Version};
use integration::{host, sandbox};

fn main() {
    println!("== Starting a private containerd 2.1, with Palisade in its PATH and configuration");
    let containerd = Containerd::start(Version::V2_1);
    show_container(&containerd);
    show_pod(&containerd);
    println!("\n== Stopping containerd, and checking that nothing is left");
    drop(containerd);
    println!("   no process, no mount, no cgroup, no file");
}

fn show_container(containerd: &Containerd) {
    println!("\n== ctr run --rm --runtime {} ... id; echo /proc/[0-9]*", containerd.runtime_name());
    let script = "echo \"I am $(id)\"; echo \"I see the processes $(echo /proc/[0-9]*)\"";
    let ran = containerd.run("quickstart").output(["sh", "-c", script]).succeeded();
    indent(&ran.stdout);
}

fn show_pod(containerd: &Containerd) {
    println!("\n== A Kubernetes-style pod on a bridge network: a web server and its client");
    let pod = containerd.pod("quickstart");
    println!("   the pod has the address {}", pod.ip());
    let serve = "mkdir /tmp/www; echo 'Hello from a Palisade pod' > /tmp/www/index.html; \
                 exec httpd -f -p 80 -h /tmp/www";
    let server = pod.shell("server", serve);
    let client = pod.shell("client", "sleep 1000");
    let answer = integration::wait::until("the server answers", || {
        let answer = client.exec("wget -q -O - http://127.0.0.1:80/");
        (answer.code == 0).then_some(answer.stdout)
    });
    println!("   the client asked http://127.0.0.1:80/ and got:");
    indent(&answer);

    println!("\n== The pod's processes as the host sees them");
    let shim = sandbox::shim_of(server.pid());
    for process in std::iter::once(shim).chain(sandbox::descendants(shim).iter().map(|p| p.pid)) {
        let Some(process) = host::process(process) else { continue };
        let user = host::status(process.pid, "Uid");
        let user = user.split_whitespace().next().unwrap_or("?");
        let args: String = process.args.join(" ").chars().take(90).collect();
        println!("   user {user:>10}  {args}");
    }
}

fn indent(text: &str) {
    text.lines().for_each(|line| println!("   {line}"));
}
