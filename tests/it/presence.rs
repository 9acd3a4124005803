//! Who counts as online when connections are lost and come back, and whose presence a guest is told, by and by.

use std::sync::Arc;
use std::time::Duration;

use colink::actors::session::SessionHandle;
use colink::domain::command as c;
use colink::domain::id::{SessionId, UserId};
use colink::domain::user::{PresenceMode, Role};
use colink::storage::last_seen;
use serde_json::{Value, json};

use crate::away::{shown, watches};
use crate::socket::{CLOSE, Socket};
use crate::world::{Database, Person, World, eventually, on_both, standing_clock};

async fn shows(person: &Person, mode: PresenceMode) {
    let _: Value = person.does(c::SetPresence { mode, until: None }).await;
}

/// Waits until somebody is told to be so, and returns who else was told of until then.
async fn told_of(screen: &mut Socket, user: UserId, presence: &str) -> Vec<Value> {
    let mut others = Vec::new();
    loop {
        let told = screen.until("presence").await["d"].clone();
        if told == json!({"user_id": user, "presence": presence}) {
            return others;
        }
        others.push(told["user_id"].clone());
    }
}

/// Waits until somebody is told to be so, and returns how else they were told to be until then.
async fn told_before(screen: &mut Socket, who: &Person, presence: &str) -> Vec<Value> {
    let mut before = Vec::new();
    loop {
        let told = screen.until("presence").await["d"].clone();
        assert_eq!(told["user_id"], json!(who.id()));
        if told["presence"] == presence {
            return before;
        }
        before.push(told["presence"].clone());
    }
}

/// Cuts a connection; returns where to resume from.
fn is_cut(tab: Socket) -> Value {
    json!({"session_id": tab.session, "s": tab.s})
}

/// Says goodbye as a browser does when a tab is closed; returns where to resume from.
async fn closes_tab(mut tab: Socket) -> Value {
    tab.send_frame(true, CLOSE, &1_001u16.to_be_bytes()).await;
    is_cut(tab)
}

impl World {
    /// Returns the session that a client resumes.
    fn session(&self, from: &Value) -> Arc<SessionHandle> {
        let session: SessionId = from["session_id"].as_str().unwrap().parse().unwrap();
        self.app().hub.directory.session(session).expect("it can be resumed")
    }
}

