//! Queues: rows of the list, pause, purge, limit and removal. What a purge answers is its record,
//! [`PurgeRecord`](millpond::bus::operate::queues::PurgeRecord).

use millpond::bus::operate::queues::UnlistedQueues;
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

/// How a queue stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueRow {
    /// Its name.
    pub queue: String,
    /// Messages that no worker has taken.
    pub waiting: u64,
    /// Messages that workers hold.
    pub held: u64,
    /// Messages that wait for their time.
    pub scheduled: u64,
    /// Whether nothing of it is handed out.
    pub paused: bool,
    /// A pause ends by itself after this long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub paused_for_ms: Option<u64>,
    /// Tasks that may wait in it; null: any number.
    pub max_waiting: Option<u64>,
    /// When the oldest message that waits in it was published, Unix time in milliseconds; null when none waits.
    pub oldest_ms: Option<i64>,
    /// Live workers that serve it.
    pub workers: u64,
}

/// The queues by name. Those without a worker so far are listed up to a bound; the others are counted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueueList {
    /// Those that are listed.
    pub rows: Vec<QueueRow>,
    /// Always null: the list has no pages.
    pub next: Option<String>,
    /// Queues in which something waits, that no worker has ever served, and that are not listed.
    pub unlisted: UnlistedQueues,
}

/// How long to pause a queue.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PauseQueue {
    /// The pause ends by itself after this long, in milliseconds; null: only when the queue is resumed. A year at the most.
    #[schema(maximum = 31_557_600_000u64)]
    pub for_ms: Option<u64>,
}

/// Whether a queue is paused now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueuePaused {
    /// Its name.
    pub queue: String,
    /// Whether nothing of it is handed out.
    pub paused: bool,
}

/// What to remove from a queue.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PurgeQueue {
    /// Tasks of this kind only.
    pub kind: Option<String>,
    /// True: what runs is not ended.
    pub keep_running: bool,
}

/// How many tasks may wait in a queue.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetQueueLimit {
    /// A whole number from 1, or null for no limit.
    #[serde(deserialize_with = "max_waiting")]
    #[schema(required, minimum = 1)]
    pub max_waiting: Option<u64>,
}

/// Null has to be written: a field that is left out is a mistake.
fn max_waiting<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let shape = "max_waiting must be a whole number from 1, or null for no limit";
    let given = Option::<u64>::deserialize(from).map_err(|_| de::Error::custom(shape))?;
    if given == Some(0) { Err(de::Error::custom(shape)) } else { Ok(given) }
}

/// The limit that holds now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueueLimit {
    /// The name of the queue.
    pub queue: String,
    /// Tasks that may wait in it; null: any number.
    pub max_waiting: Option<u64>,
}

/// A queue that was removed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueueRemoved {
    /// Its name.
    pub queue: String,
    /// True: it is gone.
    pub removed: bool,
}
