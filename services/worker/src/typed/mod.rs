//! Handlers as functions: `async fn(Args) -> Result<Out, E>`, with what else they want to know of their task as further
//! parameters. Here they become what the worker runs. `extract` has the parameters, `error` what a failure becomes.

pub(crate) mod error;
pub(crate) mod extract;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::{Call, Reply, reply};
use error::HandlerError;
use extract::{FromTask, MissingState, States};

/// A function that runs tasks on the runtime: work that waits. `async fn(Args, …) -> Result<Out, E>`, where `Args` is any type
/// that serde reads from the task's arguments, `Out` any that it writes as JSON, `E` a [`HandlerError`], and each further
/// parameter a [`FromTask`], four at the most. Arguments that do not fit are dead-lettered (`bad_arguments`).
///
/// `M` tells the functions apart by their parameters; it is inferred.
pub trait AsyncHandler<M>: Send + Sync + 'static {
    /// Whether the worker has what the function wants.
    ///
    /// # Errors
    /// The state that is missing.
    #[doc(hidden)]
    fn check(&self, states: &States) -> Result<(), MissingState>;

    /// Runs one task.
    #[doc(hidden)]
    fn run(self: Arc<Self>, call: Call, states: Arc<States>) -> BoxFuture<'static, Reply>;
}

/// The same for work that computes, on a thread of its own: `fn(Args, …) -> Result<Out, E>`.
pub trait BlockingHandler<M>: Send + Sync + 'static {
    /// Whether the worker has what the function wants.
    ///
    /// # Errors
    /// The state that is missing.
    #[doc(hidden)]
    fn check(&self, states: &States) -> Result<(), MissingState>;

    /// Runs one task.
    #[doc(hidden)]
    fn run(&self, call: &Call, states: &States) -> Reply;
}

fn answer<T: Serialize, E: HandlerError>(ended: Result<T, E>) -> Reply {
    ended.map_err(HandlerError::into_failure).and_then(|value| reply(&value))
}

/// Functions with the arguments and these further parameters.
macro_rules! handlers {
    ($($more:ident $name:ident),*) => {
        impl<F, Fut, A, Out, E, $($more,)*> AsyncHandler<(A, $($more,)*)> for F
        where
            F: Fn(A, $($more),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<Out, E>> + Send + 'static,
            A: DeserializeOwned + Send + 'static,
            Out: Serialize,
            E: HandlerError,
            $($more: FromTask,)*
        {
            fn check(&self, _states: &States) -> Result<(), MissingState> {
                $($more::check(_states)?;)*
                Ok(())
            }

            fn run(self: Arc<Self>, call: Call, _states: Arc<States>) -> BoxFuture<'static, Reply> {
                // Within the future: what panics here ends the task and not the worker.
                Box::pin(async move {
                    let running = {
                        let args: A = call.args()?;
                        $(let $name = $more::from_task(&call, &_states)?;)*
                        self(args, $($name),*)
                    };
                    answer(running.await)
                })
            }
        }

        impl<F, A, Out, E, $($more,)*> BlockingHandler<(A, $($more,)*)> for F
        where
            F: Fn(A, $($more),*) -> Result<Out, E> + Send + Sync + 'static,
            A: DeserializeOwned,
            Out: Serialize,
            E: HandlerError,
            $($more: FromTask,)*
        {
            fn check(&self, _states: &States) -> Result<(), MissingState> {
                $($more::check(_states)?;)*
                Ok(())
            }

            fn run(&self, call: &Call, _states: &States) -> Reply {
                let args: A = call.args()?;
                $(let $name = $more::from_task(call, _states)?;)*
                answer(self(args, $($name),*))
            }
        }
    };
}

handlers!();
handlers!(B b);
handlers!(B b, C c);
handlers!(B b, C c, D d);
handlers!(B b, C c, D d, G g);
