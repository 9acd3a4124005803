//! Lists and history, page by page.

use std::collections::HashSet;

use colink::domain::command as c;
use serde_json::{Value, json};

use crate::http::{Http, escaped};
use crate::world::{Person, World, on_both};

/// Reads a whole list page by page and checks that every page but the last is full.
async fn pages(http: &Http, path: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut cursor): (Vec<Value>, Option<String>) = (Vec::new(), None);
    loop {
        let cursor_part = cursor.as_deref().map(|c| format!("&cursor={}", escaped(c))).unwrap_or_default();
        let page = http.get(&format!("{path}?limit={limit}{cursor_part}")).await.good();
        let items = page["items"].as_array().unwrap();
        all.extend(items.iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => {
                assert_eq!(items.len(), limit, "{path}");
                cursor = Some(next.to_owned());
            }
            None => return all,
        }
    }
}

on_both! {
    every_list_is_read_page_by_page(database) {
        let world = World::on(database, |_| ()).await;
        let (root, ana) = (world.person("root", colink::domain::user::Role::Admin).await, world.user("ana").await);
        let mut others = Vec::new();
        for n in 0..5 {
            others.push(world.user(&format!("user{n}")).await);
        }
        let people: Vec<&Person> = std::iter::once(&ana).chain(&others).collect();
        let general = world.channel("general", &people).await;
        let edited = ana.says(general, "first").await;
        for n in 0..6 {
            let channel_id = world.channel(&format!("room{n}"), &[&ana]).await;
            let seq = ana.says(general, &n.to_string()).await;
            let _: Value = ana.does(c::AddSaved { channel_id: general, seq }).await;
            let _: Value = ana.does(c::SetDraft { channel_id, thread_seq: None, text: "later".into() }).await;
            let _: Value = ana.does(c::EditMessage { channel_id: general, seq: edited, text: n.to_string() }).await;
            let _: Value = ana.does(c::FollowThread { channel_id: general, thread_seq: seq }).await;
            if n % 2 == 0 {
                others[0].replies(general, seq, "re").await;
            }
            world.token(ana.id()).await;
            let _: Value = root.does(c::CreateInvite { role: None, max_uses: None, expires_in_s: None }).await;
        }
        let members = format!("/v1/channels/{general}/members");
        let edits = format!("/v1/channels/{general}/messages/{edited}/edits");
        let threads = root.http.get("/v1/threads").await.items();
        assert!(threads.is_empty(), "threads are one's own: {threads:?}");
        let times = |items: &[Value], field: &str| -> Vec<String> {
            items.iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
        };
        for (path, field) in [("/v1/threads", "last_at"), ("/v1/drafts", "updated_at"), ("/v1/auth/sessions", "created_at")]
        {
            let newest_first = times(&ana.http.get(path).await.items(), field);
            assert!(newest_first.is_sorted_by(|a, b| a >= b), "{path}: {newest_first:?}");
        }
        let (of_ana, of_root) = (
            [
                "/v1/users",
                "/v1/channels",
                "/v1/channels/browse",
                "/v1/saved",
                "/v1/drafts",
                "/v1/threads",
                "/v1/auth/sessions",
                &members,
                &edits,
            ],
            ["/v1/invites"],
        );
        let lists = of_ana.map(|path| (&ana, path)).into_iter().chain(of_root.map(|path| (&root, path)));
        for (who, path) in lists {
            let whole = who.http.get(&format!("{path}?limit=200")).await.items();
            assert!((6..=7).contains(&whole.len()), "{path}: {}", whole.len());
            for limit in [1, 2, 3, 6, 7] {
                assert_eq!(pages(&who.http, path, limit).await, whole, "{path} by {limit}");
            }
            for limit in ["0", "-1", "201", "9223372036854775807", "x"] {
                assert_eq!(
                    who.http.get(&format!("{path}?limit={limit}")).await.code(),
                    "invalid_request",
                    "{path} {limit}"
                );
            }
        }
        for path in ["/v1/channels", &members, "/v1/saved", "/v1/drafts", "/v1/threads", "/v1/auth/sessions", &edits] {
            for cursor in
                ["made-up", "1", "_", "1_x", &format!("{}_{general}_1", i64::MIN), &format!("{}_{general}", i64::MAX)]
            {
                let answer = ana.http.get(&format!("{path}?cursor={cursor}")).await;
                let refused = if path == edits && cursor == "1" { "ok" } else { "invalid_request" };
                assert_eq!(answer.code(), refused, "{path} {cursor}");
            }
        }
    }
}

on_both! {
    saved_messages_of_one_moment_are_all_on_some_page(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let general = world.channel("general", &[&ana]).await;
        let mut seqs = Vec::new();
        for n in 0..30 {
            seqs.push(ana.says(general, &n.to_string()).await);
        }
        // Sent at once, so that they commit together and have one time.
        let mut socket = ana.connects().await;
        let mut asked = Vec::new();
        for seq in &seqs {
            asked.push(socket.asks("saved.add", json!({"channel_id": general, "seq": seq})).await);
        }
        for id in asked {
            assert_eq!(socket.reply(id).await["ok"], true);
        }
        let listed: HashSet<String> =
            pages(&ana.http, "/v1/saved", 4).await.iter().map(|s| s["message"]["seq"].to_string()).collect();
        assert_eq!(listed.len(), 30, "a page that ends within a moment loses nothing");
    }
}

