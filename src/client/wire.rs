//! The gateway's frames as a client reads them.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Error, Result, malformed};
use crate::clock::Timestamp;
use crate::domain::id::{ChannelId, EventId, SessionId, StreamId, UserId};
use crate::domain::message::Message;
use crate::domain::user::User;

/// Something the hub told: a durable event with a number, or an ephemeral one (`typing`, `presence`) without.
///
/// A `lagged` notice arrives as one event of that kind for each stream, with the stream's newest missed `seq`; the last of
/// them carries the notice's `s`.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// The type on the wire, such as `message.created`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its number in this session; only on the gateway.
    #[serde(default)]
    pub s: Option<i64>,
    /// The channel it happened in.
    #[serde(default)]
    pub channel_id: Option<ChannelId>,
    /// The stream it belongs to, if that is the user's own or the workspace's.
    #[serde(default)]
    pub stream_id: Option<StreamId>,
    /// Its number in the channel or stream.
    #[serde(default)]
    pub seq: Option<i64>,
    /// Its identifier.
    #[serde(default)]
    pub event_id: Option<EventId>,
    /// Who did it.
    #[serde(default)]
    pub actor_id: Option<UserId>,
    /// When it was stored.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// The payload, as it came.
    #[serde(default, rename = "d")]
    pub data: Box<RawValue>,
}

impl Event {
    /// Reads the payload as `T`.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.data.get()).map_err(|error| malformed(&self.kind, &error))
    }

    /// Returns the message that this event tells of, if it is a `message.created`.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        if self.kind != "message.created" {
            return None;
        }
        let mut fields: serde_json::Map<String, serde_json::Value> = self.data().ok()?;
        fields.insert("channel_id".to_owned(), self.channel_id?.to_string().into());
        fields.insert("seq".to_owned(), self.seq?.into());
        serde_json::from_value(fields.into()).ok()
    }

    /// Returns the stream that it belongs to: a channel's, the user's own, or the workspace's.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.channel_id.map(StreamId::from).or(self.stream_id)
    }

    /// Makes an event of a channel without a payload.
    pub(super) fn of_channel(kind: &str, channel_id: ChannelId, seq: i64) -> Self {
        Event { channel_id: Some(channel_id), stream_id: None, ..Self::of_stream(kind, channel_id.into(), seq) }
    }

    /// Makes an event of a stream that is no channel without a payload.
    pub(super) fn of_stream(kind: &str, stream_id: StreamId, seq: i64) -> Self {
        Event {
            kind: kind.to_owned(),
            s: None,
            channel_id: None,
            stream_id: Some(stream_id),
            seq: Some(seq),
            event_id: None,
            actor_id: None,
            at: None,
            data: Box::default(),
        }
    }
}

/// A channel in the first state of a session.
#[derive(Clone, Debug, Deserialize)]
pub struct ChannelHead {
    /// The channel.
    pub id: ChannelId,
    /// The number of its newest event.
    pub last_seq: i64,
    /// Everything up to this event was read.
    #[serde(default)]
    pub read_seq: i64,
    /// Unread messages that mention the user.
    #[serde(default)]
    pub mention_count: i64,
}

impl ChannelHead {
    /// Returns the notice that everything up to here was missed.
    pub(super) fn as_lag(&self) -> Event {
        Event::of_channel("lagged", self.id, self.last_seq)
    }
}

/// The first state of a session.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// The session.
    pub session_id: SessionId,
    /// Who is signed in.
    pub user: User,
    /// The newest event of the user's own stream.
    #[serde(default)]
    pub user_seq: i64,
    /// The newest event of the workspace's stream.
    #[serde(default)]
    pub workspace_seq: i64,
    /// Their channels, all of them.
    #[serde(default)]
    pub channels: Vec<ChannelHead>,
    #[serde(default)]
    pub(super) channels_next_cursor: Option<String>,
}

/// What the server says first.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub(super) heartbeat_interval_ms: u64,
    /// The longest message that the server takes, in bytes; 0 if any.
    #[serde(default)]
    pub(super) max_frame: usize,
}

/// The answer to a resume that was kept: by the same session, or by a new one that replays the log.
#[derive(Debug, Deserialize)]
pub(super) struct Resumed {
    #[serde(default)]
    pub(super) session_id: Option<SessionId>,
    #[serde(default)]
    pub(super) s: Option<i64>,
    #[serde(default)]
    pub(super) replayed: u64,
    #[serde(default)]
    pub(super) mode: String,
}

/// The answer to a resume that could not be kept.
#[derive(Debug, Default, Deserialize)]
pub(super) struct InvalidSession {
    #[serde(default)]
    pub(super) sync_from: HashMap<StreamId, i64>,
}

/// The answer to a command.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) to: u64,
    pub(super) result: Result<Box<RawValue>>,
}

/// Anything that the server sends.
#[derive(Debug)]
pub(super) enum Frame {
    Hello(Hello),
    Ready { s: i64, ready: Box<Ready> },
    Resumed(Resumed),
    InvalidSession(InvalidSession),
    HeartbeatAck,
    Reconnect { after_ms: u64 },
    Reply(Reply),
    Events(Vec<Event>),
}

#[derive(Deserialize)]
struct ReplyFrame {
    reply_to: u64,
    ok: bool,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    retry_after: Option<f64>,
    #[serde(default)]
    d: Box<RawValue>,
}

#[derive(Deserialize)]
struct Reconnect {
    after_ms: u64,
}

#[derive(Deserialize)]
struct Lagged {
    channels: HashMap<ChannelId, Span>,
    #[serde(default)]
    streams: HashMap<StreamId, Span>,
}

