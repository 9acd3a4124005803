//! What the model's readers see, as REST shows it but without identifiers of messages and without times.

use colink::domain::id::{StreamId, UserId};
use serde_json::{Value, json};

use crate::model::{Answer, Entry, Mentions, Message, Model, Room};
use crate::plan::{View, nth};

/// Takes away what no model can know: times become `true` where they say that something happened.
pub(crate) fn plain(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => {
            let of_message = fields.contains_key("author_id");
            let mut shown = serde_json::Map::new();
            for (name, value) in fields {
                match name.as_str() {
                    "created_at" | "joined_at" | "last_at" | "event_id" | "at" | "s" | "permalink" => {}
                    "id" if of_message => {}
                    "edited_at" | "deleted_at" | "archived_at" => {
                        shown.insert(name.clone(), json!(true));
                    }
                    "reactions" => {
                        shown.insert(name.clone(), unordered(value));
                    }
                    _ => {
                        shown.insert(name.clone(), plain(value));
                    }
                }
            }
            shown.into()
        }
        other => other.clone(),
    }
}

/// Puts lists into one order: what happened in one commit has one time, and no order.
pub(crate) fn unordered(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(unordered).collect();
            items.sort_by_key(ToString::to_string);
            items.into()
        }
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), unordered(value))).collect(),
        other => other.clone(),
    }
}

impl Model {
    /// Returns what somebody sees; nothing if there is no channel to look at.
    pub(crate) fn see(&self, who: UserId, view: &View) -> Option<Answer> {
        let room = |channel: u8| Some(self.known(who, self.nth_channel(channel)?.id));
        let read = |channel: u8, show: &dyn Fn(&Room) -> Answer| Some(room(channel)?.and_then(show));
        match *view {
            View::Channel(channel) => read(channel, &|room| Ok(self.channel_seen_by(who, room))),
            View::Mine => {
                let mut mine: Vec<&Room> = self.rooms.iter().filter(|r| r.members.contains_key(&who)).collect();
                mine.sort_by_key(|room| room.id);
                Some(Ok(json!({"items": mine.iter().map(|room| self.membership(who, room)).collect::<Vec<_>>()})))
            }
            View::Members(channel) => read(channel, &|room| {
                let members = room.members.iter();
                let items: Vec<_> = members.map(|(id, member)| json!({"user_id": id, "role": member.role})).collect();
                Ok(json!({"items": items}))
            }),
            View::Newest(channel, limit) => read(channel, &|room| Ok(before(room, i64::MAX, limit.into()))),
            View::Before(channel, seq, limit) => read(channel, &|room| Ok(before(room, seq.into(), limit.into()))),
            View::After(channel, seq, limit) => read(channel, &|room| Ok(after(room, seq.into(), limit.into()))),
            View::Around(channel, seq, limit) => read(channel, &|room| Ok(around(room, seq.into(), limit.into()))),
            View::One(channel, n) => read(channel, &|room| match nth(&room.messages, n) {
                Some(message) => Ok(show(room, message, true)),
                None => Err("not_found".to_owned()),
            }),
            View::Replies(channel, n, limit) => read(channel, &|room| match nth(&room.messages, n) {
                Some(root) => {
                    let replies: Vec<&Message> = room.replies(root.seq).collect();
                    let limit = usize::from(limit);
                    Ok(page(room, replies.iter().take(limit).copied(), replies.len() > limit))
                }
                None => Err("not_found".to_owned()),
            }),
            View::Edits(channel, n) => read(channel, &|room| match nth(&room.messages, n) {
                Some(message) => Ok(json!({"items": message.edits.iter().map(shown_edit).collect::<Vec<_>>()})),
                None => Err("not_found".to_owned()),
            }),
            View::Pins(channel) => read(channel, &|room| {
                let pinned = |seq: &i64| show(room, room.standing(*seq).unwrap(), false);
                Ok(json!({"items": room.pins.iter().rev().map(pinned).collect::<Vec<_>>()}))
            }),
            View::Events(channel, after) => read(channel, &|room| self.log(room.id.into(), after.into())),
            View::Threads => Some(Ok(self.threads(who))),
        }
    }

    fn channel_seen_by(&self, who: UserId, room: &Room) -> Value {
        if room.members.contains_key(&who) {
            return self.membership(who, room);
        }
        let mut shown = json!({"id": room.id, "kind": if room.private { "private" } else { "public" },
            "name": room.name, "topic": "", "purpose": "", "posting": room.posting, "created_by": room.created_by,
            "last_seq": self.head_of(room), "last_message_no": room.top_level().count()});
        if room.archived {
            shown["archived_at"] = json!(true);
        }
        shown
    }

    /// Returns a channel as one of its members sees it.
    pub(crate) fn membership(&self, who: UserId, room: &Room) -> Value {
        let member = &room.members[&who];
        let mut shown = json!({"id": room.id, "kind": if room.private { "private" } else { "public" },
            "name": room.name, "topic": "", "purpose": "", "posting": room.posting, "created_by": room.created_by,
            "last_seq": self.head_of(room), "last_message_no": room.top_level().count(), "role": member.role,
            "read_seq": member.read_seq, "unread_count": room.unread(who), "mention_count": room.unread_mentions(who),
            "muted": member.muted, "notify": "all"});
        if room.archived {
            shown["archived_at"] = json!(true);
        }
        shown
    }

