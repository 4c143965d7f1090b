//! How much a worker pulls from each of its queues. The first queue with a backlog gets the free capacity, the queues
//! behind it a guaranteed share of what it got; the queues before it stay requested, so that what arrives there goes
//! first. No I/O: `bus/consume/pull.rs` reports what was delivered, and when. A worker of one queue does not need this.

use std::time::{Duration, Instant};

use crate::limits::{LATER_QUEUES_SHARE, LOOKAHEAD_TASKS_MAX};

/// A queue whose pull is not answered for this long has nothing for now.
const QUEUE_IDLE_AFTER: Duration = Duration::from_millis(100);

/// What is known of a worker's queues, in the order in which they are served.
pub(super) struct QueueOrder {
    /// For each queue and each of its two streams: whether more waited there at the last delivery.
    backlog: Vec<[bool; 2]>,
    /// Tasks that were given to the queues in front, and of which the queues behind have not had their share.
    credit: usize,
    /// The queue that was last given a share.
    turn: usize,
    /// The share that was last given, while it is on its way.
    granted: Option<Grant>,
}

/// Tasks that are requested from one queue behind the first.
#[derive(Clone, Copy)]
struct Grant {
    queue: usize,
    /// How many were not delivered yet.
    left: usize,
    /// When the first queue gets the slots that are kept free for them.
    until: Instant,
}

impl QueueOrder {
    pub(super) fn new(queues: usize) -> Self {
        Self { backlog: vec![[false; 2]; queues], credit: 0, turn: 0, granted: None }
    }

    /// Whether no queue has more than was delivered, as far as is known.
    pub(super) fn is_idle(&self) -> bool {
        self.first().is_none()
    }

    /// The queues that have more than was delivered, each with the stream, 0 or 1, that has it.
    pub(super) fn backlogged(&self) -> Vec<(usize, usize)> {
        let streams = |(queue, of): (usize, &[bool; 2])| of.map(|has| has.then_some(queue));
        let all = self.backlog.iter().enumerate().map(streams);
        all.flat_map(|of| of.into_iter().zip(0..)).filter_map(|(queue, stream)| Some((queue?, stream))).collect()
    }

    /// The first queue that has more than was delivered.
    fn first(&self) -> Option<usize> {
        self.backlog.iter().position(|of| of.contains(&true))
    }

    /// A task of queue `queue` was delivered from its stream 0 or 1; `more` tells whether more wait there.
    pub(super) fn delivered(&mut self, queue: usize, stream: usize, more: bool) {
        if self.first().is_none_or(|first| queue <= first) {
            self.credit = (self.credit + 1).min(LOOKAHEAD_TASKS_MAX);
        }
        if let Some(granted) = self.granted.as_mut().filter(|granted| granted.queue == queue) {
            granted.left = granted.left.saturating_sub(1);
        }
        self.set_backlog(queue, stream, more);
    }

    /// A task of queue `queue` is released to its stream 0 or 1, because it got no slot in time. It waits there again, and a
    /// queue behind the first has its turn with the next free slot: what came ahead of the task has used the last one.
    pub(super) fn released(&mut self, queue: usize, stream: usize) {
        self.set_backlog(queue, stream, true);
        if self.first().is_some_and(|first| queue > first) {
            self.credit = self.credit.max(LATER_QUEUES_SHARE - 1);
        }
    }

    fn set_backlog(&mut self, queue: usize, stream: usize, has: bool) {
        if let Some(backlog) = self.backlog.get_mut(queue).and_then(|of| of.get_mut(stream)) {
            *backlog = has;
        }
    }

    /// A pull has not been answered since `requested` (or since the last delivery). After a while, nothing waits there.
    pub(super) fn unanswered(&mut self, queue: usize, stream: usize, requested: Instant, now: Instant) {
        if now.saturating_duration_since(requested) > QUEUE_IDLE_AFTER {
            self.set_backlog(queue, stream, false);
        }
    }

    /// How many tasks are to be requested from each queue in all, with a free capacity of `capacity` tasks, when
    /// `requested` are requested already (for each queue the smaller number of its two streams).
    pub(super) fn targets(&mut self, capacity: usize, requested: &[usize], now: Instant) -> Vec<usize> {
        let share = capacity.div_ceil(self.backlog.len().max(1));
        let Some(first) = self.first() else { return vec![share; self.backlog.len()] };
        let mut targets: Vec<usize> =
            (0..self.backlog.len()).map(|queue| if queue < first { share } else { 0 }).collect();
        // While a share is on its way nothing is requested for its slots: the first queue's tasks would have them.
        let is_coming = |granted: &Grant| granted.queue > first && granted.left > 0 && now < granted.until;
        let coming = self.granted.filter(|granted| is_coming(granted) && self.has_backlog(granted.queue));
        self.granted = coming.or_else(|| self.grant(capacity, first, requested, now));
        for (queue, target) in targets.iter_mut().enumerate() {
            match self.granted {
                Some(granted) if granted.queue == queue => *target = granted.left,
                Some(granted) if queue == first && self.has_backlog(granted.queue) => {
                    *target = capacity.saturating_sub(granted.left);
                }
                _ if queue == first => *target = capacity,
                _ => {}
            }
        }
        targets
    }

    fn has_backlog(&self, queue: usize) -> bool {
        self.backlog.get(queue).is_some_and(|of| of.contains(&true))
    }

