use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, major, minor};
use sandbox_core::control::gofer::Slot;
use sandbox_core::error::FailureKind;
use sandbox_core::spec::plan::DeviceNode;

use crate::harness::*;

fn device(mode: u32, number: (u32, u32), owner: (u32, u32)) -> DeviceNode {
    DeviceNode {
        path: PathBuf::from("/dev/thing"),
        mode,
        major: number.0,
        minor: number.1,
        uid: owner.0,
        gid: owner.1,
    }
}

#[test]
fn the_default_devices_are_real_and_belong_to_the_containers_root() {
    let sandbox = Sandbox::new();
    let mut request = request();
    request.default_devices = true;
    for (sandbox, root) in [(Some(&sandbox), HOST_ROOT), (None, 0)] {
        let run = gofer(&request, sandbox);
        let nodes = run.get(Slot::DefaultDevices);
        assert_eq!(list(nodes, ""), ["full", "null", "random", "tty", "urandom", "zero"]);
        assert_eq!(owner(nodes, ""), (root, root));
        for node in list(nodes, "") {
            let stat = rustix::fs::statat(nodes, &node, AtFlags::empty()).unwrap();
            assert_eq!(stat.st_mode, libc::S_IFCHR | 0o666, "{node}");
            assert_eq!((stat.st_uid, stat.st_gid), (root, root));
        }
        let null = rustix::fs::openat(nodes, "null", OFlags::RDWR, Mode::empty()).unwrap();
        File::from(null).write_all(b"x").unwrap();
        let full = rustix::fs::openat(nodes, "full", OFlags::RDWR, Mode::empty()).unwrap();
        assert!(File::from(full).write_all(b"x").is_err());
    }
}

#[test]
fn the_containers_own_devices_have_their_numbers_modes_and_owners() {
    let sandbox = Sandbox::new();
    let mut request = request();
    request.devices = vec![
        device(libc::S_IFCHR | 0o600, (10, 229), (0, 0)),
        device(libc::S_IFBLK | 0o640, (7, 1), (1000, 6)),
        device(libc::S_IFIFO | 0o622, (0, 0), (0, 5)),
    ];
    let run = gofer(&request, Some(&sandbox));
    let nodes = run.get(Slot::Devices);
    assert_eq!(list(nodes, ""), ["0", "1", "2"]);
    for (name, wanted) in ["0", "1", "2"].iter().zip(&request.devices) {
        let stat = rustix::fs::statat(nodes, *name, AtFlags::empty()).unwrap();
        assert_eq!(stat.st_mode, wanted.mode);
        assert_eq!((major(stat.st_rdev), minor(stat.st_rdev)), (wanted.major, wanted.minor));
        assert_eq!(stat.st_uid, HOST_ROOT + wanted.uid);
        assert_eq!(stat.st_gid, HOST_ROOT + wanted.gid);
    }
}

#[test]
fn an_owner_that_is_not_mapped_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let mut request = request();
    request.devices = vec![device(libc::S_IFCHR | 0o600, (10, 229), (70000, 0))];
    let run = gofer(&request, Some(&sandbox));
    assert_eq!(
        run.error(),
        "linux.devices[0]: /dev/thing: uid 70000 is not mapped in the sandbox's user namespace"
    );
    assert!(run.answer.unwrap_err().kind == FailureKind::Invalid);
}
