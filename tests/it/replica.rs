//! Pages of history from a replica of Postgres, which shows what its reader may see and nothing older.

use colink::domain::command as c;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::http::Http;
use crate::world::{Database, Person, World, eventually, postgres_is_there};

/// Returns the address of a database on the replica, if there is one.
fn replica_of(url: &str) -> Option<String> {
    let server = std::env::var("COLINK_TEST_REPLICA").ok()?;
    Some(format!("{}/{}", server.rsplit_once('/').unwrap().0, url.rsplit_once('/').unwrap().1))
}

/// Returns how many pages were read from replicas, and how many were not because of this.
async fn reads(http: &Http, outcome: &str) -> u64 {
    let metrics = http.get("/metrics").await.text();
    let start = format!("colink_replica_reads_total{{outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

async fn page(who: &Person, path: &str) -> Vec<Value> {
    who.http.get(path).await.good()["items"].as_array().unwrap().clone()
}

/// One test, for it counts what all of them count together.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_comes_from_a_replica_that_has_got_as_far_and_else_from_the_primary() {
    if !postgres_is_there() || replica_of("/").is_none() {
        return;
    }
    let standby = PgPool::connect(&std::env::var("COLINK_TEST_REPLICA").unwrap()).await.unwrap();
    // An earlier run may have been cut short.
    sqlx::query("SELECT pg_wal_replay_resume()").execute(&standby).await.unwrap();
    let world = World::on(Database::Postgres, |config| {
        config.database.replica_url = replica_of(config.database.url.expose()).unwrap().into();
    })
    .await;
    let (ana, bob, http) = (world.user("ana").await, world.user("bob").await, world.stranger());
    let room = world.private("room", &[&ana, &bob]).await;
    let (path, own_page) =
        (format!("/v1/channels/{room}/messages"), |n: i64| format!("/v1/channels/{room}/messages?before_seq={n}"));
    let first = ana.says(room, "one").await;
    ana.replies(room, first, "under it").await;

    // What is asked for each time is another page: one that was read is remembered.
    let (mut n, before) = (1_000, reads(&http, "used").await);
    eventually("the replica to get as far and to be used", || {
        n += 1;
        let (path, ana, http) = (own_page(n), &ana, &http);
        async move {
            assert_eq!(page(ana, &path).await.len(), 1);
            reads(http, "used").await > before
        }
    })
    .await;
    let replies = page(&bob, &format!("{path}/{first}/replies")).await;
    assert_eq!(replies[0]["text"], "under it");
    assert_eq!(reads(&http, "used").await, before + 2);

    sqlx::query("SELECT pg_wal_replay_pause()").execute(&standby).await.unwrap();
    eventually("the replica to stand still", || async {
        let state = sqlx::query_scalar("SELECT pg_get_wal_replay_pause_state()").fetch_one(&standby).await;
        state.unwrap_or_else(|_| String::new()) == "paused"
    })
    .await;
    let late = reads(&http, "late").await;
    ana.says(room, "two").await;
    ana.does::<Value>(c::EditMessage { channel_id: room, seq: first, text: "one and a half".into() }).await;
    let now = page(&bob, &path).await;
    assert_eq!(
        (&now[0]["text"], &now[1]["text"]),
        (&json!("one and a half"), &json!("two")),
        "what was written is read"
    );
    assert_eq!(reads(&http, "late").await, late + 1);
    // What is no page is not asked of it at all.
    let log = page(&bob, &format!("/v1/channels/{room}/events?after_seq=1")).await;
    assert_eq!(log.len(), 4);
    let from = json!({"session_id": bob.id(), "s": 1, "cursors": {room.to_string(): 1}});
    let (_screen, resumed) = bob.resumes(from).await;
    assert_eq!(resumed["d"]["replayed"], 4, "{resumed}");
    ana.removes(room, &bob).await;
    assert_eq!(bob.http.get(&path).await.status, 404);

    sqlx::query("SELECT pg_wal_replay_resume()").execute(&standby).await.unwrap();
    let before = reads(&http, "used").await;
    eventually("the replica to be used again", || {
        n += 1;
        let (path, ana, http) = (own_page(n), &ana, &http);
        async move {
            assert_eq!(page(ana, &path).await.len(), 2);
            reads(http, "used").await > before
        }
    })
    .await;
    drop(world);

    let gone = |config: &mut colink::config::Config| {
        config.database.replica_url = "postgres://nobody@127.0.0.1:1/none".to_owned().into();
    };
    let world = World::on(Database::Postgres, gone).await;
    let ana = world.user("ana").await;
    let room = world.channel("room", &[&ana]).await;
    ana.says(room, "one").await;
    let failed = reads(&world.stranger(), "failed").await;
    for n in 100..110 {
        assert_eq!(page(&ana, &format!("/v1/channels/{room}/messages?before_seq={n}")).await.len(), 1);
    }
    let failed = reads(&world.stranger(), "failed").await - failed;
    assert!((1..10).contains(&failed), "it is left alone for a while: {failed}");
}
