//! Who may do what: the one table, for REST and the gateway alike.
//!
//! A caller stands somewhere: a role in the workspace, and a role in the channel or none. An [`Action`] on a channel
//! kind asks for a standing. [`allows`] is asked inside the transaction that writes, with what that transaction read; for
//! messages just before it, which then writes only where nothing has changed since (`storage::send`).
//!
//! | action | guest | member | workspace moderator | admin |
//! |---|---|---|---|---|
//! | read | if in it | if in it, or it is public | the same | the same |
//! | post | if in it, as its posting policy says | the same | the same | the same |
//! | reply, react, pin, follow, leave | if in it | the same | the same | the same |
//! | bring somebody in | no | if in it | the same | the same |
//! | browse, join a public channel, make channels | no | yes | yes | yes |
//! | edit a message | author | author | author | author |
//! | delete a message | author, channel moderator | the same | any in public channels and where they are in | the same |
//! | topic, purpose, remove a member (not one above them) | channel moderator | the same | any that is public, or where they are in | the same |
//! | rename, archive, posting policy, roles | channel owner | the same | the same | any that is public, or where they are in |
//! | see other users | who is in a channel with them | everybody | everybody | everybody |
//! | make a token | for oneself | the same | the same | for everybody |
//! | manage users and invitations | no | no | no | yes |
//!
//! In a direct message or group nobody changes names, roles or members, or deletes what others wrote. An archived channel
//! can be read, left and brought back; what is one's own about it still changes.
//!
//! The operator, at the command line of the server's machine, is nobody in the table: [`operator_may`].

use super::channel::{ChannelKind, ChannelRole, Posting};
use super::command::Principal;
use super::error::{Code, Refusal, forbidden, not_found};
use super::id::UserId;
use super::user::Role;

/// Something that needs a right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Read history, events, members and pins.
    Read,
    /// Post a top-level message.
    Post,
    /// Reply in a thread.
    Reply,
    /// React, or take one's reaction back.
    React,
    /// Pin or unpin.
    Pin,
    /// Edit a message of one's own.
    EditOwn,
    /// Edit somebody else's message: nobody may.
    EditOthers,
    /// Delete a message of one's own.
    DeleteOwn,
    /// Delete somebody else's message.
    DeleteOthers,
    /// Change topic and purpose.
    SetTopic,
    /// Rename the channel, or change who may post.
    Configure,
    /// Archive or bring back.
    Archive,
    /// Come in by oneself.
    Join,
    /// Leave.
    Leave,
    /// Bring somebody in.
    Invite,
    /// Remove somebody.
    RemoveMember,
    /// Give roles in the channel.
    SetRole,
    /// Tell that one is typing.
    Type,
    /// Keep what is one's own about a channel: read state, drafts, saved messages, preferences, followed threads.
    KeepOwn,
}

impl Action {
    /// Every action, for tests that walk the table.
    pub const ALL: &[Action] = &[
        Action::Read,
        Action::Post,
        Action::Reply,
        Action::React,
        Action::Pin,
        Action::EditOwn,
        Action::EditOthers,
        Action::DeleteOwn,
        Action::DeleteOthers,
        Action::SetTopic,
        Action::Configure,
        Action::Archive,
        Action::Join,
        Action::Leave,
        Action::Invite,
        Action::RemoveMember,
        Action::SetRole,
        Action::Type,
        Action::KeepOwn,
    ];

    /// Returns whether it changes the channel, so that an archived one refuses it.
    fn changes_channel(self) -> bool {
        !matches!(self, Action::Read | Action::KeepOwn | Action::Leave | Action::Archive)
    }
}

/// Where the caller stands towards a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The role in the workspace.
    pub role: Role,
    /// The role in the channel, if in it.
    pub channel_role: Option<ChannelRole>,
}

impl Standing {
    /// Where the operator stands, as far as [`operator_may`] lets them.
    pub const OPERATOR: Standing = Standing { role: Role::Admin, channel_role: Some(ChannelRole::Owner) };
}

/// What of a channel decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelFacts {
    /// What sort of conversation it is.
    pub kind: ChannelKind,
    /// Who may post.
    pub posting: Posting,
    /// Whether it is archived.
    pub archived: bool,
}

