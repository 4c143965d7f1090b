//! Where a task is now, for a person who looks for it: nothing of the flow of tasks depends on this. In the collector's
//! role.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use crate::bus::consume::ownership;
use crate::bus::consume::ownership::OwnershipQuery;
use crate::bus::error::BusError;
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
    /// Neither held nor waiting, as far as was read.
    Nowhere {
        /// Whether everything that waits was read.
        looked_at_all: bool,
    },
}

impl TaskLocation {
    /// Its queue, where it was found.
    #[must_use]
    pub fn queue(&self) -> Option<&str> {
        match self {
            Self::Held { queue, .. } | Self::Scheduled { queue, .. } | Self::Stored { queue, .. } => Some(queue),
            Self::Nowhere { .. } => None,
        }
    }
}

/// A message of DUE, without its payload.
pub(in crate::bus) struct DueMessage {
    pub(in crate::bus) seq: u64,
    pub(in crate::bus) subject: String,
    pub(in crate::bus) headers: Headers,
}

impl Bus {
    /// Looks for a task by its id: `queue` where it is known, and of which original message it is a part.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn find(&self, id: &str, queue: Option<&str>) -> Result<TaskLocation, BusError> {
        let original_id = id
            .split_once('/')
            .filter(|(_, item)| item.parse::<u32>().is_ok())
            .map_or(id, |(original_id, _)| original_id);
        let any = queue.unwrap_or("*");
        for key in [id, original_id] {
            if let Some(found) = self.scheduled(&format!("sched.{any}.*.*.{}", subject::key(key))).await? {
                return Ok(found);
            }
        }
        let mut queues: Vec<String> = self.queues().await?.into_iter().map(|q| q.queue).collect();
        queues.retain(|q| queue.is_none_or(|wanted| wanted == q));
        for queue in &queues {
            for original_id in [id, original_id] {
                let question = OwnershipQuery {
                    queue: queue.clone(),
                    original_id: original_id.to_owned(),
                    id: id.to_owned(),
                    items: None,
                    attempt: 1,
                };
                if let Some(worker) = ownership::find_owner(self, &question).await {
                    return Ok(TaskLocation::Held { queue: queue.clone(), worker });
                }
            }
        }
        let mut looked_at_all = true;
        for origin in [Origin::Due, Origin::Tasks] {
            match self.stored(origin, id, original_id, queue).await? {
                TaskLocation::Nowhere { looked_at_all: all } => looked_at_all &= all,
                found => return Ok(found),
            }
        }
        Ok(TaskLocation::Nowhere { looked_at_all })
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

    /// The newest message of DUE on a subject, which may have wildcards.
    pub(in crate::bus) async fn last_of_due(&self, filter: &str) -> Result<Option<DueMessage>, BusError> {
        let request = json!({ "last_by_subj": filter }).to_string();
        let answer = self.client.request(format!("$JS.API.DIRECT.GET.{STREAM_DUE}"), Bytes::from(request)).await;
        let message = answer.map_err(|e| BusError::new("the read of what waits for its time", &e))?;
        let headers = from_nats(message.headers.as_ref());
        let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let seq = get("Nats-Sequence").and_then(|s| s.parse().ok());
        Ok(seq.zip(get("Nats-Subject")).map(|(seq, subject)| DueMessage { seq, subject, headers }))
    }

    /// Looks through a stream; from the id's own place where it names it, and only at its job where it has one.
    async fn stored(
        &self,
        origin: Origin,
        id: &str,
        original_id: &str,
        queue: Option<&str>,
    ) -> Result<TaskLocation, BusError> {
        let (stream, prefix) = match origin {
            Origin::Due => (STREAM_DUE, "due"),
            Origin::Tasks => (STREAM_TASKS, "tasks"),
        };
        let state = stream_state(self, stream).await?;
        let own = original_id.strip_prefix(&format!("{}-", state.epoch)).and_then(|seq| seq.parse::<u64>().ok());
        let job = id
            .rsplit_once('/')
            .and_then(|(original_id, _)| original_id.split('/').next()?.rsplit_once('.'))
            .map(|(job, _)| job);
        let any = queue.unwrap_or("*");
        let filters = match job.filter(|_| own.is_none()) {
            Some(job) => vec![format!("{prefix}.{any}.*.j-{job}"), format!("{prefix}.{any}.>")],
            None => vec![format!("{prefix}.{any}.>")],
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
                    if task.original_id == id || task.original_id == original_id || covers(&task, id) {
                        return match origin {
                            Origin::Tasks => self.placed(task.subject, seq).await,
                            Origin::Due => {
                                let TaskSubject { queue, kind, .. } = task.subject;
                                Ok(TaskLocation::Stored { queue, kind, ahead: None })
                            }
                        };
                    }
                }
                if own.is_some() {
                    break;
                }
            }
            if looked_at >= READ_MAX {
                return Ok(TaskLocation::Nowhere { looked_at_all: false });
            }
        }
        Ok(TaskLocation::Nowhere { looked_at_all: true })
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

/// Whether a batch of a job has the item that is addressed as `<job>.<epoch>/<index>`.
fn covers(task: &Task, id: &str) -> bool {
    let Some((original_id, index)) = id.rsplit_once('/') else { return false };
    let (Ok(index), Some(first)) = (index.parse::<u64>(), task.index) else { return false };
    task.original_id.starts_with(&format!("{original_id}/"))
        && (first..first + u64::from(task.items_len())).contains(&index)
}
