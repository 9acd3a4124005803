//! A cluster in one thread: the pure cores of three nodes over a bus and a database that do whatever they may do. One seed is
//! one run, always the same.
//!
//! What is real: [`Core`] (members, routing, forwards), [`Room`] (gaps), the sealed messages, and when a node beats, sweeps,
//! takes back. What is modelled: the database, by the fence that [`crate::storage::send`] puts into its SQL (the store's
//! contract shows that it does), the writer around it, and clients who repeat what was not answered.
//!
//! The bus drops, delays, repeats and reorders, and is away for a while. Nodes are killed and started again, stopped and
//! woken, cut off. Connections to the database break, and what they were doing takes effect later or never.
//!
//! A second world is gentler: a bus that keeps to its order as long as it is up, and whose failures last until they are noticed.
//! There what one user asks by one node has to be carried out in the order in which it was asked, whoever owns what meanwhile.
//! `COLINK_SIMULATION=SEED` runs one seed, `COLINK_SIMULATION=FROM..TO` others than usual.

mod database;
mod node;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::database::{Database, Head, Stream};
use self::node::{Command, From, Node};
use super::core::{Core, Routed};
use super::envelope::{Beat, Message, Opened, Ran, Run, Seal};
use super::{BEAT, STORE_BEAT, TICK, cannot};
use crate::actors::channel::room::{Heard, Room};
use crate::bus::To;
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{EventId, NodeId, StreamId, TokenId, UserId};
use crate::domain::user::Role;
use crate::storage::writer::{Claim, Reply};

/// Seeds that failed once, whatever was wrong then.
const FAILED_ONCE: &[u64] = &[];
const SEEDS: u64 = 1_000;
const ORDERLY_SEEDS: u64 = 300;

const NODES: usize = 3;
const STREAMS: usize = 4;
const CLIENTS: usize = 6;
/// Milliseconds.
const STEP: u64 = 5;
const FAULTS: u64 = 15_000;
const HEALING: u64 = 15_000;
const TAKEN: u64 = 5_000;
const SWEEP: u64 = 1_000;
const SWEEP_DEGRADED: u64 = 250;
const CLIENT_PATIENCE: u64 = 3_000;
const BATCH: usize = 8;
/// In the orderly world so many of the clients are one user, who asks for the next before the last is answered.
const AHEAD: usize = 3;
/// In the orderly world the bus fails for so long at least: everybody notices.
const NOTICED: u64 = 3_000;

struct Random(fastrand::Rng);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0.u64(..n)
    }

    fn pick(&mut self, n: usize) -> usize {
        self.0.usize(..n)
    }

    /// Returns yes so many times in a thousand.
    fn says(&mut self, in_thousand: u64) -> bool {
        self.below(1_000) < in_thousand
    }
}

enum Act {
    Bus {
        to: usize,
        bytes: bytes::Bytes,
    },
    /// The writer's question is answered.
    Asked {
        batch: Vec<Command>,
    },
    /// The writer's statement is carried out, and its end is heard of later, if the connection holds.
    Insert {
        batch: Vec<Command>,
        heads: Vec<Head>,
        answer: Option<u64>,
    },
    Inserted {
        batch: Vec<Command>,
        heads: Vec<Head>,
        result: Result<BTreeSet<usize>, ()>,
    },
    /// The connection broke: nobody knows.
    Broken {
        batch: Vec<Command>,
    },
    Read {
        stream: usize,
    },
    Sweep,
    Beats,
    Believe {
        bus: bool,
    },
}

