//! Threads: what is unread in them and who is named there, read marks in both directions, and a thread whose first message
//! is gone.

use colink::domain::id::ChannelId;
use serde_json::{Value, json};

use crate::world::{Person, World, on_both};

async fn thread(person: &Person, channel: ChannelId, seq: i64) -> Value {
    person.http.get(&format!("/v1/channels/{channel}/threads/{seq}")).await.good()
}

/// Checks what is unread, and what of it names the reader: in the thread, in the list of threads, and as it was told.
async fn counts(person: &Person, channel: ChannelId, seq: i64, unread: i64, mentions: i64) {
    let seen = thread(person, channel, seq).await;
    assert_eq!((&seen["unread_count"], &seen["mention_count"]), (&json!(unread), &json!(mentions)), "{seen}");
    let listed = person.http.get("/v1/threads").await.items();
    assert_eq!(listed.iter().find(|listed| listed["thread_seq"] == seq), Some(&seen));
}

on_both! {
    unread_replies_and_mentions_are_counted_and_the_mark_moves_both_ways(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let first = bob.says(general, "first").await;
        let mut replies = Vec::new();
        for text in ["one", "two @bob", "three @channel", "four"] {
            replies.push(ana.replies(general, first, text).await);
        }
        counts(&bob, general, first, 4, 2).await;
        let mut bobs = bob.connects().await;
        let path = format!("/v1/channels/{general}/threads/{first}");
        let mark = async |how: &str, seq: i64| bob.http.ask("PUT", &format!("{path}/{how}"), &json!({"seq": seq})).await;
        mark("read", replies[3]).await.good();
        counts(&bob, general, first, 0, 0).await;
        let told = bobs.until("user.thread_read").await;
        assert_eq!((&told["d"]["unread_count"], &told["d"]["mention_count"]), (&json!(0), &json!(0)));
        mark("unread", replies[2]).await.good();
        counts(&bob, general, first, 2, 1).await;
        let told = bobs.until("user.thread_read").await;
        assert_eq!((&told["d"]["unread_count"], &told["d"]["mention_count"]), (&json!(2), &json!(1)));
        mark("unread", first).await.good();
        counts(&bob, general, first, 4, 2).await;

        assert_eq!(mark("unread", replies[3] + 100).await.code(), "not_found");
        let elsewhere = ana.says(general, "elsewhere").await;
        assert_eq!(mark("unread", elsewhere).await.code(), "invalid_request");
        let of_reply = format!("/v1/channels/{general}/threads/{}", replies[0]);
        assert_eq!(bob.http.get(&of_reply).await.code(), "not_found");
        assert_eq!(bob.http.ask("PUT", &format!("{of_reply}/follow"), &json!({})).await.code(), "invalid_request");
        let cleo = world.user("cleo").await;
        assert_eq!(cleo.http.get(&path).await.code(), "ok", "a public channel's thread may be looked at");
        assert_eq!(thread(&cleo, general, first).await["following"], false);
        assert_eq!(thread(&cleo, general, first).await["unread_count"], 0);
    }

    a_thread_goes_on_when_its_first_message_is_deleted_and_none_begins_there(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let (first, bare) = (ana.says(general, "first").await, ana.says(general, "bare").await);
        bob.replies(general, first, "one").await;
        for seq in [first, bare] {
            ana.http.ask("DELETE", &format!("/v1/channels/{general}/messages/{seq}"), &json!({})).await.good();
        }
        bob.replies(general, first, "two @ana").await;
        counts(&ana, general, first, 2, 1).await;
        let say = json!({"text": "nobody", "thread_seq": bare});
        assert_eq!(bob.http.post(&format!("/v1/channels/{general}/messages"), &say).await.code(), "not_found");
        let follow = format!("/v1/channels/{general}/threads/{bare}/follow");
        assert_eq!(bob.http.ask("PUT", &follow, &json!({})).await.code(), "not_found");
    }
}
