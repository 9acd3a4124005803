//! Asks the nodes how they are.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::Cluster;
use super::sight::{Seen, Served, Sight, State, metric};
use crate::actors::cluster::status::{Report, Standing, Status};
use crate::client::Client;
use crate::http::operator::Order;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_millis(800);

/// What was known at the last look.
#[derive(Default)]
pub(super) struct Watch {
    nodes: Vec<Known>,
    degraded: bool,
}

#[derive(Clone, Default)]
struct Known {
    counted: Option<Counted>,
    channels: i64,
    report: Report,
}

#[derive(Clone, Copy)]
struct Counted {
    at: Instant,
    writes: f64,
    deliveries: f64,
}

struct Answer {
    /// Nothing, if the node cannot ask the database.
    status: Option<Status>,
    sockets: u64,
    counted: Counted,
}

async fn ask(client: Option<Client>) -> Option<Answer> {
    let client = client?.with_timeout(PATIENCE);
    let status = client.post("/operator", &Order::Cluster).await.ok();
    let text = client.text("/metrics").await.ok()?;
    let writes = metric(&text, "colink_commit_batch_writes_sum");
    let counted = Counted { at: Instant::now(), writes, deliveries: metric(&text, "colink_deliveries_total") };
    Some(Answer { status, sockets: metric(&text, "colink_connections").max(0.0) as u64, counted })
}

impl Watch {
    /// Looks at everything.
    pub(super) async fn look(&mut self, cluster: &mut Cluster) -> Sight {
        let answers = join_all(cluster.nodes.iter().map(|node| ask(node.operator()))).await;
        self.nodes.resize(answers.len(), Known::default());
        let first = answers.iter().flatten().find_map(|answer| answer.status.as_ref());
        let mut nodes = Vec::new();
        for ((node, answer), known) in cluster.nodes.iter_mut().zip(&answers).zip(&mut self.nodes) {
            let state = match (node.runs(), answer) {
                (Some(true), Some(_)) => State::Up,
                (Some(true), None) => State::Silent,
                (Some(false), _) => State::Ended,
                (None, _) => State::Killed,
            };
            if let Some(status) = first {
                // Of all its runs: what a dead one owned is its own until somebody writes there.
                let runs = status.nodes.iter().filter(|run| run.name == node.name);
                known.channels = runs.map(|run| run.owned_channels).sum();
            }
            let now = answer.as_ref().map(|answer| answer.counted);
            let before = std::mem::replace(&mut known.counted, now);
            let (writes, deliveries) = now.zip(before).map_or((0.0, 0.0), |(now, before)| now.since(before));
            let status = answer.as_ref().and_then(|answer| answer.status.as_ref());
            if let Some(this) = status.and_then(|status| status.nodes.iter().find(|run| run.state == Standing::This)) {
                known.report = this.report.clone();
            } else if matches!(state, State::Killed | State::Ended) {
                known.report = Report::default();
            }
            nodes.push(Seen {
                name: node.name.clone(),
                url: node.url.clone(),
                state,
                sockets: answer.as_ref().map_or(0, |answer| answer.sockets),
                writes,
                deliveries,
                channels: known.channels,
                report: known.report.clone(),
            });
        }
        let answering = || nodes.iter().filter(|node| node.state == State::Up);
        let heard = answering().next().map(|_| answering().any(|node| node.report.bus));
        let services = vec![
            Served { name: "Postgres", up: cluster.postgres.runs() },
            Served { name: "Redis", up: cluster.redis.runs().filter(|runs| !runs).or(heard) },
        ];
        if first.is_some() {
            self.degraded =
                answers.iter().flatten().filter_map(|answer| answer.status.as_ref()).any(|status| status.degraded);
        }
        Sight { nodes, services, degraded: self.degraded, talk: cluster.talk.as_ref().map(super::Talk::talked) }
    }
}

impl Counted {
    /// Returns what a second brought since another look. A node that was started anew begins at 0.
    fn since(self, before: Counted) -> (f64, f64) {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        ((self.writes - before.writes).max(0.0) / seconds, (self.deliveries - before.deliveries).max(0.0) / seconds)
    }
}
