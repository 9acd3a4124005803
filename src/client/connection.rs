//! What runs under a [`super::Gateway`]: the opening of a session, then the task that owns its connection.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fastwebsockets::OpCode;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::cursor::Cursors;
use super::gateway::{Options, Position, Start};
use super::socket::{Incoming, Reading, Socket, Writing, receive, write};
use super::wire::{ChannelHead, Event, Frame, Hello, Ready, Reply};
use super::{Address, Client, Error, Result, cut, timed_out};
use crate::domain::id::{SessionId, StreamId, UserId};
use crate::domain::user::Role;

/// Where a reply goes.
pub(super) type Answer = oneshot::Sender<Result<Box<RawValue>>>;

/// What a session's owner wants of the task.
pub(super) enum Ask {
    /// Send a command, and its reply here.
    Call { kind: &'static str, body: Box<RawValue>, reply: Option<Answer> },
    /// Say how far events were taken.
    Heartbeat,
}

/// From the first byte to the first state.
pub(super) struct Opening {
    pub(super) socket: Socket,
    pub(super) interval: Duration,
    pub(super) cursors: Cursors,
    pub(super) start: Start,
    pub(super) ready: Option<Ready>,
    pub(super) user_id: UserId,
    pub(super) session_id: SessionId,
    pub(super) s: i64,
    /// The last event, by its number in the session, of those that come from the log.
    pub(super) replay_ends: i64,
    /// Events that came before the session was said to be open.
    pub(super) early: Vec<Event>,
}

impl Opening {
    pub(super) async fn connect(
        address: Address,
        options: &Options,
        token: &str,
        from: Option<Position>,
    ) -> Result<Opening> {
        let mut socket = Socket::connect(&address).await?;
        let Frame::Hello(Hello { heartbeat_interval_ms, max_frame }) = socket.next().await? else {
            return Err(Error::Protocol("the server did not say hello".to_owned()));
        };
        let identify = json!({ "id": 1, "type": "identify", "d": {
            "token": token,
            "client": { "name": options.name, "version": env!("CARGO_PKG_VERSION") },
            "intents": options.intents,
        }});
        let (mut cursors, mut session, mut s) = (Cursors::default(), None, 0);
        let (mut start, mut left_out) = (Start::Fresh, HashSet::new());
        match from {
            None => socket.say(&identify).await?,
            Some(from) => {
                let resume;
                (resume, left_out) = resume_frame(&from, token, options, max_frame);
                socket.say(&resume).await?;
                (cursors, session, s) = (from.cursors, Some((from.session_id, from.user_id)), from.s);
            }
        }

        let (mut early, mut ready, mut replay_ends) = (Vec::new(), None, 0);
        loop {
            match socket.next().await? {
                Frame::Events(events) => early.extend(events),
                Frame::Resumed(resumed) => {
                    start = Start::Resumed(resumed.replayed);
                    session = session.map(|(old, user)| (resumed.session_id.unwrap_or(old), user));
                    s = resumed.s.unwrap_or(s);
                    // From memory too: that may be the rest of a replay from the log that was cut.
                    replay_ends = s.saturating_add_unsigned(resumed.replayed);
                    if resumed.mode == "log" && !left_out.is_empty() {
                        let heads = channels(&address, token).await?;
                        let not_replayed = heads.iter().filter(|head| left_out.contains(&head.id.into()));
                        not_replayed.for_each(|head| cursors.owe(&head.as_lag()));
                    }
                    break;
                }
                Frame::InvalidSession(gone) => {
                    start = Start::Anew;
                    gone.sync_from.into_iter().for_each(|(stream, seq)| cursors.start(stream, seq));
                    socket.say(&identify).await?;
                }
                Frame::Ready { s: first, ready: mut state } => {
                    if state.channels_next_cursor.is_some() {
                        state.channels = channels(&address, token).await?;
                    }
                    for head in heads(&state) {
                        match (&start, head.stream(), head.seq) {
                            (Start::Anew, _, Some(1..)) => cursors.owe(&head),
                            (_, Some(stream), Some(seq)) => cursors.start(stream, seq),
                            _ => {}
                        }
                    }
                    (session, s, ready) = (Some((state.session_id, state.user.id)), first, Some(*state));
                    break;
                }
                Frame::Reply(Reply { result: Err(refusal), .. }) => return Err(refusal),
                Frame::Reply(_) | Frame::Hello(_) | Frame::HeartbeatAck | Frame::Reconnect { .. } => {}
            }
        }
        let (session_id, user_id) = session.ok_or_else(|| Error::Protocol("resumed without a session".to_owned()))?;
        let interval = Duration::from_millis(heartbeat_interval_ms.max(100));
        Ok(Opening { socket, interval, cursors, start, ready, user_id, session_id, s, replay_ends, early })
    }
}

/// The most cursors that the hub takes in a resume.
const CURSORS_MAX: usize = 10_000;

/// Returns the request to resume, and the streams whose cursors it has no room for: memory needs none, and the log does
/// not replay these. The user's own stream, which tells of new channels, and the workspace come first.
fn resume_frame(
    from: &Position,
    token: &str,
    options: &Options,
    max_frame: usize,
) -> (serde_json::Value, HashSet<StreamId>) {
    let mut frame = json!({ "id": 1, "type": "resume", "d": {
        "token": token, "session_id": from.session_id, "s": from.s, "cursors": {}, "intents": options.intents,
    }});
    let most = if max_frame == 0 { usize::MAX } else { max_frame };
    let mut cursors: Vec<(StreamId, i64)> = from.cursors.as_map().iter().map(|(stream, seq)| (*stream, *seq)).collect();
    cursors.sort_by_key(|(stream, _)| (*stream != from.user_id.into(), *stream != StreamId::WORKSPACE));
    let mut bytes = frame.to_string().len();
    let mut sent = serde_json::Map::new();
    let mut left_out = HashSet::new();
    for (stream, seq) in cursors {
        let name = stream.to_string();
        // With two quotes, a colon and a comma.
        bytes += name.len() + seq.to_string().len() + 4;
        if bytes <= most && sent.len() < CURSORS_MAX {
            sent.insert(name, seq.into());
        } else {
            left_out.insert(stream);
        }
    }
    frame["d"]["cursors"] = sent.into();
    (frame, left_out)
}

/// Reads where the user's channels end.
async fn channels(address: &Address, token: &str) -> Result<Vec<ChannelHead>> {
    Client::new(&format!("http://{}", address.authority()))?.with_token(token).all("/v1/channels").await
}

/// Returns where every stream of a first state ends, as notices of a lag.
fn heads(state: &Ready) -> impl Iterator<Item = Event> {
    let own = Event::of_stream("lagged", state.user.id.into(), state.user_seq);
    let channels = state.channels.iter().map(ChannelHead::as_lag);
    // A guest does not hear of the workspace.
    let hears = state.user.role > Role::Guest;
    let workspace = hears.then(|| Event::of_stream("lagged", StreamId::WORKSPACE, state.workspace_seq));
    std::iter::once(own).chain(channels).chain(workspace)
}

/// The task that owns an open connection.
pub(super) struct Connection {
    pub(super) write: Writing,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) in_flight: HashMap<u64, Answer>,
    pub(super) next_id: u64,
    /// Heartbeats sent since the last one that was answered.
    pub(super) unanswered: u32,
    /// When to leave: the hub asked to, because it is about to stop.
    pub(super) move_at: Option<Instant>,
    /// The last event that the program took, by its number in the session.
    pub(super) taken: Arc<AtomicI64>,
}

