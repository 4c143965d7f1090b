//! The next step of a chain: what is done becomes the argument of another task, published before the outcome like a retry.
//! Whoever comes here again (a death before the ack) publishes the same ids: the store keeps one end of each.

use bytes::Bytes;
use millpond::batch;
use millpond::limits::{PAYLOAD_EXPIRY_MARGIN, PAYLOAD_RETENTION, RESULT_BATCH_BYTES_MAX};
use millpond::outcome::{ItemResult, Items, Outcome};
use millpond::payload::PayloadRef;
use millpond::task::Task;
use millpond::telemetry::TraceContext;
use millpond::wire::headers::{HEADER_EXPIRES, HEADER_REF, Headers};
use serde_json::value::RawValue;

use crate::settle::Effect;

/// One message for a task alone; for a batch one for each run of neighbours that are done, as large as a pack may be. A
/// large result lies in the store already: the next step refers to it, alone.
pub(crate) fn next_steps(task: &Task, outcome: &Outcome, trace: TraceContext) -> Vec<Effect> {
    let Some(next) = task.next_step() else { return Vec::new() };
    let effect = |items: Option<Items>, payload: Bytes| Effect {
        subject: next.due(),
        headers: task.next_headers(items, outcome.ended_ms, trace.to_traceparent()),
        payload,
    };
    let text = |value: &RawValue| Bytes::copy_from_slice(value.get().as_bytes());
    let of = task.items.map_or(1, |i| i.of);
    let mut runs: Vec<(u32, Vec<&RawValue>, usize)> = Vec::new();
    let mut effects = Vec::new();
    for (item, kept) in outcome.ends().filter_map(|(item, end)| Some((item, end.ok()?))) {
        let value = match kept {
            ItemResult::Inline(value) => value,
            ItemResult::Stored(at) => {
                // Alone it is no batch, not even one of one.
                let items = task.items.filter(|i| i.of > 1).map(|i| Items { of: i.of, from: item, len: 1 });
                let mut effect = effect(items, Bytes::new());
                refer(&mut effect.headers, at, outcome.ended_ms);
                effects.push(effect);
                continue;
            }
        };
        let bytes = value.get().len();
        match runs.last_mut() {
            Some((from, values, size))
                if *from + u32::try_from(values.len()).unwrap_or(0) == item
                    && *size + bytes <= RESULT_BATCH_BYTES_MAX =>
            {
                values.push(value);
                *size += bytes;
            }
            _ => runs.push((item, vec![value], bytes)),
        }
    }
    effects.extend(runs.into_iter().map(|(from, values, _)| {
        let len = u32::try_from(values.len()).unwrap_or(u32::MAX);
        let payload = match (task.items, values.as_slice()) {
            (None, [one]) => text(one),
            // A batch of one keeps its array: it covers the whole root.
            (Some(_), [one]) if of > 1 => text(one),
            (_, many) => Bytes::from(batch::join(many.iter().map(|value| value.get().as_bytes()))),
        };
        effect(task.items.map(|_| Items { of, from, len }), payload)
    }));
    effects
}

/// The arguments lie there; the task ends before they do.
fn refer(headers: &mut Headers, at: &PayloadRef, now_ms: i64) {
    headers.push((HEADER_REF.to_owned(), at.to_json()));
    let keep = PAYLOAD_RETENTION.saturating_sub(PAYLOAD_EXPIRY_MARGIN);
    let until = now_ms.saturating_add(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
    let Ok(until) = jiff::Timestamp::from_millisecond(until) else { return };
    let earlier = |said: &str| said.parse::<jiff::Timestamp>().is_ok_and(|said| said <= until);
    if !headers.iter().any(|(name, said)| name == HEADER_EXPIRES && earlier(said)) {
        headers.retain(|(name, _)| name != HEADER_EXPIRES);
        headers.push((HEADER_EXPIRES.to_owned(), until.to_string()));
    }
}
