//! Counts things that are under way, for whoever waits until there are none.

use std::sync::Arc;

use tokio::sync::watch;

/// The number of things. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<watch::Sender<usize>>);

impl Tally {
    /// Counts one, until it is dropped.
    pub(crate) fn add(&self) -> One {
        self.0.send_modify(|count| *count += 1);
        One(self.clone())
    }

    /// Returns their number.
    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until there are none.
    pub(crate) async fn none(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits until there is one.
    pub(crate) async fn some(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count > 0).await;
    }
}

/// One thing, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct One(Tally);

impl One {
    /// Does nothing. Whoever calls it owns what is counted.
    pub(crate) fn lives(&self) {}
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
