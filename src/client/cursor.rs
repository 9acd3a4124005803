//! The client's half of exactly-once: how far each stream was applied, be it a channel's, the user's own or the workspace's.
//!
//! An event is applied only if its `seq` is the last one plus one; anything at or below the last one was seen before; a
//! jump means that events are missing, and they are read from `GET /v1/streams/{id}/events?after_seq=`.
//!
//! A channel begins for a client where `user.channel_added` says. That is an event of another stream, and may come behind
//! the channel's own: these are owed, and are a gap as soon as the beginning is known. What a connection could not bring is
//! owed, too, until the program is told: by whichever connection.

use std::collections::HashMap;

use serde::Deserialize;

use super::wire::Event;
use crate::domain::id::{ChannelId, StreamId};

/// What to do with an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Apply it: it is the next one, or one that carries no number.
    Apply,
    /// Drop it: it was applied before, or it is not known yet where its channel begins. Then the gateway tells of a gap
    /// once it is.
    Drop,
    /// Events before it are missing. Read those behind `after`, this one among them, and offer each in turn.
    Gap {
        /// The stream: a channel's, or one of the other two.
        stream: StreamId,
        /// The last event that was applied.
        after: i64,
    },
}

/// The last event applied of each stream. For a client with both `messages` and `reactions` among its intents: another one
/// cannot tell a loss from what it did not ask for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursors {
    applied: HashMap<StreamId, i64>,
    /// How far there is more of a stream than was brought, or than could be applied before it was known where it begins.
    owed: HashMap<StreamId, Owed>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owed {
    seq: i64,
    of_channel: bool,
}

/// The payload of `user.channel_added`.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) channel_id: ChannelId,
    /// The event that brought the user in.
    pub(super) last_seq: i64,
}

impl Cursors {
    /// Decides over an event, and moves the stream's cursor if it is to be applied.
    ///
    /// A channel that the user came into begins with the event that brought them in. Another stream that is not known yet
    /// begins with what comes first.
    pub fn offer(&mut self, event: &Event) -> Step {
        let (Some(stream), Some(seq)) = (event.stream(), event.seq) else { return Step::Apply };
        let Some(last) = self.begin(stream, seq, event.channel_id.is_some()) else {
            self.owe(event);
            return Step::Drop;
        };
        if seq <= last {
            return Step::Drop;
        }
        if seq > last + 1 || event.kind == "lagged" {
            return Step::Gap { stream, after: last };
        }
        self.set(stream, seq);
        if event.kind == "user.channel_added"
            && let Ok(Added { channel_id, last_seq }) = event.data()
        {
            self.start(channel_id, last_seq - 1);
        }
        Step::Apply
    }

    /// Returns the last event applied of a stream of which this one was heard; nothing, if it is not known yet where it
    /// begins.
    fn begin(&mut self, stream: StreamId, seq: i64, of_channel: bool) -> Option<i64> {
        if seq <= 1 || !of_channel {
            self.start(stream, seq - 1);
        }
        self.get(stream)
    }

    /// Notes that there is more of a stream, up to this event: the program is told as soon as it can do something about it.
    pub(super) fn owe(&mut self, event: &Event) {
        let (Some(stream), Some(seq)) = (event.stream(), event.seq) else { return };
        let of_channel = event.channel_id.is_some();
        if self.begin(stream, seq, of_channel).is_none_or(|last| last < seq) {
            let owed = self.owed.entry(stream).or_insert(Owed { seq, of_channel });
            owed.seq = seq.max(owed.seq);
        }
    }

    /// Returns the last event applied of a stream, such as a channel.
    #[must_use]
    pub fn get(&self, stream: impl Into<StreamId>) -> Option<i64> {
        self.applied.get(&stream.into()).copied()
    }

    /// Takes everything of a stream up to `seq` as applied.
    pub fn set(&mut self, stream: impl Into<StreamId>, seq: i64) {
        self.applied.insert(stream.into(), seq);
    }

    /// Sets the cursor of a stream that is not known yet.
    pub(super) fn start(&mut self, stream: impl Into<StreamId>, seq: i64) {
        self.applied.entry(stream.into()).or_insert(seq);
    }

    /// Takes a stream of which there is more, and of which it is known where it begins: a gap to be read.
    pub(super) fn overdue(&mut self) -> Option<Event> {
        let stream = *self.owed.keys().find(|stream| self.applied.contains_key(stream))?;
        let Owed { seq, of_channel } = self.owed.remove(&stream)?;
        Some(match of_channel {
            true => Event::of_channel("lagged", stream.into(), seq),
            false => Event::of_stream("lagged", stream, seq),
        })
    }

