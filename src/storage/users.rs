//! Users, as rows.

use std::collections::HashSet;

use super::apply::Scope;
use super::{Db, Store, StoreError, from_row, holds, on};
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::id::UserId;
use crate::domain::permission;
use crate::domain::user::{Role, Status, User};

from_row!(User, row => {
    let status = Status {
        emoji: row.try_get("status_emoji")?,
        text: row.try_get("status_text")?,
        until: row.try_get("status_until")?,
    };
    User {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        display_name: row.try_get("display_name")?,
        title: row.try_get("title")?,
        timezone: row.try_get("timezone")?,
        role: row.try_get("role")?,
        bot: row.try_get("bot")?,
        status: (!status.emoji.is_empty() || !status.text.is_empty()).then_some(status),
        presence_mode: row.try_get("presence_mode")?,
        presence_until: row.try_get("presence_until")?,
        created_at: row.try_get("created_at")?,
        deactivated_at: row.try_get("deactivated_at")?,
    }
});

macro_rules! columns {
    () => {
        "id, name, display_name, title, timezone, role, bot, status_emoji, status_text, status_until, presence_mode, \
         presence_until, created_at, deactivated_at"
    };
}

/// Returns a user.
pub async fn by_id(db: &mut Db, id: UserId) -> Result<Option<User>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM users WHERE id = $1");
    Ok(on!(db, c => sqlx::query_as(sql).bind(id).fetch_optional(c).await?))
}

/// Returns the user with a handle, in lower case.
pub async fn by_name(db: &mut Db, name: &str) -> Result<Option<User>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM users WHERE name = $1");
    Ok(on!(db, c => sqlx::query_as(sql).bind(name).fetch_optional(c).await?))
}

/// Returns users whom somebody may see by handle, those behind `after` (all, if empty), at most `limit`.
pub async fn list_seen_by(
    db: &mut Db,
    who: Principal,
    query: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<User>, StoreError> {
    macro_rules! found {
        ($seen:literal) => {
            concat!(
                "SELECT ",
                columns!(),
                " FROM users WHERE name > $1 AND (name LIKE $4 ESCAPE '!' OR LOWER(display_name) LIKE $4 ESCAPE '!') AND ",
                $seen,
                " ORDER BY name LIMIT $3"
            )
        };
    }
    let sql = if permission::sees_everybody(who.role) {
        found!("$2 IS NOT NULL")
    } else {
        found!(
            "id IN (SELECT o.user_id FROM members m JOIN members o ON o.channel_id = m.channel_id WHERE m.user_id = $2)"
        )
    };
    Ok(
        on!(db, c => sqlx::query_as(sql).bind(after).bind(who.user_id).bind(limit).bind(holds(query)).fetch_all(c).await?),
    )
}

/// Returns those of `users` whom somebody may see, in the same order.
pub async fn seen_by(store: &Store, who: Principal, mut users: Vec<UserId>) -> Result<Vec<UserId>, StoreError> {
    if permission::sees_everybody(who.role) || users.iter().all(|user| *user == who.user_id) {
        return Ok(users);
    }
    let near = near(&mut store.read().await?, who.user_id, &users).await?;
    users.retain(|user| *user == who.user_id || near.contains(user));
    Ok(users)
}

/// Returns whether somebody may see a user.
pub(super) async fn sees(db: &mut Db, who: Principal, user: UserId) -> Result<bool, StoreError> {
    if permission::sees_everybody(who.role) || user == who.user_id {
        return Ok(true);
    }
    Ok(near(db, who.user_id, &[user]).await?.contains(&user))
}

/// Returns users by handle, those behind `after` (all, if empty), at most `limit`.
pub async fn list(db: &mut Db, after: &str, limit: i64) -> Result<Vec<User>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM users WHERE name > $1 ORDER BY name LIMIT $2");
    Ok(on!(db, c => sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await?))
}

