//! What others hold of a session, and what its connection holds.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ractor::ActorRef;

use super::queue::Queue;
use super::{ACTIVE_EVERY_S, SessionMsg};
use crate::actors::channel::room::UNKNOWN;
use crate::actors::directory::Slot;
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::error::Refusal;
use crate::domain::id::{SessionId, StreamId, TokenId, UserId};
use crate::domain::user::{PresenceMode, Role};
use crate::protocol::client::{Intent, Request};
use crate::protocol::close::CloseCode;
use crate::protocol::push::Batch;
use crate::protocol::server;

/// What others hold of a session.
#[derive(Debug)]
pub struct SessionHandle {
    /// The session.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// The sign-in behind it.
    pub token_id: TokenId,
    /// What waits for it.
    pub queue: Arc<Queue>,
    /// Whether it wants to be told who is typing.
    pub wants_typing: bool,
    /// Whether it wants to be told who is online.
    pub wants_presence: bool,
    pub(super) wants_messages: bool,
    pub(super) wants_reactions: bool,
    pub(super) role: AtomicU8,
    /// How the user chose to be shown; a number that stands for no way until that was read.
    pub(super) mode: AtomicU8,
    /// The number of the last event of the workspace's stream that is in the two above.
    pub(super) user_seq: Mutex<i64>,
    /// When the sign-in ends, in microseconds; the greatest number if it does not.
    pub(super) sign_in_ends: AtomicI64,
    /// The version of the user's account that was last looked at.
    pub(super) version: AtomicI64,
    /// The streams that it hears, so that what another node commits there is missed here.
    pub(super) hears: Mutex<Vec<Arc<Slot>>>,
    pub(super) ended: AtomicBool,
    pub(super) watches: Mutex<Box<[UserId]>>,
    /// The presence tracker was told to look at `watches`, and did not yet.
    pub(super) watches_told: AtomicBool,
    /// It was told to look again whom it may watch, and did not yet.
    pub(super) looks_again: AtomicBool,
    /// When the presence tracker was last told that the user does something, in microseconds.
    pub(super) told_active: AtomicI64,
    pub(super) actor: OnceLock<ActorRef<SessionMsg>>,
}

impl SessionHandle {
    pub(super) fn new(
        principal: Principal,
        intents: Option<&[Intent]>,
        queue: Arc<Queue>,
        now: Timestamp,
    ) -> Arc<Self> {
        let wants = |intent| intents.is_none_or(|list| list.contains(&intent));
        Arc::new(SessionHandle {
            id: SessionId::new(now),
            user_id: principal.user_id,
            token_id: principal.token_id,
            queue,
            wants_typing: wants(Intent::Typing),
            wants_presence: wants(Intent::Presence),
            wants_messages: wants(Intent::Messages),
            wants_reactions: wants(Intent::Reactions),
            role: AtomicU8::new(principal.role as u8),
            mode: AtomicU8::new(u8::MAX),
            user_seq: Mutex::default(),
            sign_in_ends: AtomicI64::new(i64::MAX),
            version: AtomicI64::new(0),
            hears: Mutex::default(),
            ended: AtomicBool::new(false),
            watches: Mutex::default(),
            watches_told: AtomicBool::new(false),
            looks_again: AtomicBool::new(false),
            told_active: AtomicI64::new(0),
            actor: OnceLock::new(),
        })
    }

    /// Delivers events.
    pub fn push(&self, batch: &Arc<Batch>) {
        if let Some(part) = self.wanted(batch) {
            self.queue.push(&part);
        }
    }

    /// Notes that of a stream it knows all up to one number, and hears what comes behind another: its client is told to read
    /// what is in between, if that is something.
    pub(in crate::actors) fn missed(&self, stream: StreamId, known: i64, sent: i64) {
        if known < sent && self.wants_durable() {
            self.queue.miss(stream, known + 1, sent);
        }
    }

