//! A file system in user space that can be mounted, and takes each request for a file in it without
//! an answer: whoever asks waits, and no signal ends that.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

// Operations, by their numbers in `linux/fuse.h`.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;

/// The mode of a directory that everybody may enter.
const DIRECTORY: u32 = 0o040_755;

/// So long is known what the directory is, in seconds.
const KNOWN: u64 = 3600;

/// Such a file system, until it is dropped: who waits is let go then.
#[derive(Debug)]
pub struct Silent {
    place: PathBuf,
    /// Ends the thread that serves, which holds the connection.
    end: Option<std::os::unix::net::UnixStream>,
    server: Option<JoinHandle<()>>,
}

impl Silent {
    /// Mounts it on a directory, which it makes.
    pub fn mount(place: &Path) -> Self {
        fs::create_dir_all(place).expect("make a directory");
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.expect("open /dev/fuse");
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("silent"), place, Some("fuse"), flags, Some(options.as_str()))
            .expect("mount it");
        let (end, ended) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
        let server = thread::spawn(move || serve(&device, &ended));
        Self { place: place.to_owned(), end: Some(end), server: Some(server) }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
    }
}

/// Answers what is asked about the directory, and takes all else.
fn serve(mut device: &File, ended: &std::os::unix::net::UnixStream) {
    let mut request = vec![0; 1 << 17];
    loop {
        let mut waited =
            [device.as_fd(), ended.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if poll(&mut waited, PollTimeout::NONE).is_err() || waited[1].any() != Some(false) {
            return;
        }
        let Ok(length) = device.read(&mut request) else { continue };
        // Of `fuse_in_header`: length, operation, number.
        let Some(operation) = request[..length].get(4..8) else { continue };
        let operation = u32::from_ne_bytes(operation.try_into().expect("four bytes"));
        let Some(body) = body(operation) else { continue };
        // `fuse_out_header`: length, error, number.
        let mut reply = u32::try_from(16 + body.len()).expect("short").to_ne_bytes().to_vec();
        let error = if body.is_empty() { -nix::libc::ENOSYS } else { 0 };
        reply.extend(error.to_ne_bytes());
        reply.extend(&request[8..16]);
        reply.extend(body);
        // To some requests there is no reply.
        let _ = device.write_all(&reply);
    }
}

/// Returns the body of an answer; an empty one for an error. `None` if there is no answer.
fn body(operation: u32) -> Option<Vec<u8>> {
    Some(match operation {
        LOOKUP => return None,
        // `fuse_init_out`, of version 7.31.
        INIT => [7_u32, 31].iter().flat_map(|word| word.to_ne_bytes()).chain([0; 56]).collect(),
        // `fuse_attr_out`: how long it is known, and behind other things the mode.
        GETATTR => {
            let mut body = vec![0; 104];
            body[..8].copy_from_slice(&KNOWN.to_ne_bytes());
            body[76..80].copy_from_slice(&DIRECTORY.to_ne_bytes());
            body[80..84].copy_from_slice(&1_u32.to_ne_bytes());
            body
        }
        // Of a size of zero.
        STATFS => vec![0; 80],
        _ => Vec::new(),
    })
}
