//! The receivers: thousands of connections on few threads, next to nothing for each.
//!
//! A thread has one buffer for all its connections; a connection has its two numbers and, between two reads, the start
//! of a frame that came in half. It shares its processor with the server, so it allocates nothing for an event.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::dial::{Joined, Place};
use super::frames::{CLOSE, PING, PONG, Said, Scanner, Ticks, Walk, heartbeat, put};
use super::stats::Tally;

/// The largest frame that can be received, in bytes.
const BUFFER: usize = 1 << 20;
/// How often a connection heartbeats, well within the server's interval of 30 seconds.
const BEAT_EVERY: Duration = Duration::from_secs(20);
/// Everything is acknowledged at least every so many events.
const ACK_EVERY: i64 = 256;

/// What all threads count together, for those who send and wait.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Events that were the next one.
    pub(super) delivered: AtomicU64,
    /// Commands that were answered with yes, and with no.
    pub(super) acked: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Connections that reached the goal.
    pub(super) arrived: AtomicU64,
}

/// A reading of [`Progress`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    pub(super) delivered: u64,
    pub(super) acked: u64,
    pub(super) refused: u64,
}

impl Progress {
    pub(super) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { delivered: read(&self.delivered), acked: read(&self.acked), refused: read(&self.refused) }
    }
}

impl Counts {
    pub(super) fn since(self, earlier: Counts) -> Counts {
        Counts {
            delivered: self.delivered - earlier.delivered,
            acked: self.acked - earlier.acked,
            refused: self.refused - earlier.refused,
        }
    }
}

/// A connection as its thread and its sender share it.
pub(super) struct Conn {
    person: usize,
    place: Place,
    write: OwnedWriteHalf,
    /// Whether somebody else writes to it, and heartbeats for it.
    pen: bool,
    s: AtomicI64,
    seq: AtomicI64,
    acked: AtomicI64,
}

impl Conn {
    /// Returns the last event's number in the session.
    pub(super) fn s(&self) -> i64 {
        self.s.load(Ordering::Relaxed)
    }
}

/// A goal for every connection: to have seen this `seq`, counted in time from `since`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    pub(super) seq: i64,
    pub(super) since: u64,
}

enum Order {
    Add(Vec<(Joined, bool)>, oneshot::Sender<Vec<Arc<Conn>>>),
    Goal(Option<Goal>),
    /// Forget what was counted.
    Reset,
    /// Hand over what was counted.
    Take(oneshot::Sender<Tally>),
    /// Cut every connection, and say where each stood.
    Cut(oneshot::Sender<Vec<(usize, Place)>>),
}

/// The receiving threads. They end with it.
pub(super) struct Fleet {
    pub(super) progress: Arc<Progress>,
    orders: Vec<mpsc::Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

impl Fleet {
    pub(super) fn start(threads: usize, ticks: Ticks) -> Result<Fleet> {
        let progress = Arc::new(Progress::default());
        let mut fleet = Fleet { progress, orders: Vec::new(), threads: Vec::new() };
        for n in 0..threads.max(1) {
            let (sender, orders) = mpsc::channel(16);
            let progress = Arc::clone(&fleet.progress);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new()
                .name(format!("receive-{n}"))
                .spawn(move || runtime.block_on(command(orders, progress, ticks)))
                .context("cannot start a thread")?;
            fleet.orders.push(sender);
            fleet.threads.push(thread);
        }
        Ok(fleet)
    }

    /// Takes connections over. Those of which `is_pen` says so are returned for a sender to write to.
    pub(super) async fn add(&self, joined: Vec<Joined>, is_pen: impl Fn(usize) -> bool) -> Result<Vec<Arc<Conn>>> {
        let mut shares: Vec<Vec<(Joined, bool)>> = self.orders.iter().map(|_| Vec::new()).collect();
        for (n, one) in joined.into_iter().enumerate() {
            let pen = is_pen(one.person);
            shares[n % self.orders.len()].push((one, pen));
        }
        let mut pens = Vec::new();
        for (orders, share) in self.orders.iter().zip(shares) {
            let (reply, answer) = oneshot::channel();
            orders.send(Order::Add(share, reply)).await.context("a receiving thread ended")?;
            pens.extend(answer.await.context("a receiving thread could not take its connections")?);
        }
        pens.sort_by_key(|pen: &Arc<Conn>| pen.person);
        Ok(pens)
    }

    pub(super) async fn reset(&self) -> Result<()> {
        for orders in &self.orders {
            orders.send(Order::Reset).await.context("a receiving thread ended")?;
        }
        Ok(())
    }

