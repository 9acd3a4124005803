//! Many top-level messages in one go: the hot path of the hub.
//!
//! However many messages of however many channels wait, they cost the same handful of statements: what decides about
//! each, the numbers of each channel, and one insert a table. The batch travels as one JSON parameter, which both
//! databases take apart themselves.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::apply::{Created, find_mentions};
use super::channels::{EVERYBODY, Facts};
use super::writer::Reply;
use super::{Db, StoreError, by_dialect, from_row, idempotency, on};
use crate::clock::Timestamp;
use crate::domain::command::SendMessage;
use crate::domain::error::{Refusal, not_found};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, EventId, MessageId, StreamId, UserId};
use crate::domain::message::{Mentions, Sent};
use crate::domain::permission::{self, Action};

/// One message to store.
pub(super) struct Item<'a> {
    pub(super) author: UserId,
    pub(super) send: &'a SendMessage,
    /// The idempotency key and what it is bound to.
    pub(super) key: Option<(&'a str, [u8; 32])>,
}

/// What the store knows about one item before it decides.
struct Known {
    at: i64,
    facts: Facts,
    first: Option<(Vec<u8>, String)>,
}

from_row!(Known, row => Known {
    at: row.try_get("at")?,
    facts: sqlx::FromRow::from_row(row)?,
    first: match row.try_get::<Option<Vec<u8>>, _>("body_hash")? {
        Some(hash) => Some((hash, row.try_get("response")?)),
        None => None,
    },
});

#[derive(Serialize)]
struct Question<'a> {
    at: usize,
    c: ChannelId,
    u: UserId,
    k: Option<&'a str>,
}

#[derive(Serialize)]
struct Count {
    c: ChannelId,
    n: i64,
}

#[derive(Serialize)]
struct Row<'a> {
    c: ChannelId,
    s: i64,
    n: i64,
    i: MessageId,
    e: EventId,
    a: UserId,
    k: Option<&'a str>,
    t: &'a str,
    m: String,
    p: Arc<str>,
}

#[derive(Serialize)]
struct Key<'a> {
    u: UserId,
    k: &'a str,
    h: String,
    r: &'a str,
}

#[derive(Serialize)]
struct Named {
    c: ChannelId,
    u: UserId,
    s: i64,
    n: i64,
}

fn json(rows: &impl Serialize) -> String {
    serde_json::to_string(rows).expect("a batch has only string keys")
}

