//! `messages` and `events` in partitions, for a database of hundreds of gigabytes: vacuum, indexes and backups then work on pieces of a
//! size.
//!
//! Both are partitioned by a hash of what their keys begin with: the channel, or the stream. So the keys are unique over all
//! partitions (one message a channel and number, one event a stream and number), and a statement, each of which names a channel or
//! a stream, touches one partition. A client's own key of a message is unique in `idempotency`, which is small and stays whole. No
//! other code knows of this, but for who builds an index ([`super::migrations`]).
//!
//! It is done to an empty database, before a hub is copied into it.

use sqlx::{AssertSqlSafe, PgConnection};

use super::lock::Lock;
use super::{OpenError, Options, Store};

/// What is partitioned, and by what.
const TABLES: &[(&str, &str)] = &[("messages", "channel_id"), ("events", "stream_id")];

/// The most partitions: each is locked by who makes them, and planned for by who reads all.
pub const MOST: u32 = 256;

/// Why a database was not partitioned.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// It must not be, or not so; it is as it was.
    #[error("{0}")]
    Refused(&'static str),
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// Gives an empty Postgres database this program's schema, with so many partitions of each of its two large tables. One that is
/// partitioned already is left as it is.
pub async fn partition(url: &str, parts: u32) -> Result<(), PartitionError> {
    if !(2..=MOST).contains(&parts) {
        return Err(PartitionError::Refused("there are from 2 to 256 partitions"));
    }
    let options = Options::new(url);
    if url.starts_with("sqlite:") {
        return Err(PartitionError::Refused("SQLite has no partitions: name a Postgres database"));
    }
    let Some(_held) = Lock::take(&options, false).await? else {
        return Err(PartitionError::Refused("a server runs on this database: nothing was changed"));
    };
    let store = Store::open(&options).await?;
    store.migrate().await?;
    let Store::Postgres { readers, .. } = &store else { return Err(OpenError::Url.into()) };
    for (table, by) in TABLES {
        let mut transaction = readers.begin().await?;
        one(&mut transaction, table, by, parts).await?;
        transaction.commit().await?;
    }
    store.close().await;
    Ok(())
}

async fn one(db: &mut PgConnection, table: &str, by: &str, parts: u32) -> Result<(), PartitionError> {
    run(db, format!("LOCK TABLE {table}")).await?;
    let sql = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)";
    if sqlx::query_scalar(sql).bind(table).fetch_one(&mut *db).await? {
        return Ok(());
    }
    let has_rows = AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 FROM {table})"));
    if sqlx::query_scalar(has_rows).fetch_one(&mut *db).await? {
        let why = "this database has messages: make an empty one, partition that, and copy the hub into it";
        return Err(PartitionError::Refused(why));
    }
    // As the schema has them now, whatever migrations made of it: keys and references, then all other indexes.
    let sql = "SELECT 'ALTER TABLE ' || $1 || ' ADD CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid) \
               FROM pg_constraint WHERE conrelid = to_regclass($1) AND contype IN ('p', 'u', 'f') \
               UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = to_regclass($1) \
               AND indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE conrelid = to_regclass($1))";
    let keys: Vec<String> = sqlx::query_scalar(sql).bind(table).fetch_all(&mut *db).await?;
    run(db, format!("ALTER TABLE {table} RENAME TO {table}_whole")).await?;
    let like =
        format!("LIKE {table}_whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE");
    run(db, format!("CREATE TABLE {table} ({like}) PARTITION BY HASH ({by})")).await?;
    run(db, format!("DROP TABLE {table}_whole")).await?;
    for n in 0..parts {
        let values = format!("FOR VALUES WITH (MODULUS {parts}, REMAINDER {n})");
        run(db, format!("CREATE TABLE {table}_p{n:03} PARTITION OF {table} {values}")).await?;
    }
    for key in keys {
        run(db, key).await?;
    }
    Ok(())
}

async fn run(db: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await.map(drop)
}
