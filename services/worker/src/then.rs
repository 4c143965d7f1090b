//! The next step of a chain: what is done becomes the argument of another task, published before the outcome like a retry.
//! Whoever comes here again (a death before the ack) publishes the same ids: the store keeps one end of each.

use bytes::Bytes;
use millpond::batch;
use millpond::limits::PACK_BYTES_MAX;
use millpond::outcome::{Items, Outcome};
use millpond::task::Task;
use serde_json::value::RawValue;

use crate::settle::Effect;

/// One message for a task alone; for a batch one for each run of neighbours that are done, as large as a pack may be.
pub(crate) fn next_steps(task: &Task, outcome: &Outcome) -> Vec<Effect> {
    let Some(next) = task.next_step() else { return Vec::new() };
    let effect = |items: Option<Items>, payload: Bytes| Effect {
        subject: next.due(),
        headers: task.next_headers(items, outcome.ended_ms),
        payload,
    };
    let text = |value: &RawValue| Bytes::copy_from_slice(value.get().as_bytes());
    let done = outcome.ends().filter_map(|(item, end)| Some((item, end.ok()?)));
    let Some(of) = task.items.map(|i| i.of) else {
        return done.map(|(_, value)| effect(None, text(value))).collect();
    };
    let mut runs: Vec<(u32, Vec<&RawValue>, usize)> = Vec::new();
    for (item, value) in done {
        let bytes = value.get().len();
        match runs.last_mut() {
            Some((from, values, size))
                if *from + u32::try_from(values.len()).unwrap_or(0) == item && *size + bytes <= PACK_BYTES_MAX =>
            {
                values.push(value);
                *size += bytes;
            }
            _ => runs.push((item, vec![value], bytes)),
        }
    }
    let effects = runs.into_iter().map(|(from, values, _)| {
        let items = Items { of, from, len: u32::try_from(values.len()).unwrap_or(u32::MAX) };
        let payload = match values.as_slice() {
            // A batch of one keeps its array: it covers the whole root.
            [one] if of > 1 => text(one),
            many => Bytes::from(batch::join(many.iter().map(|value| value.get().as_bytes()))),
        };
        effect(Some(items), payload)
    });
    effects.collect()
}
