//! Drafts: the same on all devices of one user, and nobody else's business.

use colink::domain::command as c;
use colink::domain::id::ChannelId;
use serde_json::{Value, json};

use crate::world::{Person, World, on_both};

async fn drafts(who: &Person) -> Vec<(Value, Value)> {
    let drafts = who.http.get("/v1/drafts").await.items();
    drafts.iter().map(|draft| (draft["thread_seq"].clone(), draft["text"].clone())).collect()
}

async fn writes(who: &Person, channel_id: ChannelId, thread_seq: Option<i64>, text: &str) -> Value {
    who.does(c::SetDraft { channel_id, thread_seq, text: text.into() }).await
}

on_both! {
    what_is_written_on_one_device_is_on_the_other(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let thread = bob.says(general, "what do you think?").await;
        let (mut laptop, mut phone, mut other) = (ana.connects().await, ana.connects().await, bob.connects().await);
        let d = json!({"channel_id": general, "text": "half a thou"});
        let done = laptop.call("draft.set", d).await["d"].clone();
        for screen in [&mut laptop, &mut phone] {
            let told = screen.until("user.draft").await;
            assert_eq!((&told["seq"], &told["stream_id"]), (&done["seq"], &json!(ana.id())));
            assert_eq!((&told["d"]["channel_id"], &told["d"]["text"]), (&json!(general), &json!("half a thou")));
            let listed = &ana.http.get("/v1/drafts").await.items()[0];
            assert_eq!((listed.get("thread_seq"), &listed["updated_at"]), (None, &told["d"]["updated_at"]));
        }

        // A thread has one of its own; the newest comes first.
        writes(&ana, general, Some(thread), "I th").await;
        assert_eq!(phone.until("user.draft").await["d"]["thread_seq"], thread);
        assert_eq!(drafts(&ana).await, [(json!(thread), json!("I th")), (Value::Null, json!("half a thou"))]);
        writes(&ana, general, None, "half a thought").await;
        assert_eq!(drafts(&ana).await, [(Value::Null, json!("half a thought")), (json!(thread), json!("I th"))]);
        assert_eq!(phone.until("user.draft").await["d"]["text"], "half a thought");

        writes(&ana, general, None, "").await;
        let told = phone.until("user.draft").await;
        assert_eq!((&told["d"]["text"], told["d"].get("thread_seq")), (&json!(""), None), "an empty one is none");
        assert_eq!(drafts(&ana).await, [(json!(thread), json!("I th"))]);
        writes(&ana, general, Some(thread), "").await;
        assert!(drafts(&ana).await.is_empty() && drafts(&bob).await.is_empty());
        other.heard_no("user.draft").await;
        let eve = world.user("eve").await;
        let draft = c::SetDraft { channel_id: general, thread_seq: None, text: "let me in".into() };
        assert_eq!(eve.tries(draft).await.code(), "forbidden", "only who is in the channel has drafts there");
    }
}
