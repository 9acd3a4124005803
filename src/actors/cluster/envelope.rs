//! What nodes say to each other. Pure: bytes in, a message out.
//!
//! A message is a MAC (HMAC-SHA-256, the first 16 bytes) and a JSON object: `{"v":1,"from":NODE,"kind":…,"d":{…}}`. The key
//! is the cluster's secret, which only who can read the database has: Redis carries what nodes say, but it has no say itself.
//! Nor has it by saying again what a node once said: a message for one node names it, each run of a node has another name, and
//! it numbers what it says ([`super::core::Core::is_new`]). What was said to everyone before a node started can be said again to
//! that one, once. So nothing is believed because it was said to everyone: events are those of the log, with their numbers there;
//! whether a sign-in is over, the database is asked; and a run that ended seems to live, with its users, while its beats last,
//! so that what is sent to it comes back when it does not answer.
//! Nodes of two releases run side by side, so fields that are not known are passed over, and so are kinds; a field is never
//! given another meaning, it gets another name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;

use crate::actors::trace::Asked;
use crate::bus::To;
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, EventId, NodeId, StreamId, TokenId, UserId};
use crate::domain::user::{Presence, Role};
use crate::storage::tokens::Revoked;
use crate::storage::writer::Reply;

/// The version of the envelope itself.
const VERSION: u16 = 1;
const MAC: usize = 16;

/// A sign of life.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Beat {
    /// The node's name.
    pub name: String,
    /// Whether it is on its way out.
    #[serde(default)]
    pub leaves: bool,
    /// The database does not take what it writes: it owns nothing until it does.
    #[serde(default)]
    pub cut_off: bool,
    /// The number of what it told last of who is there; 0, if it does not.
    #[serde(default)]
    pub presence: u64,
    /// When it was sent, in milliseconds since its node started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms: Option<u64>,
}

/// Please carry this out, as the owner of its stream.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// The number that the answer names.
    pub number: u64,
    /// When it was sent, in milliseconds since its node started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms: Option<u64>,
    /// Milliseconds since then after which nobody waits for the answer any more.
    pub within_ms: u64,
    /// Who asks.
    user: UserId,
    role: Role,
    token: TokenId,
    /// The command's type.
    pub command: String,
    /// Its fields.
    pub body: Box<RawValue>,
    /// The key under which it is done once.
    pub key: String,
    /// What the request that it is part of is called in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The trace that it is part of, as W3C's Trace Context writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

impl Run {
    /// Makes the request.
    #[must_use]
    pub fn new(number: u64, within_ms: u64, caller: Principal, command: &str, body: String, key: String) -> Self {
        let Principal { user_id: user, role, token_id: token } = caller;
        let body = RawValue::from_string(body).expect("a command's body is JSON");
        let command = command.to_owned();
        Run { number, sent_ms: None, within_ms, user, role, token, command, body, key, request: None, trace: None }
    }

    /// Returns it with when it is sent.
    #[must_use]
    pub fn sent(self, ms: u64) -> Self {
        Run { sent_ms: Some(ms), ..self }
    }

    /// Returns it with the name of the request that it is part of.
    #[must_use]
    pub fn asked_by(self, asked: Option<&Asked>) -> Self {
        let trace = asked.and_then(Asked::parent).map(str::to_owned);
        Run { request: asked.map(Asked::to_string), trace, ..self }
    }

    /// Returns who asks.
    #[must_use]
    pub fn caller(&self) -> Principal {
        Principal { user_id: self.user, role: self.role, token_id: self.token }
    }
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ran {
    /// The number of the request.
    pub number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<Box<RawValue>>,
    #[serde(default)]
    duplicate: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after: Option<f64>,
}

impl Ran {
    /// Makes the answer.
    #[must_use]
    pub fn new(number: u64, result: Result<Reply, Refusal>) -> Self {
        let empty = Ran { number, reply: None, duplicate: false, error: None, message: None, retry_after: None };
        match result {
            Ok(Reply { json, duplicate }) => {
                let reply = RawValue::from_string(json).expect("an answer is JSON");
                Ran { reply: Some(reply), duplicate, ..empty }
            }
            Err(Refusal { code, message, retry_after }) => {
                Ran { error: Some(code.as_str().to_owned()), message: Some(message.into_owned()), retry_after, ..empty }
            }
        }
    }

