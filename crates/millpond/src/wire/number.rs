//! The wire number: which names and formats a program speaks. TASKS carries the number in its metadata, a worker's
//! record carries that of the worker. docs/protocol.md ("Wire number") says how to get from one number to the next.

/// The wire number of this program. Each change of a subject, a header, a bucket or a record that another version would
/// misread raises it, with a line here, in CHANGELOG.md and in docs/protocol.md.
///
/// - 1: streams and worker records without a number, made before there was one.
/// - 2: streams and worker records carry the number; original id, continuation, owner and capacity have their names;
///   `lease.name`, `events.reconnected`, `events.clock`, `ctl.request.status`, `ctl.request.cancel`, `ctl.request.schedule`, records of a queue's
///   consumers and pause, `clock_ahead_ms`, `Millpond-Raw-Headers`, `Millpond-Bytes`, `Millpond-Starts` and the answer
///   `refused` are new, and so is `{"job"}` on `ctl.request.results`; dead letters are signed, and what a job's end starts is
///   signed by who submits the job; names of our headers have no case, and those that mean nothing are refused; an id is
///   unique in its queue and kind, and all that names a task names both; failed attempts have the `span` of theirs, and
///   `Millpond-Replay-Of` has `trace` and `span` of the attempt that died, where these were exported; tasks with a time of
///   clients go to LATER (`later.<queue>.<kind>`, `Millpond-Delay`, `Millpond-At`), with the record `moved` in DUE and
///   `later_up_to` of purges; `ctl.request.schedule`.
pub const WIRE_NUMBER: u32 = 2;

/// The number of streams and worker records that carry none.
pub const WIRE_NUMBER_UNWRITTEN: u32 = 1;

/// Key of the number in the metadata of TASKS.
pub const METADATA_WIRE_NUMBER: &str = "millpond-wire";

/// Two versions of millpond that do not understand each other have met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireMismatch {
    /// The streams are of another number.
    #[error(
        "this program speaks wire number {program}, the streams are of number {streams}: upgrade the older one; docs/protocol.md#wire-number"
    )]
    Streams {
        /// The number of this program.
        program: u32,
        /// The number of the streams.
        streams: u32,
    },
    /// A live worker is of another number than the streams are to be.
    #[error(
        "this setup makes streams of wire number {program}, the live worker {worker} speaks number {number}: stop workers of that version first; docs/protocol.md#wire-number"
    )]
    Worker {
        /// The number of this program.
        program: u32,
        /// The worker's name.
        worker: String,
        /// The number of the worker.
        number: u32,
    },
}

/// Compares the number of the streams, as their metadata has it, with this program's.
///
/// # Errors
/// [`WireMismatch::Streams`] when they differ.
pub fn check_streams(written: Option<&str>) -> Result<(), WireMismatch> {
    // A number that cannot be read is not this program's: 0 stands for it.
    let streams = written.map_or(WIRE_NUMBER_UNWRITTEN, |text| text.parse().unwrap_or(0));
    if streams == WIRE_NUMBER { Ok(()) } else { Err(WireMismatch::Streams { program: WIRE_NUMBER, streams }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_a_number_is_of_the_first() {
        assert_eq!(check_streams(Some(&WIRE_NUMBER.to_string())), Ok(()));
        assert_eq!(check_streams(None), Err(WireMismatch::Streams { program: WIRE_NUMBER, streams: 1 }));
        assert_eq!(check_streams(Some("77")), Err(WireMismatch::Streams { program: WIRE_NUMBER, streams: 77 }));
        assert!(check_streams(Some("x")).is_err());
    }
}