    /// Returns what of a batch the session wants.
    pub(super) fn wanted(&self, batch: &Arc<Batch>) -> Option<Arc<Batch>> {
        batch.part(self.wants_messages, self.wants_reactions)
    }

    /// Returns whether it wants any durable event.
    pub(super) fn wants_durable(&self) -> bool {
        self.wants_messages || self.wants_reactions
    }

    /// Returns who asks when this session asks.
    pub fn principal(&self) -> Principal {
        let role = Role::ALL[usize::from(self.role.load(Ordering::Acquire)).min(Role::ALL.len() - 1)];
        Principal { user_id: self.user_id, role, token_id: self.token_id }
    }

    /// Notes what the user's role is; returns whether it was another.
    pub fn set_role(&self, role: Role) -> bool {
        self.role.swap(role as u8, Ordering::AcqRel) != role as u8
    }

    /// Returns how the user chose to be shown; nothing while it is being opened.
    pub(in crate::actors) fn mode(&self) -> Option<PresenceMode> {
        PresenceMode::ALL.get(usize::from(self.mode.load(Ordering::Acquire))).copied()
    }

    /// Notes what the user is as of an event of the workspace's stream, unless something later is noted already: what was
    /// read from the log and what the bus brings come in any order. Returns whether the role was another.
    pub(in crate::actors) fn set_user(&self, seq: i64, role: Role, mode: PresenceMode) -> bool {
        let mut noted = self.user_seq.lock().expect("no panic under this lock");
        if seq < *noted {
            return false;
        }
        *noted = seq;
        self.mode.store(mode as u8, Ordering::Release);
        self.set_role(role)
    }

    /// Returns how long the sign-in still holds; nothing if it does not end by itself.
    pub fn sign_in_left(&self, now: Timestamp) -> Option<Duration> {
        let ends = self.sign_in_ends.load(Ordering::Acquire);
        (ends != i64::MAX).then(|| Timestamp(ends).since(now))
    }

    pub(super) fn set_sign_in_ends(&self, at: Option<Timestamp>) {
        self.sign_in_ends.store(at.map_or(i64::MAX, |at| at.0), Ordering::Release);
    }

    /// Returns the version of the user's account that was last looked at.
    pub(in crate::actors) fn version(&self) -> i64 {
        self.version.load(Ordering::Acquire)
    }

    /// Notes that the user's account was looked at.
    pub(in crate::actors) fn note_version(&self, version: i64) {
        self.version.fetch_max(version, Ordering::AcqRel);
    }

    /// Notes that it hears a stream of which all is known up to `head`: what comes later than that is missed if it does not come.
    pub(in crate::actors) fn hears(&self, slot: Arc<Slot>, head: i64) {
        let _ = slot.delivered.compare_exchange(UNKNOWN, head, Ordering::AcqRel, Ordering::Acquire);
        let mut hears = self.hears.lock().expect("no panic under this lock");
        if !hears.iter().any(|known| Arc::ptr_eq(known, &slot)) {
            hears.push(slot);
        }
    }

