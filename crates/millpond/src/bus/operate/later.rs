//! Moves tasks with a time from LATER to DUE. Clients and publishers may publish to LATER, where no header wipes anything; who may
//! publish to DUE could wipe it. In the producer's role, by any number of producers. What is moved and how far that has come are
//! stored in one step (an atomic batch, on the condition that nobody else has moved anything), so nothing is moved twice, however
//! long a producer stands still or is dead in between. LATER is read raw: no message there can cost a producer its connection.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::bus::error::BusError;
use crate::bus::operate::poison::{PoisonError, dead_letter, unreadable};
use crate::bus::publish::PublishError;
use crate::bus::publish::unique::only_when_alone;
use crate::bus::read::raw::RawMessage;
use crate::bus::topology::stream_state;
use crate::bus::{Bus, to_nats};
use crate::dead_letter::{REASON_ID_TAKEN, REASON_UNIQUE_KEY_TAKEN};
use crate::later::{due_ms, of_the_task, waiting_headers};
use crate::payload;
use crate::payload::PayloadRef;
use crate::task::{Arrival, Defect, Origin, Task};
use crate::wire::bounds::Bounded;
use crate::wire::decode::decode;
use crate::wire::header_names::drop_repeated;
use crate::wire::headers::{HEADER_EXPECTED_SEQUENCE, HEADER_ROLLUP, Headers};
use crate::wire::server_errors::is_passing;
use crate::wire::streams::{STREAM_DUE, STREAM_LATER};
use crate::wire::subject::{LATER_MOVED, TaskSubject};

/// How often it is looked whether something is to be moved: as often as the server looks at what is due.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long nothing is tried after an error.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// How long a producer leaves it to another one that is moving tasks, at the most.
const LEFT_TO_ANOTHER_MS: std::ops::Range<u64> = 100..1000;
/// Messages that are moved in one step, and their bytes.
const STEP_MESSAGES: u64 = 64;
const STEP_BYTES: usize = 1024 * 1024;
/// How long the server may take to store a step.
const STORE_WITHIN: Duration = Duration::from_secs(5);
/// Answers of a server to a condition that does not hold.
const CONDITION_FAILED: [u64; 2] = [10071, 10164];

/// Why nothing more was moved; all of it is safe to try again.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("another producer is moving tasks")]
    Overtaken,
}

impl From<PoisonError> for MoveError {
    fn from(error: PoisonError) -> Self {
        match error {
            PoisonError::Bus(error) => error.into(),
            PoisonError::Publish(error) => error.into(),
        }
    }
}

/// The record in DUE: all of LATER up to this sequence has been moved, or has become a dead letter.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Moved {
    /// Of LATER; of another one nothing has been moved.
    epoch: String,
    up_to: u64,
}

impl Bounded for Moved {}

/// The server's answer to a step.
#[derive(Deserialize)]
struct StepAnswer {
    #[serde(default)]
    seq: u64,
    error: Option<StepRefusal>,
}

#[derive(Deserialize)]
struct StepRefusal {
    code: u64,
    err_code: u64,
    description: String,
}

/// A task on its way to DUE.
struct Moving {
    message: RawMessage,
    task: Task,
    place: String,
    headers: HeaderMap,
}

/// Where tasks are moved from, and what is known of DUE.
struct Mover<'a> {
    bus: &'a Bus,
    epoch: String,
    /// Sequence of the record in DUE; 0 without one.
    record_seq: u64,
    /// What the record says.
    stored: u64,
    /// What it will say when `batch` is stored.
    up_to: u64,
    batch: Vec<Moving>,
}

