//! Is this task stored already? Asked of the server by a publish that it never stores, and not by the header that expects the id of
//! the last message: in a cluster one whose expectation does not hold stops its stream on every node, for good.
//! docs/protocol.md, "Bounded queues", says what is answered.

use std::time::Instant;

use bytes::Bytes;

use crate::bus::publish::{PublishError, RetryDeadline, StoreFailure, Stored};
use crate::bus::{Bus, to_nats};
use crate::wire::headers::{HEADER_MSG_ID, HEADER_ROLLUP};
use crate::wire::subject::TaskSubject;

/// TASKS and LATER take no rollup, and no stream takes this one: a message with it is a duplicate, or refused, and never replaces others.
const ROLLUP_OF_NO_KIND: &str = "none";

/// A stream that may be asked. One that takes rollups, as DUE does, would store the question.
#[derive(Clone, Copy)]
pub(crate) enum TakesNoRollup {
    Tasks,
    Later,
}

impl TakesNoRollup {
    fn place(self, subject: &TaskSubject) -> String {
        match self {
            Self::Tasks => subject.task(),
            Self::Later => subject.later(),
        }
    }
}

/// The headers of the question whether a message of this id is stored.
pub(in crate::bus) fn question(message_id: &str) -> async_nats::HeaderMap {
    let headers = [(HEADER_MSG_ID, message_id), (HEADER_ROLLUP, ROLLUP_OF_NO_KIND)];
    to_nats(&headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}

impl Bus {
    /// Where this stream has stored the message of this id within the dedupe window, also when somebody has taken it since; none when it
    /// has not.
    pub(in crate::bus) async fn stored_in(
        &self,
        stream: TakesNoRollup,
        subject: &TaskSubject,
        message_id: &str,
    ) -> Result<Option<Stored>, StoreFailure> {
        let place = stream.place(subject);
        match self.try_store(&place, question(message_id), Bytes::new()).await {
            Ok(stored) => Ok(stored.duplicate.then_some(stored)),
            Err(StoreFailure::NoRollup(_)) => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// The same, asked again until there is an answer.
    ///
    /// # Errors
    /// [`PublishError`], as [`Bus::store`].
    pub(crate) async fn is_stored(
        &self,
        stream: TakesNoRollup,
        subject: &TaskSubject,
        message_id: &str,
        deadline: RetryDeadline,
    ) -> Result<bool, PublishError> {
        let started = Instant::now();
        loop {
            match self.stored_in(stream, subject, message_id).await {
                Ok(stored) => return Ok(stored.is_some()),
                Err(failed) => self.wait_after(failed, &stream.place(subject), deadline, started).await?,
            }
        }
    }
}
