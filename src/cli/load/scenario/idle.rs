//! Connections that say nothing: what one takes in memory, and what keeping them all alive takes in processor time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Look;
use crate::cli::load::bench::Bench;
use crate::cli::load::fleet::Fleet;
use crate::cli::load::report::Row;

/// Members of each room that the idle are in.
const ROOM: usize = 1_000;
/// Files that are open besides the connections.
const OTHER_FILES: u64 = 500;

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let (files, _) = rlimit::Resource::NOFILE.get()?;
    let possible = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    let count = bench.args.connections.min(possible);
    ensure!(count > 0, "no connections to open");
    let mut rooms = Vec::new();
    for start in (0..count).step_by(ROOM) {
        rooms.push(bench.room(start..(start + ROOM).min(count)).await?);
    }
    bench.server.restart().await?;

    // A few come and go first: what the server allocates once is not charged to those that stay.
    let fleet = Fleet::start(bench.args.threads, bench.ticks)?;
    let early = (0..count.min(100)).map(|person| bench.dial(person, rooms[person / ROOM])).collect();
    fleet.add(bench.connect(early).await?, |_| false).await?;
    fleet.cut().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;

    let memory_before = bench.server.watched.rss_kib()?;
    let (before, started) = (Look::before(bench).await?, Instant::now());
    let dials = (0..count).map(|person| bench.dial(person, rooms[person / ROOM])).collect();
    fleet.add(bench.connect(dials).await?, |_| false).await?;
    let connecting = started.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs_f64(bench.args.warm_up)).await;
    let opened = Look::after(bench).await?;
    tokio::time::sleep(Duration::from_secs_f64(bench.args.duration)).await;
    let rested = Look::after(bench).await?;
    let memory_after = bench.server.watched.rss_kib()?;
    let tally = fleet.take().await?;

    let per_connection = |(before, after): (u64, u64)| after.saturating_sub(before) as f64 / count as f64;
    let mut row = Row {
        scenario: format!("idle {count}"),
        load: "heartbeats".to_owned(),
        kib_per_connection: memory_before.zip(memory_after).map(per_connection),
        lost: tally.closed,
        ..Row::default()
    };
    row.figure("connections_per_s", count as f64 / connecting);
    let mut note = format!("{:.0} connections opened a second", count as f64 / connecting);
    if let Some(cpu) = opened.cpu_since(&before) {
        row.figure("cpu_ms_per_connect", cpu / count as f64 * 1_000.0);
        note += &format!(" at {:.2} ms CPU each", cpu / count as f64 * 1_000.0);
    }
    if let Some(cpu) = rested.cpu_since(&opened) {
        let share = cpu / rested.seconds_since(&opened) * 100.0;
        row.figure("cpu_percent_at_rest", share);
        note += &format!(", then {share:.1} % of a core with a heartbeat every 20 s");
    }
    if count < bench.args.connections {
        note += &format!("; {} asked for, the limit of open files is {files}", bench.args.connections);
    }
    if tally.closed > 0 {
        note += &format!("; {} connections were closed", tally.closed);
    }
    row.note = note;
    Ok(vec![row])
}
