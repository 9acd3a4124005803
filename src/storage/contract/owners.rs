//! Several writers on one Postgres: who owns a channel, and what the fence lets through. SQLite has one writer.

use futures_util::StreamExt as _;

use super::*;
use crate::storage::writer::{Answer, Claim, Write};

/// Another node's writer on the same database.
async fn another(world: &World) -> Writer {
    let store = Store::open(&Options::new(&world.url)).await.unwrap();
    let limits = Limits { queue: 4_096, batch: 256, patience: Duration::from_secs(5), statement: LIMIT };
    let node = NodeId::new(world.clock.now());
    let stop = CancellationToken::new();
    Writer::start(store, world.clock.clone(), node, limits, Arc::new(|_| {}), stop).unwrap().0
}

async fn send(writer: &Writer, who: Principal, channel: ChannelId, text: &str) -> Result<i64, Refusal> {
    let reply = writer.write(who, Work::Command(says(channel, text, None).into()), None).await?;
    Ok(serde_json::from_str::<Sent>(&reply.json).unwrap().seq)
}

/// Returns who owns a channel, and under which epoch.
async fn owner(world: &World, channel: ChannelId) -> (Option<NodeId>, i64) {
    let Db::Postgres(mut db) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let sql = "SELECT owner, owner_epoch FROM streams WHERE id = $1";
    sqlx::query_as(sql).bind(channel).fetch_one(&mut *db).await.unwrap()
}

