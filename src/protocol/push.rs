//! Events as bytes: encoded once, shared between all who receive them.
//!
//! Only `s` differs from session to session, so it stands first: a frame is `{"s":42,` and the shared tail.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::domain::event::{Audience, Event, EventKind};
use crate::domain::id::{ChannelId, EventId, StreamId, UserId};
use crate::domain::user::Presence;

/// One event's bytes.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The event's number in its stream.
    pub seq: i64,
    /// Whether it tells of a reaction, which some sessions do not want.
    pub reaction: bool,
    /// Everything behind `{"s":N,`.
    pub tail: Bytes,
}

/// Events of one stream that go out together, shared between its receivers.
#[derive(Debug)]
pub struct Batch {
    /// The stream.
    pub stream: StreamId,
    /// The events, in order.
    pub frames: Vec<Encoded>,
    /// How many bytes their tails have.
    pub bytes: usize,
    /// When they were committed; absent for what is replayed from the log.
    pub committed: Option<Instant>,
    /// The batch without reactions, and the reactions alone: made once, for all who want only that.
    parts: [OnceLock<Option<Arc<Batch>>>; 2],
}

impl Batch {
    /// Makes a batch to be shared.
    #[must_use]
    pub fn new(stream: StreamId, frames: Vec<Encoded>, committed: Option<Instant>) -> Arc<Self> {
        let bytes = frames.iter().map(|f| f.tail.len()).sum();
        Arc::new(Batch { stream, frames, bytes, committed, parts: Default::default() })
    }

    /// Returns the number of its first event.
    #[must_use]
    pub fn first(&self) -> Option<i64> {
        self.frames.first().map(|frame| frame.seq)
    }

    /// Returns the number of its last event.
    #[must_use]
    pub fn last(&self) -> Option<i64> {
        self.frames.last().map(|frame| frame.seq)
    }

    /// Returns what of it a session is sent that wants `reactions`, and `others`; nothing, if that is nothing.
    #[must_use]
    pub fn part(self: &Arc<Self>, others: bool, reactions: bool) -> Option<Arc<Self>> {
        if others && reactions {
            return Some(self.clone());
        }
        let wanted = |frame: &&Encoded| if frame.reaction { reactions } else { others };
        let count = self.frames.iter().filter(wanted).count();
        if count == self.frames.len() {
            return Some(self.clone());
        }
        if count == 0 {
            return None;
        }
        let part = || {
            let frames = self.frames.iter().filter(wanted).cloned().collect();
            Some(Batch::new(self.stream, frames, self.committed))
        };
        self.parts[usize::from(reactions)].get_or_init(part).clone()
    }
}

#[derive(Serialize)]
struct Tail<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel_id: Option<ChannelId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_id: Option<StreamId>,
    seq: i64,
    event_id: EventId,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_id: Option<UserId>,
    at: Timestamp,
    d: &'a RawValue,
}

impl<'a> Tail<'a> {
    fn of(event: &'a Event) -> Self {
        let of_channel = event.kind.audience() == Audience::Members;
        Tail {
            kind: event.kind.as_str(),
            channel_id: of_channel.then(|| event.stream.into()),
            stream_id: (!of_channel).then_some(event.stream),
            seq: event.seq,
            event_id: event.id,
            actor_id: event.actor,
            at: event.at,
            d: serde_json::from_str(&event.payload).unwrap_or(RawValue::NULL),
        }
    }
}

/// Encodes an event for the gateway.
#[must_use]
pub fn encode(event: &Event) -> Encoded {
    let mut json = serde_json::to_vec(&Tail::of(event)).expect("an event has only string keys");
    json.remove(0);
    let reaction = matches!(event.kind, EventKind::ReactionAdded | EventKind::ReactionRemoved);
    Encoded { seq: event.seq, reaction, tail: json.into() }
}

/// Returns an event as REST shows it: as on the wire, without `s`.
#[must_use]
pub fn object(event: &Event) -> Box<RawValue> {
    serde_json::value::to_raw_value(&Tail::of(event)).expect("an event has only string keys")
}

/// Writes the head of a frame: what stands before the shared tail.
pub fn head(s: i64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let _ = write!(out, "{{\"s\":{s},");
}

/// What is told now and may be lost: the last word of a kind wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ephemeral {
    /// Somebody is typing.
    Typing(ChannelId, UserId, Option<i64>),
    /// Somebody came, went or is away.
    Presence(UserId),
}

/// Encodes that somebody is typing.
#[must_use]
pub fn typing(channel: ChannelId, user: UserId, thread_seq: Option<i64>) -> Bytes {
    let thread = thread_seq.map(|seq| format!(",\"thread_seq\":{seq}")).unwrap_or_default();
    format!(r#"{{"type":"typing","channel_id":"{channel}","d":{{"user_id":"{user}"{thread}}}}}"#).into()
}

/// Encodes somebody's presence.
#[must_use]
pub fn presence(user: UserId, presence: Presence) -> Bytes {
    format!(r#"{{"type":"presence","d":{{"user_id":"{user}","presence":"{presence}"}}}}"#).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_made_once_and_keeps_the_numbers() {
        let frame = |seq: i64| Encoded { seq, reaction: seq % 2 == 0, tail: Bytes::from_static(b"12345") };
        let batch = Batch::new(StreamId::WORKSPACE, (1..=5).map(frame).collect(), None);
        let seqs = |part: &Arc<Batch>| part.frames.iter().map(|frame| frame.seq).collect::<Vec<_>>();
        let (others, reactions) = (batch.part(true, false).unwrap(), batch.part(false, true).unwrap());
        assert_eq!((seqs(&others), others.bytes), (vec![1, 3, 5], 15));
        assert_eq!((seqs(&reactions), reactions.bytes), (vec![2, 4], 10));
        assert!(Arc::ptr_eq(&others, &batch.part(true, false).unwrap()), "shared by all who want the same");
        assert!(Arc::ptr_eq(&batch, &batch.part(true, true).unwrap()));
        assert!(batch.part(false, false).is_none() && others.part(false, true).is_none());
    }
}
