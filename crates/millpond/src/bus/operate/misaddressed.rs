//! Messages that the server has stored and that nothing would ever end: tasks of queues that cannot be served, because their names
//! are not allowed, and messages below `sched` that nothing delivers, or that nobody finds there. Each becomes a dead letter that
//! says why. In the collector's role.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::bus::Bus;
use crate::bus::operate::poison::{COLLECTOR, PoisonError, dead_letter};
use crate::bus::operate::queues::QueueState;
use crate::bus::read::raw::RawMessage;
use crate::bus::topology::stream_state;
use crate::dead_letter::{REASON_BAD_QUEUE, REASON_BAD_SCHEDULE};
use crate::task::{Arrival, Origin, Task};
use crate::wire::headers::{HEADER_ID, HEADER_SCHEDULE, HEADER_SCHEDULE_TARGET, Headers};
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::wire::subject::{SCHEDULES_REMOVED, TaskSubject, check_token, key};

/// Messages of a queue that one search looks at, at the most.
const LOOKED_AT_MAX: usize = 5_000;
/// Pages of what waits for its time that one search reads, at the most; the next one goes on behind them.
const PAGES_MAX: usize = 10;
/// How long a message must have waited for its time before it is looked at: most retries are delivered before, and cost nothing.
const WAITED_FOR: Duration = Duration::from_secs(5);

/// What was looked at so far. A stored message never changes, so each is looked at once.
#[derive(Default)]
pub struct MisaddressedSearch {
    /// All of DUE up to this sequence was looked at.
    looked_at: u64,
    /// All up to this sequence has waited for long enough.
    up_to: u64,
    /// How far DUE had come, and when.
    ends: VecDeque<(Instant, u64)>,
}

impl MisaddressedSearch {
    /// Looks at queues that cannot be, and at what has begun to wait for its time. Returns how many messages became dead letters.
    ///
    /// # Errors
    /// [`PoisonError`]; what was found before it is removed.
    pub async fn search(&mut self, bus: &Bus, queues: &[QueueState]) -> Result<usize, PoisonError> {
        let mut found = 0;
        for queue in queues.iter().filter(|queue| check_token("queue", &queue.queue).is_err()) {
            found += search_queue(bus, &queue.queue).await?;
        }
        Ok(found + self.search_waiting(bus).await?)
    }

    async fn search_waiting(&mut self, bus: &Bus) -> Result<usize, PoisonError> {
        let last = stream_state(bus, STREAM_DUE).await?.last_seq;
        if last < self.looked_at {
            // The stream was made anew.
            *self = Self::default();
        }
        self.ends.push_back((Instant::now(), last));
        while let Some((_, end)) = self.ends.front().filter(|(at, _)| at.elapsed() >= WAITED_FOR) {
            self.up_to = *end;
            self.ends.pop_front();
        }
        let mut found = 0;
        for _ in 0..PAGES_MAX {
            if self.looked_at >= self.up_to {
                break;
            }
            let page = bus.page(STREAM_DUE, "sched.>", self.looked_at + 1).await?;
            let next = page.last().map_or(self.up_to, |(last, ..)| self.up_to.min(*last));
            for (seq, subject, headers) in page.into_iter().filter(|(seq, ..)| *seq <= next) {
                let Some(wrong) = wrong_schedule(&subject, &headers) else { continue };
                // It may have been delivered or replaced meanwhile.
                let message = bus.next_raw_message(STREAM_DUE, seq, "sched.>").await?;
                if let Some(message) = message.filter(|message| message.seq == seq) {
                    let text = format!("it waits for its time on {subject}, but {wrong}");
                    take_out(bus, Origin::Due, &message, REASON_BAD_SCHEDULE, text).await?;
                    found += 1;
                }
            }
            self.looked_at = next;
        }
        Ok(found)
    }
}

async fn search_queue(bus: &Bus, queue: &str) -> Result<usize, PoisonError> {
    let mut found = 0;
    for (origin, stream, filter) in
        [(Origin::Tasks, STREAM_TASKS, format!("tasks.{queue}.>")), (Origin::Due, STREAM_DUE, format!("due.{queue}.>"))]
    {
        let mut from = 1;
        for _ in 0..LOOKED_AT_MAX {
            let Some(message) = bus.next_raw_message(stream, from, &filter).await? else { break };
            from = message.seq + 1;
            // A name with a wildcard matches others.
            let Err(wrong) = check_token("queue", message.subject.split('.').nth(1).unwrap_or_default()) else {
                continue;
            };
            let text =
                format!("it was published to {}, but {wrong}; no worker can serve such a queue", message.subject);
            take_out(bus, origin, &message, REASON_BAD_QUEUE, text).await?;
            found += 1;
        }
    }
    Ok(found)
}

