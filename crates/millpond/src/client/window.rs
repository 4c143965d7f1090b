//! The ends of a `map`'s items between the oldest that was not handed out and the newest that came: in order, or as
//! they come, each once. No I/O.

use std::collections::BTreeMap;

use super::payloads::Ended;

/// What has ended and was not handed out, or was handed out out of order.
#[derive(Default)]
pub(super) struct Window {
    ordered: bool,
    /// All items below it were handed out.
    floor: u64,
    /// Items at or above the floor that ended: held back (ordered), or handed out already (none).
    ended: BTreeMap<u64, Option<Ended>>,
    fresh: Vec<(u64, Ended)>,
    held_bytes: usize,
}

impl Window {
    pub(super) fn new(ordered: bool) -> Self {
        Self { ordered, ..Self::default() }
    }

    /// All items below this index were handed out.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Bytes of results that are held back.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether the oldest that was not handed out has no end.
    pub(super) fn lacks_floor(&self) -> bool {
        !self.ended.contains_key(&self.floor)
    }

    /// Takes an end; one that came before changes nothing.
    pub(super) fn note(&mut self, index: u64, end: Ended) {
        if index < self.floor || self.ended.contains_key(&index) {
            return;
        }
        if self.ordered {
            self.held_bytes += end.bytes();
            self.ended.insert(index, Some(end));
        } else {
            self.ended.insert(index, None);
            self.fresh.push((index, end));
            while self.ended.remove(&self.floor).is_some() {
                self.floor += 1;
            }
        }
    }

    /// The next to be handed out.
    pub(super) fn ready(&mut self) -> Option<(u64, Ended)> {
        let item = if self.ordered {
            let end = self.ended.remove(&self.floor)??;
            self.held_bytes -= end.bytes().min(self.held_bytes);
            self.floor += 1;
            (self.floor - 1, end)
        } else {
            self.fresh.pop()?
        };
        Some(item)
    }
}
