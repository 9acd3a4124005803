//! The reference: what a hub has to do, told once more in the plainest way. It keeps lists and counts them anew each time;
//! of the product it knows the words of the wire alone.
//!
//! [`Model::apply`] is what comes of a command, told in `channels.rs`, `messages.rs` and `own.rs`; `view.rs` is what readers
//! see.

mod channels;
mod messages;
mod own;

use std::collections::{BTreeMap, HashMap};

use colink::domain::channel::{ChannelRole, Posting};
use colink::domain::command::{self as c, Command};
use colink::domain::id::{ChannelId, StreamId, UserId};
use colink::domain::user::Role;
use serde_json::{Value, json};

use crate::plan;

/// A reply, or the code of a refusal.
pub(crate) type Answer = Result<Value, String>;

/// A user.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) id: UserId,
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// A channel.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) id: ChannelId,
    pub(crate) name: String,
    pub(crate) private: bool,
    pub(crate) archived: bool,
    pub(crate) posting: Posting,
    pub(crate) created_by: UserId,
    pub(crate) members: BTreeMap<UserId, Member>,
    /// In order of their numbers.
    pub(crate) messages: Vec<Message>,
    /// Pinned messages, oldest pin first.
    pub(crate) pins: Vec<i64>,
    /// By thread and user.
    pub(crate) follows: BTreeMap<(i64, UserId), Follow>,
    /// Who came (true) and went with which event.
    moves: Vec<(i64, UserId, bool)>,
}

/// Somebody's place in a channel.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) role: ChannelRole,
    pub(crate) read_seq: i64,
    pub(crate) muted: bool,
}

/// What somebody has of a thread.
#[derive(Clone)]
pub(crate) struct Follow {
    pub(crate) following: bool,
    pub(crate) read_seq: i64,
}

/// A message or a reply.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) seq: i64,
    pub(crate) message_no: Option<i64>,
    pub(crate) thread: Option<i64>,
    pub(crate) reply_no: Option<i64>,
    pub(crate) author: UserId,
    pub(crate) text: String,
    pub(crate) mentions: Mentions,
    pub(crate) key: Option<String>,
    pub(crate) edited: bool,
    pub(crate) deleted: bool,
    /// Earlier texts and who changed them, and the numbers of the events that did.
    pub(crate) edits: Vec<(String, UserId, i64)>,
    pub(crate) reactions: Vec<(String, UserId)>,
}

/// Whom a text speaks to.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Mentions {
    pub(crate) users: Vec<UserId>,
    pub(crate) channel: bool,
    pub(crate) here: bool,
}

/// An event as it was told, without identifiers and times.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) kind: &'static str,
    pub(crate) actor: UserId,
    pub(crate) data: Value,
    /// What the log has left of it, if a text in it was deleted.
    pub(crate) emptied: Option<Value>,
}

/// The events of one stream from `base` on: what was before does not concern this case.
#[derive(Clone, Default)]
pub(crate) struct Stream {
    pub(crate) base: i64,
    pub(crate) entries: Vec<Entry>,
}

/// The hub.
#[derive(Clone)]
pub(crate) struct Model {
    /// The name of this case: names of channels begin with it.
    name: String,
    pub(crate) people: Vec<Person>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) streams: HashMap<StreamId, Stream>,
    /// The first use of each user's key.
    keys: HashMap<(UserId, String), (c::SendMessage, i64)>,
    /// Every send with a key that was stored, in order.
    pub(crate) keyed: Vec<(UserId, c::SendMessage)>,
}

impl Mentions {
    fn name(&self, who: UserId) -> bool {
        self.channel || self.here || self.users.contains(&who)
    }

    pub(crate) fn json(&self) -> Value {
        let mut shown = json!({});
        if !self.users.is_empty() {
            shown["users"] = json!(self.users);
        }
        if self.channel {
            shown["channel"] = json!(true);
        }
        if self.here {
            shown["here"] = json!(true);
        }
        shown
    }
}

impl Stream {
    pub(crate) fn head(&self) -> i64 {
        self.base + self.entries.len() as i64
    }

    pub(crate) fn entry(&self, seq: i64) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq - self.base - 1).ok()?)
    }
}

impl Room {
    fn message(&self, seq: i64) -> Option<&Message> {
        self.messages.iter().find(|message| message.seq == seq)
    }

    pub(crate) fn standing(&self, seq: i64) -> Result<&Message, String> {
        self.message(seq).filter(|message| !message.deleted).ok_or_else(|| "not_found".to_owned())
    }

    /// Returns a message that was written, deleted or not.
    fn written(&self, seq: i64) -> Result<&Message, String> {
        self.message(seq).ok_or_else(|| "not_found".to_owned())
    }

    /// Returns the message that a thread hangs on, deleted or not.
    fn root(&self, seq: i64) -> Result<&Message, String> {
        let root = self.written(seq)?;
        if root.thread.is_some() { Err("invalid_request".to_owned()) } else { Ok(root) }
    }

