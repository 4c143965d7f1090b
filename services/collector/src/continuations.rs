//! Publishes the continuations of jobs that have ended: each is requested from a producer service on `ctl.continuation`, again until
//! one answers that it is stored, or that it is refused for good. After a death in between it is requested twice: the task has one id, and the store keeps
//! one end of it.

use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::operate::control::{CTL_CONTINUATION, ControlReply, JobEnded};
use millpond::failpoint;
use millpond::outcome::cut;

use crate::store::{ContinuationEnd, Store};

/// How long a producer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long until a request that failed is sent again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Bytes of the reason of a refusal that are kept.
const REASON_BYTES_MAX: usize = 2048;

/// Follows the store for ever.
pub(crate) async fn follow(bus: Bus, store: Store) {
    let mut failing = false;
    loop {
        match publish_due(&bus, &store).await {
            Ok(()) => {
                failing = false;
                store.continuations_changed().await;
                continue;
            }
            // Logged once, until it goes well again.
            Err(error) if !failing => {
                tracing::warn!(%error, "the continuation of a job cannot be published, will try again");
            }
            Err(_) => {}
        }
        failing = true;
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Publishes the continuation of each job that has ended; one that fails does not stop the others.
async fn publish_due(bus: &Bus, store: &Store) -> Result<(), String> {
    let ended = store.due_continuations().await.map_err(|e| format!("the store cannot be read: {e}"))?;
    let mut result = Ok(());
    for job in ended {
        if let Err(error) = publish(bus, store, &job).await {
            result = Err(format!("job {}: {error}", job.job));
        }
    }
    result
}

async fn publish(bus: &Bus, store: &Store, ended: &JobEnded) -> Result<(), String> {
    let settled = if store.is_cancelled(&ended.job, ended.epoch) {
        ContinuationEnd::Cancelled
    } else {
        failpoint::hit("collector.continuation_ready");
        match bus.request(CTL_CONTINUATION, ended, ANSWER_WITHIN).await {
            Ok(ControlReply::Ok(_)) => {
                failpoint::hit("collector.continuation_published");
                ContinuationEnd::Stored
            }
            Ok(ControlReply::Refused(reason)) => {
                tracing::warn!(job = ended.job, reason, "the continuation of a job is refused for good");
                ContinuationEnd::Refused(cut(reason, REASON_BYTES_MAX))
            }
            Ok(ControlReply::Error(text)) => return Err(text),
            Err(fault) => return Err(format!("{fault}; is a producer running (`millpond producer run`)?")),
        }
    };
    let settled = store.continuation_settled(&ended.job, ended.epoch, &settled).await;
    settled.map_err(|e| format!("the store cannot be written: {e}"))
}
