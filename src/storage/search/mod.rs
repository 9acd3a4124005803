//! Search: who asks, what they may read, the index, and what it does not have yet.
//!
//! ```text
//!  query ─▶ names looked up, channels that may be read ─▶ index ─▶ which messages ──┐
//!                          └─▶ events that are not in the index yet ─▶ matching ────┴─▶ read, looked at once more ─▶ answer
//! ```
//!
//! The index says which messages fit, never what they are. What somebody may read is asked of the database with each search, before
//! and after: who leaves a channel finds nothing of it from then on. What was committed a moment ago is found, too: what is
//! behind the index's place in a channel is read and matched here.

#[cfg(test)]
mod contract;
pub mod embedded;
pub mod index;
pub mod opensearch;
pub mod rows;
mod steady;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use self::embedded::Embedded;
use self::index::{Found, Index, IndexError};
use self::opensearch::Remote;
use self::rows::{documents, names, places, readable, saved};
use super::channels::{self, EVERYBODY};
use super::consumers::behind;
use super::{Db, Store, StoreError, messages, users};
use crate::clock::Timestamp;
use crate::domain::channel::direct_key;
use crate::domain::command::Principal;
use crate::domain::error::{Refusal, invalid, unavailable};
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::message::Message;
use crate::domain::search::document::{Document, Forms, touched};
use crate::domain::search::query::{Part, Place, Query, What, Who};
use crate::domain::search::wanted::{Condition, Is, Key, Rank, Search, Sort};

/// How many saved messages `is:saved` looks through: the newest.
const SAVED_MAX: i64 = 10_000;
/// How many channels are looked at behind the index, and how many events of each.
const TAIL_CHANNELS: usize = 100;
const TAIL_EVENTS: i64 = 500;
/// How far down a list by relevance goes.
const OFFSET_MAX: usize = 10_000;
/// How much of a text is shown around what was found, in characters.
const SNIPPET: usize = 240;
/// How much of a text is looked through for what is shown of it, in bytes.
const SEARCHED: usize = 8_192;
/// How much of what is not in the index yet is read, in bytes.
const TAIL_BYTES: usize = 4 * 1_024 * 1_024;
/// How many searches may be looked up at once, for each processor.
const AT_ONCE: usize = 2;

/// The search of a node.
pub struct Engine {
    index: Index,
    turns: Arc<Semaphore>,
}

/// By what name the places of OpenSearch's index are kept.
pub const REMOTE: &str = "opensearch";

/// What somebody looks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What.
    pub query: Query,
    /// What comes first.
    pub sort: Sort,
    /// Where the page before ended.
    pub cursor: Option<Cursor>,
    /// How many messages.
    pub limit: usize,
}

/// Where a page ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Cursor {
    /// By time: behind this one.
    Behind(Rank),
    /// By relevance: so many further down, as it was at that time.
    Offset(usize, Timestamp),
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers = |text: &str| text.split('_').map(str::parse).collect::<Result<Vec<i64>, _>>().map_err(drop);
        match text.split_at_checked(1).ok_or(())? {
            ("t", rest) => match numbers(rest)?[..] {
                [at, tie, seq] => Ok(Cursor::Behind(Rank { score: 0.0, at, tie: tie.cast_unsigned(), seq })),
                _ => Err(()),
            },
            ("r", rest) => match numbers(rest)?[..] {
                [offset, now] => Ok(Cursor::Offset(usize::try_from(offset).map_err(drop)?, Timestamp(now))),
                _ => Err(()),
            },
            _ => Err(()),
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cursor::Behind(Rank { at, tie, seq, .. }) => write!(f, "t{at}_{}_{seq}", tie.cast_signed()),
            Cursor::Offset(offset, now) => write!(f, "r{offset}_{}", now.0),
        }
    }
}

/// What was found.
#[derive(Serialize, Deserialize, schemars::JsonSchema)]
pub struct Answer {
    /// The messages, the first first.
    pub items: Vec<Hit>,
    /// How many there are in all.
    pub total: u64,
    /// What to ask with for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Everything that happened until then is in the index, and what happened later is found, too; absent unless `complete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexed_through: Option<Timestamp>,
    /// Whether everything was searched that the caller may read. It is not while the index is being built, or far behind.
    pub complete: bool,
    /// Whether nothing was found by the words as they are, and these were found by words that are spelt like them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub corrected: bool,
}

