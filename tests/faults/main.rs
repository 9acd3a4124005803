//! The fault harness: three nodes over a real Postgres and a real Redis, which are killed, stopped, paused, cut off and lied
//! to while people write, read and are put out of channels; nothing that anybody was promised may get lost.
//!
//! ```text
//! rows.rs       the faults, one function each
//! partition.rs  a node that is cut off from Redis or Postgres
//! disk.rs       a disk that is full
//! load.rs       who writes and who reads; all record what they see
//! victims.rs    who is put out meanwhile
//! leaks.rs      who heard what they should not have, and whether owners followed each other in order
//! figures.rs    what was measured, and what it was meant to be
//! nodes.rs      the program, three times
//! services.rs   a Postgres and a Redis of the harness's own
//! process.rs    processes that are gone when the harness is
//! spaces.rs     networks and mounts that only some of them see
//! ```
//!
//! What must hold of all that was recorded and is stored is `tests/common/checker.rs`, which the crash test asks, too; an
//! address that stays where it is, whatever serves behind it, is `tests/common/forward.rs`.
//!
//! `cargo test --test faults -- --nocapture` takes two minutes. The long form repeats all rows until the time is
//! over, with more readers, and ends with a table of the goals:
//! `COLINK_FAULTS_SECONDS=1800 cargo test --release --test faults -- --nocapture`. `COLINK_FAULTS_SEED` repeats a run's
//! choices, `COLINK_FAULTS_ROWS=redis,storm` takes some of the rows, `COLINK_FAULTS_READERS` and `COLINK_FAULTS_STORM` say
//! how many read, `COLINK_FAULTS_OLD=FILE` is the program of another release that takes part in the rolling restart,
//! `COLINK_FAULTS_LOG=FILE` writes down everything that the clients saw. `docs/FAULTS.md` tells more.
//!
//! What is measured depends on the machine: it is shown, and only a broken promise fails the test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "it says which seed repeats the run and what came of it")]
#![expect(clippy::large_enum_variant, reason = "there are a few of them, each for a whole row")]

#[path = "../common/checker.rs"]
mod checker;
mod disk;
mod figures;
#[path = "../common/forward.rs"]
mod forward;
mod leaks;
mod load;
mod nodes;
mod partition;
mod process;
#[path = "../common/random.rs"]
mod random;
mod rows;
#[path = "../common/sending.rs"]
mod sending;
mod services;
mod spaces;
#[path = "../common/stored.rs"]
mod stored;
mod victims;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use colink::client::Client;
use colink::domain::command::CreateChannel;
use colink::domain::id::{ChannelId, UserId};
use colink::domain::user::Role;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use checker::{Recorded, Stored};
use disk::Disk;
use figures::{Figures, Goal};
use leaks::Committed;
use load::{Door, LIMIT, Listener, World, Writer};
use nodes::Node;
use random::Random;
use services::{Postgres, Redis};
use stored::{Person, Room, read_back};
use victims::{FATES, Victim};

const NODES: usize = 3;
/// How long the load runs before anything fails.
const UNHARMED: Duration = Duration::from_millis(500);
const PEOPLE: usize = 8;
const ROOMS: usize = 6;
/// No node may ever need more.
const SIZE: usize = 1 << 30;

const ROWS: [&str; 13] = [
    "node",
    "redis",
    "partition",
    "owner",
    "postgres",
    "failover",
    "silence",
    "disk",
    "sqlite",
    "disturb",
    "storm",
    "roll",
    "clock",
];

/// Everything that is there.
struct Bench {
    nodes: Vec<Node>,
    redis: Redis,
    postgres: Postgres,
    dir: tempfile::TempDir,
    root: String,
    /// What the node of the row about SQLite is on.
    disk: Option<Disk>,
    long: bool,
    readers: usize,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

impl Bench {
    async fn start(long: bool) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        // Postgres is another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let postgres = Postgres::new(dir.path()).await;
        let redis = Redis::new(dir.path()).await;
        let mut nodes: Vec<Node> = (0..NODES).map(|n| Node::new(n, dir.path(), &postgres, &redis)).collect();
        let root = nodes[0].make_admin();
        postgres.watch_streams().await;
        nodes.iter_mut().for_each(Node::start);
        for node in &mut nodes {
            node.ready().await;
        }
        Bench { nodes, redis, postgres, dir, root, disk: None, long, readers: 0 }
    }

    /// Returns the first in the short form, the second in the long one.
    fn stretch(&self, short: f64, long: f64) -> f64 {
        if self.long { long } else { short }
    }

    fn sizes(&self) -> Vec<usize> {
        self.nodes.iter().map(Node::size).collect()
    }

