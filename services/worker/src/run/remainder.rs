//! What a running batch has not started is published again after a while, so that no item waits behind a slow one while
//! there are free slots elsewhere. A batch may therefore be sized boldly.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use millpond::bus::consume::lease::Lease;
use millpond::failpoint;
use millpond::outcome::Items;

use crate::attempt::Arguments;
use crate::context::WorkerContext;
use crate::outbox::message::{halves, publish_all};

use super::work_cursor::WorkCursor;

/// A batch that runs for longer has its unstarted items published again.
const REPUBLISH_REMAINDER_AFTER: Duration = Duration::from_millis(100);

/// The items of a running batch, and how far it is.
pub(super) struct Remainder<'a> {
    pub(super) context: &'a WorkerContext,
    pub(super) lease: &'a Lease,
    pub(super) items: Items,
    pub(super) arguments: &'a Arguments,
    pub(super) cursor: &'a Arc<WorkCursor>,
    pub(super) started_ms: i64,
}

impl Remainder<'_> {
    /// Waits for the end of what runs. Meanwhile, after [`REPUBLISH_REMAINDER_AFTER`] or when the worker drains, publishes
    /// again what has not started: those items, when they are stored.
    pub(super) async fn publish_beside<T>(self, mut running: Pin<&mut impl Future<Output = T>>) -> (T, Option<Items>) {
        tokio::select! {
            biased;
            ended = &mut running => return (ended, None),
            () = tokio::time::sleep(REPUBLISH_REMAINDER_AFTER) => {}
            () = self.context.draining.cancelled() => {}
        }
        tokio::join!(running, self.publish())
    }

    async fn publish(&self) -> Option<Items> {
        // A batch that is delivered again may have been republished before, by a worker that died since.
        if !self.lease.is_first_delivery() || self.lease.was_cut_off() {
            return None;
        }
        let rest = self.cursor.take_rest();
        let started = u32::try_from(rest.start).ok()?;
        let len = u32::try_from(rest.len()).ok().filter(|len| *len > 0)?;
        // Before the publish: a worker that is given the rest asks who holds it.
        self.lease.shrink(Items { len: started, ..self.items });
        let rest = Items { of: self.items.of, from: self.items.from + started, len };
        let task = &self.lease.task;
        let reason = format!("h{}-{}", task.attempt, self.started_ms);
        let halves = halves(task, rest, self.arguments.as_slice(), &reason);
        let refused = match publish_all(&self.context.bus, halves).await {
            Ok(refused) => refused.into_iter().next().map(|(_, error)| error),
            Err(error) => Some(error),
        };
        failpoint::hit("run.remainder_republished");
        // Else they are still this message's own, and the settlement publishes them.
        if let Some(error) = &refused {
            tracing::error!(task_id = %task.id(), %error, "the rest of a batch cannot be published again");
        }
        refused.is_none().then_some(rest)
    }
}
