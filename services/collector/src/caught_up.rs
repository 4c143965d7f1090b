//! Reading what is complete: a request is answered from the store once the store has all that RESULTS and DEAD held when the
//! request came. So what a client has heard of the end of a job is there when it asks for the job.

use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeStream};
use millpond::bus::topology::stream_state;

/// A request waits for no longer: it is answered with what is there.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(5);
/// How often the collectors' consumers are polled meanwhile.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// Waits until all that the streams hold now is stored; false when that is not known.
pub(crate) async fn caught_up(bus: &Bus) -> bool {
    let both = async { tokio::try_join!(is_stored(bus, OutcomeStream::Results), is_stored(bus, OutcomeStream::Dead)) };
    match tokio::time::timeout(CAUGHT_UP_WITHIN, both).await {
        Ok(Ok(_)) => return true,
        Ok(Err(error)) => tracing::debug!(%error, "it is not known how far the store is; answering with what it has"),
        Err(_) => tracing::debug!("the store is behind the streams; answering with what it has"),
    }
    false
}

async fn is_stored(bus: &Bus, from: OutcomeStream) -> Result<(), BusError> {
    let (last, reader) = (stream_state(bus, from.stream()).await?.last_seq, OutcomeReader::new(bus.clone(), from));
    let mut was_idle = false;
    loop {
        let state = reader.state().await?;
        // Acknowledged is what is committed, by this collector or by another one of the same store.
        let is_idle = state.pending + state.ack_pending == 0;
        // Twice: the server counts a message a moment after it is stored.
        if state.ack_floor >= last || is_idle && was_idle {
            return Ok(());
        }
        was_idle = is_idle;
        tokio::time::sleep(POLL_EVERY).await;
    }
}
