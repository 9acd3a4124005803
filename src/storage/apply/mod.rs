//! What each command does to the store, inside the transaction that the writer opened.
//!
//! A command reads what decides, asks [`crate::domain::permission`], changes rows, and appends events. Everything here
//! happens or nothing does; what it returns is told to anybody only after the commit. Top-level messages take the short
//! way of [`super::send`], many at once.

mod channel;
mod message;
mod own;
mod user;

use serde::Serialize;

use super::channels::{self, Facts};
use super::tokens::Revoked;
use super::{Db, StoreError, events, messages, users};
use crate::clock::Timestamp;
use crate::domain::command::{Command, Done, Principal};
use crate::domain::error::{forbidden, not_found};
use crate::domain::event::Event;
use crate::domain::id::{ChannelId, UserId};
use crate::domain::message::Message;
use crate::domain::permission::{self, Action};
use crate::domain::user::Role;
pub(super) use message::{Created, find_mentions};
pub(super) use user::make_user;

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
    /// The sign-ins that were ended.
    pub(super) revoked: Vec<Revoked>,
}

impl Scope<'_> {
    /// Returns who an event is by: nobody, if the server acts by itself or the operator does.
    pub(super) fn actor(&self) -> Option<UserId> {
        (self.caller != super::accounts::SYSTEM).then_some(self.caller.user_id)
    }
}

type Applied = Result<String, StoreError>;

/// Carries out a command and returns its answer as JSON.
pub(super) async fn apply(scope: &mut Scope<'_>, command: &Command) -> Applied {
    match command {
        Command::SendMessage(c) => message::send_message(scope, c).await,
        Command::EditMessage(c) => message::edit_message(scope, c).await,
        Command::DeleteMessage(c) => message::delete_message(scope, c).await,
        Command::AddReaction(c) => message::add_reaction(scope, c).await,
        Command::RemoveReaction(c) => message::remove_reaction(scope, c).await,
        Command::AddPin(c) => message::add_pin(scope, c).await,
        Command::RemovePin(c) => message::remove_pin(scope, c).await,
        Command::AddSaved(c) => own::set_saved(scope, c.channel_id, c.seq, true).await,
        Command::RemoveSaved(c) => own::set_saved(scope, c.channel_id, c.seq, false).await,
        Command::SetDraft(c) => own::set_draft(scope, c).await,
        Command::CreateChannel(c) => channel::create_channel(scope, c).await,
        Command::OpenDirect(c) => channel::open_direct(scope, c).await,
        Command::UpdateChannel(c) => channel::update_channel(scope, c).await,
        Command::ArchiveChannel(c) => channel::set_archived(scope, c.channel_id, true).await,
        Command::UnarchiveChannel(c) => channel::set_archived(scope, c.channel_id, false).await,
        Command::JoinChannel(c) => channel::join(scope, c.channel_id).await,
        Command::LeaveChannel(c) => channel::leave(scope, c.channel_id).await,
        Command::InviteMember(c) => channel::invite(scope, c).await,
        Command::RemoveMember(c) => channel::remove_member(scope, c).await,
        Command::SetChannelRole(c) => channel::set_channel_role(scope, c).await,
        Command::MarkRead(c) => own::mark_read(scope, c).await,
        Command::MarkUnread(c) => own::mark_unread(scope, c).await,
        Command::SetChannelPreferences(c) => own::set_preferences(scope, c).await,
        Command::FollowThread(c) => own::follow(scope, c.channel_id, c.thread_seq, true).await,
        Command::UnfollowThread(c) => own::follow(scope, c.channel_id, c.thread_seq, false).await,
        Command::MarkThreadRead(c) => own::mark_thread_read(scope, c).await,
        Command::MarkThreadUnread(c) => own::mark_thread_unread(scope, c).await,
        Command::UpdateProfile(c) => user::update_profile(scope, c).await,
        Command::SetStatus(c) => user::set_status(scope, c).await,
        Command::SetPresence(c) => user::set_presence(scope, c).await,
        Command::CreateUser(c) => user::create_user(scope, c).await,
        Command::SetUserRole(c) => user::set_user_role(scope, c).await,
        Command::DeactivateUser(c) => user::set_active(scope, c.user_id, false).await,
        Command::ReactivateUser(c) => user::set_active(scope, c.user_id, true).await,
        Command::CreateInvite(c) => user::create_invite(scope, c).await,
        Command::RevokeInvite(c) => user::revoke_invite(scope, c).await,
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
    let Some(user) = scope.actor() else {
        let facts = channels::facts_for_operator(scope.db, channel).await?.ok_or_else(|| not_found("channel"))?;
        permission::operator_may(action, facts.channel)?;
        return Ok(facts);
    };
    let facts = channels::facts(scope.db, user, channel).await?.ok_or_else(|| not_found("channel"))?;
    permission::allows(facts.who, action, facts.channel)?;
    Ok(facts)
}

/// Asks whether the caller may keep something of their own about a channel. Nothing of the channel changes, so nobody who
/// writes there waits: held is the caller's own stream, as by whoever brings them in or takes them out.
async fn permit_own(scope: &mut Scope<'_>, channel: ChannelId) -> Result<Facts, StoreError> {
    let user = scope.caller.user_id;
    events::lock(scope, user.into()).await?;
    let facts = channels::facts(scope.db, user, channel).await?.ok_or_else(|| not_found("channel"))?;
    permission::allows(facts.who, Action::KeepOwn, facts.channel)?;
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
