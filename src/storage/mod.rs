//! The store: the truth, in Postgres or SQLite, by one body of SQL.
//!
//! [`Store`] hands out connections ([`Db`]); every function here takes one, has its SQL beside its row type, and runs on
//! both databases: [`on!`] compiles one body for each, [`by_dialect!`] names the rare differences. Writes go through
//! [`writer`] alone, which commits what waits in one transaction; [`apply`] is what a command does inside it, [`send`] the
//! short way of messages. Reads take a connection from the pool, but for pages of history, which may come from a [`replica`].
//! [`lock`] keeps a second server off the database; [`copy`] takes a whole hub from one database to another, [`partition`] makes
//! one ready for a very large hub; [`postgres`] is what is set in Postgres' sessions and asked of its settings.
//!
//! To add a table: a numbered file in `migrations/`, its name in [`migrations`], a file here with the SQL and the row
//! types, and a test in `contract`, which runs on both databases.

pub mod accounts;
pub mod apply;
pub mod cache;
pub mod catch_up;
pub mod channels;
pub mod consumers;
#[cfg(test)]
mod contract;
pub mod copy;
pub mod events;
mod failure;
pub mod idempotency;
pub mod last_seen;
pub mod lock;
pub mod messages;
mod migrations;
pub mod nodes;
pub mod partition;
pub mod personal;
pub mod postgres;
pub mod remembered;
pub mod replica;
pub mod search;
pub mod send;
pub mod tokens;
mod types;
pub mod users;
pub mod writer;

use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{PgPool, Sqlite, SqlitePool};

use crate::clock::Timestamp;
use crate::domain::id::ChannelId;

pub use migrations::newest as newest_migration;
use replica::Replica;

/// Where a page of a list that is ordered by time ends. What one commit wrote has one time, so it takes the entry too:
/// its channel and its `seq`.
pub type End = (Timestamp, ChannelId, i64);

/// The end of the page before the first one: newer than every entry.
pub(crate) const NEWEST: End = (LATEST, ChannelId(uuid::Uuid::max()), i64::MAX);
/// Later than every time that is stored; both databases can hold it.
pub(crate) const LATEST: Timestamp = Timestamp(i64::MAX / 2);

/// Which database it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// Postgres 15 or later.
    Postgres,
    /// SQLite 3.41 or later, built in.
    Sqlite,
}

/// One connection. Reads use it as it is; [`writer`] opens transactions on its own.
#[derive(Debug)]
pub enum Db {
    /// To Postgres.
    Postgres(postgres::Lent),
    /// To a SQLite file.
    Sqlite(PoolConnection<Sqlite>),
}

/// Runs one body on whichever database `$db` is connected to; `$conn` is the connection within the body.
macro_rules! on {
    ($db:expr, $conn:ident => $body:expr) => {
        match $db {
            $crate::storage::Db::Postgres(connection) => {
                let $conn = &mut **connection;
                $body
            }
            $crate::storage::Db::Sqlite(connection) => {
                let $conn = &mut **connection;
                $body
            }
        }
    };
}
pub(crate) use on;

/// Picks the SQL of the one database or the other.
macro_rules! by_dialect {
    ($db:expr, postgres: $postgres:expr, sqlite: $sqlite:expr $(,)?) => {
        match $db.dialect() {
            $crate::storage::Dialect::Postgres => $postgres,
            $crate::storage::Dialect::Sqlite => $sqlite,
        }
    };
}
pub(crate) use by_dialect;

/// Reads a row of either database into a type, by one body.
macro_rules! from_row {
    ($type:ty, $row:ident => $body:expr) => {
        impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for $type {
            fn from_row($row: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
                use sqlx::Row as _;
                Ok($body)
            }
        }
        impl<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow> for $type {
            fn from_row($row: &'r sqlx::sqlite::SqliteRow) -> Result<Self, sqlx::Error> {
                use sqlx::Row as _;
                Ok($body)
            }
        }
    };
}
pub(crate) use from_row;

impl Db {
    /// Returns which database this is connected to.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self {
            Db::Postgres(_) => Dialect::Postgres,
            Db::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Runs a statement that has no parameters and returns no rows.
    pub(crate) async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        on!(self, db => { sqlx::query(sql).execute(db).await?; });
        Ok(())
    }

    /// Gives the connection up without returning it to the pool: it may be in the middle of a transaction.
    pub(crate) fn discard(self) {
        match self {
            Db::Postgres(connection) => drop(connection.detach()),
            Db::Sqlite(connection) => drop(connection.detach()),
        }
    }
}

/// About how many bytes of text are read at once: whoever wants more asks for what is behind.
pub const PAGE_BYTES: usize = 1_024 * 1_024;

