//! The schema's history: one set of files for both databases, built into the binary.
//!
//! Migrations are append-only. A line that starts with `--@sqlite ` or `--@postgres ` is active on that database alone.
//!
//! Others write to the database meanwhile, nodes of the release before among them. So a migration only adds to the schema, or
//! raises the number in the table `compatibility`, by which older programs know that they may no longer run. On Postgres
//! it waits no longer than [`LOCK`] for a lock, for who comes later waits behind it, and is then tried again; and an index on a table
//! that was there before has a file of its own that begins with `-- concurrently`, and is built beside who writes ([`Index`]). A
//! test holds new files to these rules.

use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use super::failure::is_locked;
use super::{Db, Dialect, OpenError, Store, StoreError, by_dialect, on};

/// A migration: its number, its name and its text.
pub(super) type File = (i64, &'static str, &'static str);

/// All of them.
pub(super) const FILES: &[File] = &[
    (1, "users", include_str!("../../migrations/0001_users.sql")),
    (2, "channels", include_str!("../../migrations/0002_channels.sql")),
    (3, "sliding_sign_ins", include_str!("../../migrations/0003_sliding_sign_ins.sql")),
    (4, "lookups", include_str!("../../migrations/0004_lookups.sql")),
    (5, "status_ends", include_str!("../../migrations/0005_status_ends.sql")),
    (6, "drafts_in_the_log", include_str!("../../migrations/0006_drafts_in_the_log.sql")),
    (7, "cluster", include_str!("../../migrations/0007_cluster.sql")),
    (8, "last_seen", include_str!("../../migrations/0008_last_seen.sql")),
    (9, "compatibility", include_str!("../../migrations/0009_compatibility.sql")),
    (10, "consumers", include_str!("../../migrations/0010_consumers.sql")),
    (11, "search", include_str!("../../migrations/0011_search.sql")),
];

/// The first half of the key of the advisory lock that who migrates holds; the second one stands for the schema.
const MIGRATES: i32 = 0x636f_6c6d;
/// How often it is looked whether another program still migrates.
const AGAIN: Duration = Duration::from_millis(100);
/// After how long whoever waits for that is told.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// How long a migration waits for a lock at once: less than those who wait behind it have patience for.
const LOCK: Duration = Duration::from_secs(1);
/// How long it is tried again.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first pause between two tries, which doubles, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Returns the newest version that this binary knows.
pub fn newest() -> i64 {
    newest_of(FILES)
}

fn newest_of(files: &[File]) -> i64 {
    files.last().map_or(0, |file| file.0)
}

/// Brings the schema to the newest of `files`. Safe to run again, and on several nodes at once. Refuses a schema that is newer than
/// they are, unless they are enough to run on it.
pub(super) async fn run(store: &Store, files: &[File]) -> Result<(), OpenError> {
    refuse_newer(store, newest_of(files)).await?;
    match store {
        Store::Postgres { readers, pooled, .. } => on_postgres(readers, *pooled, files).await,
        Store::Sqlite { writer, .. } => Ok(migrator(files, Dialect::Sqlite).run(writer).await?),
    }
}

