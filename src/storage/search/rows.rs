//! What search reads of the database: who may read what, and messages as an index has them.

use std::collections::HashMap;

use crate::clock::Timestamp;
use crate::domain::id::{ChannelId, UserId};
use crate::domain::message::Mentions;
use crate::domain::search::document::{Document, Mark, has_link};
use crate::domain::search::wanted::Key;
use crate::storage::channels::EVERYBODY;
use crate::storage::{Db, StoreError, by_dialect, from_row, on, page};

/// How many messages are read at once: each may be long.
pub const AT_ONCE: usize = 100;

/// Selects `id` of the channels that the user `$1` may read now, as `domain/permission.rs` says: those they are in, and public
/// ones, but for guests.
macro_rules! readable {
    () => {
        "SELECT m.channel_id AS id FROM members m WHERE m.user_id = $1 \
           AND EXISTS (SELECT 1 FROM users u WHERE u.id = $1 AND u.deactivated_at IS NULL) \
         UNION SELECT p.id FROM channels p WHERE p.kind = 'public' \
           AND EXISTS (SELECT 1 FROM users u WHERE u.id = $1 AND u.deactivated_at IS NULL AND u.role <> 'guest')"
    };
}

/// Returns the channels that a user may read now, and the number of the newest event of each.
pub async fn readable(db: &mut Db, user: UserId) -> Result<HashMap<ChannelId, i64>, StoreError> {
    match db {
        Db::Postgres(c) => {
            let sql = concat!("SELECT s.id, s.last_seq FROM (", readable!(), ") r JOIN streams s ON s.id = r.id");
            let rows: Vec<(ChannelId, i64)> = sqlx::query_as(sql).bind(user).fetch_all(&mut **c).await?;
            Ok(rows.into_iter().collect())
        }
        Db::Sqlite(c) => {
            // As one row: each costs two changes of threads.
            let sql = concat!(
                "SELECT COALESCE(group_concat(hex(s.id) || ' ' || s.last_seq, ','), '') FROM (",
                readable!(),
                ") r JOIN streams s ON s.id = r.id"
            );
            let rows: String = sqlx::query_scalar(sql).bind(user).fetch_one(&mut **c).await?;
            let row = |row: &str| {
                let (id, head) = row.split_once(' ')?;
                Some((id.parse().ok()?, head.parse().ok()?))
            };
            let rows = rows.split(',').filter(|text| !text.is_empty()).map(row);
            rows.collect::<Option<_>>()
                .ok_or_else(|| sqlx::Error::Decode("a channel and its head are malformed".into()).into())
        }
    }
}

/// Returns those of these channels that a user may read now, and what they are called, if they have a name.
pub async fn names(
    db: &mut Db,
    user: UserId,
    channels: &[ChannelId],
) -> Result<HashMap<ChannelId, Option<String>>, StoreError> {
    let sql = by_dialect!(db,
        postgres: concat!("SELECT c.id, c.name FROM channels c JOIN (", readable!(), ") r ON r.id = c.id WHERE c.id = \
                           ANY(ARRAY(SELECT value::uuid FROM json_array_elements_text($2::json)))"),
        sqlite: concat!("SELECT c.id, c.name FROM channels c JOIN (", readable!(), ") r ON r.id = c.id WHERE c.id IN \
                         (SELECT unhex(value, '-') FROM json_each($2))"),
    );
    let channels = serde_json::to_string(channels).expect("identifiers are strings");
    let rows: Vec<(ChannelId, Option<String>)> =
        on!(db, c => sqlx::query_as(sql).bind(user).bind(channels).fetch_all(c).await?);
    Ok(rows.into_iter().collect())
}

/// Returns how far a consumer is in the channels that a user may read and that are ahead of it.
pub async fn places(db: &mut Db, user: UserId, consumer: &str) -> Result<HashMap<ChannelId, i64>, StoreError> {
    let sql = concat!(
        "SELECT s.id, COALESCE(p.seq, 0) FROM (",
        readable!(),
        ") r JOIN streams s ON s.id = r.id LEFT JOIN places p ON p.consumer = $2 AND p.stream_id = s.id \
         WHERE s.last_seq > COALESCE(p.seq, 0)"
    );
    let rows: Vec<(ChannelId, i64)> = on!(db, c => sqlx::query_as(sql).bind(user).bind(consumer).fetch_all(c).await?);
    Ok(rows.into_iter().collect())
}

/// Returns the messages that a user saved, the newest of them.
pub async fn saved(db: &mut Db, user: UserId, most: i64) -> Result<Vec<Key>, StoreError> {
    let sql = "SELECT channel_id, seq FROM saved WHERE user_id = $1 ORDER BY saved_at DESC LIMIT $2";
    Ok(on!(db, c => sqlx::query_as(sql).bind(user).bind(most).fetch_all(c).await?))
}

/// Returns how far each channel is, in the order of their identifiers: those behind one.
pub async fn heads(db: &mut Db, after: ChannelId, limit: i64) -> Result<Vec<(ChannelId, i64)>, StoreError> {
    let sql =
        "SELECT c.id, s.last_seq FROM channels c JOIN streams s ON s.id = c.id WHERE c.id > $1 ORDER BY c.id LIMIT $2";
    Ok(on!(db, c => sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await?))
}