struct Due {
    at: u64,
    order: u64,
    node: usize,
    run: u64,
    act: Act,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A client, who asks one thing after the other, each until it is answered.
#[derive(Default)]
struct Client {
    asked: Option<Op>,
    attempts: u64,
    made: u64,
    /// The keys of what was asked again.
    repeated: BTreeSet<String>,
    /// What was acknowledged: the key, and where it is.
    acked: Vec<(String, usize, i64)>,
}

#[derive(Clone)]
struct Op {
    key: String,
    stream: usize,
    node: usize,
    attempt: u64,
    since: u64,
}

struct World {
    random: Random,
    start: Instant,
    now: u64,
    database: Database,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    due: BinaryHeap<Reverse<Due>>,
    order: u64,
    runs: u64,
    faulty: bool,
    orderly: bool,
    bus_away_until: u64,
    /// When the last message between two nodes arrives.
    heard_until: HashMap<(usize, usize), u64>,
    /// What each user asked, by the run of the node and the stream: the keys in order.
    asked: BTreeMap<(UserId, u64, usize), Vec<String>>,
    taken_back: usize,
}

impl World {
    fn new(seed: u64, orderly: bool) -> World {
        let stream = |n: usize| Stream {
            id: StreamId(uuid::Uuid::from_u128(0x77_0000 + n as u128)),
            epoch: 0,
            owner: None,
            owned_at: 0,
            log: Vec::new(),
        };
        let database =
            Database { streams: (0..STREAMS).map(stream).collect(), keys: HashMap::new(), nodes: BTreeMap::new() };
        let mut world = World {
            random: Random(fastrand::Rng::with_seed(seed)),
            start: Instant::now(),
            now: 0,
            database,
            nodes: Vec::new(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            due: BinaryHeap::new(),
            order: 0,
            runs: 0,
            faulty: true,
            orderly,
            bus_away_until: 0,
            heard_until: HashMap::new(),
            asked: BTreeMap::new(),
            taken_back: 0,
        };
        for n in 0..NODES {
            let node = world.boot(n);
            world.nodes.push(node);
        }
        world
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn boot(&mut self, n: usize) -> Node {
        self.runs += 1;
        let id = NodeId(uuid::Uuid::from_u128(u128::from(self.runs)));
        let name = format!("hub-{n}");
        let heads: Vec<(StreamId, i64)> = self.database.streams.iter().map(|s| (s.id, s.head())).collect();
        self.database.nodes.insert(id, (name.clone(), 1));
        let most = if self.orderly { 3 } else { 64 };
        let mut core = Core::new(id, name, most, self.instant());
        core.members.showed(self.instant());
        Node {
            run: self.runs,
            id,
            alive: true,
            stopped_until: 0,
            cut: false,
            cut_since: 0,
            bus: true,
            core,
            seal: Seal::new(id, b"simulation"),
            had_others: false,
            queue: Vec::new(),
            writing: false,
            memory: HashMap::new(),
            rooms: heads.iter().map(|(id, head)| Room::new(*id, [], *head)).collect(),
            reading: BTreeSet::new(),
            first: heads.iter().map(|(_, head)| *head).collect(),
            ticked: 0,
            beat: 0,
            store_beat: self.now,
            swept: self.now,
        }
    }

    fn at(&mut self, after: u64, node: usize, act: Act) {
        self.order += 1;
        let run = self.nodes[node].run;
        self.due.push(Reverse(Due { at: self.now + after, order: self.order, node, run, act }));
    }

    /// Publishes; returns what the bus says.
    fn say(&mut self, from: usize, to: To, bytes: &bytes::Bytes) -> bool {
        let is_full = self.orderly && self.faulty && to != To::Everyone && self.random.says(30);
        if !self.nodes[from].bus || is_full {
            return false;
        }
        let loses = self.faulty && !self.orderly;
        for n in 0..NODES {
            let addressed = match to {
                To::Everyone => n != from,
                To::Node(id) => self.nodes[n].id == id,
            };
            let lost = self.nodes[from].cut || self.now < self.bus_away_until || (loses && self.random.says(30));
            if !addressed || lost {
                continue;
            }
            let times = if loses && self.random.says(30) { 2 } else { 1 };
            for _ in 0..times {
                let slow = if loses && self.random.says(20) { 2_000 } else { 15 };
                let mut after = self.random.below(slow);
                if self.orderly {
                    let last = self.heard_until.entry((from, n)).or_default();
                    *last = (self.now + after).max(*last);
                    after = *last - self.now;
                }
                self.at(after, n, Act::Bus { to: n, bytes: bytes.clone() });
            }
        }
        true
    }

    fn act(&mut self, due: Due) {
        let n = due.node;
        // What a statement does, it does in the database, whatever became of who sent it.
        if let Act::Insert { batch, heads, answer } = due.act {
            let id = NodeId(uuid::Uuid::from_u128(u128::from(due.run)));
            let result = self.database.insert(id, &heads, self.now);
            if let Some(after) = answer
                && self.nodes[n].run == due.run
            {
                self.at(after, n, Act::Inserted { batch, heads, result });
            }
            return;
        }
        let node = &self.nodes[n];
        if node.run != due.run || !node.alive {
            return;
        }
        if node.stopped_until > self.now {
            let until = node.stopped_until;
            return self.due.push(Reverse(Due { at: until, ..due }));
        }
        let instant = self.instant();
        match due.act {
            Act::Bus { to, bytes } => {
                if !self.nodes[to].cut {
                    self.take(to, &bytes);
                }
            }
            Act::Asked { batch } => self.asked(n, batch),
            Act::Inserted { batch, heads, result } => self.inserted(n, batch, &heads, result),
            Act::Broken { batch } => {
                self.nodes[n].memory.clear();
                self.nodes[n].writing = false;
                for command in batch {
                    self.answer(n, &command, Err(Code::Timeout));
                }
            }
            Act::Read { stream } => {
                self.nodes[n].reading.remove(&stream);
                let delivered = self.nodes[n].rooms[stream].delivered();
                let missing: Vec<Event> = self.database.streams[stream].log[delivered as usize..].to_vec();
                missing.iter().for_each(|event| self.hear(n, event));
            }
            Act::Sweep => {
                for stream in 0..STREAMS {
                    if self.database.streams[stream].head() > self.nodes[n].rooms[stream].delivered() {
                        self.read(n, stream);
                    }
                }
            }
            Act::Beats => {
                let id = self.nodes[n].id;
                self.database.nodes.entry(id).and_modify(|(_, beat)| *beat += 1);
                let rows = self.database.nodes.iter().map(|(id, (name, beat))| (*id, &**name, *beat));
                let members = &mut self.nodes[n].core.members;
                members.showed(instant);
                members.read(rows, instant);
                for (dead, _) in members.forget_dead(instant) {
                    self.database.nodes.remove(&dead);
                }
            }
            Act::Believe { bus } => self.nodes[n].bus = bus,
            Act::Insert { .. } => unreachable!("it is done above"),
        }
    }

    fn faults(&mut self) {
        let n = self.random.pick(NODES);
        if self.random.says(3) {
            if self.nodes[n].alive {
                self.nodes[n].alive = false;
                for client in &mut self.clients {
                    // Its connection breaks, and it goes elsewhere.
                    if let Some(op) = client.asked.as_mut().filter(|op| op.node == n) {
                        op.since = 0;
                    }
                }
            } else {
                self.nodes[n] = self.boot(n);
            }
        }
        if self.random.says(2) && self.nodes[n].alive {
            let before = if self.orderly { self.nodes[n].stopped_until } else { 0 };
            self.nodes[n].stopped_until = before.max(self.now + self.random.below(8_000));
        }
        let is_noticed = !self.orderly || self.now >= self.nodes[n].cut_since + NOTICED;
        let would_be = !self.orderly || self.now + NOTICED < FAULTS;
        if self.random.says(3) && is_noticed && (would_be || self.nodes[n].cut) {
            let cut = !self.nodes[n].cut;
            (self.nodes[n].cut, self.nodes[n].cut_since) = (cut, self.now);
            let after = self.random.below(1_500);
            self.at(after, n, Act::Believe { bus: !cut });
        }
        if self.random.says(2) && would_be {
            let least = if self.orderly { NOTICED / 2 } else { 0 };
            self.bus_away_until = self.bus_away_until.max(self.now + self.random.below(4_000).max(least));
        }
    }

    fn heal(&mut self) {
        self.faulty = false;
        self.bus_away_until = 0;
        for n in 0..NODES {
            if !self.nodes[n].alive {
                self.nodes[n] = self.boot(n);
            }
            self.nodes[n].cut = false;
            if !self.orderly {
                self.nodes[n].stopped_until = self.now;
            }
            self.at(1_500, n, Act::Believe { bus: true });
        }
    }

    fn clients(&mut self, new: bool) {
        for client in 0..CLIENTS {
            let attempt = self.clients[client].attempts + 1;
            let mut node = self.random.pick(NODES);
            let op = match self.clients[client].asked.clone() {
                Some(op) if self.now < op.since + CLIENT_PATIENCE => continue,
                Some(op) => {
                    self.clients[client].repeated.insert(op.key.clone());
                    op
                }
                None if new && self.random.says(40) => {
                    self.clients[client].made += 1;
                    let key = format!("{client}-{}", self.clients[client].made);
                    let mut stream = self.random.pick(STREAMS);
                    if self.orderly {
                        (stream, node) = (client / AHEAD, client / AHEAD);
                    }
                    let line = (self.user(client), self.nodes[node].run, stream);
                    self.asked.entry(line).or_default().push(key.clone());
                    Op { key, stream, node: 0, attempt, since: 0 }
                }
                None => continue,
            };
            self.clients[client].attempts = attempt;
            let op = Op { node, attempt, since: self.now, ..op };
            self.clients[client].asked = Some(op.clone());
            let from = From::Client(client, attempt);
            if self.nodes[node].alive && self.nodes[node].stopped_until <= self.now {
                let claim = Claim::Beside;
                self.ask(node, Command { stream: op.stream, key: op.key, claim, from, tries: 0, _turn: None });
            } else if !self.nodes[node].alive {
                self.clients[client].asked = Some(Op { since: 0, ..op });
            }
        }
    }

    fn user(&self, client: usize) -> UserId {
        let user = if self.orderly { client / AHEAD } else { client };
        UserId(uuid::Uuid::from_u128(user as u128))
    }

    fn run(mut self) -> World {
        while self.now < FAULTS + HEALING {
            self.now += STEP;
            if self.now == FAULTS {
                self.heal();
            }
            if self.faulty {
                self.faults();
            }
            while self.due.peek().is_some_and(|Reverse(due)| due.at <= self.now) {
                let Some(Reverse(due)) = self.due.pop() else { break };
                self.act(due);
            }
            for n in 0..NODES {
                if self.nodes[n].alive && self.nodes[n].stopped_until <= self.now {
                    self.turn(n);
                }
            }
            let new = self.now < FAULTS + HEALING / 3;
            self.clients(new);
        }
        self
    }

    fn check(&self) {
        let mut acked = 0;
        for client in &self.clients {
            assert!(client.asked.is_none(), "a client still waits");
            for (key, stream, seq) in &client.acked {
                assert_eq!(self.database.keys.get(key), Some(&(*stream, *seq)), "what was acknowledged is stored");
                acked += 1;
            }
        }
        assert!(acked > 20, "{acked} were acknowledged");
        assert_eq!(acked, self.database.keys.len(), "each once, and nothing else");
        for (at, stream) in self.database.streams.iter().enumerate() {
            let seqs: Vec<i64> = stream.log.iter().map(|event| event.seq).collect();
            assert_eq!(seqs, (1..=stream.head()).collect::<Vec<_>>());
            let owners: BTreeSet<_> =
                self.nodes.iter().map(|node| node.core.members.owner(stream.id, self.instant())).collect();
            assert_eq!(owners.len(), 1, "all agree on the owner");
            for node in &self.nodes {
                assert_eq!(node.rooms[at].delivered(), stream.head(), "everybody heard everything");
                assert!(node.first[at] <= stream.head());
                assert_eq!(node.core.waiting(), 0, "no command is out");
                assert!(node.queue.is_empty() && !node.writing);
            }
        }
    }
}

impl World {
    /// Returns how much was asked once, which is in order. Who has to ask again does not get it where it was.
    fn check_order(&self) -> usize {
        let repeated: BTreeSet<_> = self.clients.iter().flat_map(|client| &client.repeated).collect();
        let mut asked = 0;
        for (line, keys) in &self.asked {
            let once = keys.iter().filter(|key| !repeated.contains(key));
            let stored: Vec<(i64, &String)> = once.map(|key| (self.database.keys[key].1, key)).collect();
            if let Some(wrong) = stored.windows(2).find(|pair| pair[0].0 > pair[1].0) {
                panic!("{line:?} was asked for these, in this order: {wrong:?}");
            }
            asked += stored.len();
        }
        asked
    }
}

#[test]
fn whatever_happens_nothing_is_lost_and_all_converge() {
    let taken_back = each_seed(SEEDS, |seed| {
        let world = World::new(seed, false).run();
        world.check();
        world.taken_back
    });
    assert!(taken_back.is_none_or(|back| back > 0), "commands came back from nodes that were lost");
}

#[test]
fn what_one_user_asks_is_carried_out_in_order_whoever_owns_it() {
    let in_order = each_seed(ORDERLY_SEEDS, |seed| {
        let world = World::new(seed, true).run();
        world.check();
        world.check_order()
    });
    assert!(in_order.is_none_or(|count| count > 10_000), "{in_order:?} were asked once");
}

/// Simulates usual seeds, and returns the sum of what they return; or those that the environment names.
fn each_seed(seeds: u64, simulate: fn(u64) -> usize) -> Option<usize> {
    let chosen = std::env::var("COLINK_SIMULATION").ok();
    let seeds: Vec<u64> = match chosen.as_deref().map(|text| text.split_once("..").unwrap_or((text, ""))) {
        None => FAILED_ONCE.iter().copied().chain(0..seeds).collect(),
        Some((seed, "")) => vec![seed.parse().expect("a seed is a number")],
        Some((from, to)) => (from.parse().expect("a seed")..to.parse().expect("a seed")).collect(),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut running = Vec::new();
    for part in 0..threads {
        let seeds: Vec<u64> = seeds.iter().copied().skip(part).step_by(threads).collect();
        running.push(std::thread::spawn(move || {
            let mut sum = 0;
            for seed in seeds {
                match std::panic::catch_unwind(|| simulate(seed)) {
                    Ok(count) => sum += count,
                    Err(why) => {
                        eprintln!("COLINK_SIMULATION={seed} shows it again");
                        std::panic::resume_unwind(why);
                    }
                }
            }
            sum
        }));
    }
    let sum = running.into_iter().map(|thread| thread.join().expect("every seed does well")).sum();
    chosen.is_none().then_some(sum)
}
