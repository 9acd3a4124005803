//! Several nodes, one hub: who is there, where a command goes, and what was committed elsewhere.
//!
//! ```text
//!  router ── channel of another node ──▶ forwards ──▶ bus ──▶ its ear ──▶ router ──▶ channel ──▶ writer
//!                                            ▲                                                    │ COMMIT
//!                                            └──────────────── answer ◀───────────────────────────┤
//!  channel (fan-out to this node's sessions) ◀── ear ◀── bus ◀── mouth ◀──────────────────────────┘
//!                        ▲
//!                        └── sweep: what the bus lost is read from the log
//! ```
//!
//! Postgres carries correctness alone: whoever writes is fenced ([`crate::storage::send`]), whoever hears looks for gaps. So
//! the bus may lose anything, and an owner that cannot be reached is not waited for: its commands are carried out beside it.
//! [`core`] is what a node decides, made of [`members`], [`forwards`], [`mod@line`] and `delay`, all pure; [`envelope`] is what is said.

pub mod core;
mod delay;
pub mod envelope;
pub mod forwards;
pub mod line;
pub mod members;
mod replay;
#[cfg(test)]
mod simulation;
pub mod status;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::channel::ChannelMsg;
use super::channel::room::UNKNOWN;
use super::directory::Credit;
use super::presence::{PresenceMsg, Word};
use super::trace::Asked;
use super::{Hub, watched};
use crate::bus::{Bus, Incoming, To};
use crate::clock::Timestamp;
use crate::domain::command::Command;
use crate::domain::error::{Code, Refusal};
use crate::domain::event::Event;
use crate::domain::id::{NodeId, StreamId};
use crate::storage::tokens::Revoked;
use crate::storage::writer::{Answer, Claim, Work, Write};
use crate::storage::{Store, StoreError, nodes};
use core::{Core, Routed, Ticked};
use envelope::{Beat, Message, Opened, Ran, Run, Seal, Typing, Unread};
use forwards::PATIENCE;
use members::{Lease, Way};
use status::Report;

/// How often a node shows by the bus that it lives.
const BEAT: Duration = Duration::from_millis(250);
/// How often it does in the database.
const STORE_BEAT: Duration = Duration::from_secs(2);
/// How long the database may take to note that.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether an answer is late.
const TICK: Duration = Duration::from_millis(50);
/// The most commits that wait to be told to others.
const COMMITS: usize = 4_096;
/// About how many bytes of events go into one message.
const MESSAGE: usize = 256 * 1_024;

/// One node's part in the cluster.
pub struct Cluster {
    bus: Bus,
    seal: Seal,
    row: nodes::Row,
    core: Mutex<Core<Write>>,
    /// There is somebody to tell what was committed.
    has_others: AtomicBool,
    leaves: AtomicBool,
    commits: mpsc::Sender<Vec<Event>>,
    /// The number of what this node told last of who is there.
    pub(super) presence: AtomicU64,
    counts: Counts,
}

/// What happened since the start, for who looks at the cluster.
#[derive(Debug, Default)]
struct Counts {
    forwarded: AtomicU64,
    beside: AtomicU64,
    taken_back: AtomicU64,
}

fn count(here: &AtomicU64, metric: metrics::Counter, by: u64) {
    here.fetch_add(by, Ordering::Relaxed);
    metric.increment(by);
}

/// Returns what the nodes of a database prove themselves with.
async fn secret(store: &Store) -> Result<Vec<u8>, StoreError> {
    let mut proposed = [0; 32];
    getrandom::fill(&mut proposed).expect("the system gives random bytes");
    nodes::secret(&mut store.read().await?, &proposed).await
}

impl Cluster {
    /// Joins the others: from now on they see this node, and it sees them.
    pub(super) async fn start(
        store: &Store,
        bus: Bus,
        id: NodeId,
        name: &str,
        started_at: Timestamp,
        inflight: usize,
    ) -> Result<(Cluster, mpsc::Receiver<Vec<Event>>), StoreError> {
        let seal = Seal::new(id, &secret(store).await?);
        let report = "{}".to_owned();
        let row = nodes::Row { id, name: name.to_owned(), clustered: true, started_at, beat: 0, report };
        let (commits, committed) = mpsc::channel(COMMITS);
        let core = Core::new(id, name.to_owned(), inflight, Instant::now());
        let cluster = Cluster {
            bus,
            seal,
            row,
            core: Mutex::new(core),
            has_others: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
            commits,
            presence: AtomicU64::new(0),
            counts: Counts::default(),
        };
        cluster.beat_in_store(store, &Report::default()).await?;
        Ok((cluster, committed))
    }

