//! What each command does to the store, inside the transaction that the writer opened.
//!
//! A command reads what decides, asks [`crate::domain::permission`], changes rows, and appends events. Everything here
//! happens or nothing does; what it returns is told to anybody only after the commit. Top-level messages take the short
//! way of [`super::send`], many at once.

use serde::Serialize;
use serde_json::json;

use super::channels::{self, Facts};
use super::personal::Draft;
use super::{Db, StoreError, events, messages, personal, tokens, users};
use crate::clock::Timestamp;
use crate::domain::channel::{self, Channel, ChannelKind, ChannelRole, GROUP_MAX, Posting, channel_name, direct_key};
use crate::domain::command::{self, Command, Done, Invite, Principal};
use crate::domain::error::{conflict, forbidden, invalid, not_found};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, InviteId, MessageId, StreamId, UserId};
use crate::domain::message::{Mentions, Message, Sent};
use crate::domain::permission::{self, Action};
use crate::domain::text;
use crate::domain::user::{self, PresenceMode, Role, Status, User};

/// The most different emoji on one message, and the most pins in one channel.
const REACTIONS_MAX: i64 = 50;
const PINS_MAX: i64 = 200;

/// One command's view of the open transaction.
pub struct Scope<'a> {
    /// The connection, inside the transaction.
    pub(super) db: &'a mut Db,
    /// The transaction's time.
    pub(super) now: Timestamp,
    /// Who asks.
    pub(super) caller: Principal,
    /// What was appended, in order.
    pub(super) events: Vec<Event>,
}

impl Scope<'_> {
    /// Returns who an event is by: nobody, if the server acts by itself.
    pub(super) fn actor(&self) -> Option<UserId> {
        (self.caller != super::accounts::SYSTEM).then_some(self.caller.user_id)
    }
}

type Applied = Result<String, StoreError>;

/// Carries out a command and returns its answer as JSON.
pub(super) async fn apply(scope: &mut Scope<'_>, command: &Command) -> Applied {
    match command {
        Command::SendMessage(c) => send_message(scope, c).await,
        Command::EditMessage(c) => edit_message(scope, c).await,
        Command::DeleteMessage(c) => delete_message(scope, c).await,
        Command::AddReaction(c) => add_reaction(scope, c).await,
        Command::RemoveReaction(c) => remove_reaction(scope, c).await,
        Command::AddPin(c) => add_pin(scope, c).await,
        Command::RemovePin(c) => remove_pin(scope, c).await,
        Command::AddSaved(c) => set_saved(scope, c.channel_id, c.seq, true).await,
        Command::RemoveSaved(c) => set_saved(scope, c.channel_id, c.seq, false).await,
        Command::SetDraft(c) => set_draft(scope, c).await,
        Command::CreateChannel(c) => create_channel(scope, c).await,
        Command::OpenDirect(c) => open_direct(scope, c).await,
        Command::UpdateChannel(c) => update_channel(scope, c).await,
        Command::ArchiveChannel(c) => set_archived(scope, c.channel_id, true).await,
        Command::UnarchiveChannel(c) => set_archived(scope, c.channel_id, false).await,
        Command::JoinChannel(c) => join(scope, c.channel_id).await,
        Command::LeaveChannel(c) => leave(scope, c.channel_id).await,
        Command::InviteMember(c) => invite(scope, c).await,
        Command::RemoveMember(c) => remove_member(scope, c).await,
        Command::SetChannelRole(c) => set_channel_role(scope, c).await,
        Command::MarkRead(c) => mark_read(scope, c).await,
        Command::MarkUnread(c) => mark_unread(scope, c).await,
        Command::SetChannelPreferences(c) => set_preferences(scope, c).await,
        Command::FollowThread(c) => follow(scope, c.channel_id, c.thread_seq, true).await,
        Command::UnfollowThread(c) => follow(scope, c.channel_id, c.thread_seq, false).await,
        Command::MarkThreadRead(c) => mark_thread_read(scope, c).await,
        Command::UpdateProfile(c) => update_profile(scope, c).await,
        Command::SetStatus(c) => set_status(scope, c).await,
        Command::SetPresence(c) => set_presence(scope, c).await,
        Command::CreateUser(c) => create_user(scope, c).await,
        Command::SetUserRole(c) => set_user_role(scope, c).await,
        Command::DeactivateUser(c) => set_active(scope, c.user_id, false).await,
        Command::ReactivateUser(c) => set_active(scope, c.user_id, true).await,
        Command::CreateInvite(c) => create_invite(scope, c).await,
        Command::RevokeInvite(c) => revoke_invite(scope, c).await,
    }
}

fn answer(reply: &impl Serialize) -> Applied {
    Ok(serde_json::to_string(reply).expect("an answer has only string keys"))
}

fn done(seq: i64) -> Applied {
    answer(&Done { seq: Some(seq) })
}

