//! Rows as the API shows them. Results are passed on as the text that came: parsing and printing them again would
//! round large numbers, sort keys and drop double ones. No queries here.

use data_encoding::BASE64;
use millpond::wire::headers::{HEADER_REF, Headers};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::sql::Row;
use super::{CANCELLED, DONE, PARTIAL, STATUS_NAMES};

/// Results up to this many bytes are shown in lists.
const RESULT_BYTES_LISTED: usize = 4096;

/// One row: a JSON object, and its `result` as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    fields: Map<String, Value>,
    result: Option<Box<RawValue>>,
}

impl Shown {
    /// A row of these fields; `fields` must be an object.
    pub(super) fn new(fields: Value) -> Self {
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        Self { fields, result: None }
    }

    /// Adds or replaces a field.
    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    /// A field that is text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    /// A field that is a whole number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.as_u64()
    }

    /// Adds its result: as `result`, or as the string `result_text` where common parsers would refuse it (a lone
    /// surrogate, a number out of range) and with it the whole page.
    pub(super) fn set_result(&mut self, result: &str) {
        match RawValue::from_string(result.to_owned()) {
            Ok(raw) if serde_json::from_str::<Value>(result).is_ok() => self.result = Some(raw),
            _ => self.set("result_text", json!(result)),
        }
    }
}

impl Shown {
    /// Adds the result of a task, or as `ref` where it lies; of a batch its results, and `refs`. False when there is none.
    pub(super) fn set_kept(&mut self, row: &Row) -> bool {
        let (at, result) = (row.text("ref").and_then(|at| serde_json::from_str(at).ok()), row.text("result"));
        let found = at.is_some() || result.is_some();
        if let Some(at) = at {
            self.set(if result.is_some() { "refs" } else { "ref" }, at);
        }
        if let Some(result) = result {
            self.set_result(result);
        }
        found
    }
}

/// Where the large results of a batch lie, by item.
pub(super) fn refs(batch: &Row) -> Map<String, Value> {
    batch.text("ref").and_then(|refs| serde_json::from_str(refs).ok()).unwrap_or_default()
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        if let Some(result) = &self.result {
            map.serialize_entry("result", result)?;
        }
        map.end()
    }
}

/// The name of a status.
pub(super) fn status_name(status: i64) -> &'static str {
    usize::try_from(status).ok().and_then(|s| STATUS_NAMES.get(s)).copied().unwrap_or("unknown")
}

/// Whether a bitmap has the bit of this item.
pub(super) fn has_bit(bitmap: &[u8], item: usize) -> bool {
    bitmap.get(item / 8).is_some_and(|byte| byte & (1 << (item % 8)) != 0)
}

/// A task without its result.
fn bare_task(row: &Row) -> Shown {
    Shown::new(json!({
        "queue": row.text("queue"), "id": row.text("id"), "kind": row.text("kind"), "job": row.text("job"),
        "index": row.int("idx"), "root": row.text("root"), "items": row.int("items"),
        "done": row.int("done"), "status": status_name(row.int("status").unwrap_or(-1)),
        "attempt": row.int("attempt"), "worker": row.text("worker"),
        "published_ms": row.int("published_ms"), "started_ms": row.int("started_ms"),
        "ended_ms": row.int("ended_ms"), "stored_ms": row.int("stored_ms"),
        "trace": row.text("trace"), "then": row.text("next"),
    }))
}

/// A task as a list shows it: a large result only by its size.
pub(super) fn listed_task(row: &Row) -> Shown {
    let mut task = bare_task(row);
    match row.text("result") {
        Some(result) if result.len() > RESULT_BYTES_LISTED => task.set("result_bytes", json!(result.len())),
        _ => {
            task.set_kept(row);
        }
    }
    task
}

/// A task with its result.
pub(super) fn whole_task(row: &Row) -> Shown {
    let mut task = bare_task(row);
    task.set_kept(row);
    task
}

/// One item of a batch that has no row of its own; none when the row is no batch, or has no such item.
pub(super) fn item_of(batch: &Row, id: &str, item: u32) -> Option<Shown> {
    let items = batch.int("items").filter(|items| i64::from(item) < *items)?;
    // An item that failed has a row of its own: one that has none and no result has not ended an attempt.
    let done = items > 0 && has_bit(batch.blob("bitmap"), item as usize);
    let mut shown = bare_task(batch);
    shown.set("id", json!(id));
    shown.set("root", json!(batch.text("id")));
    shown.set("items", Value::Null);
    shown.set("index", json!(batch.int("idx").map(|index| index + i64::from(item))));
    let otherwise = if batch.int("status") == Some(CANCELLED) { CANCELLED } else { PARTIAL };
    shown.set("status", json!(status_name(if done { DONE } else { otherwise })));
    shown.set("done", json!(u8::from(done)));
    if done {
        if let Some(at) = refs(batch).remove(&item.to_string()) {
            shown.set("ref", at);
            return Some(shown);
        }
        let result = batch.text("result")?;
        let results: Vec<&RawValue> = serde_json::from_str(result).ok()?;
        shown.set_result(results.get(item as usize)?.get());
    }
    Some(shown)
}

/// A dead letter; `whole` with its evidence, headers and payload.
pub(super) fn dead_letter(row: &Row, whole: bool) -> Shown {
    let evidence = row.text("evidence").and_then(|e| serde_json::from_str::<Value>(e).ok()).unwrap_or(Value::Null);
    let mut dead = Shown::new(json!({
        "queue": row.text("queue"), "id": row.text("id"), "kind": row.text("kind"), "job": row.text("job"),
        "index": row.int("idx"), "attempt": row.int("attempt"), "reason": row.text("reason"),
        "failure": evidence.get("failure"), "worker": evidence.get("worker"), "trace": evidence.get("trace"),
        "buried_ms": row.int("buried_ms"),
    }));
    if whole {
        let payload = row.blob("payload");
        dead.set("failures", evidence.get("failures").cloned().unwrap_or_else(|| json!([])));
        dead.set("evidence", evidence);
        let headers = row.text("headers").and_then(|h| serde_json::from_str::<Headers>(h).ok()).unwrap_or_default();
        let at = headers.iter().find(|(name, _)| name == HEADER_REF);
        let at = at.and_then(|(_, at)| serde_json::from_str::<Value>(at).ok());
        dead.set("headers", json!(headers));
        match (at, serde_json::from_slice::<Value>(payload)) {
            (Some(at), _) => dead.set("ref", at),
            (None, Ok(json)) => dead.set("payload", json),
            (None, Err(_)) => dead.set("payload_base64", json!(BASE64.encode(payload))),
        }
    }
    dead
}