    /// The share of the queues behind `first`, when it is due: the queue whose turn it is, and how many tasks are to be
    /// requested from it.
    fn grant(&mut self, capacity: usize, first: usize, requested: &[usize], now: Instant) -> Option<Grant> {
        let tasks = (self.credit / (LATER_QUEUES_SHARE - 1)).min(capacity.div_ceil(LATER_QUEUES_SHARE));
        // With a large capacity the share is not granted one by one: each grant is a request.
        if tasks == 0 || tasks < capacity / LATER_QUEUES_SHARE / 2 {
            return None;
        }
        let later = first + 1..self.backlog.len();
        let (before, after) = (later.clone().filter(|q| *q <= self.turn), later.filter(|q| *q > self.turn));
        let requested_of = |queue: usize| requested.get(queue).copied().unwrap_or(0);
        let to = after.chain(before).find(|queue| requested_of(*queue) < tasks)?;
        self.credit = self.credit.saturating_sub((tasks - requested_of(to)) * (LATER_QUEUES_SHARE - 1));
        self.turn = to;
        Some(Grant { queue: to, left: tasks, until: now + QUEUE_IDLE_AFTER })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves these backlogs with this room until `count` are delivered; how many of each queue.
    fn serve(backlogs: &mut [usize], room: usize, count: usize) -> Vec<usize> {
        let (mut order, mut delivered) = (QueueOrder::new(backlogs.len()), vec![0; backlogs.len()]);
        let mut asked = vec![0; backlogs.len()];
        let now = Instant::now();
        while delivered.iter().sum::<usize>() < count {
            let targets = order.targets(room, &asked, now);
            for (queue, target) in targets.into_iter().enumerate() {
                asked[queue] = asked[queue].max(target);
                let come = asked[queue].min(backlogs[queue]);
                for _ in 0..come {
                    backlogs[queue] -= 1;
                    order.delivered(queue, 1, backlogs[queue] > 0);
                }
                delivered[queue] += come;
                asked[queue] -= come;
                if asked[queue] > 0 {
                    order.unanswered(queue, 1, now, now + Duration::from_secs(1));
                }
            }
        }
        delivered
    }

    #[test]
    fn the_first_gets_the_room_and_those_behind_it_their_share() {
        for room in [1, 2, 10, 512] {
            let delivered = serve(&mut [100_000, 100_000, 100_000], room, 20_000);
            let later: usize = delivered[1..].iter().sum();
            assert!(delivered[0] > 17_000 && later > 1500, "room {room}: {delivered:?}");
            assert!(delivered[1..].iter().all(|n| *n > 500), "room {room}: {delivered:?}");
        }
    }

    #[test]
    fn when_the_first_is_empty_the_next_gets_everything() {
        assert_eq!(serve(&mut [0, 1000, 1000], 1, 1000)[0], 0);
        let delivered = serve(&mut [100, 1000, 0], 10, 1100);
        assert_eq!(delivered, [100, 1000, 0]);
        let (mut order, now) = (QueueOrder::new(2), Instant::now());
        order.delivered(1, 1, true);
        assert_eq!(order.targets(10, &[0, 0], now), [5, 10], "the first stays asked");
        order.delivered(0, 0, true);
        assert_eq!(order.targets(10, &[0, 0], now)[0], 10);
        order.unanswered(0, 0, now, now);
        assert_eq!(order.targets(10, &[0, 0], now), [10, 0], "not yet");
        order.unanswered(0, 0, now, now + QUEUE_IDLE_AFTER * 2);
        assert_eq!(order.targets(10, &[0, 0], now), [5, 10]);
    }

    #[test]
    fn a_share_that_is_on_its_way_keeps_its_slots() {
        let (mut order, now) = (QueueOrder::new(2), Instant::now());
        order.delivered(1, 1, true);
        (0..LATER_QUEUES_SHARE).for_each(|_| order.delivered(0, 1, true));
        assert_eq!(order.targets(1, &[0, 0], now), [0, 1]);
        assert_eq!(order.targets(1, &[0, 0], now), [0, 1], "it is on its way");
        order.delivered(1, 1, true);
        assert_eq!(order.targets(1, &[0, 0], now), [1, 0], "it has come");
        // What does not come has its slots for a while only.
        (0..LATER_QUEUES_SHARE).for_each(|_| order.delivered(0, 1, true));
        assert_eq!(order.targets(1, &[0, 0], now), [0, 1]);
        assert_eq!(order.targets(1, &[0, 0], now + QUEUE_IDLE_AFTER), [1, 0]);
    }

    #[test]
    fn what_was_released_has_the_next_free_slot() {
        let (mut order, now) = (QueueOrder::new(2), Instant::now());
        order.delivered(0, 1, true);
        order.delivered(1, 1, false);
        assert_eq!(order.targets(1, &[0, 0], now), [1, 0]);
        order.released(1, 1);
        assert_eq!(order.targets(1, &[0, 0], now), [0, 1]);
        order.delivered(1, 1, false);
        assert_eq!(order.targets(1, &[0, 0], now), [1, 0], "once");
        // A task of the first queue costs those behind it nothing, and gives them nothing.
        order.released(0, 1);
        assert_eq!(order.targets(1, &[0, 0], now), [1, 0]);
    }
}
