//! Commands that were sent to their owner and are not answered yet. Pure: takes `now`.
//!
//! Each has a key, so one that is not answered can be carried out here without being done twice. They are taken back in the
//! order in which they were sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::line::Line;
use crate::domain::id::NodeId;

/// The longest that an answer is waited for, though its node shows that it lives.
pub const PATIENCE: Duration = Duration::from_secs(2);

struct Pending<T> {
    node: NodeId,
    line: Line,
    sent: Instant,
    what: T,
}

/// The commands that are out.
pub struct Forwards<T> {
    most: usize,
    next: u64,
    pending: BTreeMap<u64, Pending<T>>,
    /// The same by line, in the order in which they were sent.
    lines: BTreeSet<(Line, u64)>,
}

impl<T> Forwards<T> {
    /// Makes an empty list that holds `most`.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Forwards { most, next: 0, pending: BTreeMap::new(), lines: BTreeSet::new() }
    }

    /// Returns how many are out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether none is out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns whether one more may go out.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending.len() < self.most
    }

    /// Notes one that goes out; returns its number, and itself.
    pub fn begin(&mut self, node: NodeId, line: Line, what: T, now: Instant) -> (u64, &mut T) {
        self.next += 1;
        self.lines.insert((line, self.next));
        let pending = self.pending.entry(self.next).or_insert(Pending { node, line, sent: now, what });
        (self.next, &mut pending.what)
    }

    /// Takes the one that was answered by a node; nothing, if it was taken back before.
    pub fn end(&mut self, number: u64, node: NodeId) -> Option<T> {
        if self.pending.get(&number)?.node != node {
            return None;
        }
        self.take(number)
    }

    fn take(&mut self, number: u64) -> Option<T> {
        let Pending { line, what, .. } = self.pending.remove(&number)?;
        self.lines.remove(&(line, number));
        Some(what)
    }

    /// Returns where the newest of a line went, if any of it is out.
    #[must_use]
    pub fn last_of(&self, line: Line) -> Option<NodeId> {
        let (_, last) = self.lines.range((line, 0)..=(line, u64::MAX)).next_back()?;
        self.pending.get(last).map(|pending| pending.node)
    }

    /// Takes back what is out of a line and was sent before a number, in the order in which it was sent.
    pub fn take_line(&mut self, line: Line, before: u64) -> Vec<T> {
        let numbers: Vec<u64> = self.lines.range((line, 0)..(line, before)).map(|(_, number)| *number).collect();
        numbers.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Takes back what was sent to nodes that are lost; a node with one that is late is lost, too. Returns those, and what
    /// was taken back in the order in which it was sent.
    pub fn take_back(&mut self, now: Instant, is_lost: impl Fn(NodeId) -> bool) -> (Vec<NodeId>, Vec<T>) {
        let mut late: Vec<NodeId> = Vec::new();
        for pending in self.pending.values() {
            if now.saturating_duration_since(pending.sent) >= PATIENCE && !late.contains(&pending.node) {
                late.push(pending.node);
            }
        }
        let is_back = |pending: &Pending<T>| late.contains(&pending.node) || is_lost(pending.node);
        let back: Vec<u64> = self.pending.iter().filter(|(_, pending)| is_back(pending)).map(|(n, _)| *n).collect();
        let back = back.into_iter().filter_map(|number| self.take(number)).collect();
        (late, back)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::id::{StreamId, UserId};

    fn line(user: u128) -> Line {
        (UserId(Uuid::from_u128(user)), StreamId::WORKSPACE)
    }

    #[test]
    fn what_is_answered_is_taken_once_and_only_from_whom_it_was_sent_to() {
        let (one, other, now) = (NodeId::new(Timestamp(1)), NodeId::new(Timestamp(2)), Instant::now());
        let mut forwards = Forwards::new(2);
        let (first, _) = forwards.begin(one, line(1), 'a', now);
        forwards.begin(other, line(1), 'b', now);
        assert!(!forwards.has_room());
        assert_eq!(forwards.end(first, other), None);
        assert_eq!(forwards.end(first, one), Some('a'));
        assert_eq!(forwards.end(first, one), None);
        assert_eq!(forwards.len(), 1);
    }

    #[test]
    fn what_was_sent_to_a_lost_node_comes_back_in_order() {
        let (one, other, now) = (NodeId::new(Timestamp(1)), NodeId::new(Timestamp(2)), Instant::now());
        let mut forwards = Forwards::new(10);
        for (node, what) in [(one, 'a'), (other, 'b'), (one, 'c')] {
            forwards.begin(node, line(1), what, now);
        }
        assert_eq!(forwards.take_back(now, |node| node == one), (vec![], vec!['a', 'c']));
        forwards.begin(other, line(1), 'd', now + PATIENCE);
        assert_eq!(forwards.take_back(now + PATIENCE, |_| false), (vec![other], vec!['b', 'd']));
        assert!(forwards.is_empty() && forwards.last_of(line(1)).is_none());
    }

    #[test]
    fn a_line_comes_back_by_itself() {
        let (one, other, now) = (NodeId::new(Timestamp(1)), NodeId::new(Timestamp(2)), Instant::now());
        let mut forwards = Forwards::new(10);
        for (node, user, what) in [(one, 1, 'a'), (one, 2, 'b'), (one, 1, 'c'), (other, 2, 'd')] {
            forwards.begin(node, line(user), what, now);
        }
        assert_eq!([1, 2, 3].map(|user| forwards.last_of(line(user))), [Some(one), Some(other), None]);
        assert_eq!(forwards.take_line(line(1), 3), ['a']);
        assert_eq!(forwards.take_line(line(1), u64::MAX), ['c']);
        assert!(forwards.take_line(line(1), u64::MAX).is_empty());
        assert_eq!((forwards.len(), forwards.take_line(line(2), u64::MAX)), (2, vec!['b', 'd']));
    }
}