/// A message that was found.
#[derive(Serialize, Deserialize, schemars::JsonSchema)]
pub struct Hit {
    /// The message.
    pub message: Message,
    /// The name of its channel, if that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_name: Option<String>,
    /// Its text, or the part of it around what was found, in pieces.
    pub snippet: Vec<Piece>,
}

/// A piece of a text.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Piece {
    /// The piece.
    pub text: String,
    /// Whether this is what was looked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub found: bool,
}

/// How an index is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// `embedded` or `opensearch`.
    pub kind: String,
    /// How many messages are in it; while it is being built, how many were put in so far.
    pub messages: u64,
    /// How many there are in the database.
    pub stored: u64,
    /// Whether it is being built.
    pub building: bool,
}

impl Engine {
    /// Returns how the index is.
    ///
    /// # Errors
    /// The database or OpenSearch does not answer.
    pub async fn status(&self, store: &Store) -> Result<Status, StoreError> {
        let stored = rows::count(&mut store.read_for("search").await?).await?;
        Ok(match &self.index {
            Index::Embedded(index) => {
                let building = index.is_to_be_rebuilt() || index.unbuilt().is_some();
                let messages = if building { index.built() } else { index.len() };
                Status { kind: "embedded".to_owned(), messages, stored, building }
            }
            Index::Remote(index) => {
                let (messages, building) = match index.count().await {
                    Ok(messages) => (messages, false),
                    Err(IndexError::Unbuilt) => (0, true),
                    Err(error) => return Err(cannot(&error).into()),
                };
                Status { kind: "opensearch".to_owned(), messages, stored, building }
            }
        })
    }