fn nothing_to_do() -> Applied {
    answer(&Done::default())
}

/// Locks the channel, reads what decides, and asks whether the caller may do `action`.
async fn permit(scope: &mut Scope<'_>, channel: ChannelId, action: Action) -> Result<Facts, StoreError> {
    events::lock(scope, channel.into()).await?;
    let facts = channels::facts(scope.db, scope.caller.user_id, channel).await?.ok_or_else(|| not_found("channel"))?;
    permission::allows(facts.who, action, facts.channel)?;
    Ok(facts)
}

async fn caller_role(scope: &mut Scope<'_>) -> Result<Role, StoreError> {
    let role = users::active_role(scope.db, scope.caller.user_id).await?;
    Ok(role.ok_or_else(|| forbidden("your account is deactivated"))?)
}

/// Returns a message that is there and not deleted.
async fn standing_message(scope: &mut Scope<'_>, channel: ChannelId, seq: i64) -> Result<Message, StoreError> {
    let message = messages::bare(scope.db, channel, seq).await?.filter(|m| m.deleted_at.is_none());
    Ok(message.ok_or_else(|| not_found("message"))?)
}

// ---- messages ------------------------------------------------------------------------------------------------------

/// The payload of `message.created`.
#[derive(Serialize)]
pub(super) struct Created<'a> {
    pub(super) id: MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message_no: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) thread_seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reply_no: Option<i64>,
    pub(super) author_id: UserId,
    pub(super) text: &'a str,
    #[serde(skip_serializing_if = "Mentions::is_empty")]
    pub(super) mentions: &'a Mentions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_msg_id: Option<&'a str>,
    pub(super) created_at: Timestamp,
}

impl<'a> Created<'a> {
    fn of(message: &'a Message) -> Self {
        Created {
            id: message.id,
            message_no: message.message_no,
            thread_seq: message.thread_seq,
            reply_no: message.reply_no,
            author_id: message.author_id,
            text: &message.text,
            mentions: &message.mentions,
            client_msg_id: message.client_msg_id.as_deref(),
            created_at: message.created_at,
        }
    }
}

pub(super) async fn find_mentions(db: &mut Db, channel: ChannelId, text: &str) -> Result<Mentions, StoreError> {
    let found = text::mentions(text);
    let users = users::members_named(db, channel, &found.names).await?;
    Ok(Mentions { users, channel: found.channel, here: found.here })
}

/// Posts one message: a reply, or a top-level message that could not go with the others.
async fn send_message(scope: &mut Scope<'_>, c: &command::SendMessage) -> Applied {
    let action = if c.thread_seq.is_some() { Action::Reply } else { Action::Post };
    permit(scope, c.channel_id, action).await?;
    if c.also_in_channel {
        permit(scope, c.channel_id, Action::Post).await?;
    }
    let top_level = c.thread_seq.is_none() || c.also_in_channel;
    let (seq, last_no) = take_numbers(scope, c.channel_id.into(), i64::from(top_level)).await?;
    let reply_no = match c.thread_seq {
        Some(thread) => {
            Some(messages::count_reply(scope, c.channel_id, thread, seq).await?.ok_or_else(|| not_found("thread"))?)
        }
        None => None,
    };
    let message = Message {
        id: MessageId::new(scope.now),
        channel_id: c.channel_id,
        seq,
        message_no: top_level.then_some(last_no),
        thread_seq: c.thread_seq,
        reply_no,
        author_id: scope.caller.user_id,
        text: c.text.clone(),
        mentions: find_mentions(scope.db, c.channel_id, &c.text).await?,
        client_msg_id: c.client_msg_id.clone(),
        created_at: scope.now,
        edited_at: None,
        deleted_at: None,
        reply_count: 0,
        last_reply_seq: None,
        pinned: false,
        reactions: Vec::new(),
    };
    messages::insert_reply(scope, &message).await?;
    messages::set_mentions(scope, &message, false).await?;
    if let (Some(thread), Some(number)) = (c.thread_seq, reply_no) {
        follow_participants(scope, &message, thread, number).await?;
    }
    if top_level {
        personal::set_read(scope, c.channel_id, seq, last_no).await?;
    }
    events::append_numbered(scope, c.channel_id.into(), seq, EventKind::MessageCreated, &Created::of(&message)).await?;
    answer(&Sent::new(c.channel_id, seq, message.id, scope.now))
}

async fn take_numbers(scope: &mut Scope<'_>, stream: StreamId, messages: i64) -> Result<(i64, i64), StoreError> {
    let sql = "UPDATE streams SET last_seq = last_seq + 1, last_message_no = last_message_no + $2 WHERE id = $1 \
               RETURNING last_seq, last_message_no";
    Ok(super::on!(scope.db, db => sqlx::query_as(sql).bind(stream).bind(messages).fetch_one(db).await?))
}

