//! Rooms full of people, some of whom send: what `fanout` and `rooms` share.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Look;
use crate::cli::load::bench::Bench;
use crate::cli::load::fleet::Fleet;
use crate::cli::load::floor;
use crate::cli::load::report::Row;
use crate::cli::load::sender::{Pace, Pen, Sending};
use crate::cli::load::stats::{Latency, Tally};

/// Rooms of equal size whose members are all connected.
pub(super) struct Hall {
    fleet: Fleet,
    pens: Vec<Pen>,
    connections: usize,
    /// How many receive each message.
    members: u64,
    name: String,
}

/// Which loads to put on a hall.
pub(super) struct Plan {
    /// Messages a second, if nothing else is asked for.
    pub(super) rate: f64,
    /// Windows to try, if the highest rate is asked for.
    pub(super) windows: [u64; 3],
}

impl Hall {
    /// Makes `rooms` of `members` each, and connects everybody. The first `senders` of each room send.
    pub(super) async fn open(
        bench: &Bench,
        name: String,
        rooms: usize,
        members: usize,
        senders: usize,
    ) -> Result<Hall> {
        ensure!(rooms > 0 && (1..=1_000).contains(&members), "a room has 1 to 1,000 members");
        let channels = bench.rooms(rooms, members).await?;
        let connections = rooms * members;
        let dials = (0..connections).map(|person| bench.dial(person, channels[person / members])).collect();
        let joined = bench.connect(dials).await?;
        let fleet = Fleet::start(bench.args.threads, bench.ticks)?;
        let sends = |person: usize| person % members < senders.max(1);
        let conns = fleet.add(joined, sends).await?;
        let senders_and_rooms =
            (0..connections).filter(|person| sends(*person)).map(|person| channels[person / members]);
        let pens = conns.into_iter().zip(senders_and_rooms).map(|(conn, room)| Pen::new(conn, bench.template(room)));
        let pens = pens.collect::<Result<_>>()?;
        Ok(Hall { fleet, pens, connections, members: members as u64, name })
    }

    /// Runs the loads that the options ask for.
    pub(super) async fn measure(mut self, bench: &Bench, plan: &Plan) -> Result<Vec<Row>> {
        let mut rows = if bench.args.saturate {
            let windows = if bench.args.window.is_empty() { plan.windows.to_vec() } else { bench.args.window.clone() };
            let most = self.most(bench, &windows).await?;
            let half = Pace::Rate((most.messages_per_s.unwrap_or(0.0) / 2.0).max(1.0));
            let half = self.phase(bench, half, "half of the most".to_owned()).await?.0;
            vec![most, half]
        } else {
            let rate = bench.args.rate.unwrap_or(plan.rate);
            vec![self.phase(bench, Pace::Rate(rate), format!("{rate:.0} msg/s")).await?.0]
        };

        let bytes = rows.iter().map(|row| row.event_bytes).max().unwrap_or(0);
        if !bench.args.no_floor && bytes > 0 && bench.server.watched.pid.is_some() {
            let floor = floor::measure(self.connections.min(1_000), bytes).await?;
            for row in &mut rows {
                row.floor_cpu_s_per_1000 = Some(floor);
                row.times_floor = row.cpu_s_per_1000.map(|cost| cost / floor);
            }
        }
        Ok(rows)
    }

    /// Tries one window after another and returns the one that carried the most; faults of any count.
    async fn most(&mut self, bench: &Bench, windows: &[u64]) -> Result<Row> {
        let mut best: Option<Row> = None;
        let mut faults = (0, 0, 0, 0);
        for window in windows {
            let pace = Pace::Window { messages: *window, receivers: self.members };
            let (row, _) = self.phase(bench, pace, format!("most, {window} in flight")).await?;
            faults =
                (faults.0 + row.lost, faults.1 + row.duplicates, faults.2 + row.out_of_order, faults.3 + row.lagged);
            if best.as_ref().is_none_or(|best| row.messages_per_s > best.messages_per_s) {
                best = Some(row);
            }
        }
        let mut best = best.ok_or_else(|| anyhow::anyhow!("no window to try"))?;
        (best.lost, best.duplicates, best.out_of_order, best.lagged) = faults;
        Ok(best)
    }

