//! How the schema changes while others use the database.

use super::*;
use crate::storage::OpenError;
use crate::storage::migrations::{FILES, File, newest, run};

/// Returns the migrations of a later release.
pub(super) fn later(text: &'static str) -> Vec<File> {
    [FILES, &[(newest() + 1, "later", text)]].concat()
}

everywhere! {
    a_program_runs_on_a_newer_schema_that_only_adds(world) {
        let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
        let room = world.channel(ana, "room", &[bob]).await;
        let more = later("ALTER TABLE messages ADD COLUMN poll UUID;\nCREATE TABLE polls (id UUID);");
        let newer = Store::open(&Options::new(&world.url)).await.unwrap();
        run(&newer, &more).await.unwrap();
        run(&newer, &more).await.unwrap();

        let older = Store::open(&Options::new(&world.url)).await.unwrap();
        older.migrate().await.unwrap();
        assert_eq!(world.get::<Sent>(bob, says(room, "hi", None)).await.seq, 2);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(page(&mut db, None, room, Page::Newest, 10).await.unwrap().0.len(), 1);
        drop(db);

        let mut apart = world.apart().await;
        apart.run("UPDATE compatibility SET oldest = (SELECT MAX(version) FROM _sqlx_migrations)").await.unwrap();
        let refused = older.migrate().await.unwrap_err();
        assert!(matches!(refused, OpenError::Newer { .. }), "{refused}");
        assert!(refused.to_string().contains("start a newer release"), "{refused}");
        run(&newer, &more).await.unwrap();
    }

    what_a_newer_release_stored_can_be_read(world) {
        let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
        let room = world.channel(ana, "room", &[bob]).await;
        world.ask(ana, says(room, "hi", None)).await.unwrap();
        let mut apart = world.apart().await;
        let next = "UPDATE streams SET last_seq = last_seq + 1 WHERE id = (SELECT id FROM channels)";
        apart.run(next).await.unwrap();
        let event = "INSERT INTO events (stream_id, seq, event_id, kind, payload, created_at) \
                     SELECT stream_id, seq + 1, event_id, 'poll.opened', '{\"poll\":7}', created_at FROM events \
                     WHERE seq = 2 AND stream_id = (SELECT id FROM channels)";
        apart.run(event).await.unwrap();
        apart.run("UPDATE channels SET posting = 'bots'").await.unwrap();
        apart.run("UPDATE members SET notify = 'sometimes'").await.unwrap();
        apart.run("UPDATE users SET presence_mode = 'napping'").await.unwrap();

        assert_eq!(world.ask(bob, says(room, "may I?", None)).await.unwrap_err().code, Code::Forbidden);
        assert_eq!(world.get::<Sent>(ana, says(room, "the owner may", None)).await.seq, 4);
        let log = world.log(room).await;
        let told: Vec<_> = log.iter().map(|event| (event.seq, event.kind.as_str())).collect();
        let sent = "message.created";
        assert_eq!(told, [(1, "channel.created"), (2, sent), (3, "poll.opened"), (4, sent)]);
        assert_eq!(&*log[2].payload, r#"{"poll":7}"#);
        assert_eq!(world.membership(bob, room).await.channel.last_seq, 4);
        let mut db = world.store.read().await.unwrap();
        assert!(users::by_id(&mut db, bob.user_id).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_migrate_at_once_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let Some(url) = new_database(Dialect::Postgres, dir.path()).await else { return };
    let migrated = (0..4).map(async |_| Store::open(&Options::new(&url)).await.unwrap().migrate().await.unwrap());
    futures_util::future::join_all(migrated).await;
}

/// A migration that waits for a lock stands in the way of everybody who comes later: it goes back in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_does_not_keep_others_from_a_table_that_somebody_uses_for_long() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let (mut user, mut watch) = (beside(&world).await, beside(&world).await);
    sql(&mut user, "BEGIN; SELECT * FROM users").await;
    let more = later("ALTER TABLE users ADD COLUMN shoe_size BIGINT;");
    let others = async {
        until(&mut watch, "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted)")
            .await;
        // This waits behind the migration, for as long as that waits.
        world.user("ana", Role::Member).await;
        sql(&mut user, "COMMIT").await;
    };
    let both = futures_util::future::join(run(&world.store, &more), others);
    tokio::time::timeout(LIMIT, both).await.expect("its turn comes").0.unwrap();
    sql(&mut user, "SELECT shoe_size FROM users").await;
}

pub(super) const BY_TEXT: &str =
    "-- concurrently\nCREATE UNIQUE INDEX IF NOT EXISTS messages_by_text ON messages (channel_id, text);";
pub(super) const IS_GOOD: &str =
    "SELECT COALESCE((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('messages_by_text')), FALSE)";

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_beside_who_writes_and_anew_when_it_was_left_half_built() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    for text in ["one", "two", "two"] {
        world.ask(ana, says(room, text, None)).await.unwrap();
    }
    let more = later(BY_TEXT);
    let refused = run(&world.store, &more).await.unwrap_err();
    assert!(refused.to_string().contains("messages_by_text"), "{refused}");
    let (mut other, mut watch) = (beside(&world).await, beside(&world).await);
    until(&mut watch, "SELECT to_regclass('messages_by_text') IS NOT NULL").await;
    assert!(!sqlx::query_scalar::<_, bool>(IS_GOOD).fetch_one(&mut watch).await.unwrap(), "it is half built");

    // Somebody writes for long: the build waits for that, and nobody waits for the build.
    sql(&mut other, "BEGIN; UPDATE messages SET text = 'three' WHERE seq = 4").await;
    let others = async {
        let waits = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE query LIKE '%INDEX CONCURRENTLY%' AND \
                     datname = current_database() AND wait_event_type = 'Lock')";
        until(&mut watch, waits).await;
        world.ask(ana, says(room, "four", None)).await.unwrap();
        sql(&mut other, "COMMIT").await;
    };
    let both = futures_util::future::join(run(&world.store, &more), others);
    tokio::time::timeout(LIMIT, both).await.expect("the index is built").0.unwrap();
    assert!(sqlx::query_scalar::<_, bool>(IS_GOOD).fetch_one(&mut watch).await.unwrap());
}
