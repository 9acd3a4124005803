//! Postgres as a hub reaches it: what is set in its sessions, and what its own settings have to promise.
//!
//! A pooler in transaction mode (PgBouncer) gives every transaction another session, so that nothing that is set in one, or
//! locked by one, lasts ([`Options::pooled`]). Then the limits are the role's own, and [`weaknesses`] says which it lacks; a
//! lock is held by a transaction that stays open ([`super::lock`]). Statements are prepared by name all the same: a pooler that
//! does not look after them is refused. docs/adr/0013 says why.

use std::collections::HashMap;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::failure::has_code;
use super::replica::Replica;
use super::{OpenError, Options, Store};

/// Returns how to connect to the server of a URL under a name that its lists show.
pub(super) fn connect(url: &str, pooled: bool, name: &str) -> Result<PgConnectOptions, OpenError> {
    let connect: PgConnectOptions = url.parse().map_err(|_| OpenError::Url)?;
    let connect = connect.application_name(name);
    // PgBouncer refuses whoever wants it set for the session.
    Ok(if pooled { connect.extra_float_digits(None) } else { connect })
}

/// Opens the store, and checks that the server keeps what it acknowledges.
pub(super) async fn open(options: &Options) -> Result<Store, OpenError> {
    let connect = connect(&options.url, options.pooled, "colink")?;
    let readers = pool(options, options.connections, limits(options));
    let readers = readers.connect_with(connect.clone()).await.map_err(refused)?;
    // A writer looks up a few rows by their keys. Plans are made once, when the tables are still small, and kept.
    let by_key = "; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";
    let writer = pool(options, 1, limits(options) + by_key).connect_lazy_with(connect);
    let mut first = readers.acquire().await.map_err(OpenError::Connect)?;
    if options.pooled {
        refuse_unless_names_are_kept_apart(&mut first).await?;
    }
    let settings = settings(&mut first).await.map_err(OpenError::Connect)?;
    for setting in ["synchronous_commit", "fsync"] {
        if settings.get(setting).is_some_and(|value| value == "off") {
            return Err(OpenError::NotDurable(format!("{setting} = off")));
        }
    }
    drop(first);
    let replica = options.replica.as_ref().map(|url| Replica::new(url, options)).transpose()?;
    Ok(Store::Postgres { readers, writer, replica, pooled: options.pooled, patience: options.timeout })
}

/// Makes a pool for reading whose connections are opened when they are needed.
pub(super) fn readers(options: &Options) -> Result<PgPool, OpenError> {
    let connect = connect(&options.url, options.pooled, "colink")?;
    Ok(pool(options, options.connections, limits(options)).connect_lazy_with(connect))
}

/// Returns what is set in each session.
fn limits(options: &Options) -> String {
    format!(
        // Who is cut off in the middle of something keeps others waiting no longer than they have patience for.
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = 5000; \
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3",
        options.statement.as_millis(),
        options.lock.as_millis()
    )
}

/// A connection of a pool, which gets it back when this is dropped.
///
/// sqlx 0.9 tests by a ping what comes back (`PoolConnection::return_to_pool`, which its own drop spawns), and that may take for
/// ever. A connection that was given up in the middle of a read, because its server went silent, would keep its place until
/// the system gives it up: a quarter of an hour. So it is closed if it does not answer in time.
#[derive(Debug)]
pub struct Lent {
    /// There until it is dropped.
    connection: Option<PoolConnection<Postgres>>,
    /// How long it may take to come back.
    patience: Duration,
}

const LENT: &str = "it is there until it is dropped";

impl Lent {
    /// Takes a connection of a pool, which may take as long as `patience` to come back.
    pub(super) fn new(connection: PoolConnection<Postgres>, patience: Duration) -> Lent {
        Lent { connection: Some(connection), patience }
    }

    /// Takes the connection out of its pool, for good.
    pub(super) fn detach(mut self) -> PgConnection {
        self.connection.take().expect(LENT).detach()
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect(LENT)
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect(LENT)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let (back, patience) = (connection.return_to_pool(), self.patience);
        // Who is dropped outside of a runtime is closed.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if timeout(patience, back).await.is_err() {
                    tracing::info!("a connection to the database does not answer any more: it is closed");
                }
            });
        }
    }
}

/// Tests a connection that nobody used for a while.
async fn test(connection: &mut PgConnection, patience: Duration) -> Result<bool, sqlx::Error> {
    let silent = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
    timeout(patience, connection.ping()).await.unwrap_or_else(silent).map(|()| true)
}

/// Makes a pool of connections with the same settings; through a pooler there are none, for others would get them.
fn pool(options: &Options, most: u32, settings: String) -> PgPoolOptions {
    // There has to be time left for a new one. sqlx's own test has the whole time, so that who meets one that is silent gets none.
    let patience = options.timeout / 2;
    let pool = PgPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(options.timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection, _| Box::pin(test(connection, patience)));
    if options.pooled {
        return pool;
    }
    let settings: Arc<str> = settings.into();
    pool.after_connect(move |connection, _| {
        let settings = sqlx::AssertSqlSafe(settings.to_string());
        Box::pin(async move { sqlx::raw_sql(settings).execute(connection).await.map(drop) })
    })
}

