//! What is one user's own: read state, drafts, saved messages, preferences, followed threads.

use super::apply::Scope;
use super::channels::EVERYBODY;
use super::{Db, End, NEWEST, StoreError, events, from_row, on, page};
use crate::clock::Timestamp;
use crate::domain::channel::Notify;
use crate::domain::id::{ChannelId, UserId};

/// Moves the read mark of a member; nothing happens to anybody else. Returns whether it moved.
pub(super) async fn set_read(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    (seq, number): (i64, i64),
    to: Move,
) -> Result<bool, StoreError> {
    let user = scope.caller.user_id;
    let sql = match to {
        Move::Anywhere => "UPDATE members SET read_seq = $3, read_no = $4 WHERE channel_id = $1 AND user_id = $2",
        Move::Forward => {
            "UPDATE members SET read_seq = $3, read_no = $4 WHERE channel_id = $1 AND user_id = $2 AND read_seq < $3"
        }
    };
    Ok(on!(scope.db, db => {
        sqlx::query(sql).bind(channel).bind(user).bind(seq).bind(number).execute(db).await?.rows_affected() == 1
    }))
}

/// Saves or forgets a message; returns whether that changed anything.
pub(super) async fn set_saved(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    seq: i64,
    saved: bool,
) -> Result<bool, StoreError> {
    let (now, user) = (scope.now, scope.caller.user_id);
    let rows = if saved {
        let sql =
            "INSERT INTO saved (channel_id, seq, user_id, saved_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        on!(scope.db, db => sqlx::query(sql).bind(channel).bind(seq).bind(user).bind(now).execute(db).await?
            .rows_affected())
    } else {
        let sql = "DELETE FROM saved WHERE channel_id = $1 AND seq = $2 AND user_id = $3";
        on!(scope.db, db => sqlx::query(sql).bind(channel).bind(seq).bind(user).execute(db).await?.rows_affected())
    };
    Ok(rows == 1)
}

/// A draft.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Draft {
    /// The channel.
    pub channel_id: ChannelId,
    /// The thread, if it is a reply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub thread_seq: Option<i64>,
    /// The text so far.
    pub text: String,
    /// When it last changed.
    pub updated_at: Timestamp,
}

from_row!(Draft, row => Draft {
    channel_id: row.try_get("channel_id")?,
    thread_seq: Some(row.try_get::<i64, _>("thread_seq")?).filter(|seq| *seq != 0),
    text: row.try_get("text")?,
    updated_at: row.try_get("updated_at")?,
});

/// Keeps a draft of the caller's where there is none; `event_seq` is the event of their stream that tells of it.
pub(super) async fn insert_draft(scope: &mut Scope<'_>, draft: &Draft, event_seq: i64) -> Result<(), StoreError> {
    let user = scope.caller.user_id;
    let sql = "INSERT INTO drafts (user_id, channel_id, thread_seq, text, updated_at, event_seq) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    on!(scope.db, db => { sqlx::query(sql).bind(user).bind(draft.channel_id).bind(draft.thread_seq.unwrap_or(0))
        .bind(&draft.text).bind(draft.updated_at).bind(event_seq).execute(db).await?; });
    Ok(())
}

/// Removes a user's drafts in a channel, all or those of one thread (0: of no thread). The event log forgets their texts
/// too, or it would keep what was said in a message long after that is deleted.
pub(super) async fn remove_drafts(
    scope: &mut Scope<'_>,
    user: UserId,
    channel: ChannelId,
    thread: Option<i64>,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM drafts WHERE user_id = $1 AND channel_id = $2 AND thread_seq = COALESCE($3, thread_seq) \
               RETURNING thread_seq, updated_at, event_seq";
    let removed: Vec<(i64, Timestamp, Option<i64>)> =
        on!(scope.db, db => sqlx::query_as(sql).bind(user).bind(channel).bind(thread).fetch_all(db).await?);
    for (thread, updated_at, event_seq) in removed {
        let thread_seq = Some(thread).filter(|seq| *seq != 0);
        let emptied = Draft { channel_id: channel, thread_seq, text: String::new(), updated_at };
        if let Some(seq) = event_seq {
            events::rewrite(scope, user.into(), seq, &emptied).await?;
        }
    }
    Ok(())
}

