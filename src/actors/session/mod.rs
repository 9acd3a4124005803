//! One gateway session: a signed-in client that may lose its connection and come back.
//!
//! The actor owns control and state: requests, rate, what it watches, how long it waits for its client. Deliveries do
//! not pass through its mailbox: channels put them into the [`queue`], which the connection empties. [`SessionHandle`] is
//! what others hold of a session, [`Attached`] what its connection holds; `opening.rs` and [`resume`] are how it comes by one.

mod opening;
pub mod queue;
pub mod resume;
mod ring;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::Hub;
use super::channel::room::UNKNOWN;
use super::directory::Slot;
use super::presence::PresenceMsg;
use super::trace::Asked;
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal, invalid, unavailable};
use crate::domain::id::{ChannelId, SessionId, StreamId, TokenId, UserId};
use crate::domain::permission::{self, Action};
use crate::domain::rate::{Bucket, Rate};
use crate::domain::user::Role;
use crate::protocol::client::{Intent, Request};
use crate::protocol::close::CloseCode;
use crate::protocol::push::Batch;
use crate::protocol::server;
use crate::storage::writer::{Answer, Reply};
use crate::storage::{StoreError, tokens, users};
pub use opening::{OpenError, READY_CHANNELS_MAX};
use queue::Queue;

/// The longest that a timer is set for.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a session tells the presence tracker that its user is active.
const ACTIVE_EVERY_S: i64 = 30;

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
    wants_messages: bool,
    wants_reactions: bool,
    role: AtomicU8,
    /// When the sign-in ends, in microseconds; the greatest number if it does not.
    sign_in_ends: AtomicI64,
    /// The version of the user's account that was last looked at.
    version: AtomicI64,
    /// The streams that it hears, so that what another node commits there is missed here.
    hears: Mutex<Vec<Arc<Slot>>>,
    ended: AtomicBool,
    watches: Mutex<Box<[UserId]>>,
    /// The presence tracker was told to look at `watches`, and did not yet.
    watches_told: AtomicBool,
    /// When the presence tracker was last told that the user does something, in microseconds.
    told_active: AtomicI64,
    actor: OnceLock<ActorRef<SessionMsg>>,
}

