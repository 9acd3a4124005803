//! Group commit: what waits, from many channels, commits in one transaction.
//!
//! One task owns the writing connection. It takes everything that waits (up to a batch), applies it, commits, and only
//! then answers and tells. While it commits, the next batch gathers: the busier it is, the more share an fsync. An item
//! that is refused rolls back to its savepoint and does not disturb its neighbours; if the database itself fails, the
//! items that are still waited for are tried once more, each alone ([`super::failure`]). Top-level messages go together,
//! by [`send`]; a batch of nothing else needs no `BEGIN` and no `COMMIT` of its own, unless other nodes came before it
//! every time.
//!
//! Nobody waits longer than `database.timeout_ms` for an answer, whatever the database does, or a quarter of that more if
//! it was waited for before, at another node (`Answer::expire`): who waited so long is told that the outcome is not
//! known, and who comes while it does not answer is refused at once. A commit whose outcome is not known may have taken
//! effect; what it changed is found by looking into the database ([`Committed::in_doubt`]).
//!
//! SQLite's write-ahead log is moved to its file by another connection, beside the writer: see `Store::checkpoint`.

mod batch;
mod write;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::batch::{changed_room, lock_all, one, settle, top_level, until_heavy};
use self::write::interrupted;
use super::failure::{Failure, is_full};
use super::remembered::{Remembered, Tally};
use super::send::Transaction;
use super::tokens::Revoked;
use super::{Db, Dialect, Store, StoreError, idempotency, send};
use crate::clock::Clock;
use crate::domain::command::{Command, Principal};
use crate::domain::error::{Code, Refusal, unavailable};
use crate::domain::event::Event;
use crate::domain::id::{NodeId, StreamId};

pub use self::write::{Answer, Claim, Committed, Reply, Sink, Work, Write};

/// The door to the writer. Cloning it shares it.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Write>,
    patience: Duration,
    tally: Arc<Tally>,
    trouble: Arc<Trouble>,
}

/// Why the database may not take what is written here.
#[derive(Default)]
struct Trouble {
    /// It does not answer what it was asked.
    late: AtomicBool,
    /// It could not be asked the last time, or said nothing.
    failed: AtomicBool,
}

impl Trouble {
    fn set(which: &AtomicBool, now: bool) {
        which.store(now, Ordering::Relaxed);
    }
}

impl Writer {
    /// Starts the writer. It stops, all that waits written, when `stop` is cancelled; the second value tells when it has.
    ///
    /// The writer has a thread and a runtime of its own: among thousands of connections that want to run, each of its
    /// round trips to the database would wait for its turn, and every send with it.
    pub fn start(
        store: Store,
        clock: Clock,
        node: NodeId,
        limits: Limits,
        sink: Sink,
        stop: CancellationToken,
    ) -> std::io::Result<(Self, CancellationToken)> {
        let (queue, waiting) = mpsc::channel(limits.queue);
        let (tally, trouble) = (Arc::<Tally>::default(), Arc::<Trouble>::default());
        let task = Task {
            store,
            clock,
            sink,
            db: None,
            remembered: Remembered::new(node, tally.clone()),
            batch: limits.batch,
            patience: limits.patience,
            give_up: limits.give_up(),
            trouble: trouble.clone(),
            written: 0,
            checkpoint: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = CancellationToken::new();
        let told = done.clone().drop_guard();
        std::thread::Builder::new().name("colink-writer".to_owned()).spawn(move || {
            runtime.block_on(task.run(Waiting { queue: waiting, taken: VecDeque::new(), most: limits.queue }, stop));
            drop(told);
        })?;
        Ok((Writer { queue, patience: limits.patience, tally, trouble }, done))
    }

    /// Returns what came of being one of several writers, since the start.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns whether there is no way to the database from here: it does not answer, or did not the last time.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.trouble.late.load(Ordering::Relaxed) || self.trouble.failed.load(Ordering::Relaxed)
    }

