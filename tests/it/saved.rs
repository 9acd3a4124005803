//! Saved messages: kept for later, forgotten again, and known to their saver alone.

use colink::domain::command as c;
use serde_json::{Value, json};

use crate::world::{Person, World, on_both};

async fn saved(who: &Person) -> Vec<Value> {
    who.http.get("/v1/saved").await.items().iter().map(|saved| saved["message"]["text"].clone()).collect()
}

on_both! {
    a_message_is_saved_and_forgotten_on_every_device(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let channel_id = world.channel("general", &[&ana, &bob]).await;
        let (one, two) = (bob.says(channel_id, "one").await, bob.says(channel_id, "two").await);
        let (mut laptop, mut phone, mut other) = (ana.connects().await, ana.connects().await, bob.connects().await);
        for seq in [one, two] {
            let done: Value = ana.does(c::AddSaved { channel_id, seq }).await;
            for screen in [&mut laptop, &mut phone] {
                let told = screen.until("user.saved").await;
                let d = json!({"channel_id": channel_id, "message_seq": seq, "saved": true});
                assert_eq!((&told["seq"], &told["d"]), (&done["seq"], &d));
            }
        }
        assert_eq!(ana.does::<Value>(c::AddSaved { channel_id, seq: one }).await, json!({}), "it is saved already");
        assert_eq!(saved(&ana).await, ["two", "one"], "newest first");

        let done: Value = ana.does(c::RemoveSaved { channel_id, seq: two }).await;
        for screen in [&mut laptop, &mut phone] {
            let told = screen.until("user.saved").await;
            let d = json!({"channel_id": channel_id, "message_seq": two, "saved": false});
            assert_eq!((&told["seq"], &told["d"]), (&done["seq"], &d));
        }
        assert_eq!(saved(&ana).await, ["one"]);
        let forget = json!({"channel_id": channel_id, "seq": two});
        assert_eq!(laptop.call("saved.remove", forget).await["d"], json!({}), "it is forgotten already");
        let nothing = c::RemoveSaved { channel_id, seq: 999 };
        assert_eq!(ana.does::<Value>(nothing).await, json!({}), "as is what never was");
        assert_eq!(ana.tries(c::AddSaved { channel_id, seq: 999 }).await.code(), "not_found");
        other.heard_no("user.saved").await;
        assert!(saved(&bob).await.is_empty());
        // What is deleted is gone from here too, and who is no longer in the channel sees nothing of it.
        let _: Value = bob.does(c::DeleteMessage { channel_id, seq: one }).await;
        assert!(saved(&ana).await.is_empty());
        let _: Value = bob.does(c::AddSaved { channel_id, seq: two }).await;
        ana.removes(channel_id, &bob).await;
        assert!(saved(&bob).await.is_empty());
    }
}
