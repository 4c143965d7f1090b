//! What was cancelled, kept in memory: the tombstones of tasks and jobs, and the purges of queues. A task is checked when it
//! is admitted, is watched while it runs, and is checked again before a retry of it is published.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use millpond::bus::Bus;
use millpond::bus::consume::lease::Lease;
use millpond::bus::error::BusError;
use millpond::bus::operate::cancel::Tombstone;
use millpond::bus::operate::queues::PurgeRecord;
use millpond::bus::read::buckets::{BucketChange, BucketWatch};
use millpond::job::epoch_of;
use millpond::task::Task;
use millpond::wire::streams::{BUCKET_CANCELS, BUCKET_PURGES};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long workers look at a purge that is done: nobody holds any more what it removed.
const PURGE_COVERS_FOR: Duration = Duration::from_secs(3600);

/// What of a message is cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CancelledPart {
    /// All of it.
    Whole,
    /// These items of a batch, by their place in it.
    Items(BTreeSet<u32>),
}

impl CancelledPart {
    pub(crate) fn covers(&self, item: u32) -> bool {
        match self {
            Self::Whole => true,
            Self::Items(items) => items.contains(&item),
        }
    }
}

/// All that is known to be cancelled. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cancellations {
    known: Arc<RwLock<KnownCancellations>>,
    changed: Arc<watch::Sender<()>>,
}

/// Queue, kind (none: whatever kind) and id.
type CancelledId = (String, Option<String>, String);

#[derive(Default)]
struct KnownCancellations {
    /// By key, so that one that runs out can be forgotten.
    tombstones: HashMap<String, Tombstone>,
    ids: HashSet<CancelledId>,
    /// By the original id of items that are named alone: their numbers.
    items: HashMap<CancelledId, BTreeSet<u64>>,
    /// Epoch, and when it was stored, Unix time in milliseconds.
    jobs: HashMap<String, (u32, i64)>,
    purges: HashMap<String, (PurgeRecord, i64)>,
}

impl Cancellations {
    /// Reads those that are there now, and follows all that come: a worker takes no task before it knows them.
    pub(crate) async fn load(bus: &Bus, background: &mut JoinSet<()>) -> Result<Self, BusError> {
        let cancellations = Self { known: Arc::default(), changed: Arc::new(watch::Sender::new(())) };
        let buckets = [BUCKET_CANCELS, BUCKET_PURGES];
        let mut watches = buckets.map(|bucket| BucketWatch::new(bus, bucket));
        for (bucket, watch) in buckets.into_iter().zip(&mut watches) {
            for change in watch.current().await? {
                cancellations.note(bucket, change);
            }
        }
        for (bucket, mut watch) in buckets.into_iter().zip(watches) {
            let cancellations = cancellations.clone();
            background.spawn(async move {
                loop {
                    cancellations.note(bucket, watch.next().await);
                }
            });
        }
        Ok(cancellations)
    }

    fn known(&self) -> RwLockReadGuard<'_, KnownCancellations> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, bucket: &str, change: BucketChange) {
        let mut known: RwLockWriteGuard<'_, KnownCancellations> =
            self.known.write().unwrap_or_else(PoisonError::into_inner);
        if bucket == BUCKET_CANCELS {
            known.note_tombstone(change);
        } else {
            match change.record::<PurgeRecord>() {
                // The purge spares what runs; or what it removed has been gone for long.
                Some(purge) if !purge.running || is_over(&purge, change.stored_ms) => {}
                Some(purge) => drop(known.purges.insert(change.key, (purge, change.stored_ms))),
                None => drop(known.purges.remove(&change.key)),
            }
        }
        known.purges.retain(|_, (purge, stored_ms)| !is_over(purge, *stored_ms));
        drop(known);
        self.changed.send_replace(());
    }

    /// Notified when something is cancelled from now on. Subscribe before [`Cancellations::of`] is called.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What of this message is cancelled, if anything.
    pub(crate) fn of(&self, lease: &Lease) -> Option<CancelledPart> {
        self.known().of(lease)
    }
}

impl KnownCancellations {
    fn note_tombstone(&mut self, change: BucketChange) {
        match change.record::<Tombstone>() {
            Some(tombstone) => {
                self.add(&tombstone, change.stored_ms);
                self.tombstones.insert(change.key, tombstone);
            }
            None => {
                let Some(gone) = self.tombstones.remove(&change.key) else { return };
                match gone {
                    Tombstone::Job { job, .. } => drop(self.jobs.remove(&job)),
                    Tombstone::Task { queue, kind, id, .. } => {
                        if let Some((original_id, item)) = item_of(&id)
                            && let Some(items) =
                                self.items.get_mut(&(queue.clone(), kind.clone(), original_id.to_owned()))
                        {
                            items.remove(&item);
                        }
                        self.ids.remove(&(queue, kind, id));
                    }
                }
            }
        }
    }

