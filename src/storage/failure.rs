//! How a batch of writes ends that was not committed, and what became of it if the database did not say.
//!
//! A connection may break while it commits. Its callers are told that the outcome is not known; others must hear of what
//! was stored all the same, before they hear of anything later. So the writer keeps the news of that commit, and its next
//! connection asks for them first ([`settle`]), in a way after which they are stored or never will be.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use super::writer::News;
use super::{Db, StoreError, events, on};
use crate::domain::id::{EventId, StreamId};

/// How a batch ended when it was not committed.
pub(super) enum Failure {
    /// Nothing was written: it may be tried again.
    RolledBack(StoreError),
    /// The database did not say whether it committed; if it did, there is this to tell. The writer keeps that for itself.
    Unknown(StoreError, News),
}

impl Failure {
    /// Tells what became of a transaction whose last statement, which commits it, failed.
    pub(super) fn of_commit(error: sqlx::Error, news: News) -> Self {
        let broken_rule =
            error.as_database_error().is_some_and(|error| !matches!(error.kind(), sqlx::error::ErrorKind::Other));
        let rolled_back = broken_rule || gave_up(&error);
        if rolled_back { Failure::RolledBack(error.into()) } else { Failure::Unknown(error.into(), news) }
    }

    /// Returns whether the database refused a statement because of what is stored, such as a key that is there already.
    pub(super) fn breaks_a_rule(&self) -> bool {
        let Failure::RolledBack(StoreError::Database(error)) = self else { return false };
        error.as_database_error().is_some_and(|error| !matches!(error.kind(), sqlx::error::ErrorKind::Other))
    }

    /// Returns whether its writes may fare better one by one. What is locked now is locked for each of them, and they
    /// would wait for it one after the other.
    pub(super) fn may_be_one_item(&self) -> bool {
        match self {
            Failure::RolledBack(StoreError::Database(error)) => !is_locked(error),
            Failure::RolledBack(_) => true,
            Failure::Unknown(..) => false,
        }
    }

    /// Returns whether the next write may fare no better: the database took too long, or did not answer.
    pub(super) fn may_be_the_database(&self) -> bool {
        match self {
            Failure::RolledBack(StoreError::Database(error)) => error.as_database_error().is_none() || gave_up(error),
            Failure::RolledBack(_) => false,
            Failure::Unknown(..) => true,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::RolledBack(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Failure::RolledBack(error.into())
    }
}

/// Returns whether the database gave up on a statement that waited or ran for too long, and undid it: it waited for a
/// lock, or it was `query_canceled` or `deadlock_detected` in Postgres.
fn gave_up(error: &sqlx::Error) -> bool {
    is_locked(error) || has_code(error, &["57014", "40P01"])
}

/// Returns whether the database gave up on waiting for a lock: Postgres' `lock_not_available`, SQLite's `SQLITE_BUSY`.
fn is_locked(error: &sqlx::Error) -> bool {
    has_code(error, &["55P03", "5"])
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| codes.contains(&&*code))
}

/// Finds out what of the news is true, and will stay so. On Postgres the connection that was cut off may still be at work:
/// what it has begun, it holds locks for, which are waited for here; what has not begun does not pass the fence when it does
/// ([`super::send`]), for the epochs are raised. SQLite's connections live in this process and are closed when they are
/// given up.
pub(super) async fn settle(db: &mut Db, news: News) -> Result<News, StoreError> {
    if matches!(db, Db::Sqlite(_)) {
        return stored(db, news).await;
    }
    let streams: BTreeSet<StreamId> = news.events.iter().map(|event| event.stream).collect();
    let streams: Vec<StreamId> = streams.into_iter().collect();
    db.run("BEGIN").await?;
    let settled = async {
        events::lock_all(db, &streams).await?;
        events::raise_epochs(db, &streams).await?;
        let stored = stored(db, news).await?;
        db.run("COMMIT").await?;
        Ok(stored)
    };
    settled.await
}

/// Returns what of the news is true. A commit is stored as a whole, but messages on Postgres: there it leaves out a channel
/// that another process wrote to, so each stream is looked at. Sign-ins that ended without an event are taken for ended:
/// whoever hung on one signs in again.
pub(super) async fn stored(db: &mut Db, mut news: News) -> Result<News, StoreError> {
    let mut found: HashMap<StreamId, bool> = HashMap::new();
    for event in &news.events {
        if let Entry::Vacant(stream) = found.entry(event.stream) {
            let sql = "SELECT event_id FROM events WHERE stream_id = $1 AND seq = $2";
            let stored: Option<EventId> =
                on!(db, c => sqlx::query_scalar(sql).bind(event.stream).bind(event.seq).fetch_optional(c).await?);
            stream.insert(stored == Some(event.id));
        }
    }
    if !found.is_empty() && !found.values().any(|stored| *stored) {
        return Ok(News::default());
    }
    news.events.retain(|event| found[&event.stream]);
    Ok(news)
}
