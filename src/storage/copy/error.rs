//! Why a copy was not made, and the way out.

use std::fmt::{Display, Formatter};

/// Which of the two databases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// It is read.
    Source,
    /// It is written.
    Target,
}

impl Display for Side {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Source => "the source",
            Side::Target => "the target",
        })
    }
}

/// Why a copy was not made, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It must not be made; the target is as it was.
    #[error("{0}")]
    Refused(String),
    /// A database failed. The same command goes on from there.
    #[error("{side} failed ({doing}): {error}{}", hint(error))]
    Failed {
        /// Which one.
        side: Side,
        /// What was asked of it.
        doing: String,
        /// What it said.
        error: sqlx::Error,
    },
    /// A database did not answer. The same command goes on from there.
    #[error("{side} did not answer within {for_s} s ({doing}): run the same command again, it goes on from there")]
    Stalled {
        /// Which one.
        side: Side,
        /// What was asked of it.
        doing: String,
        /// How many seconds it was waited for.
        for_s: u64,
    },
}

impl CopyError {
    pub(super) fn failed(side: Side, doing: &str, error: sqlx::Error) -> Self {
        CopyError::Failed { side, doing: doing.to_owned(), error }
    }

    pub(super) fn schema(error: sqlx::Error) -> Self {
        CopyError::Refused(format!("cannot read the schema: {error}"))
    }
}

/// Returns the way out of what a database said.
fn hint(error: &sqlx::Error) -> &'static str {
    if matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) {
        return ": see that it runs and can be reached, and run the same command again";
    }
    match error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() {
        Some("53100" | "13") => ": make room on its disk and run the same command again, it goes on from there",
        Some("42501" | "8") => ": the role or user needs the right to: let it own the database, or write the file",
        Some("28P01" | "28000") => ": see to the user and password; PGPASSFILE or PGPASSWORD may give the password",
        Some("3D000") => ": make it first, by CREATE DATABASE",
        Some("55P03" | "5") => ": something else has it locked; run the same command again, it goes on from there",
        Some("14") => ": see that the folder is there and may be written to",
        _ => "",
    }
}
