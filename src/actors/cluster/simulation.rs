//! A cluster in one thread: the pure cores of three nodes over a bus and a database that do whatever they may do. One seed is
//! one run, always the same.
//!
//! What is real: [`Core`] (members, routing, forwards), [`Room`] (gaps), the sealed messages, and when a node beats, sweeps,
//! takes back. What is modelled: the database, by the fence that [`crate::storage::send`] puts into its SQL (the store's
//! contract shows that it does), the writer around it, and clients who repeat what was not answered.
//!
//! The bus drops, delays, repeats and reorders, and is away for a while. Nodes are killed and started again, stopped and
//! woken, cut off. Connections to the database break, and what they were doing takes effect later or never.
//! `COLINK_SIMULATION=SEED` runs one seed, `COLINK_SIMULATION=FROM..TO` others than usual.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use super::core::{Core, Routed};
use super::envelope::{Beat, Message, Ran, Run, Seal};
use super::{BEAT, STORE_BEAT, TICK};
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

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    /// Returns yes so many times in a thousand.
    fn says(&mut self, in_thousand: u64) -> bool {
        self.below(1_000) < in_thousand
    }
}

// ---- the database ------------------------------------------------------------------------------------------------------

struct Stream {
    id: StreamId,
    epoch: i64,
    owner: Option<NodeId>,
    owned_at: u64,
    log: Vec<Event>,
}

impl Stream {
    fn head(&self) -> i64 {
        self.log.len() as i64
    }
}

struct Database {
    streams: Vec<Stream>,
    /// Where the message of each key is.
    keys: HashMap<String, (usize, i64)>,
    /// The beats of the nodes, by run.
    nodes: BTreeMap<NodeId, (String, i64)>,
}

/// What a send's statement asks of one stream.
#[derive(Clone)]
struct Head {
    stream: usize,
    was: i64,
    epoch: i64,
    take: bool,
    /// The writer took itself for the owner.
    mine: bool,
    keys: Vec<String>,
}

impl Database {
    /// One statement: all or nothing of it for each stream, and nothing at all if a key is there already.
    fn insert(&mut self, node: NodeId, heads: &[Head], now: u64) -> Result<BTreeSet<usize>, ()> {
        let guarded = |db: &Database, head: &Head| {
            let stream = &db.streams[head.stream];
            stream.head() == head.was && stream.epoch == head.epoch
        };
        let going: Vec<&Head> = heads.iter().filter(|head| guarded(self, head)).collect();
        if going.iter().any(|head| head.keys.iter().any(|key| self.keys.contains_key(key))) {
            return Err(());
        }
        let mut stored = BTreeSet::new();
        for head in going {
            let stream = &mut self.streams[head.stream];
            assert!(!head.mine || stream.owner == Some(node), "a stale owner wrote");
            if head.take {
                (stream.epoch, stream.owner, stream.owned_at) = (stream.epoch + 1, Some(node), now);
            }
            for key in &head.keys {
                let seq = stream.head() + 1;
                let (kind, at) = (EventKind::MessageCreated, Timestamp(1));
                let payload = format!("{{\"key\":\"{key}\"}}").into();
                stream.log.push(Event { stream: stream.id, seq, id: EventId::new(at), kind, actor: None, payload, at });
                self.keys.insert(key.clone(), (head.stream, seq));
            }
            stored.insert(head.stream);
        }
        Ok(stored)
    }
}

// ---- the nodes ---------------------------------------------------------------------------------------------------------

#[derive(Clone)]
enum From {
    Client(usize, u64),
    Node(NodeId, u64),
}

#[derive(Clone)]
struct Command {
    stream: usize,
    key: String,
    claim: Claim,
    from: From,
    tries: u8,
}

#[derive(Clone, Copy)]
struct Memory {
    head: i64,
    epoch: i64,
    mine: bool,
}

