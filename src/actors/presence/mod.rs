//! The presence tracker: who is online, away or not to be disturbed, told to those who asked.
//!
//! Nothing of it is stored: it is rebuilt from the sessions. One counts while it is connected, and for `presence.linger_s`
//! behind that: whoever only moves, or polls, is there all the time. Changes are merged for `presence.merge_ms` before they are
//! told, so a reconnect storm is one word for each user. [`table`] is its pure core.

pub mod table;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::Hub;
use super::session::SessionHandle;
use crate::domain::id::{SessionId, UserId};
use crate::domain::user::{Presence, PresenceMode, Role};
use crate::protocol::push::{self, Ephemeral};
use crate::storage::users;
use table::Table;

/// How often idle users are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// What the tracker is told.
pub enum PresenceMsg {
    /// A session of a user was opened.
    Opened {
        /// Whose.
        user: UserId,
    },
    /// A session of a user has been without a connection for too long to count, or has one again.
    Look {
        /// Whose.
        user: UserId,
    },
    /// A session ended.
    Closed {
        /// Whose.
        user: UserId,
        /// Which.
        session: SessionId,
    },
    /// A user did something.
    Active {
        /// Who.
        user: UserId,
    },
    /// A user wants to be shown in another way.
    Profile {
        /// Who.
        user: UserId,
        /// How.
        mode: PresenceMode,
    },
    /// A session watches other users from now on. Told again only when this is done: a session has one at most on its way.
    Watch {
        /// The session, which knows whom.
        session: Arc<SessionHandle>,
    },
    /// A user left a channel, or was removed: a guest may have lost sight of somebody.
    Parted {
        /// Who.
        user: UserId,
    },
    /// A session has to be told anew of those it watches.
    Show {
        /// The session, which knows whom.
        session: Arc<SessionHandle>,
    },
    /// Say what others see of these users.
    Ask(Vec<UserId>, RpcReplyPort<Vec<(UserId, Presence)>>),
    /// A user's mode was read from the store.
    Loaded(UserId, PresenceMode),
    /// Tell what changed.
    Tell,
    /// Look for idle users.
    Sweep,
    /// Panic, to show that presence comes back.
    #[cfg(test)]
    Panic,
}

/// The actor.
pub struct PresenceActor;

/// Its state.
pub struct State {
    hub: Arc<Hub>,
    table: Table,
    watchers: HashMap<UserId, Vec<Weak<SessionHandle>>>,
    watching: HashMap<SessionId, Box<[UserId]>>,
    changed: HashSet<UserId>,
}

impl Actor for PresenceActor {
    type Msg = PresenceMsg;
    type State = State;
    type Arguments = Arc<Hub>;

    async fn pre_start(&self, myself: ActorRef<PresenceMsg>, hub: Arc<Hub>) -> Result<State, ActorProcessingErr> {
        // First of all: what happens from here on is told to this one, what happened before is seen below.
        hub.directory.set_presence(myself.clone());
        myself.send_interval(SWEEP, || PresenceMsg::Sweep);
        let mut state = State {
            table: Table::default(),
            watchers: HashMap::new(),
            watching: HashMap::new(),
            changed: HashSet::new(),
            hub,
        };
        for session in state.hub.directory.all_sessions() {
            state.look(&myself, session.user_id);
            state.watch(&session);
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<PresenceMsg>,
        message: PresenceMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PresenceMsg::Opened { user } => {
                state.look(&myself, user);
                state.active(&myself, user);
            }
            PresenceMsg::Look { user } => state.look(&myself, user),
            PresenceMsg::Closed { user, session } => state.closed(&myself, user, session),
            PresenceMsg::Active { user } => state.active(&myself, user),
            PresenceMsg::Profile { user, mode } | PresenceMsg::Loaded(user, mode) => {
                let change = state.table.set_mode(user, mode);
                state.note(&myself, user, change);
            }
            PresenceMsg::Watch { session } => state.watch(&session),
            PresenceMsg::Parted { user } => state.parted(user),
            PresenceMsg::Show { session } => state.show(&session, &session.watches()),
            PresenceMsg::Ask(users, reply) => {
                let seen = users.into_iter().map(|user| (user, state.table.shown(user))).collect();
                let _ = reply.send(seen);
            }
            PresenceMsg::Tell => state.tell(),
            PresenceMsg::Sweep => state.sweep(&myself),
            #[cfg(test)]
            PresenceMsg::Panic => panic!("told to"),
        }
        Ok(())
    }
}