    /// Returns the result; nothing if it is none that this release knows.
    #[must_use]
    pub fn result(self) -> Option<Result<Reply, Refusal>> {
        if let Some(reply) = self.reply {
            return Some(Ok(Reply { json: reply.get().to_owned(), duplicate: self.duplicate }));
        }
        let code = self.error?;
        let code = *Code::ALL.iter().find(|known| known.as_str() == code)?;
        let message = self.message.unwrap_or_default().into();
        Some(Err(Refusal { code, message, retry_after: self.retry_after }))
    }
}

/// An event, as it is stored.
#[derive(Serialize, Deserialize)]
struct Told<'a> {
    stream: StreamId,
    seq: i64,
    id: EventId,
    kind: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actor: Option<UserId>,
    /// Microseconds.
    at: i64,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// Somebody is typing.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Typing {
    /// Where.
    pub channel: ChannelId,
    /// Who.
    pub user: UserId,
    /// In which thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_seq: Option<i64>,
}

/// Users who are shown in another way on the node that says so.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// One more than that of the changes before.
    pub version: u64,
    /// Who, and how.
    pub users: Vec<(UserId, Presence)>,
}

/// A part of all users who are there on the node that says so.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct All {
    /// The number of the changes that it goes up to.
    pub version: u64,
    /// Which part, from 0.
    pub part: usize,
    /// Of how many.
    pub parts: usize,
    /// Who, and how.
    pub users: Vec<(UserId, Presence)>,
}

/// What one node says.
#[derive(Debug)]
pub enum Message {
    /// It lives.
    Beat(Beat),
    /// A command for the owner of its stream.
    Run(Run),
    /// The answer to one.
    Ran(Ran),
    /// What was committed.
    Events(Vec<Event>),
    /// Sign-ins that ended.
    Revoked(Vec<Revoked>),
    /// Somebody is typing.
    Typing(Typing),
    /// Who is shown in another way.
    Presence(Changes),
    /// All who are there.
    PresenceAll(All),
    /// Please tell all who are there.
    PresenceAsk,
    /// Somebody who is there did something here.
    PresenceActive(UserId),
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a, D> {
    v: u16,
    from: NodeId,
    /// How many its sender has said so far, this one included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<u64>,
    /// Whom it is for, unless that is everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<NodeId>,
    kind: &'a str,
    d: D,
}

/// A message that was understood.
#[derive(Debug)]
pub struct Opened {
    /// Who says it.
    pub from: NodeId,
    /// The number under which it is said once; none, if it is one from before it gave any.
    pub number: Option<u64>,
    /// What is said.
    pub message: Message,
}

/// Why a message was not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// It is not from a node of this cluster.
    Forged,
    /// It is of a kind that this release does not know.
    Unknown,
    /// It is no message.
    Malformed,
    /// It was said before, to another node or to this one.
    Repeated,
    /// Nobody waits for its answer any more; or it does not tell how long somebody does.
    Late,
}

impl Unread {
    /// Returns its name in the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Unread::Forged => "forged",
            Unread::Unknown => "unknown",
            Unread::Malformed => "malformed",
            Unread::Repeated => "repeated",
            Unread::Late => "late",
        }
    }
}

/// Seals and opens the messages of one node.
#[derive(Clone)]
pub struct Seal {
    node: NodeId,
    key: Hmac<Sha256>,
    said: Arc<AtomicU64>,
}

impl Seal {
    /// Makes the seal of a node out of the cluster's secret.
    #[must_use]
    pub fn new(node: NodeId, secret: &[u8]) -> Self {
        let key = Hmac::new_from_slice(secret).expect("HMAC takes a key of any length");
        Seal { node, key, said: Arc::default() }
    }

    /// Writes a message.
    #[must_use]
    pub fn seal(&self, to: To, message: &Message) -> Bytes {
        match message {
            Message::Beat(d) => self.write(to, "beat", d),
            Message::Run(d) => self.write(to, "run", d),
            Message::Ran(d) => self.write(to, "ran", d),
            Message::Revoked(d) => self.write(to, "revoked", d),
            Message::Typing(d) => self.write(to, "typing", d),
            Message::Presence(d) => self.write(to, "presence", d),
            Message::PresenceAll(d) => self.write(to, "presence_all", d),
            Message::PresenceAsk => self.write(to, "presence_ask", &()),
            Message::PresenceActive(d) => self.write(to, "presence_active", d),
            Message::Events(events) => self.seal_events(events),
        }
    }

