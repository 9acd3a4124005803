//! Messages: what is said, and what is put on it.

use colink::domain::channel::{ChannelRole, Posting};
use colink::domain::command as c;
use colink::domain::id::{ChannelId, UserId};
use serde_json::{Value, json};

use super::{Answer, Follow, Mentions, Message, Model, Person, Room, done, nothing_to_do, refuse};

impl Model {
    fn mentions(&self, channel: ChannelId, text: &str) -> Mentions {
        let room = self.channel(channel).unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        let named = |who: &&Person| words.contains(&format!("@{}", who.name).as_str());
        let mut users: Vec<UserId> = self.people.iter().filter(named).map(|who| who.id).collect();
        users.retain(|user| room.members.contains_key(user));
        users.sort_unstable();
        Mentions { users, channel: words.contains(&"@channel"), here: words.contains(&"@here") }
    }

    /// Returns what a repeat is answered, if a send is one.
    fn repeat(&self, who: UserId, c: &c::SendMessage) -> Option<Answer> {
        let (first, seq) = self.keys.get(&(who, c.client_msg_id.clone()?))?;
        if first != c {
            return Some(refuse("idempotency_key_reused"));
        }
        Some(Ok(json!({"channel_id": c.channel_id, "seq": seq, "duplicate": true})))
    }

    pub(super) fn send(&mut self, who: UserId, c: &c::SendMessage) -> Answer {
        if c.also_in_channel && c.thread_seq.is_none() {
            return refuse("invalid_request");
        }
        if let Some(answer) = self.repeat(who, c) {
            return answer;
        }
        let room = self.active(who, c.channel_id)?;
        let top_level = c.thread_seq.is_none() || c.also_in_channel;
        let least = match room.posting {
            Posting::Everyone => ChannelRole::Member,
            Posting::Moderators => ChannelRole::Moderator,
            Posting::Owners => ChannelRole::Owner,
        };
        if top_level && !room.has_rank(who, least) {
            return refuse("forbidden");
        }
        if let Some(thread) = c.thread_seq
            && (room.written(thread)?.thread.is_some()
                || room.written(thread)?.deleted && room.replies(thread).next().is_none())
        {
            return refuse("not_found");
        }
        let seq = self.head_of(room) + 1;
        let message = Message {
            seq,
            message_no: top_level.then(|| room.top_level().count() as i64 + 1),
            thread: c.thread_seq,
            reply_no: c.thread_seq.map(|thread| room.replies(thread).count() as i64 + 1),
            author: who,
            text: c.text.clone(),
            mentions: self.mentions(c.channel_id, &c.text),
            key: c.client_msg_id.clone(),
            edited: false,
            deleted: false,
            edits: Vec::new(),
            reactions: Vec::new(),
        };
        let data = message.told();
        let named = message.mentions.users.clone();
        let room = self.room_mut(c.channel_id);
        room.messages.push(message);
        if top_level {
            room.members.get_mut(&who).unwrap().read_seq = seq;
        }
        if let Some(thread) = c.thread_seq {
            room.take_part(thread, seq, who, &named);
        }
        self.tell(c.channel_id, "message.created", who, data);
        if let Some(key) = &c.client_msg_id {
            self.keys.insert((who, key.clone()), (c.clone(), seq));
            self.keyed.push((who, c.clone()));
        }
        Ok(json!({"channel_id": c.channel_id, "seq": seq, "duplicate": false}))
    }

    pub(super) fn edit(&mut self, who: UserId, c: &c::EditMessage) -> Answer {
        let message = self.active(who, c.channel_id)?.standing(c.seq)?;
        if message.author != who {
            return refuse("forbidden");
        }
        if message.text == c.text {
            return nothing_to_do();
        }
        let mentions = self.mentions(c.channel_id, &c.text);
        let data = json!({"message_seq": c.seq, "editor_id": who, "text": c.text, "mentions": mentions.json(),
            "edited_at": true});
        let seq = self.tell(c.channel_id, "message.updated", who, data);
        let message = self.room_mut(c.channel_id).message_mut(c.seq);
        let before = std::mem::replace(&mut message.text, c.text.clone());
        message.edits.push((before, who, seq));
        (message.mentions, message.edited) = (mentions, true);
        done(seq)
    }

