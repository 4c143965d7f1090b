//! Pools of slots: one for work that computes, one for work that waits, and one for each kind with slots of its own. A
//! running message holds one slot of its kind's pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use millpond::limits::LOOKAHEAD_TASKS_MAX;
use tokio::sync::{Notify, Semaphore};

use crate::admit::suspects::SuspectTurn;
use crate::handlers::{Handler, PipeHandler};

/// Work that a worker may hold ahead of its slots, as time: tiny tasks are pulled many at once, long ones are not hoarded.
const LOOKAHEAD: Duration = Duration::from_millis(50);

/// Which pool: its place in [`SlotPools`].
pub(crate) type SlotPoolId = usize;

/// For work that computes.
const CPU: SlotPoolId = 0;
/// For work that waits, and for kinds that this worker does not know: their tasks are turned away at once.
const IO: SlotPoolId = 1;

/// The slots of one pool.
pub(crate) struct SlotPool {
    slots: Semaphore,
    size: usize,
    /// Slots of tasks that asked for more than the usual time: one slot at least is for others.
    long: AtomicUsize,
    /// Mean time that a message has kept its slot of late, in nanoseconds; 0 when unknown.
    mean_ns: AtomicU64,
    freed: Arc<Notify>,
}

impl SlotPool {
    /// A slot, when one is free.
    pub(super) fn try_slot(self: &Arc<Self>) -> Option<Slot> {
        self.slots.try_acquire().ok()?.forget();
        Some(Slot { pool: self.clone(), is_long: false, turn: None })
    }

    fn running(&self) -> usize {
        self.size.saturating_sub(self.slots.available_permits())
    }

    /// How many more tasks may be pulled for this pool when so many wait for its slots: one for each free slot, and a
    /// little work ahead when tasks are tiny.
    pub(super) fn capacity(&self, waiting: usize) -> usize {
        let ahead = match u128::from(self.mean_ns.load(Ordering::Relaxed)) {
            0 => 0,
            mean => (LOOKAHEAD.as_nanos() * self.size as u128 / mean).min(LOOKAHEAD_TASKS_MAX as u128),
        };
        // Less than a task per slot ahead is nothing ahead: long tasks are not hoarded.
        let ahead = usize::try_from(ahead).ok().filter(|ahead| *ahead >= self.size).unwrap_or(0);
        (self.size + ahead).saturating_sub(self.running() + waiting)
    }

    /// A message kept its slot for this long.
    pub(super) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = self.mean_ns.load(Ordering::Relaxed);
        // Slower counts at once, faster by and by: one long task ends the hoarding of short ones.
        let after = if before == 0 || took > before { took } else { before - (before - took) / 8 };
        self.mean_ns.store(after, Ordering::Relaxed);
    }
}

/// A slot. It is free again when this is dropped, and whoever waits for one is woken.
pub(crate) struct Slot {
    pool: Arc<SlotPool>,
    is_long: bool,
    /// The turn of a suspect ends with its slot.
    turn: Option<SuspectTurn>,
}

/// Whether a slot may be for a task that asks for more than the usual time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LongTask {
    Fits,
    /// All slots but one have such tasks.
    TooMany,
    /// There is one slot in all.
    OneSlot,
}

impl Slot {
    /// The same slot, for a suspect whose turn it is.
    pub(crate) fn with_turn(self, turn: Option<SuspectTurn>) -> Self {
        let mut slot = self;
        slot.turn = turn;
        slot
    }

    /// Gives the slot to a task that asks for more than the usual time.
    pub(crate) fn for_long_task(&mut self) -> LongTask {
        let max = self.pool.size - 1;
        if max == 0 {
            return LongTask::OneSlot;
        }
        let one_more = |long: usize| (long < max).then_some(long + 1);
        self.is_long = self.pool.long.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if self.is_long { LongTask::Fits } else { LongTask::TooMany }
    }

