//! Coming in, going out, and being shown the door.

use std::time::{Duration, Instant};

use colink::clock::{Clock, Timestamp};
use colink::domain::command as c;
use colink::domain::user::Role;
use colink::storage::Store;
use colink::storage::tokens::{self, Secret};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::http::Answer;
use crate::logs::lines_with;
use crate::socket::Socket;
use crate::world::{Database, PASSWORD, Person, World, eventually, on_both, within};

async fn invites(admin: &Person, role: Role, uses: i64) -> (String, String) {
    let create = c::CreateInvite { role: Some(role), max_uses: Some(uses), expires_in_s: Some(60) };
    let invite: Value = admin.does(create).await;
    (invite["id"].as_str().unwrap().to_owned(), invite["code"].as_str().unwrap().to_owned())
}

fn sign_up(code: &str, name: &str) -> Value {
    json!({"code": code, "name": name, "password": PASSWORD})
}

on_both! {
    an_invitation_is_used_as_often_as_it_says(database) {
        let world = World::on(database, |_| ()).await;
        let admin = world.person("root", Role::Admin).await;
        let stranger = world.stranger();
        let (id, code) = invites(&admin, Role::Guest, 2).await;
        let listed = admin.http.get("/v1/invites").await.items();
        assert_eq!((&listed[0]["id"], listed[0].get("code")), (&json!(id), None), "the code is shown once");
        let bad = json!({"code": code, "name": "ana", "password": "short"});
        assert_eq!(stranger.post("/v1/auth/signup", &bad).await.code(), "invalid_request");
        assert_eq!(stranger.post("/v1/auth/signup", &sign_up(&code, "root")).await.code(), "conflict");
        let ana = stranger.post("/v1/auth/signup", &sign_up(&code, "Ana")).await.good();
        assert_eq!((&ana["user"]["name"], &ana["user"]["role"]), (&json!("ana"), &json!("guest")));
        // Two want the last place.
        let (body_b, body_c) = (sign_up(&code, "bob"), sign_up(&code, "cleo"));
        let both = tokio::join!(stranger.post("/v1/auth/signup", &body_b), stranger.post("/v1/auth/signup", &body_c));
        let mut codes = [both.0.code(), both.1.code()];
        codes.sort();
        assert_eq!(codes, ["forbidden", "ok"]);
        assert!(admin.http.get("/v1/invites").await.items().is_empty(), "it is used up");

        let (id, code) = invites(&admin, Role::Member, 5).await;
        assert_eq!(admin.http.send("DELETE", &format!("/v1/invites/{id}"), &[], "".into()).await.status, 200);
        assert_eq!(stranger.post("/v1/auth/signup", &sign_up(&code, "dan")).await.code(), "forbidden");
        assert_eq!(stranger.post("/v1/auth/signup", &sign_up("cli_made_up", "dan")).await.code(), "forbidden");
        assert_eq!(admin.http.get("/v1/users").await.items().len(), 3);
    }

    a_password_signs_in_and_its_change_ends_every_sign_in(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let stranger = world.stranger();
        let login = |password: &str| json!({"name": "ANA", "password": password, "label": "laptop"});
        for (body, code) in [
            (login("wrong password"), "unauthenticated"),
            (json!({"name": "nobody", "password": PASSWORD}), "unauthenticated"),
            (json!({"name": "ana"}), "invalid_request"),
        ] {
            let answer = stranger.post("/v1/auth/login", &body).await;
            assert_eq!(answer.code(), code);
        }
        let signed_in = stranger.post("/v1/auth/login", &login(PASSWORD)).await.good();
        let laptop = ana.with_token(signed_in["token"].as_str().unwrap());
        let labels: Vec<Value> =
            laptop.http.get("/v1/auth/sessions").await.items().iter().map(|s| s["label"].clone()).collect();
        assert_eq!(labels, [json!("laptop"), json!("test")]);

        let (mut here, mut there) = (laptop.connects().await, ana.connects().await);
        let change = |current: &str| json!({"current": current, "new": "another horse"});
        assert_eq!(laptop.http.ask("PUT", "/v1/auth/password", &change("wrong one")).await.code(), "forbidden");
        assert_eq!(laptop.http.ask("PUT", "/v1/auth/password", &change(PASSWORD)).await.status, 200);
        assert_eq!((here.closes().await, there.closes().await), (4014, 4014));
        for person in [&laptop, &ana] {
            assert_eq!(person.http.get("/v1/users/me").await.code(), "unauthenticated");
            let mut socket = Socket::open(&world.url, &[]).await;
            socket.asks("identify", json!({"token": person.token})).await;
            assert_eq!(socket.closes().await, 4004);
        }
        assert_eq!(stranger.post("/v1/auth/login", &login(PASSWORD)).await.code(), "unauthenticated");
        assert_eq!(stranger.post("/v1/auth/login", &login("another horse")).await.code(), "ok");
    }

    a_deactivated_account_is_out_at_once_and_can_come_back(database) {
        let world = World::on(database, |_| ()).await;
        let (admin, bob) = (world.person("root", Role::Admin).await, world.user("bob").await);
        let general = world.channel("general", &[&admin, &bob]).await;
        let mut screen = bob.connects().await;
        let _: Value = admin.does(c::DeactivateUser { user_id: bob.id() }).await;
        assert_eq!(screen.closes().await, 4014);
        assert_eq!(bob.http.get("/v1/users/me").await.code(), "unauthenticated");
        let login = json!({"name": "bob", "password": PASSWORD});
        assert_ne!(world.stranger().post("/v1/auth/login", &login).await.code(), "ok");
        assert_eq!(admin.tries(c::DeactivateUser { user_id: bob.id() }).await.code(), "ok", "again is the same as once");
        let _: Value = admin.does(c::ReactivateUser { user_id: bob.id() }).await;
        assert_eq!(bob.http.get("/v1/users/me").await.code(), "unauthenticated", "old sign-ins stay ended");
        let token = world.stranger().post("/v1/auth/login", &login).await.good()["token"].as_str().unwrap().to_owned();
        let bob = bob.with_token(&token);
        let mut screen = bob.connects().await;
        admin.says(general, "welcome back").await;
        assert_eq!(screen.until("message.created").await["d"]["text"], "welcome back");
    }
}

