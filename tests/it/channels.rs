//! Channels: what they are called and are for, and what each member wants to be told of.

use colink::domain::channel::Notify;
use colink::domain::command as c;
use serde_json::{Value, json};

use crate::world::{World, on_both};

on_both! {
    a_channel_is_renamed_and_says_what_it_is_for(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let create = json!({"name": "launch", "topic": "soon", "purpose": "the rocket"});
        let made = ana.http.post("/v1/channels", &create).await.good();
        assert_eq!((&made["name"], &made["purpose"]), (&json!("launch"), &json!("the rocket")));
        let path = format!("/v1/channels/{}", made["id"].as_str().unwrap());
        assert_eq!(bob.http.get("/v1/channels/browse").await.items()[0]["purpose"], "the rocket");
        let (mut inside, mut outside) = (ana.connects().await, bob.connects().await);

        let change = json!({"name": "#Lift-Off", "purpose": " the next rocket "});
        let done = ana.http.ask("PATCH", &path, &change).await.good();
        let told = inside.until("channel.updated").await;
        let what = json!({"user_id": ana.id(), "name": "lift-off", "purpose": "the next rocket"});
        assert_eq!((&told["seq"], &told["d"]), (&done["seq"], &what));
        let listed = json!({"id": made["id"], "name": "lift-off", "topic": "soon", "purpose": "the next rocket",
            "archived": false});
        assert_eq!(outside.until("channel.listed").await["d"], listed);
        let browsed = bob.http.get("/v1/channels/browse").await.items();
        assert_eq!(browsed.len(), 1);
        for seen in [ana.http.get(&path).await.good(), bob.http.get(&path).await.good(), browsed[0].clone()] {
            let words = [&seen["name"], &seen["topic"], &seen["purpose"]];
            assert_eq!(words, ["lift-off", "soon", "the next rocket"]);
        }

        assert_eq!(ana.http.ask("PATCH", &path, &change).await.good(), json!({}), "nothing had to change");
        let too_long = json!({"purpose": "x".repeat(251)});
        assert_eq!(ana.http.ask("PATCH", &path, &too_long).await.code(), "invalid_request");
        ana.http.ask("PATCH", &path, &json!({"purpose": ""})).await.good();
        let seen = ana.http.get(&path).await.good();
        assert_eq!([&seen["name"], &seen["purpose"]], ["lift-off", ""], "what is left out stays");
    }

    public_channels_are_found_by_what_they_say_with_who_is_in_them(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        for (name, purpose) in [("launch", "100% rockets"), ("cakes", "Rocket salad, too"), ("old", "rockets of old")] {
            ana.http.post("/v1/channels", &json!({"name": name, "purpose": purpose})).await.good();
        }
        world.private("rockets", &[&ana]).await;
        let found = async |query: &str| {
            let items = bob.http.get(&format!("/v1/channels/browse{query}")).await.items();
            items.iter().map(|channel| channel["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let id = |channel: &Value| channel["id"].as_str().unwrap().to_owned();
        let old = id(&bob.http.get("/v1/channels/browse?query=old").await.items()[0]);
        ana.http.post(&format!("/v1/channels/{old}/archive"), &json!({})).await.good();
        assert_eq!(found("").await, ["cakes", "launch"]);
        assert_eq!(found("?query=ROCKET").await, ["cakes", "launch"]);
        assert_eq!(found("?query=ROCKET&archived=true").await, ["cakes", "launch", "old"]);
        assert_eq!(found("?query=0%25%20r").await, ["launch"], "a percent sign is itself");
        assert_eq!(found("?query=l_unch").await, Vec::<String>::new());
        assert_eq!(found("?limit=1&cursor=cakes").await, ["launch"]);
        for wrong in ["?cursor=%21%21", "?cursor=Cakes", "?archived=perhaps", "?query=%00"] {
            assert_eq!(bob.http.get(&format!("/v1/channels/browse{wrong}")).await.code(), "invalid_request", "{wrong}");
        }
        let launch = bob.http.get("/v1/channels/browse?query=launch").await.items()[0].clone();
        assert_eq!((&launch["member_count"], &launch["joined"]), (&json!(1), &json!(false)));
        bob.http.post(&format!("/v1/channels/{}/join", id(&launch)), &json!({})).await.good();
        let launch = bob.http.get("/v1/channels/browse?query=launch").await.items()[0].clone();
        assert_eq!((&launch["member_count"], &launch["joined"]), (&json!(2), &json!(true)));
    }

    a_name_is_taken_once_and_free_again_when_it_is_given_up(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let (launch, random) = (world.channel("launch", &[&ana]).await, world.channel("random", &[&bob]).await);
        world.private("secret", &[&ana]).await;
        let rename = async |name: &str| bob.http.ask("PATCH", &format!("/v1/channels/{random}"), &json!({"name": name})).await;
        for taken in ["launch", "#LAUNCH", "secret"] {
            assert_eq!(rename(taken).await.code(), "conflict", "{taken}");
            assert_eq!(bob.http.post("/v1/channels", &json!({"name": taken})).await.code(), "conflict", "{taken}");
        }
        assert_eq!(rename("no spaces").await.code(), "invalid_request");
        assert_eq!(rename("Random").await.good(), json!({}), "its own name is no other's");
        assert_eq!(bob.http.get(&format!("/v1/channels/{random}")).await.good()["name"], "random");
        let moon = c::UpdateChannel {
            channel_id: launch, name: Some("moon".into()), topic: None, purpose: None, posting: None,
        };
        let _: Value = ana.does(moon).await;
        rename("launch").await.good();
        let names: Vec<Value> =
            bob.http.get("/v1/channels/browse").await.items().iter().map(|channel| channel["name"].clone()).collect();
        assert_eq!(names, ["launch", "moon"]);
    }

    each_member_chooses_what_to_be_told_of(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let path = format!("/v1/channels/{general}");
        let (mut laptop, mut phone, mut other) = (ana.connects().await, ana.connects().await, bob.connects().await);
        let chosen = async || {
            let seen = ana.http.get(&path).await.good();
            assert_eq!(ana.http.get("/v1/channels").await.items()[0], seen);
            (seen["muted"].clone(), seen["notify"].clone())
        };
        let initially = bob.http.get(&path).await.good();
        for notify in Notify::ALL {
            let prefer = c::SetChannelPreferences { channel_id: general, muted: None, notify: Some(*notify) };
            let _: Value = ana.does(prefer).await;
            assert_eq!(chosen().await, (json!(false), json!(notify)));
            let d = json!({"channel_id": general, "muted": false, "notify": notify});
            for screen in [&mut laptop, &mut phone] {
                assert_eq!(screen.until("user.channel_preferences").await["d"], d);
            }
        }
        let mute = json!({"channel_id": general, "muted": true});
        assert_eq!(laptop.call("channel.set_preferences", mute).await["ok"], true);
        assert_eq!(chosen().await, (json!(true), json!("nothing")), "what is left out stays");
        let loud = json!({"notify": "loud"});
        assert_eq!(ana.http.ask("PUT", &format!("{path}/preferences"), &loud).await.code(), "invalid_request");
        assert_eq!(bob.http.get(&path).await.good(), initially, "others choose for themselves");
        other.heard_no("user.channel_preferences").await;
    }
}