    /// Notes that the database answers others here: the next write may fare better than the last.
    pub fn may_try_again(&self) {
        Trouble::set(&self.trouble.failed, false);
    }

    /// Puts a write into the queue. A full queue refuses it at once, with a time to come back.
    pub fn submit(&self, mut write: Write) {
        write.answer.expire(self.patience);
        if let Err(refused) = self.queue.try_send(write) {
            let (write, why) = match refused {
                mpsc::error::TrySendError::Full(write) => (write, FULL),
                mpsc::error::TrySendError::Closed(write) => (write, "the server is stopping"),
            };
            write.answer.give(Err(refused_at_once(why)));
        }
    }

    /// Writes and waits for the commit.
    pub async fn write(&self, caller: Principal, work: Work, key: Option<String>) -> Result<Reply, Refusal> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let answer = Answer::new(move |result| {
            let _ = tx.send(result);
        });
        self.submit(Write { caller, work, claim: Claim::Owner, key, answer });
        rx.await.unwrap_or_else(|_| Err(unavailable("the server is stopping")))
    }
}

/// How much may wait and commit together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most writes that wait; for a moment, while a commit takes long, as many again.
    pub queue: usize,
    /// Most writes in one commit.
    pub batch: usize,
    /// The longest that an answer may take.
    pub patience: Duration,
    /// The longest that a statement may take on Postgres; zero: no limit.
    pub statement: Duration,
}

impl Limits {
    /// Returns after how long without a word the connection to Postgres is given up: it would have ended the statement
    /// before, so it is not there any more, or nothing comes by from there.
    fn give_up(&self) -> Duration {
        let statement = if self.statement.is_zero() { Duration::from_secs(30) } else { self.statement };
        self.patience + statement
    }
}

/// What waits to be written.
struct Waiting {
    queue: mpsc::Receiver<Write>,
    /// What was taken out of the queue, and comes first.
    taken: VecDeque<Write>,
    /// The most that may wait.
    most: usize,
}

impl Waiting {
    /// Takes what goes into one commit, at most so many; nothing, if no more comes.
    async fn next(&mut self, most: usize) -> Vec<Write> {
        self.gather();
        if self.taken.is_empty() {
            let mut batch = Vec::with_capacity(most.min(64));
            self.queue.recv_many(&mut batch, most).await;
            self.taken = batch.into();
        }
        let end = until_heavy(&self.taken, most);
        self.taken.drain(..end).collect()
    }

    /// Takes all that is in the queue, to see for how long it has waited.
    fn gather(&mut self) {
        while let Ok(write) = self.queue.try_recv() {
            if self.taken.len() < self.most {
                self.taken.push_back(write);
            } else {
                write.answer.give(Err(refused_at_once(FULL)));
            }
        }
    }
}

const FULL: &str = "the server has more to write than it can: slow down";

fn refused_at_once(why: &'static str) -> Refusal {
    metrics::counter!("colink_writes_refused_total").increment(1);
    unavailable(why)
}

struct Task {
    store: Store,
    clock: Clock,
    sink: Sink,
    db: Option<Db>,
    remembered: Remembered,
    batch: usize,
    patience: Duration,
    /// After which time a connection that says nothing is given up.
    give_up: Duration,
    trouble: Arc<Trouble>,
    /// Writes since the last checkpoint began.
    written: usize,
    checkpoint: Option<tokio::task::JoinHandle<()>>,
}

/// After how many writes SQLite's log is moved to its file. The rarer, the more often a page is moved once for many writes;
/// this many leave a log of tens of megabytes.
const CHECKPOINT: usize = 4_000;

/// How often a batch is tried when another process writes to the same channels. The last time they are locked first, so that
/// nobody can come before it again.
const TRIES: usize = 3;

/// How often it is looked who has waited for too long, while a commit takes its time.
const LOOK: Duration = Duration::from_millis(20);

