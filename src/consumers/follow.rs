//! Follows the log for one consumer, on the node of the cluster that is to: [`follow`] runs it whenever that is this node,
//! and again if it panics; `Lead` is one such run, which takes the consumer over, gives it what comes and keeps its places.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::feed::Feed;
use super::{Consumer, Trouble};
use crate::clock::Clock;
use crate::domain::error::{Code, Refusal};
use crate::domain::event::{Audience, Event};
use crate::domain::id::{ChannelId, StreamId};
use crate::storage::accounts::{Account, SYSTEM};
use crate::storage::consumers::{PLACES_MAX, ahead, behind, places, to_redrive};
use crate::storage::search::rows::heads;
use crate::storage::writer::{Work, Writer};
use crate::storage::{Store, StoreError};

/// How many events are given at once.
const BATCH: usize = 500;
/// About how many bytes of events wait to be given.
const WAITING: usize = 8 * 1_024 * 1_024;
/// How many streams are read at once, and how many events of each.
const STREAMS: usize = 100;
const EACH: i64 = 100;
/// How often it is looked whether something was committed that nobody told of; and while nobody may be there to tell.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_OFTEN: Duration = Duration::from_secs(1);
/// How many times less often one looks of which every node has its own.
const LOCAL: u32 = 10;
/// How often it is looked whether this node is still the one.
const TURN: Duration = Duration::from_millis(500);
/// How often an event is tried before it is put aside.
pub const TRIES: u32 = 5;
/// The pause after the first failure; it doubles with each that follows, up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a consumer stands on.
#[derive(Clone)]
pub struct Ground {
    /// The store.
    pub store: Store,
    /// The door to the writer.
    pub writer: Writer,
    /// The time.
    pub clock: Clock,
    /// Says whether this node is the one that what is called so runs on.
    pub runs_here: Arc<dyn Fn(StreamId) -> bool + Send + Sync>,
    /// Says whether what other nodes commit may not be told here.
    pub is_degraded: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// A consumer's place in this process: what is committed is told to it here.
pub struct Follower {
    name: &'static str,
    of_channels: bool,
    feed: Mutex<Option<Feed>>,
    news: Notify,
}

impl Follower {
    /// Makes the place of a consumer that does not run yet.
    #[must_use]
    pub fn of<C: Consumer>() -> Arc<Follower> {
        Arc::new(Follower { name: C::NAME, of_channels: C::OF_CHANNELS, feed: Mutex::new(None), news: Notify::new() })
    }

    /// Hears what was committed. It does not block, and what it cannot take is read later.
    pub fn tell(&self, events: &[Event]) {
        let is_wanted = |event: &&Event| !self.of_channels || event.kind.audience() == Audience::Members;
        let wanted = events.iter().filter(is_wanted);
        let told = self.with(|feed| wanted.map(|event| feed.hear(event.clone())).count());
        if told.is_some_and(|told| told > 0) {
            self.news.notify_one();
        }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Feed) -> T) -> Option<T> {
        // Should one have panicked with it in hand, it is about to be replaced.
        self.feed.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(what)
    }

    fn set(&self, feed: Option<Feed>) {
        *self.feed.lock().unwrap_or_else(PoisonError::into_inner) = feed;
    }
}

/// Returns what stands for a consumer where it is decided on which node something runs.
#[must_use]
pub fn stand_in(consumer: &str) -> StreamId {
    use sha2::{Digest as _, Sha256};
    let hash: [u8; 32] = Sha256::digest(format!("consumer {consumer}")).into();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    StreamId(Uuid::from_bytes(id))
}

/// Follows until `stop` is cancelled: whenever this node is the one.
pub async fn follow<C: Consumer>(ground: Ground, follower: Arc<Follower>, mut consumer: C, stop: CancellationToken) {
    let stands_for = (!C::IS_LOCAL).then(|| stand_in(C::NAME));
    let mut lead = Lead { ground, follower, stands_for, stop: stop.clone(), pauses: 0 };
    while !stop.is_cancelled() {
        if lead.is_the_one() {
            let led = AssertUnwindSafe(lead.run(&mut consumer)).catch_unwind().await;
            let led = led.unwrap_or(Err(Stopped::Panic));
            lead.follower.set(None);
            metrics::gauge!("colink_consumer_runs", "consumer" => lead.follower.name).set(0.0);
            // It is the next one's to show.
            show(lead.follower.name, 0, 0);
            match led {
                Ok(()) => lead.pauses = 0,
                Err(error) => {
                    tracing::warn!(consumer = lead.follower.name, %error, "a consumer of the log stopped: it starts again");
                    lead.pause().await;
                }
            }
        } else {
            lead.wait(TURN).await;
        }
    }
}

