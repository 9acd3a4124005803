//! Clients that a crash does not impress: writers that repeat with the same key until they are answered, and readers
//! that come back, resume, and repair what is missing. What they see is recorded for the checker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use colink::client::{Client, Error, Event, Gateway, Options, Position, Start, Step};
use colink::domain::channel::Membership;
use colink::domain::command::{
    AddPin, AddReaction, DeleteMessage, Done, EditMessage, MarkRead, MarkUnread, SendMessage, Spec,
};
use colink::domain::id::{ChannelId, StreamId, UserId};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::checker::{Answer, Attempted, Change, Entry, Reader};
use crate::random::Random;
use crate::sending::{answer_of, is_definite, post};
use crate::stored::{Person, Room};

/// How long anything may take while the server is up in the end.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits before it tries a dead server again.
const AGAIN: Duration = Duration::from_millis(20);

/// Waits a moment before something is tried again, which has a limit.
async fn before_another_try(deadline: Instant, why: impl FnOnce() -> String) {
    assert!(Instant::now() < deadline, "{}", why());
    tokio::time::sleep(AGAIN).await;
}

/// A message that was acknowledged, for others to reply to, to edit, to react to.
#[derive(Clone, Copy)]
struct Posted {
    seq: i64,
    author: UserId,
    top_level: bool,
    /// Found by its `client_msg_id` even when its text is gone, so that it may be deleted.
    named: bool,
}

/// What all clients share.
pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) people: Vec<Person>,
    pub(crate) rooms: Vec<Room>,
    posted: Mutex<HashMap<ChannelId, Vec<Posted>>>,
    keys: AtomicU64,
    pub(crate) attempted: Mutex<Vec<Attempted>>,
    pub(crate) changes: Mutex<Vec<Change>>,
    pub(crate) figures: Figures,
}

/// How often what happened.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) unknown: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) anew: AtomicU64,
    pub(crate) repairs: AtomicU64,
    pub(crate) repeats: AtomicU64,
}

fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}

impl World {
    pub(crate) fn new(url: String, people: Vec<Person>, rooms: Vec<Room>) -> Arc<World> {
        Arc::new(World {
            url,
            people,
            rooms,
            posted: Mutex::default(),
            keys: AtomicU64::new(1),
            attempted: Mutex::default(),
            changes: Mutex::default(),
            figures: Figures::default(),
        })
    }

    pub(crate) fn client(&self, person: &Person) -> Client {
        Client::new(&self.url).unwrap().with_token(&person.token).with_timeout(Duration::from_secs(10))
    }

    fn pick_posted(&self, random: &mut Random, channel: ChannelId, fits: impl Fn(&Posted) -> bool) -> Option<Posted> {
        let posted = self.posted.lock().unwrap();
        let list: Vec<&Posted> = posted.get(&channel)?.iter().filter(|p| fits(p)).collect();
        // Mostly what is recent, as people do.
        let recent = list.len().saturating_sub(20);
        let from = if random.once_in(5) { 0 } else { recent };
        list[from..].get(random.below(list.len() - from)).map(|p| **p)
    }
}

/// By which door a writer comes.
pub(crate) enum Door {
    /// REST, with `Idempotency-Key`.
    Rest,
    /// The gateway, with `client_msg_id`.
    Gateway(Option<Gateway>),
}

/// Somebody who writes.
pub(crate) struct Writer {
    world: Arc<World>,
    me: Person,
    rooms: Vec<Room>,
    random: Random,
    client: Client,
    door: Door,
}

impl Writer {
    pub(crate) fn new(world: &Arc<World>, me: &Person, door: Door, random: Random) -> Writer {
        let rooms = world.rooms.iter().filter(|room| room.members.contains(&me.id)).cloned().collect();
        Writer { world: world.clone(), me: me.clone(), rooms, random, client: world.client(me), door }
    }