impl State {
    fn look(&mut self, myself: &ActorRef<PresenceMsg>, user: UserId) {
        let known = self.table.shown(user) != Presence::Offline;
        let present = self.hub.directory.is_present(user);
        let change = self.table.set_present(user, present, PresenceMode::Auto, self.hub.clock.now());
        self.note(myself, user, change);
        if !known && present {
            self.load_mode(myself, user);
        }
    }

    fn active(&mut self, myself: &ActorRef<PresenceMsg>, user: UserId) {
        let change = self.table.set_active(user, self.hub.clock.now());
        self.note(myself, user, change);
    }

    /// Reads what a user chose to be shown as, beside the mailbox.
    fn load_mode(&self, myself: &ActorRef<PresenceMsg>, user: UserId) {
        let (hub, myself) = (self.hub.clone(), myself.clone());
        tokio::spawn(async move {
            let Ok(mut db) = hub.store.read().await else { return };
            if let Ok(Some(found)) = users::by_id(&mut db, user).await {
                let _ = myself.cast(PresenceMsg::Loaded(user, found.presence_mode));
            }
        });
    }

    fn closed(&mut self, myself: &ActorRef<PresenceMsg>, user: UserId, session: SessionId) {
        self.look(myself, user);
        if let Some(users) = self.watching.remove(&session) {
            self.unwatch(session, &users);
        }
    }

    fn unwatch(&mut self, session: SessionId, users: &[UserId]) {
        for user in users {
            if let Some(watchers) = self.watchers.get_mut(user) {
                watchers.retain(|w| w.upgrade().is_some_and(|s| s.id != session));
                if watchers.is_empty() {
                    self.watchers.remove(user);
                }
            }
        }
    }

    fn watch(&mut self, session: &Arc<SessionHandle>) {
        let users = session.take_watches();
        if let Some(before) = self.watching.remove(&session.id) {
            self.unwatch(session.id, &before);
        }
        for user in &users {
            self.watchers.entry(*user).or_default().push(Arc::downgrade(session));
        }
        self.show(session, &users);
        if !users.is_empty() {
            self.watching.insert(session.id, users);
            // Whom a guest may see was asked before this: who left meanwhile was told to nobody. Ends when nobody is lost.
            if session.principal().role == Role::Guest {
                session.look_again();
            }
        }
    }

    /// Has the guests look again whom they may see: the one who left, and those who watch that user.
    fn parted(&self, user: UserId) {
        let watchers = self.watchers.get(&user).into_iter().flatten().filter_map(Weak::upgrade);
        for session in watchers.chain(self.hub.directory.sessions_of(user)) {
            if session.principal().role == Role::Guest {
                session.look_again();
            }
        }
    }

    fn show(&self, session: &SessionHandle, users: &[UserId]) {
        for user in users {
            let frame = push::presence(*user, self.table.shown(*user));
            session.queue.push_ephemeral(Ephemeral::Presence(*user), frame);
        }
    }

    fn note(&mut self, myself: &ActorRef<PresenceMsg>, user: UserId, change: Option<Presence>) {
        if change.is_none() || !self.watchers.contains_key(&user) {
            return;
        }
        if self.changed.is_empty() {
            let merge = Duration::from_millis(self.hub.config.presence.merge_ms);
            myself.send_after(merge, || PresenceMsg::Tell);
        }
        self.changed.insert(user);
    }

    fn tell(&mut self) {
        for user in std::mem::take(&mut self.changed) {
            let frame = push::presence(user, self.table.shown(user));
            for session in self.watchers.get(&user).into_iter().flatten().filter_map(Weak::upgrade) {
                session.queue.push_ephemeral(Ephemeral::Presence(user), frame.clone());
            }
        }
    }

    fn sweep(&mut self, myself: &ActorRef<PresenceMsg>) {
        let now = self.hub.clock.now();
        let idle_after = i64::try_from(self.hub.config.presence.idle_after_s).unwrap_or(i64::MAX);
        if idle_after > 0 {
            for (user, shown) in self.table.turn_idle(now, idle_after) {
                self.note(myself, user, Some(shown));
            }
        }
        metrics::gauge!("colink_users_online").set(self.table.len() as f64);
        metrics::gauge!("colink_sessions_alive").set(self.hub.directory.sessions_alive() as f64);
    }
}
