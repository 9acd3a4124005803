//! Messages and what hangs on them, as rows.

use std::collections::HashMap;

use super::apply::Scope;
use super::{Db, Dialect, End, LATEST, NEWEST, StoreError, by_dialect, from_row, on, page};
use crate::clock::Timestamp;
use crate::domain::id::{ChannelId, UserId};
use crate::domain::message::{Edit, Message, Reaction};

from_row!(Message, row => {
    let mentions: &str = row.try_get("mentions")?;
    Message {
        id: row.try_get("id")?,
        channel_id: row.try_get("channel_id")?,
        seq: row.try_get("seq")?,
        message_no: row.try_get("message_no")?,
        thread_seq: row.try_get("thread_seq")?,
        reply_no: row.try_get("reply_no")?,
        author_id: row.try_get("author_id")?,
        mentions: if mentions.is_empty() { Default::default() } else {
            serde_json::from_str(mentions).map_err(|e| sqlx::Error::Decode(e.into()))?
        },
        text: row.try_get("text")?,
        client_msg_id: row.try_get("client_msg_id")?,
        created_at: row.try_get("created_at")?,
        edited_at: row.try_get("edited_at")?,
        deleted_at: row.try_get("deleted_at")?,
        reply_count: row.try_get("reply_count")?,
        last_reply_seq: row.try_get("last_reply_seq")?,
        pinned: row.try_get("pinned")?,
        reactions: Vec::new(),
    }
});

macro_rules! select {
    () => {
        select!("", "")
    };
    ($more:literal, $by:literal) => {
        select!($more, " FROM messages m ", $by)
    };
    ($from:literal) => {
        select!("", $from, "")
    };
    ($more:literal, $from:literal, $by:literal) => {
        concat!(
            "SELECT m.id, m.channel_id, m.seq, m.message_no, m.thread_seq, m.reply_no, m.author_id, m.text, m.mentions, \
             m.client_msg_id, m.created_at, m.edited_at, m.deleted_at, m.reply_count, m.last_reply_seq, \
             p.seq IS NOT NULL AS pinned",
            $more,
            $from,
            $by,
            " LEFT JOIN pins p ON p.channel_id = m.channel_id AND p.seq = m.seq "
        )
    };
}

/// What of a message counts for the size of a page.
fn text_bytes(message: &Message) -> usize {
    message.text.len()
}

/// A message and how many reactions are on it; they are read behind it.
struct Counted {
    message: Message,
    reactions: i64,
}

from_row!(Counted, row => Counted { message: sqlx::FromRow::from_row(row)?, reactions: row.try_get("reactions")? });

impl Counted {
    /// Returns what counts for the size of a page: a reaction is an identifier in quotes, and a comma.
    fn bytes(&self) -> usize {
        text_bytes(&self.message) + usize::try_from(self.reactions).unwrap_or(0) * 39
    }
}

/// Selects [`Counted`].
macro_rules! select_counted {
    ($by:literal) => {
        select!(
            ", (SELECT COUNT(*) FROM reactions r WHERE r.channel_id = m.channel_id AND r.seq = m.seq) AS reactions",
            $by
        )
    };
}

/// Which part of a history.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Page {
    /// The newest messages.
    Newest,
    /// Those right before an event.
    Before(i64),
    /// Those right after an event.
    After(i64),
    /// Those around an event, itself included.
    Around(i64),
}

/// Whether a history goes on behind a page; nothing, where that was not asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct More {
    /// Whether there are older messages.
    pub older: Option<bool>,
    /// Whether there are newer ones.
    pub newer: Option<bool>,
}

impl More {
    /// Returns whether there are more in any direction that was asked for.
    #[must_use]
    pub fn any(self) -> bool {
        self.older == Some(true) || self.newer == Some(true)
    }
}