/// Lets so much time pass since a channel was taken over that another node may.
async fn the_take_over_is_old(world: &World, channel: ChannelId) {
    let Db::Postgres(mut db) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let sql = "UPDATE streams SET owned_at = owned_at - INTERVAL '6 seconds' WHERE id = $1";
    sqlx::query(sql).bind(channel).execute(&mut *db).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_taken_over_when_it_is_due_and_the_old_owner_is_fenced() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let other = another(&world).await;
    assert_eq!(owner(&world, room).await, (None, 0));

    assert_eq!(send(&world.writer, ana, room, "one").await.unwrap(), 2);
    let (first, epoch) = owner(&world, room).await;
    assert!(first.is_some() && epoch == 1);
    assert_eq!(send(&other, ana, room, "two").await.unwrap(), 3, "beside the owner");
    assert_eq!(send(&world.writer, ana, room, "three").await.unwrap(), 4, "the owner sees its head moved");
    assert_eq!(owner(&world, room).await, (first, 1), "and stays the owner");

    the_take_over_is_old(&world, room).await;
    assert_eq!(send(&other, ana, room, "four").await.unwrap(), 5);
    let (second, epoch) = owner(&world, room).await;
    assert!(second != first && epoch == 2);
    assert_eq!(send(&other, ana, room, "five").await.unwrap(), 6, "from memory");
    assert_eq!(send(&world.writer, ana, room, "six").await.unwrap(), 7, "the old owner has to ask again");
    assert_eq!(owner(&world, room).await, (second, 2), "and does not take it back at once");
    let log = world.log(room).await;
    assert_eq!(log.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_by_another_writer_stays_out_when_a_third_person_asks() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
    let eve = world.user("eve", Role::Member).await;
    let room = world.channel(ana, "room", &[bob, eve]).await;
    let other = another(&world).await;
    assert_eq!(send(&other, bob, room, "one").await.unwrap(), 2);
    world.ask(ana, command::RemoveMember { channel_id: room, user_id: bob.user_id }).await.unwrap();
    assert_eq!(send(&other, eve, room, "two").await.unwrap(), 4, "asked, for she is not remembered");
    assert_eq!(send(&other, bob, room, "three").await.unwrap_err().code, Code::Forbidden, "nor is what he was before");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_was_raised_fences_what_is_remembered() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    for n in 2..4 {
        assert_eq!(send(&world.writer, ana, room, "hi").await.unwrap(), n);
    }
    // As another owner does, who then lets it go again.
    let Db::Postgres(mut db) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let sql = "UPDATE streams SET owner_epoch = owner_epoch + 1 WHERE id = $1";
    sqlx::query(sql).bind(room).execute(&mut *db).await.unwrap();
    assert_eq!(send(&world.writer, ana, room, "hi").await.unwrap(), 4);
    assert_eq!(owner(&world, room).await.1, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_deactivated_by_another_node_is_refused_at_once() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let (root, bob) = (world.user("root", Role::Admin).await, world.user("bob", Role::Member).await);
    let room = world.channel(root, "room", &[bob]).await;
    let other = another(&world).await;
    for _ in 0..2 {
        send(&world.writer, bob, room, "hi").await.unwrap();
        send(&world.writer, root, room, "hi").await.unwrap();
    }
    let deactivate = command::DeactivateUser { user_id: bob.user_id };
    other.write(root, Work::Command(deactivate.into()), None).await.unwrap();
    let both = futures_util::future::join(
        send(&world.writer, bob, room, "still here?"),
        send(&world.writer, root, room, "not here"),
    );
    let (bobs, roots) = both.await;
    assert_eq!(bobs.unwrap_err().code, Code::NotFound);
    assert_eq!(roots.unwrap(), 6);
}

/// How often two transactions waited for each other in a circle, as Postgres counts it when the connections have ended.
async fn deadlocks(world: &World) -> i64 {
    let mut watch = beside(world).await;
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND \
               pid <> pg_backend_pid()";
    sql(&mut watch, end).await;
    let counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    sqlx::query_scalar(counted).fetch_one(&mut watch).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_do_all_kinds_of_things_to_the_same_channels() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let mut people = Vec::new();
    for name in ["ana", "bob", "cid", "dan"] {
        people.push(world.user(name, Role::Member).await);
    }
    let mut rooms = Vec::new();
    for n in 0..8 {
        let room = world.channel(people[0], &format!("room-{n}"), &people[1..]).await;
        send(&world.writer, people[0], room, "what do you think?").await.unwrap();
        rooms.push(room);
    }
    let (one, other) = (another(&world).await, another(&world).await);
    let work = |n: usize, random: usize| -> (Principal, Command) {
        let (channel_id, who) = (rooms[random % 8], people[random / 8 % 4]);
        let command = match n % 10 {
            0 | 1 => says(channel_id, "hi", None).into(),
            2 => command::SendMessage { thread_seq: Some(2), ..says(channel_id, "a reply", None) }.into(),
            3 => command::AddReaction { channel_id, seq: 1, emoji: "wave".into() }.into(),
            4 | 5 => command::MarkRead { channel_id, seq: n as i64 }.into(),
            6 => command::MarkThreadRead { channel_id, thread_seq: 2, seq: n as i64 }.into(),
            7 => command::AddSaved { channel_id, seq: 2 }.into(),
            8 => command::FollowThread { channel_id, thread_seq: 2 }.into(),
            _ => command::SetStatus { emoji: String::new(), text: format!("{n}"), until: None }.into(),
        };
        (who, command)
    };
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let asked: Vec<_> = (0..2_000).map(|n| (n, work(n, random.usize(..)), random.bool())).collect();
    let asked = asked.into_iter().map(|(n, (who, command), there)| {
        let writer = if there { &other } else { &one };
        async move {
            let done = writer.write(who, Work::Command(command), Some(format!("k{n}"))).await;
            done.map(|_| ()).map_err(|refusal| refusal.code)
        }
    });
    // Some at a time, so that batches are small, and many.
    let answers: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(12).collect().await;
    for answer in answers {
        // A reaction to what is no message.
        assert!(matches!(answer, Ok(()) | Err(Code::NotFound)), "seed {seed}: {answer:?}");
    }
    let mut messages = 0;
    for room in rooms {
        let log = world.log(room).await;
        assert_eq!(log.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=log.len() as i64).collect::<Vec<_>>());
        messages += log.len() - 2;
    }
    assert_eq!(messages, 600);
    assert_eq!(deadlocks(&world).await, 0, "seed {seed}");
}

/// A node that died may have stored what is taken back from it, and whose author was deactivated meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_answered_again_even_if_its_author_is_deactivated() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let (root, ana) = (world.user("root", Role::Admin).await, world.user("ana", Role::Member).await);
    let room = world.channel(ana, "room", &[]).await;
    let other = another(&world).await;
    let thread_seq = Some(send(&world.writer, ana, room, "what do you think?").await.unwrap());
    let says: [Command; 2] = [
        says(room, "a message", None).into(),
        command::SendMessage { thread_seq, ..says(room, "a reply", None) }.into(),
    ];
    for (n, say) in says.iter().enumerate() {
        world.writer.write(ana, Work::Command(say.clone()), Some(format!("key-{n}"))).await.unwrap();
    }
    world.ask(root, command::DeactivateUser { user_id: ana.user_id }).await.unwrap();
    for writer in [&other, &world.writer] {
        for (n, say) in says.iter().enumerate() {
            let again = writer.write(ana, Work::Command(say.clone()), Some(format!("key-{n}"))).await;
            assert!(again.is_ok_and(|reply| reply.duplicate), "{n}");
            let new = writer.write(ana, Work::Command(say.clone()), Some(format!("new-{n}"))).await;
            assert!(new.is_err(), "{n}");
        }
    }
}

