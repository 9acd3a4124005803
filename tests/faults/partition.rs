//! A node that is cut off from Redis or from Postgres: packets are lost on the way, and nobody is told.
//!
//! The node gets a network of its own with three wires to the rest: its clients', that to Redis and that to Postgres. A
//! wire is cut by a wrong hardware address for who is at the other end: what is sent there is dropped on arrival. That works
//! in each direction alone, and takes no firewall. Nodes speak to each other by Redis alone, so there is no other wire.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::Bench;
use crate::figures::{Figures, Goal, Span, percentile};
use crate::forward::{Forward, listen};
use crate::load::{Heard, World};
use crate::random::Random;
use crate::rows::{NONE, wait};
use crate::spaces::{Kind, Space, run, script};

/// The hardware addresses of the two ends of every wire, and one that is nobody's.
const OUTSIDE: &str = "02:00:00:00:00:01";
const INSIDE: &str = "02:00:00:00:00:02";
const NOBODY: &str = "02:00:00:00:00:03";

/// How many networks were made, so that each has other addresses.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Which wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wire {
    Clients,
    Redis,
    Postgres,
}

/// What is lost on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    Nothing,
    /// What the node sends.
    Sent,
    /// What is sent to the node.
    Received,
    Both,
}

/// A network of a node's own.
pub(crate) struct Network {
    pub(crate) space: Arc<Space>,
    /// Which sixteen addresses it has, of 198.18.0.0/15, which are nobody's (RFC 2544).
    block: u32,
}

impl Network {
    /// Makes it, with all wires whole.
    async fn new(log: &Path) -> Result<Network, String> {
        if crate::process::find("ip").is_none() {
            return Err("there is no ip (Debian's iproute2)".to_owned());
        }
        let space = Arc::new(Space::new(Kind::Net, "ip link set lo up", log).await?);
        let block = (std::process::id() * 7 + MADE.fetch_add(1, Ordering::Relaxed)) % 8_192;
        let (network, mut outside, mut inside) = (Network { space, block }, String::new(), String::new());
        for wire in [Wire::Clients, Wire::Redis, Wire::Postgres] {
            let (device, far, holder) = (network.device(wire), Network::far_device(wire), network.space.holder());
            let (here, there) = (network.outside(wire), network.inside(wire));
            outside += &format!(
                "ip link add {device} address {OUTSIDE} type veth peer name {far} address {INSIDE} netns {holder}\n\
                 ip address add {here}/30 dev {device}\nip link set {device} up\n"
            );
            inside += &format!("ip address add {there}/30 dev {far}\nip link set {far} up\n");
        }
        run(script(&outside));
        run(network.space.enter(&script(&inside)));
        for wire in [Wire::Clients, Wire::Redis, Wire::Postgres] {
            network.lose(wire, Lost::Nothing);
        }
        Ok(network)
    }

    fn device(&self, wire: Wire) -> String {
        format!("ck{:x}w{}", self.block, wire as u32)
    }

    fn far_device(wire: Wire) -> String {
        format!("w{}", wire as u32)
    }

    fn address(&self, wire: Wire, end: u32) -> Ipv4Addr {
        let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        Ipv4Addr::from(first + 16 * self.block + 4 * wire as u32 + end)
    }

    /// Returns the address of a wire's end outside.
    fn outside(&self, wire: Wire) -> Ipv4Addr {
        self.address(wire, 1)
    }

    /// Returns the address of a wire's end in the network.
    fn inside(&self, wire: Wire) -> Ipv4Addr {
        self.address(wire, 2)
    }