/// Returns messages in order, at most `limit` and [what fits on a page](super::PAGE_BYTES), and whether there are more: a
/// channel's top-level messages, or the replies in one of its threads.
pub async fn history(
    db: &mut Db,
    channel: ChannelId,
    thread: Option<i64>,
    page: Page,
    limit: i64,
) -> Result<(Vec<Message>, More), StoreError> {
    let (mut found, more) = match page {
        Page::Newest | Page::Before(_) => {
            let seq = if let Page::Before(seq) = page { seq } else { i64::MAX };
            let (found, older) = read(db, channel, thread, Side::Older(seq), limit).await?;
            (found, More { older: Some(older), newer: None })
        }
        Page::After(seq) => {
            let (found, newer) = read(db, channel, thread, Side::Newer(seq), limit).await?;
            (found, More { older: None, newer: Some(newer) })
        }
        Page::Around(seq) => {
            let (mut before, mut older) = read(db, channel, thread, Side::Older(seq), limit).await?;
            let (mut after, mut newer) = read(db, channel, thread, Side::Newer(seq.saturating_sub(1)), limit).await?;
            let all = usize::try_from(limit).unwrap_or(0);
            // Half of it older, unless there is less on the other side.
            let keep = (all / 2).max(all.saturating_sub(after.len())).min(before.len());
            older |= keep < before.len();
            before.drain(..before.len() - keep);
            newer |= all - keep < after.len();
            after.truncate(all - keep);
            before.append(&mut after);
            (before, More { older: Some(older), newer: Some(newer) })
        }
    };
    attach_reactions(db, channel, &mut found).await?;
    Ok((found, more))
}

/// The SQL of a part of a history: which way, and in what order. By itself SQLite reads the channel for a thread: it takes
/// a partial index for no better than the key.
macro_rules! part {
    ($db:expr, $thread:expr, $behind:literal) => {
        match ($thread, $db.dialect()) {
            (None, _) => concat!(
                select_counted!(""),
                "WHERE m.channel_id = $1 AND m.message_no IS NOT NULL AND $4 IS NULL AND m.seq ",
                $behind
            ),
            (Some(_), Dialect::Postgres) => {
                concat!(select_counted!(""), "WHERE m.channel_id = $1 AND m.thread_seq = $4 AND m.seq ", $behind)
            }
            (Some(_), Dialect::Sqlite) => concat!(
                select_counted!("INDEXED BY messages_by_thread"),
                "WHERE m.channel_id = $1 AND m.thread_seq = $4 AND m.seq ",
                $behind
            ),
        }
    };
}

/// Reads what is right before an event, or right after it; in order, and with whether there are more.
async fn read(
    db: &mut Db,
    channel: ChannelId,
    thread: Option<i64>,
    side: Side,
    limit: i64,
) -> Result<(Vec<Message>, bool), StoreError> {
    let (sql, seq) = match side {
        Side::Older(seq) => (part!(db, thread, "< $2 ORDER BY m.seq DESC LIMIT $3"), seq),
        Side::Newer(seq) => (part!(db, thread, "> $2 ORDER BY m.seq LIMIT $3"), seq),
    };
    let (mut found, more) = on!(db, c => page(sqlx::query_as(sql).bind(channel).bind(seq).bind(limit + 1).bind(thread)
        .fetch(c), limit, Counted::bytes).await?);
    if matches!(side, Side::Older(_)) {
        found.reverse();
    }
    Ok((found.into_iter().map(|counted| counted.message).collect(), more))
}

/// Which side of an event.
#[derive(Clone, Copy)]
enum Side {
    Older(i64),
    Newer(i64),
}

/// Returns a message with its reactions.
pub async fn one(db: &mut Db, channel: ChannelId, seq: i64) -> Result<Option<Message>, StoreError> {
    let Some(message) = bare(db, channel, seq).await? else { return Ok(None) };
    let mut found = [message];
    attach_reactions(db, channel, &mut found).await?;
    let [message] = found;
    Ok(Some(message))
}

/// Returns a message without its reactions.
pub(super) async fn bare(db: &mut Db, channel: ChannelId, seq: i64) -> Result<Option<Message>, StoreError> {
    let sql = concat!(select!(), "WHERE m.channel_id = $1 AND m.seq = $2");
    Ok(on!(db, c => sqlx::query_as(sql).bind(channel).bind(seq).fetch_optional(c).await?))
}

