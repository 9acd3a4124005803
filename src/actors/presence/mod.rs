//! The presence tracker: who is online, away or not to be disturbed, told to those who asked.
//!
//! Nothing of it is stored: it is rebuilt from the sessions, and from what other nodes tell of theirs. A session counts while it
//! is connected, and for `presence.linger_s` behind that: whoever only moves, or polls, is there all the time. Changes are merged
//! for `presence.merge_ms` before they are told, so a reconnect storm is one word for each user. [`table`], [`peers`], [`view`]
//! and [`watchers`] are its pure cores.
//!
//! When users last did something is stored every minute: it is what is left of them when they are gone.

pub mod peers;
pub mod table;
pub mod view;
pub mod watchers;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::Hub;
use super::cluster::envelope::{All, Changes, Message};
use super::session::SessionHandle;
use crate::bus::To;
use crate::clock::Timestamp;
use crate::domain::id::{NodeId, SessionId, UserId};
use crate::domain::user::{Presence, Role};
use crate::protocol::push::{self, Ephemeral};
use crate::storage::accounts::{Account, SEEN_MAX, SYSTEM};
use crate::storage::writer::Work;
use peers::Voice;
use view::View;
use watchers::Watchers;

/// How often idle users are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// How often it is stored who was there.
const REMEMBER: Duration = Duration::from_secs(60);
/// How often another node is told all who are here, at most.
const TELL_ALL_EVERY: Duration = Duration::from_secs(1);
/// How long a node that stops waits until it is stored who was there.
const LAST_WORD: Duration = Duration::from_secs(3);

/// What another node says of who is there.
#[derive(Debug)]
pub enum Word {
    /// The number of what it told last.
    Beat(u64),
    /// What changed.
    Changes(Changes),
    /// A part of all.
    All(All),
    /// It asks for all.
    Ask,
    /// Somebody who may be here did something there.
    Active(UserId),
}

/// What the tracker is told.
pub enum PresenceMsg {
    /// A session of a user was opened.
    Opened {
        /// Whose.
        user: UserId,
    },
    /// A session of a user has been without a connection for too long to count, or has one again; or the user wants to be
    /// shown in another way.
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
    /// A user without a session here did something here.
    ActiveBeside {
        /// Who.
        user: UserId,
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
    /// Say when these users last did something here, of those of whom that is not stored yet.
    LastSeen(Vec<UserId>, RpcReplyPort<Vec<(UserId, Timestamp)>>),
    /// Store who was there, and say when that is done.
    Remember(Option<RpcReplyPort<()>>),
    /// It is stored who was there when.
    Remembered(Vec<(UserId, Timestamp)>),
    /// Another node says something.
    Elsewhere(NodeId, Word),
    /// Look which nodes are believed, and ask those of whom something is missing.
    LookAtPeers,
    /// Tell what changed.
    Tell,
    /// Tell a node that asked for them all who are here.
    TellAll(NodeId),
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
    view: View,
    watchers: Watchers<SessionHandle>,
    watching: HashMap<SessionId, (Weak<SessionHandle>, Box<[UserId]>)>,
    /// It was noted that there is something to tell.
    tells: bool,
    /// When users last did something, of whom that is not stored yet.
    active: HashMap<UserId, Timestamp>,
    /// Nodes that asked for all who are here and were not told yet.
    asked_by: HashSet<NodeId>,
    /// Nodes that were told all a moment ago.
    told_all: HashMap<NodeId, Instant>,
    /// Users on other nodes who did something here since the last sweep: those nodes were told.
    active_beside: HashSet<UserId>,
}

impl Actor for PresenceActor {
    type Msg = PresenceMsg;
    type State = State;
    type Arguments = Arc<Hub>;

