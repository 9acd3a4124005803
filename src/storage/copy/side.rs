//! One of the two databases of a copy: how it is reached, what its tables look like, how rows are read and written.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, try_unfold};
use futures_util::{StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use super::row::{self, Batch, Column, Kind, Shape, Tuples};
use super::{CopyError, PATIENCE, Side};
use crate::storage::lock::Lock;
use crate::storage::postgres::Lent;
use crate::storage::{Db, Dialect, OpenError, Options, by_dialect, on};

/// Where one of the two databases is.
pub(super) struct Place {
    pub(super) side: Side,
    pub(super) options: Options,
}

impl Place {
    /// Understands a URL, of which nothing is ever told but what [`Place::told`] returns.
    pub(super) fn of(side: Side, url: &str) -> Result<Place, CopyError> {
        // Of the target one reads and one brings the schema up to date.
        let options = Options { connections: 2, timeout: PATIENCE, statement: Duration::ZERO, ..Options::new(url) };
        let place = Place { side, options };
        if place.file().is_none() && place.postgres().is_none() {
            return Err(CopyError::Refused(format!(
                "cannot use the URL of {side}: expected sqlite://PATH or postgres://USER@HOST/DATABASE"
            )));
        }
        Ok(place)
    }

    /// Returns the file, if it is SQLite.
    pub(super) fn file(&self) -> Option<&Path> {
        self.options.sqlite_path()
    }

    fn postgres(&self) -> Option<PgConnectOptions> {
        let known = ["postgres://", "postgresql://"].iter().any(|start| self.options.url.starts_with(start));
        known.then(|| self.options.url.parse().ok()).flatten()
    }

    /// Tells people which database it is, without what is secret.
    pub(super) fn told(&self) -> String {
        match (self.file(), self.postgres()) {
            (Some(path), _) => format!("SQLite {}", path.display()),
            (None, Some(at)) => {
                let database = at.get_database().unwrap_or(at.get_username());
                format!("Postgres {}:{}/{database}", at.get_host(), at.get_port())
            }
            (None, None) => String::new(),
        }
    }

    /// Checks that the database is there and lets us in.
    pub(super) async fn reach(&self) -> Result<(), CopyError> {
        let Some(connect) = self.postgres() else {
            let path = self.file().unwrap_or(Path::new(""));
            return match path.metadata() {
                Ok(there) if there.is_file() => Ok(()),
                _ => Err(CopyError::Refused(format!("{} is not there: no file {}", self.side, path.display()))),
            };
        };
        let reached = self.within("opened", PgConnection::connect_with(&connect).map_err(OpenError::Connect)).await?;
        let _ = reached.close().await;
        Ok(())
    }

    /// Takes the database for this process; nothing if a server has it.
    pub(super) async fn lock(&self) -> Result<Option<Lock>, CopyError> {
        self.within("locked", Lock::take(&self.options, false)).await
    }

    /// Opens a connection that only reads, for as long as it takes.
    pub(super) async fn open(&self) -> Result<Db, CopyError> {
        let opened = async {
            if let Some(connect) = self.postgres() {
                let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE);
                let mut connection =
                    pool.connect_with(connect.application_name("colink store copy")).await?.acquire().await?;
                // One side waits in its transaction for as long as the other one sorts.
                let patient = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
                               SET default_transaction_read_only = on";
                sqlx::raw_sql(patient).execute(&mut *connection).await?;
                return Ok(Db::Postgres(Lent::new(connection, PATIENCE)));
            }
            let connect = SqliteConnectOptions::new()
                .filename(self.file().unwrap_or(Path::new("")))
                .busy_timeout(self.options.lock)
                .pragma("query_only", "on");
            let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(PATIENCE);
            Ok(Db::Sqlite(pool.connect_with(connect).await?.acquire().await?))
        };
        self.within("opened", opened.map_err(OpenError::Connect)).await
    }

    /// Waits for an answer of the database, but not for ever.
    pub(super) async fn within<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, OpenError>>,
    ) -> Result<T, CopyError> {
        let side = self.side;
        match tokio::time::timeout(2 * PATIENCE, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(OpenError::Connect(error))) => Err(CopyError::failed(side, doing, error)),
            Ok(Err(other)) => Err(CopyError::Refused(format!("{side} cannot be {doing}: {other}"))),
            Err(_) => Err(CopyError::Stalled { side, doing: doing.to_owned(), for_s: 2 * PATIENCE.as_secs() }),
        }
    }
}