/// Why a consumer stopped.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Writer(#[from] Refusal),
    #[error("{0}")]
    Consumer(#[from] Trouble),
    #[error("it panicked")]
    Panic,
}

struct Lead {
    ground: Ground,
    follower: Arc<Follower>,
    /// What says where it runs; nothing, if it runs on every node.
    stands_for: Option<StreamId>,
    stop: CancellationToken,
    pauses: u32,
}

impl Lead {
    fn is_the_one(&self) -> bool {
        !self.stop.is_cancelled() && self.stands_for.is_none_or(|id| (self.ground.runs_here)(id))
    }

    async fn until_not_the_one(&self) {
        while self.is_the_one() {
            self.wait(TURN).await;
        }
    }

    async fn wait(&self, most: Duration) {
        let _ = tokio::time::timeout(most, self.stop.cancelled()).await;
    }

    async fn pause(&mut self) {
        let pause = PAUSE * 2u32.saturating_pow(self.pauses.min(16));
        self.pauses += 1;
        self.wait(pause.min(LONGEST_PAUSE)).await;
    }

    async fn write(&self, account: Account) -> Result<String, Stopped> {
        Ok(self.ground.writer.write(SYSTEM, Work::Account(account), None).await?.json)
    }

    /// Takes the consumer over and gives it what comes, until this node is not the one any more.
    async fn run<C: Consumer>(&mut self, consumer: &mut C) -> Result<(), Stopped> {
        let (epoch, mut places) = if C::IS_LOCAL {
            (None, Vec::new())
        } else {
            let epoch = self.write(Account::TakeOver { consumer: C::NAME.to_owned() }).await?;
            (Some(epoch.parse().expect("an epoch is a number")), self.places().await?)
        };
        let begun = tokio::select! {
            begun = consumer.begin() => begun?,
            () = self.until_not_the_one() => return Ok(()),
        };
        let begun_at = begun.clone();
        places.extend(begun);
        // What is told from now on is heard, and what was committed before is found by looking.
        let mut feed = Feed::new(places, WAITING);
        if epoch.is_some() {
            feed.keep_again(&begun_at);
        }
        self.follower.set(Some(feed));
        tracing::info!(consumer = C::NAME, epoch, "following the log");
        metrics::gauge!("colink_consumer_runs", "consumer" => C::NAME).set(1.0);
        let (mut looked, mut kept): (Option<Instant>, Instant) = (None, Instant::now());
        while self.is_the_one() && !consumer.begins_again() {
            let every = if (self.ground.is_degraded)() { LOOK_OFTEN } else { LOOK_EVERY };
            let every = if C::IS_LOCAL { every * LOCAL } else { every };
            if looked.is_none_or(|at| at.elapsed() >= every) {
                if C::OF_CHANNELS {
                    self.look_at_channels().await?
                } else {
                    self.look().await?
                }
                if let Some(epoch) = epoch {
                    self.redrive(consumer, epoch).await?;
                }
                looked = Some(Instant::now());
            }
            self.read().await?;
            let events = self.follower.with(|feed| feed.give(BATCH)).unwrap_or_default();
            let given = events.len();
            if given > 0 && !self.give(consumer, epoch, events).await? {
                break;
            }
            // Each time is a write of its own, so not for every event.
            if kept.elapsed() >= C::KEEP_EVERY {
                self.keep(consumer, epoch).await?;
                self.measure(&[]);
                kept = Instant::now();
            }
            if given == 0 {
                let moved = self.follower.with(|feed| feed.has_moved()).unwrap_or_default();
                let wait = if moved { C::KEEP_EVERY.saturating_sub(kept.elapsed()) } else { TURN };
                let _ = tokio::time::timeout(wait, async {
                    tokio::select! {
                        () = self.follower.news.notified() => {}
                        () = self.stop.cancelled() => {}
                    }
                })
                .await;
            } else if given < BATCH && !self.follower.with(|feed| feed.is_behind()).unwrap_or_default() {
                self.wait(C::GATHER).await;
            }
        }
        self.keep(consumer, epoch).await
    }

