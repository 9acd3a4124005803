//! Which actors live on this node: typed, ours, and cheap to look into from any thread.
//!
//! What has to survive an actor's death stands here beside it: how far a stream was delivered, its failures, its
//! credits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use ractor::rpc::CallResult;
use ractor::{ActorCell, ActorId, ActorRef, RpcReplyPort};

use super::channel::ChannelMsg;
use super::channel::room::UNKNOWN;
use super::presence::PresenceMsg;
use super::session::SessionHandle;
use super::supervisor::{Failures, Intensity};
use crate::clock::Timestamp;
use crate::domain::id::{SessionId, StreamId, UserId};
use crate::domain::user::{Presence, PresenceMode};

/// What is known of a stream's actor, living or not.
#[derive(Debug)]
pub struct Slot {
    /// The number of the last event that was fanned out, or [`UNKNOWN`]. Survives the actor.
    pub delivered: AtomicI64,
    /// Commands that the actor took and that are not answered yet.
    pub in_flight: AtomicUsize,
    living: RwLock<Option<ActorRef<ChannelMsg>>>,
    /// Messages on their way through the supervisor, which starts the actor for them.
    detours: AtomicUsize,
    failures: Mutex<Failures>,
}

impl Default for Slot {
    fn default() -> Self {
        Slot {
            delivered: AtomicI64::new(UNKNOWN),
            in_flight: AtomicUsize::new(0),
            living: RwLock::default(),
            detours: AtomicUsize::new(0),
            failures: Mutex::default(),
        }
    }
}

impl Slot {
    /// Returns the living actor.
    pub fn actor(&self) -> Option<ActorRef<ChannelMsg>> {
        self.living.read().expect("no panic under this lock").clone()
    }

    /// Sets or clears the living actor.
    pub fn set_actor(&self, actor: Option<ActorRef<ChannelMsg>>) {
        *self.living.write().expect("no panic under this lock") = actor;
    }

    /// Lets go of the living actor if it has no command left to do; returns whether it did.
    pub fn let_go(&self) -> bool {
        let mut living = self.living.write().expect("no panic under this lock");
        // Whoever hands an actor a command counts it before asking for the actor.
        let idle = self.in_flight.load(Ordering::SeqCst) == 0;
        if idle {
            *living = None;
        }
        idle
    }

    /// Returns whether messages are on their way through the supervisor: what comes later has to go that way too.
    pub fn has_detours(&self) -> bool {
        self.detours.load(Ordering::SeqCst) > 0
    }

    /// Notes that the actor failed; returns whether to restart it at once.
    pub fn note_failure(&self, intensity: Intensity) -> bool {
        self.failures.lock().expect("no panic under this lock").note(intensity, Instant::now())
    }

    /// Returns how long the actor must stay down.
    pub fn quarantine(&self) -> Option<Duration> {
        self.failures.lock().expect("no panic under this lock").quarantine(Instant::now())
    }
}

/// Counts a message that goes through the supervisor, until it is handed over and this is dropped.
pub struct Detour(Arc<Slot>);

impl Detour {
    /// Begins one.
    pub fn begin(slot: Arc<Slot>) -> Self {
        slot.detours.fetch_add(1, Ordering::SeqCst);
        Detour(slot)
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.0.detours.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<SessionId, Arc<SessionHandle>>,
    by_user: HashMap<UserId, Vec<Arc<SessionHandle>>>,
}

/// A user has as many sessions in use as may be.
#[derive(Debug)]
pub struct TooMany;

/// The directory of one node.
#[derive(Default)]
pub struct Directory {
    slots: RwLock<HashMap<StreamId, Arc<Slot>>>,
    sessions: RwLock<Sessions>,
    presence: RwLock<Option<ActorRef<PresenceMsg>>>,
}

impl Directory {
    /// Returns the slot of a stream, if there is one.
    pub fn slot(&self, stream: StreamId) -> Option<Arc<Slot>> {
        self.slots.read().expect("no panic under this lock").get(&stream).cloned()
    }

