//! A database that does not answer: whoever asks is told so in time, at every door.

use colink::domain::user::Role;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::world::{Database, PASSWORD, World, postgres_is_there, within};

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_in_changes_a_password_opens_a_queue_or_looks_at_the_cluster_is_not_kept_waiting() {
    if !postgres_is_there() {
        return;
    }
    // A request may take a minute, the database a second.
    let world = World::on(Database::Postgres, |config| {
        (config.server.request_timeout_ms, config.database.timeout_ms) = (60_000, 1_000);
        (config.database.statement_timeout_ms, config.database.lock_timeout_ms) = (0, 60_000);
    })
    .await;
    let (root, ana) = (world.person("root", Role::Admin).await, world.user("ana").await);
    let url = world.app().hub.config.database.url.expose().to_owned();
    let mut holder = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE users, nodes, streams IN ACCESS EXCLUSIVE MODE")
        .execute(&mut holder)
        .await
        .unwrap();
    let login = json!({"name": "ana", "password": PASSWORD});
    let change = json!({"current": PASSWORD, "new": "another horse"});
    let stranger = world.stranger();
    let asked = async {
        assert_eq!(stranger.post("/v1/auth/login", &login).await.code(), "unavailable");
        assert_eq!(ana.http.ask("PUT", "/v1/auth/password", &change).await.code(), "unavailable");
        assert_eq!(root.http.get("/v1/admin/cluster").await.code(), "unavailable");
    };
    within("three answers", asked).await;
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    assert_eq!(stranger.post("/v1/auth/login", &login).await.status, 200);

    // Who asks is known, and what they are in is not.
    sqlx::raw_sql("BEGIN; LOCK TABLE streams IN ACCESS EXCLUSIVE MODE").execute(&mut holder).await.unwrap();
    let queue = within("a queue", async { ana.http.post("/v1/events/register", &json!({})).await }).await;
    assert_eq!(queue.code(), "unavailable");
}
