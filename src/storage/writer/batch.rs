//! What a batch holds: which streams and places its writes change, which of them go together, and how one is applied under its key.

use std::collections::VecDeque;

use super::super::accounts::{self, Account};
use super::super::apply::{self, Scope};
use super::super::{Db, StoreError, channels, events, idempotency};
use super::{Claim, News, Reply, Work, Write};
use crate::domain::command::{Command, SendMessage};
use crate::domain::error::Refusal;
use crate::domain::id::{ChannelId, StreamId, UserId};

/// From how many members on the making of a channel ends its batch, so that what came before is not kept waiting by more
/// than one of them.
const HEAVY: usize = 50;

/// Returns how many of the writes go into one commit: at most so many, and no more behind the first that is much work.
pub(super) fn until_heavy(writes: &VecDeque<Write>, most: usize) -> usize {
    let is_heavy = |write: &Write| matches!(&write.work, Work::Command(Command::CreateChannel(create)) if create.members.len() >= HEAVY);
    writes.iter().take(most).position(is_heavy).map_or(writes.len().min(most), |at| at + 1)
}

/// Locks the streams that a batch changes, and then the places in channels, in the order in which every node does that, so
/// that none waits for another in a circle. One write alone that changes one stream begins with that anyway.
pub(super) async fn lock_all(db: &mut Db, batch: &[Write]) -> Result<(), StoreError> {
    let mut streams: Vec<StreamId> = batch.iter().flat_map(streams_of).collect();
    streams.sort_unstable();
    streams.dedup();
    if streams.len() > 1 || batch.len() > 1 || batch.iter().any(|write| top_level(write).is_some()) {
        events::lock_all(db, &streams).await?;
    }
    let mut places: Vec<(ChannelId, UserId)> = batch.iter().filter_map(place_of).collect();
    places.sort_unstable();
    places.dedup();
    if places.len() > 1 {
        channels::lock_places(db, &places).await?;
    }
    Ok(())
}

/// Returns the member whose place in a channel a write changes: what they have read, what they want to hear of it, their role.
fn place_of(write: &Write) -> Option<(ChannelId, UserId)> {
    let Work::Command(command) = &write.work else { return None };
    let caller = write.caller.user_id;
    match command {
        Command::SendMessage(c) => Some((c.channel_id, caller)),
        Command::MarkRead(c) => Some((c.channel_id, caller)),
        Command::MarkUnread(c) => Some((c.channel_id, caller)),
        Command::SetChannelPreferences(c) => Some((c.channel_id, caller)),
        Command::SetChannelRole(c) => Some((c.channel_id, c.user_id)),
        _ => None,
    }
}

/// Returns the streams that a write appends to or locks, as far as it says itself.
fn streams_of(write: &Write) -> Vec<StreamId> {
    let caller = write.caller.user_id;
    let command = match &write.work {
        Work::Command(command) => command,
        Work::Account(account) => return workspace_of(account),
        Work::Once { account, .. } => return workspace_of(account),
    };
    let mut streams: Vec<StreamId> = vec![command.stream(caller)];
    match command {
        Command::CreateChannel(c) => {
            streams.push(caller.into());
            streams.extend(c.members.iter().copied().map(StreamId::from));
        }
        Command::OpenDirect(c) => streams.extend(c.user_ids.iter().copied().map(StreamId::from)),
        Command::JoinChannel(_) | Command::LeaveChannel(_) => streams.push(caller.into()),
        // With a reply one has read the thread up to there, as by `mark_thread_read`, which locks no channel.
        Command::SendMessage(c) if c.thread_seq.is_some() => streams.push(caller.into()),
        Command::AddSaved(c) => streams.push(c.channel_id.into()),
        Command::RemoveSaved(c) => streams.push(c.channel_id.into()),
        Command::FollowThread(c) => streams.push(c.channel_id.into()),
        Command::UnfollowThread(c) => streams.push(c.channel_id.into()),
        Command::InviteMember(c) => streams.push(c.user_id.into()),
        Command::RemoveMember(c) => streams.push(c.user_id.into()),
        Command::UpdateChannel(_) | Command::ArchiveChannel(_) | Command::UnarchiveChannel(_) => {
            streams.push(StreamId::WORKSPACE);
        }
        _ => {}
    }
    streams
}

/// Returns the workspace's stream if account work makes or changes somebody.
fn workspace_of(account: &Account) -> Vec<StreamId> {
    match account {
        Account::SignUp { .. } | Account::Add { .. } | Account::EndStatuses => vec![StreamId::WORKSPACE],
        _ => Vec::new(),
    }
}

pub(super) fn top_level(write: &Write) -> Option<&SendMessage> {
    match &write.work {
        Work::Command(Command::SendMessage(send)) if send.thread_seq.is_none() => Some(send),
        _ => None,
    }
}