    fn add(&mut self, tombstone: &Tombstone, stored_ms: i64) {
        match tombstone {
            Tombstone::Job { job, epoch, .. } => drop(self.jobs.insert(job.clone(), (*epoch, stored_ms))),
            Tombstone::Task { queue, kind, id, .. } => {
                if let Some((original_id, item)) = item_of(id) {
                    let original_id = (queue.clone(), kind.clone(), original_id.to_owned());
                    self.items.entry(original_id).or_default().insert(item);
                }
                self.ids.insert((queue.clone(), kind.clone(), id.clone()));
            }
        }
    }

    fn of(&self, lease: &Lease) -> Option<CancelledPart> {
        if self.ids.is_empty() && self.jobs.is_empty() && self.purges.is_empty() {
            return None;
        }
        let task = &lease.task;
        let named = |id: &str| names(task, id).iter().any(|name| self.ids.contains(name));
        let job = || {
            let job = task.subject.job.as_ref()?;
            let (epoch, stored_ms) = self.jobs.get(job)?;
            Some(match epoch_of(job, &task.original_id) {
                Some(its_epoch) => its_epoch <= *epoch,
                // Published without a record of the job: what was there before is meant.
                None => task.published_ms <= *stored_ms,
            })
        };
        let purged = || self.purges.values().any(|(purge, stored_ms)| covers(purge, *stored_ms, lease));
        if job() == Some(true)
            || named(&task.original_id)
            || (task.id() != task.original_id && named(&task.id()))
            || purged()
        {
            return Some(CancelledPart::Whole);
        }
        let items = self.items_of(lease)?;
        Some(if items.len() == task.items_len() as usize { CancelledPart::Whole } else { CancelledPart::Items(items) })
    }

    /// The items of a batch that are cancelled alone: named by the batch and their place in it, or by the job and their
    /// index.
    fn items_of(&self, lease: &Lease) -> Option<BTreeSet<u32>> {
        let task = &lease.task;
        let range = task.items?;
        let of = |original_id: &str| -> Vec<&BTreeSet<u64>> {
            names(task, original_id).iter().filter_map(|name| self.items.get(name)).collect()
        };
        let by_place = of(&task.original_id);
        let by_index = task.original_id.rsplit_once('/').map(|(job, _)| of(job)).unwrap_or_default();
        if by_place.is_empty() && by_index.is_empty() {
            return None;
        }
        let has = |items: &[&BTreeSet<u64>], number: Option<u64>| {
            number.is_some_and(|number| items.iter().any(|items| items.contains(&number)))
        };
        let items = (range.from..range.from + range.len)
            .filter(|item| has(&by_place, Some(u64::from(*item))) || has(&by_index, task.index_of(*item)));
        Some(items.collect()).filter(|items: &BTreeSet<u32>| !items.is_empty())
    }
}

/// The names under which a task of this id, or of this job or batch, may be cancelled.
fn names(task: &Task, id: &str) -> [CancelledId; 2] {
    let queue = &task.subject.queue;
    [Some(task.subject.kind.clone()), None].map(|kind| (queue.clone(), kind, id.to_owned()))
}

/// The original id and the number, of an id that may be that of an item.
fn item_of(id: &str) -> Option<(&str, u64)> {
    let (original_id, item) = id.rsplit_once('/')?;
    Some((original_id, item.parse().ok()?))
}

/// Whether no worker can hold anything any more that this purge covers.
fn is_over(purge: &PurgeRecord, stored_ms: i64) -> bool {
    let age_ms = u128::try_from(millpond::now_ms().saturating_sub(stored_ms)).unwrap_or(0);
    purge.count.is_some() && age_ms > PURGE_COVERS_FOR.as_millis()
}

/// Whether a message was there when its queue was purged. The time tells apart streams that were made anew.
fn covers(purge: &PurgeRecord, stored_ms: i64, lease: &Lease) -> bool {
    let subject = &lease.task.subject;
    let up_to = if lease.is_due() { purge.due_up_to } else { purge.tasks_up_to };
    purge.queue == subject.queue
        && purge.kind.as_ref().is_none_or(|kind| *kind == subject.kind)
        && lease.seq() <= up_to
        && lease.stored_ms() <= stored_ms
}
