//! Handlers: each runs the tasks of one kind. It gets arguments and returns a JSON value or a failure; no NATS, no storage.
//! The built-in kinds have files of their own; [`built_in`] lists them.

mod fail;
mod fetch;
mod primes;
mod simple;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use millpond::bus::call::pipe::Pipe;

use crate::call::{Call, Reply};
use crate::supervisor::{ChildTicket, ChildUnavailable, Children, Timeouts};

/// How a handler runs.
#[derive(Clone)]
pub(crate) enum Handler {
    /// On the runtime: for work that waits, or that takes microseconds.
    Async(Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>),
    /// On a thread of its own: for work that computes.
    Blocking(Arc<dyn Fn(&Call) -> Reply + Send + Sync>),
    /// In a process of its own.
    Child(Arc<Children>),
    /// In conversations: it takes calls, no tasks.
    Pipe(PipeHandler),
}

/// A handler that converses.
#[derive(Clone)]
pub(crate) enum PipeHandler {
    /// On the runtime.
    Own(Arc<dyn Fn(Call, Pipe) -> BoxFuture<'static, Reply> + Send + Sync>),
    /// In a process for each conversation.
    Child(Arc<Children>),
}

/// A handler with all that it needs to start.
pub(crate) enum ReadyHandler {
    Async(Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>),
    Blocking(Arc<dyn Fn(&Call) -> Reply + Send + Sync>),
    Child(ChildTicket),
}

impl Handler {
    /// When an attempt is asked to stop and when it is ended. The task's own timeout goes first, then that of its kind.
    pub(crate) fn timeouts(&self, of_task: Option<Duration>, default: Duration) -> Timeouts {
        let hard = of_task.unwrap_or_else(|| self.usual_timeout(default));
        let Self::Child(children) = self else { return Timeouts { soft: None, hard } };
        Timeouts { soft: children.spec.table.soft_timeout.filter(|soft| *soft < hard), hard }
    }

    /// The timeout of a task that brings none.
    pub(crate) fn usual_timeout(&self, default: Duration) -> Duration {
        let Self::Child(children) = self else { return default };
        children.spec.table.timeout.unwrap_or(default)
    }

    /// The longest timeout that a task may bring; `default` where its kind says nothing of timeouts.
    pub(crate) fn timeout_max(&self, default: Duration) -> Duration {
        let Self::Child(children) = self else { return default };
        let table = &children.spec.table;
        table.timeout_max.or(table.timeout).unwrap_or(default)
    }

    /// Whether its arguments must be in a file where they are not JSON that fits a line.
    pub(crate) fn takes_lines(&self) -> bool {
        matches!(self, Self::Child(children) if children.takes_lines())
    }

    /// Gives a file to the user that the kind runs as, where it is not the worker's.
    ///
    /// # Errors
    /// When the system refuses it.
    pub(crate) fn give(&self, file: &Path) -> io::Result<()> {
        let Self::Child(children) = self else { return Ok(()) };
        children.spec.user.as_ref().map_or(Ok(()), |user| user.give(file))
    }

    /// Waits for a child where the kind runs in children.
    ///
    /// # Errors
    /// [`ChildUnavailable`] when none can be had for a while.
    pub(crate) async fn ready(&self) -> Result<ReadyHandler, ChildUnavailable> {
        Ok(match self {
            Self::Async(handler) => ReadyHandler::Async(handler.clone()),
            Self::Blocking(handler) => ReadyHandler::Blocking(handler.clone()),
            Self::Child(children) => ReadyHandler::Child(Box::pin(children.ticket()).await?),
            // Admission dead-letters the tasks of such kinds.
            Self::Pipe(_) => return Err(ChildUnavailable { retry_after: Duration::from_secs(1) }),
        })
    }
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

/// The kinds of [`millpond::worker_record::BUILT_IN_KINDS`]. `fetch_local`: `fetch` may go to this machine and its link.
pub(crate) fn built_in(fetch_local: bool) -> Handlers {
    let client = fetch::client(fetch_local);
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
