//! Hubs behind PgBouncer in transaction mode.

use colink::domain::user::Role;
use serde_json::json;

use crate::binary::{Serving, run};
use crate::cluster::Nodes;
use crate::world::{Database, World, by_pooler, config, new_postgres_database, postgres_is_there};

/// Returns whether there is a pooler to test with.
fn pooler_is_there() -> bool {
    postgres_is_there() && {
        let mut config = config(std::path::Path::new("."));
        config.database.url = "postgres://server/database".to_owned().into();
        by_pooler(&mut config)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_talk_by_a_pooler_and_come_back_to_all_of_it() {
    if !pooler_is_there() {
        return;
    }
    let mut world = World::on(Database::Postgres, |config| assert!(by_pooler(config))).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let room = world.channel("room", &[&ana, &bob]).await;
    let mut screen = bob.connects().await;
    for n in 0..40 {
        let (one, two) = (format!("{n}"), format!("@bob {n}"));
        tokio::join!(ana.says(room, &one), bob.says(room, &two), ana.http.get("/v1/channels"));
    }
    for seq in 2..82 {
        assert_eq!(screen.until("message.created").await["seq"], seq);
    }
    let session = screen.session.clone();
    world.restart().await;
    let from = json!({"session_id": session, "s": 1, "cursors": {room.to_string(): 1}});
    let (_screen, resumed) = bob.at(&world).resumes(from).await;
    assert_eq!((&resumed["d"]["mode"], &resumed["d"]["replayed"]), (&json!("log"), &json!(80)), "{resumed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_share_a_database_by_a_pooler() {
    if !pooler_is_there() {
        return;
    }
    let Some(nodes) = Nodes::start(|config| assert!(by_pooler(config))).await else { return };
    let (root, ana) = (nodes[0].person("root", Role::Admin).await, nodes[0].user("ana").await);
    let rooms = nodes.channels(&[&ana]).await;
    for room in &rooms {
        for n in 0..3 {
            assert_eq!(ana.at(&nodes[n]).says(*room, "hi").await, 2 + n as i64);
        }
    }
    let status = root.http.get("/v1/admin/cluster").await.good();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_runs_on_a_database_behind_a_pooler() {
    if !pooler_is_there() {
        return;
    }
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut through = config(mine.path());
    let direct = new_postgres_database().await;
    through.database.url = direct.clone().into();
    assert!(by_pooler(&mut through));
    let by_pooler = format!("database.url={}", through.database.url.expose());
    let by_pooler = ["--set", &by_pooler, "--set", "database.pooled=true"];
    let past_it = ["--set", &format!("database.url={direct}")];
    let first = Serving::start(mine.path(), &by_pooler);
    for way in [&by_pooler[..], &past_it] {
        let second = run(other.path(), &[&["serve", "--listen", "127.0.0.1:0"], way].concat());
        assert!(second.err.contains("another server runs on this database"), "{}", second.err);
    }
    let through_it = run(mine.path(), &["user", "add", "ana"]);
    assert_eq!(through_it.code, 0, "the server's directory says how its database is reached: {}", through_it.err);
    let copied = run(mine.path(), &["store", "copy", "--to", "sqlite:///nowhere/colink.db"]);
    assert!(copied.code == 1 && copied.err.contains("no pooler's"), "{}", copied.err);
    assert_eq!(first.stop("-KILL"), None);
    assert_eq!(Serving::start(other.path(), &past_it).stop("-TERM"), Some(0), "the lock ends with its holder");
}