    /// Returns a stream's events behind a number as the log has them.
    pub(crate) fn log(&self, id: StreamId, after: i64) -> Answer {
        let stream = &self.streams[&id];
        if !(stream.base..=stream.head()).contains(&after) {
            return Err("invalid_request".to_owned());
        }
        let shown = |seq| shown_event(id, seq, stream.entry(seq).unwrap(), true);
        let items: Vec<Value> = (after + 1..=stream.head()).map(shown).collect();
        Ok(json!({"items": items, "head": stream.head()}))
    }

    fn threads(&self, who: UserId) -> Value {
        let mut items = Vec::new();
        for room in self.rooms.iter().filter(|room| room.members.contains_key(&who)) {
            for ((thread, user), follow) in &room.follows {
                if *user != who || !follow.following {
                    continue;
                }
                let replies: Vec<i64> = room.replies(*thread).map(|reply| reply.seq).collect();
                let (unread, mentions) = room.unread_in_thread(who, *thread, follow.read_seq);
                items.push(json!({"channel_id": room.id, "thread_seq": thread, "following": true,
                    "reply_count": replies.len(), "last_reply_seq": replies.last().unwrap_or(&0),
                    "read_seq": follow.read_seq, "unread_count": unread, "mention_count": mentions}));
            }
        }
        json!({"items": items})
    }
}

fn shown_edit((text, by, seq): &(String, UserId, i64)) -> Value {
    json!({"text": text, "editor_id": by, "edit_seq": seq, "edited_at": true})
}

/// Returns an event as REST and the gateway show it, from the log or as it was told.
pub(crate) fn shown_event(stream: StreamId, seq: i64, entry: &Entry, from_log: bool) -> Value {
    let of_channel = !entry.kind.starts_with("user.") && entry.kind != "channel.listed";
    let data = entry.emptied.as_ref().filter(|_| from_log).unwrap_or(&entry.data);
    let place = if of_channel { "channel_id" } else { "stream_id" };
    json!({"type": entry.kind, place: stream, "seq": seq, "actor_id": entry.actor, "d": data})
}

fn before(room: &Room, seq: i64, limit: usize) -> Value {
    let found: Vec<&Message> = room.top_level().filter(|message| message.seq < seq).collect();
    let from = found.len().saturating_sub(limit);
    page(room, found[from..].iter().copied(), from > 0)
}

fn after(room: &Room, seq: i64, limit: usize) -> Value {
    let found: Vec<&Message> = room.top_level().filter(|message| message.seq > seq).collect();
    page(room, found.iter().take(limit).copied(), found.len() > limit)
}

/// Half of the page is older, the rest begins with the message itself; one side fills what the other leaves.
fn around(room: &Room, seq: i64, limit: usize) -> Value {
    let (older, newer): (Vec<&Message>, Vec<&Message>) = room.top_level().partition(|message| message.seq < seq);
    let half = (limit / 2).max(limit.saturating_sub(newer.len())).min(older.len());
    let (from, rest) = (older.len() - half, limit - half);
    let mut shown = page(room, older[from..].iter().chain(newer.iter().take(rest)).copied(), false);
    let (has_older, has_newer) = (from > 0, newer.len() > rest);
    shown["has_more"] = json!(has_older || has_newer);
    (shown["has_older"], shown["has_newer"]) = (json!(has_older), json!(has_newer));
    shown
}

fn page<'a>(room: &Room, messages: impl Iterator<Item = &'a Message>, more: bool) -> Value {
    json!({"items": messages.map(|message| show(room, message, true)).collect::<Vec<_>>(), "has_more": more})
}

fn show(room: &Room, message: &Message, with_reactions: bool) -> Value {
    let mut shown =
        json!({"channel_id": room.id, "seq": message.seq, "author_id": message.author, "text": message.text});
    let mut put = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            shown[field] = value;
        }
    };
    let yes = |is: bool| is.then_some(json!(true));
    let replies: Vec<i64> = room.replies(message.seq).map(|reply| reply.seq).collect();
    put("message_no", message.message_no.map(Value::from));
    put("thread_seq", message.thread.map(Value::from));
    put("reply_no", message.reply_no.map(Value::from));
    put("mentions", (message.mentions != Mentions::default()).then(|| message.mentions.json()));
    put("client_msg_id", message.key.clone().map(Value::from));
    put("edited_at", yes(message.edited));
    put("deleted_at", yes(message.deleted));
    put("reply_count", (!replies.is_empty()).then(|| json!(replies.len())));
    put("last_reply_seq", replies.last().map(|seq| json!(seq)));
    put("pinned", yes(room.pins.contains(&message.seq)));
    let mut reactions: Vec<(&str, Vec<UserId>)> = Vec::new();
    for (emoji, user) in message.reactions.iter().filter(|_| with_reactions) {
        match reactions.iter_mut().find(|(known, _)| known == emoji) {
            Some((_, users)) => users.push(*user),
            None => reactions.push((emoji, vec![*user])),
        }
    }
    let reaction = |(emoji, users): &(&str, Vec<UserId>)| json!({"emoji": emoji, "users": users});
    put("reactions", (!reactions.is_empty()).then(|| unordered(&reactions.iter().map(reaction).collect())));
    shown
}
