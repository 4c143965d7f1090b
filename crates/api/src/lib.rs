//! What the two HTTP services are asked and what they answer, as types: the services write and read them, the command
//! line and the tests too, and the OpenAPI documents are derived from them. Arguments and results of tasks are
//! [`RawValue`](serde_json::value::RawValue): nobody on the way changes a number, an order of keys or a double key.
//! Not here: routes, HTTP, the store.
//!
//! Times are Unix time in milliseconds (`…_ms`). A field that is missing in JSON and one that is null read the same,
//! except for arguments and results, where null is a value.

pub mod dead_letters;
pub mod error;
pub mod jobs;
pub mod list;
pub mod overview;
pub mod publish;
pub mod queues;
pub mod schedules;
pub mod session;
pub mod tasks;
pub mod workers;

mod ids;
mod named;
pub mod raw;
mod time;