impl Bus {
    /// Moves tasks from LATER to DUE, for ever.
    ///
    /// # Cancel safety
    /// Safe: what was not moved is moved by the next one.
    pub async fn move_later(self) {
        let mut failing = false;
        loop {
            let pause = match self.move_some().await {
                Ok(more) => {
                    failing = false;
                    if more { Duration::ZERO } else { POLL_EVERY }
                }
                Err(MoveError::Overtaken) => Duration::from_millis(rand::rng().random_range(LEFT_TO_ANOTHER_MS)),
                Err(error) => {
                    // Logged once, until it goes well again.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "tasks that wait for their time are not moved to DUE, will try again");
                    }
                    AFTER_ERROR
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether there may be more.
    async fn move_some(&self) -> Result<bool, MoveError> {
        if self.wire.mismatch().is_some() || !self.is_connected() {
            return Ok(false);
        }
        let state = stream_state(self, STREAM_LATER).await?;
        if state.messages == 0 {
            return Ok(false);
        }
        // Before LATER is read: whoever removes something there writes the record anew, and then this step is refused.
        let (record_seq, moved) = self.moved_record().await?;
        let up_to = if moved.epoch == state.epoch { moved.up_to } else { 0 };
        if up_to >= state.first_seq {
            // Who moved these died before it could remove them.
            self.purge_up_to(STREAM_LATER, ">", up_to).await?;
        }
        let chunk = self.chunk(up_to + 1).await?;
        if chunk.is_empty() {
            return Ok(false);
        }
        let mut mover = Mover {
            bus: self,
            epoch: state.epoch,
            record_seq,
            stored: up_to,
            up_to,
            batch: Vec::with_capacity(chunk.len()),
        };
        for message in chunk {
            Box::pin(mover.take(message)).await?;
        }
        mover.store_batch().await?;
        crate::failpoint::hit("producer.later_moved");
        self.purge_up_to(STREAM_LATER, ">", mover.stored).await?;
        Ok(true)
    }

    async fn chunk(&self, mut from: u64) -> Result<Vec<RawMessage>, BusError> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while (chunk.len() as u64) < STEP_MESSAGES
            && bytes < STEP_BYTES
            && let Some(message) = self.next_raw_message(STREAM_LATER, from, ">").await?
        {
            from = message.seq + 1;
            bytes += message.payload.len() + message.header_block.len();
            chunk.push(message);
        }
        Ok(chunk)
    }

    /// The record and its sequence.
    async fn moved_record(&self) -> Result<(u64, Moved), BusError> {
        let record = self.last_raw_message(STREAM_DUE, LATER_MOVED).await?;
        Ok(record.map_or((0, Moved::default()), |record| (record.seq, decode(&record.payload).unwrap_or_default())))
    }

    /// Has whoever is moving tasks now begin anew: what was removed from LATER before this is not moved after it. What was moved before
    /// lies in DUE.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub(super) async fn interrupt_moves(&self) -> Result<(), BusError> {
        loop {
            let (seq, moved) = self.moved_record().await?;
            match self.store_step(&[(LATER_MOVED.to_owned(), record_headers(seq), record(&moved))]).await? {
                Ok(_) => return Ok(()),
                Err(refusal) if CONDITION_FAILED.contains(&refusal.err_code) => {}
                Err(refusal) => return Err(BusError::refused("the record of what was moved", refusal.description)),
            }
        }
    }

    /// Stores messages in DUE, all of them or none; the sequence of the last one.
    async fn store_step(&self, messages: &[(String, HeaderMap, Bytes)]) -> Result<Result<u64, StepRefusal>, BusError> {
        let what = "the move of tasks to DUE";
        let (id, mut answer) = (crate::random_token(), None);
        for (number, (subject, headers, payload)) in (1..).zip(messages) {
            let mut headers = headers.clone();
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", number.to_string());
            if number == messages.len() {
                headers.insert("Nats-Batch-Commit", "1");
                let request = async_nats::Request::new().headers(headers).payload(payload.clone());
                let request = self.client.send_request(subject.clone(), request.timeout(Some(STORE_WITHIN)));
                answer = Some(request.await.map_err(|e| BusError::new(what, &e))?);
            } else {
                let sent = self.client.publish_with_headers(subject.clone(), headers, payload.clone()).await;
                sent.map_err(|e| BusError::new(what, &e))?;
            }
        }
        let answer = answer.ok_or_else(|| BusError::closed(what))?;
        let answer: StepAnswer = serde_json::from_slice(&answer.payload).map_err(|e| BusError::new(what, &e))?;
        Ok(answer.error.map_or(Ok(answer.seq), Err))
    }
}

fn record(moved: &Moved) -> Bytes {
    Bytes::from(serde_json::to_vec(moved).unwrap_or_default())
}

/// The record replaces the one before, and only that one.
fn record_headers(instead_of: u64) -> HeaderMap {
    to_nats(&vec![
        (HEADER_EXPECTED_SEQUENCE.to_owned(), instead_of.to_string()),
        (HEADER_ROLLUP.to_owned(), "sub".to_owned()),
    ])
}

fn digest(task: &Task) -> String {
    task.payload_ref.as_ref().map_or_else(|| payload::digest(&task.payload), PayloadRef::digest)
}

impl Mover<'_> {
    /// Takes the next message of LATER: it is moved with the others, or is a dead letter.
    async fn take(&mut self, message: RawMessage) -> Result<(), MoveError> {
        let seq = message.seq;
        let headers = match message.headers() {
            Ok(headers) => headers,
            Err(why) => {
                self.store_batch().await?;
                // Nobody knows whether it was signed, so neither is this.
                let unsigned = self.bus.clone().with_signer(None);
                unreadable(&unsigned, STREAM_LATER, &message, why, "producer").await?;
                self.up_to = seq;
                return Ok(());
            }
        };
        let (task, planned) = self.planned(&message, headers);
        match planned {
            Ok((place, headers)) => {
                let alone = task.subject.unique.is_some();
                if alone || self.batch.iter().any(|other| other.place == place) {
                    self.store_batch().await?;
                }
                self.batch.push(Moving { message, task, place, headers });
                self.up_to = seq;
                if alone { self.store_alone().await } else { Ok(()) }
            }
            Err(defect) => {
                self.store_batch().await?;
                self.dead_letter(&message, &task, defect).await?;
                self.up_to = seq;
                Ok(())
            }
        }
    }