    /// Writes what was committed, for everyone.
    #[must_use]
    pub fn seal_events(&self, events: &[Event]) -> Bytes {
        // What is stored was made by this program: it is JSON.
        let told = events.iter().filter_map(|event| {
            let payload = serde_json::from_str(&event.payload).ok()?;
            let Event { stream, seq, id, kind, actor, at, .. } = event;
            Some(Told { stream: *stream, seq: *seq, id: *id, kind: kind.as_str(), actor: *actor, at: at.0, payload })
        });
        self.write(To::Everyone, "events", &told.collect::<Vec<_>>())
    }

    fn write(&self, to: To, kind: &str, d: &impl Serialize) -> Bytes {
        let mut out = vec![0; MAC];
        let to = match to {
            To::Everyone => None,
            To::Node(node) => Some(node),
        };
        let n = Some(self.said.fetch_add(1, Ordering::Relaxed) + 1);
        let envelope = Envelope { v: VERSION, from: self.node, n, to, kind, d };
        serde_json::to_writer(&mut out, &envelope).expect("a message has only string keys");
        let mac = self.key.clone().chain_update(&out[MAC..]).finalize().into_bytes();
        out[..MAC].copy_from_slice(&mac[..MAC]);
        out.into()
    }

    /// Reads a message. One of a later version of the envelope is passed over: what it is, only that release knows.
    pub fn open(&self, bytes: &[u8]) -> Result<Opened, Unread> {
        let (mac, text) = bytes.split_at_checked(MAC).ok_or(Unread::Malformed)?;
        let right = self.key.clone().chain_update(text).verify_truncated_left(mac);
        right.map_err(|_| Unread::Forged)?;
        let envelope: Envelope<'_, &RawValue> = serde_json::from_slice(text).map_err(|_| Unread::Malformed)?;
        if envelope.v > VERSION {
            return Err(Unread::Unknown);
        }
        // Earlier releases name nobody.
        if envelope.to.is_some_and(|to| to != self.node) {
            return Err(Unread::Repeated);
        }
        let d = envelope.d.get();
        let message = match envelope.kind {
            "beat" => Message::Beat(read(d)?),
            "run" => Message::Run(read(d)?),
            "ran" => Message::Ran(read(d)?),
            "revoked" => Message::Revoked(read(d)?),
            "typing" => Message::Typing(read(d)?),
            "presence" => Message::Presence(read(d)?),
            "presence_all" => Message::PresenceAll(read(d)?),
            "presence_ask" => Message::PresenceAsk,
            "presence_active" => Message::PresenceActive(read(d)?),
            "events" => Message::Events(events(read(d)?)?),
            _ => return Err(Unread::Unknown),
        };
        Ok(Opened { from: envelope.from, number: envelope.n, message })
    }
}

fn read<'a, D: Deserialize<'a>>(d: &'a str) -> Result<D, Unread> {
    serde_json::from_str(d).map_err(|_| Unread::Malformed)
}

