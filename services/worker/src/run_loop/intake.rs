//! What was delivered and waits for a slot of its pool, and how much more may be pulled, when tasks of several pools come
//! from one queue: nobody knows whose a task is before it has come.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::bus::consume::lease::Lease;
use millpond::limits::LATER_QUEUES_SHARE;

use super::pools::{Slot, SlotPool, SlotPools};

/// A delivered task that got no slot within this time is released.
pub(crate) const RELEASE_UNSTARTED_AFTER: Duration = Duration::from_secs(1);
/// Arrivals after which a pool counts as unused, when none of them was for it.
const MIX_ARRIVALS: u64 = 64;
/// For how long a pool that was used is worth pulling for while another is full.
const MIX_FOR: Duration = Duration::from_secs(60);
/// How long nothing is pulled speculatively after a miss (a task of a full pool); it doubles with each miss in a row.
const MISS_PAUSE_MIN: Duration = Duration::from_millis(5);
const MISS_PAUSE_MAX: Duration = Duration::from_millis(500);
/// When a task that waited for a full pool may come again: until then others of its queue have their turn.
const MISS_DELAY: Duration = Duration::from_secs(1);
/// Tasks that are pulled speculatively at once, at the most.
const SPECULATIVE_TASKS_MAX: usize = 64;

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
struct PoolQueue {
    pool: Arc<SlotPool>,
    queues: Vec<Queued>,
    /// The queues of which something waits.
    waiting: BTreeSet<usize>,
    /// How much waits.
    count: usize,
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

impl PoolQueue {
    fn new(pool: &Arc<SlotPool>, queues: usize) -> Self {
        let queues = (0..queues.max(1)).map(|_| Queued::default()).collect();
        let turns = Turns::default();
        Self { pool: pool.clone(), queues, waiting: BTreeSet::new(), count: 0, turns, arrived: None }
    }

    fn push(&mut self, queue: usize, lease: Lease) {
        let Some(queued) = self.queues.get_mut(queue) else { return };
        if lease.is_due() {
            queued.due.push_back(lease);
        } else {
            queued.tasks.push_back(lease);
        }
        self.count += 1;
        self.waiting.insert(queue);
    }

    fn pop(&mut self) -> Option<Lease> {
        let queue = match self.queues.len() {
            1 => 0,
            count => {
                let waiting: Vec<usize> = self.waiting.iter().copied().collect();
                self.turns.next(&waiting, count)?
            }
        };
        let queued = self.queues.get_mut(queue)?;
        let lease = queued.due.pop_front().or_else(|| queued.tasks.pop_front())?;
        let is_empty = queued.len() == 0;
        self.taken(queue, 1, is_empty);
        Some(lease)
    }

    /// What has waited too long.
    fn late(&mut self) -> Vec<Lease> {
        let mut late = Vec::new();
        for place in self.waiting.clone() {
            let Some(queued) = self.queues.get_mut(place) else { continue };
            let before = late.len();
            for queue in [&mut queued.due, &mut queued.tasks] {
                while queue.front().is_some_and(|lease| lease.since().elapsed() > RELEASE_UNSTARTED_AFTER) {
                    late.extend(queue.pop_front());
                }
            }
            let is_empty = queued.len() == 0;
            self.taken(place, late.len() - before, is_empty);
        }
        late
    }

    fn drain(&mut self) -> Vec<Lease> {
        (self.count, self.waiting) = (0, BTreeSet::new());
        let queued = self.queues.iter_mut();
        queued.flat_map(|queued| queued.due.drain(..).chain(queued.tasks.drain(..))).collect()
    }

    fn taken(&mut self, queue: usize, count: usize, is_empty: bool) {
        self.count -= count;
        if is_empty {
            self.waiting.remove(&queue);
        }
    }

    /// How many more tasks may be pulled for the pool.
    fn capacity(&self) -> usize {
        self.pool.capacity(self.count)
    }

