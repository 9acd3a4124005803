//! The client's half of exactly-once: how far each channel was applied.
//!
//! An event is applied only if its `seq` is the last one plus one; anything at or below the last one was seen before; a
//! jump means that events are missing, and they are read from `GET /v1/channels/{id}/events?after_seq=`.

use std::collections::HashMap;

use super::wire::Event;
use crate::domain::id::ChannelId;

/// What to do with an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Apply it: it is the next one, or one that carries no number.
    Apply,
    /// Drop it: it was applied before.
    Drop,
    /// Events before it are missing. Read those behind `after`, this one among them, and offer each in turn.
    Gap {
        /// The channel.
        channel_id: ChannelId,
        /// The last event that was applied.
        after: i64,
    },
}

/// The last event applied in each channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursors(HashMap<ChannelId, i64>);

impl Cursors {
    /// Decides over an event, and moves the channel's cursor if it is to be applied.
    ///
    /// The first event of a channel that is not known yet sets its cursor.
    pub fn offer(&mut self, event: &Event) -> Step {
        let (Some(channel_id), Some(seq)) = (event.channel_id, event.seq) else { return Step::Apply };
        let last = *self.0.entry(channel_id).or_insert(seq - 1);
        if seq <= last {
            return Step::Drop;
        }
        if seq > last + 1 || event.kind == "lagged" {
            return Step::Gap { channel_id, after: last };
        }
        self.set(channel_id, seq);
        Step::Apply
    }

    /// Returns the last event applied in a channel.
    #[must_use]
    pub fn get(&self, channel_id: ChannelId) -> Option<i64> {
        self.0.get(&channel_id).copied()
    }

    /// Takes everything in a channel up to `seq` as applied.
    pub fn set(&mut self, channel_id: ChannelId, seq: i64) {
        self.0.insert(channel_id, seq);
    }

    /// Sets the cursor of a channel that is not known yet.
    pub(super) fn start(&mut self, channel_id: ChannelId, seq: i64) {
        self.0.entry(channel_id).or_insert(seq);
    }

    pub(super) fn as_map(&self) -> &HashMap<ChannelId, i64> {
        &self.0
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
        assert_eq!(cursors.offer(&event(channel, 7)), Step::Gap { channel_id: channel, after: 4 });
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
        assert_eq!(cursors.offer(&lagged), Step::Gap { channel_id: channel, after: 4 });
    }
}
