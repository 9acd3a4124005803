//! What people show of themselves: profiles, and statuses that end.

use std::time::Duration;

use colink::domain::command as c;
use colink::domain::id::StreamId;
use colink::domain::user::Role;
use serde_json::{Value, json};

use crate::world::{Person, World, on_both, standing_clock};

on_both! {
    people_are_found_by_their_names(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let gus = world.person("gus", Role::Guest).await;
        ana.http.ask("PATCH", "/v1/users/me", &json!({"display_name": "Ana Bobadilla"})).await.good();
        let found = async |who: &Person, query: &str| {
            let items = who.http.get(&format!("/v1/users{query}")).await.items();
            items.iter().map(|user| user["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(&bob, "?query=BOB").await, ["ana", "bob"]);
        assert_eq!(found(&bob, "?query=bob&limit=1&cursor=ana").await, ["bob"]);
        assert_eq!(found(&bob, "?query=b_b").await, Vec::<String>::new());
        assert_eq!(found(&gus, "?query=bob").await, Vec::<String>::new(), "a guest sees whom they share a channel with");
        let _general = world.channel("general", &[&bob, &gus]).await;
        assert_eq!(found(&gus, "?query=bob").await, ["bob"]);
        let long = format!("?query={}", "x".repeat(201));
        for wrong in ["?cursor=%21%21", "?query=%00", &long] {
            assert_eq!(bob.http.get(&format!("/v1/users{wrong}")).await.code(), "invalid_request", "{wrong}");
        }
    }

    a_profile_is_changed_field_by_field_and_everybody_is_told(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let mut screen = bob.connects().await;
        let whole = json!({"display_name": " Ana Botelho ", "title": "Engineer", "timezone": "Europe/Lisbon"});
        let changed = ana.http.ask("PATCH", "/v1/users/me", &whole).await.good();
        let shown = [&changed["name"], &changed["display_name"], &changed["title"], &changed["timezone"]];
        assert_eq!(shown, ["ana", "Ana Botelho", "Engineer", "Europe/Lisbon"]);
        let told = screen.until("user.updated").await;
        assert_eq!((&told["actor_id"], &told["d"]), (&json!(ana.id()), &changed));
        assert_eq!(ana.http.get("/v1/users/me").await.good(), changed);
        assert_eq!(bob.http.get(&format!("/v1/users/{}", ana.id())).await.good(), changed);

        // What is left out stays, what is empty is taken away; and by the other door.
        let changed = ana.connects().await.call("user.update", json!({"title": ""})).await["d"].clone();
        let shown = [&changed["display_name"], &changed["title"], &changed["timezone"]];
        assert_eq!(shown, [&json!("Ana Botelho"), &Value::Null, &json!("Europe/Lisbon")]);
        assert_eq!(screen.until("user.updated").await["d"], changed);
        for refused in [
            json!({"display_name": " "}),
            json!({"display_name": "x".repeat(81)}),
            json!({"title": "x".repeat(101)}),
            json!({"title": "two\nlines"}),
            json!({"timezone": "x".repeat(65)}),
            json!({"title": "Captain", "timezone": 1}),
        ] {
            assert_eq!(ana.http.ask("PATCH", "/v1/users/me", &refused).await.code(), "invalid_request", "{refused}");
        }
        assert_eq!(ana.http.get("/v1/users/me").await.good(), changed, "nothing of what was refused is kept");
    }

    a_status_ends_at_its_time_and_nobody_did_it(database) {
        let clock = standing_clock();
        let world = World::at(database, clock.clone(), |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let mut screen = bob.connects().await;
        let lasting = c::SetStatus { emoji: "rocket".into(), text: String::new(), until: None };
        let _: Value = bob.does(lasting).await;
        assert_eq!(screen.until("user.updated").await["d"]["status"], json!({"emoji": "rocket"}));
        let status = json!({"emoji": "palm_tree", "text": "on holiday", "until": clock.now().plus_seconds(3_600)});
        let set = ana.http.ask("PUT", "/v1/users/me/status", &status).await.good();
        assert_eq!(set["status"], status);
        assert_eq!(screen.until("user.updated").await["d"]["status"], status);

        clock.advance(Duration::from_secs(3_599));
        world.ends_statuses().await;
        assert_eq!(ana.http.get("/v1/users/me").await.good()["status"], status, "not a second too early");
        clock.advance(Duration::from_secs(1));
        world.ends_statuses().await;
        let told = screen.until("user.updated").await;
        assert_eq!((&told["d"]["id"], told["d"].get("status")), (&json!(ana.id()), None), "{told}");
        assert_eq!(told.get("actor_id"), None, "the server does this by itself");
        assert_eq!(ana.http.get("/v1/users/me").await.good().get("status"), None);
        let of_bob = bob.http.get("/v1/users/me").await.good();
        assert_eq!(of_bob["status"]["emoji"], "rocket", "without an end it stays");
        let before = told["seq"].as_i64().unwrap() - 1;
        let log = format!("/v1/streams/{}/events?after_seq={before}", StreamId::WORKSPACE);
        let logged = bob.http.get(&log).await.items();
        assert_eq!((logged.len(), &logged[0]["d"], logged[0].get("actor_id")), (1, &told["d"], None));
        assert_eq!(ana.http.ask("PUT", "/v1/users/me/status", &status).await.code(), "invalid_request", "it is past");
    }
}
