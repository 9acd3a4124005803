//! What the bus promises, run in memory and, where `COLINK_TEST_REDIS`, `COLINK_TEST_REDIS_SENTINEL` and
//! `COLINK_TEST_REDIS_CLUSTER` name servers, over each of these. What is done to a server itself is done to one of the
//! test's own.

mod secrets;
mod servers;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use self::servers::{Cut, Server, Wire, ask};
use super::{Bus, Incoming, MESSAGE_MAX, To, memory, redis};
use crate::domain::id::NodeId;

/// Where a bus runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Memory,
    Redis,
    Sentinel,
    Cluster,
}

/// A bus, empty as yet.
enum World {
    Memory(memory::Network),
    /// The URL of the servers, and a name that nobody else uses.
    Redis(String, String),
}

/// A node that joined.
struct Node {
    id: NodeId,
    bus: Bus,
    incoming: Incoming,
    /// Its way to the servers; nothing in memory.
    wire: Option<Wire>,
}

/// A number that nobody else has.
fn unique() -> Uuid {
    Uuid::from_u128(u128::from(getrandom::u64().unwrap()))
}

impl World {
    fn of(kind: Kind) -> Option<World> {
        let variable = match kind {
            Kind::Memory => return Some(World::Memory(memory::Network::default())),
            Kind::Redis => "COLINK_TEST_REDIS",
            Kind::Sentinel => "COLINK_TEST_REDIS_SENTINEL",
            Kind::Cluster => "COLINK_TEST_REDIS_CLUSTER",
        };
        let Ok(url) = std::env::var(variable) else {
            assert!(std::env::var("CI").is_err(), "CI runs every test on Redis: set {variable}");
            eprintln!("skipped: {variable} is not set");
            return None;
        };
        Some(World::at(url))
    }

    fn at(url: String) -> World {
        World::Redis(url, unique().to_string())
    }

    /// Returns another bus of the same kind, on the same servers.
    fn another(&self) -> World {
        match self {
            World::Memory(_) => World::Memory(memory::Network::default()),
            World::Redis(url, _) => World::at(url.clone()),
        }
    }

    /// Joins with room for so many messages; returns when the bus is up.
    async fn node(&self, queue: usize) -> Node {
        let id = NodeId(unique());
        let (bus, incoming, wire) = match self {
            World::Memory(network) => {
                let (bus, incoming) = network.join(id);
                (bus, incoming, None)
            }
            World::Redis(url, name) => {
                let (wire, url) = Wire::to(url).await;
                let settings = redis::Settings { url, name: name.clone(), node: id, queue };
                let (bus, incoming) = redis::join(settings).unwrap();
                (bus, incoming, Some(wire))
            }
        };
        let node = Node { id, bus, incoming, wire };
        node.is(true).await;
        node
    }

    fn cut(&self, node: &Node, how: Cut) {
        match self {
            World::Memory(network) => network.cut(node.id, how != Cut::Nothing),
            World::Redis(..) => node.wire.as_ref().unwrap().cut(how),
        }
    }
}

impl Node {
    /// Waits until the bus is up, or down.
    async fn is(&self, up: bool) {
        let mut watched = self.bus.up();
        within(&format!("up to be {up}"), watched.wait_for(|now| *now == up)).await.unwrap();
    }

    fn says(&self, to: To, text: impl ToString) -> bool {
        self.bus.publish(to, Bytes::from(text.to_string()))
    }

    async fn hears(&mut self) -> String {
        let message = within("a message", self.incoming.recv()).await.unwrap();
        String::from_utf8(message.to_vec()).unwrap()
    }

    /// Says something to another until it is heard; what was lost on the way is forgotten.
    async fn gets_through_to(&self, other: &mut Node) {
        let text = unique().to_string();
        let end = Instant::now() + LIMIT;
        loop {
            self.says(To::Node(other.id), &text);
            let heard = timeout(Duration::from_millis(50), other.hears_at_last(&text)).await;
            if heard.is_ok() {
                return;
            }
            assert!(Instant::now() < end, "nothing gets through");
        }
    }

    async fn hears_at_last(&mut self, text: &str) {
        while self.hears().await != text {}
    }
}

const LIMIT: Duration = Duration::from_secs(20);

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

