//! What a program listens to. It hears what was published to that subject, and nothing else: a push consumer, whose `deliver_subject`
//! stands in the body of a request where no permission sees it, delivers to any subject of the account. What it delivers keeps the
//! subject that it was stored with, or is a status of the server (a heartbeat).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_nats::{Message, Subscriber};
use futures_util::{Stream, StreamExt};

use super::Bus;
use super::error::BusError;

/// A subscription, as a stream of messages that were published to its subject.
pub(crate) struct Subscription {
    /// What was subscribed to; it may have wildcards.
    filter: String,
    messages: Subscriber,
}

impl Bus {
    /// Listens to a subject.
    pub(crate) async fn listen(&self, filter: impl Into<String>) -> Result<Subscription, BusError> {
        let filter = filter.into();
        let messages = self.client.subscribe(filter.clone()).await.map_err(|e| BusError::new(&filter, &e))?;
        Ok(Subscription { filter, messages })
    }

    /// The same in a group, of which one hears each message.
    pub(crate) async fn listen_in_group(&self, filter: &str, group: &str) -> Result<Subscription, BusError> {
        let messages = self.client.queue_subscribe(filter.to_owned(), group.to_owned()).await;
        Ok(Subscription { filter: filter.to_owned(), messages: messages.map_err(|e| BusError::new(filter, &e))? })
    }
}

impl Subscription {
    /// The next message; none when the connection is closed for good, or after [`Subscription::end`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        StreamExt::next(self).await
    }

    /// Hears no more.
    pub(crate) async fn end(&mut self) {
        let _ = self.messages.unsubscribe().await;
    }

    /// Hears no more after this many messages.
    pub(crate) async fn end_after(&mut self, messages: u64) {
        let _ = self.messages.unsubscribe_after(messages).await;
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        loop {
            let Some(message) = ready!(self.messages.poll_next_unpin(context)) else { return Poll::Ready(None) };
            if message.status.is_none() && covers(&self.filter, &message.subject) {
                return Poll::Ready(Some(message));
            }
            tracing::debug!(subject = %message.subject, to = self.filter, "what was not published to here is not heard");
        }
    }
}

/// Whether a subscription to `filter` is one to `subject`, by the rules of NATS.
fn covers(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (_, token) if token == Some(wanted) => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_filter_covers_what_was_published_to_it() {
        for (filter, subject) in [
            ("ctl.replay", "ctl.replay"),
            ("events.reconnected.*", "events.reconnected.w1"),
            ("results.j.>", "results.j.q.k"),
        ] {
            assert!(covers(filter, subject), "{filter} {subject}");
        }
        for (filter, subject) in [
            ("ctl.replay", "$KV.millpond_shared.x"),
            ("ctl.replay", "ctl.replay.x"),
            ("ctl.replay", "ctl"),
            ("events.reconnected.*", "events.reconnected"),
            ("events.reconnected.*", "events.reconnected.a.b"),
            ("results.j.>", "results.j"),
            ("results.j.>", "results.k.q.k"),
        ] {
            assert!(!covers(filter, subject), "{filter} {subject}");
        }
    }
}