/// Returns messages with their reactions, in any order: those of these that are there.
pub async fn by_keys(db: &mut Db, keys: &[(ChannelId, i64)]) -> Result<Vec<Message>, StoreError> {
    let keys = serde_json::to_string(keys).expect("lists have no keys");
    let sql = by_dialect!(db,
        postgres: select!(" FROM json_array_elements($1::json) k JOIN messages m ON m.channel_id = (k.value ->> 0)::uuid \
                           AND m.seq = (k.value ->> 1)::bigint "),
        sqlite: select!(" FROM json_each($1) k CROSS JOIN messages m ON m.channel_id = unhex(k.value ->> 0, '-') \
                         AND m.seq = k.value ->> 1 "),
    );
    let mut found: Vec<Message> = on!(db, c => sqlx::query_as(sql).bind(&keys).fetch_all(c).await?);
    let sql = by_dialect!(db,
        postgres: "SELECT r.channel_id, r.seq, r.emoji, r.user_id FROM json_array_elements($1::json) k JOIN reactions r \
                   ON r.channel_id = (k.value ->> 0)::uuid AND r.seq = (k.value ->> 1)::bigint ORDER BY r.created_at, r.emoji",
        sqlite: "SELECT r.channel_id, r.seq, r.emoji, r.user_id FROM json_each($1) k CROSS JOIN reactions r \
                 ON r.channel_id = unhex(k.value ->> 0, '-') AND r.seq = k.value ->> 1 ORDER BY r.created_at, r.emoji",
    );
    let rows: Vec<(ChannelId, i64, String, UserId)> = on!(db, c => sqlx::query_as(sql).bind(&keys).fetch_all(c).await?);
    let places: HashMap<(ChannelId, i64), usize> =
        found.iter().enumerate().map(|(at, message)| ((message.channel_id, message.seq), at)).collect();
    for (channel, seq, emoji, user) in rows {
        if let Some(at) = places.get(&(channel, seq)) {
            react(&mut found[*at].reactions, emoji, user);
        }
    }
    Ok(found)
}

/// A message that is pinned.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The message.
    pub message: Message,
    /// When it was pinned.
    pub pinned_at: Timestamp,
}

from_row!(Pinned, row => Pinned { message: sqlx::FromRow::from_row(row)?, pinned_at: row.try_get("pinned_at")? });

/// Returns a channel's pinned messages, newest pin first, those behind `end`, and whether there are more.
pub async fn pinned(
    db: &mut Db,
    channel: ChannelId,
    end: Option<(Timestamp, i64)>,
    limit: i64,
) -> Result<(Vec<Pinned>, bool), StoreError> {
    let sql = concat!(
        select!(", p.pinned_at", ""),
        "WHERE p.channel_id = $1 AND (p.pinned_at, p.seq) < ($2, $3) ORDER BY p.pinned_at DESC, p.seq DESC LIMIT $4"
    );
    let (at, seq) = end.unwrap_or((LATEST, i64::MAX));
    let bytes = |pinned: &Pinned| text_bytes(&pinned.message);
    on!(db, c => page(sqlx::query_as(sql).bind(channel).bind(at).bind(seq).bind(limit + 1).fetch(c), limit, bytes).await)
}

/// Returns a message's earlier texts, oldest first, those that an event behind `after` replaced, and whether there are
/// more.
pub async fn edits(
    db: &mut Db,
    channel: ChannelId,
    seq: i64,
    after: i64,
    limit: i64,
) -> Result<(Vec<Edit>, bool), StoreError> {
    let sql = "SELECT edit_seq, text, editor_id, edited_at FROM edits \
               WHERE channel_id = $1 AND seq = $2 AND edit_seq > $3 ORDER BY edit_seq LIMIT $4";
    let bytes = |edit: &Edit| edit.text.len();
    on!(db, c => page(sqlx::query_as(sql).bind(channel).bind(seq).bind(after).bind(limit + 1).fetch(c), limit, bytes).await)
}

from_row!(Edit, row => Edit {
    edit_seq: row.try_get("edit_seq")?,
    text: row.try_get("text")?,
    editor_id: row.try_get("editor_id")?,
    edited_at: row.try_get("edited_at")?,
});

