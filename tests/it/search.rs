//! Search: what somebody wrote is found, by whom it may be read, the moment it is acknowledged, and as it is now.

use std::sync::Arc;

use colink::clock::Clock;
use colink::config::Config;
use colink::domain::command as c;
use colink::domain::id::{ChannelId, UserId};
use colink::domain::user::Role;
use colink::storage::consumers;
use colink::storage::search::embedded::Embedded;
use colink::storage::search::index::Index;
use colink::storage::search::{REMOTE, rows};
use serde_json::{Value, json};

use crate::binary::{run, run_json};
use crate::http::{Answer, escaped};
use crate::world::{Person, World, eventually, on_both};

async fn asks(who: &Person, query: &str, more: &str) -> Answer {
    who.http.get(&format!("/v1/search/messages?q={}{more}", escaped(query))).await
}

/// Returns the texts of what somebody finds, in order.
async fn finds(who: &Person, query: &str) -> Vec<String> {
    let found = asks(who, query, "&sort=oldest&limit=200").await.good();
    let items = found["items"].as_array().unwrap_or_else(|| panic!("{query}: {found}"));
    assert_eq!(found["total"], items.len(), "{query}: {found}");
    items.iter().map(|item| item["message"]["text"].as_str().unwrap().to_owned()).collect()
}

/// Returns the node's own index.
fn index_of(world: &World) -> Arc<Embedded> {
    match world.app().hub.search.index() {
        Index::Embedded(index) => index.clone(),
        Index::Remote(_) => panic!("it has none"),
    }
}

/// Waits until everything is in the index.
async fn is_indexed(world: &World) {
    let hub = &world.app().hub;
    eventually("the index has everything", || async {
        let mut db = hub.store.read().await.unwrap();
        let nil = ChannelId(uuid::Uuid::nil());
        let heads = rows::heads(&mut db, nil, 10_000).await.unwrap();
        let index = index_of(world);
        let places = index.places();
        index.unbuilt().is_none() && heads.iter().all(|(channel, head)| places.get(channel) == Some(head))
    })
    .await;
}