    /// Opens the index in a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn embedded(folder: &Path, memory_mb: usize) -> Result<Engine, IndexError> {
        Ok(Engine::on(Index::Embedded(Arc::new(Embedded::open(folder, memory_mb)?))))
    }

    /// Uses an index of OpenSearch.
    #[must_use]
    pub fn remote(index: Remote) -> Engine {
        Engine::on(Index::Remote(Arc::new(index)))
    }

    fn on(index: Index) -> Engine {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Engine { index, turns: Arc::new(Semaphore::new(processors * AT_ONCE)) }
    }

    /// Returns the index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Finds messages that somebody may read.
    ///
    /// # Errors
    /// The query names somebody or something that is not there, or a store does not answer.
    pub async fn messages(
        &self,
        store: &Store,
        who: Principal,
        ask: Ask,
        now: Timestamp,
    ) -> Result<Answer, StoreError> {
        let begun = Instant::now();
        metrics::counter!("colink_searches_total").increment(1);
        let mut db = store.read_for("search").await?;
        let may_read = readable(&mut db, who.user_id).await?;
        let (at, skip, after) = match ask.cursor {
            None => (now, 0, None),
            Some(Cursor::Offset(skip, at)) => (at, skip.min(OFFSET_MAX), None),
            Some(Cursor::Behind(rank)) => (now, 0, Some(rank)),
        };
        let search = resolve(&mut db, who, &ask, &may_read, at).await?;
        let tail = self.tail(&mut db, who.user_id, &search, &may_read, now).await?;
        drop(db);
        let tail = Arc::new(tail);
        let most = skip + ask.limit + 1;
        let mut search = Arc::new(search);
        let mut found = self.look_up(&search, &tail, after, most).await?;
        let mut corrected = false;
        if found.1 == 0
            && let Some(forgiving) = ask.query.forgiving()
        {
            search = Arc::new(forgive(&search, &forgiving));
            found = self.look_up(&search, &tail, after, most).await?;
            corrected = found.1 > 0;
        }
        let (mut hits, total) = found;
        hits.drain(..skip.min(hits.len()));
        let more = hits.len() > ask.limit;
        hits.truncate(ask.limit);
        let next_cursor = hits.last().filter(|_| more && skip + ask.limit <= OFFSET_MAX).map(|(rank, _)| {
            let cursor = match ask.sort {
                Sort::Relevance => Cursor::Offset(skip + ask.limit, at),
                Sort::Newest | Sort::Oldest => Cursor::Behind(*rank),
            };
            cursor.to_string()
        });
        let keys: Vec<Key> = hits.into_iter().map(|(_, key)| key).collect();
        let items = self.show(store, who.user_id, &search, &keys).await?;
        let is_built = match &self.index {
            Index::Embedded(index) => index.unbuilt().is_none(),
            Index::Remote(_) => true,
        };
        let complete = tail.is_whole && is_built;
        metrics::histogram!("colink_search_seconds").record(begun.elapsed().as_secs_f64());
        let indexed_through = complete.then_some(tail.indexed_through);
        Ok(Answer { items, total, next_cursor, indexed_through, complete, corrected })
    }

    /// Does what takes a processor for a while, on a thread for that, of which there are few.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
        // It goes with the work: whoever asked may be gone before that is done.
        let turn = self.turns.clone().acquire_owned().await.expect("nobody closes it");
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| cannot(&IndexError::Thread).into())
    }

    /// Asks the index, and what is not in it yet.
    async fn look_up(
        &self,
        search: &Arc<Search>,
        tail: &Arc<Tail>,
        after: Option<Rank>,
        most: usize,
    ) -> Result<(Vec<(Rank, Key)>, u64), StoreError> {
        let found: Result<Found, IndexError> = match &self.index {
            Index::Embedded(index) => {
                let (index, search, tail) = (index.clone(), search.clone(), tail.clone());
                self.work(move || index.find(&search, &tail.touched, after, most)).await?
            }
            Index::Remote(index) => index.find(search, &tail.touched, after, most).await,
        };
        let Found { mut hits, mut total } = found.map_err(|error| cannot(&error))?;
        if !tail.documents.is_empty() {
            // How well it fits is not known of what is not in the index: it is new, and comes first.
            let best = hits.first().filter(|_| search.sort == Sort::Relevance).map_or(0.0, |(rank, _)| rank.score);
            let (search, tail) = (search.clone(), tail.clone());
            let fits = move || {
                let fits = tail.documents.iter().filter(|document| search.matches(document, &document.forms()));
                let ranked = fits.map(|document| {
                    let key = (document.channel, document.seq);
                    (Rank { score: best, ..search.rank(0.0, document.created_at, key) }, key)
                });
                ranked.collect::<Vec<_>>()
            };
            let fits = self.work(fits).await?;
            total += fits.len() as u64;
            hits.extend(fits.into_iter().filter(|(rank, _)| after.is_none_or(|after| *rank < after)));
            hits.sort_unstable_by(|one, other| other.cmp(one));
            hits.truncate(most);
        }
        Ok((hits, total))
    }

    /// Reads the messages that were found, of those that may be read when that is done.
    async fn show(
        &self,
        store: &Store,
        user: UserId,
        search: &Arc<Search>,
        keys: &[Key],
    ) -> Result<Vec<Hit>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut db = store.read_for("search").await?;
        let found = messages::by_keys(&mut db, keys).await?;
        let channels: HashSet<ChannelId> = keys.iter().map(|(channel, _)| *channel).collect();
        let names = names(&mut db, user, &channels.into_iter().collect::<Vec<_>>()).await?;
        drop(db);
        let mut found: HashMap<Key, Message> =
            found.into_iter().map(|message| ((message.channel_id, message.seq), message)).collect();
        let (keys, search) = (keys.to_vec(), search.clone());
        self.work(move || {
            let hits = keys.iter().filter_map(|key| {
                let message = found.remove(key).filter(|message| message.deleted_at.is_none())?;
                let channel_name = names.get(&key.0)?.clone();
                let snippet = snippet(&message.text, &search);
                Some(Hit { message, channel_name, snippet })
            });
            hits.collect()
        })
        .await
    }

    /// Reads what happened in these channels since the index was there.
    async fn tail(
        &self,
        db: &mut Db,
        user: UserId,
        search: &Search,
        may_read: &HashMap<ChannelId, i64>,
        now: Timestamp,
    ) -> Result<Tail, StoreError> {
        let mut wanted: Vec<(StreamId, i64)> = match &self.index {
            Index::Embedded(index) => {
                let places = index.places();
                let place = |channel: &ChannelId| places.get(channel).copied().unwrap_or(0);
                let ahead = may_read.iter().filter(|(channel, head)| **head > place(channel));
                ahead.map(|(channel, _)| ((*channel).into(), place(channel))).collect()
            }
            Index::Remote(_) => {
                let ahead = places(db, user, REMOTE).await?;
                ahead.into_iter().map(|(channel, place)| (channel.into(), place)).collect()
            }
        };
        wanted.retain(|(stream, _)| search.channels.contains(&ChannelId::from(*stream)));
        let mut tail = Tail {
            touched: HashSet::new(),
            documents: Vec::new(),
            indexed_through: now,
            is_whole: wanted.len() <= TAIL_CHANNELS,
        };
        if wanted.is_empty() {
            return Ok(tail);
        }
        wanted.truncate(TAIL_CHANNELS);
        let (events, cut) = behind(db, &wanted, TAIL_EVENTS).await?;
        let read: HashMap<StreamId, i64> = events.iter().map(|event| (event.stream, event.seq)).collect();
        let head = |stream: &StreamId| may_read.get(&ChannelId::from(*stream)).copied().unwrap_or(0);
        let is_read = |(stream, _): &(StreamId, i64)| read.get(stream).is_some_and(|seq| *seq >= head(stream));
        tail.is_whole &= !cut && wanted.iter().all(is_read);
        tail.indexed_through = events.iter().map(|event| event.at).min().unwrap_or(now);
        let changed: HashSet<Key> = events.iter().flat_map(touched).collect();
        let (changed, mut bytes) = (changed.into_iter().collect::<Vec<_>>(), 0);
        for some in changed.chunks(rows::AT_ONCE) {
            if bytes > TAIL_BYTES {
                // These are found as the index has them.
                tail.is_whole = false;
                break;
            }
            let (found, _) = documents(db, some).await?;
            bytes += found.iter().map(|document| document.text.len()).sum::<usize>();
            tail.touched.extend(some);
            tail.documents.extend(found);
        }
        Ok(tail)
    }
}

