//! Sign-ins and invitations. Only hashes of secrets are stored.

use sha2::{Digest, Sha256};

use super::apply::Scope;
use super::{Db, LATEST, StoreError, from_row, on, users};
use crate::clock::Timestamp;
use crate::domain::command::{Invite, Principal};
use crate::domain::id::{InviteId, TokenId, UserId};
use crate::domain::user::Role;

/// A sign-in as its owner sees it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Token {
    /// The identifier; not the secret.
    pub id: TokenId,
    /// Where it came from, such as the name of a client.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends; never, if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<Timestamp>,
    /// Whether its end moves on while it is used.
    #[serde(default)]
    pub slides: bool,
}

from_row!(Token, row => Token {
    id: row.try_get("id")?,
    label: row.try_get("label")?,
    created_at: row.try_get("created_at")?,
    expires_at: row.try_get("expires_at")?,
    slides: row.try_get("slides")?,
});

from_row!(Invite, row => Invite {
    id: row.try_get("id")?,
    code: None,
    role: row.try_get("role")?,
    max_uses: row.try_get("max_uses")?,
    uses: row.try_get("uses")?,
    expires_at: row.try_get("expires_at")?,
});

/// A secret that a caller shows: 32 random bytes behind a prefix that tells what it is.
pub struct Secret(pub String);

impl Secret {
    /// Makes a new secret: `prefix` and 64 hexadecimal digits.
    #[must_use]
    pub fn generate(prefix: &str) -> Secret {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).expect("the system gives random bytes");
        let mut text = String::with_capacity(prefix.len() + 64);
        text.push_str(prefix);
        for byte in bytes {
            text.push_str(&format!("{byte:02x}"));
        }
        Secret(text)
    }

    /// Returns what is stored: the SHA-256. The secret has 256 bits of its own, so nothing slower is needed.
    #[must_use]
    pub fn hash(text: &str) -> [u8; 32] {
        Sha256::digest(text.as_bytes()).into()
    }
}

/// Who a token speaks for.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The user, their role, and the sign-in.
    pub principal: Principal,
    /// When the sign-in ends.
    pub expires_at: Option<Timestamp>,
    /// Whether that moves on while it is used.
    pub slides: bool,
    /// The version of the user's account: it grows when they may do less, or are signed out somewhere.
    pub version: i64,
}

from_row!(Identity, row => Identity {
    principal: Principal {
        user_id: row.try_get("user_id")?,
        role: row.try_get::<Role, _>("role")?,
        token_id: row.try_get("id")?,
    },
    expires_at: row.try_get("expires_at")?,
    slides: row.try_get("slides")?,
    version: row.try_get("version")?,
});

/// A valid sign-in of an active user, found by one column; the last is the time.
macro_rules! valid {
    ($by:literal, $value:literal, $now:literal) => {
        concat!(
            "SELECT t.id, t.user_id, t.expires_at, t.slides, u.role, u.version, u.presence_mode FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.",
            $by,
            " = ",
            $value,
            " AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > ",
            $now,
            ") AND u.deactivated_at IS NULL"
        )
    };
}
pub(super) use valid;

/// Returns who a token speaks for, if it is valid at `now` and its user active.
pub async fn identify(db: &mut Db, hash: &[u8; 32], now: Timestamp) -> Result<Option<Identity>, StoreError> {
    Ok(
        on!(db, c => sqlx::query_as(valid!("token_hash", "$1", "$2")).bind(&hash[..]).bind(now).fetch_optional(c).await?),
    )
}

/// Returns what a sign-in stands for, if it is valid at `now` and its user active.
pub async fn standing(db: &mut Db, id: TokenId, now: Timestamp) -> Result<Option<Identity>, StoreError> {
    Ok(on!(db, c => sqlx::query_as(valid!("id", "$1", "$2")).bind(id).bind(now).fetch_optional(c).await?))
}

/// Stores a sign-in.
pub(super) async fn insert(db: &mut Db, token: &Token, user: UserId, hash: &[u8; 32]) -> Result<(), StoreError> {
    let sql = "INSERT INTO tokens (id, user_id, token_hash, label, created_at, expires_at, slides) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    on!(db, c => { sqlx::query(sql).bind(token.id).bind(user).bind(&hash[..]).bind(&token.label).bind(token.created_at)
        .bind(token.expires_at).bind(token.slides).execute(c).await?; });
    Ok(())
}

/// Moves the end of a sign-in that slides and still holds to `until`, if it ended before `stale`.
pub(super) async fn prolong(
    db: &mut Db,
    id: TokenId,
    now: Timestamp,
    until: Timestamp,
    stale: Timestamp,
) -> Result<(), StoreError> {
    let sql = "UPDATE tokens SET expires_at = $3 WHERE id = $1 AND slides AND revoked_at IS NULL \
               AND expires_at > $2 AND expires_at < $4";
    on!(db, c => { sqlx::query(sql).bind(id).bind(now).bind(until).bind(stale).execute(c).await?; });
    Ok(())
}

