//! Users and invitations.

use super::{Applied, Scope, answer, caller_role, nothing_to_do};
use crate::domain::command::{self, Invite};
use crate::domain::error::{conflict, invalid, not_found};
use crate::domain::event::EventKind;
use crate::domain::id::{InviteId, StreamId, UserId};
use crate::domain::permission;
use crate::domain::text;
use crate::domain::user::{self, PresenceMode, Role, Status, User};
use crate::storage::{StoreError, events, tokens, users};

async fn existing_user(scope: &mut Scope<'_>, id: UserId) -> Result<User, StoreError> {
    events::lock(scope, StreamId::WORKSPACE).await?;
    Ok(users::by_id(scope.db, id).await?.ok_or_else(|| not_found("user"))?)
}

/// Returns the caller, whose account is in use.
async fn own_user(scope: &mut Scope<'_>) -> Result<User, StoreError> {
    let user = existing_user(scope, scope.caller.user_id).await?;
    caller_role(scope).await?;
    Ok(user)
}

/// Refuses who may not manage users, as of now: whoever changes a role holds this lock.
async fn permit_to_manage(scope: &mut Scope<'_>) -> Result<(), StoreError> {
    events::lock(scope, StreamId::WORKSPACE).await?;
    Ok(permission::may_manage_users(caller_role(scope).await?)?)
}

async fn store_user(scope: &mut Scope<'_>, user: &User) -> Applied {
    users::update(scope, user).await?;
    events::append(scope, StreamId::WORKSPACE, EventKind::UserUpdated, user).await?;
    answer(user)
}

pub(super) async fn update_profile(scope: &mut Scope<'_>, c: &command::UpdateProfile) -> Applied {
    let mut user = own_user(scope).await?;
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

pub(super) async fn set_status(scope: &mut Scope<'_>, c: &command::SetStatus) -> Applied {
    let mut user = own_user(scope).await?;
    let text = user::one_line("text", &c.text, 100)?;
    let emoji = if c.emoji.is_empty() { String::new() } else { text::emoji(&c.emoji)?.to_owned() };
    if c.until.is_some_and(|until| until <= scope.now) {
        return Err(invalid("until is in the past").into());
    }
    let empty = text.is_empty() && emoji.is_empty();
    user.status = (!empty).then_some(Status { emoji, text, until: c.until });
    store_user(scope, &user).await
}

pub(super) async fn set_presence(scope: &mut Scope<'_>, c: &command::SetPresence) -> Applied {
    let mut user = own_user(scope).await?;
    if c.until.is_some_and(|until| until <= scope.now) {
        return Err(invalid("until is in the past").into());
    }
    user.presence_mode = c.mode;
    user.presence_until = c.until.filter(|_| c.mode != PresenceMode::Auto);
    store_user(scope, &user).await
}

pub(super) async fn create_user(scope: &mut Scope<'_>, c: &command::CreateUser) -> Applied {
    permit_to_manage(scope).await?;
    let user = make_user(scope, &c.name, c.display_name.as_deref(), c.role, c.bot).await?;
    answer(&user)
}

/// Makes an account: by an administrator, by an invitation, or the first one.
pub(in crate::storage) async fn make_user(
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

pub(super) async fn set_user_role(scope: &mut Scope<'_>, c: &command::SetUserRole) -> Applied {
    permit_to_manage(scope).await?;
    let mut user = existing_user(scope, c.user_id).await?;
    if user.role == Role::Admin && c.role != Role::Admin {
        keep_an_admin(scope, &user).await?;
    }
    user.role = c.role;
    store_user(scope, &user).await
}

pub(super) async fn set_active(scope: &mut Scope<'_>, id: UserId, active: bool) -> Applied {
    permit_to_manage(scope).await?;
    let mut user = existing_user(scope, id).await?;
    if user.deactivated_at.is_none() == active {
        return answer(&user);
    }
    if !active {
        keep_an_admin(scope, &user).await?;
        tokens::revoke_all(scope, id).await?;
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

pub(super) async fn create_invite(scope: &mut Scope<'_>, c: &command::CreateInvite) -> Applied {
    permit_to_manage(scope).await?;
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

pub(super) async fn revoke_invite(scope: &mut Scope<'_>, c: &command::RevokeInvite) -> Applied {
    permit_to_manage(scope).await?;
    let now = scope.now;
    if !tokens::revoke_invite(scope.db, c.invite_id, now).await? {
        return Err(not_found("invite").into());
    }
    nothing_to_do()
}