impl SessionHandle {
    fn new(principal: Principal, intents: Option<&[Intent]>, queue: Arc<Queue>, now: Timestamp) -> Arc<Self> {
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
            sign_in_ends: AtomicI64::new(i64::MAX),
            version: AtomicI64::new(0),
            hears: Mutex::default(),
            ended: AtomicBool::new(false),
            watches: Mutex::default(),
            watches_told: AtomicBool::new(false),
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
    pub(super) fn missed(&self, stream: StreamId, known: i64, sent: i64) {
        if known < sent && self.wants_durable() {
            self.queue.miss(stream, known + 1, sent);
        }
    }

    /// Returns what of a batch the session wants.
    fn wanted(&self, batch: &Arc<Batch>) -> Option<Arc<Batch>> {
        batch.part(self.wants_messages, self.wants_reactions)
    }

    /// Returns whether it wants any durable event.
    fn wants_durable(&self) -> bool {
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

    /// Returns how long the sign-in still holds; nothing if it does not end by itself.
    pub fn sign_in_left(&self, now: Timestamp) -> Option<Duration> {
        let ends = self.sign_in_ends.load(Ordering::Acquire);
        (ends != i64::MAX).then(|| Timestamp(ends).since(now))
    }

    fn set_sign_in_ends(&self, at: Option<Timestamp>) {
        self.sign_in_ends.store(at.map_or(i64::MAX, |at| at.0), Ordering::Release);
    }

    /// Returns the version of the user's account that was last looked at.
    pub(super) fn version(&self) -> i64 {
        self.version.load(Ordering::Acquire)
    }

    /// Notes that the user's account was looked at.
    pub(super) fn note_version(&self, version: i64) {
        self.version.fetch_max(version, Ordering::AcqRel);
    }

    /// Notes that it hears a stream of which all is known up to `head`: what comes later than that is missed if it does not come.
    pub(super) fn hears(&self, slot: Arc<Slot>, head: i64) {
        let _ = slot.delivered.compare_exchange(UNKNOWN, head, Ordering::AcqRel, Ordering::Acquire);
        let mut hears = self.hears.lock().expect("no panic under this lock");
        if !hears.iter().any(|known| Arc::ptr_eq(known, &slot)) {
            hears.push(slot);
        }
    }

    /// Notes that the user does something; returns whether the presence tracker is to be told, which is enough every so
    /// often.
    fn turns_active(&self, now: Timestamp) -> bool {
        let told = self.told_active.load(Ordering::Relaxed);
        let is_due = now.since(Timestamp(told)).as_secs() as i64 >= ACTIVE_EVERY_S;
        is_due && self.told_active.compare_exchange(told, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns whether the session is over.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Makes way for another session, if nobody is connected; it is over from here on. Returns whether it did.
    pub(super) fn make_way(&self) -> bool {
        self.queue.retire(0) && !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Returns whom it watches, for the presence tracker; a change from here on is told to it again.
    pub(super) fn take_watches(&self) -> Box<[UserId]> {
        self.watches_told.store(false, Ordering::SeqCst);
        self.watches()
    }

    /// Returns whom it watches.
    pub(super) fn watches(&self) -> Box<[UserId]> {
        self.watches.lock().expect("no panic under this lock").clone()
    }

    /// Has the session look again whom of those it watches its user may see.
    pub(super) fn look_again(&self) {
        self.tell(SessionMsg::LookAgain);
    }

    /// Asks the client to move to another connection, at a random time within `spread`.
    pub fn ask_to_reconnect(&self, url: &str, spread: Duration) {
        // The end of the identifier is random.
        let jitter = self.id.0.as_u128() % spread.as_millis().max(1);
        self.queue.push_control(server::reconnect(url, u64::try_from(jitter).unwrap_or(0)));
    }

    fn tell(&self, message: SessionMsg) {
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
    fn detach(&self, connection: u64) {
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
    pub(super) fn panic(&self) {
        self.tell(SessionMsg::Panic);
    }

    /// Lets the first timer of a lost connection come, without waiting for it.
    #[cfg(test)]
    pub(super) fn lingered(&self, connection: u64) {
        self.tell(SessionMsg::Lingered(connection));
    }

    /// Lets the last timer of a lost connection come, without waiting for it.
    #[cfg(test)]
    pub(super) fn expire(&self, connection: u64) {
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

/// A session in the hands of a connection, which lets go of it however it ends.
#[derive(Debug)]
pub struct Attached {
    session: Arc<SessionHandle>,
    connection: u64,
}

impl Attached {
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
        self.session.detach(self.connection);
    }
}

impl Hub {
    /// Takes a session up again behind `s`, for a connection; returns it with how many events follow, or nothing if memory
    /// does not hold all of them.
    pub fn take_up(&self, session: &Arc<SessionHandle>, connection: u64, s: i64) -> Option<(Attached, usize)> {
        let replayed = session.queue.resume(connection, s)?;
        let session = Attached { session: session.clone(), connection };
        if session.queue.end_absence() {
            self.directory.tell_presence(PresenceMsg::Look { user: session.user_id });
        }
        Some((session, replayed))
    }

    fn note_active(&self, session: &SessionHandle) {
        if session.turns_active(self.clock.now()) {
            self.directory.tell_presence(PresenceMsg::Active { user: session.user_id });
        }
    }

    /// Notes that a user does something beside their sessions, if they have any, here or on another node: whoever is not there
    /// is not seen.
    pub fn note_active_elsewhere(&self, user: UserId) {
        if let Some(session) = self.directory.a_session_of(user) {
            self.note_active(&session);
        } else if self.cluster.is_some() {
            self.directory.tell_presence(PresenceMsg::ActiveBeside { user });
        }
    }

    /// Tells a session anew who of those it watches is there: what changed while its client was away, or was lost on the
    /// way, it did not hear.
    pub fn show_presence(&self, session: &Arc<SessionHandle>) {
        if session.wants_presence && !session.watches().is_empty() {
            self.directory.tell_presence(PresenceMsg::Show { session: session.clone() });
        }
    }

    /// Ends a session whose sign-in is over. What the session knows of that may be old: the sign-in may have been
    /// prolonged, so the store is asked when the time has come.
    pub async fn check_sign_in(&self, session: &SessionHandle) {
        let over = |now| session.sign_in_left(now).is_some_and(|left| left.is_zero());
        if !over(self.clock.now()) {
            return;
        }
        let standing = async {
            let mut db = self.store.read().await?;
            tokens::standing(&mut db, session.token_id, self.clock.now()).await
        };
        match standing.await {
            Ok(Some(sign_in)) => session.set_sign_in_ends(sign_in.expires_at),
            Ok(None) => {}
            Err(error) => {
                let (user, id) = (session.user_id, session.id);
                tracing::warn!(user.id = %user, session.id = %id, %error, "cannot read when a sign-in ends: asked again");
                session.set_sign_in_ends(Some(self.clock.now().plus_seconds(1)));
            }
        }
        if over(self.clock.now()) {
            session.revoke();
        }
    }

    /// Ends a session when its sign-in is over; never completes.
    pub async fn watch_sign_in(&self, session: &SessionHandle) {
        while let Some(left) = session.sign_in_left(self.clock.now()) {
            // A timer takes no more than some years.
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
            self.check_sign_in(session).await;
            if session.sign_in_left(self.clock.now()).is_some_and(|left| left.is_zero()) {
                break;
            }
        }
        std::future::pending().await
    }
}

/// What a session is told.
pub enum SessionMsg {
    /// A request of its client, or why it is none.
    Request(Option<u64>, Result<Box<Request>, Refusal>),
    /// Watch on only whom the user may still see.
    LookAgain,
    /// A connection was lost, the one of this number.
    Detached(u64),
    /// If nobody came since it was lost: the user no longer counts as there.
    Lingered(u64),
    /// If nobody came since it was lost: the session is over.
    Expire(u64),
    /// End now.
    End,
    /// Panic, to show that only this session notices.
    #[cfg(test)]
    Panic,
}

/// The actor.
struct Session;

struct State {
    hub: Arc<Hub>,
    handle: Arc<SessionHandle>,
    commands: Option<Bucket>,
    /// How many more requests beyond the rate are answered at all.
    refusals: Option<Bucket>,
    /// Where the last typing notice was told, and when.
    typed: Option<(ChannelId, Option<i64>, Timestamp)>,
}

impl Actor for Session {
    type Msg = SessionMsg;
    type State = State;
    type Arguments = (Arc<Hub>, Arc<SessionHandle>);

    async fn pre_start(
        &self,
        _: ActorRef<SessionMsg>,
        (hub, handle): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { hub, handle, commands: None, refusals: None, typed: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMsg>,
        message: SessionMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // Boxed: an idle session's task has room for the largest of these, several times over.
        match message {
            SessionMsg::Request(id, request) => Box::pin(state.request(id, request)).await,
            SessionMsg::LookAgain => Box::pin(state.look_again()).await,
            SessionMsg::Detached(lost) => state.wait_for_client(&myself, lost),
            SessionMsg::Lingered(lost) => state.wait_on(&myself, lost),
            SessionMsg::Expire(lost) if state.handle.queue.expire(lost) => myself.stop(None),
            SessionMsg::Expire(_) => {}
            SessionMsg::End => myself.stop(None),
            #[cfg(test)]
            SessionMsg::Panic => panic!("told to"),
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<SessionMsg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.hub.forget_session(&state.handle);
        Ok(())
    }
}

impl Hub {
    fn forget_session(&self, session: &SessionHandle) {
        session.ended.store(true, Ordering::Release);
        session.queue.close(CloseCode::SessionExpired);
        self.directory.remove_session(session);
        self.directory.tell_presence(PresenceMsg::Closed { user: session.user_id, session: session.id });
    }
}

impl State {
    /// Waits for the client, whose user counts as there for the first part of the time. Each connection that is lost has
    /// the whole of it: the timers of an earlier one do not count.
    fn wait_for_client(&self, myself: &ActorRef<SessionMsg>, lost: u64) {
        let (linger, _) = self.patience();
        myself.send_after(linger, move || SessionMsg::Lingered(lost));
    }

    /// Waits for the rest of the time.
    fn wait_on(&self, myself: &ActorRef<SessionMsg>, lost: u64) {
        if self.handle.queue.turn_absent(lost) {
            self.hub.directory.tell_presence(PresenceMsg::Look { user: self.handle.user_id });
            let (_, rest) = self.patience();
            myself.send_after(rest, move || SessionMsg::Expire(lost));
        }
    }

    /// Returns how long to wait for the client as if it were there, and how long after that.
    fn patience(&self) -> (Duration, Duration) {
        let window = Duration::from_secs(self.hub.config.gateway.resume_window_s);
        let linger = Duration::from_secs(self.hub.config.presence.linger_s).min(window);
        (linger, window - linger)
    }

    async fn request(&mut self, id: Option<u64>, request: Result<Box<Request>, Refusal>) {
        let request = match self.take_turn().and(request) {
            Ok(request) => request,
            Err(refusal) => return self.answer(id, Err(refusal)),
        };
        self.hub.note_active(&self.handle);
        match *request {
            Request::Command(command) => {
                let queue = self.handle.queue.clone();
                let answer = Answer::new(move |result| queue.push_answer(answer_frame(id, result)));
                let asked = Asked::Session(self.handle.id, id);
                asked.sync_scope(|| self.hub.dispatch(self.handle.principal(), command, None, answer));
            }
            Request::Typing { channel_id, thread_seq } => {
                let result = self.typing(channel_id, thread_seq).await;
                self.answer(id, result);
            }
            Request::SubscribePresence(users) => {
                let result = self.watch(users).await;
                self.answer(id, result);
            }
            Request::Identify(_) | Request::Resume(_) | Request::Heartbeat(_) => {
                self.answer(id, Err(invalid("this session is open already")));
            }
        }
    }

    fn take_turn(&mut self) -> Result<(), Refusal> {
        let rate = self.hub.config.gateway.command_rate();
        let now = self.hub.clock.now();
        let taken = self.commands.get_or_insert_with(|| Bucket::full(rate, now)).take(rate, now);
        if taken.is_err() {
            let per_minute = self.hub.config.gateway.refusals_per_minute;
            let rate = Rate { per_minute, burst: per_minute };
            let refusals = self.refusals.get_or_insert_with(|| Bucket::full(rate, now));
            if refusals.take(rate, now).is_err() {
                self.handle.queue.close(CloseCode::RateLimited);
            }
        }
        taken.map_err(too_many)
    }

    fn answer(&self, id: Option<u64>, result: Result<&'static str, Refusal>) {
        let result = result.map(|json| Reply { json: json.to_owned(), duplicate: false });
        self.handle.queue.push_answer(answer_frame(id, result));
    }

    /// Typing is told by the channel's actor, which alone knows who may hear. Nothing of it is stored.
    async fn typing(&mut self, channel: ChannelId, thread_seq: Option<i64>) -> Result<&'static str, Refusal> {
        let facts = self.hub.store.in_time(self.hub.facts(self.handle.user_id, channel));
        let facts = facts.await.map_err(|error| match error {
            StoreError::Refused(refusal) => refusal,
            StoreError::Database(_) => unavailable("the database does not answer now"),
        })?;
        permission::allows(facts.who, Action::Type, facts.channel)?;
        // A notice lasts `typing_ms`: more than two in that time tell nothing new.
        let lasts = Duration::from_millis(self.hub.config.presence.typing_ms);
        let now = self.hub.clock.now();
        let told = self
            .typed
            .is_some_and(|(of, thread, at)| of == channel && thread == thread_seq && now.since(at) < lasts / 2);
        if !lasts.is_zero() && !told {
            self.typed = Some((channel, thread_seq, now));
            self.hub.typing(self.handle.user_id, channel, thread_seq);
        }
        Ok("{}")
    }

    async fn watch(&self, users: Vec<UserId>) -> Result<&'static str, Refusal> {
        let most = self.hub.config.presence.subscriptions;
        if most > 0 && users.len() > most {
            return Err(invalid(format!("user_ids has more than {most} entries")));
        }
        let seen = users::seen_by(&self.hub.store, self.handle.principal(), users);
        let users = self.hub.store.in_time(seen).await.map_err(|_| unavailable("the database does not answer now"))?;
        self.set_watches(users);
        Ok("{}")
    }

    fn set_watches(&self, users: Vec<UserId>) {
        *self.handle.watches.lock().expect("no panic under this lock") = users.into();
        if self.handle.wants_presence && !self.handle.watches_told.swap(true, Ordering::SeqCst) {
            self.hub.directory.tell_presence(PresenceMsg::Watch { session: self.handle.clone() });
        }
    }

    async fn look_again(&self) {
        let users = self.handle.watches().into_vec();
        let watched = users.len();
        // Nobody, if the database does not say whom.
        let seen = users::seen_by(&self.hub.store, self.handle.principal(), users);
        let seen = self.hub.store.in_time(seen).await.unwrap_or_default();
        if seen.len() < watched {
            self.set_watches(seen);
        }
    }
}

/// Refuses because it was too much, and says when to come back.
pub fn too_many(wait: Duration) -> Refusal {
    metrics::counter!("colink_rate_limited_total").increment(1);
    Refusal::new(Code::RateLimited, "too many requests: slow down").retry_after(wait.as_secs_f64())
}

fn answer_frame(id: Option<u64>, result: Result<Reply, Refusal>) -> Option<Bytes> {
    match (id, result) {
        (Some(id), Ok(reply)) => Some(server::reply(id, &reply.json).into()),
        (None, Ok(_)) => None,
        (id, Err(refusal)) => Some(server::refused(id, &refusal).into()),
    }
}

/// What the supervisor of the sessions is told: nothing, so far.
pub enum SessionsMsg {}

/// Watches over the sessions: one that dies is forgotten, and its client resumes from the log.
pub struct Sessions;

impl Actor for Sessions {
    type Msg = SessionsMsg;
    type State = Arc<Hub>;
    type Arguments = Arc<Hub>;

    async fn pre_start(&self, _: ActorRef<SessionsMsg>, hub: Arc<Hub>) -> Result<Arc<Hub>, ActorProcessingErr> {
        Ok(hub)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<SessionsMsg>,
        event: SupervisionEvent,
        hub: &mut Arc<Hub>,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            metrics::counter!("colink_session_failures_total").increment(1);
            let failed = hub.directory.all_sessions().into_iter();
            for session in failed.filter(|s| s.actor.get().is_some_and(|a| a.get_id() == cell.get_id())) {
                tracing::error!(user.id = %session.user_id, session.id = %session.id, %error, "a session failed");
                session.queue.close(CloseCode::Unknown);
                hub.forget_session(&session);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F: Future>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    #[expect(unreachable_code, reason = "the type is what counts, so it is never made")]
    fn an_idle_session_is_small() {
        let size = size_of_future(|| Session.handle(unreachable!(), unreachable!(), unreachable!()));
        assert!(size <= 512, "{size} bytes: box what is awaited");
    }
}