/// Gives messages, in order, all reactions on them. What is between them, such as replies, may have many more.
async fn attach_reactions(db: &mut Db, channel: ChannelId, messages: &mut [Message]) -> Result<(), StoreError> {
    if messages.is_empty() {
        return Ok(());
    }
    let seqs: Vec<i64> = messages.iter().map(|message| message.seq).collect();
    let seqs = serde_json::to_string(&seqs).expect("lists have no keys");
    let sql = by_dialect!(db,
        postgres: "SELECT seq, emoji, user_id FROM reactions WHERE channel_id = $1 AND seq = \
                   ANY(ARRAY(SELECT value::bigint FROM json_array_elements_text($2::json))) \
                   ORDER BY seq, created_at, emoji",
        sqlite: "SELECT seq, emoji, user_id FROM reactions WHERE channel_id = $1 AND seq IN \
                 (SELECT value FROM json_each($2)) ORDER BY seq, created_at, emoji",
    );
    let rows: Vec<(i64, String, UserId)> =
        on!(db, c => sqlx::query_as(sql).bind(channel).bind(seqs).fetch_all(c).await?);
    for (seq, emoji, user) in rows {
        if let Ok(at) = messages.binary_search_by_key(&seq, |m| m.seq) {
            react(&mut messages[at].reactions, emoji, user);
        }
    }
    Ok(())
}

fn react(reactions: &mut Vec<Reaction>, emoji: String, user: UserId) {
    match reactions.iter_mut().find(|r| r.emoji == emoji) {
        Some(reaction) => reaction.users.push(user),
        None => reactions.push(Reaction { emoji, users: vec![user] }),
    }
}

/// Inserts a message whose numbers are known; `last_no` is the number of the channel's newest top-level message.
pub(super) async fn insert_one(scope: &mut Scope<'_>, message: &Message, last_no: i64) -> Result<(), StoreError> {
    let mentions = mentions_text(message);
    let after_no = message.message_no.is_none().then_some(last_no);
    let sql = "INSERT INTO messages (channel_id, seq, id, message_no, thread_seq, reply_no, author_id, client_msg_id, \
               text, mentions, created_at, after_no) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    on!(scope.db, db => { sqlx::query(sql).bind(message.channel_id).bind(message.seq).bind(message.id)
        .bind(message.message_no).bind(message.thread_seq).bind(message.reply_no).bind(message.author_id)
        .bind(&message.client_msg_id).bind(&message.text).bind(&mentions).bind(message.created_at).bind(after_no)
        .execute(db).await?; });
    Ok(())
}

/// Counts a reply on the message that its thread hangs on; returns the reply's number in the thread. A thread goes on when
/// its first message is deleted; none begins there.
pub(super) async fn count_reply(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    thread_seq: i64,
    reply_seq: i64,
) -> Result<Option<i64>, StoreError> {
    let sql = "UPDATE messages SET reply_count = reply_count + 1, last_reply_seq = $3 WHERE channel_id = $1 AND seq = $2 \
               AND thread_seq IS NULL AND (deleted_at IS NULL OR reply_count > 0) RETURNING reply_count";
    Ok(on!(scope.db, db => sqlx::query_scalar(sql).bind(channel).bind(thread_seq).bind(reply_seq).fetch_optional(db)
        .await?))
}

/// Returns the JSON of a message's mentions as it is stored: empty for none.
pub(super) fn mentions_text(message: &Message) -> String {
    if message.mentions.is_empty() {
        return String::new();
    }
    serde_json::to_string(&message.mentions).expect("mentions have only string keys")
}

/// Returns whom a message names: the keys of its rows in `mentions`.
fn named(message: &Message) -> impl Iterator<Item = UserId> {
    let everybody = message.mentions.channel || message.mentions.here;
    message.mentions.users.iter().copied().chain(everybody.then_some(super::channels::EVERYBODY))
}

/// Stores whom a message names.
pub(super) async fn add_mentions(scope: &mut Scope<'_>, message: &Message) -> Result<(), StoreError> {
    for user in named(message) {
        let sql = "INSERT INTO mentions (channel_id, user_id, seq, message_no, thread_seq) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT DO NOTHING";
        on!(scope.db, db => { sqlx::query(sql).bind(message.channel_id).bind(user).bind(message.seq)
            .bind(message.message_no).bind(message.thread_seq).execute(db).await?; });
    }
    Ok(())
}

/// Forgets whom a message names.
async fn remove_mentions(scope: &mut Scope<'_>, message: &Message) -> Result<(), StoreError> {
    for user in named(message) {
        let sql = "DELETE FROM mentions WHERE channel_id = $1 AND user_id = $2 AND seq = $3";
        on!(scope.db, db => { sqlx::query(sql).bind(message.channel_id).bind(user).bind(message.seq).execute(db).await?; });
    }
    Ok(())
}

