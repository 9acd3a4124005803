//! A client of the gateway that keeps the protocol's rules: one cursor a stream, the next event or none, gaps never.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use colink::domain::id::{ChannelId, StreamId, UserId};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::model::Answer;
use crate::plan::How;
use crate::socket::{Incoming, Socket};
use crate::world::Person;

/// What came of a step: nothing to say, or what is wrong.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// One device of somebody's.
pub(crate) struct Client {
    pub(crate) person: Person,
    pub(crate) is_guest: bool,
    /// How long it waits for anything.
    pub(crate) patience: Duration,
    socket: Option<Socket>,
    /// Numbers of requests are not used again, whichever connection they went out on.
    next_id: u64,
    session: String,
    s: i64,
    pub(crate) cursors: BTreeMap<StreamId, i64>,
    /// What was before this session does not concern it.
    pub(crate) from: BTreeMap<StreamId, i64>,
    /// Where this session began, as its `ready` says.
    pub(crate) began: BTreeMap<StreamId, i64>,
    /// Channels that the user left, by the last event that they heard there.
    left: BTreeMap<StreamId, i64>,
    /// Channels that the user's own stream says they are no longer in.
    gone: BTreeSet<StreamId>,
    /// Channels that the user was brought into, by the event that did, or is no longer in; told since the last resume.
    moved: BTreeMap<StreamId, Option<i64>>,
    /// What was applied, in order.
    pub(crate) heard: BTreeMap<StreamId, Vec<Value>>,
    /// Everything that came, applied or not.
    pub(crate) arrived: BTreeSet<(StreamId, i64)>,
}

/// How a client came back.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Back {
    /// With its session, from memory.
    Buffer,
    /// From the log behind these cursors, with so many events.
    Log(BTreeMap<StreamId, i64>, i64),
    /// With a new session, whose state this is.
    Ready(Value),
}

