//! What waits for one session, and what it was sent: bounded, and numbered by `s`.
//!
//! Channels put shared batches in; the session's connection takes out what waits, in one piece. A batch gets its `s`
//! when it is taken, and stays in the ring (`ring.rs`) until the client says that it has it, so that a resume only goes
//! back to a place in the ring. The lock is held for a few pushes at a time and never across an await.
//!
//! Invariants:
//! - At most `events` and `bytes` wait. Beyond that the busiest stream's events are dropped and noted: when the rest is
//!   out, the client is told `lagged` with the ranges and reads them from the log. That notice is numbered and kept like
//!   an event; while it is still to be made, memory does not hold everything, and nobody resumes.
//! - The ring holds at most `ring` events and four times `bytes`. What is older cannot be resumed from memory.
//! - What a resume from memory promised is not dropped: it goes into the ring at once, all of it, before live events wait.
//!   Only while the log is still being read it stays behind that, and is dropped like anything that waits.
//! - What a resume brings from the log goes out before what waits, read page by page as the connection takes it: when
//!   [`READ_AHEAD`] events of it wait, no more are read.
//! - Ephemeral frames are merged: one for each user and kind, the last wins. Presence is bounded by whom the session
//!   watches, typing by `EPHEMERAL_MAX`.
//! - While nobody is connected as much may wait as the ring holds; then the session can only be resumed from the log.
//! - Nothing is put into a queue that is closed for good, and nothing but the goodbye is taken out of a revoked one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ring::Ring;
use crate::domain::id::StreamId;
use crate::protocol::close::CloseCode;
use crate::protocol::push::{self, Batch, Encoded, Ephemeral};
use crate::protocol::server;

/// How much a session may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most events that wait.
    pub events: usize,
    /// Most bytes that wait.
    pub bytes: usize,
    /// Most events that are kept for a resume.
    pub ring: usize,
    /// How long they are kept.
    pub window: Duration,
}

impl Bounds {
    /// Returns how many bytes are kept for a resume, at most.
    pub(super) fn ring_bytes(&self) -> usize {
        self.bytes.saturating_mul(4)
    }
}

/// The most replies and notices that wait; the credits of the connection keep it far from this.
const CONTROL_MAX: usize = 4_096;
/// How many events of the log wait for the connection before reading it stops.
pub const READ_AHEAD: usize = 64;
/// The most ephemeral frames that wait before typing is left out.
const EPHEMERAL_MAX: usize = 1_024;

/// One session's queue. Shared between the channels that fill it and the connection that empties it.
#[derive(Debug)]
pub struct Queue {
    bounds: Bounds,
    /// The user's own stream, which is no channel.
    own: StreamId,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    control: VecDeque<Bytes>,
    /// Pages of the log, which go out before what waits.
    pages: VecDeque<Arc<Batch>>,
    /// How many events of the log are not read yet.
    unread: usize,
    /// Whoever reads the log, waiting for room.
    reader: Option<Waker>,
    waiting: VecDeque<Arc<Batch>>,
    waiting_events: usize,
    waiting_bytes: usize,
    ephemeral: Option<HashMap<Ephemeral, Bytes>>,
    /// Presence was told while nobody was connected.
    unheard: bool,
    lagged: Option<HashMap<StreamId, (i64, i64)>>,
    ring: Ring,
    /// The connection that empties the queue; 0 if there is none. Any other that tries gets nothing.
    owner: u64,
    /// The connection that was lost last.
    lost: u64,
    /// Nobody has been connected for so long that its user no longer counts as there.
    absent: bool,
    /// Credits came back: a connection that stopped reading may go on.
    credited: bool,
    /// Too much came while nobody was connected: memory no longer holds everything.
    overflowed: bool,
    close: Option<CloseCode>,
    waker: Option<Waker>,
    in_flight: usize,
}

