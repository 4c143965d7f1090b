//! Newline-delimited JSON, one value a line, read no faster than somebody wants it.

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use millpond::limits::TASK_BYTES_MAX;
use millpond_service::request::BROKEN_OFF;
use serde_json::value::RawValue;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

/// The media type that is written.
pub(crate) const TYPE: &str = "application/x-ndjson";
/// Media types of newline-delimited JSON that are in use.
pub(crate) const TYPES: [&str; 4] = [TYPE, "application/ndjson", "application/jsonl", "application/x-jsonlines"];

/// The byte order mark that some programs write at the start of a file; it belongs to no value.
const MARK: char = '\u{feff}';

/// The lines that are not blank, each one JSON value; the first that is not ends it.
pub(crate) fn lines(body: Body) -> impl Stream<Item = Result<Bytes, String>> + Send + 'static {
    let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(TASK_BYTES_MAX));
    lines.zip(futures_util::stream::iter(1u64..)).filter_map(async |(line, number)| match line {
        Ok(line) if line.trim_start_matches(MARK).trim().is_empty() => None,
        Ok(line) => match serde_json::from_str::<&RawValue>(line.strip_prefix(MARK).unwrap_or(&line)) {
            Ok(value) => Some(Ok(Bytes::from(value.get().to_owned()))),
            Err(wrong) => Some(Err(format!("line {number} is not one JSON value: {wrong}"))),
        },
        Err(wrong) => Some(Err(format!("line {number} cannot be read: {}", why(&wrong)))),
    })
}

fn why(wrong: &LinesCodecError) -> String {
    match wrong {
        LinesCodecError::MaxLineLengthExceeded => format!("it has more than {TASK_BYTES_MAX} bytes"),
        LinesCodecError::Io(wrong) if wrong.kind() == std::io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
        LinesCodecError::Io(_) => format!("the body is at fault: {BROKEN_OFF}"),
    }
}
