//! A whole hub from one database to another, SQLite or Postgres: `colink store copy`.
//!
//! [`copy`] makes the target hold what the source holds, row by row, with the same identifiers, numbers and hashes of
//! tokens, and then compares the two; [`verify`] only compares. The source is read in one transaction, so what is copied
//! is the hub at one moment, whoever writes to it meanwhile; it is never written to.
//!
//! Both sides are read in the order of each table's key and walked together ([`Merge`]), three times: what is no longer in
//! the source is removed, children before their parents; what is missing or different is brought, parents first; and at
//! last every row of both is counted and hashed. So a run that was cut short is finished by the next one, and a later run
//! writes only what has changed. Nothing else need be remembered, and any change is found: of texts that were edited and
//! events that were rewritten, too, which no number tells of.
//!
//! Invariants:
//! * Tables are named in [`TABLES`] or in [`NOT_COPIED`], columns are read from the schema as it is.
//! * A target that has accounts and is no copy of this source, or was written to since it was one, is left as it is.
//! * From its first row until it was found equal to a source that no server ran on, a target is marked
//!   ([`refuse_unfinished`]), and no server starts on it.
//! * Neither an error nor [`Report`] holds a URL: it may have a password in it.

mod error;
mod row;
mod side;

use std::cmp::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;

use self::row::{Batch, Shape, Summing};
use self::side::{Place, Rows};
use super::{Db, OpenError, Store, StoreError, migrations, on};
use crate::domain::id::UserId;

pub use self::error::{CopyError, Side};
pub use self::row::Sum;

/// What is copied: parents before those that refer to them.
pub const TABLES: &[&str] = &[
    "streams",
    "users",
    "last_seen",
    "channels",
    "members",
    "tokens",
    "invites",
    "messages",
    "edits",
    "mentions",
    "reactions",
    "pins",
    "saved",
    "drafts",
    "thread_follows",
    "idempotency",
    "events",
    "consumers",
    "places",
    "dead_letters",
];

/// What is not copied, and why.
pub const NOT_COPIED: &[(&str, &str)] = &[
    ("_sqlx_migrations", "each database has a history of its schema of its own"),
    ("compatibility", "it tells of the schema, which each database has of its own"),
    ("nodes", "it tells which servers run on a database now"),
    ("cluster", "its secret is that of the nodes on one database, and the first of them makes it"),
    (RECORD, "it tells of what a database is a copy"),
];

/// The table in a target that tells of what it is a copy. Only copying makes it.
const RECORD: &str = "store_copy";

/// How long a database may take to be opened.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one step may take, such as the next row or the next few megabytes: Postgres may have to sort a table first.
const STALL: Duration = Duration::from_secs(600);

/// What is being done to a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// What is no longer in the source is removed.
    Clear,
    /// What is missing or different is brought.
    Copy,
    /// Both sides are counted and hashed.
    Compare,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// So many rows will be read of the source in all, each phase counted.
    Planned(u64),
    /// A table's turn begins.
    Begun(Phase, &'static str),
    /// So many more rows were read.
    Read(u64),
}

/// Hears how far it is. It must not block.
pub type Watch<'a> = &'a (dyn Fn(Step) + Send + Sync);

/// A table on both sides.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Its name.
    pub table: &'static str,
    /// What the source has.
    pub source: Sum,
    /// What the target has.
    pub target: Sum,
    /// The first row that differs, by its key.
    pub differs: Option<String>,
}

/// What was found, and what was done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which databases, as people are told.
    pub places: [String; 2],
    /// Every table, compared.
    pub tables: Vec<Compared>,
    /// Rows that were missing or different in the target.
    pub written: u64,
    /// Rows that were in the target and no longer in the source.
    pub removed: u64,
    /// Whether a server ran on the source, or could have: then the target is not for use yet.
    pub served: bool,
}

impl Report {
    /// Returns the first difference between the two: a table and the key of a row.
    #[must_use]
    pub fn difference(&self) -> Option<(&'static str, &str)> {
        self.tables.iter().find_map(|found| Some((found.table, found.differs.as_deref()?)))
    }
}

