//! Opens raw sockets for containers that are granted CAP_NET_RAW in a network of the host's.
//!
//! boot asks, which may be hostile: it can name nothing but such a socket, gets it in its own
//! pod's network only, for a container that is granted the capability, and so many in a second.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use sandbox_core::control::message::{RawSocket, Request};
use sandbox_core::sys::let_go::let_go;

use super::boot::{BootClient, Relevance};

/// The time after which a request that has to wait is looked at again.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens a socket and sends it to boot, once the pod has a share.
pub(super) fn open(boot: &Arc<BootClient>, of: u64, id: &str, socket: RawSocket) -> Relevance {
    let Some(place) = boot.raw_socket_for(id) else {
        // The container may have been deleted meanwhile.
        boot.tell(Request::RawSocket { of, refused: errno(Errno::PERM) }, &[]);
        return Relevance::Stray;
    };
    let boot = boot.clone();
    tokio::spawn(async move {
        while !boot.take_raw_socket() {
            tokio::time::sleep(PAUSE).await;
        }
        // What boot does not take would pile up here.
        let opened = match boot.sandbox.has_unsent() {
            true => Err(Errno::AGAIN),
            false => boot.sandbox.open_raw_socket(socket),
        };
        match opened {
            Ok(socket) => {
                boot.tell(Request::RawSocket { of, refused: None }, &[socket.as_fd()]);
                // The last close of such a socket takes the kernel long. It is the last one if
                // boot has closed its own already.
                let_go([socket]);
            }
            Err(error) => {
                log::debug!("a container of {}: {socket:?}: {error}", boot.root);
                boot.tell(Request::RawSocket { of, refused: errno(error) }, &[]);
            }
        }
        drop(place);
    });
    Relevance::Known
}

fn errno(error: Errno) -> Option<u16> {
    error.raw_os_error().try_into().ok()
}
