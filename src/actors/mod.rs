//! The actors, who own all that lives in memory. The store is the truth; everything here can die and come back.
//!
//! ```text
//! Root                     starts presence again; if another one of these dies, the node stops
//! ├── Channels             finds, starts and restarts channels; quarantines one that keeps failing
//! │   └── Channel *        one a stream that is in use: a channel, a user's own stream, the workspace
//! ├── Sessions             starts and forgets sessions
//! │   └── Session *        one a gateway session; outlives its connections by the resume window
//! └── Presence             who is online, away or not to be disturbed, and who wants to know
//! ```
//!
//! [`Hub`] is what they share. A request enters by [`router`], which finds the stream's actor in the [`directory`] and
//! takes one of its credits, because ractor's mailboxes have no bound of their own. The channel hands the command to the
//! store's writer; the events of a commit come back through [`Hub::committed`] to the actor of each stream, which fans
//! them out into the queues of its sessions. Deliveries never pass through a session's mailbox.

pub mod channel;
pub mod cluster;
pub mod directory;
mod housekeeping;
pub mod presence;
pub mod router;
pub mod session;
pub mod supervisor;
mod sweep;
#[cfg(test)]
mod tests;
pub mod trace;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::{Bus, Incoming};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{NodeId, StreamId, UserId};
use crate::domain::rate::Buckets;
use crate::domain::user::User;
use crate::protocol::close::CloseCode;
use crate::storage::Store;
use crate::storage::cache::Cache;
use crate::storage::search::Engine;
use crate::storage::tokens::Revoked;
use crate::storage::writer::{self, Committed, Writer};
use cluster::Cluster;
use directory::Directory;
use presence::{PresenceActor, PresenceMsg};

/// Over how long clients are spread that have to leave at once.
const MOVES_WITHIN: Duration = Duration::from_secs(3);
/// How long a stopping node waits for clients to answer its goodbye.
const GOODBYE_MIN: Duration = Duration::from_millis(100);
pub(crate) const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// How long a stopping node waits for what is to be written, and for its actors, in all.
pub(crate) const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// What the parts of a running node share.
pub struct Hub {
    /// The configuration.
    pub config: Config,
    /// The name of this node.
    pub node: String,
    /// This run of it.
    pub id: NodeId,
    /// When it started.
    pub started_at: Timestamp,
    /// The time.
    pub clock: Clock,
    /// The store.
    pub store: Store,
    /// The door to the writer.
    pub writer: Writer,
    /// What of the store is remembered for a moment.
    pub cache: Cache,
    /// What messages are found by.
    pub search: Arc<Engine>,
    /// Wakes who looks for what was committed and nobody told: see [`sweep`].
    look_for_moves: Notify,
    /// Sign-ins with sessions here of which another node says that they ended, until the database is asked.
    told_revoked: Mutex<HashSet<Revoked>>,
    /// Who else hears what was committed, here and elsewhere. It must not block.
    pub on_events: OnceLock<Listener>,
    /// Streams of which nothing had told what was committed, since the start.
    repaired: AtomicU64,
    /// This node's part in the cluster; nothing, if it has the database for itself.
    pub cluster: Option<Arc<Cluster>>,
    /// Which actors live here.
    pub directory: Directory,
    /// The SHA-256 of the operator's secret of this run.
    pub operator: [u8; 32],
    /// How many requests each user may still make over REST.
    pub requests: Buckets<UserId>,
    /// How often each address and name may still try to sign in.
    pub sign_ins: Buckets<String>,
    /// The clients' connections, and streams of events. Closed when the node drains.
    pub connections: TaskTracker,
    /// Cancelled when the node drains: what is open goes on, nothing new is opened.
    pub draining: CancellationToken,
    /// Cancelled when what is still open is closed.
    pub closing: CancellationToken,
    /// Cancelled when something died that nothing works without and that does not come back: the node has to be stopped.
    pub failed: CancellationToken,
    actors: OnceLock<Actors>,
    writing: CancellationToken,
    written: CancellationToken,
}

/// Hears events.
pub type Listener = Box<dyn Fn(&[Event]) + Send + Sync>;

/// What a node is told to be one of several.
pub struct Joins {
    /// The run.
    pub id: NodeId,
    /// The bus, which was joined as that.
    pub bus: Bus,
    /// What comes by it.
    pub incoming: Incoming,
}

struct Actors {
    root: ActorRef<()>,
    channels: ActorRef<channel::ChannelsMsg>,
    sessions: ActorRef<session::SessionsMsg>,
}