on_both! {
    history_is_read_before_after_and_around(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let general = world.channel("general", &[&ana]).await;
        for n in 1..=9 {
            ana.says(general, &n.to_string()).await;
        }
        for reply in ["a", "b", "c"] {
            ana.replies(general, 2, reply).await;
        }
        let read = |query: &'static str| {
            let http = ana.http.clone();
            async move {
                let page = http.get(&format!("/v1/channels/{general}/messages{query}")).await.good();
                let texts: Vec<String> =
                    page["items"].as_array().unwrap().iter().map(|m| m["text"].as_str().unwrap().to_owned()).collect();
                (texts.join(""), page["has_more"].as_bool().unwrap())
            }
        };
        // The first message is event 2: event 1 made the channel.
        for (query, texts, more) in [
            ("", "123456789", false),
            ("?limit=3", "789", true),
            ("?limit=9", "123456789", false),
            ("?before_seq=5", "123", false),
            ("?before_seq=8&limit=2", "56", true),
            ("?before_seq=2", "", false),
            ("?after_seq=0&limit=2", "12", true),
            ("?after_seq=8", "89", false),
            ("?after_seq=10", "", false),
            ("?around_seq=6&limit=4", "3456", true),
            ("?around_seq=2&limit=4", "1234", true),
            ("?around_seq=10&limit=4", "6789", true),
            ("?around_seq=6&limit=9", "123456789", false),
            ("?before_seq=9223372036854775807&limit=1", "9", true),
        ] {
            assert_eq!(read(query).await, (texts.to_owned(), more), "{query}");
        }
        for query in ["?after_seq=-5", "?before_seq=-1", "?around_seq=-9223372036854775808", "?before_seq=x"] {
            let path = format!("/v1/channels/{general}/messages{query}");
            assert_eq!(ana.http.get(&path).await.code(), "invalid_request", "{query}");
        }
        for (seq, older, newer) in [(2, false, true), (6, true, true), (10, true, false)] {
            let path = format!("/v1/channels/{general}/messages?around_seq={seq}&limit=4");
            let page = ana.http.get(&path).await.good();
            assert_eq!((&page["has_older"], &page["has_newer"]), (&json!(older), &json!(newer)), "{seq}");
        }
        let two = format!("/v1/channels/{general}/messages?before_seq=1&after_seq=1");
        assert_eq!(ana.http.get(&two).await.code(), "invalid_request");
        let replies = format!("/v1/channels/{general}/messages/2/replies");
        let page = ana.http.get(&format!("{replies}?limit=2")).await.good();
        assert_eq!((&page["items"][0]["text"], &page["has_more"]), (&json!("a"), &json!(true)));
        let after = page["items"][1]["seq"].as_i64().unwrap();
        let page = ana.http.get(&format!("{replies}?after_seq={after}")).await.good();
        assert_eq!((&page["items"][0]["text"], &page["has_more"]), (&json!("c"), &json!(false)));
        let newest = ana.http.get(&format!("{replies}?limit=2&before_seq=9223372036854775807")).await.good();
        assert_eq!((&newest["items"][1]["text"], &newest["has_more"]), (&json!("c"), &json!(true)));
        let around = ana.http.get(&format!("{replies}?limit=3&around_seq={after}")).await.good();
        assert_eq!((around["items"].as_array().unwrap().len(), &around["has_more"]), (3, &json!(false)));
        let events = format!("/v1/channels/{general}/events");
        assert_eq!(ana.http.get(&format!("{events}?after_seq=10")).await.good()["head"], 13);
        for query in ["?after_seq=14", "?after_seq=-1", "?limit=0", "?limit=1001"] {
            assert_eq!(ana.http.get(&format!("{events}{query}")).await.code(), "invalid_request", "{query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permalink_leads_to_the_message() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let seq = ana.says(general, "here").await;
    let message = ana.http.get(&format!("/v1/channels/{general}/messages/{seq}")).await.good();
    let path = message["permalink"].as_str().unwrap().strip_prefix(&world.url).unwrap().to_owned();
    let answer = ana.http.get(&path).await;
    assert_eq!(answer.status, 307);
    let page = ana.http.get(answer.header("location")).await.items();
    assert!(page.iter().any(|m| m["text"] == "here"));

    let reply = ana.replies(general, seq, "in there").await;
    let message = ana.http.get(&format!("/v1/channels/{general}/messages/{reply}")).await.good();
    let path = message["permalink"].as_str().unwrap().strip_prefix(&world.url).unwrap().to_owned();
    let page = ana.http.get(ana.http.get(&path).await.header("location")).await.items();
    assert!(page.iter().any(|m| m["text"] == "in there"));
}
