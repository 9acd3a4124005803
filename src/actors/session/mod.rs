//! One gateway session: a signed-in client that may lose its connection and come back.
//!
//! The actor owns control and state: requests, rate, what it watches, how long it waits for its client. Deliveries do
//! not pass through its mailbox: channels put them into the [`queue`], which the connection empties. [`SessionHandle`] is
//! what others hold of a session, [`Attached`] what its connection holds; `opening.rs` and [`resume`] are how it comes by one.

mod handle;
mod opening;
pub mod queue;
pub mod resume;
mod ring;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::Hub;
use super::presence::PresenceMsg;
use super::trace::Asked;
use crate::clock::Timestamp;
use crate::domain::error::{Code, Refusal, invalid, unavailable};
use crate::domain::id::{ChannelId, UserId};
use crate::domain::permission::{self, Action};
use crate::domain::rate::{Bucket, Rate};
use crate::protocol::client::Request;
use crate::protocol::close::CloseCode;
use crate::protocol::server;
use crate::storage::writer::{Answer, Reply};
use crate::storage::{StoreError, tokens, users};
pub use handle::{Attached, SessionHandle};
pub use opening::{OpenError, READY_CHANNELS_MAX};

/// The longest that a timer is set for.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 60 * 60);
/// When to ask again what the database did not say.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a session tells the presence tracker that its user is active.
const ACTIVE_EVERY_S: u64 = 30;

impl Hub {
    /// Takes a session up again behind `s`, for a connection; returns it with how many events follow, or nothing if memory
    /// does not hold all of them.
    pub fn take_up(&self, session: &Arc<SessionHandle>, connection: u64, s: i64) -> Option<(Attached, usize)> {
        let replayed = session.queue.resume(connection, s)?;
        let session = Attached::new(session.clone(), connection).known();
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
        let standing = self.store.in_time(async {
            let mut db = self.store.read().await?;
            tokens::standing(&mut db, session.token_id, self.clock.now()).await
        });
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
    /// Whom to watch on, as far as the database will say that the user may see them: nobody, if that is known.
    unsure: Vec<UserId>,
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
        Ok(State { hub, handle, commands: None, refusals: None, typed: None, unsure: Vec::new() })
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
            SessionMsg::LookAgain => Box::pin(state.look_again(&myself)).await,
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

    async fn watch(&mut self, users: Vec<UserId>) -> Result<&'static str, Refusal> {
        let most = self.hub.config.presence.subscriptions;
        if most > 0 && users.len() > most {
            return Err(invalid(format!("user_ids has more than {most} entries")));
        }
        let seen = users::seen_by(&self.hub.store, self.handle.principal(), users);
        let users = self.hub.store.in_time(seen).await.map_err(|_| unavailable("the database does not answer now"))?;
        self.unsure = Vec::new();
        self.set_watches(users);
        Ok("{}")
    }

    fn set_watches(&self, users: Vec<UserId>) {
        *self.handle.watches.lock().expect("no panic under this lock") = users.into();
        if self.handle.wants_presence && !self.handle.watches_told.swap(true, Ordering::SeqCst) {
            self.hub.directory.tell_presence(PresenceMsg::Watch { session: self.handle.clone() });
        }
    }

    /// Watches on whom the user may still see; nobody, until the database says whom.
    async fn look_again(&mut self, myself: &ActorRef<SessionMsg>) {
        self.handle.looks_again.store(false, Ordering::SeqCst);
        let watched = self.handle.watches().into_vec();
        let users = if self.unsure.is_empty() { watched.clone() } else { std::mem::take(&mut self.unsure) };
        if users.is_empty() {
            return;
        }
        let seen = users::seen_by(&self.hub.store, self.handle.principal(), users.clone());
        let seen = self.hub.store.in_time(seen).await.unwrap_or_else(|error| {
            let (user, id) = (self.handle.user_id, self.handle.id);
            tracing::warn!(user.id = %user, session.id = %id, %error, "cannot read whom a guest may see: asked again");
            self.unsure = users;
            if self.handle.notes_to_look_again() {
                myself.send_after(AGAIN, || SessionMsg::LookAgain);
            }
            Vec::new()
        });
        if seen != watched {
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
    use crate::actors::tests::size_of_handling;

    #[test]
    fn an_idle_session_is_small() {
        let size = size_of_handling(&Session);
        assert!(size <= 512, "{size} bytes: box what is awaited");
    }
}
