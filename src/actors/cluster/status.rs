//! What operators see of the cluster: each node's own report, which it leaves in the database, and how this node sees it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actors::Hub;
use crate::clock::Timestamp;
use crate::domain::id::NodeId;
use crate::storage::postgres::Weakness;
use crate::storage::{StoreError, nodes};

/// What a node says of itself, every two seconds. All counts are since its start.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Report {
    /// The release.
    pub version: String,
    /// Whether its bus works.
    pub bus: bool,
    /// Open sessions.
    pub sessions: usize,
    /// Streams that it listens to.
    pub streams: usize,
    /// Channels that it took over.
    pub taken_over: u64,
    /// Its writes as an owner that another node's came before, or that had lost the channel; all were tried again.
    pub fenced: u64,
    /// Commands that it sent to their owner.
    pub forwarded: u64,
    /// Commands that it carried out beside an owner who could not be reached.
    pub beside: u64,
    /// Commands that it took back from an owner who did not answer; they count as `beside`, too.
    pub taken_back: u64,
    /// Times that events of a stream were missing here and read from the log.
    pub repaired: u64,
}

/// How a node stands, as another one sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is the one that answers.
    This,
    /// It is a member, and commands reach it.
    Up,
    /// It is a member by the database, but the bus does not bring anything of it.
    Unreachable,
    /// It is on its way out, or dead.
    Gone,
}

/// One node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// This run of it.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How it stands, as the node that answers sees it.
    pub state: Standing,
    /// When it started, by its own clock.
    pub started_at: Timestamp,
    /// Channels that it owns by the database.
    pub owned_channels: i64,
    /// The greatest epoch of these: how often the one that changed hands most often did.
    pub newest_epoch: i64,
    /// What it says of itself.
    pub report: Report,
}

/// The cluster, as one node sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The node that answers.
    pub node: String,
    /// Whether it shares its database with others.
    pub clustered: bool,
    /// Whether what others commit may be heard late, because the bus or one of them cannot be reached.
    pub degraded: bool,
    /// Settings of the database that could be better for a hub.
    #[serde(default)]
    pub database: Vec<Weakness>,
    /// All nodes, by name.
    pub nodes: Vec<Node>,
}

impl Hub {
    /// Returns what this node says of itself.
    pub(super) fn report(&self) -> Report {
        let tally = self.writer.tally();
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sessions: self.directory.sessions_alive(),
            streams: self.directory.watched().len(),
            taken_over: tally.taken_over.load(Ordering::Relaxed),
            fenced: tally.fenced.load(Ordering::Relaxed),
            repaired: self.repaired.load(Ordering::Relaxed),
            ..Report::default()
        };
        if let Some(cluster) = &self.cluster {
            let counts = &cluster.counts;
            report.bus = *cluster.bus.up().borrow();
            report.forwarded = counts.forwarded.load(Ordering::Relaxed);
            report.beside = counts.beside.load(Ordering::Relaxed);
            report.taken_back = counts.taken_back.load(Ordering::Relaxed);
        }
        report
    }

    /// Returns the cluster as this node sees it; of a node by itself, that node.
    pub async fn cluster_status(&self) -> Result<Status, StoreError> {
        let stored = self.store.in_time(async {
            let mut db = self.store.read().await?;
            let rows = match &self.cluster {
                Some(_) => nodes::all(&mut db).await?,
                None => Vec::new(),
            };
            let owners = nodes::owners(&mut db).await?;
            drop(db);
            Ok::<_, StoreError>((rows, owners, self.store.weaknesses().await?))
        });
        let (rows, owners, database) = Box::pin(stored).await?;
        let owners: HashMap<NodeId, (i64, i64)> = owners.into_iter().map(|(id, n, epoch)| (id, (n, epoch))).collect();
        let me = Node {
            id: self.id,
            name: self.node.clone(),
            state: Standing::This,
            started_at: self.started_at,
            owned_channels: 0,
            newest_epoch: 0,
            report: self.report(),
        };
        let others = rows.into_iter().filter(|row| row.id != self.id).map(|row| Node {
            id: row.id,
            state: self.standing_of(row.id),
            name: row.name,
            started_at: row.started_at,
            owned_channels: 0,
            newest_epoch: 0,
            report: serde_json::from_str(&row.report).unwrap_or_default(),
        });
        let mut nodes: Vec<Node> = std::iter::once(me).chain(others).collect();
        for node in &mut nodes {
            (node.owned_channels, node.newest_epoch) = owners.get(&node.id).copied().unwrap_or_default();
        }
        nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        let degraded = self.cluster.as_ref().is_some_and(|cluster| cluster.is_degraded());
        let (node, clustered) = (self.node.clone(), self.cluster.is_some());
        Ok(Status { node, clustered, degraded, database, nodes })
    }

    fn standing_of(&self, node: NodeId) -> Standing {
        let now = Instant::now();
        let Some(cluster) = &self.cluster else { return Standing::Gone };
        let core = cluster.core();
        let Some((_, peer)) = core.members.peers().find(|(id, _)| *id == node) else { return Standing::Gone };
        match (peer.is_live(now), peer.is_reachable(now)) {
            (true, true) => Standing::Up,
            (true, false) => Standing::Unreachable,
            (false, _) => Standing::Gone,
        }
    }
}
