//! A hub is taken from one database to another whole, and nothing else is harmed by it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::storage::OpenError;
use crate::storage::copy::{CopyError, NOT_COPIED, Report, Step, TABLES, copy, verify};
use crate::storage::lock::Lock;

const QUIET: fn(Step) = |_| ();

/// Databases to copy to: one of each kind that is at hand.
struct Targets {
    urls: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Targets {
    async fn new() -> Targets {
        let dir = tempfile::tempdir().unwrap();
        let mut urls = Vec::new();
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            urls.extend(new_database(dialect, dir.path()).await);
        }
        Targets { urls, _dir: dir }
    }
}

pub(super) async fn copied(from: &str, to: &str) -> Report {
    let report = Box::pin(copy(from, to, &QUIET)).await.unwrap();
    assert_eq!(report.difference(), None, "{report:#?}");
    report
}

pub(super) async fn refused(from: &str, to: &str) -> String {
    let error = Box::pin(copy(from, to, &QUIET)).await.unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
    error
}

/// Opens a target as a server does.
async fn opens(url: &str) -> Result<Store, OpenError> {
    let store = Store::open(&Options::new(url)).await?;
    store.migrate().await?;
    Ok(store)
}

async fn run(url: &str, sql: &str) {
    let mut db = Store::open(&Options::new(url)).await.unwrap().write().await.unwrap();
    on!(&mut db, c => { sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(c).await.unwrap(); });
}

pub(super) async fn number(url: &str, sql: &'static str) -> i64 {
    let mut db = Store::open(&Options::new(url)).await.unwrap().read().await.unwrap();
    on!(&mut db, c => sqlx::query_scalar(sql).fetch_one(c).await.unwrap())
}

/// A hub with something in every table.
pub(super) struct Hub {
    root: Principal,
    pub(super) ana: Principal,
    pub(super) bob: Principal,
    pub(super) room: ChannelId,
    other: ChannelId,
}

pub(super) async fn filled(world: &World) -> Hub {
    let root = world.user("root", Role::Admin).await;
    let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
    let gone = world.user("gone", Role::Guest).await;
    let room = world.channel(ana, "room", &[bob, gone]).await;
    let other = world.channel(bob, "other", &[ana]).await;
    let direct: Channel = world.get(ana, command::OpenDirect { user_ids: vec![bob.user_id] }).await;
    let _: Channel = world.get(ana, command::OpenDirect { user_ids: vec![bob.user_id, root.user_id] }).await;
    let do_it = async |who, command: Command| drop(world.ask(who, command).await.unwrap());
    let long = "ünïcödé 🎉 日本語 \u{202e}rtl \"quoted\" \\ back\tslash\n".repeat(500);
    for (n, text) in ["hi @bob", "plain", "@channel", &long, "to be edited", "to be deleted"].iter().enumerate() {
        do_it(ana, says(room, text, Some(&format!("key-{n}"))).into()).await;
        do_it(bob, says(direct.id, text, None).into()).await;
    }
    let edit = |seq, text: &str| command::EditMessage { channel_id: room, seq, text: text.into() };
    do_it(ana, edit(6, "edited").into()).await;
    do_it(ana, edit(6, "edited again").into()).await;
    do_it(ana, command::DeleteMessage { channel_id: room, seq: 7 }.into()).await;
    for n in 0..3 {
        let reply = command::SendMessage { thread_seq: Some(2), ..says(room, &format!("reply {n}"), None) };
        do_it(bob, command::SendMessage { also_in_channel: n == 1, ..reply }.into()).await;
    }
    do_it(bob, command::AddReaction { channel_id: room, seq: 2, emoji: "tada".into() }.into()).await;
    do_it(ana, command::AddReaction { channel_id: room, seq: 2, emoji: "+1".into() }.into()).await;
    do_it(ana, command::AddPin { channel_id: room, seq: 3 }.into()).await;
    do_it(bob, command::AddSaved { channel_id: room, seq: 3 }.into()).await;
    do_it(bob, command::SetDraft { channel_id: room, thread_seq: None, text: "to be…".into() }.into()).await;
    do_it(bob, command::SetDraft { channel_id: room, thread_seq: Some(2), text: "or not".into() }.into()).await;
    do_it(bob, command::MarkRead { channel_id: room, seq: 4 }.into()).await;
    do_it(ana, command::SetStatus { emoji: "tada".into(), text: "away".into(), until: None }.into()).await;
    do_it(root, command::CreateInvite { role: None, max_uses: Some(2), expires_in_s: None }.into()).await;
    do_it(root, command::DeactivateUser { user_id: gone.user_id }.into()).await;
    do_it(bob, command::ArchiveChannel { channel_id: other }.into()).await;
    let users = vec![(ana.user_id, world.clock.now())];
    world.writer.write(SYSTEM, Work::Account(Account::Seen { users }), None).await.unwrap();
    let (consumer, epoch, event) = ("relay".to_owned(), 1, (room.into(), 2));
    for work in [
        Account::TakeOver { consumer: consumer.clone() },
        Account::KeepPlaces { consumer: consumer.clone(), epoch, places: vec![event, (StreamId::WORKSPACE, 1)] },
        Account::Bury { consumer, epoch, event, reason: "too large".into(), tries: 5 },
    ] {
        world.writer.write(SYSTEM, Work::Account(work), None).await.unwrap();
    }
    for (name, days) in [("lasting", None), ("brief", Some(1))] {
        let now = world.clock.now();
        let expires_at = days.map(|days| now.plus_seconds(days * 86_400));
        let token = Token { id: TokenId::new(now), label: name.into(), created_at: now, expires_at, slides: false };
        let (user, proof, hash) = (ana.user_id, Proof::Operator, Secret::hash(name));
        let sign_in = Account::SignIn { user, proof, token, hash };
        world.writer.write(SYSTEM, Work::Account(sign_in), None).await.unwrap();
    }
    Hub { root, ana, bob, room, other }
}