/// Makes the database at the URL `to` a copy of the one at `from`. If all is equal and no server ran on the source, servers
/// may start on the target from now on.
pub async fn copy(from: &str, to: &str, watch: Watch<'_>) -> Result<Report, CopyError> {
    let (from, to) = (Place::of(Side::Source, from)?, Place::of(Side::Target, to)?);
    from.reach().await?;
    refuse_itself(&from, &to).await?;
    // Both are held to the end: no server starts meanwhile.
    let at_rest = from.lock().await?;
    let mut source = open_source(&from).await?;
    make_file(&to)?;
    let Some(_held) = to.lock().await? else {
        return Err(CopyError::Refused("a server runs on the target: nothing was written".to_owned()));
    };
    let store = to.within("opened", Store::open(&to.options)).await?;
    let mut target = connection(store.read().await)?;
    let origin = origin(&mut source).await.map_err(|error| CopyError::failed(Side::Source, "users", error))?;
    refuse_other(&to, &mut target, &origin).await?;
    store.bring_schema_up_to_date().await.map_err(refused_schema)?;
    let mut writer = connection(store.write().await)?;
    step(Side::Target, RECORD, Record::begin(&mut writer, &origin)).await?;

    let mut both = Both { source, target, watch };
    let tables = both.tables(true).await?;
    let (mut written, mut removed) = (0, 0);
    for table in tables.iter().rev() {
        removed += both.clear(table, &mut writer).await?;
    }
    for table in &tables {
        written += both.bring(table, &mut writer).await?;
    }
    let compared = both.compare(&tables).await?;
    // A lock may get lost, this one or that of a server, which goes on all the same.
    let kept_off = at_rest.as_ref().is_some_and(|lock| !lock.was_lost());
    let served = !kept_off || both.source_has_moved(&from).await?;
    let places = [from.told(), to.told()];
    let report = Report { places, tables: compared, written, removed, served };
    if report.difference().is_none() && !report.served {
        step(Side::Target, RECORD, Record::finish(&mut writer, &report)).await?;
    }
    drop((both, writer));
    store.close().await;
    Ok(report)
}

/// Compares the database at the URL `to` with the one at `from`, and writes nothing. Servers may run on both, but then they
/// hardly are the same.
pub async fn verify(from: &str, to: &str, watch: Watch<'_>) -> Result<Report, CopyError> {
    let (from, to) = (Place::of(Side::Source, from)?, Place::of(Side::Target, to)?);
    from.reach().await?;
    to.reach().await?;
    let source = open_source(&from).await?;
    let mut target = to.open().await?;
    newest_schema(&to, &mut target).await?;
    step(Side::Target, "BEGIN", side::begin_snapshot(&mut target)).await?;
    let mut both = Both { source, target, watch };
    let tables = both.tables(false).await?;
    let compared = both.compare(&tables).await?;
    let places = [from.told(), to.told()];
    Ok(Report { places, tables: compared, written: 0, removed: 0, served: false })
}

/// Returns an error if a database is a copy that was not finished, for no server may run on it.
pub async fn refuse_unfinished(store: &Store) -> Result<(), OpenError> {
    let failed = |error| match error {
        StoreError::Database(error) => OpenError::Connect(error),
        StoreError::Refused(refusal) => OpenError::Lock(refusal.to_string()),
    };
    let mut db = store.read().await.map_err(failed)?;
    match Record::read(&mut db).await.map_err(OpenError::Connect)? {
        Some(Record { sums: None, .. }) => Err(OpenError::UnfinishedCopy),
        _ => Ok(()),
    }
}

