//! Search in a large hub, as somebody who may read a small part of it: how long answers take by kind of question, and how soon what was
//! said is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::task::JoinSet;

use super::Look;
use crate::cli::load::bench::{Bench, bar};
use crate::cli::load::report::Row;
use crate::cli::load::stats::{Latency, histogram};
use crate::client::{Client, escaped};
use crate::clock::{Clock, Timestamp};
use crate::domain::command::CreateChannel;
use crate::domain::id::ChannelId;

/// People who write; one more looks.
pub(in crate::cli::load) const WRITERS: usize = 8;
/// Requests on their way while the hub is filled.
const FILLING: u64 = 64;
/// How many different words there are: the n-th is n times as rare as the first, as in a language.
const WORDS: f64 = 50_000.0;
/// How often it is tried how soon something is found, for each second that is measured.
const PROBES: f64 = 5.0;

/// What of an answer counts.
#[derive(Deserialize)]
struct Found {
    total: u64,
    indexed_through: Option<Timestamp>,
    complete: bool,
}

/// A kind of question.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Common,
    Rare,
    Two,
    Phrase,
    Prefix,
    Filtered,
    Newest,
    Mistyped,
}

const KINDS: [(Kind, &str); 8] = [
    (Kind::Common, "one common word"),
    (Kind::Rare, "one rare word"),
    (Kind::Two, "two words"),
    (Kind::Phrase, "a phrase of two"),
    (Kind::Prefix, "the beginning of a word"),
    (Kind::Filtered, "from: and after: and a word"),
    (Kind::Newest, "a common word, newest first"),
    (Kind::Mistyped, "a mistyped word"),
];

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let (corpus, rooms, seen) =
        (bench.args.corpus, bench.args.corpus_rooms, bench.args.seen_rooms.min(bench.args.corpus_rooms));
    let rooms = make_rooms(bench, rooms, seen).await?;
    let filling = Instant::now();
    fill(bench, &rooms, corpus).await?;
    let filled = filling.elapsed().as_secs_f64();
    let client = Client::new(&bench.server.url)?.with_token(&bench.people[0].token);
    let behind = Instant::now();
    let deadline = behind + Duration::from_secs(600);
    while !is_indexed(&client).await? {
        ensure!(Instant::now() < deadline, "the index is still behind after ten minutes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let behind = behind.elapsed().as_secs_f64();

    let of = format!("{corpus} in {}, {seen} seen", rooms.len());
    let before = Look::before(bench).await?;
    let time = Duration::from_secs_f64(bench.args.duration);
    let asked = ask_all(bench, rooms.len(), time).await?;
    let after = Look::after(bench).await?;
    let mut all = histogram();
    let mut rows = Vec::new();
    for ((_, name), (latencies, found)) in KINDS.iter().zip(&asked) {
        all.add(latencies)?;
        let mut row = Row {
            scenario: "search".to_owned(),
            load: (*name).to_owned(),
            reply: Latency::of(latencies),
            ..Row::default()
        };
        let mean = *found as f64 / (latencies.len() as f64).max(1.0);
        row.figure("found", mean);
        row.note = format!("p95 {:.2} ms, {mean:.0} found on average", p95(latencies));
        rows.push(row);
    }
    let mut row = Row {
        scenario: format!("search {of}"),
        load: format!("{} readers", bench.args.readers),
        reply: Latency::of(&all),
        ..Row::default()
    };
    let per_second = all.len() as f64 / after.seconds_since(&before);
    row.figure("requests_per_s", per_second);
    row.figure("p95_ms", p95(&all));
    row.figure("filled_per_s", corpus as f64 / filled);
    row.figure("behind_s", behind);
    row.note = format!(
        "p95 {:.2} ms, {per_second:.0} a second; {:.0} messages a second were taken, and the index had all {behind:.1} s later",
        p95(&all),
        corpus as f64 / filled
    );
    if let Some(cpu) = after.cpu_since(&before) {
        row.figure("cpu_ms_per_request", cpu / all.len() as f64 * 1_000.0);
        row.note += &format!("; {:.2} ms CPU each", cpu / all.len() as f64 * 1_000.0);
    }
    if let Some(bytes) = index_bytes(bench) {
        row.figure("index_bytes_per_message", bytes as f64 / corpus as f64);
        row.note += &format!("; the index takes {:.1} MB", bytes as f64 / 1e6);
    }
    rows.insert(0, row);
    rows.push(freshness(bench, &client, rooms[0]).await?);
    Ok(rows)
}

fn p95(latencies: &Histogram<u64>) -> f64 {
    latencies.value_at_quantile(0.95) as f64 / 1_000.0
}

/// Makes rooms that somebody writes in; who looks is in the first few.
async fn make_rooms(bench: &Bench, count: usize, seen: usize) -> Result<Vec<ChannelId>> {
    let bar = bar("making rooms", count);
    let (looker, writers) = bench.people[..=WRITERS].split_first().context("there are people")?;
    let make = |n: usize| {
        let bar = &bar;
        async move {
            let wanted = CreateChannel {
                name: format!("search-{}-{n}", bench.run),
                private: true,
                topic: String::new(),
                purpose: String::new(),
                members: if n < seen { vec![looker.id] } else { Vec::new() },
            };
            let made =
                Client::new(&bench.server.url)?.with_token(&writers[n % WRITERS].token).create_channel(&wanted).await?;
            bar.inc(1);
            Ok::<_, crate::client::Error>(made.id)
        }
    };
    let rooms = stream::iter(0..count).map(make).buffered(16).try_collect().await;
    bar.finish_and_clear();
    rooms.context("cannot make rooms")
}

/// Has so many messages written, each in some room.
async fn fill(bench: &Bench, rooms: &[ChannelId], corpus: u64) -> Result<()> {
    let bar = bar("writing", usize::try_from(corpus)?);
    let (next, rooms) = (Arc::new(AtomicU64::new(0)), Arc::new(rooms.to_vec()));
    let mut writing = JoinSet::new();
    for _ in 0..FILLING {
        let (next, rooms, bar) = (next.clone(), rooms.clone(), bar.clone());
        let writers: Vec<Client> = bench.people[1..=WRITERS]
            .iter()
            .map(|person| Ok(Client::new(&bench.server.url)?.with_token(&person.token)))
            .collect::<Result<_>>()?;
        writing.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= corpus {
                    return Ok::<_, crate::client::Error>(());
                }
                let room = room_of(n, rooms.len());
                writers[room % WRITERS].send(rooms[room], &text(n), None).await?;
                bar.inc(1);
            }
        });
    }
    while let Some(done) = writing.join_next().await {
        done?.context("a message was refused: are the limits off?")?;
    }
    bar.finish_and_clear();
    Ok(())
}

