//! How many connections a service has at once: in all, and from one address. Where there are as many as may be, the one that has
//! been silent the longest makes room for a new one, so that silent callers, however many, keep nobody away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In all.
    pub all: usize,
    /// From one address.
    pub per_address: usize,
}

/// The open connections of a service.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Mutex<Open>>);

struct Open {
    limits: ConnectionLimits,
    next_id: u64,
    by_id: HashMap<u64, Entry>,
    by_address: HashMap<IpAddr, usize>,
}

struct Entry {
    address: IpAddr,
    /// Requests whose answer is not written yet.
    requests: usize,
    /// When the last of them ended, or the connection began.
    silent_since: Instant,
    evicted: CancellationToken,
}

/// An open connection. It is counted until this is dropped.
pub(crate) struct HttpConnection {
    id: u64,
    all: Connections,
    evicted: CancellationToken,
}

/// A request that is being answered. Its connection is not silent until this is dropped.
pub(crate) struct RequestUnderWay {
    id: u64,
    all: Connections,
}

impl Connections {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self(Arc::new(Mutex::new(Open { limits, next_id: 0, by_id: HashMap::new(), by_address: HashMap::new() })))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection; none when there is no room, because all that could be closed for it are busy.
    pub(crate) fn admit(&self, address: IpAddr) -> Option<HttpConnection> {
        let mut open = self.open();
        let of_address = open.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= open.limits.per_address {
            open.evict(|entry| entry.address == address)?;
        } else if open.by_id.len() >= open.limits.all {
            open.evict(|_| true)?;
        }
        let id = open.next_id;
        open.next_id += 1;
        let evicted = CancellationToken::new();
        let entry = Entry { address, requests: 0, silent_since: Instant::now(), evicted: evicted.clone() };
        open.by_id.insert(id, entry);
        *open.by_address.entry(address).or_default() += 1;
        Some(HttpConnection { id, all: self.clone(), evicted })
    }
}

impl Open {
    /// Has the connection closed that has been silent the longest; none when none of these is silent.
    fn evict(&mut self, may_be: impl Fn(&Entry) -> bool) -> Option<()> {
        let silent = self.by_id.iter().filter(|(_, entry)| entry.requests == 0 && may_be(entry));
        let id = *silent.min_by_key(|(_, entry)| entry.silent_since)?.0;
        self.remove(id)?.evicted.cancel();
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.by_id.remove(&id)?;
        if let Some(count) = self.by_address.get_mut(&entry.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&entry.address);
            }
        }
        Some(entry)
    }
}

impl HttpConnection {
    /// A request has come.
    pub(crate) fn request(&self) -> RequestUnderWay {
        if let Some(entry) = self.all.open().by_id.get_mut(&self.id) {
            entry.requests += 1;
        }
        RequestUnderWay { id: self.id, all: self.all.clone() }
    }

    /// Returns when the connection is to make room for another.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.all.open().remove(self.id);
    }
}

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        if let Some(entry) = self.all.open().by_id.get_mut(&self.id) {
            entry.requests = entry.requests.saturating_sub(1);
            entry.silent_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silent_one_makes_room() {
        let connections = Connections::new(ConnectionLimits { all: 3, per_address: 2 });
        let [one, other, third] = [1, 2, 3].map(|n| IpAddr::from([127, 0, 0, n]));
        let first = connections.admit(one).unwrap();
        let second = connections.admit(one).unwrap();
        let busy = first.request();
        let _third = connections.admit(one).unwrap();
        assert!(second.evicted.is_cancelled() && !first.evicted.is_cancelled(), "the busy one stays");
        let fourth = connections.admit(other).unwrap();
        drop(busy);
        let _fifth = connections.admit(third).unwrap();
        assert_eq!(connections.open().by_id.len(), 3);
        let evicted = [&first, &_third, &fourth].map(|connection| connection.evicted.is_cancelled());
        assert_eq!(evicted, [false, true, false], "the first has become silent last");
        let _all_busy = [first.request(), fourth.request(), _fifth.request()];
        assert!(connections.admit(other).is_none());
        drop(fourth);
        assert!(connections.admit(other).is_some());
    }
}
