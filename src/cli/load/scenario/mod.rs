//! The scenarios, one file each.

mod ack;
mod chat;
mod fanout;
mod history;
mod idle;
mod reconnect;
mod rooms;

use std::time::Instant;

use anyhow::Result;

use super::args::Scenario;
use super::bench::Bench;
use super::procfs::Watched;
use super::prometheus::Buckets;
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
    }
}

/// The server's processor time and its own histogram at one moment; two of them make a measured window.
struct Look {
    at: Instant,
    cpu: Option<f64>,
    /// The generator's own.
    own_cpu: Option<f64>,
    commit_to_socket: Option<Buckets>,
}

impl Look {
    /// Looks at the start of a window: the page of metrics first, so that reading it is not charged to the window.
    async fn before(bench: &Bench) -> Result<Look> {
        let commit_to_socket = metrics(bench).await?;
        Ok(Look { commit_to_socket, ..Look::now(bench)? })
    }

    /// Looks at the end of a window: the page of metrics last.
    async fn after(bench: &Bench) -> Result<Look> {
        let now = Look::now(bench)?;
        Ok(Look { commit_to_socket: metrics(bench).await?, ..now })
    }

    fn now(bench: &Bench) -> Result<Look> {
        let own = Watched { pid: Some(std::process::id()), postgres: false };
        let (cpu, own_cpu) = (bench.server.watched.cpu_seconds()?, own.cpu_seconds()?);
        Ok(Look { at: Instant::now(), cpu, own_cpu, commit_to_socket: None })
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
        Some(self.commit_to_socket.as_ref()?.since(earlier.commit_to_socket.as_ref()?))
    }
}

async fn metrics(bench: &Bench) -> Result<Option<Buckets>> {
    // A server need not show its metrics to this administrator.
    let page = bench.server.admin()?.text("/metrics").await.ok();
    Ok(page.map(|page| Buckets::parse(&page, "colink_commit_to_socket_seconds")))
}