#[derive(Deserialize)]
struct Span {
    to: i64,
}

impl Frame {
    /// Takes a text frame apart. Types that are not known come out as events, for the caller to ignore.
    pub(super) fn decode(text: &str) -> Result<Frame> {
        if text.starts_with("{\"reply_to\"") {
            let reply: ReplyFrame = serde_json::from_str(text).map_err(|error| malformed("a reply", &error))?;
            return Ok(Frame::Reply(reply.into()));
        }
        let event: Event = match serde_json::from_str(text) {
            Ok(event) => event,
            // A reply whose `reply_to` does not come first.
            Err(error) => {
                let reply: ReplyFrame = serde_json::from_str(text).map_err(|_| malformed("a frame", &error))?;
                return Ok(Frame::Reply(reply.into()));
            }
        };
        Ok(match event.kind.as_str() {
            "hello" => Frame::Hello(event.data()?),
            "ready" => Frame::Ready { s: event.s.unwrap_or(0), ready: Box::new(event.data()?) },
            "resumed" => Frame::Resumed(event.data()?),
            "invalid_session" => Frame::InvalidSession(event.data().unwrap_or_default()),
            "heartbeat_ack" => Frame::HeartbeatAck,
            "reconnect" => Frame::Reconnect { after_ms: event.data::<Reconnect>()?.after_ms.min(60_000) },
            "lagged" => Frame::Events(lagged(&event)?),
            _ => Frame::Events(vec![event]),
        })
    }
}

fn lagged(event: &Event) -> Result<Vec<Event>> {
    let Lagged { channels, streams } = event.data()?;
    let of_channels = channels.into_iter().map(|(channel, span)| Event::of_channel("lagged", channel, span.to));
    let of_streams = streams.into_iter().map(|(stream, span)| Event::of_stream("lagged", stream, span.to));
    let mut events: Vec<Event> = of_channels.chain(of_streams).collect();
    if let Some(last) = events.last_mut() {
        // Only who has taken all of them has taken the notice.
        last.s = event.s;
    }
    Ok(events)
}

impl From<ReplyFrame> for Reply {
    fn from(frame: ReplyFrame) -> Self {
        let ReplyFrame { reply_to, ok, error, message, retry_after, d } = frame;
        let code = error.unwrap_or_else(|| "unknown".to_owned());
        let message = message.unwrap_or_else(|| code.replace('_', " "));
        let refusal = Error::Refused { code, message, status: None, retry_after };
        Reply { to: reply_to, result: if ok { Ok(d) } else { Err(refusal) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: &str = "01890000-0000-7000-8000-000000000001";

    #[test]
    fn a_message_is_read_out_of_its_event() {
        let text = format!(
            r#"{{"s":42,"type":"message.created","channel_id":"{CHANNEL}","seq":919,"event_id":"{CHANNEL}","actor_id":"{CHANNEL}","at":"2026-01-31T12:00:00Z","d":{{"id":"{CHANNEL}","message_no":3,"author_id":"{CHANNEL}","text":"hi","created_at":"2026-01-31T12:00:00Z"}}}}"#
        );
        let Frame::Events(events) = Frame::decode(&text).unwrap() else { panic!("an event") };
        let message = events[0].message().unwrap();
        assert_eq!((message.seq, message.text.as_str(), events[0].s), (919, "hi", Some(42)));
    }

    #[test]
    fn a_refusal_keeps_its_code_and_its_wait() {
        let text = r#"{"reply_to":2,"ok":false,"error":"rate_limited","message":"too fast","temporary":true,"retry_after":1.5}"#;
        let Frame::Reply(Reply { to: 2, result: Err(error) }) = Frame::decode(text).unwrap() else { panic!("a reply") };
        assert_eq!(error.code(), Some("rate_limited"));
        assert!(error.may_come_back());
    }

    #[test]
    fn a_lag_becomes_one_event_a_stream() {
        let own = StreamId::WORKSPACE;
        let text = format!(
            r#"{{"s":7,"type":"lagged","d":{{"channels":{{"{CHANNEL}":{{"from":920,"to":1204}}}},"streams":{{"{own}":{{"from":1,"to":2}}}}}}}}"#
        );
        let Frame::Events(events) = Frame::decode(&text).unwrap() else { panic!("events") };
        assert_eq!((events[0].kind.as_str(), events[0].seq), ("lagged", Some(1204)));
        assert_eq!(events[0].channel_id.map(|id| id.to_string()), Some(CHANNEL.to_owned()));
        assert_eq!((events[1].channel_id, events[1].stream(), events[1].seq), (None, Some(own), Some(2)));
        assert_eq!((events[0].s, events[1].s), (None, Some(7)));
    }

    #[test]
    fn a_replayed_session_tells_its_new_name_and_count() {
        let text = format!(r#"{{"type":"resumed","d":{{"session_id":"{CHANNEL}","s":1,"replayed":7,"mode":"log"}}}}"#);
        let Frame::Resumed(Resumed { session_id: Some(now), s: Some(1), replayed: 7, .. }) =
            Frame::decode(&text).unwrap()
        else {
            panic!("resumed")
        };
        assert_eq!(now.to_string(), CHANNEL);
    }

    #[test]
    fn unknown_types_pass_as_events_and_nonsense_is_refused() {
        assert!(matches!(Frame::decode(r#"{"type":"invented","d":{}}"#), Ok(Frame::Events(_))));
        assert!(matches!(Frame::decode("not json"), Err(Error::Protocol(_))));
    }
}
