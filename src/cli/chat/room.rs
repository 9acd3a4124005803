//! One channel as it is known here: its messages by their number, what is unread, who is typing.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::input::Input;
use super::talk::Post;
use crate::client::{Event, History};
use crate::clock::Timestamp;
use crate::domain::channel::Membership;
use crate::domain::id::UserId;
use crate::domain::message::{Message, Reaction};

/// How long somebody is shown as typing after the last word of it.
const TYPING_S: i64 = 6;
/// How many entries are kept of a channel that is being read at its end; the older ones are read again when needed.
const KEPT: usize = 2_000;

/// Something in a channel's history.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Entry {
    Message(Box<Message>),
    /// What the channel itself tells, such as who came in.
    Note {
        by: UserId,
        what: String,
        at: Timestamp,
    },
}

/// How much of the history is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Loaded {
    Nothing,
    /// A page was asked for.
    Asked,
    /// There is more.
    Part,
    All,
}

/// A channel.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) membership: Membership,
    pub(super) entries: BTreeMap<i64, Entry>,
    pub(super) loaded: Loaded,
    /// How many rows the view stands above the newest.
    pub(super) scroll: usize,
    /// The newest entry when the view was drawn last.
    pub(super) drawn: i64,
    pub(super) input: Input,
    /// Messages that the hub has not answered yet.
    pub(super) unsent: Vec<Post>,
    typing: HashMap<UserId, Timestamp>,
    /// The newest event that the unread counts account for.
    counted: i64,
}

/// The payload of any event of a channel, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Facts {
    message_seq: i64,
    user_id: Option<UserId>,
    emoji: String,
    text: String,
    edited_at: Option<Timestamp>,
    deleted_at: Option<Timestamp>,
    archived_at: Option<Timestamp>,
    name: Option<String>,
    topic: Option<String>,
    purpose: Option<String>,
}

impl Room {
    pub(super) fn new(membership: Membership) -> Self {
        Room {
            counted: membership.channel.last_seq,
            membership,
            entries: BTreeMap::new(),
            loaded: Loaded::Nothing,
            scroll: 0,
            drawn: 0,
            input: Input::default(),
            unsent: Vec::new(),
            typing: HashMap::new(),
        }
    }

    /// Takes over what the hub says of the channel and the user's place in it.
    pub(super) fn update(&mut self, membership: Membership) {
        self.counted = self.counted.max(membership.channel.last_seq);
        self.membership = membership;
    }

