//! The server and the streams as the client role sees them, for `doctor`.

use std::time::Duration;

use async_nats::jetstream::stream::{DiscardPolicy, RetentionPolicy};
use bytes::Bytes;

use crate::bus::read::standstill::Standstill;
use crate::bus::{Bus, Role, server_clock};
use crate::wire::streams::{STREAM_DUE, STREAM_LATER, STREAM_RESULTS, STREAM_TASKS};

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The server.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Its version.
    pub version: String,
    /// Largest message, in bytes.
    pub max_payload: usize,
    /// A request and its answer.
    pub round_trip: Option<Duration>,
    /// The difference of its clock and ours.
    pub clock_off: Option<Duration>,
    /// This connection's user may create streams.
    pub may_create_streams: bool,
}

/// A stream.
#[derive(Debug, Clone, Default)]
pub struct StreamFacts {
    /// Its name.
    pub name: String,
    /// It is missing, or not as `setup` makes it.
    pub problem: Option<String>,
    /// It has no leader, or stores nothing: why, and what to do.
    pub standstill: Option<String>,
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Limit of messages.
    pub messages_max: Option<u64>,
    /// Limit of bytes.
    pub bytes_max: Option<u64>,
}

/// Reads the facts of the server.
pub async fn server(bus: &Bus) -> ServerFacts {
    let info = bus.client.server_info();
    let measured = server_clock::measure(&bus.client).await;
    let round_trip = measured.map(|(_, took)| took);
    let clock_off = measured.map(|(ahead_ms, _)| Duration::from_millis(ahead_ms.unsigned_abs()));
    // An empty request creates nothing; a user without the permission gets no answer at all.
    let answer = bus.client.request("$JS.API.STREAM.CREATE.DOCTOR", Bytes::from_static(b"{}"));
    let may_create_streams = matches!(tokio::time::timeout(ANSWER_WITHIN, answer).await, Ok(Ok(_)));
    ServerFacts { version: info.version, max_payload: info.max_payload, round_trip, clock_off, may_create_streams }
}

/// Reads the facts of the streams.
pub async fn streams(bus: &Bus) -> Vec<StreamFacts> {
    let mut facts = Vec::new();
    let names = [STREAM_TASKS, STREAM_LATER, STREAM_DUE, STREAM_RESULTS];
    let standstills = bus.standstills(Role::Client, &names).await;
    for name in names {
        if let Some(Standstill { sentence, .. }) = standstills.iter().find(|one| one.stream == name) {
            let standstill = Some(sentence.clone());
            facts.push(StreamFacts { name: name.to_owned(), standstill, ..Default::default() });
            continue;
        }
        let found = match bus.js.get_stream(name).await {
            Ok(stream) => stream.cached_info().clone(),
            Err(error) => {
                let problem = Some(format!("cannot be used: {error}"));
                facts.push(StreamFacts { name: name.to_owned(), problem, ..Default::default() });
                continue;
            }
        };
        let config = &found.config;
        let (retention, discard, schedules) = match name {
            STREAM_TASKS => (RetentionPolicy::WorkQueue, DiscardPolicy::New, false),
            STREAM_DUE => (RetentionPolicy::WorkQueue, DiscardPolicy::Old, true),
            _ => (RetentionPolicy::Limits, DiscardPolicy::New, false),
        };
        let as_made =
            config.retention == retention && config.discard == discard && config.allow_message_schedules == schedules;
        let seen = format!(
            "has retention {:?}, discard {:?}, schedules {}, not {retention:?}, {discard:?}, {schedules}",
            config.retention, config.discard, config.allow_message_schedules
        );
        facts.push(StreamFacts {
            name: name.to_owned(),
            problem: (!as_made).then_some(seen),
            standstill: None,
            messages: found.state.messages,
            bytes: found.state.bytes,
            messages_max: u64::try_from(config.max_messages).ok(),
            bytes_max: u64::try_from(config.max_bytes).ok(),
        });
    }
    facts
}