    pub(super) fn delete(&mut self, who: UserId, c: &c::DeleteMessage) -> Answer {
        let room = self.known(who, c.channel_id)?;
        if room.standing(c.seq)?.author == who {
            self.active(who, c.channel_id)?;
        } else {
            self.moderated(who, c.channel_id)?;
        }
        let data = json!({"message_seq": c.seq, "deleted_by": who, "deleted_at": true});
        let seq = self.tell(c.channel_id, "message.deleted", who, data);
        let room = self.room_mut(c.channel_id);
        room.pins.retain(|pinned| *pinned != c.seq);
        let message = room.message_mut(c.seq);
        (message.text, message.mentions, message.deleted) = (String::new(), Mentions::default(), true);
        message.reactions.clear();
        let edits: Vec<i64> = message.edits.drain(..).map(|(_, _, at)| at).collect();
        let created = message.told();
        let log = &mut self.streams.get_mut(&c.channel_id.into()).unwrap().entries;
        let mut empty = |at: i64, data| log[usize::try_from(at).unwrap() - 1].emptied = Some(data);
        empty(c.seq, created);
        for at in edits {
            empty(at, json!({"message_seq": c.seq, "text": ""}));
        }
        done(seq)
    }

    pub(super) fn react(&mut self, who: UserId, channel: ChannelId, seq: i64, emoji: &str, add: bool) -> Answer {
        let room = self.active(who, channel)?;
        if add {
            room.standing(seq)?;
        }
        // Drawn or named, it is one emoji.
        let emoji = if emoji == "👋" { "wave" } else { emoji };
        let mine = (emoji.to_owned(), who);
        if room.message(seq).is_some_and(|message| message.reactions.contains(&mine)) == add {
            return nothing_to_do();
        }
        if !add && room.message(seq).is_none() {
            return nothing_to_do();
        }
        let reactions = &mut self.room_mut(channel).message_mut(seq).reactions;
        if add {
            reactions.push(mine);
        } else {
            reactions.retain(|reaction| *reaction != mine);
        }
        let kind = if add { "reaction.added" } else { "reaction.removed" };
        done(self.tell(channel, kind, who, json!({"message_seq": seq, "user_id": who, "emoji": emoji})))
    }

    pub(super) fn pin(&mut self, who: UserId, channel: ChannelId, seq: i64, add: bool) -> Answer {
        let room = self.active(who, channel)?;
        if add {
            room.standing(seq)?;
        }
        if room.pins.contains(&seq) == add {
            return nothing_to_do();
        }
        let pins = &mut self.room_mut(channel).pins;
        if add {
            pins.push(seq);
        } else {
            pins.retain(|pinned| *pinned != seq);
        }
        let kind = if add { "pin.added" } else { "pin.removed" };
        done(self.tell(channel, kind, who, json!({"message_seq": seq, "user_id": who})))
    }
}

impl Room {
    /// Whoever wrote the first message, is named in a reply, or replies, follows the thread; who did already, still does.
    fn take_part(&mut self, thread: i64, reply: i64, who: UserId, named: &[UserId]) {
        let author = self.message(thread).unwrap().author;
        let mut new = |user, read_seq| {
            self.follows.entry((thread, user)).or_insert(Follow { following: true, read_seq });
        };
        if self.members.contains_key(&author) {
            new(author, thread);
        }
        for user in named {
            new(*user, reply - 1);
        }
        new(who, reply);
        self.follows.get_mut(&(thread, who)).unwrap().read_seq = reply;
    }
}

impl Message {
    /// The payload of the event that tells of it.
    fn told(&self) -> Value {
        let mut data = json!({"author_id": self.author, "text": self.text});
        let mut put = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                data[field] = value;
            }
        };
        put("message_no", self.message_no.map(Value::from));
        put("thread_seq", self.thread.map(Value::from));
        put("reply_no", self.reply_no.map(Value::from));
        put("mentions", (self.mentions != Mentions::default()).then(|| self.mentions.json()));
        put("client_msg_id", self.key.clone().map(Value::from));
        data
    }
}