    fn core(&self) -> MutexGuard<'_, Core<Write>> {
        self.core.lock().expect("no panic under this lock")
    }

    /// Says something; whether it is heard is not known.
    pub(super) fn say(&self, to: To, message: &Message) -> bool {
        self.bus.publish(to, self.seal.seal(to, message))
    }

    /// Returns how many other nodes can be sent commands.
    pub fn reachable(&self) -> usize {
        let now = Instant::now();
        self.core().members.peers().filter(|(_, peer)| peer.is_reachable(now)).count()
    }

    /// Returns whether what a node told of its users is still believed.
    pub(super) fn lease(&self, node: NodeId) -> Lease {
        self.core().members.lease(node, Instant::now())
    }

    /// Returns whether this node owns a stream.
    pub fn owns(&self, stream: StreamId) -> bool {
        self.core().members.way(stream, Instant::now()) == Way::Here(Claim::Owner)
    }

    /// Sends a write on its way: to this node's own actor, or to the owner's.
    ///
    /// All of it is under one lock, which nobody holds for long: what one client asks is carried out in order, and what it
    /// asked before comes back first if the owner is lost.
    pub(super) fn route(&self, hub: &Hub, stream: StreamId, write: Write) {
        let mut core = self.core();
        let now = Instant::now();
        let (sent_ms, line) = (core.age_ms(now), (write.caller.user_id, stream));
        let (before, claim, write) = match core.route(line, write, now) {
            Routed::Here(before, claim, write) => (before, claim, write),
            Routed::There(node, number, write) => {
                if self.forward(node, number, sent_ms, write) {
                    count(&self.counts.forwarded, metrics::counter!("colink_commands_forwarded_total"), 1);
                    return;
                }
                let Some(write) = core.answered(number, node) else { return };
                (core.asked_before(line, number), Claim::Beside, write)
            }
        };
        self.take_back(hub, &core, before);
        self.enter(hub, &core, stream, Write { claim, ..write });
    }

    /// Sends a write to its owner; returns whether it is on its way.
    fn forward(&self, node: NodeId, number: u64, sent_ms: u64, write: &mut Write) -> bool {
        let Work::Command(command) = &write.work else { return false };
        // With a key, it can be carried out here if no answer comes.
        let key = write.key.get_or_insert_with(|| format!("~{:032x}", random())).clone();
        let within_ms = PATIENCE.as_millis() as u64;
        let asked = Asked::current();
        let run = Run::new(number, within_ms, write.caller, command.name(), command.body(), key);
        let said = self.say(To::Node(node), &Message::Run(run.sent(sent_ms).asked_by(asked.as_ref())));
        if let Some(asked) = asked {
            tracing::debug!(request.id = %asked, command = command.name(), node.id = %node, "sent a command to its owner");
        }
        said
    }

    fn enter(&self, hub: &Hub, core: &Core<Write>, stream: StreamId, write: Write) {
        if write.claim == Claim::Beside {
            count(&self.counts.beside, metrics::counter!("colink_writes_beside_owner_total"), 1);
        }
        let turn = core.enters((write.caller.user_id, stream));
        let answer = write.answer.then(move || drop(turn));
        hub.enter(stream, Write { answer, ..write });
    }

    /// Has commands carried out here that were sent to others, in this order. It is not known whether those carry them out.
    fn take_back(&self, hub: &Hub, core: &Core<Write>, back: Vec<Write>) {
        count(&self.counts.taken_back, metrics::counter!("colink_commands_taken_back_total"), back.len() as u64);
        for write in back {
            if let Work::Command(command) = &write.work {
                let stream = command.stream(write.caller.user_id);
                let answer = write.answer.in_doubt();
                self.enter(hub, core, stream, Write { claim: Claim::Beside, answer, ..write });
            }
        }
    }

    /// Tells the others what was committed here.
    pub(super) fn tell_committed(&self, events: &[Event]) {
        if !events.is_empty()
            && self.has_others.load(Ordering::Relaxed)
            && self.commits.try_send(events.to_vec()).is_err()
        {
            metrics::counter!("colink_bus_dropped_total", "why" => "commits").increment(1);
        }
    }

    /// Tells the others which sign-ins ended.
    pub(super) fn tell_revoked(&self, revoked: &[Revoked]) {
        if !revoked.is_empty() && self.has_others.load(Ordering::Relaxed) {
            self.say(To::Everyone, &Message::Revoked(revoked.to_vec()));
        }
    }

    /// Tells the others that somebody is typing.
    pub(super) fn tell_typing(&self, typing: Typing) {
        if self.has_others.load(Ordering::Relaxed) {
            self.say(To::Everyone, &Message::Typing(typing));
        }
    }

    /// Leaves: this node owns nothing from now on, but goes on to serve who is here.
    pub(super) fn leave(&self) {
        self.leaves.store(true, Ordering::Release);
        self.core().members.leave();
        self.beat_by_bus(false);
    }

    /// Says in the database that this node is no more.
    pub(super) async fn take_row_away(&self, store: &Store) {
        if let Ok(mut db) = store.read().await {
            let _ = tokio::time::timeout(STORE_PATIENCE, nodes::forget(&mut db, self.row.id, None)).await;
        }
    }

    fn beat_by_bus(&self, cut_off: bool) {
        let leaves = self.leaves.load(Ordering::Acquire);
        let presence = self.presence.load(Ordering::Acquire);
        let sent_ms = {
            let mut core = self.core();
            core.members.set_cut_off(self.row.id, cut_off);
            Some(core.age_ms(Instant::now()))
        };
        let beat = Beat { name: self.row.name.clone(), leaves, cut_off, presence, sent_ms };
        if self.say(To::Everyone, &Message::Beat(beat)) {
            self.core().members.showed(Instant::now());
        }
    }

    /// Notes in the database that this node lives, and reads who else does.
    async fn beat_in_store(&self, store: &Store, report: &Report) -> Result<(), StoreError> {
        let mut db = store.read().await?;
        if !self.leaves.load(Ordering::Acquire) {
            let report = serde_json::to_string(report).expect("a report has only string keys");
            nodes::beat(&mut db, &nodes::Row { report, ..self.row.clone() }).await?;
        }
        let rows = nodes::all(&mut db).await?;
        let dead = {
            let (mut core, now) = (self.core(), Instant::now());
            core.members.showed(now);
            core.members.read(rows.iter().map(|row| (row.id, &*row.name, row.beat)), now);
            core.members.forget_dead(now)
        };
        for (node, beat) in dead {
            nodes::forget(&mut db, node, beat).await?;
        }
        Ok(())
    }

    /// Looks who is there, and takes back what was sent to who is not.
    fn tick(&self, hub: &Hub) {
        let now = Instant::now();
        let mut core = self.core();
        let Ticked { late, back, changed } =
            core.tick(*self.bus.up().borrow(), self.has_others.load(Ordering::Relaxed), now);
        self.has_others.store(core.members.has_others(now), Ordering::Relaxed);
        if changed {
            hub.look_for_moves.notify_one();
        }
        for node in late {
            tracing::warn!(node.id = %node, "a node does not answer: its commands are carried out here");
        }
        self.take_back(hub, &core, back);
        metrics::gauge!("colink_commands_forwarded_waiting").set(core.waiting() as f64);
    }

    /// Returns whether what others commit may not be told here.
    pub fn is_degraded(&self) -> bool {
        self.core().members.is_degraded(Instant::now())
    }
}