/// What became of each write of a batch that was committed; nothing, if it is to be tried again.
pub(super) type Results = Vec<Option<Result<Reply, Refusal>>>;

/// What others hear of once it is committed.
#[derive(Clone, Default)]
pub(super) struct News {
    pub(super) events: Vec<Event>,
    pub(super) revoked: Vec<Revoked>,
}

impl Task {
    async fn run(mut self, mut waiting: Waiting, stop: CancellationToken) {
        loop {
            let batch = tokio::select! {
                biased;
                batch = waiting.next(self.batch) => batch,
                () = stop.cancelled(), if !waiting.queue.is_closed() => {
                    waiting.queue.close();
                    continue;
                }
            };
            if batch.is_empty() {
                return;
            }
            metrics::histogram!("colink_commit_batch_writes").record(batch.len() as f64);
            self.written += batch.len();
            self.commit_all(batch, &mut waiting).await;
            self.checkpoint();
        }
    }

    /// Starts a checkpoint beside the writer when it is time: one that SQLite did within a commit would hold up all writes.
    fn checkpoint(&mut self) {
        let running = self.checkpoint.as_ref().is_some_and(|task| !task.is_finished());
        if running || self.written < CHECKPOINT || self.store.dialect() == Dialect::Postgres {
            return;
        }
        self.written = 0;
        let store = self.store.clone();
        self.checkpoint = Some(tokio::spawn(async move {
            if let Err(error) = store.checkpoint().await {
                tracing::warn!(%error, "cannot move SQLite's log to its file: it is tried again");
            }
        }));
    }

    async fn commit_all(&mut self, batch: Vec<Write>, waiting: &mut Waiting) {
        let started = Instant::now();
        match self.commit_or_repeat(batch, waiting).await {
            Ok(()) => {}
            Err((batch, failure)) if batch.len() > 1 && failure.may_be_one_item() => {
                let (Failure::RolledBack(error) | Failure::Unknown(error)) = &failure;
                tracing::warn!(%error, writes = batch.len(), "a commit failed: trying its writes one by one");
                if failure.is_silence() {
                    // Maybe nobody waits for one of them any more.
                    Trouble::set(&self.trouble.failed, true);
                }
                Box::pin(self.commit_each(batch, waiting)).await;
            }
            Err((batch, failure)) => self.refuse(batch, &failure),
        }
        metrics::histogram!("colink_commit_seconds").record(started.elapsed().as_secs_f64());
    }

    /// Commits writes one by one. One of them may be too much for the database; if a second is too, the fault is not
    /// theirs, and the rest is refused without waiting as long for each.
    async fn commit_each(&mut self, batch: Vec<Write>, waiting: &mut Waiting) {
        let (mut not_theirs, mut left) = (0, batch.len());
        batch.into_iter().rev().for_each(|write| waiting.taken.push_front(write));
        while left > 0 {
            left -= 1;
            let write = waiting.taken.drain(..1).collect();
            if let Err((one, failure)) = self.commit_or_repeat(write, waiting).await {
                self.refuse(one, &failure);
                not_theirs += usize::from(failure.may_be_the_database());
                if not_theirs == 2 {
                    return self.refuse(waiting.taken.drain(..left).collect(), &failure);
                }
            }
        }
    }

    /// Commits writes, and those again that another process came before. Returns those that have no
    /// answer when it failed.
    async fn commit_or_repeat(
        &mut self,
        mut batch: Vec<Write>,
        waiting: &mut Waiting,
    ) -> Result<(), (Vec<Write>, Failure)> {
        for left in (0..TRIES).rev() {
            // Who had no patience any more was told so: nothing more is done for them.
            batch.retain(|write| !write.answer.is_over());
            if batch.is_empty() {
                return Ok(());
            }
            match self.commit(&batch, left == 0, waiting).await {
                Ok((results, news)) => batch = self.conclude(batch, results, news),
                Err(failure) if left > 0 && failure.may_pass(batch.len()) => {}
                Err(failure) => return Err((batch, failure)),
            }
        }
        for write in batch {
            write.answer.give(Err(unavailable("others write to this channel at the same time: try again")));
        }
        Ok(())
    }

