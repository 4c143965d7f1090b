//! Latencies as counts by bucket: eight buckets to each power of two, so that a percentile is off by 6 % at the most. As
//! text `<bucket>:<count>,…`. No clock, no storage.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Values below it have a bucket each.
const EXACT_BELOW: u64 = 16;
/// Buckets of one power of two, as a power of two.
const BUCKET_BITS: u32 = 3;

/// Buckets that there are.
const BUCKETS: u32 = (u64::BITS << BUCKET_BITS) - 16;

/// Counts of latencies in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Latencies(BTreeMap<u32, u64>);

fn bucket(ms: u64) -> u32 {
    if ms < EXACT_BELOW {
        return u32::try_from(ms).unwrap_or(0);
    }
    let power = ms.ilog2();
    let part = (ms >> (power - BUCKET_BITS)) & ((1 << BUCKET_BITS) - 1);
    (power << BUCKET_BITS) - 16 + u32::try_from(part).unwrap_or(0)
}

/// The middle of a bucket, in milliseconds.
fn middle(bucket: u32) -> u64 {
    if u64::from(bucket) < EXACT_BELOW {
        return bucket.into();
    }
    let (power, part) = ((bucket + 16) >> BUCKET_BITS, u64::from(bucket + 16) & ((1 << BUCKET_BITS) - 1));
    let width = 1_u64 << (power - BUCKET_BITS);
    (1_u64 << power) + part * width + width / 2
}

impl Latencies {
    /// Reads what [`text`](Latencies::text) wrote; what is not understood is left out.
    pub(super) fn parse(text: &str) -> Self {
        let parts = text.split(',').filter_map(|part| part.split_once(':'));
        let counts = parts.filter_map(|(bucket, count)| Some((bucket.parse().ok()?, count.parse().ok()?)));
        Self(counts.filter(|(bucket, _): &(u32, u64)| *bucket < BUCKETS).collect())
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (bucket, count) in &self.0 {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{bucket}:{count}");
        }
        text
    }

    /// Counts `count` of this latency; one below zero (clocks differ) is zero.
    pub(super) fn add(&mut self, ms: i64, count: u64) {
        *self.0.entry(bucket(u64::try_from(ms).unwrap_or(0))).or_default() += count;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// The latency that this share of all, from 0 to 1, do not exceed; none when there are none.
    pub(super) fn percentile(&self, share: f64) -> Option<u64> {
        let all: u64 = self.0.values().sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        self.0.iter().find_map(|(bucket, count)| {
            seen += count;
            (seen >= wanted).then(|| middle(*bucket))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_near_what_is_in_it() {
        let mut before = 0;
        for ms in (0..5000).chain([60_000, 3_600_000, 86_400_000 * 30]) {
            let (at, near) = (bucket(ms), middle(bucket(ms)));
            assert!(at >= before, "{ms} is in bucket {at}, after {before}");
            assert!(near.abs_diff(ms) * 16 <= ms, "{ms} became {near}");
            before = at;
        }
    }

    #[test]
    fn percentiles_come_back_from_text() {
        let mut some = Latencies::default();
        some.add(10, 98);
        some.add(1000, 2);
        some.add(-5, 1);
        let mut read = Latencies::parse(&some.text());
        assert_eq!(read, some);
        assert_eq!(read.percentile(0.5), Some(10));
        assert!(read.percentile(0.99).unwrap().abs_diff(1000) < 63);
        read.merge(&some);
        assert_eq!(read.percentile(0.001), Some(0));
        assert_eq!(Latencies::parse("nonsense,9999:1").percentile(0.5), None);
    }
}