    pub(super) fn as_map(&self) -> &HashMap<StreamId, i64> {
        &self.applied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn event(channel_id: ChannelId, seq: i64) -> Event {
        Event::of_channel("message.created", channel_id, seq)
    }

    #[test]
    fn the_next_is_applied_and_a_repeat_is_dropped() {
        let channel = ChannelId::new(Timestamp(1));
        let mut cursors = Cursors::default();
        cursors.set(channel, 4);
        assert_eq!(cursors.offer(&event(channel, 5)), Step::Apply);
        assert_eq!(cursors.offer(&event(channel, 5)), Step::Drop);
        assert_eq!(cursors.offer(&event(channel, 3)), Step::Drop);
        assert_eq!(cursors.get(channel), Some(5));
    }

    #[test]
    fn a_jump_reports_the_gap_and_moves_nothing() {
        let channel = ChannelId::new(Timestamp(1));
        let mut cursors = Cursors::default();
        cursors.set(channel, 4);
        assert_eq!(cursors.offer(&event(channel, 7)), Step::Gap { stream: channel.into(), after: 4 });
        for seq in 5..=7 {
            assert_eq!(cursors.offer(&event(channel, seq)), Step::Apply);
        }
    }

    #[test]
    fn being_told_of_a_lag_is_a_gap_even_of_one() {
        let channel = ChannelId::new(Timestamp(1));
        let mut cursors = Cursors::default();
        cursors.set(channel, 4);
        let lagged = Event::of_channel("lagged", channel, 5);
        assert_eq!(cursors.offer(&lagged), Step::Gap { stream: channel.into(), after: 4 });
    }

    #[test]
    fn the_other_streams_count_too_and_a_channel_begins_with_what_brought_the_user_in() {
        let (own, channel) = (StreamId::WORKSPACE, ChannelId::new(Timestamp(1)));
        let mut cursors = Cursors::default();
        cursors.set(own, 4);
        let json = format!(r#"{{"channel_id":"{channel}","last_seq":7}}"#);
        let data = serde_json::value::RawValue::from_string(json).unwrap();
        let added = Event { data, ..Event::of_stream("user.channel_added", own, 5) };
        assert_eq!(cursors.offer(&Event::of_stream("user.read", own, 6)), Step::Gap { stream: own, after: 4 });
        assert_eq!(cursors.offer(&added), Step::Apply);
        assert_eq!(cursors.offer(&added), Step::Drop);
        assert_eq!((cursors.get(own), cursors.get(channel)), (Some(5), Some(6)));
        assert_eq!(cursors.offer(&event(channel, 9)), Step::Gap { stream: channel.into(), after: 6 });
    }

    #[test]
    fn what_comes_before_the_beginning_is_known_is_a_gap_once_it_is() {
        let (own, channel, other) = (StreamId::WORKSPACE, ChannelId::new(Timestamp(1)), ChannelId::new(Timestamp(2)));
        let mut cursors = Cursors::default();
        cursors.set(own, 4);
        for (channel, seq) in [(channel, 8), (channel, 9), (other, 3)] {
            assert_eq!(cursors.offer(&event(channel, seq)), Step::Drop);
        }
        assert!(cursors.overdue().is_none());
        let json = format!(r#"{{"channel_id":"{channel}","last_seq":7}}"#);
        let data = serde_json::value::RawValue::from_string(json).unwrap();
        cursors.offer(&Event { data, ..Event::of_stream("user.channel_added", own, 5) });
        let due = cursors.overdue().unwrap();
        assert_eq!((due.kind.as_str(), due.channel_id, due.seq), ("lagged", Some(channel), Some(9)));
        assert_eq!(cursors.offer(&due), Step::Gap { stream: channel.into(), after: 6 });
        assert!(cursors.overdue().is_none(), "once, and nothing of the other channel");
    }

    #[test]
    fn a_channel_that_is_heard_from_its_first_event_needs_no_beginning() {
        let channel = ChannelId::new(Timestamp(1));
        let mut cursors = Cursors::default();
        assert_eq!(cursors.offer(&event(channel, 1)), Step::Apply);
        assert_eq!(cursors.offer(&event(channel, 2)), Step::Apply);
    }
}