    /// The handler of its message ran for this long.
    pub(crate) fn note(&self, took: Duration) {
        self.pool.note(took);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.is_long {
            self.pool.long.fetch_sub(1, Ordering::Relaxed);
        }
        drop(self.turn.take());
        self.pool.slots.add_permits(1);
        self.pool.freed.notify_one();
    }
}

/// All pools of a worker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SlotPools {
    all: Arc<[Arc<SlotPool>]>,
    by_kind: Arc<BTreeMap<String, SlotPoolId>>,
    freed: Arc<Notify>,
}

impl SlotPools {
    pub(crate) fn new<'a>(
        slots: usize,
        io_slots: usize,
        handlers: impl Iterator<Item = (&'a String, &'a Handler)>,
    ) -> Self {
        let freed = Arc::new(Notify::new());
        let pool = |size| {
            Arc::new(SlotPool {
                slots: Semaphore::new(size),
                size,
                long: AtomicUsize::new(0),
                mean_ns: AtomicU64::new(0),
                freed: freed.clone(),
            })
        };
        let mut all = vec![pool(slots), pool(io_slots)];
        let by_kind = handlers.map(|(kind, handler)| {
            let id = match handler {
                Handler::Async(_) | Handler::Pipe(PipeHandler::Own(_)) => IO,
                Handler::Blocking(_) => CPU,
                Handler::Child(children) | Handler::Pipe(PipeHandler::Child(children)) => {
                    match children.spec.table.slots {
                        Some(own) => {
                            all.push(pool(own));
                            all.len() - 1
                        }
                        None if children.spec.table.io => IO,
                        None => CPU,
                    }
                }
            };
            (kind.clone(), id)
        });
        let by_kind = Arc::new(by_kind.collect());
        Self { all: all.into(), by_kind, freed }
    }

    /// The pool of a kind.
    pub(super) fn id_of(&self, kind: &str) -> SlotPoolId {
        self.by_kind.get(kind).copied().unwrap_or(IO)
    }

    /// The pools; a [`SlotPoolId`] is a place in them.
    pub(super) fn all(&self) -> &[Arc<SlotPool>] {
        &self.all
    }

    /// A slot for a task or call of this kind, once one is free.
    pub(crate) async fn slot(&self, kind: &str) -> Option<Slot> {
        let pool = self.all.get(self.id_of(kind))?;
        pool.slots.acquire().await.ok()?.forget();
        Some(Slot { pool: pool.clone(), is_long: false, turn: None })
    }

    /// Returns once a slot was freed since the last return.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Each pool: `cpu`, `io`, or the kind whose own it is; its slots, and how many are used.
    pub(crate) fn each(&self) -> impl Iterator<Item = (String, usize, usize)> {
        self.all.iter().enumerate().map(|(id, pool)| {
            let own = || self.by_kind.iter().find(|(_, of)| **of == id).map_or("", |(kind, _)| kind);
            let name = match id {
                CPU => "cpu",
                IO => "io",
                _ => own(),
            };
            (name.to_owned(), pool.size, pool.running())
        })
    }

    /// Messages that run now.
    pub(crate) fn running(&self) -> usize {
        self.all.iter().map(|pool| pool.running()).sum()
    }

    /// Slots of all pools.
    pub(crate) fn size(&self) -> usize {
        self.all.iter().map(|pool| pool.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_tasks_leave_a_slot_to_others() {
        let pools = SlotPools::new(2, 1, std::iter::empty());
        let [cpu, io] = [CPU, IO].map(|id| pools.all()[id].clone());
        let (mut first, mut second) = (cpu.try_slot().unwrap(), cpu.try_slot().unwrap());
        assert_eq!((first.for_long_task(), second.for_long_task()), (LongTask::Fits, LongTask::TooMany));
        drop(first);
        assert_eq!(second.for_long_task(), LongTask::Fits);
        assert_eq!(io.try_slot().unwrap().for_long_task(), LongTask::OneSlot);
    }
}
