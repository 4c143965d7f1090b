//! How a program makes its worker: handlers, state, which kinds run in children; then settings.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use futures_util::FutureExt;
use millpond::bus::call::pipe::Pipe;
use millpond::outcome::Failure;
use millpond_service::program;
use serde_json::value::RawValue;

use crate::Worker;
use crate::call::{Call, Reply};
use crate::child_main::{ChildFailed, child_main, own_kind, own_main};
use crate::config::{Config, Settings};
use crate::handlers::{Handler, Handlers, PipeHandler, built_in};
use crate::typed::extract::{MissingState, States};
use crate::typed::{AsyncHandler, BlockingHandler};

/// A handler that waits for the state that it wants.
type Unbound = Box<dyn FnOnce(&Arc<States>) -> Result<Handler, MissingState> + Send>;

/// A worker to be: what it runs. [`WorkerBuilder::main`] makes it a program; [`WorkerBuilder::build`] leaves that to yours.
#[derive(Default)]
pub struct WorkerBuilder {
    handlers: BTreeMap<String, Unbound>,
    states: States,
    isolated: Vec<String>,
    env_pass: Vec<String>,
}

impl WorkerBuilder {
    /// Adds a handler for work that waits: `async fn(Args, …) -> Result<Out, E>` ([`AsyncHandler`]). It runs in one of the
    /// worker's I/O slots, on the runtime, and must not compute for long: tasks beside it would wait.
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// async fn square(n: u64) -> Result<u64, Infallible> {
    ///     Ok(n * n)
    /// }
    /// # let _ =
    /// millpond_worker::Worker::builder().handle("square", square);
    /// ```
    #[must_use]
    pub fn handle<M, H: AsyncHandler<M>>(self, kind: impl Into<String>, handler: H) -> Self {
        let handler = Arc::new(handler);
        self.with(kind, move |states| {
            handler.check(states)?;
            let states = states.clone();
            Ok(Handler::Async(Arc::new(move |call: Call| handler.clone().run(call, states.clone()))))
        })
    }

    /// Adds a handler for work that computes, or that blocks its thread: `fn(Args, …) -> Result<Out, E>`
    /// ([`BlockingHandler`]). It runs in one of the worker's CPU slots, on a thread. Nothing can end a thread: one that takes too
    /// long goes on beside the next task, so it looks at [`TaskContext::is_cancelled`](crate::TaskContext::is_cancelled), or is
    /// [isolated](WorkerBuilder::isolate).
    #[must_use]
    pub fn handle_blocking<M, H: BlockingHandler<M>>(self, kind: impl Into<String>, handler: H) -> Self {
        self.with(kind, move |states| {
            handler.check(states)?;
            let states = states.clone();
            Ok(Handler::Blocking(Arc::new(move |call: &Call| handler.run(call, &states))))
        })
    }

    /// Adds a handler that reads its task as it came, for arguments that are no JSON or lie in a file, and that answers with JSON
    /// that is written already. Like [`WorkerBuilder::handle`], it is for work that waits.
    #[must_use]
    pub fn handle_raw<F>(self, kind: impl Into<String>, handler: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.with(kind, move |_| Ok(Handler::Async(Arc::new(move |call: Call| handler(call).boxed()))))
    }

    /// Adds a handler that converses with its caller ([`millpond::client::Client::pipe`], `millpond call --pipe`). The
    /// conversation ends when it returns; it holds one of the worker's I/O slots until then.
    ///
    /// ```
    /// # let _ =
    /// millpond_worker::Worker::builder().handle_pipe("double", |_call, mut pipe| async move {
    ///     while let Some(n) = pipe.recv_json::<i64>().await? {
    ///         pipe.send_json(&(n * 2)).await?;
    ///     }
    ///     Ok(())
    /// });
    /// ```
    #[must_use]
    pub fn handle_pipe<F>(
        self,
        kind: impl Into<String>,
        handler: impl Fn(Call, Pipe) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.with(kind, move |_| {
            Ok(Handler::Pipe(PipeHandler::Own(Arc::new(move |call: Call, pipe: Pipe| {
                let talk = handler(call, pipe);
                Box::pin(async move { talk.await.map(|()| RawValue::NULL.to_owned()) })
            }))))
        })
    }

    fn with(
        mut self,
        kind: impl Into<String>,
        bind: impl FnOnce(&Arc<States>) -> Result<Handler, MissingState> + Send + 'static,
    ) -> Self {
        self.handlers.insert(kind.into(), Box::new(bind));
        self
    }

    /// Gives the handlers a value of the program, which they take as [`State<T>`](crate::State): one of each type.
    #[must_use]
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.put(state);
        self
    }

    /// Runs a kind that has a handler in child processes: the worker starts this program again as them, and a crash, a leak or a
    /// hang costs its own child only. `main` must begin with [`child_main`], as [`WorkerBuilder::main`] does. Limits are those of
    /// the kind's table in `handlers.toml`, where it has one (with `isolate = true`).
    #[must_use]
    pub fn isolate(mut self, kind: impl Into<String>) -> Self {
        self.isolated.push(kind.into());
        self
    }

    /// Variables of the environment that the children of [`WorkerBuilder::isolate`] get beside those that every child gets
    /// (docs/handlers.md), such as `APP_*`: what `main` reads in a child must be among them.
    #[must_use]
    pub fn env_pass(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.env_pass.extend(names.into_iter().map(Into::into));
        self
    }

    /// The worker with these settings; it also knows the built-in kinds that they name.
    ///
    /// # Errors
    /// When a handler wants a [`State`](crate::State) that was not given.
    pub fn build(self, settings: Settings) -> anyhow::Result<Worker> {
        let is_on = |kind: &String| settings.built_in.iter().any(|on| on == kind || on == "*");
        let mut handlers: Handlers =
            built_in(settings.fetch_local).into_iter().filter(|(kind, _)| is_on(kind)).collect();
        handlers.extend(bound(self.handlers, self.states)?);
        Ok(Worker { settings, handlers, isolated: self.isolated, env_pass: self.env_pass })
    }

    /// The whole of `main`: the settings of the command line and of the environment, as `millpond worker run` has them, logs and
    /// telemetry, a runtime, and a worker that drains at SIGTERM or SIGINT. It may be called once, and not within a runtime.
    #[must_use]
    pub fn main(self) -> ExitCode {
        child_main();
        if let Some(kind) = own_kind() {
            return match own_main(&kind, || bound(self.handlers, self.states)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(ChildFailed) => ExitCode::FAILURE,
            };
        }
        program::main_with::<Config, _>(
            |config, shutdown| async move { self.build(config.check()?)?.run(shutdown).await },
        )
    }
}

/// The program's handlers with the state that they want.
fn bound(handlers: BTreeMap<String, Unbound>, states: States) -> anyhow::Result<Handlers> {
    let states = Arc::new(states);
    let bind = |(kind, bind): (String, Unbound)| {
        let handler = bind(&states).with_context(|| format!("handler [{kind}]"))?;
        Ok((kind, handler))
    };
    handlers.into_iter().map(bind).collect()
}