    /// Counts the replies behind a mark, and those among them that speak to somebody.
    pub(crate) fn unread_in_thread(&self, who: UserId, thread: i64, read: i64) -> (usize, usize) {
        let unread: Vec<&Message> = self.replies(thread).filter(|reply| reply.seq > read).collect();
        (unread.len(), unread.iter().filter(|reply| reply.mentions.name(who)).count())
    }

    fn message_mut(&mut self, seq: i64) -> &mut Message {
        self.messages.iter_mut().find(|message| message.seq == seq).unwrap()
    }

    pub(crate) fn top_level(&self) -> impl DoubleEndedIterator<Item = &Message> {
        self.messages.iter().filter(|message| message.message_no.is_some())
    }

    pub(crate) fn replies(&self, thread: i64) -> impl DoubleEndedIterator<Item = &Message> {
        self.messages.iter().filter(move |message| message.thread == Some(thread))
    }

    /// Counts the top-level messages behind somebody's mark.
    pub(crate) fn unread(&self, who: UserId) -> usize {
        let read = self.members[&who].read_seq;
        self.top_level().filter(|message| message.seq > read).count()
    }

    /// Counts those among them that speak to that somebody.
    pub(crate) fn unread_mentions(&self, who: UserId) -> usize {
        let read = self.members[&who].read_seq;
        self.top_level().filter(|message| message.seq > read && message.mentions.name(who)).count()
    }

    fn is_only_owner(&self, who: UserId) -> bool {
        let owner = |(user, member): (&UserId, &Member)| *user != who && member.role == ChannelRole::Owner;
        self.members.get(&who).is_some_and(|member| member.role == ChannelRole::Owner)
            && !self.members.iter().any(owner)
    }

    /// The channel would be nobody's, with people in it.
    fn needs(&self, who: UserId) -> bool {
        self.is_only_owner(who) && self.members.len() > 1
    }

    fn has_rank(&self, who: UserId, least: ChannelRole) -> bool {
        self.members.get(&who).is_some_and(|member| match least {
            ChannelRole::Member => true,
            ChannelRole::Moderator => member.role != ChannelRole::Member,
            ChannelRole::Owner => member.role == ChannelRole::Owner,
        })
    }

    /// Returns with which event somebody who is in it came.
    pub(crate) fn came(&self, who: UserId) -> i64 {
        self.moves.iter().rev().find(|(_, user, came)| *user == who && *came).unwrap().0
    }

    /// Returns whether somebody was in it when an event happened, their own coming and going counted.
    fn was_in(&self, who: UserId, seq: i64) -> bool {
        let mut inside = false;
        for (at, _, came) in self.moves.iter().filter(|(_, user, _)| *user == who) {
            if *at > seq || (*at == seq && !came) {
                break;
            }
            inside = *came;
        }
        inside
    }
}

fn refuse<T>(code: &str) -> Result<T, String> {
    Err(code.to_owned())
}

fn done(seq: i64) -> Answer {
    Ok(json!({"seq": seq}))
}

fn nothing_to_do() -> Answer {
    Ok(json!({}))
}

impl Model {
    pub(crate) fn new(name: &str, people: Vec<Person>, workspace_head: i64) -> Model {
        let mut streams: HashMap<StreamId, Stream> =
            people.iter().map(|who| (who.id.into(), Stream::default())).collect();
        streams.insert(StreamId::WORKSPACE, Stream { base: workspace_head, entries: Vec::new() });
        let (rooms, keys, keyed) = (Vec::new(), HashMap::new(), Vec::new());
        Model { name: name.to_owned(), people, rooms, streams, keys, keyed }
    }

    pub(crate) fn person(&self, n: u8) -> &Person {
        &self.people[usize::from(n) % self.people.len()]
    }

    /// Returns which of the people it is.
    pub(crate) fn number_of(&self, who: UserId) -> Option<u8> {
        (0..).zip(&self.people).find(|(_, person)| person.id == who).map(|(n, _)| n)
    }

    pub(crate) fn role(&self, who: UserId) -> Role {
        self.people.iter().find(|person| person.id == who).unwrap().role
    }

    fn is_guest(&self, who: UserId) -> bool {
        self.role(who) == Role::Guest
    }

    pub(crate) fn channel_name(&self, n: u8) -> String {
        format!("{}-{n}", self.name)
    }

    pub(crate) fn nth_channel(&self, n: u8) -> Option<&Room> {
        self.rooms.get(usize::from(n).checked_rem(self.rooms.len())?)
    }

    pub(crate) fn channel(&self, id: ChannelId) -> Option<&Room> {
        self.rooms.iter().find(|room| room.id == id)
    }

    fn room_mut(&mut self, id: ChannelId) -> &mut Room {
        self.rooms.iter_mut().find(|room| room.id == id).unwrap()
    }

    /// Returns the number of the n-th message; of what is no message if there is none.
    pub(crate) fn nth_message(&self, channel: u8, n: u8) -> i64 {
        self.nth_channel(channel).and_then(|room| plan::nth(&room.messages, n)).map_or(1, |message| message.seq)
    }

    pub(crate) fn head(&self, stream: StreamId) -> i64 {
        self.streams.get(&stream).map_or(0, Stream::head)
    }

