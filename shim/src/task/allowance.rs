//! A bound on the work that boot may cause: an amount at once, and an amount
//! per second in the long run.

use std::time::Duration;

use tokio::time::Instant;

/// An amount that is available at once, and grows again by an amount per
/// second.
pub(super) struct Allowance {
    left: u32,
    most: u32,
    a_second: u32,
    since: Instant,
}

impl Allowance {
    pub(super) fn new(most: u32, a_second: u32) -> Self {
        Self { left: most, most, a_second, since: Instant::now() }
    }

    /// Takes an amount, if that much is left. Returns whether it was.
    pub(super) fn take(&mut self, amount: u32) -> bool {
        self.refill();
        let left = self.left.checked_sub(amount);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// Whether half of the amount is available again.
    pub(super) fn has_recovered(&mut self) -> bool {
        self.refill();
        self.left >= self.most / 2
    }

    fn refill(&mut self) {
        let seconds = self.since.elapsed().as_secs();
        let back = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(self.a_second);
        self.left = self.left.saturating_add(back).min(self.most);
        self.since += Duration::from_secs(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_allowance_is_used_up_and_comes_back() {
        let mut allowance = Allowance::new(10, 2);
        assert!(allowance.take(7) && allowance.take(3) && !allowance.take(1));
        assert!(!allowance.has_recovered());
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert!(!allowance.take(3) && allowance.take(2));
        tokio::time::advance(Duration::from_secs(1 << 40)).await;
        assert!(allowance.has_recovered() && allowance.take(10) && !allowance.take(1));
    }
}
