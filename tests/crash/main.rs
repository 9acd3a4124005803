//! The crash test: the real program is killed with SIGKILL again and again while people write and read, and its connections
//! to Postgres are cut in between; nothing that was acknowledged may be lost, doubled, reordered or told wrongly.
//!
//! ```text
//! server.rs    the program and its database; starts and kills it
//! client.rs    writers that repeat until answered, readers that resume and repair; both record what they see
//! ```
//!
//! `tests/common/` has what must hold of all that was recorded and is stored (`checker.rs`), and what else it shares with
//! the fault harness.
//!
//! Where `COLINK_TEST_KAFKA` names a broker, events go there meanwhile, and all of them have to have arrived.
//!
//! `COLINK_CRASH_SECONDS` sets how long it runs (20), `COLINK_CRASH_SEED` repeats its choices; the seed is printed.
//! Postgres is the one that `COLINK_TEST_POSTGRES` names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "it says which seed repeats the run and what came of it")]
#![expect(clippy::large_enum_variant, reason = "there are a few of them, each for the whole test")]

#[path = "../common/checker.rs"]
mod checker;
mod client;
#[path = "../common/random.rs"]
mod random;
#[path = "../common/sending.rs"]
mod sending;
mod server;
#[path = "../common/stored.rs"]
mod stored;
#[path = "../common/topic.rs"]
mod topic;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use colink::client::Client;
use colink::domain::command::CreateChannel;
use colink::domain::id::{ChannelId, UserId};
use colink::domain::user::Role;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use checker::{Recorded, Stored};
use client::{Door, Listener, World, Writer};
use random::Random;
use server::Server;
use stored::{Person, Room, read_back};

const PEOPLE: [&str; 5] = ["ana", "bob", "cleo", "dan", "eve"];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_on_sqlite() {
    run(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_on_postgres() {
    match std::env::var("COLINK_TEST_POSTGRES") {
        Ok(postgres) => run(Some(&postgres)).await,
        Err(_) => {
            assert!(std::env::var("CI").is_err(), "CI runs every test on Postgres: set COLINK_TEST_POSTGRES");
            eprintln!("skipped: COLINK_TEST_POSTGRES is not set");
        }
    }
}

async fn run(postgres: Option<&str>) {
    let seed = number("COLINK_CRASH_SEED").unwrap_or_else(|| getrandom::u64().unwrap() >> 16);
    let seconds = number("COLINK_CRASH_SECONDS").unwrap_or(20);
    eprintln!("COLINK_CRASH_SEED={seed} repeats this run's choices");
    let mut server = Server::new(postgres).await;
    let admin = server.make_admin();
    server.start().await;
    let world = populate(&server.url, &admin).await;

    let stop = CancellationToken::new();
    let (heads, ends) = watch::channel(None);
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    for (n, person) in (1..).zip(&world.people) {
        let listener = Listener::open(&world, person, Random::of(seed, n * 10)).await;
        readers.spawn(listener.run(ends.clone()));
        for (door, task) in [(Door::Rest, 1), (Door::Gateway(None), 2)] {
            let writer = Writer::new(&world, person, door, Random::of(seed, n * 10 + task));
            writers.spawn(writer.run(stop.clone()));
        }
    }

    let kills = kill_for(&mut server, &mut Random::of(seed, 0), Duration::from_secs(seconds)).await;
    stop.cancel();
    while let Some(ended) = tokio::time::timeout(client::LIMIT, writers.join_next()).await.expect("writers end") {
        ended.unwrap();
    }
    let stored = read_back(&world.url, &world.people, &world.rooms).await;
    let last = |(id, channel): (&ChannelId, &Stored)| (*id, channel.log.len() as i64);
    heads.send(Some(stored.iter().map(last).collect())).unwrap();
    let readers = readers.join_all().await;
    if let Some((brokers, topic)) = &server.relays_to {
        let twice = topic::has_everything(server.events().await, brokers, topic).await;
        eprintln!("all events are on the topic, {twice} of them a second time");
    }

    let (attempted, changes) = {
        let take = |list: &mut Vec<_>| std::mem::take(list);
        (take(&mut world.attempted.lock().unwrap()), std::mem::take(&mut *world.changes.lock().unwrap()))
    };
    let recorded = Recorded { attempted, changes, readers };
    report(postgres.is_some(), kills, &world, &recorded, &stored);
    let broken = checker::check(&recorded, &stored);
    let log = server.log();
    assert!(
        broken.is_empty(),
        "COLINK_CRASH_SEED={seed}: {} promises broken:\n{}",
        broken.len(),
        broken[..broken.len().min(20)].join("\n")
    );
    assert!(!log.contains("panicked"), "COLINK_CRASH_SEED={seed}: the server panicked:\n{log}");
    assert!(kills > 0, "it was never killed");
    server.remove().await;
}

/// Kills the server and starts it again, at random times, and leaves it running. Returns how often. Between two kills it
/// loses its database a few times.
async fn kill_for(server: &mut Server, random: &mut Random, time: Duration) -> usize {
    let end = Instant::now() + time;
    let mut kills = 0;
    while Instant::now() < end {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(200) + random.time_below(Duration::from_secs(1))).await;
            server.cut_database().await;
        }
        server.kill();
        kills += 1;
        tokio::time::sleep(random.time_below(Duration::from_millis(400))).await;
        server.start().await;
    }
    kills
}

/// Makes the people, public channels that all are in, and private ones that some are in.
async fn populate(url: &str, admin: &str) -> Arc<World> {
    let root = Client::new(url).unwrap().with_token(admin);
    let mut people = Vec::new();
    for name in PEOPLE {
        let user = root.create_user(name, Role::Member).await.unwrap();
        let token = root.create_token(user.id).await.unwrap();
        people.push(Person { id: user.id, name: name.to_owned(), token });
    }
    let all: Vec<UserId> = people.iter().map(|person| person.id).collect();
    let mut rooms = Vec::new();
    for (name, private, members) in
        [("general", false, &all[..]), ("random", false, &all[..4]), ("lab", true, &all[..3]), ("den", true, &all[2..])]
    {
        let owner = people.iter().find(|person| person.id == members[0]).unwrap();
        let create = CreateChannel {
            name: name.to_owned(),
            private,
            topic: String::new(),
            purpose: String::new(),
            members: members.to_vec(),
        };
        let owner = Client::new(url).unwrap().with_token(&owner.token);
        let id = owner.create_channel(&create).await.unwrap().id;
        rooms.push(Room { id, members: members.to_vec() });
    }
    World::new(url.to_owned(), people, rooms)
}

fn report(postgres: bool, kills: usize, world: &World, recorded: &Recorded, stored: &BTreeMap<ChannelId, Stored>) {
    let figure = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    let figures = &world.figures;
    let applied: usize = recorded.readers.iter().flat_map(|r| r.applied.values()).map(Vec::len).sum();
    let sizes: HashMap<&ChannelId, usize> = stored.iter().map(|(id, channel)| (id, channel.log.len())).collect();
    eprintln!(
        "{}: {kills} kills, {} messages sent ({} rounds cut off, {} answered as duplicates), {} other changes, {} events \
         in the logs, {applied} applied by readers ({} resumes, {} sessions anew, {} repairs, {} repeats dropped)",
        if postgres { "postgres" } else { "sqlite" },
        recorded.attempted.len(),
        figure(&figures.unknown),
        figure(&figures.duplicates),
        recorded.changes.len(),
        sizes.values().sum::<usize>(),
        figure(&figures.resumed),
        figure(&figures.anew),
        figure(&figures.repairs),
        figure(&figures.repeats),
    );
}
