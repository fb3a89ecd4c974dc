//! What `palisade metrics` serves: read at each scrape from the state on disk, the kernel's files
//! and the pages in which the shims count. No shim is asked.
//!
//! | file | content |
//! |---|---|
//! | `kept.rs` | the pods, with what is kept of them between two scrapes |
//! | `scrape.rs` | the numbers of one scrape |
//! | `totals.rs` | what the shims have counted, also those that are gone |
//! | `families.rs` | the metrics, by name |
//! | `server.rs` | HTTP |

mod families;
mod kept;
mod scrape;
mod server;
mod totals;

pub(crate) use kept::Kept;
pub(crate) use server::{Address, Server};
