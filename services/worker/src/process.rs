//! One lease from its delivery to its end, stage by stage: admit, prepare, run, settle. A task that must not run, or
//! cannot run now, leaves this sequence early and is turned away. The order of effects is that of docs/protocol.md, and only
//! `outbox/` has it. A first delivery to a fast handler awaits nothing before its outcome is handed over: `run_loop/first_poll.rs`
//! polls such a task where it was taken.

use std::sync::Arc;

use millpond::bus::consume::lease::Lease;

use crate::admit::admit;
use crate::context::WorkerContext;
use crate::prepare::prepare;
use crate::run::run;
use crate::run_loop::pools::Slot;
use crate::settle::settle;
use crate::settle::turned_away::turn_away;

/// Works on one lease, which has been given a slot. The slot is freed when the handler has ended, before settlement; only
/// a large result keeps it until after settlement.
pub(crate) async fn process(context: Arc<WorkerContext>, lease: Lease, slot: Slot) {
    let prepared = match admit(&context, lease, slot).await {
        Ok(admitted) => prepare(&context, admitted).await,
        Err(turned_away) => Err(turned_away),
    };
    match prepared {
        Ok(prepared) => settle(&context, run(&context, prepared).await).await,
        // Boxed, as all that is rare here: each task moves its whole future, and few need this part.
        Err(turned_away) => Box::pin(turn_away(&context, turned_away)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<F>(_: fn(Arc<WorkerContext>, Lease, Slot) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_future_of_a_task_is_small() {
        let bytes = future_bytes(process);
        assert!(bytes <= 3584, "each task moves its whole future, of {bytes} bytes: box what is rare");
    }
}