/// Takes rows off a query: at most `limit` of them, and no more than about [`PAGE_BYTES`], but one at least. Returns
/// whether there are more. The rest is not read into memory.
pub(crate) async fn page<T>(
    mut rows: BoxStream<'_, Result<T, sqlx::Error>>,
    limit: i64,
    bytes: impl Fn(&T) -> usize,
) -> Result<(Vec<T>, bool), StoreError> {
    let (mut found, mut read) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        read += bytes(&row);
        if found.len() as i64 >= limit || (read > PAGE_BYTES && !found.is_empty()) {
            return Ok((found, true));
        }
        found.push(row);
    }
    Ok((found, false))
}

/// Returns the pattern of `LIKE … ESCAPE '!'` for what holds a text, in lower case. An empty one fits everything.
pub(crate) fn holds(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern + "%"
}

/// What a write or a read ended with when it did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The rules refused it; nothing was changed.
    #[error(transparent)]
    Refused(#[from] crate::domain::error::Refusal),
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct Options {
    /// `sqlite://PATH` or `postgres://…`.
    pub url: String,
    /// Connections for reads.
    pub connections: u32,
    /// How long to wait for a connection, and for an answer in all.
    pub timeout: Duration,
    /// How long one statement may take on Postgres; zero: no limit.
    pub statement: Duration,
    /// How long to wait for what another connection has locked.
    pub lock: Duration,
    /// Where a replica of a Postgres is.
    pub replica: Option<String>,
    /// Whether a pooler in transaction mode stands before Postgres: nothing that is set in a session lasts.
    pub pooled: bool,
}

impl Options {
    /// Reaches the database at `url` by a few connections, with a few seconds for everything.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        let few = Duration::from_secs(5);
        Options {
            url: url.into(),
            connections: 4,
            timeout: few,
            statement: few,
            lock: few,
            replica: None,
            pooled: false,
        }
    }

    /// Returns the file, if it is SQLite.
    fn sqlite_path(&self) -> Option<&Path> {
        self.url.strip_prefix("sqlite://").or_else(|| self.url.strip_prefix("sqlite:")).map(Path::new)
    }
}

async fn within<T, E: From<StoreError>>(
    patience: Duration,
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(patience, question).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Database(sqlx::Error::PoolTimedOut).into()),
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is of no kind that this server knows.
    #[error("cannot use database.url: expected sqlite://PATH or postgres://USER@HOST/DATABASE")]
    Url,
    /// The database does not answer or refuses the connection.
    #[error("cannot open the database: {0}")]
    Connect(sqlx::Error),
    /// A pooler is between, and it or the configuration does not do for one.
    #[error("cannot use this Postgres: {0}")]
    Pooler(&'static str),
    /// The file that keeps other servers off cannot be had.
    #[error("cannot lock the database: {0}")]
    Lock(String),
    /// The schema could not be brought up to date.
    #[error("cannot migrate the database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// It needs a newer program.
    #[error(
        "the schema of this database is at version {there} and needs a program that knows version {oldest}, and this one knows \
         {known}: start a newer release"
    )]
    Newer {
        /// The version of the schema.
        there: i64,
        /// The one that a program has to know.
        oldest: i64,
        /// The newest one that this program knows.
        known: i64,
    },
    /// A migration did not get a lock.
    #[error(
        "migration {version} waited {s} s for a table that others use for long: see pg_stat_activity for old transactions, and \
         start again"
    )]
    InUse {
        /// The migration.
        version: i64,
        /// For how many seconds it was tried.
        s: u64,
    },
    /// The database does not keep what it says it kept.
    #[error("the database runs with {0}: acknowledged messages could be lost; set it to `on`")]
    NotDurable(String),
    /// Only a part of a hub is there, or what it was while others still wrote to it.
    #[error(
        "this database is a copy that is not finished: run the same `colink store copy` again, with no server on the \
         source, until it says that the copy is complete"
    )]
    UnfinishedCopy,
}

/// The store. Cloning it shares it.
#[derive(Clone, Debug)]
pub enum Store {
    /// A Postgres server.
    Postgres {
        /// Connections that read.
        readers: PgPool,
        /// The connection that writes, opened by the writer's own runtime.
        writer: PgPool,
        /// A replica that pages of history are read from.
        replica: Option<Replica>,
        /// Whether a pooler in transaction mode stands before it.
        pooled: bool,
        /// How long a question may take.
        patience: Duration,
    },
    /// A SQLite file.
    Sqlite {
        /// Connections that only read.
        readers: SqlitePool,
        /// The one connection that writes.
        writer: SqlitePool,
        /// How long a question may take.
        patience: Duration,
    },
}

