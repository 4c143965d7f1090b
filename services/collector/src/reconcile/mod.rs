//! Compares bus and store every few seconds, mends what is safe to mend, and shows the rest as problems. `snapshot` is what
//! one poll has seen, `detect` finds what is wrong in it, `lost_tasks` looks for tasks that are nowhere, `purge_orphans` for
//! jobs that a purge keeps from ending, `schedules` for those that do not fire, `problems` keeps what is shown. Nothing is mended that only one poll has seen, nor
//! when a poll has not seen the whole bus.

mod detect;
mod lost_tasks;
mod problems;
mod purge_orphans;
mod schedules;
mod snapshot;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use millpond::bus::read::backlog::Purges;
use millpond::bus::read::standstill::Standstill;
use millpond::bus::topology::missing_streams;
use millpond::bus::{Bus, Role};
use millpond::wire::streams::{BUCKET_JOBS, BUCKET_WORKERS, STREAM_DEAD, STREAM_DUE, STREAM_RESULTS, STREAM_TASKS};
use millpond::worker_record::WORKER_LOST_AFTER;
use millpond_api::overview::ProblemKind;

pub(crate) use problems::Problems;
pub(crate) use snapshot::Context;

use crate::clocks::Clocks;
use crate::collect::Health;
use crate::open_jobs::OpenJobs;
use crate::workers::Workers;
use detect::{Detector, OF_A_SNAPSHOT};
use lost_tasks::LostTasks;
use problems::FoundProblem;
use purge_orphans::PurgeOrphans;
use schedules::Schedules;
use snapshot::{BusSnapshot, PollError};

use crate::store::{RefusedContinuation, UnreadableMessages};

/// How often what is in memory is checked: workers, jobs, the collectors.
const CHECK_MEMORY_EVERY: Duration = Duration::from_secs(1);
/// How long a message that cannot be read, or a continuation that is refused, is a problem, in milliseconds.
const SHOWN_FOR_MS: i64 = 24 * 3600 * 1000;
/// How often it is looked whether streams stand still.
const STREAMS_EVERY: Duration = Duration::from_secs(2);
/// The streams that everything rests on, and the buckets whose records say who lives.
const STREAMS: [&str; 4] = [STREAM_TASKS, STREAM_DUE, STREAM_RESULTS, STREAM_DEAD];
static RECORDS: LazyLock<[String; 2]> =
    LazyLock::new(|| [BUCKET_WORKERS, BUCKET_JOBS].map(|bucket| format!("KV_{bucket}")));
/// How long after a standstill the records of who lives are written again.
const STANDSTILL_ENDS_WITHIN: Duration = Duration::from_secs(4);
/// How often bus and store are compared.
const COMPARE_EVERY: Duration = Duration::from_secs(3);

/// Checks what is in memory, for ever.
pub(crate) async fn watch(
    bus: Bus,
    (workers, jobs, clocks): (Workers, OpenJobs, Clocks),
    health: Vec<Arc<Health>>,
    problems: Problems,
) {
    let mut tick = tokio::time::interval(CHECK_MEMORY_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !problems.standstill_within(WORKER_LOST_AFTER + STANDSTILL_ENDS_WITHIN) {
            // Their records could be written: who did not is gone.
            problems.replace(&[ProblemKind::WorkerLost], detect::lost_workers(&workers.records()));
            match jobs.stalled(&bus).await {
                Ok(stalled) => problems.replace(&[ProblemKind::StalledJob], detect::stalled_jobs(&stalled)),
                Err(error) => tracing::debug!(%error, "cannot read the records of silent jobs, will try again"),
            }
        }
        let own_ahead_ms = millpond::clock::local_ahead_ms();
        let mut found: Vec<_> = detect::clocks(&workers.records(), &clocks.off(), own_ahead_ms).collect();
        if health.iter().any(|health| health.store_fails()) {
            let sentence =
                "the store cannot be written, nothing that ends is acknowledged; the collector's log has the reason";
            let since_ms = millpond::now_ms();
            let (what, sentence) = ("store".to_owned(), sentence.to_owned());
            found.push(FoundProblem { kind: ProblemKind::Store, what, sentence, since_ms });
        }
        problems.replace(&[ProblemKind::Store, ProblemKind::Clock], found);
    }
}

