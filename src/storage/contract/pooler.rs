//! Postgres behind a pooler in transaction mode: no session is anybody's own.

use super::*;
use crate::storage::OpenError;
use crate::storage::lock::Lock;

/// Opens a world, and returns with it how its database is reached past the pooler and by it; nothing if there is no pooler.
async fn both_ways() -> Option<(World, Options, Options)> {
    by_pooler("postgres://server/database")?;
    let world = on_a_large_postgres().await?;
    let (past, by) = (Options::new(&world.url), by_pooler(&world.url)?);
    Some((world, past, by))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_holds_a_database_by_whichever_way() {
    let Some((_world, past, by)) = both_ways().await else { return };
    for (first, second) in [(&by, &by), (&by, &past), (&past, &by)] {
        let held = Lock::take(first, false).await.unwrap().expect("nobody has it");
        for shared in [false, true] {
            assert!(Lock::take(second, shared).await.unwrap().is_none());
        }
        drop(held);
        let nodes = [Lock::take(first, true).await.unwrap(), Lock::take(second, true).await.unwrap()];
        assert!(nodes.iter().all(Option::is_some), "nodes of a cluster share it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_a_database_by_a_pooler_holds_up_no_cleaning() {
    let Some((world, _, by)) = both_ways().await else { return };
    let _held = Lock::take(&by, false).await.unwrap().expect("nobody has it");
    let Db::Postgres(mut apart) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let sql = "SELECT state, backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity \
               WHERE application_name = 'colink lock' AND datname = current_database()";
    let (state, keeps_nothing): (String, bool) = sqlx::query_as(sql).fetch_one(&mut *apart).await.unwrap();
    assert_eq!((&*state, keeps_nothing), ("idle in transaction", true));
}

/// What one sets in a session of a pooler's, the next one has.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_in_the_sessions_of_a_pooler() {
    let Some((world, _, by)) = both_ways().await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    world.ask(ana, says(room, "hi", None)).await.unwrap();
    let _held = Lock::take(&by, false).await.unwrap();
    let pool =
        sqlx::PgPool::connect_with(super::super::postgres::connect(&by.url, true, "test").unwrap()).await.unwrap();
    let changed = "SELECT array_agg(name::text) FROM pg_settings WHERE source = 'session' AND name NOT IN \
                   ('client_encoding', 'DateStyle', 'TimeZone', 'application_name', 'standard_conforming_strings')";
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut transaction = pool.begin().await.unwrap();
        let found: Option<Vec<String>> = sqlx::query_scalar(changed).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(found, None);
        open.push(transaction);
    }
    let names = world.store.weaknesses().await.unwrap();
    assert!(
        names.iter().any(|weakness| weakness.setting == "statement_timeout"),
        "so the role has to have it: {names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_and_the_configuration_have_to_agree() {
    let Some((_world, past, by)) = both_ways().await else { return };
    let unsaid = Store::open(&Options { pooled: false, ..by }).await.unwrap_err();
    assert!(matches!(unsaid, OpenError::Pooler(_)) && unsaid.to_string().contains("set database.pooled"), "{unsaid}");
    // As a pooler is that does not look after prepared statements.
    let absent = Store::open(&Options { pooled: true, ..past }).await.unwrap_err();
    assert!(matches!(absent, OpenError::Pooler(_)) && absent.to_string().contains("from 1.21 on"), "{absent}");
}