/// Stores the messages in the order given, each under the next number of its channel. One that is refused changes
/// nothing and does not disturb the others. Events are appended to `events`.
pub(super) async fn send_many(
    db: &mut Db,
    now: Timestamp,
    items: &[Item<'_>],
    events: &mut Vec<Event>,
) -> Result<Vec<Result<Reply, Refusal>>, StoreError> {
    let mut results: Vec<Option<Result<Reply, Refusal>>> = Vec::new();
    results.resize_with(items.len(), || None);

    lock_channels(db, items).await?;
    let mut known: HashMap<i64, Known> = ask(db, items).await?.into_iter().map(|k| (k.at, k)).collect();

    // Who is refused, and who repeats an earlier request: in the store, or in this very batch.
    let mut firsts: HashMap<(UserId, &str), usize> = HashMap::new();
    let mut repeats: Vec<(usize, usize)> = Vec::new();
    let mut going: Vec<usize> = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        match decide(item, known.remove(&(at as i64))) {
            Err(refusal) => results[at] = Some(Err(refusal)),
            Ok(Some(first)) => results[at] = Some(Ok(Reply::repeated(first))),
            Ok(None) => match item.key.map(|(key, _)| *firsts.entry((item.author, key)).or_insert(at)) {
                Some(first) if first != at => repeats.push((at, first)),
                _ => going.push(at),
            },
        }
    }

    let mut numbers = take_numbers(db, items, &going).await?;
    let mut rows = Vec::with_capacity(going.len());
    let mut answers = Vec::with_capacity(going.len());
    let mut named = Vec::new();
    for at in &going {
        let item = &items[*at];
        let (seq, number) = numbers.get_mut(&item.send.channel_id).expect("every channel in the batch has its numbers");
        (*seq, *number) = (*seq + 1, *number + 1);
        let mentions = find_mentions_of(db, item).await?;
        name(&mut named, item.send.channel_id, &mentions, *seq, *number);
        let id = MessageId::new(now);
        let created = Created {
            id,
            message_no: Some(*number),
            thread_seq: None,
            reply_no: None,
            author_id: item.author,
            text: &item.send.text,
            mentions: &mentions,
            client_msg_id: item.send.client_msg_id.as_deref(),
            created_at: now,
        };
        let payload: Arc<str> = json(&created).into();
        let event = Event {
            stream: item.send.channel_id.into(),
            seq: *seq,
            id: EventId::new(now),
            kind: EventKind::MessageCreated,
            actor: Some(item.author),
            payload: payload.clone(),
            at: now,
        };
        rows.push(Row {
            c: item.send.channel_id,
            s: *seq,
            n: *number,
            i: id,
            e: event.id,
            a: item.author,
            k: item.send.client_msg_id.as_deref(),
            t: &item.send.text,
            m: if mentions.is_empty() { String::new() } else { json(&mentions) },
            p: payload,
        });
        answers.push(json(&Sent::new(item.send.channel_id, *seq, id, now)));
        events.push(event);
    }
    if !rows.is_empty() {
        insert(db, now, &rows, &named, &keys(items, &going, &answers)).await?;
    }

    for (at, json) in going.into_iter().zip(answers) {
        results[at] = Some(Ok(Reply { json, duplicate: false }));
    }
    for (at, first) in repeats {
        results[at] = Some(repeat_within(items, at, first, &results));
    }
    Ok(results.into_iter().map(|r| r.expect("every item was decided")).collect())
}

fn decide(item: &Item<'_>, known: Option<Known>) -> Result<Option<String>, Refusal> {
    let known = known.ok_or_else(|| not_found("channel"))?;
    if let (Some((stored, response)), Some((_, hash))) = (known.first, &item.key) {
        idempotency::same_body(&stored, hash)?;
        return Ok(Some(response));
    }
    permission::allows(known.facts.who, Action::Post, known.facts.channel)?;
    Ok(None)
}