/// Looks for streams that stand still, for ever.
async fn watch_streams(bus: Bus, problems: Problems) {
    let mut tick = tokio::time::interval(STREAMS_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let streams: Vec<&'static str> = STREAMS.into_iter().chain(RECORDS.iter().map(String::as_str)).collect();
    loop {
        tick.tick().await;
        let found = if bus.is_connected() { bus.standstills(Role::Collector, &streams).await } else { Vec::new() };
        // A TASKS that stands still keeps nobody from writing its record.
        if !bus.is_connected() || found.iter().any(|one| RECORDS.iter().any(|name| name == one.stream)) {
            problems.note_standstill();
        }
        let since_ms = millpond::now_ms();
        let found = found.into_iter().map(|Standstill { stream, sentence }| FoundProblem {
            kind: ProblemKind::Standstill,
            what: stream.to_owned(),
            sentence,
            since_ms,
        });
        problems.replace(&[ProblemKind::Standstill], found.collect());
    }
}

/// What the reconciler remembers from one poll to the next.
#[derive(Default)]
struct Reconciler {
    detector: Detector,
    purges: Purges,
    lost_tasks: LostTasks,
    purge_orphans: PurgeOrphans,
    schedules: Schedules,
    /// Queues without their consumers, as the last poll saw.
    missing_consumers: BTreeSet<String>,
}

/// Looks for streams that stand still, and compares bus and store, for ever.
pub(crate) async fn run(context: Context) {
    let (bus, problems) = (context.bus.clone(), context.problems.clone());
    tokio::join!(watch_streams(bus, problems), compare_all(context));
}

async fn compare_all(context: Context) {
    let mut tick = tokio::time::interval(COMPARE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut reconciler, mut failing) = (Reconciler::default(), false);
    loop {
        tick.tick().await;
        if !context.bus.is_connected() {
            continue;
        }
        match reconciler.compare(&context).await {
            Ok(()) => failing = false,
            // Logged once, until it goes well again.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "bus and store cannot be compared, will try again");
            }
            Err(_) => {}
        }
    }
}

/// Messages that nobody could read, stored within the last day.
async fn unreadable(context: &Context, now_ms: i64) -> Result<Vec<FoundProblem>, PollError> {
    let kept = context.store.unreadable_since(now_ms.saturating_sub(SHOWN_FOR_MS)).await?;
    let finding = |UnreadableMessages { stream, count, reason, since_ms }: UnreadableMessages| {
        let messages = if count == 1 { "1 message".to_owned() } else { format!("{count} messages") };
        let sentence = format!(
            "{messages} of {stream} could not be read within the last day and are kept as they came, in the table `unreadable` of the store; the newest: {reason}. Look for what publishes there: a program of another version, or one that is none of millpond's"
        );
        FoundProblem { kind: ProblemKind::Unreadable, what: stream, sentence, since_ms }
    };
    Ok(kept.into_iter().map(finding).collect())
}

/// Continuations of jobs that were refused for good within the last day.
async fn refused_continuations(context: &Context, now_ms: i64) -> Result<Vec<FoundProblem>, PollError> {
    let refused = context.store.refused_continuations(now_ms.saturating_sub(SHOWN_FOR_MS)).await?;
    let finding = |RefusedContinuation { job, queue, kind, reason, at_ms }: RefusedContinuation| {
        let sentence = format!(
            "job {job} has ended, and the task that its end starts ({queue}.{kind}) is refused for good: {reason}; nothing asks for it again: publish it by hand (`millpond submit`), and correct the continuation where the job is made"
        );
        FoundProblem { kind: ProblemKind::Continuation, what: job, sentence, since_ms: at_ms }
    };
    Ok(refused.into_iter().map(finding).collect())
}

impl Reconciler {
    /// Queues whose consumers somebody has deleted, and whose workers have had time to make them again.
    fn missing_consumers(&mut self, seen: &BusSnapshot) -> Vec<FoundProblem> {
        let missing: Vec<FoundProblem> = detect::missing_consumers(&seen.queues, &seen.workers).collect();
        let names = missing.iter().map(|one| one.what.clone()).collect();
        let before = std::mem::replace(&mut self.missing_consumers, names);
        missing.into_iter().filter(|one| before.contains(&one.what)).collect()
    }

    async fn compare(&mut self, context: &Context) -> Result<(), PollError> {
        let missing = missing_streams(&context.bus).await?;
        if !missing.is_empty() {
            // Nothing else can be compared.
            context.problems.replace(&[ProblemKind::Missing], detect::missing_streams(&missing).collect());
            return Ok(());
        }
        let seen = BusSnapshot::take(context).await?;
        context.problems.replace(&[ProblemKind::Missing], self.missing_consumers(&seen));
        context.problems.replace(&OF_A_SNAPSHOT, self.detector.found(&seen));
        if context.bus.read_purges(&mut self.purges).await? {
            self.lost_tasks.hurry(seen.now_ms);
            self.purge_orphans.purged(&self.purges);
        }
        context.problems.replace(&[ProblemKind::Unreadable], unreadable(context, seen.now_ms).await?);
        let refused = refused_continuations(context, seen.now_ms).await?;
        context.problems.replace(&[ProblemKind::Continuation], refused);
        if let Some(found) = self.schedules.poll(context, seen.now_ms).await? {
            context.problems.replace(&[ProblemKind::Schedule], found);
        }
        self.lost_tasks.poll(context, &seen, &self.purges).await?;
        context.problems.replace(&[ProblemKind::LostTask], self.lost_tasks.found());
        self.purge_orphans.poll(context, &seen, &self.purges).await
    }
}
