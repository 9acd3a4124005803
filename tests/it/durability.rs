//! What the database has to promise before anything is acknowledged: what it committed is on the disk.

use colink::app::App;
use colink::clock::Clock;
use colink::domain::user::Role;
use colink::storage::{Options, Store};

use crate::binary::run;
use crate::world::{Database, World, config, new_postgres_database, postgres_is_there};

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_does_not_sync_is_refused() {
    if !postgres_is_there() {
        return;
    }
    let url = new_postgres_database().await;
    let (_, name) = url.rsplit_once('/').unwrap();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    for (value, good) in [("off", false), ("on", true)] {
        let set = format!("ALTER DATABASE {name} SET synchronous_commit = {value}");
        sqlx::query(sqlx::AssertSqlSafe(set)).execute(&pool).await.unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut config = config(data.path());
        config.database.url = url.clone().into();
        match Box::pin(App::start_at(config, Clock::default())).await {
            Ok(app) => {
                assert!(good, "started with synchronous_commit = {value}");
                Box::pin(app.stop()).await;
            }
            Err(error) => {
                let said = format!("{error:#}");
                assert!(!good && said.contains("synchronous_commit = off"), "{said}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_postgres_could_do_better_is_told_everywhere() {
    if !postgres_is_there() {
        return;
    }
    let world = World::on(Database::Postgres, |_| ()).await;
    let root = world.person("root", Role::Admin).await;
    let url = world.app().hub.config.database.url.expose().to_owned();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let sums: String = sqlx::query_scalar("SHOW data_checksums").fetch_one(&pool).await.unwrap();
    let weak = sums == "off";
    let status = root.http.get("/v1/admin/cluster").await.good();
    let told = status["database"].as_array().unwrap();
    assert_eq!(told.iter().any(|found| found["setting"] == "data_checksums"), weak, "{status}");
    let metrics = root.http.get("/metrics").await.text();
    assert_eq!(metrics.contains("colink_database_weak{setting=\"data_checksums\"} 1"), weak);
    let data = tempfile::tempdir().unwrap();
    let free = "server.listen=127.0.0.1:0";
    let doctor = run(data.path(), &["doctor", "--set", &format!("database.url={url}"), "--set", free]);
    assert_eq!(doctor.out.contains("weak database        data_checksums are off"), weak, "{}", doctor.out);
    assert_eq!(doctor.code, 0, "it may run");
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_syncs_every_commit() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(&Options::new(format!("sqlite://{}", data.path().join("colink.db").display()))).await;
    let Store::Sqlite { writer, .. } = store.unwrap() else { panic!("this is SQLite") };
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&writer).await.unwrap();
    assert_eq!(synchronous, 2, "2 is FULL: with a write-ahead log, less than that may lose what was committed");
}