    pub(crate) fn head_of(&self, room: &Room) -> i64 {
        self.head(room.id.into())
    }

    /// Returns whether an event is for somebody's gateway: a channel's for who was in it when it happened.
    pub(crate) fn is_for(&self, who: UserId, stream: StreamId, seq: i64) -> bool {
        if stream == StreamId::WORKSPACE {
            return !self.is_guest(who);
        }
        match self.channel(stream.into()) {
            Some(room) => room.was_in(who, seq),
            None => stream == who.into(),
        }
    }

    fn tell(&mut self, stream: impl Into<StreamId>, kind: &'static str, actor: UserId, data: Value) -> i64 {
        let stream = self.streams.entry(stream.into()).or_default();
        stream.entries.push(Entry { kind, actor, data, emptied: None });
        stream.head()
    }

    // ---- who may -----------------------------------------------------------------------------------------------------

    /// Who may not know of a channel is told that there is none.
    pub(crate) fn known(&self, who: UserId, channel: ChannelId) -> Result<&Room, String> {
        let room = self.channel(channel).unwrap();
        if room.members.contains_key(&who) || (!room.private && !self.is_guest(who)) {
            return Ok(room);
        }
        refuse("not_found")
    }

    /// Asks for being in it.
    fn inside(&self, who: UserId, channel: ChannelId) -> Result<&Room, String> {
        let room = self.known(who, channel)?;
        if room.members.contains_key(&who) { Ok(room) } else { refuse("forbidden") }
    }

    /// Asks for being in it, while it takes changes.
    fn active(&self, who: UserId, channel: ChannelId) -> Result<&Room, String> {
        let room = self.inside(who, channel)?;
        if room.archived { refuse("channel_archived") } else { Ok(room) }
    }

    /// Asks for a channel role, or a role in the workspace that looks after this channel: public, or with them in it.
    fn looked_after(
        &self,
        who: UserId,
        channel: ChannelId,
        rank: ChannelRole,
        role: &[Role],
        archived_too: bool,
    ) -> Result<&Room, String> {
        let room = self.known(who, channel)?;
        let by_role = role.contains(&self.role(who));
        if !by_role && !room.members.contains_key(&who) {
            return refuse("forbidden");
        }
        if room.archived && !archived_too {
            return refuse("channel_archived");
        }
        if by_role || room.has_rank(who, rank) { Ok(room) } else { refuse("forbidden") }
    }

    fn moderated(&self, who: UserId, channel: ChannelId) -> Result<&Room, String> {
        self.looked_after(who, channel, ChannelRole::Moderator, &[Role::Moderator, Role::Admin], false)
    }

    fn owned(&self, who: UserId, channel: ChannelId, archived_too: bool) -> Result<&Room, String> {
        self.looked_after(who, channel, ChannelRole::Owner, &[Role::Admin], archived_too)
    }

    // ---- what comes of it ----------------------------------------------------------------------------------------------

    /// Carries out a command. A channel that comes of it gets the identifier `made`.
    pub(crate) fn apply(&mut self, who: UserId, command: &Command, made: ChannelId) -> Answer {
        match command {
            Command::CreateChannel(c) => self.create(who, c, made),
            Command::JoinChannel(c) => self.join(who, c.channel_id),
            Command::LeaveChannel(c) => self.leave(who, c.channel_id),
            Command::InviteMember(c) => self.invite(who, c),
            Command::RemoveMember(c) => self.remove(who, c),
            Command::SetChannelRole(c) => self.set_role(who, c),
            Command::UpdateChannel(c) => self.set_posting(who, c.channel_id, c.posting.unwrap()),
            Command::ArchiveChannel(c) => self.set_archived(who, c.channel_id, true),
            Command::UnarchiveChannel(c) => self.set_archived(who, c.channel_id, false),
            Command::SendMessage(c) => self.send(who, c),
            Command::EditMessage(c) => self.edit(who, c),
            Command::DeleteMessage(c) => self.delete(who, c),
            Command::AddReaction(c) => self.react(who, c.channel_id, c.seq, &c.emoji, true),
            Command::RemoveReaction(c) => self.react(who, c.channel_id, c.seq, &c.emoji, false),
            Command::AddPin(c) => self.pin(who, c.channel_id, c.seq, true),
            Command::RemovePin(c) => self.pin(who, c.channel_id, c.seq, false),
            Command::MarkRead(c) => self.mark_read(who, c),
            Command::MarkUnread(c) => self.mark_unread(who, c),
            Command::FollowThread(c) => self.follow(who, c.channel_id, c.thread_seq, true),
            Command::UnfollowThread(c) => self.follow(who, c.channel_id, c.thread_seq, false),
            Command::MarkThreadRead(c) => self.mark_thread_read(who, c),
            Command::MarkThreadUnread(c) => self.mark_thread_unread(who, c),
            Command::SetChannelPreferences(c) => self.mute(who, c.channel_id, c.muted.unwrap()),
            other => panic!("no case has a {}", other.name()),
        }
    }
}
