//! The indexer of OpenSearch: the consumer that keeps one index for all nodes up to date.
//!
//! It gathers which messages changed, and puts them in many at once: a thousand, or what there is when its places are to be kept. If
//! there is no index, it makes one from all messages, which is searched when it has them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::indexer::{Reads, down};
use super::{Consumer, Trouble};
use crate::clock::Clock;
use crate::domain::event::Event;
use crate::domain::id::StreamId;
use crate::domain::search::document::touched;
use crate::domain::search::wanted::Key;
use crate::storage::Store;
use crate::storage::search::REMOTE;
use crate::storage::search::index::NOTHING;
use crate::storage::search::opensearch::Remote;

/// How many messages are put in at once.
const BULK: usize = 1_000;
/// How many of them are read and sent at once: each may be long.
const PIECE: usize = 100;

/// The consumer.
pub struct RemoteIndexer {
    reads: Reads,
    clock: Clock,
    index: Arc<Remote>,
    /// The one behind the alias.
    name: String,
    /// What changed since it was put in.
    changed: BTreeSet<Key>,
}

impl RemoteIndexer {
    /// Makes the consumer. It asks OpenSearch nothing yet.
    #[must_use]
    pub fn new(store: Store, clock: Clock, index: Arc<Remote>) -> RemoteIndexer {
        RemoteIndexer { reads: Reads(store), clock, index, name: String::new(), changed: BTreeSet::new() }
    }

    /// Makes an index of all messages there are, and has it searched.
    async fn build(&self) -> Result<String, Trouble> {
        let name = self.index.make(self.clock.now()).await.map_err(|error| down(&error))?;
        tracing::info!(index = name, "building the search index");
        let (mut after, mut messages) = (NOTHING, 0);
        loop {
            let (found, last) = self.reads.behind(after).await?;
            messages += found.len();
            for piece in found.chunks(PIECE) {
                self.index.put(&name, piece, &[], false).await.map_err(|error| down(&error))?;
            }
            let Some(last) = last else { break };
            after = last;
        }
        self.index.publish(&name).await.map_err(|error| down(&error))?;
        tracing::info!(index = name, messages, "the search index is built");
        Ok(name)
    }

    /// Puts in what changed.
    async fn put(&mut self) -> Result<(), Trouble> {
        let keys: Vec<Key> = self.changed.iter().copied().collect();
        for piece in keys.chunks(PIECE) {
            let (found, gone) = self.reads.documents(piece).await?;
            self.index.put(&self.name, &found, &gone, false).await.map_err(|error| down(&error))?;
        }
        self.changed.clear();
        Ok(())
    }
}

impl Consumer for RemoteIndexer {
    const NAME: &'static str = REMOTE;
    const OF_CHANNELS: bool = true;
    const KEEP_EVERY: Duration = Duration::from_secs(1);

    async fn begin(&mut self) -> Result<Vec<(StreamId, i64)>, Trouble> {
        self.changed.clear();
        if let Some(name) = self.index.published().await.map_err(|error| down(&error))? {
            self.name = name;
            return Ok(Vec::new());
        }
        // What happens from now on is followed.
        let places = self.reads.heads().await?;
        self.name = self.build().await?;
        Ok(places.into_iter().map(|(channel, seq)| (channel.into(), seq)).collect())
    }

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        self.changed.extend(events.iter().flat_map(touched));
        if self.changed.len() >= BULK { self.put().await } else { Ok(()) }
    }

    async fn keep(&mut self, _: &[(StreamId, i64)]) -> Result<(), Trouble> {
        self.put().await?;
        self.index.put(&self.name, &[], &[], true).await.map_err(|error| down(&error))
    }
}
