//! How a task ended, as its producer hears it: one JSON object, or a sentence for a person.

use millpond::client::{NoResult, TaskEnd};
use millpond::outcome::Failure;
use serde::Serialize;
use serde_json::value::RawValue;

/// A task and its end. The result stands in the object byte for byte.
#[derive(Serialize, Default)]
pub(super) struct EndedTask<'a> {
    /// Null for a cancelled task.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Option<&'a Failure>>,
    id: &'a str,
    /// The place of the task in its job.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    /// The handler wrote bytes that are no JSON.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    result_is_bytes: bool,
    /// Why the result of a task that is done cannot be fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_lost: Option<&'a str>,
    status: &'static str,
}

impl<'a> EndedTask<'a> {
    pub(super) fn new(index: Option<u64>, id: &'a str, end: &'a TaskEnd) -> Self {
        let known = Self { index, id, ..Self::default() };
        match end {
            Ok(result) => Self { status: "done", result: Some(result), result_is_bytes: result.is_bytes, ..known },
            Err(NoResult::Dead(failure)) => Self { status: "dead", failure: Some(Some(failure)), ..known },
            Err(NoResult::Cancelled) => Self { status: "cancelled", failure: Some(None), ..known },
            Err(NoResult::Lost(reason)) => Self { status: "done", result_lost: Some(reason), ..known },
        }
    }
}

/// Why a task has no result, as the rest of a sentence that begins with the task. `id` is for a sentence that has none yet.
pub(super) fn describe(id: Option<&str>, no_result: &NoResult) -> String {
    match no_result {
        NoResult::Dead(failure) => {
            let show = id.map_or_else(|| "dead show` with this id".to_owned(), |id| format!("dead show {id}`"));
            format!("failed for good: {}: {} (`millpond {show} has the evidence)", failure.kind, failure.message)
        }
        NoResult::Cancelled => "was cancelled".to_owned(),
        NoResult::Lost(reason) => format!("is done, but its result cannot be had: {reason}"),
    }
}
