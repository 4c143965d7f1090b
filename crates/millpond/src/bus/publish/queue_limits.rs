//! Bounded queues: how many tasks may wait in a queue (the bucket `millpond_queues`), and how many do.
//! `bounded` holds publishers to the limit, the collector writes it.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::operate::queues::{AllQueues, QueueState};
use crate::bus::read::buckets;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::streams::{BUCKET_QUEUES, STREAM_TASKS};

/// How long the server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What is set for a queue.
///
/// ```
/// let text = r#"{"max_waiting":10}"#;
/// let settings: millpond::bus::publish::queue_limits::QueueSettings = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&settings).unwrap(), text);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSettings {
    /// Tasks that may wait in it, those that workers hold included; none: any number.
    pub max_waiting: Option<u64>,
}

impl Bounded for QueueSettings {
    fn check(&self) -> Result<(), String> {
        bounds::count("max_waiting", self.max_waiting.unwrap_or(0))
    }
}

/// How full a bounded queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFill {
    /// Tasks that wait, those that workers hold included.
    pub waiting: u64,
    /// Tasks that may wait.
    pub max_waiting: u64,
}

/// One page of the subjects of a stream.
#[derive(Deserialize)]
pub(in crate::bus) struct SubjectsPage {
    #[serde(default)]
    pub(in crate::bus) total: usize,
    pub(in crate::bus) state: Subjects,
}

#[derive(Deserialize)]
pub(in crate::bus) struct Subjects {
    pub(in crate::bus) subjects: Option<HashMap<String, u64>>,
}

impl Bus {
    /// What is set for a queue; none when the server does not answer. Where the bucket is missing (a `setup` of an
    /// older version), nothing is set.
    pub(in crate::bus) async fn queue_settings(&self, queue: &str) -> Option<QueueSettings> {
        let subject = format!("$JS.API.DIRECT.GET.KV_{BUCKET_QUEUES}.$KV.{BUCKET_QUEUES}.{queue}");
        match tokio::time::timeout(ANSWER_WITHIN, self.client.request(subject, Bytes::new())).await {
            // No such key has a status and no payload.
            Ok(Ok(found)) => Some(decode(&found.payload).unwrap_or_default()),
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                let key = format!("$KV.{BUCKET_QUEUES}.{queue}");
                self.stream_without_leader(&key).await.is_none().then(QueueSettings::default)
            }
            Ok(Err(_)) => None,
            Err(_) => None,
        }
    }

    /// Tasks of a queue in TASKS, those that workers hold included; what is there beyond `enough` may be left out.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn count_waiting(&self, queue: &str, enough: u64) -> Result<u64, BusError> {
        let (mut waiting, mut offset) = (0, 0);
        loop {
            // One request a page of 100 000 subjects; the client's own reader always makes one more.
            let page = self.subjects(STREAM_TASKS, &format!("tasks.{queue}.>"), offset).await?;
            let subjects = page.state.subjects.unwrap_or_default();
            offset += subjects.len();
            waiting += subjects.values().sum::<u64>();
            if subjects.is_empty() || offset >= page.total || waiting >= enough {
                return Ok(waiting);
            }
        }
    }

    /// One page of the subjects of a stream, 100 000 at the most.
    pub(in crate::bus) async fn subjects(
        &self,
        stream: &str,
        filter: &str,
        offset: usize,
    ) -> Result<SubjectsPage, BusError> {
        let failed = |error: &(dyn std::error::Error + 'static)| BusError::new(stream, error);
        let request = Bytes::from(json!({ "subjects_filter": filter, "offset": offset }).to_string());
        let answer = self.client.request(format!("$JS.API.STREAM.INFO.{stream}"), request);
        let answer =
            tokio::time::timeout(ANSWER_WITHIN, answer).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        serde_json::from_slice(&answer.payload).map_err(|e| failed(&e))
    }

    /// The keys of a bucket that are single tokens, 100 000 at the most.
    pub(in crate::bus) async fn keys(&self, bucket: &str) -> Result<Vec<String>, BusError> {
        let page = self.subjects(&format!("KV_{bucket}"), &format!("$KV.{bucket}.>"), 0).await?;
        let subjects = page.state.subjects.unwrap_or_default().into_keys();
        let key = |subject: String| Some(subject.strip_prefix(&format!("$KV.{bucket}."))?.to_owned());
        Ok(subjects.filter_map(key).filter(|key| !key.contains('.')).collect())
    }

    /// Sets how many tasks may wait in a queue; publishers know it within about a second. In the collector's role.
    ///
    /// # Errors
    /// [`BusError`]; most likely setup has not run since millpond was updated.
    pub async fn set_queue(&self, queue: &str, settings: QueueSettings) -> Result<(), BusError> {
        let store = buckets::open(self, BUCKET_QUEUES).await?;
        let text = Bytes::from(serde_json::to_vec(&settings).unwrap_or_default());
        store.put(queue, text).await.map_err(|e| BusError::new(BUCKET_QUEUES, &e))?;
        Ok(())
    }

    /// As [`Bus::queues`], with limits, and with bounded queues that have no consumer yet.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn queues_with_limits(&self) -> Result<AllQueues, BusError> {
        let mut queues = self.queues().await?;
        for queue in self.keys(BUCKET_QUEUES).await? {
            let Some(QueueSettings { max_waiting: Some(max) }) = self.queue_settings(&queue).await else { continue };
            if let Some(known) = queues.listed.iter_mut().find(|known| known.queue == queue) {
                known.max_waiting = Some(max);
                continue;
            }
            let waiting = self.count_waiting(&queue, u64::MAX).await?;
            if waiting > 0 && queues.unlisted.queues > 0 {
                queues.unlisted.queues -= 1;
                queues.unlisted.waiting = queues.unlisted.waiting.saturating_sub(waiting);
            }
            queues.listed.push(QueueState { queue, waiting, max_waiting: Some(max), ..QueueState::default() });
        }
        queues.listed.sort_by(|a, b| a.queue.cmp(&b.queue));
        Ok(queues)
    }
}
