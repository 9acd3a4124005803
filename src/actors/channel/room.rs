//! A channel's memory: who hears it, how far it was delivered, what waits to go out. Pure: no I/O, no clock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::event::{Event, EventKind};
use crate::domain::id::{StreamId, UserId};
use crate::domain::permission;
use crate::domain::user::User;
use crate::protocol::push::{self, Batch, Encoded};

use super::super::session::SessionHandle;

/// The most events that go out as one batch.
const BATCH_MAX: usize = 256;
/// How much of what was sent is kept for those who are just coming.
const RECENT_EVENTS: usize = 64;
const RECENT_BYTES: usize = 32 * 1_024;
/// What one delivery costs, roughly: how long gathering pays grows with the number of receivers.
const COST_OF_DELIVERY: Duration = Duration::from_micros(8);

/// Stands for the last event delivered of a stream of which this process delivered nothing yet.
pub const UNKNOWN: i64 = -1;

/// What came of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is next: it waits to go out.
    Next,
    /// It was delivered before.
    Before,
    /// Events in between are missing: read the log from here on.
    Gap,
}

/// One stream's memory.
#[derive(Debug)]
pub struct Room {
    stream: StreamId,
    audience: HashSet<UserId>,
    sessions: Vec<Arc<SessionHandle>>,
    delivered: i64,
    waiting: Vec<Encoded>,
    /// What was sent last, without a hole, up to what waits.
    recent: VecDeque<Arc<Batch>>,
    recent_events: usize,
    recent_bytes: usize,
    oldest: Option<Instant>,
    flushed: Option<Instant>,
    /// Users who came in or left with the events that wait.
    joined: Vec<UserId>,
    left: Vec<UserId>,
}

impl Room {
    /// Makes the room of a stream that was delivered up to `delivered`; if that is [`UNKNOWN`], the first event that it
    /// hears is next.
    #[must_use]
    pub fn new(stream: StreamId, audience: impl IntoIterator<Item = UserId>, delivered: i64) -> Self {
        Room {
            stream,
            audience: audience.into_iter().collect(),
            sessions: Vec::new(),
            delivered,
            waiting: Vec::new(),
            recent: VecDeque::new(),
            recent_events: 0,
            recent_bytes: 0,
            oldest: None,
            flushed: None,
            joined: Vec::new(),
            left: Vec::new(),
        }
    }

    /// Returns the number of the last event heard.
    #[must_use]
    pub fn delivered(&self) -> i64 {
        self.delivered
    }

