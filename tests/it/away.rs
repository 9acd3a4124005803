//! Who is away, idle, or not to be disturbed: as they chose to be shown, and as it is seen of who does nothing.

use std::time::Duration;

use colink::domain::command as c;
use colink::domain::user::Role;
use serde_json::{Value, json};

use crate::socket::{CLOSE, Socket};
use crate::world::{Database, Person, World, on_both, standing_clock};

impl Socket {
    /// Waits until somebody is shown in a way.
    pub(crate) async fn sees(&mut self, who: &Person, presence: &str) {
        while self.until("presence").await["d"] != json!({"user_id": who.id(), "presence": presence}) {}
    }
}

/// Opens a socket that watches somebody who is not there yet.
pub(crate) async fn watches(watcher: &Person, who: &Person) -> Socket {
    let mut screen = watcher.connects().await;
    screen.call("presence.subscribe", json!({"user_ids": [who.id()]})).await;
    screen.sees(who, "offline").await;
    screen
}

/// Returns how somebody is shown over REST.
pub(crate) async fn shown(asks: &Person, who: &Person) -> Value {
    asks.http.get(&format!("/v1/presence?user_ids={}", who.id())).await.items()[0]["presence"].clone()
}

on_both! {
    who_is_not_to_be_disturbed_is_shown_so_on_every_connection_until_that_ends(database) {
        let clock = standing_clock();
        let world = World::at(database, clock.clone(), |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let mut screen = watches(&bob, &ana).await;
        let mut first = ana.connects().await;
        screen.sees(&ana, "online").await;
        let until = clock.now().plus_seconds(3_600);
        let choose = async |how: Value| ana.http.ask("PUT", "/v1/users/me/presence", &how).await;
        let chosen = choose(json!({"mode": "dnd", "until": until})).await.good();
        assert_eq!((&chosen["presence_mode"], &chosen["presence_until"]), (&json!("dnd"), &json!(until)));
        screen.sees(&ana, "dnd").await;
        assert_eq!(shown(&bob, &ana).await, "dnd");
        first.send_frame(true, CLOSE, &1_000u16.to_be_bytes()).await;
        screen.sees(&ana, "offline").await;
        let mut second = ana.connects().await;
        screen.sees(&ana, "dnd").await;

        clock.advance(Duration::from_secs(3_600));
        world.ends_statuses().await;
        screen.sees(&ana, "online").await;
        let me = ana.http.get("/v1/users/me").await.good();
        assert_eq!((&me["presence_mode"], me.get("presence_until")), (&json!("auto"), None));
        let mut told = second.until("user.updated").await;
        while told["d"]["presence_mode"] == "dnd" {
            // From before she came back: her session may hear what its `ready` counts.
            told = second.until("user.updated").await;
        }
        assert_eq!((&told["d"], told.get("actor_id")), (&me, None), "her own devices are told, and nobody did it");

        assert_eq!(choose(json!({"mode": "away"})).await.good().get("presence_until"), None);
        screen.sees(&ana, "away").await;
        clock.advance(Duration::from_secs(366 * 86_400));
        world.ends_statuses().await;
        assert_eq!(second.call("user.update", json!({})).await["ok"], true);
        assert_eq!(shown(&bob, &ana).await, "away", "whatever she does, and for as long as she likes");
        let until = clock.now().plus_seconds(60);
        assert_eq!(choose(json!({"mode": "auto", "until": until})).await.good().get("presence_until"), None);
        screen.sees(&ana, "online").await;
        for refused in [json!({"mode": "dnd", "until": clock.now()}), json!({"mode": "invisible"}), json!({})] {
            assert_eq!(choose(refused.clone()).await.code(), "invalid_request", "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_nothing_for_so_long_is_away_until_they_do_something() {
    let clock = standing_clock();
    let world = World::at(Database::Sqlite, clock.clone(), |config| {
        config.presence.idle_after_s = 300;
    })
    .await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let root = world.person("root", Role::Admin).await;
    let mut screen = watches(&bob, &ana).await;
    let mut keyboard = ana.connects().await;
    screen.sees(&ana, "online").await;
    clock.advance(Duration::from_secs(299));
    world.looks_for_idle();
    assert_eq!(shown(&bob, &ana).await, "online");
    clock.advance(Duration::from_secs(1));
    world.looks_for_idle();
    screen.sees(&ana, "away").await;
    keyboard.everything().await;
    assert_eq!(shown(&bob, &ana).await, "away", "a heartbeat is no sign of a person");
    let _: Value = root.does(c::SetUserRole { user_id: ana.id(), role: Role::Moderator }).await;
    assert_eq!(keyboard.until("user.updated").await["d"]["role"], "moderator");
    assert_eq!(shown(&bob, &ana).await, "away", "nor is what others do to her account");
    assert_eq!(keyboard.call("user.update", json!({})).await["ok"], true);
    screen.sees(&ana, "online").await;
    clock.advance(Duration::from_secs(300));
    world.looks_for_idle();
    screen.sees(&ana, "away").await;
    ana.http.get("/v1/channels").await.good();
    assert_eq!(shown(&bob, &ana).await, "away", "nor is what a client reads by itself");
    ana.http.ask("PATCH", "/v1/users/me", &json!({})).await.good();
    screen.sees(&ana, "online").await;

    let clock = standing_clock();
    let world = World::at(Database::Sqlite, clock.clone(), |config| {
        config.presence.idle_after_s = 0;
    })
    .await;
    let ana = world.user("ana").await;
    let _keyboard = ana.connects().await;
    clock.advance(Duration::from_secs(366 * 86_400));
    world.looks_for_idle();
    assert_eq!(shown(&ana, &ana).await, "online", "0 is never");
}
