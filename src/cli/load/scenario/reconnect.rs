//! Everybody is cut off at once, misses messages, comes back at once and resumes: how long until the last has caught up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};

use super::Look;
use crate::cli::load::bench::Bench;
use crate::cli::load::dial::{Dial, connect};
use crate::cli::load::fleet::{Fleet, Goal};
use crate::cli::load::report::Row;
use crate::cli::load::sender::{Pace, Pen, Sending};
use crate::cli::load::stats::Latency;

/// How long the last one may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let (clients, missed) = (bench.args.clients, bench.args.missed);
    ensure!((1..=1_000).contains(&clients) && missed > 0, "1 to 1,000 clients miss at least one message");
    let room = bench.room(0..clients + 1).await?;
    let fleet = Fleet::start(bench.args.threads, bench.ticks)?;
    fleet.add(bench.connect((0..clients).map(|person| bench.dial(person, room)).collect()).await?, |_| false).await?;
    // Who sends stays connected, so they are received apart.
    let desk = Fleet::start(1, bench.ticks)?;
    let pens = desk.add(bench.connect(vec![bench.dial(clients, room)]).await?, |_| true).await?;
    let pens = pens.into_iter().map(|conn| Pen::new(conn, bench.template(room))).collect::<Result<Vec<_>>>()?;

    let places = fleet.cut().await?;
    ensure!(places.len() == clients, "{} of {clients} were still connected", places.len());
    let pace = Pace::Window { messages: 32, receivers: 1 };
    let sending = Sending::start(pens, pace, missed, Arc::clone(&desk.progress), bench.ticks)?;
    let posted = Instant::now() + PATIENCE;
    while desk.progress.delivered.load(Ordering::Relaxed) < missed {
        ensure!(Instant::now() < posted, "the messages to miss could not be posted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sending.stop()?;
    // One room, and nothing happens in it but these messages.
    let from = places.iter().map(|(_, place)| place.seq).max().context("nobody was connected")?;

    let before = Look::before(bench).await?;
    let since = bench.ticks.now();
    fleet.set_goal(Goal { seq: from + i64::try_from(missed)?, since }).await?;
    // Of several nodes, another one than before.
    let again = |(person, place)| {
        let hub = bench.server.node(person + 1);
        Dial { from: Some(place), hub, ..bench.dial(person, room) }
    };
    // All at once: that is the point.
    let mut coming = stream::iter(places.into_iter().map(|place| connect(again(place)))).buffer_unordered(clients);
    let (mut anew, mut failed) = (0, Vec::new());
    while let Some(outcome) = coming.next().await {
        match outcome {
            Ok(joined) => {
                anew += u64::from(joined.anew);
                fleet.add(vec![joined], |_| false).await?;
            }
            Err(error) => failed.push(error),
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let back = (clients - failed.len()) as u64 - anew;
    while fleet.progress.arrived.load(Ordering::Relaxed) < back && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let after = Look::after(bench).await?;

    let tally = fleet.take().await?;
    let delivered = fleet.progress.delivered.load(Ordering::Relaxed);
    let caught_up = Latency::of(&tally.caught_up);
    let mut row = Row {
        scenario: format!("reconnect {clients}"),
        load: format!("{missed} missed"),
        lost: (clients as u64 * missed).saturating_sub(delivered),
        duplicates: tally.duplicates,
        out_of_order: tally.jumps,
        lagged: tally.lagged,
        ..Row::default()
    };
    if let Some(latency) = &caught_up {
        row.figure("last_caught_up_s", latency.max / 1_000.0);
        row.note = format!("the last had caught up after {:.2} s", latency.max / 1_000.0);
    }
    row.reply = caught_up;
    if let Some(cpu) = after.cpu_since(&before) {
        row.figure("cpu_ms_per_client", cpu / clients as f64 * 1_000.0);
        row.note += &format!(", {:.2} ms CPU a client", cpu / clients as f64 * 1_000.0);
    }
    if anew > 0 {
        row.note += &format!(", {anew} sessions could not be resumed");
    }
    if let Some(error) = failed.first() {
        row.note += &format!(", {} did not come back: {error:#}", failed.len());
    }
    Ok(vec![row])
}
