//! The indexer of OpenSearch: the consumer that keeps one index for all nodes up to date.
//!
//! It gathers which messages changed, and puts them in many at once: a thousand, or what there is when its places are to be kept. If
//! there is no index, it makes one from all messages, which is searched when it has them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::indexer::{Reads, down};
use super::{Consumer, Trouble};
use crate::clock::Clock;
use crate::domain::event::Event;
use crate::domain::id::{ChannelId, StreamId};
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

/// Makes an index of all messages there are, and has it searched. Returns how far the channels were when that began: what
/// happened since is still to be put in. Told is how many messages it has.
async fn build(
    reads: &Reads,
    index: &Remote,
    clock: &Clock,
    told: impl Fn(u64) + Send + Sync,
) -> Result<Vec<(ChannelId, i64)>, Trouble> {
    let places = reads.heads().await?;
    let name = index.make(clock.now()).await.map_err(|error| down(&error))?;
    tracing::info!(index = name, "building the search index");
    let (mut after, mut messages) = (NOTHING, 0);
    loop {
        let (found, last) = reads.behind(after).await?;
        for piece in found.chunks(PIECE) {
            index.put(Some(&name), piece, &[]).await.map_err(|error| down(&error))?;
            messages += piece.len() as u64;
            told(messages);
        }
        let Some(last) = last else { break };
        after = last;
    }
    index.publish(&name).await.map_err(|error| down(&error))?;
    tracing::info!(index = name, messages, "the search index is built");
    Ok(places)
}

/// Makes the index anew while another one is searched, and puts it in its place; whoever follows the log goes on in the new one.
/// `told` hears how many messages it has, of how many.
///
/// # Errors
/// The database or OpenSearch does not answer. What is searched stays as it was.
pub async fn rebuild(
    store: Store,
    index: &Remote,
    clock: &Clock,
    told: impl Fn(u64, u64) + Send + Sync,
) -> Result<(), Trouble> {
    let reads = Reads(store);
    let all = reads.count().await?;
    let places = build(&reads, index, clock, |messages| told(messages, all)).await?;
    // Until it was published, what happened went into the one before.
    let places: HashMap<ChannelId, i64> = places.into_iter().collect();
    for (channel, head) in reads.heads().await? {
        let mut at = places.get(&channel).copied().unwrap_or(0);
        while at < head {
            let Some((changed, last)) = reads.changed(channel, at).await? else { break };
            put(&reads, index, &changed).await?;
            at = last;
        }
    }
    index.refresh().await.map_err(|error| down(&error))
}

/// Puts messages as they are now into the index that is searched.
async fn put(reads: &Reads, index: &Remote, changed: &BTreeSet<Key>) -> Result<(), Trouble> {
    let keys: Vec<Key> = changed.iter().copied().collect();
    for piece in keys.chunks(PIECE) {
        let (found, gone) = reads.documents(piece).await?;
        index.put(None, &found, &gone).await.map_err(|error| down(&error))?;
    }
    Ok(())
}

/// The consumer.
pub struct RemoteIndexer {
    reads: Reads,
    clock: Clock,
    index: Arc<Remote>,
    /// What changed since it was put in.
    changed: BTreeSet<Key>,
}

impl RemoteIndexer {
    /// Makes the consumer. It asks OpenSearch nothing yet.
    #[must_use]
    pub fn new(store: Store, clock: Clock, index: Arc<Remote>) -> RemoteIndexer {
        RemoteIndexer { reads: Reads(store), clock, index, changed: BTreeSet::new() }
    }

    async fn put(&mut self) -> Result<(), Trouble> {
        put(&self.reads, &self.index, &self.changed).await?;
        self.changed.clear();
        Ok(())
    }
}

impl Consumer for RemoteIndexer {
    const NAME: &'static str = REMOTE;
    const OF_CHANNELS: bool = true;

    async fn begin(&mut self) -> Result<Vec<(StreamId, i64)>, Trouble> {
        self.changed.clear();
        if self.index.published().await.map_err(|error| down(&error))?.is_some() {
            return Ok(Vec::new());
        }
        // What happens from now on is followed.
        let places = build(&self.reads, &self.index, &self.clock, |_| ()).await?;
        Ok(places.into_iter().map(|(channel, seq)| (channel.into(), seq)).collect())
    }

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        self.changed.extend(events.iter().flat_map(touched));
        if self.changed.len() >= BULK { self.put().await } else { Ok(()) }
    }

    async fn keep(&mut self, _: &[(StreamId, i64)]) -> Result<(), Trouble> {
        self.put().await?;
        self.index.refresh().await.map_err(|error| down(&error))
    }
}