    /// Whether the pool is in use: worth pulling for while another is full.
    fn is_used(&self) -> bool {
        self.arrived.is_some_and(|(_, at)| at.elapsed() < MIX_FOR)
    }
}

/// What was delivered and waits for a slot.
pub(super) struct Intake {
    pools: SlotPools,
    /// The place of each of the worker's queues in their order.
    places: HashMap<String, usize>,
    waiting: Vec<PoolQueue>,
    arrivals: u64,
    /// Tasks that are pulled for free pools while another is full, without knowing whose they will be.
    speculative_tasks: usize,
    /// Such tasks were asked for, and not every pool in use has had capacity since.
    is_speculative: bool,
    speculate_from: Instant,
    miss_pause: Duration,
}

impl Intake {
    pub(super) fn new(pools: &SlotPools, queues: &[String]) -> Self {
        let waiting = pools.all().iter().map(|pool| PoolQueue::new(pool, queues.len())).collect();
        Self {
            pools: pools.clone(),
            places: queues.iter().cloned().zip(0..).collect(),
            waiting,
            arrivals: 0,
            speculative_tasks: 1,
            is_speculative: false,
            speculate_from: Instant::now(),
            miss_pause: MISS_PAUSE_MIN,
        }
    }

    /// Takes in what was delivered.
    pub(super) fn push(&mut self, lease: Lease) {
        self.arrivals += 1;
        let queue = self.places.get(&lease.task.subject.queue).copied().unwrap_or(0);
        let id = self.pools.id_of(&lease.task.subject.kind);
        let Some(waiting) = self.waiting.get_mut(id) else { return };
        let fits = waiting.capacity() > 0;
        waiting.arrived = Some((self.arrivals, Instant::now()));
        waiting.push(queue, lease);
        if self.is_speculative && fits {
            self.speculative_tasks = (self.speculative_tasks * 2).min(SPECULATIVE_TASKS_MAX);
            self.miss_pause = MISS_PAUSE_MIN;
        } else if self.is_speculative {
            // The task waits for a slot like any other, and is released when that takes too long.
            (self.speculative_tasks, self.speculate_from) = (1, Instant::now() + self.miss_pause);
            self.miss_pause = (self.miss_pause * 2).min(MISS_PAUSE_MAX);
        }
    }

    /// The next task that has a slot.
    pub(super) fn pop(&mut self) -> Option<(Lease, Slot)> {
        self.waiting.iter_mut().filter(|waiting| waiting.count > 0).find_map(|waiting| {
            let slot = waiting.pool.try_slot()?;
            Some((waiting.pop()?, slot))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.count).sum()
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<Lease> {
        self.waiting.iter_mut().flat_map(PoolQueue::drain).collect()
    }

    /// Takes out what has waited too long for a slot.
    pub(super) fn late(&mut self) -> Vec<Lease> {
        let mut late = Vec::new();
        for waiting in &mut self.waiting {
            let of_pool = waiting.late();
            if !of_pool.is_empty() {
                // What runs is that slow: without this the same tasks would be pulled again at once.
                waiting.pool.note(RELEASE_UNSTARTED_AFTER);
            }
            late.extend(of_pool);
        }
        late
    }

    /// How long a late task stays away: where other pools are in use it must not come again at once in place of their tasks.
    pub(super) fn release_delay(&self) -> Duration {
        if self.waiting.iter().filter(|waiting| waiting.is_used()).count() > 1 { MISS_DELAY } else { Duration::ZERO }
    }

    /// How many more tasks may be pulled: as many as the fullest pool in use takes; when that is none, a few speculatively for
    /// the others, and more while these turn out to be theirs.
    pub(super) fn capacity(&mut self) -> usize {
        let lowest = self.lowest_capacity();
        if lowest > 0 {
            self.is_speculative = false;
            return lowest;
        }
        if self.speculate_from > Instant::now() {
            return 0;
        }
        let others = self.waiting.iter().filter(|waiting| waiting.is_used()).map(PoolQueue::capacity);
        let capacity = others.max().unwrap_or(0).min(self.speculative_tasks);
        self.is_speculative |= capacity > 0;
        capacity
    }

    /// The capacity of the fullest pool in use; of the smallest pool before any is.
    fn lowest_capacity(&self) -> usize {
        let recent = |arrived: Option<(u64, Instant)>| arrived.is_some_and(|(n, _)| self.arrivals - n < MIX_ARRIVALS);
        let used = self.waiting.iter().filter(|waiting| waiting.count > 0 || recent(waiting.arrived));
        let lowest = used.map(PoolQueue::capacity).min();
        lowest.unwrap_or_else(|| self.waiting.iter().map(PoolQueue::capacity).min().unwrap_or(0))
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
