//! What clients send: `{"id":1,"type":"…","d":{…}}`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::command::{Command, unknown_type};
use crate::domain::error::{Refusal, invalid};
use crate::domain::id::{ChannelId, SessionId, StreamId, UserId};

/// The most cursors in one resume.
const CURSORS_MAX: usize = 10_000;

/// Who connects.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Such as `web` or `chat`.
    #[serde(default)]
    pub name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

/// What a session wants to be sent: durable events of two kinds, and two kinds of what is told now and may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// Every durable event but reactions.
    Messages,
    /// Reactions, which are durable too.
    Reactions,
    /// Who is typing.
    Typing,
    /// Who is online, among those subscribed to.
    Presence,
}

/// Opens a session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Identify {
    /// The token; not needed if the connection came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Who connects.
    #[serde(default)]
    pub client: ClientInfo,
    /// What to send; everything, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intents: Option<Vec<Intent>>,
}

/// Takes a session up again.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Resume {
    /// The token; not needed if the connection came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The session.
    pub session_id: SessionId,
    /// The last `s` applied.
    pub s: i64,
    /// The last `seq` applied of each stream.
    #[serde(default)]
    pub cursors: HashMap<StreamId, i64>,
    /// What to send, as in identify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intents: Option<Vec<Intent>>,
}

/// A message that is understood.
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Opens a session.
    Identify(Identify),
    /// Takes a session up again.
    Resume(Resume),
    /// Says that the client lives, and what it has applied.
    Heartbeat(Option<i64>),
    /// Tells others that the user is typing.
    Typing {
        /// Where.
        channel_id: ChannelId,
        /// In which thread.
        thread_seq: Option<i64>,
    },
    /// Asks for the presence of these users, in place of those asked for before.
    SubscribePresence(Vec<UserId>),
    /// A command.
    Command(Command),
}

/// A decoded message.
#[derive(Clone, PartialEq, Debug)]
pub struct Frame {
    /// The client's own number for it, repeated in the reply.
    pub id: Option<u64>,
    /// What it asks, or why that is refused.
    pub request: Result<Request, Refusal>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(default)]
    id: Option<u64>,
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    s: Option<&'a RawValue>,
    #[serde(default, borrow)]
    d: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct TypingBody {
    channel_id: ChannelId,
    #[serde(default)]
    thread_seq: Option<i64>,
}

#[derive(Deserialize)]
struct PresenceBody {
    user_ids: Vec<UserId>,
}

/// A message that is not even a JSON object with a type: the connection ends with 4002.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object with a `type`")]
pub struct NotUnderstood;

/// Reads a message.
pub fn decode(text: &str) -> Result<Frame, NotUnderstood> {
    let head: Head<'_> = serde_json::from_str(text).map_err(|_| NotUnderstood)?;
    let body = head.d.map_or("{}", RawValue::get);
    let request = match &*head.kind {
        "heartbeat" => head.s.map(|s| parse(s.get())).transpose().map(Request::Heartbeat),
        "identify" => parse(body).map(Request::Identify),
        "resume" => parse::<Resume>(body).and_then(Resume::bounded).map(Request::Resume),
        "typing.start" => {
            parse::<TypingBody>(body).map(|t| Request::Typing { channel_id: t.channel_id, thread_seq: t.thread_seq })
        }
        "presence.subscribe" => parse::<PresenceBody>(body).map(|p| Request::SubscribePresence(p.user_ids)),
        name => match Command::decode(name, body) {
            Some(command) => command.map(Request::Command),
            None => Err(unknown_type(name)),
        },
    };
    Ok(Frame { id: head.id, request })
}

fn parse<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, Refusal> {
    serde_json::from_str(body).map_err(|e| {
        let text = e.to_string();
        invalid(text.split(" at line ").next().unwrap_or(&text).to_owned())
    })
}

impl Resume {
    /// Returns it if it has no more cursors than a resume may have.
    pub fn bounded(self) -> Result<Resume, Refusal> {
        if self.cursors.len() > CURSORS_MAX {
            return Err(invalid(format!("cursors has more than {CURSORS_MAX} entries")));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::error::Code;

    #[test]
    fn a_heartbeat_carries_what_was_applied() {
        let frame = decode(r#"{"type":"heartbeat","s":42}"#).unwrap();
        assert_eq!(frame, Frame { id: None, request: Ok(Request::Heartbeat(Some(42))) });
        assert_eq!(decode(r#"{"type":"heartbeat","s":null}"#).unwrap().request, Ok(Request::Heartbeat(None)));
        let code = |text| decode(text).unwrap().request.unwrap_err().code;
        assert_eq!(code(r#"{"type":"heartbeat","s":"42"}"#), Code::Invalid);
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_are_answered() {
        assert!(
            decode(r#"{"id":1,"type":"identify","d":{"token":"t","new":[]},"x":1,"s":"x"}"#).unwrap().request.is_ok()
        );
        let frame = decode(r#"{"id":7,"type":"time.travel","d":{}}"#).unwrap();
        assert_eq!((frame.id, frame.request.unwrap_err().code), (Some(7), Code::UnknownType));
    }

    #[test]
    fn what_is_no_object_with_a_type_is_not_understood() {
        for text in ["", "[]", "1", "null", "{}", r#"{"type":1}"#, r#"{"id":"x","type":"heartbeat"}"#, "{"] {
            assert_eq!(decode(text), Err(NotUnderstood), "{text}");
        }
        let deep = format!(r#"{{"type":"identify","d":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert!(decode(&deep).map_or(true, |f| f.request.is_err()));
    }

    /// The seeds of the fuzzer are one frame of each kind, under its name.
    #[test]
    fn every_seed_is_understood_and_every_command_has_one() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/command");
        let read = |name: &str| decode(&std::fs::read_to_string(seeds.join(name)).unwrap()).unwrap().request;
        for name in Command::NAMES {
            let Ok(Request::Command(command)) = read(name) else { panic!("{name}") };
            assert_eq!(command.name(), *name);
            assert_eq!(Command::decode(name, &command.body()), Some(Ok(command)));
        }
        for name in ["heartbeat", "identify", "resume", "typing.start", "presence.subscribe", "escaped", "deep"] {
            assert!(read(name).is_ok(), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_decoded_without_a_panic(text in "\\PC{0,200}") {
            let _ = decode(&text);
        }
    }
}
