use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::MountAttrFlags;
use sandbox_core::control::gofer::SeccompJob;
use sandbox_core::error::FailureKind;
use sandbox_core::spec::plan::DeliveredSource;
use sandbox_core::sys::mount::{
    AttrChange, Depth, FsContext, attach_at, clone_mount, mount_setattr,
};

use crate::harness::*;

fn refusal(sandbox: Option<&Sandbox>, source: &Path) -> String {
    let mut request = request();
    request.mounts = vec![bind(7, source)];
    let run = gofer(&request, sandbox);
    println!("{}", run.error());
    assert!(run.delivered.is_empty());
    assert!(run.answer.as_ref().unwrap_err().kind == FailureKind::Invalid);
    run.error().to_owned()
}

#[test]
fn a_missing_source_is_named() {
    let host = Host::new();
    let missing = host.path("missing");
    let expected = format!("mounts[7]: the source {} does not exist", missing.display());
    assert_eq!(refusal(None, &missing), expected);
}

#[test]
fn a_file_system_that_cannot_be_idmapped_is_named_with_a_way_out() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let volume = host.mount("ramfs", "volume");
    host.mkdir("volume/inside");
    let error = refusal(Some(&sandbox), &volume.join("inside"));
    let expected = format!(
        "mounts[7]: the owners of {0}/inside cannot be mapped into the sandbox's user namespace: \
         the ramfs file system of the mount {0} cannot be idmapped. Give the mount the option \
         \"noidmap\" (its files then belong to nobody inside), or run the pod with \
         userns = \"never\"",
        volume.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn the_one_mount_of_a_tree_that_is_to_blame_is_named() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount("tmpfs", "tree/fine");
    let culprit = host.mount("ramfs", "tree/bad");
    let error = refusal(Some(&sandbox), &host.path("tree"));
    let expected = format!("of the mount {}, which lies below it, cannot be", culprit.display());
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn an_overlay_that_can_be_written_is_not_mounted_twice() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let context = FsContext::open("overlay").unwrap();
    for (key, below) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        context.string(key, host.mkdir(below)).unwrap();
    }
    context.create().unwrap();
    let volume = host.mkdir("merged");
    attach_at(context.mount(MountAttrFlags::empty()).unwrap(), &volume).unwrap();
    let error = refusal(Some(&sandbox), &volume);
    for words in ["must not be mounted twice; mount it without upperdir", "noidmap"] {
        assert!(error.contains(words), "{words} in {error}");
    }
}

#[test]
fn a_source_that_is_idmapped_already_is_refused() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let volume = host.mount("tmpfs", "volume");
    let clone = clone_mount(rustix::fs::CWD, &volume, Depth::Top).unwrap();
    let other = Sandbox::with_root(2_000_000);
    let idmap = Some(other.users.as_fd());
    mount_setattr(&clone, Depth::Top, AttrChange { idmap, ..AttrChange::default() }).unwrap();
    attach_at(&clone, &volume).unwrap();
    let error = refusal(Some(&sandbox), &volume);
    assert!(error.contains("is idmapped already, and the kernel maps a mount only once"));
}

#[test]
fn a_file_systems_own_words_are_passed_on() {
    let mut request = request();
    let (fs_type, source) = ("tmpfs".to_owned(), "x".to_owned());
    let options = vec![("huge".to_owned(), Some("gigantic".to_owned()))];
    request.mounts = vec![bind(0, "/")];
    request.mounts[0].source = DeliveredSource::FileSystem { fs_type, source, options };
    let run = gofer(&request, None);
    assert!(run.error().contains("(the kernel's message: tmpfs: "), "{}", run.error());
}

#[test]
fn a_request_that_is_none_gets_a_sentence_too() {
    let (_boot, channel) = pair();
    let run = raw(b"\xff\xff\xff", &[channel.as_fd()], || Ok(()));
    assert!(run.error().contains("decode the gofer's request"), "{}", run.error());

    let mut wanting = request();
    wanting.sandbox_proc = true;
    let bytes = postcard::to_stdvec(&wanting).unwrap();
    let run = raw(&bytes, &[channel.as_fd()], || Ok(()));
    assert_eq!(run.error(), "the request came with 1 descriptors, without boot's PID namespace");
    let run = raw(&bytes, &[channel.as_fd(); 3], || Ok(()));
    assert_eq!(run.error(), "the request came with 1 descriptors too many");
    let run = raw(&bytes, &[], || Ok(()));
    assert!(run.error().contains("without the mounts channel"));
}

#[test]
fn a_sandbox_that_died_is_said_to_have_died() {
    let host = Host::new();
    let (boot, channel) = pair();
    drop(boot);
    let mut request = request();
    request.mounts = vec![bind(0, host.dir.path())];
    let bytes = postcard::to_stdvec(&request).unwrap();
    let run = raw(&bytes, &[channel.as_fd()], || Ok(()));
    assert_eq!(run.error(), "the sandbox died before it took its mounts");
}

#[test]
fn a_seccomp_profile_is_compiled_once_and_a_large_one_travels() {
    let host = Host::new();
    let output = host.path("cache/deep/program");
    // Beyond one packet.
    let names: Vec<_> = (0..10_000).map(|i| format!("\"unknown_call_{i}\"")).collect();
    let json = format!(
        "{{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{{\"names\":[\"mkdir\",{}],\
         \"action\":\"SCMP_ACT_ERRNO\"}}]}}",
        names.join(",")
    );
    let profile: oci_spec::runtime::LinuxSeccomp = serde_json::from_str(&json).unwrap();
    let mut request = request();
    request.seccomp =
        Some(SeccompJob { profile: profile.clone(), baseline: None, output: output.clone() });
    gofer(&request, None).answer.unwrap();
    let program = std::fs::read(&output).unwrap();
    assert_eq!(program, sandbox_core::spec::seccomp::compile(&profile).unwrap().program);
    let entries: Vec<_> = std::fs::read_dir(output.parent().unwrap()).unwrap().collect();
    assert_eq!(entries.len(), 1, "{entries:?}");

    std::fs::write(&output, "kept").unwrap();
    gofer(&request, None).answer.unwrap();
    assert_eq!(std::fs::read(&output).unwrap(), b"kept");
}
