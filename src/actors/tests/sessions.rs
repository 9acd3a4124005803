//! Sessions that are opened, lost, taken up again and moved.

use super::*;
use crate::actors::session::resume::Resumed;
use crate::domain::id::SessionId;
use crate::protocol::client::Resume;

#[tokio::test]
async fn a_session_that_panics_ends_alone_and_its_client_may_come_back() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let room = world.channel(ana, "room", &[]).await;
    let (gone, mut other) = (world.listen(ana, 1).await, world.listen(ana, 2).await);
    gone.session.panic();
    until(async || gone.session.ended().then_some(())).await;
    let taken = gone.session.queue.take(1, usize::MAX, |_, _| {});
    assert_eq!(taken.close, Some(CloseCode::Unknown));
    assert_eq!(CloseCode::Unknown.come_back(), crate::protocol::close::ComeBack::Resume);
    assert!(world.hub.directory.session(gone.session.id).is_none());
    world.post(ana, room, "unharmed").await;
    other.hears(room, 2, 2).await;
    world.listen(ana, 3).await;
    assert_eq!(world.hub.directory.session_count(ana.user_id), 2);
}

#[tokio::test]
async fn a_session_is_opened_for_what_its_caller_is_by_now() {
    let world = World::open(|_| {}).await;
    let (mut ana, bob) = (world.user("ana").await, world.user("bob").await);
    ana.role = Role::Admin;
    assert_eq!(world.listen(ana, 1).await.session.principal().role, Role::Member, "they were believed to be more");
    // Between the token's lookup and this, the sign-in ended: nobody will tell a session that was not there.
    world.writes(Account::SignOut { user: bob.user_id, token: bob.token_id }).await;
    let opened = world.hub.open_session(bob, None, 2).await;
    assert!(matches!(opened, Err(OpenError::Store(StoreError::Refused(r))) if r.code == Code::Unauthenticated));
    until(async || (world.hub.directory.session_count(bob.user_id) == 0).then_some(())).await;
}

#[tokio::test]
async fn every_disconnect_gets_the_whole_window() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let (first, _) = world.hub.open_session(ana, None, 1).await.unwrap();
    let session = first.clone();
    drop(first);
    let second = world.hub.take_up(&session, 2, 1).expect("the window is open");
    // One thread: the timer comes before the session learns that the second connection is lost, too.
    session.expire(1);
    drop(second);
    session.expire(1);
    has_handled_all(&session).await;
    drop(world.hub.take_up(&session, 3, 1).expect("the timer of the first disconnect does not count"));
    session.expire(3);
    until(async || session.ended().then_some(())).await;
    assert!(world.hub.take_up(&session, 4, 1).is_none());
}

#[tokio::test]
async fn after_every_disconnect_a_user_counts_as_there_for_the_whole_time() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let (poll, _) = world.hub.open_session(ana, None, 1).await.unwrap();
    let session = poll.clone();
    drop(poll);
    for connection in 2..10 {
        let poll = world.hub.take_up(&session, connection, 1);
        session.lingered(connection - 1);
        drop(poll);
        session.lingered(connection - 1);
        has_handled_all(&session).await;
        assert!(session.queue.present(), "the timers of earlier polls do not count");
    }
    session.lingered(9);
    has_handled_all(&session).await;
    assert!(!session.queue.present() && !session.ended());
    let _poll = world.hub.take_up(&session, 10, 1).expect("it may still be taken up");
    assert!(session.queue.present());
}

#[tokio::test]
async fn a_session_that_is_opened_while_the_node_drains_is_asked_to_move() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let early = world.listen(ana, 1).await;
    world.hub.drain();
    for ear in [early, world.listen(ana, 2).await] {
        let mut told = Vec::new();
        ear.session.queue.take(ear.connection, usize::MAX, |_, frame| told.extend_from_slice(frame));
        assert!(String::from_utf8_lossy(&told).contains("reconnect"), "{told:?}");
    }
}

/// Asks for a session to be gone on with of which the client has everything.
fn resume_of(session_id: SessionId) -> Resume {
    Resume { token: None, session_id, s: 1, cursors: HashMap::new(), intents: None }
}

#[tokio::test]
async fn a_session_whose_opening_is_broken_off_is_over() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let resume = resume_of(SessionId::new(world.hub.clock.now()));
    let mut broken_off = 0;
    for connection in 1..=10 {
        let opens = async { drop(world.hub.open_session(ana, None, connection).await) };
        let resumes = async { drop(world.hub.resume_session(ana, &resume, connection).await) };
        let openings: [std::pin::Pin<Box<dyn Future<Output = ()>>>; 2] = [Box::pin(opens), Box::pin(resumes)];
        for mut opening in openings {
            // As far as it comes until the session is there; then whoever wanted it is gone.
            let ready = std::future::poll_fn(|cx| {
                let ready = opening.as_mut().poll(cx).is_ready();
                let there = world.hub.directory.sessions_of(ana.user_id).iter().any(|session| !session.ended());
                if ready || there { std::task::Poll::Ready(ready) } else { std::task::Poll::Pending }
            })
            .await;
            drop(opening);
            if ready {
                // The database was quicker than this thread: the session was handed over.
                world.hub.directory.sessions_of(ana.user_id).iter().for_each(|session| session.end());
            } else {
                broken_off += 1;
            }
            until(async || (world.hub.directory.session_count(ana.user_id) == 0).then_some(())).await;
        }
    }
    assert!(broken_off > 0);
}

#[tokio::test]
async fn a_session_that_was_there_before_goes_on_when_a_resume_is_broken_off() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let (opened, _) = world.hub.open_session(ana, None, 1).await.unwrap();
    let session = opened.clone();
    drop(opened);
    for connection in 2..5 {
        let resumed = world.hub.resume_session(ana, &resume_of(session.id), connection).await.unwrap();
        assert!(matches!(&resumed, Resumed::Yes { session: same, .. } if same.id == session.id));
        drop(resumed);
        has_handled_all(&session).await;
        assert!(!session.ended() && !session.queue.attached());
    }
}

#[tokio::test]
async fn sessions_that_are_opened_at_once_are_counted_too() {
    let world = World::open(|config| config.gateway.sessions_per_user = 3).await;
    let ana = world.user("ana").await;
    let open_ten = async |first: u64| {
        let opening = (first..first + 10).map(|connection| world.hub.open_session(ana, None, connection));
        let opened = futures_util::future::join_all(opening).await;
        let refused = |opened: &&Result<_, OpenError>| matches!(opened, Err(OpenError::TooMany));
        assert_eq!(opened.iter().filter(refused).count(), 7);
        until(async || (world.hub.directory.session_count(ana.user_id) == 3).then_some(())).await;
        opened.into_iter().flatten().map(|(session, _)| session).collect::<Vec<_>>()
    };
    let opened = open_ten(1).await;
    let sessions: Vec<_> = opened.iter().map(|attached| Arc::clone(attached)).collect();
    drop(opened);
    // Three wait for their clients: each makes way once.
    open_ten(11).await;
    assert!(sessions.iter().all(|session| session.ended()));
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nobody_from_turning_active() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let ear = world.listen(ana, 1).await;
    let now = world.hub.clock.now().plus_seconds(60);
    let turns = |seconds| ear.session.turns_active(now.plus_seconds(seconds));
    assert_eq!([0, 1, 29, 30, 31].map(turns), [true, false, false, true, false]);
    assert_eq!([-3_600, -3_599, -3_570].map(turns), [true, false, true]);
}