    /// Where and how a message waits in DUE, or why it cannot.
    fn planned(&self, message: &RawMessage, mut headers: Headers) -> (Task, Result<(String, HeaderMap), Defect>) {
        drop_repeated(&mut headers);
        let own = of_the_task(&headers);
        let arrival =
            Arrival { origin: Origin::Tasks, epoch: &self.epoch, seq: message.seq, stored_ms: message.stored_ms };
        let mut task = Task::parse(&message.subject, &own, message.payload.clone(), arrival);
        // First: of what is not believed nothing else is looked at.
        if let Some(signer) = self.bus.signer()
            && let Err(distrust) = signer.verify(&message.subject, &headers, &message.payload)
        {
            task.distrust(distrust, arrival);
        }
        let due_ms = due_ms(&headers, message.stored_ms);
        if let Err(wrong) = &due_ms {
            task.refuse("bad_header", wrong.clone());
        }
        let waiting = due_ms.ok().and_then(|due_ms| waiting_headers(&task, due_ms, crate::now_ms()));
        if waiting.is_none() {
            task.refuse("bad_header", "its time is later than the server computes with".to_owned());
        }
        let mut headers = match (task.defect.clone(), waiting) {
            (None, Some(headers)) => headers,
            (defect, _) => {
                let unknown = || Defect { reason: "bad_header", message: "it has no time".to_owned() };
                return (task, Err(defect.unwrap_or_else(unknown)));
            }
        };
        if task.subject.unique.is_some() {
            headers.extend(only_when_alone(&task.subject, true));
        } else {
            headers.push((HEADER_EXPECTED_SEQUENCE.to_owned(), "0".to_owned()));
        }
        let place = task.subject.sched(&task.original_id);
        let headers = self.bus.signed(&place, &headers, &message.payload);
        (task, Ok((place, headers)))
    }

    /// Stores what was taken since the last step, and how far that is.
    async fn store_batch(&mut self) -> Result<(), MoveError> {
        if self.up_to == self.stored {
            return Ok(());
        }
        let (batch, up_to) = (std::mem::take(&mut self.batch), self.up_to);
        if self.store(&batch, up_to).await?.is_none() {
            return Ok(());
        }
        // One of them cannot wait there, and nobody says which.
        for moving in batch {
            let seq = moving.message.seq;
            if let Some(refusal) = self.store(std::slice::from_ref(&moving), seq).await? {
                self.refused(&moving, refusal).await?;
            }
        }
        // A dead letter behind them.
        self.up_to = up_to;
        if self.stored < up_to && self.store(&[], up_to).await?.is_some() {
            return Err(MoveError::Overtaken);
        }
        Ok(())
    }

    /// The same of one that must be alone under its unique key: another one may have been published again into DUE.
    async fn store_alone(&mut self) -> Result<(), MoveError> {
        let Some(moving) = self.batch.pop() else { return Ok(()) };
        if let Some(other) = self.bus.last_raw_message(STREAM_DUE, &moving.task.subject.due()).await? {
            return self.taken(&moving, &other).await;
        }
        match self.store(std::slice::from_ref(&moving), moving.message.seq).await? {
            Some(refusal) => self.refused(&moving, refusal).await,
            None => Ok(()),
        }
    }

