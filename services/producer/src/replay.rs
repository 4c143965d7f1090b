//! Dead letters that are to run again: asked on `ctl.replay`, published to DUE as the next attempt, answered when the
//! server has stored it. Of several producers one does it.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use millpond::bus::Bus;
use millpond::bus::ctl::{Answer, CTL_REPLAY, Replay, Requests};
use millpond::bus::publish::Patience;
use millpond::bus::subject::TaskSubject;
use millpond::bus::topology::TopologyError;
use serde_json::json;
use serde_json::value::to_raw_value;

/// How long the server may take to store it.
const STORE_WITHIN: Duration = Duration::from_secs(5);

/// Listens.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn listen(bus: &Bus) -> Result<Requests, TopologyError> {
    bus.serve(CTL_REPLAY, "producer").await
}

/// Answers requests for ever.
pub(crate) async fn serve(bus: Bus, mut requests: Requests) {
    while let Some(asked) = requests.next().await {
        let answer = match replay(&bus, &asked.payload).await {
            Ok(attempt) => match to_raw_value(&json!({ "attempt": attempt })) {
                Ok(said) => Answer::Ok(said),
                Err(error) => Answer::Error(error.to_string()),
            },
            Err(error) => Answer::Error(error),
        };
        asked.answer(&answer).await;
    }
}

/// Publishes the next attempt; its number.
async fn replay(bus: &Bus, asked: &[u8]) -> Result<u32, String> {
    let asked: Replay = serde_json::from_slice(asked).map_err(|e| format!("not a dead letter: {e}"))?;
    let subject = TaskSubject::new(&asked.queue, &asked.kind, asked.evidence.job.clone()).map_err(|e| e.to_string())?;
    // Whoever submits another of its key is refused while this one waits or runs.
    let subject = TaskSubject { unique: asked.evidence.unique.clone(), ..subject };
    let headers = asked.evidence.replay_headers(&asked.queue, &asked.headers)?;
    let payload = BASE64.decode(asked.payload.as_bytes()).map_err(|e| format!("its payload is not base64: {e}"))?;
    let stored = bus.store(&subject.due(), &headers, Bytes::from(payload), Patience::Within(STORE_WITHIN)).await;
    stored.map_err(|e| e.to_string())?;
    Ok(asked.evidence.attempt.max(1) + 1)
}