/// Replaces a message's text and keeps the earlier one.
pub(super) async fn edit(
    scope: &mut Scope<'_>,
    before: &Message,
    after: &Message,
    edit_seq: i64,
) -> Result<(), StoreError> {
    let (now, editor) = (scope.now, scope.caller.user_id);
    let sql =
        "INSERT INTO edits (channel_id, seq, edit_seq, text, editor_id, edited_at) VALUES ($1, $2, $3, $4, $5, $6)";
    on!(scope.db, db => { sqlx::query(sql).bind(before.channel_id).bind(before.seq).bind(edit_seq).bind(&before.text)
        .bind(editor).bind(now).execute(db).await?; });
    let mentions = mentions_text(after);
    let sql = "UPDATE messages SET text = $3, mentions = $4, edited_at = $5 WHERE channel_id = $1 AND seq = $2";
    on!(scope.db, db => { sqlx::query(sql).bind(after.channel_id).bind(after.seq).bind(&after.text).bind(&mentions)
        .bind(now).execute(db).await?; });
    remove_mentions(scope, before).await?;
    add_mentions(scope, after).await
}

/// Empties a message and removes all that hangs on it but its thread. The event log forgets the text too.
pub(super) async fn delete(scope: &mut Scope<'_>, message: &Message) -> Result<(), StoreError> {
    let (now, channel, seq) = (scope.now, message.channel_id, message.seq);
    let sql = "UPDATE messages SET text = '', mentions = '', deleted_at = $3 WHERE channel_id = $1 AND seq = $2";
    on!(scope.db, db => { sqlx::query(sql).bind(channel).bind(seq).bind(now).execute(db).await?; });
    for sql in [
        "DELETE FROM edits WHERE channel_id = $1 AND seq = $2",
        "DELETE FROM reactions WHERE channel_id = $1 AND seq = $2",
        "DELETE FROM pins WHERE channel_id = $1 AND seq = $2",
        "DELETE FROM saved WHERE channel_id = $1 AND seq = $2",
    ] {
        on!(scope.db, db => { sqlx::query(sql).bind(channel).bind(seq).execute(db).await?; });
    }
    remove_mentions(scope, message).await
}

/// Adds a reaction; returns whether it was not there.
pub(super) async fn add_reaction(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    seq: i64,
    emoji: &str,
) -> Result<bool, StoreError> {
    let (now, user) = (scope.now, scope.caller.user_id);
    let sql = "INSERT INTO reactions (channel_id, seq, emoji, user_id, created_at) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT DO NOTHING";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(seq).bind(emoji).bind(user).bind(now)
        .execute(db).await?.rows_affected());
    Ok(rows == 1)
}

/// Returns how many different emoji are on a message, and whether `emoji` is one of them.
pub(super) async fn emoji_on(
    db: &mut Db,
    channel: ChannelId,
    seq: i64,
    emoji: &str,
) -> Result<(i64, bool), StoreError> {
    // From one emoji to the next, past all who reacted with it.
    let sql = "WITH RECURSIVE found(emoji) AS ( \
                 SELECT (SELECT emoji FROM reactions WHERE channel_id = $1 AND seq = $2 ORDER BY emoji LIMIT 1) UNION ALL \
                 SELECT (SELECT r.emoji FROM reactions r WHERE r.channel_id = $1 AND r.seq = $2 AND r.emoji > found.emoji \
                   ORDER BY r.emoji LIMIT 1) FROM found WHERE found.emoji IS NOT NULL) \
               SELECT emoji FROM found WHERE emoji IS NOT NULL";
    let found: Vec<String> = on!(db, c => sqlx::query_scalar(sql).bind(channel).bind(seq).fetch_all(c).await?);
    Ok((found.len() as i64, found.iter().any(|e| e == emoji)))
}

/// Removes a reaction; returns whether it was there.
pub(super) async fn remove_reaction(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    seq: i64,
    emoji: &str,
) -> Result<bool, StoreError> {
    let user = scope.caller.user_id;
    let sql = "DELETE FROM reactions WHERE channel_id = $1 AND seq = $2 AND emoji = $3 AND user_id = $4";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(seq).bind(emoji).bind(user).execute(db).await?
        .rows_affected());
    Ok(rows == 1)
}

