//! Where a task is now, for a person who looks for it: nothing of the flow of tasks depends on this. In the collector's
//! role.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use crate::bus::consume::ownership;
use crate::bus::consume::ownership::OwnershipQuery;
use crate::bus::error::BusError;
use crate::bus::read::later::InLater;
use crate::bus::topology::stream_state;
use crate::bus::{Bus, from_nats};
use crate::task::{Arrival, Origin, Task};
use crate::wire::headers::{HEADER_ATTEMPT, HEADER_SCHEDULE, Headers};
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::wire::subject;
use crate::wire::subject::TaskSubject;

/// Messages of a stream that are read at the most.
const READ_MAX: u64 = 200_000;
/// Messages in one answer of the server.
const PAGE: u64 = 2000;
/// Messages that are read one by one, where a page cannot be read at once.
const RAW_PAGE: usize = 500;
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "place")]
pub enum TaskLocation {
    /// A worker holds it for longer than a second.
    Held {
        /// Its queue.
        queue: String,
        /// Its kind.
        kind: String,
        /// The worker's name.
        worker: String,
    },
    /// It waits for its time.
    Scheduled {
        /// Its queue.
        queue: String,
        /// Its kind.
        kind: String,
        /// The attempt that it waits for.
        attempt: u32,
        /// When: RFC 3339, or another schedule as it was given.
        at: String,
    },
    /// It lies in TASKS, or was published again into DUE.
    Stored {
        /// Its queue.
        queue: String,
        /// Its kind.
        kind: String,
        /// Messages of its queue before it that are not taken yet; none when it was handed out already.
        ahead: Option<u64>,
    },
}

/// Where the tasks of an id are.
#[derive(Debug, Default)]
pub struct TaskLocations {
    /// By queue and kind.
    pub found: BTreeMap<(String, String), TaskLocation>,
    /// Whether everything that waits was read.
    pub looked_at_all: bool,
}

/// Which tasks are looked for.
struct Wanted<'a> {
    id: &'a str,
    /// Of which message it may be an item.
    original_id: &'a str,
    queue: Option<&'a str>,
    kind: Option<&'a str>,
}

impl Wanted<'_> {
    /// Whether there is one such task at the most.
    fn is_one(&self) -> bool {
        self.queue.is_some() && self.kind.is_some()
    }

    fn is(&self, task: &Task) -> bool {
        let (id, original_id, subject) = (self.id, self.original_id, &task.subject);
        self.queue.is_none_or(|queue| queue == subject.queue)
            && self.kind.is_none_or(|kind| kind == subject.kind)
            && (task.original_id == id || task.original_id == original_id || covers(task, id))
    }
}

/// A message of DUE.
pub(crate) struct DueMessage {
    pub(crate) seq: u64,
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

impl Bus {
    /// Looks for the tasks of an id: `queue` and `kind` where they are known. With both it stops at the first place.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn find(&self, id: &str, queue: Option<&str>, kind: Option<&str>) -> Result<TaskLocations, BusError> {
        let original_id = id
            .split_once('/')
            .filter(|(_, item)| item.parse::<u32>().is_ok())
            .map_or(id, |(original_id, _)| original_id);
        let wanted = Wanted { id, original_id, queue, kind };
        let mut locations = TaskLocations { looked_at_all: true, ..TaskLocations::default() };
        // First: what leaves it while this looks was stored in DUE before.
        self.find_in_later(&wanted, &mut locations).await?;
        self.find_scheduled(&wanted, &mut locations).await?;
        if !wanted.is_one() || locations.found.is_empty() {
            self.find_held(&wanted, &mut locations).await?;
        }
        for origin in [Origin::Due, Origin::Tasks] {
            if !wanted.is_one() || locations.found.is_empty() {
                self.find_stored(origin, &wanted, &mut locations).await?;
            }
        }
        Ok(locations)
    }

    async fn find_scheduled(&self, wanted: &Wanted<'_>, locations: &mut TaskLocations) -> Result<(), BusError> {
        let (queue, kind) = (wanted.queue.unwrap_or("*"), wanted.kind.unwrap_or("*"));
        for id in [wanted.id, wanted.original_id] {
            let filter = format!("sched.{queue}.{kind}.*.{}", subject::key(id));
            let page = self.subjects(STREAM_DUE, &filter, 0).await?;
            for subject in page.state.subjects.unwrap_or_default().into_keys() {
                let Some(found) = self.scheduled(&subject).await? else { continue };
                locations.note(found);
            }
        }
        Ok(())
    }

    /// Looks at what a producer service is about to move.
    async fn find_in_later(&self, wanted: &Wanted<'_>, locations: &mut TaskLocations) -> Result<(), BusError> {
        let (waiting, all) = self.in_later(&format!("later.{}.>", wanted.queue.unwrap_or("*"))).await?;
        for InLater { task, due_ms, .. } in waiting.into_iter().filter(|waiting| wanted.is(&waiting.task)) {
            let at = due_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            let at = at.map_or_else(|| "an unknown time".to_owned(), |at| at.to_string());
            let TaskSubject { queue, kind, .. } = task.subject;
            locations.note(TaskLocation::Scheduled { queue, kind, attempt: 1, at });
        }
        locations.looked_at_all &= all;
        Ok(())
    }

