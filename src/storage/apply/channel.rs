//! Channels: how they are made and changed, and who is in them.

use std::collections::HashSet;

use serde_json::json;

use super::{Applied, Scope, answer, caller_role, done, nothing_to_do, permit};
use crate::domain::channel::{Channel, ChannelKind, ChannelRole, GROUP_MAX, Posting, channel_name, direct_key};
use crate::domain::command;
use crate::domain::error::{Code, Refusal, conflict, invalid, not_found};
use crate::domain::event::EventKind;
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::permission::{self, Action};
use crate::domain::user;
use crate::storage::{StoreError, channels, events, users};

/// Returns a channel of the caller's without a name and without events.
fn new_channel(scope: &Scope<'_>, kind: ChannelKind) -> Channel {
    Channel {
        id: ChannelId::new(scope.now),
        kind,
        name: None,
        topic: String::new(),
        purpose: String::new(),
        posting: Posting::Everyone,
        created_by: scope.caller.user_id,
        created_at: scope.now,
        archived_at: None,
        last_seq: 0,
        last_message_no: 0,
    }
}

pub(super) async fn create_channel(scope: &mut Scope<'_>, c: &command::CreateChannel) -> Applied {
    permission::may_make_channels(caller_role(scope).await?)?;
    let name = channel_name(&c.name)?;
    let kind = if c.private { ChannelKind::Private } else { ChannelKind::Public };
    let channel = Channel {
        name: Some(name.clone()),
        topic: user::one_line("topic", &c.topic, 250)?,
        purpose: user::one_line("purpose", &c.purpose, 250)?,
        ..new_channel(scope, kind)
    };
    let mut people: Vec<(UserId, ChannelRole)> = vec![(scope.caller.user_id, ChannelRole::Owner)];
    let mut named = HashSet::from([scope.caller.user_id]);
    people.extend(c.members.iter().filter(|user| named.insert(**user)).map(|user| (*user, ChannelRole::Member)));
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
    let ids: Vec<UserId> = people.iter().map(|p| p.0).collect();
    if !users::are_active(scope.db, &ids).await? {
        return Err(not_found("user").into());
    }
    channels::add_first_members(scope, channel.id, people).await?;
    let payload = json!({"id": channel.id, "kind": channel.kind, "name": channel.name, "topic": channel.topic,
        "purpose": channel.purpose, "posting": channel.posting, "created_by": channel.created_by,
        "created_at": channel.created_at, "members": ids});
    channel.last_seq = events::append(scope, channel.id.into(), EventKind::ChannelCreated, &payload).await?;
    let streams: Vec<StreamId> = ids.into_iter().map(StreamId::from).collect();
    tell_added(scope, &streams, channel.id, channel.last_seq).await?;
    Ok(channel)
}

async fn tell_added(
    scope: &mut Scope<'_>,
    people: &[StreamId],
    channel: ChannelId,
    seq: i64,
) -> Result<(), StoreError> {
    let payload = json!({"channel_id": channel, "last_seq": seq});
    events::append_to_each(scope, people, EventKind::UserChannelAdded, &payload).await
}

async fn list_channel(scope: &mut Scope<'_>, channel: &Channel) -> Result<(), StoreError> {
    let payload = json!({"id": channel.id, "name": channel.name, "topic": channel.topic, "purpose": channel.purpose,
        "archived": channel.archived_at.is_some()});
    events::append(scope, StreamId::WORKSPACE, EventKind::ChannelListed, &payload).await?;
    Ok(())
}

pub(super) async fn open_direct(scope: &mut Scope<'_>, c: &command::OpenDirect) -> Applied {
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
    let channel = new_channel(scope, if people.len() > 2 { ChannelKind::Group } else { ChannelKind::Direct });
    events::create_stream(scope, channel.id.into()).await?;
    if !channels::insert(scope, &channel, Some(&key)).await? {
        // Another node made it in the meantime: the caller asks again and finds it.
        return Err(crate::domain::error::unavailable("the conversation is being opened: try again").into());
    }
    let people: Vec<_> = people.into_iter().map(|user| (user, ChannelRole::Member)).collect();
    answer(&found_channel(scope, channel, &people).await?)
}

