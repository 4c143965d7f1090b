//! Dead letters run again, some at a time. First it is noted that they are to, then a producer service stores the next
//! attempts (or the tasks of another queue), then the letters are settled. What was noted and not settled by somebody who
//! died is looked up on the bus before it is asked for again: no repetition runs a task twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millpond::bus::Bus;
use millpond::bus::operate::control::{CTL_REPLAY, ControlError, ControlReply, Replay};
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeStream};
use millpond::dead_letter::moved_id;
use millpond::failpoint;
use serde_json::value::RawValue;

use crate::store::{Again, Letter, Store};

/// How long one replay may take.
const REPLAY_WITHIN: Duration = Duration::from_secs(10);
/// Replays that a producer is asked for at once.
const ASKED_AT_ONCE: usize = 16;

/// How letters are to run again.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// In another queue, as new tasks.
    pub(crate) to_queue: Option<String>,
    /// With these arguments, JSON.
    pub(crate) arguments: Option<Box<RawValue>>,
    /// Who asks.
    pub(crate) by: String,
}

/// What became of one letter: the id of the new task where it was moved.
pub(crate) type Done = Result<Option<String>, String>;

/// Runs letters again. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Replays {
    bus: Bus,
    store: Store,
    /// Those that a request is at.
    under_way: Arc<Mutex<HashSet<Letter>>>,
}

/// The letters that a request is at, until it is dropped.
struct Claim<'a> {
    replays: &'a Replays,
    letters: Vec<Letter>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut under_way = self.replays.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        for letter in &self.letters {
            under_way.remove(letter);
        }
    }
}

/// One letter on its way.
struct Step {
    /// Its place among those that were asked for.
    place: usize,
    again: Again,
    replay: Replay,
}

/// What asking for a replay has shown.
enum Asked {
    Stored,
    Nobody(String),
    Failed(String),
}

impl Replays {
    pub(crate) fn new(bus: &Bus, store: &Store) -> Self {
        Self { bus: bus.clone(), store: store.clone(), under_way: Arc::default() }
    }

    /// What each would become: the id of the new task where it would be moved.
    pub(crate) async fn would(&self, letters: &[Letter], how: &How) -> Vec<Done> {
        let mut all = Vec::with_capacity(letters.len());
        for letter in letters {
            all.push(self.step(0, letter, how).await.map(|step| step.again.moved.map(|(_, id)| id)));
        }
        all
    }

    /// Runs each again; one that fails does not stop the others. In the order of the letters.
    pub(crate) async fn run(&self, letters: &[Letter], how: &How) -> Vec<Done> {
        let mut done: Vec<Done> =
            letters.iter().map(|_| Err("another request runs it again just now".to_owned())).collect();
        let (claim, mine) = self.claim(letters);
        let mut steps = Vec::new();
        for place in mine {
            let Some((letter, end)) = letters.get(place).zip(done.get_mut(place)) else { continue };
            match self.step(place, letter, how).await {
                Ok(step) => steps.push(step),
                Err(why) => *end = Err(why),
            }
        }
        self.run_steps(steps, how, &mut done).await;
        drop(claim);
        done
    }

    fn claim(&self, letters: &[Letter]) -> (Claim<'_>, Vec<usize>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = letters.iter().enumerate().filter(|(_, letter)| under_way.insert((*letter).clone()));
        let (places, letters) = mine.map(|(place, letter)| (place, letter.clone())).unzip();
        (Claim { replays: self, letters }, places)
    }

    async fn step(&self, place: usize, letter: &Letter, how: &How) -> Result<Step, String> {
        let found = self.store.letter(letter).await.map_err(|e| unreadable(&e))?;
        let Some(mut replay) = found else { return Err("it does not wait (any more)".to_owned()) };
        let to_queue = how.to_queue.clone().filter(|queue| *queue != letter.queue);
        replay.to_queue.clone_from(&to_queue);
        replay.arguments.clone_from(&how.arguments);
        let again = Again {
            letter: letter.clone(),
            reason: replay.evidence.reason.clone(),
            buried_ms: replay.evidence.dead_ms,
            moved: to_queue.map(|queue| (queue.clone(), moved_id(&replay.evidence.id, &queue))),
            changed: how.arguments.is_some(),
        };
        Ok(Step { place, again, replay })
    }