    /// Makes the people of a row, and their channels: private, with everybody in them.
    async fn populate(&self, row: usize) -> Arc<World> {
        let client =
            |node: usize| Client::new(&self.nodes[node % self.nodes.len()].url).unwrap().with_token(&self.root);
        let mut people = Vec::new();
        for n in 0..PEOPLE + FATES.len() {
            let name = if n < PEOPLE { format!("p{row}-{n}") } else { format!("v{row}-{}", n - PEOPLE) };
            let user = client(n).create_user(&name, Role::Member).await.unwrap();
            let token = client(n).create_token(user.id).await.unwrap();
            people.push(Person { id: user.id, name, token });
        }
        let everybody: Vec<UserId> = people.iter().map(|person| person.id).collect();
        let victims = people.split_off(PEOPLE);
        let mut rooms = Vec::new();
        for n in 0..ROOMS {
            let create = CreateChannel {
                name: format!("room-{row}-{n}"),
                // Who is out of a public one may read it over REST all the same, as anybody may.
                private: true,
                topic: String::new(),
                purpose: String::new(),
                members: everybody.clone(),
            };
            let id = client(n).create_channel(&create).await.unwrap().id;
            rooms.push(Room { id, members: everybody.clone() });
        }
        let urls = self.nodes.iter().map(|node| node.url.clone()).collect();
        World::new(urls, self.root.clone(), people, victims, rooms)
    }

    /// Breaks what the row breaks.
    async fn fault(&mut self, row: &str, world: &Arc<World>, random: &mut Random) -> Figures {
        match row {
            "node" => rows::kill_a_node(self, world, random).await,
            "redis" => rows::break_redis(self, world, random).await,
            "partition" => partition::partition(self, world, random).await,
            "owner" => rows::stop_an_owner(self, world, random).await,
            "postgres" => rows::kill_postgres(self, world, random).await,
            "failover" => rows::fail_over(self, world, random, false).await,
            "silence" => rows::fail_over(self, world, random, true).await,
            "disk" => disk::full_below_postgres(self, world).await,
            "sqlite" => disk::full_below_sqlite(self, world).await,
            "disturb" => rows::disturb(self, world, random).await,
            "storm" => rows::storm(self, world, random).await,
            "roll" => rows::roll(self, world, random).await,
            "clock" => rows::jump(self, world, random).await,
            _ => panic!("there is no row {row}: there are {ROWS:?}"),
        }
    }

