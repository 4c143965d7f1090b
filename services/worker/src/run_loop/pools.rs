//! SlotPools: which slots a kind takes. One for work that computes, one for work that waits, and one for each kind with
//! slots of its own; a task takes one slot of its pool. Here too: what was delivered and waits for a slot, and how much
//! may be pulled when tasks of several pools come from one queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millpond::bus::consume::lease::Lease;
use millpond::limits::{LATER_QUEUES_SHARE, LOOKAHEAD, LOOKAHEAD_TASKS_MAX};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::handlers::{Handler, PipeHandler};

/// Arrivals after which a pool counts as unused, when none of them was for it.
const MIX_ARRIVALS: u64 = 64;
/// For how long a pool that was used is worth pulling for while another is full.
const MIX_FOR: Duration = Duration::from_secs(60);
/// How long nothing is pulled on trust after it brought a task of a full pool; it doubles with each such task in a row.
const MISFIT_PAUSE_MIN: Duration = Duration::from_millis(5);
const MISFIT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// When a task that waited for a full pool may come again: until then others of its queue have their turn.
const MISFIT_DELAY: Duration = Duration::from_secs(1);
/// Tasks that are pulled on trust at once, at the most.
const TRUST_MAX: usize = 64;

/// Which pool: its place in [`SlotPools`].
pub(crate) type SlotPoolId = usize;

/// For work that computes.
const CPU: SlotPoolId = 0;
/// For work that waits, and for kinds that nobody here knows: those are turned away at the door.
const IO: SlotPoolId = 1;

/// The slots of one pool.
pub(crate) struct SlotPool {
    slots: Arc<Semaphore>,
    size: usize,
    /// Mean time that a message keeps its slot, in nanoseconds, of late; 0 when unknown.
    pace_ns: AtomicU64,
}

impl SlotPool {
    fn new(size: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(size)), size, pace_ns: AtomicU64::new(0) }
    }

    fn running(&self) -> usize {
        self.size.saturating_sub(self.slots.available_permits())
    }

    /// Tasks worth holding beyond the slots: a little work ahead when tasks are tiny.
    fn ahead(&self) -> usize {
        let ahead = match u128::from(self.pace_ns.load(Ordering::Relaxed)) {
            0 => 0,
            pace => (LOOKAHEAD.as_nanos() * self.size as u128 / pace).min(LOOKAHEAD_TASKS_MAX as u128),
        };
        // Less than a task per slot ahead is nothing ahead: long tasks are not hoarded.
        let ahead = usize::try_from(ahead).unwrap_or(0);
        if ahead < self.size { 0 } else { ahead }
    }
}

/// A slot; whoever waits for one is woken when it is free again.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

/// All pools of a worker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SlotPools {
    all: Arc<[SlotPool]>,
    by_kind: Arc<BTreeMap<String, SlotPoolId>>,
    freed: Arc<Notify>,
}

impl SlotPools {
    pub(crate) fn new<'a>(
        slots: usize,
        io_slots: usize,
        handlers: impl Iterator<Item = (&'a String, &'a Handler)>,
    ) -> Self {
        let mut all = vec![SlotPool::new(slots), SlotPool::new(io_slots)];
        let by_kind = handlers.map(|(kind, handler)| {
            let pool = match handler {
                Handler::Async(_) | Handler::Pipe(PipeHandler::Own(_)) => IO,
                Handler::Blocking(_) => CPU,
                Handler::Child(children) | Handler::Pipe(PipeHandler::Child(children)) => {
                    match children.spec.table.slots {
                        Some(own) => {
                            all.push(SlotPool::new(own));
                            all.len() - 1
                        }
                        None if children.spec.table.io => IO,
                        None => CPU,
                    }
                }
            };
            (kind.clone(), pool)
        });
        let by_kind = Arc::new(by_kind.collect());
        Self { all: all.into(), by_kind, freed: Arc::new(Notify::new()) }
    }

    pub(crate) fn of(&self, kind: &str) -> SlotPoolId {
        self.by_kind.get(kind).copied().unwrap_or(IO)
    }

    fn pool(&self, id: SlotPoolId) -> Option<&SlotPool> {
        self.all.get(id)
    }

    /// A slot, when one is free.
    pub(crate) fn try_slot(&self, id: SlotPoolId) -> Option<Slot> {
        let permit = self.pool(id)?.slots.clone().try_acquire_owned().ok()?;
        Some(Slot { permit: Some(permit), freed: self.freed.clone() })
    }

    /// A slot, once one is free.
    pub(crate) async fn slot(&self, id: SlotPoolId) -> Option<Slot> {
        let permit = self.pool(id)?.slots.clone().acquire_owned().await.ok()?;
        Some(Slot { permit: Some(permit), freed: self.freed.clone() })
    }

    /// A slot was freed since it was last asked.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// A message kept its slot for this long.
    pub(crate) fn note(&self, id: SlotPoolId, took: Duration) {
        let Some(pool) = self.pool(id) else { return };
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = pool.pace_ns.load(Ordering::Relaxed);
        // Slower counts at once, faster by and by: one long task ends the hoarding of short ones.
        let after = if before == 0 || took > before { took } else { before - (before - took) / 8 };
        pool.pace_ns.store(after, Ordering::Relaxed);
    }

    /// Each pool: `cpu`, `io`, or the kind whose own it is; its slots, and how many are used.
    pub(crate) fn each(&self) -> impl Iterator<Item = (String, usize, usize)> {
        self.all.iter().enumerate().map(|(id, pool)| {
            let own =
                || self.by_kind.iter().find(|(_, of)| **of == id).map_or_else(String::new, |(kind, _)| kind.clone());
            let name = match id {
                CPU => "cpu".to_owned(),
                IO => "io".to_owned(),
                _ => own(),
            };
            (name, pool.size, pool.running())
        })
    }

    /// Messages that run now.
    pub(crate) fn running(&self) -> usize {
        self.all.iter().map(SlotPool::running).sum()
    }

    /// Slots of all pools.
    pub(crate) fn size(&self) -> usize {
        self.all.iter().map(|pool| pool.size).sum()
    }
}