/// The author of a thread's first message, whoever replies, and whoever is named follow it from then on.
async fn follow_participants(
    scope: &mut Scope<'_>,
    reply: &Message,
    thread: i64,
    number: i64,
) -> Result<(), StoreError> {
    let root = standing_message(scope, reply.channel_id, thread).await?;
    let still_in = channels::facts(scope.db, root.author_id, reply.channel_id).await?;
    if still_in.is_some_and(|f| f.who.channel_role.is_some()) {
        personal::follow_by_default(scope, reply.channel_id, thread, root.author_id, (thread, 0)).await?;
    }
    for user in &reply.mentions.users {
        personal::follow_by_default(scope, reply.channel_id, thread, *user, (reply.seq - 1, number - 1)).await?;
    }
    personal::follow_by_default(scope, reply.channel_id, thread, reply.author_id, (reply.seq, number)).await?;
    personal::set_thread_read(scope, reply.channel_id, thread, reply.seq, number).await?;
    Ok(())
}

async fn edit_message(scope: &mut Scope<'_>, c: &command::EditMessage) -> Applied {
    permit(scope, c.channel_id, Action::EditOwn).await?;
    let before = standing_message(scope, c.channel_id, c.seq).await?;
    if before.author_id != scope.caller.user_id {
        permit(scope, c.channel_id, Action::EditOthers).await?;
    }
    if before.text == c.text {
        return nothing_to_do();
    }
    let mentions = find_mentions(scope.db, c.channel_id, &c.text).await?;
    let after = Message { text: c.text.clone(), mentions, ..before.clone() };
    let payload = json!({"message_seq": c.seq, "editor_id": scope.caller.user_id, "text": after.text,
        "mentions": after.mentions, "edited_at": scope.now});
    let seq = events::append(scope, c.channel_id.into(), EventKind::MessageUpdated, &payload).await?;
    messages::edit(scope, &before, &after, seq).await?;
    done(seq)
}

async fn delete_message(scope: &mut Scope<'_>, c: &command::DeleteMessage) -> Applied {
    let facts = permit(scope, c.channel_id, Action::Read).await?;
    let message = standing_message(scope, c.channel_id, c.seq).await?;
    let own = message.author_id == scope.caller.user_id;
    permission::allows(facts.who, if own { Action::DeleteOwn } else { Action::DeleteOthers }, facts.channel)?;
    let payload = json!({"message_seq": c.seq, "deleted_by": scope.caller.user_id, "deleted_at": scope.now});
    let seq = events::append(scope, c.channel_id.into(), EventKind::MessageDeleted, &payload).await?;
    forget_in_log(scope, &message).await?;
    messages::delete(scope, c.channel_id, c.seq).await?;
    done(seq)
}

/// Empties the deleted text wherever the event log has it, so that nobody resumes into it.
async fn forget_in_log(scope: &mut Scope<'_>, message: &Message) -> Result<(), StoreError> {
    let emptied = Message { text: String::new(), mentions: Mentions::default(), ..message.clone() };
    let created = serde_json::to_string(&Created::of(&emptied)).expect("a payload has only string keys");
    let stream = StreamId::from(message.channel_id);
    let sql = "UPDATE events SET payload = $3 WHERE stream_id = $1 AND seq = $2";
    super::on!(scope.db, db => { sqlx::query(sql).bind(stream).bind(message.seq).bind(created).execute(db).await?; });
    let edited = json!({"message_seq": message.seq, "text": ""}).to_string();
    let sql = "UPDATE events SET payload = $3 WHERE stream_id = $1 AND seq IN \
               (SELECT edit_seq FROM edits WHERE channel_id = $1 AND seq = $2)";
    super::on!(scope.db, db => { sqlx::query(sql).bind(stream).bind(message.seq).bind(edited).execute(db).await?; });
    Ok(())
}

async fn add_reaction(scope: &mut Scope<'_>, c: &command::AddReaction) -> Applied {
    permit(scope, c.channel_id, Action::React).await?;
    standing_message(scope, c.channel_id, c.seq).await?;
    let emoji = text::emoji(&c.emoji)?;
    let (different, there) = messages::emoji_on(scope.db, c.channel_id, c.seq, emoji).await?;
    if !there && different >= REACTIONS_MAX {
        return Err(conflict(format!("a message takes at most {REACTIONS_MAX} different emoji")).into());
    }
    if !messages::add_reaction(scope, c.channel_id, c.seq, emoji).await? {
        return nothing_to_do();
    }
    reacted(scope, EventKind::ReactionAdded, c.channel_id, c.seq, emoji).await
}

