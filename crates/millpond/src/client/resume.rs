//! How a `map` begins: a new job, or one that was begun before and goes on. Then nothing is published before it is known
//! what is stored: what lies in TASKS and DUE, what RESULTS tells, and, where that is not all any more, what the
//! collector has kept. docs/protocol.md has the order and its reasons.

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;

use super::keeper::{Keeper, add_value, shown};
use super::map::Input;
use super::payloads::Ended;
use super::ranges::Ranges;
use super::sizer::Batch;
use super::spec::Begin;
use super::{Client, ClientError, MapRun, MapSpec, NoResult};
use crate::bus::Bus;
use crate::bus::operate::control::{CTL_RESULTS, ControlReply};
use crate::bus::publish::RetryDeadline;
use crate::bus::read::job_results::JobResults;
use crate::bus::read::jobs::{JobEntry, LookedThrough};
use crate::bus::topology::stream_state;
use crate::job::{JobRecord, JobState, JobThen};
use crate::limits::{BATCH_ITEMS_MAX, HEARTBEAT_LOST_AFTER, HISTORY_WITHIN, RESUME_QUIET};
use crate::outcome::Failure;
use crate::payload::PayloadRef;
use crate::wire::streams::STREAM_RESULTS;
use crate::wire::subject::{TaskSubject, check_token};

/// Asked of a collector: the ends of a job's tasks from an index on.
#[derive(Debug, Serialize, Deserialize)]
pub struct History {
    /// The job.
    pub job: String,
    /// Its epoch.
    pub epoch: u32,
    /// The first index.
    pub from: u64,
}

/// What a collector answers: some ends, by index.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HistoryRows<R> {
    /// The ends.
    pub rows: Vec<R>,
    /// Where to go on; none when that was all.
    pub next: Option<u64>,
}

/// One end.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    index: Option<u64>,
    status: String,
    result: Option<Box<RawValue>>,
    /// A result that is no JSON for some.
    result_text: Option<String>,
    failure: Option<Failure>,
    /// Where a large result lies.
    #[serde(rename = "ref")]
    stored: Option<PayloadRef>,
}

impl Row {
    /// The index and the end; none for what has not ended.
    pub(super) fn end(self) -> Option<(u64, Ended)> {
        let text = |text: String| RawValue::from_string(text).ok();
        if let Some(at) = self.stored.filter(|_| self.status == "done") {
            return Some((self.index?, Ended::Stored(at)));
        }
        let end = match self.status.as_str() {
            // A null is read as none.
            "done" => Ok(self.result.or_else(|| text(self.result_text?)).unwrap_or_else(|| RawValue::NULL.to_owned())),
            "dead" => Err(NoResult::Dead(self.failure.unwrap_or_else(|| Failure::new("error", "no reason kept")))),
            "cancelled" => Err(NoResult::Cancelled),
            _ => return None,
        };
        Some((self.index?, Ended::Here(end)))
    }
}

/// What is left to do before anything is published.
pub(super) enum CatchUp {
    /// The collector is asked, page by page; then [`CatchUp::Backlog`].
    History {
        asked: History,
        answer: Option<BoxFuture<'static, Result<HistoryRows<Row>, ClientError>>>,
        stored: Ranges,
    },
    /// What RESULTS holds of it is read.
    Backlog { stored: Ranges },
    /// These are stored, and are not published again.
    Known { stored: Ranges },
    /// Nothing is.
    Done,
}

impl CatchUp {
    fn stored(&mut self) -> Option<&mut Ranges> {
        match self {
            Self::History { stored, .. } | Self::Backlog { stored } | Self::Known { stored } => Some(stored),
            Self::Done => None,
        }
    }

