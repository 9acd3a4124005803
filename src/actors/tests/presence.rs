//! Who is there, when the presence tracker dies or the database does not answer.

use super::*;
use crate::domain::command::SetPresence;
use crate::domain::user::PresenceMode;

/// Puts a request to a session that watches users from then on.
fn watches(session: &SessionHandle, users: &[Principal]) {
    session.queue.begin();
    let users = users.iter().map(|user| user.user_id).collect();
    session.request(None, Ok(Request::SubscribePresence(users)));
}

#[tokio::test]
async fn presence_that_panics_is_rebuilt_from_the_sessions_that_are_there_or_were_a_moment_ago() {
    let world = World::open(|_| {}).await;
    let (ana, bob, cid) = (world.user("ana").await, world.user("bob").await, world.user("cid").await);
    let (_connected, lingers, absent) =
        (world.listen(ana, 1).await, world.listen(bob, 2).await, world.listen(cid, 3).await);
    let session = absent.session.clone();
    drop((lingers, absent));
    session.lingered(3);
    has_handled_all(&session).await;
    let people = [ana, bob, cid].map(|who| who.user_id);
    let seen = async || world.hub.directory.ask_presence(people.to_vec()).await;
    let shown = |cid| people.into_iter().zip([Presence::Online, Presence::Online, cid]).collect::<Vec<_>>();
    for _ in 0..3 {
        world.hub.directory.tell_presence(PresenceMsg::Panic);
        assert_eq!(until(seen).await, shown(Presence::Offline));
    }
    let _back = world.hub.take_up(&session, 4, 1).expect("it may still be taken up");
    assert_eq!(until(seen).await, shown(Presence::Online));
}

#[tokio::test]
async fn the_last_word_on_whom_a_session_watches_counts_even_if_presence_died_over_it() {
    let world = World::open(|_| {}).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let ear = world.listen(ana, 1).await;
    let subscribe = |n: u64, user| {
        ear.session.queue.begin();
        ear.session.request(Some(n), Ok(Request::SubscribePresence(vec![user])));
    };
    // While presence is down, nothing of this is handled; when it is back, the last word counts.
    world.hub.directory.tell_presence(PresenceMsg::Panic);
    for n in 0..100 {
        subscribe(n, ana.user_id);
    }
    subscribe(100, bob.user_id);
    let mut last = Value::Null;
    let mut is_told_of = async |user: UserId| {
        until(async || {
            ear.session.queue.take(1, usize::MAX, |s, bytes| {
                let frame: Value = serde_json::from_slice(&text_of(s, bytes)).unwrap();
                if frame["type"] == "presence" {
                    last = frame["d"]["user_id"].clone();
                }
            });
            (last == user.to_string()).then_some(())
        })
        .await;
    };
    is_told_of(bob.user_id).await;
    subscribe(101, ana.user_id);
    is_told_of(ana.user_id).await;
}

#[tokio::test]
async fn who_is_not_to_be_disturbed_is_not_disturbed_because_the_database_does_not_answer() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let ear = world.listen(ana, 1).await;
    let session = ear.session.clone();
    let seen = async || until(async || world.hub.directory.ask_presence(vec![ana.user_id]).await).await[0].1;
    drop(ear);
    session.lingered(1);
    has_handled_all(&session).await;
    assert_eq!(seen().await, Presence::Offline);
    let choose = SetPresence { mode: PresenceMode::Dnd, until: None };
    world.hub.run(ana, choose.into(), None).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(world.hub.store.read().await.unwrap());
    }
    let _back = world.hub.take_up(&session, 2, 1).expect("it may still be taken up");
    assert_eq!(seen().await, Presence::Dnd, "the session was there before");
    world.hub.directory.tell_presence(PresenceMsg::Panic);
    assert_eq!(seen().await, Presence::Dnd, "the tracker is a new one");
}

#[tokio::test]
async fn a_guest_is_told_of_nobody_while_the_database_fails_and_of_the_same_as_before_behind_that() {
    let world = World::open(|_| {}).await;
    let (ana, gus) = (world.user("ana").await, world.person("gus", Role::Guest).await);
    world.channel(ana, "room", &[gus]).await;
    let ear = world.listen(gus, 1).await;
    watches(&ear.session, &[ana, gus]);
    has_handled_all(&ear.session).await;
    let is_told_of = async |count: usize| until(async || (ear.session.watches().len() == count).then_some(())).await;
    is_told_of(2).await;
    let mut database = open_store(world.dir.path()).await.write().await.unwrap();
    database.run("ALTER TABLE members RENAME TO away").await.unwrap();
    ear.session.look_again();
    is_told_of(0).await;
    database.run("ALTER TABLE away RENAME TO members").await.unwrap();
    is_told_of(2).await;
    assert_eq!(*ear.session.watches(), [ana.user_id, gus.user_id]);
}