/// Why a message below `sched` would never end, or would not be found; none when it is as it must be.
fn wrong_schedule(subject: &str, headers: &Headers) -> Option<String> {
    let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    if subject == SCHEDULES_REMOVED {
        return None;
    }
    if get(HEADER_SCHEDULE).is_none() {
        return Some(format!(
            "it has no header {HEADER_SCHEDULE}, so nothing ever delivers it; a task for now is published to tasks.<queue>.<kind>"
        ));
    }
    // What else is wrong with a task that recurs is listed with it, as a problem: whoever wrote it mends or removes it.
    if subject.starts_with("sched.-.") {
        return None;
    }
    let target = get(HEADER_SCHEDULE_TARGET).unwrap_or_default();
    let Ok(target) = TaskSubject::parse(target) else {
        return Some(format!("its {HEADER_SCHEDULE_TARGET} {target:?} is not due.<queue>.<kind>"));
    };
    if TaskSubject::parse_sched(subject).as_ref() != Some(&target) {
        return Some(format!(
            "such a subject is sched.<queue>.<kind>.<job, u-<unique key> or ->.<key>, of the queue, kind, job and unique key of its \
             {HEADER_SCHEDULE_TARGET}, here {}",
            target.due()
        ));
    }
    let id = get(HEADER_ID)?;
    let (given, right) = (subject.rsplit('.').next().unwrap_or_default(), key(id));
    (given != right).then(|| {
        format!(
            "the key of its id {id:?} is {right} (base32 of SHA-256 in capital letters, without padding), not {given}"
        )
    })
}

/// Keeps a message as a dead letter, and removes it. Nobody has looked at its signature, so it stands in no queue that there can
/// be: the task that it claims to be is not touched. By its id it is found all the same.
async fn take_out(
    bus: &Bus,
    origin: Origin,
    message: &RawMessage,
    reason: &'static str,
    text: String,
) -> Result<(), PoisonError> {
    let stream = if origin == Origin::Due { STREAM_DUE } else { STREAM_TASKS };
    let epoch = stream_state(bus, stream).await?.epoch;
    let arrival = Arrival { origin, epoch: &epoch, seq: message.seq, stored_ms: message.stored_ms };
    let kind = message.subject.split('.').nth(2).filter(|kind| check_token("kind", kind).is_ok());
    let subject = format!("due.{NOWHERE}.{}", kind.unwrap_or(NOWHERE));
    let headers = message.headers().unwrap_or_default();
    let mut task = Task::parse(&subject, &headers, message.payload.clone(), arrival);
    (task.items, task.index) = (None, None);
    dead_letter(bus, &task, message, (reason, text), Vec::new(), COLLECTOR).await?;
    bus.remove_message(stream, message.seq).await?;
    Ok(())
}

/// Stands where a queue or a kind cannot be said.
const NOWHERE: &str = "invalid";

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(subject: &str, headers: &[(&str, &str)]) -> String {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        wrong_schedule(subject, &headers).unwrap_or_default()
    }

    #[test]
    fn what_would_never_end_or_not_be_found_is_named() {
        let (at, id) = ((HEADER_SCHEDULE, "@at 2100-01-01T00:00:00Z"), (HEADER_ID, "order-7"));
        let to = |target| (HEADER_SCHEDULE_TARGET, target);
        let right = key("order-7");
        assert_eq!(wrong(&format!("sched.q.k.-.{right}"), &[at, to("due.q.k"), id]), "");
        assert_eq!(wrong(&format!("sched.q.k.j1.{right}"), &[at, to("due.q.k.j-j1"), id]), "");
        assert_eq!(wrong(&format!("sched.q.k.u-x.{right}"), &[at, to("due.q.k.u-x"), id]), "");
        assert_eq!(wrong("sched.q.k.-.any", &[at, to("due.q.k")]), "", "without an id any key will do");
        assert_eq!((wrong("sched.-.-", &[]), wrong("sched.-.nightly", &[at, to("sched.q.k")])), Default::default());
        for (subject, headers, said) in [
            ("sched.q.k.-.any", &[to("due.q.k")][..], "no header Nats-Schedule"),
            ("sched.-.nightly", &[], "no header Nats-Schedule"),
            (
                "sched.q.k.-.any",
                &[("nats-schedule", "@at 2100-01-01T00:00:00Z"), to("due.q.k")],
                "no header Nats-Schedule",
            ),
            ("sched.q.k.-.any", &[at], "is not due.<queue>.<kind>"),
            ("sched.q.k.-.any", &[at, to("due.a@b.k")], "is not due.<queue>.<kind>"),
            ("sched.q.k.any", &[at, to("due.q.k")], "sched.<queue>"),
            ("sched.a@b.k.-.any", &[at, to("due.q.k")], "sched.<queue>"),
            ("sched.q.k.-.any", &[at, to("due.q.other")], "here due.q.other"),
            ("sched.q.k.j1.any", &[at, to("due.q.k")], "here due.q.k"),
            ("sched.q.k.-.order-7", &[at, to("due.q.k"), id], right.as_str()),
            (&format!("sched.q.k.-.{}", right.to_lowercase()), &[at, to("due.q.k"), id], "capital letters"),
            (&format!("sched.q.k.-.{right}===="), &[at, to("due.q.k"), id], "without padding"),
        ] {
            let text = wrong(subject, headers);
            assert!(text.contains(said), "{subject} {headers:?}: {text:?}");
        }
    }
}
