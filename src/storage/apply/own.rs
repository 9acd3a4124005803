//! What is one's own: read marks, saved messages, drafts, preferences, followed threads.

use serde_json::json;

use super::{Applied, Scope, answer, done, nothing_to_do, permit, permit_own, standing_message};
use crate::domain::channel;
use crate::domain::command;
use crate::domain::error::{conflict, invalid, not_found};
use crate::domain::event::EventKind;
use crate::domain::id::ChannelId;
use crate::domain::message::Message;
use crate::domain::permission::Action;
use crate::storage::personal::{Draft, Move};
use crate::storage::{StoreError, channels, events, messages, personal};

pub(super) async fn mark_read(scope: &mut Scope<'_>, c: &command::MarkRead) -> Applied {
    permit_own(scope, c.channel_id).await?;
    let before = own_membership(scope, c.channel_id).await?;
    let seq = c.seq.clamp(0, before.channel.last_seq);
    if seq <= before.read_seq {
        return answer(&before);
    }
    let number = messages::number_at(scope.db, c.channel_id, seq).await?;
    move_read_mark(scope, c.channel_id, (seq, number), Move::Forward).await
}

pub(super) async fn mark_unread(scope: &mut Scope<'_>, c: &command::MarkUnread) -> Applied {
    permit_own(scope, c.channel_id).await?;
    let message = standing_message(scope, c.channel_id, c.seq).await?;
    let number =
        message.message_no.ok_or_else(|| invalid("a reply in a thread cannot be marked unread in the channel"))?;
    move_read_mark(scope, c.channel_id, (c.seq - 1, number - 1), Move::Anywhere).await
}

async fn own_membership(scope: &mut Scope<'_>, channel: ChannelId) -> Result<channel::Membership, StoreError> {
    let found = channels::membership(scope.db, scope.caller.user_id, channel).await?;
    Ok(found.ok_or_else(|| not_found("channel"))?)
}

async fn move_read_mark(scope: &mut Scope<'_>, channel: ChannelId, mark: (i64, i64), to: Move) -> Applied {
    let moved = personal::set_read(scope, channel, mark, to).await?;
    let after = own_membership(scope, channel).await?;
    if !moved {
        // They have sent something meanwhile, and read on by that.
        return answer(&after);
    }
    let payload = json!({"channel_id": channel, "read_seq": after.read_seq, "unread_count": after.unread_count,
        "mention_count": after.mention_count});
    events::append(scope, scope.caller.user_id.into(), EventKind::UserRead, &payload).await?;
    answer(&after)
}

pub(super) async fn set_saved(scope: &mut Scope<'_>, channel: ChannelId, seq: i64, saved: bool) -> Applied {
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

pub(super) async fn set_draft(scope: &mut Scope<'_>, c: &command::SetDraft) -> Applied {
    permit_own(scope, c.channel_id).await?;
    let draft = Draft {
        channel_id: c.channel_id,
        thread_seq: c.thread_seq.filter(|seq| *seq > 0),
        text: c.text.clone(),
        updated_at: scope.now,
    };
    let user = scope.caller.user_id;
    personal::remove_drafts(scope, user, c.channel_id, Some(draft.thread_seq.unwrap_or(0))).await?;
    let seq = events::append(scope, user.into(), EventKind::UserDraft, &draft).await?;
    if !draft.text.is_empty() {
        personal::insert_draft(scope, &draft, seq).await?;
    }
    done(seq)
}

pub(super) async fn set_preferences(scope: &mut Scope<'_>, c: &command::SetChannelPreferences) -> Applied {
    permit_own(scope, c.channel_id).await?;
    let (muted, notify) = personal::set_preferences(scope, c.channel_id, c.muted, c.notify).await?;
    let payload = json!({"channel_id": c.channel_id, "muted": muted, "notify": notify});
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserChannelPreferences, &payload).await?)
}

/// Returns the message that a thread hangs on, even a deleted one: the replies are there still, to be read and left alone.
async fn root_message(scope: &mut Scope<'_>, channel: ChannelId, thread_seq: i64) -> Result<Message, StoreError> {
    let root = messages::bare(scope.db, channel, thread_seq).await?.ok_or_else(|| not_found("message"))?;
    if root.thread_seq.is_some() {
        return Err(invalid("thread_seq is a reply: give the message that the thread hangs on").into());
    }
    Ok(root)
}

pub(super) async fn follow(scope: &mut Scope<'_>, channel: ChannelId, thread_seq: i64, following: bool) -> Applied {
    permit(scope, channel, Action::KeepOwn).await?;
    let root = root_message(scope, channel, thread_seq).await?;
    if following && root.deleted_at.is_some() && root.reply_count == 0 {
        return Err(not_found("message").into());
    }
    personal::set_follow(scope, channel, thread_seq, scope.caller.user_id, following).await?;
    let payload = json!({"channel_id": channel, "thread_seq": thread_seq, "following": following});
    done(events::append(scope, scope.caller.user_id.into(), EventKind::UserThreadFollowed, &payload).await?)
}

pub(super) async fn mark_thread_read(scope: &mut Scope<'_>, c: &command::MarkThreadRead) -> Applied {
    permit_own(scope, c.channel_id).await?;
    let root = root_message(scope, c.channel_id, c.thread_seq).await?;
    let seq = c.seq.min(root.last_reply_seq.unwrap_or(root.seq));
    let number = messages::reply_no_at(scope.db, c.channel_id, c.thread_seq, seq).await?;
    if !personal::move_thread_mark(scope, c.channel_id, c.thread_seq, (seq, number), Move::Forward).await? {
        return nothing_to_do();
    }
    tell_thread_read(scope, c.channel_id, c.thread_seq).await
}

pub(super) async fn mark_thread_unread(scope: &mut Scope<'_>, c: &command::MarkThreadUnread) -> Applied {
    permit_own(scope, c.channel_id).await?;
    root_message(scope, c.channel_id, c.thread_seq).await?;
    let (seq, number) = if c.seq == c.thread_seq {
        (c.seq, 0)
    } else {
        let reply = standing_message(scope, c.channel_id, c.seq).await?;
        let number = reply.reply_no.filter(|_| reply.thread_seq == Some(c.thread_seq));
        (c.seq - 1, number.ok_or_else(|| invalid("seq is no reply in this thread"))? - 1)
    };
    if !personal::move_thread_mark(scope, c.channel_id, c.thread_seq, (seq, number), Move::Anywhere).await? {
        return Err(conflict("you do not follow this thread: follow it first").into());
    }
    tell_thread_read(scope, c.channel_id, c.thread_seq).await
}

async fn tell_thread_read(scope: &mut Scope<'_>, channel: ChannelId, thread_seq: i64) -> Applied {
    let user = scope.caller.user_id;
    let thread = personal::thread(scope.db, user, channel, thread_seq).await?.ok_or_else(|| not_found("message"))?;
    let payload = json!({"channel_id": channel, "thread_seq": thread_seq, "read_seq": thread.read_seq,
        "unread_count": thread.unread_count, "mention_count": thread.mention_count});
    done(events::append(scope, user.into(), EventKind::UserThreadRead, &payload).await?)
}
