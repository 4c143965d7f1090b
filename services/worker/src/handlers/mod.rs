//! Handlers: what runs a task of one kind. Arguments in, a JSON value or a failure out; no NATS, no storage.
//! One file per built-in kind; [`built_in`] lists them.

mod fail;
mod fetch;
mod primes;
mod simple;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use millpond::outcome::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

/// What a handler returns: a JSON value, or why there is none.
pub type Reply = Result<Box<RawValue>, Failure>;

/// One task as its handler sees it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Id of the task, or `<root>/<i>` of an item of a batch.
    pub id: String,
    /// From 1.
    pub attempt: u32,
    /// The arguments as published; use [`Call::args`] where they are JSON.
    pub payload: Bytes,
    /// Cancelled when nobody waits for the answer any more: after the timeout, or at the end of the drain.
    pub stop: CancellationToken,
}

impl Call {
    /// The arguments, decoded from JSON.
    ///
    /// # Errors
    /// A failure `bad_arguments` that is not tried again.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.payload).map_err(|error| {
            let start: String = String::from_utf8_lossy(self.payload.get(..80).unwrap_or(&self.payload)).into();
            Failure::fatal("bad_arguments", format!("arguments {start:?} do not fit: {error}"))
        })
    }
}

/// A value as a handler's reply.
///
/// # Errors
/// A failure `bad_result` when the value cannot be JSON.
pub fn reply<T: Serialize>(value: &T) -> Reply {
    serde_json::value::to_raw_value(value).map_err(|e| Failure::fatal("bad_result", e.to_string()))
}

/// How a handler runs.
#[derive(Clone)]
pub(crate) enum Handler {
    /// On the runtime: for work that waits, or that takes microseconds.
    Async(Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>),
    /// On a thread of its own: for work that computes.
    Blocking(Arc<dyn Fn(&Call) -> Reply + Send + Sync>),
}

/// Handlers by kind.
pub(crate) type Handlers = BTreeMap<String, Handler>;

fn on_runtime<F>(handler: impl Fn(Call) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Reply> + Send + 'static,
{
    Handler::Async(Arc::new(move |call| Box::pin(handler(call))))
}

fn on_thread(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Handler {
    Handler::Blocking(Arc::new(handler))
}

/// The kinds that every worker knows.
pub(crate) fn built_in() -> Handlers {
    let client = fetch::client();
    [
        ("echo", on_runtime(simple::echo)),
        ("square", on_runtime(simple::square)),
        ("sleep", on_runtime(simple::sleep)),
        ("spin", on_thread(simple::spin)),
        ("is_prime", on_thread(primes::is_prime)),
        ("count_primes", on_thread(primes::count_primes)),
        ("fetch", on_runtime(move |call| fetch::fetch(client.clone(), call))),
        ("fail", on_runtime(fail::fail)),
    ]
    .into_iter()
    .map(|(kind, handler)| (kind.to_owned(), handler))
    .collect()
}
