//! Dead letters that are to run again: the collector requests it on `ctl.replay`, the task is published to DUE as its next
//! attempt, or as a new task of another queue, and the answer comes when the server has stored it. One of several
//! producers does it.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::control::{CTL_REPLAY, ControlReply, ControlRequests, ReplayRequest};
use millpond::bus::publish::RetryDeadline;
use millpond::dead_letter::{Evidence, moved_id};
use millpond::limits::CLAIM_CHECK_BYTES;
use millpond::wire::decode::decode;
use millpond::wire::headers::{HEADER_DEAD, HEADER_EXPIRES, HEADER_REF, Headers};
use millpond::wire::subject::TaskSubject;
use serde_json::json;
use serde_json::value::to_raw_value;

/// How long the server may take to store the task.
const STORE_WITHIN: Duration = Duration::from_secs(5);

/// Subscribes to the requests.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn listen(bus: &Bus) -> Result<ControlRequests, BusError> {
    bus.serve(CTL_REPLAY, "producer").await
}

/// Answers requests for ever.
pub(crate) async fn serve(bus: Bus, mut requests: ControlRequests) {
    while let Some(request) = requests.next().await {
        let answer = match replay(&bus, &request.payload).await {
            Ok(id) => {
                to_raw_value(&json!({ "id": id })).map_or_else(|e| ControlReply::Error(e.to_string()), ControlReply::Ok)
            }
            Err(error) => ControlReply::Error(error),
        };
        request.answer(&answer).await;
    }
}

/// Publishes the task; the id under which it runs.
async fn replay(bus: &Bus, request: &[u8]) -> Result<String, String> {
    let request: ReplayRequest = decode(request).map_err(|e| format!("not a dead letter: {e}"))?;
    let own = BASE64.decode(request.payload.as_bytes()).map_err(|e| format!("its payload is not base64: {e}"))?;
    let own = Bytes::from(own);
    let evidence = &believed(bus, &request, &own)?;
    let died = TaskSubject::new(&request.queue, &request.kind, evidence.job.clone()).map_err(|e| e.to_string())?;
    let (subject, mut headers, id) = match &request.to_queue {
        // Another task of its unique key is refused while this one waits or runs.
        None => {
            let subject = TaskSubject { unique: evidence.unique.clone(), ..died };
            let headers = evidence.replay_headers(&subject, &request.headers).map_err(|e| e.to_string())?;
            (subject, headers, evidence.id.clone())
        }
        Some(to) => {
            let headers = evidence.moved_headers(&died, to, &request.headers).map_err(|e| e.to_string())?;
            let subject = TaskSubject::new(to, &request.kind, None).map_err(|e| e.to_string())?;
            (subject, headers, moved_id(&evidence.id, &died.queue))
        }
    };
    let payload = match &request.arguments {
        None => own,
        Some(arguments) => other_arguments(bus, arguments.get(), evidence.is_batch_of_one(), &mut headers).await?,
    };
    let stored = bus.store(&subject.due(), &headers, payload, RetryDeadline::Within(STORE_WITHIN)).await;
    stored.map_err(|e| e.to_string())?;
    Ok(id)
}

/// The evidence of a dead letter. With keys it is that which a worker with one of them has signed: this signs what it publishes, and
/// whoever may publish dead letters, or ask here, could have any task signed.
fn believed(bus: &Bus, request: &ReplayRequest, payload: &Bytes) -> Result<Evidence, String> {
    let Some(signer) = bus.signer() else { return Ok(request.evidence.clone()) };
    let subject = TaskSubject::new(&request.queue, &request.kind, None).map_err(|e| e.to_string())?;
    if signer.verify(&subject.dead(), &request.headers, payload).is_err() {
        return Err("no worker that has a signing key of this producer has made the dead letter: publish the task again with the \
                    key, or throw this away"
            .to_owned());
    }
    let signed = request.headers.iter().find(|(name, _)| name == HEADER_DEAD);
    let (_, text) = signed.ok_or_else(|| format!("header {HEADER_DEAD} is missing"))?;
    decode(text.as_bytes()).map_err(|e| format!("header {HEADER_DEAD}: {e}"))
}

/// The payload that stands for other arguments; large ones go to the store, as those of a new task do.
async fn other_arguments(
    bus: &Bus,
    arguments: &str,
    is_batch_of_one: bool,
    headers: &mut Headers,
) -> Result<Bytes, String> {
    headers.retain(|(name, _)| name != HEADER_REF);
    if arguments.len() <= CLAIM_CHECK_BYTES {
        let text = if is_batch_of_one { format!("[{arguments}]") } else { arguments.to_owned() };
        return Ok(Bytes::from(text));
    }
    if is_batch_of_one {
        let bytes = arguments.len();
        return Err(format!("arguments of {bytes} bytes do not fit into its batch: publish a new task with them"));
    }
    let stored = bus.put_payload(&mut arguments.as_bytes(), RetryDeadline::Within(STORE_WITHIN)).await;
    let stored = stored.map_err(|e| e.to_string())?;
    let until = jiff::Timestamp::from_millisecond(stored.until_ms).map_err(|e| e.to_string())?;
    headers.push((HEADER_REF.to_owned(), stored.at.to_json()));
    headers.push((HEADER_EXPIRES.to_owned(), until.to_string()));
    Ok(Bytes::new())
}