/// Pins a message; returns whether it was not pinned.
pub(super) async fn pin(scope: &mut Scope<'_>, channel: ChannelId, seq: i64) -> Result<bool, StoreError> {
    let (now, user) = (scope.now, scope.caller.user_id);
    let sql = "INSERT INTO pins (channel_id, seq, pinned_by, pinned_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(seq).bind(user).bind(now).execute(db).await?
        .rows_affected());
    Ok(rows == 1)
}

/// Returns how many messages are pinned in a channel.
pub(super) async fn pin_count(db: &mut Db, channel: ChannelId) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM pins WHERE channel_id = $1";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(channel).fetch_one(c).await?))
}

/// Unpins a message; returns whether it was pinned.
pub(super) async fn unpin(scope: &mut Scope<'_>, channel: ChannelId, seq: i64) -> Result<bool, StoreError> {
    let sql = "DELETE FROM pins WHERE channel_id = $1 AND seq = $2";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(seq).execute(db).await?.rows_affected());
    Ok(rows == 1)
}

/// Returns the number of the newest top-level message up to an event; 0 if there is none.
pub(super) async fn number_at(db: &mut Db, channel: ChannelId, seq: i64) -> Result<i64, StoreError> {
    let sql = "SELECT COALESCE(message_no, after_no) FROM messages WHERE channel_id = $1 AND seq <= $2 \
               ORDER BY seq DESC LIMIT 1";
    let number: Option<i64> = on!(db, c => sqlx::query_scalar(sql).bind(channel).bind(seq).fetch_optional(c).await?);
    Ok(number.unwrap_or(0))
}

/// Returns the number of a thread's newest reply up to an event; 0 if there is none.
pub(super) async fn reply_no_at(db: &mut Db, channel: ChannelId, thread_seq: i64, seq: i64) -> Result<i64, StoreError> {
    macro_rules! newest {
        ($by:literal) => {
            concat!(
                "SELECT reply_no FROM messages ",
                $by,
                " WHERE channel_id = $1 AND thread_seq = $2 AND seq <= $3 ORDER BY seq DESC LIMIT 1"
            )
        };
    }
    let sql = by_dialect!(db, postgres: newest!(""), sqlite: newest!("INDEXED BY messages_by_thread"));
    let number: Option<i64> =
        on!(db, c => sqlx::query_scalar(sql).bind(channel).bind(thread_seq).bind(seq).fetch_optional(c).await?);
    Ok(number.unwrap_or(0))
}

/// A message that its reader saved.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Saved {
    /// The message.
    pub message: Message,
    /// When it was saved.
    pub saved_at: Timestamp,
}

from_row!(Saved, row => Saved { message: sqlx::FromRow::from_row(row)?, saved_at: row.try_get("saved_at")? });

/// Returns the messages that a user saved and may still read, newest first, those behind `end`, and whether there are
/// more.
pub async fn saved(db: &mut Db, user: UserId, end: Option<End>, limit: i64) -> Result<(Vec<Saved>, bool), StoreError> {
    let sql = "SELECT m.id, m.channel_id, m.seq, m.message_no, m.thread_seq, m.reply_no, m.author_id, m.text, m.mentions, \
        m.client_msg_id, m.created_at, m.edited_at, m.deleted_at, m.reply_count, m.last_reply_seq, \
        p.seq IS NOT NULL AS pinned, s.saved_at FROM saved s \
        JOIN messages m ON m.channel_id = s.channel_id AND m.seq = s.seq \
        JOIN members b ON b.channel_id = s.channel_id AND b.user_id = s.user_id \
        LEFT JOIN pins p ON p.channel_id = m.channel_id AND p.seq = m.seq \
        WHERE s.user_id = $1 AND (s.saved_at, s.channel_id, s.seq) < ($2, $3, $4) \
        ORDER BY s.saved_at DESC, s.channel_id DESC, s.seq DESC LIMIT $5";
    let (at, channel, seq) = end.unwrap_or(NEWEST);
    let bytes = |saved: &Saved| text_bytes(&saved.message);
    on!(db, c => page(sqlx::query_as(sql).bind(user).bind(at).bind(channel).bind(seq).bind(limit + 1).fetch(c), limit,
        bytes).await)
}