/// Decides whether somebody may do something in a channel.
///
/// Whoever may not even know that a channel exists is told `not_found`, never `forbidden`.
pub fn allows(who: Standing, action: Action, channel: ChannelFacts) -> Result<(), Refusal> {
    if !knows_of(who, channel) {
        return Err(not_found("channel"));
    }
    if channel.kind.is_direct() && !fits_direct(action) {
        return Err(forbidden("a direct message or group has no names, roles or members to change"));
    }
    if who.channel_role.is_none() && needs_membership(who, action, channel) {
        return Err(forbidden("you are not a member of this channel"));
    }
    if channel.archived && action.changes_channel() {
        return Err(Refusal::new(Code::Archived, "the channel is archived"));
    }
    if has_right(who, action, channel) { Ok(()) } else { Err(forbidden(reason(action))) }
}

/// Decides whether the operator may do something in a channel: archive it and give roles in it as its owner could, a
/// private one too, for its owners may all be gone; but take no part in it.
pub fn operator_may(action: Action, channel: ChannelFacts) -> Result<(), Refusal> {
    match action {
        Action::Archive | Action::SetRole => allows(Standing::OPERATOR, action, channel),
        _ => Err(forbidden("the operator takes no part in channels")),
    }
}

/// Decides whether a role may browse the directory, make channels and open direct messages.
pub fn may_make_channels(role: Role) -> Result<(), Refusal> {
    if role >= Role::Member { Ok(()) } else { Err(forbidden("guests may not make or browse channels")) }
}

/// Returns whether a role sees everybody in the workspace. Who does not sees those who are in a channel with them.
#[must_use]
pub fn sees_everybody(role: Role) -> bool {
    role >= Role::Member
}

/// Decides whether somebody who may remove members may remove one of this rank.
pub fn may_remove(who: Standing, rank: Option<ChannelRole>) -> Result<(), Refusal> {
    if rank > who.channel_role && who.role < Role::Moderator {
        return Err(forbidden("you cannot remove somebody whose channel role is above yours"));
    }
    Ok(())
}

/// Decides whether a role may manage users and invitations.
pub fn may_manage_users(role: Role) -> Result<(), Refusal> {
    if role == Role::Admin { Ok(()) } else { Err(forbidden("only an administrator may manage users")) }
}

/// Decides whether somebody may make a token that speaks for `user`.
pub fn may_make_tokens(who: Principal, user: UserId) -> Result<(), Refusal> {
    if who.user_id == user { Ok(()) } else { may_manage_users(who.role) }
}

fn knows_of(who: Standing, channel: ChannelFacts) -> bool {
    who.channel_role.is_some() || (channel.kind == ChannelKind::Public && who.role >= Role::Member)
}

fn fits_direct(action: Action) -> bool {
    !matches!(
        action,
        Action::SetTopic
            | Action::Configure
            | Action::Archive
            | Action::Join
            | Action::Leave
            | Action::Invite
            | Action::RemoveMember
            | Action::SetRole
            | Action::DeleteOthers
    )
}

/// Public channels may be read before joining; moderators and administrators look after them from outside.
fn needs_membership(who: Standing, action: Action, channel: ChannelFacts) -> bool {
    match action {
        Action::Read | Action::Join => false,
        Action::DeleteOthers
        | Action::SetTopic
        | Action::RemoveMember
        | Action::Configure
        | Action::Archive
        | Action::SetRole => !looks_after(who, action, channel),
        _ => true,
    }
}

/// Returns whether the role in the workspace alone gives the right.
fn looks_after(who: Standing, action: Action, channel: ChannelFacts) -> bool {
    let reach = channel.kind == ChannelKind::Public || who.channel_role.is_some();
    let rank = match action {
        Action::DeleteOthers | Action::SetTopic | Action::RemoveMember => Role::Moderator,
        Action::Configure | Action::Archive | Action::SetRole => Role::Admin,
        _ => return false,
    };
    reach && who.role >= rank
}

fn has_right(who: Standing, action: Action, channel: ChannelFacts) -> bool {
    let rank = who.channel_role;
    match action {
        Action::Read
        | Action::Reply
        | Action::React
        | Action::EditOwn
        | Action::DeleteOwn
        | Action::Leave
        | Action::Type
        | Action::KeepOwn
        | Action::Pin => true,
        Action::EditOthers => false,
        Action::Join => channel.kind == ChannelKind::Public && who.role >= Role::Member,
        Action::Invite => rank.is_some() && who.role >= Role::Member,
        Action::Post => match channel.posting {
            Posting::Everyone => true,
            Posting::Moderators => rank >= Some(ChannelRole::Moderator),
            Posting::Owners => rank >= Some(ChannelRole::Owner),
        },
        Action::DeleteOthers | Action::SetTopic | Action::RemoveMember => {
            rank >= Some(ChannelRole::Moderator) || looks_after(who, action, channel)
        }
        Action::Configure | Action::Archive | Action::SetRole => {
            rank >= Some(ChannelRole::Owner) || looks_after(who, action, channel)
        }
    }
}

