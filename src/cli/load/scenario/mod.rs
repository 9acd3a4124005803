//! The scenarios, one file each.

mod ack;
mod chat;
mod fanout;
mod history;
mod idle;
mod reconnect;
mod rooms;
pub(super) mod search;

use std::time::Instant;

use anyhow::Result;

use super::args::Scenario;
use super::bench::Bench;
use super::procfs::Watched;
use super::prometheus::{Buckets, counter};
use super::report::Row;

/// Runs one scenario and returns what it measured.
pub(super) async fn run(bench: &mut Bench, scenario: Scenario) -> Result<Vec<Row>> {
    match scenario {
        Scenario::Idle => idle::run(bench).await,
        Scenario::Fanout => fanout::run(bench).await,
        Scenario::Rooms => rooms::run(bench).await,
        Scenario::Ack => ack::run(bench).await,
        Scenario::History => history::run(bench).await,
        Scenario::Reconnect => reconnect::run(bench).await,
        Scenario::Search => search::run(bench).await,
    }
}

/// The server's processor time and its own histogram at one moment; two of them make a measured window.
struct Look {
    at: Instant,
    cpu: Option<f64>,
    /// The generator's own.
    own_cpu: Option<f64>,
    metrics: Option<Metrics>,
}

/// What all nodes counted.
#[derive(Default)]
struct Metrics {
    commit_to_socket: Buckets,
    /// Commands that were sent to another node, and messages that went over the bus, each counted where it was sent.
    forwarded: f64,
    told: f64,
}

impl Look {
    /// Looks at the start of a window: the page of metrics first, so that reading it is not charged to the window.
    async fn before(bench: &Bench) -> Result<Look> {
        let metrics = metrics(bench).await?;
        Ok(Look { metrics, ..Look::now(bench)? })
    }

    /// Looks at the end of a window: the page of metrics last.
    async fn after(bench: &Bench) -> Result<Look> {
        let now = Look::now(bench)?;
        Ok(Look { metrics: metrics(bench).await?, ..now })
    }

    fn now(bench: &Bench) -> Result<Look> {
        let own = Watched { pids: vec![std::process::id()], postgres: false, redis: false };
        let (cpu, own_cpu) = (bench.server.watched.cpu_seconds()?, own.cpu_seconds()?);
        Ok(Look { at: Instant::now(), cpu, own_cpu, metrics: None })
    }

    fn seconds_since(&self, earlier: &Look) -> f64 {
        self.at.duration_since(earlier.at).as_secs_f64()
    }

    fn cpu_since(&self, earlier: &Look) -> Option<f64> {
        Some(self.cpu? - earlier.cpu?)
    }

    fn own_cpu_since(&self, earlier: &Look) -> Option<f64> {
        Some(self.own_cpu? - earlier.own_cpu?)
    }

    fn commit_to_socket_since(&self, earlier: &Look) -> Option<Buckets> {
        Some(self.metrics.as_ref()?.commit_to_socket.since(&earlier.metrics.as_ref()?.commit_to_socket))
    }

    fn hops_since(&self, earlier: &Look) -> Option<(f64, f64)> {
        let (now, then) = (self.metrics.as_ref()?, earlier.metrics.as_ref()?);
        Some((now.forwarded - then.forwarded, now.told - then.told))
    }
}

async fn metrics(bench: &Bench) -> Result<Option<Metrics>> {
    let pages = bench.server.metrics().await?;
    Ok(pages.map(|pages| Metrics {
        commit_to_socket: Buckets::parse(&pages, "colink_commit_to_socket_seconds"),
        forwarded: counter(&pages, "colink_commands_forwarded_total"),
        told: counter(&pages, "colink_bus_published_total"),
    }))
}
