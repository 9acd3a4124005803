//! Actors that die: what the others notice, and what is still delivered.
//!
//! Everything here runs on a real hub over SQLite. An [`Ear`] is a connected session without a socket: it takes from the
//! session's queue what a connection would write. Nothing waits for a time; everything waits for a condition.

mod presence;
mod sessions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::channel::room::UNKNOWN;
use super::channel::{ChannelMsg, ChannelStats};
use super::directory::Credit;
use super::presence::PresenceMsg;
use super::session::queue::text_of;
use super::session::{Attached, OpenError, SessionHandle};
use super::*;
use crate::domain::channel::Channel;
use crate::domain::command::{Command, CreateChannel, Principal, SendMessage, SetStatus, SetUserRole};
use crate::domain::error::{Code, Refusal, not_found};
use crate::domain::id::{ChannelId, TokenId};
use crate::domain::message::Sent;
use crate::domain::user::{Presence, Role};
use crate::protocol::client::Request;
use crate::protocol::close::CloseCode;
use crate::storage::accounts::{Account, Proof, SYSTEM};
use crate::storage::search::Engine;
use crate::storage::tokens::{Secret, Token};
use crate::storage::writer::{Answer, Reply, Work};
use crate::storage::{Options, StoreError, events, users};

const LIMIT: Duration = Duration::from_secs(20);

struct World {
    hub: Arc<Hub>,
    dir: tempfile::TempDir,
}

impl World {
    async fn open(change: impl FnOnce(&mut Config)) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.limits.messages_per_minute = 0;
        config.gateway.commands_per_minute = 0;
        change(&mut config);
        let store = open_store(dir.path()).await;
        store.migrate().await.unwrap();
        let search = Arc::new(Engine::embedded(&dir.path().join("search"), 16).unwrap());
        let hub = Hub::start(config, "test".into(), Clock::default(), store, search, [0; 32], None).await.unwrap();
        World { hub, dir }
    }

    async fn user(&self, name: &str) -> Principal {
        self.person(name, Role::Member).await
    }

    async fn person(&self, name: &str, role: Role) -> Principal {
        let add = Account::Add { name: name.into(), display_name: None, role, password_hash: None, first: false };
        let reply = self.hub.writer.write(SYSTEM, Work::Account(add), None).await.unwrap();
        let user: User = serde_json::from_str(&reply.json).unwrap();
        let now = self.hub.clock.now();
        let (label, expires_at) = (String::new(), None);
        let token = Token { id: TokenId::new(now), label, created_at: now, expires_at, slides: false };
        let token_id = token.id;
        let (user_id, proof, hash) = (user.id, Proof::Operator, Secret::hash(name));
        self.writes(Account::SignIn { user: user_id, proof, token, hash }).await;
        Principal { user_id: user.id, role: user.role, token_id }
    }

    async fn writes(&self, account: Account) {
        self.hub.writer.write(SYSTEM, Work::Account(account), None).await.unwrap();
    }

    async fn channel(&self, owner: Principal, name: &str, members: &[Principal]) -> ChannelId {
        let create = CreateChannel {
            name: name.into(),
            private: false,
            topic: String::new(),
            purpose: String::new(),
            members: members.iter().map(|m| m.user_id).collect(),
        };
        let reply = self.hub.run(owner, create.into(), None).await.unwrap();
        serde_json::from_str::<Channel>(&reply.json).unwrap().id
    }

    /// Posts as a client does that repeats what was not answered for certain.
    async fn post(&self, author: Principal, channel: ChannelId, text: &str) -> Sent {
        until(async || {
            let reply = self.hub.run(author, says(channel, text).into(), None).await;
            match reply {
                Ok(reply) => Some(serde_json::from_str(&reply.json).unwrap()),
                Err(refusal) if refusal.code.temporary() => None,
                Err(refusal) => panic!("{refusal}"),
            }
        })
        .await
    }

    async fn listen(&self, who: Principal, connection: u64) -> Ear {
        let (session, _) = self.hub.open_session(who, None, connection).await.unwrap();
        Ear { session, connection, heard: HashMap::new() }
    }

    /// Posts by another process of the same store; returns what is in the channel now, behind its making.
    async fn elsewhere(&self, author: Principal, channel: ChannelId, texts: &[&str]) -> Vec<Event> {
        let store = open_store(self.dir.path()).await;
        let limits = writer::Limits { queue: 16, batch: 16, patience: Duration::from_secs(5), statement: LIMIT };
        let node = NodeId::new(Clock::default().now());
        let (sink, stop) = (Arc::new(|_| {}), CancellationToken::new());
        let (writer, _) = Writer::start(store.clone(), Clock::default(), node, limits, sink, stop).unwrap();
        for text in texts {
            writer.write(author, Work::Command(says(channel, text).into()), None).await.unwrap();
        }
        events::after(&mut store.read().await.unwrap(), channel.into(), 1, 10).await.unwrap()
    }

    fn panic(&self, channel: ChannelId) {
        self.hub.tell(channel.into(), ChannelMsg::Panic);
    }

    async fn stats(&self, channel: ChannelId) -> ChannelStats {
        until(async || {
            let actor = self.hub.directory.slot(channel.into())?.actor()?;
            match actor.call(ChannelMsg::Stats, Some(LIMIT)).await {
                Ok(ractor::rpc::CallResult::Success(stats)) => Some(stats),
                _ => None,
            }
        })
        .await
    }

    fn is_set_aside(&self, channel: ChannelId) -> bool {
        self.hub.directory.slot(channel.into()).is_some_and(|slot| slot.quarantine().is_some())
    }
}

