//! Programs without a record of their own (producer services) whose clocks are off, as they tell it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::server_clock::{CLOCK_TOLD_EVERY, ClockOff, ClocksOff};
use tokio::task::JoinSet;

/// Programs that are remembered at the most.
const PROGRAMS_MAX: usize = 1000;
/// How often a program may fail to be heard before its clock is no longer known.
const TELLS_MISSED_MAX: u32 = 3;

/// By program: what it reported last, and when, Unix time in milliseconds.
type Reported = BTreeMap<(String, String, u32), (ClockOff, i64)>;

/// What is known of such clocks. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Clocks(Arc<Mutex<Reported>>);

impl Clocks {
    /// Hears programs from now on, in `background`.
    ///
    /// # Errors
    /// When the connection is closed.
    pub(crate) async fn start(bus: &Bus, background: &mut JoinSet<()>) -> Result<Self, BusError> {
        let clocks = Self::default();
        background.spawn(clocks.clone().follow(bus.clocks_off().await?));
        Ok(clocks)
    }

    async fn follow(self, mut reports: ClocksOff) {
        while let Some(off) = reports.next().await {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (off.program.clone(), off.host.clone(), off.pid);
            if known.len() < PROGRAMS_MAX || known.contains_key(&key) {
                known.insert(key, (off, millpond::now_ms()));
            }
        }
    }

    /// Those that were heard lately.
    pub(crate) fn off(&self) -> Vec<ClockOff> {
        let oldest_ms = i64::try_from((CLOCK_TOLD_EVERY * TELLS_MISSED_MAX).as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = millpond::now_ms().saturating_sub(oldest_ms);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, reported_ms)| *reported_ms >= oldest_ms);
        known.values().map(|(off, _)| off.clone()).collect()
    }
}