fn repeat_within(
    items: &[Item<'_>],
    at: usize,
    first: usize,
    results: &[Option<Result<Reply, Refusal>>],
) -> Result<Reply, Refusal> {
    if let (Some((_, hash)), Some((_, first_hash))) = (&items[at].key, &items[first].key) {
        idempotency::same_body(first_hash, hash)?;
    }
    match &results[first] {
        Some(Ok(reply)) => Ok(Reply::repeated(reply.json.clone())),
        Some(Err(refusal)) => Err(refusal.clone()),
        None => Err(not_found("channel")),
    }
}

async fn lock_channels(db: &mut Db, items: &[Item<'_>]) -> Result<(), StoreError> {
    let Db::Postgres(connection) = db else { return Ok(()) };
    let mut ids: Vec<uuid::Uuid> = items.iter().map(|i| i.send.channel_id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let sql = "SELECT 1 FROM streams WHERE id = ANY($1) ORDER BY id FOR UPDATE";
    sqlx::query(sql).bind(ids).execute(&mut **connection).await?;
    Ok(())
}

async fn ask(db: &mut Db, items: &[Item<'_>]) -> Result<Vec<Known>, StoreError> {
    let questions = items.iter().enumerate().map(|(at, item)| Question {
        at,
        c: item.send.channel_id,
        u: item.author,
        k: item.key.map(|key| key.0),
    });
    let questions = json(&questions.collect::<Vec<_>>());
    let sql = by_dialect!(db,
        postgres: "SELECT b.at, u.role, c.kind, c.posting, c.archived_at, m.role AS channel_role, i.body_hash, i.response \
            FROM json_to_recordset($1::json) AS b(at bigint, c uuid, u uuid, k text) \
            JOIN users u ON u.id = b.u AND u.deactivated_at IS NULL JOIN channels c ON c.id = b.c \
            LEFT JOIN members m ON m.channel_id = b.c AND m.user_id = b.u \
            LEFT JOIN idempotency i ON i.user_id = b.u AND i.key = b.k",
        sqlite: "SELECT b.at, u.role, c.kind, c.posting, c.archived_at, m.role AS channel_role, i.body_hash, i.response \
            FROM (SELECT value ->> 'at' AS at, unhex(value ->> 'c', '-') AS c, unhex(value ->> 'u', '-') AS u, \
                  value ->> 'k' AS k FROM json_each($1)) b \
            CROSS JOIN users u ON u.id = b.u AND u.deactivated_at IS NULL CROSS JOIN channels c ON c.id = b.c \
            LEFT JOIN members m ON m.channel_id = b.c AND m.user_id = b.u \
            LEFT JOIN idempotency i ON i.user_id = b.u AND i.key = b.k",
    );
    Ok(on!(db, c => sqlx::query_as(sql).bind(questions).fetch_all(c).await?))
}

async fn find_mentions_of(db: &mut Db, item: &Item<'_>) -> Result<Mentions, StoreError> {
    if !item.send.text.contains('@') {
        return Ok(Mentions::default());
    }
    find_mentions(db, item.send.channel_id, &item.send.text).await
}

fn name(named: &mut Vec<Named>, channel: ChannelId, mentions: &Mentions, seq: i64, number: i64) {
    let everybody = (mentions.channel || mentions.here).then_some(EVERYBODY);
    for user in mentions.users.iter().copied().chain(everybody) {
        named.push(Named { c: channel, u: user, s: seq, n: number });
    }
}

/// Takes as many numbers of each channel as it has messages; returns the last ones before them.
async fn take_numbers(
    db: &mut Db,
    items: &[Item<'_>],
    going: &[usize],
) -> Result<HashMap<ChannelId, (i64, i64)>, StoreError> {
    let mut counts: HashMap<ChannelId, i64> = HashMap::new();
    for at in going {
        *counts.entry(items[*at].send.channel_id).or_default() += 1;
    }
    if counts.is_empty() {
        return Ok(HashMap::new());
    }
    let batch = json(&counts.iter().map(|(c, n)| Count { c: *c, n: *n }).collect::<Vec<_>>());
    let sql = by_dialect!(db,
        postgres: "UPDATE streams SET last_seq = streams.last_seq + b.n, last_message_no = streams.last_message_no + b.n \
            FROM json_to_recordset($1::json) AS b(c uuid, n bigint) WHERE streams.id = b.c \
            RETURNING id, last_seq, last_message_no",
        sqlite: "UPDATE streams SET last_seq = streams.last_seq + b.n, last_message_no = streams.last_message_no + b.n \
            FROM (SELECT unhex(value ->> 'c', '-') AS c, value ->> 'n' AS n FROM json_each($1)) b \
            WHERE streams.id = b.c RETURNING id, last_seq, last_message_no",
    );
    let taken: Vec<(StreamId, i64, i64)> = on!(db, c => sqlx::query_as(sql).bind(batch).fetch_all(c).await?);
    let before = taken.into_iter().map(|(stream, seq, number)| {
        let channel = ChannelId::from(stream);
        let n = counts[&channel];
        (channel, (seq - n, number - n))
    });
    Ok(before.collect())
}

/// Inserts all that a batch brings about in one round trip: on SQLite statements in a row that share their parameters,
/// on Postgres one statement with writing CTEs.
async fn insert(
    db: &mut Db,
    now: Timestamp,
    rows: &[Row<'_>],
    named: &[Named],
    keys: &[Key<'_>],
) -> Result<(), StoreError> {
    // Whoever writes has read what stands above.
    let mut read: HashMap<(ChannelId, UserId), (i64, i64)> = HashMap::new();
    for row in rows {
        read.insert((row.c, row.a), (row.s, row.n));
    }
    let read: Vec<Named> = read.into_iter().map(|((c, u), (s, n))| Named { c, u, s, n }).collect();
    let sql = by_dialect!(db,
        postgres: "WITH b AS (SELECT * FROM json_to_recordset($1::json) AS b(c uuid, s bigint, n bigint, i uuid, e uuid, \
                a uuid, k text, t text, m text, p text)), \
            message AS (INSERT INTO messages (channel_id, seq, id, message_no, author_id, client_msg_id, text, mentions, \
                created_at) SELECT c, s, i, n, a, k, t, m, $2 FROM b), \
            event AS (INSERT INTO events (stream_id, seq, event_id, kind, actor_id, payload, created_at) \
                SELECT c, s, e, 'message.created', a, p, $2 FROM b), \
            mark AS (UPDATE members SET read_seq = r.s, read_no = r.n FROM json_to_recordset($3::json) \
                AS r(c uuid, u uuid, s bigint, n bigint) WHERE channel_id = r.c AND user_id = r.u), \
            mention AS (INSERT INTO mentions (channel_id, user_id, seq, message_no) SELECT n.c, n.u, n.s, n.n \
                FROM json_to_recordset($4::json) AS n(c uuid, u uuid, s bigint, n bigint)) \
            INSERT INTO idempotency (user_id, key, body_hash, response, created_at) \
                SELECT k.u, k.k, decode(k.h, 'hex'), k.r, $2 FROM json_to_recordset($5::json) \
                AS k(u uuid, k text, h text, r text)",
        sqlite: "INSERT INTO messages (channel_id, seq, id, message_no, author_id, client_msg_id, text, mentions, \
                created_at) SELECT unhex(value ->> 'c', '-'), value ->> 's', unhex(value ->> 'i', '-'), value ->> 'n', \
                unhex(value ->> 'a', '-'), value ->> 'k', value ->> 't', value ->> 'm', $2 FROM json_each($1); \
            INSERT INTO events (stream_id, seq, event_id, kind, actor_id, payload, created_at) \
                SELECT unhex(value ->> 'c', '-'), value ->> 's', unhex(value ->> 'e', '-'), 'message.created', \
                unhex(value ->> 'a', '-'), value ->> 'p', $2 FROM json_each($1); \
            UPDATE members SET read_seq = r.s, read_no = r.n FROM (SELECT unhex(value ->> 'c', '-') AS c, \
                unhex(value ->> 'u', '-') AS u, value ->> 's' AS s, value ->> 'n' AS n FROM json_each($3)) r \
                WHERE channel_id = r.c AND user_id = r.u; \
            INSERT INTO mentions (channel_id, user_id, seq, message_no) SELECT unhex(value ->> 'c', '-'), \
                unhex(value ->> 'u', '-'), value ->> 's', value ->> 'n' FROM json_each($4); \
            INSERT INTO idempotency (user_id, key, body_hash, response, created_at) \
                SELECT unhex(value ->> 'u', '-'), value ->> 'k', unhex(value ->> 'h'), value ->> 'r', $2 \
                FROM json_each($5)",
    );
    let (rows, read, named, keys) = (json(&rows), json(&read), json(&named), json(&keys));
    on!(db, c => { sqlx::query(sql).bind(rows).bind(now).bind(read).bind(named).bind(keys).execute(c).await?; });
    Ok(())
}

/// Returns the first answers to be kept under their keys.
fn keys<'a>(items: &[Item<'a>], going: &[usize], answers: &'a [String]) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for (at, answer) in going.iter().zip(answers) {
        if let Some((key, hash)) = &items[*at].key {
            let h = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            keys.push(Key { u: items[*at].author, k: key, h, r: answer });
        }
    }
    keys
}