async fn remove_reaction(scope: &mut Scope<'_>, c: &command::RemoveReaction) -> Applied {
    permit(scope, c.channel_id, Action::React).await?;
    let emoji = text::emoji(&c.emoji)?;
    if !messages::remove_reaction(scope, c.channel_id, c.seq, emoji).await? {
        return nothing_to_do();
    }
    reacted(scope, EventKind::ReactionRemoved, c.channel_id, c.seq, emoji).await
}

async fn reacted(scope: &mut Scope<'_>, kind: EventKind, channel: ChannelId, seq: i64, emoji: &str) -> Applied {
    let payload = json!({"message_seq": seq, "user_id": scope.caller.user_id, "emoji": emoji});
    done(events::append(scope, channel.into(), kind, &payload).await?)
}

async fn add_pin(scope: &mut Scope<'_>, c: &command::AddPin) -> Applied {
    permit(scope, c.channel_id, Action::Pin).await?;
    standing_message(scope, c.channel_id, c.seq).await?;
    if messages::pin_count(scope.db, c.channel_id).await? >= PINS_MAX {
        return Err(conflict(format!("a channel has at most {PINS_MAX} pins: remove one first")).into());
    }
    if !messages::pin(scope, c.channel_id, c.seq).await? {
        return nothing_to_do();
    }
    let payload = json!({"message_seq": c.seq, "user_id": scope.caller.user_id});
    done(events::append(scope, c.channel_id.into(), EventKind::PinAdded, &payload).await?)
}

async fn remove_pin(scope: &mut Scope<'_>, c: &command::RemovePin) -> Applied {
    permit(scope, c.channel_id, Action::Pin).await?;
    if !messages::unpin(scope, c.channel_id, c.seq).await? {
        return nothing_to_do();
    }
    let payload = json!({"message_seq": c.seq, "user_id": scope.caller.user_id});
    done(events::append(scope, c.channel_id.into(), EventKind::PinRemoved, &payload).await?)
}

// ---- channels ------------------------------------------------------------------------------------------------------

async fn create_channel(scope: &mut Scope<'_>, c: &command::CreateChannel) -> Applied {
    permission::may_make_channels(caller_role(scope).await?)?;
    let name = channel_name(&c.name)?;
    let kind = if c.private { ChannelKind::Private } else { ChannelKind::Public };
    let channel = Channel {
        id: ChannelId::new(scope.now),
        kind,
        name: Some(name.clone()),
        topic: user::one_line("topic", &c.topic, 250)?,
        purpose: user::one_line("purpose", &c.purpose, 250)?,
        posting: Posting::Everyone,
        created_by: scope.caller.user_id,
        created_at: scope.now,
        archived_at: None,
        last_seq: 0,
        last_message_no: 0,
    };
    let mut people: Vec<(UserId, ChannelRole)> = vec![(scope.caller.user_id, ChannelRole::Owner)];
    for user in &c.members {
        if people.iter().all(|p| p.0 != *user) {
            people.push((*user, ChannelRole::Member));
        }
    }
    events::create_stream(scope, channel.id.into()).await?;
    if !channels::insert(scope, &channel, None).await? {
        return Err(conflict(format!("the channel name `{name}` is taken")).into());
    }
    let made = found_channel(scope, channel, &people).await?;
    if kind == ChannelKind::Public {
        list_channel(scope, &made).await?;
    }
    answer(&made)
}

/// Fills a channel that was just inserted with people, and tells of it.
async fn found_channel(
    scope: &mut Scope<'_>,
    mut channel: Channel,
    people: &[(UserId, ChannelRole)],
) -> Result<Channel, StoreError> {
    for (user, role) in people {
        if users::active_role(scope.db, *user).await?.is_none() {
            return Err(not_found("user").into());
        }
        channels::add_member(scope, channel.id, *user, *role).await?;
    }
    let ids: Vec<UserId> = people.iter().map(|p| p.0).collect();
    let payload = json!({"id": channel.id, "kind": channel.kind, "name": channel.name, "topic": channel.topic,
        "purpose": channel.purpose, "posting": channel.posting, "created_by": channel.created_by,
        "created_at": channel.created_at, "members": ids});
    channel.last_seq = events::append(scope, channel.id.into(), EventKind::ChannelCreated, &payload).await?;
    for user in ids {
        tell_added(scope, user, channel.id, channel.last_seq).await?;
    }
    Ok(channel)
}

async fn tell_added(scope: &mut Scope<'_>, user: UserId, channel: ChannelId, seq: i64) -> Result<(), StoreError> {
    let payload = json!({"channel_id": channel, "last_seq": seq});
    events::append(scope, user.into(), EventKind::UserChannelAdded, &payload).await?;
    Ok(())
}

async fn list_channel(scope: &mut Scope<'_>, channel: &Channel) -> Result<(), StoreError> {
    let payload = json!({"id": channel.id, "name": channel.name, "topic": channel.topic, "purpose": channel.purpose,
        "archived": channel.archived_at.is_some()});
    events::append(scope, StreamId::WORKSPACE, EventKind::ChannelListed, &payload).await?;
    Ok(())
}