    pub(super) async fn set_goal(&self, goal: Goal) -> Result<()> {
        for orders in &self.orders {
            orders.send(Order::Goal(Some(goal))).await.context("a receiving thread ended")?;
        }
        Ok(())
    }

    pub(super) async fn take(&self) -> Result<Tally> {
        let mut all = Tally::default();
        for orders in &self.orders {
            let (reply, tally) = oneshot::channel();
            orders.send(Order::Take(reply)).await.context("a receiving thread ended")?;
            all.add(&tally.await.context("a receiving thread ended")?);
        }
        Ok(all)
    }

    /// Cuts every connection at once.
    pub(super) async fn cut(&self) -> Result<Vec<(usize, Place)>> {
        let mut places = Vec::new();
        for orders in &self.orders {
            let (reply, theirs) = oneshot::channel();
            orders.send(Order::Cut(reply)).await.context("a receiving thread ended")?;
            places.extend(theirs.await.context("a receiving thread ended")?);
        }
        Ok(places)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.orders.clear();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            drop(thread.join());
        }
    }
}

thread_local! {
    static RECEIVER: RefCell<Option<Receiver>> = const { RefCell::new(None) };
}

/// A thread's own: the buffer, the scanner and the counts.
struct Receiver {
    buffer: Vec<u8>,
    scanner: Scanner,
    tally: Tally,
    goal: Option<Goal>,
    progress: Arc<Progress>,
    ticks: Ticks,
}

fn here<T>(act: impl FnOnce(&mut Receiver) -> T) -> T {
    RECEIVER.with_borrow_mut(|receiver| act(receiver.as_mut().expect("set when the thread started")))
}

/// A receiving thread's main loop: orders, and heartbeats in turn.
async fn command(mut orders: mpsc::Receiver<Order>, progress: Arc<Progress>, ticks: Ticks) {
    let receiver = Receiver {
        buffer: vec![0; BUFFER],
        scanner: Scanner::default(),
        tally: Tally::default(),
        goal: None,
        progress,
        ticks,
    };
    RECEIVER.set(Some(receiver));
    let mut reading = JoinSet::new();
    let mut conns: Vec<Arc<Conn>> = Vec::new();
    let mut beat = tokio::time::interval(Duration::from_millis(250));
    let mut next_beat = 0;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Add(joined, reply)) => {
                    let mut pens = Vec::new();
                    for (one, pen) in joined {
                        let Ok((conn, read, carry)) = adopt(one, pen) else { continue };
                        reading.spawn(receive(Arc::clone(&conn), read, carry));
                        if pen {
                            pens.push(Arc::clone(&conn));
                        }
                        conns.push(conn);
                    }
                    // Whoever asked may have given up.
                    drop(reply.send(pens));
                }
                Some(Order::Goal(goal)) => here(|receiver| receiver.goal = goal),
                Some(Order::Reset) => here(|receiver| receiver.tally = Tally::default()),
                Some(Order::Take(reply)) => drop(reply.send(here(|receiver| std::mem::take(&mut receiver.tally)))),
                Some(Order::Cut(reply)) => {
                    reading.shutdown().await;
                    drop(reply.send(conns.drain(..).map(|conn| stood(&conn)).collect()));
                }
            },
            _ = beat.tick() => {
                let share = conns.len().div_ceil((BEAT_EVERY.as_millis() / 250) as usize);
                for _ in 0..share {
                    next_beat = (next_beat + 1) % conns.len();
                    acknowledge(&conns[next_beat]);
                }
            }
        }
    }
}

fn adopt(joined: Joined, pen: bool) -> std::io::Result<(Arc<Conn>, OwnedReadHalf, Vec<u8>)> {
    let Joined { stream, carry, person, place, .. } = joined;
    let (read, write) = TcpStream::from_std(stream)?.into_split();
    let (s, seq) = (AtomicI64::new(place.s), AtomicI64::new(place.seq));
    let acked = AtomicI64::new(place.s);
    Ok((Arc::new(Conn { person, place, write, pen, s, seq, acked }), read, carry))
}

fn stood(conn: &Conn) -> (usize, Place) {
    let place = Place { s: conn.s(), seq: conn.seq.load(Ordering::Relaxed), ..conn.place.clone() };
    (conn.person, place)
}

fn acknowledge(conn: &Conn) {
    if !conn.pen {
        conn.acked.store(conn.s(), Ordering::Relaxed);
        // The server reads these at once; should it not, the next one says as much.
        drop(conn.write.try_write(&heartbeat(conn.s())));
    }
}

async fn receive(conn: Arc<Conn>, mut read: OwnedReadHalf, mut carry: Vec<u8>) {
    // What was read with the last answer of the opening.
    if here(|receiver| receiver.take_early(&conn, &mut carry)) {
        while poll_fn(|task| here(|receiver| receiver.poll(task, &conn, &mut read, &mut carry))).await {}
    }
    here(|receiver| receiver.tally.closed += 1);
}

