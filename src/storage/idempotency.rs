//! First answers, so that a repeated request gets the same one.
//!
//! A refusal is no answer: who was refused may use the key again when nothing is in the way any more. But a node that writes
//! beside a channel's owner keeps what it refuses, too: the owner may have the same command in hand, and must not carry it
//! out behind the refusal.

use sha2::{Digest, Sha256};

use super::{Db, StoreError, on};
use crate::clock::Timestamp;
use crate::domain::command::{Command, SendMessage};
use crate::domain::error::{Code, Refusal};
use crate::domain::id::UserId;

/// Returns what a key is bound to: the command's type and fields, without the key itself. So a message that the gateway
/// took with a `client_msg_id` is known again when REST repeats it with an `Idempotency-Key`.
#[must_use]
pub fn body_hash(command: &Command) -> [u8; 32] {
    let body = match command {
        Command::SendMessage(send) => Command::from(SendMessage { client_msg_id: None, ..send.clone() }).body(),
        command => command.body(),
    };
    let mut hash = Sha256::new();
    hash.update(command.name());
    hash.update(b"\n");
    hash.update(body);
    hash.finalize().into()
}

/// Refuses a key that was used with another body.
pub(super) fn same_body<T: PartialEq + ?Sized>(stored: &T, hash: &T) -> Result<(), Refusal> {
    if stored == hash {
        return Ok(());
    }
    Err(Refusal::new(Code::KeyReused, "this idempotency key was used with another request: use a new key"))
}

/// Returns the first answer to a key, if there is one.
pub(super) async fn find(db: &mut Db, user: UserId, key: &str, hash: &[u8; 32]) -> Result<Option<String>, StoreError> {
    let sql = "SELECT body_hash, response FROM idempotency WHERE user_id = $1 AND key = $2";
    let found: Option<(Vec<u8>, String)> =
        on!(db, c => sqlx::query_as(sql).bind(user).bind(key).fetch_optional(c).await?);
    match found {
        Some((stored, response)) => {
            same_body(&stored[..], &hash[..])?;
            Ok(Some(answer(response)?))
        }
        None => Ok(None),
    }
}

/// Keeps the first answer to a key that has none. Returns whether it is kept: it is not if another node was first, who was
/// not done yet when the key was looked for.
pub(super) async fn keep(
    db: &mut Db,
    user: UserId,
    key: &str,
    hash: &[u8; 32],
    response: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let sql = "INSERT INTO idempotency (user_id, key, body_hash, response, created_at) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (user_id, key) DO NOTHING";
    let kept = on!(db, c => {
        sqlx::query(sql).bind(user).bind(key).bind(&hash[..]).bind(response).bind(now).execute(c).await?.rows_affected()
    });
    Ok(kept == 1)
}

/// What a refusal that is kept begins with; no answer does.
const REFUSED: &str = "{\"refused\":";

#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    refused: Refused,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Refused {
    code: String,
    message: String,
}

/// Returns the answer that is kept under a key, or the refusal.
pub(super) fn answer(kept: String) -> Result<String, Refusal> {
    if !kept.starts_with(REFUSED) {
        return Ok(kept);
    }
    let unreadable = || Refusal::new(Code::Conflict, "this idempotency key was refused: use a new key");
    let Kept { refused: Refused { code, message } } = serde_json::from_str(&kept).map_err(|_| unreadable())?;
    let code = Code::ALL.iter().find(|known| known.as_str() == code).ok_or_else(unreadable)?;
    Err(Refusal::new(*code, message))
}

/// Keeps that a key's command is refused for good, as [`keep`] does an answer.
pub(super) async fn keep_refusal(
    db: &mut Db,
    user: UserId,
    key: &str,
    hash: &[u8; 32],
    refusal: &Refusal,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let refused = Refused { code: refusal.code.as_str().to_owned(), message: refusal.message.clone().into_owned() };
    let json = serde_json::to_string(&Kept { refused }).expect("a refusal has only string keys");
    keep(db, user, key, hash, &json, now).await
}

/// Deletes up to `most` answers from before a time; returns how many.
pub(super) async fn prune(db: &mut Db, before: Timestamp, most: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM idempotency WHERE (user_id, key) IN \
               (SELECT user_id, key FROM idempotency WHERE created_at < $1 LIMIT $2)";
    Ok(on!(db, c => sqlx::query(sql).bind(before).bind(most).execute(c).await?.rows_affected()))
}