impl Inner {
    fn has_work(&self) -> bool {
        !self.control.is_empty()
            || !self.pages.is_empty()
            || self.ring.has_unsent()
            || self.close.is_some()
            || self.credited
            || self.ephemeral.as_ref().is_some_and(|e| !e.is_empty())
            || (self.unread == 0 && (!self.waiting.is_empty() || self.lagged.as_ref().is_some_and(|l| !l.is_empty())))
    }

    /// Returns whether it is closed for good, and not only for the connection that has it.
    fn is_over(&self) -> bool {
        self.close.is_some_and(|code| code != CloseCode::RateLimited)
    }

    /// Returns whether nobody has been connected since the connection `lost` was lost.
    fn deserted_since(&self, lost: u64) -> bool {
        self.owner == 0 && self.lost == lost
    }

    /// Notes why it is closed: the first reason that is for good stands, but a revocation overrides all.
    fn end(&mut self, code: CloseCode) {
        if !self.is_over() || code == CloseCode::Revoked {
            self.close = Some(code);
        }
    }

    /// Forgets all that it was and would be sent.
    fn forget(&mut self) {
        let mut ring = std::mem::take(&mut self.ring);
        ring.clear();
        let Inner { owner, in_flight, close, .. } = *self;
        *self = Inner { ring, owner, in_flight, close, ..Inner::default() };
    }

    fn page_events(&self) -> usize {
        self.pages.iter().map(|page| page.frames.len()).sum()
    }

    /// Returns whether the log is to be read on; nothing while there is no room.
    fn reads_on(&self) -> Option<bool> {
        if self.is_over() { Some(false) } else { (self.page_events() < READ_AHEAD).then_some(true) }
    }

    /// Returns whom to wake: the connection, and whoever reads the log if that has something to do.
    fn wake(&mut self) -> [Option<Waker>; 2] {
        let reader = if self.reads_on().is_some() { self.reader.take() } else { None };
        [self.waker.take(), reader]
    }

    /// Takes the next batch that was not sent yet.
    fn next(&mut self) -> Option<Arc<Batch>> {
        if let Some(page) = self.pages.pop_front() {
            return Some(page);
        }
        if self.unread > 0 {
            return None;
        }
        let batch = self.waiting.pop_front()?;
        self.waiting_events -= batch.frames.len();
        self.waiting_bytes -= batch.bytes;
        Some(batch)
    }

    /// Sends the next batch of the ring; returns how many bytes that are.
    fn send(&mut self, taken: &mut Taken, write: &mut impl FnMut(Option<i64>, &[u8])) -> usize {
        let Some((first_s, batch)) = self.ring.next_unsent() else { return 0 };
        taken.frames += batch.frames.len();
        for (s, frame) in (first_s..).zip(&batch.frames) {
            write(Some(s), &frame.tail);
        }
        batch.bytes + batch.frames.len() * 16
    }

    /// Moves all that waits into the ring, if that holds it beside what it has from a place on; returns whether it does.
    fn keep_all(&mut self, from: usize, now: Instant, bounds: &Bounds) -> bool {
        let fits = self.ring.holds(from, self.pages.iter().chain(&self.waiting), bounds);
        while fits && let Some(batch) = self.next() {
            self.ring.keep(batch, now);
        }
        fits
    }

    /// Drops what waits of the stream with the most, in events or in bytes, whichever are too many, until no more waits than
    /// may; notes the ranges.
    fn shed(&mut self, bounds: &Bounds) {
        while self.waits_beyond(bounds.events, bounds.bytes) {
            let by_events = self.waiting_events > bounds.events;
            let mut weights: HashMap<StreamId, usize> = HashMap::new();
            for batch in &self.waiting {
                *weights.entry(batch.stream).or_default() += if by_events { batch.frames.len() } else { batch.bytes };
            }
            let Some((busiest, _)) = weights.into_iter().max_by_key(|(_, weight)| *weight) else { return };
            for batch in std::mem::take(&mut self.waiting) {
                if batch.stream == busiest {
                    self.waiting_events -= batch.frames.len();
                    self.waiting_bytes -= batch.bytes;
                    self.note_lag_of(&batch);
                } else {
                    self.waiting.push_back(batch);
                }
            }
        }
    }

