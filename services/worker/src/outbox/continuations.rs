//! The next step of a chain: what is done becomes the argument of another task, published before the outcome like a retry.
//! A worker that settles the task again (after a death before the ack) publishes the same ids: the store keeps one end of each.

use bytes::Bytes;
use millpond::batch;
use millpond::bus::publish::payloads::PAYLOAD_EXPIRY_MARGIN;
use millpond::limits::{PAYLOAD_RETENTION, RESULT_BATCH_BYTES_MAX};
use millpond::outcome::{ItemResult, Items, Outcome};
use millpond::payload::PayloadRef;
use millpond::task::Task;
use millpond::telemetry::TraceContext;
use millpond::wire::headers::{HEADER_EXPIRES, HEADER_REF, Headers};
use serde_json::value::RawValue;

use super::message::OutboxMessage;

/// Neighbouring items that are done, which go on in one message.
struct Run<'a> {
    from: u32,
    values: Vec<&'a RawValue>,
    bytes: usize,
}

/// One message for a task alone; for a batch one for each run of neighbours that are done, as large as a result batch may
/// be. A large result lies in the store already: its continuation refers to it, alone.
pub(crate) fn continuations(task: &Task, outcome: &Outcome, trace: TraceContext) -> Vec<OutboxMessage> {
    let Some(next) = task.next_step() else { return Vec::new() };
    let message = |items: Option<Items>, payload: Bytes| OutboxMessage {
        subject: next.due(),
        headers: task.next_headers(items, outcome.ended_ms, trace.to_traceparent()),
        payload,
    };
    let of = task.items.map_or(1, |items| items.of);
    let (mut runs, mut messages): (Vec<Run<'_>>, Vec<OutboxMessage>) = (Vec::new(), Vec::new());
    for (item, kept) in outcome.ends().filter_map(|(item, end)| Some((item, end.ok()?))) {
        match kept {
            // Bytes of a chain lie in the store already.
            ItemResult::Inline(value) | ItemResult::Bytes(value) => add(&mut runs, item, value),
            ItemResult::Stored(at) => {
                // An item alone is no batch, not even a batch of one.
                let items = task.items.filter(|_| of > 1).map(|_| Items { of, from: item, len: 1 });
                let mut message = message(items, Bytes::new());
                refer(&mut message.headers, at, outcome.ended_ms);
                messages.push(message);
            }
        }
    }
    messages.extend(runs.into_iter().map(|run| {
        let len = u32::try_from(run.values.len()).unwrap_or(u32::MAX);
        let payload = match (task.items, run.values.as_slice()) {
            (None, [one]) => Bytes::copy_from_slice(one.get().as_bytes()),
            // A batch of one keeps its array: it covers the whole of what was published.
            (Some(_), [one]) if of > 1 => Bytes::copy_from_slice(one.get().as_bytes()),
            (_, many) => Bytes::from(batch::join(many.iter().map(|value| value.get().as_bytes()))),
        };
        message(task.items.map(|_| Items { of, from: run.from, len }), payload)
    }));
    messages
}

/// Adds a value to the last run, or begins another one.
fn add<'a>(runs: &mut Vec<Run<'a>>, item: u32, value: &'a RawValue) {
    let bytes = value.get().len();
    match runs.last_mut() {
        Some(run)
            if run.from as usize + run.values.len() == item as usize && run.bytes + bytes <= RESULT_BATCH_BYTES_MAX =>
        {
            run.values.push(value);
            run.bytes += bytes;
        }
        _ => runs.push(Run { from: item, values: vec![value], bytes }),
    }
}

/// The arguments lie in the store of payloads; the task expires before they do.
fn refer(headers: &mut Headers, at: &PayloadRef, now_ms: i64) {
    headers.push((HEADER_REF.to_owned(), at.to_json()));
    let keep = PAYLOAD_RETENTION.saturating_sub(PAYLOAD_EXPIRY_MARGIN);
    let until = now_ms.saturating_add(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
    let Ok(until) = jiff::Timestamp::from_millisecond(until) else { return };
    let earlier = |header: &str| header.parse::<jiff::Timestamp>().is_ok_and(|expires| expires <= until);
    if !headers.iter().any(|(name, value)| name == HEADER_EXPIRES && earlier(value)) {
        headers.retain(|(name, _)| name != HEADER_EXPIRES);
        headers.push((HEADER_EXPIRES.to_owned(), until.to_string()));
    }
}
