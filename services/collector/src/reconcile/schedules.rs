//! Finds schedules that do not fire: the server drops one whose time zone it does not know any more, without a word.

use std::collections::BTreeMap;

use millpond::bus::publish::schedules::Refusals;
use millpond::schedule::{Schedule, ScheduleRecord};
use millpond_api::overview::ProblemKind;
use millpond_api::schedules::ScheduleRow;

use super::problems::FoundProblem;
use super::snapshot::{Context, PollError};

/// How often the server is requested to look at its schedules, in milliseconds.
const LOOK_EVERY_MS: i64 = 9_000;

/// What is remembered from one look to the next.
#[derive(Default)]
pub(super) struct Schedules {
    looked_ms: i64,
}

/// Schedules that the server would not fire, and when they were stored: it takes none of them up again by itself, whatever it is
/// given later.
type Dropped = BTreeMap<String, i64>;

impl Schedules {
    /// What is wrong with schedules; none when it is too early for another look.
    pub(super) async fn poll(
        &mut self,
        context: &Context,
        now_ms: i64,
    ) -> Result<Option<Vec<FoundProblem>>, PollError> {
        if now_ms - self.looked_ms < LOOK_EVERY_MS {
            return Ok(None);
        }
        let records = context.bus.schedules().await?;
        let refusals = context.bus.schedule_refusals(&records).await?;
        self.looked_ms = now_ms;
        let before = context.store.dropped_schedules().await?;
        let (found, dropped) = found(&records, &refusals, &before, now_ms);
        if dropped != before {
            context.store.note_dropped_schedules(&dropped).await?;
        }
        Ok(Some(found))
    }
}

/// What is wrong with schedules, and which of them are dropped now.
fn found(
    records: &[ScheduleRecord],
    refusals: &Refusals,
    before: &Dropped,
    now_ms: i64,
) -> (Vec<FoundProblem>, Dropped) {
    let (mut found, mut dropped) = (Vec::new(), Dropped::new());
    for record in records {
        let row = ScheduleRow::new(record, refusals, now_ms);
        let (name, since_ms) = (row.name, row.since_ms);
        let was_dropped = before.get(&name) == Some(&since_ms);
        let active = record.schedule().is_some_and(|schedule| !schedule.paused);
        let sentence = match row.defect {
            Some(defect) => {
                if active {
                    dropped.insert(name.clone(), since_ms);
                }
                format!("schedule {name}: {defect}")
            }
            None if active && was_dropped => {
                dropped.insert(name.clone(), since_ms);
                taken_up_again(&name)
            }
            None if active && row.next_ms.is_none() && row.remarks.is_empty() => never(record.schedule(), &name),
            None => continue,
        };
        found.push(FoundProblem { kind: ProblemKind::Schedule, what: name, sentence, since_ms: now_ms });
    }
    (found, dropped)
}

fn taken_up_again(name: &str) -> String {
    format!(
        "schedule {name} was dropped by nats-server when it did not know its time zone; `millpond schedule pause {name}` and `millpond schedule resume {name}` make it fire again"
    )
}

fn never(schedule: Option<&Schedule>, name: &str) -> String {
    let when = schedule.map(|schedule| schedule.when.text()).unwrap_or_default();
    format!("schedule {name} will not fire: {when} names no time; `millpond schedule rm {name}` removes it")
}