async fn is_indexed(client: &Client) -> Result<bool> {
    let now = Clock::default().now();
    let found: Found = client.get("/v1/search/messages?limit=1&q=-nothing").await?;
    Ok(found.complete && found.indexed_through >= Some(now))
}

async fn ask_all(bench: &Bench, rooms: usize, time: Duration) -> Result<Vec<(Histogram<u64>, u64)>> {
    let mut asking = JoinSet::new();
    let next = Arc::new(AtomicU64::new(0));
    let names: Arc<Vec<String>> = Arc::new((0..WRITERS).map(|n| bench.name(n + 1)).collect());
    for _ in 0..bench.args.readers {
        let client = Client::new(&bench.server.url)?.with_token(&bench.people[0].token);
        let (next, names, corpus, seen) = (next.clone(), names.clone(), bench.args.corpus, bench.args.seen_rooms);
        asking.spawn(async move {
            let mut all = vec![(histogram(), 0); KINDS.len()];
            let started = Instant::now();
            while started.elapsed() < time {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let at = usize::try_from(n).unwrap_or(0) % KINDS.len();
                let path = question(KINDS[at].0, n, corpus, (rooms, seen), &names);
                let asked = Instant::now();
                let found: Found = client.get(&path).await?;
                let took = asked.elapsed();
                let (latencies, total) = &mut all[at];
                latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                *total += found.total;
            }
            Ok::<_, crate::client::Error>(all)
        });
    }
    let mut all = vec![(histogram(), 0); KINDS.len()];
    while let Some(done) = asking.join_next().await {
        for ((latencies, total), (more, found)) in all.iter_mut().zip(done??) {
            latencies.add(&more)?;
            *total += found;
        }
    }
    Ok(all)
}

