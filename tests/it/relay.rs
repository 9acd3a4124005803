//! Every event is on the topic, each stream's in order, whatever becomes of brokers and nodes.

use std::process::{Child, Command, Stdio};

use colink::bus::memory::Network;
use colink::clock::Clock;
use colink::config::Config;
use colink::storage::Store;

use crate::topic::{self, STORED, unique};
use crate::world::{Database, World, eventually, new_postgres_database, on_both, postgres_is_there, within};

/// Where brokers are to test on; nothing, if there are none.
fn brokers() -> Vec<String> {
    let found: Vec<String> =
        ["COLINK_TEST_KAFKA", "COLINK_TEST_KAFKA_TANSU"].iter().filter_map(|name| std::env::var(name).ok()).collect();
    assert!(
        found.len() == 2 || std::env::var("CI").is_err(),
        "CI runs every test on both: set COLINK_TEST_KAFKA and _TANSU"
    );
    found
}

/// Waits until the topic has everything that is stored, and checks it. Returns how many events came twice.
async fn has_everything(world: &World, brokers: &str, topic: &str) -> usize {
    let stored = match &world.app().hub.store {
        Store::Postgres { readers, .. } => sqlx::query_as(STORED).fetch_all(readers).await.unwrap(),
        Store::Sqlite { readers, .. } => sqlx::query_as(STORED).fetch_all(readers).await.unwrap(),
    };
    topic::has_everything(stored, brokers, topic).await
}

fn relays_to(config: &mut Config, brokers: &str, topic: &str) {
    config.kafka.brokers = brokers.to_owned();
    config.kafka.topic = topic.to_owned();
    config.kafka.partitions = 3;
}

on_both! {
    every_event_is_on_the_topic(database) {
        for brokers in brokers() {
            let topic = unique("events");
            let mut world = World::on(database, |config| relays_to(config, &brokers, &topic)).await;
            let (ana, bob) = (world.user("ana").await, world.user("bob").await);
            let rooms = [world.channel("one", &[&ana, &bob]).await, world.channel("two", &[&ana, &bob]).await];
            for n in 0..40 {
                let room = rooms[n % 2];
                let (thread, _) = tokio::join!(ana.says(room, "naïve café 🦀"), bob.says(room, "at the same time"));
                bob.replies(room, thread, "a reply").await;
            }
            assert_eq!(has_everything(&world, &brokers, &topic).await, 0, "nothing went twice");
            world.restart().await;
            let ana = world.user("ada").await;
            ana.says(world.channel("three", &[&ana]).await, "after a restart").await;
            has_everything(&world, &brokers, &topic).await;
        }
    }
}

/// A broker of the test's own, which it may ill-treat.
struct Broker {
    child: Child,
    port: u16,
    data: tempfile::TempDir,
}

impl Broker {
    fn program() -> Option<String> {
        let program = std::env::var("COLINK_TEST_KAFKA_PROGRAM").ok();
        assert!(program.is_some() || std::env::var("CI").is_err(), "CI runs every test: set COLINK_TEST_KAFKA_PROGRAM");
        program
    }

    fn run(program: &str, port: u16, data: &std::path::Path) -> Child {
        Command::new(program)
            .args(["start", "--only", "kafka", "--kafka-port", &port.to_string(), "--data-dir"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Makes one that does not run yet.
    fn at_rest() -> (u16, tempfile::TempDir) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        (port, tempfile::tempdir().unwrap())
    }

    /// Ends it in order: this stand-in keeps what it acknowledged only then.
    fn ends(&mut self) {
        self.signal("-TERM");
        self.child.wait().unwrap();
    }

    fn starts_again(&mut self, program: &str) {
        self.child = Broker::run(program, self.port, self.data.path());
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_may_come_later_stand_still_and_go_in_between() {
    let Some(program) = Broker::program() else { return };
    let (port, data) = Broker::at_rest();
    let (brokers, topic) = (format!("127.0.0.1:{port}"), unique("events"));
    let world = World::on(Database::Sqlite, |config| relays_to(config, &brokers, &topic)).await;
    let ana = world.user("ana").await;
    let room = world.channel("room", &[&ana]).await;
    for n in 0..20 {
        ana.says(room, &format!("nobody listens yet {n}")).await;
    }
    let child = Broker::run(&program, port, data.path());
    let mut broker = Broker { child, port, data };
    eventually("the broker to listen", || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
        .await;
    has_everything(&world, &brokers, &topic).await;

    broker.signal("-STOP");
    for n in 0..20 {
        ana.says(room, &format!("it stands still {n}")).await;
    }
    broker.signal("-CONT");
    has_everything(&world, &brokers, &topic).await;

    broker.ends();
    for n in 0..20 {
        within("a send", ana.says(room, &format!("it is gone {n}"))).await;
    }
    broker.starts_again(&program);
    has_everything(&world, &brokers, &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_where_the_one_that_relayed_was() {
    let brokers = brokers();
    if brokers.is_empty() || !postgres_is_there() {
        return;
    }
    let (database, network, topic) = (new_postgres_database().await, Network::default(), unique("events"));
    let joins = async |name: &str| {
        let change = |config: &mut Config| {
            config.cluster.node = name.to_owned();
            relays_to(config, &brokers[0], &topic);
        };
        World::joins(&database, &network, Clock::default(), change).await
    };
    let (mut one, mut other) = (joins("one").await, joins("other").await);
    let ana = one.user("ana").await;
    let room = one.channel("room", &[&ana]).await;
    for n in 0..30 {
        ana.says(room, &format!("by one {n}")).await;
        ana.at(&other).says(room, &format!("by the other {n}")).await;
    }
    // Whichever of them relays: each of them is gone once, the one that comes for it has to find its way.
    one.stop().await;
    let third = joins("third").await;
    let ana = ana.at(&other);
    for n in 0..30 {
        ana.says(room, &format!("without one {n}")).await;
    }
    other.stop().await;
    let ana = ana.at(&third);
    ana.says(room, "alone").await;
    has_everything(&third, &brokers[0], &topic).await;
}
