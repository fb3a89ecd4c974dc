//! IPC of System V, in an IPC namespace of the container's own.

use nix::errno::Errno;
use nix::libc;

use crate::{Check, Given, Result, same};

/// A segment of shared memory, attached.
pub fn shared_memory(_: &Given) -> Result<Check> {
    // SAFETY: the call takes numbers.
    let id = Errno::result(unsafe { libc::shmget(0x1717, 8192, libc::IPC_CREAT | 0o600) })?;
    // SAFETY: the kernel chooses the place, where nothing is.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(Errno::last().into());
    }
    // Its second page.
    let at = at as usize + 4096;
    // SAFETY: the segment is that long, and nothing else refers to it.
    unsafe { (at as *mut u64).write(0x1234_5678_9abc_def0) };
    Ok(Box::new(move || {
        // SAFETY: the segment stays attached.
        let read = unsafe { (at as *const u64).read() };
        same("what is in it", read, 0x1234_5678_9abc_def0)?;
        // SAFETY: the call takes numbers.
        let found = Errno::result(unsafe { libc::shmget(0x1717, 8192, 0) })?;
        same("its ID", found, id)
    }))
}

/// Semaphores.
pub fn semaphores(_: &Given) -> Result<Check> {
    // SAFETY: the call takes numbers.
    let id = Errno::result(unsafe { libc::semget(0x1718, 2, libc::IPC_CREAT | 0o600) })?;
    // SAFETY: SETVAL takes a number.
    Errno::result(unsafe { libc::semctl(id, 1, libc::SETVAL, 23) })?;
    Ok(Box::new(move || {
        // SAFETY: the call takes numbers.
        let found = Errno::result(unsafe { libc::semget(0x1718, 2, 0) })?;
        same("their ID", found, id)?;
        // SAFETY: GETVAL takes nothing.
        let value = Errno::result(unsafe { libc::semctl(id, 1, libc::GETVAL) })?;
        same("the second's value", value, 23)
    }))
}

/// A message, as the kernel takes it.
#[repr(C)]
struct Message {
    kind: libc::c_long,
    text: [u8; 16],
}

/// A queue with a message in it.
pub fn messages(_: &Given) -> Result<Check> {
    // SAFETY: the call takes numbers.
    let id = Errno::result(unsafe { libc::msgget(0x1719, libc::IPC_CREAT | 0o600) })?;
    let send = move || -> Result<()> {
        let message = Message { kind: 5, text: *b"a message waits." };
        // SAFETY: the message has the given length and outlives the call.
        let sent = unsafe { libc::msgsnd(id, (&raw const message).cast(), 16, libc::IPC_NOWAIT) };
        Errno::result(sent)?;
        Ok(())
    };
    send()?;
    Ok(Box::new(move || {
        let mut message = Message { kind: 0, text: [0; 16] };
        // SAFETY: the message has room for the given length and outlives the call.
        let received =
            unsafe { libc::msgrcv(id, (&raw mut message).cast(), 16, 5, libc::IPC_NOWAIT) };
        Errno::result(received)?;
        send()?;
        same("the message", &message.text, b"a message waits.")
    }))
}
