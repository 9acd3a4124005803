//! The indexer: the consumer that keeps this node's search index up to date.
//!
//! An event only says which messages look different now; they are read as they are and put into the index. So it does not matter how
//! often, or after what else, an event is given. An index that is new is built from all messages there are, and goes on from where the
//! channels were when that began; built half, it is built on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Consumer, Trouble};
use crate::domain::event::{Audience, Event, EventKind};
use crate::domain::id::{ChannelId, StreamId};
use crate::domain::search::document::{Document, touched};
use crate::domain::search::wanted::Key;
use crate::storage::search::Engine;
use crate::storage::search::index::{Index, IndexError, NOTHING};
use crate::storage::search::rows::{all, documents, heads};
use crate::storage::{Db, Store, StoreError};

/// How many messages are read at once while an index is built, and how many until it is looked whether to keep them.
const PAGE: i64 = 1_000;
const KEEP: usize = 50_000;
/// How many channels are looked at at once.
const CHANNELS: i64 = 1_000;

/// The consumer.
pub struct Indexer {
    store: Store,
    engine: Arc<Engine>,
}

impl Indexer {
    /// Makes the consumer.
    #[must_use]
    pub fn new(store: Store, engine: Arc<Engine>) -> Indexer {
        Indexer { store, engine }
    }

    async fn read<T>(&self, what: impl AsyncFnOnce(&mut Db) -> Result<T, StoreError>) -> Result<T, Trouble> {
        let read = Box::pin(async {
            let mut db = self.store.read_for("search").await?;
            what(&mut db).await
        });
        self.store.in_time(read).await.map_err(|error: StoreError| Trouble::Down(error.to_string()))
    }

    /// Has the index do something that takes its time.
    async fn index(&self, what: impl FnOnce(&Index) -> Result<(), IndexError> + Send + 'static) -> Result<(), Trouble> {
        let index = self.engine.index().clone();
        let done = tokio::task::spawn_blocking(move || what(&index)).await;
        done.map_err(|error| Trouble::Down(error.to_string()))?.map_err(|error| Trouble::Down(error.to_string()))
    }

    async fn put(&self, found: Vec<Document>, gone: Vec<Key>) -> Result<(), Trouble> {
        self.index(move |index| {
            let found: Vec<_> = found
                .into_iter()
                .map(|document| {
                    let forms = document.forms();
                    (document, forms)
                })
                .collect();
            index.put(&found, &gone)
        })
        .await
    }

    /// Returns how far all channels are.
    async fn heads(&self) -> Result<Vec<(ChannelId, i64)>, Trouble> {
        let (mut all, mut last) = (Vec::new(), ChannelId(Uuid::nil()));
        loop {
            let page = self.read(async |db| heads(db, last, CHANNELS).await).await?;
            let Some((end, _)) = page.last() else { return Ok(all) };
            last = *end;
            all.extend(page);
        }
    }

    /// Puts in all messages behind one.
    async fn build(&self, mut after: Key) -> Result<(), Trouble> {
        let mut since_kept = 0;
        loop {
            let (found, last) = self.read(async |db| all(db, after, PAGE).await).await?;
            since_kept += found.len();
            self.put(found, Vec::new()).await?;
            let Some(last) = last else { break };
            after = last;
            if since_kept >= KEEP {
                self.index(move |index| index.commit(&[], Some(last))).await?;
                tracing::info!(messages = self.engine.index().len(), "building the search index");
                since_kept = 0;
            }
        }
        self.index(|index| index.commit(&[], None)).await?;
        tracing::info!(messages = self.engine.index().len(), "the search index is built");
        Ok(())
    }
}

impl Consumer for Indexer {
    const NAME: &'static str = "search";
    const IS_LOCAL: bool = true;
    const KEEP_EVERY: Duration = Duration::from_millis(500);

    fn wants(kind: EventKind) -> bool {
        kind.audience() == Audience::Members
    }

    async fn begin(&mut self) -> Result<Vec<(StreamId, i64)>, Trouble> {
        if let Some(after) = self.engine.index().unbuilt() {
            if after == NOTHING {
                // What happens from now on is followed.
                let places = self.heads().await?;
                self.index(move |index| index.commit(&places, Some(after))).await?;
            }
            self.build(after).await?;
        }
        let places = self.engine.index().places();
        Ok(places.iter().map(|(channel, seq)| ((*channel).into(), *seq)).collect())
    }

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        let keys: BTreeSet<Key> = events.iter().flat_map(touched).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = keys.into_iter().collect();
        let (found, gone) = self.read(async |db| documents(db, &keys).await).await?;
        self.put(found, gone).await
    }

    async fn keep(&mut self, places: &[(StreamId, i64)]) -> Result<(), Trouble> {
        let places: Vec<(ChannelId, i64)> =
            places.iter().map(|(stream, seq)| (ChannelId::from(*stream), *seq)).collect();
        self.index(move |index| index.commit(&places, None)).await
    }
}
