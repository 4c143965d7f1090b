//! Which of a worker's queues is asked for how much: the first with a backlog gets the room, those behind it a guaranteed
//! share of what it got, those before it stay asked, so that what comes there goes first. Pure: `bus/consume/pull.rs` tells what
//! happened, and when. A worker of one queue has no use for it.

use std::time::{Duration, Instant};

use crate::limits::{LATER_QUEUES_SHARE, LOOKAHEAD_TASKS_MAX};

/// A queue whose pull is not answered for this long has nothing for now.
const QUEUE_IDLE_AFTER: Duration = Duration::from_millis(100);

/// What is known of the queues, in the order in which they are served.
pub(in crate::bus) struct QueueOrder {
    /// Of each queue, of its two streams: whether more waited there when last heard.
    backlog: Vec<[bool; 2]>,
    /// Tasks that queues with others behind them were given, and that those others have not had their share of.
    credit: usize,
    /// The queue that was last given a share.
    turn: usize,
}

impl QueueOrder {
    pub(in crate::bus) fn new(queues: usize) -> Self {
        Self { backlog: vec![[false; 2]; queues], credit: 0, turn: 0 }
    }

    /// The first queue that has more than was delivered.
    fn first(&self) -> Option<usize> {
        self.backlog.iter().position(|of| of.contains(&true))
    }

    /// A task of queue `queue` came, from its stream 0 or 1; `more` wait there.
    pub(in crate::bus) fn delivered(&mut self, queue: usize, stream: usize, more: bool) {
        if self.first().is_none_or(|first| queue <= first) {
            self.credit = (self.credit + 1).min(LOOKAHEAD_TASKS_MAX);
        }
        if let Some(backlog) = self.backlog.get_mut(queue).and_then(|of| of.get_mut(stream)) {
            *backlog = more;
        }
    }

    /// Nothing waits there: a pull was not answered, since `asked` and since something last came.
    pub(in crate::bus) fn unanswered(&mut self, queue: usize, stream: usize, asked: Instant, now: Instant) {
        if now.saturating_duration_since(asked) > QUEUE_IDLE_AFTER
            && let Some(backlog) = self.backlog.get_mut(queue).and_then(|of| of.get_mut(stream))
        {
            *backlog = false;
        }
    }

    /// How many tasks each queue is to be asked for, in all, when there is room for `room` and `asked` are asked for
    /// already (of each queue the fewer of its two streams).
    pub(in crate::bus) fn targets(&mut self, room: usize, asked: &[usize]) -> Vec<usize> {
        let share = room.div_ceil(self.backlog.len().max(1));
        let Some(first) = self.first() else { return vec![share; self.backlog.len()] };
        let mut targets: Vec<usize> =
            (0..self.backlog.len()).map(|queue| if queue < first { share } else { 0 }).collect();
        let granted = self.grant(room, first, asked);
        for (queue, target) in targets.iter_mut().enumerate() {
            match granted {
                Some((to, tasks)) if to == queue => *target = tasks,
                // What surely comes for others is not asked for here as well.
                Some((to, tasks)) if queue == first && self.has_backlog(to) => *target = room.saturating_sub(tasks),
                _ if queue == first => *target = room,
                _ => {}
            }
        }
        targets
    }

    fn has_backlog(&self, queue: usize) -> bool {
        self.backlog.get(queue).is_some_and(|of| of.contains(&true))
    }

    /// The share of those behind `first`, when it is due: one of them in turn, and how many it may be asked for.
    fn grant(&mut self, room: usize, first: usize, asked: &[usize]) -> Option<(usize, usize)> {
        let tasks = (self.credit / (LATER_QUEUES_SHARE - 1)).min(room.div_ceil(LATER_QUEUES_SHARE));
        // Of a large room not one by one: each is a request.
        if tasks == 0 || tasks < room / LATER_QUEUES_SHARE / 2 {
            return None;
        }
        let later = first + 1..self.backlog.len();
        let (before, after) = (later.clone().filter(|q| *q <= self.turn), later.filter(|q| *q > self.turn));
        let asked_of = |queue: usize| asked.get(queue).copied().unwrap_or(0);
        let to = after.chain(before).find(|queue| asked_of(*queue) < tasks)?;
        self.credit = self.credit.saturating_sub((tasks - asked_of(to)) * (LATER_QUEUES_SHARE - 1));
        self.turn = to;
        Some((to, tasks))
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
            let targets = order.targets(room, &asked);
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
        let mut order = QueueOrder::new(2);
        order.delivered(1, 1, true);
        assert_eq!(order.targets(10, &[0, 0]), [5, 10], "the first stays asked");
        order.delivered(0, 0, true);
        assert_eq!(order.targets(10, &[0, 0])[0], 10);
        let now = Instant::now();
        order.unanswered(0, 0, now, now);
        assert_eq!(order.targets(10, &[0, 0]), [10, 0], "not yet");
        order.unanswered(0, 0, now, now + QUEUE_IDLE_AFTER * 2);
        assert_eq!(order.targets(10, &[0, 0]), [5, 10]);
    }
}
