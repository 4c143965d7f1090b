//! One job as it is known now: its row in the store, a record that was written a moment ago, and, of a job without a record, what
//! of it lies on the bus.

use millpond::bus::Bus;
use millpond::bus::read::raw::RawMessage;
use millpond::wire::subject::TaskSubject;
use millpond_api::jobs::{JobRow, JobStatus};

use crate::caught_up::caught_up;
use crate::store::{Store, StoreError};

/// The job; none when neither the store nor the bus has anything of it.
///
/// # Errors
/// When the store does not answer. What NATS does not answer is left out.
pub(crate) async fn known_job(bus: &Bus, store: &Store, job: &str) -> Result<Option<JobRow>, StoreError> {
    let stored = store.job(job).await?;
    let state = stored.as_ref().map(|row| row.state);
    if matches!(state, Some(JobStatus::Finished | JobStatus::Cancelled)) || !bus.is_connected() {
        return Ok(stored);
    }
    match bus.job(job).await {
        Ok(Some(entry)) if stored.as_ref().and_then(|row| row.heartbeat_ms) != Some(entry.record.heartbeat_ms) => {
            // It was written a moment ago, and is still on its way here.
            store.put_job(&entry.record, entry.stored_ms).await?;
            store.job(job).await
        }
        Ok(None) if matches!(state, None | Some(JobStatus::Session)) => without_record(bus, store, job, stored).await,
        _ => Ok(stored),
    }
}

/// A job that is known by its tasks alone: it has ended when nothing of it lies on the bus, and all that was on the bus is stored.
async fn without_record(
    bus: &Bus,
    store: &Store,
    job: &str,
    stored: Option<JobRow>,
) -> Result<Option<JobRow>, StoreError> {
    let ended = match bus.first_of_job(job).await {
        Ok(Some(message)) => {
            let row = stored.or_else(|| before_first_end(job, &message));
            return Ok(row.map(|row| JobRow { ended: Some(false), ..row }));
        }
        Ok(None) => caught_up(bus).await,
        Err(error) => {
            tracing::debug!(job, %error, "it is not known what of a job lies on the bus");
            return Ok(stored);
        }
    };
    Ok(store.job(job).await?.map(|row| JobRow { ended: Some(ended), ..row }))
}

/// Its row while no task of it has ended an attempt.
fn before_first_end(job: &str, message: &RawMessage) -> Option<JobRow> {
    let subject = TaskSubject::parse(&message.subject).ok().or_else(|| TaskSubject::parse_sched(&message.subject))?;
    Some(JobRow {
        job: job.to_owned(),
        state: JobStatus::Session,
        queue: subject.queue,
        kind: subject.kind,
        total: None,
        published: None,
        done: 0,
        retrying: 0,
        dead: 0,
        cancelled: 0,
        purged: 0,
        created_ms: message.stored_ms,
        heartbeat_ms: None,
        epoch: None,
        continuation: None,
        continuation_refused: None,
        ended: None,
    })
}