/// Begins a transaction that sees one moment to its end.
pub(super) async fn begin_snapshot(db: &mut Db) -> Result<(), sqlx::Error> {
    db.run(by_dialect!(db, postgres: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", sqlite: "BEGIN")).await?;
    // The moment is the first read.
    db.run(by_dialect!(db, postgres: "SELECT 1 FROM pg_class LIMIT 1", sqlite: "SELECT 1 FROM sqlite_master LIMIT 1"))
        .await
}

/// Returns what is not the same any more when a server has written: how many streams there are, how many events they have,
/// how often they changed hands; the beats of nodes; and what is written without an event: sign-ins, their ends, passwords,
/// invitations, their use, and who was there.
pub(super) async fn traces(db: &mut Db) -> Result<String, sqlx::Error> {
    let sql = "SELECT concat_ws(' ', count(*), sum(last_seq), sum(owner_epoch), (SELECT sum(beat) FROM nodes), \
               (SELECT concat_ws(' ', count(*), count(revoked_at), max(expires_at)) FROM tokens), \
               (SELECT concat_ws(' ', count(*), sum(version)) FROM users), \
               (SELECT concat_ws(' ', count(*), count(revoked_at), sum(uses)) FROM invites), \
               (SELECT max(at) FROM last_seen)) FROM streams";
    on!(db, c => sqlx::query_scalar(sql).fetch_one(c).await)
}

/// Returns how many rows a table has.
pub(super) async fn count(db: &mut Db, table: &str) -> Result<u64, sqlx::Error> {
    let sql = format!("SELECT count(*) FROM {}", quoted(table));
    let count: i64 = on!(db, c => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(c).await?);
    Ok(count.cast_unsigned())
}

/// Returns whether a table has no rows.
pub(super) async fn is_empty(db: &mut Db, table: &str) -> Result<bool, sqlx::Error> {
    let sql = format!("SELECT NOT EXISTS (SELECT 1 FROM {})", quoted(table));
    on!(db, c => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(c).await)
}

/// Returns what a Postgres database is known by in all the world; nothing of SQLite, which is known by its file.
pub(super) async fn instance(db: &mut Db) -> Result<Option<String>, sqlx::Error> {
    let Db::Postgres(connection) = db else { return Ok(None) };
    let sql = "SELECT pg_postmaster_start_time()::text || ' ' || current_schema() || ' ' || oid FROM pg_database \
               WHERE datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(&mut **connection).await
}

/// Returns what a table looks like, the columns of its key first.
pub(super) async fn shape(db: &mut Db, table: &str) -> Result<Shape, CopyError> {
    let sql = by_dialect!(db,
        postgres: "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, \
                   COALESCE(array_position(p.indkey::smallint[], a.attnum) + 1, 0)::bigint, \
                   EXISTS (SELECT 1 FROM pg_index u WHERE u.indrelid = a.attrelid AND u.indisunique \
                   AND NOT u.indisprimary AND a.attnum = ANY(u.indkey::smallint[])) \
                   FROM pg_attribute a LEFT JOIN pg_index p ON p.indrelid = a.attrelid AND p.indisprimary \
                   WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
                   ORDER BY a.attnum",
        sqlite: "SELECT c.name, lower(c.type), c.\"notnull\" = 0, c.pk, EXISTS (SELECT 1 FROM pragma_index_list($1) l, \
                 pragma_index_info(l.name) i WHERE l.\"unique\" = 1 AND l.origin <> 'pk' AND i.name = c.name) \
                 FROM pragma_table_info($1) c ORDER BY c.cid",
    );
    type Found = (String, String, bool, i64, bool);
    let mut found: Vec<Found> =
        on!(db, c => sqlx::query_as(sql).bind(table.to_owned()).fetch_all(c).await.map_err(CopyError::schema)?);
    found.sort_by_key(|(_, _, _, key, _)| if *key > 0 { *key } else { i64::MAX });
    let keys = found.iter().filter(|(_, _, _, key, _)| *key > 0).count();
    if keys == 0 {
        return Err(CopyError::Refused(format!("the table {table} has no key to copy it by")));
    }
    let mut columns = Vec::new();
    for (name, declared, nullable, _, unique) in found {
        let Some(kind) = Kind::of(&declared) else {
            return Err(CopyError::Refused(format!(
                "cannot copy {table}.{name}: its type {declared} is not known here"
            )));
        };
        columns.push(Column { name, kind, nullable, unique });
    }
    Ok(Shape { table: table.to_owned(), columns, keys })
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn list(columns: &[Column]) -> String {
    columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

/// Rows in the order of their keys, as tuples.
pub(super) type Rows<'c> = BoxStream<'c, Result<Bytes, sqlx::Error>>;

/// Reads a table. What is not read yet waits in the database.
pub(super) fn rows<'c>(db: &'c mut Db, shape: &'c Shape) -> Rows<'c> {
    // SQLite compares texts by their bytes, and so does this collation.
    let collated = |column: &Column| match (db.dialect(), column.kind) {
        (Dialect::Postgres, Kind::Text) => format!("{} COLLATE \"C\"", quoted(&column.name)),
        _ => quoted(&column.name),
    };
    let order: Vec<_> = shape.key().iter().map(collated).collect();
    let (columns, table) = (list(&shape.columns), quoted(&shape.table));
    let select = format!("SELECT {columns} FROM {table} ORDER BY {}", order.join(", "));
    match db {
        Db::Sqlite(connection) => sqlx::query(AssertSqlSafe(select))
            .fetch(&mut **connection)
            .and_then(move |row| std::future::ready(row::encode(&row, &shape.columns)))
            .fuse()
            .boxed(),
        Db::Postgres(connection) => {
            let copy = format!("COPY ({select}) TO STDOUT (FORMAT binary)");
            let sent = async move { connection.copy_out_raw(&copy).await }.try_flatten_stream().boxed();
            let taken = try_unfold((sent, Tuples::default()), |(mut sent, mut tuples)| async move {
                loop {
                    if let Some(tuple) = tuples.next() {
                        return Ok(Some((tuple, (sent, tuples))));
                    }
                    let Some(bytes) = sent.try_next().await? else { return Ok(None) };
                    tuples.push(&bytes);
                }
            });
            taken.fuse().boxed()
        }
    }
}

/// Stores rows, over those with the same keys. `fresh`: none of the keys is there.
pub(super) async fn put(db: &mut Db, shape: &Shape, batch: Batch, fresh: bool) -> Result<(), sqlx::Error> {
    let (table, columns, key) = (quoted(&shape.table), list(&shape.columns), list(shape.key()));
    let set: Vec<_> =
        shape.columns[shape.keys..].iter().map(|column| format!("{0} = EXCLUDED.{0}", quoted(&column.name))).collect();
    let over = match set.is_empty() {
        true => format!("ON CONFLICT ({key}) DO NOTHING"),
        false => format!("ON CONFLICT ({key}) DO UPDATE SET {}", set.join(", ")),
    };
    match db {
        Db::Postgres(connection) if fresh => {
            send(connection, &format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)"), batch).await
        }
        Db::Postgres(connection) => {
            let then = format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM brought {over}");
            by_way_of(connection, shape, "brought", batch, then).await
        }
        Db::Sqlite(connection) => {
            let head = format!("INSERT INTO {table} ({columns}) VALUES ");
            in_pieces(connection, &shape.columns, &batch, &head, &format!(" {over}")).await
        }
    }
}

/// Deletes the rows with these keys.
pub(super) async fn remove(db: &mut Db, shape: &Shape, keys: Batch) -> Result<(), sqlx::Error> {
    let table = quoted(&shape.table);
    let how = by_dialect!(db, postgres: format!("DELETE FROM {table} USING"), sqlite: format!("DELETE FROM {table}"));
    by_keys(db, shape, keys, &how).await
}

/// Frees the unique values of the rows with these keys, so that others may have them. The rows get theirs later.
pub(super) async fn park(db: &mut Db, shape: &Shape, keys: Batch) -> Result<(), sqlx::Error> {
    let free = |column: &Column| {
        let value = match (column.nullable, column.kind) {
            (true, _) => "NULL",
            (false, Kind::Text) => by_dialect!(db, postgres: "gen_random_uuid()::text", sqlite: "hex(randomblob(16))"),
            (false, Kind::Bytes) => by_dialect!(db, postgres: "uuid_send(gen_random_uuid())", sqlite: "randomblob(16)"),
            (false, _) => return None,
        };
        Some(format!("{} = {value}", quoted(&column.name)))
    };
    let set: Vec<_> = shape.columns[shape.keys..].iter().filter(|column| column.unique).filter_map(free).collect();
    if set.is_empty() {
        return Ok(());
    }
    let update = format!("UPDATE {} SET {}", quoted(&shape.table), set.join(", "));
    let how = by_dialect!(db, postgres: format!("{update} FROM"), sqlite: update);
    by_keys(db, shape, keys, &how).await
}

/// Does something to the rows with these keys: `how` lacks only which they are.
async fn by_keys(db: &mut Db, shape: &Shape, keys: Batch, how: &str) -> Result<(), sqlx::Error> {
    match db {
        Db::Postgres(connection) => {
            let table = quoted(&shape.table);
            let same = |column: &Column| format!("{table}.{0} = meant.{0}", quoted(&column.name));
            let same: Vec<_> = shape.key().iter().map(same).collect();
            let then = format!("{how} meant WHERE {}", same.join(" AND "));
            by_way_of(connection, &shape.narrowed(|_| false), "meant", keys, then).await
        }
        Db::Sqlite(connection) => {
            let head = format!("{how} WHERE ({}) IN (VALUES ", list(shape.key()));
            in_pieces(connection, shape.key(), &keys, &head, ")").await
        }
    }
}

/// Sends rows to Postgres.
async fn send(connection: &mut PgConnection, copy: &str, batch: Batch) -> Result<(), sqlx::Error> {
    let mut way = connection.copy_in_raw(copy).await?;
    way.send(batch.into_copy()).await?;
    way.finish().await?;
    Ok(())
}

/// Sends rows to a table that lasts as long as the transaction, and carries out what needs them there.
async fn by_way_of(
    connection: &mut PgConnection,
    shape: &Shape,
    name: &str,
    batch: Batch,
    then: String,
) -> Result<(), sqlx::Error> {
    let columns = list(&shape.columns);
    let make = format!(
        "BEGIN; CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS SELECT {columns} FROM {} WITH NO DATA",
        quoted(&shape.table)
    );
    sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *connection).await?;
    send(connection, &format!("COPY {name} ({columns}) FROM STDIN (FORMAT binary)"), batch).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("ANALYZE {name}; {then}; COMMIT"))).execute(connection).await?;
    Ok(())
}

/// How many values one statement of SQLite gets here; it would take 32,766.
const VALUES: usize = 2_000;

/// Carries a statement out for rows, as many at a time as fit into one, in a transaction.
async fn in_pieces(
    connection: &mut SqliteConnection,
    columns: &[Column],
    batch: &Batch,
    head: &str,
    foot: &str,
) -> Result<(), sqlx::Error> {
    let one = format!("({})", vec!["?"; columns.len()].join(", "));
    let tuples: Vec<&[u8]> = batch.tuples().collect();
    let most = (VALUES / columns.len()).max(1);
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    for piece in tuples.chunks(most) {
        let sql = format!("{head}{}{foot}", vec![one.as_str(); piece.len()].join(", "));
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(piece.len() == most);
        for tuple in piece {
            query = row::bind(query, columns, tuple);
        }
        query.execute(&mut *connection).await?;
    }
    sqlx::raw_sql("COMMIT").execute(connection).await?;
    Ok(())
}