    /// Reads where the consumer was left.
    async fn places(&self) -> Result<Vec<(StreamId, i64)>, Stopped> {
        let (mut all, mut last) = (Vec::new(), StreamId(Uuid::nil()));
        loop {
            let page = self.ground.store.in_time(async {
                let mut db = self.ground.store.read_for("consumers").await?;
                places(&mut db, self.follower.name, last, PLACES_MAX as i64).await
            });
            let page: Vec<(StreamId, i64)> = page.await?;
            let Some((end, _)) = page.last() else { return Ok(all) };
            last = *end;
            all.extend(page);
        }
    }

    /// Looks which streams are ahead.
    async fn look(&self) -> Result<(), Stopped> {
        let mut last = StreamId(Uuid::nil());
        loop {
            let page = self.ground.store.in_time(async {
                let mut db = self.ground.store.read_for("consumers").await?;
                ahead(&mut db, self.follower.name, last, PLACES_MAX as i64).await
            });
            let page: Vec<(StreamId, i64)> = page.await?;
            let Some((end, _)) = page.last() else { return Ok(()) };
            last = *end;
            self.follower.with(|feed| page.iter().for_each(|(stream, head)| feed.is_at(*stream, *head)));
        }
    }

    /// Looks how far all channels are.
    async fn look_at_channels(&self) -> Result<(), Stopped> {
        let mut last = ChannelId(Uuid::nil());
        loop {
            let page = self.ground.store.in_time(async {
                let mut db = self.ground.store.read_for("consumers").await?;
                heads(&mut db, last, PLACES_MAX as i64).await
            });
            let page: Vec<(ChannelId, i64)> = page.await?;
            let Some((end, _)) = page.last() else { return Ok(()) };
            last = *end;
            self.follower.with(|feed| page.iter().for_each(|(channel, head)| feed.is_at((*channel).into(), *head)));
        }
    }

    /// Gives once more what was put aside, where somebody asked for that.
    async fn redrive(&self, consumer: &mut impl Consumer, epoch: i64) -> Result<(), Stopped> {
        let wanted = self.ground.store.in_time(async {
            let mut db = self.ground.store.read_for("consumers").await?;
            let mut wanted = to_redrive(&mut db, self.follower.name, STREAMS as i64).await?;
            if wanted.is_empty() {
                return Ok((Vec::new(), false));
            }
            wanted.iter_mut().for_each(|(_, seq)| *seq -= 1);
            behind(&mut db, &wanted, 1).await
        });
        let (events, _): (Vec<Event>, bool) = wanted.await?;
        for event in events {
            let (name, at) = (self.follower.name.to_owned(), (event.stream, event.seq));
            match consumer.consume(&[event]).await {
                Ok(()) => self.write(Account::DigUp { consumer: name, epoch, event: at }).await?,
                Err(Trouble::Event { why, .. }) => {
                    self.write(Account::Bury { consumer: name, epoch, event: at, reason: why, tries: 1 }).await?
                }
                // The next look tries again.
                Err(Trouble::Down(_)) => break,
            };
        }
        Ok(())
    }

