//! Exemplars: of each bucket of a histogram the newest measurement whose span is exported, so that they are bounded as the
//! buckets are. They are sent over OTLP; the text that Prometheus reads has no place for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::{Histogram, Label};

use super::metrics::SECONDS;
use super::trace::TraceContext;

/// A measurement, and the span that it is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    pub(super) seconds: f64,
    pub(super) at: SystemTime,
    pub(super) trace: TraceContext,
}

/// One for each bucket, the last of which has no bound.
type ByBucket = Mutex<[Option<Exemplar>; SECONDS.len() + 1]>;

/// Those of one histogram of this process.
struct Series {
    name: &'static str,
    label: (&'static str, String),
    exemplars: Arc<ByBucket>,
}

static SERIES: Mutex<Vec<Series>> = Mutex::new(Vec::new());

/// A histogram of durations whose measurements belong to spans. Its name ends in `_seconds`.
pub struct TracedHistogram {
    histogram: Histogram,
    exemplars: Arc<ByBucket>,
}

impl TracedHistogram {
    /// That of this name and label; they are to be few, for they stay.
    #[must_use]
    pub fn new(name: &'static str, label: &'static str, value: &str) -> Self {
        let histogram = metrics::histogram!(name, [Label::new(label, value.to_owned())].to_vec());
        let mut all = SERIES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|series| series.name == name && series.label == (label, value.to_owned()));
        let exemplars = known.map_or_else(Arc::<ByBucket>::default, |series| series.exemplars.clone());
        if known.is_none() {
            all.push(Series { name, label: (label, value.to_owned()), exemplars: exemplars.clone() });
        }
        Self { histogram, exemplars }
    }

    /// Records how long something took, and the span that is about it.
    pub fn record(&self, time: Duration, trace: TraceContext) {
        let seconds = time.as_secs_f64();
        self.histogram.record(seconds);
        if !trace.is_recorded() {
            return;
        }
        let bucket = SECONDS.iter().take_while(|bound| **bound < seconds).count();
        // While they are read, one that is left out costs less than to wait.
        if let Some(slot) = self.exemplars.try_lock().ok().as_mut().and_then(|slots| slots.get_mut(bucket)) {
            *slot = Some(Exemplar { seconds, at: SystemTime::now(), trace });
        }
    }
}

/// Takes those of a histogram that were measured since they were taken before, by its bounds.
pub(super) fn take(name: &str, labels: &[(String, String)]) -> Vec<Exemplar> {
    let [(label, value)] = labels else { return Vec::new() };
    let all = SERIES.lock().unwrap_or_else(PoisonError::into_inner);
    let series = all.iter().find(|series| series.name == name && series.label == (label.as_str(), value.clone()));
    let taken = series.map(|series| {
        let mut slots = series.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter_mut().filter_map(Option::take).collect()
    });
    taken.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_the_newest_and_no_more_and_they_are_taken_once() {
        let parsed = |text: &str| TraceContext::parse(&format!("00-0af7651916cd43dd8448eb211c80319c-{text}")).unwrap();
        let of = |span: u8| TraceContext::in_program(&parsed(&format!("{span:016}-01")).context(false)).unwrap();
        let twice = [0, 1].map(|_| TracedHistogram::new("test_seconds", "kind", "k"));
        for (at, (ms, span)) in [(3, 1), (4, 2), (5, 3), (90_000_000, 4)].into_iter().enumerate() {
            twice[at % 2].record(Duration::from_millis(ms), of(span));
        }
        let labels = [("kind".to_owned(), "k".to_owned())];
        let seen: Vec<_> = take("test_seconds", &labels).iter().map(|one| (one.seconds, one.trace)).collect();
        assert_eq!(seen, [(0.005, of(3)), (90_000.0, of(4))]);
        assert!(take("test_seconds", &labels).is_empty());
        twice[0].record(Duration::ZERO, parsed("b7ad6b7169203331-00"));
        assert!(take("test_seconds", &labels).is_empty(), "its span is not exported");
    }
}