/// Returns those of `users` who are in a channel together with somebody.
pub(super) async fn near(db: &mut Db, who: UserId, users: &[UserId]) -> Result<HashSet<UserId>, StoreError> {
    // A join would begin with all members of the channels; by the limit, each user is looked up by their keys.
    macro_rules! near {
        ($users:literal) => {
            concat!(
                "SELECT u.id FROM (",
                $users,
                ") u WHERE (SELECT 1 FROM members m JOIN members o ON o.channel_id = m.channel_id \
                 WHERE m.user_id = $1 AND o.user_id = u.id LIMIT 1) = 1"
            )
        };
    }
    let list = serde_json::to_string(users).expect("identifiers are strings");
    let sql = super::by_dialect!(db,
        postgres: near!("SELECT value::uuid AS id FROM json_array_elements_text($2::json)"),
        sqlite: near!("SELECT unhex(value, '-') AS id FROM json_each($2)"),
    );
    let near: Vec<UserId> = on!(db, c => sqlx::query_scalar(sql).bind(who).bind(list).fetch_all(c).await?);
    Ok(near.into_iter().collect())
}

/// Returns the active administrator who was made first.
pub async fn first_admin(db: &mut Db) -> Result<Option<User>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM users WHERE role = 'admin' AND deactivated_at IS NULL \
        ORDER BY created_at, id LIMIT 1"
    );
    Ok(on!(db, c => sqlx::query_as(sql).fetch_optional(c).await?))
}

/// Returns how many accounts there are.
pub async fn count(db: &mut Db) -> Result<i64, StoreError> {
    Ok(on!(db, c => sqlx::query_scalar("SELECT COUNT(*) FROM users").fetch_one(c).await?))
}

/// Returns the password hash of an active user, with the user.
pub async fn for_login(db: &mut Db, name: &str) -> Result<Option<(UserId, Option<String>)>, StoreError> {
    let sql = "SELECT id, password_hash FROM users WHERE name = $1 AND deactivated_at IS NULL";
    Ok(on!(db, c => sqlx::query_as(sql).bind(name).fetch_optional(c).await?))
}

/// Returns the password hash of a user who is active and has one.
pub(super) async fn password(db: &mut Db, id: UserId) -> Result<Option<String>, StoreError> {
    let sql = "SELECT password_hash FROM users WHERE id = $1 AND deactivated_at IS NULL AND password_hash IS NOT NULL";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(id).fetch_optional(c).await?))
}

/// Returns the role of a user who is there and active.
pub(super) async fn active_role(db: &mut Db, id: UserId) -> Result<Option<Role>, StoreError> {
    let sql = "SELECT role FROM users WHERE id = $1 AND deactivated_at IS NULL";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(id).fetch_optional(c).await?))
}

/// Returns whether all of these, each named once, are there and active.
pub(super) async fn are_active(db: &mut Db, ids: &[UserId]) -> Result<bool, StoreError> {
    let list = serde_json::to_string(ids).expect("identifiers are strings");
    let sql = super::by_dialect!(db,
        postgres: "SELECT COUNT(*) FROM users WHERE deactivated_at IS NULL \
                   AND id = ANY(ARRAY(SELECT value::uuid FROM json_array_elements_text($1::json)))",
        sqlite: "SELECT COUNT(*) FROM users WHERE deactivated_at IS NULL \
                 AND id IN (SELECT unhex(value, '-') FROM json_each($1))",
    );
    let active: i64 = on!(db, c => sqlx::query_scalar(sql).bind(list).fetch_one(c).await?);
    Ok(active == ids.len() as i64)
}

/// Inserts a user whose handle is free; returns whether it was.
pub(super) async fn insert(scope: &mut Scope<'_>, user: &User) -> Result<bool, StoreError> {
    let sql = "INSERT INTO users (id, name, display_name, role, bot, created_at) VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (name) DO NOTHING";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(user.id).bind(&user.name).bind(&user.display_name)
        .bind(user.role).bind(user.bot).bind(user.created_at).execute(db).await?.rows_affected());
    Ok(rows == 1)
}