on_both! {
    every_table_is_copied_or_left_out_for_a_reason(world) {
        let mut db = world.store.read().await.unwrap();
        let sql = match db.dialect() {
            Dialect::Postgres => "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()",
            Dialect::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        };
        let there: Vec<String> = on!(&mut db, c => sqlx::query_scalar(sql).fetch_all(c).await.unwrap());
        let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
        let copied: BTreeSet<&str> = TABLES.iter().copied().collect();
        let left: BTreeSet<&str> = NOT_COPIED.iter().map(|(table, _)| *table).collect();
        assert_eq!(copied.difference(&there).count(), 0, "copied, but not in the schema: {copied:?}");
        let unknown: Vec<_> = there.iter().filter(|table| !copied.contains(**table) && !left.contains(**table)).collect();
        assert!(unknown.is_empty(), "write {unknown:?} into TABLES of storage/copy.rs, or into NOT_COPIED with the reason");
        assert_eq!(copied.intersection(&left).count(), 0);
    }

    a_copy_is_the_same_on_either_database(world) {
        let hub = filled(&world).await;
        for to in &Targets::new().await.urls {
            let report = copied(&world.url, to).await;
            for found in &report.tables {
                assert!(found.source.rows > 0 && found.source == found.target, "the test has none of these: {found:?}");
            }
            assert!(!report.served && report.removed == 0, "{report:#?}");
            let same = Box::pin(verify(&world.url, to, &QUIET)).await.unwrap();
            assert_eq!((same.difference(), same.tables.len()), (None, TABLES.len()));

            let again = copied(&world.url, to).await;
            assert_eq!((again.written, again.removed), (0, 0), "there is nothing to bring");
            // And on to another one, which nothing of the copying shows in.
            let on = Targets::new().await;
            copied(to, &on.urls[0]).await;
            let store = opens(&on.urls[0]).await.unwrap();
            let mut db = store.read().await.unwrap();
            let (found, _) = page(&mut db, None, hub.room, Page::Newest, 200).await.unwrap();
            let mut db = world.store.read().await.unwrap();
            assert_eq!(found, page(&mut db, None, hub.room, Page::Newest, 200).await.unwrap().0);
        }
    }

    what_changed_since_the_first_run_is_brought_and_no_server_starts_before(world) {
        let hub = filled(&world).await;
        let targets = Targets::new().await;
        let serving = Lock::take(&Options::new(&world.url), false).await.unwrap().unwrap();
        for to in &targets.urls {
            let report = copied(&world.url, to).await;
            assert!(report.served);
            assert!(matches!(opens(to).await, Err(OpenError::UnfinishedCopy)));
        }
        let Hub { root, ana, bob, room, other } = hub;
        let do_it = async |who, command: Command| drop(world.ask(who, command).await.unwrap());
        do_it(ana, command::EditMessage { channel_id: room, seq: 3, text: "edited later".into() }.into()).await;
        do_it(ana, command::DeleteMessage { channel_id: room, seq: 4 }.into()).await;
        do_it(ana, command::RemoveReaction { channel_id: room, seq: 2, emoji: "+1".into() }.into()).await;
        do_it(bob, command::SetDraft { channel_id: room, thread_seq: None, text: String::new() }.into()).await;
        do_it(bob, command::RemoveSaved { channel_id: room, seq: 3 }.into()).await;
        do_it(bob, command::LeaveChannel { channel_id: room }.into()).await;
        do_it(ana, says(room, "later", Some("later")).into()).await;
        let prune = Work::Account(Account::Prune { what: Ended::Tokens, before: world.clock.now().plus_seconds(100 * 86_400) });
        world.writer.write(SYSTEM, prune, None).await.unwrap();
        // Names go round: each is free only when the other is given up.
        do_it(root, command::UnarchiveChannel { channel_id: other }.into()).await;
        for (channel_id, name) in [(room, "between"), (other, "room"), (room, "other")] {
            let (topic, purpose, posting) = (None, None, None);
            do_it(root, command::UpdateChannel { channel_id, name: Some(name.into()), topic, purpose, posting }.into()).await;
        }
        let newcomer = world.channel(root, "between", &[]).await;
        for to in &targets.urls {
            let report = copied(&world.url, to).await;
            assert!(report.served && report.removed >= 5, "{report:#?}");
            let all: u64 = report.tables.iter().map(|found| found.source.rows).sum();
            assert!(report.written < all / 2, "only what has changed: {} of {all}", report.written);
            assert!(opens(to).await.is_err());
        }
        drop(serving);
        for to in &targets.urls {
            let report = copied(&world.url, to).await;
            assert_eq!((report.served, report.written, report.removed), (false, 0, 0));
            let store = opens(to).await.unwrap();
            let mut db = store.read().await.unwrap();
            assert_eq!(events::head(&mut db, newcomer.into()).await.unwrap(), 1);
        }
    }

    a_copy_that_is_cut_short_anywhere_is_finished_by_the_next_run(world) {
        filled(&world).await;
        let targets = Targets::new().await;
        for to in &targets.urls {
            let mut cuts = 0;
            for n in (1..).step_by(6) {
                let (steps, cut) = (AtomicUsize::new(0), Notify::new());
                let watch = |_| if steps.fetch_add(1, Ordering::Relaxed) == n { cut.notify_one() };
                let ended = tokio::select! {
                    biased;
                    () = cut.notified() => false,
                    done = Box::pin(copy(&world.url, to, &watch)) => {
                        assert_eq!(done.unwrap().difference(), None);
                        true
                    }
                };
                if ended {
                    break;
                }
                cuts += 1;
                match opens(to).await {
                    Err(OpenError::UnfinishedCopy) => {}
                    // Cut when the last word was on its way to the database, which heard it.
                    Ok(_) => break,
                    Err(error) => panic!("cut at step {n}: {error}"),
                }
            }
            assert!(cuts > 5, "{cuts}");
            opens(to).await.unwrap();
            let same = Box::pin(verify(&world.url, to, &QUIET)).await.unwrap();
            assert_eq!(same.difference(), None);
        }
    }

    a_copy_made_while_people_talk_is_of_one_moment(world) {
        let hub = filled(&world).await;
        let (world, stop) = (Arc::new(world), CancellationToken::new());
        let talk = {
            let (world, stop) = (world.clone(), stop.clone());
            tokio::spawn(async move {
                let mut said = 0;
                while !stop.is_cancelled() {
                    world.ask(hub.ana, says(hub.room, "still talking", None)).await.unwrap();
                    said += 1;
                }
                said
            })
        };
        let serving = Lock::take(&Options::new(&world.url), false).await.unwrap().unwrap();
        let targets = Targets::new().await;
        for to in &targets.urls {
            for _ in 0..2 {
                copied(&world.url, to).await;
                let torn = "SELECT count(*) FROM streams s \
                    WHERE s.last_seq <> (SELECT count(*) FROM events e WHERE e.stream_id = s.id) \
                    OR s.last_message_no <> (SELECT count(m.message_no) FROM messages m WHERE m.channel_id = s.id)";
                assert_eq!(number(to, torn).await, 0, "heads and what they number are of one moment");
            }
        }
        stop.cancel();
        assert!(talk.await.unwrap() > 0);
        drop(serving);
        for to in &targets.urls {
            copied(&world.url, to).await;
            opens(to).await.unwrap();
        }
    }

    what_somebody_else_has_is_never_overwritten(world) {
        filled(&world).await;
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            let Some(other) = World::open(dialect).await else { continue };
            other.user("eve", Role::Admin).await;
            let error = refused(&world.url, &other.url).await;
            assert!(error.contains("holds 1 accounts") && error.contains("Copy to an empty database"), "{error}");
            assert_eq!(number(&other.url, "SELECT count(*) FROM users").await, 1);
            opens(&other.url).await.unwrap();
        }
        for to in &Targets::new().await.urls {
            // A copy that a server has written to since.
            copied(&world.url, to).await;
            run(to, "UPDATE members SET read_no = read_no + 1").await;
            let error = refused(&world.url, to).await;
            assert!(error.contains("was written to"), "{error}");
            opens(to).await.unwrap();
            // A copy of another source.
            run(to, "UPDATE store_copy SET source = 'another', tables = NULL").await;
            assert!(refused(&world.url, to).await.contains("is no copy of this source"));
        }
        for to in &Targets::new().await.urls {
            // A database that is served.
            let serving = opens(to).await.unwrap();
            let lock = Lock::take(&Options::new(to), false).await.unwrap().unwrap();
            assert!(refused(&world.url, to).await.contains("a server runs on the target"));
            drop((serving, lock));
        }
        assert!(refused(&world.url, &world.url).await.contains("the same database"));
    }

    a_source_of_another_version_is_refused_with_the_way_out(world) {
        filled(&world).await;
        let targets = Targets::new().await;
        run(&world.url, "UPDATE _sqlx_migrations SET version = version + 1000 WHERE version = (SELECT max(version) FROM _sqlx_migrations)").await;
        assert!(refused(&world.url, &targets.urls[0]).await.contains("use the version of Colink"));
        run(&world.url, "DELETE FROM _sqlx_migrations WHERE version > 1000").await;
        assert!(refused(&world.url, &targets.urls[0]).await.contains("colink migrate"));
        run(&world.url, "DROP TABLE _sqlx_migrations").await;
        assert!(refused(&world.url, &targets.urls[0]).await.contains("is no database of Colink's"));
        let other = World::open(world.store.dialect()).await.unwrap();
        filled(&other).await;
        run(&other.url, "CREATE TABLE store_copy (source TEXT NOT NULL, tables TEXT); INSERT INTO store_copy VALUES ('x', NULL)").await;
        assert!(refused(&other.url, &targets.urls[0]).await.contains("itself a copy that was not finished"));
    }

    the_first_row_that_differs_is_named(world) {
        filled(&world).await;
        for to in &Targets::new().await.urls {
            copied(&world.url, to).await;
            for (change, table, key) in [
                ("UPDATE reactions SET created_at = (SELECT max(created_at) FROM messages WHERE seq = 2) WHERE emoji = 'tada' AND seq = 2; \
                  UPDATE messages SET text = 'other' WHERE seq = 5 AND mentions = ''", "messages", "seq 5"),
                ("DELETE FROM drafts WHERE thread_seq = 2", "drafts", "thread_seq 2"),
            ] {
                run(to, change).await;
                let report = Box::pin(verify(&world.url, to, &QUIET)).await.unwrap();
                let found = report.tables.iter().find(|found| found.table == table).unwrap();
                assert_ne!(found.source, found.target);
                assert!(found.differs.as_ref().unwrap().contains(key), "{:?}", found.differs);
                assert!(report.difference().is_some());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_is_said_without_its_password() {
    let Some(world) = World::open(Dialect::Sqlite).await else { return };
    filled(&world).await;
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("sqlite://{}", dir.path().join("none.db").display());
    let target = format!("sqlite://{}", dir.path().join("target.db").display());
    assert!(refused(&missing, &target).await.contains("no file"));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing was made");
    assert!(refused(&world.url, "sqlite:///no/such/folder/x.db").await.contains("cannot make the target"));
    let nowhere = "postgres://hub:hunter2@127.0.0.1:1/none";
    assert!(refused(&world.url, nowhere).await.contains("can be reached"));
    assert!(refused(nowhere, &target).await.contains("can be reached"));
    for wrong in ["postgres://hub:hunter2@127.0.0.1:wrong/none", "mysql://hub:hunter2@host/none", "hunter2"] {
        assert!(refused(&world.url, wrong).await.contains("cannot use the URL of the target"));
    }
    let error = Box::pin(verify(&world.url, nowhere, &QUIET)).await.unwrap_err();
    assert!(!error.to_string().contains("hunter2"));
    assert!(!Path::new("none.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_full_or_does_not_let_us_is_told_of_and_the_next_run_goes_on() {
    let Some(world) = World::open(Dialect::Sqlite).await else { return };
    filled(&world).await;
    let dir = tempfile::tempdir().unwrap();
    let Some(to) = new_database(Dialect::Postgres, dir.path()).await else { return };
    // A role that may connect, and no more.
    let role = format!("stranger_{}", UserId::new(Clock::default().now()).0.simple());
    run(&to, &format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")).await;
    let (_, behind) = to.split_once('@').unwrap();
    let error = refused(&world.url, &format!("postgres://{role}:hunter2@{behind}")).await;
    assert!(error.contains("permission denied") && error.contains("let it own the database"), "{error}");
    assert!(refused(&world.url, &format!("{to}_none")).await.contains("CREATE DATABASE"));

    opens(&to).await.unwrap();
    let full = "CREATE FUNCTION no_room() RETURNS TRIGGER LANGUAGE plpgsql AS \
        $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$; \
        CREATE TRIGGER no_room BEFORE INSERT ON reactions FOR EACH ROW EXECUTE FUNCTION no_room()";
    run(&to, full).await;
    let error = Box::pin(copy(&world.url, &to, &QUIET)).await.unwrap_err();
    assert!(matches!(error, CopyError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("(reactions)") && error.to_string().contains("make room"), "{error}");
    assert!(matches!(opens(&to).await, Err(OpenError::UnfinishedCopy)));
    run(&to, "DROP TRIGGER no_room ON reactions").await;
    let report = copied(&world.url, &to).await;
    let rest = report.tables.iter().skip_while(|found| found.table != "reactions");
    let rest: u64 = rest.map(|found| found.source.rows).sum();
    assert_eq!(report.written, rest, "what was there was not brought again");
    opens(&to).await.unwrap();
}
