//! Two releases on one database: what a newer one stored comes by an older one, too.

use colink::app::store_options;
use colink::storage::Store;
use serde_json::json;

use crate::world::{World, nobody, on_both};

/// Stores what only a newer release knows, as a node of it does that nobody here hears of.
async fn another_node_opens_a_poll(world: &World) {
    let sql = "UPDATE streams SET last_seq = last_seq + 1 WHERE id = (SELECT id FROM channels); \
               INSERT INTO events (stream_id, seq, event_id, kind, payload, created_at) \
               SELECT stream_id, seq + 1, event_id, 'poll.opened', '{\"poll\":7}', created_at FROM events \
               WHERE seq = 2 AND stream_id = (SELECT id FROM channels)";
    match Store::open(&store_options(&world.app().hub.config)).await.unwrap() {
        Store::Postgres { writer, .. } => drop(sqlx::raw_sql(sql).execute(&writer).await.unwrap()),
        Store::Sqlite { writer, .. } => drop(sqlx::raw_sql(sql).execute(&writer).await.unwrap()),
    }
}

on_both! {
    what_a_newer_node_stored_reaches_clients_without_a_gap(database) {
        let mut world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let room = world.channel("room", &[&ana, &bob]).await;
        let mut screen = bob.connects().await;
        ana.says(room, "one").await;
        screen.until("message.created").await;
        another_node_opens_a_poll(&world).await;
        assert_eq!(ana.says(room, "two").await, 4);
        let poll = screen.next().await;
        assert_eq!((&poll["type"], &poll["seq"], &poll["d"]), (&json!("poll.opened"), &json!(3), &json!({"poll": 7})));
        assert_eq!(poll["channel_id"], json!(room));
        assert_eq!(screen.next().await["seq"], 4);

        let read = bob.http.get(&format!("/v1/channels/{room}/events?after_seq=2")).await.good();
        assert_eq!((&read["items"][0]["type"], &read["items"][1]["seq"]), (&json!("poll.opened"), &json!(4)));

        world.restart().await;
        let from = json!({"session_id": nobody(), "s": 1, "cursors": {room.to_string(): 2}});
        let (mut screen, resumed) = bob.at(&world).resumes(from).await;
        assert_eq!((&resumed["d"]["mode"], &resumed["d"]["replayed"]), (&json!("log"), &json!(2)), "{resumed}");
        assert_eq!((&screen.next().await["type"], &screen.next().await["seq"]), (&json!("poll.opened"), &json!(4)));
    }
}