    /// Returns the slot of a stream, making it if there is none.
    pub fn slot_or_new(&self, stream: StreamId) -> Arc<Slot> {
        if let Some(slot) = self.slot(stream) {
            return slot;
        }
        self.slots.write().expect("no panic under this lock").entry(stream).or_default().clone()
    }

    /// Forgets the slots that nothing uses: no actor, no command in flight, no quarantine, nobody else holding one.
    pub fn forget_idle_slots(&self) {
        self.slots.write().expect("no panic under this lock").retain(|_, slot| {
            slot.actor().is_some()
                || slot.in_flight.load(Ordering::Acquire) > 0
                || slot.quarantine().is_some()
                || Arc::strong_count(slot) > 1
        });
    }

    /// Returns the stream whose living actor this is.
    pub fn stream_of(&self, actor: ActorId) -> Option<(StreamId, Arc<Slot>)> {
        let slots = self.slots.read().expect("no panic under this lock");
        let found = slots.iter().find(|(_, slot)| slot.actor().is_some_and(|a| a.get_id() == actor));
        found.map(|(stream, slot)| (*stream, slot.clone()))
    }

    /// Returns how many channel actors live.
    pub fn channels_alive(&self) -> usize {
        self.slots.read().expect("no panic under this lock").values().filter(|slot| slot.actor().is_some()).count()
    }

    /// Adds a session, unless its user has `most` (0: no limit) that are in use. The oldest one that nobody is connected to
    /// makes way: it is over then, and returned to be ended.
    pub fn add_session(
        &self,
        session: &Arc<SessionHandle>,
        most: usize,
    ) -> Result<Option<Arc<SessionHandle>>, TooMany> {
        let mut sessions = self.sessions.write().expect("no panic under this lock");
        let mut open: Vec<_> = sessions.by_user.get(&session.user_id).into_iter().flatten().collect();
        open.retain(|session| !session.ended());
        let mut gone = None;
        if most > 0 && open.len() >= most {
            open.sort_by_key(|session| session.id);
            let oldest = open.into_iter().find(|session| session.make_way()).ok_or(TooMany)?;
            gone = Some(oldest.clone());
        }
        sessions.by_id.insert(session.id, session.clone());
        sessions.by_user.entry(session.user_id).or_default().push(session.clone());
        Ok(gone)
    }

    /// Forgets a session.
    pub fn remove_session(&self, session: &SessionHandle) {
        let mut sessions = self.sessions.write().expect("no panic under this lock");
        sessions.by_id.remove(&session.id);
        let Some(of_user) = sessions.by_user.get_mut(&session.user_id) else { return };
        of_user.retain(|s| s.id != session.id);
        if of_user.is_empty() {
            sessions.by_user.remove(&session.user_id);
        }
    }

    /// Returns a session.
    pub fn session(&self, id: SessionId) -> Option<Arc<SessionHandle>> {
        self.sessions.read().expect("no panic under this lock").by_id.get(&id).cloned()
    }

    /// Returns a user's sessions.
    pub fn sessions_of(&self, user: UserId) -> Vec<Arc<SessionHandle>> {
        let sessions = self.sessions.read().expect("no panic under this lock");
        sessions.by_user.get(&user).cloned().unwrap_or_default()
    }

    /// Returns one of a user's sessions, the same as long as it lasts.
    pub fn a_session_of(&self, user: UserId) -> Option<Arc<SessionHandle>> {
        self.sessions.read().expect("no panic under this lock").by_user.get(&user)?.first().cloned()
    }

    /// Returns how many sessions a user has, with a connection or without.
    pub fn session_count(&self, user: UserId) -> usize {
        self.sessions.read().expect("no panic under this lock").by_user.get(&user).map_or(0, Vec::len)
    }

    /// Returns whether any of a user's sessions is connected, or was a moment ago.
    pub fn is_present(&self, user: UserId) -> bool {
        let sessions = self.sessions.read().expect("no panic under this lock");
        sessions.by_user.get(&user).into_iter().flatten().any(|session| session.queue.present())
    }

