//! Pages of history from a replica of Postgres, which may be late.
//!
//! Whoever reads a page knows where the channel's head is: it is read from the primary, together with the right to read the channel.
//! A replica that has got as far shows what the primary does, edits and reactions among it, for each of these moves the head. One
//! that is behind, paused, gone or slow costs a moment at most: the primary is asked instead, and after a failure for a while.
//!
//! Nothing else is read here. What decides, what a session resumes from and what repairs a gap comes from the primary.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::messages::{self, More, Page};
use super::{Db, OpenError, Options, Store, StoreError, events, postgres};
use crate::domain::id::ChannelId;
use crate::domain::message::Message;

/// How long a replica is left alone that failed once. Behind that one page tries it, and the others do not wait for that; it is
/// left alone twice as long each time that the try fails, too, up to the longest.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A replica, and whether it is worth asking.
#[derive(Clone, Debug)]
pub struct Replica {
    pool: PgPool,
    /// How long it may take: there has to be time left to ask the primary.
    patience: Duration,
    rest: Arc<Mutex<Option<Rest>>>,
}

/// A replica that failed.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    /// For how long the next time.
    next: Duration,
}

/// What a page is to do with a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// To ask it.
    Ask,
    /// To ask it, as the one that finds out whether it is back.
    Try,
    /// To leave it alone.
    Rest,
}

impl Replica {
    /// Makes the way to a replica, which need not be there yet.
    pub(super) fn new(url: &str, options: &Options) -> Result<Self, OpenError> {
        let patience = options.timeout / 4;
        let options = Options { url: url.to_owned(), timeout: patience, ..options.clone() };
        let pool = postgres::readers(&options)?;
        Ok(Replica { pool, patience, rest: Arc::default() })
    }

    /// Closes every connection.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Returns a page, if the replica has got as far as `head`.
    async fn history(&self, head: i64, ask: Ask) -> Option<(Vec<Message>, More)> {
        let turn = self.turn(Instant::now());
        if turn == Turn::Rest {
            return None;
        }
        let read = tokio::time::timeout(self.patience, async {
            let mut db = Db::Postgres(postgres::Lent::new(self.pool.acquire().await?, self.patience));
            if events::head(&mut db, ask.channel.into()).await? < head {
                return Ok(None);
            }
            ask.of(&mut db).await.map(Some)
        });
        let read = read.await.unwrap_or(Err(StoreError::Database(sqlx::Error::PoolTimedOut)));
        let outcome = match &read {
            Ok(Some(_)) => "used",
            Ok(None) => "late",
            Err(error) => {
                tracing::warn!(%error, "the replica failed: the primary is asked instead");
                "failed"
            }
        };
        self.note(Instant::now(), turn, read.is_ok());
        metrics::counter!("colink_replica_reads_total", "outcome" => outcome).increment(1);
        read.ok().flatten()
    }

    /// Returns what a page is to do now.
    fn turn(&self, now: Instant) -> Turn {
        match &mut *self.rest.lock().expect("no panic under this lock") {
            Some(rest) if now < rest.until => Turn::Rest,
            Some(rest) => {
                rest.until = now + self.patience;
                Turn::Try
            }
            None => Turn::Ask,
        }
    }

    fn note(&self, now: Instant, turn: Turn, good: bool) {
        let mut rest = self.rest.lock().expect("no panic under this lock");
        *rest = match *rest {
            _ if good => None,
            // What was asked together fails together, and that is one failure.
            Some(rest) if turn != Turn::Try => Some(rest),
            failed => {
                let pause = failed.map_or(REST.0, |rest| rest.next);
                Some(Rest { until: now + pause, next: (pause * 2).min(REST.1) })
            }
        };
    }
}

/// Which page.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The channel.
    pub channel: ChannelId,
    /// The thread, if its replies are asked for.
    pub thread: Option<i64>,
    /// Which part.
    pub page: Page,
    /// How many messages.
    pub limit: i64,
}

impl Ask {
    async fn of(self, db: &mut Db) -> Result<(Vec<Message>, More), StoreError> {
        messages::history(db, self.channel, self.thread, self.page, self.limit).await
    }
}

/// Returns a page of messages as it is when the channel's head is at `head`, or newer: from the replica if there is one that has
/// got as far, else from the primary. See [`messages::history`].
pub async fn history(store: &Store, head: i64, ask: Ask) -> Result<(Vec<Message>, More), StoreError> {
    if let Store::Postgres { replica: Some(replica), .. } = store
        && let Some(found) = replica.history(head, ask).await
    {
        return Ok(found);
    }
    ask.of(&mut store.read().await?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica() -> Replica {
        let options = Options::new("postgres://nobody@127.0.0.1:1/none");
        Replica::new(&options.url, &options).unwrap()
    }

    #[tokio::test]
    async fn a_replica_that_fails_is_tried_by_one_page_now_and_then() {
        let replica = replica();
        let mut now = Instant::now();
        let mut turn = replica.turn(now);
        assert_eq!(turn, Turn::Ask, "until it fails");
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            replica.note(now, turn, false);
            now += Duration::from_secs(pause) - Duration::from_millis(1);
            assert_eq!(replica.turn(now), Turn::Rest, "{pause}");
            now += Duration::from_millis(1);
            turn = replica.turn(now);
            assert_eq!(turn, Turn::Try, "{pause}");
            assert_eq!(replica.turn(now), Turn::Rest, "the others do not wait for it");
        }
        replica.note(now, turn, true);
        assert_eq!([replica.turn(now), replica.turn(now)], [Turn::Ask, Turn::Ask]);
    }

    #[tokio::test]
    async fn pages_that_fail_together_count_once() {
        let replica = replica();
        let began = Instant::now();
        let pages = [(); 6].map(|()| replica.turn(began));
        for (at, turn) in std::iter::zip(0.., pages) {
            replica.note(began + Duration::from_millis(at), turn, false);
        }
        assert_eq!(replica.turn(began + REST.0), Turn::Try);
        // One that was asked before comes late: the try goes on.
        replica.note(began + REST.0, Turn::Ask, false);
        replica.note(began + REST.0, Turn::Try, false);
        assert_eq!(replica.turn(began + 3 * REST.0), Turn::Try);
    }
}
