//! What a consumer has still to be given: of every stream of the database, what is behind the consumer's place. Pure.
//!
//! A place is a number: everything of its stream up to it was given. What is committed while the consumer follows is told to
//! the feed as it is told to sessions, and may be lost on the way as well. So an event is taken in as it comes only if it is
//! the next one of its stream; any other says no more than that the stream is behind, and what is behind is read from the
//! database, from the place on. Nothing can be passed over, however transactions interleave: the numbers of a stream are
//! dense, and whoever commits one has waited for the commit of the one before.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;

use crate::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::StreamId;

/// What is known of the log, and how much of it was given.
#[derive(Debug)]
pub struct Feed {
    /// The number of the last event of each stream that was taken in.
    taken: HashMap<StreamId, i64>,
    /// What was taken in and not given yet.
    waiting: VecDeque<Event>,
    bytes: usize,
    most_bytes: usize,
    /// Streams of which there is more than was taken in, and up to which number, at least.
    behind: BTreeMap<StreamId, i64>,
    /// The stream that was read last: the next one is read first.
    turn: Option<StreamId>,
    /// Places that moved since they were kept.
    moved: HashMap<StreamId, i64>,
}

impl Feed {
    /// Follows from these places on, and from the beginning of every other stream. At most about so many bytes wait in memory.
    #[must_use]
    pub fn new(places: impl IntoIterator<Item = (StreamId, i64)>, most_bytes: usize) -> Self {
        Feed {
            taken: places.into_iter().collect(),
            waiting: VecDeque::new(),
            bytes: 0,
            most_bytes,
            behind: BTreeMap::new(),
            turn: None,
            moved: HashMap::new(),
        }
    }

    fn taken(&self, stream: StreamId) -> i64 {
        self.taken.get(&stream).copied().unwrap_or(0)
    }

    fn has_room(&self) -> bool {
        self.bytes < self.most_bytes
    }

    fn take_in(&mut self, event: Event) {
        self.taken.insert(event.stream, event.seq);
        self.bytes += size(&event);
        self.waiting.push_back(event);
    }

    /// Takes in an event that was committed.
    pub fn hear(&mut self, event: Event) {
        if event.seq == self.taken(event.stream) + 1 && !self.behind.contains_key(&event.stream) && self.has_room() {
            self.take_in(event);
        } else {
            self.is_at(event.stream, event.seq);
        }
    }

    /// Notes how far a stream is.
    pub fn is_at(&mut self, stream: StreamId, head: i64) {
        if head > self.taken(stream) {
            let known = self.behind.entry(stream).or_default();
            *known = head.max(*known);
        }
    }

    /// Returns which streams are to be read, each behind which number; none, while enough waits.
    #[must_use]
    pub fn to_read(&self, most: usize) -> Vec<(StreamId, i64)> {
        if !self.has_room() {
            return Vec::new();
        }
        let from = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.behind.range((from, Bound::Unbounded));
        let earlier = self.turn.map(|turn| self.behind.range(..=turn)).into_iter().flatten();
        later.chain(earlier).take(most).map(|(stream, _)| (*stream, self.taken(*stream))).collect()
    }

    /// Takes in what was read of some streams: of each in order, and not of all if the list was `cut`. Returns how many events
    /// are not there that should have been; they are passed over.
    pub fn read(&mut self, of: &[(StreamId, i64)], events: Vec<Event>, cut: bool) -> u64 {
        let mut missing = 0;
        for event in events {
            let next = self.taken(event.stream) + 1;
            if event.seq < next {
                continue;
            }
            missing += u64::try_from(event.seq - next).unwrap_or_default();
            self.turn = Some(event.stream);
            self.take_in(event);
        }
        for (stream, asked) in of {
            let Some(head) = self.behind.get(stream).copied() else { continue };
            let taken = self.taken(*stream);
            if taken == *asked && !cut {
                // There is nothing behind the place, whatever the head says.
                missing += u64::try_from(head - taken).unwrap_or_default();
                self.taken.insert(*stream, head);
                self.moved.insert(*stream, head);
            }
            if self.taken(*stream) >= head {
                self.behind.remove(stream);
            }
        }
        missing
    }

    /// Gives what comes next, in order within each stream: at most so many.
    pub fn give(&mut self, most: usize) -> Vec<Event> {
        let given: Vec<Event> = self.waiting.drain(..most.min(self.waiting.len())).collect();
        self.bytes -= given.iter().map(size).sum::<usize>();
        given
    }

    /// Notes that what was given is done with.
    pub fn done(&mut self, events: &[Event]) {
        for event in events {
            self.moved.insert(event.stream, event.seq);
        }
    }

    /// Returns whether there is more to be read.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Returns whether there are places to be kept.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Returns the places that moved since the last time, to be kept.
    pub fn moved(&mut self) -> Vec<(StreamId, i64)> {
        std::mem::take(&mut self.moved).into_iter().collect()
    }

    /// Takes places back that could not be kept.
    pub fn keep_again(&mut self, places: &[(StreamId, i64)]) {
        for (stream, seq) in places {
            let moved = self.moved.entry(*stream).or_default();
            *moved = (*moved).max(*seq);
        }
    }

    /// Returns how many events are known of that were not given yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let behind: i64 = self.behind.iter().map(|(stream, head)| head - self.taken(*stream)).sum();
        self.waiting.len() as u64 + u64::try_from(behind).unwrap_or_default()
    }

    /// Returns when the next event to be given was committed.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        self.waiting.front().map(|event| event.at)
    }
}