pub(super) async fn update_channel(scope: &mut Scope<'_>, c: &command::UpdateChannel) -> Applied {
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

pub(super) async fn set_archived(scope: &mut Scope<'_>, id: ChannelId, archive: bool) -> Applied {
    permit(scope, id, Action::Archive).await?;
    let mut channel = channels::by_id(scope.db, id).await?.ok_or_else(|| not_found("channel"))?;
    if channel.archived_at.is_some() == archive {
        return nothing_to_do();
    }
    channel.archived_at = archive.then_some(scope.now);
    channels::update(scope, &channel).await?;
    let seq = if archive {
        let payload = json!({"user_id": scope.actor(), "archived_at": scope.now});
        events::append(scope, id.into(), EventKind::ChannelArchived, &payload).await?
    } else {
        let payload = json!({"user_id": scope.actor()});
        events::append(scope, id.into(), EventKind::ChannelUnarchived, &payload).await?
    };
    if channel.kind == ChannelKind::Public {
        list_channel(scope, &channel).await?;
    }
    done(seq)
}

pub(super) async fn join(scope: &mut Scope<'_>, channel: ChannelId) -> Applied {
    permit(scope, channel, Action::Join).await?;
    come_in(scope, channel, scope.caller.user_id, None).await
}

pub(super) async fn invite(scope: &mut Scope<'_>, c: &command::InviteMember) -> Applied {
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
    tell_added(scope, &[user.into()], channel, seq).await?;
    done(seq)
}

pub(super) async fn leave(scope: &mut Scope<'_>, channel: ChannelId) -> Applied {
    let facts = permit(scope, channel, Action::Leave).await?;
    let user = scope.caller.user_id;
    if facts.who.channel_role == Some(ChannelRole::Owner) {
        keep_an_owner_for_others(scope, channel, user).await?;
    }
    go_out(scope, channel, user, None).await
}

pub(super) async fn remove_member(scope: &mut Scope<'_>, c: &command::RemoveMember) -> Applied {
    let facts = permit(scope, c.channel_id, Action::RemoveMember).await?;
    // The rank counts even if the account is deactivated, for it may come back; but it looks after nothing meanwhile.
    let target = channels::rank(scope.db, c.channel_id, c.user_id).await?;
    permission::may_remove(facts.who, target.map(|(role, _)| role))?;
    if target == Some((ChannelRole::Owner, true)) {
        keep_an_owner_for_others(scope, c.channel_id, c.user_id).await?;
    }
    go_out(scope, c.channel_id, c.user_id, Some(scope.caller.user_id)).await
}

/// A channel whose last owner is one no longer would be nobody's: nobody could change it.
async fn keep_an_owner(scope: &mut Scope<'_>, channel: ChannelId, owner: UserId) -> Result<(), StoreError> {
    if channels::has_another_owner(scope.db, channel, owner).await? {
        return Ok(());
    }
    Err(conflict("the channel needs an owner: make somebody else one first").into())
}

/// An owner goes: only who is left alone leaves nobody behind.
async fn keep_an_owner_for_others(scope: &mut Scope<'_>, channel: ChannelId, owner: UserId) -> Result<(), StoreError> {
    if !channels::has_another_member(scope.db, channel, owner).await? {
        return Ok(());
    }
    keep_an_owner(scope, channel, owner).await
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

pub(super) async fn set_channel_role(scope: &mut Scope<'_>, c: &command::SetChannelRole) -> Applied {
    permit(scope, c.channel_id, Action::SetRole).await?;
    let before = channels::facts(scope.db, c.user_id, c.channel_id).await?.and_then(|f| f.who.channel_role);
    let Some(before) = before else {
        return Err(Refusal::new(Code::NotFound, "this user is no active member of the channel").into());
    };
    if before == c.role {
        return nothing_to_do();
    }
    if before == ChannelRole::Owner {
        keep_an_owner(scope, c.channel_id, c.user_id).await?;
    }
    channels::set_role(scope, c.channel_id, c.user_id, c.role).await?;
    let payload = json!({"user_id": c.user_id, "role": c.role, "changed_by": scope.actor()});
    done(events::append(scope, c.channel_id.into(), EventKind::MemberRoleChanged, &payload).await?)
}
