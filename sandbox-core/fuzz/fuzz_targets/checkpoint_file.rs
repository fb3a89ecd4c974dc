//! Any file of a checkpoint's folder, and any message of criu, as Palisade reads them: the first
//! byte says which. Whatever the others, it is read or an error, never a panic; what is made of it
//! is read as well; and an archive makes nothing outside of its directory.

#![no_main]

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use sandbox_core::checkpoint::criu::{Response, last_error};
use sandbox_core::checkpoint::images::{Image, RootIds, portable};
use sandbox_core::checkpoint::manifest::Manifest;
use sandbox_core::checkpoint::{seccomp, tmpfs};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    let ids = RootIds { mount_namespace: 9, user_namespace: Some(3) };
    match kind % 8 {
        0 => rewrite(Image::Inventory { ids }, bytes),
        1 => rewrite(Image::UserNamespace, bytes),
        2 => rewrite(Image::Files, bytes),
        3 => drop(RootIds::parse(bytes)),
        4 => drop(Manifest::parse(bytes)),
        5 => {
            let program = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
            if let Ok(made) = seccomp::with_program(bytes, &program, 0) {
                assert_eq!(seccomp::with_program(&made, &program, 0).expect("what was made"), made);
            }
        }
        6 => unpack(bytes),
        _ => {
            drop(Response::from_packet(bytes));
            drop(last_error(bytes));
        }
    }
});

/// What is rewritten once stays as it is.
fn rewrite(image: Image, bytes: &[u8]) {
    let mut once = Vec::new();
    if portable(image, bytes, &mut once).is_err() {
        return;
    }
    let mut twice = Vec::new();
    portable(image, &*once, &mut twice).expect("what was made");
    assert_eq!(once, twice);
}

fn unpack(bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let into = folder.path().join("into");
    fs::create_dir(&into).expect("mkdir");
    let mut archive = tempfile::tempfile().expect("a file");
    archive.write_all(bytes).and_then(|()| archive.rewind()).expect("write it");
    let directory = File::open(&into).expect("open it");
    drop(tmpfs::unpack(archive, directory.as_fd(), &Some));
    let beside = fs::read_dir(folder.path()).expect("list it").count();
    assert_eq!(beside, 1, "something was made outside");
}
