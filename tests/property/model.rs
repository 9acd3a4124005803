//! The reference: what a hub has to do, told once more in the plainest way. It keeps lists and counts them anew each time;
//! of the product it knows the words of the wire alone.
//!
//! [`Model::apply`] is what comes of a command; `view.rs` is what readers see.

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
        let names = |m: &Mentions| m.channel || m.here || m.users.contains(&who);
        self.top_level().filter(|message| message.seq > read && names(&message.mentions)).count()
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
            Command::SetChannelPreferences(c) => self.mute(who, c.channel_id, c.muted.unwrap()),
            other => panic!("no case has a {}", other.name()),
        }
    }

    fn create(&mut self, who: UserId, c: &c::CreateChannel, made: ChannelId) -> Answer {
        if self.is_guest(who) {
            return refuse("forbidden");
        }
        if self.rooms.iter().any(|room| room.name == c.name) {
            return refuse("conflict");
        }
        let mut people = vec![who];
        people.extend(c.members.iter().filter(|user| **user != who));
        let mut seen = Vec::new();
        people.retain(|user| {
            !seen.contains(user) && {
                seen.push(*user);
                true
            }
        });
        let role = |user: UserId| if user == who { ChannelRole::Owner } else { ChannelRole::Member };
        let members = people.iter().map(|user| (*user, Member { role: role(*user), read_seq: 0, muted: false }));
        self.rooms.push(Room {
            id: made,
            name: c.name.clone(),
            private: c.private,
            archived: false,
            posting: Posting::Everyone,
            created_by: who,
            members: members.collect(),
            messages: Vec::new(),
            pins: Vec::new(),
            follows: BTreeMap::new(),
            moves: people.iter().map(|user| (1, *user, true)).collect(),
        });
        let kind = if c.private { "private" } else { "public" };
        let data = json!({"id": made, "kind": kind, "name": c.name, "topic": "", "purpose": "", "posting": "everyone",
            "created_by": who, "members": people});
        let seq = self.tell(made, "channel.created", who, data);
        for user in people {
            self.tell(user, "user.channel_added", who, json!({"channel_id": made, "last_seq": seq}));
        }
        self.list(who, made);
        Ok(json!({"id": made, "kind": kind, "name": c.name, "last_seq": 1, "last_message_no": 0}))
    }

    /// The workspace hears of public channels.
    fn list(&mut self, who: UserId, channel: ChannelId) {
        let room = self.channel(channel).unwrap();
        if room.private {
            return;
        }
        let data = json!({"id": channel, "name": room.name, "topic": "", "purpose": "", "archived": room.archived});
        self.tell(StreamId::WORKSPACE, "channel.listed", who, data);
    }

    fn join(&mut self, who: UserId, channel: ChannelId) -> Answer {
        let room = self.known(who, channel)?;
        if room.archived {
            return refuse("channel_archived");
        }
        if room.private || self.is_guest(who) {
            return refuse("forbidden");
        }
        self.come_in(channel, who, None, who)
    }

    fn invite(&mut self, who: UserId, c: &c::InviteMember) -> Answer {
        self.active(who, c.channel_id)?;
        if self.is_guest(who) {
            return refuse("forbidden");
        }
        self.come_in(c.channel_id, c.user_id, Some(who), who)
    }

    fn come_in(&mut self, channel: ChannelId, user: UserId, invited_by: Option<UserId>, actor: UserId) -> Answer {
        if self.channel(channel).unwrap().members.contains_key(&user) {
            return nothing_to_do();
        }
        let mut data = json!({"user_id": user, "role": "member"});
        if let Some(by) = invited_by {
            data["invited_by"] = json!(by);
        }
        let seq = self.tell(channel, "member.joined", actor, data);
        let room = self.room_mut(channel);
        room.members.insert(user, Member { role: ChannelRole::Member, read_seq: seq - 1, muted: false });
        room.moves.push((seq, user, true));
        self.tell(user, "user.channel_added", actor, json!({"channel_id": channel, "last_seq": seq}));
        done(seq)
    }

    fn leave(&mut self, who: UserId, channel: ChannelId) -> Answer {
        if self.inside(who, channel)?.needs(who) {
            return refuse("conflict");
        }
        self.go_out(channel, who, None, who)
    }

    fn remove(&mut self, who: UserId, c: &c::RemoveMember) -> Answer {
        let room = self.moderated(who, c.channel_id)?;
        let theirs = room.members.get(&c.user_id).map(|member| member.role);
        let by_role = [Role::Moderator, Role::Admin].contains(&self.role(who));
        let above = theirs == Some(ChannelRole::Owner) && !room.has_rank(who, ChannelRole::Owner);
        if above && !by_role {
            return refuse("forbidden");
        }
        if room.needs(c.user_id) {
            return refuse("conflict");
        }
        if theirs.is_none() {
            return nothing_to_do();
        }
        self.go_out(c.channel_id, c.user_id, Some(who), who)
    }

    fn go_out(&mut self, channel: ChannelId, user: UserId, removed_by: Option<UserId>, actor: UserId) -> Answer {
        let mut data = json!({"user_id": user});
        if let Some(by) = removed_by {
            data["removed_by"] = json!(by);
        }
        let seq = self.tell(channel, "member.left", actor, data);
        let room = self.room_mut(channel);
        room.members.remove(&user);
        room.follows.retain(|(_, follower), _| *follower != user);
        room.moves.push((seq, user, false));
        self.tell(user, "user.channel_removed", actor, json!({"channel_id": channel}));
        done(seq)
    }

    fn set_role(&mut self, who: UserId, c: &c::SetChannelRole) -> Answer {
        let room = self.owned(who, c.channel_id, false)?;
        let Some(member) = room.members.get(&c.user_id) else { return refuse("not_found") };
        if member.role == c.role {
            return nothing_to_do();
        }
        if room.needs(c.user_id) {
            return refuse("conflict");
        }
        self.room_mut(c.channel_id).members.get_mut(&c.user_id).unwrap().role = c.role;
        let data = json!({"user_id": c.user_id, "role": c.role, "changed_by": who});
        done(self.tell(c.channel_id, "member.role_changed", who, data))
    }

    fn set_posting(&mut self, who: UserId, channel: ChannelId, posting: Posting) -> Answer {
        if self.owned(who, channel, false)?.posting == posting {
            return nothing_to_do();
        }
        self.room_mut(channel).posting = posting;
        let seq = self.tell(channel, "channel.updated", who, json!({"user_id": who, "posting": posting}));
        self.list(who, channel);
        done(seq)
    }

    fn set_archived(&mut self, who: UserId, channel: ChannelId, archive: bool) -> Answer {
        if self.owned(who, channel, true)?.archived == archive {
            return nothing_to_do();
        }
        self.room_mut(channel).archived = archive;
        let seq = if archive {
            self.tell(channel, "channel.archived", who, json!({"user_id": who, "archived_at": true}))
        } else {
            self.tell(channel, "channel.unarchived", who, json!({"user_id": who}))
        };
        self.list(who, channel);
        done(seq)
    }

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

    fn send(&mut self, who: UserId, c: &c::SendMessage) -> Answer {
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
            && room.standing(thread)?.thread.is_some()
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

    fn edit(&mut self, who: UserId, c: &c::EditMessage) -> Answer {
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

    fn delete(&mut self, who: UserId, c: &c::DeleteMessage) -> Answer {
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

    fn react(&mut self, who: UserId, channel: ChannelId, seq: i64, emoji: &str, add: bool) -> Answer {
        let room = self.active(who, channel)?;
        if add {
            room.standing(seq)?;
        }
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

    fn pin(&mut self, who: UserId, channel: ChannelId, seq: i64, add: bool) -> Answer {
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

    fn mark_read(&mut self, who: UserId, c: &c::MarkRead) -> Answer {
        let room = self.inside(who, c.channel_id)?;
        let seq = c.seq.min(self.head_of(room));
        if seq > room.members[&who].read_seq {
            self.move_mark(who, c.channel_id, seq);
        }
        Ok(self.membership(who, self.channel(c.channel_id).unwrap()))
    }

    fn mark_unread(&mut self, who: UserId, c: &c::MarkUnread) -> Answer {
        let message = self.inside(who, c.channel_id)?.standing(c.seq)?;
        if message.message_no.is_none() {
            return refuse("invalid_request");
        }
        self.move_mark(who, c.channel_id, c.seq - 1);
        Ok(self.membership(who, self.channel(c.channel_id).unwrap()))
    }

    fn move_mark(&mut self, who: UserId, channel: ChannelId, seq: i64) {
        let room = self.room_mut(channel);
        room.members.get_mut(&who).unwrap().read_seq = seq;
        let data = json!({"channel_id": channel, "read_seq": seq, "unread_count": room.unread(who),
            "mention_count": room.unread_mentions(who)});
        self.tell(who, "user.read", who, data);
    }

    fn follow(&mut self, who: UserId, channel: ChannelId, thread: i64, following: bool) -> Answer {
        let room = self.inside(who, channel)?;
        if room.standing(thread)?.thread.is_some() {
            return refuse("invalid_request");
        }
        let read_seq = room.replies(thread).last().map_or(thread, |reply| reply.seq);
        let follows = &mut self.room_mut(channel).follows;
        follows.entry((thread, who)).or_insert(Follow { following, read_seq }).following = following;
        let data = json!({"channel_id": channel, "thread_seq": thread, "following": following});
        done(self.tell(who, "user.thread_followed", who, data))
    }

    fn mark_thread_read(&mut self, who: UserId, c: &c::MarkThreadRead) -> Answer {
        let room = self.inside(who, c.channel_id)?;
        room.standing(c.thread_seq)?;
        let unread = |read: i64| room.replies(c.thread_seq).filter(|reply| reply.seq > read).count();
        let last = room.replies(c.thread_seq).last().map_or(c.thread_seq, |reply| reply.seq);
        let (read_seq, left) = (c.seq.min(last), unread(c.seq));
        let before = room.follows.get(&(c.thread_seq, who)).map(|follow| unread(follow.read_seq));
        if before.is_none_or(|before| before <= left) {
            return nothing_to_do();
        }
        self.room_mut(c.channel_id).follows.get_mut(&(c.thread_seq, who)).unwrap().read_seq = read_seq;
        let data = json!({"channel_id": c.channel_id, "thread_seq": c.thread_seq, "read_seq": read_seq,
            "unread_count": left});
        done(self.tell(who, "user.thread_read", who, data))
    }

    fn mute(&mut self, who: UserId, channel: ChannelId, muted: bool) -> Answer {
        self.inside(who, channel)?;
        self.room_mut(channel).members.get_mut(&who).unwrap().muted = muted;
        let data = json!({"channel_id": channel, "muted": muted, "notify": "all"});
        done(self.tell(who, "user.channel_preferences", who, data))
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