    fn waits_beyond(&self, events: usize, bytes: usize) -> bool {
        self.waiting_events > events || self.waiting_bytes > bytes
    }

    fn note_lag(&mut self, stream: StreamId, first: i64, last: i64) {
        let range = self.lagged.get_or_insert_default().entry(stream).or_insert((first, last));
        *range = (range.0.min(first), range.1.max(last));
    }

    fn note_lag_of(&mut self, batch: &Batch) {
        if let (Some(first), Some(last)) = (batch.first(), batch.last()) {
            self.note_lag(batch.stream, first, last);
        }
    }

    fn enqueue(&mut self, batch: Arc<Batch>) {
        self.waiting_events += batch.frames.len();
        self.waiting_bytes += batch.bytes;
        self.waiting.push_back(batch);
    }
}

/// What was taken from a queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Frames written.
    pub frames: usize,
    /// When the oldest event among them was committed.
    pub oldest: Option<Instant>,
    /// The connection is to be closed behind them.
    pub close: Option<CloseCode>,
}

impl Queue {
    /// Makes the queue of a new session that the connection `owner` empties; `own` is its user's own stream.
    #[must_use]
    pub fn new(bounds: Bounds, owner: u64, own: StreamId) -> Arc<Self> {
        let inner = Inner { owner, ..Inner::default() };
        Arc::new(Queue { bounds, own, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds this lock")
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (result, wakers) = {
            let mut inner = self.lock();
            let result = change(&mut inner);
            (result, inner.wake())
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
        result
    }

    /// Puts a batch of events in.
    pub fn push(&self, batch: &Arc<Batch>) {
        let bounds = &self.bounds;
        self.with(|inner| {
            if inner.overflowed || inner.is_over() {
                return;
            }
            if inner.lagged.as_ref().is_some_and(|l| l.contains_key(&batch.stream)) {
                inner.note_lag_of(batch);
                return;
            }
            inner.enqueue(batch.clone());
            if inner.owner == 0 {
                if inner.waits_beyond(bounds.ring, bounds.ring_bytes()) {
                    inner.overflowed = true;
                    inner.waiting = VecDeque::new();
                    (inner.waiting_events, inner.waiting_bytes) = (0, 0);
                }
            } else if inner.waits_beyond(bounds.events, bounds.bytes) {
                metrics::counter!("colink_session_lagged_total").increment(1);
                inner.shed(bounds);
            }
        });
    }

    /// Notes that these events of a stream passed the session by: its client is told to read them, when all is out that waits.
    pub fn miss(&self, stream: StreamId, first: i64, last: i64) {
        self.with(|inner| {
            if !inner.overflowed && !inner.is_over() {
                metrics::counter!("colink_session_lagged_total").increment(1);
                inner.note_lag(stream, first, last);
            }
        });
    }

    /// Announces so many events of the log. What waits is held back until they were put in, so that the client sees each
    /// stream in order.
    pub fn expect_pages(&self, events: usize) {
        self.with(|inner| inner.unread += events);
    }

    /// Puts in a page of the log, which stands for so many of the events that were announced.
    pub fn push_page(&self, page: Option<Arc<Batch>>, events: usize) {
        self.with(|inner| {
            inner.unread = inner.unread.saturating_sub(events);
            inner.pages.extend(page);
        });
    }

    /// Completes when there is room for another page of the log, or with `false` when nobody wants it any more.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut inner = self.lock();
        match inner.reads_on() {
            Some(reads_on) => Poll::Ready(reads_on),
            None => {
                inner.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Puts in what is told now and may be lost.
    pub fn push_ephemeral(&self, kind: Ephemeral, frame: Bytes) {
        self.with(|inner| {
            if inner.owner == 0 || inner.is_over() {
                inner.unheard |= matches!(kind, Ephemeral::Presence(_));
                return;
            }
            let waiting = inner.ephemeral.get_or_insert_default();
            let asked_for = matches!(kind, Ephemeral::Presence(_));
            if asked_for || waiting.len() < EPHEMERAL_MAX || waiting.contains_key(&kind) {
                waiting.insert(kind, frame);
            }
        });
    }

    /// Returns whether presence was told while nobody was connected, since this was asked the last time.
    pub fn take_unheard(&self) -> bool {
        std::mem::take(&mut self.lock().unheard)
    }

    /// Puts in a reply or a notice, which goes out before any event.
    pub fn push_control(&self, frame: impl Into<Bytes>) {
        let frame = frame.into();
        self.with(|inner| {
            if inner.control.len() < CONTROL_MAX {
                inner.control.push_back(frame);
            }
        });
    }

    /// Puts in the answer to a request that took a credit.
    pub fn push_answer(&self, frame: Option<Bytes>) {
        self.with(|inner| {
            inner.in_flight = inner.in_flight.saturating_sub(1);
            inner.credited = true;
            if let Some(frame) = frame {
                inner.control.push_back(frame);
            }
        });
    }

    /// Takes a credit for a request.
    pub fn begin(&self) {
        self.lock().in_flight += 1;
    }

    /// Returns how many requests wait for their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// Asks the connection to close: after what waits has gone out, but at once if the session is revoked.
    pub fn close(&self, code: CloseCode) {
        self.with(|inner| inner.end(code));
    }

    /// Completes when there is something to take, credits came back, or `owner` no longer owns the queue.
    pub fn poll_work(&self, owner: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.has_work() || inner.owner != owner {
            return Poll::Ready(());
        }
        match &inner.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => inner.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Takes what waits, up to about `max` bytes, and hands each frame to `write`: its `s`, if it is numbered, and its
    /// bytes. Whoever does not own the queue gets nothing but the word to go.
    pub fn take(&self, owner: u64, max: usize, mut write: impl FnMut(Option<i64>, &[u8])) -> Taken {
        let now = Instant::now();
        let mut inner = self.lock();
        let mut taken = Taken::default();
        if inner.owner != owner {
            taken.close = Some(CloseCode::SessionExpired);
            return taken;
        }
        if inner.close == Some(CloseCode::Revoked) {
            inner.forget();
            taken.close = inner.close;
            return taken;
        }
        inner.credited = false;
        let mut bytes = 0;
        for frame in std::mem::take(&mut inner.control) {
            bytes += frame.len();
            taken.frames += 1;
            write(None, &frame);
        }
        while bytes < max {
            if !inner.ring.has_unsent() {
                let Some(batch) = inner.next() else { break };
                taken.oldest = taken.oldest.or(batch.committed);
                inner.ring.keep(batch, now);
            }
            bytes += inner.send(&mut taken, &mut write);
        }
        let reader = if inner.reads_on().is_some() { inner.reader.take() } else { None };
        if let Some(reader) = reader {
            reader.wake();
        }
        if bytes >= max && inner.has_work() {
            inner.ring.trim(now, &self.bounds);
            return taken;
        }
        if let Some(ephemeral) = inner.ephemeral.take() {
            for frame in ephemeral.into_values() {
                taken.frames += 1;
                write(None, &frame);
            }
        }
        if inner.unread == 0
            && let Some(lagged) = inner.lagged.take()
        {
            inner.ring.keep(self.notice(&lagged), now);
            inner.send(&mut taken, &mut write);
        }
        inner.ring.trim(now, &self.bounds);
        taken.close = inner.close;
        taken
    }

    /// Returns `lagged` as a batch, to be numbered and kept like any other.
    fn notice(&self, lagged: &HashMap<StreamId, (i64, i64)>) -> Arc<Batch> {
        let tail = server::lagged(lagged, self.own).into();
        Batch::new(self.own, vec![Encoded { seq: 0, reaction: false, tail }], None)
    }

    /// Notes that the client has everything up to `s`; returns whether the server ever sent that.
    pub fn acknowledge(&self, s: i64) -> bool {
        let mut inner = self.lock();
        let known = (0..inner.ring.next_s()).contains(&s);
        if known {
            inner.ring.acknowledge(s);
        }
        known
    }

    /// Takes the session up again behind `s`, for the connection `owner`; returns how many events will be sent again or
    /// for the first time, or nothing if memory does not hold all of them.
    pub fn resume(&self, owner: u64, s: i64) -> Option<usize> {
        let now = Instant::now();
        self.with(|inner| {
            if inner.overflowed || inner.lagged.is_some() || inner.is_over() {
                return None;
            }
            // A batch is sent whole: what the client has of it already, it drops by `seq`.
            let from = inner.ring.behind(s)?;
            // What waits goes out behind the log, so it stays where it is until that is read.
            if inner.unread == 0 && !inner.keep_all(from, now, &self.bounds) {
                return None;
            }
            inner.ring.go_back(from);
            inner.ring.trim(now, &self.bounds);
            // Whatever else there was to close is the connection before this one.
            inner.close = None;
            inner.owner = owner;
            inner.credited = true;
            Some(inner.ring.unsent_events() + inner.page_events() + inner.unread + inner.waiting_events)
        })
    }

    /// Notes that the connection `owner` is gone; returns whether that leaves nobody.
    pub fn detach(&self, owner: u64) -> bool {
        let mut inner = self.lock();
        if inner.owner != owner {
            return false;
        }
        (inner.owner, inner.lost) = (0, owner);
        inner.waker = None;
        let unheard =
            inner.ephemeral.take().is_some_and(|e| e.keys().any(|kind| matches!(kind, Ephemeral::Presence(_))));
        inner.unheard |= unheard;
        // That was for the connection: the session can be resumed.
        inner.close = inner.close.filter(|code| *code != CloseCode::RateLimited);
        // Whatever was dropped for a slow reader is gone from memory.
        inner.overflowed |= inner.lagged.take().is_some();
        true
    }

    /// Notes that its user no longer counts as there, if nobody has been connected since the connection `lost` was lost;
    /// returns whether that is so.
    pub fn turn_absent(&self, lost: u64) -> bool {
        let mut inner = self.lock();
        let deserted = inner.deserted_since(lost);
        inner.absent |= deserted;
        deserted
    }

    /// Notes that its user is back, if somebody is connected; returns whether they did not count as there.
    pub fn end_absence(&self) -> bool {
        let mut inner = self.lock();
        inner.owner != 0 && std::mem::take(&mut inner.absent)
    }

    /// Returns whether its user counts as there: somebody is connected, or was a moment ago.
    #[must_use]
    pub fn present(&self) -> bool {
        !self.lock().absent
    }

    /// Ends the queue for good if nobody has been connected since the connection `lost` was lost; returns whether it did.
    pub fn expire(&self, lost: u64) -> bool {
        let mut inner = self.lock();
        let deserted = inner.deserted_since(lost);
        if deserted {
            inner.end(CloseCode::SessionExpired);
        }
        deserted
    }

    /// Ends the queue for good if `owner` (0: nobody) still has it; returns whether it did. From here on nobody can resume
    /// it, so that no client takes up a session that is about to go.
    pub fn retire(&self, owner: u64) -> bool {
        let mut inner = self.lock();
        if inner.owner != owner {
            return false;
        }
        inner.owner = 0;
        inner.end(CloseCode::SessionExpired);
        true
    }

    /// Returns how many events are kept for a resume.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.lock().ring.events()
    }

    /// Returns whether the queue is closed for good.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// Returns whether a connection empties the queue.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.lock().owner != 0
    }

    /// Returns the `s` of the last event that was taken.
    #[must_use]
    pub fn last_s(&self) -> i64 {
        self.lock().ring.next_s() - 1
    }
}

/// Puts a frame's two parts together, as text.
#[must_use]
pub fn text_of(s: Option<i64>, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    if let Some(s) = s {
        push::head(s, &mut out);
    }
    out.extend_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests;