    /// Has a wire lose what it is told to, from now on.
    fn lose(&self, wire: Wire, lost: Lost) {
        let to = |right, is_lost| if is_lost { NOBODY } else { right };
        let inwards = to(INSIDE, matches!(lost, Lost::Received | Lost::Both));
        let outwards = to(OUTSIDE, matches!(lost, Lost::Sent | Lost::Both));
        let set = |address, hardware, device| {
            script(&format!("ip neigh replace {address} lladdr {hardware} dev {device} nud permanent"))
        };
        run(set(self.inside(wire), inwards, self.device(wire)));
        run(self.space.enter(&set(self.outside(wire), outwards, Network::far_device(wire))));
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One node is cut off from Redis, both ways and each way alone, and then from Postgres.
pub(crate) async fn partition(bench: &mut Bench, world: &Arc<World>, random: &mut Random) -> Figures {
    let network = match Network::new(&bench.dir.path().join("network.log")).await {
        Ok(network) => network,
        Err(why) => {
            eprintln!("skipped: no network of a node's own here: {why}");
            return Figures::default();
        }
    };
    let n = random.below(bench.nodes.len());
    let (redis, postgres) = (bench.redis.port(), bench.postgres.port());
    let at = |wire, port| SocketAddr::new(IpAddr::V4(network.outside(wire)), port);
    let front = bench.nodes[n].address();
    let inside = SocketAddr::new(IpAddr::V4(network.inside(Wire::Clients)), front.port());
    bench.nodes[n].stop().await;
    let forwards = [
        Forward::start(listen(front).await, inside),
        Forward::start(listen(at(Wire::Redis, redis)).await, local(redis)),
        Forward::start(listen(at(Wire::Postgres, postgres)).await, local(postgres)),
    ];
    let environment = [
        ("COLINK_SERVER__LISTEN", inside.to_string()),
        ("COLINK_CLUSTER__REDIS", format!("redis://{}", at(Wire::Redis, redis))),
        ("COLINK_DATABASE__URL", format!("postgres://hub_{n}@{}/faults", at(Wire::Postgres, postgres))),
    ];
    bench.nodes[n].space = Some(network.space.clone());
    bench.nodes[n].start_with(&environment);
    bench.nodes[n].ready().await;
    wait(1.0).await;

    let mut figures = Figures::default();
    let long = bench.stretch(2.0, 12.0);
    let (mut split, mut healed) = (Vec::new(), Vec::new());
    for lost in [Lost::Both, Lost::Sent, Lost::Received] {
        let cut = Instant::now();
        network.lose(Wire::Redis, lost);
        wait(long).await;
        split.push(Span::since(cut));
        network.lose(Wire::Redis, Lost::Nothing);
        healed.push(Instant::now());
        wait(bench.stretch(1.0, 4.0)).await;
    }
    let all = Span::since(split[0].from);
    world.record(|record| {
        figures.count("sockets closed", record.ended(all), NONE);
        let calls = record.calls(all);
        let ok = calls.iter().filter(|call| call.ok).count();
        figures.add("sends that succeed", 100.0 * ok as f64 / calls.len().max(1) as f64, " %", Goal::AtLeast(99.99));
        figures.time("slowest send", calls.iter().map(|call| call.took).max(), 3.0);
        let across = |heard: &&Heard| heard.across() && (heard.from == n || heard.to == n);
        let sent =
            |heard: &&Heard| split.iter().any(|span| heard.at.checked_sub(heard.took).is_some_and(|at| span.has(at)));
        let times = record.heard.iter().filter(across).filter(sent).map(|heard| heard.took).collect();
        figures.time("from side to side p95", percentile(times, 0.95), 1.0);
    });

    let cut = Instant::now();
    network.lose(Wire::Postgres, Lost::Both);
    wait(bench.stretch(3.0, 20.0)).await;
    let without = Span::since(cut);
    network.lose(Wire::Postgres, Lost::Nothing);
    healed.push(Instant::now());
    wait(bench.stretch(2.0, 10.0)).await;
    world.record(|record| {
        let others = record.blocked(without, |_| true, |at| at != n);
        figures.time("writes of others without Postgres", others, 3.0);
        let calls = record.calls(without);
        figures.time("longest call without Postgres", calls.iter().map(|call| call.took).max(), 3.0);
        let ended = |end: &&crate::load::End| without.has(end.at);
        figures.count("sockets closed without Postgres", record.ends.iter().filter(ended).count(), NONE);
        let back = record.calls.iter().filter(|call| call.ok && call.node == n).map(|call| call.began + call.took);
        figures.time("writes there back", back.filter(|at| *at > without.to).min().map(|at| at - without.to), 3.0);
        let converged = healed.iter().filter_map(|healed| record.converged(*healed)).max();
        figures.time("converged", converged, 2.0);
    });

    bench.nodes[n].stop().await;
    bench.nodes[n].space = None;
    for forward in forwards {
        forward.stop().await;
    }
    bench.nodes[n].start();
    bench.nodes[n].ready().await;
    figures
}
