//! Consumers of the log: who follows it, how far each is in each stream, and what each gave up on.

use uuid::Uuid;

use super::apply::Scope;
use super::{Db, StoreError, by_dialect, from_row, on, page};
use crate::clock::Timestamp;
use crate::domain::error::conflict;
use crate::domain::event::Event;
use crate::domain::id::StreamId;

/// Places that are kept at once, and streams that are looked at, at most.
pub const PLACES_MAX: usize = 1_000;

/// Takes a consumer over. Returns its epoch, under which it may move its places until the next one takes it over.
pub(super) async fn take_over(scope: &mut Scope<'_>, consumer: &str) -> Result<i64, StoreError> {
    let sql = "INSERT INTO consumers (name, epoch) VALUES ($1, 1) \
               ON CONFLICT (name) DO UPDATE SET epoch = consumers.epoch + 1 RETURNING epoch";
    Ok(on!(scope.db, c => sqlx::query_scalar(sql).bind(consumer).fetch_one(c).await?))
}

/// Refuses who is no longer the one that has the consumer. Who has it keeps it until the commit.
async fn check(scope: &mut Scope<'_>, consumer: &str, epoch: i64) -> Result<(), StoreError> {
    let sql = by_dialect!(scope.db,
        postgres: "SELECT epoch FROM consumers WHERE name = $1 FOR SHARE",
        sqlite: "SELECT epoch FROM consumers WHERE name = $1",
    );
    let now: Option<i64> = on!(scope.db, c => sqlx::query_scalar(sql).bind(consumer).fetch_optional(c).await?);
    if now == Some(epoch) { Ok(()) } else { Err(conflict("another node took this consumer over").into()) }
}

/// Keeps how far a consumer is. A place never goes back.
pub(super) async fn keep(
    scope: &mut Scope<'_>,
    consumer: &str,
    epoch: i64,
    places: &[(StreamId, i64)],
) -> Result<(), StoreError> {
    check(scope, consumer, epoch).await?;
    let rows = serde_json::to_string(places).expect("lists have no keys");
    let sql = by_dialect!(scope.db,
        postgres: "INSERT INTO places (consumer, stream_id, seq) SELECT $1, (value ->> 0)::uuid, (value ->> 1)::bigint \
                   FROM json_array_elements($2::json) \
                   ON CONFLICT (consumer, stream_id) DO UPDATE SET seq = GREATEST(places.seq, excluded.seq)",
        sqlite: "INSERT INTO places (consumer, stream_id, seq) SELECT $1, unhex(value ->> 0, '-'), value ->> 1 \
                 FROM json_each($2) WHERE TRUE \
                 ON CONFLICT (consumer, stream_id) DO UPDATE SET seq = MAX(seq, excluded.seq)",
    );
    on!(scope.db, c => { sqlx::query(sql).bind(consumer).bind(rows).execute(c).await?; });
    Ok(())
}

/// Puts an event aside that a consumer gave up on.
pub(super) async fn bury(
    scope: &mut Scope<'_>,
    consumer: &str,
    epoch: i64,
    (stream, seq): (StreamId, i64),
    (reason, tries): (&str, i64),
) -> Result<(), StoreError> {
    check(scope, consumer, epoch).await?;
    let sql = "INSERT INTO dead_letters (consumer, stream_id, seq, reason, tries, at) VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (consumer, stream_id, seq) DO UPDATE SET reason = excluded.reason, \
               tries = dead_letters.tries + excluded.tries, at = excluded.at, again = FALSE";
    on!(scope.db, c => { sqlx::query(sql).bind(consumer).bind(stream).bind(seq).bind(reason).bind(tries).bind(scope.now)
        .execute(c).await?; });
    Ok(())
}

/// Forgets an event that was put aside, for it was taken after all.
pub(super) async fn dig_up(
    scope: &mut Scope<'_>,
    consumer: &str,
    epoch: i64,
    (stream, seq): (StreamId, i64),
) -> Result<(), StoreError> {
    check(scope, consumer, epoch).await?;
    let sql = "DELETE FROM dead_letters WHERE consumer = $1 AND stream_id = $2 AND seq = $3";
    on!(scope.db, c => { sqlx::query(sql).bind(consumer).bind(stream).bind(seq).execute(c).await?; });
    Ok(())
}

/// Has events that were put aside given once more: all of them, or those of one consumer, or one. Returns how many.
pub(super) async fn redrive(
    scope: &mut Scope<'_>,
    consumer: Option<&str>,
    event: Option<(StreamId, i64)>,
) -> Result<u64, StoreError> {
    let (stream, seq) = event.unzip();
    let sql = "UPDATE dead_letters SET again = TRUE WHERE consumer = COALESCE($1, consumer) \
               AND stream_id = COALESCE($2, stream_id) AND seq = COALESCE($3, seq)";
    Ok(on!(scope.db, c => sqlx::query(sql).bind(consumer).bind(stream).bind(seq).execute(c).await?.rows_affected()))
}