/// Returns the path of the `n`th question: about what stands in some message that may be read.
fn question(kind: Kind, n: u64, corpus: u64, (rooms, seen): (usize, usize), names: &[String]) -> String {
    let seed = mix(n ^ 0x5eed);
    let readable = (0..).map(|step| (seed + step) % corpus).find(|n| room_of(*n, rooms) < seen);
    let about = readable.unwrap_or(seed % corpus);
    let text = text(about);
    let words: Vec<&str> = text.split(' ').collect();
    let at = usize::try_from(mix(seed)).unwrap_or(0) % (words.len() - 1);
    // The longer, the rarer.
    let rarest = *words.iter().max_by_key(|word| word.len()).unwrap_or(&words[0]);
    let common = word(mix(seed) % 20);
    let (query, sort) = match kind {
        Kind::Common => (common, "relevance"),
        Kind::Newest => (common, "newest"),
        Kind::Rare => (rarest.to_owned(), "relevance"),
        Kind::Two => (format!("{} {}", words[at], words[at + 1]), "relevance"),
        Kind::Phrase => (format!("\"{} {}\"", words[at], words[at + 1]), "relevance"),
        Kind::Prefix => (format!("{}*", &rarest[..rarest.len().min(4)]), "relevance"),
        Kind::Filtered => {
            (format!("{} from:{} after:2020", words[at], names[room_of(about, rooms) % WRITERS]), "newest")
        }
        Kind::Mistyped => (format!("{}q{}", &rarest[..2], &rarest[2..]), "relevance"),
    };
    format!("/v1/search/messages?limit=20&sort={sort}&q={}", escaped(&query))
}

/// Says something and asks for it until it is found, and until the index has it.
async fn freshness(bench: &Bench, client: &Client, room: ChannelId) -> Result<Row> {
    let writer = Client::new(&bench.server.url)?.with_token(&bench.people[1].token);
    let (mut found_after, mut indexed_after) = (histogram(), histogram());
    let probes = (bench.args.duration * PROBES).ceil() as u64;
    for probe in 0..probes {
        let word = format!("probe{}x{probe}", bench.run);
        writer.send(room, &word, None).await?;
        let acknowledged = Instant::now();
        let now = Clock::default().now();
        let path = format!("/v1/search/messages?limit=1&q={word}");
        let micros = |since: Instant| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut is_found = false;
        loop {
            let answer: Found = client.get(&path).await?;
            if answer.total == 1 && !is_found {
                found_after.saturating_record(micros(acknowledged));
                is_found = true;
            }
            if is_found && answer.indexed_through >= Some(now) {
                indexed_after.saturating_record(micros(acknowledged));
                break;
            }
            ensure!(acknowledged.elapsed() < Duration::from_secs(30), "what was said 30 s ago is not found");
        }
        tokio::time::sleep(Duration::from_millis(mix(probe) % 700)).await;
    }
    let mut row = Row {
        scenario: "search, what was just said".to_owned(),
        load: format!("{probes} times"),
        reply: Latency::of(&found_after),
        ..Row::default()
    };
    row.figure("found_p95_ms", p95(&found_after));
    row.figure("indexed_p95_ms", p95(&indexed_after));
    row.note = format!(
        "found p95 {:.1} ms after the acknowledgement, in the index {:.0} ms",
        p95(&found_after),
        p95(&indexed_after)
    );
    Ok(row)
}

/// Returns how much the folder of the index takes, where that is known.
fn index_bytes(bench: &Bench) -> Option<u64> {
    let folder = bench.server.data()?.join("search");
    let inside = std::fs::read_dir(folder).ok()?.next()?.ok()?.path();
    std::fs::read_dir(inside).ok()?.map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

/// Scatters numbers: the finalizer of SplitMix64.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn room_of(n: u64, rooms: usize) -> usize {
    usize::try_from(mix(n) % rooms as u64).unwrap_or(0)
}

/// Returns the words of the `n`th message: 4 to 23 of them.
fn text(n: u64) -> String {
    let count = 4 + mix(n ^ 1) % 20;
    let words = (0..count).map(|at| {
        let even = mix(n.wrapping_mul(31).wrapping_add(at) ^ 2) as f64 / u64::MAX as f64;
        word(WORDS.powf(even) as u64 - 1)
    });
    words.collect::<Vec<_>>().join(" ")
}

const SYLLABLES: [&str; 16] =
    ["ba", "ke", "lo", "mi", "nu", "ra", "se", "to", "vi", "zu", "da", "fe", "go", "hi", "pu", "wa"];

/// Returns the word of a rank, the more common the shorter.
fn word(rank: u64) -> String {
    let mut text = String::new();
    let mut left = rank + 16;
    while left > 0 {
        text.push_str(SYLLABLES[usize::try_from(left % 16).unwrap_or(0)]);
        left /= 16;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_same_each_time_and_what_is_asked_stands_in_it() {
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        let words: std::collections::HashSet<String> = (0..2_000).map(word).collect();
        assert_eq!(words.len(), 2_000);
        let names: Vec<String> = (0..WRITERS).map(|n| format!("w{n}")).collect();
        for n in 0..100 {
            assert!((4..=23).contains(&text(n).split(' ').count()));
            for (kind, _) in KINDS {
                let path = question(kind, n, 1_000, (10, 3), &names);
                assert!(path.starts_with("/v1/search/messages?limit=20&sort=") && path.is_ascii(), "{path}");
            }
        }
    }
}
