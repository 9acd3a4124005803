//! Direct messages and groups: found again, never made twice.

use std::collections::HashSet;

use colink::domain::command as c;
use serde_json::{Value, json};

use crate::world::{Person, World, nobody, on_both};

/// Opens the conversation with these people.
async fn opens(who: &Person, others: &[&Person]) -> Value {
    who.does(c::OpenDirect { user_ids: others.iter().map(|person| person.id()).collect() }).await
}

on_both! {
    the_same_people_have_one_conversation_in_whatever_order(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob, cleo) = (world.user("ana").await, world.user("bob").await, world.user("cleo").await);
        let group = opens(&ana, &[&bob, &cleo]).await;
        assert_eq!((&group["kind"], group.get("name")), (&json!("group"), None));
        for (who, others) in [
            (&ana, vec![&cleo, &bob]),
            (&bob, vec![&cleo, &ana]),
            (&cleo, vec![&ana, &bob]),
            (&cleo, vec![&bob, &ana, &cleo, &bob]),
        ] {
            assert_eq!(opens(who, &others).await["id"], group["id"], "{}", who.user.name);
        }
        let path = format!("/v1/channels/{}", group["id"].as_str().unwrap());
        let with = bob.http.get(&path).await.good()["with"].clone();
        assert_eq!(with, json!([ana.id(), cleo.id()]), "the others, by identifier");
        assert_eq!(bob.http.get(&format!("{path}/members")).await.items().len(), 3);

        let direct = opens(&ana, &[&bob]).await;
        assert_eq!((&direct["kind"], &opens(&bob, &[&ana]).await["id"]), (&json!("direct"), &direct["id"]));
        let notes = opens(&ana, &[]).await;
        assert_eq!((&notes["kind"], &opens(&ana, &[&ana]).await["id"]), (&json!("direct"), &notes["id"]));
        let ids: HashSet<String> = [&group, &direct, &notes].map(|channel| channel["id"].to_string()).into();
        assert_eq!((ids.len(), ana.http.get("/v1/channels").await.items().len()), (3, 3));
        assert!(ana.http.get("/v1/channels/browse").await.items().is_empty(), "nobody finds them");
    }

    a_group_that_is_opened_by_all_at_once_is_one(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob, cleo) = (world.user("ana").await, world.user("bob").await, world.user("cleo").await);
        let all = [&ana, &bob, &cleo];
        let opened = futures_util::future::join_all((0..12).map(|n| opens(all[n % 3], &all))).await;
        let ids: HashSet<String> = opened.iter().map(|group| group["id"].to_string()).collect();
        assert_eq!(ids.len(), 1);
        for person in all {
            assert_eq!(person.http.get("/v1/channels").await.items().len(), 1);
        }
    }

    a_group_has_nine_people_at_most(database) {
        let world = World::on(database, |_| ()).await;
        let mut people = Vec::new();
        for n in 0..10 {
            people.push(world.user(&format!("user{n}")).await);
        }
        let others: Vec<&Person> = people[1..].iter().collect();
        let ids = |people: &[&Person]| people.iter().map(|person| person.id()).collect();
        let refused = people[0].tries(c::OpenDirect { user_ids: ids(&others) }).await;
        assert_eq!(refused.code(), "invalid_request", "{}", refused.text());
        assert_eq!(opens(&people[0], &others[1..]).await["kind"], "group");
        let unknown = people[0].tries(c::OpenDirect { user_ids: vec![nobody()] }).await;
        assert_eq!(unknown.code(), "not_found");
        assert_eq!(people[0].http.get("/v1/channels").await.items().len(), 1);
        assert!(others[0].http.get("/v1/channels").await.items().is_empty());
    }
}