/// What a node refused that took a command back from an owner, the owner may have in hand, and come to later.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_beside_the_owner_is_not_carried_out_by_it_later() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
    let (owner, beside) = (another(&world).await, another(&world).await);
    let write = async |writer: &Writer, say: &Command, claim: Claim, key: &str| {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let answer = Answer::new(move |result| drop(tx.send(result)));
        let (work, key) = (Work::Command(say.clone()), Some(key.to_owned()));
        writer.submit(Write { caller: bob, work, claim, key, answer });
        rx.await.unwrap().map_err(|refusal| refusal.code)
    };
    for (n, (name, kept)) in [("one", Claim::Owner), ("two", Claim::Beside)].into_iter().enumerate() {
        let room = world.channel(ana, name, &[]).await;
        let thread_seq = Some(send(&owner, ana, room, "what do you think?").await.unwrap());
        let says: [Command; 2] = [
            says(room, "a message", None).into(),
            command::SendMessage { thread_seq, ..says(room, "a reply", None) }.into(),
        ];
        for (m, say) in says.iter().enumerate() {
            let refused = write(&beside, say, kept, &format!("key-{n}-{m}")).await;
            assert!(matches!(refused, Err(Code::NotFound | Code::Forbidden)), "{refused:?}");
        }
        world.ask(ana, command::InviteMember { channel_id: room, user_id: bob.user_id }).await.unwrap();
        for (m, say) in says.iter().enumerate() {
            for writer in [&owner, &beside] {
                let later = write(writer, say, Claim::Owner, &format!("key-{n}-{m}")).await;
                assert_eq!(later.is_ok(), kept == Claim::Owner, "{say:?}: {later:?}");
            }
        }
    }
}

/// Without the bus, every node writes to a channel that somebody there writes to.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_write_to_one_channel_all_the_time_do_not_refuse_each_other() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let writers = [world.writer.clone(), another(&world).await, another(&world).await, another(&world).await];
    let sends = writers.iter().map(|writer| async move {
        for _ in 0..100 {
            send(writer, ana, room, "hi").await.unwrap();
        }
    });
    futures_util::future::join_all(sends).await;
    assert_eq!(world.log(room).await.len(), 1 + 400);
}

/// A node that gives up on the owner's answer writes itself, while the owner may be about to.
#[tokio::test(flavor = "multi_thread")]
async fn what_two_writers_do_at_once_under_one_key_is_done_once() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let other = another(&world).await;
    let thread_seq = Some(send(&world.writer, ana, room, "what do you think?").await.unwrap());
    let (mut holder, mut watch) = (beside(&world).await, beside(&world).await);
    let works: [Command; 4] = [
        command::SendMessage { thread_seq, ..says(room, "a reply", None) }.into(),
        says(room, "a message", None).into(),
        command::EditMessage { channel_id: room, seq: 2, text: "what do you all think?".into() }.into(),
        command::LeaveChannel { channel_id: room }.into(),
    ];
    for (n, work) in works.into_iter().enumerate() {
        sql(&mut holder, "BEGIN; SELECT * FROM streams FOR UPDATE").await;
        let write = |writer: Writer| {
            let work = Work::Command(work.clone());
            async move { writer.write(ana, work, Some(format!("key-{n}"))).await.unwrap() }
        };
        let both_wait = async {
            let waiting = "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND \
                           wait_event_type = 'Lock'";
            until(&mut watch, waiting).await;
            sql(&mut holder, "COMMIT").await;
        };
        let (one, two, ()) = tokio::join!(write(world.writer.clone()), write(other.clone()), both_wait);
        assert!(one.duplicate != two.duplicate, "{one:?} {two:?}");
        assert_eq!(world.log(room).await.len(), n + 3);
    }
}
