//! The event log: append in the write's transaction, read after a number.

use std::sync::Arc;

use serde::Serialize;

use super::apply::Scope;
use super::{Db, StoreError, by_dialect, from_row, on, page};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{EventId, StreamId};

from_row!(Event, row => {
    let stream = row.try_get("stream_id")?;
    Event {
        stream,
        seq: row.try_get("seq")?,
        id: row.try_get("event_id")?,
        kind: EventKind::of(row.try_get("kind")?, stream),
        actor: row.try_get("actor_id")?,
        payload: Arc::from(row.try_get::<&str, _>("payload")?),
        at: row.try_get("created_at")?,
    }
});

/// Makes the stream of a new channel or user.
pub(super) async fn create_stream(scope: &mut Scope<'_>, stream: StreamId) -> Result<(), StoreError> {
    on!(scope.db, db => { sqlx::query("INSERT INTO streams (id) VALUES ($1)").bind(stream).execute(db).await?; });
    Ok(())
}

/// Takes the stream's row lock on Postgres, so that what is read next stays true until the commit. SQLite has one writer.
pub(super) async fn lock(scope: &mut Scope<'_>, stream: StreamId) -> Result<(), StoreError> {
    if let Db::Postgres(connection) = scope.db {
        sqlx::query("SELECT 1 FROM streams WHERE id = $1 FOR UPDATE").bind(stream).execute(&mut **connection).await?;
    }
    Ok(())
}

/// Takes the row locks of several streams on Postgres, in the order of their identifiers.
pub(super) async fn lock_all(db: &mut Db, streams: &[StreamId]) -> Result<(), StoreError> {
    if let Db::Postgres(connection) = db {
        let sql = "SELECT 1 FROM streams WHERE id = ANY($1) ORDER BY id FOR UPDATE";
        let ids: Vec<uuid::Uuid> = streams.iter().map(|stream| stream.0).collect();
        sqlx::query(sql).bind(ids).execute(&mut **connection).await?;
    }
    Ok(())
}

/// Appends an event to a stream and returns its number.
pub(super) async fn append(
    scope: &mut Scope<'_>,
    stream: StreamId,
    kind: EventKind,
    payload: &impl Serialize,
) -> Result<i64, StoreError> {
    let sql = "UPDATE streams SET last_seq = last_seq + 1 WHERE id = $1 RETURNING last_seq";
    let seq: i64 = on!(scope.db, db => sqlx::query_scalar(sql).bind(stream).fetch_one(db).await?);
    append_numbered(scope, stream, seq, kind, payload).await?;
    Ok(seq)
}

/// Appends an event whose number was already taken in this transaction.
pub(super) async fn append_numbered(
    scope: &mut Scope<'_>,
    stream: StreamId,
    seq: i64,
    kind: EventKind,
    payload: &impl Serialize,
) -> Result<(), StoreError> {
    let payload: Arc<str> = serde_json::to_string(payload).expect("a payload has only string keys").into();
    let event = Event { stream, seq, id: EventId::new(scope.now), kind, actor: scope.actor(), payload, at: scope.now };
    let sql = "INSERT INTO events (stream_id, seq, event_id, kind, actor_id, payload, created_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    on!(scope.db, db => { sqlx::query(sql).bind(stream).bind(seq).bind(event.id).bind(kind.as_str()).bind(event.actor)
        .bind(&*event.payload).bind(event.at).execute(db).await?; });
    scope.events.push(event);
    Ok(())
}

/// Replaces the payload of an event that has a text which is to be forgotten.
pub(super) async fn rewrite(
    scope: &mut Scope<'_>,
    stream: StreamId,
    seq: i64,
    payload: &impl Serialize,
) -> Result<(), StoreError> {
    let payload = serde_json::to_string(payload).expect("a payload has only string keys");
    let sql = "UPDATE events SET payload = $3 WHERE stream_id = $1 AND seq = $2";
    on!(scope.db, db => { sqlx::query(sql).bind(stream).bind(seq).bind(payload).execute(db).await?; });
    Ok(())
}

/// Appends the same event to each of several streams, all different: two statements, however many they are.
pub(super) async fn append_to_each(
    scope: &mut Scope<'_>,
    streams: &[StreamId],
    kind: EventKind,
    payload: &impl Serialize,
) -> Result<(), StoreError> {
    let ids = serde_json::to_string(streams).expect("identifiers are strings");
    let sql = by_dialect!(scope.db,
        postgres: "UPDATE streams SET last_seq = last_seq + 1 WHERE id = \
                   ANY(ARRAY(SELECT value::uuid FROM json_array_elements_text($1::json))) RETURNING id, last_seq",
        sqlite: "UPDATE streams SET last_seq = last_seq + 1 WHERE id IN \
                 (SELECT unhex(value, '-') FROM json_each($1)) RETURNING id, last_seq",
    );
    let heads: Vec<(StreamId, i64)> = on!(scope.db, db => sqlx::query_as(sql).bind(ids).fetch_all(db).await?);

    let (at, actor) = (scope.now, scope.actor());
    let payload: Arc<str> = serde_json::to_string(payload).expect("a payload has only string keys").into();
    let event = |(stream, seq)| Event { stream, seq, id: EventId::new(at), kind, actor, payload: payload.clone(), at };
    let events: Vec<Event> = heads.into_iter().map(event).collect();
    let rows: Vec<_> = events.iter().map(|event| (event.stream, event.seq, event.id)).collect();
    let rows = serde_json::to_string(&rows).expect("lists have no keys");
    let sql = by_dialect!(scope.db,
        postgres: "INSERT INTO events (stream_id, seq, event_id, kind, actor_id, payload, created_at) \
                   SELECT (value ->> 0)::uuid, (value ->> 1)::bigint, (value ->> 2)::uuid, $2, $3, $4, $5 \
                   FROM json_array_elements($1::json)",
        sqlite: "INSERT INTO events (stream_id, seq, event_id, kind, actor_id, payload, created_at) \
                 SELECT unhex(value ->> 0, '-'), value ->> 1, unhex(value ->> 2, '-'), $2, $3, $4, $5 FROM json_each($1)",
    );
    on!(scope.db, db => { sqlx::query(sql).bind(rows).bind(kind.as_str()).bind(actor).bind(&*payload).bind(at)
        .execute(db).await?; });
    scope.events.extend(events);
    Ok(())
}

/// Returns the events of a stream behind `after_seq`, in order: at most `limit`, and no more than fit on a
/// [page](super::PAGE_BYTES), but one if there is one.
pub async fn after(db: &mut Db, stream: StreamId, after_seq: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
    let sql = "SELECT stream_id, seq, event_id, kind, actor_id, payload, created_at FROM events \
               WHERE stream_id = $1 AND seq > $2 ORDER BY seq LIMIT $3";
    let bytes = |event: &Event| event.payload.len();
    let (found, _) =
        on!(db, c => page(sqlx::query_as(sql).bind(stream).bind(after_seq).bind(limit).fetch(c), limit, bytes).await?);
    Ok(found)
}

/// Returns the number of a stream's newest event; 0 if there is none or no such stream.
pub async fn head(db: &mut Db, stream: StreamId) -> Result<i64, StoreError> {
    let sql = "SELECT last_seq FROM streams WHERE id = $1";
    let seq: Option<i64> = on!(db, c => sqlx::query_scalar(sql).bind(stream).fetch_optional(c).await?);
    Ok(seq.unwrap_or(0))
}