impl Hub {
    /// Starts the writer and the actors on an open store.
    pub async fn start(
        config: Config,
        node: String,
        clock: Clock,
        store: Store,
        search: Arc<Engine>,
        operator: [u8; 32],
        joins: Option<Joins>,
    ) -> anyhow::Result<Arc<Hub>> {
        let id = joins.as_ref().map_or_else(|| NodeId::new(clock.now()), |joins| joins.id);
        let writing = CancellationToken::new();
        let database = &config.database;
        let limits = writer::Limits {
            queue: database.queue,
            batch: database.batch,
            patience: Duration::from_millis(database.timeout_ms),
            statement: Duration::from_millis(database.statement_timeout_ms),
        };
        let listener: Arc<OnceLock<Weak<Hub>>> = Arc::default();
        let sink: writer::Sink = {
            let listener = listener.clone();
            Arc::new(move |committed| {
                if let Some(hub) = listener.get().and_then(Weak::upgrade) {
                    hub.committed(committed);
                }
            })
        };
        let (writer, written) = Writer::start(store.clone(), clock.clone(), id, limits, sink, writing.clone())?;
        // Who reads from a replica has to know how far it must have got.
        let ask_for_heads = joins.is_some() || !config.database.replica_url.expose().is_empty();
        let cache = Cache::new(Duration::from_secs(config.auth.cache_s), ask_for_heads);
        let (cluster, ears) = match joins {
            None => (None, None),
            Some(Joins { id, bus, incoming }) => {
                let inflight = config.cluster.inflight;
                let (cluster, committed) = Cluster::start(&store, bus, id, &node, clock.now(), inflight).await?;
                (Some(Arc::new(cluster)), Some((incoming, committed)))
            }
        };
        let hub = Arc::new(Hub {
            config,
            node,
            id,
            started_at: clock.now(),
            clock,
            store,
            writer,
            cache,
            search,
            look_for_moves: Notify::new(),
            told_revoked: Mutex::default(),
            on_events: OnceLock::new(),
            repaired: AtomicU64::new(0),
            cluster,
            directory: Directory::default(),
            operator,
            requests: Buckets::default(),
            sign_ins: Buckets::default(),
            connections: TaskTracker::new(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            failed: CancellationToken::new(),
            actors: OnceLock::new(),
            writing,
            written,
        });
        let _ = listener.set(Arc::downgrade(&hub));
        let (root, root_ended) = Actor::spawn(None, Root, hub.clone()).await?;
        let (channels, _) = Actor::spawn_linked(None, channel::Channels, hub.clone(), root.get_cell()).await?;
        let (sessions, _) = Actor::spawn_linked(None, session::Sessions, hub.clone(), root.get_cell()).await?;
        Actor::spawn_linked(None, PresenceActor, hub.clone(), root.get_cell()).await?;
        let _ = hub.actors.set(Actors { root, channels, sessions });
        housekeeping::start(&hub, hub.writing.clone());
        sweep::start(&hub, hub.writing.clone());
        if let Some((incoming, committed)) = ears {
            cluster::start(&hub, incoming, committed, hub.writing.clone());
        }
        hub.watch_over(root_ended);
        Ok(hub)
    }

    /// Notices that the root or the writer ended although nobody stopped them.
    fn watch_over(&self, root_ended: tokio::task::JoinHandle<()>) {
        let (writing, written, failed) = (self.writing.clone(), self.written.clone(), self.failed.clone());
        tokio::spawn(async move {
            let who = tokio::select! {
                _ = root_ended => "the root of the actors",
                () = written.cancelled() => "the writer",
            };
            if !writing.is_cancelled() {
                tracing::error!("{who} failed, and nothing works without it");
                failed.cancel();
            }
        });
    }

    fn actors(&self) -> &Actors {
        self.actors.get().expect("the actors are started before anything is asked of them")
    }

    /// Hands the events of a commit to the actors of their streams, in order, and ends what it revoked.
    fn committed(&self, committed: Committed) {
        let Committed { events, revoked, at, in_doubt } = committed;
        if in_doubt {
            self.cache.forget_all();
            self.look_for_moves.notify_one();
        }
        if let Some(cluster) = &self.cluster {
            cluster.tell_committed(&events);
            cluster.tell_revoked(&revoked);
        }
        if let Some(tell) = self.on_events.get() {
            tell(&events);
        }
        for revoked in revoked {
            self.revoke(revoked);
        }
        let mut streams: Vec<(StreamId, Vec<Event>)> = Vec::new();
        for event in events {
            self.note(&event);
            match streams.iter_mut().find(|(stream, _)| *stream == event.stream) {
                Some((_, events)) => events.push(event),
                None => streams.push((event.stream, vec![event])),
            }
        }
        for (stream, events) in streams {
            self.deliver(stream, events, at);
        }
    }

    /// Notes what a committed event changes beside what its stream's audience hears. Again is the same as once.
    fn note(&self, event: &Event) {
        self.cache.committed(event);
        match event.kind {
            EventKind::UserUpdated => self.user_changed(event),
            EventKind::UserChannelRemoved => {
                self.directory.tell_presence(PresenceMsg::Parted { user: event.stream.into() });
            }
            _ => {}
        }
    }

    /// A changed role, and how a user wants to be shown, take effect on open sessions at once.
    fn user_changed(&self, event: &Event) {
        let Ok(user) = serde_json::from_str::<User>(&event.payload) else { return };
        self.cache.forget_user(user.id);
        for session in self.directory.sessions_of(user.id) {
            if session.set_user(event.seq, user.role, user.presence_mode) {
                session.look_again();
            }
        }
        self.directory.tell_presence(PresenceMsg::Look { user: user.id });
    }

    /// Ends the sessions of a sign-in, or all of a user's.
    fn revoke(&self, revoked: Revoked) {
        self.cache.forget_user(revoked.user);
        self.sessions_under(revoked).for_each(|session| session.revoke());
    }

    fn sessions_under(&self, Revoked { user, token }: Revoked) -> impl Iterator<Item = Arc<session::SessionHandle>> {
        let sessions = self.directory.sessions_of(user).into_iter();
        sessions.filter(move |session| token.is_none_or(|token| session.token_id == token))
    }

    /// Asks every session to move elsewhere, and opens none from now on. Those that are open are served on.
    pub fn drain(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.leave();
        }
        // In this order: a session that is in the directory too late for this sees that the node drains.
        self.draining.cancel();
        self.connections.close();
        for session in self.directory.all_sessions() {
            self.ask_to_reconnect(&session);
        }
    }

