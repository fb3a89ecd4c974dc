//! Receives boot's messages, replies and exits, until boot is gone.
//!
//! The messages are hostile: numbers and names are looked up, and a message
//! whose number or name does not exist is ignored, up to a bound.

use std::pin::pin;
use std::sync::Arc;

use sandbox_core::control::message::Upward;
use sandbox_core::error::FailureKind;
use sandbox_core::sandbox::{Checked, ReceiveOutcome, ReceivedFds, Unchecked};
use sandbox_core::types::ProcessId;
use tokio::io::Interest;

use super::boot::{BootClient, Relevance};
use super::shim::Shim;
use super::{exits, raw_sockets, seccomp_agent, views};
use crate::error::{Context, Result};
use crate::exit::KILLED;
use crate::ready::{readable, register};

/// The number of boot's messages that are received before other tasks run.
const MESSAGES_AT_ONCE: usize = 32;

/// The number of batches that are read after boot has died: more than its
/// socket can buffer.
const LAST_BATCHES: usize = 64;

/// Receives boot's messages until boot is gone, and then reports the exits of
/// all processes that ended with it.
pub(super) async fn listen(shim: Arc<Shim>, boot: Arc<BootClient>) {
    let received = receive_until_closed(&shim, &boot).await;
    // boot sends wrong messages, or has closed its channel: it must not live on
    // without one. The channel also closes when a correct boot dies.
    let _ = boot.sandbox.kill();
    shim.descriptors.must_work();
    let _ = readable(boot.sandbox.pidfd()).await;
    let why = match received.and_then(|()| receive_rest(&shim, &boot)) {
        Ok(()) => boot.sandbox.describe_end(),
        Err(error) => {
            log::warn!("the sandbox process of {} was killed: {error}", boot.root);
            format!(": it was killed, since {error}")
        }
    };
    kill_rest(&shim, &boot);
    report_end(&shim, &boot, why);
}

/// Receives until boot closes the channel or ends.
async fn receive_until_closed(shim: &Arc<Shim>, boot: &Arc<BootClient>) -> Result<()> {
    let interest = Interest::READABLE;
    let control = register(boot.sandbox.control(), interest).context(|| "epoll")?;
    let pidfd = register(boot.sandbox.pidfd(), interest).context(|| "epoll")?;
    let mut send_rest = pin!(boot.send_rest(&shim.descriptors));
    loop {
        tokio::select! {
            biased;
            ready = control.readable() => {
                let mut ready = ready.context(|| "wait for the sandbox")?;
                match receive_some(shim, boot)? {
                    ReadOutcome::Closed => return Ok(()),
                    ReadOutcome::Drained => ready.clear_ready(),
                    // A boot that never stops sending must not keep the shim from
                    // containerd's requests.
                    ReadOutcome::MoreWaits => tokio::task::yield_now().await,
                }
            }
            _ = pidfd.readable() => return Ok(()),
            // A channel that takes nothing more is closed.
            Err(error) = &mut send_rest => {
                log::debug!("{}: {error}", boot.root);
                return Ok(());
            }
        }
    }
}

/// Receives the messages that boot sent before it died. Another process may
/// hold boot's end of the channel, so their number is bounded.
fn receive_rest(shim: &Arc<Shim>, boot: &Arc<BootClient>) -> Result<()> {
    for _ in 0..LAST_BATCHES {
        if receive_some(shim, boot)? != ReadOutcome::MoreWaits {
            break;
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum ReadOutcome {
    Drained,
    MoreWaits,
    Closed,
}

/// Receives one batch.
fn receive_some(shim: &Arc<Shim>, boot: &Arc<BootClient>) -> Result<ReadOutcome> {
    for _ in 0..MESSAGES_AT_ONCE {
        match boot.sandbox.receive()? {
            ReceiveOutcome::Message(unchecked) => {
                if take(shim, boot, unchecked)? == Relevance::Stray {
                    boot.take_stray()?;
                }
            }
            ReceiveOutcome::Nothing => return Ok(ReadOutcome::Drained),
            ReceiveOutcome::Closed => return Ok(ReadOutcome::Closed),
        }
    }
    Ok(ReadOutcome::MoreWaits)
}

/// Checks what came with a message, if need be with the reserve of descriptors.
fn take(shim: &Arc<Shim>, boot: &Arc<BootClient>, unchecked: Unchecked) -> Result<Relevance> {
    let unchecked = match unchecked.check()? {
        Checked::Message(message, received) => return Ok(dispatch(shim, boot, message, received)),
        Checked::NoRoom(unchecked) => unchecked,
    };
    shim.descriptors.run_out();
    match unchecked.check()? {
        Checked::Message(message, received) => Ok(dispatch(shim, boot, message, received)),
        Checked::NoRoom(unchecked) => Ok(do_without(boot, unchecked.give_up()?)),
    }
}

/// Fails the request of a message whose descriptors are lost. Whoever asked has boot kill the
/// process that was made.
fn do_without(boot: &Arc<BootClient>, message: Upward) -> Relevance {
    let lost = sandbox_core::Error::new(
        FailureKind::NoDescriptors,
        "take what the sandbox process has made: Too many open files",
    );
    match message {
        Upward::Reply { number, .. } => {
            boot.take_reply(number, (Err(lost.into()), ReceivedFds::default()))
        }
        Upward::Listener { of } => seccomp_agent::refuse(boot, of, &lost.to_string()),
        // No others come with descriptors.
        _ => Relevance::Stray,
    }
}

fn dispatch(
    shim: &Arc<Shim>,
    boot: &Arc<BootClient>,
    message: Upward,
    received: ReceivedFds,
) -> Relevance {
    match message {
        Upward::Reply { number, outcome } => boot.take_reply(number, (outcome, received)),
        Upward::Listener { of } => seccomp_agent::hand_over(shim, boot, of, received),
        Upward::RawSocket { of, container, socket } => {
            raw_sockets::open(boot, of, &container, socket)
        }
        Upward::ViewSources { container } => views::open(boot, &container),
        Upward::Exited { process, status } => exits::report(shim, &process, status),
    }
}

/// Kills what the kernel has not killed with boot: containers with the host's PIDs.
fn kill_rest(shim: &Shim, boot: &BootClient) {
    if !boot.sandbox.has_host_pids() {
        return;
    }
    for container in shim.table().containers() {
        if let Err(error) = container.cgroup.kill_now() {
            log::warn!("container {}: {error}", container.id);
        }
    }
}

/// Reports the exits of the whole pod: it was killed with boot.
fn report_end(shim: &Arc<Shim>, boot: &BootClient, reason: String) {
    if let Err(error) = boot.sandbox.reap() {
        log::warn!("{error}");
    }
    boot.set_gone(reason);
    let orphans: Vec<_> = {
        let mut table = shim.table();
        for id in table.reserved() {
            table.report_early_exit(&id, KILLED);
        }
        let of_boot = table.containers().filter(|container| container.boot.root == boot.root);
        let processes = of_boot.flat_map(|container| {
            let execs = container.execs.keys();
            let execs = execs.map(|exec| ProcessId::exec(&container.id, exec));
            execs.chain([ProcessId::init(&container.id)])
        });
        processes.collect()
    };
    for process in orphans {
        exits::report(shim, &process, KILLED);
    }
}
