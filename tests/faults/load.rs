//! The load: people who write by either door to any node and repeat until answered, and readers that come back to any node.
//! Everything that they see is recorded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use colink::client::{Client, Error, Event, Gateway, Options, Start, Step};
use colink::clock::Clock;
use colink::domain::command::{AddReaction, Done, SendMessage};
use colink::domain::id::{ChannelId, StreamId, UserId};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::checker::{Answer, Attempted, Change, Entry, Reader};
use crate::leaks::Received;
use crate::random::Random;
use crate::sending::{answer_of, is_definite, post};
use crate::stored::{Person, Room};

/// How long anything may take in the end.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How long one request may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited before something is tried again.
pub(crate) const AGAIN: Duration = Duration::from_millis(25);

/// One attempt to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) channel: ChannelId,
    /// Which node was asked.
    pub(crate) node: usize,
    /// Which write it is an attempt of.
    pub(crate) write: u64,
    pub(crate) began: Instant,
    pub(crate) took: Duration,
    pub(crate) ok: bool,
}

/// A message that was pushed to a reader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    /// Since its sender began.
    pub(crate) took: Duration,
    /// The nodes of its sender and of its reader.
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl Heard {
    /// Returns whether it went from one node to another.
    pub(crate) fn across(&self) -> bool {
        self.from != self.to
    }
}

/// A reader whose connection ended, and came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    pub(crate) node: usize,
    pub(crate) lost: Instant,
    /// Since then, until it had all that was acknowledged when it was back.
    pub(crate) took: Duration,
}

/// A connection that ended without its client's wish.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) who: String,
    pub(crate) node: usize,
    pub(crate) at: Instant,
}

/// What was seen, beside what the checker needs.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) calls: Vec<Call>,
    pub(crate) heard: Vec<Heard>,
    pub(crate) backs: Vec<Back>,
    pub(crate) ends: Vec<End>,
    pub(crate) attempted: Vec<Attempted>,
    pub(crate) changes: Vec<Change>,
    pub(crate) received: Vec<Received>,
    /// Who heard something of the workspace, and when that was said.
    pub(crate) overheard: Vec<(UserId, i64)>,
    /// Messages of people whose end had been confirmed when they were sent.
    pub(crate) too_late: Vec<String>,
    /// What went wrong for a client in a way that it never should.
    pub(crate) broken: Vec<String>,
}

/// What all clients of one row share.
pub(crate) struct World {
    pub(crate) urls: Vec<String>,
    pub(crate) root: String,
    pub(crate) people: Vec<Person>,
    /// See [`crate::victims::FATES`].
    pub(crate) victims: Vec<Person>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) clock: Clock,
    pub(crate) record: Mutex<Record>,
    /// Set when the fault begins.
    pub(crate) failing: AtomicBool,
    /// When what was to become of a victim had for certain.
    pub(crate) changed: Mutex<HashMap<UserId, i64>>,
    pub(crate) away: AtomicUsize,
    base: Instant,
    keys: AtomicU64,
    acked: Mutex<HashMap<ChannelId, i64>>,
    journal: Option<Mutex<File>>,
}

impl World {
    pub(crate) fn new(
        urls: Vec<String>,
        root: String,
        people: Vec<Person>,
        victims: Vec<Person>,
        rooms: Vec<Room>,
    ) -> Arc<World> {
        let file = |path| File::options().create(true).append(true).open(path).unwrap();
        Arc::new(World {
            urls,
            root,
            people,
            victims,
            rooms,
            clock: Clock::default(),
            record: Mutex::default(),
            failing: AtomicBool::new(false),
            changed: Mutex::default(),
            away: AtomicUsize::new(0),
            base: Instant::now(),
            keys: AtomicU64::new(1),
            acked: Mutex::default(),
            journal: std::env::var("COLINK_FAULTS_LOG").ok().map(|path| Mutex::new(file(path))),
        })
    }