/// A guest is not told of somebody, but still of somebody else.
async fn hears_only(screen: &mut Socket, gone: &Person, still: &Person) {
    // Those who are still to be told of are told of once more.
    told_of(screen, still.id(), "online").await;
    let mut told = Vec::new();
    for (mode, presence) in [(PresenceMode::Dnd, "dnd"), (PresenceMode::Auto, "online")] {
        shows(gone, mode).await;
        shows(still, mode).await;
        told.extend(told_of(screen, still.id(), presence).await);
    }
    assert!(told.iter().all(|user| *user != json!(gone.id())), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_told_of_nobody_with_whom_they_no_longer_share_a_channel() {
    let world = World::start().await;
    let (ana, bob, eve) = (world.user("ana").await, world.user("bob").await, world.user("eve").await);
    let dan = world.user("dan").await;
    let gus = world.person("gus", Role::Guest).await;
    let with_ana = world.private("with-ana", &[&ana, &gus]).await;
    let with_eve = world.private("with-eve", &[&dan, &eve, &gus]).await;
    let _with_bob = world.private("with-bob", &[&bob, &gus]).await;
    let _there = [ana.connects().await, bob.connects().await, eve.connects().await];
    let mut screen = gus.connects().await;
    screen.call("presence.subscribe", json!({"user_ids": [ana.id(), eve.id(), bob.id()]})).await;
    told_of(&mut screen, bob.id(), "online").await;

    ana.removes(with_ana, &gus).await;
    hears_only(&mut screen, &ana, &bob).await;
    let _: Value = eve.does(c::LeaveChannel { channel_id: with_eve }).await;
    hears_only(&mut screen, &eve, &bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_becomes_a_guest_is_told_of_no_stranger_any_more() {
    let world = World::start().await;
    let (ana, bob, carl) = (world.user("ana").await, world.user("bob").await, world.user("carl").await);
    let admin = world.person("root", Role::Admin).await;
    let _with_bob = world.private("with-bob", &[&bob, &carl]).await;
    let _there = [ana.connects().await, bob.connects().await];
    let mut screen = carl.connects().await;
    screen.call("presence.subscribe", json!({"user_ids": [ana.id(), bob.id()]})).await;
    told_of(&mut screen, bob.id(), "online").await;

    let _: Value = admin.does(c::SetUserRole { user_id: carl.id(), role: Role::Guest }).await;
    hears_only(&mut screen, &ana, &bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_connection_is_lost_is_offline_after_a_while_and_online_when_it_is_resumed() {
    for (linger_s, cut) in [(0, false), (1, false), (1, true)] {
        let world = World::with(|config| config.presence.linger_s = linger_s).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let mut screen = watches(&bob, &ana).await;
        let tab = ana.connects().await;
        screen.sees(&ana, "online").await;
        let from = if cut { is_cut(tab) } else { closes_tab(tab).await };
        screen.sees(&ana, "offline").await;
        assert_eq!(shown(&bob, &ana).await, "offline");
        let (_tab, resumed) = ana.resumes(from).await;
        assert_eq!(resumed["d"]["mode"], "buffer", "the session waits for its whole window");
        screen.sees(&ana, "online").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_who_is_soon_back_nobody_hears_anything() {
    let world = World::with(|config| config.presence.linger_s = 3_600).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut screen = watches(&bob, &ana).await;
    let mut tab = ana.connects().await;
    screen.sees(&ana, "online").await;
    for _ in 0..3 {
        let from = closes_tab(tab).await;
        let session = world.session(&from);
        eventually("the connection to be lost", || async { !session.queue.attached() }).await;
        tab = ana.resumes(from.clone()).await.0;
        (tab.session, tab.s) = (from["session_id"].as_str().unwrap().to_owned(), from["s"].as_i64().unwrap());
    }
    // A tab that is loaded anew does not resume.
    let session = world.session(&closes_tab(tab).await);
    eventually("the connection to be lost", || async { !session.queue.attached() }).await;
    let _tab = ana.connects().await;
    shows(&ana, PresenceMode::Dnd).await;
    assert_eq!(told_before(&mut screen, &ana, "dnd").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_another_device_stays_online() {
    let world = World::with(|config| config.presence.linger_s = 0).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut screen = watches(&bob, &ana).await;
    let (laptop, phone) = (ana.connects().await, ana.connects().await);
    screen.sees(&ana, "online").await;
    let session = world.session(&closes_tab(laptop).await);
    eventually("the laptop to be gone", || async { !session.queue.present() }).await;
    shows(&ana, PresenceMode::Dnd).await;
    assert_eq!(told_before(&mut screen, &ana, "dnd").await, [""; 0]);
    closes_tab(phone).await;
    screen.sees(&ana, "offline").await;
    assert_eq!(world.app().hub.directory.session_count(ana.id()), 2, "both may be resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_to_be_disturbed_never_shows_as_online_on_the_way_in() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut screen = watches(&bob, &ana).await;
    shows(&ana, PresenceMode::Dnd).await;
    let _laptop = ana.connects().await;
    assert!(!told_before(&mut screen, &ana, "dnd").await.contains(&json!("online")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_idle_is_back_with_another_device_and_not_with_one_that_connects_again() {
    let clock = standing_clock();
    let world = World::at(Database::Sqlite, clock.clone(), |config| {
        config.presence.linger_s = 0;
        config.presence.idle_after_s = 300;
    })
    .await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut screen = watches(&bob, &ana).await;
    let (_laptop, phone) = (ana.connects().await, ana.connects().await);
    screen.sees(&ana, "online").await;
    clock.advance(Duration::from_secs(300));
    world.looks_for_idle();
    screen.sees(&ana, "away").await;
    let from = closes_tab(phone).await;
    let session = world.session(&from);
    eventually("the phone to be gone", || async { !session.queue.present() }).await;
    let _phone = ana.resumes(from).await;
    assert!(session.queue.present());
    assert_eq!(shown(&bob, &ana).await, "away");
    let _tablet = ana.connects().await;
    screen.sees(&ana, "online").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_polls_is_online_while_a_poll_waits_and_for_a_while_behind_it() {
    // Nothing lingers: what a poll does shows.
    let world = World::with(|config| config.presence.linger_s = 0).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let queue = ana.registers().await;
    eventually("her to be offline", || async { shown(&bob, &ana).await == "offline" }).await;
    let (polled, ()) = tokio::join!(ana.polls(&queue, 1, 60), async {
        eventually("her to be online", || async { shown(&bob, &ana).await == "online" }).await;
        bob.says(general, "hello").await;
    });
    assert_eq!(polled.good()["events"][0]["d"]["text"], "hello");
    eventually("her to be offline", || async { shown(&bob, &ana).await == "offline" }).await;

    let world = World::with(|config| config.presence.linger_s = 3_600).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut screen = watches(&bob, &ana).await;
    let queue = ana.registers().await;
    screen.sees(&ana, "online").await;
    for _ in 0..5 {
        ana.polls(&queue, 1, 0).await.good();
    }
    shows(&ana, PresenceMode::Dnd).await;
    assert_eq!(told_before(&mut screen, &ana, "dnd").await, [""; 0]);
}

on_both! {
    when_somebody_was_last_seen_is_told_of_those_who_are_gone(database) {
        let clock = standing_clock();
        let world = World::at(database, clock.clone(), |config| config.presence.linger_s = 0).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let seen = async || {
            let items = bob.http.get(&format!("/v1/presence?user_ids={}", ana.id())).await.items();
            (items[0]["presence"].clone(), items[0].get("last_seen_at").cloned())
        };
        assert_eq!(seen().await, (json!("offline"), None), "she never was there");
        let mut screen = watches(&bob, &ana).await;
        for stored in [false, true] {
            let mut tab = ana.connects().await;
            screen.sees(&ana, "online").await;
            clock.advance(Duration::from_secs(60));
            assert_eq!(tab.call("user.update", json!({})).await["ok"], true);
            let at = clock.now();
            clock.advance(Duration::from_secs(3_600));
            assert_eq!(seen().await, (json!("online"), None));
            closes_tab(tab).await;
            screen.sees(&ana, "offline").await;
            if stored {
                world.app().hub.remember_seen().await;
            }
            assert_eq!(seen().await, (json!("offline"), Some(json!(at))));
        }
        let mut db = world.app().hub.store.read().await.unwrap();
        assert_eq!(last_seen::of(&mut db, &[ana.id(), bob.id()]).await.unwrap().len(), 2, "it outlives the node");
    }
}