async fn open_direct(scope: &mut Scope<'_>, c: &command::OpenDirect) -> Applied {
    let role = caller_role(scope).await?;
    let mut people = c.user_ids.clone();
    people.push(scope.caller.user_id);
    people.sort_unstable();
    people.dedup();
    if people.len() > GROUP_MAX {
        return Err(invalid(format!("a group has at most {GROUP_MAX} people: make a private channel instead")).into());
    }
    let key = direct_key(&people);
    if let Some(found) = channels::by_direct_key(scope.db, &key).await? {
        return answer(&found);
    }
    permission::may_make_channels(role)?;
    let channel = Channel {
        id: ChannelId::new(scope.now),
        kind: if people.len() > 2 { ChannelKind::Group } else { ChannelKind::Direct },
        name: None,
        topic: String::new(),
        purpose: String::new(),
        posting: Posting::Everyone,
        created_by: scope.caller.user_id,
        created_at: scope.now,
        archived_at: None,
        last_seq: 0,
        last_message_no: 0,
    };
    events::create_stream(scope, channel.id.into()).await?;
    if !channels::insert(scope, &channel, Some(&key)).await? {
        // Another node made it in the meantime: the caller asks again and finds it.
        return Err(crate::domain::error::unavailable("the conversation is being opened: try again").into());
    }
    let people: Vec<_> = people.into_iter().map(|user| (user, ChannelRole::Member)).collect();
    answer(&found_channel(scope, channel, &people).await?)
}

async fn update_channel(scope: &mut Scope<'_>, c: &command::UpdateChannel) -> Applied {
    let configures = c.name.is_some() || c.posting.is_some();
    permit(scope, c.channel_id, if configures { Action::Configure } else { Action::SetTopic }).await?;
    let before = channels::by_id(scope.db, c.channel_id).await?.ok_or_else(|| not_found("channel"))?;
    let mut after = before.clone();
    let mut payload = json!({"user_id": scope.caller.user_id});
    if let Some(name) = &c.name {
        let name = channel_name(name)?;
        if channels::by_name(scope.db, &name).await?.is_some_and(|other| other.id != before.id) {
            return Err(conflict(format!("the channel name `{name}` is taken")).into());
        }
        payload["name"] = json!(name);
        after.name = Some(name);
    }
    if let Some(topic) = &c.topic {
        after.topic = user::one_line("topic", topic, 250)?;
        payload["topic"] = json!(after.topic);
    }
    if let Some(purpose) = &c.purpose {
        after.purpose = user::one_line("purpose", purpose, 250)?;
        payload["purpose"] = json!(after.purpose);
    }
    if let Some(posting) = c.posting {
        after.posting = posting;
        payload["posting"] = json!(posting);
    }
    if after == before {
        return nothing_to_do();
    }
    channels::update(scope, &after).await?;
    let seq = events::append(scope, c.channel_id.into(), EventKind::ChannelUpdated, &payload).await?;
    if after.kind == ChannelKind::Public {
        list_channel(scope, &after).await?;
    }
    done(seq)
}

async fn set_archived(scope: &mut Scope<'_>, id: ChannelId, archive: bool) -> Applied {
    permit(scope, id, Action::Archive).await?;
    let mut channel = channels::by_id(scope.db, id).await?.ok_or_else(|| not_found("channel"))?;
    if channel.archived_at.is_some() == archive {
        return nothing_to_do();
    }
    channel.archived_at = archive.then_some(scope.now);
    channels::update(scope, &channel).await?;
    let seq = if archive {
        let payload = json!({"user_id": scope.caller.user_id, "archived_at": scope.now});
        events::append(scope, id.into(), EventKind::ChannelArchived, &payload).await?
    } else {
        let payload = json!({"user_id": scope.caller.user_id});
        events::append(scope, id.into(), EventKind::ChannelUnarchived, &payload).await?
    };
    if channel.kind == ChannelKind::Public {
        list_channel(scope, &channel).await?;
    }
    done(seq)
}

async fn join(scope: &mut Scope<'_>, channel: ChannelId) -> Applied {
    permit(scope, channel, Action::Join).await?;
    come_in(scope, channel, scope.caller.user_id, None).await
}

async fn invite(scope: &mut Scope<'_>, c: &command::InviteMember) -> Applied {
    permit(scope, c.channel_id, Action::Invite).await?;
    if users::active_role(scope.db, c.user_id).await?.is_none() {
        return Err(not_found("user").into());
    }
    come_in(scope, c.channel_id, c.user_id, Some(scope.caller.user_id)).await
}

