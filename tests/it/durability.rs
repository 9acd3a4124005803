//! What the database has to promise before anything is acknowledged: what it committed is on the disk.

use colink::app::App;
use colink::clock::Clock;
use colink::storage::{Options, Store};

use crate::world::{config, new_postgres_database, postgres_is_there};

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
async fn sqlite_syncs_every_commit() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(&Options::new(format!("sqlite://{}", data.path().join("colink.db").display()))).await;
    let Store::Sqlite { writer, .. } = store.unwrap() else { panic!("this is SQLite") };
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&writer).await.unwrap();
    assert_eq!(synchronous, 2, "2 is FULL: with a write-ahead log, less than that may lose what was committed");
}
