//! The renewal of a worker's leases. It extends them each second whatever the handlers do, notices pauses and reconnects
//! and begins a new connection generation with each, sends unanswered acks again, and sweeps start records of messages
//! that are gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::lease_table::{ACK_ANSWER_WITHIN, LeaseTable, PAUSE_MIN};
use crate::bus::Connection;
use crate::bus::read::buckets::BucketWatch;
use crate::bus::topology::stream_state;
use crate::limits::{LEASE_ACK_WAIT, LEASE_SETTLED_KEEP};
use crate::wire::streams::{BUCKET_QUEUES, STREAM_DUE, STREAM_TASKS};
use crate::wire::subject;

/// How often a worker extends what it holds.
const LEASE_RENEW_EVERY: Duration = Duration::from_secs(1);

/// How often the renewal checks whether this process was paused.
const PAUSE_TICK: Duration = Duration::from_millis(100);
/// How often start records of messages that are gone are swept.
const START_SWEEP_EVERY: Duration = Duration::from_secs(600);

const _: () = assert!(LEASE_RENEW_EVERY.as_millis() * 3 <= LEASE_ACK_WAIT.as_millis());
const _: () = assert!(PAUSE_MIN.as_millis() + LEASE_RENEW_EVERY.as_millis() < LEASE_ACK_WAIT.as_millis());

/// Looks at the connection again and again.
struct ConnectionLooks {
    connection: watch::Receiver<Connection>,
    /// Its number of changes at the last look.
    seen: u64,
}

impl ConnectionLooks {
    /// The connection after a tick, or as soon as it changes, and whether it has changed since the last look. A tick and a change
    /// are often due at once: the number of changes tells, not which of them was served.
    async fn next(&mut self, tick: impl Future) -> (Connection, bool) {
        tokio::select! {
            _ = tick => {}
            Ok(()) = self.connection.changed() => {}
        }
        let now = *self.connection.borrow_and_update();
        (now, std::mem::replace(&mut self.seen, now.changes) != now.changes)
    }
}

/// Extends every lease, for ever; first thing after a reconnect or a pause.
pub(super) async fn renew(table: Arc<LeaseTable>) {
    let mut looks = ConnectionLooks { connection: table.bus.connection(), seen: 0 };
    let mut tick = tokio::time::interval(PAUSE_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut extended = Instant::now();
    let mut lost_ms = None;
    loop {
        let (now, changed) = looks.next(tick.tick()).await;
        let paused = table.was_paused();
        if paused || changed {
            table.begin_generation();
            if changed {
                table.forget_server();
            }
        }
        table.note_renewal();
        if !now.up {
            if changed {
                lost_ms = Some(crate::now_ms());
                table.barrier.close();
            }
            continue;
        }
        // The first change is the connection itself.
        if changed && now.changes > 1 {
            table.barrier.begin(&table.bus, table.worker(), lost_ms.take().unwrap_or_else(crate::now_ms));
            // It may have been a message that this client cannot read: the collector looks for it.
            table.bus.publish_core(&subject::worker_reconnected(table.worker()), Bytes::new()).await;
        }
        if paused || changed || extended.elapsed() >= LEASE_RENEW_EVERY {
            extended = Instant::now();
            extend(&table, paused || changed).await;
        }
        if !*table.server_known.borrow() {
            let records = async {
                table.consumers.read(&table.bus).await?;
                table.bus.server_record().await
            };
            match tokio::time::timeout(PAUSE_MIN / 2, records).await {
                Ok(Ok(record)) => table.learn_server(record),
                Ok(Err(error)) => tracing::debug!(%error, "the server does not answer yet"),
                Err(_) => {}
            }
        }
    }
}

/// Extends what is held, and sends acks again that have had no answer for as long; all of them when `unsure` of the connection.
async fn extend(table: &Arc<LeaseTable>, unsure: bool) {
    let (held, unanswered) = {
        let mut state = table.state();
        let now = Instant::now();
        state.unanswered.retain(|_, ack| now < ack.sent + ACK_ANSWER_WITHIN + LEASE_SETTLED_KEEP);
        let held: Vec<_> =
            state.held.values().map(|h| (h.queue.clone(), h.original_id.clone(), h.reply.clone())).collect();
        let acks = state.unanswered.iter().map(|(number, ack)| (*number, ack));
        let unanswered: Vec<_> = acks
            .map(|(number, ack)| {
                let is_late = unsure || now > ack.sent + LEASE_RENEW_EVERY;
                (ack.queue.clone(), ack.original_id.clone(), is_late.then(|| (number, ack.reply.clone())))
            })
            .collect();
        (held, unanswered)
    };
    for (_, _, reply) in &held {
        let _ = table.bus.client.publish(reply.clone(), Bytes::from_static(b"+WPI")).await;
    }
    let held = held.into_iter().map(|(queue, id, _)| (queue, id));
    let mut wanted = HashSet::new();
    for (queue, original_id) in held.chain(unanswered.iter().map(|(queue, id, _)| (queue.clone(), id.clone()))) {
        table.listen(&queue, &original_id).await;
        wanted.insert(subject::lease_who(&queue, &original_id));
    }
    table.listeners.retain(|subject| wanted.contains(subject));
    for (number, reply) in unanswered.into_iter().filter_map(|(_, _, late)| late) {
        table.send_ack(number, reply).await;
    }
}

/// Learns of consumers that are made again, for ever.
pub(super) async fn follow_consumers(table: Arc<LeaseTable>) {
    let mut watch = BucketWatch::new(&table.bus, BUCKET_QUEUES);
    loop {
        table.consumers.learn(&watch.next().await);
    }
}

/// Removes start records of messages that are gone, for ever.
pub(super) async fn sweep(table: Arc<LeaseTable>) {
    loop {
        tokio::time::sleep(START_SWEEP_EVERY).await;
        for stream in [STREAM_TASKS, STREAM_DUE] {
            let Ok(state) = stream_state(&table.bus, stream).await else { continue };
            match table.starts.sweep(stream, &state.epoch, state.first_seq).await {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(stream, swept, "start records of tasks that are gone removed"),
                Err(error) => tracing::debug!(%error, "sweep of start records failed, will try again"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_that_comes_with_a_tick_is_seen() {
        let (sender, connection) = watch::channel(Connection { changes: 0, up: true });
        let mut looks = ConnectionLooks { connection, seen: 0 };
        // Of two that are ready either may be served: fifty times each, most likely.
        for changes in 1..100 {
            let now = Connection { changes, up: changes % 2 == 0 };
            sender.send_replace(now);
            assert_eq!(looks.next(std::future::ready(())).await, (now, true));
            assert_eq!(looks.next(std::future::ready(())).await, (now, false));
        }
        // Lost and back between two looks.
        sender.send_replace(Connection { changes: 100, up: true });
        sender.send_replace(Connection { changes: 102, up: true });
        assert_eq!(looks.next(std::future::ready(())).await, (Connection { changes: 102, up: true }, true));
        drop(sender);
        assert_eq!(looks.next(std::future::ready(())).await, (Connection { changes: 102, up: true }, false));
    }
}