/// What was delivered of one queue; DUE goes first.
#[derive(Default)]
struct Queued {
    due: VecDeque<Lease>,
    tasks: VecDeque<Lease>,
}

impl Queued {
    fn len(&self) -> usize {
        self.due.len() + self.tasks.len()
    }
}

/// What was delivered and waits for a slot of one pool, by queue in the order of the worker's queues.
struct Waiting {
    queues: Vec<Queued>,
    turns: Turns,
    /// Number of the last arrival, and its time.
    arrived: Option<(u64, Instant)>,
}

/// Whose turn it is: the first queue's that waits, and after a while one of those behind it.
#[derive(Default)]
struct Turns {
    /// Starts since one of a later queue, at most [`LATER_QUEUES_SHARE`] - 1.
    passed: usize,
    /// The later queue that had the last turn.
    last: usize,
}

impl Turns {
    /// The next of these queues, given in order.
    fn next(&mut self, waiting: &[usize], queues: usize) -> Option<usize> {
        let (&first, later) = waiting.split_first()?;
        let due = self.passed + 1 >= LATER_QUEUES_SHARE;
        let in_turn = || later.iter().find(|queue| **queue > self.last).or(later.first());
        if let Some(&queue) = in_turn().filter(|_| due) {
            (self.passed, self.last) = (0, queue);
            return Some(queue);
        }
        // The last queue passes nobody.
        self.passed = if first + 1 == queues { 0 } else { (self.passed + 1).min(LATER_QUEUES_SHARE - 1) };
        Some(first)
    }
}

impl Waiting {
    fn new(queues: usize) -> Self {
        let queues = (0..queues.max(1)).map(|_| Queued::default()).collect();
        Self { queues, turns: Turns::default(), arrived: None }
    }

    fn len(&self) -> usize {
        self.queues.iter().map(Queued::len).sum()
    }

    fn pop(&mut self) -> Option<Lease> {
        let queue = match self.queues.len() {
            1 => 0,
            count => {
                let waiting: Vec<usize> =
                    (0..count).filter(|q| self.queues.get(*q).is_some_and(|w| w.len() > 0)).collect();
                self.turns.next(&waiting, count)?
            }
        };
        let queued = self.queues.get_mut(queue)?;
        queued.due.pop_front().or_else(|| queued.tasks.pop_front())
    }

    /// Whether its pool is in use: worth pulling for while another is full.
    fn is_used(&self) -> bool {
        self.arrived.is_some_and(|(_, at)| at.elapsed() < MIX_FOR)
    }
}

/// What was delivered and waits for a slot.
pub(crate) struct Ready {
    pools: SlotPools,
    /// The worker's queues, in their order.
    queues: Vec<String>,
    waiting: Vec<Waiting>,
    arrivals: u64,
    /// Tasks that are pulled for free pools while another is full, without knowing whose they will be.
    trust: usize,
    /// Such were asked for, and no pool has had room for all since.
    on_trust: bool,
    trust_from: Instant,
    misfit_pause: Duration,
}

impl Ready {
    pub(crate) fn new(pools: &SlotPools, queues: &[String]) -> Self {
        let waiting = pools.all.iter().map(|_| Waiting::new(queues.len())).collect();
        Self {
            pools: pools.clone(),
            queues: queues.to_vec(),
            waiting,
            arrivals: 0,
            trust: 1,
            on_trust: false,
            trust_from: Instant::now(),
            misfit_pause: MISFIT_PAUSE_MIN,
        }
    }

