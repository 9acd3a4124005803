//! What a database that fails does, and what it does not.

use super::wire::{Cut, Wire};
use super::*;
use crate::storage::writer::{Answer, Claim, Write};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_takes_too_long_does_not_disturb_its_neighbours() {
    let limit = Duration::from_millis(300);
    let Some(world) = on_postgres(|options| options.statement = limit).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let slow = "CREATE FUNCTION slow() RETURNS TRIGGER LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.text = 'slow' THEN PERFORM pg_sleep(600); END IF; RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION slow()";
    let Db::Postgres(mut apart) = world.apart().await else { unreachable!("it is for Postgres alone") };
    sqlx::raw_sql(slow).execute(&mut *apart).await.unwrap();
    let all_say = async |texts: &[&str]| {
        futures_util::future::join_all(texts.iter().map(|text| world.ask(ana, says(room, text, None)))).await
    };

    let mut texts = ["quick"; 20];
    texts[10] = "slow";
    for (text, answer) in texts.iter().zip(all_say(&texts).await) {
        match answer {
            Ok(_) => assert_eq!(*text, "quick"),
            Err(refusal) => assert_eq!((*text, refusal.code), ("slow", Code::Unavailable)),
        }
    }
    assert_eq!(world.log(room).await.len(), 20);

    let started = Instant::now();
    // All of them are in the queue when they begin; what comes then is none of them.
    let mut the_room = hold(&world, room.into()).await;
    let (begin, begun) = tokio::sync::oneshot::channel();
    let slow = async {
        until(&mut beside(&world).await, WAITS).await;
        begin.send(()).unwrap();
        all_say(&["slow"; 40]).await
    };
    let later = async {
        begun.await.unwrap();
        sql(&mut the_room, "COMMIT").await;
        let sleeps =
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
        until(&mut beside(&world).await, sleeps).await;
        all_say(&["quick"; 3]).await
    };
    let (_, slow, quick) = tokio::join!(world.ask(ana, says(room, "quick", None)), slow, later);
    for answer in slow {
        assert_eq!(answer.unwrap_err().code, Code::Unavailable);
    }
    for answer in quick {
        answer.unwrap();
    }
    assert!(started.elapsed() < limit * 20, "a database that is slow is not waited for by each of them");
}

fn says_there_is_no_room(refusal: &Refusal) -> bool {
    refusal.code == Code::Unavailable && refusal.message.contains("no room")
}

/// A command that is taken back from a node that does not answer has waited there.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_waited_elsewhere_is_written_and_takes_no_neighbour_along() {
    let world = World::open(Dialect::Sqlite).await.unwrap();
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let (tx, mut rx) = tokio::sync::mpsc::channel(3);
    for ago in [Duration::ZERO, PATIENCE, Duration::ZERO] {
        let tx = tx.clone();
        let answer = Answer::new(move |result| drop(tx.try_send(result))).since(ago);
        let work = Work::Command(says(room, "hi", None).into());
        world.writer.submit(Write { caller: ana, work, claim: Claim::Owner, key: None, answer });
    }
    for _ in 0..3 {
        rx.recv().await.unwrap().unwrap();
    }
    assert!(!world.writer.is_cut_off());
}

/// Somebody waits for what is held.
const WAITS: &str =
    "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Holds a stream until it is dropped.
async fn hold(world: &World, stream: StreamId) -> PgConnection {
    let mut db = beside(world).await;
    let hold = format!("BEGIN; SELECT 1 FROM streams WHERE id = '{stream}' FOR UPDATE");
    sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut db).await.unwrap();
    db
}

/// What was taken out of the queue along with the making of a large channel waits for that, but no longer than for anything.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_much_work_that_is_stuck_is_told_in_time() {
    let Some(world) = on_postgres(|options| options.lock = LIMIT).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let (tx, mut rx) = tokio::sync::mpsc::channel(8);
    let submit = |command: Command| {
        let tx = tx.clone();
        let answer = Answer::new(move |result| drop(tx.try_send(result)));
        world.writer.submit(Write {
            caller: ana,
            work: Work::Command(command),
            claim: Claim::Owner,
            key: None,
            answer,
        });
    };
    // All the rest is in the queue when the first is done.
    let mut the_room = hold(&world, room.into()).await;
    submit(says(room, "first", None).into());
    until(&mut beside(&world).await, WAITS).await;
    let the_workspace = hold(&world, StreamId::WORKSPACE).await;
    let members = (0..60).map(|_| UserId::new(world.clock.now())).collect();
    let (topic, purpose) = (String::new(), String::new());
    submit(command::CreateChannel { name: "large".into(), private: false, topic, purpose, members }.into());
    (0..3).for_each(|_| submit(says(room, "behind", None).into()));
    sql(&mut the_room, "COMMIT").await;
    rx.recv().await.unwrap().unwrap();
    for _ in 0..4 {
        assert_eq!(rx.recv().await.unwrap().unwrap_err().code, Code::Timeout);
    }
    drop(the_workspace);
}