/// Writes back what of a user can change. A change of what they may do raises the version.
pub(super) async fn update(scope: &mut Scope<'_>, user: &User) -> Result<(), StoreError> {
    let status = user.status.clone().unwrap_or_default();
    let sql = "UPDATE users SET display_name = $2, title = $3, timezone = $4, role = $5, status_emoji = $6, \
               status_text = $7, status_until = $8, presence_mode = $9, presence_until = $10, deactivated_at = $11, \
               version = version + CASE WHEN role <> $5 OR (deactivated_at IS NULL) <> ($11 IS NULL) THEN 1 ELSE 0 END \
               WHERE id = $1";
    on!(scope.db, db => { sqlx::query(sql).bind(user.id).bind(&user.display_name).bind(&user.title).bind(&user.timezone)
        .bind(user.role).bind(&status.emoji).bind(&status.text).bind(status.until).bind(user.presence_mode)
        .bind(user.presence_until).bind(user.deactivated_at).execute(db).await?; });
    Ok(())
}

/// Keeps others on Postgres from changing users until the transaction ends; what is read of them from here on is as it is.
pub(super) async fn lock(db: &mut Db, users: &[UserId]) -> Result<(), StoreError> {
    if let Db::Postgres(connection) = db {
        let ids: Vec<uuid::Uuid> = users.iter().map(|user| user.0).collect();
        let sql = "SELECT 1 FROM users WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
        sqlx::query(sql).bind(ids).execute(&mut **connection).await?;
    }
    Ok(())
}

/// Notes that a user may do less, or is signed out somewhere.
pub(super) async fn raise_version(db: &mut Db, id: UserId) -> Result<(), StoreError> {
    let sql = "UPDATE users SET version = version + 1 WHERE id = $1";
    on!(db, c => { sqlx::query(sql).bind(id).execute(c).await?; });
    Ok(())
}

/// Sets a user's password hash.
pub(super) async fn set_password(db: &mut Db, id: UserId, hash: &str) -> Result<(), StoreError> {
    let sql = "UPDATE users SET password_hash = $2, version = version + 1 WHERE id = $1";
    on!(db, c => { sqlx::query(sql).bind(id).bind(hash).execute(c).await?; });
    Ok(())
}

/// Returns how many active administrators there are.
pub(super) async fn active_admins(db: &mut Db) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM users WHERE role = 'admin' AND deactivated_at IS NULL";
    Ok(on!(db, c => sqlx::query_scalar(sql).fetch_one(c).await?))
}

/// Returns the users among `names` who are members of a channel.
pub(super) async fn members_named(
    db: &mut Db,
    channel: crate::domain::id::ChannelId,
    names: &[String],
) -> Result<Vec<UserId>, StoreError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let list = serde_json::to_string(names).expect("names are strings");
    // A join would begin with the members, however many there are; what is counted is looked up by its key.
    let sql = super::by_dialect!(db,
        postgres: "SELECT u.id FROM users u WHERE u.name = ANY(ARRAY(SELECT json_array_elements_text($2::json))) \
                   AND (SELECT COUNT(*) FROM members m WHERE m.channel_id = $1 AND m.user_id = u.id) = 1 ORDER BY u.id",
        sqlite: "SELECT u.id FROM users u WHERE u.name IN (SELECT value FROM json_each($2)) \
                 AND (SELECT COUNT(*) FROM members m WHERE m.channel_id = $1 AND m.user_id = u.id) = 1 ORDER BY u.id",
    );
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(channel).bind(list).fetch_all(c).await?))
}

/// Returns every user of the workspace who is active and no guest: the audience of the workspace's stream.
pub async fn workspace_audience(db: &mut Db) -> Result<Vec<UserId>, StoreError> {
    let sql = "SELECT id FROM users WHERE deactivated_at IS NULL AND role <> 'guest'";
    Ok(on!(db, c => sqlx::query_scalar(sql).fetch_all(c).await?))
}

/// Returns up to a hundred users whose custom status or manual presence has ended by `now`.
pub async fn ended_status(db: &mut Db, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    let sql = "SELECT id FROM users WHERE status_until <= $1 OR presence_until <= $1 LIMIT 100";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(now).fetch_all(c).await?))
}
