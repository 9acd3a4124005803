//! The faults, one function a row: each breaks something under load, mends it, and returns the figures that are its own.
//! Two are big enough for a file of their own: [`crate::partition`] and [`crate::disk`].

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use colink::client::{Client, Gateway};
use colink::domain::id::ChannelId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::Bench;
use crate::figures::{Figures, Goal, Span, percentile};
use crate::forward::{Forward, listen};
use crate::load::{LIMIT, World, listening};
use crate::random::Random;

/// What whoever comes back makes a node read: whose the token is, and what was missed.
const READS: [&str; 2] =
    ["colink_database_reads_total{for=\"sign_ins\"}", "colink_database_reads_total{for=\"sessions\"}"];
const ALL_READS: [&str; 1] = ["colink_database_reads_total"];
const RESUMES: [&str; 1] = ["colink_resumes_total"];
const TOLD: [&str; 1] = ["colink_presence_told_total"];
pub(crate) const NONE: Goal = Goal::Exactly(0.0);

pub(crate) async fn wait(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

/// How a node shows somebody who is on another one.
struct Shown {
    by: Client,
    somebody: String,
}

impl Shown {
    /// Returns after which time they are shown so.
    async fn after(&self, presence: &str) -> Duration {
        let since = Instant::now();
        loop {
            let seen = self.by.get::<Value>(&format!("/v1/presence?user_ids={}", self.somebody)).await;
            if seen.is_ok_and(|seen| seen["items"][0]["presence"] == presence) {
                return since.elapsed();
            }
            assert!(since.elapsed() < LIMIT, "they are not shown as {presence}");
            wait(0.02).await;
        }
    }
}

/// Returns the row's channels that a node owns.
async fn owned(bench: &Bench, world: &World, node: usize) -> HashSet<ChannelId> {
    let name = &bench.nodes[node].name;
    let owners = bench.postgres.owners().await;
    let of_node = owners.into_iter().filter(|(_, owner)| owner == name).map(|(stream, _)| ChannelId(stream));
    of_node.filter(|channel| world.rooms.iter().any(|room| room.id == *channel)).collect()
}

/// `kill -9` of a node.
pub(crate) async fn kill_a_node(bench: &mut Bench, world: &Arc<World>, random: &mut Random) -> Figures {
    let node = random.below(bench.nodes.len());
    let channels = owned(bench, world, node).await;
    let killed = Instant::now();
    bench.nodes[node].kill();
    wait(6.5).await;
    let span = Span::since(killed);
    bench.nodes[node].start();
    bench.nodes[node].ready().await;
    wait(0.5).await;

    let mut figures = Figures::default();
    world.record(|record| {
        let backs: Vec<Duration> =
            record.backs.iter().filter(|b| b.node == node && b.lost >= killed).map(|b| b.took).collect();
        figures.count("its readers back", backs.len(), None);
        figures.time("caught up p99", percentile(backs, 0.99), 5.0);
        figures.count("its channels", channels.len(), None);
        let blocked = record.blocked(span, |channel| channels.contains(&channel), |at| at != node);
        figures.time("writes to them blocked", blocked, 1.0);
        let others = record.ends.iter().filter(|end| span.has(end.at) && end.node != node).count();
        figures.count("sockets of others closed", others, NONE);
    });
    figures
}

/// Redis is killed, then paused, then flushed.
pub(crate) async fn break_redis(bench: &mut Bench, world: &Arc<World>, random: &mut Random) -> Figures {
    // Somebody who is on the first node alone, as the second one shows them.
    let somebody = Client::new(&world.urls[0]).unwrap().with_token(&world.root);
    let somebody = somebody.get::<Value>("/v1/users/me").await.unwrap()["id"].as_str().unwrap().to_owned();
    let session = Gateway::connect(&world.urls[0], &world.root, listening()).await.unwrap();
    let shown = Shown { by: Client::new(&world.urls[1]).unwrap().with_token(&world.people[0].token), somebody };
    shown.after("online").await;

    let began = Instant::now();
    let long = bench.stretch(2.0, 10.0);
    bench.redis.kill();
    let (unknown, ()) = tokio::join!(shown.after("unknown"), wait(long + random.below(500) as f64 / 1_000.0));
    bench.redis.start().await;
    let (right, ()) = tokio::join!(shown.after("online"), wait(0.8));
    bench.redis.pause(true);
    let (unknown_again, ()) = tokio::join!(shown.after("unknown"), wait(long + 0.5));
    bench.redis.pause(false);
    let (right_again, ()) = tokio::join!(shown.after("online"), wait(0.5));
    bench.redis.flush().await;
    wait(0.5).await;
    drop(session);

    let (span, mut figures) = (Span::since(began), Figures::default());
    figures.time("presence unknown after", Some(unknown.max(unknown_again)), 10.0);
    figures.time("presence right after", Some(right.max(right_again)), 5.0);
    world.record(|record| {
        figures.count("sockets closed", record.ended(span), NONE);
        let calls = record.calls(span);
        let ok = calls.iter().filter(|call| call.ok).count();
        figures.add("sends that succeed", 100.0 * ok as f64 / calls.len().max(1) as f64, " %", Goal::AtLeast(99.99));
        figures.time("slowest send", calls.iter().map(|call| call.took).max(), 3.0);
        figures.time("from node to node p95", percentile(record.across(span), 0.95), 1.0);
    });
    figures
}

/// SIGSTOP of the node that owns most, for longer than others wait for it; then SIGCONT.
pub(crate) async fn stop_an_owner(bench: &mut Bench, world: &Arc<World>, _: &mut Random) -> Figures {
    let mut owns = Vec::new();
    for node in 0..bench.nodes.len() {
        owns.push(owned(bench, world, node).await);
    }
    let node = (0..owns.len()).max_by_key(|node| owns[*node].len()).expect("there are nodes");
    let (stopped, stopped_at) = (Instant::now(), world.clock.now().0);
    bench.nodes[node].pause(true);
    wait(bench.stretch(7.0, 30.0)).await;
    let (going, going_at) = (Instant::now(), world.clock.now().0);
    bench.nodes[node].pause(false);
    wait(2.5).await;

    let span = Span { from: stopped, to: going };
    let streams: Vec<uuid::Uuid> = owns[node].iter().map(|channel| channel.0).collect();
    let changes = bench.postgres.changes(&streams).await;
    let stale = format!("hub_{node}");
    let mut figures = Figures::default();
    let mut taken: HashMap<uuid::Uuid, i64> = HashMap::new();
    let (mut asleep, mut behind) = (0, 0);
    for change in changes.iter().filter(|change| change.at > stopped_at) {
        if change.who != stale && change.epoch > change.old_epoch {
            taken.insert(change.stream, change.epoch);
        }
        // What it had under way at Postgres may still be carried out.
        asleep += usize::from(change.who == stale && change.at > stopped_at + 300_000 && change.at < going_at);
        // Under an epoch from before it was taken over.
        let under = taken.get(&change.stream).is_some_and(|epoch| change.old_epoch < *epoch);
        behind += usize::from(change.who == stale && under);
    }
    figures.count("its channels", owns[node].len(), None);
    figures.count("taken over", taken.len(), None);
    figures.count("commits while it stood", asleep, NONE);
    figures.count("commits of the stale owner", behind, NONE);
    world.record(|record| {
        let blocked = record.blocked(span, |channel| owns[node].contains(&channel), |at| at != node);
        figures.time("writes to them blocked", blocked, 3.0);
        figures.time("converged", record.converged(going), 2.0);
    });
    figures
}

/// `kill -9` of Postgres, several times.
pub(crate) async fn kill_postgres(bench: &mut Bench, world: &Arc<World>, random: &mut Random) -> Figures {
    let began = Instant::now();
    let mut ready = Vec::new();
    for _ in 0..bench.stretch(2.0, 5.0) as usize {
        bench.postgres.kill();
        wait(0.3 + random.below(1_200) as f64 / 1_000.0).await;
        bench.postgres.start().await;
        ready.push(Instant::now());
        wait(2.5).await;
    }
    let (span, mut figures) = (Span::since(began), Figures::default());
    world.record(|record| {
        figures.count("times", ready.len(), None);
        figures.count("sockets closed", record.ended(span), NONE);
        let calls = record.calls(span);
        figures.time("longest call", calls.iter().map(|call| call.took).max(), 3.0);
        let back = ready.iter().filter_map(|ready| world.written_everywhere(record, *ready)).max();
        figures.time("writes back everywhere", back, 3.0);
    });
    figures
}

/// `kill -9` of Postgres, or it falls silent; a standby that has everything takes its place, at the same address.
pub(crate) async fn fail_over(bench: &mut Bench, world: &Arc<World>, random: &mut Random, silent: bool) -> Figures {
    let mut standby = bench.postgres.stand_by().await;
    wait(bench.stretch(1.0, 10.0)).await;
    world.fails();
    let killed = Instant::now();
    let silence = silent.then(|| bench.postgres.fall_silent());
    if !silent {
        bench.postgres.kill();
    }
    // Somebody has to notice.
    wait(0.5 + random.below(1_000) as f64 / 1_000.0).await;
    standby.promote().await;
    let front = Forward::start(listen(bench.postgres.local()).await, standby.local());
    // Who is told nothing takes longer to find out.
    wait(if silent { 20.0 } else { bench.stretch(3.0, 15.0) }).await;

    let (span, mut figures) = (Span::since(killed), Figures::default());
    world.record(|record| {
        figures.count("sockets closed", record.ended(span), NONE);
        figures.time("longest call", record.calls(span).iter().map(|call| call.took).max(), 3.0);
        figures.time("writes back everywhere", world.written_everywhere(record, killed), 15.0);
    });
    drop(silence);
    standby.stop().await;
    front.stop().await;
    bench.postgres.replace_by(standby).await;
    figures
}

/// A frame of a client, masked with zeros.
fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short");
    let mut bytes = vec![u8::from(fin) << 7 | opcode];
    match u8::try_from(length) {
        Ok(short) if short < 126 => bytes.push(0x80 | short),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// Opens a session by hand, over a connection that takes little.
async fn open_by_hand(url: &str, token: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4_096)?;
    let host = url.trim_start_matches("http://");
    let mut stream = socket.connect(host.parse().map_err(std::io::Error::other)?).await?;
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: colink.v1\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let identify = json!({"id": 1, "type": "identify", "d": {"token": token}});
    stream.write_all(&frame(true, 1, identify.to_string().as_bytes())).await?;
    Ok(stream)
}

/// Beside the others: clients that read nothing, clients that are there and say nothing more, and floods of fragments.
pub(crate) async fn disturb(bench: &mut Bench, world: &Arc<World>, random: &mut Random) -> Figures {
    let (count, sizes) = (bench.stretch(4.0, 20.0) as usize, bench.sizes());
    // First as many who do nobody any harm: what is compared is how they behave, not that they are there.
    let (good, mut behaving) = (CancellationToken::new(), tokio::task::JoinSet::new());
    for n in 0..3 * count {
        let (node, token) = (n % world.urls.len(), &random.pick(&world.people).token);
        let mut gateway = Gateway::connect(&world.urls[node], token, listening()).await.unwrap();
        let good = good.clone();
        behaving.spawn(async move {
            while good.run_until_cancelled(gateway.next_event()).await.is_some_and(|event| event.is_ok()) {}
            gateway.close().await;
        });
    }
    let quiet = Instant::now();
    wait(bench.stretch(2.5, 20.0)).await;
    let quiet = Span::since(quiet);
    good.cancel();
    behaving.join_all().await;
    let noisy = Instant::now();
    let (mut slow, mut floods, mut silent) = (Vec::new(), tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for n in 0..count {
        let node = n % world.urls.len();
        let token = random.pick(&world.people).token.clone();
        slow.push(open_by_hand(&world.urls[node], &token).await.unwrap());
        let mut dumb = open_by_hand(&world.urls[node], &token).await.unwrap();
        silent.spawn(async move {
            let (since, mut into) = (Instant::now(), [0; 4_096]);
            while dumb.read(&mut into).await.is_ok_and(|read| read > 0) {}
            since.elapsed()
        });
        let mut flood = open_by_hand(&world.urls[node], &token).await.unwrap();
        floods.spawn(async move {
            let pieces = [frame(false, 1, b"{"), frame(false, 0, b"").repeat(60)].concat();
            let whole = [pieces, frame(true, 0, br#""id":1,"type":"time.travel"}"#)].concat();
            // Slowly enough that it is the server that is measured, and not this machine's two cores.
            while flood.write_all(&whole).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    wait(bench.stretch(3.0, 30.0)).await;
    let (noisy, grown) = (Span::since(noisy), bench.sizes());
    floods.shutdown().await;
    let mut noticed = None;
    if bench.long {
        while let Ok(Some(Ok(took))) = tokio::time::timeout(Duration::from_secs(45), silent.join_next()).await {
            noticed = noticed.max(Some(took));
        }
    }
    let mut figures = Figures::default();
    world.record(|record| {
        let p95 = |span| percentile(record.across(span), 0.95).unwrap_or_default().as_secs_f64();
        figures.add("p95 of others before", 1_000.0 * p95(quiet), " ms", None);
        figures.add("beside them", 1_000.0 * p95(noisy), " ms", Goal::AtMost(1_100.0 * p95(quiet)));
        figures.count("sockets of others closed", record.ended(noisy), NONE);
    });
    let more: usize = sizes.iter().zip(grown).map(|(before, after)| after.saturating_sub(*before)).sum();
    figures.add("a client", more as f64 / (3 * count) as f64 / f64::from(1 << 20), " MiB", Goal::AtMost(2.0));
    figures.time("silence noticed", noticed, 30.0);
    figures
}

/// Returns the sum of metrics over all nodes.
async fn total(bench: &Bench, metrics: &[&str]) -> f64 {
    let mut total = 0.0;
    for node in &bench.nodes {
        for metric in metrics {
            total += node.metric(metric).await;
        }
    }
    total
}

/// All sockets of all nodes are cut at once.
pub(crate) async fn storm(bench: &mut Bench, world: &Arc<World>, _: &mut Random) -> Figures {
    let count = async || (total(bench, &READS).await, total(bench, &RESUMES).await, total(bench, &ALL_READS).await);
    let told = async || total(bench, &TOLD).await;
    // They are told when somebody's presence does change.
    let told_before = told().await;
    let change = json!({"mode": "dnd"});
    world.client(0, &world.people[0].token).put::<Value>("/v1/users/me/presence", &change).await.unwrap();
    let asked = Instant::now();
    while told().await < told_before + bench.readers as f64 && asked.elapsed() < LIMIT {
        wait(0.05).await;
    }
    let (before, told_of_one) = (count().await, told().await);
    let cut = Instant::now();
    for node in &bench.nodes {
        if !node.cut_clients() {
            eprintln!("skipped: sockets cannot be cut here (ss -K)");
            return Figures::default();
        }
    }
    let limit = Duration::from_secs(60);
    wait(1.0).await;
    loop {
        let back = world.record(|record| record.backs.len());
        if back >= bench.readers && world.away.load(Ordering::Acquire) == 0 || cut.elapsed() > limit {
            break;
        }
        wait(0.05).await;
    }
    let after = count().await;
    let (reads, resumes, all) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    let mut figures = Figures::default();
    figures.add("database reads a resume", reads / resumes.max(1.0), "", Goal::AtMost(2.0));
    figures.add("all reads meanwhile", all, "", None);
    figures.add("resumes", resumes, "", None);
    figures.add(
        "told to each of one change",
        (told_of_one - told_before) / bench.readers as f64,
        "",
        Goal::AtLeast(1.0),
    );
    let told = (told().await - told_of_one) / bench.readers as f64;
    figures.add("presence told to each", told, "", Goal::AtMost(1.0));
    world.record(|record| {
        let backs: Vec<Duration> = record.backs.iter().filter(|back| back.lost >= cut).map(|back| back.took).collect();
        figures.count("readers cut", bench.readers, None);
        figures.count("back", backs.len(), None);
        figures.time("caught up p50", percentile(backs.clone(), 0.5), 30.0);
        figures.time("all", percentile(backs, 1.0), 30.0);
    });
    figures
}

/// One node after the other stops in order and starts again; with another release to hand, first as that, then as this one.
pub(crate) async fn roll(bench: &mut Bench, world: &Arc<World>, _: &mut Random) -> Figures {
    let (began, mut slowest, mut rounds) = (Instant::now(), Duration::ZERO, vec![None]);
    if let Some(old) = std::env::var_os("COLINK_FAULTS_OLD") {
        rounds.insert(0, Some(old.into()));
    }
    for program in &rounds {
        for node in &mut bench.nodes {
            let asked = Instant::now();
            node.stop().await;
            slowest = slowest.max(asked.elapsed());
            node.run_as(program.clone());
            node.start();
            node.ready().await;
            wait(0.5).await;
        }
    }
    let (span, mut figures) = (Span::since(began), Figures::default());
    figures.time("slowest stop", Some(slowest), 30.0);
    world.record(|record| {
        let mut drops: HashMap<(&str, usize), usize> = HashMap::new();
        for end in record.ends.iter().filter(|end| span.has(end.at)) {
            *drops.entry((&end.who, end.node)).or_default() += 1;
        }
        figures.count("connections moved", record.ended(span), None);
        figures.count(
            "most by one client and node",
            drops.into_values().max().unwrap_or(0),
            Goal::AtMost(rounds.len() as f64),
        );
        figures.time("caught up p99", percentile(record.backs.iter().map(|back| back.took).collect(), 0.99), 5.0);
        figures.time("longest write", record.blocked(span, |_| true, |_| true), 3.0);
    });
    figures
}

/// Where Debian has libfaketime.
pub(crate) fn faketime() -> Option<String> {
    let paths =
        ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|arch| format!("/usr/lib/{arch}/faketime/libfaketimeMT.so.1"));
    paths.into_iter().find(|path| Path::new(path).exists())
}

/// The clock of one node jumps an hour forward, two back, and to where it was.
pub(crate) async fn jump(bench: &mut Bench, world: &Arc<World>, random: &mut Random) -> Figures {
    let Some(library) = faketime() else {
        eprintln!("skipped: no libfaketime here (Debian's package faketime)");
        return Figures::default();
    };
    let (node, clock) = (random.below(bench.nodes.len()), bench.dir.path().join("clock"));
    std::fs::write(&clock, "+0\n").unwrap();
    let environment = [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap().to_owned()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    bench.nodes[node].stop().await;
    bench.nodes[node].start_with(&environment);
    bench.nodes[node].ready().await;
    let began = Instant::now();
    for jump in ["+3600\n", "-3600\n", "+0\n"] {
        std::fs::write(&clock, jump).unwrap();
        wait(bench.stretch(2.0, 15.0)).await;
    }
    let (span, mut figures) = (Span::since(began), Figures::default());
    world.record(|record| {
        figures.count("sockets closed", record.ended(span), NONE);
        figures.time("from node to node p95", percentile(record.across(span), 0.95), 1.0);
        figures.time("longest write", record.blocked(span, |_| true, |_| true), 3.0);
    });
    bench.nodes[node].stop().await;
    bench.nodes[node].start();
    bench.nodes[node].ready().await;
    figures
}