    /// Forgets all messages: they are to be read again.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.loaded = Loaded::Nothing;
        self.scroll = 0;
    }

    /// Applies an event of this channel.
    pub(super) fn apply(&mut self, event: &Event, me: UserId, now: Timestamp) {
        let Some(seq) = event.seq else { return self.hear(event, now) };
        if let Some(message) = event.message() {
            self.add(message, me);
        } else {
            self.change(seq, event);
        }
        self.counted = self.counted.max(seq);
        let channel = &mut self.membership.channel;
        channel.last_seq = channel.last_seq.max(seq);
        if self.scroll == 0 && self.loaded != Loaded::Asked && self.entries.len() > KEPT {
            let first = *self.entries.keys().nth(KEPT / 4).unwrap_or(&0);
            self.entries = self.entries.split_off(&first);
            self.loaded = Loaded::Part;
        }
    }

    fn hear(&mut self, event: &Event, now: Timestamp) {
        if let (true, Ok(Facts { user_id: Some(user), .. })) = (event.kind == "typing", event.data()) {
            self.typing.insert(user, now.plus_seconds(TYPING_S));
        }
    }

    fn add(&mut self, message: Message, me: UserId) {
        self.typing.remove(&message.author_id);
        self.unsent.retain(|post| message.author_id != me || Some(&post.key) != message.client_msg_id.as_ref());
        if message.seq > self.counted && message.author_id != me {
            if message.message_no.is_some() {
                self.membership.unread_count += 1;
            }
            let to = &message.mentions;
            if to.channel || to.here || to.users.contains(&me) {
                self.membership.mention_count += 1;
            }
        }
        let parent = message.thread_seq.and_then(|seq| self.entries.get_mut(&seq));
        if let Some(Entry::Message(parent)) = parent
            && parent.last_reply_seq.is_none_or(|seq| seq < message.seq)
        {
            parent.reply_count += 1;
            parent.last_reply_seq = Some(message.seq);
        }
        self.entries.insert(message.seq, Entry::Message(Box::new(message)));
    }

    fn change(&mut self, seq: i64, event: &Event) {
        let facts: Facts = event.data().unwrap_or_default();
        if let Some(Entry::Message(message)) = self.entries.get_mut(&facts.message_seq) {
            match (event.kind.as_str(), facts.user_id) {
                ("message.updated", _) => {
                    message.text = facts.text;
                    message.edited_at = facts.edited_at.or(event.at);
                }
                ("message.deleted", _) => {
                    message.text.clear();
                    message.reactions.clear();
                    message.deleted_at = facts.deleted_at.or(event.at);
                }
                ("reaction.added", Some(user)) => react(&mut message.reactions, facts.emoji, user),
                ("reaction.removed", Some(user)) => unreact(&mut message.reactions, &facts.emoji, user),
                ("pin.added", _) => message.pinned = true,
                ("pin.removed", _) => message.pinned = false,
                _ => {}
            }
            return;
        }
        let channel = &mut self.membership.channel;
        let what = match event.kind.as_str() {
            "channel.updated" => {
                channel.name = facts.name.or(channel.name.take());
                channel.purpose = facts.purpose.unwrap_or(std::mem::take(&mut channel.purpose));
                match facts.topic {
                    Some(topic) => {
                        channel.topic = topic;
                        format!("set the topic: {}", channel.topic)
                    }
                    None => "changed the channel".to_owned(),
                }
            }
            "channel.archived" => {
                channel.archived_at = facts.archived_at.or(event.at);
                "archived the channel".to_owned()
            }
            "channel.unarchived" => {
                channel.archived_at = None;
                "took the channel out of the archive".to_owned()
            }
            "member.joined" => "came in".to_owned(),
            "member.left" => "left".to_owned(),
            _ => return,
        };
        let (Some(by), Some(at)) = (facts.user_id, event.at) else { return };
        self.entries.insert(seq, Entry::Note { by, what, at });
    }

    /// Takes a page of history in.
    pub(super) fn fill(&mut self, page: Option<History>) {
        let Some(page) = page else {
            self.loaded = if self.entries.is_empty() { Loaded::Nothing } else { Loaded::Part };
            return;
        };
        for message in page.items {
            self.unsent.retain(|post| Some(&post.key) != message.client_msg_id.as_ref());
            self.entries.insert(message.seq, Entry::Message(Box::new(message)));
        }
        self.loaded = if page.has_more { Loaded::Part } else { Loaded::All };
    }

    /// Returns where the next older page ends.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.messages().find(|message| message.message_no.is_some()).map(|message| message.seq)
    }

    /// Returns the newest message that is not deleted.
    pub(super) fn last_message(&self) -> Option<&Message> {
        self.messages().rfind(|message| message.deleted_at.is_none())
    }

    pub(super) fn messages(&self) -> impl DoubleEndedIterator<Item = &Message> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::Message(message) => Some(&**message),
            Entry::Note { .. } => None,
        })
    }

    /// Returns the event to mark as read, if there is something to mark.
    pub(super) fn unmarked(&self) -> Option<i64> {
        let newest = self.messages().next_back()?.seq;
        let m = &self.membership;
        (newest > m.read_seq || m.unread_count > 0 || m.mention_count > 0).then(|| newest.max(m.channel.last_seq))
    }

    /// Notes that everything up to an event was read.
    pub(super) fn mark(&mut self, seq: i64) {
        let m = &mut self.membership;
        (m.read_seq, m.unread_count, m.mention_count) = (m.read_seq.max(seq), 0, 0);
    }

    /// Forgets who typed too long ago; returns whether that changed anything.
    pub(super) fn expire_typing(&mut self, now: Timestamp) -> bool {
        let before = self.typing.len();
        self.typing.retain(|_, until| *until > now);
        self.typing.len() != before
    }

    pub(super) fn typing(&self) -> Vec<UserId> {
        let mut users: Vec<UserId> = self.typing.keys().copied().collect();
        users.sort_unstable();
        users
    }
}

fn react(reactions: &mut Vec<Reaction>, emoji: String, user: UserId) {
    match reactions.iter_mut().find(|reaction| reaction.emoji == emoji) {
        Some(reaction) if !reaction.users.contains(&user) => reaction.users.push(user),
        Some(_) => {}
        None => reactions.push(Reaction { emoji, users: vec![user] }),
    }
}

fn unreact(reactions: &mut Vec<Reaction>, emoji: &str, user: UserId) {
    for reaction in reactions.iter_mut().filter(|reaction| reaction.emoji == emoji) {
        reaction.users.retain(|who| *who != user);
    }
    reactions.retain(|reaction| !reaction.users.is_empty());
}