/// What was begun in time is done, however long that takes: who repeats it hears what came of it, and does not wait as long again.
#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_anybody_waits_is_done_all_the_same() {
    let Some(world) = on_postgres(|options| options.lock = LIMIT).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let Sent { seq, .. } = world.get(ana, says(room, "frist", None)).await;
    let edit = || {
        let edit = command::EditMessage { channel_id: room, seq, text: "first".into() };
        world.writer.write(ana, Work::Command(edit.into()), Some("edit".into()))
    };
    let mut the_room = hold(&world, room.into()).await;
    assert_eq!(edit().await.unwrap_err().code, Code::Timeout);
    sql(&mut the_room, "COMMIT").await;
    let again = loop {
        match edit().await {
            Err(refusal) if refusal.code == Code::Unavailable => tokio::task::yield_now().await,
            answer => break answer.unwrap(),
        }
    };
    assert!(again.duplicate);
}

/// What comes while a commit is stuck is told in time, too, if its time is up before anybody knows that the database is late.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_a_commit_is_stuck_is_told_in_its_own_time() {
    let Some(world) = on_postgres(|options| options.lock = LIMIT).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let the_room = hold(&world, room.into()).await;
    let (tx, mut rx) = tokio::sync::mpsc::channel(2);
    let submit = |text: &'static str, ago: Duration| {
        let tx = tx.clone();
        let answer = Answer::new(move |result| drop(tx.try_send((text, result)))).since(ago);
        let work = Work::Command(says(room, text, None).into());
        world.writer.submit(Write { caller: ana, work, claim: Claim::Owner, key: None, answer });
    };
    submit("stuck", Duration::ZERO);
    until(&mut beside(&world).await, WAITS).await;
    submit("has waited elsewhere", PATIENCE);
    let (text, told) = rx.recv().await.unwrap();
    assert_eq!((text, told.unwrap_err().code), ("has waited elsewhere", Code::Timeout));
    assert!(!world.writer.is_cut_off());
    drop(the_room);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_grow_is_said_to_be_full() {
    let world = World::open(Dialect::Sqlite).await.unwrap();
    let mut db = world.store.write().await.unwrap();
    // Of this connection, which is the one that the writer takes.
    db.run("PRAGMA max_page_count = 400").await.unwrap();
    drop(db);
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let mut stored = world.log(room).await.len();
    let refused = loop {
        match world.ask(ana, says(room, &"x".repeat(10_000), None)).await {
            Ok(_) => stored += 1,
            Err(refusal) => break refusal,
        }
        assert!(stored < 1_000, "there is an end to it");
    };
    assert!(says_there_is_no_room(&refused), "{refused:?}");
    assert!(!world.in_doubt.load(Ordering::SeqCst), "it is known what became of it");
    assert_eq!(world.log(room).await.len(), stored);
}

/// Whichever way a write goes, who asks is told that there is no room, and nothing is left in doubt; it goes on when there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_to_be_full_until_it_has_room() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    world.ask(ana, says(room, "first", None)).await.unwrap();
    let fill = "CREATE FUNCTION full_up() RETURNS TRIGGER LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER full_up BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION full_up()";
    let Db::Postgres(mut apart) = world.apart().await else { unreachable!("it is for Postgres alone") };
    sqlx::raw_sql(fill).execute(&mut *apart).await.unwrap();

    let reply = || command::SendMessage { thread_seq: Some(2), ..says(room, "reply", None) };
    let waiting = (0..40).map(|n| world.ask(ana, if n % 2 == 0 { says(room, "more", None) } else { reply() }));
    for answer in futures_util::future::join_all(waiting).await {
        let refused = answer.unwrap_err();
        assert!(says_there_is_no_room(&refused), "{refused:?}");
    }
    let alone = world.ask(ana, says(room, "alone", None)).await.unwrap_err();
    assert!(says_there_is_no_room(&alone), "{alone:?}");
    assert!(!world.in_doubt.load(Ordering::SeqCst), "it is known what became of each");
    assert_eq!(world.log(room).await.len(), 2);

    sqlx::raw_sql("DROP TRIGGER full_up ON messages").execute(&mut *apart).await.unwrap();
    world.ask(ana, says(room, "again", None)).await.unwrap();
}

/// Opens a world on Postgres whose connections can be cut.
async fn on_a_wire() -> Option<(World, Wire)> {
    let mut wire = None;
    let by_wire = |options: &mut Options| {
        let (made, url) = Wire::to(&options.url);
        (options.url, wire) = (url, Some(made));
    };
    let world = on_postgres(by_wire).await?;
    Some((world, wire?))
}

