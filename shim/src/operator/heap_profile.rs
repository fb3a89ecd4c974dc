//! HeapProfile: samples what the shim and boot allocate, until the time is over, the client has it
//! end or is gone, or the shim ends; and then sends what is held.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::ttrpc::asynchronous::ServerStreamSender;
use operator_api::operator::{HeapPart, HeapProfileRequest};
use sandbox_core::sys::heap::table;
use tokio::time::{Instant, timeout};

use crate::error::{Error, Result};
use crate::task::{End, Shim, heap_profile};

/// As in `events.rs`: the time after which a client that hung up is noticed.
const ALIVE: Duration = Duration::from_secs(1);

/// The longest profile.
const LONGEST: Duration = Duration::from_secs(3600);

/// About the size of a part.
const PART: usize = 64 << 10;

/// Takes a profile. Its task outlives a client that goes, so that the samplers are switched off.
pub(super) async fn heap_profile(
    shim: Arc<Shim>,
    request: HeapProfileRequest,
    client: ServerStreamSender<HeapPart>,
) -> Result<()> {
    let crashed = |error| Error::internal(format!("the shim failed at this profile: {error}"));
    tokio::spawn(take(shim, request, client)).await.map_err(crashed)?
}

async fn take(
    shim: Arc<Shim>,
    request: HeapProfileRequest,
    client: ServerStreamSender<HeapPart>,
) -> Result<()> {
    let every = NonZeroU32::new(request.every)
        .ok_or_else(|| Error::invalid("every: expected a number of bytes above 0"))?;
    let time = Duration::from_millis(request.milliseconds);
    if time.is_zero() || time > LONGEST {
        return Err(Error::invalid("milliseconds: expected more than 0, and an hour at most"));
    }
    let mut taking = heap_profile::switch_on(&shim, every).await?;
    let there = wait(&shim, time, &taking, &client).await;
    taking.switch_off().await;
    if !there {
        log::debug!("the client of a heap profile is gone");
        return Ok(());
    }
    send(&client, &taking.own, false, String::new()).await?;
    if let Some(of_boot) = &taking.of_boot {
        send(&client, of_boot, true, taking.missing.take().unwrap_or_default()).await?;
    }
    Ok(())
}

/// Waits until the profile is to end. Returns whether the client is there.
async fn wait(
    shim: &Shim,
    time: Duration,
    taking: &heap_profile::Taking,
    client: &ServerStreamSender<HeapPart>,
) -> bool {
    let deadline = Instant::now() + time;
    let mut end = shim.end.subscribe();
    // Tells the client that the samplers are on.
    while client.send(&HeapPart::default()).await.is_ok() {
        let left = deadline.saturating_duration_since(Instant::now());
        let over = async {
            tokio::select! {
                () = taking.stop.notified() => {}
                _ = end.wait_for(|end| *end != End::No) => {}
            }
        };
        if timeout(left.min(ALIVE), over).await.is_ok() || left <= ALIVE {
            return true;
        }
    }
    false
}

/// Sends what a table has.
async fn send(
    client: &ServerStreamSender<HeapPart>,
    table: &File,
    of_boot: bool,
    missing: String,
) -> Result<()> {
    let failed = |error: io::Error| Error::internal(format!("read the samples: {error}"));
    let totals = table::totals(table).map_err(failed)?;
    let mut part = HeapPart {
        of_boot,
        missing,
        allocated: totals.allocated,
        allocations: totals.allocations,
        freed: totals.freed,
        frees: totals.frees,
        lost: totals.lost,
        totals: true,
        ..Default::default()
    };
    for samples in table::parts(table, PART).map_err(failed)? {
        part.samples = samples.map_err(failed)?;
        if client.send(&part).await.is_err() {
            return Ok(());
        }
        part = HeapPart { of_boot, ..Default::default() };
    }
    if part.totals {
        let _ = client.send(&part).await;
    }
    Ok(())
}
