//! Names on the wire, without I/O: subjects, headers, the names of streams and buckets, the wire number and the decoder. The words above and the
//! bus below both import this; it imports neither. docs/protocol.md is the normative text.

pub mod bounds;
pub mod decode;
pub mod header_block;
pub mod header_names;
pub mod headers;
pub mod number;
pub mod server_errors;
pub mod streams;
pub mod subject;
