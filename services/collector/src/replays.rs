//! Runs dead letters again, some at a time. First their replays are planned in the store, then a producer service publishes
//! the next attempts (or the tasks of another queue), then the replays are completed. A replay that was planned and not
//! completed, because its collector died, is searched on the bus before it is requested again: no task runs twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use millpond::bus::Bus;
use millpond::bus::operate::control::{CTL_REPLAY, ControlError, ControlReply, ReplayRequest};
use millpond::bus::read::outcomes::{OutcomeReader, OutcomeStream};
use millpond::dead_letter::moved_id;
use millpond::failpoint;
use millpond_api::dead_letters::DeadLetterId;
use serde_json::value::RawValue;

use crate::store::{PlannedReplay, Store, StoreError};

/// How long one replay may take.
const REPLAY_WITHIN: Duration = Duration::from_secs(10);
/// Replays that are requested from producers at once.
const REQUESTS_AT_ONCE: usize = 16;

/// How dead letters are to run again.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplayOptions {
    /// In another queue, as new tasks.
    pub(crate) to_queue: Option<String>,
    /// With these arguments, JSON.
    pub(crate) arguments: Option<Box<RawValue>>,
    /// The role that requests it.
    pub(crate) by: String,
}

/// What became of one dead letter: the id of the new task where it was moved.
pub(crate) type ReplayEnd = Result<Option<String>, String>;

/// Runs dead letters again. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Replays {
    bus: Bus,
    store: Store,
    /// The dead letters that requests are at.
    under_way: Arc<Mutex<HashSet<DeadLetterId>>>,
}

/// The dead letters that a request is at, until this is dropped.
struct ReplayClaim<'a> {
    replays: &'a Replays,
    dead_letters: Vec<DeadLetterId>,
}

impl Drop for ReplayClaim<'_> {
    fn drop(&mut self) {
        let mut under_way = self.replays.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.dead_letters {
            under_way.remove(id);
        }
    }
}

/// One dead letter on its way.
struct ReplayStep {
    /// Its place in the request.
    place: usize,
    planned: PlannedReplay,
    request: ReplayRequest,
}

/// What a producer answered to the request for a replay.
enum ReplayAnswer {
    /// It is stored.
    Stored,
    /// There was no producer: nothing has happened.
    NoProducer(String),
    /// It failed, or may have been stored after all.
    Failed(String),
}

impl Replays {
    pub(crate) fn new(bus: &Bus, store: &Store) -> Self {
        Self { bus: bus.clone(), store: store.clone(), under_way: Arc::default() }
    }

