//! How a batch of writes ends that was not committed.
//!
//! A connection may break while it commits, or not answer any more. Its callers are told that the outcome is not known, and
//! may repeat with the same key. What took effect all the same is found in the database: by who looks for the streams that
//! moved on, at the latest when something later shows a gap.

use super::StoreError;

/// How a batch ended when it was not committed.
pub(super) enum Failure {
    /// Nothing was written: it may be tried again.
    RolledBack(StoreError),
    /// The database did not say whether it committed.
    Unknown(StoreError),
}

impl Failure {
    /// Tells what became of a transaction whose last statement, which commits it, failed.
    pub(super) fn of_commit(error: sqlx::Error) -> Self {
        let broken_rule =
            error.as_database_error().is_some_and(|error| !matches!(error.kind(), sqlx::error::ErrorKind::Other));
        let rolled_back = broken_rule || gave_up(&error) || is_full(&error);
        if rolled_back { Failure::RolledBack(error.into()) } else { Failure::Unknown(error.into()) }
    }

    /// Returns whether the database refused a statement because of what is stored, such as a key that is there already.
    pub(super) fn breaks_a_rule(&self) -> bool {
        let Failure::RolledBack(StoreError::Database(error)) = self else { return false };
        error.as_database_error().is_some_and(|error| !matches!(error.kind(), sqlx::error::ErrorKind::Other))
    }

    /// Returns whether so many writes may fare better if they are tried again as they are: another node was in the way, by
    /// locks in another order (`deadlock_detected`), or with the same name or key at the same time, which is seen now.
    pub(super) fn may_pass(&self, writes: usize) -> bool {
        match self {
            Failure::RolledBack(StoreError::Database(error)) if has_code(error, &["40P01"]) => true,
            _ => writes == 1 && self.breaks_a_rule(),
        }
    }

    /// Returns whether its writes may fare better one by one. What is locked now is locked for each of them, and they
    /// would wait for it one after the other; and there is no more room for one than for all.
    pub(super) fn may_be_one_item(&self) -> bool {
        match self {
            Failure::RolledBack(StoreError::Database(error)) => !is_locked(error) && !is_full(error),
            Failure::RolledBack(_) => true,
            Failure::Unknown(_) => false,
        }
    }

    /// Returns whether the next write may fare no better: the database took too long, did not answer, or has no room.
    pub(super) fn may_be_the_database(&self) -> bool {
        match self {
            Failure::RolledBack(StoreError::Database(error)) => {
                error.as_database_error().is_none() || gave_up(error) || is_full(error)
            }
            Failure::RolledBack(_) => false,
            Failure::Unknown(_) => true,
        }
    }

    /// Returns whether the database could not be asked, or said nothing.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Failure::RolledBack(StoreError::Database(error)) | Failure::Unknown(StoreError::Database(error)) => {
                error.as_database_error().is_none()
            }
            Failure::RolledBack(_) => false,
            Failure::Unknown(_) => true,
        }
    }
}

/// Returns whether the database has no room for what was to be written, and wrote nothing of it: Postgres' `disk_full`,
/// SQLite's `SQLITE_FULL`.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    has_code(error, &["53100", "13"])
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
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    has_code(error, &["55P03", "5"])
}

/// Returns whether the database refused something with one of these codes.
pub(super) fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| codes.contains(&&*code))
}