on_both! {
    what_was_said_is_found_at_once_and_later(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let secret = world.private("secret", &[&ana]).await;
        is_indexed(&world).await;
        let one = ana.says(general, "We deployed the Käsebrot service, see https://example.com/käse").await;
        let two = bob.says(general, "who broke getUserName in 東京都? @ana").await;
        let three = ana.replies(general, two, "not me 🎉").await;
        ana.says(secret, "the deploy key is under the mat").await;
        let _: Value = bob.does(c::AddReaction { channel_id: general, seq: one, emoji: "tada".into() }).await;
        let _: Value = ana.does(c::AddPin { channel_id: general, seq: two }).await;
        let _: Value = ana.does(c::AddSaved { channel_id: general, seq: three }).await;
        let (first, second, third) = (
            "We deployed the Käsebrot service, see https://example.com/käse", "who broke getUserName in 東京都? @ana", "not me 🎉"
        );
        let mat = "the deploy key is under the mat";
        // First while the index has none of it, then when it has all.
        for later in [false, true] {
            if later {
                is_indexed(&world).await;
            }
            for (query, expected) in [
                ("deploy", vec![first, mat]),
                ("DEPLOYS -mat", vec![first]),
                ("\"kasebrot service\"", vec![first]),
                ("\"service kasebrot\"", vec![]),
                ("käse*", vec![first]),
                ("example.com", vec![first]),
                ("has:link", vec![first]),
                ("-has:link in:general", vec![second, third]),
                ("has:reaction", vec![first]),
                ("is:pinned", vec![second]),
                ("is:saved", vec![third]),
                ("is:thread", vec![second, third]),
                ("mentions:me", vec![second]),
                ("mentions:@ana from:bob", vec![second]),
                ("from:me in:#general", vec![first, third]),
                ("from:ana from:bob getusername", vec![second]),
                ("-from:me", vec![second]),
                ("京都", vec![second]),
                ("都", vec![second]),
                (":tada:", vec![third]),
                ("in:secret", vec![mat]),
                ("in:secret in:general key", vec![mat]),
                ("-in:secret deploy", vec![first]),
                ("on:today mat", vec![mat]),
                ("before:today", vec![]),
                ("after:2020 -before:today key", vec![mat]),
                ("absent", vec![]),
            ] {
                assert_eq!(finds(&ana, query).await, expected, "{query}, later: {later}");
            }
            // Who may not read it learns nothing, not even how much there is.
            assert_eq!(finds(&bob, "deploy").await, [first]);
            assert_eq!(finds(&bob, "mat").await, [""; 0]);
            assert_eq!(finds(&bob, "is:saved").await, [""; 0]);
            let found = asks(&bob, "deploy", "").await.good();
            assert_eq!((&found["total"], &found["complete"]), (&json!(1), &json!(true)));
            let pieces = found["items"][0]["snippet"].as_array().unwrap();
            assert_eq!(pieces[1], json!({"text": "deployed", "found": true}), "{pieces:?}");
            assert_eq!(found["items"][0]["channel_name"], "general");
        }
        // Nothing is spelt so, but something like it.
        let found = asks(&ana, "kasebort", "").await.good();
        assert_eq!((&found["total"], &found["corrected"]), (&json!(1), &json!(true)));
        assert_eq!(found["items"][0]["snippet"][1], json!({"text": "Käsebrot", "found": true}));
    }

    what_changes_is_found_as_it_is_and_by_whom_it_may_be_read(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let guest = world.person("gus", Role::Guest).await;
        let secret = world.private("secret", &[&ana, &bob]).await;
        let open = world.channel("open", &[&ana]).await;
        let seq = ana.says(secret, "a canary sings").await;
        ana.says(open, "another canary").await;
        is_indexed(&world).await;
        assert_eq!(finds(&bob, "canary").await, ["a canary sings", "another canary"], "a public one may be read from outside");
        assert_eq!(finds(&guest, "canary").await, [""; 0], "but by no guest");

        let _: Value = ana.does(c::EditMessage { channel_id: secret, seq, text: "a sparrow sings".into() }).await;
        for later in [false, true] {
            if later {
                is_indexed(&world).await;
            }
            assert_eq!(finds(&bob, "canary").await, ["another canary"], "later: {later}");
            assert_eq!(finds(&bob, "sparrow").await, ["a sparrow sings"], "later: {later}");
        }
        // Whoever leaves, or is put out, finds nothing of it from then on.
        ana.removes(secret, &bob).await;
        assert_eq!(finds(&bob, "sparrow").await, [""; 0]);
        assert_eq!(asks(&bob, "in:secret sparrow", "").await.code(), "invalid_request");
        let asked = asks(&bob, "in:secret sparrow", "").await.json();
        let unknown = asks(&bob, "in:invented sparrow", "").await.json();
        assert_eq!(
            asked["detail"].as_str().unwrap().replace("secret", "invented"), unknown["detail"].as_str().unwrap(),
            "that there is such a channel is not told"
        );
        let _: Value = ana.does(c::DeleteMessage { channel_id: secret, seq }).await;
        for later in [false, true] {
            if later {
                is_indexed(&world).await;
            }
            assert_eq!(finds(&ana, "sparrow").await, [""; 0], "later: {later}");
        }
        let _: Value = ana.does(c::LeaveChannel { channel_id: secret }).await;
        assert_eq!(finds(&ana, "sings").await, [""; 0]);
    }
}