fn cannot(error: &IndexError) -> Refusal {
    tracing::error!(%error, "search failed");
    metrics::counter!("colink_search_failures_total").increment(1);
    unavailable("search is not available now")
}

/// What the index does not have yet.
struct Tail {
    /// Messages that it has no more as they are, or not yet.
    touched: HashSet<Key>,
    /// What these are now.
    documents: Vec<Document>,
    indexed_through: Timestamp,
    /// Whether there is no more than this.
    is_whole: bool,
}

/// Looks up whom and what a query names.
async fn resolve(
    db: &mut Db,
    who: Principal,
    ask: &Ask,
    may_read: &HashMap<ChannelId, i64>,
    now: Timestamp,
) -> Result<Search, StoreError> {
    let mut channels: HashSet<ChannelId> = may_read.keys().copied().collect();
    let (mut inside, mut outside) = (HashSet::new(), HashSet::new());
    let (mut authors, mut conditions) = (Vec::new(), Vec::new());
    let mut has_in = false;
    for Part { not, what } in &ask.query.parts {
        let is = match what {
            What::Text(text) => Is::Text(text.clone()),
            What::Mark(mark) => Is::Mark(*mark),
            What::Created(span) => Is::Created(span.clone()),
            What::Saved => Is::OneOf(saved(db, who.user_id, SAVED_MAX).await?.into_iter().collect()),
            What::Mentions(whom) => Is::Mentions(vec![user(db, who, whom).await?, EVERYBODY]),
            What::From(by) => {
                let by = user(db, who, by).await?;
                if *not {
                    Is::By(vec![by])
                } else {
                    authors.push(by);
                    continue;
                }
            }
            What::In(place) => {
                let found = channel(db, who, place, &channels).await?;
                if *not {
                    outside.extend(found);
                } else {
                    has_in = true;
                    inside.extend(found);
                }
                continue;
            }
        };
        conditions.push(Condition { not: *not, is });
    }
    if !authors.is_empty() {
        conditions.push(Condition { not: false, is: Is::By(authors) });
    }
    if let Some(Cursor::Offset(..)) = ask.cursor {
        // What comes while somebody turns the pages does not move what is on them.
        conditions
            .push(Condition { not: false, is: Is::Created(Timestamp(i64::MIN)..Timestamp(now.0.saturating_add(1))) });
    }
    channels.retain(|channel| (!has_in || inside.contains(channel)) && !outside.contains(channel));
    Ok(Search { conditions, channels, is_narrow: has_in, sort: ask.sort, now })
}