    /// Says in the database that this node is no more. Waits for that no longer than for a client's goodbye.
    pub async fn left(&self) {
        if let Some(cluster) = &self.cluster {
            let _ = tokio::time::timeout(GOODBYE_MAX, cluster.take_row_away(&self.store)).await;
        }
    }

    fn ask_to_reconnect(&self, session: &session::SessionHandle) {
        let patience = Duration::from_secs(self.config.server.drain_s);
        // All are gone by half of the time, if they do as they are told.
        let spread = if patience.is_zero() { MOVES_WITHIN } else { patience / 2 };
        session.ask_to_reconnect(&self.config.server.gateway_url(), spread);
    }

    /// Waits until every client has moved, for `server.drain_s` at most; then closes what is still here.
    pub async fn drained(&self) {
        let patience = Duration::from_secs(self.config.server.drain_s);
        let moved = tokio::time::timeout(patience, self.connections.wait()).await;
        self.closing.cancel();
        if moved.is_ok() {
            return;
        }
        for session in self.directory.all_sessions() {
            session.queue.close(CloseCode::Restart);
        }
        let goodbye = patience.clamp(GOODBYE_MIN, GOODBYE_MAX);
        if tokio::time::timeout(goodbye, self.connections.wait()).await.is_err() {
            tracing::info!(connections = self.connections.len(), "stopping without an answer to every goodbye");
        }
    }

    /// Writes what waits, then stops the actors.
    pub async fn stop(&self) {
        let by = Instant::now() + STOPPED_WITHIN;
        self.remember_seen().await;
        self.writing.cancel();
        let _ = tokio::time::timeout_at(by.into(), self.written.cancelled()).await;
        let root = &self.actors().root;
        root.stop(None);
        let _ = tokio::time::timeout_at(by.into(), root.wait(None)).await;
    }
}

/// Runs a task until `stop` is cancelled or the node is gone. One that ends before, by a panic above all, is the node's end: it would
/// say that all is well, and something would never be done again. Returns who watches it.
fn watched(
    hub: &Weak<Hub>,
    stop: &CancellationToken,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let (stop, hub) = (stop.clone(), hub.clone());
    tokio::spawn(async move {
        let ended = tokio::spawn(async move { stop.run_until_cancelled(task).await }).await;
        if !matches!(ended, Ok(None))
            && let Some(hub) = hub.upgrade()
        {
            tracing::error!("the {name} failed, and nothing works without it");
            hub.failed.cancel();
        }
    })
}

/// Starts presence again if it dies, for it holds user input and is rebuilt from the sessions. Channels and Sessions do
/// nothing that can fail: should they all the same, all that hung on them is gone, and the node is to be stopped.
struct Root;

impl Actor for Root {
    type Msg = ();
    type State = Arc<Hub>;
    type Arguments = Arc<Hub>;

    async fn pre_start(&self, _: ActorRef<()>, hub: Arc<Hub>) -> Result<Arc<Hub>, ActorProcessingErr> {
        Ok(hub)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        hub: &mut Arc<Hub>,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, error) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, why) => (cell, why.unwrap_or_default()),
            _ => return Ok(()),
        };
        if hub.directory.is_presence(&cell) {
            tracing::error!(%error, "presence failed and is started again");
            let again = Actor::spawn_linked(None, PresenceActor, hub.clone(), myself.get_cell()).await;
            let Err(error) = again else { return Ok(()) };
            tracing::error!(%error, "presence cannot be started again");
        } else {
            tracing::error!(actor = ?cell.get_id(), %error, "an actor failed that nothing works without");
        }
        hub.failed.cancel();
        Ok(())
    }
}