    /// Notes that the user does something; returns whether the presence tracker is to be told, which is enough every so
    /// often.
    pub(in crate::actors) fn turns_active(&self, now: Timestamp) -> bool {
        let told = self.told_active.load(Ordering::Relaxed);
        // A clock that was set back does not keep it from being told until it gets there again.
        let is_due = now.0.abs_diff(told) >= ACTIVE_EVERY_S * 1_000_000;
        is_due && self.told_active.compare_exchange(told, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns whether the session is over.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Makes way for another session, if nobody is connected; it is over from here on. Returns whether it did.
    pub(in crate::actors) fn make_way(&self) -> bool {
        self.queue.retire(0) && !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Returns whom it watches, for the presence tracker; a change from here on is told to it again.
    pub(in crate::actors) fn take_watches(&self) -> Box<[UserId]> {
        self.watches_told.store(false, Ordering::SeqCst);
        self.watches()
    }

    /// Returns whom it watches.
    pub(in crate::actors) fn watches(&self) -> Box<[UserId]> {
        self.watches.lock().expect("no panic under this lock").clone()
    }

    /// Has the session look again whom of those it watches its user may see.
    pub(in crate::actors) fn look_again(&self) {
        if self.notes_to_look_again() {
            self.tell(SessionMsg::LookAgain);
        }
    }

    /// Notes that it has to look again; returns whether it was not to do so anyway.
    pub(super) fn notes_to_look_again(&self) -> bool {
        !self.looks_again.swap(true, Ordering::SeqCst)
    }

    /// Asks the client to move to another connection, at a random time within `spread`.
    pub fn ask_to_reconnect(&self, url: &str, spread: Duration) {
        // The end of the identifier is random.
        let jitter = self.id.0.as_u128() % spread.as_millis().max(1);
        self.queue.push_control(server::reconnect(url, u64::try_from(jitter).unwrap_or(0)));
    }

    pub(super) fn tell(&self, message: SessionMsg) {
        if let Some(actor) = self.actor.get() {
            let _ = actor.cast(message);
        }
    }

    /// Hands a request to the session. The caller took a credit of the queue; it comes back with the answer.
    ///
    /// One that is refused already comes here too: it costs an answer, and so a turn.
    pub fn request(&self, id: Option<u64>, request: Result<Request, Refusal>) {
        self.tell(SessionMsg::Request(id, request.map(Box::new)));
    }

    /// Notes that a connection ended; if it was the session's, the session waits for its client from now on, or ends if
    /// nobody may resume it.
    pub(super) fn detach(&self, connection: u64) {
        if self.queue.detach(connection) {
            self.tell(if self.queue.is_over() { SessionMsg::End } else { SessionMsg::Detached(connection) });
        }
    }

    /// Ends the session because the connection that serves it said goodbye; nothing if another serves it by now.
    pub fn leave(&self, connection: u64) {
        if self.queue.retire(connection) {
            self.end();
        }
    }

    /// Closes the connection for good, or ends the session at once if there is none.
    pub fn revoke(&self) {
        self.queue.close(CloseCode::Revoked);
        if !self.queue.attached() {
            self.end();
        }
    }

    /// Makes the session's actor panic.
    #[cfg(test)]
    pub(in crate::actors) fn panic(&self) {
        self.tell(SessionMsg::Panic);
    }

    /// Lets the first timer of a lost connection come, without waiting for it.
    #[cfg(test)]
    pub(in crate::actors) fn lingered(&self, connection: u64) {
        self.tell(SessionMsg::Lingered(connection));
    }

    /// Lets the last timer of a lost connection come, without waiting for it.
    #[cfg(test)]
    pub(in crate::actors) fn expire(&self, connection: u64) {
        self.tell(SessionMsg::Expire(connection));
    }

    /// Ends the session.
    pub fn end(&self) {
        // At once: it no longer counts as in use.
        self.ended.store(true, Ordering::Release);
        self.queue.close(CloseCode::SessionExpired);
        self.tell(SessionMsg::End);
    }
}

/// A session in the hands of a connection, which lets go of it however it ends. A session that no client knows of is over then.
#[derive(Debug)]
pub struct Attached {
    session: Arc<SessionHandle>,
    connection: u64,
    known: bool,
}

impl Attached {
    /// Takes a new session, of which no client knows.
    pub(super) fn new(session: Arc<SessionHandle>, connection: u64) -> Self {
        Attached { session, connection, known: false }
    }

    /// Returns the session as one that its client may come back to: what tells the client of it is made.
    pub(super) fn known(mut self) -> Self {
        self.known = true;
        self
    }

    /// Returns which connection it is.
    #[must_use]
    pub fn connection(&self) -> u64 {
        self.connection
    }
}

impl std::ops::Deref for Attached {
    type Target = Arc<SessionHandle>;

    fn deref(&self) -> &Arc<SessionHandle> {
        &self.session
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.known {
            self.session.detach(self.connection);
        } else {
            self.session.leave(self.connection);
        }
    }
}
