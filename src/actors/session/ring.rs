//! What a session was sent, kept to be sent again: what a resume from memory goes back into.
//!
//! A batch gets its numbers as it is kept. Behind what was sent may stand what has to go out next, in order.
//!
//! Invariants:
//! - At most `Bounds::ring` events and `Bounds::ring_bytes` are kept, and none for longer than the window when more are sent.
//! - Only what was sent is dropped for that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::queue::Bounds;
use crate::protocol::push::Batch;

/// A batch with its numbers.
#[derive(Debug)]
struct Kept {
    first_s: i64,
    batch: Arc<Batch>,
    at: Instant,
}

impl Kept {
    fn last_s(&self) -> i64 {
        self.first_s + self.batch.frames.len() as i64 - 1
    }
}

/// The batches that are kept.
#[derive(Debug)]
pub(super) struct Ring {
    batches: VecDeque<Kept>,
    /// How many of the batches, from the front, were sent.
    sent: usize,
    events: usize,
    bytes: usize,
    next_s: i64,
}

impl Default for Ring {
    fn default() -> Self {
        // `ready` was 1.
        Ring { batches: VecDeque::new(), sent: 0, events: 0, bytes: 0, next_s: 2 }
    }
}

impl Ring {
    /// Returns the number that the next event gets.
    pub(super) fn next_s(&self) -> i64 {
        self.next_s
    }

    /// Returns how many events are kept.
    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// Returns how many bytes these have.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether something of it has to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.sent < self.batches.len()
    }

    /// Returns how many events of it have to be sent.
    pub(super) fn unsent_events(&self) -> usize {
        self.batches.iter().skip(self.sent).map(|kept| kept.batch.frames.len()).sum()
    }

    /// Numbers a batch and keeps it, to be sent behind the others.
    pub(super) fn keep(&mut self, batch: Arc<Batch>, now: Instant) {
        let first_s = self.next_s;
        self.next_s += batch.frames.len() as i64;
        self.events += batch.frames.len();
        self.bytes += batch.bytes;
        self.batches.push_back(Kept { first_s, batch, at: now });
    }

    /// Takes the next batch that has to be sent, with the number of its first event.
    pub(super) fn next_unsent(&mut self) -> Option<(i64, Arc<Batch>)> {
        let next = self.batches.get(self.sent)?;
        self.sent += 1;
        Some((next.first_s, next.batch.clone()))
    }

    /// Drops what is too much or too old to be kept.
    pub(super) fn trim(&mut self, now: Instant, bounds: &Bounds) {
        let old = |kept: &Kept| now.saturating_duration_since(kept.at) > bounds.window;
        let too_much = |ring: &Ring| ring.events > bounds.ring || ring.bytes > bounds.ring_bytes();
        while self.sent > 0 && (too_much(self) || self.batches.front().is_some_and(old)) {
            self.drop_oldest();
        }
    }

    /// Drops what the client has: everything up to `s`.
    pub(super) fn acknowledge(&mut self, s: i64) {
        while self.sent > 0 && self.batches.front().is_some_and(|kept| kept.last_s() <= s) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(kept) = self.batches.pop_front() {
            self.events -= kept.batch.frames.len();
            self.bytes -= kept.batch.bytes;
            self.sent -= 1;
        }
    }

    /// Returns the place of the first batch with something behind `s`; nothing if not all that is behind it is kept, or if
    /// nobody was ever given that number.
    pub(super) fn behind(&self, s: i64) -> Option<usize> {
        let oldest = self.batches.front().map_or(self.next_s, |kept| kept.first_s);
        if !(oldest - 1..self.next_s).contains(&s) {
            return None;
        }
        Some(self.batches.partition_point(|kept| kept.last_s() <= s))
    }

    /// Returns whether there is room for more batches beside those from a place on.
    pub(super) fn holds<'a>(
        &'a self,
        from: usize,
        more: impl Iterator<Item = &'a Arc<Batch>>,
        bounds: &Bounds,
    ) -> bool {
        let (mut events, mut bytes) = (0, 0);
        for batch in self.batches.iter().skip(from).map(|kept| &kept.batch).chain(more) {
            events += batch.frames.len();
            bytes += batch.bytes;
        }
        events <= bounds.ring && bytes <= bounds.ring_bytes()
    }

    /// Goes back to a place: what is from there on has to be sent, again or for the first time.
    pub(super) fn go_back(&mut self, to: usize) {
        self.sent = to;
    }

    /// Forgets every batch; the numbers go on.
    pub(super) fn clear(&mut self) {
        *self = Ring { next_s: self.next_s, ..Ring::default() };
    }
}