impl Receiver {
    /// Reads once and counts what came. Answers whether the connection is still open.
    fn poll(
        &mut self,
        task: &mut TaskContext<'_>,
        conn: &Conn,
        read: &mut OwnedReadHalf,
        carry: &mut Vec<u8>,
    ) -> Poll<bool> {
        let held = carry.len();
        let mut into = ReadBuf::new(&mut self.buffer[held..]);
        let outcome = ready!(Pin::new(read).poll_read(task, &mut into));
        let got = into.filled().len();
        if outcome.is_err() || got == 0 {
            return Poll::Ready(false);
        }
        self.buffer[..held].copy_from_slice(carry);
        carry.clear();
        self.tally.reads += 1;
        Poll::Ready(self.take(conn, held + got, carry))
    }

    fn take_early(&mut self, conn: &Conn, carry: &mut Vec<u8>) -> bool {
        let len = carry.len();
        self.buffer[..len].copy_from_slice(carry);
        carry.clear();
        self.take(conn, len, carry)
    }

    /// Counts the frames at the front of the buffer and puts what is left of it into `carry`.
    fn take(&mut self, conn: &Conn, len: usize, carry: &mut Vec<u8>) -> bool {
        let now = self.ticks.now();
        let mut counts = Numbers { s: conn.s.load(Ordering::Relaxed), seq: conn.seq.load(Ordering::Relaxed), new: 0 };
        let before = counts.seq;
        let mut open = true;
        let mut walk = Walk::new(&self.buffer[..len]);
        for (opcode, payload) in walk.by_ref() {
            match opcode {
                CLOSE => open = false,
                PING => pong(conn, payload),
                _ => {
                    count(self.scanner.read(payload), payload.len(), now, &mut counts, &mut self.tally, &self.progress)
                }
            }
        }
        let rest = &self.buffer[walk.consumed()..len];
        if rest.len() >= BUFFER / 2 {
            return false;
        }
        if !rest.is_empty() {
            carry.extend_from_slice(rest);
        } else if carry.capacity() > 4_096 {
            *carry = Vec::new();
        }

        conn.s.store(counts.s, Ordering::Relaxed);
        conn.seq.store(counts.seq, Ordering::Relaxed);
        if counts.new > 0 {
            self.progress.delivered.fetch_add(counts.new, Ordering::Relaxed);
        }
        if counts.s - conn.acked.load(Ordering::Relaxed) >= ACK_EVERY {
            acknowledge(conn);
        }
        if let Some(goal) = self.goal
            && before < goal.seq
            && counts.seq >= goal.seq
        {
            self.tally.caught_up.saturating_record(now.saturating_sub(goal.since));
            self.progress.arrived.fetch_add(1, Ordering::Relaxed);
        }
        open
    }
}

/// A connection's numbers while its frames are counted.
struct Numbers {
    s: i64,
    seq: i64,
    /// Events that were the next one.
    new: u64,
}

fn count(said: Said, bytes: usize, now: u64, counts: &mut Numbers, tally: &mut Tally, progress: &Progress) {
    match said {
        Said::Event { s, seq, intended } => {
            counts.s = s;
            tally.events += 1;
            tally.bytes += bytes as u64;
            if seq <= counts.seq {
                tally.duplicates += 1;
                return;
            }
            if seq != counts.seq + 1 {
                tally.jumps += 1;
            }
            counts.seq = seq;
            counts.new += 1;
            if let Some(intended) = intended {
                tally.receive.saturating_record(now.saturating_sub(intended));
            }
        }
        Said::Aside { s } => counts.s = s,
        Said::Reply { intended, ok: true } => {
            tally.ack.saturating_record(now.saturating_sub(intended));
            progress.acked.fetch_add(1, Ordering::Relaxed);
        }
        Said::Reply { ok: false, .. } => {
            progress.refused.fetch_add(1, Ordering::Relaxed);
        }
        Said::Lagged => tally.lagged += 1,
        Said::Other => {}
    }
}

fn pong(conn: &Conn, payload: &[u8]) {
    let mut frame = Vec::new();
    put(&mut frame, PONG, payload);
    if !conn.pen {
        drop(conn.write.try_write(&frame));
    }
}

/// Returns a second handle on the connection's socket, for a thread that writes.
pub(super) fn writer(conn: &Conn) -> Result<std::net::TcpStream> {
    let stream: &TcpStream = conn.write.as_ref();
    let socket = socket2::SockRef::from(stream).try_clone().context("cannot share a connection")?;
    Ok(socket.into())
}