async fn come_in(scope: &mut Scope<'_>, channel: ChannelId, user: UserId, invited_by: Option<UserId>) -> Applied {
    if !channels::add_member(scope, channel, user, ChannelRole::Member).await? {
        return nothing_to_do();
    }
    let mut payload = json!({"user_id": user, "role": ChannelRole::Member});
    if let Some(by) = invited_by {
        payload["invited_by"] = json!(by);
    }
    let seq = events::append(scope, channel.into(), EventKind::MemberJoined, &payload).await?;
    tell_added(scope, user, channel, seq).await?;
    done(seq)
}

async fn leave(scope: &mut Scope<'_>, channel: ChannelId) -> Applied {
    let facts = permit(scope, channel, Action::Leave).await?;
    keep_an_owner(scope, channel, scope.caller.user_id, facts.who.channel_role).await?;
    go_out(scope, channel, scope.caller.user_id, None).await
}

async fn remove_member(scope: &mut Scope<'_>, c: &command::RemoveMember) -> Applied {
    let facts = permit(scope, c.channel_id, Action::RemoveMember).await?;
    let target = channels::facts(scope.db, c.user_id, c.channel_id).await?.and_then(|f| f.who.channel_role);
    let rank = facts.who.channel_role;
    if target > rank && facts.who.role < Role::Moderator {
        return Err(forbidden("you cannot remove somebody whose channel role is above yours").into());
    }
    keep_an_owner(scope, c.channel_id, c.user_id, target).await?;
    go_out(scope, c.channel_id, c.user_id, Some(scope.caller.user_id)).await
}

/// A channel whose last owner goes would be nobody's.
async fn keep_an_owner(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    user: UserId,
    role: Option<ChannelRole>,
) -> Result<(), StoreError> {
    if role != Some(ChannelRole::Owner) || channels::other_owners(scope.db, channel, user).await? > 0 {
        return Ok(());
    }
    let others = channels::members(scope.db, channel, None, 2).await?.iter().any(|m| m.user_id != user);
    if others { Err(conflict("the channel needs an owner: make somebody else one first").into()) } else { Ok(()) }
}

async fn go_out(scope: &mut Scope<'_>, channel: ChannelId, user: UserId, removed_by: Option<UserId>) -> Applied {
    if !channels::remove_member(scope, channel, user).await? {
        return nothing_to_do();
    }
    let mut payload = json!({"user_id": user});
    if let Some(by) = removed_by {
        payload["removed_by"] = json!(by);
    }
    let seq = events::append(scope, channel.into(), EventKind::MemberLeft, &payload).await?;
    let told = json!({"channel_id": channel});
    events::append(scope, user.into(), EventKind::UserChannelRemoved, &told).await?;
    done(seq)
}

async fn set_channel_role(scope: &mut Scope<'_>, c: &command::SetChannelRole) -> Applied {
    permit(scope, c.channel_id, Action::SetRole).await?;
    let before = channels::facts(scope.db, c.user_id, c.channel_id).await?.and_then(|f| f.who.channel_role);
    let Some(before) = before else { return Err(not_found("member").into()) };
    if before == c.role {
        return nothing_to_do();
    }
    if before == ChannelRole::Owner {
        keep_an_owner(scope, c.channel_id, c.user_id, Some(before)).await?;
    }
    channels::set_role(scope, c.channel_id, c.user_id, c.role).await?;
    let payload = json!({"user_id": c.user_id, "role": c.role, "changed_by": scope.caller.user_id});
    done(events::append(scope, c.channel_id.into(), EventKind::MemberRoleChanged, &payload).await?)
}

// ---- what is one's own ---------------------------------------------------------------------------------------------

async fn mark_read(scope: &mut Scope<'_>, c: &command::MarkRead) -> Applied {
    permit(scope, c.channel_id, Action::KeepOwn).await?;
    let before = own_membership(scope, c.channel_id).await?;
    let seq = c.seq.clamp(0, before.channel.last_seq);
    if seq <= before.read_seq {
        return answer(&before);
    }
    let number = messages::number_at(scope.db, c.channel_id, seq).await?;
    move_read_mark(scope, c.channel_id, seq, number).await
}

async fn mark_unread(scope: &mut Scope<'_>, c: &command::MarkUnread) -> Applied {
    permit(scope, c.channel_id, Action::KeepOwn).await?;
    let message = standing_message(scope, c.channel_id, c.seq).await?;
    let number =
        message.message_no.ok_or_else(|| invalid("a reply in a thread cannot be marked unread in the channel"))?;
    move_read_mark(scope, c.channel_id, c.seq - 1, number - 1).await
}

async fn own_membership(scope: &mut Scope<'_>, channel: ChannelId) -> Result<channel::Membership, StoreError> {
    let found = channels::membership(scope.db, scope.caller.user_id, channel).await?;
    Ok(found.ok_or_else(|| not_found("channel"))?)
}

