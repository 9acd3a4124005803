//! When users last did something: what is left of their presence when they are gone. Known to about a minute.

use super::{Db, StoreError, by_dialect, on};
use crate::clock::Timestamp;
use crate::domain::id::UserId;

/// Keeps when users last did something; an earlier time than is known changes nothing.
pub(super) async fn keep(db: &mut Db, users: &[(UserId, Timestamp)]) -> Result<(), StoreError> {
    let rows: Vec<(UserId, i64)> = users.iter().map(|(user, at)| (*user, at.0)).collect();
    let rows = serde_json::to_string(&rows).expect("lists have no keys");
    let sql = by_dialect!(db,
        postgres: "INSERT INTO last_seen (user_id, at) SELECT (value ->> 0)::uuid, \
                   TIMESTAMPTZ 'epoch' + (value ->> 1)::bigint * INTERVAL '1 microsecond' \
                   FROM json_array_elements($1::json) \
                   ON CONFLICT (user_id) DO UPDATE SET at = GREATEST(last_seen.at, excluded.at)",
        sqlite: "INSERT INTO last_seen (user_id, at) SELECT unhex(value ->> 0, '-'), value ->> 1 \
                 FROM json_each($1) WHERE TRUE \
                 ON CONFLICT (user_id) DO UPDATE SET at = MAX(at, excluded.at)",
    );
    on!(db, c => { sqlx::query(sql).bind(rows).execute(c).await?; });
    Ok(())
}

/// Returns when users last did something; whoever never did is left out.
pub async fn of(db: &mut Db, users: &[UserId]) -> Result<Vec<(UserId, Timestamp)>, StoreError> {
    let ids = serde_json::to_string(users).expect("identifiers are strings");
    let sql = by_dialect!(db,
        postgres: "SELECT user_id, at FROM last_seen WHERE user_id IN \
                   (SELECT value::uuid FROM json_array_elements_text($1::json))",
        sqlite: "SELECT user_id, at FROM last_seen WHERE user_id IN (SELECT unhex(value, '-') FROM json_each($1))",
    );
    Ok(on!(db, c => sqlx::query_as(sql).bind(ids).fetch_all(c).await?))
}