on_both! {
    a_nul_or_a_time_that_nobody_can_write_is_no_fault_of_the_database(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let login = json!({"name": "ana\0", "password": PASSWORD});
        assert_eq!(world.stranger().post("/v1/auth/login", &login).await.code(), "unauthenticated");
        for list in ["/v1/users", "/v1/channels/browse"] {
            assert_eq!(ana.http.get(&format!("{list}?cursor=%00")).await.code(), "invalid_request");
        }

        // In the year 10000, by its offset.
        let until = json!("9999-12-31T23:59:59-01:00");
        let status = json!({"emoji": "palm_tree", "until": until});
        assert_eq!(ana.http.ask("PUT", "/v1/users/me/status", &status).await.code(), "invalid_request");
        let presence = json!({"mode": "away", "until": until});
        assert_eq!(ana.http.ask("PUT", "/v1/users/me/presence", &presence).await.code(), "invalid_request");
        let tokens = format!("/v1/users/{}/tokens", ana.id());
        assert_eq!(ana.http.post(&tokens, &json!({"expires_in_s": i64::MAX})).await.code(), "ok");
        let newest = &ana.http.get("/v1/auth/sessions").await.items()[0];
        assert_eq!(newest["expires_at"], "9999-12-31T23:59:59.999999Z");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_invitation_and_an_expired_token_are_no_good() {
    let clock = Clock::manual(Timestamp(1_790_000_000_000_000));
    let world = World::at(Database::Sqlite, clock.clone(), |_| ()).await;
    let ana = world.user("ana").await;
    let made = ana.http.post(&format!("/v1/users/{}/tokens", ana.id()), &json!({"expires_in_s": 1})).await.good();
    let brief = ana.with_token(made["token"].as_str().unwrap());
    assert_eq!(brief.http.get("/v1/users/me").await.code(), "ok");
    clock.advance(Duration::from_secs(2));
    assert_eq!(brief.http.get("/v1/users/me").await.code(), "unauthenticated");
    let admin = world.person("root", Role::Admin).await;
    for (lifetime, uses) in [(0, 1), (-1, 1), (i64::MAX, 1), (60, 0), (60, i64::MAX)] {
        let invite = c::CreateInvite { role: None, max_uses: Some(uses), expires_in_s: Some(lifetime) };
        assert_eq!(admin.tries(invite).await.code(), "invalid_request");
    }
}

on_both! {
    a_sign_in_lasts_while_it_is_used_and_a_token_as_long_as_it_says(database) {
        let clock = Clock::manual(Timestamp(1_790_000_000_000_000));
        let world = World::at(database, clock.clone(), |_| ()).await;
        let ana = world.user("ana").await;
        let day = |n: u64| Duration::from_secs(n * 86_400);
        let login = json!({"name": "ana", "password": PASSWORD, "cookie": true});
        let login = || async {
            let signed_in = world.stranger().post("/v1/auth/login", &login).await.good();
            ana.with_token(signed_in["token"].as_str().unwrap())
        };
        let (used, unused, watching) = (login().await, login().await, login().await);
        let path = format!("/v1/users/{}/tokens", ana.id());
        let made = ana.http.post(&path, &json!({"expires_in_s": 30 * 86_400})).await.good();
        let fixed = ana.with_token(made["token"].as_str().unwrap());
        let _screen = watching.connects().await;
        let expiry = || async {
            let sessions = used.http.get("/v1/auth/sessions").await.items();
            sessions.iter().filter(|s| s["slides"] == true).map(|s| s["expires_at"].clone()).max_by_key(Value::to_string)
        };
        let first = expiry().await;
        clock.advance(Duration::from_secs(3_000));
        assert_eq!(expiry().await, first, "no write within the hour");
        clock.advance(day(29));
        assert_eq!((used.http.get("/v1/users/me").await.code(), fixed.http.get("/v1/users/me").await.code()), ("ok".into(), "ok".into()));
        world.app().hub.prolong_open().await.unwrap();
        assert_ne!(expiry().await, first);
        clock.advance(day(29));
        assert_eq!(used.http.get("/v1/users/me").await.code(), "ok", "used a month ago");
        assert_eq!(watching.http.get("/v1/users/me").await.code(), "ok", "an open connection is use");
        assert_eq!(unused.http.get("/v1/users/me").await.code(), "unauthenticated");
        assert_eq!(fixed.http.get("/v1/users/me").await.code(), "unauthenticated", "its time is over, used or not");
        clock.advance(day(31));
        assert_eq!(used.http.get("/v1/users/me").await.code(), "unauthenticated");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_ends_by_the_clock() {
    let data = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_790_000_000_000_000));
    let config = crate::world::config(data.path());
    let app = Box::pin(colink::app::App::start_at(config, clock.clone())).await.unwrap();
    let world = World::of(app, data);
    let admin = world.person("root", Role::Admin).await;
    let (_, code) = invites(&admin, Role::Member, 1).await;
    clock.advance(Duration::from_secs(61));
    assert_eq!(world.stranger().post("/v1/auth/signup", &sign_up(&code, "late")).await.code(), "forbidden");
    assert!(admin.http.get("/v1/invites").await.items().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_ends_the_sockets_of_that_sign_in_alone() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let other = ana.with_token(&world.token(ana.id()).await);
    let third = ana.with_token(&world.token(ana.id()).await);
    let (mut here, mut there, mut third_screen) =
        (ana.connects().await, other.connects().await, third.connects().await);
    assert_eq!(ana.http.post("/v1/auth/logout", &json!({})).await.status, 200);
    assert_eq!(here.closes_with_reason().await, (4014, "session revoked".to_owned()));
    assert_eq!(ana.http.get("/v1/users/me").await.code(), "unauthenticated");
    assert_eq!(there.call("user.set_status", json!({})).await["ok"], true);
    // The list of sign-ins ends others from afar, one's own only.
    let bob = world.user("bob").await;
    let sessions = other.http.get("/v1/auth/sessions").await.items();
    let path = format!("/v1/auth/sessions/{}", sessions[0]["id"].as_str().unwrap());
    assert_eq!(bob.http.send("DELETE", &path, &[], "".into()).await.code(), "not_found");
    assert_eq!(other.http.send("DELETE", &path, &[], "".into()).await.status, 200);
    assert_eq!(third_screen.closes().await, 4014);
    assert_eq!(there.call("user.set_status", json!({})).await["ok"], true);
}

/// Tries to sign in as `name` from behind a proxy that says where it comes from.
async fn guesses(world: &World, from: &str, name: &str) -> String {
    let body = json!({"name": name, "password": "wrong password"}).to_string();
    let headers = [("content-type", "application/json"), ("x-forwarded-for", from)];
    world.stranger().send("POST", "/v1/auth/login", &headers, body.into()).await.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_counted_by_address_behind_a_trusted_proxy() {
    let world = World::with(|config| {
        config.auth.logins_per_minute = 1;
        config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    for n in 0..10 {
        assert_eq!(guesses(&world, "203.0.113.1", &format!("user{n}")).await, "unauthenticated");
    }
    assert_eq!(guesses(&world, "203.0.113.1", "user10").await, "rate_limited", "ten by address");
    assert_eq!(guesses(&world, "1.2.3.4, 203.0.113.1, 127.0.0.2", "user10").await, "rate_limited", "made up in front");
    assert_eq!(guesses(&world, "203.0.113.2", "user10").await, "unauthenticated", "another address");
    assert_eq!(guesses(&world, "203.0.113.3", "user10").await, "rate_limited", "one by name");
    // Without a trusted proxy the header says nothing.
    let world = World::with(|config| config.auth.logins_per_minute = 1).await;
    for n in 0..10 {
        assert_eq!(guesses(&world, &format!("203.0.113.{n}"), &format!("user{n}")).await, "unauthenticated");
    }
    assert_eq!(guesses(&world, "203.0.113.10", "user10").await, "rate_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_a_password_is_counted_by_address_and_by_name() {
    let world = World::with(|config| {
        config.auth.logins_per_minute = 1;
        config.server.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let ana = world.user("ana").await;
    let change = |who: &Person, from: &'static str| {
        let http = who.http.clone();
        let body = json!({"current": "wrong password", "new": "another horse"}).to_string();
        async move {
            let headers = [("content-type", "application/json"), ("x-forwarded-for", from)];
            http.send("PUT", "/v1/auth/password", &headers, body.into()).await.code()
        }
    };
    assert_eq!(change(&ana, "203.0.113.1").await, "forbidden");
    assert_eq!(change(&ana, "203.0.113.2").await, "rate_limited", "one by name, wherever from");
    for n in 0..10 {
        let somebody = world.user(&format!("user{n}")).await;
        assert_eq!(change(&somebody, "203.0.113.3").await, "forbidden");
    }
    let last = world.user("last").await;
    assert_eq!(change(&last, "203.0.113.3").await, "rate_limited", "ten by address");
    assert_eq!(change(&last, "203.0.113.4").await, "forbidden", "others are not slowed");
}

on_both! {
    a_guest_sees_only_shared_channels_and_people(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob, gus) = (world.user("ana").await, world.user("bob").await, world.person("gus", Role::Guest).await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let shared = world.channel("shared", &[&ana]).await;
        ana.invites(shared, &gus).await;
        let names = |items: Vec<Value>| -> Vec<String> {
            items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(gus.http.get("/v1/users").await.items()), ["ana", "gus"]);
        assert_eq!(names(gus.http.get("/v1/channels").await.items()), ["shared"]);
        for (path, code) in [
            (format!("/v1/users/{}", bob.id()), "not_found"),
            (format!("/v1/users/{}", ana.id()), "ok"),
            (format!("/v1/channels/{general}"), "not_found"),
            (format!("/v1/channels/{general}/members"), "not_found"),
            (format!("/v1/channels/{shared}/members"), "ok"),
            ("/v1/channels/browse".to_owned(), "forbidden"),
            ("/v1/streams/00000000-0000-7000-8000-000000000001/events".to_owned(), "forbidden"),
        ] {
            assert_eq!(gus.http.get(&path).await.code(), code, "{path}");
        }
        let seen = gus.http.get(&format!("/v1/presence?user_ids={},{},{}", ana.id(), bob.id(), gus.id())).await.items();
        let seen: Vec<&Value> = seen.iter().map(|seen| &seen["user_id"]).collect();
        assert_eq!(seen, [&json!(ana.id()), &json!(gus.id())]);
        let mut screen = gus.connects().await;
        screen.call("presence.subscribe", json!({"user_ids": [bob.id()]})).await;
        let _bob = bob.connects().await;
        let _: Value = bob.does(c::SetStatus { emoji: String::new(), text: "hidden".into(), until: None }).await;
        ana.says(shared, "the last word").await;
        let mut told = vec![screen.until("message.created").await];
        told.extend(screen.everything().await);
        assert!(!format!("{told:?}").contains(&bob.id().to_string()), "{told:?}");
        // What a role gives and takes shows at once.
        let root = world.person("root", Role::Admin).await;
        let _: Value = root.does(c::SetUserRole { user_id: gus.id(), role: Role::Member }).await;
        assert_eq!(gus.http.get("/v1/channels/browse").await.code(), "ok");
        assert_eq!(screen.call("channel.create", json!({"name": "mine"})).await["ok"], true);
        let _: Value = root.does(c::SetUserRole { user_id: gus.id(), role: Role::Guest }).await;
        assert_eq!(gus.http.get("/v1/channels/browse").await.code(), "forbidden");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_administrator_stays() {
    let world = World::start().await;
    let root = world.person("root", Role::Admin).await;
    let user_id = root.id();
    assert_eq!(root.tries(c::DeactivateUser { user_id }).await.code(), "conflict");
    assert_eq!(root.tries(c::SetUserRole { user_id, role: Role::Member }).await.code(), "conflict");
    let second = world.person("second", Role::Admin).await;
    assert_eq!(root.tries(c::SetUserRole { user_id, role: Role::Member }).await.code(), "ok");
    assert_eq!(root.tries(c::SetUserRole { user_id: second.id(), role: Role::Guest }).await.code(), "forbidden");
    assert_eq!(second.tries(c::DeactivateUser { user_id: second.id() }).await.code(), "conflict");
}

/// Returns whether a token still stands in the store, whatever is remembered of it.
async fn stands(world: &World, token: &str) -> bool {
    let hub = &world.app().hub;
    let mut db = hub.store.read().await.unwrap();
    tokens::identify(&mut db, &Secret::hash(token), hub.clock.now()).await.unwrap().is_some()
}

/// Asks, and hangs up some time after that without waiting for the answer.
async fn asks_and_hangs_up(world: &World, who: &Person, (method, path, body): (&str, &str, &Value), after: Duration) {
    let authority = world.url.trim_start_matches("http://");
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        who.token,
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(authority).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let sent = Instant::now();
    while sent.elapsed() < after {
        tokio::task::yield_now().await;
    }
}

on_both! {
    who_hangs_up_is_signed_out_all_the_same(database) {
        let world = World::on(database, |_| ()).await;
        let mut screens = Vec::new();
        for n in 0..60 {
            let here = world.user(&format!("user{n}")).await;
            let there = here.with_token(&world.token(here.id()).await);
            let screen = there.connects().await;
            let newest = &here.http.get("/v1/auth/sessions").await.items()[0]["id"];
            let session = format!("/v1/auth/sessions/{}", newest.as_str().unwrap());
            let change = json!({"current": PASSWORD, "new": "another horse"});
            let (who, ask) = match n % 3 {
                0 => (&there, ("POST", "/v1/auth/logout", &json!({}))),
                1 => (&here, ("DELETE", session.as_str(), &json!({}))),
                _ => (&here, ("PUT", "/v1/auth/password", &change)),
            };
            // At another moment each time: before the write, in its middle, behind it.
            asks_and_hangs_up(&world, who, ask, Duration::from_micros(70 * n)).await;
            screens.push((there, screen));
        }
        let mut ended = 0;
        for (there, mut screen) in screens {
            if !stands(&world, &there.token).await {
                assert_eq!(screen.closes().await, 4014, "{} is signed out", there.user.name);
                assert_eq!(there.http.get("/v1/users/me").await.code(), "unauthenticated");
                ended += 1;
            }
        }
        assert!(ended > 0, "none of the requests came through");
    }

    no_sign_in_outlives_the_password_that_it_was_given_for(database) {
        let world = World::on(database, |_| ()).await;
        let stranger = world.stranger();
        for n in 0..40 {
            let name = format!("user{n}");
            let user = world.user(&name).await;
            let login = json!({"name": name, "password": PASSWORD});
            let (path, endless) = (format!("/v1/users/{}/tokens", user.id()), json!({"label": "endless"}));
            let change = json!({"current": PASSWORD, "new": "another horse"});
            // Some are decided while the change is on its way, and come to the store behind it.
            let attempts = (0..8u64).map(|k| {
                let (stranger, user, login, path, endless) = (&stranger, &user, &login, &path, &endless);
                async move {
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_micros(k / 2 * 200 + n * 20) {
                        tokio::task::yield_now().await;
                    }
                    match k % 2 {
                        0 => stranger.post("/v1/auth/login", login).await,
                        _ => user.http.post(path, endless).await,
                    }
                }
            });
            let changed = user.http.ask("PUT", "/v1/auth/password", &change);
            let (changed, made) = tokio::join!(changed, futures_util::future::join_all(attempts));
            assert_eq!(changed.code(), "ok");
            for token in made.iter().filter(|answer| answer.status < 300).map(Answer::json) {
                let token = token["token"].as_str().unwrap();
                assert!(!stands(&world, token).await, "{name} changed the password, and this sign-in still holds");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_the_callers_own_sign_in_takes_no_key() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let keyed = |method: &'static str, path: &str, body: Value| {
        let (http, path) = (ana.http.clone(), path.to_owned());
        async move {
            let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
            http.send(method, &path, &headers, body.to_string().into()).await
        }
    };
    let change = json!({"current": PASSWORD, "new": "another horse"});
    assert_eq!(keyed("PUT", "/v1/auth/password", change.clone()).await.code(), "ok");
    assert_eq!(keyed("PUT", "/v1/auth/password", change).await.code(), "unauthenticated");
    // Nothing was kept of it that could be guessed at: the key is still free.
    let ana = ana.with_token(&world.token(ana.id()).await);
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let tokens = format!("/v1/users/{}/tokens", ana.id());
    assert_eq!(ana.http.send("POST", &tokens, &headers, "{}".into()).await.code(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_be_longer_than_a_request() {
    let world = World::with(|config| config.server.max_body_bytes = 1_024).await;
    let ana = world.user("ana").await;
    for n in 0..10 {
        world.channel(&format!("room{n}"), &[&ana]).await;
    }
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let register = || ana.http.send("POST", "/v1/events/register", &headers, "{}".into());
    let (first, again) = (register().await, register().await);
    assert!(first.body.len() > 1_024, "{}", first.text());
    assert_eq!((first.status, again.status), (201, 201), "{}", first.text());
    assert_eq!(first.json()["queue_id"], again.json()["queue_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_on_a_registration_leaves_no_session_that_counts_as_in_use() {
    let world = World::with(|config| config.gateway.sessions_per_user = 1).await;
    let ana = world.user("ana").await;
    for n in 0..60 {
        let register = ("POST", "/v1/events/register", &json!({}));
        asks_and_hangs_up(&world, &ana, register, Duration::from_micros(50 * n)).await;
        eventually("room for another session", || async {
            ana.http.post("/v1/events/register", &json!({})).await.status == 201
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_the_way_is_logged_under_the_request() {
    let name = "request-that-fails";
    let lines = lines_with(name);
    let world = World::start().await;
    let ana = world.user("ana").await;
    let Store::Sqlite { readers, .. } = &world.app().hub.store else { panic!("this is SQLite") };
    within("the readers to go", readers.close()).await;
    let answer = ana.http.send("GET", "/v1/users/me", &[("x-request-id", name)], "".into()).await;
    assert_eq!(answer.code(), "unavailable");
    let lines = lines.lock().unwrap();
    assert!(lines.contains("a query failed"), "{lines}");
}
