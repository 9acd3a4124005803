//! What a load balancer asks: whether the process lives, and whether it may be sent requests.

use colink::app::store_options;
use colink::protocol::close::CloseCode;
use colink::storage::Store;
use serde_json::json;

use crate::binary::Serving;
use crate::http::Http;
use crate::world::{Database, World, eventually, on_both};

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_the_gateways_address_need_no_token() {
    let world = World::with(|config| config.gateway.heartbeat_interval_ms = 12_345).await;
    let stranger = world.stranger();
    assert_eq!(stranger.get("/health").await.json(), json!({"status": "ok"}));
    let ready = stranger.get("/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    assert_eq!(ready.json()["checks"]["database"], true);
    let url = format!("{}/v1/ws", world.url.replace("http", "ws"));
    let gateway = json!({"url": url, "resume_url": url, "encodings": ["json"], "compress": [],
        "heartbeat_interval_ms": 12_345});
    assert_eq!(stranger.get("/v1/gateway").await.good(), gateway);
    assert!(stranger.get("/metrics").await.text().contains("colink_"));
    assert_eq!(stranger.get("/").await.status, 307);
    let quiet = World::with(|config| {
        config.metrics.enabled = false;
        config.server.public_url = "https://chat.example.com".into();
    })
    .await;
    assert_eq!(quiet.stranger().get("/v1/gateway").await.good()["url"], "wss://chat.example.com/v1/ws");
    assert_eq!(quiet.stranger().get("/metrics").await.code(), "not_found");
    quiet.app().hub.drain();
    assert_eq!(quiet.stranger().get("/ready").await.status, 503);
    assert_eq!(quiet.stranger().get("/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_counter_that_is_told_of_is_there_from_the_start() {
    let data = tempfile::tempdir().unwrap();
    let server = Serving::start(data.path(), &[]);
    let metrics = Http::new(&server.url, None).get("/metrics").await.text();
    let told = include_str!("../../docs/OPERATIONS.md").lines().filter(|line| line.contains("| counter |"));
    let names: Vec<&str> = told.filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).collect();
    assert!(names.len() > 10, "{names:?}");
    let labelled =
        [("mode", "resumes", &["buffer", "log", "invalid"]), ("what", "pruned_rows", &["keys", "tokens", "invites"])];
    let labelled = labelled.iter().flat_map(|(label, name, values)| {
        values.iter().map(move |value| format!("colink_{name}_total{{{label}=\"{value}\"}} 0"))
    });
    let closed = |code: &CloseCode| format!("colink_connections_closed_total{{code=\"{}\"}} 0", code.code());
    let labelled: Vec<String> = labelled.chain(CloseCode::ALL.iter().map(closed)).collect();
    for name in names {
        let (bare, label) = (format!("{name} "), format!("{name}{{"));
        let of_name = |line: &str| line.starts_with(&bare) || line.starts_with(&label);
        assert!(metrics.lines().any(|line| of_name(line) && line.ends_with(" 0")), "`{name}` is not in\n{metrics}");
    }
    for wanted in labelled {
        assert!(metrics.lines().any(|line| line == wanted), "`{wanted}` is not in\n{metrics}");
    }
}

/// Takes the database away from a node, or gives it back.
async fn lets_in(world: &World, let_in: bool) {
    let url = store_options(&world.app().hub.config).url;
    let name = url.rsplit('/').next().unwrap();
    let server = std::env::var("COLINK_TEST_POSTGRES").expect("there is a Postgres");
    let pool = sqlx::PgPool::connect(&server).await.unwrap();
    let alter = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {let_in}");
    sqlx::query(sqlx::AssertSqlSafe(alter)).execute(&pool).await.unwrap();
    if !let_in {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        sqlx::query(end).bind(name).execute(&pool).await.unwrap();
    }
}

on_both! {
    a_node_without_its_database_lives_and_is_not_ready(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, stranger) = (world.user("ana").await, world.stranger());
        let mut socket = ana.connects().await;
        match &world.app().hub.store {
            Store::Postgres { .. } => lets_in(&world, false).await,
            Store::Sqlite { readers, .. } => readers.close().await,
        }
        let ready = stranger.get("/ready").await;
        assert_eq!(ready.status, 503);
        let told = ready.json();
        assert_eq!((&told["ready"], &told["checks"]), (&json!(false), &json!({"database": false})), "{told}");
        assert_eq!(told["draining"], false);
        let health = stranger.get("/health").await;
        assert_eq!((health.status, health.json()), (200, json!({"status": "ok"})));
        assert_eq!(ana.http.get("/v1/users/me").await.code(), "unavailable");
        // Who is connected stays.
        socket.everything().await;
        if database == Database::Postgres {
            lets_in(&world, true).await;
            eventually("the node to be ready again", || async { stranger.get("/ready").await.status == 200 }).await;
            assert_eq!(ana.http.get("/v1/users/me").await.status, 200);
        }
    }
}