impl Hub {
    /// Takes a message of another node.
    fn hear(self: &Arc<Self>, cluster: &Cluster, bytes: &[u8]) {
        let Opened { from, number, message } = match cluster.seal.open(bytes) {
            Ok(opened) => opened,
            Err(why) => return count_unread(why),
        };
        if number.is_some_and(|number| !cluster.core().is_new(from, number)) {
            return count_unread(Unread::Repeated);
        }
        match message {
            Message::Beat(beat) => {
                let is_new = {
                    let (mut core, now) = (cluster.core(), Instant::now());
                    core.beats(from, beat.sent_ms, now);
                    let is_new = core.members.heard(from, &beat.name, beat.leaves, now);
                    core.members.set_cut_off(from, beat.cut_off);
                    is_new
                };
                if is_new && beat.name == cluster.row.name {
                    tracing::warn!(node = %beat.name, node.id = %from, "another node has this one's name: give each its own");
                }
                self.heard_of_users(from, Word::Beat(beat.presence));
            }
            Message::Run(run) => self.run_for(cluster, from, number, run),
            Message::Ran(ran) => self.ran(cluster, from, ran),
            Message::Events(events) => self.heard(events),
            Message::Revoked(revoked) => self.heard_revoked(revoked),
            Message::Typing(typing) => self.heard_typing(&typing),
            Message::Presence(changes) => self.heard_of_users(from, Word::Changes(changes)),
            Message::PresenceAll(all) => self.heard_of_users(from, Word::All(all)),
            Message::PresenceAsk => self.heard_of_users(from, Word::Ask),
            Message::PresenceActive(user) => self.heard_of_users(from, Word::Active(user)),
        }
    }

