//! Whose presence a guest is told, by and by.

use colink::domain::command as c;
use colink::domain::id::UserId;
use colink::domain::user::{PresenceMode, Role};
use serde_json::{Value, json};

use crate::socket::Socket;
use crate::world::{Person, World};

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
