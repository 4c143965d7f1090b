//! The short way of a `map`'s messages to the server: no task of the runtime and no lock for each of them. What cannot go this way,
//! and what is not acknowledged on it, goes the way of any other task (`submit.rs`), under the same id.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::publish_span::PublishSpan;
use super::submit::NEW_TASK;
use super::{Client, NewTask};
use crate::bus::publish::acks::{Ack, AckTo};
use crate::failpoint;
use crate::limits::PUBLISH_WINDOW;
use crate::telemetry::TraceContext;
use crate::wire::headers::HEADER_MSG_ID;

/// How long the server may take to answer before the first publish finds out by itself.
const LEARN_WITHIN: Duration = Duration::from_secs(1);

/// Messages of one `map` that wait for their ack; each has a value of type `T` with it.
pub(super) struct PublishLane<T> {
    client: Client,
    unacked: HashMap<u64, (Box<LaneTask<T>>, PublishSpan)>,
    next: u64,
    acks: mpsc::Receiver<(u64, Ack)>,
    sender: mpsc::Sender<(u64, Ack)>,
    /// A message of this `map` was published the long way, which checks its headers.
    is_checked: bool,
}

/// A task with an id, and a value that goes with it.
pub(super) struct LaneTask<T> {
    pub(super) task: NewTask,
    pub(super) of: T,
}

/// What became of a message.
pub(super) enum LaneEnd<T> {
    Stored(T),
    /// It has to go the long way, and may be stored all the same.
    NotAcknowledged(Box<LaneTask<T>>),
}

impl<T> PublishLane<T> {
    pub(super) fn new(client: &Client) -> Self {
        let (sender, acks) = mpsc::channel(PUBLISH_WINDOW);
        Self { client: client.clone(), unacked: HashMap::new(), next: 0, acks, sender, is_checked: false }
    }

    /// Messages that wait for their ack.
    pub(super) fn len(&self) -> usize {
        self.unacked.len()
    }

    /// Waits for no ack any more.
    pub(super) fn give_up(&mut self) {
        self.unacked.clear();
    }

    /// Publishes a task, if it can go this way; otherwise it is given back, to go the long way.
    pub(super) fn publish(&mut self, new: Box<LaneTask<T>>) -> Result<(), Box<LaneTask<T>>> {
        let task = &new.task;
        let (Some(id), true) = (&task.id, self.fits(task)) else { return Err(new) };
        let Ok(subject) = task.subject() else { return Err(new) };
        let span = PublishSpan::start(task, id, TraceContext::current());
        let mut headers = task.headers(id, span.trace, None);
        headers.push((HEADER_MSG_ID.to_owned(), subject.message_id(NEW_TASK, id)));
        let (tag, place) = (self.next, subject.task());
        self.next += 1;
        let to = AckTo::Many(self.sender.clone(), tag);
        if !self.client.bus.publish_now(&place, &headers, task.payload.clone(), to) {
            return Err(new);
        }
        self.unacked.insert(tag, (new, span));
        Ok(())
    }

    fn fits(&mut self, task: &NewTask) -> bool {
        let fits = self.client.takes_short_way(task) && self.unacked.len() < PUBLISH_WINDOW;
        std::mem::replace(&mut self.is_checked, true) && fits
    }

    /// The next message that is acknowledged, or will not be here.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next_end(&mut self) -> LaneEnd<T> {
        loop {
            let Some((tag, ack)) = self.acks.recv().await else { return std::future::pending().await };
            if let Some(end) = self.end(tag, ack) {
                return end;
            }
        }
    }

    /// The same, if it is at hand.
    pub(super) fn ready_end(&mut self) -> Option<LaneEnd<T>> {
        loop {
            let (tag, ack) = self.acks.try_recv().ok()?;
            if let Some(end) = self.end(tag, ack) {
                return Some(end);
            }
        }
    }

    /// None of a message that is not waited for any more.
    fn end(&mut self, tag: u64, ack: Ack) -> Option<LaneEnd<T>> {
        let (published, span) = self.unacked.remove(&tag)?;
        if ack.is_err() {
            return Some(LaneEnd::NotAcknowledged(published));
        }
        failpoint::hit("publish.acked");
        let LaneTask { task, of } = *published;
        span.end(&task, task.id.as_deref().unwrap_or_default(), None);
        Some(LaneEnd::Stored(of))
    }
}

impl Client {
    /// Learns what [`Client::takes_short_way`] must know of a queue, if the server answers.
    pub(super) async fn learn_capacity(&self, queue: &str) {
        let limit = self.admission.max_waiting(queue, LEARN_WITHIN.into());
        let _ = tokio::join!(limit, self.capacity.learn());
    }

    /// Whether a task of a job can be published without a question before: nothing of it goes to the store of payloads, its queue is
    /// not bounded and TASKS not full, as was known a moment ago.
    fn takes_short_way(&self, task: &NewTask) -> bool {
        task.at_ms.is_none()
            && task.unique.is_none()
            && !task.has_stored_arguments()
            && self.admission.is_known_unbounded(&task.queue)
            && self.capacity.was_free()
    }
}