    /// What each would become: the id of the new task where it would be moved.
    pub(crate) async fn would(&self, ids: &[DeadLetterId], options: &ReplayOptions) -> Vec<ReplayEnd> {
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            all.push(self.step(0, id, options).await.map(|step| step.planned.moved.map(|(_, id)| id)));
        }
        all
    }

    /// Runs each again; one that fails does not stop the others. In the order of the request.
    pub(crate) async fn run(&self, ids: &[DeadLetterId], options: &ReplayOptions) -> Vec<ReplayEnd> {
        let mut done: Vec<ReplayEnd> =
            ids.iter().map(|_| Err("another request runs it again just now".to_owned())).collect();
        let (claim, mine) = self.claim(ids);
        let mut steps = Vec::new();
        for place in mine {
            let Some((id, end)) = ids.get(place).zip(done.get_mut(place)) else { continue };
            match self.step(place, id, options).await {
                Ok(step) => steps.push(step),
                Err(why) => *end = Err(why),
            }
        }
        self.run_steps(steps, options, &mut done).await;
        drop(claim);
        done
    }

    fn claim(&self, ids: &[DeadLetterId]) -> (ReplayClaim<'_>, Vec<usize>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = ids.iter().enumerate().filter(|(_, id)| under_way.insert((*id).clone()));
        let (places, dead_letters) = mine.map(|(place, id)| (place, id.clone())).unzip();
        (ReplayClaim { replays: self, dead_letters }, places)
    }

    async fn step(&self, place: usize, id: &DeadLetterId, options: &ReplayOptions) -> Result<ReplayStep, String> {
        let found = self.store.replay_request(id).await.map_err(|e| unreadable(&e))?;
        let Some(mut request) = found else { return Err("it does not wait (any more)".to_owned()) };
        let to_queue = options.to_queue.clone().filter(|queue| *queue != id.queue);
        request.to_queue.clone_from(&to_queue);
        request.arguments.clone_from(&options.arguments);
        let planned = PlannedReplay {
            dead_letter: id.clone(),
            reason: request.evidence.reason.clone(),
            dead_lettered_ms: request.evidence.dead_lettered_ms,
            moved: to_queue.map(|queue| (queue, moved_id(&request.evidence.id, &id.queue))),
            new_arguments: options.arguments.is_some(),
        };
        Ok(ReplayStep { place, planned, request })
    }

    async fn run_steps(&self, steps: Vec<ReplayStep>, options: &ReplayOptions, done: &mut [ReplayEnd]) {
        let all: Vec<PlannedReplay> = steps.iter().map(|step| step.planned.clone()).collect();
        let noted = match self.store.plan_replays(&all, &options.by).await {
            Ok(noted) => noted,
            Err(fault) => return fail(&steps, done, &unwritable(&fault)),
        };
        failpoint::hit("collector.replay_planned");
        let (mut settled, mut fresh) = (Vec::new(), Vec::new());
        for (step, before) in steps.into_iter().zip(noted) {
            let earlier = match before {
                None => Ok(None),
                Some(before) => self.search_earlier(&step, before, options).await,
            };
            match earlier {
                Ok(None) => fresh.push(step),
                Ok(Some(before)) => settled.push((step.place, before)),
                Err(why) => put(done, step.place, Err(why)),
            }
        }
        let mut forgotten = Vec::new();
        for (step, answer) in self.request(fresh).await {
            match answer {
                ReplayAnswer::Stored => settled.push((step.place, step.planned)),
                ReplayAnswer::Failed(why) => put(done, step.place, Err(why)),
                ReplayAnswer::NoProducer(why) => {
                    put(done, step.place, Err(why));
                    forgotten.push(step.planned.dead_letter);
                }
            }
        }
        failpoint::hit("collector.replay_stored");
        let (places, ends): (Vec<usize>, Vec<PlannedReplay>) = settled.into_iter().unzip();
        let mut kept = self.store.complete_replays(&ends).await;
        if kept.is_ok() && !forgotten.is_empty() {
            kept = self.store.drop_replay_plans(&forgotten).await;
        }
        for (place, again) in places.into_iter().zip(ends) {
            let end = match &kept {
                Err(fault) => Err(format!("it runs again, but {}", unwritable(fault))),
                Ok(()) if options.arguments.is_some() && !again.new_arguments => {
                    Err("it runs again already, with its own arguments: it was requested before".to_owned())
                }
                Ok(()) => Ok(again.moved.map(|(_, id)| id)),
            };
            put(done, place, end);
        }
    }

    /// Searches the bus for a replay that was planned before and not completed. None when the bus never had it, so that it is
    /// requested now; else the plan of then, which is what runs.
    async fn search_earlier(
        &self,
        step: &ReplayStep,
        before: PlannedReplay,
        options: &ReplayOptions,
    ) -> Result<Option<PlannedReplay>, String> {
        let (queue, id) = match &before.moved {
            Some((queue, id)) => (queue.as_str(), id.as_str()),
            None => (before.dead_letter.queue.as_str(), step.request.evidence.id.as_str()),
        };
        match self.bus.due_has(queue, &step.request.kind, id).await.map_err(|e| e.to_string())? {
            Some(true) => return Ok(Some(before)),
            None => {
                return Err("an earlier request for it was cut off, and more waits than can be read through to tell \
                            whether it runs already; try again when less does"
                    .to_owned());
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
        if self.has_ended(&before, &step.request.kind).await? {
            return Ok(Some(before));
        }
        if self.store.replay_request(&step.planned.dead_letter).await.map_err(|e| unreadable(&e))?.is_none() {
            return Err("it does not wait (any more)".to_owned());
        }
        let anew = self.store.replan_replays(std::slice::from_ref(&step.planned), &options.by).await;
        anew.map_err(|e| unwritable(&e))?;
        Ok(None)
    }

    /// Whether the task that a dead letter became in another queue has ended an attempt there; a replay in its own queue would
    /// have changed the row of the dead letter itself.
    async fn has_ended(&self, before: &PlannedReplay, kind: &str) -> Result<bool, String> {
        let Some((queue, id)) = &before.moved else { return Ok(false) };
        let found = self.store.task(id, Some(queue), Some(kind)).await.map_err(|e| unreadable(&e))?;
        Ok(!found.is_empty())
    }

    async fn request(&self, steps: Vec<ReplayStep>) -> Vec<(ReplayStep, ReplayAnswer)> {
        let asking = steps.into_iter().map(|step| async move {
            let answer = match self.bus.request(CTL_REPLAY, &step.request, REPLAY_WITHIN).await {
                Ok(ControlReply::Ok(_)) => ReplayAnswer::Stored,
                Ok(ControlReply::Error(text) | ControlReply::Refused(text)) => ReplayAnswer::Failed(text),
                Err(fault @ ControlError::Nobody(_)) => {
                    ReplayAnswer::NoProducer(format!("{fault}; is a producer running (`millpond producer run`)?"))
                }
                Err(fault) => ReplayAnswer::Failed(fault.to_string()),
            };
            (step, answer)
        });
        stream::iter(asking).buffered(REQUESTS_AT_ONCE).collect().await
    }
}

fn put(done: &mut [ReplayEnd], place: usize, end: ReplayEnd) {
    if let Some(slot) = done.get_mut(place) {
        *slot = end;
    }
}

fn fail(steps: &[ReplayStep], done: &mut [ReplayEnd], why: &str) {
    for step in steps {
        put(done, step.place, Err(why.to_owned()));
    }
}

fn unreadable(fault: &StoreError) -> String {
    format!("the store cannot be read: {fault}")
}

fn unwritable(fault: &StoreError) -> String {
    format!("the store cannot be written: {fault}")
}
