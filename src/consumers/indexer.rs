//! The indexer: the consumer that keeps this node's search index up to date. [`Reads`] is what it has in common with that of
//! OpenSearch.
//!
//! An event only says which messages look different now; they are read as they are and put into the index. So it does not matter how
//! often, or after what else, an event is given. An index that is new is built from all messages there are, and goes on from where the
//! channels were when that began; built half, it is built on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Consumer, Trouble};
use crate::domain::event::Event;
use crate::domain::id::{ChannelId, StreamId};
use crate::domain::search::document::{Document, touched};
use crate::domain::search::wanted::Key;
use crate::storage::search::embedded::Embedded;
use crate::storage::search::index::{IndexError, NOTHING};
use crate::storage::search::rows::{AT_ONCE, all, count, documents, heads};
use crate::storage::{Db, Store, StoreError, events};

/// How many messages are read at once while an index is built.
const PAGE: i64 = 1_000;
/// After how many of them it is kept how far that is.
const KEEP: usize = 50_000;
/// How many channels are looked at at once.
const CHANNELS: i64 = 1_000;

/// Reads what an index is to have.
pub(super) struct Reads(pub(super) Store);

impl Reads {
    async fn read<T>(&self, what: impl AsyncFnOnce(&mut Db) -> Result<T, StoreError>) -> Result<T, Trouble> {
        let read = Box::pin(async {
            let mut db = self.0.read_for("search").await?;
            what(&mut db).await
        });
        self.0.in_time(read).await.map_err(|error: StoreError| Trouble::Down(error.to_string()))
    }

    /// Returns how far all channels are.
    pub(super) async fn heads(&self) -> Result<Vec<(ChannelId, i64)>, Trouble> {
        let (mut all, mut last) = (Vec::new(), ChannelId(Uuid::nil()));
        loop {
            let page = self.read(async |db| heads(db, last, CHANNELS).await).await?;
            let Some((end, _)) = page.last() else { return Ok(all) };
            last = *end;
            all.extend(page);
        }
    }

    /// Returns messages as they are, and which of them are gone.
    pub(super) async fn documents(&self, keys: &[Key]) -> Result<(Vec<Document>, Vec<(Key, i64)>), Trouble> {
        self.read(async |db| documents(db, keys).await).await
    }

    /// Returns which messages changed in a channel behind a number, and how far that is; nothing, if none did.
    pub(super) async fn changed(
        &self,
        channel: ChannelId,
        after: i64,
    ) -> Result<Option<(BTreeSet<Key>, i64)>, Trouble> {
        let found = self.read(async |db| events::after(db, channel.into(), after, PAGE).await).await?;
        Ok(found.last().map(|last| (found.iter().flat_map(touched).collect(), last.seq)))
    }

    /// Returns how many messages an index is to have.
    pub(super) async fn count(&self) -> Result<u64, Trouble> {
        self.read(async |db| count(db).await).await
    }

    /// Returns the next messages behind one, and the last of them if there may be more.
    pub(super) async fn behind(&self, after: Key) -> Result<(Vec<Document>, Option<Key>), Trouble> {
        self.read(async |db| all(db, after, PAGE).await).await
    }
}

/// Says that an index cannot do it now.
pub(super) fn down(error: &IndexError) -> Trouble {
    Trouble::Down(error.to_string())
}

/// The consumer.
pub struct Indexer {
    reads: Reads,
    index: Arc<Embedded>,
}

impl Indexer {
    /// Makes the consumer.
    #[must_use]
    pub fn new(store: Store, index: Arc<Embedded>) -> Indexer {
        Indexer { reads: Reads(store), index }
    }

    /// Has the index do something that takes its time.
    async fn index(
        &self,
        what: impl FnOnce(&Embedded) -> Result<(), IndexError> + Send + 'static,
    ) -> Result<(), Trouble> {
        let index = self.index.clone();
        let done = tokio::task::spawn_blocking(move || what(&index)).await;
        done.map_err(|error| Trouble::Down(error.to_string()))?.map_err(|error| down(&error))
    }

    /// Returns whether the index is of a database that went on further than this one: an older one was put in its place.
    async fn is_ahead(&self) -> Result<bool, Trouble> {
        let heads: HashMap<ChannelId, i64> = self.reads.heads().await?.into_iter().collect();
        let is_ahead =
            self.index.places().iter().any(|(channel, place)| heads.get(channel).is_none_or(|head| head < place));
        if is_ahead {
            tracing::warn!("the search index is ahead of the database, which must be an older one: it is made anew");
        }
        Ok(is_ahead)
    }

    /// Puts in all messages behind one.
    async fn build(&self, mut after: Key) -> Result<(), Trouble> {
        let mut since_kept = 0;
        loop {
            let (found, last) = self.reads.behind(after).await?;
            since_kept += found.len();
            self.index(move |index| index.put(&found, &[])).await?;
            let Some(last) = last else { break };
            after = last;
            if since_kept >= KEEP {
                self.index(move |index| index.commit(&[], Some(last))).await?;
                tracing::info!(messages = self.index.len(), "building the search index");
                since_kept = 0;
            }
        }
        self.index(|index| index.commit(&[], None)).await?;
        tracing::info!(messages = self.index.len(), "the search index is built");
        Ok(())
    }
}

impl Consumer for Indexer {
    const NAME: &'static str = "search";
    const IS_LOCAL: bool = true;
    const OF_CHANNELS: bool = true;
    // What is not in the index yet is found all the same.
    const GATHER: Duration = Duration::from_millis(400);

    async fn begin(&mut self) -> Result<Vec<(StreamId, i64)>, Trouble> {
        if self.begins_again() || self.is_ahead().await? {
            self.index(Embedded::clear).await?;
        }
        if let Some(after) = self.index.unbuilt() {
            if after == NOTHING {
                // What happens from now on is followed.
                let places = self.reads.heads().await?;
                self.index(move |index| index.commit(&places, Some(after))).await?;
            }
            self.build(after).await?;
        }
        let places = self.index.places();
        Ok(places.iter().map(|(channel, seq)| ((*channel).into(), *seq)).collect())
    }

    fn begins_again(&self) -> bool {
        self.index.is_to_be_rebuilt()
    }

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        let keys: BTreeSet<Key> = events.iter().flat_map(touched).collect();
        let keys: Vec<Key> = keys.into_iter().collect();
        for some in keys.chunks(AT_ONCE) {
            let (found, gone) = self.reads.documents(some).await?;
            let gone: Vec<Key> = gone.into_iter().map(|(key, _)| key).collect();
            self.index(move |index| index.put(&found, &gone)).await?;
        }
        Ok(())
    }

    async fn keep(&mut self, places: &[(StreamId, i64)]) -> Result<(), Trouble> {
        let places: Vec<(ChannelId, i64)> =
            places.iter().map(|(stream, seq)| (ChannelId::from(*stream), *seq)).collect();
        self.index(move |index| index.commit(&places, None)).await
    }
}