    /// Reads what is behind.
    async fn read(&self) -> Result<(), Stopped> {
        let wanted = self.follower.with(|feed| feed.to_read(STREAMS)).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(());
        }
        let found = self.ground.store.in_time(async {
            let mut db = self.ground.store.read_for("consumers").await?;
            behind(&mut db, &wanted, EACH).await
        });
        let (events, cut): (Vec<Event>, bool) = found.await?;
        let missing = self.follower.with(|feed| feed.read(&wanted, events, cut)).unwrap_or_default();
        if missing > 0 {
            let consumer = self.follower.name;
            tracing::error!(consumer, missing, "events are not in the log that should be: they are passed over");
            metrics::counter!("colink_consumer_missing_total", "consumer" => consumer).increment(missing);
        }
        Ok(())
    }

    /// Gives the consumer events until it is done with all of them, or they are put aside. Returns false if this node is not the
    /// one any more before that.
    async fn give(
        &mut self,
        consumer: &mut impl Consumer,
        epoch: Option<i64>,
        events: Vec<Event>,
    ) -> Result<bool, Stopped> {
        let name = self.follower.name;
        let (mut left, mut failed) = (events.clone(), None::<(StreamId, i64, u32)>);
        while !left.is_empty() {
            let consumed = tokio::select! {
                consumed = consumer.consume(&left) => consumed,
                // It is given again.
                () = self.stop.cancelled() => return Ok(false),
            };
            match consumed {
                Ok(()) => break,
                // What it did since it kept anything may be gone, too.
                Err(trouble @ Trouble::Down(_)) if epoch.is_none() => return Err(trouble.into()),
                Err(Trouble::Down(why)) => {
                    if self.pauses == 0 {
                        tracing::warn!(consumer = name, why, "a consumer cannot go on: it tries again until it can");
                    }
                }
                Err(Trouble::Event { at, why }) => {
                    let at = at.min(left.len() - 1);
                    let event = &left[at];
                    let tries = match failed {
                        Some((stream, seq, tries)) if (stream, seq) == (event.stream, event.seq) => tries + 1,
                        _ => 1,
                    };
                    failed = Some((event.stream, event.seq, tries));
                    if tries >= TRIES {
                        let event = left.remove(at);
                        tracing::error!(
                            consumer = name, stream.id = %event.stream, seq = event.seq, why,
                            "a consumer gave an event up: see `colink dlq list`"
                        );
                        metrics::counter!("colink_dead_letters_total", "consumer" => name).increment(1);
                        if let Some(epoch) = epoch {
                            let (consumer, reason, tries) = (name.to_owned(), why, i64::from(tries));
                            let event = (event.stream, event.seq);
                            self.write(Account::Bury { consumer, epoch, event, reason, tries }).await?;
                        }
                        self.pauses = 0;
                        continue;
                    }
                }
            }
            metrics::counter!("colink_consumer_retries_total", "consumer" => name).increment(1);
            if !self.is_the_one() || consumer.begins_again() {
                return Ok(false);
            }
            self.measure(&left);
            self.pause().await;
        }
        self.pauses = 0;
        metrics::counter!("colink_consumer_events_total", "consumer" => name).increment(events.len() as u64);
        self.follower.with(|feed| feed.done(&events));
        Ok(true)
    }

    /// Keeps the places that moved.
    async fn keep(&self, consumer: &mut impl Consumer, epoch: Option<i64>) -> Result<(), Stopped> {
        let moved = self.follower.with(Feed::moved).unwrap_or_default();
        if moved.is_empty() {
            return Ok(());
        }
        consumer.keep(&moved).await?;
        let Some(epoch) = epoch else { return Ok(()) };
        for piece in moved.chunks(PLACES_MAX) {
            let consumer = self.follower.name.to_owned();
            let kept = self.write(Account::KeepPlaces { consumer, epoch, places: piece.to_vec() }).await;
            match kept {
                Ok(_) => {}
                // Another node goes on from the places before.
                Err(Stopped::Writer(refusal)) if refusal.code == Code::Conflict => return Err(refusal.into()),
                Err(error) => {
                    // They are kept with the next ones; until then what was given may be given again.
                    tracing::debug!(%error, "cannot keep how far a consumer is");
                    self.follower.with(|feed| feed.keep_again(piece));
                }
            }
        }
        Ok(())
    }

    /// Shows how much waits, beside what the consumer has in hand, and since when.
    fn measure(&self, in_hand: &[Event]) {
        let name = self.follower.name;
        let Some((lag, oldest)) = self.follower.with(|feed| (feed.lag(), feed.oldest())) else { return };
        let oldest = in_hand.first().map(|event| event.at).or(oldest);
        let age = oldest.map_or(0, |at| (self.ground.clock.now().0 - at.0).max(0));
        show(name, lag + in_hand.len() as u64, age);
    }
}

fn show(consumer: &'static str, lag: u64, age_us: i64) {
    metrics::gauge!("colink_consumer_lag_events", "consumer" => consumer).set(lag as f64);
    metrics::gauge!("colink_consumer_oldest_seconds", "consumer" => consumer).set(age_us as f64 / 1e6);
}