async fn move_read_mark(scope: &mut Scope<'_>, channel: ChannelId, seq: i64, number: i64) -> Applied {
    personal::set_read(scope, channel, seq, number).await?;
    let after = own_membership(scope, channel).await?;
    let payload = json!({"channel_id": channel, "read_seq": after.read_seq, "unread_count": after.unread_count,
        "mention_count": after.mention_count});
    events::append(scope, scope.caller.user_id.into(), EventKind::UserRead, &payload).await?;
    answer(&after)
}

async fn set_saved(scope: &mut Scope<'_>, channel: ChannelId, seq: i64, saved: bool) -> Applied {
    permit(scope, channel, Action::KeepOwn).await?;
    if saved {
        standing_message(scope, channel, seq).await?;
    }
    if !personal::set_saved(scope, channel, seq, saved).await? {
        return nothing_to_do();
    }
    let payload = json!({"channel_id": channel, "message_seq": seq, "saved": saved});
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserSaved, &payload).await?)
}

async fn set_draft(scope: &mut Scope<'_>, c: &command::SetDraft) -> Applied {
    permit(scope, c.channel_id, Action::KeepOwn).await?;
    let draft = Draft {
        channel_id: c.channel_id,
        thread_seq: c.thread_seq.filter(|seq| *seq > 0),
        text: c.text.clone(),
        updated_at: scope.now,
    };
    personal::set_draft(scope, &draft).await?;
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserDraft, &draft).await?)
}

async fn set_preferences(scope: &mut Scope<'_>, c: &command::SetChannelPreferences) -> Applied {
    permit(scope, c.channel_id, Action::KeepOwn).await?;
    let (muted, notify) = personal::set_preferences(scope, c.channel_id, c.muted, c.notify).await?;
    let payload = json!({"channel_id": c.channel_id, "muted": muted, "notify": notify});
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserChannelPreferences, &payload).await?)
}

async fn follow(scope: &mut Scope<'_>, channel: ChannelId, thread_seq: i64, following: bool) -> Applied {
    permit(scope, channel, Action::KeepOwn).await?;
    let root = standing_message(scope, channel, thread_seq).await?;
    if root.thread_seq.is_some() {
        return Err(invalid("thread_seq is a reply: give the message that the thread hangs on").into());
    }
    personal::set_follow(scope, channel, thread_seq, scope.caller.user_id, following).await?;
    let payload = json!({"channel_id": channel, "thread_seq": thread_seq, "following": following});
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserThreadFollowed, &payload).await?)
}

async fn mark_thread_read(scope: &mut Scope<'_>, c: &command::MarkThreadRead) -> Applied {
    permit(scope, c.channel_id, Action::KeepOwn).await?;
    let root = standing_message(scope, c.channel_id, c.thread_seq).await?;
    let number = messages::reply_no_at(scope.db, c.channel_id, c.thread_seq, c.seq).await?;
    let seq = c.seq.min(root.last_reply_seq.unwrap_or(root.seq));
    if !personal::set_thread_read(scope, c.channel_id, c.thread_seq, seq, number).await? {
        return nothing_to_do();
    }
    let payload = json!({"channel_id": c.channel_id, "thread_seq": c.thread_seq, "read_seq": seq,
        "unread_count": root.reply_count - number});
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserThreadRead, &payload).await?)
}

// ---- users ---------------------------------------------------------------------------------------------------------

async fn existing_user(scope: &mut Scope<'_>, id: UserId) -> Result<User, StoreError> {
    events::lock(scope, StreamId::WORKSPACE).await?;
    Ok(users::by_id(scope.db, id).await?.ok_or_else(|| not_found("user"))?)
}

async fn store_user(scope: &mut Scope<'_>, user: &User) -> Applied {
    users::update(scope, user).await?;
    events::append(scope, StreamId::WORKSPACE, EventKind::UserUpdated, user).await?;
    answer(user)
}

async fn update_profile(scope: &mut Scope<'_>, c: &command::UpdateProfile) -> Applied {
    let mut user = existing_user(scope, scope.caller.user_id).await?;
    if let Some(name) = &c.display_name {
        user.display_name = user::one_line("display_name", name, 80)?;
        if user.display_name.is_empty() {
            return Err(invalid("display_name is empty").into());
        }
    }
    if let Some(title) = &c.title {
        user.title = user::one_line("title", title, 100)?;
    }
    if let Some(zone) = &c.timezone {
        user.timezone = user::one_line("timezone", zone, 64)?;
    }
    store_user(scope, &user).await
}

async fn set_status(scope: &mut Scope<'_>, c: &command::SetStatus) -> Applied {
    let mut user = existing_user(scope, scope.caller.user_id).await?;
    let text = user::one_line("text", &c.text, 100)?;
    let emoji = if c.emoji.is_empty() { String::new() } else { text::emoji(&c.emoji)?.to_owned() };
    if c.until.is_some_and(|until| until <= scope.now) {
        return Err(invalid("until is in the past").into());
    }
    let empty = text.is_empty() && emoji.is_empty();
    user.status = (!empty).then_some(Status { emoji, text, until: c.until });
    store_user(scope, &user).await
}