/// Returns the search with words that may be spelt differently.
fn forgive(search: &Search, forgiving: &Query) -> Search {
    let mut texts = forgiving.parts.iter().filter_map(|part| match &part.what {
        What::Text(text) => Some(text),
        _ => None,
    });
    let mut search = search.clone();
    for condition in &mut search.conditions {
        if let Is::Text(text) = &mut condition.is {
            *text = texts.next().expect("there are as many").clone();
        }
    }
    search
}

async fn user(db: &mut Db, who: Principal, named: &Who) -> Result<UserId, StoreError> {
    let name = match named {
        Who::Me => return Ok(who.user_id),
        Who::Named(name) => name,
    };
    let unknown = || invalid(format!("there is no user called {name}"));
    let found = users::by_name(db, name).await?.ok_or_else(unknown)?;
    // A guest learns of nobody by asking.
    if users::sees(db, who, found.id).await? { Ok(found.id) } else { Err(unknown().into()) }
}

/// Returns the channel that a query names, if there is one that may be read; none for direct messages that nobody wrote yet.
async fn channel(
    db: &mut Db,
    who: Principal,
    place: &Place,
    may_read: &HashSet<ChannelId>,
) -> Result<Option<ChannelId>, StoreError> {
    match place {
        Place::Named(name) => {
            let found = channels::by_name(db, name).await?.filter(|channel| may_read.contains(&channel.id));
            let unknown = || invalid(format!("there is no channel called {name} that you may read"));
            Ok(Some(found.ok_or_else(unknown)?.id))
        }
        Place::Id(id) => {
            let unknown = || invalid(format!("there is no channel {id} that you may read"));
            if may_read.contains(id) { Ok(Some(*id)) } else { Err(unknown().into()) }
        }
        Place::With(whom) => {
            let with = user(db, who, whom).await?;
            let found = channels::by_direct_key(db, &direct_key(&[who.user_id, with])).await?;
            Ok(found.map(|channel| channel.id))
        }
    }
}

/// Cuts what is shown of a text: what is around the first that was found.
fn snippet(text: &str, search: &Search) -> Vec<Piece> {
    let forms = Forms::of(&text[..text.floor_char_boundary(SEARCHED)]);
    let texts =
        search.conditions.iter().filter(|condition| !condition.not).filter_map(|condition| match &condition.is {
            Is::Text(text) => Some(text),
            _ => None,
        });
    let mut found: Vec<Range<usize>> = texts.flat_map(|wanted| wanted.find(&forms)).collect();
    found.sort_unstable_by_key(|at| (at.start, at.end));
    let first = found.first().map_or(0, |at| at.start);
    // A third of it in front.
    let back = text[..first].char_indices().rev().take(SNIPPET / 3).last().map_or(first, |(at, _)| at);
    let start = if text.chars().take(SNIPPET + 1).count() <= SNIPPET { 0 } else { back };
    let end = text[start..].char_indices().nth(SNIPPET).map_or(text.len(), |(at, _)| start + at);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut add = |range: Range<usize>, found| {
        if !range.is_empty() {
            pieces.push(Piece { text: text[range].to_owned(), found });
        }
    };
    let mut at = start;
    for range in found {
        let (from, to) = (range.start.max(at), range.end.min(end));
        if from < to {
            add(at..from, false);
            add(from..to, true);
            at = to;
        }
    }
    add(at..end, false);
    let dots = |pieces: &mut Vec<Piece>, at: usize| pieces.insert(at, Piece { text: "…".to_owned(), found: false });
    if start > 0 {
        dots(&mut pieces, 0);
    }
    if end < text.len() {
        let last = pieces.len();
        dots(&mut pieces, last);
    }
    pieces
}