    /// Whether it may be published.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Known { .. } | Self::Done)
    }

    /// Whether what RESULTS holds is being read.
    pub(super) fn reads_backlog(&self) -> bool {
        matches!(self, Self::Backlog { .. })
    }

    /// Whether this item of the input is stored already.
    pub(super) fn has(&mut self, index: u64) -> bool {
        self.stored().is_some_and(|stored| stored.has(index))
    }

    /// An item at or above this index that is stored.
    pub(super) fn beyond(&mut self, index: u64) -> Option<u64> {
        self.stored()?.last().filter(|last| *last >= index)
    }

    /// An item ended that was not read from the input yet; false when that cannot be.
    pub(super) fn note(&mut self, index: u64) -> bool {
        let stored = self.stored();
        stored.is_some_and(|stored| {
            stored.add(index, index.saturating_add(1));
            true
        })
    }

    /// So many messages of RESULTS are left to read.
    pub(super) fn note_backlog(&mut self, left: u64) {
        if let (Self::Backlog { stored }, 0) = (&mut *self, left) {
            *self = Self::Known { stored: std::mem::take(stored) };
        }
    }

    /// The next ends that the collector has kept.
    ///
    /// # Cancel safety
    /// Safe: the question is kept.
    pub(super) async fn rows(&mut self, bus: &Bus) -> Result<Vec<Row>, ClientError> {
        let Self::History { asked, answer, stored } = self else { return std::future::pending().await };
        let question = History { job: asked.job.clone(), ..*asked };
        let page = answer.get_or_insert_with(|| Box::pin(ask(bus.clone(), question))).await?;
        *answer = None;
        match page.next {
            Some(next) => asked.from = next,
            None => *self = Self::Backlog { stored: std::mem::take(stored) },
        }
        Ok(page.rows)
    }
}

async fn ask(bus: Bus, asked: History) -> Result<HistoryRows<Row>, ClientError> {
    let failed = |reason: String| ClientError::History { job: asked.job.clone(), reason };
    match bus.request(CTL_RESULTS, &asked, HISTORY_WITHIN).await.map_err(|e| failed(e.to_string()))? {
        ControlReply::Error(reason) => Err(failed(reason)),
        ControlReply::Ok(page) => serde_json::from_str(page.get()).map_err(|e| failed(e.to_string())),
    }
}

impl Client {
    /// A run of a new job, or of one that was begun before and may go on; with `publish_only` it hands out nothing.
    pub(super) async fn start_run(
        &self,
        spec: MapSpec,
        publish_only: bool,
        input: Input,
    ) -> Result<MapRun, ClientError> {
        let job = spec.job.clone().unwrap_or_else(crate::random_token);
        check_token("job", &job)?;
        TaskSubject::new(&spec.queue, &spec.kind, None)?;
        if let Some(then) = &spec.then {
            TaskSubject::new(then.queue.as_ref().unwrap_or(&spec.queue), &then.kind, None)?;
        }
        let batch = match spec.batch {
            Batch::Fixed(items) => Batch::Fixed(items.clamp(1, BATCH_ITEMS_MAX)),
            Batch::Auto => Batch::Auto,
        };
        let spec = MapSpec { batch, ..spec };
        self.check_batch(&spec.queue, batch, RetryDeadline::Unlimited).await?;
        let results = stream_state(&self.bus, STREAM_RESULTS).await?;
        let Begun { entry, before } = self.begin(&job, &spec, results.last_seq).await?;
        let record = entry.record.clone();
        let Some(before) = before else {
            let reader = JobResults::start_from(&self.bus, &job, record.results_after + 1).await?;
            let mut run = MapRun::new(self, spec, publish_only, Keeper::start(&self.bus, entry), reader);
            run.input = Some(input);
            return Ok(run);
        };
        let keeper = Keeper::go_on(&self.bus, entry);
        let stored = self.stored(&record, &before).await?;
        // After the look at what waits: what was not there any more has ended, and is told here.
        let reader = JobResults::start_from(&self.bus, &job, record.results_after + 1).await?;
        let mut run = MapRun::new(self, spec, publish_only, keeper, reader);
        run.next_index = record.published;
        run.input = Some(input);
        run.skip(&record).await?;
        // Looked at last: what is purged from now on was not before.
        let all_there = stream_state(&self.bus, STREAM_RESULTS).await?.first_seq <= record.results_after + 1;
        let from = if publish_only { record.published } else { 0 };
        let asked = History { job, epoch: record.epoch, from };
        run.catch_up = match all_there {
            true => CatchUp::Backlog { stored },
            false => CatchUp::History { asked, answer: None, stored },
        };
        Ok(run)
    }

