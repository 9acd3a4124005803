//! Those who send: one thread that keeps to a schedule, or to a window of messages in flight.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::fleet::{Conn, Progress, writer};
use super::frames::{Template, Ticks, heartbeat};
use super::stats::Schedule;

/// How fast to send.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Pace {
    /// So many a second, each at its time.
    Rate(f64),
    /// As fast as they are delivered, with so many on their way.
    Window {
        /// Messages on their way.
        messages: u64,
        /// How many receive each.
        receivers: u64,
    },
}

/// One who sends into one room.
pub(super) struct Pen {
    conn: Arc<Conn>,
    socket: TcpStream,
    template: Template,
    acked: i64,
}

impl Pen {
    pub(super) fn new(conn: Arc<Conn>, template: Template) -> Result<Self> {
        let socket = writer(&conn)?;
        let acked = conn.s();
        Ok(Pen { conn, socket, template, acked })
    }

    fn send(&mut self, intended: u64, n: u64) -> std::io::Result<()> {
        write_all(&mut self.socket, self.template.fill(intended, n))?;
        if self.conn.s() - self.acked >= 256 {
            self.beat()?;
        }
        Ok(())
    }

    fn beat(&mut self) -> std::io::Result<()> {
        self.acked = self.conn.s();
        write_all(&mut self.socket, &heartbeat(self.acked))
    }
}

/// Writes everything to a socket that does not block, since its other half is read without blocking.
fn write_all(socket: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => pause(Duration::from_micros(50)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "on a thread of its own: the runtime's timer is too coarse for a schedule"
)]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A sending thread. It stops when told, or when dropped.
pub(super) struct Sending {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<(Vec<Pen>, std::io::Result<()>)>>,
}

impl Sending {
    /// Starts to send by all `pens` in turn, at most `limit` messages.
    pub(super) fn start(pens: Vec<Pen>, pace: Pace, limit: u64, progress: Arc<Progress>, ticks: Ticks) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let work = Work { pens, pace, limit, progress, ticks, stop: Arc::clone(&stop), sent: Arc::clone(&sent) };
        let thread = std::thread::Builder::new().name("send".to_owned()).spawn(move || work.run());
        Ok(Sending { stop, sent, thread: Some(thread.context("cannot start a thread")?) })
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops sending and returns those who sent, and how many messages.
    pub(super) fn stop(mut self) -> Result<(Vec<Pen>, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the sending thread was stopped before")?;
        let (pens, outcome) = thread.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        outcome.context("cannot send: the server closed the connection")?;
        Ok((pens, self.sent()))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Work {
    pens: Vec<Pen>,
    pace: Pace,
    limit: u64,
    progress: Arc<Progress>,
    ticks: Ticks,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

impl Work {
    fn run(mut self) -> (Vec<Pen>, std::io::Result<()>) {
        let outcome = self.send_all();
        (self.pens, outcome)
    }

    fn send_all(&mut self) -> std::io::Result<()> {
        let schedule = match self.pace {
            Pace::Rate(per_second) => Some(Schedule::new(self.ticks.now(), per_second)),
            Pace::Window { .. } => None,
        };
        let delivered = self.progress.delivered.load(Ordering::Relaxed);
        let refused = self.progress.refused.load(Ordering::Relaxed);
        let mut beaten = Instant::now();
        let mut n = 0;
        while n < self.limit && !self.stop.load(Ordering::Relaxed) {
            let now = self.ticks.now();
            let intended = schedule.map_or(now, |schedule| schedule.time_of(n));
            let wait = match self.pace {
                Pace::Rate(_) => intended.saturating_sub(now).min(50_000),
                Pace::Window { messages, receivers } => {
                    let arrived = (self.progress.delivered.load(Ordering::Relaxed) - delivered) / receivers.max(1)
                        + (self.progress.refused.load(Ordering::Relaxed) - refused);
                    if n.saturating_sub(arrived) < messages { 0 } else { 100 }
                }
            };
            if wait > 0 {
                pause(Duration::from_micros(wait));
                if beaten.elapsed() > Duration::from_secs(15) {
                    beaten = Instant::now();
                    self.pens.iter_mut().try_for_each(Pen::beat)?;
                }
                continue;
            }
            let turn = usize::try_from(n).unwrap_or(0) % self.pens.len();
            self.pens[turn].send(intended, n)?;
            n += 1;
            self.sent.store(n, Ordering::Relaxed);
        }
        Ok(())
    }
}