    /// Returns how a user chose to be shown; nothing, if no session of theirs is open yet.
    pub fn mode_of(&self, user: UserId) -> Option<PresenceMode> {
        let sessions = self.sessions.read().expect("no panic under this lock");
        sessions.by_user.get(&user)?.iter().find_map(|session| session.mode())
    }

    /// Returns the streams that somebody here listens to, with how far each was delivered.
    pub fn watched(&self) -> Vec<(StreamId, i64)> {
        let slots = self.slots.read().expect("no panic under this lock");
        let known = slots.iter().map(|(stream, slot)| (*stream, slot.delivered.load(Ordering::Acquire)));
        known.filter(|(_, delivered)| *delivered != UNKNOWN).collect()
    }

    /// Returns the users who have a session here, with the version of their account that all of these know of.
    pub fn versions(&self) -> Vec<(UserId, i64)> {
        let sessions = self.sessions.read().expect("no panic under this lock");
        let version = |of: &Vec<Arc<SessionHandle>>| of.iter().map(|session| session.version()).min().unwrap_or(0);
        sessions.by_user.iter().map(|(user, of)| (*user, version(of))).collect()
    }

    /// Returns every session.
    pub fn all_sessions(&self) -> Vec<Arc<SessionHandle>> {
        self.sessions.read().expect("no panic under this lock").by_id.values().cloned().collect()
    }

    /// Returns how many sessions there are.
    pub fn sessions_alive(&self) -> usize {
        self.sessions.read().expect("no panic under this lock").by_id.len()
    }

    /// Sets the presence tracker.
    pub fn set_presence(&self, actor: ActorRef<PresenceMsg>) {
        *self.presence.write().expect("no panic under this lock") = Some(actor);
    }

    /// Returns whether this is the presence tracker.
    pub fn is_presence(&self, cell: &ActorCell) -> bool {
        let presence = self.presence.read().expect("no panic under this lock");
        presence.as_ref().is_some_and(|p| p.get_id() == cell.get_id())
    }

    /// Asks what others see of users; nothing, if the tracker does not answer.
    pub async fn ask_presence(&self, users: Vec<UserId>) -> Option<Vec<(UserId, Presence)>> {
        self.call_presence(Duration::from_secs(3), |reply| PresenceMsg::Ask(users, reply)).await
    }

    /// Asks when users last did something here, of those of whom that is not stored yet.
    pub async fn last_seen_here(&self, users: Vec<UserId>) -> Vec<(UserId, Timestamp)> {
        let seen = self.call_presence(Duration::from_secs(3), |reply| PresenceMsg::LastSeen(users, reply)).await;
        seen.unwrap_or_default()
    }

    /// Has it stored who was here; waits so long for that at most.
    pub(super) async fn remember_seen(&self, patience: Duration) {
        self.call_presence(patience, |reply| PresenceMsg::Remember(Some(reply))).await;
    }

    async fn call_presence<T: Send + 'static>(
        &self,
        patience: Duration,
        ask: impl FnOnce(RpcReplyPort<T>) -> PresenceMsg,
    ) -> Option<T> {
        let presence = self.presence.read().expect("no panic under this lock").clone()?;
        match presence.call(ask, Some(patience)).await {
            Ok(CallResult::Success(answer)) => Some(answer),
            _ => None,
        }
    }

    /// Tells the presence tracker something; what it misses while it restarts, it reads from the directory.
    pub fn tell_presence(&self, message: PresenceMsg) {
        if let Some(presence) = &*self.presence.read().expect("no panic under this lock") {
            let _ = presence.cast(message);
        }
    }
}

/// One of a channel's credits; it comes back when this is dropped.
#[derive(Debug)]
pub struct Credit(Arc<Slot>);

impl Credit {
    /// Takes a credit, if fewer than `most` are out.
    pub fn take(slot: &Arc<Slot>, most: usize) -> Option<Credit> {
        let taken = slot.in_flight.fetch_add(1, Ordering::AcqRel);
        let credit = Credit(slot.clone());
        (taken < most).then_some(credit)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