    /// Writes the record: of a new job or epoch, or with this process as its producer.
    async fn begin(&self, job: &str, spec: &MapSpec, results_after: u64) -> Result<Begun, ClientError> {
        loop {
            let found = self.bus.job(job).await?;
            let (revision, before) = found.map_or((0, None), |entry| (entry.revision, Some(entry.record)));
            let goes_on = before.as_ref().is_some_and(|b| b.state != JobState::Cancelled && spec.begin != Begin::Again);
            let now = crate::now_ms();
            let record = match &before {
                Some(_) if goes_on && spec.begin == Begin::New => {
                    return Err(ClientError::JobExists { job: job.to_owned() });
                }
                Some(before) if goes_on && (before.queue != spec.queue || before.kind != spec.kind) => {
                    let JobRecord { job, kind, queue, .. } = before.clone();
                    return Err(ClientError::OtherJob { job, kind, queue });
                }
                Some(before) if goes_on => {
                    JobRecord { producer: crate::random_token(), heartbeat_ms: now, ..before.clone() }
                }
                _ => JobRecord {
                    job: job.to_owned(),
                    queue: spec.queue.clone(),
                    kind: spec.kind.clone(),
                    epoch: before.as_ref().map_or(1, |before| before.epoch + 1),
                    state: JobState::Open,
                    total: None,
                    then: spec.then.as_ref().map(|then| JobThen {
                        queue: then.queue.as_ref().unwrap_or(&spec.queue).clone(),
                        kind: then.kind.clone(),
                    }),
                    published: 0,
                    fingerprint: None,
                    results_after,
                    producer: crate::random_token(),
                    created_ms: now,
                    heartbeat_ms: now,
                },
            };
            if let Some(revision) = self.bus.write_job(&record, revision).await? {
                let before = before.filter(|_| goes_on);
                return Ok(Begun { entry: JobEntry { record, revision }, before });
            }
        }
    }

    /// What of the job lies in TASKS and DUE beyond its watermark.
    async fn stored(&self, record: &JobRecord, before: &JobRecord) -> Result<Ranges, ClientError> {
        let mut stored = Ranges::default();
        let mut looked = LookedThrough::default();
        let mut look = async |stored: &mut Ranges| {
            looked = self.bus.look_for_tasks(record, looked, |from, to| stored.add(from, to)).await?;
            stored.forget_below(record.published);
            Ok::<u64, ClientError>(stored.len())
        };
        let mut count = look(&mut stored).await?;
        let silent_ms = u128::try_from(crate::now_ms().saturating_sub(before.heartbeat_ms)).unwrap_or(0);
        if before.state == JobState::Open && silent_ms < HEARTBEAT_LOST_AFTER.as_millis() {
            loop {
                tokio::time::sleep(RESUME_QUIET).await;
                let now = look(&mut stored).await?;
                if now == count {
                    break;
                }
                count = now;
            }
        }
        Ok(stored)
    }
}

/// A record as written, and as it was before where the job goes on.
struct Begun {
    entry: JobEntry,
    before: Option<JobRecord>,
}

impl MapRun {
    /// Reads the part of the input that is known to be stored, and checks that it is the same.
    async fn skip(&mut self, record: &JobRecord) -> Result<(), ClientError> {
        let mut fingerprint = Sha256::default();
        for index in 0..record.published {
            let Some(input) = &mut self.input else { break };
            let value = input.next().await.transpose();
            let Some(value) = value.map_err(|reason| ClientError::Input { index, reason })? else {
                let why = format!("it ends here, {} were published before", record.published);
                return Err(self.other_input(index, &why));
            };
            add_value(&mut fingerprint, &value);
        }
        if record.fingerprint.as_ref().is_some_and(|before| *before != shown(&fingerprint)) {
            return Err(self.other_input(record.published, "an item before this differs"));
        }
        self.keeper.read_up_to_watermark(fingerprint.clone());
        self.fingerprint = fingerprint;
        Ok(())
    }
}