/// Returns how many messages there are that are not deleted.
pub async fn count(db: &mut Db) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) FROM messages WHERE deleted_at IS NULL";
    let count: i64 = on!(db, c => sqlx::query_scalar(sql).fetch_one(c).await?);
    Ok(count.cast_unsigned())
}

/// A message as an index has it; of one that is deleted, the version.
struct Row(Key, Result<Document, i64>);

from_row!(Row, row => {
    let (channel, seq): Key = (row.try_get("channel_id")?, row.try_get("seq")?);
    let deleted: Option<Timestamp> = row.try_get("deleted_at")?;
    let text: String = row.try_get("text")?;
    let mentions: &str = row.try_get("mentions")?;
    let named: Mentions = if mentions.is_empty() { Mentions::default() } else {
        serde_json::from_str(mentions).map_err(|e| sqlx::Error::Decode(e.into()))?
    };
    let everybody = (named.channel || named.here).then_some(EVERYBODY);
    let is_in_thread = row.try_get::<Option<i64>, _>("thread_seq")?.is_some() || row.try_get::<i64, _>("reply_count")? > 0;
    let is = |mark| match mark {
        Mark::Link => Ok::<_, sqlx::Error>(has_link(&text)),
        Mark::Reaction => row.try_get("has_reaction"),
        Mark::Thread => Ok(is_in_thread),
        Mark::Pinned => row.try_get("pinned"),
    };
    let mut marks = Vec::new();
    for mark in Mark::ALL {
        if is(mark)? {
            marks.push(mark);
        }
    }
    let document = Document {
        channel,
        seq,
        author: row.try_get("author_id")?,
        created_at: row.try_get("created_at")?,
        mentions: named.users.into_iter().chain(everybody).collect(),
        marks,
        text,
        version: row.try_get("version")?,
    };
    Row((channel, seq), if deleted.is_none() { Ok(document) } else { Err(document.version) })
});

macro_rules! select {
    ($rest:expr) => {
        concat!(
            "SELECT m.channel_id, m.seq, m.author_id, m.text, m.mentions, m.created_at, m.deleted_at, m.thread_seq, \
             m.reply_count, p.seq IS NOT NULL AS pinned, \
             EXISTS (SELECT 1 FROM reactions r WHERE r.channel_id = m.channel_id AND r.seq = m.seq) AS has_reaction, \
             (SELECT s.last_seq FROM streams s WHERE s.id = m.channel_id) AS version FROM ",
            $rest
        )
    };
}

/// Returns messages as they are now: as an index is to have them, and those that are gone, with the version of that.
pub async fn documents(db: &mut Db, keys: &[Key]) -> Result<(Vec<Document>, Vec<(Key, i64)>), StoreError> {
    let mut found: HashMap<Key, Result<Document, i64>> = HashMap::new();
    for some in keys.chunks(AT_ONCE) {
        let sql = by_dialect!(db,
            postgres: select!("json_array_elements($1::json) k JOIN messages m ON m.channel_id = (k.value ->> 0)::uuid \
                               AND m.seq = (k.value ->> 1)::bigint \
                               LEFT JOIN pins p ON p.channel_id = m.channel_id AND p.seq = m.seq"),
            sqlite: select!("json_each($1) k CROSS JOIN messages m ON m.channel_id = unhex(k.value ->> 0, '-') \
                             AND m.seq = k.value ->> 1 LEFT JOIN pins p ON p.channel_id = m.channel_id AND p.seq = m.seq"),
        );
        let some = serde_json::to_string(some).expect("lists have no keys");
        let rows: Vec<Row> = on!(db, c => sqlx::query_as(sql).bind(some).fetch_all(c).await?);
        found.extend(rows.into_iter().map(|Row(key, document)| (key, document)));
    }
    // What is not there never comes back: no number is given twice.
    let missing = keys.iter().filter(|key| !found.contains_key(key)).map(|key| (*key, i64::MAX / 2));
    let mut gone: Vec<(Key, i64)> = missing.collect();
    let mut there = Vec::with_capacity(found.len());
    for (key, document) in found {
        match document {
            Ok(document) => there.push(document),
            Err(version) => gone.push((key, version)),
        }
    }
    Ok((there, gone))
}

/// Returns messages in the order of channels and numbers, those behind one; and the last of them, deleted ones too, if
/// there may be more.
pub async fn all(db: &mut Db, after: Key, limit: i64) -> Result<(Vec<Document>, Option<Key>), StoreError> {
    let sql = select!(
        "messages m LEFT JOIN pins p ON p.channel_id = m.channel_id AND p.seq = m.seq \
         WHERE (m.channel_id, m.seq) > ($1, $2) ORDER BY m.channel_id, m.seq LIMIT $3"
    );
    let bytes = |row: &Row| row.1.as_ref().map_or(0, |document| document.text.len());
    let (rows, more) = on!(db, c => page(sqlx::query_as(sql).bind(after.0).bind(after.1).bind(limit + 1).fetch(c), limit,
        bytes).await?);
    let last = rows.last().map(|row| row.0).filter(|_| more);
    Ok((rows.into_iter().filter_map(|row| row.1.ok()).collect(), last))
}
