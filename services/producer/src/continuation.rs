//! The task that the end of a job starts: the collector requests it on `ctl.continuation`, it is published under an id of its own,
//! and the answer comes when the server has stored it. One of several producers does it.

use std::time::Duration;

use bytes::Bytes;
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::control::{CTL_CONTINUATION, ControlReply, ControlRequests, JobEnded};
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, NewTask, SubmitError};
use millpond::wire::decode::decode;
use serde_json::json;
use serde_json::value::to_raw_value;

/// How long the server may take to store the task.
const STORE_WITHIN: Duration = Duration::from_secs(5);

/// Subscribes to the requests.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn listen(bus: &Bus) -> Result<ControlRequests, BusError> {
    bus.serve(CTL_CONTINUATION, "producer").await
}

/// Answers requests for ever.
pub(crate) async fn serve(bus: Bus, mut requests: ControlRequests) {
    let client = Client::over(bus.clone());
    while let Some(request) = requests.next().await {
        let answer = match publish(&bus, &client, &request.payload).await {
            Ok(id) => {
                to_raw_value(&json!({ "id": id })).map_or_else(|e| ControlReply::Error(e.to_string()), ControlReply::Ok)
            }
            Err(reply) => reply,
        };
        request.answer(&answer).await;
    }
}

/// Publishes the task; its id, or the reply that it is not stored. What no request of the same text can change is refused for good.
async fn publish(bus: &Bus, client: &Client, request: &[u8]) -> Result<String, ControlReply> {
    let ended: JobEnded = decode(request).map_err(|e| ControlReply::Refused(format!("not the end of a job: {e}")))?;
    let (signature, job) = (ended.signature.as_deref(), (ended.job.as_str(), ended.epoch));
    // Whoever may write records of jobs could name any task here, and this would sign it.
    if let Some(Err(distrust)) =
        bus.signer().map(|signer| signer.verify_continuation(signature, job, &ended.queue, &ended.kind))
    {
        let why = "who submitted the job has not signed what its end starts: submit it with MILLPOND_SIGNING_KEY";
        return Err(ControlReply::Refused(format!("{}: {why}", distrust.reason())));
    }
    let task = NewTask {
        payload: Bytes::from(ended.arguments()),
        id: Some(ended.id()),
        queue: ended.queue,
        kind: ended.kind,
        ..Default::default()
    };
    // A full stream is waited for no longer than this: the collector requests the continuation again.
    let stored = tokio::time::timeout(STORE_WITHIN, client.submit(&task, RetryDeadline::Within(STORE_WITHIN))).await;
    let stored = stored.map_err(|_| ControlReply::Error("no room for more tasks now".to_owned()))?;
    let reply = |error: SubmitError| {
        let (is_permanent, text) = (error.is_permanent(), error.to_string());
        if is_permanent { ControlReply::Refused(text) } else { ControlReply::Error(text) }
    };
    Ok(stored.map_err(reply)?.id)
}