fn events(told: Vec<Told<'_>>) -> Result<Vec<Event>, Unread> {
    let event = |told: Told<'_>| {
        if told.seq < 1 {
            return Err(Unread::Malformed);
        }
        let Told { stream, seq, id, actor, at, .. } = told;
        let kind = EventKind::of(told.kind, stream);
        Ok(Event { stream, seq, id, kind, actor, payload: told.payload.get().into(), at: Timestamp(at) })
    };
    told.into_iter().map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        Seal::new(NodeId::new(Timestamp(1)), b"secret")
    }

    #[test]
    fn what_is_said_is_understood() {
        let seal = seal();
        let me = To::Node(seal.node);
        let event = Event {
            stream: StreamId::WORKSPACE,
            seq: 7,
            id: EventId::new(Timestamp(2)),
            kind: EventKind::UserCreated,
            actor: None,
            payload: r#"{"text":"a \"b\" ☃"}"#.into(),
            at: Timestamp(1_790_000_000_000_919),
        };
        let Opened { from, message, .. } = seal.open(&seal.seal(me, &Message::Events(vec![event.clone()]))).unwrap();
        let Message::Events(events) = message else { panic!("{message:?}") };
        assert_eq!(from, seal.node);
        assert_eq!(format!("{events:?}"), format!("{:?}", [event]));

        let user_id = UserId::new(Timestamp(3));
        let caller = Principal { user_id, role: Role::Moderator, token_id: TokenId::new(Timestamp(4)) };
        let run = Run::new(9, 2_000, caller, "message.send", r#"{"text":"hi"}"#.to_owned(), "k".to_owned());
        let Message::Run(run) = seal.open(&seal.seal(me, &Message::Run(run))).unwrap().message else { panic!("a run") };
        assert_eq!((run.number, run.within_ms, run.caller(), run.body.get()), (9, 2_000, caller, r#"{"text":"hi"}"#));

        let users = vec![(user_id, Presence::Dnd), (UserId::new(Timestamp(5)), Presence::Offline)];
        let all = All { version: 7, part: 1, parts: 2, users: users.clone() };
        let Message::PresenceAll(told) = seal.open(&seal.seal(me, &Message::PresenceAll(all.clone()))).unwrap().message
        else {
            panic!("all")
        };
        assert_eq!(told, all);
        let changes = Changes { version: 8, users };
        let Message::Presence(told) = seal.open(&seal.seal(me, &Message::Presence(changes.clone()))).unwrap().message
        else {
            panic!("changes")
        };
        assert_eq!(told, changes);
        assert!(matches!(seal.open(&seal.seal(me, &Message::PresenceAsk)).unwrap().message, Message::PresenceAsk));

        let refusal = Refusal::new(Code::Archived, "it is archived").retry_after(1.5);
        for result in [Ok(Reply { json: r#"{"seq":1}"#.to_owned(), duplicate: true }), Err(refusal)] {
            let sealed = seal.seal(me, &Message::Ran(Ran::new(9, result.clone())));
            let Message::Ran(ran) = seal.open(&sealed).unwrap().message else { panic!("an answer") };
            assert_eq!((ran.number, ran.result()), (9, Some(result)));
        }
    }

    #[test]
    fn who_does_not_know_the_secret_says_nothing() {
        let (seal, other) = (seal(), Seal::new(NodeId::new(Timestamp(1)), b"another"));
        let beat =
            Message::Beat(Beat { name: "hub-1".to_owned(), leaves: false, cut_off: false, presence: 0, sent_ms: None });
        let me = To::Node(seal.node);
        let mut sealed = seal.seal(me, &beat).to_vec();
        assert!(seal.open(&sealed).is_ok());
        assert_eq!(other.open(&sealed).unwrap_err(), Unread::Forged);
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(seal.open(&sealed).unwrap_err(), Unread::Forged);
        for short in [&[][..], &sealed[..MAC - 1], &sealed[..MAC]] {
            assert!(matches!(seal.open(short).unwrap_err(), Unread::Forged | Unread::Malformed));
        }
    }

    #[test]
    fn what_was_said_to_one_node_is_said_to_no_other_run() {
        let (one, next) = (seal(), Seal::new(NodeId::new(Timestamp(2)), b"secret"));
        let ran = || Message::Ran(Ran::new(1, Ok(Reply { json: "{}".to_owned(), duplicate: false })));
        let sealed = next.seal(To::Node(one.node), &ran());
        assert!(one.open(&sealed).is_ok());
        assert_eq!(next.open(&sealed).unwrap_err(), Unread::Repeated);
        assert!(one.open(&next.seal(To::Everyone, &ran())).is_ok(), "as an earlier release says it");
    }

    #[test]
    fn an_event_has_a_number_that_there_can_be() {
        let seal = seal();
        for seq in [i64::MIN, 0] {
            let told = serde_json::json!([{"stream": StreamId::WORKSPACE, "seq": seq, "id": EventId::new(Timestamp(1)),
                "kind": "user.created", "at": i64::MAX, "payload": {}}]);
            assert_eq!(seal.open(&seal.write(To::Everyone, "events", &told)).unwrap_err(), Unread::Malformed);
        }
    }

    #[test]
    fn a_newer_release_is_understood_as_far_as_it_goes() {
        let seal = seal();
        let beat = serde_json::json!({"name": "hub-1", "leaves": true, "mood": "fine"});
        let Message::Beat(beat) = seal.open(&seal.write(To::Everyone, "beat", &beat)).unwrap().message else {
            panic!("a beat")
        };
        assert!(beat.leaves);
        assert_eq!(seal.open(&seal.write(To::Everyone, "dance", &beat)).unwrap_err(), Unread::Unknown);
        assert_eq!(seal.open(&seal.write(To::Everyone, "beat", &"what")).unwrap_err(), Unread::Malformed);
        // An envelope of a later version is not taken for one of this.
        let text = format!(r#"{{"v":2,"from":"{}","kind":"beat","d":{{"name":"hub-1","leaves":true}}}}"#, seal.node);
        let mac = seal.key.clone().chain_update(&text).finalize().into_bytes();
        let sealed = [&mac[..MAC], text.as_bytes()].concat();
        assert_eq!(seal.open(&sealed).unwrap_err(), Unread::Unknown);
    }
}