    /// Takes in what was delivered.
    pub(crate) fn push(&mut self, lease: Lease) {
        let id = self.pools.of(&lease.task.subject.kind);
        let fits = self.room_of(id) > 0;
        self.arrivals += 1;
        let arrived = Some((self.arrivals, Instant::now()));
        let queue = self.queues.iter().position(|queue| *queue == lease.task.subject.queue).unwrap_or(0);
        let Some(waiting) = self.waiting.get_mut(id) else { return };
        waiting.arrived = arrived;
        let Some(queued) = waiting.queues.get_mut(queue) else { return };
        if lease.is_due() {
            queued.due.push_back(lease);
        } else {
            queued.tasks.push_back(lease);
        }
        if self.on_trust && fits {
            self.trust = (self.trust * 2).min(TRUST_MAX);
            self.misfit_pause = MISFIT_PAUSE_MIN;
        } else if self.on_trust {
            // It waits for a slot like any other, and is handed back when that takes too long.
            (self.trust, self.trust_from) = (1, Instant::now() + self.misfit_pause);
            self.misfit_pause = (self.misfit_pause * 2).min(MISFIT_PAUSE_MAX);
        }
    }

    /// How long what is given back stays away: where other pools are in use it must not come again at once in their place.
    pub(crate) fn stays_away(&self) -> Duration {
        if self.waiting.iter().filter(|w| w.is_used()).count() > 1 { MISFIT_DELAY } else { Duration::ZERO }
    }

    /// The next that has a slot.
    pub(crate) fn pop(&mut self) -> Option<(Lease, Slot, SlotPoolId)> {
        for (id, waiting) in self.waiting.iter_mut().enumerate().filter(|(_, waiting)| waiting.len() > 0) {
            if let Some(slot) = self.pools.try_slot(id) {
                return Some((waiting.pop()?, slot, id));
            }
        }
        None
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.iter().map(Waiting::len).sum()
    }

    /// Everything that waits.
    pub(crate) fn drain(&mut self) -> Vec<Lease> {
        let queued = self.waiting.iter_mut().flat_map(|w| &mut w.queues);
        queued.flat_map(|queued| queued.due.drain(..).chain(queued.tasks.drain(..))).collect()
    }

    /// Takes out what has waited for longer than `limit`.
    pub(crate) fn waited(&mut self, limit: Duration) -> Vec<Lease> {
        let mut late = Vec::new();
        for (id, waiting) in self.waiting.iter_mut().enumerate() {
            let before = late.len();
            for queue in waiting.queues.iter_mut().flat_map(|q| [&mut q.due, &mut q.tasks]) {
                while queue.front().is_some_and(|lease| lease.since().elapsed() > limit) {
                    late.extend(queue.pop_front());
                }
            }
            if late.len() > before {
                // What runs is that slow: without this the same tasks would be pulled again at once.
                self.pools.note(id, limit);
            }
        }
        late
    }

    /// How many more tasks may be pulled. Whose they are is known when they come: as many as the fullest pool in use
    /// takes; when that is none, a few for the others, more while they turn out to be theirs.
    pub(crate) fn room(&mut self) -> usize {
        let lowest = self.lowest_room();
        if lowest > 0 {
            self.on_trust = false;
            return lowest;
        }
        if self.trust_from > Instant::now() {
            return 0;
        }
        let others = self.waiting.iter().enumerate().filter(|(_, w)| w.is_used()).map(|(id, _)| self.room_of(id));
        let room = others.max().unwrap_or(0).min(self.trust);
        self.on_trust |= room > 0;
        room
    }

    /// The room of the fullest pool in use; of the smallest one before any is.
    fn lowest_room(&self) -> usize {
        let used = |w: &Waiting| w.len() > 0 || w.arrived.is_some_and(|(n, _)| self.arrivals - n < MIX_ARRIVALS);
        let all = || self.waiting.iter().enumerate();
        let rooms = all().filter(|(_, w)| used(w)).map(|(id, _)| self.room_of(id));
        rooms.min().unwrap_or_else(|| all().map(|(id, _)| self.room_of(id)).min().unwrap_or(0))
    }

    fn room_of(&self, id: SlotPoolId) -> usize {
        let (Some(pool), Some(waiting)) = (self.pools.pool(id), self.waiting.get(id)) else { return 0 };
        (pool.size + pool.ahead()).saturating_sub(pool.running() + waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_queues_have_their_turns() {
        let mut turns = Turns::default();
        let all: Vec<usize> = (0..100).filter_map(|_| turns.next(&[0, 1, 2], 3)).collect();
        let count = |queue: usize| all.iter().filter(|q| **q == queue).count();
        assert_eq!((count(0), count(1), count(2)), (90, 5, 5));
        assert_eq!(turns.next(&[], 3), None);
        // What comes to the first queue while the last one has everything is next.
        let mut turns = Turns::default();
        assert!((0..100).all(|_| turns.next(&[1], 2) == Some(1)));
        assert!((0..9).all(|_| turns.next(&[0, 1], 2) == Some(0)));
        assert_eq!(turns.next(&[0, 1], 2), Some(1));
        // Nobody waited behind it: the first that comes there is next.
        assert!((0..100).all(|_| turns.next(&[0], 2) == Some(0)));
        assert_eq!([turns.next(&[0, 1], 2), turns.next(&[0, 1], 2)], [Some(1), Some(0)]);
    }
}
