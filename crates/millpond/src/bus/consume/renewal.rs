//! The keeper of a worker's leases: extends them each second whatever the handlers do, notices pauses and reconnects
//! (then the roll is called: bus/consume/membership_barrier.rs), sends unanswered acks again, and sweeps start records of messages that are gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::bus::consume::lease::LeaseTable;
use crate::bus::consume::lease::PAUSE_MIN;
use crate::bus::topology::stream_state;
use crate::limits::LEASE_ACK_WAIT;
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::wire::subject;

/// How often start records of tasks that are gone are swept.
const START_SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How often a worker checks whether it was paused itself.
const PAUSE_TICK: Duration = Duration::from_millis(100);
/// How often a worker renews the leases that it holds.
const LEASE_RENEW_EVERY: Duration = Duration::from_secs(1);

const _: () = assert!(LEASE_RENEW_EVERY.as_millis() * 3 <= LEASE_ACK_WAIT.as_millis());
const _: () = assert!(PAUSE_MIN.as_millis() + LEASE_RENEW_EVERY.as_millis() < LEASE_ACK_WAIT.as_millis());

/// The keeper: extends every lease whatever the handlers do, first thing after a reconnect or a pause.
pub(in crate::bus) async fn keep(shared: Arc<LeaseTable>) {
    let mut connection = shared.bus.connection();
    let mut tick = tokio::time::interval(PAUSE_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut extended = Instant::now();
    let mut lost_ms = None;
    loop {
        let changed = tokio::select! {
            _ = tick.tick() => false,
            changed = connection.changed() => changed.is_ok(),
        };
        let paused = shared.was_paused();
        if paused || changed {
            shared.generation.fetch_add(1, Ordering::SeqCst);
            if changed {
                shared.forget_server();
            }
        }
        shared.look();
        let now = *connection.borrow_and_update();
        if !now.up {
            if changed {
                lost_ms = Some(crate::now_ms());
                shared.roll_call.lost();
            }
            continue;
        }
        // The first change is that it is there at all.
        if changed && now.epoch > 1 {
            shared.roll_call.begin(&shared.bus, shared.worker(), lost_ms.take().unwrap_or_else(crate::now_ms));
        }
        if paused || changed || extended.elapsed() >= LEASE_RENEW_EVERY {
            extended = Instant::now();
            extend(&shared).await;
        }
        if !*shared.known.borrow() {
            match tokio::time::timeout(PAUSE_MIN / 2, shared.bus.server_record()).await {
                Ok(Ok(record)) => shared.learn(record),
                Ok(Err(error)) => tracing::debug!(%error, "the server does not answer yet"),
                Err(_) => {}
            }
        }
    }
}

async fn extend(shared: &Arc<LeaseTable>) {
    let (held, again) = {
        let mut state = shared.state();
        let now = Instant::now();
        state.unanswered.retain(|u| u.until > now);
        let held: Vec<_> =
            state.held.values().map(|h| (h.queue.clone(), h.original_id.clone(), h.reply.clone())).collect();
        let again: Vec<_> =
            state.unanswered.iter().map(|u| (u.queue.clone(), u.original_id.clone(), u.reply.clone())).collect();
        (held, again)
    };
    for (_, _, reply) in &held {
        let _ = shared.bus.client.publish(reply.clone(), Bytes::from_static(b"+WPI")).await;
    }
    for (queue, original_id, _) in held.iter().chain(&again) {
        shared.listeners.listen(shared, queue, original_id).await;
    }
    let wanted: HashSet<String> =
        held.iter().chain(&again).map(|(queue, original_id, _)| subject::lease_who(queue, original_id)).collect();
    shared.listeners.retain(|subject| wanted.contains(subject));
    // All at once: the keeper must be back before it would take itself for paused.
    let acks = again.into_iter().map(|(_, _, reply)| async move {
        let answer = shared.bus.client.request(reply.clone(), Bytes::new());
        if let Ok(Ok(_)) = tokio::time::timeout(PAUSE_TICK, answer).await {
            shared.state().unanswered.retain(|u| u.reply != reply);
        }
    });
    futures_util::future::join_all(acks).await;
}

/// Removes start records of messages that are gone.
pub(in crate::bus) async fn sweep(shared: Arc<LeaseTable>) {
    loop {
        tokio::time::sleep(START_SWEEP_EVERY).await;
        for stream in [STREAM_TASKS, STREAM_DUE] {
            let Ok(state) = stream_state(&shared.bus, stream).await else { continue };
            match shared.starts.sweep(stream, &state.epoch, state.first_seq).await {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(stream, swept, "start records of tasks that are gone removed"),
                Err(error) => tracing::debug!(%error, "sweep of start records failed, will try again"),
            }
        }
    }
}
