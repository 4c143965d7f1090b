//! A worker's name is its own while it lives. Who starts asks for the holder of the name: an answer means that it is taken,
//! silence that it is free. A holder that was paused, and was taken over meanwhile, finds that out when it goes on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bus::error::BusError;
use crate::bus::{Bus, Subscription};
use crate::wire::bounds::Bounded;
use crate::wire::decode::decode;
use crate::wire::subject::lease_name;

/// A holder that has not answered by then is gone.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// After a question the holder looks back whether the asker took its name over: so many times, each so long after the one before. Who
/// has it may be as slow to answer as the holder was.
const LOOK_BACKS: u32 = 5;
const LOOK_BACK_EVERY: Duration = Duration::from_secs(1);
const LOOK_BACK_WITHIN: Duration = Duration::from_secs(4);

/// A worker process, as it asks for a name and answers for one.
///
/// ```
/// let text = r#"{"nonce":"n","host":"h","pid":7,"again":false}"#;
/// let holder: millpond::bus::consume::name_claim::NameHolder = serde_json::from_str(text).unwrap();
/// assert_eq!(serde_json::to_string(&holder).unwrap(), text);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameHolder {
    /// Drawn at random when the process started.
    pub nonce: String,
    /// Its host.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// In a question: the asker has held the name, and only makes sure.
    #[serde(default)]
    pub again: bool,
}

impl Bounded for NameHolder {}

/// Why a name is not this worker's.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Another live worker has it.
    #[error("the name {worker} is taken by a live worker (process {} on {}); give this one another (--name)", .holder.pid, .holder.host)]
    Taken {
        /// The name.
        worker: String,
        /// Who has it.
        holder: NameHolder,
    },
    /// The connection is closed.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// A name that is this worker's, for as long as this lives.
pub struct NameClaim {
    worker: String,
    standing: watch::Receiver<Standing>,
    _answers: JoinSet<()>,
}

impl NameClaim {
    /// Returns when another worker has taken the name over, because this one did not answer for it in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> NameError {
        let mut standing = self.standing.clone();
        let found = standing.wait_for(|standing| matches!(standing, Standing::Lost(_))).await.map(|lost| lost.clone());
        match found {
            Ok(Standing::Lost(holder)) => NameError::Taken { worker: self.worker.clone(), holder },
            // The connection is closed for good: this program is about to end.
            _ => std::future::pending().await,
        }
    }
}

/// How a worker stands to the name that it claims.
#[derive(Debug, Clone)]
enum Standing {
    /// It has asked who holds the name.
    Asking,
    /// It holds the name.
    Held,
    /// This worker holds it.
    Lost(NameHolder),
}

struct ClaimedName {
    bus: Bus,
    subject: String,
    me: NameHolder,
    standing: watch::Sender<Standing>,
}

impl Bus {
    /// Claims a worker's name.
    ///
    /// # Errors
    /// [`NameError`].
    pub async fn claim_name(&self, worker: &str, me: NameHolder) -> Result<NameClaim, NameError> {
        let subject = lease_name(worker);
        // Who asks listens first: of two that start at once, the later one's question is heard by the earlier one at least.
        let questions = self.listen(subject.clone()).await?;
        let (sender, standing) = watch::channel(Standing::Asking);
        let claim = Arc::new(ClaimedName { bus: self.clone(), subject, me, standing: sender });
        let mut answers = JoinSet::new();
        answers.spawn(answer(claim.clone(), questions));
        self.flush().await;
        let holder = claim.ask(false, ANSWER_WITHIN).await;
        claim.standing.send_if_modified(|standing| {
            let is_asking = matches!(standing, Standing::Asking);
            if is_asking {
                *standing = holder.map_or(Standing::Held, Standing::Lost);
            }
            is_asking
        });
        let reached = standing.borrow().clone();
        if let Standing::Lost(holder) = reached {
            return Err(NameError::Taken { worker: worker.to_owned(), holder });
        }
        Ok(NameClaim { worker: worker.to_owned(), standing, _answers: answers })
    }
}

impl ClaimedName {
    /// Who holds the name; none when nobody answers.
    async fn ask(&self, again: bool, within: Duration) -> Option<NameHolder> {
        let question = NameHolder { again, ..self.me.clone() };
        let question = Bytes::from(serde_json::to_vec(&question).unwrap_or_default());
        let answer = self.bus.client.request(self.subject.clone(), question);
        let answer = tokio::time::timeout(within, answer).await.ok()?.ok()?;
        decode(&answer.payload).ok()
    }

    /// Hears another worker's question: true when this one answers that it has the name. Of two that start at once the one with the smaller nonce has it, and the other
    /// one gives it up here: its own question may have come before the first one listened. `is_in_doubt` says that this worker itself
    /// looks whether it still holds the name; of two that do so the smaller nonce has it as well.
    fn hear(&self, asker: &NameHolder, is_in_doubt: bool) -> bool {
        let is_before = self.me.nonce < asker.nonce;
        let mut is_mine = false;
        self.standing.send_if_modified(|standing| {
            is_mine = match standing {
                Standing::Asking => is_before && !asker.again,
                Standing::Held => is_before || !(asker.again && is_in_doubt),
                Standing::Lost(_) => false,
            };
            let is_given_up = matches!(standing, Standing::Asking) && !is_mine;
            if is_given_up {
                *standing = Standing::Lost(asker.clone());
            }
            is_given_up
        });
        is_mine
    }
}

/// Answers for the name, until it is lost.
async fn answer(claim: Arc<ClaimedName>, mut questions: Subscription) {
    let mut looks_left = 0;
    let mut next_look = tokio::time::interval(LOOK_BACK_EVERY);
    let mut looks = FuturesUnordered::new();
    loop {
        tokio::select! {
            question = questions.next() => {
                let Some(question) = question else { return };
                let (Ok(asker), Some(reply)) = (decode::<NameHolder>(&question.payload), question.reply) else { continue };
                if asker.nonce == claim.me.nonce || !claim.hear(&asker, looks_left > 0) {
                    continue;
                }
                let me = Bytes::from(serde_json::to_vec(&claim.me).unwrap_or_default());
                claim.bus.publish_core(&reply, me).await;
                if !asker.again {
                    // The answer may have come too late: this process was stopped, say, and the asker has the name now.
                    if looks_left == 0 {
                        next_look.reset();
                    }
                    looks_left = LOOK_BACKS;
                }
            }
            _ = next_look.tick(), if looks_left > 0 => {
                looks_left -= 1;
                looks.push(claim.ask(true, LOOK_BACK_WITHIN));
            }
            Some(Some(holder)) = looks.next() => {
                claim.standing.send_replace(Standing::Lost(holder));
                return;
            }
        }
    }
}