/// About how much an event takes.
fn size(event: &Event) -> usize {
    event.payload.len() + 128
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::domain::event::EventKind;
    use crate::domain::id::EventId;

    fn event(stream: u128, seq: i64) -> Event {
        let (stream, at) = (StreamId(Uuid::from_u128(stream)), Timestamp(seq));
        let kind = EventKind::MessageCreated;
        Event { stream, seq, id: EventId::new(at), kind, actor: None, payload: "{}".into(), at }
    }

    fn numbers(events: &[Event]) -> Vec<(u128, i64)> {
        events.iter().map(|event| (event.stream.0.as_u128(), event.seq)).collect()
    }

    /// A log that is read as the database is.
    fn read(feed: &mut Feed, heads: &[(u128, i64)], streams: usize, each: i64, cut_at: usize) -> u64 {
        let wanted = feed.to_read(streams);
        let mut found = Vec::new();
        for (stream, after) in &wanted {
            let id = stream.0.as_u128();
            let head = heads.iter().find(|(of, _)| *of == id).map_or(0, |(_, head)| *head);
            found.extend((after + 1..=head.min(after + each)).map(|seq| event(id, seq)));
        }
        let cut = found.len() > cut_at;
        found.truncate(cut_at);
        feed.read(&wanted, found, cut)
    }

    #[test]
    fn what_comes_in_order_is_given_as_it_comes() {
        let mut feed = Feed::new([(StreamId(Uuid::from_u128(1)), 4)], 1_000_000);
        for (stream, seq) in [(1, 4), (1, 5), (2, 1), (1, 6), (1, 5)] {
            feed.hear(event(stream, seq));
        }
        assert_eq!((feed.lag(), feed.to_read(9)), (3, vec![]));
        let given = feed.give(2);
        assert_eq!(numbers(&given), [(1, 5), (2, 1)]);
        feed.done(&given);
        assert_eq!((feed.moved().len(), feed.moved().len(), feed.lag()), (2, 0, 1));
    }

    #[test]
    fn what_was_not_told_is_read_and_what_is_not_there_is_counted() {
        let mut feed = Feed::new([], 1_000_000);
        feed.hear(event(1, 3));
        feed.hear(event(1, 4));
        assert_eq!((feed.give(9).len(), feed.lag()), (0, 4), "it waits for what is before it");
        assert_eq!(read(&mut feed, &[(1, 4)], 9, 2, 99), 0);
        assert_eq!(read(&mut feed, &[(1, 4)], 9, 2, 99), 0);
        assert_eq!(numbers(&feed.give(9)), [(1, 1), (1, 2), (1, 3), (1, 4)]);
        feed.hear(event(1, 7));
        let wanted = feed.to_read(9);
        assert_eq!(feed.read(&wanted, vec![event(1, 6)], false), 1);
        let wanted = feed.to_read(9);
        assert_eq!(feed.read(&wanted, vec![], false), 1);
        assert_eq!((numbers(&feed.give(9)), feed.lag(), feed.to_read(9)), (vec![(1, 6)], 0, vec![]));
    }

    #[test]
    fn no_more_waits_than_there_is_room_for() {
        let mut feed = Feed::new([], 1_000);
        (1..=100).for_each(|seq| feed.hear(event(1, seq)));
        assert!(feed.waiting.len() < 10 && feed.to_read(9).is_empty());
        assert_eq!(feed.lag(), 100);
        let mut given = 0;
        while feed.lag() > 0 {
            given += feed.give(5).len();
            read(&mut feed, &[(1, 100)], 1, 7, 99);
        }
        assert_eq!(given, 100);
    }

    proptest! {
        /// Whatever is lost, repeated or told in another order on the way: everything is given once and in order.
        #[test]
        fn everything_is_given_once_and_in_order(
            told in proptest::collection::vec((1u128..5, 1i64..30), 0..200),
            heads in proptest::collection::vec(0i64..30, 4),
            room in 200usize..3_000,
            (streams, each, cut_at, most) in (1usize..5, 1i64..9, 1usize..20, 1usize..9),
        ) {
            let heads: Vec<(u128, i64)> = (1..).zip(heads).collect();
            let mut feed = Feed::new([], room);
            let (mut given, mut turns) = (Vec::new(), 0);
            for (stream, seq) in told {
                if seq <= heads[stream as usize - 1].1 {
                    feed.hear(event(stream, seq));
                }
                if turns % 3 == 0 {
                    prop_assert_eq!(read(&mut feed, &heads, streams, each, cut_at), 0);
                    given.extend(feed.give(most));
                }
                turns += 1;
            }
            for (stream, head) in &heads {
                feed.is_at(StreamId(Uuid::from_u128(*stream)), *head);
            }
            while feed.lag() > 0 {
                prop_assert_eq!(read(&mut feed, &heads, streams, each, cut_at), 0);
                given.extend(feed.give(most));
                turns += 1;
                prop_assert!(turns < 10_000, "it goes on");
            }
            let given = numbers(&given);
            for (stream, head) in heads {
                let of_stream: Vec<i64> = given.iter().filter(|(of, _)| *of == stream).map(|(_, seq)| *seq).collect();
                prop_assert_eq!(of_stream, (1..=head).collect::<Vec<_>>());
            }
        }
    }
}
