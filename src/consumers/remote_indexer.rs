//! The indexer of OpenSearch: the consumer that keeps one index for all nodes up to date.
//!
//! It gathers which messages changed, and puts them in many at once: a thousand, or what there is when its places are to be kept. If
//! there is no index, it makes one from all messages, which is searched when it has them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

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
use crate::storage::search::rows::AT_ONCE;

/// How many messages are put in at once.
const BULK: usize = 1_000;
/// How often what happened meanwhile is put into an index before it is searched.
const ROUNDS: usize = 5;

/// How far each channel is.
type Places = HashMap<ChannelId, i64>;

/// Makes an index of all messages there are, and has it searched. Returns how far it is in each channel. Told is how many messages
/// it has.
async fn build(
    reads: &Reads,
    index: &Remote,
    clock: &Clock,
    told: impl Fn(u64) + Send + Sync,
) -> Result<Places, Trouble> {
    let name = index.make(clock.now()).await.map_err(|error| down(&error))?;
    tracing::info!(index = name, "building the search index");
    let built = Box::pin(fill(reads, index, &name, told)).await;
    if let Err(error) = &built {
        tracing::warn!(index = name, %error, "the search index was not built, and is removed");
        // If it cannot be now, it is in nobody's way.
        let _ = index.remove(&name).await;
    }
    built
}

async fn fill(reads: &Reads, index: &Remote, name: &str, told: impl Fn(u64) + Send + Sync) -> Result<Places, Trouble> {
    let mut places: Places = reads.heads().await?.into_iter().collect();
    let (mut after, mut messages) = (NOTHING, 0);
    loop {
        let (found, last) = reads.behind(after).await?;
        for piece in found.chunks(AT_ONCE) {
            index.put(Some(name), piece, &[]).await.map_err(|error| down(&error))?;
            messages += piece.len() as u64;
            told(messages);
        }
        let Some(last) = last else { break };
        after = last;
    }
    // What happened meanwhile, and again what happened during that: so little is left when it is searched.
    for _ in 0..ROUNDS {
        if catch_up(reads, index, Some(name), &mut places).await? < BULK {
            break;
        }
    }
    index.publish(name).await.map_err(|error| down(&error))?;
    tracing::info!(index = name, messages, "the search index is built");
    Ok(places)
}

/// Puts in what changed since these places, and moves them. Returns how many messages that were.
async fn catch_up(reads: &Reads, index: &Remote, name: Option<&str>, places: &mut Places) -> Result<usize, Trouble> {
    let mut count = 0;
    for (channel, head) in reads.heads().await? {
        let place = places.entry(channel).or_default();
        while *place < head {
            let Some((changed, last)) = reads.changed(channel, *place).await? else { break };
            put(reads, index, name, &changed).await?;
            count += changed.len();
            *place = last;
        }
    }
    Ok(count)
}

/// Makes the index anew while another one is searched, and puts it in its place; whoever follows the log goes on in the new one.
/// `told` hears how many messages it has, of how many.
///
/// # Errors
/// The database or OpenSearch does not answer. What is searched stays as it was, unless the last step failed: then it is to be tried again.
pub async fn rebuild(
    store: Store,
    index: &Remote,
    clock: &Clock,
    told: impl Fn(u64, u64) + Send + Sync,
) -> Result<(), Trouble> {
    let reads = Reads(store);
    let all = reads.count().await?;
    let mut places = build(&reads, index, clock, |messages| told(messages, all)).await?;
    // What went into the one before until just now.
    catch_up(&reads, index, None, &mut places).await?;
    index.refresh().await.map_err(|error| down(&error))
}

/// Puts messages as they are now into an index.
async fn put(reads: &Reads, index: &Remote, name: Option<&str>, changed: &BTreeSet<Key>) -> Result<(), Trouble> {
    let keys: Vec<Key> = changed.iter().copied().collect();
    for piece in keys.chunks(AT_ONCE) {
        let (found, gone) = reads.documents(piece).await?;
        index.put(name, &found, &gone).await.map_err(|error| down(&error))?;
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
    /// Whether there is an index, as far as is known.
    is_there: bool,
}

impl RemoteIndexer {
    /// Makes the consumer. It asks OpenSearch nothing yet.
    #[must_use]
    pub fn new(store: Store, clock: Clock, index: Arc<Remote>) -> RemoteIndexer {
        RemoteIndexer { reads: Reads(store), clock, index, changed: BTreeSet::new(), is_there: true }
    }

    async fn put(&mut self) -> Result<(), Trouble> {
        let done = put(&self.reads, &self.index, None, &self.changed).await;
        if done.is_ok() {
            self.changed.clear();
        } else {
            // It may be gone.
            self.is_there = self.index.published().await.is_ok_and(|name| name.is_some());
        }
        done
    }
}

impl Consumer for RemoteIndexer {
    const NAME: &'static str = REMOTE;
    const OF_CHANNELS: bool = true;
    // What is not in the index yet is found all the same.
    const GATHER: Duration = Duration::from_millis(400);

    async fn begin(&mut self) -> Result<Vec<(StreamId, i64)>, Trouble> {
        self.changed.clear();
        self.is_there = true;
        if self.index.published().await.map_err(|error| down(&error))?.is_some() {
            return Ok(Vec::new());
        }
        // What happens from now on is followed.
        let places = build(&self.reads, &self.index, &self.clock, |_| ()).await?;
        Ok(places.into_iter().map(|(channel, seq)| (channel.into(), seq)).collect())
    }

    fn begins_again(&self) -> bool {
        !self.is_there
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