    /// Stores these in DUE, with the record that they were moved; why not, when one of them is refused.
    async fn store(&mut self, batch: &[Moving], up_to: u64) -> Result<Option<StepRefusal>, MoveError> {
        let moving = batch.iter().map(|m| (m.place.clone(), m.headers.clone(), m.message.payload.clone()));
        let moved = Moved { epoch: self.epoch.clone(), up_to };
        let record = (LATER_MOVED.to_owned(), record_headers(self.record_seq), record(&moved));
        let step: Vec<_> = moving.chain([record]).collect();
        match self.bus.store_step(&step).await? {
            Ok(seq) => {
                // The record is the last one of the step.
                (self.record_seq, self.stored) = (seq, up_to);
                Ok(None)
            }
            Err(refusal)
                if is_passing(refusal.err_code, refusal.code) && !CONDITION_FAILED.contains(&refusal.err_code) =>
            {
                Err(BusError::refused("the move of tasks to DUE", refusal.description).into())
            }
            Err(_) if self.bus.moved_record().await?.0 != self.record_seq => Err(MoveError::Overtaken),
            Err(refusal) => Ok(Some(refusal)),
        }
    }

    /// The server does not take this one.
    async fn refused(&mut self, moving: &Moving, refusal: StepRefusal) -> Result<(), MoveError> {
        if !CONDITION_FAILED.contains(&refusal.err_code) {
            let message = format!("nats-server does not let it wait for its time: {}", refusal.description);
            return self.dead_letter_moving(moving, &moving.task, Defect { reason: "bad_header", message }).await;
        }
        let key = moving.task.subject.unique.as_ref().map(|_| moving.task.subject.sched_of_all());
        match self.bus.last_raw_message(STREAM_DUE, key.as_ref().unwrap_or(&moving.place)).await? {
            Some(other) => self.taken(moving, &other).await,
            // Its time came a moment ago.
            None => Err(MoveError::Overtaken),
        }
    }

    /// Another message lies where this one would: this very task, or a retry of it; or another one, and then this is a dead letter.
    async fn taken(&mut self, moving: &Moving, other: &RawMessage) -> Result<(), MoveError> {
        let task = &moving.task;
        let subject = TaskSubject::parse_sched(&other.subject).map_or_else(|| other.subject.clone(), |s| s.due());
        let arrival = Arrival { origin: Origin::Due, epoch: "", seq: other.seq, stored_ms: other.stored_ms };
        let headers = other.headers().unwrap_or_default();
        let other = Task::parse(&subject, &headers, other.payload.clone(), arrival);
        if other.original_id == task.original_id && digest(&other) == digest(task) {
            tracing::debug!(task_id = task.original_id, "the task waits already, it is not moved once more");
            return self.store_nothing(moving).await;
        }
        if let Some(key) = task.subject.unique.as_ref().filter(|_| other.original_id != task.original_id) {
            let message = format!("task {:?} with the unique key {key} waits or runs already", other.original_id);
            return self.dead_letter_moving(moving, task, Defect { reason: REASON_UNIQUE_KEY_TAKEN, message }).await;
        }
        // Its dead letter cannot stand for the task that has the id.
        let message =
            format!("its id {:?} stands for another task, with other arguments, that waits", task.original_id);
        let nameless = Task { original_id: format!("{}-{}", self.epoch, moving.message.seq), ..task.clone() };
        self.dead_letter_moving(moving, &nameless, Defect { reason: REASON_ID_TAKEN, message }).await
    }

    async fn dead_letter_moving(&mut self, moving: &Moving, task: &Task, defect: Defect) -> Result<(), MoveError> {
        self.dead_letter(&moving.message, task, defect).await?;
        self.store_nothing(moving).await
    }

    async fn dead_letter(&self, message: &RawMessage, task: &Task, defect: Defect) -> Result<(), MoveError> {
        let why = (defect.reason, defect.message);
        Ok(dead_letter(self.bus, task, message, why, Headers::new(), "producer").await?)
    }

    /// Records that a message is done with.
    async fn store_nothing(&mut self, moving: &Moving) -> Result<(), MoveError> {
        let done = self.store(&[], moving.message.seq).await?;
        done.map_or(Ok(()), |_| Err(MoveError::Overtaken))
    }
}