    async fn pre_start(&self, myself: ActorRef<PresenceMsg>, hub: Arc<Hub>) -> Result<State, ActorProcessingErr> {
        // First of all: what happens from here on is told to this one, what happened before is seen below.
        hub.directory.set_presence(myself.clone());
        myself.send_interval(SWEEP, || PresenceMsg::Sweep);
        myself.send_interval(REMEMBER, || PresenceMsg::Remember(None));
        // What was told before this one started may not be so any more: the others see that a number is missing, and ask.
        let voice = hub.cluster.as_ref().map(|cluster| Voice::new(cluster.presence.load(Ordering::Acquire)));
        let mut state = State {
            view: View::new(voice),
            watchers: Watchers::default(),
            watching: HashMap::new(),
            tells: false,
            active: HashMap::new(),
            asked_by: HashSet::new(),
            told_all: HashMap::new(),
            active_beside: HashSet::new(),
            hub,
        };
        state.show_version();
        for session in state.hub.directory.all_sessions() {
            state.look(session.user_id);
            state.watch(&session);
        }
        state.tell_soon(&myself);
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
                state.look(user);
                state.active(user);
            }
            PresenceMsg::Look { user } => state.look(user),
            PresenceMsg::Closed { user, session } => state.closed(user, session),
            PresenceMsg::Active { user } => state.active(user),
            PresenceMsg::ActiveBeside { user } => state.active_beside(user),
            PresenceMsg::Watch { session } => state.watch(&session),
            PresenceMsg::Parted { user } => state.parted(user),
            PresenceMsg::Show { session } => state.show(&session, &session.watches()),
            PresenceMsg::Ask(users, reply) => {
                let seen = users.into_iter().map(|user| (user, state.view.seen(user))).collect();
                let _ = reply.send(seen);
            }
            PresenceMsg::LastSeen(users, reply) => {
                let seen = users.into_iter().filter_map(|user| Some((user, *state.active.get(&user)?))).collect();
                let _ = reply.send(seen);
            }
            PresenceMsg::Remember(reply) => state.remember(&myself, reply),
            PresenceMsg::Remembered(stored) => {
                for (user, at) in stored {
                    if state.active.get(&user) == Some(&at) {
                        state.active.remove(&user);
                    }
                }
            }
            PresenceMsg::Elsewhere(node, word) => state.hear(&myself, node, word),
            PresenceMsg::LookAtPeers => state.look_at_peers(),
            PresenceMsg::Tell => state.tell(),
            PresenceMsg::TellAll(node) => state.tell_all(node),
            PresenceMsg::Sweep => state.sweep(),
            #[cfg(test)]
            PresenceMsg::Panic => panic!("told to"),
        }
        state.tell_soon(&myself);
        Ok(())
    }
}

impl State {
    /// Looks whether a user is there, and how they chose to be shown: their sessions know. Of whom it is not known yet, whose
    /// first session is just being opened, it is told when it is.
    fn look(&mut self, user: UserId) {
        let (present, mode) = (self.hub.directory.is_present(user), self.hub.directory.mode_of(user));
        if !present || mode.is_some() {
            let change = self.view.here.set(user, mode.filter(|_| present), self.hub.clock.now());
            self.note(user, change);
        }
    }

    fn active(&mut self, user: UserId) {
        if self.view.here.has(user) {
            let now = self.hub.clock.now();
            self.active.insert(user, now);
            let change = self.view.here.set_active(user, now);
            self.note(user, change);
        }
    }

    /// Tells the nodes on which a user is that they did something here; once between two sweeps is enough.
    fn active_beside(&mut self, user: UserId) {
        let Some(cluster) = &self.hub.cluster else { return };
        let mut nodes = self.view.peers.nodes_of(user).peekable();
        if nodes.peek().is_some() && self.active_beside.insert(user) {
            for node in nodes {
                cluster.say(To::Node(node), &Message::PresenceActive(user));
            }
        }
    }