    /// Writes until told to stop; what was begun then is brought to its end.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let room = self.random.pick(&self.rooms).clone();
            match self.random.below(20) {
                0..=10 => {
                    let burst = 1 + self.random.below(4);
                    let sends = (0..burst).map(|_| self.compose(&room, None)).collect();
                    self.send(sends).await;
                }
                11..=13 => {
                    let root = self.world.pick_posted(&mut self.random, room.id, |p| p.top_level);
                    let sends = root.map(|root| self.compose(&room, Some(root.seq)));
                    self.send(sends.into_iter().collect()).await;
                }
                _ => self.change(&room).await,
            }
        }
    }

    fn compose(&mut self, room: &Room, thread_seq: Option<i64>) -> SendMessage {
        let key = format!("{}-{}", self.me.name, self.world.keys.fetch_add(1, Ordering::Relaxed));
        let whom = self.random.pick(&self.world.people).name.clone();
        let tail = match self.random.below(6) {
            0 => format!("ask @{whom}"),
            1 => "@channel look".to_owned(),
            2 => "x".repeat(self.random.below(2_000)),
            _ => "nothing much".to_owned(),
        };
        let named = matches!(self.door, Door::Gateway(_));
        SendMessage {
            channel_id: room.id,
            text: format!("{key} {tail}"),
            client_msg_id: named.then_some(key),
            thread_seq,
            also_in_channel: thread_seq.is_some() && self.random.once_in(4),
        }
    }

    /// Sends messages, each again and again until it is answered for certain, and some once more after that.
    async fn send(&mut self, sends: Vec<SendMessage>) {
        let mut answers: Vec<Vec<Answer>> = vec![Vec::new(); sends.len()];
        let deadline = Instant::now() + LIMIT;
        loop {
            let open: Vec<usize> =
                (0..sends.len()).filter(|at| answers[*at].iter().all(|answer| *answer == Answer::Unknown)).collect();
            if open.is_empty() {
                break;
            }
            let tried = self.attempt(open.iter().map(|at| &sends[*at]).collect()).await;
            let failed = tried.contains(&Answer::Unknown);
            open.iter().zip(tried).for_each(|(at, answer)| answers[*at].push(answer));
            if failed {
                count(&self.world.figures.unknown);
                before_another_try(deadline, || format!("{} gets no answer", self.me.name)).await;
            }
        }
        if self.random.once_in(8) {
            let again = self.attempt(sends.iter().collect()).await;
            again.into_iter().zip(&mut answers).for_each(|(answer, answers)| answers.push(answer));
        }
        for (send, answers) in sends.into_iter().zip(answers) {
            self.record(send, answers);
        }
    }

    async fn attempt(&mut self, sends: Vec<&SendMessage>) -> Vec<Answer> {
        if matches!(self.door, Door::Rest) {
            let (url, token) = (&self.world.url, &self.me.token);
            return join_all(sends.into_iter().map(async |send| answer_of(post(url, token, send, PATIENCE).await)))
                .await;
        }
        let Some(gateway) = self.gateway().await else { return vec![Answer::Unknown; sends.len()] };
        let answers = join_all(sends.into_iter().map(async |send| answer_of(gateway.call(send.clone()).await))).await;
        if answers.contains(&Answer::Unknown) {
            self.door = Door::Gateway(None);
        }
        answers
    }

    /// Returns the open session, opening one if there is none; nothing if the server is away.
    async fn gateway(&mut self) -> Option<&Gateway> {
        let Door::Gateway(gateway) = &mut self.door else { return None };
        if gateway.is_none() {
            // It only writes: no intents, nothing is sent to it.
            let options = Options { intents: Vec::new(), timeout: Duration::from_secs(10), ..Options::default() };
            *gateway = Gateway::connect(&self.world.url, &self.me.token, options).await.ok();
        }
        gateway.as_ref()
    }

    fn record(&self, send: SendMessage, answers: Vec<Answer>) {
        for answer in &answers {
            if let Answer::Ok { seq, duplicate, .. } = answer {
                if *duplicate {
                    count(&self.world.figures.duplicates);
                }
                let top_level = send.thread_seq.is_none();
                let posted = Posted { seq: *seq, author: self.me.id, top_level, named: send.client_msg_id.is_some() };
                let mut all = self.world.posted.lock().unwrap();
                let list = all.entry(send.channel_id).or_default();
                if list.iter().rev().take(50).all(|p| p.seq != *seq) {
                    list.push(posted);
                }
            }
        }
        let key = send.text.split(' ').next().unwrap_or_default().to_owned();
        let attempted = Attempted { author: self.me.id, channel: send.channel_id, key, answers };
        self.world.attempted.lock().unwrap().push(attempted);
    }

    /// Edits, reacts, pins, deletes, or moves the own read mark.
    async fn change(&mut self, room: &Room) {
        let (me, channel_id) = (self.me.id, room.id);
        let choice = self.random.below(16);
        let Some(target) = self.world.pick_posted(&mut self.random, channel_id, |p| match choice {
            0..=3 => p.author == me,
            4 => p.author == me && p.named,
            _ => p.top_level,
        }) else {
            return;
        };
        let (seq, path) = (target.seq, format!("/v1/channels/{channel_id}/messages/{}", target.seq));
        match choice {
            0..=3 => {
                let text = format!("edited {} @{}", self.random.below(100), self.random.pick(&self.world.people).name);
                let body = json!({"text": text});
                let done: Option<Done> = self.ask(EditMessage { channel_id, seq, text }, "PATCH", &path, body).await;
                self.note(channel_id, done, "message.updated");
            }
            4 => {
                let done: Option<Done> =
                    self.ask(DeleteMessage { channel_id, seq }, "DELETE", &path, Value::Null).await;
                self.note(channel_id, done, "message.deleted");
            }
            5..=9 => {
                let emoji = (*self.random.pick(&["+1", "eyes", "tada"])).to_owned();
                let path = format!("{path}/reactions/{}", emoji.replace('+', "%2B"));
                let done: Option<Done> =
                    self.ask(AddReaction { channel_id, seq, emoji }, "PUT", &path, json!({})).await;
                self.note(channel_id, done, "reaction.added");
            }
            10 => {
                let done: Option<Done> =
                    self.ask(AddPin { channel_id, seq }, "PUT", &format!("{path}/pin"), json!({})).await;
                self.note(channel_id, done, "pin.added");
            }
            11..=13 => {
                let path = format!("/v1/channels/{channel_id}/read");
                let _: Option<Membership> =
                    self.ask(MarkRead { channel_id, seq }, "PUT", &path, json!({"seq": seq})).await;
            }
            _ => {
                let path = format!("/v1/channels/{channel_id}/unread");
                let _: Option<Membership> =
                    self.ask(MarkUnread { channel_id, seq }, "PUT", &path, json!({"seq": seq})).await;
            }
        }
    }

    /// Asks once, by this writer's door. These carry no key: when the answer is lost, so is the knowledge of its effect.
    async fn ask<C, T>(&mut self, command: C, method: &str, path: &str, body: Value) -> Option<T>
    where
        C: Spec<Reply = T>,
        T: DeserializeOwned,
    {
        if matches!(self.door, Door::Rest) {
            let asked = match method {
                "PATCH" => self.client.patch(path, &body).await,
                "DELETE" => self.client.delete(path).await,
                _ => self.client.put(path, &body).await,
            };
            return asked.ok();
        }
        let result = self.gateway().await?.call(command).await;
        if result.as_ref().is_err_and(|error| !is_definite(error)) {
            self.door = Door::Gateway(None);
        }
        result.ok()
    }

    fn note(&self, channel: ChannelId, done: Option<Done>, kind: &'static str) {
        if let Some(seq) = done.and_then(|done| done.seq) {
            self.world.changes.lock().unwrap().push(Change { actor: self.me.id, channel, seq, kind });
        }
    }
}

