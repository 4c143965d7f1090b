//! Sends and receives for one side of a pipe (`pipe` is its handle). The driver numbers messages, keeps each until the
//! other side has it, sends it again when that takes long, sends no more than the other side has capacity for, and sends
//! a sign of life each second. A side that was not heard for [`PIPE_LOST_AFTER`] is lost. docs/protocol.md has the messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pipe_state::{Outgoing, PeerEnd, PipeState};
use crate::bus::{Bus, Subscription};
use crate::call::read_failure;
use crate::limits::{PIPE_LOST_AFTER, PIPE_WINDOW};
use crate::outcome::Failure;
use crate::wire::bounds::parse_count;
use crate::wire::headers::{
    HEADER_PIPE_CAPACITY, HEADER_PIPE_END, HEADER_PIPE_GOT, HEADER_PIPE_SEQ, PIPE_END_FAILED, PIPE_END_GONE,
    PIPE_END_OK,
};

/// Each side of a pipe sends a sign of life this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// What the other side has not confirmed within this time is sent again.
const RESEND_AFTER: Duration = Duration::from_secs(1);
/// How long the other side may wait for the notice that a message was taken.
const NOTIFY_WITHIN: Duration = Duration::from_millis(5);

const _: () = assert!(KEEP_ALIVE_EVERY.as_millis() * 3 <= PIPE_LOST_AFTER.as_millis());

/// A message that was sent, and is kept until the other side has it.
struct Unacknowledged {
    seq: u64,
    end: Option<&'static str>,
    payload: Bytes,
}

/// The driver of one side. It must run while the side's handle is used.
pub struct PipeDriver {
    bus: Bus,
    /// The subject that the other side listens on.
    to: String,
    frames: Subscription,
    /// The worker's end ends the conversation, the caller's only its own direction.
    worker: bool,
    outgoing: mpsc::Receiver<Outgoing>,
    /// None once the other side has closed.
    incoming: Option<mpsc::Sender<Bytes>>,
    shared: Arc<PipeState>,
    left: CancellationToken,
    /// Number of the last message sent, and whether that was the end.
    sent: u64,
    closed: bool,
    /// Messages that the other side has not confirmed, and when they were sent last.
    kept: VecDeque<Unacknowledged>,
    kept_since: Instant,
    /// The other side has capacity up to this number.
    capacity: u64,
    /// All messages up to this number are here.
    got: u64,
    /// What the other side was notified of: the messages received, and the messages taken by the reader.
    notified: (u64, u64),
    /// When the other side is to be notified, if no message does it before.
    notify_at: Option<Instant>,
    sent_at: Instant,
    heard_at: Instant,
}

/// Whether the driver has more to do.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Over,
}

impl PipeDriver {
    /// A driver that has sent nothing yet. `worker`: it is the worker's side; `capacity`: of the other side.
    pub(super) fn new(
        bus: &Bus,
        to: String,
        worker: bool,
        capacity: u64,
        frames: Subscription,
        (outgoing, incoming): (mpsc::Receiver<Outgoing>, mpsc::Sender<Bytes>),
        (shared, left): (Arc<PipeState>, CancellationToken),
    ) -> Self {
        let (bus, now) = (bus.clone(), Instant::now());
        Self {
            bus,
            to,
            frames,
            worker,
            outgoing,
            incoming: Some(incoming),
            shared,
            left,
            sent: 0,
            closed: false,
            kept: VecDeque::new(),
            kept_since: now,
            capacity,
            got: 0,
            notified: (0, 0),
            notify_at: None,
            sent_at: now,
            heard_at: now,
        }
    }

    /// Sends and receives until the pipe is over.
    pub async fn run(mut self) {
        let shared = self.shared.clone();
        let left = self.left.clone();
        loop {
            let wake = self.wake_at();
            let next = tokio::select! {
                frame = self.frames.next() => match frame {
                    Some(frame) => self.receive(&frame).await,
                    None => self.lost(),
                },
                out = self.outgoing.recv(), if self.may_send() => match out {
                    Some(out) => self.send_next(out).await,
                    None if left.is_cancelled() => self.leave().await,
                    // Only the sending half was dropped.
                    None => self.send_next(Outgoing::End(Ok(()))).await,
                },
                // A worker that has ended has left in good order.
                () = left.cancelled(), if !(self.closed && self.worker) => self.leave().await,
                () = shared.took.notified() => self.notify_soon().await,
                () = tokio::time::sleep_until(wake) => self.wake().await,
            };
            if next == Next::Over {
                break;
            }
        }
        self.shared.over.cancel();
        self.incoming = None;
        self.frames.end().await;
    }

