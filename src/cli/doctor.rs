//! `doctor`: looks for what would keep the server from running well, and says what to do.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Settings;
use crate::actors::cluster::status::Report;
use crate::app::{self, Running};
use crate::bus::redis;
use crate::client::Client;
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::id::NodeId;
use crate::storage::{Store, StoreError, copy, nodes};

/// How long a message to oneself may take through Redis.
const BUS_PATIENCE: Duration = Duration::from_secs(3);
/// A node that lives gives a sign of it in the database in this time, which it does every two seconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// How a check ended.
enum Finding {
    Good(String),
    /// It works, but not as well as it could.
    Weak(String),
    Bad(String),
}

pub(super) async fn run(settings: Settings) -> Result<ExitCode> {
    let config = settings.load()?;
    let data = &config.server.data;
    let mut findings = vec![
        ("configuration", Finding::Good("every key is understood and in range".into())),
        ("data directory", data_directory(data)),
        ("fsync", fsync(data)),
        ("open files", open_files(config.server.max_connections)),
    ];
    let (found, store) = database(&config).await;
    findings.extend(found.into_iter().map(|finding| ("database", finding)));
    if !config.cluster.redis.expose().is_empty() {
        findings.push(("redis", bus(&config).await));
        if let Some(store) = &store {
            findings.push(("nodes", nodes(store).await));
        }
    }
    findings.push(("server", server(data, config.server.listen).await));
    let mut bad = false;
    for (what, finding) in &findings {
        let (mark, colour, text) = match finding {
            Finding::Good(text) => ("ok  ", "32", text),
            Finding::Weak(text) => ("weak", "33", text),
            Finding::Bad(text) => ("BAD ", "31", text),
        };
        bad |= matches!(finding, Finding::Bad(_));
        if std::io::stdout().is_terminal() {
            println!("\x1b[{colour}m{mark}\x1b[0m {what:<15} {text}");
        } else {
            println!("{mark} {what:<15} {text}");
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn data_directory(data: &Path) -> Finding {
    match app::make_data_dir(data).and_then(|()| Ok(probe(data, 0)?)) {
        Ok(_) => Finding::Good(format!("{} can be written", data.display())),
        Err(error) => Finding::Bad(format!("{error:#}")),
    }
}

/// Writes and syncs a small file `times`; returns how long the median took.
fn probe(data: &Path, times: usize) -> std::io::Result<Duration> {
    let path = data.join("doctor.tmp");
    let mut file = std::fs::File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..times {
        file.write_all(&[0; 512])?;
        let start = Instant::now();
        file.sync_data()?;
        took.push(start.elapsed());
    }
    std::fs::remove_file(&path)?;
    took.sort_unstable();
    Ok(took.get(times / 2).copied().unwrap_or_default())
}

fn fsync(data: &Path) -> Finding {
    match probe(data, 51) {
        Ok(took) if took < Duration::from_micros(20) => {
            Finding::Weak(format!("{took:?} is faster than disks are: does this one lie about syncing?"))
        }
        Ok(took) if took < Duration::from_millis(20) => Finding::Good(format!("{took:?} each: a send takes about two")),
        Ok(took) => Finding::Weak(format!("{took:?} each: every send waits for two; a faster disk helps most")),
        Err(error) => Finding::Bad(error.to_string()),
    }
}

fn open_files(wanted: usize) -> Finding {
    let have = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(0);
    if have >= wanted as u64 {
        return Finding::Good(format!("{have} allowed"));
    }
    Finding::Weak(format!(
        "{have} allowed, server.max_connections is {wanted}: raise `ulimit -n` (LimitNOFILE= in systemd)"
    ))
}

/// Looks at the database; returns it if it answers.
async fn database(config: &Config) -> (Vec<Finding>, Option<Store>) {
    let store = match Store::open(&app::store_options(config)).await {
        Ok(store) => store,
        Err(error) => return (vec![Finding::Bad(error.to_string())], None),
    };
    if let Err(error) = copy::refuse_unfinished(&store).await {
        return (vec![Finding::Bad(error.to_string())], Some(store));
    }
    let looked = async { Ok::<_, StoreError>((store.version().await?, store.weaknesses().await?)) };
    match looked.await {
        Ok((version, weaknesses)) => {
            let good = Finding::Good(format!("{version}, durable"));
            let weak = weaknesses.into_iter().map(|weakness| Finding::Weak(weakness.advice));
            (std::iter::once(good).chain(weak).collect(), Some(store))
        }
        Err(error) => (vec![Finding::Bad(error.to_string())], None),
    }
}

/// Looks whether a message to oneself comes back through Redis.
async fn bus(config: &Config) -> Finding {
    let cluster = &config.cluster;
    let (url, name) = (cluster.redis.expose().to_owned(), cluster.name.clone());
    let settings = redis::Settings { url, name, node: NodeId::new(Clock::default().now()), queue: 16 };
    let (bus, _incoming) = match redis::join(settings) {
        Ok(joined) => joined,
        Err(error) => return Finding::Bad(format!("cannot use cluster.redis: {error}")),
    };
    let mut up = bus.up();
    let is_up = async { up.wait_for(|up| *up).await.is_ok() };
    let heard = tokio::time::timeout(BUS_PATIENCE, is_up).await;
    bus.close().await;
    match heard {
        Ok(true) => Finding::Good("brings what nodes say to each other".into()),
        _ => Finding::Weak(format!(
            "nothing comes through within {BUS_PATIENCE:?}: nodes go on, and hear of each other's writes by Postgres, later"
        )),
    }
}

/// Looks which nodes give signs of life in the database, and whether they go together.
async fn nodes(store: &Store) -> Finding {
    let read = || store.in_time(async { nodes::all(&mut store.read().await?).await });
    // A database without the table has seen no node.
    let before = read().await.unwrap_or_default();
    if before.is_empty() {
        return Finding::Good("none runs".into());
    }
    tokio::time::sleep(SIGN_OF_LIFE).await;
    let mut alive = match read().await {
        Ok(rows) => rows,
        Err(error) => return Finding::Bad(error.to_string()),
    };
    alive.retain(|row| !before.iter().any(|old| (old.id, old.beat) == (row.id, row.beat)));
    judge(&alive)
}

fn judge(alive: &[nodes::Row]) -> Finding {
    let mut names: Vec<&str> = alive.iter().map(|row| &*row.name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Finding::Weak(format!("two are called {}: give each its own cluster.node", twice[0]));
    }
    let release = |row: &nodes::Row| serde_json::from_str::<Report>(&row.report).unwrap_or_default().version;
    let mut of: Vec<String> = alive.iter().map(|row| format!("{} {}", row.name, release(row))).collect();
    of.sort_unstable();
    let of = of.join(", ");
    match alive {
        [] => Finding::Good("none runs".into()),
        [first, others @ ..] if others.iter().any(|row| release(row) != release(first)) => Finding::Weak(format!(
            "of different releases: {of}; two that follow each other go together until all are upgraded"
        )),
        _ => Finding::Good(of),
    }
}

async fn server(data: &Path, listen: std::net::SocketAddr) -> Finding {
    if let Some(running) = Running::read(data) {
        let health = async { Client::new(&running.url)?.get::<serde_json::Value>("/health").await };
        return match health.await {
            Ok(_) => Finding::Good(format!("runs at {} (process {})", running.url, running.pid)),
            Err(error) => Finding::Bad(format!("runs (process {}) and does not answer: {error}", running.pid)),
        };
    }
    if let Some(left) = Running::left_behind(data) {
        return Finding::Weak(format!("was killed: it left {} behind, which the next start removes", left.display()));
    }
    match std::net::TcpListener::bind(listen) {
        Ok(_) => Finding::Good(format!("does not run; {listen} is free")),
        Err(error) => Finding::Bad(format!("does not run, and {listen} cannot be had: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn node(n: i64, name: &str, version: &str) -> nodes::Row {
        let report = serde_json::to_string(&Report { version: version.to_owned(), ..Report::default() }).unwrap();
        let (id, started_at) = (NodeId::new(Timestamp(n)), Timestamp(n));
        nodes::Row { id, name: name.to_owned(), clustered: true, started_at, beat: 1, report }
    }

    #[test]
    fn nodes_go_together_if_they_are_of_one_release_and_have_a_name_each() {
        let (one, two) = (node(1, "hub-1", "0.1.0"), node(2, "hub-2", "0.1.0"));
        assert!(matches!(judge(&[]), Finding::Good(text) if text == "none runs"));
        assert!(matches!(judge(&[two, one.clone()]), Finding::Good(text) if text == "hub-1 0.1.0, hub-2 0.1.0"));
        let newer = node(3, "hub-3", "0.2.0");
        assert!(
            matches!(judge(&[newer, one.clone()]), Finding::Weak(text) if text.contains("hub-1 0.1.0, hub-3 0.2.0"))
        );
        assert!(
            matches!(judge(&[one, node(4, "hub-1", "0.1.0")]), Finding::Weak(text) if text.contains("two are called hub-1"))
        );
    }
}