/// Returns a user's drafts, newest first, those behind `end`, and whether there are more.
pub async fn drafts(db: &mut Db, user: UserId, end: Option<End>, limit: i64) -> Result<(Vec<Draft>, bool), StoreError> {
    let sql = "SELECT channel_id, thread_seq, text, updated_at FROM drafts \
               WHERE user_id = $1 AND (updated_at, channel_id, thread_seq) < ($2, $3, $4) \
               ORDER BY updated_at DESC, channel_id DESC, thread_seq DESC LIMIT $5";
    let (at, channel, seq) = end.unwrap_or(NEWEST);
    let bytes = |draft: &Draft| draft.text.len();
    on!(db, c => page(sqlx::query_as(sql).bind(user).bind(at).bind(channel).bind(seq).bind(limit + 1).fetch(c), limit,
        bytes).await)
}

/// Sets what a member wants to be told of; what is `None` stays.
pub(super) async fn set_preferences(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    muted: Option<bool>,
    notify: Option<Notify>,
) -> Result<(bool, Notify), StoreError> {
    let user = scope.caller.user_id;
    let sql = "UPDATE members SET muted = COALESCE($3, muted), notify = COALESCE($4, notify) \
               WHERE channel_id = $1 AND user_id = $2 RETURNING muted, notify";
    Ok(on!(scope.db, db => sqlx::query_as(sql).bind(channel).bind(user).bind(muted).bind(notify).fetch_one(db).await?))
}

/// Follows or no longer follows a thread, up to now all read.
pub(super) async fn set_follow(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    thread_seq: i64,
    user: UserId,
    following: bool,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO thread_follows (channel_id, thread_seq, user_id, following, read_seq, read_no) \
               SELECT $1, $2, $3, $4, COALESCE(last_reply_seq, seq), reply_count FROM messages \
               WHERE channel_id = $1 AND seq = $2 \
               ON CONFLICT (channel_id, thread_seq, user_id) DO UPDATE SET following = excluded.following";
    on!(scope.db, db => { sqlx::query(sql).bind(channel).bind(thread_seq).bind(user).bind(following).execute(db).await?; });
    Ok(())
}

/// Follows a thread for somebody who takes part in it, unless they said otherwise; what came up to the event `read_seq`,
/// `read_no` replies, counts as read.
pub(super) async fn follow_by_default(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    thread_seq: i64,
    user: UserId,
    (read_seq, read_no): (i64, i64),
) -> Result<(), StoreError> {
    let sql = "INSERT INTO thread_follows (channel_id, thread_seq, user_id, following, read_seq, read_no) \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (channel_id, thread_seq, user_id) DO NOTHING";
    on!(scope.db, db => { sqlx::query(sql).bind(channel).bind(thread_seq).bind(user).bind(true).bind(read_seq)
        .bind(read_no).execute(db).await?; });
    Ok(())
}

/// Which way a read mark is moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// Forward, if it is behind.
    Forward,
    /// To wherever is said; in a thread, if it is followed.
    Anywhere,
}

/// Moves the read mark that the caller has in a thread; returns whether it moved.
pub(super) async fn move_thread_mark(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    thread_seq: i64,
    (seq, number): (i64, i64),
    way: Move,
) -> Result<bool, StoreError> {
    let user = scope.caller.user_id;
    let sql = "UPDATE thread_follows SET read_seq = $4, read_no = $5 WHERE channel_id = $1 AND thread_seq = $2 \
               AND user_id = $3 AND CASE WHEN $6 THEN following ELSE read_no < $5 END";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(thread_seq).bind(user).bind(seq).bind(number)
        .bind(way == Move::Anywhere).execute(db).await?.rows_affected());
    Ok(rows == 1)
}