async fn open_store(dir: &std::path::Path) -> Store {
    let url = format!("sqlite://{}", dir.join("test.db").display());
    Store::open(&Options::new(url)).await.unwrap()
}

/// A message whose text is also its key.
fn says(channel: ChannelId, text: &str) -> SendMessage {
    SendMessage {
        channel_id: channel,
        client_msg_id: Some(text.to_owned()),
        text: text.to_owned(),
        thread_seq: None,
        also_in_channel: false,
    }
}

/// Returns how large the future is by which an actor handles a message.
#[expect(unreachable_code, reason = "the type is what counts, so it is never made")]
pub(super) fn size_of_handling<A: Actor>(actor: &A) -> usize {
    fn size_of_future<F: Future>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }
    size_of_future(|| actor.handle(unreachable!(), unreachable!(), unreachable!()))
}

/// Asks again, letting others run in between, until there is an answer.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "this never came about");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A connected session, and what it was sent.
struct Ear {
    session: Attached,
    connection: u64,
    heard: HashMap<ChannelId, Vec<(i64, String)>>,
}

impl Ear {
    fn take(&mut self) {
        let heard = &mut self.heard;
        self.session.queue.take(self.connection, usize::MAX, |s, bytes| {
            let frame: Value = serde_json::from_slice(&text_of(s, bytes)).unwrap();
            let Some(channel) = frame["channel_id"].as_str() else { return };
            let of_channel = heard.entry(channel.parse().unwrap()).or_default();
            let seq = frame["seq"].as_i64().unwrap();
            // At least once is promised; a client drops what it has.
            if of_channel.iter().all(|(had, _)| *had != seq) {
                of_channel.push((seq, frame["d"]["text"].as_str().unwrap_or_default().to_owned()));
            }
        });
    }

