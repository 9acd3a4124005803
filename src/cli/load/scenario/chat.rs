//! Rooms full of people, some of whom send: what `fanout` and `rooms` share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Look;
use crate::cli::load::bench::Bench;
use crate::cli::load::fleet::{Counts, Fleet};
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
            let half = self.phase(bench, half, "half of the most".to_owned()).await?;
            vec![most, half]
        } else {
            let rate = bench.args.rate.unwrap_or(plan.rate);
            vec![self.phase(bench, Pace::Rate(rate), format!("{rate:.0} msg/s")).await?]
        };

        let bytes = rows.iter().map(|row| row.event_bytes).max().unwrap_or(0);
        if !bench.args.no_floor && bytes > 0 && !bench.server.watched.pids.is_empty() {
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
            let row = self.phase(bench, pace, format!("most, {window} in flight")).await?;
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

    /// Puts one load on the hall and measures it, warm-up and what is still on its way at the end aside.
    async fn phase(&mut self, bench: &Bench, pace: Pace, load: String) -> Result<Row> {
        let progress = Arc::clone(&self.fleet.progress);
        self.fleet.reset().await?;
        let origin = progress.counts();
        let pens = std::mem::take(&mut self.pens);
        let sending = Sending::start(pens, pace, u64::MAX, Arc::clone(&progress), bench.ticks)?;
        tokio::time::sleep(Duration::from_secs_f64(bench.args.warm_up)).await;
        let warm_up = self.fleet.take().await?;
        let before = Look::before(bench).await?;
        let start = progress.counts();
        tokio::time::sleep(Duration::from_secs_f64(bench.args.duration)).await;
        let window = progress.counts().since(start);
        let after = Look::after(bench).await?;
        let sent;
        (self.pens, sent) = sending.stop()?;
        self.settle(origin, sent).await;

        let tally = self.fleet.take().await?;
        let all = progress.counts().since(origin);
        let seconds = after.seconds_since(&before);
        let cpu = after.cpu_since(&before);
        let cpu_for = |count: u64| cpu.filter(|_| count > 0).map(|cpu| cpu / count as f64 * 1_000.0);
        let commit_to_socket = after.commit_to_socket_since(&before);
        let at = |quantile: f64| commit_to_socket.as_ref().and_then(|buckets| buckets.quantile(quantile));
        let mut row = Row {
            scenario: self.name.clone(),
            load,
            messages_per_s: Some(window.acked as f64 / seconds),
            deliveries_per_s: Some(window.delivered as f64 / seconds),
            receive: Latency::of(&tally.receive),
            ack: Latency::of(&tally.ack),
            commit_to_socket_p50_ms: at(0.5),
            commit_to_socket_p99_ms: at(0.99),
            commit_to_socket_p999_ms: at(0.999),
            cpu_s_per_1000: cpu_for(window.delivered),
            cpu_ms_per_message: cpu_for(window.acked),
            event_bytes: tally.event_bytes(),
            lost: (all.acked * self.members).saturating_sub(all.delivered),
            duplicates: tally.duplicates + warm_up.duplicates,
            out_of_order: tally.jumps + warm_up.jumps,
            lagged: tally.lagged + warm_up.lagged,
            note: note(&tally, sent, all, [cpu, after.own_cpu_since(&before)], seconds),
            ..Row::default()
        };
        if let Some((forwarded, told)) = after.hops_since(&before)
            && bench.server.nodes() > 1
        {
            let each = |count: f64| count / window.acked.max(1) as f64;
            row.figure("forwarded_per_message", each(forwarded));
            row.figure("told_per_message", each(told));
            row.note += &format!(", {:.2} forwarded and {:.2} told a message", each(forwarded), each(told));
        }
        Ok(row)
    }

    /// Waits for whatever is on its way, for as long as anything still comes.
    async fn settle(&self, origin: Counts, sent: u64) {
        let (mut last, mut moved) = (origin, Instant::now());
        while moved.elapsed() < Duration::from_secs(5) {
            let now = self.fleet.progress.counts();
            let all = now.since(origin);
            if all.acked + all.refused >= sent && all.delivered >= all.acked * self.members {
                return;
            }
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Says what else was seen; `cpu` is the server's and the generator's, over so many `seconds`.
fn note(tally: &Tally, sent: u64, all: Counts, cpu: [Option<f64>; 2], seconds: f64) -> String {
    let mut parts = vec![format!("{:.1} events a read", tally.events as f64 / tally.reads.max(1) as f64)];
    for (cpu, who) in cpu.into_iter().zip(["server", "generator"]) {
        parts.extend(cpu.map(|cpu| format!("{who} at {:.0} % of a core", cpu / seconds * 100.0)));
    }
    for (count, what) in [
        (all.refused, "refused"),
        (sent.saturating_sub(all.refused + all.acked), "never answered"),
        (tally.closed, "connections closed"),
        (tally.lagged, "lags"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}