/// A thread, and how far its reader is in it.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Thread {
    /// The channel.
    pub channel_id: ChannelId,
    /// The message that it hangs on.
    pub thread_seq: i64,
    /// Whether the reader follows it.
    pub following: bool,
    /// The `seq` of its newest reply.
    pub last_reply_seq: i64,
    /// When the newest reply was written; without one, when the message was that it hangs on.
    pub last_at: Timestamp,
    /// Replies in it.
    pub reply_count: i64,
    /// Everything up to this event was read.
    pub read_seq: i64,
    /// Replies not yet read: `reply_count` less the number of the last one read. For whoever never followed it, none are.
    pub unread_count: i64,
    /// Replies not yet read that mention the reader.
    pub mention_count: i64,
}

from_row!(Thread, row => {
    let (reply_count, read_no): (i64, i64) = (row.try_get("reply_count")?, row.try_get("read_no")?);
    Thread {
        channel_id: row.try_get("channel_id")?,
        thread_seq: row.try_get("thread_seq")?,
        following: row.try_get("following")?,
        last_reply_seq: row.try_get::<Option<i64>, _>("last_reply_seq")?.unwrap_or(0),
        last_at: row.try_get("last_at")?,
        reply_count,
        read_seq: row.try_get("read_seq")?,
        unread_count: (reply_count - read_no).max(0),
        mention_count: row.try_get("mention_count")?,
    }
});

/// Selects [`Thread`]s `m` of the reader `$1`, who follows them by `f` or does not; `$2` stands for everybody.
macro_rules! threads {
    ($join:literal) => {
        concat!(
            "SELECT m.channel_id, m.seq AS thread_seq, COALESCE(f.following, FALSE) AS following, \
               COALESCE(f.read_seq, m.last_reply_seq, m.seq) AS read_seq, COALESCE(f.read_no, m.reply_count) AS read_no, \
               m.reply_count, m.last_reply_seq, COALESCE(r.created_at, m.created_at) AS last_at, \
               (SELECT COUNT(DISTINCT x.seq) FROM mentions x WHERE x.channel_id = m.channel_id \
                 AND x.user_id IN (f.user_id, $2) AND x.seq > f.read_seq AND x.thread_seq = m.seq) AS mention_count FROM ",
            $join,
            " LEFT JOIN messages r ON r.channel_id = m.channel_id AND r.seq = m.last_reply_seq "
        )
    };
}

/// Returns the threads that a user follows in channels they are in, newest reply first, those behind `end`.
pub async fn followed(db: &mut Db, user: UserId, end: Option<End>, limit: i64) -> Result<Vec<Thread>, StoreError> {
    let sql = concat!(
        threads!("thread_follows f JOIN messages m ON m.channel_id = f.channel_id AND m.seq = f.thread_seq"),
        "JOIN members b ON b.channel_id = f.channel_id AND b.user_id = f.user_id \
         WHERE f.user_id = $1 AND f.following \
         AND (COALESCE(r.created_at, m.created_at), f.channel_id, f.thread_seq) < ($3, $4, $5) \
         ORDER BY last_at DESC, f.channel_id DESC, f.thread_seq DESC LIMIT $6"
    );
    let (at, channel, seq) = end.unwrap_or(NEWEST);
    Ok(on!(db, c => sqlx::query_as(sql).bind(user).bind(EVERYBODY).bind(at).bind(channel).bind(seq).bind(limit)
        .fetch_all(c).await?))
}

/// Returns the thread that hangs on a message, as a user stands in it; nothing if there is no such message, or it is a
/// reply itself.
pub async fn thread(db: &mut Db, user: UserId, channel: ChannelId, seq: i64) -> Result<Option<Thread>, StoreError> {
    let sql = concat!(
        threads!(
            "messages m LEFT JOIN thread_follows f \
             ON f.channel_id = m.channel_id AND f.thread_seq = m.seq AND f.user_id = $1"
        ),
        "WHERE m.channel_id = $3 AND m.seq = $4 AND m.thread_seq IS NULL"
    );
    Ok(on!(db, c => sqlx::query_as(sql).bind(user).bind(EVERYBODY).bind(channel).bind(seq).fetch_optional(c).await?))
}
