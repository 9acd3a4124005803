//! Nodes that share the database: who runs, what they prove themselves to each other with, and what one may have missed of
//! the others.

use super::{Db, StoreError, from_row, on};
use crate::clock::Timestamp;
use crate::domain::id::{NodeId, StreamId, UserId};

/// A run of a node.
#[derive(Clone, Debug)]
pub struct Row {
    /// The run.
    pub id: NodeId,
    /// The node's name.
    pub name: String,
    /// Whether it shares the database with others.
    pub clustered: bool,
    /// When it started, by its own clock.
    pub started_at: Timestamp,
    /// Grows with every sign of life.
    pub beat: i64,
    /// What it says of itself, as JSON.
    pub report: String,
}

from_row!(Row, row => Row {
    id: row.try_get("id")?,
    name: row.try_get("name")?,
    clustered: row.try_get("clustered")?,
    started_at: row.try_get("started_at")?,
    beat: row.try_get("beat")?,
    report: row.try_get("report")?,
});

/// Gives a sign of life. It is no truth that anybody relies on, so it does not go through the writer.
pub async fn beat(db: &mut Db, node: &Row) -> Result<(), StoreError> {
    let sql = "INSERT INTO nodes (id, name, clustered, started_at, beat, report) VALUES ($1, $2, $3, $4, 1, $5) \
               ON CONFLICT (id) DO UPDATE SET beat = nodes.beat + 1, report = excluded.report";
    on!(db, c => { sqlx::query(sql).bind(node.id).bind(&node.name).bind(node.clustered).bind(node.started_at)
        .bind(&node.report).execute(c).await?; });
    Ok(())
}

/// Returns all runs that have not been forgotten, the oldest first.
pub async fn all(db: &mut Db) -> Result<Vec<Row>, StoreError> {
    let sql = "SELECT id, name, clustered, started_at, beat, report FROM nodes ORDER BY id";
    Ok(on!(db, c => sqlx::query_as(sql).fetch_all(c).await?))
}

/// Forgets a run that is over; one that gave a sign of life since it had this beat is not.
pub async fn forget(db: &mut Db, node: NodeId, beat: Option<i64>) -> Result<(), StoreError> {
    let sql = "DELETE FROM nodes WHERE id = $1 AND beat = COALESCE($2, beat)";
    on!(db, c => { sqlx::query(sql).bind(node).bind(beat).execute(c).await?; });
    Ok(())
}

/// Returns what the nodes of this database prove themselves with: what is stored, or what is proposed if nothing is.
pub async fn secret(db: &mut Db, proposed: &[u8; 32]) -> Result<Vec<u8>, StoreError> {
    let sql = "INSERT INTO cluster (id, secret) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
    on!(db, c => { sqlx::query(sql).bind(&proposed[..]).execute(&mut *c).await?; });
    Ok(on!(db, c => sqlx::query_scalar("SELECT secret FROM cluster WHERE id = 1").fetch_one(c).await?))
}

/// What moved on since.
#[derive(Debug, Default)]
pub struct Moved {
    /// Streams, with their heads.
    pub streams: Vec<(StreamId, i64)>,
    /// Users, with the versions of their accounts.
    pub users: Vec<(UserId, i64)>,
}

/// Returns which of these streams and accounts are ahead of what is known of them.
pub async fn moved(db: &mut Db, streams: &[(StreamId, i64)], users: &[(UserId, i64)]) -> Result<Moved, StoreError> {
    let (ids, heads): (Vec<_>, Vec<_>) = streams.iter().map(|(id, head)| (id.0, *head)).unzip();
    let (people, versions): (Vec<_>, Vec<_>) = users.iter().map(|(id, version)| (id.0, *version)).unzip();
    let rows: Vec<(bool, uuid::Uuid, i64)> = match db {
        Db::Postgres(c) => {
            let sql = "SELECT TRUE, s.id, s.last_seq FROM UNNEST($1::uuid[], $2::bigint[]) AS known(id, n) \
                       JOIN streams s ON s.id = known.id WHERE s.last_seq > known.n \
                       UNION ALL SELECT FALSE, u.id, u.version FROM UNNEST($3::uuid[], $4::bigint[]) AS known(id, n) \
                       JOIN users u ON u.id = known.id WHERE u.version > known.n";
            sqlx::query_as(sql).bind(ids).bind(heads).bind(people).bind(versions).fetch_all(&mut **c).await?
        }
        Db::Sqlite(c) => {
            let sql = "SELECT TRUE, s.id, s.last_seq FROM json_each($1) known \
                       JOIN streams s ON s.id = unhex(known.value ->> 0, '-') WHERE s.last_seq > known.value ->> 1 \
                       UNION ALL SELECT FALSE, u.id, u.version FROM json_each($2) known \
                       JOIN users u ON u.id = unhex(known.value ->> 0, '-') WHERE u.version > known.value ->> 1";
            let list = |rows: Vec<_>| serde_json::to_string(&rows).expect("lists have no keys");
            let streams = list(std::iter::zip(ids, heads).collect());
            let users = list(std::iter::zip(people, versions).collect());
            sqlx::query_as(sql).bind(streams).bind(users).fetch_all(&mut **c).await?
        }
    };
    let mut moved = Moved::default();
    for (is_stream, id, n) in rows {
        if is_stream {
            moved.streams.push((StreamId(id), n));
        } else {
            moved.users.push((UserId(id), n));
        }
    }
    Ok(moved)
}

/// Returns how many channels each run owns by the database, and under which epoch the one that changed hands most often.
pub async fn owners(db: &mut Db) -> Result<Vec<(NodeId, i64, i64)>, StoreError> {
    let sql = "SELECT owner, COUNT(*), MAX(owner_epoch) FROM streams WHERE owner IS NOT NULL GROUP BY owner";
    Ok(on!(db, c => sqlx::query_as(sql).fetch_all(c).await?))
}