    /// Waits until everything from `first` to `last` was heard, in order and without a gap.
    async fn hears(&mut self, channel: ChannelId, first: i64, last: i64) {
        let expected: Vec<i64> = (first..=last).collect();
        let deadline = Instant::now() + LIMIT;
        loop {
            self.take();
            let heard: Vec<i64> = self.heard.get(&channel).into_iter().flatten().map(|(seq, _)| *seq).collect();
            assert!(expected.starts_with(&heard), "heard {heard:?} of {first}..={last}");
            if heard.len() == expected.len() {
                return;
            }
            let (queue, connection) = (self.session.queue.clone(), self.connection);
            let work = std::future::poll_fn(|cx| queue.poll_work(connection, cx));
            let waited = tokio::time::timeout_at(deadline.into(), work).await;
            assert!(waited.is_ok(), "heard only {heard:?} of {first}..={last}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statuses_of_many_end_and_not_a_hundred_at_a_turn() {
    let world = World::open(|_| {}).await;
    let mut people = Vec::new();
    for n in 0..120 {
        people.push(world.user(&format!("user-{n}")).await);
    }
    let end = world.hub.clock.now().plus_seconds(2);
    let all_set = people.iter().map(|who| {
        let status = SetStatus { emoji: String::new(), text: "at lunch".into(), until: Some(end) };
        world.hub.run(*who, status.into(), None)
    });
    assert!(futures_util::future::join_all(all_set).await.iter().all(Result::is_ok));
    until(async || {
        let users = users::list(&mut world.hub.store.read().await.unwrap(), "", 200).await.unwrap();
        users.iter().all(|user| user.status.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_that_comes_late_gets_what_was_sent_since_it_looked() {
    let world = World::open(|_| {}).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let room = world.channel(ana, "room", &[bob]).await;
    let mut ear = world.listen(ana, 1).await;
    let mut last = 0;
    for n in 0..5 {
        last = world.post(ana, room, &format!("{n}")).await.seq;
    }
    ear.hears(room, last - 4, last).await;
    // As if it had looked three messages ago, and one that was sent to nobody any more.
    let mut late = world.listen(bob, 2).await;
    let known = last - 3;
    let subscribe = |session: &Ear| ChannelMsg::Subscribe(Arc::clone(&session.session), known);
    world.hub.tell(room.into(), subscribe(&late));
    late.hears(room, known + 1, last).await;

    world.panic(room);
    until(async || (world.stats(room).await.sessions == 2).then_some(())).await;
    world.hub.tell(room.into(), subscribe(&late));
    let told = until(async || {
        let mut told = String::new();
        late.session
            .queue
            .take(2, usize::MAX, |s, bytes| told.push_str(std::str::from_utf8(&text_of(s, bytes)).unwrap()));
        told.contains("lagged").then_some(told)
    });
    let missed = format!(r#"{{"from":{},"to":{last}}}"#, known + 1);
    assert!(told.await.contains(&missed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_panics_comes_back_and_misses_nothing() {
    let world = World::open(|config| config.channels.restarts = 10_000).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let room = world.channel(ana, "room", &[bob]).await;
    let next_door = world.channel(ana, "next-door", &[bob]).await;
    let (mut ear, mut other) = (world.listen(bob, 1).await, world.listen(ana, 2).await);
    world.post(ana, next_door, "before").await;
    let neighbour = world.hub.directory.slot(next_door.into()).unwrap().actor().unwrap().get_id();

    for round in 0..100 {
        world.panic(room);
        // Past the actor, so that the commit falls while it is down, or starting, or up again.
        let write = Work::Command(says(room, &format!("past-{round}")).into());
        let through = format!("through-{round}");
        let (past, sent) = tokio::join!(world.hub.writer.write(ana, write, None), world.post(ana, room, &through));
        past.unwrap();
        assert!(sent.seq > 0);
        let last = 1 + 2 * (round + 1);
        ear.hears(room, 2, last).await;
        other.hears(room, 2, last).await;
    }
    assert_eq!(world.stats(room).await.delivered, 201);
    world.post(ana, next_door, "after").await;
    ear.hears(next_door, 2, 3).await;
    let same = world.hub.directory.slot(next_door.into()).unwrap().actor().unwrap().get_id();
    assert_eq!(same, neighbour, "the neighbour was never started anew");
}

#[tokio::test]
async fn what_a_channel_was_handed_first_survives_its_death() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let room = world.channel(ana, "room", &[]).await;
    let mut ear = world.listen(ana, 1).await;
    // Started, and nothing delivered yet.
    world.hub.tell(room.into(), ChannelMsg::Flush);
    let actor = until(async || world.hub.directory.slot(room.into())?.actor()).await;

    // Another process of the same store commits; the events are handed over when the actor is about to die.
    let committed = world.elsewhere(ana, room, &["first"]).await;
    actor.cast(ChannelMsg::Panic).unwrap();
    world.hub.deliver(room.into(), committed, Instant::now());
    ear.hears(room, 2, 2).await;
}

#[tokio::test]
async fn what_is_missing_is_found_though_the_channel_was_started_before_its_number_was_known() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let room = world.channel(ana, "room", &[]).await;
    // Somebody types in it, before anybody here listens to it.
    let slot = world.hub.directory.slot_or_new(room.into());
    let credit = until(async || Credit::take(&slot, 8)).await;
    world.hub.tell(room.into(), ChannelMsg::Typing { user: ana.user_id, thread_seq: None, credit });
    assert_eq!(world.stats(room).await.delivered, UNKNOWN);
    let mut ear = world.listen(ana, 1).await;
    world.elsewhere(ana, room, &["lost"]).await;
    world.hub.tell(room.into(), ChannelMsg::Recover);
    ear.hears(room, 2, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_caller_tells_a_channel_arrives_in_order_while_it_is_started() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    for n in 0..40 {
        let channel = world.channel(ana, &format!("room-{n}"), &[]).await;
        let (tell, mut answers) = tokio::sync::mpsc::channel(60);
        let slot = world.hub.directory.slot_or_new(channel.into());
        for line in 0..60 {
            // The rest is told when the actor has just begun to live, and what was told before is still on its way.
            let deadline = Instant::now() + LIMIT;
            while line == 50 && slot.actor().is_none() && Instant::now() < deadline {
                std::hint::spin_loop();
            }
            let tell = tell.clone();
            let answer = Answer::new(move |result| tell.try_send((line, result)).unwrap());
            world.hub.dispatch(ana, says(channel, &format!("{n}-{line}")).into(), None, answer);
        }
        drop(tell);
        let mut seqs = Vec::new();
        while let Some((line, result)) = answers.recv().await {
            let sent: Sent = serde_json::from_str(&result.unwrap().json).unwrap();
            seqs.push((line, sent.seq));
        }
        seqs.sort_unstable();
        assert!(seqs.is_sorted_by_key(|(_, seq)| *seq), "{seqs:?}");
        assert_eq!(seqs.len(), 60);
    }
}

#[tokio::test]
async fn commands_whose_channel_dies_are_answered_and_may_be_repeated() {
    let world = World::open(|_| {}).await;
    let ana = world.user("ana").await;
    let room = world.channel(ana, "room", &[]).await;
    world.post(ana, room, "first").await;
    let (answer, mut answers) = tokio::sync::mpsc::channel::<Result<Reply, Refusal>>(16);
    // One thread: the actor sees none of this before all of it is in its mailbox, the panic first.
    world.panic(room);
    for n in 0..10 {
        let answer = answer.clone();
        let answer = Answer::new(move |result| answer.try_send(result).unwrap());
        world.hub.dispatch(ana, Command::SendMessage(says(room, &format!("lost-{n}"))), None, answer);
    }
    for _ in 0..10 {
        let answered = tokio::time::timeout(LIMIT, answers.recv()).await.expect("an answer, never silence").unwrap();
        let refusal = answered.unwrap_err();
        assert_eq!(refusal.code, Code::Timeout);
        assert!(refusal.retry_after.is_some() && refusal.code.temporary());
    }
    for n in 0..10 {
        let sent = world.post(ana, room, &format!("lost-{n}")).await;
        assert_eq!((sent.seq, sent.duplicate), (3 + n, false));
    }
    let slot = world.hub.directory.slot(room.into()).unwrap();
    let free = async || (slot.in_flight.load(std::sync::atomic::Ordering::Acquire) == 0).then_some(());
    until(free).await;
}

#[tokio::test]
async fn a_panic_loop_sets_aside_that_channel_alone_and_for_a_while() {
    let world = World::open(|config| {
        config.channels.restarts = 3;
        config.channels.quarantine_s = 1;
    })
    .await;
    let ana = world.user("ana").await;
    let (room, next_door) = (world.channel(ana, "room", &[]).await, world.channel(ana, "next-door", &[]).await);
    let mut ear = world.listen(ana, 1).await;
    world.post(ana, room, "before").await;
    ear.hears(room, 2, 2).await;

    until(async || {
        world.panic(room);
        world.is_set_aside(room).then_some(())
    })
    .await;
    let refusal = world.hub.run(ana, says(room, "while-aside").into(), None).await.unwrap_err();
    assert_eq!(refusal.code, Code::Unavailable);
    assert!(refusal.retry_after.is_some_and(|seconds| seconds > 0.0 && seconds <= 1.0), "{refusal:?}");
    world.post(ana, next_door, "unharmed").await;
    ear.hears(next_door, 2, 2).await;
    // What was on its way to the store when the channel was set aside.
    let write = Work::Command(says(room, "late").into());
    world.hub.writer.write(ana, write, None).await.unwrap();

    ear.hears(room, 2, 3).await;
    let sent = world.post(ana, room, "while-aside").await;
    assert!(!sent.duplicate, "it was refused, so it was not stored");
    ear.hears(room, 2, 4).await;
}

/// Waits until a session has dealt with what it was told before.
async fn has_handled_all(session: &SessionHandle) {
    session.queue.begin();
    session.request(None, Err(not_found("anything")));
    until(async || (session.queue.in_flight() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_node_whose_supervisors_die_has_failed_and_one_without_presence_has_not() {
    type Victim = fn(&Hub);
    let victims: [(bool, Victim); 4] = [
        (false, |hub| hub.directory.tell_presence(PresenceMsg::Panic)),
        (true, |hub| hub.actors().channels.kill()),
        (true, |hub| hub.actors().sessions.kill()),
        (true, |hub| hub.actors().root.kill()),
    ];
    for (fails, kill) in victims {
        let world = World::open(|_| {}).await;
        let ana = world.user("ana").await;
        let _ear = world.listen(ana, 1).await;
        kill(&world.hub);
        if fails {
            tokio::time::timeout(LIMIT, world.hub.failed.cancelled()).await.expect("the node notices");
        } else {
            until(async || world.hub.directory.ask_presence(vec![ana.user_id]).await).await;
        }
        world.hub.stop().await;
        assert_eq!(world.hub.failed.is_cancelled(), fails, "to be stopped is no failure");
    }
}

#[tokio::test]
async fn typing_takes_a_credit_and_a_channel_without_one_is_told_nothing() {
    let world = World::open(|config| config.channels.mailbox = 8).await;
    let ana = world.user("ana").await;
    let room = world.channel(ana, "room", &[]).await;
    world.hub.tell(room.into(), ChannelMsg::Flush);
    let slot = until(async || {
        let slot = world.hub.directory.slot(room.into())?;
        slot.actor().is_some().then_some(slot)
    })
    .await;
    let in_flight = || slot.in_flight.load(std::sync::atomic::Ordering::Acquire);
    until(async || (in_flight() == 0).then_some(())).await;
    // One thread: the actor handles none of these before all are told.
    for thread in 0..1_000 {
        world.hub.typing(ana.user_id, room, Some(thread));
    }
    assert_eq!(in_flight(), 8);
    until(async || (in_flight() == 0).then_some(())).await;
    world.post(ana, room, "on-it-goes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_node_tells_late_brings_no_earlier_role_back() {
    let world = World::open(|_| ()).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let add =
        Account::Add { name: "root".into(), display_name: None, role: Role::Admin, password_hash: None, first: false };
    let root = world.hub.writer.write(SYSTEM, Work::Account(add), None).await.unwrap();
    let root: User = serde_json::from_str(&root.json).unwrap();
    let root = Principal { user_id: root.id, role: root.role, token_id: bob.token_id };
    let (ear, _witness) = (world.listen(ana, 1).await, world.listen(bob, 2).await);
    for role in [Role::Guest, Role::Member] {
        world.hub.run(root, SetUserRole { user_id: ana.user_id, role }.into(), None).await.unwrap();
    }
    let log = events::after(&mut world.hub.store.read().await.unwrap(), StreamId::WORKSPACE, 0, 100).await.unwrap();
    let head = log.last().unwrap().seq;
    until(async || {
        let slot = world.hub.directory.slot(StreamId::WORKSPACE)?;
        (slot.delivered.load(std::sync::atomic::Ordering::Acquire) >= head).then_some(())
    })
    .await;
    let as_guest = log.into_iter().find(|event| event.payload.contains("guest")).unwrap();
    world.hub.heard(vec![as_guest.clone()]);
    assert_eq!(ear.session.principal().role, Role::Member);
    // What was read from the log and not sent on yet is noted already, though it is not delivered.
    let later = world.listen(ana, 3).await;
    world.hub.note(&as_guest);
    assert_eq!([&ear, &later].map(|ear| ear.session.principal().role), [Role::Member; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ends_by_itself_is_the_end_of_its_node_and_one_that_is_stopped_is_not() {
    let world = World::open(|_| ()).await;
    let (hub, stop) = (Arc::downgrade(&world.hub), CancellationToken::new());
    let (started, running) = tokio::sync::oneshot::channel();
    let stopped = watched(&hub, &stop, "one", async move {
        started.send(()).unwrap();
        std::future::pending().await
    });
    running.await.unwrap();
    stop.cancel();
    stopped.await.unwrap();
    assert!(!world.hub.failed.is_cancelled());
    watched(&hub, &CancellationToken::new(), "other", async { panic!("as a bug would") });
    tokio::time::timeout(LIMIT, world.hub.failed.cancelled()).await.expect("the node knows that it failed");
}
