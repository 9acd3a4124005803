//! Messages: what is said, what is said of it, and what is pinned.

use serde::Serialize;
use serde_json::json;

use super::{Applied, Scope, answer, done, nothing_to_do, permit, standing_message};
use crate::clock::Timestamp;
use crate::domain::command;
use crate::domain::error::{conflict, not_found};
use crate::domain::event::EventKind;
use crate::domain::id::{ChannelId, MessageId, StreamId, UserId};
use crate::domain::message::{Mentions, Message, Sent};
use crate::domain::permission::{self, Action};
use crate::domain::text;
use crate::storage::personal::Move;
use crate::storage::{Db, StoreError, channels, events, messages, on, personal, users};

/// The most different emoji on one message, and the most pins in one channel.
const REACTIONS_MAX: i64 = 50;
const PINS_MAX: i64 = 200;

/// The payload of `message.created`.
#[derive(Serialize)]
pub(in crate::storage) struct Created<'a> {
    pub(in crate::storage) id: MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::storage) message_no: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::storage) thread_seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::storage) reply_no: Option<i64>,
    pub(in crate::storage) author_id: UserId,
    pub(in crate::storage) text: &'a str,
    #[serde(skip_serializing_if = "Mentions::is_empty")]
    pub(in crate::storage) mentions: &'a Mentions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::storage) client_msg_id: Option<&'a str>,
    pub(in crate::storage) created_at: Timestamp,
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

pub(in crate::storage) async fn find_mentions(
    db: &mut Db,
    channel: ChannelId,
    text: &str,
) -> Result<Mentions, StoreError> {
    let found = text::mentions(text);
    let users = users::members_named(db, channel, &found.names).await?;
    Ok(Mentions { users, channel: found.channel, here: found.here })
}

/// Posts one message: a reply, or a top-level message that could not go with the others.
pub(super) async fn send_message(scope: &mut Scope<'_>, c: &command::SendMessage) -> Applied {
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
    messages::insert_one(scope, &message, last_no).await?;
    messages::add_mentions(scope, &message).await?;
    if let (Some(thread), Some(number)) = (c.thread_seq, reply_no) {
        follow_participants(scope, &message, thread, number).await?;
    }
    if top_level {
        personal::set_read(scope, c.channel_id, (seq, last_no), Move::Forward).await?;
    }
    events::append_numbered(scope, c.channel_id.into(), seq, EventKind::MessageCreated, &Created::of(&message)).await?;
    answer(&Sent::new(c.channel_id, seq, message.id, scope.now))
}

async fn take_numbers(scope: &mut Scope<'_>, stream: StreamId, messages: i64) -> Result<(i64, i64), StoreError> {
    let sql = "UPDATE streams SET last_seq = last_seq + 1, last_message_no = last_message_no + $2 WHERE id = $1 \
               RETURNING last_seq, last_message_no";
    Ok(on!(scope.db, db => sqlx::query_as(sql).bind(stream).bind(messages).fetch_one(db).await?))
}

/// The author of a thread's first message, whoever replies, and whoever is named follow it from then on.
async fn follow_participants(
    scope: &mut Scope<'_>,
    reply: &Message,
    thread: i64,
    number: i64,
) -> Result<(), StoreError> {
    let root = messages::bare(scope.db, reply.channel_id, thread).await?.ok_or_else(|| not_found("thread"))?;
    let still_in = channels::facts(scope.db, root.author_id, reply.channel_id).await?;
    if still_in.is_some_and(|f| f.who.channel_role.is_some()) {
        personal::follow_by_default(scope, reply.channel_id, thread, root.author_id, (thread, 0)).await?;
    }
    for user in &reply.mentions.users {
        personal::follow_by_default(scope, reply.channel_id, thread, *user, (reply.seq - 1, number - 1)).await?;
    }
    personal::follow_by_default(scope, reply.channel_id, thread, reply.author_id, (reply.seq, number)).await?;
    personal::move_thread_mark(scope, reply.channel_id, thread, (reply.seq, number), Move::Forward).await?;
    Ok(())
}

pub(super) async fn edit_message(scope: &mut Scope<'_>, c: &command::EditMessage) -> Applied {
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

pub(super) async fn delete_message(scope: &mut Scope<'_>, c: &command::DeleteMessage) -> Applied {
    let facts = permit(scope, c.channel_id, Action::Read).await?;
    let message = standing_message(scope, c.channel_id, c.seq).await?;
    let own = message.author_id == scope.caller.user_id;
    permission::allows(facts.who, if own { Action::DeleteOwn } else { Action::DeleteOthers }, facts.channel)?;
    let payload = json!({"message_seq": c.seq, "deleted_by": scope.caller.user_id, "deleted_at": scope.now});
    let seq = events::append(scope, c.channel_id.into(), EventKind::MessageDeleted, &payload).await?;
    forget_in_log(scope, &message).await?;
    messages::delete(scope, &message).await?;
    done(seq)
}

/// Empties the deleted text wherever the event log has it, so that nobody resumes into it.
async fn forget_in_log(scope: &mut Scope<'_>, message: &Message) -> Result<(), StoreError> {
    let emptied = Message { text: String::new(), mentions: Mentions::default(), ..message.clone() };
    let stream = StreamId::from(message.channel_id);
    events::rewrite(scope, stream, message.seq, &Created::of(&emptied)).await?;
    let edited = json!({"message_seq": message.seq, "text": ""}).to_string();
    let sql = "UPDATE events SET payload = $3 WHERE stream_id = $1 AND seq IN \
               (SELECT edit_seq FROM edits WHERE channel_id = $1 AND seq = $2)";
    on!(scope.db, db => { sqlx::query(sql).bind(stream).bind(message.seq).bind(edited).execute(db).await?; });
    Ok(())
}

pub(super) async fn add_reaction(scope: &mut Scope<'_>, c: &command::AddReaction) -> Applied {
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

pub(super) async fn remove_reaction(scope: &mut Scope<'_>, c: &command::RemoveReaction) -> Applied {
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

pub(super) async fn add_pin(scope: &mut Scope<'_>, c: &command::AddPin) -> Applied {
    permit(scope, c.channel_id, Action::Pin).await?;
    standing_message(scope, c.channel_id, c.seq).await?;
    if !messages::pin(scope, c.channel_id, c.seq).await? {
        return nothing_to_do();
    }
    // Counted behind it: a pin that is there already needs no room. A refusal takes this one back.
    if messages::pin_count(scope.db, c.channel_id).await? > PINS_MAX {
        return Err(conflict(format!("a channel has at most {PINS_MAX} pins: remove one first")).into());
    }
    let payload = json!({"message_seq": c.seq, "user_id": scope.caller.user_id});
    done(events::append(scope, c.channel_id.into(), EventKind::PinAdded, &payload).await?)
}

pub(super) async fn remove_pin(scope: &mut Scope<'_>, c: &command::RemovePin) -> Applied {
    permit(scope, c.channel_id, Action::Pin).await?;
    if !messages::unpin(scope, c.channel_id, c.seq).await? {
        return nothing_to_do();
    }
    let payload = json!({"message_seq": c.seq, "user_id": scope.caller.user_id});
    done(events::append(scope, c.channel_id.into(), EventKind::PinRemoved, &payload).await?)
}