/// Says what to do when a pooler does not take what is set at the start of a session.
fn refused(error: sqlx::Error) -> OpenError {
    match error.to_string().contains("unsupported startup parameter") {
        true => OpenError::Pooler("this is a pooler: set database.pooled"),
        false => OpenError::Connect(error),
    }
}

/// Refuses a pooler that passes on the names of prepared statements as they are: another session does not know them, or knows
/// somebody else's.
async fn refuse_unless_names_are_kept_apart(connection: &mut PgConnection) -> Result<(), OpenError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_prepared_statements WHERE name LIKE 'sqlx%')";
    let as_they_are = match sqlx::query_scalar(sql).fetch_one(connection).await {
        Ok(as_they_are) => as_they_are,
        // `duplicate_prepared_statement` and `invalid_sql_statement_name`.
        Err(error) if has_code(&error, &["42P05", "26000"]) => true,
        Err(error) => return Err(OpenError::Connect(error)),
    };
    match as_they_are {
        true => Err(OpenError::Pooler(
            "database.pooled is set, but there is no pooler between, or one that does not look after prepared statements: \
             PgBouncer does from 1.21 on, with max_prepared_statements above 0",
        )),
        false => Ok(()),
    }
}

/// A setting that is not as a hub wants it, though it may run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Weakness {
    /// Its name.
    pub setting: String,
    /// What it is, what may come of that, and what to do.
    pub advice: String,
}

/// What is looked at.
const SETTINGS: &[&str] = &[
    "fsync",
    "synchronous_commit",
    "synchronous_standby_names",
    "full_page_writes",
    "data_checksums",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
];

async fn settings(connection: &mut PgConnection) -> Result<HashMap<String, String>, sqlx::Error> {
    let sql = "SELECT name, setting FROM pg_settings WHERE name = ANY($1)";
    let rows: Vec<(String, String)> = sqlx::query_as(sql).bind(SETTINGS).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// Returns what a server could do better.
pub(super) async fn weaknesses(connection: &mut PgConnection, pooled: bool) -> Result<Vec<Weakness>, sqlx::Error> {
    Ok(weak(&settings(connection).await?, pooled))
}

fn weak(settings: &HashMap<String, String>, pooled: bool) -> Vec<Weakness> {
    let is = |setting: &str, value: &str| settings.get(setting).is_some_and(|found| found == value);
    let has_standbys = !is("synchronous_standby_names", "");
    let mut found = Vec::new();
    let mut say = |wrong: bool, setting: &str, advice: &str| {
        if wrong {
            found.push(Weakness { setting: setting.to_owned(), advice: advice.to_owned() });
        }
    };
    say(
        is("full_page_writes", "off"),
        "full_page_writes",
        "full_page_writes is off: a page that was half written when the machine died cannot be mended; set it to `on`, unless \
         the file system never tears a page, as ZFS does not",
    );
    say(
        is("data_checksums", "off"),
        "data_checksums",
        "data_checksums are off: a disk that gives back something else than it was given is not noticed; stop Postgres and \
         run `pg_checksums --enable`",
    );
    say(
        has_standbys && (is("synchronous_commit", "local") || is("synchronous_commit", "remote_write")),
        "synchronous_commit",
        "synchronous_commit does not wait until a standby has written: a failover may lose what was acknowledged; set it \
         to `on`",
    );
    for (setting, value) in
        [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "5s")]
    {
        let advice = format!(
            "{setting} is 0, and behind a pooler no session can set it: run `ALTER ROLE … SET {setting} = '{value}'` \
             for the hub's role"
        );
        say(pooled && is(setting, "0"), setting, &advice);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changed: &[(&str, &str)], pooled: bool) -> Vec<String> {
        let mut settings: HashMap<String, String> = [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("synchronous_standby_names", ""),
            ("full_page_writes", "on"),
            ("data_checksums", "on"),
            ("statement_timeout", "0"),
            ("lock_timeout", "5000"),
            ("idle_in_transaction_session_timeout", "5000"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        settings.extend(changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        weak(&settings, pooled).into_iter().map(|weakness| weakness.setting).collect()
    }

    #[test]
    fn what_may_lose_something_is_named() {
        assert!(names(&[], false).is_empty());
        assert_eq!(names(&[("full_page_writes", "off")], false), ["full_page_writes"]);
        assert_eq!(names(&[("data_checksums", "off")], false), ["data_checksums"]);
        assert!(names(&[("synchronous_commit", "local")], false).is_empty(), "there is no standby to wait for");
        let standby = ("synchronous_standby_names", "one");
        assert_eq!(names(&[("synchronous_commit", "local"), standby], false), ["synchronous_commit"]);
        assert!(names(&[("synchronous_commit", "remote_apply"), standby], false).is_empty());
        assert_eq!(names(&[], true), ["statement_timeout"], "no session sets it");
    }
}