/// Asks again and again until the answer is yes.
async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    within(what, async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Makes one test for each kind of bus out of one body.
macro_rules! on_each {
    ($flavor:literal: $($name:ident($world:ident) $body:block)*) => {$(
        mod $name {
            use super::*;
            async fn body($world: World) $body

            on_each!(one $flavor memory Memory, redis Redis, sentinel Sentinel, cluster Cluster);
        }
    )*};
    (one $flavor:literal $($name:ident $kind:ident),*) => {$(
        #[tokio::test(flavor = $flavor)]
        async fn $name() {
            if let Some(world) = World::of(Kind::$kind) {
                body(world).await;
            }
        }
    )*};
}

on_each! { "multi_thread":
    everyone_but_the_sender_hears_what_is_for_everyone(world) {
        let (mut a, mut b, mut c) = (world.node(64).await, world.node(64).await, world.node(64).await);
        assert!(a.says(To::Everyone, "to all"));
        assert_eq!(b.hears().await, "to all");
        assert_eq!(c.hears().await, "to all");
        assert!(b.says(To::Node(a.id), "heard"));
        assert_eq!(a.hears().await, "heard", "and nothing of its own before");
    }

    only_the_addressee_hears_what_is_for_one(world) {
        let (mut a, mut b, mut c) = (world.node(64).await, world.node(64).await, world.node(64).await);
        a.says(To::Node(b.id), "to b");
        a.says(To::Node(a.id), "to myself");
        a.says(To::Node(NodeId(unique())), "to nobody");
        a.says(To::Everyone, "");
        assert_eq!(b.hears().await, "to b");
        assert_eq!(b.hears().await, "");
        assert_eq!(c.hears().await, "");
        c.says(To::Node(a.id), "end");
        assert_eq!(a.hears().await, "end");
    }

    two_clusters_on_one_server_do_not_hear_each_other(world) {
        let other = world.another();
        let (a, mut b, c) = (world.node(64).await, world.node(64).await, other.node(64).await);
        c.says(To::Everyone, "stranger");
        c.says(To::Node(b.id), "stranger");
        c.bus.close().await;
        a.says(To::Everyone, "friend");
        assert_eq!(b.hears().await, "friend");
    }

    what_one_says_is_heard_in_order(world) {
        const MESSAGES: usize = 10_000;
        let (a, mut b) = (world.node(20_000).await, world.node(20_000).await);
        let speaker = tokio::spawn(async move {
            for n in 0..MESSAGES {
                let to = if n % 3 == 0 { To::Everyone } else { To::Node(b.id) };
                while !a.says(to, n) {
                    tokio::task::yield_now().await;
                }
            }
            a
        });
        for n in 0..MESSAGES {
            let message = within("a message", b.incoming.recv()).await.unwrap();
            assert_eq!(message, n.to_string().as_bytes());
        }
        assert!(*speaker.await.unwrap().bus.up().borrow());
    }

    a_long_message_arrives_whole_and_a_longer_one_is_refused(world) {
        let (a, mut b) = (world.node(64).await, world.node(64).await);
        let mut long = vec![0; MESSAGE_MAX];
        getrandom::fill(&mut long).unwrap();
        let long = Bytes::from(long);
        assert!(a.bus.publish(To::Node(b.id), long.clone()));
        assert!(a.bus.publish(To::Everyone, long.clone()));
        assert!(!a.bus.publish(To::Node(b.id), Bytes::from(vec![0; MESSAGE_MAX + 1])));
        for _ in 0..2 {
            let heard = within("a message", b.incoming.recv()).await.unwrap();
            assert!(heard == long, "{} bytes", heard.len());
        }
    }

    publishing_never_waits_and_says_when_a_queue_is_full(world) {
        let (a, mut b) = (world.node(16).await, world.node(16).await);
        let began = Instant::now();
        let refused = (0..100_000).find(|n| !a.says(To::Node(b.id), n));
        assert!(refused.is_some(), "there is room without end");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(b.hears().await, "0");
        // It goes on from there.
        a.gets_through_to(&mut b).await;
    }

    who_closes_is_out_and_the_others_go_on(world) {
        let (mut a, mut b, mut c) = (world.node(64).await, world.node(64).await, world.node(64).await);
        let clone = c.bus.clone();
        within("the end", c.bus.close()).await;
        assert!(!*clone.up().borrow());
        assert!(!clone.publish(To::Everyone, Bytes::from_static(b"I am out")));
        assert_eq!(within("the end", c.incoming.recv()).await, None);
        within("the end, again", clone.close()).await;
        a.says(To::Everyone, "on we go");
        assert_eq!(b.hears().await, "on we go");
        b.says(To::Everyone, "so we do");
        assert_eq!(a.hears().await, "so we do");
    }

    who_drops_the_bus_leaves_it(world) {
        let mut a = world.node(64).await;
        let up = a.bus.up();
        drop(a.bus);
        assert_eq!(within("the end", a.incoming.recv()).await, None);
        assert!(!*up.borrow());
    }

    a_cut_is_noticed_and_mended_whatever_it_looks_like(world) {
        // At the same time, each on a bus of its own: most of it is waiting.
        let worlds = [world.another(), world.another(), world.another()];
        tokio::join!(
            cut_and_heal(&world, Cut::Closed),
            cut_and_heal(&worlds[0], Cut::Silent),
            cut_and_heal(&worlds[1], Cut::Mute),
            cut_and_heal(&worlds[2], Cut::Deaf),
        );
    }
}

/// Cuts a node off, and no longer.
async fn cut_and_heal(world: &World, how: Cut) {
    let (mut a, mut b, mut c) = (world.node(1_024).await, world.node(1_024).await, world.node(1_024).await);
    let began = Instant::now();
    world.cut(&a, how);
    a.is(false).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{how:?} noticed after {:?}", began.elapsed());
    assert!(!a.says(To::Everyone, "does anybody hear me?"));
    // The others are up all the while.
    c.gets_through_to(&mut b).await;
    assert!(!*a.bus.up().borrow());
    world.cut(&a, Cut::Nothing);
    a.is(true).await;
    b.gets_through_to(&mut a).await;
    a.gets_through_to(&mut b).await;
    a.gets_through_to(&mut c).await;
}

on_each! { "current_thread":
    a_slow_reader_loses_and_hears_again(world) {
        const MESSAGES: u64 = 6_000;
        // On this thread alone, so that all of it is counted here.
        let counted = Counted::here();
        let _guard = metrics::set_default_local_recorder(&counted.0);
        let (a, mut b) = (world.node(4_096).await, world.node(100).await);
        let slow = || counted.of("colink_bus_dropped_total", "slow");
        for sent in 1..=MESSAGES {
            a.says(To::Node(b.id), sent);
            if sent % 100 == 0 {
                eventually("all to come", || async {
                    counted.of("colink_bus_received_total", "") + slow() == sent
                })
                .await;
            }
        }
        assert_eq!(counted.of("colink_bus_published_total", ""), MESSAGES);
        let waiting = b.incoming.len() as u64;
        assert_eq!(waiting + slow(), MESSAGES);
        assert!(slow() > 0 && waiting >= 100, "{waiting} wait");
        for n in 1..=waiting {
            assert_eq!(b.hears().await, n.to_string());
        }
        a.says(To::Node(b.id), "awake?");
        assert_eq!(b.hears().await, "awake?");
    }

    what_is_published_while_down_is_counted(world) {
        let counted = Counted::here();
        let _guard = metrics::set_default_local_recorder(&counted.0);
        let a = world.node(64).await;
        assert_eq!(counted.of("colink_bus_up", ""), 1);
        world.cut(&a, Cut::Closed);
        a.is(false).await;
        assert!(!a.says(To::Everyone, "lost"));
        assert_eq!(counted.of("colink_bus_dropped_total", "down"), 1);
        assert_eq!(counted.of("colink_bus_up", ""), 0);
        assert!(!a.bus.publish(To::Everyone, Bytes::from(vec![0; MESSAGE_MAX + 1])));
        assert_eq!(counted.of("colink_bus_dropped_total", "size"), 1);
        world.cut(&a, Cut::Nothing);
        a.is(true).await;
        let anew = if matches!(world, World::Memory(_)) { 0 } else { 1 };
        assert_eq!(counted.of("colink_bus_reconnects_total", ""), anew);
    }
}

/// What is counted on this thread.
struct Counted(metrics_exporter_prometheus::PrometheusRecorder, PrometheusHandle);

impl Counted {
    fn here() -> Counted {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        Counted(recorder, handle)
    }

    /// Returns a metric's number; its label, if it has one, is `why`.
    fn of(&self, name: &str, why: &str) -> u64 {
        let name = if why.is_empty() { format!("{name} ") } else { format!("{name}{{why=\"{why}\"}} ") };
        let text = self.1.render();
        text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |number| number.parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_connections_are_killed_come_back() {
    let Some(server) = Server::redis().await else { return };
    let world = World::at(server.url());
    let (mut a, mut b) = (world.node(64).await, world.node(64).await);
    for kind in ["normal", "pubsub"] {
        let (mut up_a, mut up_b) = (a.bus.up(), b.bus.up());
        up_a.mark_unchanged();
        up_b.mark_unchanged();
        let killed: i64 = server.ask(&["CLIENT", "KILL", "TYPE", kind]).await;
        assert_eq!(killed, 2, "{kind}: one of each node");
        // Going down and up again are two changes, which may be seen as one.
        within("a to notice", up_a.changed()).await.unwrap();
        within("b to notice", up_b.changed()).await.unwrap();
        a.is(true).await;
        b.is(true).await;
        a.gets_through_to(&mut b).await;
        b.gets_through_to(&mut a).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushing_the_server_means_nothing_to_the_bus() {
    let Some(server) = Server::redis().await else { return };
    let world = World::at(server.url());
    let (a, mut b) = (world.node(64).await, world.node(64).await);
    let mut up = a.bus.up();
    up.mark_unchanged();
    let keys: i64 = server.ask(&["DBSIZE"]).await;
    assert_eq!(keys, 0, "the bus leaves nothing there");
    for n in 0..20 {
        server.ask::<()>(&["FLUSHALL"]).await;
        assert!(a.says(To::Everyone, n));
        assert_eq!(b.hears().await, n.to_string());
    }
    assert!(!up.has_changed().unwrap() && *up.borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_noticed() {
    let Some(server) = Server::redis().await else { return };
    let world = World::at(server.url());
    let (mut a, mut b) = (world.node(64).await, world.node(64).await);
    server.signal("-STOP");
    a.is(false).await;
    b.is(false).await;
    server.signal("-CONT");
    a.is(true).await;
    b.is(true).await;
    a.gets_through_to(&mut b).await;
    server.ask::<()>(&["CLIENT", "PAUSE", "3000", "ALL"]).await;
    a.is(false).await;
    b.is(false).await;
    a.is(true).await;
    b.is(true).await;
    b.gets_through_to(&mut a).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_come_later_and_go_in_between() {
    let Some(server) = Server::redis().await else { return };
    let (url, port) = (server.url(), server.port);
    drop(server);
    let settings = redis::Settings { url, name: "later".to_owned(), node: NodeId(unique()), queue: 16 };
    let (bus, mut incoming) = redis::join(settings.clone()).unwrap();
    let (other, _incoming) = redis::join(redis::Settings { node: NodeId(unique()), ..settings.clone() }).unwrap();
    for _ in 0..2 {
        assert!(!*bus.up().borrow() && !bus.publish(To::Everyone, Bytes::from_static(b"early")));
        let server = Server::start_at(port, "redis-server", &[]).await.unwrap();
        for bus in [&bus, &other] {
            within("the bus", bus.up().wait_for(|up| *up)).await.unwrap();
        }
        assert!(other.publish(To::Node(settings.node), Bytes::from_static(b"hello")));
        assert_eq!(within("a message", incoming.recv()).await.unwrap(), "hello");
        drop(server);
        for bus in [&bus, &other] {
            within("the end", bus.up().wait_for(|up| !*up)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_not_of_a_node_is_dropped_and_counted() {
    let Some(server) = Server::redis().await else { return };
    let counted = Counted::here();
    let _guard = metrics::set_default_local_recorder(&counted.0);
    let name = unique().to_string();
    let world = World::Redis(server.url(), name.clone());
    let (a, mut b) = (world.node(64).await, world.node(64).await);
    server.ask::<()>(&["PUBLISH", &format!("{name}:all"), "too short"]).await;
    a.says(To::Everyone, "well formed");
    assert_eq!(b.hears().await, "well formed");
    assert!(counted.of("colink_bus_dropped_total", "foreign") >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_follows_the_master_in_a_failover() {
    let login = ["--requirepass", "secret", "--masterauth", "secret"];
    let Some(first) = Server::start("redis-server", &login).await else { return };
    let of_first = ["--replicaof", "127.0.0.1", &first.port.to_string()];
    let second = Server::start("redis-server", &[&login[..], &of_first].concat()).await.unwrap();
    let at_first = format!("redis://:secret@127.0.0.1:{}", first.port);
    eventually("the replica", || async {
        let told: String = ask(&at_first, &["INFO", "replication"]).await.unwrap();
        told.contains("state=online")
    })
    .await;
    let port = first.port.to_string();
    let watched = ["--sentinel", "monitor", "colink", "127.0.0.1", &port, "1"];
    let patience = ["--sentinel", "down-after-milliseconds", "colink", "500"];
    let password = ["--sentinel", "auth-pass", "colink", "secret", "--requirepass", "secret"];
    let quick = ["--sentinel", "failover-timeout", "colink", "1500"];
    let settings = [&watched[..], &patience, &password, &quick].concat();
    let Some(sentinel) = Server::start("redis-sentinel", &settings).await else { return };
    let at_sentinel = format!("redis://:secret@127.0.0.1:{}", sentinel.port);
    let named = || async {
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "colink"];
        ask::<(String, u16)>(&at_sentinel, &question).await.unwrap().1
    };
    eventually("the sentinel to know both", || async {
        let replicas: Vec<::redis::Value> = ask(&at_sentinel, &["SENTINEL", "REPLICAS", "colink"]).await.unwrap();
        replicas.len() == 1
    })
    .await;

    // The first sentinel does not answer.
    let url = format!("redis-sentinel://:secret@127.0.0.1:1,127.0.0.1:{}/colink", sentinel.port);
    let join = |node| {
        let settings = redis::Settings { url: url.clone(), name: "failover".to_owned(), node, queue: 64 };
        let (bus, incoming) = redis::join(settings).unwrap();
        Node { id: node, bus, incoming, wire: None }
    };
    let (mut a, mut b) = (join(NodeId(unique())), join(NodeId(unique())));
    a.is(true).await;
    b.is(true).await;
    a.gets_through_to(&mut b).await;

    // By order, with both alive: the old master becomes a replica.
    eventually("the sentinel to agree", || async {
        ask::<()>(&at_sentinel, &["SENTINEL", "FAILOVER", "colink"]).await.is_ok()
    })
    .await;
    eventually("a new master", || async { named().await == second.port }).await;
    a.gets_through_to(&mut b).await;
    b.gets_through_to(&mut a).await;
    eventually("the old master to obey", || async {
        // The sentinel ends its connections when it gives the order: one may be this.
        let told = ask::<String>(&at_first, &["INFO", "replication"]).await;
        told.is_ok_and(|told| told.contains("role:slave") && told.contains("master_link_status:up"))
    })
    .await;
    a.gets_through_to(&mut b).await;
    b.gets_through_to(&mut a).await;

    // By death.
    drop(second);
    eventually("the first to be master again", || async { named().await == first.port }).await;
    a.gets_through_to(&mut b).await;
    b.gets_through_to(&mut a).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_outlives_a_server_of_a_cluster() {
    let mut servers = Vec::new();
    for slots in [["0", "5461"], ["5462", "10923"], ["10924", "16383"]] {
        let Some((server, bus_port)) = Server::of_cluster().await else { return };
        server.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]).await;
        server.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(servers.len() + 1).to_string()]).await;
        servers.push((server, bus_port.to_string()));
    }
    let (first, its_bus) = (servers[0].0.port.to_string(), servers[0].1.clone());
    for (server, _) in &servers[1..] {
        server.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &first, &its_bus]).await;
    }
    for (server, _) in &servers {
        eventually("the servers to know one another", || async {
            server.ask::<String>(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
        })
        .await;
    }
    let join = |order: [usize; 3]| {
        let hosts = order.map(|at| format!("127.0.0.1:{}", servers[at].0.port)).join(",");
        let (url, node) = (format!("redis-cluster://{hosts}"), NodeId(unique()));
        let (bus, incoming) = redis::join(redis::Settings { url, name: "outlives".into(), node, queue: 64 }).unwrap();
        Node { id: node, bus, incoming, wire: None }
    };
    let (mut a, mut b) = (join([0, 1, 2]), join([1, 2, 0]));
    a.is(true).await;
    b.is(true).await;
    a.gets_through_to(&mut b).await;

    // The one that a asks, and with it the third of all slots, which have no replica.
    servers.remove(0);
    a.gets_through_to(&mut b).await;
    b.gets_through_to(&mut a).await;
    for (server, _) in &servers {
        eventually("the cluster to be down", || async {
            server.ask::<String>(&["CLUSTER", "INFO"]).await.contains("cluster_state:fail")
        })
        .await;
    }
    a.gets_through_to(&mut b).await;
    b.gets_through_to(&mut a).await;
}