    async fn run_steps(&self, steps: Vec<Step>, how: &How, done: &mut [Done]) {
        let all: Vec<Again> = steps.iter().map(|step| step.again.clone()).collect();
        let noted = match self.store.note_replays(&all, &how.by).await {
            Ok(noted) => noted,
            Err(fault) => return fail(&steps, done, &unwritable(&fault)),
        };
        failpoint::hit("collector.replay_noted");
        let (mut settled, mut fresh) = (Vec::new(), Vec::new());
        for (step, before) in steps.into_iter().zip(noted) {
            let looked = match before {
                None => Ok(None),
                Some(before) => self.look_again(&step, before, how).await,
            };
            match looked {
                Ok(None) => fresh.push(step),
                Ok(Some(before)) => settled.push((step.place, before)),
                Err(why) => put(done, step.place, Err(why)),
            }
        }
        let mut forgotten = Vec::new();
        for (step, asked) in self.ask(fresh).await {
            match asked {
                Asked::Stored => settled.push((step.place, step.again)),
                Asked::Failed(why) => put(done, step.place, Err(why)),
                Asked::Nobody(why) => {
                    put(done, step.place, Err(why));
                    forgotten.push(step.again.letter);
                }
            }
        }
        failpoint::hit("collector.replay_stored");
        let (places, ends): (Vec<usize>, Vec<Again>) = settled.into_iter().unzip();
        let mut kept = self.store.settle_replays(&ends).await;
        if kept.is_ok() && !forgotten.is_empty() {
            kept = self.store.forget_replays(&forgotten).await;
        }
        for (place, again) in places.into_iter().zip(ends) {
            let end = match &kept {
                Err(fault) => Err(format!("it runs again, but {}", unwritable(fault))),
                Ok(()) if how.arguments.is_some() && !again.changed => {
                    Err("it runs again already, with its own arguments: it was asked for before".to_owned())
                }
                Ok(()) => Ok(again.moved.map(|(_, id)| id)),
            };
            put(done, place, end);
        }
    }

    /// It was to run again before, and whoever asked has not seen the end of it. None when the bus never had it, so that
    /// it is to be asked for; else what was asked for then, which is what runs.
    async fn look_again(&self, step: &Step, before: Again, how: &How) -> Result<Option<Again>, String> {
        let (queue, id) = match &before.moved {
            Some((queue, id)) => (queue.as_str(), id.as_str()),
            None => (before.letter.queue.as_str(), step.replay.evidence.id.as_str()),
        };
        match self.bus.due_has(queue, id).await.map_err(|e| e.to_string())? {
            Some(true) => return Ok(Some(before)),
            None => {
                return Err(
                    "an earlier request for it was cut off, and more waits than can be looked through to tell \
                            whether it runs already; try again when less does"
                        .to_owned(),
                );
            }
            Some(false) => {}
        }
        // It may have ended meanwhile, and that not be stored yet.
        for ended in [OutcomeStream::Results, OutcomeStream::Dead] {
            let state = OutcomeReader::new(self.bus.clone(), ended).state().await.map_err(|e| e.to_string())?;
            if state.pending + state.ack_pending > 0 {
                return Err(
                    "an earlier request for it was cut off, and what ended since is still being read; try again \
                            in a moment"
                        .to_owned(),
                );
            }
        }
        if self.has_ended(&before).await? {
            return Ok(Some(before));
        }
        if self.store.letter(&step.again.letter).await.map_err(|e| unreadable(&e))?.is_none() {
            return Err("it does not wait (any more)".to_owned());
        }
        let anew = self.store.note_replays_anew(std::slice::from_ref(&step.again), &how.by).await;
        anew.map_err(|e| unwritable(&e))?;
        Ok(None)
    }

    /// Whether the task that a letter became in another queue has come to an end there; one that ran in its own queue has
    /// changed the row of the letter itself.
    async fn has_ended(&self, before: &Again) -> Result<bool, String> {
        let Some((queue, id)) = &before.moved else { return Ok(false) };
        let found = self.store.task(id, Some(queue)).await.map_err(|e| unreadable(&e))?;
        Ok(!found.is_empty())
    }

    async fn ask(&self, steps: Vec<Step>) -> Vec<(Step, Asked)> {
        let asking = steps.into_iter().map(|step| async move {
            let asked = match self.bus.request(CTL_REPLAY, &step.replay, REPLAY_WITHIN).await {
                Ok(ControlReply::Ok(_)) => Asked::Stored,
                Ok(ControlReply::Error(text)) => Asked::Failed(text),
                Err(fault @ ControlError::Nobody(_)) => {
                    Asked::Nobody(format!("{fault}; is a producer running (`millpond producer run`)?"))
                }
                Err(fault) => Asked::Failed(fault.to_string()),
            };
            (step, asked)
        });
        stream::iter(asking).buffered(ASKED_AT_ONCE).collect().await
    }
}

fn put(done: &mut [Done], place: usize, end: Done) {
    if let Some(slot) = done.get_mut(place) {
        *slot = end;
    }
}

fn fail(steps: &[Step], done: &mut [Done], why: &str) {
    for step in steps {
        put(done, step.place, Err(why.to_owned()));
    }
}

fn unreadable(fault: &anyhow::Error) -> String {
    format!("the store cannot be read: {fault:#}")
}

fn unwritable(fault: &anyhow::Error) -> String {
    format!("the store cannot be written: {fault:#}")
}