impl Store {
    /// Opens the store, making the SQLite file if there is none, and checks that it keeps what it acknowledges.
    pub async fn open(options: &Options) -> Result<Store, OpenError> {
        let url = options.url.as_str();
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return postgres::open(options).await;
        }
        Store::open_sqlite(options.sqlite_path().ok_or(OpenError::Url)?, options).await
    }

    async fn open_sqlite(path: &Path, options: &Options) -> Result<Store, OpenError> {
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(options.lock)
            .statement_cache_capacity(256)
            .pragma("temp_store", "memory")
            // Rarely reached: the writer has what it wrote moved from the log to the file by another connection.
            .pragma("wal_autocheckpoint", "32000");
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(options.timeout)
            .connect_with(connect.clone().pragma("cache_size", "-65536"))
            .await
            .map_err(OpenError::Connect)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(options.connections)
            .acquire_timeout(options.timeout)
            .connect_lazy_with(connect.pragma("query_only", "on").pragma("cache_size", "-2000"));
        Ok(Store::Sqlite { readers, writer, patience: options.timeout })
    }

    /// Brings the schema up to date. Safe to run again, and on several nodes at once. Refuses a copy that is not finished.
    pub async fn migrate(&self) -> Result<(), OpenError> {
        copy::refuse_unfinished(self).await?;
        self.bring_schema_up_to_date().await
    }

    async fn bring_schema_up_to_date(&self) -> Result<(), OpenError> {
        migrations::run(self, migrations::FILES).await
    }

    /// Returns a connection for reading. What is written and committed before is seen.
    pub async fn read(&self) -> Result<Db, StoreError> {
        self.read_for("others").await
    }

    /// Returns a connection for reading, which is counted by what it is for.
    pub(crate) async fn read_for(&self, what: &'static str) -> Result<Db, StoreError> {
        metrics::counter!("colink_database_reads_total", "for" => what).increment(1);
        Ok(match self {
            Store::Postgres { readers, patience, .. } => {
                Db::Postgres(postgres::Lent::new(readers.acquire().await?, *patience))
            }
            Store::Sqlite { readers, .. } => Db::Sqlite(readers.acquire().await?),
        })
    }

    /// Gives a question up that takes longer than `database.timeout_ms` in all, whatever it waits for.
    pub async fn in_time<T, E: From<StoreError>>(&self, question: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let (Store::Postgres { patience, .. } | Store::Sqlite { patience, .. }) = self;
        within(*patience, question).await
    }

    /// Gives a question up that takes longer than half of that: what is asked for comes behind it.
    pub async fn in_half_the_time<T, E: From<StoreError>>(
        &self,
        question: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (Store::Postgres { patience, .. } | Store::Sqlite { patience, .. }) = self;
        within(*patience / 2, question).await
    }

    /// Returns the connection that writes; on SQLite there is only one.
    pub(crate) async fn write(&self) -> Result<Db, StoreError> {
        Ok(match self {
            Store::Postgres { writer, patience, .. } => {
                Db::Postgres(postgres::Lent::new(writer.acquire().await?, *patience))
            }
            Store::Sqlite { writer, .. } => Db::Sqlite(writer.acquire().await?),
        })
    }

    /// Moves what SQLite keeps in its write-ahead log to its file, without getting into the way of anyone.
    pub(crate) async fn checkpoint(&self) -> Result<(), StoreError> {
        if let Store::Sqlite { readers, .. } = self {
            sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *readers.acquire().await?).await?;
        }
        Ok(())
    }

    /// Returns which database this is.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self {
            Store::Postgres { .. } => Dialect::Postgres,
            Store::Sqlite { .. } => Dialect::Sqlite,
        }
    }

    /// Returns which settings of the database could be better for a hub; none of SQLite, which has those that this sets.
    pub async fn weaknesses(&self) -> Result<Vec<postgres::Weakness>, StoreError> {
        match (self, self.read().await?) {
            (Store::Postgres { pooled, .. }, Db::Postgres(mut db)) => Ok(postgres::weaknesses(&mut db, *pooled).await?),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the database's own version, and so whether it answers.
    pub async fn version(&self) -> Result<String, StoreError> {
        let mut db = self.read().await?;
        let sql = by_dialect!(db, postgres: "SELECT version()", sqlite: "SELECT 'SQLite ' || sqlite_version()");
        Ok(on!(&mut db, c => sqlx::query_scalar(sql).fetch_one(c).await?))
    }

    /// Closes every connection. Waits, without a limit, for those that are in use.
    pub async fn close(&self) {
        match self {
            Store::Postgres { readers, writer, replica, .. } => {
                let replica = async {
                    if let Some(replica) = replica {
                        replica.close().await;
                    }
                };
                tokio::join!(readers.close(), writer.close(), replica);
            }
            Store::Sqlite { readers, writer, .. } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }
}