    /// Returns who may hear.
    pub fn audience(&self) -> impl Iterator<Item = UserId> + '_ {
        self.audience.iter().copied()
    }

    /// Returns whether somebody may hear.
    #[must_use]
    pub fn has_member(&self, user: UserId) -> bool {
        self.audience.contains(&user)
    }

    /// Returns the sessions that hear.
    #[must_use]
    pub fn sessions(&self) -> &[Arc<SessionHandle>] {
        &self.sessions
    }

    /// Lets a session hear, if its user may, of which all is known up to a number: it gets what was sent since, or is told
    /// that it missed it. Again is the same as once.
    pub fn subscribe(&mut self, session: Arc<SessionHandle>, known: i64) {
        if !self.has_member(session.user_id) {
            return;
        }
        let sent = self.delivered - self.waiting.len() as i64;
        if known < sent {
            match self.recent.front() {
                Some(first) if first.first() <= Some(known + 1) => {
                    self.recent.iter().filter(|batch| batch.last() > Some(known)).for_each(|batch| session.push(batch));
                }
                _ => session.missed(self.stream, known, sent),
            }
        }
        if self.sessions.iter().all(|s| s.id != session.id) {
            self.sessions.push(session);
        }
    }

    /// Forgets the sessions that have ended, and what nobody is just coming for.
    pub fn tidy_up(&mut self) {
        self.sessions.retain(|session| !session.ended());
        self.forget_recent();
    }

    /// Takes in a committed event.
    pub fn hear(&mut self, event: &Event, at: Option<Instant>) -> Heard {
        if self.delivered == UNKNOWN {
            self.delivered = event.seq - 1;
        }
        if event.seq <= self.delivered {
            return Heard::Before;
        }
        if event.seq > self.delivered + 1 {
            return Heard::Gap;
        }
        self.delivered = event.seq;
        self.follow(event);
        if !self.sessions.is_empty() || !self.joined.is_empty() {
            self.oldest = self.oldest.or(at);
            self.waiting.push(push::encode(event));
        } else if !self.recent.is_empty() {
            self.forget_recent();
        }
        Heard::Next
    }

    /// Follows what an event changes about the audience.
    fn follow(&mut self, event: &Event) {
        match event.kind {
            EventKind::ChannelCreated => {
                for user in users_in(&event.payload, "members") {
                    self.came(user);
                }
            }
            EventKind::MemberJoined => {
                if let Some(user) = user_in(&event.payload) {
                    self.came(user);
                }
            }
            EventKind::MemberLeft => {
                if let Some(user) = user_in(&event.payload) {
                    self.went(user);
                }
            }
            EventKind::UserCreated | EventKind::UserUpdated => {
                let Ok(user) = serde_json::from_str::<User>(&event.payload) else { return };
                if user.deactivated_at.is_none() && permission::sees_everybody(user.role) {
                    self.came(user.id);
                } else {
                    self.went(user.id);
                }
            }
            _ => {}
        }
    }

    fn came(&mut self, user: UserId) {
        self.left.retain(|u| *u != user);
        if self.audience.insert(user) {
            self.joined.push(user);
        }
    }

    fn went(&mut self, user: UserId) {
        self.joined.retain(|u| *u != user);
        if self.audience.remove(&user) {
            self.left.push(user);
        }
    }

    /// Returns who came in since the last call.
    pub fn take_joined(&mut self) -> Vec<UserId> {
        std::mem::take(&mut self.joined)
    }

    /// Returns whether somebody came in or left, so that what waits must go out to exactly those who hear now.
    #[must_use]
    pub fn audience_changed(&self) -> bool {
        !self.joined.is_empty() || !self.left.is_empty()
    }

    /// Returns how long what waits may still wait for company: nothing if the room was quiet, longer the more receivers
    /// there are, `most` at most.
    #[must_use]
    pub fn gather(&self, now: Instant, most: Duration) -> Duration {
        let receivers = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let window = COST_OF_DELIVERY.saturating_mul(receivers).min(most);
        if window < Duration::from_millis(1) || self.waiting.len() >= BATCH_MAX || self.audience_changed() {
            return Duration::ZERO;
        }
        let since = self.flushed.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        window.saturating_sub(since)
    }

    /// Returns whether something waits.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends what waits to every session, encoded once; returns how many deliveries that were. Whoever left hears it
    /// as the last thing.
    pub fn flush(&mut self, now: Instant) -> usize {
        self.flushed = Some(now);
        let frames = std::mem::take(&mut self.waiting);
        let mut deliveries = 0;
        if !frames.is_empty() {
            deliveries = frames.len() * self.sessions.len();
            let batch = Batch::new(self.stream, frames, self.oldest.take());
            for session in &self.sessions {
                session.push(&batch);
            }
            self.keep(batch);
        }
        self.oldest = None;
        if !self.left.is_empty() {
            let left = std::mem::take(&mut self.left);
            self.sessions.retain(|session| !left.contains(&session.user_id));
        }
        deliveries
    }

    /// Keeps a batch that was sent, and as few before it as may be kept.
    fn keep(&mut self, batch: Arc<Batch>) {
        self.recent_events += batch.frames.len();
        self.recent_bytes += batch.bytes;
        self.recent.push_back(batch);
        while self.recent_events > RECENT_EVENTS || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else { return };
            self.recent_events -= oldest.frames.len();
            self.recent_bytes -= oldest.bytes;
        }
    }

    fn forget_recent(&mut self) {
        (self.recent_events, self.recent_bytes) = (0, 0);
        self.recent = VecDeque::new();
    }
}

/// Who came and went in events that were not delivered yet, to find who was there before them.
#[derive(Debug, Default)]
pub struct Moves {
    seen: i64,
    /// Whether a user was there before, by their first move.
    was_there: HashMap<UserId, bool>,
}