struct Node {
    run: u64,
    id: NodeId,
    alive: bool,
    stopped_until: u64,
    /// Neither sends nor hears anything by the bus.
    cut: bool,
    /// What it believes of its bus, which it finds out late.
    bus: bool,
    core: Core<Command>,
    seal: Seal,
    had_others: bool,
    queue: Vec<Command>,
    writing: bool,
    memory: HashMap<usize, Memory>,
    rooms: Vec<Room>,
    reading: BTreeSet<usize>,
    first: Vec<i64>,
    ticked: u64,
    beat: u64,
    store_beat: u64,
    swept: u64,
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
    bus_away_until: u64,
    taken_back: usize,
}

impl World {
    fn new(seed: u64) -> World {
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
            random: Random(seed),
            start: Instant::now(),
            now: 0,
            database,
            nodes: Vec::new(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            due: BinaryHeap::new(),
            order: 0,
            runs: 0,
            faulty: true,
            bus_away_until: 0,
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
        let mut core = Core::new(id, name, 64, self.instant());
        core.members.showed(self.instant());
        Node {
            run: self.runs,
            id,
            alive: true,
            stopped_until: 0,
            cut: false,
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
        if !self.nodes[from].bus {
            return false;
        }
        for n in 0..NODES {
            let addressed = match to {
                To::Everyone => n != from,
                To::Node(id) => self.nodes[n].id == id,
            };
            let lost = self.nodes[from].cut || self.now < self.bus_away_until || (self.faulty && self.random.says(30));
            if !addressed || lost {
                continue;
            }
            let times = if self.faulty && self.random.says(30) { 2 } else { 1 };
            for _ in 0..times {
                let slow = if self.faulty && self.random.says(20) { 2_000 } else { 15 };
                let after = self.random.below(slow);
                self.at(after, n, Act::Bus { to: n, bytes: bytes.clone() });
            }
        }
        true
    }

    // ---- what a node does ----

    fn ask(&mut self, n: usize, command: Command) {
        let (now, id) = (self.instant(), self.database.streams[command.stream].id);
        let node = &mut self.nodes[n];
        let sent_ms = node.core.age_ms(now);
        let (to, number, sealed) = match node.core.route(id, command, now) {
            Routed::Here(claim, command) => return node.queue.push(Command { claim, ..command }),
            Routed::There(to, number, command) => {
                let caller = Principal {
                    user_id: UserId(uuid::Uuid::nil()),
                    role: Role::Member,
                    token_id: TokenId(uuid::Uuid::nil()),
                };
                let body = command.stream.to_string();
                let run = Run::new(number, 2_000, caller, "message.send", body, command.key.clone());
                (to, number, node.seal.seal(To::Node(to), &Message::Run(run.sent(sent_ms))))
            }
        };
        if !self.say(n, To::Node(to), &sealed)
            && let Some(command) = self.nodes[n].core.answered(number, to)
        {
            self.nodes[n].queue.push(Command { claim: Claim::Beside, ..command });
        }
    }

    fn answer(&mut self, n: usize, command: &Command, result: Result<i64, Code>) {
        match command.from {
            From::Client(client, attempt) => {
                let asked = self.clients[client].asked.clone();
                // Who is dead, or answers late, is not heard.
                let Some(op) = asked.filter(|op| op.attempt == attempt && op.node == n) else { return };
                match result {
                    Ok(seq) => {
                        self.clients[client].acked.push((op.key, op.stream, seq));
                        self.clients[client].asked = None;
                    }
                    Err(_) => self.clients[client].asked = Some(Op { since: 0, ..op }),
                }
            }
            From::Node(to, number) => {
                let result = match result {
                    Ok(seq) => Ok(Reply { json: seq.to_string(), duplicate: false }),
                    Err(code) => Err(Refusal::new(code, "no")),
                };
                let sealed = self.nodes[n].seal.seal(To::Node(to), &Message::Ran(Ran::new(number, result)));
                self.say(n, To::Node(to), &sealed);
            }
        }
    }

    fn write(&mut self, n: usize) {
        if self.nodes[n].writing || self.nodes[n].queue.is_empty() {
            return;
        }
        let most = self.nodes[n].queue.len().min(BATCH);
        let batch: Vec<Command> = self.nodes[n].queue.drain(..most).collect();
        self.nodes[n].writing = true;
        self.decide(n, batch, false);
    }

    fn decide(&mut self, n: usize, batch: Vec<Command>, asked: bool) {
        let node = &self.nodes[n];
        let known = |command: &Command| {
            let memory = node.memory.get(&command.stream)?;
            (asked || memory.mine || command.claim == Claim::Beside).then_some(*memory)
        };
        if !batch.iter().all(|command| known(command).is_some()) {
            let after = 1 + self.random.below(4);
            return self.at(after, n, Act::Asked { batch });
        }
        let mut heads: Vec<Head> = Vec::new();
        for command in &batch {
            let memory = known(command).expect("all of them are known");
            let stream = &self.database.streams[command.stream];
            // As the question says: taken over by another one, and not just now.
            let free = !memory.mine && (stream.owner.is_none() || self.now >= stream.owned_at + TAKEN);
            let take = asked && free && command.claim == Claim::Owner;
            match heads.iter_mut().find(|head| head.stream == command.stream) {
                Some(head) => {
                    head.keys.push(command.key.clone());
                    head.take |= take;
                }
                None => heads.push(Head {
                    stream: command.stream,
                    was: memory.head,
                    epoch: memory.epoch,
                    take,
                    mine: memory.mine,
                    keys: vec![command.key.clone()],
                }),
            }
        }
        let breaks = self.faulty && self.random.says(20);
        let after = 1 + self.random.below(4);
        if breaks {
            // It takes effect now, much later, or never.
            let later = self.random.below(2_500);
            if self.random.says(700) {
                let insert = Act::Insert { batch: batch.clone(), heads, answer: None };
                self.at(later, n, insert);
            }
            return self.at(after, n, Act::Broken { batch });
        }
        let answer = Some(1 + self.random.below(4));
        self.at(after, n, Act::Insert { batch, heads, answer });
    }

    /// The question is answered, as of now.
    fn asked(&mut self, n: usize, batch: Vec<Command>) {
        let mut going: Vec<Command> = Vec::new();
        for command in batch {
            let found = self.database.keys.get(&command.key).copied();
            let again = going.iter().any(|other| other.key == command.key);
            match found {
                Some((_, seq)) => self.answer(n, &command, Ok(seq)),
                // A repeat within the batch: it comes again behind the first.
                None if again => self.nodes[n].queue.push(command),
                None => {
                    let stream = &self.database.streams[command.stream];
                    let mine = stream.owner == Some(self.nodes[n].id);
                    let memory = Memory { head: stream.head(), epoch: stream.epoch, mine };
                    self.nodes[n].memory.insert(command.stream, memory);
                    going.push(command);
                }
            }
        }
        if going.is_empty() {
            self.nodes[n].writing = false;
        } else {
            self.decide(n, going, true);
        }
    }

    fn inserted(&mut self, n: usize, batch: Vec<Command>, heads: &[Head], result: Result<BTreeSet<usize>, ()>) {
        let Ok(stored) = result else {
            self.nodes[n].memory.clear();
            return self.at(1, n, Act::Asked { batch });
        };
        let mut told = Vec::new();
        for head in heads {
            let node = &mut self.nodes[n];
            if !stored.contains(&head.stream) {
                node.memory.remove(&head.stream);
                continue;
            }
            let last = head.was + head.keys.len() as i64;
            let (epoch, mine) = (head.epoch + i64::from(head.take), head.mine || head.take);
            node.memory.insert(head.stream, Memory { head: last, epoch, mine });
            let log = &self.database.streams[head.stream].log;
            told.extend(log[head.was as usize..last as usize].iter().cloned());
        }
        if !told.is_empty() {
            for event in &told {
                self.hear(n, event);
            }
            let sealed = self.nodes[n].seal.seal_events(&told);
            self.say(n, To::Everyone, &sealed);
        }
        let mut again = Vec::new();
        for mut command in batch {
            if stored.contains(&command.stream) {
                let seq = self.database.keys[&command.key].1;
                self.answer(n, &command, Ok(seq));
            } else if command.tries == 2 {
                self.answer(n, &command, Err(Code::Unavailable));
            } else {
                command.tries += 1;
                again.push(command);
            }
        }
        if again.is_empty() {
            self.nodes[n].writing = false;
        } else {
            self.at(1, n, Act::Asked { batch: again });
        }
    }

    fn hear(&mut self, n: usize, event: &Event) {
        let stream = self.database.streams.iter().position(|s| s.id == event.stream).expect("it is one of them");
        let stored = self.database.streams[stream].log.get(event.seq as usize - 1);
        assert!(stored.is_some_and(|stored| stored.id == event.id), "something was heard that is not stored");
        let node = &mut self.nodes[n];
        let before = node.rooms[stream].delivered();
        match node.rooms[stream].hear(event, None) {
            Heard::Next => assert_eq!(event.seq, before + 1),
            Heard::Before => {}
            Heard::Gap => self.read(n, stream),
        }
    }

    fn read(&mut self, n: usize, stream: usize) {
        if self.nodes[n].reading.insert(stream) {
            let after = 1 + self.random.below(20);
            self.at(after, n, Act::Read { stream });
        }
    }

    fn take(&mut self, n: usize, bytes: &[u8]) {
        let now = self.instant();
        let (from, message) = self.nodes[n].seal.open(bytes).expect("it was sealed");
        match message {
            Message::Beat(beat) => {
                let core = &mut self.nodes[n].core;
                core.beats(from, beat.sent_ms, now);
                core.members.heard(from, &beat.name, beat.leaves, now);
                core.members.set_cut_off(from, beat.cut_off);
            }
            Message::Events(events) => events.iter().for_each(|event| self.hear(n, event)),
            Message::Run(run) => {
                if self.nodes[n].core.comes(from, &run, now).is_err() {
                    return;
                }
                let stream: usize = run.body.get().parse().expect("a stream");
                let owned = self.nodes[n].core.members.owner(self.database.streams[stream].id, now);
                let claim = if owned == Some(self.nodes[n].id) { Claim::Owner } else { Claim::Beside };
                let from = From::Node(from, run.number);
                self.nodes[n].queue.push(Command { stream, key: run.key, claim, from, tries: 0 });
            }
            Message::Ran(ran) => {
                let Some(command) = self.nodes[n].core.answered(ran.number, from) else { return };
                match ran.result().expect("it is known") {
                    Ok(reply) => self.answer(n, &command, Ok(reply.json.parse().expect("a number"))),
                    Err(refusal) if refusal.code == Code::Timeout => {
                        self.nodes[n].queue.push(Command { claim: Claim::Beside, ..command });
                    }
                    Err(refusal) => self.answer(n, &command, Err(refusal.code)),
                }
            }
            _ => unreachable!("nobody says that here"),
        }
    }

    fn turn(&mut self, n: usize) {
        let (now, instant) = (self.now, self.instant());
        if now >= self.nodes[n].beat + BEAT.as_millis() as u64 {
            self.nodes[n].beat = now;
            // Whatever a node believes of its way to the database, right or not.
            let cut_off = self.faulty && self.random.says(100);
            let (name, id) = (format!("hub-{n}"), self.nodes[n].id);
            self.nodes[n].core.members.set_cut_off(id, cut_off);
            let sent_ms = Some(self.nodes[n].core.age_ms(instant));
            let beat = Message::Beat(Beat { name, leaves: false, cut_off, presence: 0, sent_ms });
            let sealed = self.nodes[n].seal.seal(To::Everyone, &beat);
            if self.say(n, To::Everyone, &sealed) {
                self.nodes[n].core.members.showed(instant);
            }
        }
        if now >= self.nodes[n].ticked + TICK.as_millis() as u64 {
            let node = &mut self.nodes[n];
            node.ticked = now;
            let ticked = node.core.tick(node.bus, node.had_others, instant);
            node.had_others = node.core.members.has_others(instant);
            self.taken_back += ticked.back.len();
            if ticked.changed {
                node.swept = 0;
            }
            node.queue.extend(ticked.back.into_iter().map(|command| Command { claim: Claim::Beside, ..command }));
        }
        if now >= self.nodes[n].store_beat + STORE_BEAT.as_millis() as u64 {
            self.nodes[n].store_beat = now;
            let after = self.random.below(50);
            self.at(after, n, Act::Beats);
        }
        let every = if self.nodes[n].core.members.is_degraded(instant) { SWEEP_DEGRADED } else { SWEEP };
        if now >= self.nodes[n].swept + every {
            self.nodes[n].swept = now;
            let after = 1 + self.random.below(20);
            self.at(after, n, Act::Sweep);
        }
        self.write(n);
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

    // ---- what happens to them ----

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
            self.nodes[n].stopped_until = self.now + self.random.below(8_000);
        }
        if self.random.says(3) {
            let cut = !self.nodes[n].cut;
            self.nodes[n].cut = cut;
            let after = self.random.below(1_500);
            self.at(after, n, Act::Believe { bus: !cut });
        }
        if self.random.says(2) {
            self.bus_away_until = self.now + self.random.below(4_000);
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
            self.nodes[n].stopped_until = self.now;
            self.at(1_500, n, Act::Believe { bus: true });
        }
    }

    fn clients(&mut self, new: bool) {
        for client in 0..CLIENTS {
            let attempt = self.clients[client].attempts + 1;
            let op = match self.clients[client].asked.clone() {
                Some(op) if self.now < op.since + CLIENT_PATIENCE => continue,
                Some(op) => op,
                None if new && self.random.says(40) => {
                    self.clients[client].made += 1;
                    let key = format!("{client}-{}", self.clients[client].made);
                    Op { key, stream: self.random.pick(STREAMS), node: 0, attempt, since: 0 }
                }
                None => continue,
            };
            let node = self.random.pick(NODES);
            self.clients[client].attempts = attempt;
            let op = Op { node, attempt, since: self.now, ..op };
            self.clients[client].asked = Some(op.clone());
            let from = From::Client(client, attempt);
            if self.nodes[node].alive && self.nodes[node].stopped_until <= self.now {
                self.ask(node, Command { stream: op.stream, key: op.key, claim: Claim::Beside, from, tries: 0 });
            } else if !self.nodes[node].alive {
                self.clients[client].asked = Some(Op { since: 0, ..op });
            }
        }
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

fn simulate(seed: u64) -> usize {
    let world = World::new(seed).run();
    world.check();
    world.taken_back
}

#[test]
fn whatever_happens_nothing_is_lost_and_all_converge() {
    let chosen = std::env::var("COLINK_SIMULATION").ok();
    let seeds: Vec<u64> = match chosen.as_deref().map(|text| text.split_once("..").unwrap_or((text, ""))) {
        None => FAILED_ONCE.iter().copied().chain(0..SEEDS).collect(),
        Some((seed, "")) => vec![seed.parse().expect("a seed is a number")],
        Some((from, to)) => (from.parse().expect("a seed")..to.parse().expect("a seed")).collect(),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut running = Vec::new();
    for part in 0..threads {
        let seeds: Vec<u64> = seeds.iter().copied().skip(part).step_by(threads).collect();
        running.push(std::thread::spawn(move || {
            let mut taken_back = 0;
            for seed in seeds {
                match std::panic::catch_unwind(|| simulate(seed)) {
                    Ok(back) => taken_back += back,
                    Err(why) => {
                        eprintln!("COLINK_SIMULATION={seed} shows it again");
                        std::panic::resume_unwind(why);
                    }
                }
            }
            taken_back
        }));
    }
    let taken_back: usize = running.into_iter().map(|thread| thread.join().expect("every seed does well")).sum();
    assert!(taken_back > 0 || chosen.is_some(), "commands came back from nodes that were lost");
}