/// Returns the migrations as `dialect` runs them.
fn migrator(files: &[File], dialect: Dialect) -> Migrator {
    let migrations = files.iter().map(|(version, name, text)| {
        let sql = AssertSqlSafe(for_dialect(text, dialect));
        Migration::new(*version, (*name).into(), MigrationType::Simple, sqlx::SqlSafeStr::into_sql_str(sql), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // What is there and not known here is newer, and was looked at. Its lock is a session's.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
}

fn for_dialect(text: &str, dialect: Dialect) -> String {
    let prefix = match dialect {
        Dialect::Postgres => "--@postgres ",
        Dialect::Sqlite => "--@sqlite ",
    };
    let mut sql = String::with_capacity(text.len());
    for line in text.lines() {
        sql.push_str(line.strip_prefix(prefix).unwrap_or(line));
        sql.push('\n');
    }
    sql
}

/// Returns whether there is such a table.
pub(super) async fn exists(db: &mut Db, table: &str) -> Result<bool, sqlx::Error> {
    let sql = by_dialect!(db,
        postgres: "SELECT to_regclass($1) IS NOT NULL",
        sqlite: "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1)",
    );
    on!(db, c => sqlx::query_scalar(sql).bind(table.to_owned()).fetch_one(c).await)
}

/// Refuses a schema that needs a newer program than one whose newest migration is `known`.
async fn refuse_newer(store: &Store, known: i64) -> Result<(), OpenError> {
    let mut db = store.read().await.map_err(|error| match error {
        StoreError::Database(error) => OpenError::Connect(error),
        StoreError::Refused(refusal) => OpenError::Lock(refusal.to_string()),
    })?;
    let looked = async {
        if !exists(&mut db, "_sqlx_migrations").await? {
            return Ok((0, 0));
        }
        let sql = "SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations";
        let there: i64 = on!(&mut db, c => sqlx::query_scalar(sql).fetch_one(c).await?);
        if there <= known {
            return Ok((there, 0));
        }
        let oldest = on!(&mut db, c => sqlx::query_scalar("SELECT oldest FROM compatibility").fetch_one(c).await?);
        Ok((there, oldest))
    };
    let (there, oldest): (i64, i64) = looked.await.map_err(OpenError::Connect)?;
    if oldest > known {
        return Err(OpenError::Newer { there, oldest, known });
    }
    if there > known {
        tracing::info!(there, known, "the schema is newer than this program, which may run on it");
    }
    Ok(())
}

async fn on_postgres(pool: &PgPool, pooled: bool, files: &[File]) -> Result<(), OpenError> {
    let alone = alone(pool).await?;
    // Closed behind it: no other connection is so patient.
    let mut db = pool.acquire().await.map_err(OpenError::Connect)?.detach();
    if !pooled {
        let unlimited = "SET statement_timeout = 0; SET lock_timeout = 0";
        sqlx::raw_sql(unlimited).execute(&mut db).await.map_err(OpenError::Connect)?;
    }
    let migrator = migrator(files, Dialect::Postgres);
    let is_there = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    let is_there: bool = sqlx::query_scalar(is_there).fetch_one(&mut db).await.map_err(OpenError::Connect)?;
    let mut done: Vec<i64> = Vec::new();
    if is_there {
        let sql = "SELECT version FROM _sqlx_migrations";
        done = sqlx::query_scalar(sql).fetch_all(&mut db).await.map_err(OpenError::Connect)?;
    }
    for (version, _, text) in files {
        if !done.contains(version) {
            patiently(&mut db, &migrator, *version, text).await?;
        }
    }
    // Nothing is left to do but to see that what was done is what the files say.
    migrator.run(&mut db).await?;
    for connection in [db, alone] {
        connection.close().await.map_err(OpenError::Connect)?;
    }
    Ok(())
}

/// Waits until nobody else migrates this database, and keeps others from it as long as the connection is kept. Its transaction
/// stays open, for a pooler gives no session away for longer; between two looks it holds nothing that an index has to wait for.
async fn alone(pool: &PgPool) -> Result<PgConnection, OpenError> {
    let mut db = pool.acquire().await.map_err(OpenError::Connect)?.detach();
    let begin = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
    sqlx::raw_sql(begin).execute(&mut db).await.map_err(OpenError::Connect)?;
    let sql = "SELECT pg_try_advisory_xact_lock($1, hashtext(COALESCE(current_schema(), '')))";
    let (since, mut told) = (Instant::now(), false);
    while !sqlx::query_scalar(sql).bind(MIGRATES).fetch_one(&mut db).await.map_err(OpenError::Connect)? {
        if since.elapsed() >= TOLD_AFTER && !std::mem::replace(&mut told, true) {
            tracing::info!("another program migrates this database: waiting until it has");
        }
        tokio::time::sleep(AGAIN).await;
    }
    Ok(db)
}

/// Runs a migration, and tries again while others hold a lock that it needs.
async fn patiently(db: &mut PgConnection, migrator: &Migrator, version: i64, text: &str) -> Result<(), OpenError> {
    let (began, mut pause) = (Instant::now(), PAUSE.0);
    loop {
        match step(db, migrator, version, text).await {
            Err(error) if waited_for_a_lock(&error) && began.elapsed() < PATIENCE => {
                tracing::warn!(version, "a migration did not get its lock: another program uses a table for long");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
            Err(error) if waited_for_a_lock(&error) => return Err(OpenError::InUse { version, s: PATIENCE.as_secs() }),
            done => return Ok(done?),
        }
    }
}

async fn step(db: &mut PgConnection, migrator: &Migrator, version: i64, text: &str) -> Result<(), MigrateError> {
    if let Some(index) = Index::of(text) {
        index.build(db).await.map_err(|error| MigrateError::ExecuteMigration(error, version))?;
    }
    let mut transaction = db.begin().await?;
    let limits = format!("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {}", LOCK.as_millis());
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut *transaction).await?;
    migrator.run_to(version, &mut *transaction).await?;
    Ok(transaction.commit().await?)
}

fn waited_for_a_lock(error: &MigrateError) -> bool {
    matches!(error, MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) if is_locked(error))
}

/// An index on a table that may be large: on Postgres it is built beside those who write, before the migration itself finds it
/// there. One that was left half built is no good and is built anew.
struct Index<'a> {
    /// `CREATE INDEX` or `CREATE UNIQUE INDEX`.
    create: &'a str,
    name: &'a str,
    table: &'a str,
    /// Its columns and all that follows.
    of: &'a str,
}

impl<'a> Index<'a> {
    /// Reads a migration that begins with `-- concurrently`, and is one `CREATE INDEX IF NOT EXISTS … ON … (…)`.
    fn of(text: &'a str) -> Option<Index<'a>> {
        let sql = text.strip_prefix("-- concurrently\n")?;
        let comments: usize = sql.lines().take_while(|line| line.starts_with("--")).map(|line| line.len() + 1).sum();
        let (create, rest) = sql.get(comments..)?.split_once(" IF NOT EXISTS ")?;
        let (name, rest) = rest.split_once(" ON ")?;
        let (table, of) = rest.split_once(' ')?;
        Some(Index { create, name, table, of: of.trim().trim_end_matches(';') })
    }

    async fn build(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let sql = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                   WHERE i.inhparent = to_regclass($1) ORDER BY 1";
        let partitions: Vec<String> = sqlx::query_scalar(sql).bind(self.table).fetch_all(&mut *db).await?;
        let Index { create, name, table, of } = self;
        if partitions.is_empty() {
            return self.build_on(db, name, table).await;
        }
        // Postgres does not build one on a partitioned table beside others, but takes those of its partitions together.
        for partition in &partitions {
            self.build_on(db, &format!("{partition}_{name}"), partition).await?;
        }
        run(db, format!("{create} IF NOT EXISTS {name} ON ONLY {table} {of}")).await?;
        for partition in &partitions {
            run(db, format!("ALTER INDEX {name} ATTACH PARTITION {partition}_{name}")).await?;
        }
        return Ok(());

        async fn run(db: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await.map(drop)
        }
    }

    async fn build_on(&self, db: &mut PgConnection, name: &str, table: &str) -> Result<(), sqlx::Error> {
        let sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)";
        let is_good: Option<bool> = sqlx::query_scalar(sql).bind(name).fetch_optional(&mut *db).await?;
        if is_good == Some(false) {
            tracing::warn!(index = name, "an index was left half built: it is built anew");
            sqlx::raw_sql(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY {name}"))).execute(&mut *db).await?;
        }
        if is_good != Some(true) {
            tracing::info!(index = name, table, "building an index beside those who write");
            let sql = format!("{} CONCURRENTLY {name} ON {table} {}", self.create, self.of);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last migration that no database had before it was released.
    const FIRST: i64 = 9;

    /// Returns what of a migration would keep others waiting, or would break the programs of the release before.
    fn against_the_rules(text: &str) -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("--") || line.starts_with("--@postgres "));
        let sql: Vec<&str> = lines.map(|line| line.trim_start_matches("--@postgres ")).collect();
        let sql = sql.join(" ").to_uppercase();
        let statements: Vec<&str> = sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()).collect();
        if text.starts_with("-- concurrently") {
            let one = statements.len() == 1 && Index::of(text).is_some();
            return if one {
                Vec::new()
            } else {
                vec!["is not one CREATE INDEX IF NOT EXISTS … ON … (…)".to_owned()]
            };
        }
        let is_new = |table: &str| statements.iter().any(|other| other.starts_with(&format!("CREATE TABLE {table} ")));
        let table_behind = |statement: &str, words: &str| {
            let (_, rest) = statement.split_once(words)?;
            rest.split([' ', '(']).next().map(str::to_owned)
        };
        let told = statements.iter().any(|statement| statement.starts_with("UPDATE COMPATIBILITY SET OLDEST"));
        let fine = |statement: &&&str| {
            let is_index = ["CREATE INDEX ", "CREATE UNIQUE INDEX "].iter().any(|start| statement.starts_with(start));
            if is_index {
                return table_behind(statement, " ON ").is_some_and(|table| is_new(&table));
            }
            if let Some(table) = table_behind(statement, "INSERT INTO ") {
                return is_new(&table);
            }
            // A constant default is kept beside the table; whatever else there may be reads or writes all of it.
            let adds = statement.starts_with("ALTER TABLE ") && statement.contains(" ADD COLUMN ");
            let reads = ["REFERENCES", "CHECK", "UNIQUE", "("].iter().any(|word| statement.contains(word));
            let empty = statement.contains("NOT NULL") && !statement.contains("DEFAULT");
            statement.starts_with("CREATE TABLE ") || (adds && !reads && !empty) || told
        };
        statements.iter().filter(|statement| !fine(statement)).map(|statement| (*statement).to_owned()).collect()
    }

    #[test]
    fn a_new_migration_keeps_nobody_waiting_and_breaks_no_older_program() {
        for (version, name, text) in FILES.iter().filter(|file| file.0 > FIRST) {
            assert_eq!(against_the_rules(text), Vec::<String>::new(), "migration {version} ({name})");
        }
        let good = [
            "CREATE TABLE polls (id UUID);\nCREATE INDEX polls_by_id ON polls (id);\nINSERT INTO polls (id) VALUES (1);",
            "ALTER TABLE messages ADD COLUMN poll UUID;",
            "ALTER TABLE messages ADD COLUMN votes BIGINT NOT NULL DEFAULT 0;",
            "-- concurrently\n-- Why.\nCREATE INDEX IF NOT EXISTS messages_by_poll ON messages (poll)\nWHERE poll IS NOT NULL;",
            "-- Release 3 did not use it any more.\nALTER TABLE users DROP COLUMN title;\nUPDATE compatibility SET oldest = 12;",
        ];
        for text in good {
            assert_eq!(against_the_rules(text), Vec::<String>::new(), "{text}");
        }
        let bad = [
            "CREATE INDEX messages_by_poll ON messages (poll);",
            "--@postgres CREATE INDEX messages_by_poll ON messages (poll);",
            "CREATE INDEX IF NOT EXISTS messages_by_poll ON messages (poll);",
            "-- concurrently\nCREATE INDEX messages_by_poll ON messages (poll);",
            "-- concurrently\nCREATE INDEX IF NOT EXISTS a ON messages (poll);\nCREATE INDEX IF NOT EXISTS b ON events (seq);",
            "ALTER TABLE messages ADD COLUMN poll UUID NOT NULL;",
            "ALTER TABLE messages ADD COLUMN poll UUID REFERENCES polls (id);",
            "ALTER TABLE messages ADD COLUMN at TIMESTAMPTZ DEFAULT now();",
            "ALTER TABLE messages ALTER COLUMN text SET NOT NULL;",
            "ALTER TABLE users DROP COLUMN title;",
            "UPDATE messages SET text = '';",
            "INSERT INTO messages (seq) VALUES (1);",
            "DROP TABLE pins;",
        ];
        for text in bad {
            assert!(!against_the_rules(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn an_index_is_read_out_of_its_file() {
        let text = "-- concurrently\n-- Who asks for it.\nCREATE UNIQUE INDEX IF NOT EXISTS by_id ON messages (id) WHERE id > 0;\n";
        let index = Index::of(text).expect("it is one");
        assert_eq!((index.create, index.name, index.table), ("CREATE UNIQUE INDEX", "by_id", "messages"));
        assert_eq!(index.of, "(id) WHERE id > 0");
        assert!(Index::of("CREATE INDEX IF NOT EXISTS by_id ON messages (id);").is_none());
    }
}
