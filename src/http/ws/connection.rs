//! A connection with an open session: what waits goes out, what comes in is handed on, until either side ends it.
//!
//! While nothing moves, a connection owns no buffer: it reads into, and writes from, a buffer of the thread. What waits in
//! the queue goes out in one write.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::next_connection;
use crate::actors::Hub;
use crate::actors::session::SessionHandle;
use crate::domain::command::Principal;
use crate::http::serve::Place;
use crate::protocol::client::{self, Request as Asked};
use crate::protocol::close::CloseCode;
use crate::protocol::server;
use crate::protocol::wire::{self, Incoming, Limits, Reader};

/// How much is read, and about how much is written, at once.
const READ: usize = 64 * 1_024;
const WRITE: usize = 256 * 1_024;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
    static WRITE_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(WRITE + 64 * 1_024));
}

/// One connection.
pub(super) struct Connection {
    pub(super) hub: Arc<Hub>,
    pub(super) stream: TcpStream,
    reader: Reader,
    pub(super) number: u64,
    /// Written bytes that the socket did not take yet.
    unsent: Vec<u8>,
    /// What was read and is not looked at yet: as much is in work as may be.
    pub(super) unread: Vec<u8>,
    /// Attempts to open a session on this connection.
    pub(super) attempts: u32,
    pub(super) from: IpAddr,
    /// When a message that is not complete has to be.
    message: Option<(u64, Instant)>,
    heard: Instant,
    _place: Option<Place>,
}

/// Why a connection ends.
pub(super) enum End {
    /// The socket is gone.
    Gone,
    /// The server says goodbye.
    Close(u16, &'static str),
}

impl From<CloseCode> for End {
    fn from(code: CloseCode) -> Self {
        End::Close(code.code(), code.reason())
    }
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        End::Gone
    }
}

impl Connection {
    pub(super) fn new(hub: Arc<Hub>, stream: TcpStream, from: IpAddr, place: Option<Place>) -> Self {
        let gateway = &hub.config.gateway;
        let limits = Limits { max_message: gateway.max_message_bytes, max_fragments: gateway.max_fragments };
        metrics::gauge!("colink_connections").increment(1.0);
        Connection {
            reader: Reader::new(limits),
            number: next_connection(),
            unsent: Vec::new(),
            unread: Vec::new(),
            attempts: 0,
            from,
            message: None,
            heard: Instant::now(),
            hub,
            stream,
            _place: place,
        }
    }

    pub(super) async fn run(mut self: Box<Self>, known: Option<Principal>, early: Bytes) {
        // Bound to a name, so that the box is gone while the connection lives on.
        let greeted = Box::pin(self.greet(known, early)).await;
        let end = match greeted {
            Ok(session) => {
                let end = self.serve(&session).await;
                // A client that says goodbye, and one whose sign-in ended, does not come back to this session.
                if let End::Close(1000 | 4014, _) = end {
                    session.leave(self.number);
                }
                end
            }
            Err(end) => end,
        };
        Box::pin(self.finish(end)).await;
    }