impl Connection {
    /// Runs until the connection or its gateway ends, and returns why.
    pub(super) async fn run(mut self, mut read: Reading, mut asked: mpsc::Receiver<Ask>, interval: Duration) -> Error {
        let (sender, mut incoming) = mpsc::channel(64);
        // Dropped with this task, which stops the reader.
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            loop {
                let frame = receive(&mut read).await;
                let last = frame.is_err();
                if sender.send(frame).await.is_err() || last {
                    return;
                }
            }
        });

        let mut beat = interval_at(Instant::now() + first_beat(interval), interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let moves = async {
                match self.move_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                () = moves => Err(self.close(1001, "moving").await),
                frame = incoming.recv() => match frame {
                    Some(Ok(frame)) => self.take(frame).await,
                    Some(Err(error)) => Err(error),
                    None => Err(cut("the reader ended")),
                },
                ask = asked.recv() => match ask {
                    Some(ask) => self.put(ask).await,
                    None => Err(self.close(1000, "done").await),
                },
                _ = beat.tick() => self.beat().await,
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn take(&mut self, frame: Incoming) -> Result<()> {
        let text = match frame {
            Incoming::Text(text) => text,
            Incoming::Ping(data) => return write(&mut self.write, OpCode::Pong, data).await,
        };
        match Frame::decode(&text)? {
            Frame::Events(events) => {
                for event in events {
                    if self.events.try_send(event).is_err() {
                        return Err(self.close(4010, "events were left unread").await);
                    }
                }
            }
            Frame::Reply(Reply { to, result }) => {
                if let Some(reply) = self.in_flight.remove(&to) {
                    // The caller may have stopped waiting.
                    drop(reply.send(result));
                }
            }
            Frame::HeartbeatAck => self.unanswered = 0,
            Frame::Reconnect { after_ms } => self.move_at = Some(Instant::now() + Duration::from_millis(after_ms)),
            Frame::Hello(_) | Frame::Ready { .. } | Frame::Resumed(_) | Frame::InvalidSession(_) => {}
        }
        Ok(())
    }

    async fn put(&mut self, ask: Ask) -> Result<()> {
        let text = match ask {
            Ask::Heartbeat => self.heartbeat(),
            Ask::Call { kind, body, reply } => {
                let id = self.next_id;
                self.next_id += 1;
                if let Some(reply) = reply {
                    self.in_flight.insert(id, reply);
                }
                format!(r#"{{"id":{id},"type":"{kind}","d":{body}}}"#)
            }
        };
        write(&mut self.write, OpCode::Text, text.into_bytes()).await
    }

    async fn beat(&mut self) -> Result<()> {
        if self.unanswered >= 2 {
            return Err(timed_out("the answer to two heartbeats"));
        }
        self.unanswered += 1;
        let frame = self.heartbeat();
        write(&mut self.write, OpCode::Text, frame.into_bytes()).await
    }

    /// Says how far events were taken, so that the server may forget them.
    fn heartbeat(&self) -> String {
        format!(r#"{{"type":"heartbeat","s":{}}}"#, self.taken.load(Ordering::Acquire))
    }

    async fn close(&mut self, code: u16, reason: &str) -> Error {
        let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        // It ends either way.
        drop(write(&mut self.write, OpCode::Close, payload).await);
        Error::Closed { code, reason: reason.to_owned() }
    }
}

/// Returns when the first heartbeat is due: at a random point of the interval, so that a restarted hub is not beaten in
/// step.
fn first_beat(interval: Duration) -> Duration {
    interval.mul_f64(random_fraction())
}

/// Returns a number from 0 to 1, to keep many clients out of step.
pub(super) fn random_fraction() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_heartbeat_comes_anywhere_in_the_interval() {
        let interval = Duration::from_secs(30);
        let beats: Vec<Duration> = (0..100).map(|_| first_beat(interval)).collect();
        assert!(beats.iter().all(|beat| *beat <= interval));
        for half in [beats.iter().min() < Some(&(interval / 2)), beats.iter().max() > Some(&(interval / 2))] {
            assert!(half, "{beats:?}");
        }
    }
}
