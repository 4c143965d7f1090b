//! Streams that stand still: nobody leads them, as during an election or while too few nodes are up, or TASKS is read and stores
//! nothing any more. docs/operate.md says what to do.

use std::time::{Duration, Instant};

use async_nats::Request;
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::Mutex;

use crate::bus::publish::stored_already::question;
use crate::bus::{Bus, Role};
use crate::wire::streams::STREAM_TASKS;
use crate::wire::subject::TASKS_PROBE;

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long what was seen is believed.
const KNOWN_FOR: Duration = Duration::from_secs(2);

/// Error code of a server that has no stream of the name.
const STREAM_NOT_FOUND: u64 = 10059;

#[derive(Deserialize, Default)]
struct Answer {
    error: Option<AnswerError>,
    config: Option<IgnoredAny>,
    /// One server has none.
    cluster: Option<AnswerCluster>,
}

#[derive(Deserialize)]
struct AnswerCluster {
    leader: Option<String>,
}

impl Answer {
    fn is_led(&self) -> bool {
        let leader = |cluster: &AnswerCluster| cluster.leader.as_ref().is_some_and(|leader| !leader.is_empty());
        self.config.is_some() && self.cluster.as_ref().is_none_or(leader)
    }
}

#[derive(Deserialize)]
struct AnswerError {
    err_code: u64,
}

/// A stream that stands still, and what to do, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standstill {
    /// The stream.
    pub stream: &'static str,
    /// The sentence.
    pub sentence: String,
}

/// What stands still, for who asks more often than that changes.
pub struct StandstillWatch {
    bus: Bus,
    role: Role,
    streams: &'static [&'static str],
    seen: Mutex<Option<(Instant, Option<String>)>>,
}

impl StandstillWatch {
    /// Watches these streams through a connection in this role.
    #[must_use]
    pub fn new(bus: &Bus, role: Role, streams: &'static [&'static str]) -> Self {
        Self { bus: bus.clone(), role, streams, seen: Mutex::new(None) }
    }

    /// Of the first stream that stands still; none while all go on.
    pub async fn complaint(&self) -> Option<String> {
        let mut seen = self.seen.lock().await;
        if let Some((at, complaint)) = &*seen
            && at.elapsed() < KNOWN_FOR
        {
            return complaint.clone();
        }
        let found = self.bus.standstills(self.role, self.streams).await;
        let complaint = found.into_iter().next().map(|one| one.sentence);
        *seen = Some((Instant::now(), complaint.clone()));
        complaint
    }
}

impl Bus {
    /// Which of these streams stand still, as far as a program of this role can see.
    pub async fn standstills(&self, role: Role, streams: &[&'static str]) -> Vec<Standstill> {
        let found = join_all(streams.iter().map(|stream| self.standstill(role, stream))).await;
        found.into_iter().flatten().collect()
    }

    async fn standstill(&self, role: Role, stream: &'static str) -> Option<Standstill> {
        let request = Request::new().payload(Bytes::new()).timeout(Some(ANSWER_WITHIN));
        // The leader answers, or a node that knows of none, or nobody.
        let answer = self.client.send_request(format!("$JS.API.STREAM.INFO.{stream}"), request).await;
        let answer = answer.ok().and_then(|answer| serde_json::from_slice::<Answer>(&answer.payload).ok());
        let answer = answer.unwrap_or_default();
        if answer.error.as_ref().is_some_and(|error| error.err_code == STREAM_NOT_FOUND) {
            return None;
        }
        if !answer.is_led() {
            let sentence = format!(
                "stream {stream} has no leader: one is being elected, which takes some seconds, or too few nodes are up; what is published waits. If that lasts with all nodes up, docs/operate.md has the way back"
            );
            return Some(Standstill { stream, sentence });
        }
        // Workers publish no tasks.
        let may_ask = matches!(role, Role::Client | Role::Producer | Role::Collector);
        if stream != STREAM_TASKS || !may_ask {
            return None;
        }
        let request = Request::new().headers(question(&crate::random_token())).timeout(Some(ANSWER_WITHIN));
        if self.client.send_request(TASKS_PROBE.to_owned(), request).await.is_ok() {
            return None;
        }
        let sentence = format!(
            "stream {stream} is read and stores nothing: a message that a program published has stopped it, on every node; docs/operate.md has the way back"
        );
        Some(Standstill { stream, sentence })
    }
}
