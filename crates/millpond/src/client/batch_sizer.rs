//! How many items go into one message. Batches start at one item, grow by [`GROWTH`] while results show that tasks are short,
//! and aim at [`BATCH_AIM`] of work; a task that takes longer than that always goes alone. No I/O; the caller passes the time.

use std::time::{Duration, Instant};

use crate::limits::CLAIM_CHECK_BYTES;

/// Work that a batch which forms by itself aims at, as time.
const BATCH_AIM: Duration = Duration::from_millis(50);
/// Bytes of arguments in a batch that forms by itself; a larger argument goes alone.
pub(super) const BATCH_AUTO_BYTES_MAX: usize = 64 * 1024;
/// Items in such a batch at the most.
const BATCH_AUTO_ITEMS_MAX: u32 = 256;
/// How many times larger the next batches may be than the largest that came back.
const GROWTH: u32 = 4;
/// Messages that are published at each size before results have shown that the next size is right.
const PROBES_MAX: u64 = 64;
/// Weight of the durations seen so far when a new one arrives.
const MEMORY: f64 = 15.0 / 16.0;

const _: () = assert!(BATCH_AUTO_BYTES_MAX <= CLAIM_CHECK_BYTES);

/// How many tasks share a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchSize {
    /// As many as take about 50 ms together, by the durations seen.
    #[default]
    Auto,
    /// This many: 1 to [`crate::limits::BATCH_ITEMS_MAX`].
    Fixed(u32),
}

/// How long the tasks of a kind take, as far as results have shown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MeanDuration {
    /// Decaying sums: the time of the handlers, and the items that they ran.
    busy_s: f64,
    items: f64,
    /// Items in the largest message that came back whole.
    proven_items: u32,
}

/// Decides the size of the next batch.
#[derive(Debug)]
pub(super) struct BatchSizer {
    batch: BatchSize,
    mean: MeanDuration,
    /// Messages that may be published before results have shown that the size is right, and those that were.
    probes_max: u64,
    probes: u64,
    probing_since: Option<Instant>,
}

impl BatchSizer {
    pub(super) fn new(batch: BatchSize, mean: MeanDuration) -> Self {
        Self { batch, mean, probes_max: PROBES_MAX, probes: 0, probing_since: None }
    }

    /// What results have shown, for the next job of this kind.
    pub(super) fn mean_duration(&self) -> MeanDuration {
        self.mean
    }

    /// Notes a message that came back: its handler ran `items` items in `busy`.
    pub(super) fn note(&mut self, items: usize, busy: Duration) {
        let Ok(items) = u32::try_from(items) else { return };
        if items == 0 {
            return;
        }
        self.mean.busy_s = self.mean.busy_s * MEMORY + busy.as_secs_f64();
        self.mean.items = self.mean.items * MEMORY + f64::from(items);
        if items > self.mean.proven_items {
            self.mean.proven_items = items;
            (self.probes_max, self.probes, self.probing_since) = (PROBES_MAX, 0, None);
        }
    }

    /// Items that make [`BATCH_AIM`] of work; one while nothing is known.
    fn aim(&self) -> u32 {
        let per_item = self.mean.busy_s / self.mean.items;
        let aim = BATCH_AIM.as_secs_f64() / per_item.max(1e-9);
        if self.mean.items == 0.0 || aim < 1.0 {
            return 1;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to the limit")]
        let items = aim.min(f64::from(BATCH_AUTO_ITEMS_MAX)) as u32;
        items
    }

    /// Items in the next message.
    pub(super) fn size(&self) -> u32 {
        match self.batch {
            BatchSize::Fixed(items) => items,
            BatchSize::Auto => self.aim().min(self.mean.proven_items.saturating_mul(GROWTH)).max(1),
        }
    }

    /// Whether results may still raise the size.
    fn is_probing(&self) -> bool {
        self.batch == BatchSize::Auto
            && (self.mean.proven_items == 0 || self.mean.proven_items.saturating_mul(GROWTH) < self.aim())
    }

    /// Notes a message that was published.
    pub(super) fn note_published(&mut self, now: Instant) {
        self.probes += 1;
        self.probing_since.get_or_insert(now);
    }

    /// Until when to wait for results before more is published, if at all: enough messages are under way to learn from. Tasks
    /// that do not come back within [`BATCH_AIM`] are long, or wait for a worker; each time, twice as many more may go.
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

    fn after(results: &[(usize, u64)]) -> BatchSizer {
        let mut sizer = BatchSizer::new(BatchSize::Auto, MeanDuration::default());
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
        let mut sizer = BatchSizer::new(BatchSize::Auto, MeanDuration::default());
        let start = Instant::now();
        for _ in 0..PROBES_MAX {
            assert_eq!(sizer.wait_until(start), None);
            sizer.note_published(start);
        }
        assert_eq!(sizer.wait_until(start), Some(start + BATCH_AIM));
        let later = start + BATCH_AIM;
        for _ in 0..2 * PROBES_MAX {
            assert_eq!(sizer.wait_until(later), None);
            sizer.note_published(later);
        }
        assert_eq!(sizer.wait_until(later), Some(later + BATCH_AIM));
        sizer.note(1, Duration::from_micros(1));
        assert_eq!(sizer.wait_until(later), None);
    }
}
