//! Handlers: what runs a task of one kind. Arguments in, a JSON value or a failure out; no NATS, no storage.
//! One file per built-in kind; [`built_in`] lists them.

mod fail;
mod fetch;
mod primes;
mod simple;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use millpond::bus::call::pipe::Pipe;
use millpond::limits::UNKNOWN_KIND_DELAY;

use crate::call::{Call, Reply, reply};
use crate::supervisor::{NotNow, Pool, Ticket, Timeouts};

/// How a handler runs.
#[derive(Clone)]
pub(crate) enum Handler {
    /// On the runtime: for work that waits, or that takes microseconds.
    Async(Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>),
    /// On a thread of its own: for work that computes.
    Blocking(Arc<dyn Fn(&Call) -> Reply + Send + Sync>),
    /// In a process of its own.
    Child(Arc<Pool>),
    /// It converses: calls only, no tasks.
    Pipe(Talker),
}

/// A handler that converses.
#[derive(Clone)]
pub(crate) enum Talker {
    /// On the runtime.
    Own(Arc<dyn Fn(Call, Pipe) -> BoxFuture<'static, Reply> + Send + Sync>),
    /// In a process for each conversation.
    Child(Arc<Pool>),
}

/// A handler with all it needs to start.
pub(crate) enum Ready {
    Async(Arc<dyn Fn(Call) -> BoxFuture<'static, Reply> + Send + Sync>),
    Blocking(Arc<dyn Fn(&Call) -> Reply + Send + Sync>),
    Child(Arc<Pool>, Ticket),
}

impl Handler {
    /// When an attempt is asked to stop and when it is ended; what the task says goes first, then what its kind does.
    pub(crate) fn timeouts(&self, of_task: Option<Duration>, default: Duration) -> Timeouts {
        let Self::Child(pool) = self else { return Timeouts { soft: None, hard: of_task.unwrap_or(default) } };
        let hard = of_task.or(pool.spec.timeout).unwrap_or(default);
        Timeouts { soft: pool.spec.soft_timeout.filter(|soft| *soft < hard), hard }
    }

    /// Whether its arguments must be JSON that fits a line, or a file.
    pub(crate) fn takes_lines(&self) -> bool {
        matches!(self, Self::Child(pool) if pool.takes_lines())
    }

    /// Waits for a child where it takes one.
    ///
    /// # Errors
    /// [`NotNow`] when none can be had for a while.
    pub(crate) async fn ready(&self) -> Result<Ready, NotNow> {
        Ok(match self {
            Self::Async(handler) => Ready::Async(handler.clone()),
            Self::Blocking(handler) => Ready::Blocking(handler.clone()),
            Self::Child(pool) => Ready::Child(pool.clone(), Box::pin(pool.ticket()).await?),
            // The door buries tasks of such kinds.
            Self::Pipe(_) => return Err(NotNow(UNKNOWN_KIND_DELAY)),
        })
    }
}

impl Ready {
    /// It is not needed after all.
    pub(crate) fn give_back(self) {
        if let Self::Child(pool, ticket) = self {
            pool.give_back(ticket);
        }
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