/// Something to ask for, made anew for each try.
type Make = fn(&Cast, usize) -> (Principal, Command);

/// Who and what is there.
struct Cast {
    root: Principal,
    ana: Principal,
    guests: Vec<Principal>,
    room: ChannelId,
}

/// Whatever round trip is cut, before it or behind it: who asks again with the same key is answered, and it is done once; what
/// was told is stored, and of what was stored and not told it was said that something is in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_connection_stored_is_stored_once_and_in_doubt() {
    let makes: [(&str, Make); 5] = [
        ("send", |cast, n| (cast.ana, says(cast.room, &format!("text {n}"), None).into())),
        ("edit", |cast, n| {
            (cast.ana, command::EditMessage { channel_id: cast.room, seq: 3, text: format!("edit {n}") }.into())
        }),
        ("create", |cast, n| {
            let members = vec![cast.root.user_id];
            let (topic, purpose) = (String::new(), String::new());
            (cast.ana, command::CreateChannel { name: format!("c{n}"), private: true, topic, purpose, members }.into())
        }),
        ("invite", |cast, n| {
            (cast.root, command::InviteMember { channel_id: cast.room, user_id: cast.guests[n].user_id }.into())
        }),
        ("deactivate", |cast, n| (cast.root, command::DeactivateUser { user_id: cast.guests[n].user_id }.into())),
    ];
    let Some((world, wire)) = on_a_wire().await else { return };
    let (root, ana) = (world.user("root", Role::Admin).await, world.user("ana", Role::Member).await);
    let room = world.channel(ana, "room", &[root]).await;
    let mut guests = Vec::new();
    for n in 0..40 {
        guests.push(world.user(&format!("guest-{n}"), Role::Member).await);
    }
    let cast = Cast { root, ana, guests, room };
    // Not by the wire: a connection that goes back to its pool is asked whether it lives, and the cut would be there.
    let mut apart = world.apart().await;
    let mut tries = 0;
    for (name, make) in makes {
        // Prepares its statements.
        let (who, command) = make(&cast, 0);
        world.ask(who, command).await.unwrap();
        let mut n = 0;
        for answer in [false, true] {
            for trips in 0.. {
                n += 1;
                let cut = Cut { trips, answer };
                let (who, command) = make(&cast, n);
                let key = Some(format!("{name}-{n}"));
                wire.plan(cut);
                let first = world.writer.write(who, Work::Command(command.clone()), key.clone()).await;
                if !wire.was_cut() {
                    assert!(first.is_ok(), "{name}: {first:?}");
                    assert!(trips > 0, "{name} takes a round trip at least");
                    break;
                }
                tries += 1;
                let code = first.unwrap_err().code;
                assert!(matches!(code, Code::Unavailable | Code::Timeout), "{name} {cut:?}: {code:?}");
                let repeated = world.writer.write(who, Work::Command(command), key).await;
                assert!(repeated.is_ok(), "{name} {cut:?}: {repeated:?}");
                if code == Code::Timeout {
                    assert!(world.in_doubt.swap(false, Ordering::SeqCst), "{name} {cut:?}");
                }
                world.all_told_is_stored(&mut apart, &format!("{name} {cut:?}")).await;
            }
        }
    }
    assert!(tries > 20, "{tries}");
    let (found, _) = page(&mut apart, None, room, Page::Newest, 200).await.unwrap();
    let texts: Vec<&str> = found.iter().map(|message| &*message.text).filter(|text| text.starts_with("text")).collect();
    let each_once: std::collections::HashSet<&str> = texts.iter().copied().collect();
    assert_eq!(texts.len(), each_once.len(), "{texts:?}");
}

/// Whoever has to wait for a database that does not answer is told so in time, and whoever comes then is refused at once.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_database_that_does_not_answer() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    world.ask(ana, says(room, "one", None)).await.unwrap();
    let Db::Postgres(mut apart) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let freeze = "BEGIN; SELECT 1 FROM streams FOR UPDATE";
    sqlx::raw_sql(freeze).execute(&mut *apart).await.unwrap();

    let began = Instant::now();
    let first = world.ask(ana, says(room, "two", Some("two"))).await.unwrap_err();
    assert_eq!(first.code, Code::Timeout, "it may still be stored");
    let second = world.ask(ana, says(room, "three", Some("three"))).await.unwrap_err();
    assert_eq!(second.code, Code::Unavailable, "it was not even tried");
    assert!(began.elapsed() >= PATIENCE && began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());

    sqlx::raw_sql("ROLLBACK").execute(&mut *apart).await.unwrap();
    let all = async {
        while world.log(room).await.len() < 3 {
            world.news.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("what was waited for is stored and told after all");
    let again = world.ask(ana, says(room, "two", Some("two"))).await.unwrap();
    assert!(again.duplicate);
    world.ask(ana, says(room, "three", Some("three"))).await.unwrap();
}