impl Moves {
    /// Notes the next events of the stream.
    pub fn note(&mut self, events: &[Event]) {
        for event in events {
            self.seen = event.seq;
            match event.kind {
                EventKind::ChannelCreated => {
                    for user in users_in(&event.payload, "members") {
                        self.was_there.entry(user).or_insert(false);
                    }
                }
                EventKind::MemberJoined | EventKind::MemberLeft => {
                    if let Some(user) = user_in(&event.payload) {
                        self.was_there.entry(user).or_insert(event.kind == EventKind::MemberLeft);
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns the number of the last event noted; 0 if there was none.
    #[must_use]
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// Returns who was there before all that was noted, from who is there after it.
    #[must_use]
    pub fn take_back(&self, mut audience: Vec<UserId>) -> Vec<UserId> {
        audience.retain(|user| self.was_there.get(user).copied().unwrap_or(true));
        let went = self.was_there.iter().filter(|(user, was_there)| **was_there && !audience.contains(*user));
        let went: Vec<UserId> = went.map(|(user, _)| *user).collect();
        audience.extend(went);
        audience
    }
}

fn user_in(payload: &str) -> Option<UserId> {
    #[derive(serde::Deserialize)]
    struct Named {
        user_id: UserId,
    }
    serde_json::from_str::<Named>(payload).ok().map(|named| named.user_id)
}

fn users_in(payload: &str, field: &str) -> Vec<UserId> {
    let value: serde_json::Value = serde_json::from_str(payload).unwrap_or_default();
    serde_json::from_value(value[field].clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::id::EventId;

    fn event(seq: i64, kind: EventKind, payload: &str) -> Event {
        let stream = StreamId::new(Timestamp(1));
        let at = Timestamp(1);
        Event { stream, seq, id: EventId::new(at), kind, actor: None, payload: payload.into(), at }
    }

    #[test]
    fn events_are_heard_once_and_a_jump_is_noticed() {
        let mut room = Room::new(StreamId::WORKSPACE, [], 4);
        assert_eq!(room.hear(&event(4, EventKind::PinAdded, "{}"), None), Heard::Before);
        assert_eq!(room.hear(&event(6, EventKind::PinAdded, "{}"), None), Heard::Gap);
        assert_eq!(room.hear(&event(5, EventKind::PinAdded, "{}"), None), Heard::Next);
        assert_eq!(room.delivered(), 5);
    }

    #[test]
    fn moves_that_were_not_delivered_are_taken_back() {
        let [ana, bob, eve] = [1, 2, 3].map(|n| UserId::new(Timestamp(n)));
        let moved = |seq, kind, user: UserId| event(seq, kind, &format!(r#"{{"user_id":"{user}"}}"#));
        let mut moves = Moves::default();
        moves.note(&[moved(5, EventKind::MemberLeft, bob), moved(6, EventKind::MemberJoined, eve)]);
        moves.note(&[moved(7, EventKind::MemberJoined, bob), moved(8, EventKind::MemberLeft, bob)]);
        assert_eq!((moves.take_back(vec![ana, eve]), moves.seen()), (vec![ana, bob], 8));
        assert_eq!(Moves::default().take_back(vec![ana]), [ana]);
    }

    #[test]
    fn the_audience_follows_who_comes_and_goes() {
        let (ana, bob) = (UserId::new(Timestamp(1)), UserId::new(Timestamp(2)));
        let mut room = Room::new(StreamId::WORKSPACE, [ana], 0);
        room.hear(&event(1, EventKind::MemberJoined, &format!(r#"{{"user_id":"{bob}"}}"#)), None);
        assert!(room.has_member(bob) && room.audience_changed());
        assert_eq!(room.take_joined(), [bob]);
        room.hear(&event(2, EventKind::MemberLeft, &format!(r#"{{"user_id":"{ana}"}}"#)), None);
        assert!(!room.has_member(ana));
        assert_eq!(room.gather(Instant::now(), Duration::from_secs(1)), Duration::ZERO);
    }
}
