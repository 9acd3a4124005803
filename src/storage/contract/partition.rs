//! A hub goes on in a database whose large tables are partitioned.

use super::copy::{Hub, copied, filled, number, refused};
use super::migrations::{BY_TEXT, IS_GOOD, later};
use super::*;
use crate::storage::copy::{TABLES, verify};
use crate::storage::migrations;
use crate::storage::partition::{PartitionError, partition};

/// Returns a new database in so many partitions; nothing if there is no Postgres.
async fn in_parts(parts: u32) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let url = new_database(Dialect::Postgres, dir.path()).await?;
    partition(&url, parts).await.unwrap();
    Some(url)
}

/// Starts a writer on a database, as a server does.
async fn serves(world: &World, url: &str) -> (Store, Writer) {
    let store = Store::open(&Options::new(url)).await.unwrap();
    store.migrate().await.unwrap();
    let limits = Limits { queue: 4_096, batch: 256, patience: PATIENCE, statement: LIMIT };
    let node = NodeId::new(world.clock.now());
    let stop = CancellationToken::new();
    let (writer, _) = Writer::start(store.clone(), world.clock.clone(), node, limits, Arc::new(|_| {}), stop).unwrap();
    (store, writer)
}

/// Shows that a hub goes on where it was: what was sent is not sent twice, and what comes has the next number.
async fn goes_on(world: &World, hub: &Hub, url: &str) {
    let (store, writer) = serves(world, url).await;
    let send = async |text: &str, key: &str| {
        let work = Work::Command(says(hub.room, text, Some(key)).into());
        writer.write(hub.ana, work, Some(key.into())).await
    };
    let again = send("plain", "key-1").await.unwrap();
    let first: Sent = serde_json::from_str(&again.json).unwrap();
    assert!(again.duplicate && first.seq == 3, "{again:?}");
    assert_eq!(send("another", "key-1").await.unwrap_err().code, Code::KeyReused);
    let mut db = store.read().await.unwrap();
    let head = events::head(&mut db, hub.room.into()).await.unwrap();
    for n in 1..=20 {
        let sent: Sent = serde_json::from_str(&send("more", &format!("more-{n}")).await.unwrap().json).unwrap();
        assert_eq!(sent.seq, head + n);
    }
    let react = command::AddReaction { channel_id: hub.room, seq: head + 1, emoji: "tada".into() };
    writer.write(hub.bob, Work::Command(react.into()), None).await.unwrap();
    let log = events::after(&mut db, hub.room.into(), 0, 100_000).await.unwrap();
    assert_eq!(log.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=head + 21).collect::<Vec<_>>());
    let (found, _) = page(&mut db, None, hub.room, Page::Newest, 5).await.unwrap();
    assert_eq!(
        found.iter().map(|message| message.seq).collect::<Vec<_>>(),
        (head + 16..=head + 20).collect::<Vec<_>>()
    );
    let (replies, _) = page(&mut db, Some(2), hub.room, Page::After(0), 10).await.unwrap();
    assert_eq!(replies.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_is_copied_into_partitions_and_goes_on_there() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let hub = filled(&world).await;
    let parts = in_parts(4).await.unwrap();
    partition(&parts, 4).await.unwrap();
    copied(&world.url, &parts).await;
    let spread = "SELECT count(DISTINCT tableoid) FROM events";
    assert!(number(&parts, spread).await > 1, "what is stored lies in several partitions");
    goes_on(&world, &hub, &parts).await;
    let twice = number(&parts, "SELECT count(*) - count(DISTINCT id) FROM messages").await;
    assert_eq!(twice, 0);
    let one = "INSERT INTO events SELECT * FROM events WHERE seq = 1 LIMIT 1";
    let Db::Postgres(mut db) = Store::open(&Options::new(&parts)).await.unwrap().write().await.unwrap() else { return };
    let taken = sqlx::query(one).execute(&mut *db).await.unwrap_err();
    assert!(taken.as_database_error().unwrap().is_unique_violation(), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_database_is_partitioned() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    world.channel(ana, "room", &[]).await;
    let refused_by = async |url: &str, parts| match partition(url, parts).await {
        Err(PartitionError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused_by(&world.url, 4).await.contains("make an empty one"));
    assert!(refused_by(&world.url, 1).await.contains("from 2"));
    assert!(refused_by("sqlite://nowhere.db", 4).await.contains("no partitions"));
    let lock = crate::storage::lock::Lock::take(&Options::new(&world.url), false).await.unwrap().unwrap();
    assert!(refused_by(&world.url, 4).await.contains("a server runs"));
    drop(lock);
    assert!(refused(&world.url, &world.url).await.contains("the same database"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_on_each_partition_beside_who_writes() {
    let Some(parts) = in_parts(3).await else { return };
    let world = on_postgres(|options| options.url.clone_from(&parts)).await.unwrap();
    let ana = world.user("ana", Role::Member).await;
    for room in ["one", "two", "three", "four"] {
        let room = world.channel(ana, room, &[]).await;
        for text in ["twice", "twice"] {
            world.ask(ana, says(room, text, None)).await.unwrap();
        }
    }
    let more = later(BY_TEXT);
    migrations::run(&world.store, &more).await.unwrap_err();
    let Db::Postgres(mut db) = world.store.read().await.unwrap() else { unreachable!("it is for Postgres alone") };
    sqlx::query("UPDATE messages SET text = text || seq").execute(&mut *db).await.unwrap();
    migrations::run(&world.store, &more).await.unwrap();
    migrations::run(&world.store, &more).await.unwrap();
    assert!(sqlx::query_scalar::<_, bool>(IS_GOOD).fetch_one(&mut *db).await.unwrap());
    let attached = "SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('messages_by_text')";
    assert_eq!(sqlx::query_scalar::<_, i64>(attached).fetch_one(&mut *db).await.unwrap(), 3);
}

/// The way of a terabyte: Postgres' own replication fills the partitions while the hub is served, and people wait for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_is_replicated_into_partitions_while_it_is_served() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let Db::Postgres(mut source) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let level: String = sqlx::query_scalar("SHOW wal_level").fetch_one(&mut *source).await.unwrap();
    if level != "logical" {
        eprintln!("skipped: wal_level is not logical");
        return;
    }
    let hub = filled(&world).await;
    let parts = in_parts(4).await.unwrap();
    let (_, name) = parts.rsplit_once('/').unwrap();
    let run = async |url: &str, sql: String| {
        let Db::Postgres(mut db) = Store::open(&Options::new(url)).await.unwrap().write().await.unwrap() else {
            return;
        };
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *db).await.unwrap();
    };
    run(&parts, "DELETE FROM streams".into()).await;
    run(&world.url, format!("CREATE PUBLICATION colink FOR TABLE {}", TABLES.join(", "))).await;
    // Of two servers, the subscription makes the slot itself.
    run(&world.url, format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
    let with = format!("WITH (create_slot = false, slot_name = '{name}')");
    let from = world.url.replace('\'', "''");
    run(&parts, format!("CREATE SUBSCRIPTION {name} CONNECTION '{from}' PUBLICATION colink {with}")).await;
    let until = async |url: &str, sql: &'static str| {
        let asked = async {
            while number(url, sql).await > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap_or_else(|_| panic!("still: {sql}"));
    };
    until(&parts, "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'").await;

    // Meanwhile people write.
    for n in 0..20 {
        world.ask(hub.ana, says(hub.room, &format!("meanwhile {n}"), None)).await.unwrap();
    }
    run(&world.url, "CREATE TABLE noted AS SELECT pg_current_wal_flush_lsn() AS at".into()).await;
    let behind = "SELECT count(*) FROM pg_replication_slots, noted WHERE database = current_database() AND confirmed_flush_lsn < at";
    until(&world.url, behind).await;
    run(&world.url, "DROP TABLE noted".into()).await;
    run(&parts, format!("DROP SUBSCRIPTION {name}")).await;
    let report = Box::pin(verify(&world.url, &parts, &|_| ())).await.unwrap();
    assert_eq!(report.difference(), None, "{report:#?}");
    goes_on(&world, &hub, &parts).await;
}
