//! How many items go into one message: batches form by themselves from the durations seen in results.
//! They start at one item, grow by [`BATCH_GROWTH`] while results show that tasks are short, and aim at [`BATCH_AIM`]
//! of work. A task that takes longer than that always goes alone. No I/O; the caller tells the time.

use std::time::{Duration, Instant};

use crate::limits::{BATCH_AIM, BATCH_AUTO_ITEMS_MAX, BATCH_GROWTH, BATCH_PROBES_MAX};

/// How many tasks share a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Batch {
    /// As many as take [`BATCH_AIM`] together, by the durations seen.
    #[default]
    Auto,
    /// This many: 1 to [`crate::limits::BATCH_ITEMS_MAX`].
    Fixed(u32),
}

/// Weight of the durations seen so far when a new one comes.
const MEMORY: f64 = 15.0 / 16.0;

/// What is known of how long a kind's tasks take.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Decaying sums: time of the handlers, and items that they ran.
    busy_s: f64,
    items: f64,
    /// The largest message that came back whole.
    proven: u32,
}

/// Decides the size of the next batch.
#[derive(Debug)]
pub(super) struct Sizer {
    batch: Batch,
    pace: Pace,
    /// Messages that may be published until the size is proven right once more, and those that were.
    probes_max: u64,
    probes: u64,
    probing_since: Option<Instant>,
}

impl Sizer {
    pub(super) fn new(batch: Batch, pace: Pace) -> Self {
        Self { batch, pace, probes_max: BATCH_PROBES_MAX, probes: 0, probing_since: None }
    }

    /// What was learnt, for the next job of this kind.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// A message came back: its handler ran `items` items in `busy`.
    pub(super) fn note(&mut self, items: usize, busy: Duration) {
        let Ok(items) = u32::try_from(items) else { return };
        if items == 0 {
            return;
        }
        self.pace.busy_s = self.pace.busy_s * MEMORY + busy.as_secs_f64();
        self.pace.items = self.pace.items * MEMORY + f64::from(items);
        if items > self.pace.proven {
            self.pace.proven = items;
            (self.probes_max, self.probes, self.probing_since) = (BATCH_PROBES_MAX, 0, None);
        }
    }

    /// Items that make [`BATCH_AIM`] of work; one while nothing is known.
    fn aim(&self) -> u32 {
        let per_item = self.pace.busy_s / self.pace.items;
        let aim = BATCH_AIM.as_secs_f64() / per_item.max(1e-9);
        if self.pace.items == 0.0 || aim < 1.0 {
            return 1;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to the limit")]
        let items = aim.min(f64::from(BATCH_AUTO_ITEMS_MAX)) as u32;
        items
    }

    /// Items in the next message.
    pub(super) fn size(&self) -> u32 {
        match self.batch {
            Batch::Fixed(items) => items,
            Batch::Auto => self.aim().min(self.pace.proven.saturating_mul(BATCH_GROWTH)).max(1),
        }
    }

    /// Whether the size still grows with what comes back.
    fn is_probing(&self) -> bool {
        self.batch == Batch::Auto
            && (self.pace.proven == 0 || self.pace.proven.saturating_mul(BATCH_GROWTH) < self.aim())
    }

    /// A message was published.
    pub(super) fn published(&mut self, now: Instant) {
        self.probes += 1;
        self.probing_since.get_or_insert(now);
    }

    /// Until when to wait for results before more is published, if at all: enough is under way to learn from. Tasks
    /// that do not come back within [`BATCH_AIM`] are long, or wait for a worker: then twice as many may go, each time.
    pub(super) fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        if !self.is_probing() || self.probes < self.probes_max {
            return None;
        }
        let until = self.probing_since.unwrap_or(now) + BATCH_AIM;
        if until > now {
            return Some(until);
        }
        (self.probes_max, self.probes, self.probing_since) = (self.probes_max.saturating_mul(2), 0, None);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(results: &[(usize, u64)]) -> Sizer {
        let mut sizer = Sizer::new(Batch::Auto, Pace::default());
        for (items, busy_us) in results {
            sizer.note(*items, Duration::from_micros(*busy_us));
        }
        sizer
    }

    #[test]
    fn sizes_follow_the_durations_seen() {
        for (results, expected) in [
            (&[][..], 1),
            (&[(1, 1)], 4),
            (&[(1, 1), (4, 4)], 16),
            (&[(1, 1), (4, 4), (16, 16), (64, 64), (256, 256)], 256),
            (&[(1, 10_000)], 4),
            (&[(1, 10_000), (4, 40_000)], 5),
            (&[(1, 60_000)], 1),
            (&[(1, 2_000_000)], 1),
        ] {
            assert_eq!(after(results).size(), expected, "{results:?}");
        }
    }

    #[test]
    fn a_slow_one_makes_the_next_batches_small() {
        let mut sizer = after(&[(1, 1), (4, 4), (16, 16), (64, 64), (256, 256)]);
        sizer.note(1, Duration::from_secs(2));
        assert!(sizer.size() < 16, "{}", sizer.size());
        for _ in 0..200 {
            sizer.note(16, Duration::from_micros(16));
        }
        assert_eq!(sizer.size(), 256);
    }

    #[test]
    fn probes_wait_for_results_but_not_for_long() {
        let mut sizer = Sizer::new(Batch::Auto, Pace::default());
        let start = Instant::now();
        for _ in 0..BATCH_PROBES_MAX {
            assert_eq!(sizer.wait_until(start), None);
            sizer.published(start);
        }
        assert_eq!(sizer.wait_until(start), Some(start + BATCH_AIM));
        let later = start + BATCH_AIM;
        for _ in 0..2 * BATCH_PROBES_MAX {
            assert_eq!(sizer.wait_until(later), None);
            sizer.published(later);
        }
        assert_eq!(sizer.wait_until(later), Some(later + BATCH_AIM));
        sizer.note(1, Duration::from_micros(1));
        assert_eq!(sizer.wait_until(later), None);
    }
}
