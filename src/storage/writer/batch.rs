//! What a batch holds: which streams its writes change, which of them go together, and how one is applied under its key.

use super::super::accounts::{self, Account};
use super::super::apply::{self, Scope};
use super::super::{Db, StoreError, events, idempotency};
use super::{News, Reply, Work, Write};
use crate::domain::command::{Command, SendMessage};
use crate::domain::error::Refusal;
use crate::domain::id::{StreamId, UserId};

/// From how many members on the making of a channel ends its batch, so that what came before is not kept waiting by more
/// than one of them.
const HEAVY: usize = 50;

/// Returns how many of the writes go into one commit: up to the first that is much work, and that one.
pub(super) fn until_heavy(writes: &[Write]) -> usize {
    let is_heavy = |write: &Write| matches!(&write.work, Work::Command(Command::CreateChannel(create)) if create.members.len() >= HEAVY);
    writes.iter().position(is_heavy).map_or(writes.len(), |at| at + 1)
}

/// Locks the streams that a batch changes, in the order in which every node does that, so that none waits for another in a
/// circle. One write alone that changes one stream begins with that anyway.
pub(super) async fn lock_streams(db: &mut Db, batch: &[Write]) -> Result<(), StoreError> {
    let mut streams: Vec<StreamId> = batch.iter().flat_map(streams_of).collect();
    streams.sort_unstable();
    streams.dedup();
    if streams.len() > 1 || batch.len() > 1 || batch.iter().any(|write| top_level(write).is_some()) {
        events::lock_all(db, &streams).await?;
    }
    Ok(())
}

/// Returns the streams that a write appends to, as far as it says itself.
fn streams_of(write: &Write) -> Vec<StreamId> {
    let caller = write.caller.user_id;
    let command = match &write.work {
        Work::Command(command) => command,
        // The rest of them make somebody, or append nothing.
        Work::Account(Account::EndStatuses) => return vec![StreamId::WORKSPACE],
        Work::Account(_) | Work::Once { .. } => return Vec::new(),
    };
    let mut streams: Vec<StreamId> = vec![command.stream(caller)];
    match command {
        Command::CreateChannel(c) => {
            streams.push(caller.into());
            streams.extend(c.members.iter().copied().map(StreamId::from));
        }
        Command::OpenDirect(c) => streams.extend(c.user_ids.iter().copied().map(StreamId::from)),
        Command::JoinChannel(_) | Command::LeaveChannel(_) => streams.push(caller.into()),
        Command::InviteMember(c) => streams.push(c.user_id.into()),
        Command::RemoveMember(c) => streams.push(c.user_id.into()),
        Command::UpdateChannel(_) | Command::ArchiveChannel(_) | Command::UnarchiveChannel(_) => {
            streams.push(StreamId::WORKSPACE);
        }
        _ => {}
    }
    streams
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
/// another node did it under the same key meanwhile.
pub(super) async fn one(
    db: &mut Db,
    now: crate::clock::Timestamp,
    write: &Write,
    news: &mut News,
) -> Result<Option<Result<Reply, Refusal>>, StoreError> {
    db.run("SAVEPOINT item").await?;
    let mut scope = Scope { db, now, caller: write.caller, events: Vec::new(), revoked: Vec::new() };
    let result = Box::pin(keyed(&mut scope, write)).await;
    let Scope { events, revoked, .. } = scope;
    let refused = match result {
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
    match (&refused, key(write)) {
        // What stands in its way may be itself: another node has done it meanwhile.
        (Some(_), Some((key, hash))) if is_kept(db, write.caller.user_id, key, &hash).await? => Ok(None),
        _ => Ok(refused.map(Err)),
    }
}

async fn is_kept(db: &mut Db, user: UserId, key: &str, hash: &[u8; 32]) -> Result<bool, StoreError> {
    match idempotency::find(db, user, key, hash).await {
        Err(StoreError::Refused(_)) => Ok(false),
        found => Ok(found?.is_some()),
    }
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
