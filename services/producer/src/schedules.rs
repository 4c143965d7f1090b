//! Schedules: clients request that one is added, paused, resumed or removed on `ctl.request.schedule`, because who may publish where the
//! server keeps them could wipe all that waits there. The answer comes when the server has stored the change. One of several producers
//! does it.

use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::control::{CTL_SCHEDULE, ControlReply, ControlRequests, RefusedTime, ScheduleRequest};
use millpond::bus::publish::RetryDeadline;
use millpond::client::{Client, ScheduleChangeError};
use millpond::schedule::Schedule;
use millpond::wire::decode::decode;
use millpond::wire::headers::HEADER_SIGNATURE;
use millpond::wire::subject::TaskSubject;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

/// How long the server may take to store a change.
const STORE_WITHIN: RetryDeadline = RetryDeadline::Within(Duration::from_secs(5));

/// Subscribes to the requests.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn listen(bus: &Bus) -> Result<ControlRequests, BusError> {
    bus.serve(CTL_SCHEDULE, "producer").await
}

/// Answers requests for ever.
pub(crate) async fn serve(bus: Bus, mut requests: ControlRequests) {
    let client = Client::over(bus.clone());
    while let Some(request) = requests.next().await {
        let answer = match change(&bus, &client, &request.payload).await {
            Ok(done) => to_raw_value(&done).map_or_else(|e| ControlReply::Error(e.to_string()), ControlReply::Ok),
            Err(refused) => refused,
        };
        request.answer(&answer).await;
    }
}

async fn change(bus: &Bus, client: &Client, request: &[u8]) -> Result<Value, ControlReply> {
    let refused = |why: String| ControlReply::Refused(why);
    let request: ScheduleRequest = decode(request).map_err(|e| refused(format!("not a change of a schedule: {e}")))?;
    match request {
        ScheduleRequest::Add(given) => {
            let (schedule, signature) = given.schedule().map_err(refused)?;
            believed(bus, &schedule, signature)?;
            client.store_schedule(&schedule, STORE_WITHIN).await.map_err(|error| reply(&error))?;
            Ok(json!({ "name": schedule.name }))
        }
        ScheduleRequest::Pause { name } => paused(client, &name, true).await,
        ScheduleRequest::Resume { name } => paused(client, &name, false).await,
        ScheduleRequest::Remove { name } => {
            client.remove_schedule(&name, STORE_WITHIN).await.map_err(|error| reply(&error))?;
            Ok(json!({ "name": name }))
        }
        ScheduleRequest::Look {} => {
            let (records, refusals) = client.schedules().await.map_err(|error| reply(&error))?;
            Ok(json!(RefusedTime::of(&records, &refusals)))
        }
    }
}

async fn paused(client: &Client, name: &str, paused: bool) -> Result<Value, ControlReply> {
    client.pause_schedule(name, paused, STORE_WITHIN).await.map_err(|error| reply(&error))?;
    Ok(json!({ "name": name, "paused": paused }))
}

/// With keys a schedule is one that somebody with a key has signed: this signs what it stores.
fn believed(bus: &Bus, schedule: &Schedule, signature: Option<String>) -> Result<(), ControlReply> {
    let Some(signer) = bus.signer() else { return Ok(()) };
    let subject = TaskSubject::new(&schedule.queue, &schedule.kind, None);
    let subject = subject.map_err(|e| ControlReply::Refused(e.to_string()))?.due();
    let mut headers = schedule.headers();
    headers.extend(signature.map(|signature| (HEADER_SIGNATURE.to_owned(), signature)));
    signer.verify(&subject, &headers, &schedule.payload).map_err(|distrust| {
        let why = "add the schedule with MILLPOND_SIGNING_KEY of the workers";
        ControlReply::Refused(format!("{}: {why}", distrust.reason()))
    })
}

/// What no request of the same text can change is refused for good.
fn reply(error: &ScheduleChangeError) -> ControlReply {
    let text = error.to_string();
    if error.is_passing() { ControlReply::Error(text) } else { ControlReply::Refused(text) }
}
