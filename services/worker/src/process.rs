//! One lease from its delivery to its end, stage by stage: admit, prepare, run, settle. A task that must not run, or
//! cannot run now, leaves the row early and is turned away. The order of effects is docs/protocol.md's.

use std::sync::Arc;

use millpond::bus::consume::lease::Lease;

use crate::admit::admit;
use crate::context::WorkerContext;
use crate::prepare::prepare;
use crate::run::run;
use crate::run_loop::pools::Slot;
use crate::settle::settle;
use crate::settle::turned_away::turn_away;

/// Works on one lease, which has a slot. The slot is free again when its handler has ended, before the settlement.
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

    /// What the runtime keeps of a task that has started, and moves before it has, in bytes.
    fn future_bytes<F>(_: fn(Arc<WorkerContext>, Lease, Slot) -> F) -> usize {
        size_of::<F>()
    }
    fn bytes2<A, F>(_: impl FnOnce(&'static WorkerContext, A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn each_task_moves_a_small_future() {
        println!("process {}", future_bytes(process));
        println!("admit {}", bytes2(|c, (l, s)| admit(c, l, s)));
        println!("prepare {}", bytes2(|c, a| prepare(c, a)));
        println!("run {}", bytes2(|c, a| run(c, a)));
        println!("settle {}", bytes2(|c, a| settle(c, a)));
        println!(
            "admitted {} prepared {} finished {} turned {}",
            size_of::<crate::attempt::Admitted>(),
            size_of::<crate::attempt::Prepared>(),
            size_of::<crate::attempt::Finished>(),
            size_of::<crate::attempt::TurnedAway>()
        );
        println!("complete {}", bytes2(|_, l: Lease| l.complete()));
        println!("execute {}", bytes2(|_, (a, b, c, d, e)| crate::run::execute::execute(a, b, c, d, e)));
        println!("publish {}", bytes2(|c, o: &'static mut crate::outbox::Outbox<'static>| o.publish(c)));
        assert!(future_bytes(process) <= 4096);
    }
}