    /// The life of the connection: what waits goes out, what comes in is handed on, until either side ends it.
    async fn serve(&mut self, session: &Arc<SessionHandle>) -> End {
        let gateway = &self.hub.config.gateway;
        let patience = Duration::from_millis(gateway.heartbeat_interval_ms.saturating_mul(2));
        let stall = Duration::from_millis(gateway.write_stall_ms);
        let inflight = gateway.inflight;
        self.heard = Instant::now();
        // One alarm for everything that has a time: silence, a message that does not end, the end of the sign-in.
        let signed_out = |hub: &Hub| Instant::now().checked_add(session.sign_in_left(hub.clock.now())?);
        let mut sign_in_ends = signed_out(&self.hub);
        let silent = self.heard + patience;
        let alarm = tokio::time::sleep_until(sign_in_ends.map_or(silent, |at| at.min(silent)));
        tokio::pin!(alarm);
        loop {
            if let Err(end) = self.write_waiting(session, stall).await {
                return end;
            }
            // A client with too many requests in flight is not read until some are answered.
            let may_read = session.queue.in_flight() < inflight;
            let held = !self.unread.is_empty();
            let waits_since = Instant::now();
            let wait = async {
                tokio::select! {
                    () = std::future::poll_fn(|cx| session.queue.poll_work(self.number, cx)), if !held || !may_read => Ok(false),
                    readable = self.stream.readable(), if may_read && !held => readable.map(|()| true),
                    () = std::future::ready(()), if may_read && held => Ok(true),
                    () = alarm.as_mut() => Err(std::io::ErrorKind::TimedOut.into()),
                }
            };
            let woken = wait.await;
            if !may_read {
                self.excuse(waits_since);
            }
            match woken {
                Ok(false) => {}
                Ok(true) => {
                    if let Err(end) = self.hear(session).await {
                        return end;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    // What has come by now is heard first.
                    if may_read && let Err(end) = self.hear(session).await {
                        return end;
                    }
                    if self.heard.elapsed() >= patience {
                        return CloseCode::SessionExpired.into();
                    }
                    if self.message.is_some_and(|(_, due)| due <= Instant::now()) {
                        return End::Close(CloseCode::TooBig.code(), "message took too long");
                    }
                    if sign_in_ends.is_some_and(|at| at <= Instant::now()) {
                        Box::pin(self.hub.check_sign_in(session)).await;
                        sign_in_ends = signed_out(&self.hub);
                    }
                }
                Err(_) => return End::Gone,
            }
            let message = self.message.map(|(_, due)| due);
            let due = [message, sign_in_ends].into_iter().flatten().fold(self.heard + patience, Instant::min);
            if alarm.is_elapsed() || due < alarm.deadline() {
                alarm.as_mut().reset(due);
            }
        }
    }

    /// Takes in what has come, and answers what the connection answers by itself.
    async fn hear(&mut self, session: &Arc<SessionHandle>) -> Result<(), End> {
        let mut answers = Vec::new();
        self.read_requests(session, &mut answers)?;
        self.watch_message();
        self.flush(&mut answers).await
    }

    /// Does not hold the time against the client in which nobody read what it said.
    fn excuse(&mut self, since: Instant) {
        let unheard = since.elapsed();
        self.heard += unheard;
        if let Some((_, due)) = &mut self.message {
            *due += unheard;
        }
    }

    /// Notes since when a message has been incomplete.
    fn watch_message(&mut self) {
        let timeout = Duration::from_millis(self.hub.config.gateway.message_timeout_ms);
        self.message = match (self.reader.unfinished(), self.message) {
            (None, _) => None,
            (Some(_), _) if timeout.is_zero() => None,
            (Some(message), Some((before, due))) if message == before => Some((message, due)),
            (Some(message), _) => Some((message, Instant::now() + timeout)),
        };
    }

    /// Writes all that waits, as long as the socket takes it.
    async fn write_waiting(&mut self, session: &SessionHandle, stall: Duration) -> Result<(), End> {
        loop {
            if !self.unsent.is_empty() {
                self.write_unsent(stall).await?;
            }
            let mut taken = WRITE_BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                let taken = session.queue.take(self.number, WRITE, |s, bytes| frame(s, bytes, buffer));
                let written = if buffer.is_empty() { Ok(0) } else { write_some(&self.stream, buffer) };
                written.map(|n| {
                    self.unsent.extend_from_slice(&buffer[n..]);
                    taken
                })
            })?;
            if let Some(committed) = taken.oldest.take() {
                metrics::histogram!("colink_commit_to_socket_seconds").record(committed.elapsed().as_secs_f64());
            }
            if taken.frames > 0 {
                continue;
            }
            return match taken.close {
                Some(code) if self.unsent.is_empty() => Err(code.into()),
                _ => Ok(()),
            };
        }
    }

    async fn write_unsent(&mut self, stall: Duration) -> Result<(), End> {
        let began = Instant::now();
        // What was written is gone at once, for whoever waits may be cancelled: a goodbye goes behind what is left.
        while !self.unsent.is_empty() {
            if stall.is_zero() {
                self.stream.writable().await?;
            } else if let Ok(writable) = tokio::time::timeout(stall, self.stream.writable()).await {
                writable?;
            } else {
                return Err(CloseCode::SlowConsumer.into());
            }
            let sent = write_some(&self.stream, &self.unsent)?;
            self.unsent.drain(..sent);
        }
        self.unsent = Vec::new();
        self.excuse(began);
        Ok(())
    }

    /// Reads what has come and hands the requests to the session, until as many are in work as may be.
    fn read_requests(&mut self, session: &Arc<SessionHandle>, answers: &mut Vec<u8>) -> Result<(), End> {
        let mut beats = false;
        let inflight = self.hub.config.gateway.inflight;
        let read = self.read(answers, |text| {
            ask(session, text, &mut beats)?;
            Ok(session.queue.in_flight() < inflight)
        });
        if beats {
            wire::write_text(&[server::HEARTBEAT_ACK.as_bytes()], answers);
        }
        read
    }

    /// Reads once, or takes up what was left of the last time, and gives each whole text to `each` for as long as that
    /// says to go on. Pongs are put into `answers`.
    pub(super) fn read(
        &mut self,
        answers: &mut Vec<u8>,
        each: impl FnMut(&str) -> Result<bool, End>,
    ) -> Result<(), End> {
        if !self.unread.is_empty() {
            let mut unread = std::mem::take(&mut self.unread);
            let left = self.feed(&mut unread, answers, each)?;
            unread.drain(..unread.len() - left);
            self.unread = unread;
            return Ok(());
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let n = match self.stream.try_read(buffer) {
                Ok(0) => return Err(End::Gone),
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(End::Gone),
            };
            self.heard = Instant::now();
            let left = self.feed(&mut buffer[..n], answers, each)?;
            self.unread = buffer[n - left..n].to_vec();
            Ok(())
        })
    }

    /// Returns how many bytes at the end were not looked at.
    fn feed(
        &mut self,
        mut input: &mut [u8],
        answers: &mut Vec<u8>,
        mut each: impl FnMut(&str) -> Result<bool, End>,
    ) -> Result<usize, End> {
        loop {
            let item = self.reader.next(&mut input);
            match item.map_err(|error| End::Close(error.close_code(), reason(error)))? {
                Some(Incoming::Text(text)) => {
                    if !each(&text)? {
                        return Ok(input.len());
                    }
                }
                // At any rate, but never more of them than one read brings.
                Some(Incoming::Ping(payload)) => wire::write_pong(&payload, answers),
                Some(Incoming::Pong(_)) => {}
                Some(Incoming::Close { code: None | Some(1000), .. }) => return Err(CloseCode::Normal.into()),
                // The client leaves this connection, not the session: a closed lid, a reloaded page.
                Some(Incoming::Close { .. }) => return Err(CloseCode::GoingAway.into()),
                None => return Ok(0),
            }
        }
    }

    pub(super) async fn send(&mut self, text: &str) -> Result<(), End> {
        let mut bytes = Vec::with_capacity(text.len() + 10);
        wire::write_text(&[text.as_bytes()], &mut bytes);
        self.flush(&mut bytes).await
    }

    pub(super) async fn flush(&mut self, bytes: &mut Vec<u8>) -> Result<(), End> {
        if bytes.is_empty() && self.unsent.is_empty() {
            return Ok(());
        }
        self.unsent.append(bytes);
        let stall = Duration::from_millis(self.hub.config.gateway.write_stall_ms);
        self.write_unsent(stall).await
    }

    /// Says goodbye, and waits a moment for the client to do the same.
    pub(super) async fn finish(mut self: Box<Self>, end: End) {
        let End::Close(code, reason) = end else { return };
        metrics::counter!("colink_connections_closed_total", "code" => code.to_string()).increment(1);
        wire::write_close(code, reason, &mut self.unsent);
        let patience = Duration::from_secs(2);
        if tokio::time::timeout(patience, self.write_unsent(patience)).await.is_err() {
            return;
        }
        let _ = tokio::time::timeout(patience, self.wait_for_end()).await;
    }

    async fn wait_for_end(&mut self) {
        let mut left = 1_024 * 1_024;
        loop {
            if self.stream.readable().await.is_err() {
                return;
            }
            let read = READ_BUFFER.with_borrow_mut(|buffer| self.stream.try_read(buffer));
            match read {
                Ok(0) => return,
                Ok(n) if n < left => left -= n,
                Ok(_) => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!("colink_connections").decrement(1.0);
    }
}

/// Hands one message to the session. Heartbeats are answered by the connection itself.
fn ask(session: &Arc<SessionHandle>, text: &str, beats: &mut bool) -> Result<(), End> {
    let frame = client::decode(text).map_err(|_| End::from(CloseCode::Decode))?;
    match frame.request {
        Ok(Asked::Heartbeat(s)) => {
            if s.is_some_and(|s| !session.queue.acknowledge(s)) {
                return Err(CloseCode::BadCursor.into());
            }
            *beats = true;
        }
        request => {
            session.queue.begin();
            session.request(frame.id, request);
        }
    }
    Ok(())
}

/// Appends one frame: its head, if it is numbered, and its bytes.
fn frame(s: Option<i64>, bytes: &[u8], out: &mut Vec<u8>) {
    let Some(s) = s else { return wire::write_text(&[bytes], out) };
    let mut head = [0u8; 32];
    let len = {
        use std::io::Write as _;
        let mut cursor = std::io::Cursor::new(&mut head[..]);
        let _ = write!(cursor, "{{\"s\":{s},");
        cursor.position() as usize
    };
    wire::write_text(&[&head[..len], bytes], out);
}

fn write_some(stream: &TcpStream, bytes: &[u8]) -> Result<usize, End> {
    match stream.try_write(bytes) {
        Ok(n) => Ok(n),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        Err(_) => Err(End::Gone),
    }
}

fn reason(error: wire::WireError) -> &'static str {
    let code = error.close_code();
    CloseCode::of(code).map_or("protocol error", CloseCode::reason)
}