/// Waits for one step of a database, but not for ever.
async fn step<T>(side: Side, doing: &str, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, CopyError> {
    match tokio::time::timeout(STALL, work).await {
        Ok(done) => done.map_err(|error| CopyError::failed(side, doing, error)),
        Err(_) => Err(CopyError::Stalled { side, doing: doing.to_owned(), for_s: STALL.as_secs() }),
    }
}

fn connection(taken: Result<Db, StoreError>) -> Result<Db, CopyError> {
    taken.map_err(|error| match error {
        StoreError::Database(error) => CopyError::failed(Side::Target, "opened", error),
        StoreError::Refused(refusal) => CopyError::Refused(refusal.to_string()),
    })
}

/// Opens the source at one moment.
async fn open_source(from: &Place) -> Result<Db, CopyError> {
    let mut source = from.open().await?;
    newest_schema(from, &mut source).await?;
    step(Side::Source, "BEGIN", side::begin_snapshot(&mut source)).await?;
    let record = step(Side::Source, RECORD, Record::read(&mut source)).await?;
    if let Some(Record { sums: None, .. }) = record {
        return Err(CopyError::Refused(
            "the source is itself a copy that was not finished: nothing was written".into(),
        ));
    }
    Ok(source)
}

/// Makes the target's file, if it is SQLite and has none: it is for its owner alone.
fn make_file(to: &Place) -> Result<(), CopyError> {
    let Some(path) = to.file() else { return Ok(()) };
    let mut options = std::fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(CopyError::Refused(format!("cannot make the target {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

async fn refuse_itself(from: &Place, to: &Place) -> Result<(), CopyError> {
    let same = match (from.file(), to.file()) {
        (Some(from), Some(to)) => from.canonicalize().is_ok_and(|from| to.canonicalize().is_ok_and(|to| from == to)),
        (None, None) => {
            to.reach().await?;
            let (mut one, mut other) = (from.open().await?, to.open().await?);
            let one = step(Side::Source, "opened", side::instance(&mut one)).await?;
            one == step(Side::Target, "opened", side::instance(&mut other)).await?
        }
        (Some(_), None) => {
            to.reach().await?;
            false
        }
        (None, Some(_)) => false,
    };
    if same {
        return Err(CopyError::Refused("source and target are the same database".to_owned()));
    }
    Ok(())
}

/// Refuses a database whose schema is not the one that this program knows.
async fn newest_schema(place: &Place, db: &mut Db) -> Result<(), CopyError> {
    let (side, newest) = (place.side, migrations::newest());
    if !step(side, "schema", migrations::exists(db, "_sqlx_migrations")).await? {
        return Err(CopyError::Refused(format!("{side} is no database of Colink's: {}", place.told())));
    }
    let sql = "SELECT COALESCE(max(version), 0) FROM _sqlx_migrations";
    let version: i64 = step(side, "schema", async { on!(db, c => sqlx::query_scalar(sql).fetch_one(c).await) }).await?;
    let way_out = match version.cmp(&newest) {
        Ordering::Equal => return Ok(()),
        Ordering::Less => "start a server of this version on it once, or run `colink migrate`",
        Ordering::Greater => "use the version of Colink that it belongs to",
    };
    let schemas = format!("the schema of {side} is at version {version}, this program's at {newest}");
    Err(CopyError::Refused(format!("{schemas}: {way_out}")))
}

fn refused_schema(error: OpenError) -> CopyError {
    use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
    match error {
        OpenError::Connect(error) | OpenError::Migrate(Execute(error) | ExecuteMigration(error, _)) => {
            CopyError::failed(Side::Target, "schema", error)
        }
        other => CopyError::Refused(format!("the target cannot have this program's schema: {other}")),
    }
}

/// Returns what a hub and its copies are known by: its first account. Accounts are never deleted.
async fn origin(db: &mut Db) -> Result<String, sqlx::Error> {
    let sql = "SELECT id FROM users ORDER BY id LIMIT 1";
    let first: Option<UserId> = on!(db, c => sqlx::query_scalar(sql).fetch_optional(c).await?);
    Ok(first.map_or(String::new(), |id| id.to_string()))
}

/// Refuses a target that holds anything but a copy of the hub that `origin` names, as it was made.
async fn refuse_other(to: &Place, target: &mut Db, origin: &str) -> Result<(), CopyError> {
    let mut rows = async |table| match step(Side::Target, table, migrations::exists(target, table)).await? {
        true => step(Side::Target, table, side::count(target, table)).await,
        false => Ok(0),
    };
    let (accounts, messages) = (rows("users").await?, rows("messages").await?);
    if accounts == 0 && messages == 0 {
        return Ok(());
    }
    let (what, way_out) = match step(Side::Target, RECORD, Record::read(target)).await? {
        Some(record) if record.origin == origin => {
            let Some(sums) = record.sums else { return Ok(()) };
            if sums == sums_of(target).await? {
                return Ok(());
            }
            ("; it was copied from this source and was written to, or given another schema, since", "")
        }
        _ => (" and is no copy of this source", ", or see by --verify whether the two are the same"),
    };
    Err(CopyError::Refused(format!(
        "the target ({}) holds {accounts} accounts and {messages} messages{what}: nothing was written. \
         Copy to an empty database{way_out}",
        to.told()
    )))
}

/// Counts and hashes every table of the target.
async fn sums_of(target: &mut Db) -> Result<Vec<(String, Sum)>, CopyError> {
    let mut sums = Vec::new();
    for table in TABLES {
        let (shape, mut sum) = (side::shape(target, table).await?, Summing::default());
        let mut rows = side::rows(target, &shape);
        while let Some(row) = step(Side::Target, table, rows.try_next()).await? {
            sum.add(&row);
        }
        sums.push(((*table).to_owned(), sum.done()));
    }
    Ok(sums)
}

/// Of what a target is a copy.
struct Record {
    /// The first account of the source; empty if it has none.
    origin: String,
    /// What every table had when the copy was finished; nothing: it is not.
    sums: Option<Vec<(String, Sum)>>,
}

impl Record {
    /// Reads it, if there is one.
    async fn read(db: &mut Db) -> Result<Option<Record>, sqlx::Error> {
        if !migrations::exists(db, RECORD).await? {
            return Ok(None);
        }
        let sql = "SELECT source, tables FROM store_copy";
        let found: Option<(String, Option<String>)> = on!(db, c => sqlx::query_as(sql).fetch_optional(c).await?);
        let Some((origin, tables)) = found else { return Ok(None) };
        let sums = tables.map(|json| serde_json::from_str(&json)).transpose();
        Ok(Some(Record { origin, sums: sums.map_err(|error| sqlx::Error::Decode(error.into()))? }))
    }

    /// Marks a database as a copy that is not finished.
    async fn begin(db: &mut Db, origin: &str) -> Result<(), sqlx::Error> {
        db.run("CREATE TABLE IF NOT EXISTS store_copy (source TEXT NOT NULL, tables TEXT)").await?;
        let mark = "UPDATE store_copy SET source = $1, tables = NULL";
        let marked = on!(db, c => sqlx::query(mark).bind(origin.to_owned()).execute(c).await?.rows_affected());
        if marked == 0 {
            let mark = "INSERT INTO store_copy (source) VALUES ($1)";
            on!(db, c => { sqlx::query(mark).bind(origin.to_owned()).execute(c).await?; });
        }
        Ok(())
    }

    /// Marks a copy as finished, with what it holds.
    async fn finish(db: &mut Db, report: &Report) -> Result<(), sqlx::Error> {
        if let Db::Postgres(connection) = db {
            // The first server is to plan for what is there.
            let analyze = format!("ANALYZE {}", TABLES.join(", "));
            sqlx::raw_sql(sqlx::AssertSqlSafe(analyze)).execute(&mut **connection).await?;
        }
        let sums: Vec<_> = report.tables.iter().map(|found| (found.table, &found.target)).collect();
        let json = serde_json::to_string(&sums).expect("lists of texts and numbers");
        on!(db, c => { sqlx::query("UPDATE store_copy SET tables = $1").bind(json).execute(c).await?; });
        Ok(())
    }
}

/// A table to copy.
struct Table {
    name: &'static str,
    shape: Shape,
    /// Whether the target had none of it at the start.
    fresh: bool,
}

/// Both databases, open to be read.
struct Both<'a> {
    source: Db,
    target: Db,
    watch: Watch<'a>,
}

impl Both<'_> {
    /// Returns the tables, and announces how many rows will be read to compare them, and to copy them before if they are to be.
    async fn tables(&mut self, copying: bool) -> Result<Vec<Table>, CopyError> {
        let (mut tables, mut planned) = (Vec::new(), 0);
        for name in TABLES {
            let mut shape = side::shape(&mut self.source, name).await?;
            let there = side::shape(&mut self.target, name).await?;
            let known = |one: &Shape, other: &Shape| {
                let has = |column: &row::Column| {
                    other.columns.iter().any(|c| (&c.name, c.kind) == (&column.name, column.kind))
                };
                one.keys == other.keys && one.columns.iter().all(has)
            };
            if !known(&shape, &there) || !known(&there, &shape) {
                return Err(CopyError::Refused(format!("the table {name} has not the same columns on both sides")));
            }
            for column in &mut shape.columns {
                column.unique = there.columns.iter().any(|other| other.name == column.name && other.unique);
            }
            let rows = step(Side::Source, name, side::count(&mut self.source, name)).await?;
            let fresh = step(Side::Target, name, side::is_empty(&mut self.target, name)).await?;
            planned += rows
                * match (copying, fresh) {
                    (false, _) => 1,
                    (true, true) => 2,
                    (true, false) => 3,
                };
            tables.push(Table { name, shape, fresh });
        }
        (self.watch)(Step::Planned(planned));
        Ok(tables)
    }

    fn merge<'c>(&'c mut self, phase: Phase, name: &'static str, shape: &'c Shape) -> Merge<'c> {
        (self.watch)(Step::Begun(phase, name));
        let (source, target) = (side::rows(&mut self.source, shape), side::rows(&mut self.target, shape));
        Merge { name, shape, source, target, next: (None, None), read: 0, watch: self.watch }
    }

    /// Removes from the target what the source does not have, and frees unique values that go to other rows. Returns how
    /// many rows are gone.
    async fn clear(&mut self, table: &Table, writer: &mut Db) -> Result<u64, CopyError> {
        if table.fresh {
            return Ok(0);
        }
        let shape = table.shape.narrowed(|column| column.unique);
        let mut merge = self.merge(Phase::Clear, table.name, &shape);
        let (mut gone, mut parked, mut removed) = (Batch::default(), Batch::default(), 0);
        loop {
            let pair = merge.next().await?;
            match &pair {
                Some((None, Some(row))) => gone.push(&shape.key_of(row)),
                Some((Some(source), Some(target))) if source != target => parked.push(&shape.key_of(target)),
                _ => {}
            }
            if gone.is_due(pair.is_none()) {
                removed += gone.rows();
                step(Side::Target, table.name, side::remove(writer, &shape, std::mem::take(&mut gone))).await?;
            }
            if parked.is_due(pair.is_none()) {
                step(Side::Target, table.name, side::park(writer, &shape, std::mem::take(&mut parked))).await?;
            }
            if pair.is_none() {
                return Ok(removed);
            }
        }
    }

    /// Brings to the target what it lacks, or has otherwise. Returns how many rows these were.
    async fn bring(&mut self, table: &Table, writer: &mut Db) -> Result<u64, CopyError> {
        let mut merge = self.merge(Phase::Copy, table.name, &table.shape);
        let (mut batch, mut written) = (Batch::default(), 0);
        loop {
            let pair = merge.next().await?;
            if let Some((Some(source), target)) = &pair
                && Some(source) != target.as_ref()
            {
                batch.push(source);
            }
            if batch.is_due(pair.is_none()) {
                written += batch.rows();
                let put = side::put(writer, &table.shape, std::mem::take(&mut batch), table.fresh);
                step(Side::Target, table.name, put).await?;
            }
            if pair.is_none() {
                return Ok(written);
            }
        }
    }

    /// Counts and hashes every table on both sides.
    async fn compare(&mut self, tables: &[Table]) -> Result<Vec<Compared>, CopyError> {
        let mut compared = Vec::new();
        for table in tables {
            let mut merge = self.merge(Phase::Compare, table.name, &table.shape);
            let (mut source, mut target, mut differs) = (Summing::default(), Summing::default(), None);
            while let Some((here, there)) = merge.next().await? {
                here.iter().for_each(|row| source.add(row));
                there.iter().for_each(|row| target.add(row));
                if here != there && differs.is_none() {
                    differs = here.or(there).map(|row| table.shape.tell(&row));
                }
            }
            compared.push(Compared { table: table.name, source: source.done(), target: target.done(), differs });
        }
        Ok(compared)
    }

    /// Returns whether anything was written to the source since the moment at which it is read.
    async fn source_has_moved(&mut self, from: &Place) -> Result<bool, CopyError> {
        let mut now = from.open().await?;
        let then = step(Side::Source, "streams", side::traces(&mut self.source)).await?;
        Ok(then != step(Side::Source, "streams", side::traces(&mut now)).await?)
    }
}

/// Both sides of a table, walked together in the order of its key.
struct Merge<'c> {
    name: &'static str,
    shape: &'c Shape,
    source: Rows<'c>,
    target: Rows<'c>,
    /// What was read and not returned yet.
    next: (Option<Bytes>, Option<Bytes>),
    /// Rows of the source that were read and not told of yet.
    read: u64,
    watch: Watch<'c>,
}

impl Merge<'_> {
    /// Returns the row of the next key, from the side that has it, or from both; nothing at the end.
    async fn next(&mut self) -> Result<Option<(Option<Bytes>, Option<Bytes>)>, CopyError> {
        if self.next.0.is_none() {
            self.next.0 = step(Side::Source, self.name, self.source.try_next()).await?;
            self.read += u64::from(self.next.0.is_some());
            if self.read >= 1_000 || self.next.0.is_none() {
                (self.watch)(Step::Read(std::mem::take(&mut self.read)));
            }
        }
        if self.next.1.is_none() {
            self.next.1 = step(Side::Target, self.name, self.target.try_next()).await?;
        }
        let order = match &self.next {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(source), Some(target)) => self.shape.compare(source, target),
        };
        Ok(Some(match order {
            Ordering::Less => (self.next.0.take(), None),
            Ordering::Equal => (self.next.0.take(), self.next.1.take()),
            Ordering::Greater => (None, self.next.1.take()),
        }))
    }
}