    /// Carries out a command that another node sent here, and answers it. One from before messages had numbers might be said
    /// again; whoever sent it carries it out.
    fn run_for(self: &Arc<Self>, cluster: &Cluster, from: NodeId, said: Option<u64>, run: Run) {
        let comes = said.and_then(|_| cluster.core().comes(from, &run, Instant::now()));
        let Some(left) = comes else {
            count_unread(Unread::Late);
            // Who gave up passes this over; who did not, because it is the clocks that are late, goes on at once.
            cluster.say(To::Node(from), &Message::Ran(Ran::new(run.number, Err(cannot()))));
            return;
        };
        let (number, caller) = (run.number, run.caller());
        let (bus, seal, hub) = (cluster.bus.clone(), cluster.seal.clone(), self.clone());
        let answer = Answer::new(move |result| {
            // The sender's own way to the database may be open.
            let result = match result {
                Err(refusal) if refusal.code == Code::Unavailable && hub.writer.is_cut_off() => Err(cannot()),
                result => result,
            };
            let to = To::Node(from);
            bus.publish(to, seal.seal(to, &Message::Ran(Ran::new(number, result))));
        });
        let answer = answer.within(left);
        let command = match Command::decode(&run.command, run.body.get()) {
            Some(Ok(command)) => command,
            // Of another release: the sender knows better what to do with it.
            Some(Err(_)) | None => return answer.give(Err(cannot())),
        };
        let stream = command.stream(caller.user_id);
        tracing::debug!(
            request.id = run.request,
            trace.parent = run.trace,
            command = command.name(),
            stream.id = %stream,
            node.id = %from,
            "carrying out a command of another node"
        );
        let claim = if cluster.owns(stream) { Claim::Owner } else { Claim::Beside };
        self.enter(stream, Write { caller, work: Work::Command(command), claim, key: Some(run.key), answer });
    }

    /// Takes the answer of the owner.
    fn ran(&self, cluster: &Cluster, from: NodeId, ran: Ran) {
        let mut core = cluster.core();
        let number = ran.number;
        let Some(write) = core.answered(number, from) else { return };
        match ran.result() {
            // The owner does not know what became of it, or what it is: that can be found out here.
            None => {}
            Some(Err(refusal)) if refusal.code == Code::Timeout => {}
            Some(result) => {
                drop(core);
                return write.answer.give(result);
            }
        }
        if let Work::Command(command) = &write.work {
            let line = (write.caller.user_id, command.stream(write.caller.user_id));
            let mut back = core.asked_before(line, number);
            back.push(write);
            cluster.take_back(self, &core, back);
        }
    }

    /// Takes events that another node committed: what is of interest to somebody here goes to the stream's actor.
    pub(super) fn heard(&self, events: Vec<Event>) {
        let at = Instant::now();
        if let Some(tell) = self.on_events.get() {
            tell(&events);
        }
        let mut streams: Vec<(StreamId, Vec<Event>)> = Vec::new();
        for event in events {
            let slot = self.directory.slot(event.stream).filter(|slot| slot.is_watched());
            // One that was delivered comes late: what it changed may have changed again since.
            if slot.is_none_or(|slot| event.seq <= slot.delivered.load(Ordering::Acquire)) {
                continue;
            }
            self.note(&event);
            match streams.iter_mut().find(|(stream, _)| *stream == event.stream) {
                Some((_, events)) => events.push(event),
                None => streams.push((event.stream, vec![event])),
            }
        }
        for (stream, events) in streams {
            let slot = self.directory.slot_or_new(stream);
            // A channel that cannot follow reads the log when it can.
            if let Some(credit) = Credit::take(&slot, self.config.channels.mailbox) {
                self.tell(stream, ChannelMsg::Committed { events, at, credit: Some(credit) });
            } else {
                metrics::counter!("colink_bus_dropped_total", "why" => "slow").increment(1);
            }
        }
    }