    /// Tells first, then answers: a reader is never behind the writer's own ack by more than a hop, and whoever asked for
    /// something cannot keep others from hearing of it by hanging up. Returns the writes that have no answer yet.
    fn conclude(&self, batch: Vec<Write>, results: Results, news: News) -> Vec<Write> {
        Trouble::set(&self.trouble.failed, false);
        self.tell(news);
        let mut again = Vec::new();
        for (write, result) in batch.into_iter().zip(results) {
            match result {
                Some(result) => write.answer.give(result),
                None => again.push(write),
            }
        }
        again
    }

    fn tell(&self, News { events, revoked }: News) {
        if !events.is_empty() || !revoked.is_empty() {
            (self.sink)(Committed { events, revoked, at: Instant::now(), in_doubt: false });
        }
    }

    /// Commits a batch. Who waits longer than they have patience, for it or for their turn, is told so meanwhile.
    async fn commit(
        &mut self,
        batch: &[Write],
        locked: bool,
        waiting: &mut Waiting,
    ) -> Result<(Results, News), Failure> {
        let began = Instant::now();
        let (late_at, give_up_at) = (began + self.patience, began + self.give_up);
        let (local, trouble) = (self.store.dialect() == Dialect::Sqlite, self.trouble.clone());
        let mut looks = tokio::time::interval_at((began + LOOK).into(), LOOK);
        let mut late = false;
        let done = {
            let mut work = std::pin::pin!(self.try_to_commit(batch, locked));
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => break Some(done),
                    _ = looks.tick() => {
                        let now = Instant::now();
                        if !late {
                            waiting.gather();
                        }
                        for write in batch.iter().chain(&waiting.taken) {
                            if write.answer.over_at().is_some_and(|at| at <= now) {
                                write.answer.give(Err(interrupted()));
                            }
                        }
                        if !late && now >= late_at {
                            late = true;
                            Trouble::set(&trouble.late, true);
                            tracing::warn!(writes = batch.len(), "the database does not answer in time");
                        }
                        if !local && now >= give_up_at {
                            break None;
                        }
                    }
                    Some(write) = waiting.queue.recv(), if late => {
                        write.answer.give(Err(unavailable("the database does not answer now")));
                    }
                }
            }
        };
        Trouble::set(&trouble.late, false);
        done.unwrap_or_else(|| {
            self.remembered.forget_all();
            let why = "the database did not answer at all";
            Err(Failure::Unknown(StoreError::Refused(Refusal::new(Code::Timeout, why))))
        })
    }

    async fn try_to_commit(&mut self, batch: &[Write], locked: bool) -> Result<(Results, News), Failure> {
        let mut held = Held(match self.db.take() {
            Some(db) => Some(db),
            None => Some(self.store.write().await?),
        });
        // A panic while applying must not take the writer with it; the transaction is given up with its connection.
        let applied = AssertUnwindSafe(self.apply(held.db(), batch, locked)).catch_unwind().await;
        let applied = applied.unwrap_or_else(|_| {
            tracing::error!("applying a batch of writes panicked");
            Err(StoreError::Refused(Refusal::new(Code::Internal, "the server failed on this request")).into())
        });
        let whole = match &applied {
            Ok(_) => true,
            Err(Failure::Unknown(_)) => false,
            Err(Failure::RolledBack(_)) => held.db().run("ROLLBACK").await.is_ok(),
        };
        if applied.is_err() {
            self.remembered.forget_all();
        }
        if whole {
            self.db = held.0.take();
        }
        applied
    }

    fn refuse(&self, batch: Vec<Write>, failure: &Failure) {
        if matches!(failure, Failure::Unknown(_)) {
            let (events, revoked, at) = (Vec::new(), Vec::new(), Instant::now());
            (self.sink)(Committed { events, revoked, at, in_doubt: true });
        }
        if failure.is_silence() {
            Trouble::set(&self.trouble.failed, true);
        }
        refuse(batch, failure);
    }

    /// Applies a batch and commits it; has its channels locked before if it is said to, or holds other things than sends.
    async fn apply(&mut self, db: &mut Db, batch: &[Write], locked: bool) -> Result<(Results, News), Failure> {
        let now = self.clock.now();
        let mut results = Results::new();
        results.resize_with(batch.len(), || None);
        let mut news = News::default();

        let (mut sends, mut at) = (Vec::new(), Vec::new());
        // Sends go first, but never past what decides whether they may, or who hears them.
        let mut changed: Vec<StreamId> = Vec::new();
        for (index, write) in batch.iter().enumerate() {
            changed.extend(changed_room(write));
            if let Some(send) = top_level(write).filter(|send| !changed.contains(&send.channel_id.into())) {
                let hash = || idempotency::body_hash(&Command::SendMessage(send.clone()));
                let key = write.key.as_deref().map(|key| (key, hash()));
                let (author, claim, over_at) = (write.caller.user_id, write.claim, write.answer.over_at());
                sends.push(send::Item { author, send, key, claim, over_at });
                at.push(index);
            }
        }
        let fenced = sends.len() == batch.len() && !locked;
        if !fenced {
            db.run(super::by_dialect!(db, postgres: "BEGIN", sqlite: "BEGIN IMMEDIATE")).await?;
            lock_all(db, batch).await?;
        }
        if !sends.is_empty() {
            let transaction = if fenced { Transaction::Own } else { Transaction::Open };
            let sent = send::send_many(db, now, &sends, transaction, &mut self.remembered, &mut news.events).await?;
            for (index, result) in at.into_iter().zip(sent) {
                results[index] = match result {
                    Some(Err(refusal)) if batch[index].claim == Claim::Beside => {
                        match settle(db, now, &batch[index], refusal).await {
                            // The others are stored by now, whatever becomes of this one.
                            Err(_) if fenced => Some(Err(interrupted())),
                            settled => settled?,
                        }
                    }
                    result => result,
                };
            }
        }
        if !fenced {
            for (index, write) in batch.iter().enumerate() {
                if results[index].is_none() {
                    results[index] = one(db, now, write, &mut news).await?;
                }
            }
            if let Err(error) = db.run("COMMIT").await {
                return Err(Failure::of_commit(error));
            }
            self.remembered.note(&news.events);
        }
        Ok((results, news))
    }
}

