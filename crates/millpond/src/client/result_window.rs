//! The ends of a `map`'s items between the oldest that was not handed out and the newest that arrived. Each is handed out
//! once, in the order of the input or as it arrives. No I/O.

use std::collections::BTreeMap;

use super::payloads::KnownEnd;

/// Ends that were not handed out yet; and, without order, the indexes of those that were, above the floor.
#[derive(Default)]
pub(super) struct ResultWindow {
    ordered: bool,
    /// All items below this index were handed out, or are in `unordered`.
    floor: u64,
    /// Items at or above the floor that ended: the end itself when ordered, else none.
    ended: BTreeMap<u64, Option<KnownEnd>>,
    /// Without order: the ends to hand out.
    unordered: Vec<(u64, KnownEnd)>,
    held_bytes: usize,
}

impl ResultWindow {
    pub(super) fn new(ordered: bool) -> Self {
        Self { ordered, ..Self::default() }
    }

    /// The oldest item that was not handed out.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Bytes of the results that wait for their turn.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether the oldest item that was not handed out has not ended.
    pub(super) fn waits_for_floor(&self) -> bool {
        !self.ended.contains_key(&self.floor)
    }

    /// Adds the end of an item; a second end of the same item changes nothing.
    pub(super) fn add(&mut self, index: u64, end: KnownEnd) {
        if index < self.floor || self.ended.contains_key(&index) {
            return;
        }
        if self.ordered {
            self.held_bytes += end.bytes();
            self.ended.insert(index, Some(end));
        } else {
            self.ended.insert(index, None);
            self.unordered.push((index, end));
            while self.ended.remove(&self.floor).is_some() {
                self.floor += 1;
            }
        }
    }

    /// Takes the next end to hand out.
    pub(super) fn take(&mut self) -> Option<(u64, KnownEnd)> {
        if !self.ordered {
            return self.unordered.pop();
        }
        let end = self.ended.remove(&self.floor)??;
        self.held_bytes -= end.bytes().min(self.held_bytes);
        self.floor += 1;
        Some((self.floor - 1, end))
    }
}
