//! Descriptors that are neither files nor sockets.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, epoll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use crate::{Check, Given, Result, same};

/// epoll on an eventfd, a pipe and a socket.
pub fn epoll(_: &Given) -> Result<Check> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let event = File::from(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
    let (reader, mut writer) = pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (r, File::from(w)))?;
    let (near, mut far) = std::os::unix::net::UnixStream::pair()?;
    let level = epoll::EventFlags::IN;
    epoll::add(&epoll, &event, epoll::EventData::new_u64(100), level)?;
    epoll::add(&epoll, &reader, epoll::EventData::new_u64(1 << 40), level)?;
    let edge = level | epoll::EventFlags::ET;
    epoll::add(&epoll, &near, epoll::EventData::new_u64(300), edge)?;
    let (mut event, mut reader, mut near) = (event, File::from(reader), near);
    Ok(Box::new(move || {
        same("what is ready", ready(&epoll)?, vec![])?;
        event.write_all(&1u64.to_ne_bytes())?;
        writer.write_all(b"x")?;
        far.write_all(b"x")?;
        same("what is ready", ready(&epoll)?, vec![100, 300, 1 << 40])?;
        same("what is ready again", ready(&epoll)?, vec![100, 1 << 40])?;
        event.read_exact(&mut [0; 8])?;
        reader.read_exact(&mut [0])?;
        Ok(near.read_exact(&mut [0])?)
    }))
}

fn ready(epoll: &OwnedFd) -> Result<Vec<u64>> {
    let mut events = Vec::with_capacity(8);
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&now))?;
    let mut ready: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
    ready.sort_unstable();
    Ok(ready)
}

/// A count that nobody has taken.
pub fn eventfd(_: &Given) -> Result<Check> {
    let mut event = File::from(rustix::event::eventfd(41, EventfdFlags::NONBLOCK)?);
    Ok(Box::new(move || {
        let mut count = [0; 8];
        event.read_exact(&mut count)?;
        event.write_all(&41u64.to_ne_bytes())?;
        same("the count", u64::from_ne_bytes(count), 41)
    }))
}

/// A pipe with data in it, and a size of its own.
pub fn pipe(_: &Given) -> Result<Check> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&writer, 16384)?;
    waiting("in the pipe", File::from(reader), File::from(writer))
}

/// A FIFO with a name and with data in it.
pub fn fifo(_: &Given) -> Result<Check> {
    let path = "/tmp/carried-fifo";
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?;
    // For both, as nothing else may be open yet.
    let both = File::options().read(true).write(true).open(path)?;
    let again = both.try_clone()?;
    waiting("in the FIFO", again, both)
}

/// Looks whether data still waits in a pipe, and puts it there again.
fn waiting(what: &'static str, mut reader: File, mut writer: File) -> Result<Check> {
    let data = "carried ".repeat(1000);
    writer.write_all(data.as_bytes())?;
    let size = fcntl_getpipe_size(&writer)?;
    Ok(Box::new(move || {
        let mut read = vec![0; data.len()];
        reader.read_exact(&mut read)?;
        writer.write_all(data.as_bytes())?;
        same(what, String::from_utf8_lossy(&read).as_ref(), data.as_str())?;
        same("its size", fcntl_getpipe_size(&writer)?, size)
    }))
}

/// A file without a name, sealed.
pub fn memfd(_: &Given) -> Result<Check> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("carried", flags)?);
    file.write_all_at(b"without a name", 5000)?;
    let seals = SealFlags::GROW | SealFlags::SHRINK;
    fcntl_add_seals(&file, seals)?;
    Ok(Box::new(move || {
        let mut content = [0; 14];
        file.read_exact_at(&mut content, 5000)?;
        same("its content", &content, b"without a name")?;
        same("its length", file.metadata()?.len(), 5014)?;
        same("its seals", fcntl_get_seals(&file)?, seals)?;
        let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        same("its name", link.to_string_lossy().as_ref(), "/memfd:carried (deleted)")
    }))
}

/// Devices.
pub fn devices(_: &Given) -> Result<Check> {
    let mut null = File::options().write(true).open("/dev/null")?;
    let [mut zero, mut random] = [File::open("/dev/zero")?, File::open("/dev/urandom")?];
    Ok(Box::new(move || {
        null.write_all(b"x")?;
        let [mut zeros, mut bytes] = [[1; 32]; 2];
        zero.read_exact(&mut zeros)?;
        random.read_exact(&mut bytes)?;
        same("/dev/zero", zeros, [0; 32])?;
        same("whether /dev/urandom changes", bytes != [1; 32], true)
    }))
}

/// A descriptor of a high number, one that shares its position, and the flag for execve.
pub fn numbers(_: &Given) -> Result<Check> {
    let path = "/tmp/carried-numbers";
    fs::write(path, "0123456789")?;
    let mut file = File::open(path)?;
    let high = rustix::io::fcntl_dupfd_cloexec(&file, 200)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
    let (mut second, number) = (File::from(high.try_clone()?), high.as_raw_fd());
    Ok(Box::new(move || {
        let mut digits = [0; 2];
        file.read_exact(&mut digits[..1])?;
        second.read_exact(&mut digits[1..])?;
        std::io::Seek::rewind(&mut file)?;
        same("what both have read", &digits, b"01")?;
        same("the number", high.as_raw_fd(), number)?;
        same("the low one's flags", rustix::io::fcntl_getfd(&file)?.bits(), 0)?;
        same("the high one's flags", rustix::io::fcntl_getfd(&high)?.bits(), 1)
    }))
}