/// A connection in the middle of something: whoever lets go of it gives it up.
struct Held(Option<Db>);

impl Held {
    fn db(&mut self) -> &mut Db {
        self.0.as_mut().expect("it is held until it is given back")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(db) = self.0.take() {
            db.discard();
        }
    }
}

fn refuse(batch: Vec<Write>, failure: &Failure) {
    let refusal = match failure {
        Failure::RolledBack(StoreError::Refused(refusal)) => refusal.clone(),
        Failure::RolledBack(StoreError::Database(error)) if is_full(error) => {
            tracing::error!(%error, writes = batch.len(), "the database has no room: nothing is written until it has");
            unavailable("the database has no room for more: whoever runs this hub has to make some")
        }
        Failure::RolledBack(error) => {
            tracing::error!(%error, writes = batch.len(), "a write failed and was rolled back");
            unavailable("the database does not take writes now")
        }
        Failure::Unknown(error) => {
            tracing::error!(%error, writes = batch.len(), "a commit was cut off: its outcome is not known");
            Refusal::new(Code::Timeout, "the database did not confirm the write: repeat it with the same key")
                .retry_after(1.0)
        }
    };
    metrics::counter!("colink_writes_failed_total").increment(batch.len() as u64);
    for write in batch {
        write.answer.give(Err(refusal.clone()));
    }
}
