//! A small team for the model's tests: ana, whose chat it is, and bob; #general, #random and the two alone.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::app::App;
use super::room::Room;
use super::talk::{News, Want};
use crate::client::{Event, History};
use crate::clock::Timestamp;
use crate::domain::channel::Membership;
use crate::domain::id::{ChannelId, EventId, UserId};
use crate::domain::user::User;

pub(super) struct World {
    pub(super) app: App,
    pub(super) bob: UserId,
    pub(super) general: ChannelId,
    pub(super) random: ChannelId,
    pub(super) direct: ChannelId,
    pub(super) now: Timestamp,
    heads: HashMap<ChannelId, i64>,
}

/// 2026-01-31T12:00:00Z.
const NOON: Timestamp = Timestamp(1_769_860_800_000_000);

impl World {
    pub(super) fn new() -> World {
        let (ana, bob) = (UserId::new(NOON), UserId::new(NOON));
        let [general, random, direct] = [(); 3].map(|()| ChannelId::new(NOON));
        let users = vec![user(ana, "ana"), user(bob, "bob")];
        let channels = vec![
            membership(random, ana, Some("random"), &[]),
            membership(general, ana, Some("general"), &[]),
            membership(direct, ana, None, &[bob]),
        ];
        let app = App::new(users[0].clone(), users, channels);
        World { app, bob, general, random, direct, now: NOON, heads: HashMap::new() }
    }

    /// The same with #general open and its empty history read.
    pub(super) fn in_general() -> World {
        let mut world = World::new();
        let general = world.general;
        assert!(world.app.begin(None).contains(&Want::History { channel: general, before: None }));
        world.loads(general);
        world
    }

    pub(super) fn loads(&mut self, channel: ChannelId) {
        let page = Some(History { items: Vec::new(), has_more: false });
        self.app.take(News::History { channel, page }, self.now);
    }

    pub(super) fn passes(&mut self, seconds: i64) {
        self.now = self.now.plus_seconds(seconds);
    }

    /// Returns the channel's next event.
    pub(super) fn event(&mut self, channel: ChannelId, kind: &str, by: UserId, d: &Value) -> Event {
        let seq = self.heads.entry(channel).or_insert(0);
        *seq += 1;
        let event = json!({"type": kind, "channel_id": channel, "seq": *seq, "event_id": EventId::new(self.now),
            "actor_id": by, "at": self.now, "d": d});
        serde_json::from_str(&event.to_string()).unwrap()
    }

    pub(super) fn happens(&mut self, channel: ChannelId, kind: &str, d: &Value) -> i64 {
        let event = self.event(channel, kind, self.bob, d);
        let seq = event.seq.unwrap();
        self.app.take(News::Event(Box::new(event)), self.now);
        seq
    }

    pub(super) fn bob_says(&mut self, channel: ChannelId, text: &str) -> i64 {
        let d = message(self.bob, text, self.now);
        self.happens(channel, "message.created", &d)
    }

    pub(super) fn replies(&mut self, channel: ChannelId, thread_seq: i64, text: &str) -> i64 {
        let mut d = message(self.bob, text, self.now);
        d["thread_seq"] = json!(thread_seq);
        d["message_no"] = Value::Null;
        self.happens(channel, "message.created", &d)
    }

    pub(super) fn room(&mut self, channel: ChannelId) -> &mut Room {
        self.app.find(channel).unwrap()
    }

    pub(super) fn texts(&mut self, channel: ChannelId) -> Vec<String> {
        self.room(channel).messages().map(|message| message.text.clone()).collect()
    }
}

/// The payload of a `message.created`.
pub(super) fn message(author: UserId, text: &str, at: Timestamp) -> Value {
    json!({"id": EventId::new(at), "message_no": 1, "author_id": author, "text": text, "created_at": at})
}

fn user(id: UserId, name: &str) -> User {
    let user = json!({"id": id, "name": name, "display_name": name, "role": "member", "presence_mode": "auto",
        "created_at": NOON});
    serde_json::from_value(user).unwrap()
}

fn membership(id: ChannelId, by: UserId, name: Option<&str>, with: &[UserId]) -> Membership {
    let kind = if name.is_some() { "public" } else { "direct" };
    let channel = json!({"id": id, "kind": kind, "name": name, "posting": "everyone", "created_by": by,
        "created_at": NOON, "last_seq": 0, "last_message_no": 0, "role": "member", "read_seq": 0, "unread_count": 0,
        "mention_count": 0, "muted": false, "notify": "all", "with": with});
    serde_json::from_value(channel).unwrap()
}