impl Client {
    pub(crate) fn new(person: Person, is_guest: bool, patience: Duration) -> Client {
        Client {
            person,
            is_guest,
            patience,
            socket: None,
            next_id: 100,
            session: String::new(),
            s: 0,
            cursors: BTreeMap::new(),
            from: BTreeMap::new(),
            began: BTreeMap::new(),
            left: BTreeMap::new(),
            gone: BTreeSet::new(),
            moved: BTreeMap::new(),
            heard: BTreeMap::new(),
            arrived: BTreeSet::new(),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Loses the connection.
    pub(crate) fn cut(&mut self) {
        self.socket = None;
    }

    /// Sends a request and returns its number.
    pub(crate) async fn asks(&mut self, kind: &str, d: &Value) -> u64 {
        self.next_id += 1;
        let frame = json!({"id": self.next_id, "type": kind, "d": d});
        self.socket.as_mut().expect("it is connected").send(&frame).await;
        self.next_id
    }

    /// Waits for an answer, and takes what comes before it.
    pub(crate) async fn answer(&mut self, id: u64, what: &str) -> Outcome<Answer> {
        loop {
            let frame = self.next(what).await?;
            if frame["reply_to"] == id {
                return Ok(match frame["ok"].as_bool() {
                    Some(true) => Ok(frame["d"].clone()),
                    _ => Err(frame["error"].as_str().unwrap_or("no code").to_owned()),
                });
            }
            self.take(frame)?;
        }
    }

    /// Reads the next frame.
    pub(crate) async fn next(&mut self, what: &str) -> Outcome<Value> {
        let patience = self.patience;
        let socket = self.socket.as_mut().expect("it is connected");
        loop {
            match timeout(patience, socket.read()).await {
                Ok(Incoming::Text(text)) => return serde_json::from_str(&text).map_err(|e| format!("{e}: {text}")),
                Ok(Incoming::Pong(_)) => {}
                Ok(end) => return Err(format!("while it waited for {what} its connection ended: {end:?}")),
                Err(_) => return Err(format!("after {patience:?} it still waited for {what}")),
            }
        }
    }

    /// Reads until the server closes, which it has to do with 1012.
    pub(crate) async fn reads_to_the_end(&mut self) -> Outcome {
        let Some(mut socket) = self.socket.take() else { return Ok(()) };
        loop {
            match timeout(self.patience, socket.read()).await {
                Ok(Incoming::Text(text)) => {
                    self.take(serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?)?
                }
                Ok(Incoming::Pong(_)) => {}
                Ok(Incoming::Closed(1012, _)) => return Ok(()),
                Ok(end) => return Err(format!("a server that stops has to close with 1012, not {end:?}")),
                Err(_) => return Err("it still waited for the stopping server to close".to_owned()),
            }
        }
    }

    /// Reads all that was sent before now, and says how far it has come.
    pub(crate) async fn reads_what_is_there(&mut self) -> Outcome {
        // Replies go out before events: a second beat comes behind what waited at the first.
        for _ in 0..2 {
            let s = self.s;
            self.socket.as_mut().expect("it is connected").send(&json!({"type": "heartbeat", "s": s})).await;
            loop {
                let frame = self.next("the answer to a heartbeat").await?;
                if frame["type"] == "heartbeat_ack" {
                    break;
                }
                self.take(frame)?;
            }
        }
        Ok(())
    }

    /// Comes back, or comes for the first time.
    pub(crate) async fn returns(&mut self, how: How) -> Outcome<Back> {
        let old = self.socket.take();
        let mut socket = self.person.opens().await;
        let token = &self.person.token;
        if how == How::Anew || self.session.is_empty() {
            socket.send(&json!({"id": 1, "type": "identify", "d": {"token": token}})).await;
        } else {
            let session = if how == How::Session { &self.session } else { "00000000-0000-7000-8000-00000000dead" };
            let d = json!({"token": token, "session_id": session, "s": self.s, "cursors": self.known()});
            socket.send(&json!({"id": 1, "type": "resume", "d": d})).await;
        }
        self.socket = Some(socket);
        drop(old);
        loop {
            let frame = self.next("the answer to a resume").await?;
            match (frame["type"].as_str(), frame["d"]["mode"].as_str()) {
                (Some("ready"), _) => {
                    self.begins(&frame);
                    return Ok(Back::Ready(frame["d"].clone()));
                }
                (Some("resumed"), Some("buffer")) => {
                    self.s = frame["d"]["s"].as_i64().unwrap_or(self.s);
                    return Ok(Back::Buffer);
                }
                (Some("resumed"), _) => return self.replays(&frame["d"]).await,
                // The answer to a request of the last connection.
                _ if frame.get("reply_to").is_some() => {}
                _ => return Err(format!("it resumed and was told {frame}")),
            }
        }
    }

    /// Returns the cursors of the streams that it may still read, for all it knows.
    fn known(&self) -> BTreeMap<StreamId, i64> {
        let mut known = self.cursors.clone();
        known.retain(|stream, _| !self.gone.contains(stream));
        known
    }

    fn begins(&mut self, ready: &Value) {
        let state = &ready["d"];
        self.session = state["session_id"].as_str().unwrap_or_default().to_owned();
        self.s = 1;
        for forgotten in [&mut self.cursors, &mut self.from, &mut self.left] {
            forgotten.clear();
        }
        self.gone.clear();
        self.heard.clear();
        self.arrived.clear();
        self.cursors.insert(self.person.id().into(), state["user_seq"].as_i64().unwrap());
        if !self.is_guest {
            self.cursors.insert(StreamId::WORKSPACE, state["workspace_seq"].as_i64().unwrap());
        }
        for channel in state["channels"].as_array().unwrap() {
            let id: StreamId = channel["id"].as_str().unwrap().parse().unwrap();
            self.cursors.insert(id, channel["last_seq"].as_i64().unwrap());
        }
        self.began.clone_from(&self.cursors);
    }

    /// Takes what the log has, and reads the channels that it was brought into meanwhile.
    async fn replays(&mut self, resumed: &Value) -> Outcome<Back> {
        let cursors = self.known();
        self.cursors.clone_from(&cursors);
        self.gone.clear();
        let replayed = resumed["replayed"].as_i64().unwrap();
        self.session = resumed["session_id"].as_str().unwrap_or_default().to_owned();
        self.s = resumed["s"].as_i64().unwrap();
        self.moved.clear();
        let mut left = replayed;
        while left > 0 {
            let frame = self.next("the events of a resume").await?;
            left -= i64::from(frame.get("seq").is_some());
            self.take(frame)?;
        }
        for (stream, came) in std::mem::take(&mut self.moved) {
            let Some(came) = came else {
                self.cursors.remove(&stream);
                continue;
            };
            if !cursors.contains_key(&stream) {
                let cursor = self.cursors.entry(stream).or_insert(0);
                *cursor = came.saturating_sub(1).max(*cursor);
            }
            self.repairs(stream).await?;
        }
        Ok(Back::Log(cursors, replayed))
    }

    async fn repairs(&mut self, stream: StreamId) -> Outcome {
        let Some(after) = self.cursors.get(&stream) else { return Ok(()) };
        let path = format!("/v1/channels/{stream}/events?limit=1000&after_seq={after}");
        let answer = self.person.http.get(&path).await;
        if answer.status != 200 {
            return Err(format!("it reads {path} of a channel that it is in, and is told {}", answer.text()));
        }
        for event in answer.items() {
            self.offer(event)?;
        }
        Ok(())
    }

    /// Takes a frame that is no answer.
    pub(crate) fn take(&mut self, frame: Value) -> Outcome {
        if frame.get("seq").is_none() {
            return match frame["type"].as_str() {
                Some("presence" | "typing" | "heartbeat_ack" | "reconnect") => Ok(()),
                _ if frame.get("reply_to").is_some() => Ok(()),
                _ => Err(format!("nobody asked for {frame}")),
            };
        }
        let s = frame["s"].as_i64().ok_or_else(|| format!("without s: {frame}"))?;
        if s > self.s + 1 {
            return Err(format!("behind s {} comes {frame}", self.s));
        }
        self.s = self.s.max(s);
        self.offer(frame)
    }

    /// Applies an event if it is the next of its stream.
    fn offer(&mut self, event: Value) -> Outcome {
        let place = if event.get("channel_id").is_some() { "channel_id" } else { "stream_id" };
        let stream: StreamId = event[place].as_str().and_then(|id| id.parse().ok()).ok_or("an event of nowhere")?;
        let seq = event["seq"].as_i64().ok_or("an event without a number")?;
        self.arrived.insert((stream, seq));
        match self.cursors.get(&stream) {
            Some(last) if seq <= *last => return Ok(()),
            Some(last) if seq > last + 1 => return Err(format!("behind {last} it hears {event}")),
            Some(_) => {}
            None if self.comes_in(&event) && seq > self.before(stream) => {}
            // The last of a channel that it was removed from while it was away.
            None => return Ok(()),
        }
        self.cursors.insert(stream, seq);
        self.apply(stream, seq, &event);
        self.heard.entry(stream).or_default().push(event);
        Ok(())
    }

    fn comes_in(&self, event: &Value) -> bool {
        let me = json!(self.person.id());
        match event["type"].as_str() {
            Some("member.joined") => event["d"]["user_id"] == me,
            Some("channel.created") => event["d"]["members"].as_array().is_some_and(|members| members.contains(&me)),
            _ => false,
        }
    }

    /// Follows where the user is.
    fn apply(&mut self, stream: StreamId, seq: i64, event: &Value) {
        let d = &event["d"];
        let named = || d["channel_id"].as_str().and_then(|id| id.parse::<ChannelId>().ok()).map(StreamId::from);
        let me: UserId = self.person.id();
        match event["type"].as_str() {
            Some("member.left") if d["user_id"] == json!(me) => {
                self.cursors.remove(&stream);
                self.left.insert(stream, seq);
            }
            Some("user.channel_added") => {
                let Some(channel) = named() else { return };
                let first = d["last_seq"].as_i64().unwrap_or(0);
                self.gone.remove(&channel);
                self.moved.insert(channel, Some(first));
                if self.left.get(&channel).is_none_or(|left| *left < first) && first > self.before(channel) {
                    self.cursors.entry(channel).or_insert(first - 1);
                }
            }
            Some("user.channel_removed") => {
                let Some(channel) = named() else { return };
                self.gone.insert(channel);
                self.moved.insert(channel, None);
            }
            _ => {}
        }
    }

    /// Returns the number of the last event of before this session.
    fn before(&self, stream: StreamId) -> i64 {
        self.from.get(&stream).copied().unwrap_or(0)
    }
}