    /// Waits until every node writes again.
    async fn settle(&self) {
        let deadline = Instant::now() + LIMIT;
        for node in &self.nodes {
            let client = Client::new(&node.url).unwrap().with_token(&self.root);
            let status = serde_json::json!({"emoji": "eyes"});
            while let Err(error) = client.put::<serde_json::Value>("/v1/users/me/status", &status).await {
                assert!(Instant::now() < deadline, "{} does not write any more: {error}", node.name);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Runs a row, on the cluster or, for SQLite, on a node that is alone.
    async fn run(&mut self, row: &'static str, number: usize, seed: u64) -> (Figures, Vec<String>) {
        if row != "sqlite" {
            return self.run_on_all(row, number, seed).await;
        }
        let disk = match Disk::new(self.dir.path(), &format!("disk-{number}")).await {
            Ok(disk) => disk,
            Err(why) => {
                eprintln!("skipped: no disk of a known size here: {why}");
                return (Figures::default(), Vec::new());
            }
        };
        let mut alone = Node::alone(&disk);
        let root = alone.make_admin();
        alone.start();
        alone.ready().await;
        self.disk = Some(disk);
        let (nodes, root) = (std::mem::replace(&mut self.nodes, vec![alone]), std::mem::replace(&mut self.root, root));
        let found = self.run_on_all(row, number, seed).await;
        (self.nodes, self.root) = (nodes, root);
        self.disk = None;
        found
    }

    /// Runs a row: load, fault, quiet, and what must hold then. Returns its figures and every promise that was broken.
    async fn run_on_all(&mut self, row: &'static str, number: usize, seed: u64) -> (Figures, Vec<String>) {
        let random = |task: u64| Random::of(seed ^ (number as u64) << 32, task);
        let world = self.populate(number).await;
        let count = |name, short, long| usize::try_from(number_or(name, if self.long { long } else { short })).unwrap();
        self.readers = match row {
            "storm" => count("COLINK_FAULTS_STORM", 300, 5_000),
            _ => count("COLINK_FAULTS_READERS", 24, 200),
        };
        let (heads, ends) = watch::channel(None);
        let (mut opening, mut readers) = (JoinSet::new(), JoinSet::new());
        for n in 0..self.readers {
            let me = world.people[n % PEOPLE].clone();
            opening.spawn(Listener::open(world.clone(), me, n, random(1_000 + n as u64)));
            if opening.len() >= 50 {
                readers.spawn(opening.join_next().await.unwrap().unwrap().unwrap().run(ends.clone()));
            }
        }
        while let Some(opened) = opening.join_next().await {
            readers.spawn(opened.unwrap().unwrap().run(ends.clone()));
        }
        let stop = CancellationToken::new();
        let (mut writers, mut victims) = (JoinSet::new(), JoinSet::new());
        let pace = Duration::from_millis(if row == "storm" { 6_000 } else { 250 });
        for (n, me) in (0..).zip(&world.people) {
            let door = if n % 2 == 0 { Door::Rest } else { Door::Gateway(None) };
            let writer = Writer { world: world.clone(), me: me.clone(), door, random: random(100 + n), pace };
            writers.spawn(writer.run(stop.clone()));
        }
        // Who was in a channel when is read off Postgres.
        let put_out = row != "sqlite";
        for ((n, me), fate) in (0..).zip(&world.victims).zip(FATES).filter(|_| put_out) {
            let victim = Victim { world: world.clone(), me: me.clone(), random: random(200 + n), fate };
            victims.spawn(victim.run(stop.clone()));
        }
        if put_out {
            victims.spawn(victims::put_out(world.clone(), random(300), stop.clone()));
        }
        let mut choices = random(0);
        tokio::time::sleep(UNHARMED + choices.time_below(2 * UNHARMED)).await;

        // The standby is made first there: they say themselves when it begins.
        if !["failover", "silence"].contains(&row) {
            world.fails();
        }
        let mut figures = self.fault(row, &world, &mut choices).await;

        let mut broken = Vec::new();
        let changed = async {
            while put_out && !world.all_changed() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LIMIT, changed).await.is_err() {
            broken.push("somebody could not be made a guest, signed out or deactivated".to_owned());
        }
        stop.cancel();
        let all_end = async {
            while let Some(ended) = writers.join_next().await {
                ended.unwrap();
            }
            while let Some(ended) = victims.join_next().await {
                ended.unwrap();
            }
        };
        tokio::time::timeout(2 * LIMIT, all_end).await.expect("writers end");
        let quiet = Instant::now();
        for node in &mut self.nodes {
            if !node.runs() {
                broken.push(format!("{} has ended by itself", node.name));
                node.start();
            }
            node.ready().await;
        }
        self.settle().await;
        let stored = read_back(&world.urls[0], &world.people, &world.rooms).await;
        let last = |(id, channel): (&ChannelId, &Stored)| (*id, channel.log.len() as i64);
        heads.send(Some(stored.iter().map(last).collect::<HashMap<_, _>>())).unwrap();
        let (mut read, mut converged) = (Vec::new(), quiet);
        while let Some(reader) = tokio::time::timeout(LIMIT, readers.join_next()).await.expect("readers end") {
            let (reader, at) = reader.unwrap();
            converged = converged.max(at);
            read.push(reader);
        }
        figures.time("all the same after", Some(converged - quiet), 2.0);
        self.check(&world, stored, read, &mut figures, &mut broken).await;
        for figure in figures.0.iter().filter(|figure| figure.is_broken()) {
            broken.push(figure.to_string());
        }
        (figures, broken)
    }

    /// Holds everything that was recorded to what is stored.
    async fn check(
        &self,
        world: &World,
        stored: BTreeMap<ChannelId, Stored>,
        readers: Vec<checker::Reader>,
        figures: &mut Figures,
        broken: &mut Vec<String>,
    ) {
        let record = world.record(std::mem::take);
        broken.extend(record.broken);
        let applied: usize = readers.iter().flat_map(|reader| reader.applied.values()).map(Vec::len).sum();
        figures.count("messages", record.attempted.len(), None);
        figures.count("applied", applied, None);
        let recorded = Recorded { attempted: record.attempted, changes: record.changes, readers };
        broken.extend(checker::check(&recorded, &stored));

        let streams: Vec<uuid::Uuid> = stored.keys().map(|channel| channel.0).collect();
        let changes = self.postgres.changes(&streams).await;
        broken.extend(leaks::check_owners(&changes));
        let committed = Committed::of(&changes);
        let (ended, guests) = world.lives();
        let mut found = leaks::check(&stored, &committed, &record.received, &ended, &record.too_late);
        let (latest, overheard) = leaks::check_guests(&record.overheard, &guests);
        found.broken.extend(overheard);
        figures.count("put out or back", found.moves, None);
        figures.count("heard by them", found.heard + record.overheard.len(), None);
        figures.count("leaked", found.broken.len(), Goal::Exactly(0.0));
        if !ended.is_empty() {
            figures.add("ended hears for", found.latest.max(0) as f64 / 1e6, " s", Goal::AtMost(5.0));
            figures.add("guest hears for", latest.max(0) as f64 / 1e6, " s", Goal::AtMost(5.0));
        }
        broken.extend(found.broken);

        let largest = self.sizes().into_iter().max().unwrap_or(0);
        figures.add("largest node", (largest >> 20) as f64, " MiB", None);
        if largest > SIZE {
            broken.push(format!("a node has grown to {} MiB", largest >> 20));
        }
        for node in &self.nodes {
            let waiting = node.metric("colink_commands_forwarded_waiting").await;
            if waiting > 0.0 {
                broken.push(format!("{} still waits for {waiting} answers of other nodes", node.name));
            }
            if let Some(line) = node.log().lines().find(|line| line.contains("panicked")) {
                broken.push(format!("{} panicked: {line}", node.name));
            }
        }
    }
}

fn number_or(name: &str, otherwise: u64) -> u64 {
    number(name).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_promised_is_lost_whatever_fails() {
    if let Some(missing) = services::missing() {
        assert!(std::env::var("CI").is_err(), "CI runs every test: {missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let seed = number("COLINK_FAULTS_SEED").unwrap_or_else(|| getrandom::u64().unwrap() >> 16);
    let seconds = number("COLINK_FAULTS_SECONDS");
    let chosen = std::env::var("COLINK_FAULTS_ROWS").unwrap_or_else(|_| ROWS.join(","));
    let chosen: Vec<&'static str> = chosen
        .split(',')
        .map(|name| {
            ROWS.into_iter().find(|row| *row == name).unwrap_or_else(|| panic!("there is no row {name}: {ROWS:?}"))
        })
        .collect();
    eprintln!("COLINK_FAULTS_SEED={seed} repeats this run's choices");
    let began = Instant::now();
    let mut bench = Bench::start(seconds.is_some()).await;
    eprintln!("services and nodes after {:.1} s", began.elapsed().as_secs_f64());
    let (mut broken, mut all, mut number) = (Vec::new(), Vec::new(), 0);
    loop {
        for row in &chosen {
            let since = Instant::now();
            let (figures, found) = bench.run(row, number, seed).await;
            number += 1;
            eprintln!("{row}, {:.1} s: {figures}", since.elapsed().as_secs_f64());
            for one in found.iter().take(10) {
                eprintln!("  BROKEN: {one}");
            }
            broken.extend(found.into_iter().map(|one| format!("{row}: {one}")));
            all.push((*row, figures));
        }
        if seconds.is_none_or(|seconds| began.elapsed().as_secs() >= seconds) {
            break;
        }
    }
    if seconds.is_some() {
        show_goals(&all);
    }
    assert!(
        broken.is_empty(),
        "COLINK_FAULTS_SEED={seed}: {} promises broken:\n{}",
        broken.len(),
        broken[..broken.len().min(20)].join("\n")
    );
}

/// Shows which goals were met, with the worst figure of all rounds.
fn show_goals(all: &[(&'static str, Figures)]) {
    let mut worst: BTreeMap<(&str, &str), (usize, usize, f64, figures::Figure)> = BTreeMap::new();
    for (row, figures) in all {
        for figure in figures.0.iter().filter(|figure| figure.goal.is_some()) {
            let least = matches!(figure.goal, Some(Goal::AtLeast(_)));
            let entry = worst.entry((row, figure.what)).or_insert((0, 0, figure.value, figure.clone()));
            entry.0 += 1;
            entry.1 += usize::from(figure.is_met());
            entry.2 = if least { entry.2.min(figure.value) } else { entry.2.max(figure.value) };
        }
    }
    eprintln!("{:10} {:32} {:>14} {:>18} {:>8}", "row", "figure", "worst", "goal", "met");
    for ((row, what), (rounds, met, value, figure)) in worst {
        let goal = match figure.goal {
            Some(Goal::AtMost(most)) => format!("<= {most:.2}"),
            Some(Goal::AtLeast(least)) => format!(">= {least:.2}"),
            Some(Goal::Exactly(exactly)) => format!("{exactly}"),
            None => String::new(),
        };
        eprintln!("{row:10} {what:32} {:>14} {goal:>18} {met:>4}/{rounds}", format!("{value:.2}{}", figure.unit));
    }
}