    fn heard_of_users(&self, from: NodeId, word: Word) {
        self.directory.tell_presence(PresenceMsg::Elsewhere(from, word));
    }

    fn heard_typing(&self, typing: &Typing) {
        let Typing { channel, user, thread_seq } = *typing;
        let Some(slot) = self.directory.slot(channel.into()).filter(|slot| slot.is_watched()) else { return };
        if let Some(credit) = Credit::take(&slot, self.config.channels.mailbox) {
            self.tell(channel.into(), ChannelMsg::Typing { user, thread_seq, credit });
        }
    }
}

fn count_unread(why: Unread) {
    metrics::counter!("colink_bus_unread_total", "why" => why.as_str()).increment(1);
}

fn random() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    u128::from_ne_bytes(bytes)
}

fn cannot() -> Refusal {
    Refusal::new(Code::Timeout, "this node cannot carry the command out")
}

/// Starts the tasks. They live until `stop` is cancelled or the node is gone.
pub(super) fn start(
    hub: &Arc<Hub>,
    incoming: Incoming,
    committed: mpsc::Receiver<Vec<Event>>,
    stop: CancellationToken,
) {
    let hub = Arc::downgrade(hub);
    watched(&hub, &stop, "ear", ear(hub.clone(), incoming));
    watched(&hub, &stop, "mouth", mouth(hub.clone(), committed));
    watched(&hub, &stop, "pulse", pulse(hub.clone()));
    watched(&hub, &stop, "store pulse", store_pulse(hub.clone()));
}

async fn ear(hub: Weak<Hub>, mut incoming: Incoming) {
    while let Some(bytes) = incoming.recv().await {
        let Some(hub) = hub.upgrade() else { return };
        let Some(cluster) = hub.cluster.clone() else { return };
        hub.hear(&cluster, &bytes);
    }
}

async fn mouth(hub: Weak<Hub>, mut committed: mpsc::Receiver<Vec<Event>>) {
    let mut waiting = Vec::new();
    while committed.recv_many(&mut waiting, 64).await > 0 {
        let Some(cluster) = hub.upgrade().and_then(|hub| hub.cluster.clone()) else { return };
        let events: Vec<Event> = waiting.drain(..).flatten().collect();
        let (mut first, mut bytes) = (0, 0);
        for (at, event) in events.iter().enumerate() {
            bytes += event.payload.len() + 200;
            if bytes >= MESSAGE || at + 1 == events.len() {
                cluster.bus.publish(To::Everyone, cluster.seal.seal_events(&events[first..=at]));
                (first, bytes) = (at + 1, 0);
            }
        }
    }
}

async fn pulse(hub: Weak<Hub>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let Some(hub) = hub.upgrade() else { return };
        let Some(cluster) = hub.cluster.clone() else { return };
        if beat.is_none_or(|at| at.elapsed() >= BEAT) {
            beat = Some(Instant::now());
            cluster.beat_by_bus(hub.writer.is_cut_off());
            hub.directory.tell_presence(PresenceMsg::LookAtPeers);
        }
        cluster.tick(&hub);
    }
}

async fn store_pulse(hub: Weak<Hub>) {
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut failing, mut beat): (bool, Option<Instant>) = (false, None);
    loop {
        ticks.tick().await;
        let Some(hub) = hub.upgrade() else { return };
        let Some(cluster) = hub.cluster.clone() else { return };
        // Who is cut off looks more often whether that is over.
        let is_due = beat.is_none_or(|at| at.elapsed() >= STORE_BEAT);
        if !is_due && !failing && !hub.writer.is_cut_off() {
            continue;
        }
        beat = Some(Instant::now());
        let done = tokio::time::timeout(STORE_PATIENCE, cluster.beat_in_store(&hub.store, &hub.report())).await;
        let failed = !matches!(done, Ok(Ok(())));
        if failed && !failing {
            tracing::warn!("cannot note in the database that this node lives: it is tried again");
        }
        failing = failed;
        if !failed {
            hub.writer.may_try_again();
        }
    }
}

impl super::directory::Slot {
    /// Returns whether somebody here listens to the stream, so that what is committed elsewhere matters.
    fn is_watched(&self) -> bool {
        self.delivered.load(Ordering::Acquire) != UNKNOWN
    }
}