    async fn phase(&mut self, bench: &Bench, pace: Pace, load: String) -> Result<(Row, Tally)> {
        let progress = &self.fleet.progress;
        let counts = || {
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            (read(&progress.delivered), read(&progress.acked), read(&progress.refused))
        };
        self.fleet.reset().await?;
        let origin = counts();
        let pens = std::mem::take(&mut self.pens);
        let sending = Sending::start(pens, pace, u64::MAX, std::sync::Arc::clone(progress), bench.ticks)?;
        tokio::time::sleep(Duration::from_secs_f64(bench.args.warm_up)).await;
        let warm_up = self.fleet.take().await?;
        let (before, start) = (Look::take(bench).await?, counts());
        tokio::time::sleep(Duration::from_secs_f64(bench.args.duration)).await;
        let (end, after) = (counts(), Look::take(bench).await?);
        let (pens, sent) = sending.stop()?;
        self.pens = pens;

        // Whatever is on its way is waited for as long as anything still comes.
        let (mut last, mut moved) = (counts(), Instant::now());
        loop {
            let (delivered, acked, refused) = counts();
            let expected = (acked - origin.1) * self.members;
            let answered = acked + refused - origin.1 - origin.2;
            if (answered >= sent && delivered - origin.0 >= expected) || moved.elapsed() > Duration::from_secs(5) {
                break;
            }
            if (delivered, acked, refused) != last {
                (last, moved) = ((delivered, acked, refused), Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        let tally = self.fleet.take().await?;
        let (delivered, acked, refused) = counts();
        let (expected, got) = ((acked - origin.1) * self.members, delivered - origin.0);
        let seconds = after.seconds_since(&before);
        let (deliveries, messages) = ((end.0 - start.0) as f64, (end.1 - start.1) as f64);
        let cpu = after.cpu_since(&before);
        let commit_to_socket = after.commit_to_socket_since(&before);
        let at = |quantile: f64| commit_to_socket.as_ref().and_then(|buckets| buckets.quantile(quantile));
        let row = Row {
            scenario: self.name.clone(),
            load,
            messages_per_s: Some(messages / seconds),
            deliveries_per_s: Some(deliveries / seconds),
            receive: Latency::of(&tally.receive),
            ack: Latency::of(&tally.ack),
            commit_to_socket_p50_ms: at(0.5),
            commit_to_socket_p99_ms: at(0.99),
            commit_to_socket_p999_ms: at(0.999),
            cpu_s_per_1000: cpu.filter(|_| deliveries > 0.0).map(|cpu| cpu / deliveries * 1_000.0),
            cpu_ms_per_message: cpu.filter(|_| messages > 0.0).map(|cpu| cpu / messages * 1_000.0),
            event_bytes: tally.event_bytes(),
            lost: expected.saturating_sub(got),
            duplicates: tally.duplicates + warm_up.duplicates,
            out_of_order: tally.jumps + warm_up.jumps,
            lagged: tally.lagged + warm_up.lagged,
            note: note(&tally, sent, refused - origin.2, acked - origin.1, cpu.map(|cpu| cpu / seconds)),
            ..Row::default()
        };
        Ok((row, tally))
    }
}

fn note(tally: &Tally, sent: u64, refused: u64, acked: u64, cores: Option<f64>) -> String {
    let mut parts = vec![format!("{:.1} events a read", tally.events as f64 / tally.reads.max(1) as f64)];
    parts.extend(cores.map(|cores| format!("server at {:.0} % of a core", cores * 100.0)));
    for (count, what) in [
        (refused, "refused"),
        (sent.saturating_sub(refused + acked), "never answered"),
        (tally.closed, "connections closed"),
        (tally.lagged, "lags"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}