    async fn receive(&mut self, frame: &Message) -> Next {
        self.heard_at = Instant::now();
        let header = |name: &str| frame.headers.as_ref().and_then(|h| h.get(name)).map(async_nats::HeaderValue::as_str);
        let number = |name: &str| header(name).and_then(parse_count);
        if let Some(got) = number(HEADER_PIPE_GOT) {
            while self.kept.front().is_some_and(|kept| kept.seq <= got) {
                self.kept.pop_front();
                self.kept_since = self.heard_at;
            }
        }
        self.capacity = self.capacity.max(number(HEADER_PIPE_CAPACITY).unwrap_or(0));
        if header(HEADER_PIPE_END) == Some(PIPE_END_GONE) {
            return self.lost();
        }
        let Some(seq) = number(HEADER_PIPE_SEQ) else { return self.done() };
        if seq != self.got + 1 {
            // It came before, or one before it was lost: the other side learns what is here, and sends the rest.
            self.notify().await;
            return self.done();
        }
        if let Some(end) = header(HEADER_PIPE_END) {
            self.got = seq;
            let how = match end {
                PIPE_END_FAILED => PeerEnd::Failed(read_failure(&frame.payload).unwrap_or_else(|e| {
                    Failure::new("error", format!("the other side failed, and its reason cannot be read ({e})"))
                })),
                _ => PeerEnd::Done,
            };
            let _ = self.shared.peer.set(how);
            if !self.worker {
                self.shared.over.cancel();
            }
            self.incoming = None;
            self.notify().await;
            return if self.worker { self.done() } else { Next::Over };
        }
        match self.incoming.as_ref().map(|incoming| incoming.try_send(frame.payload.clone())) {
            // More than there was capacity for: it comes again.
            Some(Err(mpsc::error::TrySendError::Full(_))) => return self.done(),
            Some(Ok(())) => {}
            // The reader is gone.
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => {
                self.shared.taken.fetch_add(1, Ordering::Release);
            }
        }
        self.got = seq;
        self.notify_soon().await;
        self.done()
    }

    /// The worker's side is done once the caller has its end.
    fn done(&self) -> Next {
        if self.worker && self.closed && self.kept.is_empty() { Next::Over } else { Next::Go }
    }

    /// No more than a window is kept, also for a side that claims a large capacity and never confirms what arrived.
    fn may_send(&self) -> bool {
        let kept = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
        !self.closed && self.sent < self.capacity && kept < PIPE_WINDOW
    }

    async fn send_next(&mut self, out: Outgoing) -> Next {
        self.sent += 1;
        let (end, payload) = match out {
            Outgoing::Message(payload) => (None, payload),
            Outgoing::End(Ok(())) => (Some(PIPE_END_OK), Bytes::new()),
            Outgoing::End(Err(failure)) => {
                (Some(PIPE_END_FAILED), serde_json::to_vec(&failure).unwrap_or_default().into())
            }
        };
        if end.is_some() {
            self.closed = true;
            // A sender that still has a message learns that it is too late.
            self.outgoing.close();
        }
        if self.kept.is_empty() {
            self.kept_since = Instant::now();
        }
        let kept = Unacknowledged { seq: self.sent, end, payload };
        self.send(Some(&kept)).await;
        self.kept.push_back(kept);
        Next::Go
    }

    /// The handle was dropped before the end.
    async fn leave(&mut self) -> Next {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_PIPE_END, PIPE_END_GONE);
        self.publish(headers, Bytes::new()).await;
        self.lost()
    }

    fn lost(&mut self) -> Next {
        let _ = self.shared.peer.set(PeerEnd::Lost);
        self.shared.over.cancel();
        Next::Over
    }

    fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Acquire)
    }

    /// Notifies the other side in a moment: most often a message is sent before, which carries it too.
    async fn notify_soon(&mut self) -> Next {
        let taken = self.taken();
        if taken - self.notified.1 >= PIPE_WINDOW / 2 {
            return self.notify().await;
        }
        if (self.got, taken) != self.notified {
            self.notify_at.get_or_insert_with(|| Instant::now() + NOTIFY_WITHIN);
        }
        Next::Go
    }

    async fn notify(&mut self) -> Next {
        self.send(None).await;
        Next::Go
    }

    fn wake_at(&self) -> Instant {
        let again = (!self.kept.is_empty()).then(|| self.kept_since + RESEND_AFTER);
        let times = [Some(self.sent_at + KEEP_ALIVE_EVERY), self.notify_at, again];
        let first = times.into_iter().flatten().min().unwrap_or(self.sent_at);
        first.min(self.heard_at + PIPE_LOST_AFTER)
    }

    /// Time has passed.
    async fn wake(&mut self) -> Next {
        let now = Instant::now();
        if now >= self.heard_at + PIPE_LOST_AFTER {
            self.leave().await;
            return self.lost();
        }
        if !self.kept.is_empty() && now >= self.kept_since + RESEND_AFTER {
            self.kept_since = now;
            let kept = std::mem::take(&mut self.kept);
            for one in &kept {
                self.send(Some(one)).await;
            }
            self.kept = kept;
        } else if now >= self.sent_at + KEEP_ALIVE_EVERY || self.notify_at.is_some_and(|at| now >= at) {
            self.send(None).await;
        }
        Next::Go
    }

    /// Sends a message, or only the confirmation of what arrived and was taken.
    async fn send(&mut self, kept: Option<&Unacknowledged>) {
        let taken = self.taken();
        (self.notified, self.notify_at, self.sent_at) = ((self.got, taken), None, Instant::now());
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_PIPE_GOT, self.got.to_string());
        headers.insert(HEADER_PIPE_CAPACITY, (taken + PIPE_WINDOW).to_string());
        if let Some(kept) = kept {
            headers.insert(HEADER_PIPE_SEQ, kept.seq.to_string());
        }
        if let Some(end) = kept.and_then(|kept| kept.end) {
            headers.insert(HEADER_PIPE_END, end);
        }
        self.publish(headers, kept.map_or_else(Bytes::new, |kept| kept.payload.clone())).await;
    }

    async fn publish(&self, headers: HeaderMap, payload: Bytes) {
        // Without a connection it would wait in a buffer; what is kept is sent again when there is one.
        if self.bus.is_connected()
            && let Err(error) = self.bus.client.publish_with_headers(self.to.clone(), headers, payload).await
        {
            tracing::debug!(%error, to = %self.to, "a message of a pipe was not sent");
        }
    }
}