    /// Stores when users last did something, beside the mailbox. What is not stored is tried again the next time.
    fn remember(&self, myself: &ActorRef<PresenceMsg>, reply: Option<RpcReplyPort<()>>) {
        let mut active: Vec<_> = self.active.iter().map(|(user, at)| (*user, *at)).collect();
        // In one order on all nodes: none waits for a row of another one that waits for one of its own.
        active.sort_unstable();
        let (hub, myself) = (self.hub.clone(), myself.clone());
        tokio::spawn(async move {
            for piece in active.chunks(SEEN_MAX) {
                let work = Work::Account(Account::Seen { users: piece.to_vec() });
                match hub.writer.write(SYSTEM, work, None).await {
                    Ok(_) => drop(myself.cast(PresenceMsg::Remembered(piece.to_vec()))),
                    Err(error) => {
                        tracing::warn!(%error, "cannot store who was there: it is tried again");
                        break;
                    }
                }
            }
            if let Some(reply) = reply {
                let _ = reply.send(());
            }
        });
    }

    fn closed(&mut self, user: UserId, session: SessionId) {
        self.look(user);
        self.unwatch(session);
    }

    fn unwatch(&mut self, session: SessionId) {
        let Some((watcher, users)) = self.watching.remove(&session) else { return };
        for user in users {
            if self.watchers.remove(user, &watcher) {
                self.view.unwatch(user);
            }
        }
    }

    fn watch(&mut self, session: &Arc<SessionHandle>) {
        let users = session.take_watches();
        self.unwatch(session.id);
        let watcher = Arc::downgrade(session);
        for user in &users {
            self.watchers.add(*user, &watcher);
            self.view.watch(*user);
        }
        self.show(session, &users);
        if !users.is_empty() {
            self.watching.insert(session.id, (watcher, users));
            // Whom a guest may see was asked before this: who left meanwhile was told to nobody. Ends when nobody is lost.
            if session.principal().role == Role::Guest {
                session.look_again();
            }
        }
    }

    /// Has the guests look again whom they may see: the one who left, and those who watch that user.
    fn parted(&self, user: UserId) {
        for session in self.watchers.of(user).chain(self.hub.directory.sessions_of(user)) {
            if session.principal().role == Role::Guest {
                session.look_again();
            }
        }
    }

    /// Tells a session how users are now. So do all learn it who watch them: what is told next is told to all, or to none.
    fn show(&mut self, session: &SessionHandle, users: &[UserId]) {
        for user in users {
            if let Some(presence) = self.view.take_news_of(*user) {
                self.push(*user, presence);
            }
            let frame = push::presence(*user, self.view.seen(*user));
            session.queue.push_ephemeral(Ephemeral::Presence(*user), frame);
        }
    }

    /// Tells those who watch a user.
    fn push(&self, user: UserId, presence: Presence) {
        let frame = push::presence(user, presence);
        let mut told = 0;
        for session in self.watchers.of(user) {
            session.queue.push_ephemeral(Ephemeral::Presence(user), frame.clone());
            told += 1;
        }
        metrics::counter!("colink_presence_told_total").increment(told);
    }

    fn note(&mut self, user: UserId, change: Option<Presence>) {
        if change.is_some() {
            self.view.changed_here(user);
        }
    }

    /// Gathers what there is to tell for a moment.
    fn tell_soon(&mut self, myself: &ActorRef<PresenceMsg>) {
        if !self.tells && self.view.has_news() {
            self.tells = true;
            let merge = Duration::from_millis(self.hub.config.presence.merge_ms);
            myself.send_after(merge, || PresenceMsg::Tell);
        }
    }

    fn tell(&mut self) {
        self.tells = false;
        self.tell_others();
        for (user, presence) in self.view.take_news() {
            self.push(user, presence);
        }
    }

