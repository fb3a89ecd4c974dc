//! Runs the code for older kernels: a filter removes the system calls that such a
//! kernel lacks, and personality(2) changes the release.

use nix::sys::personality::{self, Persona};
use sandbox_core::control::gofer::Slot;
use sandbox_core::spec::seccomp::compile;
use sandbox_core::sys::process::load_seccomp;

use crate::harness::*;
use crate::rootfs::check_overlay;

fn like_old(
    request: &sandbox_core::control::gofer::GoferRequest,
    sandbox: Option<&Sandbox>,
) -> Run {
    // fsconfig(FSCONFIG_SET_FD) is what takes layers and PID namespaces.
    let profile = serde_json::from_str(
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"fsconfig\"],\
         \"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":22,\
         \"args\":[{\"index\":1,\"value\":5,\"op\":\"SCMP_CMP_EQ\"}]}]}",
    )
    .unwrap();
    let program = compile(&profile).unwrap().program;
    gofer_in(request, sandbox, move || {
        // The release reads 2.6.something.
        personality::set(Persona::UNAME26)?;
        load_seccomp(&program, 0).map(drop)
    })
}

#[test]
fn an_overlay_is_made_from_attached_layers() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let before = host.mounts();
    let run = like_old(&asking_for(vec![snapshots(&host)]), Some(&sandbox));
    check_overlay(&host, &run);
    assert!(host.mounts().is_subset(&before));

    let host = Host::new();
    let run = like_old(&asking_for(vec![snapshots(&host)]), None);
    write_as(0, run.rootfs(), "etc/old", "old").unwrap();
}

#[test]
fn names_that_overlay_would_split_at_are_escaped() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("a:b,c\\d/1", "1");
    host.write("plain/2", "2");
    let escaped = host.text("a:b,c\\d").replace('\\', "\\\\").replace(':', "\\:");
    let layers = format!("lowerdir={escaped}:{}", host.text("plain"));
    let view = mount("overlay", "overlay", &[&layers, "ro", "nodev"]);
    for sandbox in [Some(&sandbox), None] {
        let run = like_old(&asking_for(vec![view.clone()]), sandbox);
        assert_eq!(list(run.rootfs(), ""), ["1", "2"]);
        let run = gofer(&asking_for(vec![view.clone()]), sandbox);
        assert_eq!(list(run.rootfs(), ""), ["1", "2"]);
    }
}

#[test]
fn proc_is_made_by_a_child_in_the_sandbox() {
    let sandbox = Sandbox::new();
    let mut request = request();
    request.sandbox_proc = true;
    let run = like_old(&request, Some(&sandbox));
    let proc = run.get(Slot::SandboxProc);
    assert_eq!(read(proc, "1/comm").unwrap(), "sleep\n");
    let numbers = list(proc, "").into_iter().filter(|n| n.parse::<u32>().is_ok());
    assert_eq!(numbers.count(), 1);
}

#[test]
fn its_errors_are_told() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mkdir("a");
    host.mkdir("b");
    let layers = format!("lowerdir={}:{}", host.text("a"), host.text("b"));
    let bad = mount("overlay", "overlay", &[&layers, "colour=red"]);
    let run = like_old(&asking_for(vec![bad]), Some(&sandbox));
    assert!(run.error().contains("colour=red"), "{}", run.error());
}
