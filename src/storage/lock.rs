//! One server a database: a lock that the system gives back when its holder ends, however it ends.
//!
//! Two servers on one database would store correctly, but each one's readers would not hear of what the other wrote, unless
//! both are nodes of a cluster: those share the lock.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use tokio_util::task::AbortOnDropHandle;

use super::{OpenError, Options, postgres};

/// Holds a database for this process until it is dropped.
#[derive(Debug)]
pub struct Lock {
    #[expect(dead_code, reason = "it holds by being there")]
    held: Held,
    was_lost: Arc<AtomicBool>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "it holds by being there")]
enum Held {
    /// An advisory lock of a connection's session, or of its transaction through a pooler, and who takes it again when that
    /// is lost.
    Postgres(AbortOnDropHandle<()>),
    /// A locked file beside the database. Not the database itself: SQLite's own locks end when any handle to it is closed.
    Sqlite(File),
}

/// The first half of the advisory lock's key; the second one stands for the schema.
const COLINK: i32 = 0x636f_6c69;
/// How long Postgres may take to notice that the last holder is dead.
const PATIENCE: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(100);
/// How often the connection with the lock is looked after: Postgres may be started anew, and its locks are gone then.
const LOOK: Duration = Duration::from_secs(1);
/// How long an answer of Postgres may take meanwhile.
const ANSWER: Duration = Duration::from_secs(5);

impl Lock {
    /// Takes the database for this process, or for this and others that share it; nothing if another one holds it in
    /// another way.
    pub async fn take(options: &Options, shared: bool) -> Result<Option<Lock>, OpenError> {
        let was_lost = Arc::default();
        let held = match options.sqlite_path() {
            Some(path) => lock_file(path)?.map(Held::Sqlite),
            None => {
                let patience = PATIENCE + options.timeout;
                let silent = || {
                    let text = format!("no answer within {} ms", patience.as_millis());
                    OpenError::Connect(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, text)))
                };
                let taken = tokio::time::timeout(patience, lock_postgres(options, shared)).await;
                taken.map_err(|_| silent())??.map(|connection| {
                    let kept = keep(connection, options.clone(), shared, Arc::clone(&was_lost));
                    Held::Postgres(AbortOnDropHandle::new(tokio::spawn(kept)))
                })
            }
        };
        Ok(held.map(|held| Lock { held, was_lost }))
    }

    /// Returns whether it was lost for a while, as far as that was noticed by now: another process may have had the database.
    #[must_use]
    pub fn was_lost(&self) -> bool {
        self.was_lost.load(Ordering::Relaxed)
    }
}

fn lock_file(database: &Path) -> Result<Option<File>, OpenError> {
    let mut path: PathBuf = match database.canonicalize() {
        Ok(path) => path,
        // The first start makes the file.
        Err(_) => database.to_owned(),
    };
    path.as_mut_os_string().push(".lock");
    let failed = |error: io::Error| OpenError::Lock(format!("{}: {error}", path.display()));
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Looks after the connection with the lock, and takes the lock again when it is lost.
async fn keep(connection: PgConnection, options: Options, shared: bool, was_lost: Arc<AtomicBool>) {
    let mut held = Some(connection);
    loop {
        tokio::time::sleep(LOOK).await;
        if let Some(connection) = &mut held {
            if matches!(tokio::time::timeout(ANSWER, connection.ping()).await, Ok(Ok(()))) {
                continue;
            }
            was_lost.store(true, Ordering::Relaxed);
            tracing::warn!("the connection that keeps other servers off the database was lost: taking the lock again");
            held = None;
        }
        match tokio::time::timeout(ANSWER, lock_postgres(&options, shared)).await {
            Ok(Ok(Some(connection))) => held = Some(connection),
            Ok(Ok(None)) => tracing::error!("another server runs on this database: stop one of the two"),
            // The database is away, which the store tells.
            Ok(Err(_)) => {}
            Err(_) => tracing::warn!("the lock that keeps other servers off the database could not be taken in time"),
        }
    }
}

async fn lock_postgres(options: &Options, shared: bool) -> Result<Option<PgConnection>, OpenError> {
    let connect = postgres::connect(&options.url, options.pooled, "colink lock")?;
    let mut connection = PgConnection::connect_with(&connect).await.map_err(OpenError::Connect)?;
    let begin = if options.pooled {
        // A pooler leaves a session to whoever has a transaction open in it. This one reads nothing, so it keeps no old
        // versions of rows from being cleaned up.
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0"
    } else {
        // A machine that is cut off says no goodbye: its session ends within half a minute.
        "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4; \
         SET idle_session_timeout = 0"
    };
    sqlx::raw_sql(begin).execute(&mut connection).await.map_err(OpenError::Connect)?;
    let sql = match (options.pooled, shared) {
        (false, false) => "SELECT pg_try_advisory_lock($1, hashtext(COALESCE(current_schema(), '')))",
        (false, true) => "SELECT pg_try_advisory_lock_shared($1, hashtext(COALESCE(current_schema(), '')))",
        (true, false) => "SELECT pg_try_advisory_xact_lock($1, hashtext(COALESCE(current_schema(), '')))",
        (true, true) => "SELECT pg_try_advisory_xact_lock_shared($1, hashtext(COALESCE(current_schema(), '')))",
    };
    let since = Instant::now();
    loop {
        let taken = sqlx::query_scalar(sql).bind(COLINK).fetch_one(&mut connection).await;
        if taken.map_err(OpenError::Connect)? {
            return Ok(Some(connection));
        }
        if since.elapsed() >= PATIENCE {
            return Ok(None);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_takes_connections_and_says_nothing_is_not_waited_for_for_ever() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = Options::new(format!("postgres://colink@{}/colink", silent.local_addr().unwrap()));
        options.timeout = Duration::from_millis(100);
        let taken =
            tokio::time::timeout(3 * PATIENCE, Lock::take(&options, false)).await.expect("there is an end to it");
        let error = taken.unwrap_err().to_string();
        assert!(error.contains("no answer within 3100 ms"), "{error}");
    }
}