/// Returns which events are to be given to a consumer once more.
pub async fn to_redrive(db: &mut Db, consumer: &str, limit: i64) -> Result<Vec<(StreamId, i64)>, StoreError> {
    let sql = "SELECT stream_id, seq FROM dead_letters WHERE consumer = $1 AND again ORDER BY stream_id, seq LIMIT $2";
    Ok(on!(db, c => sqlx::query_as(sql).bind(consumer).bind(limit).fetch_all(c).await?))
}

/// Returns a consumer's places, in the order of their streams: those behind one of them.
pub async fn places(
    db: &mut Db,
    consumer: &str,
    after: StreamId,
    limit: i64,
) -> Result<Vec<(StreamId, i64)>, StoreError> {
    let sql = "SELECT stream_id, seq FROM places WHERE consumer = $1 AND stream_id > $2 ORDER BY stream_id LIMIT $3";
    Ok(on!(db, c => sqlx::query_as(sql).bind(consumer).bind(after).bind(limit).fetch_all(c).await?))
}

/// Returns streams that are ahead of a consumer's places as they are kept, with their heads, in their order: those behind one
/// of them.
pub async fn ahead(
    db: &mut Db,
    consumer: &str,
    after: StreamId,
    limit: i64,
) -> Result<Vec<(StreamId, i64)>, StoreError> {
    let sql = "SELECT s.id, s.last_seq FROM streams s LEFT JOIN places p ON p.consumer = $1 AND p.stream_id = s.id \
               WHERE s.last_seq > COALESCE(p.seq, 0) AND s.id > $2 ORDER BY s.id LIMIT $3";
    Ok(on!(db, c => sqlx::query_as(sql).bind(consumer).bind(after).bind(limit).fetch_all(c).await?))
}

/// Returns the events of each of some streams behind a number, at most so many of each, in order; and whether the list was cut
/// because all together are more than fit on a [page](super::PAGE_BYTES).
pub async fn behind(db: &mut Db, streams: &[(StreamId, i64)], each: i64) -> Result<(Vec<Event>, bool), StoreError> {
    let bytes = |event: &Event| event.payload.len();
    match db {
        Db::Postgres(c) => {
            let (ids, after): (Vec<Uuid>, Vec<i64>) = streams.iter().map(|(stream, seq)| (stream.0, *seq)).unzip();
            let sql = "SELECT e.stream_id, e.seq, e.event_id, e.kind, e.actor_id, e.payload, e.created_at \
                       FROM UNNEST($1::uuid[], $2::bigint[]) AS wanted(id, n) CROSS JOIN LATERAL \
                       (SELECT * FROM events WHERE stream_id = wanted.id AND seq > wanted.n ORDER BY seq LIMIT $3) e";
            page(sqlx::query_as(sql).bind(ids).bind(after).bind(each).fetch(&mut **c), i64::MAX, bytes).await
        }
        Db::Sqlite(c) => {
            let sql = "SELECT e.stream_id, e.seq, e.event_id, e.kind, e.actor_id, e.payload, e.created_at \
                       FROM json_each($1) wanted CROSS JOIN events e ON e.stream_id = unhex(wanted.value ->> 0, '-') \
                       AND e.seq > wanted.value ->> 1 AND e.seq <= (wanted.value ->> 1) + $2 ORDER BY wanted.key, e.seq";
            let rows = serde_json::to_string(streams).expect("lists have no keys");
            page(sqlx::query_as(sql).bind(rows).bind(each).fetch(&mut **c), i64::MAX, bytes).await
        }
    }
}

/// An event that a consumer gave up on.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeadLetter {
    /// Which consumer.
    pub consumer: String,
    /// The event's stream.
    pub stream_id: StreamId,
    /// Its number there.
    pub seq: i64,
    /// Why it was given up.
    pub reason: String,
    /// After how many tries.
    pub tries: i64,
    /// When.
    pub at: Timestamp,
    /// Whether it is about to be given once more.
    pub again: bool,
}

from_row!(DeadLetter, row => DeadLetter {
    consumer: row.try_get("consumer")?,
    stream_id: row.try_get("stream_id")?,
    seq: row.try_get("seq")?,
    reason: row.try_get("reason")?,
    tries: row.try_get("tries")?,
    at: row.try_get("at")?,
    again: row.try_get("again")?,
});

/// Returns what one consumer gave up on, or all of them, the oldest first.
pub async fn dead_letters(db: &mut Db, consumer: Option<&str>, limit: i64) -> Result<Vec<DeadLetter>, StoreError> {
    let sql = "SELECT consumer, stream_id, seq, reason, tries, at, again FROM dead_letters \
               WHERE consumer = COALESCE($1, consumer) ORDER BY at, consumer, stream_id, seq LIMIT $2";
    Ok(on!(db, c => sqlx::query_as(sql).bind(consumer).bind(limit).fetch_all(c).await?))
}