    /// Tells the other nodes what changed here.
    fn tell_others(&mut self) {
        // When the node stops its sessions end, but their users are on their way to another one.
        if self.hub.writing.is_cancelled() {
            return;
        }
        let (Some(cluster), Some(voice)) = (self.hub.cluster.clone(), &mut self.view.voice) else { return };
        let changes = voice.changes(&self.view.here);
        self.show_version();
        for changes in changes {
            cluster.say(To::Everyone, &Message::Presence(changes));
        }
    }

    /// Has the beats say what was told last.
    fn show_version(&self) {
        if let (Some(cluster), Some(voice)) = (&self.hub.cluster, &self.view.voice) {
            cluster.presence.store(voice.version(), Ordering::Release);
        }
    }

    /// Takes what another node says.
    fn hear(&mut self, myself: &ActorRef<PresenceMsg>, node: NodeId, word: Word) {
        let now = Instant::now();
        let touched = match word {
            Word::Beat(version) => {
                self.view.peers.beat(node, version, now);
                Vec::new()
            }
            Word::Changes(changes) => self.view.peers.changes(node, changes, now),
            Word::All(all) => self.view.peers.all(node, all, now),
            Word::Ask => return self.asked(myself, node),
            Word::Active(user) => return self.active(user),
        };
        self.view.changed(touched);
        self.ask();
    }

    /// Answers a node that asks for all who are here: at once, or as soon as that is due again. It is work for each user, so
    /// it is not done for every question of who asks too often.
    fn asked(&mut self, myself: &ActorRef<PresenceMsg>, node: NodeId) {
        if !self.asked_by.insert(node) {
            return;
        }
        self.told_all.retain(|_, at| at.elapsed() < TELL_ALL_EVERY);
        match self.told_all.get(&node) {
            Some(at) => {
                drop(myself.send_after(TELL_ALL_EVERY.saturating_sub(at.elapsed()), move || PresenceMsg::TellAll(node)))
            }
            None => self.tell_all(node),
        }
    }

    /// Tells a node all who are here.
    fn tell_all(&mut self, node: NodeId) {
        self.asked_by.remove(&node);
        self.tell_others();
        let (Some(cluster), Some(voice)) = (&self.hub.cluster, &self.view.voice) else { return };
        if voice.has_news() {
            return;
        }
        self.told_all.insert(node, Instant::now());
        for part in voice.all(&self.view.here) {
            cluster.say(To::Node(node), &Message::PresenceAll(part));
        }
    }

    fn look_at_peers(&mut self) {
        let Some(cluster) = &self.hub.cluster else { return };
        let linger = Duration::from_secs(self.hub.config.presence.linger_s);
        let touched = self.view.peers.look(|node| cluster.lease(node), linger, Instant::now());
        self.view.changed(touched);
        self.ask();
    }

    /// Asks the nodes of whom something is missing.
    fn ask(&mut self) {
        let Some(cluster) = &self.hub.cluster else { return };
        for node in self.view.peers.due(Instant::now()) {
            metrics::counter!("colink_presence_asks_total").increment(1);
            cluster.say(To::Node(node), &Message::PresenceAsk);
        }
    }

    fn sweep(&mut self) {
        let now = self.hub.clock.now();
        self.active_beside.clear();
        let idle_after = i64::try_from(self.hub.config.presence.idle_after_s).unwrap_or(i64::MAX);
        if idle_after > 0 {
            for (user, shown) in self.view.here.turn_idle(now, idle_after) {
                self.note(user, Some(shown));
            }
        }
        let (elsewhere, unknown) = self.view.peers.count();
        metrics::gauge!("colink_users_online").set(self.view.here.len() as f64);
        metrics::gauge!("colink_users_elsewhere").set(elsewhere as f64);
        metrics::gauge!("colink_users_unknown").set(unknown as f64);
        metrics::gauge!("colink_sessions_alive").set(self.hub.directory.sessions_alive() as f64);
    }
}

impl Hub {
    /// Stores who was here, as is done every minute.
    pub async fn remember_seen(&self) {
        self.directory.remember_seen(LAST_WORD).await;
    }
}