async fn set_presence(scope: &mut Scope<'_>, c: &command::SetPresence) -> Applied {
    let mut user = existing_user(scope, scope.caller.user_id).await?;
    if c.until.is_some_and(|until| until <= scope.now) {
        return Err(invalid("until is in the past").into());
    }
    user.presence_mode = c.mode;
    user.presence_until = c.until.filter(|_| c.mode != PresenceMode::Auto);
    store_user(scope, &user).await
}

async fn create_user(scope: &mut Scope<'_>, c: &command::CreateUser) -> Applied {
    permission::may_manage_users(caller_role(scope).await?)?;
    let user = make_user(scope, &c.name, c.display_name.as_deref(), c.role, c.bot).await?;
    answer(&user)
}

/// Makes an account: by an administrator, by an invitation, or the first one.
pub(super) async fn make_user(
    scope: &mut Scope<'_>,
    name: &str,
    display_name: Option<&str>,
    role: Role,
    bot: bool,
) -> Result<User, StoreError> {
    let name = user::handle(name)?;
    let display_name = user::one_line("display_name", display_name.unwrap_or(&name), 80)?;
    let user = User {
        id: UserId::new(scope.now),
        display_name: if display_name.is_empty() { name.clone() } else { display_name },
        name,
        title: String::new(),
        timezone: String::new(),
        role,
        bot,
        status: None,
        presence_mode: PresenceMode::Auto,
        presence_until: None,
        created_at: scope.now,
        deactivated_at: None,
    };
    if !users::insert(scope, &user).await? {
        return Err(conflict(format!("the user name `{}` is taken", user.name)).into());
    }
    events::create_stream(scope, user.id.into()).await?;
    events::append(scope, StreamId::WORKSPACE, EventKind::UserCreated, &user).await?;
    Ok(user)
}

async fn set_user_role(scope: &mut Scope<'_>, c: &command::SetUserRole) -> Applied {
    permission::may_manage_users(caller_role(scope).await?)?;
    let mut user = existing_user(scope, c.user_id).await?;
    if user.role == Role::Admin && c.role != Role::Admin {
        keep_an_admin(scope, &user).await?;
    }
    user.role = c.role;
    store_user(scope, &user).await
}

async fn set_active(scope: &mut Scope<'_>, id: UserId, active: bool) -> Applied {
    permission::may_manage_users(caller_role(scope).await?)?;
    let mut user = existing_user(scope, id).await?;
    if user.deactivated_at.is_none() == active {
        return answer(&user);
    }
    if !active {
        keep_an_admin(scope, &user).await?;
        tokens::revoke_all(scope.db, id, scope.now).await?;
    }
    user.deactivated_at = (!active).then_some(scope.now);
    store_user(scope, &user).await
}

async fn keep_an_admin(scope: &mut Scope<'_>, user: &User) -> Result<(), StoreError> {
    let last = user.role == Role::Admin && user.deactivated_at.is_none() && users::active_admins(scope.db).await? <= 1;
    if last {
        Err(conflict("the workspace needs an administrator: make somebody else one first").into())
    } else {
        Ok(())
    }
}

async fn create_invite(scope: &mut Scope<'_>, c: &command::CreateInvite) -> Applied {
    permission::may_manage_users(caller_role(scope).await?)?;
    let code = tokens::Secret::generate("cli_");
    let lifetime = c.expires_in_s.unwrap_or(7 * 86_400);
    let max_uses = c.max_uses.unwrap_or(1);
    if !(60..=30 * 86_400).contains(&lifetime) {
        return Err(invalid("expires_in_s is between 60 and 2,592,000 (30 days)").into());
    }
    if !(1..=1_000).contains(&max_uses) {
        return Err(invalid("max_uses is between 1 and 1,000").into());
    }
    let mut invite = Invite {
        id: InviteId::new(scope.now),
        code: None,
        role: c.role.unwrap_or(Role::Member),
        max_uses,
        uses: 0,
        expires_at: scope.now.plus_seconds(lifetime),
    };
    let (by, now) = (scope.caller.user_id, scope.now);
    tokens::insert_invite(scope.db, &invite, by, &tokens::Secret::hash(&code.0), now).await?;
    invite.code = Some(code.0);
    answer(&invite)
}

async fn revoke_invite(scope: &mut Scope<'_>, c: &command::RevokeInvite) -> Applied {
    permission::may_manage_users(caller_role(scope).await?)?;
    let now = scope.now;
    if !tokens::revoke_invite(scope.db, c.invite_id, now).await? {
        return Err(not_found("invite").into());
    }
    nothing_to_do()
}