/// Somebody who reads: applies each event once and in order, whatever happens to the connection.
pub(crate) struct Listener {
    world: Arc<World>,
    me: Person,
    random: Random,
    client: Client,
    gateway: Gateway,
    applied: HashMap<ChannelId, Vec<Entry>>,
    channels: Vec<ChannelId>,
}

fn listening() -> Options {
    Options { timeout: Duration::from_secs(10), ..Options::default() }
}

impl Listener {
    /// Opens a session and applies everything from the first event of each channel on.
    pub(crate) async fn open(world: &Arc<World>, me: &Person, random: Random) -> Listener {
        let mut gateway = Gateway::connect(&world.url, &me.token, listening()).await.unwrap();
        let rooms = world.rooms.iter().filter(|room| room.members.contains(&me.id));
        let channels: Vec<ChannelId> = rooms.map(|room| room.id).collect();
        channels.iter().for_each(|channel| gateway.cursors.set(*channel, 0));
        let (world, me, client) = (world.clone(), me.clone(), world.client(me));
        let applied = HashMap::new();
        let mut listener = Listener { world, me, random, client, gateway, applied, channels };
        for channel in listener.channels.clone() {
            listener.repair(channel.into(), 0).await;
        }
        listener
    }

    /// Reads until every channel stands where `heads`, once given, says that it ends.
    pub(crate) async fn run(mut self, mut heads: watch::Receiver<Option<HashMap<ChannelId, i64>>>) -> Reader {
        let mut deadline = None;
        loop {
            let goal = heads.borrow_and_update().clone();
            if let Some(goal) = goal {
                let reached = |channel: &ChannelId| self.gateway.cursors.get(*channel) >= goal.get(channel).copied();
                if self.channels.iter().all(reached) {
                    break;
                }
                let until = *deadline.get_or_insert(Instant::now() + LIMIT);
                assert!(
                    Instant::now() < until,
                    "{} stays behind: {:?} of {goal:?}",
                    self.me.name,
                    self.gateway.cursors
                );
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
                        assert!(error.may_come_back(), "{} was told to stay away: {error}", self.me.name);
                        self.come_back(self.gateway.position()).await;
                    }
                }
            }
            if self.random.once_in(200) {
                self.hang_up().await;
            }
        }
        Reader { name: self.me.name, channels: self.channels, applied: self.applied }
    }

    async fn take(&mut self, event: &Event) {
        match self.gateway.cursors.offer(event) {
            Step::Apply => self.apply(event),
            Step::Drop => count(&self.world.figures.repeats),
            Step::Gap { stream, after } => self.repair(stream, after).await,
        }
    }

    fn apply(&mut self, event: &Event) {
        if let Some((channel, entry)) = Entry::of(event) {
            self.applied.entry(channel).or_default().push(entry);
        }
    }

    /// Reads what is missing from the log, until it can be read.
    async fn repair(&mut self, stream: StreamId, after: i64) {
        count(&self.world.figures.repairs);
        let deadline = Instant::now() + LIMIT;
        let missing = loop {
            match self.client.events(stream, after).await {
                Ok(missing) => break missing,
                Err(error) => {
                    assert!(!is_definite(&error), "cannot read events: {error}");
                    before_another_try(deadline, || format!("cannot read events: {error}")).await;
                }
            }
        };
        for event in &missing {
            match self.gateway.cursors.offer(event) {
                Step::Apply => self.apply(event),
                Step::Drop => {}
                Step::Gap { .. } => panic!("the log of {stream} has a gap before {:?}", event.seq),
            }
        }
    }

    /// Drops the connection, stays away for a moment, and goes on from the position it had.
    async fn hang_up(&mut self) {
        let position = self.gateway.position();
        let away = self.random.time_below(Duration::from_millis(300));
        tokio::time::sleep(away).await;
        self.come_back(position).await;
    }

    async fn come_back(&mut self, position: Position) {
        let deadline = Instant::now() + LIMIT;
        let (url, token) = (self.world.url.clone(), self.me.token.clone());
        loop {
            match Gateway::resume_from(&url, &token, listening(), position.clone()).await {
                Ok(gateway) => self.gateway = gateway,
                Err(error) => {
                    let hopeful = error.may_come_back() || matches!(error, Error::Protocol(_));
                    let why = || format!("{} cannot come back: {error}", self.me.name);
                    assert!(hopeful, "{}", why());
                    before_another_try(deadline, why).await;
                    continue;
                }
            }
            match self.gateway.start {
                Start::Resumed(_) => count(&self.world.figures.resumed),
                _ => count(&self.world.figures.anew),
            }
            return;
        }
    }
}
