//! Many top-level messages in one go: the hot path of the hub.
//!
//! However many messages of however many channels wait, they cost two round trips: one asks what decides about each,
//! unless the writer [remembers](super::remembered), and one stores them all; a text with an `@` in it costs one more, to
//! find whom it names. A batch travels as JSON parameters, which both databases take apart themselves, and the answer comes
//! as one JSON too: row by row, SQLite's thread and the writer's would wake each other for every message.
//!
//! On Postgres no transaction is open between the two, and other nodes write to the same database. So the second
//! statement is fenced: it writes to a channel only if its head, its owner's epoch and its authors' standing are what the
//! first one read, and whatever decides who may post in a channel moves one of these; else that channel's messages
//! are asked about again. A node that writes as a channel's owner and is not yet takes it over with that same statement,
//! by raising the epoch ([`Claim`]). On SQLite, which nobody else writes to, the first trip begins the transaction and the
//! second one commits it. docs/adr/0009 says why.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::apply::{Created, find_mentions};
use super::channels::EVERYBODY;
use super::failure::Failure;
use super::remembered::Remembered;
use super::writer::{Claim, Reply, Results};
use super::{Db, StoreError, by_dialect, idempotency};
use crate::clock::Timestamp;
use crate::domain::channel::{ChannelKind, ChannelRole, Posting};
use crate::domain::command::SendMessage;
use crate::domain::error::{Refusal, not_found};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, EventId, MessageId, NodeId, StreamId, UserId};
use crate::domain::message::{Mentions, Sent};
use crate::domain::permission::{self, Action, ChannelFacts, Standing};
use crate::domain::user::Role;

/// One message to store.
pub(super) struct Item<'a> {
    pub(super) author: UserId,
    pub(super) send: &'a SendMessage,
    /// The idempotency key and what it is bound to.
    pub(super) key: Option<(&'a str, [u8; 32])>,
    /// In whose name.
    pub(super) claim: Claim,
    /// When nobody waits for it any more.
    pub(super) over_at: Option<Instant>,
}

/// Whether the messages are a transaction of their own or part of one that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transaction {
    /// Their own.
    Own,
    /// Their own, and on SQLite it has begun.
    Begun,
    /// One that is open, and goes on behind them.
    Open,
}

/// What the store knows about one item before it decides: an array of JSON, in this order.
#[derive(Deserialize)]
pub(super) struct Known {
    pub(super) at: usize,
    pub(super) last_seq: i64,
    pub(super) last_message_no: i64,
    /// The epoch of the channel's owner.
    pub(super) epoch: i64,
    pub(super) owner: Owner,
    /// The author's; none if they are deactivated.
    pub(super) role: Option<Role>,
    /// The version of the author's account.
    pub(super) version: i64,
    pub(super) channel_role: Option<ChannelRole>,
    pub(super) kind: ChannelKind,
    #[serde(deserialize_with = "super::types::posting")]
    pub(super) posting: Posting,
    /// A 1 if the channel is archived.
    pub(super) archived: Option<u8>,
    /// What the key of an earlier request is bound to, in hexadecimal.
    pub(super) body_hash: Option<String>,
    /// The first answer to it.
    pub(super) response: Option<String>,
}

/// Who owns a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Owner {
    /// This run of this node.
    Me,
    /// Another one, which took it over less than [`TAKEN_S`] seconds ago.
    Recent,
    /// Another one, or none: it may be taken over.
    Free,
}

/// For how many seconds nobody else takes a channel over, so that two nodes that both believe to be its owner do not take
/// it from each other all the time.
pub(super) const TAKEN_S: i64 = 5;

#[derive(Serialize)]
struct Question<'a> {
    at: usize,
    c: ChannelId,
    u: UserId,
    k: Option<&'a str>,
}