/// Returns a user's valid sign-ins, newest first, those behind `end`.
pub async fn of_user(
    db: &mut Db,
    user: UserId,
    now: Timestamp,
    end: Option<(Timestamp, TokenId)>,
    limit: i64,
) -> Result<Vec<Token>, StoreError> {
    let sql = "SELECT id, label, created_at, expires_at, slides FROM tokens WHERE user_id = $1 AND revoked_at IS NULL \
               AND (expires_at IS NULL OR expires_at > $2) AND (created_at, id) < ($3, $4) \
               ORDER BY created_at DESC, id DESC LIMIT $5";
    let (at, id) = end.unwrap_or((LATEST, TokenId(uuid::Uuid::max())));
    Ok(on!(db, c => sqlx::query_as(sql).bind(user).bind(now).bind(at).bind(id).bind(limit).fetch_all(c).await?))
}

/// Sign-ins of a user that were ended: their open sessions end with them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Revoked {
    /// Whose.
    pub user: UserId,
    /// Which; all, if absent.
    pub token: Option<TokenId>,
}

/// Ends one of a user's sign-ins; returns whether it was there.
pub(super) async fn revoke(scope: &mut Scope<'_>, user: UserId, token: TokenId) -> Result<bool, StoreError> {
    // The user first, as whoever signs them in does.
    users::lock(scope.db, &[user]).await?;
    let sql = "UPDATE tokens SET revoked_at = $3 WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL";
    let rows =
        on!(scope.db, c => sqlx::query(sql).bind(token).bind(user).bind(scope.now).execute(c).await?.rows_affected());
    if rows == 1 {
        users::raise_version(scope.db, user).await?;
        scope.revoked.push(Revoked { user, token: Some(token) });
    }
    Ok(rows == 1)
}

/// Ends all of a user's sign-ins.
pub(super) async fn revoke_all(scope: &mut Scope<'_>, user: UserId) -> Result<(), StoreError> {
    users::raise_version(scope.db, user).await?;
    let sql = "UPDATE tokens SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL";
    on!(scope.db, c => { sqlx::query(sql).bind(user).bind(scope.now).execute(c).await?; });
    scope.revoked.push(Revoked { user, token: None });
    Ok(())
}

/// Stores an invitation.
pub(super) async fn insert_invite(
    db: &mut Db,
    invite: &Invite,
    by: UserId,
    hash: &[u8; 32],
    now: Timestamp,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO invites (id, code_hash, role, max_uses, created_by, created_at, expires_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    on!(db, c => { sqlx::query(sql).bind(invite.id).bind(&hash[..]).bind(invite.role).bind(invite.max_uses).bind(by)
        .bind(now).bind(invite.expires_at).execute(c).await?; });
    Ok(())
}

/// Uses an invitation once; returns the role it gives, or nothing if it is unknown, ended or used up.
pub(super) async fn use_invite(db: &mut Db, hash: &[u8; 32], now: Timestamp) -> Result<Option<Role>, StoreError> {
    let sql = "UPDATE invites SET uses = uses + 1 WHERE code_hash = $1 AND uses < max_uses AND revoked_at IS NULL \
               AND expires_at > $2 RETURNING role";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(&hash[..]).bind(now).fetch_optional(c).await?))
}

/// Returns the invitations that can still be used, newest first, those made before `end`.
pub async fn open_invites(
    db: &mut Db,
    now: Timestamp,
    end: Option<InviteId>,
    limit: i64,
) -> Result<Vec<Invite>, StoreError> {
    let sql = "SELECT id, role, max_uses, uses, expires_at FROM invites WHERE revoked_at IS NULL AND expires_at > $1 \
               AND uses < max_uses AND id < $2 ORDER BY id DESC LIMIT $3";
    let end = end.unwrap_or(InviteId(uuid::Uuid::max()));
    Ok(on!(db, c => sqlx::query_as(sql).bind(now).bind(end).bind(limit).fetch_all(c).await?))
}

/// Ends an invitation; returns whether it was open.
pub(super) async fn revoke_invite(db: &mut Db, id: InviteId, now: Timestamp) -> Result<bool, StoreError> {
    let sql = "UPDATE invites SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
    let rows = on!(db, c => sqlx::query(sql).bind(id).bind(now).execute(c).await?.rows_affected());
    Ok(rows == 1)
}

/// Deletes up to `most` sign-ins that ended before a time; returns how many.
pub(super) async fn prune(db: &mut Db, before: Timestamp, most: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM tokens WHERE id IN \
               (SELECT id FROM tokens WHERE expires_at < $1 OR revoked_at < $1 LIMIT $2)";
    Ok(on!(db, c => sqlx::query(sql).bind(before).bind(most).execute(c).await?.rows_affected()))
}

/// Deletes up to `most` invitations that ended before a time, or were made before it and are used up; returns how many.
pub(super) async fn prune_invites(db: &mut Db, before: Timestamp, most: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM invites WHERE id IN (SELECT id FROM invites WHERE expires_at < $1 OR revoked_at < $1 \
               OR (uses >= max_uses AND created_at < $1) LIMIT $2)";
    Ok(on!(db, c => sqlx::query(sql).bind(before).bind(most).execute(c).await?.rows_affected()))
}
