//! Names on the wire, without I/O: subjects, headers, and the names of streams and buckets. The words above and the
//! bus below both import this; it imports neither. docs/protocol.md is the normative text.

pub mod headers;
pub mod streams;
pub mod subject;