/// Where a channel's head was and under which epoch, where the batch moves it, and by how much it raises the epoch.
#[derive(Serialize)]
struct Head {
    c: ChannelId,
    was: i64,
    e: i64,
    s: i64,
    n: i64,
    t: i64,
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
    c: ChannelId,
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

/// An author, who has read what stands above.
#[derive(Serialize)]
struct Author {
    c: ChannelId,
    u: UserId,
    s: i64,
    n: i64,
    v: i64,
}

fn hex(hash: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in hash {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

fn json(rows: &impl Serialize) -> String {
    serde_json::to_string(rows).expect("a batch has only string keys")
}

/// Stores the messages in the order given, each under the next number of its channel. One that is refused changes
/// nothing and does not disturb the others; one whose channel another process wrote to meanwhile, or that nobody waits for
/// any more, has no result, and is to be sent again. Events are appended to `events`.
pub(super) async fn send_many(
    db: &mut Db,
    now: Timestamp,
    items: &[Item<'_>],
    transaction: Transaction,
    remembered: &mut Remembered,
    events: &mut Vec<Event>,
) -> Result<Results, Failure> {
    if transaction == Transaction::Open {
        let known = ask(db, remembered.node(), items, transaction).await?;
        return store(db, now, items, known, transaction, remembered, events).await;
    }
    // Who may no longer post may still repeat what was posted: only the store knows.
    let recalled = remembered.recall(items).filter(|known| known.iter().all(|known| known.lets_post().is_ok()));
    if let Some(known) = recalled {
        match store(db, now, items, known, Transaction::Own, remembered, events).await {
            Err(failure) if failure.breaks_a_rule() => {
                // One of them repeats a key that was used before: the question finds out which.
                if matches!(db, Db::Sqlite(_)) {
                    db.run("ROLLBACK").await?;
                }
            }
            done => return done,
        }
    }
    let known = ask(db, remembered.node(), items, transaction).await?;
    remembered.learn(items, &known);
    store(db, now, items, known, Transaction::Begun, remembered, events).await
}

/// Stores them, as far as what is known of each lets them.
async fn store(
    db: &mut Db,
    now: Timestamp,
    items: &[Item<'_>],
    asked: Vec<Known>,
    transaction: Transaction,
    remembered: &mut Remembered,
    events: &mut Vec<Event>,
) -> Result<Results, Failure> {
    let mut results = Results::new();
    results.resize_with(items.len(), || None);
    let mut known: HashMap<usize, Known> = HashMap::new();
    let mut heads: HashMap<ChannelId, Head> = HashMap::new();
    let mut versions: HashMap<UserId, i64> = HashMap::new();
    for known_one in asked {
        let item = &items[known_one.at];
        let (c, s, n, e) = (item.send.channel_id, known_one.last_seq, known_one.last_message_no, known_one.epoch);
        let head = heads.entry(c).or_insert(Head { c, was: s, e, s, n, t: 0 });
        if item.claim == Claim::Owner && known_one.owner == Owner::Free {
            head.t = 1;
        }
        versions.insert(item.author, known_one.version);
        known.insert(known_one.at, known_one);
    }

    // Who is refused, and who repeats an earlier request: in the store, or in this very batch.
    let mut firsts: HashMap<(UserId, &str), usize> = HashMap::new();
    let mut repeats: Vec<(usize, usize)> = Vec::new();
    let mut going: Vec<usize> = Vec::with_capacity(items.len());
    let moment = Instant::now();
    for (at, item) in items.iter().enumerate() {
        if item.over_at.is_some_and(|over_at| over_at <= moment) {
            continue;
        }
        match decide(item, known.remove(&at)) {
            Err(refusal) => results[at] = Some(Err(refusal)),
            Ok(Some(first)) => results[at] = Some(Ok(Reply::repeated(first))),
            Ok(None) => match item.key.map(|(key, _)| *firsts.entry((item.author, key)).or_insert(at)) {
                Some(first) if first != at => repeats.push((at, first)),
                _ => going.push(at),
            },
        }
    }

    let mut rows = Vec::with_capacity(going.len());
    let mut answers = Vec::with_capacity(going.len());
    let mut named = Vec::new();
    let mut appended = Vec::with_capacity(going.len());
    for at in &going {
        let item = &items[*at];
        let head = heads.get_mut(&item.send.channel_id).expect("what was decided about is known");
        (head.s, head.n) = (head.s + 1, head.n + 1);
        let (seq, number) = (head.s, head.n);
        let mentions = find_mentions_of(db, item).await?;
        name(&mut named, item.send.channel_id, &mentions, seq, number);
        let id = MessageId::new(now);
        let created = Created {
            id,
            message_no: Some(number),
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
            seq,
            id: EventId::new(now),
            kind: EventKind::MessageCreated,
            actor: Some(item.author),
            payload: payload.clone(),
            at: now,
        };
        rows.push(Row {
            c: item.send.channel_id,
            s: seq,
            n: number,
            i: id,
            e: event.id,
            a: item.author,
            k: item.send.client_msg_id.as_deref(),
            t: &item.send.text,
            m: if mentions.is_empty() { String::new() } else { json(&mentions) },
            p: payload,
        });
        answers.push(json(&Sent::new(item.send.channel_id, seq, id, now)));
        appended.push(event);
    }
    heads.retain(|_, head| head.s > head.was);
    // Heads, and behind them their authors' places, are locked in the order of all who write to several at once: none waits
    // for another in a circle.
    let mut heads: Vec<Head> = heads.into_values().collect();
    heads.sort_unstable_by_key(|head| head.c);
    let keys = keys(items, &going, &answers);
    let batch =
        Batch { node: remembered.node(), rows: &rows, heads: &heads, named: &named, keys: &keys, versions: &versions };
    let stored = match insert(db, now, &batch, transaction).await {
        Ok(stored) => stored,
        Err(error) if transaction != Transaction::Open => return Err(Failure::of_commit(error)),
        Err(error) => return Err(error.into()),
    };

    for head in &heads {
        remembered.move_head(head.c, head.s, head.n, head.t == 1, stored.contains(&head.c.into()));
    }
    events.extend(appended.into_iter().filter(|event| stored.contains(&event.stream)));
    for (at, json) in going.into_iter().zip(answers) {
        if stored.contains(&items[at].send.channel_id.into()) {
            results[at] = Some(Ok(Reply { json, duplicate: false }));
        }
    }
    for (at, first) in repeats {
        results[at] = repeat_within(items, at, first, &results);
    }
    Ok(results)
}

fn decide(item: &Item<'_>, known: Option<Known>) -> Result<Option<String>, Refusal> {
    let known = known.ok_or_else(|| not_found("channel"))?;
    if let (Some(stored), Some(response), Some((_, hash))) = (&known.body_hash, &known.response, &item.key) {
        idempotency::same_body(stored, &hex(hash))?;
        return Ok(Some(idempotency::answer(response.clone())?));
    }
    known.lets_post()?;
    Ok(None)
}

impl Known {
    fn lets_post(&self) -> Result<(), Refusal> {
        let role = self.role.ok_or_else(|| not_found("channel"))?;
        let who = Standing { role, channel_role: self.channel_role };
        let channel = ChannelFacts { kind: self.kind, posting: self.posting, archived: self.archived.is_some() };
        permission::allows(who, Action::Post, channel)
    }
}

/// Returns the answer of a repeat within the batch; nothing, if it is to be tried again, for it is not known yet what the first
/// one comes to, or that was refused and left the key to another message.
fn repeat_within(
    items: &[Item<'_>],
    at: usize,
    first: usize,
    results: &[Option<Result<Reply, Refusal>>],
) -> Option<Result<Reply, Refusal>> {
    let (_, hash) = items[at].key.as_ref()?;
    let (_, first_hash) = items[first].key.as_ref()?;
    match (results[first].as_ref()?, idempotency::same_body(first_hash, hash)) {
        (Ok(first), Ok(())) => Some(Ok(Reply::repeated(first.json.clone()))),
        (Ok(_), Err(reused)) => Some(Err(reused)),
        (Err(refusal), Ok(())) => Some(Err(refusal.clone())),
        (Err(_), Err(_)) => None,
    }
}

/// Asks what decides about each message. On SQLite that begins the transaction, unless one is open.
async fn ask(
    db: &mut Db,
    node: NodeId,
    items: &[Item<'_>],
    transaction: Transaction,
) -> Result<Vec<Known>, StoreError> {
    let questions = items.iter().enumerate().map(|(at, item)| Question {
        at,
        c: item.send.channel_id,
        u: item.author,
        k: item.key.map(|key| key.0),
    });
    let questions = json(&questions.collect::<Vec<_>>());
    /// The statement, with something in front on SQLite.
    macro_rules! ask {
        ($begin:literal) => {
            concat!(
                $begin,
                "SELECT json_group_array(json_array(b.at, s.last_seq, s.last_message_no, s.owner_epoch, 'me', \
                    CASE WHEN u.deactivated_at IS NULL THEN u.role END, u.version, m.role, c.kind, c.posting, \
                    CASE WHEN c.archived_at IS NOT NULL THEN 1 END, lower(hex(i.body_hash)), i.response)) \
                FROM (SELECT value ->> 'at' AS at, unhex(value ->> 'c', '-') AS c, unhex(value ->> 'u', '-') AS u, \
                    value ->> 'k' AS k FROM json_each($1)) b \
                CROSS JOIN users u ON u.id = b.u CROSS JOIN channels c ON c.id = b.c \
                CROSS JOIN streams s ON s.id = b.c LEFT JOIN members m ON m.channel_id = b.c AND m.user_id = b.u \
                LEFT JOIN idempotency i ON i.user_id = b.u AND i.key = b.k"
            )
        };
    }
    let sql = by_dialect!(db,
        postgres: "SELECT coalesce(json_agg(json_build_array(b.at, s.last_seq, s.last_message_no, s.owner_epoch, \
                CASE WHEN s.owner = $2 THEN 'me' \
                    WHEN s.owned_at > clock_timestamp() - make_interval(secs => $3) THEN 'recent' ELSE 'free' END, \
                CASE WHEN u.deactivated_at IS NULL THEN u.role END, u.version, m.role, c.kind, c.posting, CASE WHEN c.archived_at IS NOT NULL THEN 1 END, encode(i.body_hash, 'hex'), i.response)), \
                '[]')::text \
            FROM json_to_recordset($1::json) AS b(at bigint, c uuid, u uuid, k text) \
            JOIN users u ON u.id = b.u JOIN channels c ON c.id = b.c \
            JOIN streams s ON s.id = b.c LEFT JOIN members m ON m.channel_id = b.c AND m.user_id = b.u \
            LEFT JOIN idempotency i ON i.user_id = b.u AND i.key = b.k",
        sqlite: match transaction {
            Transaction::Open => ask!(""),
            Transaction::Own | Transaction::Begun => ask!("BEGIN IMMEDIATE; "),
        },
    );
    let known: String = match db {
        Db::Postgres(c) => {
            sqlx::query_scalar(sql).bind(questions).bind(node).bind(TAKEN_S as f64).fetch_one(&mut **c).await?
        }
        Db::Sqlite(c) => sqlx::query_scalar(sql).bind(questions).fetch_one(&mut **c).await?,
    };
    Ok(serde_json::from_str(&known).map_err(|error| sqlx::Error::Decode(error.into()))?)
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

/// What a batch brings about.
struct Batch<'a> {
    node: NodeId,
    rows: &'a [Row<'a>],
    heads: &'a [Head],
    named: &'a [Named],
    keys: &'a [Key<'a>],
    versions: &'a HashMap<UserId, i64>,
}

/// Stores all that a batch brings about in one round trip: on SQLite statements in a row that share their parameters, on
/// Postgres one statement with writing CTEs. Returns the channels that were still as they are said to have been, and
/// therefore were written to.
async fn insert(
    db: &mut Db,
    now: Timestamp,
    batch: &Batch<'_>,
    transaction: Transaction,
) -> Result<HashSet<StreamId>, sqlx::Error> {
    let Batch { node, rows, heads, named, keys, versions } = batch;
    if rows.is_empty() {
        if transaction == Transaction::Begun && matches!(db, Db::Sqlite(_)) {
            db.run("COMMIT").await?;
        }
        return Ok(HashSet::new());
    }
    // Whoever writes has read what stands above.
    let mut read: HashMap<(ChannelId, UserId), (i64, i64)> = HashMap::new();
    for row in *rows {
        read.insert((row.c, row.a), (row.s, row.n));
    }
    let author = |((c, u), (s, n))| Author { c, u, s, n, v: versions.get(&u).copied().unwrap_or(0) };
    let mut read: Vec<Author> = read.into_iter().map(author).collect();
    read.sort_unstable_by_key(|author| (author.c, author.u));
    /// The statements, with something in front of them and behind them on SQLite.
    macro_rules! insert {
        ($begin:literal, $commit:literal) => {
            concat!(
                $begin,
                "UPDATE streams SET last_seq = h.s, last_message_no = h.n FROM (SELECT unhex(value ->> 'c', '-') AS c, \
                    value ->> 'was' AS was, value ->> 's' AS s, value ->> 'n' AS n FROM json_each($6)) h \
                    WHERE streams.id = h.c AND streams.last_seq = h.was; \
                INSERT INTO messages (channel_id, seq, id, message_no, author_id, client_msg_id, text, mentions, \
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
                $commit
            )
        };
    }
    let sql = by_dialect!(db,
        postgres: "WITH changed AS (SELECT a.c FROM json_to_recordset($3::json) AS a(c uuid, u uuid, v bigint) \
                JOIN users ON users.id = a.u AND users.version <> a.v), \
            head AS (UPDATE streams SET last_seq = h.s, last_message_no = h.n, owner_epoch = owner_epoch + h.t, \
                owner = CASE h.t WHEN 1 THEN $7 ELSE owner END, \
                owned_at = CASE h.t WHEN 1 THEN clock_timestamp() ELSE owned_at END FROM json_to_recordset($6::json) \
                AS h(c uuid, was bigint, e bigint, s bigint, n bigint, t bigint) WHERE streams.id = h.c \
                AND streams.last_seq = h.was AND streams.owner_epoch = h.e AND h.c NOT IN (SELECT c FROM changed) \
                RETURNING streams.id), \
            b AS (SELECT * FROM json_to_recordset($1::json) AS b(c uuid, s bigint, n bigint, i uuid, e uuid, \
                a uuid, k text, t text, m text, p text) JOIN head ON head.id = b.c), \
            message AS (INSERT INTO messages (channel_id, seq, id, message_no, author_id, client_msg_id, text, mentions, \
                created_at) SELECT c, s, i, n, a, k, t, m, $2 FROM b), \
            event AS (INSERT INTO events (stream_id, seq, event_id, kind, actor_id, payload, created_at) \
                SELECT c, s, e, 'message.created', a, p, $2 FROM b), \
            mark AS (UPDATE members SET read_seq = r.s, read_no = r.n FROM json_to_recordset($3::json) \
                AS r(c uuid, u uuid, s bigint, n bigint) JOIN head ON head.id = r.c \
                WHERE channel_id = r.c AND user_id = r.u), \
            mention AS (INSERT INTO mentions (channel_id, user_id, seq, message_no) SELECT n.c, n.u, n.s, n.n \
                FROM json_to_recordset($4::json) AS n(c uuid, u uuid, s bigint, n bigint) JOIN head ON head.id = n.c), \
            kept AS (INSERT INTO idempotency (user_id, key, body_hash, response, created_at) \
                SELECT k.u, k.k, decode(k.h, 'hex'), k.r, $2 FROM json_to_recordset($5::json) \
                AS k(c uuid, u uuid, k text, h text, r text) JOIN head ON head.id = k.c) \
            SELECT id FROM head",
        sqlite: match transaction {
            Transaction::Own => insert!("BEGIN IMMEDIATE; ", "; COMMIT"),
            Transaction::Begun => insert!("", "; COMMIT"),
            Transaction::Open => insert!("", ""),
        },
    );
    let (rows, moved, read, named, keys) = (json(&rows), json(&heads), json(&read), json(&named), json(&keys));
    macro_rules! bound {
        ($query:expr) => {
            $query.bind(rows).bind(now).bind(read).bind(named).bind(keys).bind(moved)
        };
    }
    let stored: Vec<StreamId> = match db {
        Db::Postgres(c) => bound!(sqlx::query_scalar(sql)).bind(node).fetch_all(&mut **c).await?,
        // Nobody else writes: the heads are where they were read, or were moved to. If not, a primary key is there already.
        Db::Sqlite(c) => {
            bound!(sqlx::query(sql)).execute(&mut **c).await?;
            heads.iter().map(|head| head.c.into()).collect()
        }
    };
    Ok(stored.into_iter().collect())
}

/// Returns the first answers to be kept under their keys.
fn keys<'a>(items: &[Item<'a>], going: &[usize], answers: &'a [String]) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for (at, answer) in going.iter().zip(answers) {
        if let Some((key, hash)) = &items[*at].key {
            keys.push(Key { c: items[*at].send.channel_id, u: items[*at].author, k: key, h: hex(hash), r: answer });
        }
    }
    keys
}
