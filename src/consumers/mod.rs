//! What is done with events once they are stored: whoever follows the log.
//!
//! ```text
//!  writer ── COMMIT ──▶ Hub::committed ──┐ told, may be lost
//!  other nodes ── bus ──▶ Hub::heard ────┤
//!                                        ▼
//!  events table ── read what is behind ▶ feed ──▶ follow ──▶ Consumer::consume
//!                                                   └──▶ places: how far it is, under its epoch
//! ```
//!
//! A [`Consumer`] is given every event of every stream, each stream's in order, once at least: what it does with one that it had
//! before has to come to the same. It runs on one node of a cluster, the one that the hash of its name says; another one takes it over
//! when that node is gone, and raises its epoch, so that who lost it without knowing can move no place any more. Between the
//! two both may give the same events for a moment. A consumer that [keeps its own places](Consumer::IS_LOCAL) runs on every node.

pub mod feed;
pub mod follow;
pub mod indexer;
pub mod kafka;
pub mod record;
pub mod remote_indexer;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::follow::{Follower, Ground, follow};
use crate::domain::event::Event;
use crate::domain::id::StreamId;

/// Does something with events.
pub trait Consumer: Send + 'static {
    /// What it is called: by this name its places are kept.
    const NAME: &'static str;
    /// Whether every node has one of its own, which keeps its places itself, together with what it did.
    const IS_LOCAL: bool = false;
    /// Whether it is given events of channels alone.
    const OF_CHANNELS: bool = false;
    /// How often its places are kept.
    const KEEP_EVERY: Duration = Duration::from_secs(1);
    /// How long more is waited for before the next few are given: many at once cost much less than each by itself.
    const GATHER: Duration = Duration::from_millis(50);

    /// Gets ready, and returns where it is, if it knows better than what was kept of it.
    fn begin(&mut self) -> impl Future<Output = Result<Vec<(StreamId, i64)>, Trouble>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Returns whether it is to begin again.
    fn begins_again(&self) -> bool {
        false
    }

    /// Does it, and returns when that is sure to last, or leaves that to [`Consumer::keep`]. After an error it is given all of them
    /// again.
    fn consume(&mut self, events: &[Event]) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Makes sure that what it did lasts, before its places are kept; one that is local keeps these with it. After an error it begins
    /// again where it was kept last.
    fn keep(&mut self, _: &[(StreamId, i64)]) -> impl Future<Output = Result<(), Trouble>> + Send {
        std::future::ready(Ok(()))
    }
}

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It is none of these events' fault: it is tried again for as long as it takes.
    #[error("{0}")]
    Down(String),
    /// It is this event's, by its place among those given. After some tries it is put aside as a dead letter.
    #[error("event {at}: {why}")]
    Event {
        /// Which.
        at: usize,
        /// Why.
        why: String,
    },
}

/// The consumers of this process.
pub struct Consumers {
    ground: Ground,
    followers: Vec<Arc<Follower>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Consumers {
    /// Makes a process without any.
    #[must_use]
    pub fn on(ground: Ground) -> Self {
        Consumers { ground, followers: Vec::new(), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Starts one.
    pub fn start<C: Consumer>(&mut self, consumer: C) {
        let follower = Follower::of::<C>();
        self.followers.push(follower.clone());
        let (ground, stop) = (self.ground.clone(), self.stop.clone());
        self.tasks.spawn(follow(ground, follower, consumer, stop));
    }

    /// Tells all of them what was committed.
    pub fn tell(&self, events: &[Event]) {
        for follower in &self.followers {
            follower.tell(events);
        }
    }

    /// Ends them, when each is done with what it has in hand or has given it back.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