fn reason(action: Action) -> &'static str {
    match action {
        Action::Post => "the channel's posting policy does not let you post",
        Action::EditOthers => "only its author may edit a message",
        Action::DeleteOthers => "only its author or a moderator may delete a message",
        Action::SetTopic | Action::RemoveMember => "this needs the channel role moderator or above",
        Action::Configure | Action::Archive | Action::SetRole => "this needs the channel role owner",
        Action::Invite => "guests may not bring others in",
        _ => "you may not do this here",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing() -> impl Strategy<Value = Standing> {
        let channel_role = prop::option::of(prop::sample::select(ChannelRole::ALL));
        (prop::sample::select(Role::ALL), channel_role).prop_map(|(role, channel_role)| Standing { role, channel_role })
    }

    fn channel() -> impl Strategy<Value = ChannelFacts> {
        (prop::sample::select(ChannelKind::ALL), prop::sample::select(Posting::ALL), any::<bool>())
            .prop_map(|(kind, posting, archived)| ChannelFacts { kind, posting, archived })
    }

    fn action() -> impl Strategy<Value = Action> {
        prop::sample::select(Action::ALL)
    }

    #[test]
    fn who_looks_after_the_workspace_removes_anybody_and_others_nobody_above_them() {
        for who in [None, Some(ChannelRole::Member), Some(ChannelRole::Moderator), Some(ChannelRole::Owner)] {
            for rank in ChannelRole::ALL {
                let may = |role| may_remove(Standing { role, channel_role: who }, Some(*rank)).is_ok();
                assert_eq!(may(Role::Member), Some(*rank) <= who, "{who:?} {rank:?}");
                assert!(may(Role::Moderator) && may(Role::Admin));
            }
        }
    }

    #[test]
    fn the_operator_looks_after_what_has_a_name_and_takes_no_part() {
        for kind in ChannelKind::ALL {
            for action in Action::ALL {
                let channel = ChannelFacts { kind: *kind, posting: Posting::Everyone, archived: false };
                let looks_after = matches!(action, Action::Archive | Action::SetRole) && !kind.is_direct();
                assert_eq!(operator_may(*action, channel).is_ok(), looks_after, "{action:?} {kind}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_higher_role_may_do_all_that_a_lower_one_may(who in standing(), action in action(), channel in channel(),
                                                         role in prop::sample::select(Role::ALL)) {
            prop_assume!(role >= who.role);
            if allows(who, action, channel).is_ok() {
                let above = Standing { role, ..who };
                prop_assert!(allows(above, action, channel).is_ok());
            }
        }

        #[test]
        fn a_higher_channel_role_may_do_all_that_a_lower_one_may(who in standing(), action in action(),
                channel in channel(), role in prop::sample::select(ChannelRole::ALL)) {
            // Only those who are not in it may join it.
            prop_assume!(Some(role) >= who.channel_role && action != Action::Join);
            if allows(who, action, channel).is_ok() {
                let above = Standing { channel_role: Some(role), ..who };
                prop_assert!(allows(above, action, channel).is_ok());
            }
        }

        #[test]
        fn outsiders_do_not_learn_of_closed_conversations(who in standing(), action in action(), channel in channel()) {
            prop_assume!(who.channel_role.is_none() && channel.kind != ChannelKind::Public);
            prop_assert_eq!(allows(who, action, channel).unwrap_err().code, Code::NotFound);
        }

        #[test]
        fn an_archived_channel_only_lets_itself_be_read_left_and_brought_back(who in standing(), action in action(),
                channel in channel()) {
            prop_assume!(channel.archived && action.changes_channel());
            prop_assert!(allows(who, action, channel).is_err());
        }

        #[test]
        fn nobody_edits_what_others_wrote(who in standing(), channel in channel()) {
            prop_assert!(allows(who, Action::EditOthers, channel).is_err());
        }

        #[test]
        fn a_guest_sees_only_where_they_were_brought(action in action(), channel in channel()) {
            let who = Standing { role: Role::Guest, channel_role: None };
            prop_assert!(allows(who, action, channel).is_err());
        }
    }
}
