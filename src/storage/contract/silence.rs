//! A Postgres that goes silent in the middle of something and is back: what is connected hears nothing any more, and is not
//! closed either, until the system gives it up after a quarter of an hour.

use super::wire::Wire;
use super::*;

const PLACES: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(1);

async fn on_a_wire() -> Option<(World, Wire)> {
    let mut wire = None;
    let by_wire = |options: &mut Options| {
        let (made, url) = Wire::to(&options.url);
        (options.url, wire) = (url, Some(made));
        (options.connections, options.timeout, options.statement) = (PLACES, TIMEOUT, Duration::ZERO);
    };
    let world = on_postgres(by_wire).await?;
    Some((world, wire?))
}

async fn ask(store: &Store) -> Result<(), StoreError> {
    store.in_time(async { Ok(store.read().await?.run("SELECT 1").await?) }).await
}

/// Reads until it succeeds.
async fn reads_again(store: &Store) {
    let since = Instant::now();
    while ask(store).await.is_err() {
        assert!(since.elapsed() < LIMIT, "no read succeeds any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_silent_in_the_middle_of_a_read_gives_its_place_back() {
    let Some((world, wire)) = on_a_wire().await else { return };
    let Db::Postgres(mut apart) = world.apart().await else { unreachable!("it is for Postgres alone") };
    let store = world.store.clone();
    let slow = |_| {
        let store = store.clone();
        tokio::spawn(async move {
            store.in_time(async { Ok::<_, StoreError>(store.read().await?.run("SELECT pg_sleep(60)").await?) }).await
        })
    };
    let reads: Vec<_> = (0..PLACES).map(slow).collect();
    let asleep = "SELECT count(*) FROM pg_stat_activity \
                  WHERE datname = current_database() AND query = 'SELECT pg_sleep(60)' AND state = 'active'";
    while sqlx::query_scalar::<_, i64>(asleep).fetch_one(&mut *apart).await.unwrap() < i64::from(PLACES) {}
    wire.go_silent();
    for read in reads {
        assert!(read.await.unwrap().is_err(), "it is not waited for longer");
    }
    reads_again(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_went_silent_while_nobody_used_them_are_replaced_by_whoever_finds_them() {
    let Some((world, wire)) = on_a_wire().await else { return };
    let mut all = Vec::new();
    for _ in 0..PLACES {
        all.push(world.store.read().await.unwrap());
    }
    drop(all);
    // They are back in their places when nothing is left to be done with them.
    let Store::Postgres { readers, .. } = &world.store else { unreachable!("it is for Postgres alone") };
    let since = Instant::now();
    while readers.num_idle() < PLACES as usize {
        assert!(since.elapsed() < LIMIT);
        tokio::task::yield_now().await;
    }
    wire.go_silent();
    for n in 0..PLACES {
        assert!(ask(&world.store).await.is_ok(), "read {n}");
    }
}
