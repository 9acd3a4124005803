//! The realtime gateway: one session, whose events come in order and whose commands are answered.
//!
//! One task owns the connection: it heartbeats, matches replies to calls and puts events into a bounded queue, so that
//! [`Gateway::next_event`] may be cancelled at any point and a call may wait while events come in. A program that leaves
//! its queue full is cut off with code 4010, as the hub does with a slow consumer; [`Gateway::resume`] brings everything.
//!
//! `read_frame` of fastwebsockets is not cancel-safe: a second task reads, and hands whole frames over.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::connection::{Answer, Ask, Connection, Opening, random_fraction};
use super::cursor::{Added, Cursors};
use super::wire::{Event, Ready};
use super::{Address, Error, Result, broken, cut, malformed, timed_out};
use crate::domain::command::Spec;
use crate::domain::id::{ChannelId, SessionId, UserId};

/// The server trims what it keeps for a resume by what was acknowledged: at least this often, in events.
const ACK_EVERY: i64 = 256;

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who this is, for the hub's operators.
    pub name: String,
    /// What to be told of.
    pub intents: Vec<String>,
    /// How many events may wait unread.
    pub queue: usize,
    /// How long connecting and each call may take.
    pub timeout: Duration,
    /// How long a resume goes on trying: as long as the hub keeps a session, unless set.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let intents = ["messages", "reactions", "typing", "presence"].map(str::to_owned).to_vec();
        Options {
            name: "colink-client".to_owned(),
            intents,
            queue: 16_384,
            timeout: Duration::from_secs(30),
            patience: Duration::from_mins(5),
        }
    }
}

/// Where a session stands: enough to come back to it on any node.
#[derive(Clone, Debug)]
pub struct Position {
    /// Who is signed in.
    pub user_id: UserId,
    /// The session.
    pub session_id: SessionId,
    /// The last event taken, by its number in the session.
    pub s: i64,
    /// The last event applied of each stream.
    pub cursors: Cursors,
}

/// How a connection began.
#[derive(Clone, Debug)]
pub enum Start {
    /// With a new session.
    Fresh,
    /// With the old session; this many events are replayed.
    Resumed(u64),
    /// With a new session, because the old one was gone. What was missed shows as gaps, from `lagged` events on.
    Anew,
}

/// A session with the hub.
#[derive(Debug)]
pub struct Gateway {
    /// How far each stream was applied; the caller offers it every event.
    pub cursors: Cursors,
    /// How this connection began.
    pub start: Start,
    /// Who is signed in and where they are; absent after a resume.
    pub ready: Option<Ready>,
    url: String,
    token: String,
    options: Options,
    user_id: UserId,
    session_id: SessionId,
    /// The last event, by its number in the session, of those that are replayed.
    replay_ends: i64,
    taken: Arc<AtomicI64>,
    acked: i64,
    events: mpsc::Receiver<Event>,
    asks: mpsc::Sender<Ask>,
    task: Option<JoinHandle<Error>>,
}

impl Gateway {
    /// Connects to the hub at `url` and opens a session.
    pub async fn connect(url: &str, token: &str, options: Options) -> Result<Gateway> {
        Self::open(url, token, options, None).await
    }