    /// Writes a line into the journal, if one is kept.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if let Some(journal) = &self.journal {
            let line = format!("{:10.3} {}\n", self.base.elapsed().as_secs_f64(), line());
            journal.lock().unwrap().write_all(line.as_bytes()).unwrap();
        }
    }

    pub(crate) fn record<T>(&self, what: impl FnOnce(&mut Record) -> T) -> T {
        what(&mut self.record.lock().unwrap())
    }

    /// Notes that something fails from now on.
    pub(crate) fn fails(&self) {
        self.note(|| "the fault begins".to_owned());
        self.failing.store(true, Ordering::Release);
    }

    pub(crate) fn broke(&self, what: String) {
        self.note(|| format!("BROKEN {what}"));
        self.record(|record| record.broken.push(what));
    }

    /// Returns how long after a moment a write to each channel had been answered.
    pub(crate) fn written_everywhere(&self, record: &Record, moment: Instant) -> Option<Duration> {
        let first = |room: &Room| {
            let written = record.calls.iter().filter(|call| call.ok && call.channel == room.id);
            written.map(|call| call.began + call.took).filter(|end| *end > moment).min()
        };
        self.rooms.iter().filter_map(first).max().map(|last| last - moment)
    }

    fn ended(&self, who: &str, node: usize, error: &Error) {
        self.note(|| format!("{who} lost its connection to {node}: {error}"));
        self.record(|record| record.ends.push(End { who: who.to_owned(), node, at: Instant::now() }));
    }

    fn acked(&self, channel: ChannelId, seq: i64) {
        let mut acked = self.acked.lock().unwrap();
        let head = acked.entry(channel).or_default();
        *head = seq.max(*head);
    }

    pub(crate) fn client(&self, node: usize, token: &str) -> Client {
        Client::new(&self.urls[node]).unwrap().with_token(token).with_timeout(PATIENCE)
    }

    /// Makes the key of a message.
    pub(crate) fn key(&self, who: &str) -> String {
        format!("{who}-{}", self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks an administrator's request of any node until it is answered for certain.
    pub(crate) async fn insist(&self, random: &mut Random, stop: &CancellationToken, what: &Ask) -> bool {
        let deadline = Instant::now() + LIMIT;
        while !stop.is_cancelled() {
            let node = random.below(self.urls.len());
            let client = self.client(node, &self.root);
            let result: Result<serde_json::Value, Error> = match what {
                Ask::Post(path, body) => client.post(path, body).await,
                Ask::Put(path, body) => client.put(path, body).await,
                Ask::Delete(path) => client.delete(path).await,
                Ask::SignOut(token) => self.client(node, token).post("/v1/auth/logout", &json!({})).await,
            };
            match result {
                Ok(_) => return true,
                Err(Error::Refused { code, .. }) if code == "unauthenticated" && matches!(what, Ask::SignOut(_)) => {
                    return true;
                }
                // Done by an attempt that was not answered.
                Err(Error::Refused { code, .. }) if ["not_found", "conflict"].contains(&code.as_str()) => return true,
                Err(error) if is_definite(&error) => {
                    self.broke(format!("an administrator is refused: {error}"));
                    return false;
                }
                Err(error) if Instant::now() > deadline => {
                    self.broke(format!("an administrator gets no answer: {error}"));
                    return false;
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        false
    }
}

pub(crate) enum Ask {
    Post(String, serde_json::Value),
    Put(String, serde_json::Value),
    Delete(String),
    /// By whose token it is.
    SignOut(String),
}

/// By which door a writer comes.
pub(crate) enum Door {
    Rest,
    Gateway(Option<(usize, Gateway)>),
}

/// Somebody who writes.
pub(crate) struct Writer {
    pub(crate) world: Arc<World>,
    pub(crate) me: Person,
    pub(crate) door: Door,
    pub(crate) random: Random,
    /// The longest pause between two writes.
    pub(crate) pace: Duration,
}

impl Writer {
    /// Writes until told to stop; what was begun then is brought to its end.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (mut posted, rooms) = (HashMap::new(), self.world.rooms.clone());
        while !stop.is_cancelled() {
            tokio::time::sleep(self.random.time_below(self.pace)).await;
            let channel = self.random.pick(&rooms).id;
            let last: Option<i64> = posted.get(&channel).copied();
            match last.filter(|_| self.random.once_in(6)) {
                Some(seq) if self.random.once_in(2) => self.react(channel, seq).await,
                thread => {
                    if let Some(seq) = self.send(channel, thread).await
                        && thread.is_none()
                    {
                        posted.insert(channel, seq);
                    }
                }
            }
        }
    }

    /// Sends a message, again and again until it is answered for certain. Returns its number.
    async fn send(&mut self, channel: ChannelId, thread_seq: Option<i64>) -> Option<i64> {
        let key = self.world.key(&self.me.name);
        let (mut answers, write) = (Vec::new(), self.world.keys.fetch_add(1, Ordering::Relaxed));
        let deadline = Instant::now() + LIMIT;
        let named = matches!(self.door, Door::Gateway(_));
        let mut send = None;
        while !matches!(answers.last(), Some(Answer::Ok { .. } | Answer::Refused(_))) {
            if Instant::now() > deadline {
                self.world.broke(format!("{key} gets no answer: {answers:?}"));
                break;
            }
            let Some(node) = self.node().await else { continue };
            let since = self.world.base.elapsed().as_micros();
            let send = send.get_or_insert_with(|| SendMessage {
                channel_id: channel,
                text: format!("{key} {since} {node}"),
                client_msg_id: named.then(|| key.clone()),
                thread_seq,
                also_in_channel: false,
            });
            self.world.note(|| format!("invoke {key} to {channel} at {node}"));
            let began = Instant::now();
            let result = match &self.door {
                Door::Rest => post(&self.world.urls[node], &self.me.token, send, PATIENCE).await,
                Door::Gateway(Some((_, gateway))) => gateway.call(send.clone()).await,
                Door::Gateway(None) => continue,
            };
            self.answered(node, result.as_ref().err());
            let answer = answer_of(result);
            let ok = matches!(answer, Answer::Ok { .. });
            self.world.note(|| format!("{key}: {answer:?}"));
            let call = Call { channel, node, write, began, took: began.elapsed(), ok };
            self.world.record(|record| record.calls.push(call));
            match &answer {
                Answer::Ok { seq, .. } => self.world.acked(channel, *seq),
                Answer::Unknown => tokio::time::sleep(AGAIN).await,
                Answer::Refused(why) => self.world.broke(format!("{key} of a member is refused: {why}")),
            }
            answers.push(answer);
        }
        let seq = answers.iter().find_map(|answer| match answer {
            Answer::Ok { seq, .. } => Some(*seq),
            _ => None,
        });
        let attempted = Attempted { author: self.me.id, channel, key, answers };
        self.world.record(|record| record.attempted.push(attempted));
        seq
    }

    /// Reacts, once: what became of it is not known if no answer comes.
    async fn react(&mut self, channel_id: ChannelId, seq: i64) {
        let Some(node) = self.node().await else { return };
        let emoji = "eyes".to_owned();
        let done: Result<Done, Error> = match &self.door {
            Door::Rest => {
                let path = format!("/v1/channels/{channel_id}/messages/{seq}/reactions/{emoji}");
                self.world.client(node, &self.me.token).put(&path, &json!({})).await
            }
            Door::Gateway(Some((_, gateway))) => gateway.call(AddReaction { channel_id, seq, emoji }).await,
            Door::Gateway(None) => return,
        };
        self.answered(node, done.as_ref().err());
        if let Some(seq) = done.ok().and_then(|done| done.seq) {
            self.world.acked(channel_id, seq);
            let change = Change { actor: self.me.id, channel: channel_id, seq, kind: "reaction.added" };
            self.world.record(|record| record.changes.push(change));
        }
    }

    /// Returns the node to ask, connecting to one if need be.
    async fn node(&mut self) -> Option<usize> {
        let any = self.random.below(self.world.urls.len());
        let Door::Gateway(gateway) = &mut self.door else { return Some(any) };
        if let Some((node, _)) = gateway {
            return Some(*node);
        }
        // It only writes: no intents, nothing is sent to it.
        let options = Options { intents: Vec::new(), timeout: PATIENCE / 2, ..Options::default() };
        match Gateway::connect(&self.world.urls[any], &self.me.token, options).await {
            Ok(connected) => {
                *gateway = Some((any, connected));
                Some(any)
            }
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                None
            }
        }
    }

    /// Leaves a node that does not answer.
    fn answered(&mut self, node: usize, error: Option<&Error>) {
        let (Door::Gateway(gateway), Some(error)) = (&mut self.door, error) else { return };
        if matches!(error, Error::Closed { .. } | Error::Io(_)) {
            if matches!(error, Error::Closed { .. }) {
                self.world.ended(&self.me.name, node, error);
            }
            *gateway = None;
        }
    }
}

pub(crate) fn listening() -> Options {
    Options { timeout: PATIENCE / 2, ..Options::default() }
}

/// Somebody who reads: applies each event once and in order, whatever happens to the connection.
pub(crate) struct Listener {
    world: Arc<World>,
    me: Person,
    name: String,
    random: Random,
    node: usize,
    gateway: Gateway,
    applied: HashMap<ChannelId, Vec<Entry>>,
    channels: Vec<ChannelId>,
    /// Since when the connection was lost, at which node, and what there is to catch up with.
    behind: Option<(Instant, usize, HashMap<ChannelId, i64>)>,
}

impl Listener {
    /// Opens a session and applies everything from the first event of each channel on.
    pub(crate) async fn open(world: Arc<World>, me: Person, n: usize, mut random: Random) -> Result<Listener, Error> {
        let node = n % world.urls.len();
        random.below(n + 1);
        let mut gateway = Gateway::connect(&world.urls[node], &me.token, listening()).await?;
        let channels: Vec<ChannelId> = world.rooms.iter().map(|room| room.id).collect();
        channels.iter().for_each(|channel| gateway.cursors.set(*channel, 0));
        let name = format!("{}/{n}", me.name);
        let (applied, behind) = (HashMap::new(), None);
        let mut listener = Listener { world, me, name, random, node, gateway, applied, channels, behind };
        for channel in listener.channels.clone() {
            listener.repair(channel.into(), 0).await;
        }
        listener.watch_everybody().await?;
        Ok(listener)
    }

    /// Asks to be told who of the people is there.
    async fn watch_everybody(&self) -> Result<(), Error> {
        let everybody: Vec<UserId> = self.world.people.iter().map(|person| person.id).collect();
        self.gateway.watch_presence(&everybody).await
    }

    /// Reads until every channel stands where `heads`, once given, says that it ends. The time is that of its getting there.
    pub(crate) async fn run(
        mut self,
        mut heads: watch::Receiver<Option<HashMap<ChannelId, i64>>>,
    ) -> (Reader, Instant) {
        let mut deadline = None;
        loop {
            let goal = heads.borrow_and_update().clone();
            if let Some(goal) = goal {
                let reached = |channel: &ChannelId| self.gateway.cursors.get(*channel) >= goal.get(channel).copied();
                if self.channels.iter().all(reached) {
                    break;
                }
                if Instant::now() > *deadline.get_or_insert(Instant::now() + LIMIT / 2) {
                    self.world.broke(format!("{} stays behind: {:?} of {goal:?}", self.name, self.gateway.cursors));
                    break;
                }
            }
            let too_late = async {
                match deadline {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = heads.changed() => {}
                () = too_late => {}
                event = self.gateway.next_event() => match event {
                    Ok(event) => self.take(&event).await,
                    Err(error) => {
                        if !error.may_come_back() {
                            self.world.broke(format!("{} was told to stay away: {error}", self.name));
                            break;
                        }
                        self.world.ended(&self.name, self.node, &error);
                        if !self.come_back().await {
                            break;
                        }
                    }
                }
            }
            self.look_whether_caught_up();
        }
        let reader = Reader { name: self.name, channels: self.channels, applied: self.applied };
        (reader, Instant::now())
    }

    async fn take(&mut self, event: &Event) {
        match self.gateway.cursors.offer(event) {
            Step::Apply => {
                if self.behind.is_none() {
                    self.heard(event);
                }
                self.apply(event);
            }
            Step::Drop => {}
            Step::Gap { stream, after } => self.repair(stream, after).await,
        }
    }

    /// Notes how long a message took, which says itself when and where it was sent.
    fn heard(&self, event: &Event) {
        if event.kind != "message.created" {
            return;
        }
        let Ok(data) = event.data::<serde_json::Value>() else { return };
        let mut words = data["text"].as_str().unwrap_or_default().split(' ').skip(1);
        let sent = words.next().and_then(|word| word.parse().ok());
        let node = words.next().and_then(|word| word.parse::<usize>().ok());
        if let (Some(sent), Some(from)) = (sent, node) {
            let took = self.world.base.elapsed().saturating_sub(Duration::from_micros(sent));
            let heard = Heard { at: Instant::now(), took, from, to: self.node };
            self.world.record(|record| record.heard.push(heard));
        }
    }

    fn apply(&mut self, event: &Event) {
        if let Some((channel, entry)) = Entry::of(event) {
            self.world.note(|| format!("{} hears {} of {channel}: {}", self.name, entry.seq, entry.kind));
            self.applied.entry(channel).or_default().push(entry);
        }
    }

    /// Reads what is missing from the log of any node, until it can be read.
    async fn repair(&mut self, stream: StreamId, after: i64) {
        let (deadline, mut node) = (Instant::now() + LIMIT, self.node);
        let missing = loop {
            match self.world.client(node, &self.me.token).events(stream, after).await {
                Ok(missing) => break missing,
                Err(error) if is_definite(&error) || Instant::now() > deadline => {
                    return self.world.broke(format!("{} cannot read events: {error}", self.name));
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
            node = self.random.below(self.world.urls.len());
        };
        for event in &missing {
            match self.gateway.cursors.offer(event) {
                Step::Apply => self.apply(event),
                Step::Drop => {}
                Step::Gap { .. } => {
                    self.world.broke(format!("the log of {stream} has a gap before {:?}", event.seq));
                    return;
                }
            }
        }
    }

    /// Goes on from the position it had, on any node. Returns whether it could.
    async fn come_back(&mut self) -> bool {
        let (lost, from, position) = (Instant::now(), self.node, self.gateway.position());
        self.world.away.fetch_add(1, Ordering::AcqRel);
        loop {
            let node = self.random.below(self.world.urls.len());
            let url = &self.world.urls[node];
            match Gateway::resume_from(url, &self.me.token, listening(), position.clone()).await {
                Ok(gateway) => {
                    (self.gateway, self.node) = (gateway, node);
                    // If that fails the connection has ended again.
                    let _ = self.watch_everybody().await;
                    break;
                }
                Err(error) => {
                    let hopeful = error.may_come_back() || matches!(error, Error::Protocol(_));
                    if !hopeful || lost.elapsed() > LIMIT {
                        self.world.broke(format!("{} cannot come back: {error}", self.name));
                        return false;
                    }
                    tokio::time::sleep(AGAIN + self.random.time_below(AGAIN)).await;
                }
            }
        }
        self.world.away.fetch_sub(1, Ordering::AcqRel);
        let anew = !matches!(self.gateway.start, Start::Resumed(_));
        self.world.note(|| format!("{} is back at {}{}", self.name, self.node, if anew { ", anew" } else { "" }));
        let lost = self.behind.take().map_or((lost, from), |(lost, from, _)| (lost, from));
        self.behind = Some((lost.0, lost.1, self.world.acked.lock().unwrap().clone()));
        true
    }

    fn look_whether_caught_up(&mut self) {
        let Some((lost, node, heads)) = &self.behind else { return };
        if heads.iter().all(|(channel, head)| self.gateway.cursors.get(*channel) >= Some(*head)) {
            let back = Back { node: *node, lost: *lost, took: lost.elapsed() };
            self.world.record(|record| record.backs.push(back));
            self.behind = None;
        }
    }
}