    async fn find_held(&self, wanted: &Wanted<'_>, locations: &mut TaskLocations) -> Result<(), BusError> {
        let queues = match wanted.queue {
            Some(queue) => vec![queue.to_owned()],
            // Where there is no consumer, nothing was given out.
            None => {
                let served = self.standing().await?.listed.into_iter().filter(|state| state.consumers > 0);
                served.map(|state| state.queue).collect()
            }
        };
        for queue in queues {
            for original_id in [wanted.id, wanted.original_id] {
                let query = OwnershipQuery {
                    queue: queue.clone(),
                    kind: wanted.kind.map(str::to_owned),
                    original_id: original_id.to_owned(),
                    id: wanted.id.to_owned(),
                    items: None,
                    attempt: 1,
                };
                for (kind, worker) in ownership::find_owners(self, &query).await {
                    locations.note(TaskLocation::Held { queue: queue.clone(), kind, worker });
                }
                if wanted.id == wanted.original_id {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn scheduled(&self, filter: &str) -> Result<Option<TaskLocation>, BusError> {
        let Some(found) = self.last_of_due(filter).await? else { return Ok(None) };
        let get = |name: &str| found.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let (Some(at), Some(subject)) = (get(HEADER_SCHEDULE), TaskSubject::parse_sched(&found.subject)) else {
            return Ok(None);
        };
        Ok(Some(TaskLocation::Scheduled {
            queue: subject.queue,
            kind: subject.kind,
            attempt: get(HEADER_ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or(1),
            at: at.trim_start_matches("@at ").to_owned(),
        }))
    }

    /// The task that lies at a sequence of TASKS or LATER, or of DUE where it waits for its time; none when it is gone, or the server
    /// does not tell in time.
    pub(crate) async fn task_at(&self, stream: &str, seq: u64) -> Option<Task> {
        let origin = if stream == STREAM_DUE { Origin::Due } else { Origin::Tasks };
        let request = Bytes::from(json!({ "seq": seq }).to_string());
        let answer = self.client.request(format!("$JS.API.DIRECT.GET.{stream}"), request);
        let message = tokio::time::timeout(ANSWER_WITHIN, answer).await.ok()?.ok()?;
        let headers = from_nats(message.headers.as_ref());
        let subject = headers.iter().find(|(name, _)| name == "Nats-Subject").map(|(_, subject)| subject.as_str())?;
        let subject = TaskSubject::parse_sched(subject).map_or_else(|| subject.to_owned(), |subject| subject.due());
        let arrival = Arrival { origin, epoch: "", seq, stored_ms: 0 };
        Some(Task::parse(&subject, &headers, message.payload, arrival))
    }

    /// The newest message of DUE on a subject, which may have wildcards.
    pub(crate) async fn last_of_due(&self, filter: &str) -> Result<Option<DueMessage>, BusError> {
        let request = json!({ "last_by_subj": filter }).to_string();
        let answer = self.client.request(format!("$JS.API.DIRECT.GET.{STREAM_DUE}"), Bytes::from(request)).await;
        let message = answer.map_err(|e| BusError::new("the read of what waits for its time", &e))?;
        let headers = from_nats(message.headers.as_ref());
        let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let seq = get("Nats-Sequence").and_then(|s| s.parse().ok());
        let payload = message.payload;
        Ok(seq.zip(get("Nats-Subject")).map(|(seq, subject)| DueMessage { seq, subject, headers, payload }))
    }

    /// Looks through a stream; from the id's own place where it names it, and first at its job where it has one.
    async fn find_stored(
        &self,
        origin: Origin,
        wanted: &Wanted<'_>,
        locations: &mut TaskLocations,
    ) -> Result<(), BusError> {
        let (stream, prefix) = match origin {
            Origin::Due => (STREAM_DUE, "due"),
            Origin::Tasks => (STREAM_TASKS, "tasks"),
        };
        let state = stream_state(self, stream).await?;
        let own = wanted.original_id.strip_prefix(&format!("{}-", state.epoch)).and_then(|seq| seq.parse().ok());
        let job = wanted
            .id
            .rsplit_once('/')
            .and_then(|(original_id, _)| original_id.split('/').next()?.rsplit_once('.'))
            .map(|(job, _)| job);
        let (queue, kind) = (wanted.queue.unwrap_or("*"), wanted.kind.unwrap_or("*"));
        let all = format!("{prefix}.{queue}.>");
        let filters = match job.filter(|_| own.is_none()) {
            Some(job) => vec![format!("{prefix}.{queue}.{kind}.j-{job}"), all],
            None => vec![all],
        };
        for filter in filters {
            let (mut from, mut looked_at) = (own.unwrap_or(state.first_seq), 0);
            while from <= state.last_seq && looked_at < READ_MAX {
                let page = self.page(stream, &filter, from).await?;
                let Some((last, _, _)) = page.last() else { break };
                (from, looked_at) = (last + 1, looked_at + page.len() as u64);
                for (seq, subject, headers) in page {
                    let arrival = Arrival { origin, epoch: &state.epoch, seq, stored_ms: 0 };
                    let task = Task::parse(&subject, &headers, Bytes::new(), arrival);
                    if wanted.is(&task) {
                        locations.note(match origin {
                            Origin::Tasks => self.placed(task.subject, seq).await?,
                            Origin::Due => {
                                let TaskSubject { queue, kind, .. } = task.subject;
                                TaskLocation::Stored { queue, kind, ahead: None }
                            }
                        });
                        if wanted.is_one() {
                            return Ok(());
                        }
                    }
                }
                if own.is_some() {
                    break;
                }
            }
            locations.looked_at_all &= looked_at < READ_MAX;
        }
        Ok(())
    }

    async fn placed(&self, subject: TaskSubject, seq: u64) -> Result<TaskLocation, BusError> {
        let name = crate::wire::streams::durable(&subject.queue);
        let consumer = self
            .js
            .get_consumer_from_stream::<async_nats::jetstream::consumer::pull::Config, _, _>(name, STREAM_TASKS)
            .await;
        // Without a consumer no worker has ever served the queue: all of it waits.
        let ahead = match consumer {
            Err(_) => Some(0),
            Ok(consumer) => {
                let info = consumer.cached_info();
                let delivered = info.delivered.stream_sequence;
                (seq > delivered).then(|| (seq - delivered - 1).min(info.num_pending.saturating_sub(1)))
            }
        };
        Ok(TaskLocation::Stored { queue: subject.queue, kind: subject.kind, ahead })
    }

    /// Messages of a stream from a sequence on: their sequence, subject and headers. Where one of them costs the connection, because
    /// the NATS client cannot read it, they are read raw, and that one has no headers.
    pub(in crate::bus) async fn page(
        &self,
        stream: &str,
        filter: &str,
        from: u64,
    ) -> Result<Vec<(u64, String, Headers)>, BusError> {
        let before = self.connection.borrow().changes;
        match self.direct_page(stream, filter, from).await {
            Err(_) if self.connection.borrow().changes != before => self.raw_page(stream, filter, from).await,
            page => page,
        }
    }

    async fn raw_page(
        &self,
        stream: &str,
        filter: &str,
        mut from: u64,
    ) -> Result<Vec<(u64, String, Headers)>, BusError> {
        let mut page = Vec::new();
        while page.len() < RAW_PAGE
            && let Some(message) = self.next_raw_message(stream, from, filter).await?
        {
            from = message.seq + 1;
            let headers = message.headers().unwrap_or_default();
            page.push((message.seq, message.subject, headers));
        }
        Ok(page)
    }

    async fn direct_page(
        &self,
        stream: &str,
        filter: &str,
        from: u64,
    ) -> Result<Vec<(u64, String, Headers)>, BusError> {
        let failed = |e: &(dyn std::error::Error + 'static)| BusError::new("the read of what waits", e);
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|e| failed(&e))?;
        let request = json!({ "seq": from, "next_by_subj": filter, "batch": PAGE, "max_bytes": 8 * 1024 * 1024 });
        let request = Bytes::from(Value::to_string(&request));
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        self.client.publish_with_reply(subject, inbox, request).await.map_err(|e| failed(&e))?;
        let mut page = Vec::new();
        loop {
            let message = tokio::time::timeout(ANSWER_WITHIN, answers.next()).await;
            let message = message.map_err(|late| failed(&late))?;
            let message = message.ok_or_else(|| BusError::closed("the read of what waits"))?;
            let headers = from_nats(message.headers.as_ref());
            let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            match (get("Nats-Sequence").and_then(|s| s.parse().ok()), get("Nats-Subject")) {
                (Some(seq), Some(subject)) => page.push((seq, subject, headers)),
                // The end of the answer, or no message at all: only then is the page complete.
                _ if matches!(message.status.map(|s| s.as_u16()), Some(204 | 404)) => break,
                _ => {
                    let reason = message.description.unwrap_or_else(|| "no such answer is known".to_owned());
                    return Err(BusError::refused("the read of what waits", reason));
                }
            }
        }
        Ok(page)
    }
}

impl TaskLocations {
    /// Keeps a place where nothing was found of its queue and kind before.
    fn note(&mut self, place: TaskLocation) {
        let (TaskLocation::Held { queue, kind, .. }
        | TaskLocation::Scheduled { queue, kind, .. }
        | TaskLocation::Stored { queue, kind, .. }) = &place;
        self.found.entry((queue.clone(), kind.clone())).or_insert(place);
    }
}

/// Whether a batch of a job has the item that is addressed as `<job>.<epoch>/<index>`.
fn covers(task: &Task, id: &str) -> bool {
    let Some((original_id, index)) = id.rsplit_once('/') else { return false };
    let (Ok(index), Some(first)) = (index.parse::<u64>(), task.index) else { return false };
    task.original_id.starts_with(&format!("{original_id}/"))
        && (first..first + u64::from(task.items_len())).contains(&index)
}