/// Returns the texts of all pages.
async fn pages(who: &Person, query: &str, sort: &str) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = asks(who, query, &format!("&sort={sort}&limit=7{cursor}")).await.good();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() == 7 || page["next_cursor"].is_null(), "{page}");
        all.extend(items.iter().map(|item| item["message"]["text"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

#[tokio::test]
async fn a_long_list_is_turned_page_by_page() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let (one, other) = (world.channel("one", &[&ana]).await, world.channel("other", &[&ana]).await);
    let mut said = Vec::new();
    for n in 0..40 {
        let text = format!("note {n:02}");
        ana.says(if n % 3 == 0 { one } else { other }, &text).await;
        said.push(text);
        if n == 30 {
            is_indexed(&world).await;
        }
    }
    for _ in 0..2 {
        assert_eq!(pages(&ana, "note", "oldest").await, said);
        assert_eq!(pages(&ana, "note", "newest").await, said.iter().rev().cloned().collect::<Vec<_>>());
        let mut by_relevance = pages(&ana, "note", "relevance").await;
        by_relevance.sort();
        assert_eq!(by_relevance, said);
        assert_eq!(pages(&ana, "note in:one", "oldest").await.len(), 14);
        is_indexed(&world).await;
    }
    let first = asks(&ana, "note", "&sort=newest&limit=7").await.good();
    let cursor = first["next_cursor"].as_str().unwrap();
    for wrong in
        [&format!("&sort=relevance&cursor={cursor}"), "&sort=newest&cursor=t1", "&cursor=r-1_5", "&cursor=%F0%9F%8E%89"]
    {
        assert_eq!(asks(&ana, "note", wrong).await.code(), "invalid_request", "{wrong}");
    }
    for wrong in ["has:money", "", "from:nobody", "on:someday", "!!!"] {
        assert_eq!(asks(&ana, wrong, "").await.code(), "invalid_request", "{wrong}");
    }
    assert_eq!(asks(&ana, "note", "&sort=best").await.code(), "invalid_request");
    assert_eq!(asks(&ana, "note", "&utc_offset_min=99999").await.code(), "invalid_request");
    assert_eq!(world.stranger().get("/v1/search/messages?q=note").await.code(), "unauthenticated");
}

on_both! {
    an_index_goes_on_where_it_was_and_is_made_anew_if_it_is_gone(database) {
        let mut world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let room = world.channel("general", &[&ana, &bob]).await;
        let mut texts = Vec::new();
        for n in 0..30 {
            let text = format!("word{n} and more");
            let seq = ana.says(room, &text).await;
            match n % 5 {
                0 => { let _: Value = ana.does(c::DeleteMessage { channel_id: room, seq }).await; }
                1 => { let _: Value = bob.does(c::AddReaction { channel_id: room, seq, emoji: "tada".into() }).await; }
                2 => {
                    let text = format!("edited{n} and more");
                    let _: Value = ana.does(c::EditMessage { channel_id: room, seq, text: text.clone() }).await;
                    texts.push(text);
                    continue;
                }
                3 => { bob.replies(room, seq, "a reply and more").await; texts.push(text); texts.push("a reply and more".into()); continue; }
                _ => {}
            }
            if n % 5 != 0 {
                texts.push(text);
            }
        }
        is_indexed(&world).await;
        let followed = index_of(&world).digest().unwrap();
        assert_eq!(followed.1, texts.len() as u64);
        // As it is, in pieces, and gone.
        for damage in ["none", "torn", "gone"] {
            let folder = world.app().hub.config.server.data.join("search");
            let listen = world.app().address;
            world.stop().await;
            match damage {
                "torn" => {
                    for entry in std::fs::read_dir(folder.join("messages-1")).unwrap() {
                        std::fs::write(entry.unwrap().path(), "torn").unwrap();
                    }
                }
                "gone" => std::fs::remove_dir_all(&folder).unwrap(),
                _ => {}
            }
            world.starts_again(listen).await;
            let (ana, bob) = (ana.at(&world), bob.at(&world));
            is_indexed(&world).await;
            assert_eq!(index_of(&world).digest().unwrap(), followed, "{damage}");
            assert_eq!(finds(&bob, "more").await, texts, "{damage}");
            assert_eq!(finds(&ana, "reply").await.len(), 6);
        }
    }
}

#[tokio::test]
async fn an_index_that_is_ahead_of_a_restored_database_is_made_anew() {
    let mut world = World::start().await;
    let ana = world.user("ana").await;
    let room = world.channel("general", &[&ana]).await;
    ana.says(room, "before the backup").await;
    let (listen, data) = (world.app().address, world.app().hub.config.server.data.clone());
    world.stop().await;
    std::fs::copy(data.join("colink.db"), data.join("backup")).unwrap();
    world.starts_again(listen).await;
    let at = ana.at(&world);
    for n in 0..5 {
        at.says(room, &format!("lost {n}")).await;
    }
    is_indexed(&world).await;
    world.stop().await;
    for name in ["colink.db-wal", "colink.db-shm"] {
        drop(std::fs::remove_file(data.join(name)));
    }
    std::fs::rename(data.join("backup"), data.join("colink.db")).unwrap();
    world.starts_again(listen).await;
    let ana = ana.at(&world);
    is_indexed(&world).await;
    ana.says(room, "said again").await;
    is_indexed(&world).await;
    assert_eq!(finds(&ana, "in:general").await, ["before the backup", "said again"]);
}

/// Where an OpenSearch is, and what its index is to be called there.
fn opensearch(config: &mut Config, index: &str) -> bool {
    let Ok(url) = std::env::var("COLINK_TEST_OPENSEARCH") else { return false };
    config.search.opensearch = url.into();
    // Like its database, it is a test's own.
    config.search.index = format!("{index}-{}", UserId::new(Clock::default().now()).0.simple());
    true
}

on_both! {
    an_index_of_opensearch_is_built_followed_and_built_anew(database) {
        // What is there before it is the index of.
        let mut world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let room = world.channel("general", &[&ana, &bob]).await;
        let secret = world.private("secret", &[&ana]).await;
        let one = ana.says(room, "one canary in general").await;
        let two = ana.says(secret, "a canary in secret").await;
        is_indexed(&world).await;
        let listen = world.app().address;
        world.stop().await;
        if !world.changes(|config| opensearch(config, "built")) {
            return;
        }
        world.starts_again(listen).await;
        let (ana, bob) = (ana.at(&world), bob.at(&world));
        eventually("the index is built", || async { asks(&ana, "canary", "").await.status == 200 }).await;
        for later in [false, true] {
            if later {
                is_followed(&world).await;
            }
            assert_eq!(finds(&ana, "canary").await, ["one canary in general", "a canary in secret"]);
            assert_eq!(finds(&bob, "canary").await, ["one canary in general"]);
        }
        let _: Value = ana.does(c::EditMessage { channel_id: room, seq: one, text: "a sparrow".into() }).await;
        let _: Value = ana.does(c::DeleteMessage { channel_id: secret, seq: two }).await;
        bob.says(room, "three canaries").await;
        for later in [false, true] {
            if later {
                is_followed(&world).await;
            }
            assert_eq!(finds(&ana, "canary").await, ["three canaries"], "later: {later}");
            assert_eq!(finds(&bob, "sparrow").await, ["a sparrow"], "later: {later}");
        }
        // It goes on where it was.
        world.stop().await;
        world.starts_again(listen).await;
        let (ana, bob) = (ana.at(&world), bob.at(&world));
        bob.says(room, "four canaries").await;
        assert_eq!(finds(&ana, "canary").await, ["three canaries", "four canaries"]);
        is_followed(&world).await;
        assert_eq!(finds(&ana, "canary").await, ["three canaries", "four canaries"]);
    }
}

/// Waits until OpenSearch has everything.
async fn is_followed(world: &World) {
    let hub = &world.app().hub;
    eventually("the index has everything", || async {
        let mut db = hub.store.read().await.unwrap();
        let nil = ChannelId(uuid::Uuid::nil());
        let heads = rows::heads(&mut db, nil, 10_000).await.unwrap();
        let places = consumers::places(&mut db, REMOTE, nil.into(), 1_000).await.unwrap();
        heads
            .iter()
            .all(|(channel, head)| places.iter().any(|(stream, seq)| *stream == (*channel).into() && seq == head))
    })
    .await;
}

#[tokio::test]
async fn without_its_index_search_says_so_and_all_else_goes_on() {
    let away = |config: &mut Config| config.search.opensearch = "http://127.0.0.1:9".to_owned().into();
    let world = World::with(away).await;
    let ana = world.user("ana").await;
    let room = world.channel("general", &[&ana]).await;
    ana.says(room, "hello").await;
    let asked = asks(&ana, "hello", "").await;
    assert_eq!((asked.status, asked.code().as_str(), asked.header("retry-after")), (503, "unavailable", "1"));
    ana.says(room, "all else goes on").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_has_an_index_made_anew() {
    let mut world = World::start().await;
    let ana = world.user("ana").await;
    let room = world.channel("general", &[&ana]).await;
    for n in 0..20 {
        ana.says(room, &format!("message {n}")).await;
    }
    is_indexed(&world).await;
    let before = index_of(&world).digest().unwrap();
    let data = world.app().hub.config.server.data.clone();
    let does = |args: &[&str]| tokio::task::block_in_place(|| run(&data, args));
    let status = || tokio::task::block_in_place(|| run_json(&data, &["search", "status"]));
    let whole = json!({"kind": "embedded", "messages": 20, "stored": 20, "building": false});
    assert_eq!(status(), whole);
    // While it runs, and while it does not.
    let listen = world.app().address;
    for runs in [true, false] {
        if !runs {
            world.stop().await;
        }
        let done = does(&["search", "rebuild"]);
        assert_eq!((done.code, done.err.lines().last()), (0, Some("the search index is built")));
        assert_eq!(status(), whole);
        if !runs {
            world.starts_again(listen).await;
        }
        is_indexed(&world).await;
        assert_eq!(index_of(&world).digest().unwrap(), before);
    }
    let ana = ana.at(&world);
    ana.says(room, "message 20").await;
    assert_eq!(finds(&ana, "message").await.len(), 21);

    // OpenSearch's is replaced by another one while it is searched.
    world.stop().await;
    if !world.changes(|config| opensearch(config, "anew")) {
        return;
    }
    world.starts_again(listen).await;
    let ana = ana.at(&world);
    eventually("the index is built", || async { asks(&ana, "message", "").await.status == 200 }).await;
    let config = &world.app().hub.config.search;
    let url = format!("search.opensearch={}", config.opensearch.expose());
    let index = format!("search.index={}", config.index);
    let name = async || match world.app().hub.search.index() {
        Index::Remote(index) => index.published().await.unwrap().unwrap(),
        Index::Embedded(_) => panic!("it is OpenSearch's"),
    };
    let first = name().await;
    ana.says(room, "message 21").await;
    let done = does(&["search", "rebuild", "--set", &url, "--set", &index]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_ne!(name().await, first);
    ana.says(room, "message 22").await;
    for _ in 0..2 {
        assert_eq!(finds(&ana, "message").await.len(), 23);
        is_followed(&world).await;
    }
}