/// Returns the channel whose members or rules a write may change.
pub(super) fn changed_room(write: &Write) -> Option<StreamId> {
    let Work::Command(command) = &write.work else { return None };
    let changes = matches!(
        command,
        Command::JoinChannel(_)
            | Command::LeaveChannel(_)
            | Command::InviteMember(_)
            | Command::RemoveMember(_)
            | Command::SetChannelRole(_)
            | Command::UpdateChannel(_)
            | Command::ArchiveChannel(_)
            | Command::UnarchiveChannel(_)
    );
    changes.then(|| command.stream(write.caller.user_id))
}

/// Applies one write within a savepoint of its own. Nothing is done and nothing returned if it is to be tried again, because
/// another node did it under the same key meanwhile, or if nobody waits for it any more.
pub(super) async fn one(
    db: &mut Db,
    now: crate::clock::Timestamp,
    write: &Write,
    news: &mut News,
) -> Result<Option<Result<Reply, Refusal>>, StoreError> {
    if write.answer.is_over() {
        return Ok(None);
    }
    db.run("SAVEPOINT item").await?;
    let mut scope = Scope { db, now, caller: write.caller, events: Vec::new(), revoked: Vec::new() };
    let result = Box::pin(keyed(&mut scope, write)).await;
    let Scope { events, revoked, .. } = scope;
    let refused = match result {
        Ok(Some(_)) if write.answer.is_taken_back() => None,
        Ok(Some(reply)) => {
            db.run("RELEASE SAVEPOINT item").await?;
            news.events.extend(events);
            news.revoked.extend(revoked);
            return Ok(Some(Ok(reply)));
        }
        Ok(None) => None,
        Err(StoreError::Refused(refusal)) => Some(refusal),
        Err(error) => return Err(error),
    };
    db.run("ROLLBACK TO SAVEPOINT item").await?;
    db.run("RELEASE SAVEPOINT item").await?;
    match refused {
        Some(refusal) => settle(db, now, write, refusal).await,
        None => Ok(None),
    }
}

/// Returns a refusal as the answer to a write, kept under its key if this node writes beside the channel's owner. Nothing, if the
/// write is to be tried again: what stood in its way was itself, for another node has done it meanwhile.
pub(super) async fn settle(
    db: &mut Db,
    now: crate::clock::Timestamp,
    write: &Write,
    refusal: Refusal,
) -> Result<Option<Result<Reply, Refusal>>, StoreError> {
    let (user, Some((key, hash))) = (write.caller.user_id, key(write)) else { return Ok(Some(Err(refusal))) };
    match idempotency::find(db, user, key, &hash).await {
        Ok(Some(_)) => return Ok(None),
        Ok(None) => {}
        Err(StoreError::Refused(first)) => return Ok(Some(Err(first))),
        Err(error) => return Err(error),
    }
    let is_kept = write.claim == Claim::Beside && !refusal.code.temporary();
    if is_kept && !idempotency::keep_refusal(db, user, key, &hash, &refusal, now).await? {
        return Ok(None);
    }
    Ok(Some(Err(refusal)))
}

/// Returns a write's key, if it has one, and what the key is bound to.
fn key(write: &Write) -> Option<(&str, [u8; 32])> {
    match (&write.work, &write.key) {
        (Work::Once { key, hash, .. }, _) => Some((key, *hash)),
        (Work::Command(command), Some(key)) => Some((key, idempotency::body_hash(command))),
        _ => None,
    }
}

/// Carries out what its key was not used for yet; nothing, if another node used it at the same time.
async fn keyed(scope: &mut Scope<'_>, write: &Write) -> Result<Option<Reply>, StoreError> {
    let Some((key, hash)) = key(write) else {
        return Ok(Some(Reply { json: carry_out(scope, &write.work).await?, duplicate: false }));
    };
    if let Some(first) = idempotency::find(scope.db, write.caller.user_id, key, &hash).await? {
        return Ok(Some(Reply::repeated(first)));
    }
    let json = carry_out(scope, &write.work).await?;
    let kept = without_secret(&write.work, &json);
    let first = idempotency::keep(scope.db, write.caller.user_id, key, &hash, &kept, scope.now).await?;
    Ok(first.then_some(Reply { json, duplicate: false }))
}

async fn carry_out(scope: &mut Scope<'_>, work: &Work) -> Result<String, StoreError> {
    match work {
        Work::Command(command) => apply::apply(scope, command).await,
        Work::Account(account) => accounts::apply(scope, account).await,
        Work::Once { account, .. } => accounts::apply(scope, account).await,
    }
}

/// An invitation's code is shown once; a repeat gets the invitation without it.
fn without_secret(work: &Work, json: &str) -> String {
    if !matches!(work, Work::Command(Command::CreateInvite(_))) {
        return json.to_owned();
    }
    let mut invite: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    if let Some(fields) = invite.as_object_mut() {
        fields.remove("code");
    }
    invite.to_string()
}