    /// Connects again and goes on where this session stands; opens a new one if it is gone. If the hub does not even know
    /// the numbers that this session stands at, [`Gateway::start`] is [`Start::Fresh`]: read the state anew.
    ///
    /// Tries, with growing pauses, until it works, the hub says no, or [`Options::patience`] is over.
    pub async fn resume(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.options.patience;
        let mut pause = Duration::from_millis(200);
        let mut from = Some(self.position());
        loop {
            match Self::open(&self.url, &self.token, self.options.clone(), from.clone()).await {
                Ok(resumed) => {
                    *self = resumed;
                    return Ok(());
                }
                Err(error) if error.may_come_back() && Instant::now() + pause < deadline => {
                    from = from.filter(|_| !error.begins_anew());
                    tokio::time::sleep(pause.mul_f64(0.5 + random_fraction() / 2.0)).await;
                    pause = (pause * 2).min(Duration::from_secs(15));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects and goes on from a position kept elsewhere.
    pub async fn resume_from(url: &str, token: &str, options: Options, position: Position) -> Result<Gateway> {
        Self::open(url, token, options, Some(position)).await
    }

    /// Returns where this session stands.
    #[must_use]
    pub fn position(&self) -> Position {
        let s = self.taken.load(Ordering::Acquire);
        Position { user_id: self.user_id, session_id: self.session_id, s, cursors: self.cursors.clone() }
    }

    /// Waits for the next event. May be cancelled without losing one.
    pub async fn next_event(&mut self) -> Result<Event> {
        if let Some(gap) = self.cursors.overdue() {
            return Ok(gap);
        }
        let Some(event) = self.events.recv().await else { return Err(self.why_it_ended().await) };
        if let Some(gap) = self.came_into(&event) {
            self.cursors.owe(&gap);
        }
        if let Some(s) = event.s {
            self.taken.store(s, Ordering::Release);
            if s - self.acked >= ACK_EVERY && self.asks.try_send(Ask::Heartbeat).is_ok() {
                self.acked = s;
            }
        }
        Ok(event)
    }

    /// Returns the gap behind a replayed event that says which channel the user came into: of that nothing was replayed.
    fn came_into(&self, event: &Event) -> Option<Event> {
        if event.kind != "user.channel_added" || event.s? > self.replay_ends {
            return None;
        }
        let Added { channel_id, last_seq } = event.data().ok()?;
        Some(Event::of_channel("lagged", channel_id, last_seq))
    }

    /// Runs a command and waits for its answer.
    pub async fn call<C: Spec<Reply: DeserializeOwned>>(&self, command: C) -> Result<C::Reply> {
        let (reply, answer) = oneshot::channel();
        self.ask(C::NAME, encode(&command), Some(reply)).await?;
        let answer = timeout(self.options.timeout, answer).await.map_err(|_| timed_out(C::NAME))?;
        let body = answer.map_err(|_| cut("the connection ended before the answer came"))??;
        serde_json::from_str(body.get()).map_err(|error| malformed(C::NAME, &error))
    }

    /// Runs a command without waiting for its answer.
    pub async fn send_nowait<C: Spec>(&self, command: C) -> Result<()> {
        self.ask(C::NAME, encode(&command), None).await
    }

    /// Shows the others in a channel that one is typing.
    pub async fn typing(&self, channel_id: ChannelId) -> Result<()> {
        self.ask("typing.start", encode(&json!({ "channel_id": channel_id })), None).await
    }

    /// Asks to be told when these users come and go; at most 500.
    pub async fn watch_presence(&self, user_ids: &[UserId]) -> Result<()> {
        self.ask("presence.subscribe", encode(&json!({ "user_ids": user_ids })), None).await
    }

    /// Says goodbye, after everything that was asked has gone out. Dropping a session does the same in the background.
    pub async fn close(self) {
        drop(self.asks);
        if let Some(task) = self.task {
            // Whatever ended it, it is over.
            drop(timeout(self.options.timeout.min(Duration::from_secs(2)), task).await);
        }
    }

    async fn ask(&self, kind: &'static str, body: Result<Box<RawValue>>, reply: Option<Answer>) -> Result<()> {
        self.asks.send(Ask::Call { kind, body: body?, reply }).await.map_err(|_| cut("the connection is over"))
    }

    async fn why_it_ended(&mut self) -> Error {
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(broken),
            None => cut("the connection is over"),
        }
    }

    async fn open(url: &str, token: &str, options: Options, from: Option<Position>) -> Result<Gateway> {
        let opening = Opening::connect(Address::parse(url)?, &options, token, from);
        let opened = timeout(options.timeout, opening).await.map_err(|_| timed_out("connecting"))??;
        let Opening { socket, interval, cursors, start, ready, user_id, session_id, s, replay_ends, early } = opened;

        let (event_sender, events) = mpsc::channel(options.queue.max(1) + early.len());
        for event in early {
            // The queue was made large enough for these.
            event_sender.try_send(event).map_err(broken)?;
        }
        let (asks, asked) = mpsc::channel(64);
        let taken = Arc::new(AtomicI64::new(s));
        let connection = Connection {
            write: socket.write,
            events: event_sender,
            in_flight: HashMap::new(),
            // Answers to what was asked on the last connection may still come: no number is used again.
            next_id: u64::from(getrandom::u32().unwrap_or(0)) << 16 | 10,
            unanswered: 0,
            move_at: None,
            taken: Arc::clone(&taken),
        };
        let task = Some(tokio::spawn(connection.run(socket.read, asked, interval)));
        let (url, token) = (url.to_owned(), token.to_owned());
        let acked = s;
        Ok(Gateway {
            cursors,
            start,
            ready,
            url,
            token,
            options,
            user_id,
            session_id,
            replay_ends,
            taken,
            acked,
            events,
            asks,
            task,
        })
    }
}

fn encode(body: &impl Serialize) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(body).map_err(|error| Error::Protocol(format!("cannot encode: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Step;
    use crate::client::stub::Stub;
    use crate::domain::command::SendMessage;

    fn says(channel_id: ChannelId, text: &str) -> SendMessage {
        SendMessage { channel_id, client_msg_id: None, text: text.to_owned(), thread_seq: None, also_in_channel: false }
    }

    async fn open(stub: &Stub, name: &str) -> Gateway {
        Gateway::connect(&stub.url, &Stub::token(name), Options::default()).await.unwrap()
    }

    #[tokio::test]
    async fn a_call_is_answered_and_the_others_hear_of_it() {
        let stub = Stub::start().await;
        let room = stub.room(&["ana", "bob"]);
        let ana = open(&stub, "ana").await;
        let mut bob = open(&stub, "bob").await;
        let sent = ana.call(says(room, "hello")).await.unwrap();
        let event = bob.next_event().await.unwrap();
        assert_eq!(event.seq, Some(sent.seq));
        assert_eq!(event.message().unwrap().text, "hello");
        assert_eq!(bob.cursors.offer(&event), Step::Apply);
    }

    #[tokio::test]
    async fn a_refused_call_does_not_end_the_session() {
        let stub = Stub::start().await;
        let room = stub.room(&["bob"]);
        let own = stub.room(&["ana"]);
        let ana = open(&stub, "ana").await;
        let error = ana.call(says(room, "let me in")).await.unwrap_err();
        assert_eq!(error.code(), Some("not_found"));
        assert!(ana.call(says(own, "fine")).await.is_ok());
    }

    #[tokio::test]
    async fn a_goodbye_comes_behind_what_was_asked() {
        let stub = Stub::start().await;
        let room = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        let ana = open(&stub, "ana").await;
        ana.send_nowait(says(room, "bye")).await.unwrap();
        ana.close().await;
        assert_eq!(bob.next_event().await.unwrap().message().unwrap().text, "bye");
    }

    #[tokio::test]
    async fn a_cut_session_resumes_without_loss() {
        let stub = Stub::start().await;
        let room = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        stub.post(room, "ana", "one");
        let event = bob.next_event().await.unwrap();
        bob.cursors.offer(&event);
        stub.cut_gateway();
        stub.post(room, "ana", "two");
        assert!(bob.next_event().await.unwrap_err().may_come_back());
        let before = bob.position();
        bob.resume().await.unwrap();
        assert!(matches!(bob.start, Start::Resumed(1)));
        assert_ne!(bob.position().session_id, before.session_id, "the log is replayed by a new session");
        assert_eq!(bob.position().s, 1, "which counts by itself");
        assert_eq!(bob.next_event().await.unwrap().message().unwrap().text, "two");
        stub.cut_gateway();
        bob.resume().await.unwrap();
        assert!(matches!(bob.start, Start::Resumed(_)), "and can be resumed too");
    }

    /// Opens a session that missed a message and had to start anew.
    async fn gone() -> (Stub, ChannelId, Gateway) {
        let stub = Stub::start().await;
        let room = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        stub.post(room, "ana", "missed");
        stub.forget_sessions();
        bob.resume().await.unwrap();
        assert!(matches!(bob.start, Start::Anew));
        (stub, room, bob)
    }

    #[tokio::test]
    async fn a_session_that_is_gone_starts_anew_with_its_gaps() {
        let (stub, _, mut bob) = gone().await;
        let event = bob.next_event().await.unwrap();
        let Step::Gap { stream, after } = bob.cursors.offer(&event) else { panic!("a gap") };
        let missed = stub.client("bob").await.events(stream, after).await.unwrap();
        assert_eq!(missed[0].message().unwrap().text, "missed");
        assert_eq!(bob.cursors.offer(&missed[0]), Step::Apply);
    }

    #[tokio::test]
    async fn a_gap_that_was_not_taken_is_told_by_the_next_connection() {
        let (stub, room, mut bob) = gone().await;
        stub.cut_gateway();
        bob.resume().await.unwrap();
        assert!(matches!(bob.start, Start::Resumed(_)));
        let event = bob.next_event().await.unwrap();
        assert_eq!((event.kind.as_str(), event.channel_id, event.seq), ("lagged", Some(room), Some(1)));
    }

    #[tokio::test]
    async fn a_lost_delivery_shows_as_a_gap_and_is_read() {
        let stub = Stub::start().await;
        let room = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        stub.lose_every(2);
        for text in ["one", "two", "three"] {
            stub.post(room, "ana", text);
        }
        let first = bob.next_event().await.unwrap();
        assert_eq!(bob.cursors.offer(&first), Step::Apply);
        let third = bob.next_event().await.unwrap();
        assert_eq!(bob.cursors.offer(&third), Step::Gap { stream: room.into(), after: 1 });
        let missed = stub.client("bob").await.events(room, 1).await.unwrap();
        assert!(missed.iter().all(|event| bob.cursors.offer(event) == Step::Apply));
        assert_eq!(bob.cursors.get(room), Some(3));
    }

    #[tokio::test]
    async fn a_stranger_is_told_not_to_come_back() {
        let stub = Stub::start().await;
        let error = Gateway::connect(&stub.url, "nonsense", Options::default()).await.unwrap_err();
        assert!(matches!(error, Error::Closed { code: 4004, .. }));
        assert!(!error.may_come_back());
    }

    #[tokio::test]
    async fn unread_events_end_the_session_as_they_would_on_the_hub() {
        let stub = Stub::start().await;
        let room = stub.room(&["ana", "bob"]);
        let options = Options { queue: 4, ..Options::default() };
        let mut bob = Gateway::connect(&stub.url, &Stub::token("bob"), options).await.unwrap();
        for n in 0..20 {
            stub.post(room, "ana", &n.to_string());
        }
        // Nobody takes an event until the connection has ended.
        let error = bob.why_it_ended().await;
        assert!(matches!(error, Error::Closed { code: 4010, .. }), "{error}");
    }
}
