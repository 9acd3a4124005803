//! The network of a chat: one gateway session that comes back by itself, and REST for what is asked.
//!
//! [`Link::next`] is to be waited on in a `select!`: it loses nothing when it is cancelled. Events come out in order and
//! once: while a gap is filled over `/events`, the session's later events wait. Messages are posted one at a time, each
//! repeated with its `client_msg_id` until the hub has answered.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Place;
use super::ask::{ask, history, join, open_direct, send, state};
use super::talk::{News, Post, Want};
use crate::client::{Client, Error, Event, Gateway, Options, Step};
use crate::domain::channel::Membership;
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::user::User;

/// How many people are watched: the hub's own limit.
const WATCHED: usize = 500;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The network.
pub(super) struct Link {
    client: Client,
    url: String,
    token: String,
    /// Absent while the session is being brought back.
    gateway: Option<Box<Gateway>>,
    /// Whether a gap is being filled: later events wait.
    filling: bool,
    ready: VecDeque<News>,
    outbox: VecDeque<Post>,
    posting: bool,
    watched: Vec<UserId>,
    jobs: JoinSet<Done>,
    /// How long to go on trying while there is no connection; for ever, if absent.
    patience: Option<Duration>,
}

/// What a job came to.
enum Done {
    Told(Vec<News>),
    Posted(News),
    Filled { stream: StreamId, upto: i64, events: Vec<Event> },
    Back { gateway: Result<Box<Gateway>, Error>, anew: bool },
}

impl Link {
    /// Connects.
    pub(super) async fn open(url: &str, token: &str) -> Result<Link> {
        let client = Client::new(url)?.with_token(token);
        let gateway = Gateway::connect(url, token, options()).await;
        let gateway = Box::new(gateway.with_context(|| format!("cannot talk to the hub at {url}"))?);
        Ok(Link {
            client,
            url: url.to_owned(),
            token: token.to_owned(),
            gateway: Some(gateway),
            filling: false,
            ready: VecDeque::new(),
            outbox: VecDeque::new(),
            posting: false,
            watched: Vec::new(),
            jobs: JoinSet::new(),
            patience: None,
        })
    }

    /// Says goodbye. If the sign-in was made for this chat alone, it ends too.
    pub(super) async fn close(mut self, sign_out: bool) {
        self.jobs.abort_all();
        if let Some(gateway) = self.gateway.take() {
            gateway.close().await;
        }
        if sign_out {
            let out = async { self.client.post::<Value>("/v1/auth/logout", &json!({})).await };
            // A hub that is not there cannot be told; the sign-in ends by itself in time.
            drop(tokio::time::timeout(GOODBYE, out).await);
        }
    }

    /// Gives up after this long without a connection.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// Returns who is signed in, who there is, and the user's channels.
    pub(super) async fn first_state(&self) -> Result<(User, Vec<User>, Vec<Membership>)> {
        Ok((self.client.me().await?, self.client.users().await?, self.client.my_channels().await?))
    }

    /// Finds a place; joins it if it is a public channel that the user is not in yet.
    pub(super) async fn enter(&mut self, place: Place) -> Result<ChannelId> {
        match place {
            Place::Channel(name) => {
                let mine = self.client.my_channels().await?;
                match mine.iter().find(|m| m.channel.name.as_deref() == Some(name.as_str())) {
                    Some(membership) => Ok(membership.channel.id),
                    None => Ok(join(&self.client, &name).await?),
                }
            }
            Place::Direct(name) => {
                let users = self.client.users().await?;
                let Some(user) = users.iter().find(|user| user.name == name) else {
                    bail!("there is nobody called `{name}`")
                };
                Ok(open_direct(&self.client, user.id).await?)
            }
        }
    }

    /// Waits for what happens next. May be cancelled without losing anything.
    pub(super) async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.ready.pop_front() {
                return news;
            }
            let listening = !self.filling && self.gateway.is_some();
            tokio::select! {
                event = heard(&mut self.gateway), if listening => self.take(event),
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => self.ready.push_back(News::Over(format!("a part of this program failed: {error}"))),
                },
                else => std::future::pending().await,
            }
        }
    }

    /// Returns how many messages wait for their answer.
    pub(super) fn unanswered(&self) -> usize {
        self.outbox.len() + usize::from(self.posting)
    }

    /// Carries something out; what comes of it comes out of [`Link::next`].
    pub(super) async fn carry(&mut self, want: Want) {
        let client = self.client.clone();
        match want {
            Want::Post(post) => {
                self.outbox.push_back(post);
                self.post_next();
            }
            Want::Typing(channel) => {
                if let Some(gateway) = &self.gateway {
                    // If the connection is gone, nobody needs to know.
                    drop(gateway.typing(channel).await);
                }
            }
            Want::Watch(mut users) => {
                users.truncate(WATCHED);
                self.watched = users;
                self.watch().await;
            }
            Want::Refresh => self.refresh(),
            Want::History { channel, before } => {
                self.spawn(async move {
                    match history(&client, channel, before).await {
                        Ok(page) => vec![News::History { channel, page: Some(page) }],
                        Err(error) => {
                            let failed = News::History { channel, page: None };
                            vec![failed, News::Refused(format!("cannot read the history: {error}"))]
                        }
                    }
                });
            }
            Want::Read { channel, seq } => {
                // What is not marked now is marked with the next message.
                self.spawn(async move {
                    drop(client.mark_read(channel, seq).await);
                    Vec::new()
                });
            }
            want => self.spawn(async move { ask(&client, want).await }),
        }
    }

    fn spawn(&mut self, job: impl Future<Output = Vec<News>> + Send + 'static) {
        self.jobs.spawn(async move { Done::Told(job.await) });
    }

    fn take(&mut self, event: Result<Event, Error>) {
        match event {
            Ok(event) => self.offer(event),
            Err(error) if error.may_come_back() => {
                self.ready.push_back(News::Down);
                self.come_back();
            }
            Err(error) => self.ready.push_back(News::Over(error.to_string())),
        }
    }

    fn offer(&mut self, event: Event) {
        let Some(gateway) = &mut self.gateway else { return };
        match gateway.cursors.offer(&event) {
            Step::Apply => self.ready.push_back(News::Event(Box::new(event))),
            Step::Drop => {}
            Step::Gap { stream, after } => {
                self.filling = true;
                let (client, upto) = (self.client.clone(), event.seq.unwrap_or(after));
                self.jobs.spawn(async move {
                    let events = client.missed(stream, after).await.unwrap_or_default();
                    Done::Filled { stream, upto, events }
                });
            }
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Told(news) => self.ready.extend(news),
            Done::Posted(news) => {
                self.ready.push_back(news);
                self.posting = false;
                self.post_next();
            }
            Done::Filled { stream, upto, events } => self.filled(stream, upto, events),
            Done::Back { gateway: Ok(gateway), anew } => {
                self.gateway = Some(gateway);
                self.ready.push_back(News::Up { anew });
                // What happened to the user's own channels is not in the channels' events.
                self.refresh();
            }
            Done::Back { gateway: Err(error), .. } => self.ready.push_back(News::Over(error.to_string())),
        }
    }

    fn filled(&mut self, stream: StreamId, upto: i64, events: Vec<Event>) {
        self.filling = false;
        let Some(gateway) = &mut self.gateway else { return };
        let refused = events.is_empty();
        for event in events {
            if gateway.cursors.offer(&event) == Step::Apply {
                self.ready.push_back(News::Event(Box::new(event)));
            }
        }
        // The log is the truth: what it does not have is not waited for.
        if gateway.cursors.get(stream).is_none_or(|applied| applied < upto) {
            gateway.cursors.set(stream, upto);
        }
        if refused {
            // The user is no longer in it: what matters of that is read anew.
            self.refresh();
        }
    }

    fn post_next(&mut self) {
        if self.posting {
            return;
        }
        let Some(post) = self.outbox.pop_front() else { return };
        self.posting = true;
        let (client, patience) = (self.client.clone(), self.patience);
        self.jobs.spawn(async move { Done::Posted(send(&client, post, patience).await) });
    }

    fn refresh(&mut self) {
        let client = self.client.clone();
        self.spawn(async move {
            match state(&client).await {
                Ok(state) => vec![state],
                Err(error) => vec![News::Refused(format!("cannot read users and channels: {error}"))],
            }
        });
    }

    async fn watch(&self) {
        if let (Some(gateway), false) = (&self.gateway, self.watched.is_empty()) {
            // A connection that is gone is found out by whoever listens to it.
            drop(gateway.watch_presence(&self.watched).await);
        }
    }

    /// Brings the session back, with growing pauses.
    fn come_back(&mut self) {
        let Some(mut gateway) = self.gateway.take() else { return };
        let (url, token, watched) = (self.url.clone(), self.token.clone(), self.watched.clone());
        let deadline = self.patience.map(|patience| Instant::now() + patience);
        self.jobs.spawn(async move {
            let mut pause = Duration::from_millis(250);
            let mut anew = false;
            loop {
                let tried = match anew {
                    false => gateway.resume().await,
                    true => Gateway::connect(&url, &token, options()).await.map(|fresh| *gateway = fresh),
                };
                match tried {
                    Ok(()) => {
                        if !watched.is_empty() {
                            drop(gateway.watch_presence(&watched).await);
                        }
                        return Done::Back { gateway: Ok(gateway), anew };
                    }
                    Err(error) if !error.may_come_back() || deadline.is_some_and(|at| Instant::now() > at) => {
                        return Done::Back { gateway: Err(error), anew };
                    }
                    // The hub does not know where this session stands.
                    Err(error) => anew |= error.begins_anew(),
                }
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
        });
    }
}

fn options() -> Options {
    // One try at a time: the link itself tries again, and says so.
    Options {
        name: "colink-chat".to_owned(),
        patience: Duration::ZERO,
        timeout: Duration::from_secs(15),
        ..Options::default()
    }
}

async fn heard(gateway: &mut Option<Box<Gateway>>) -> Result<Event, Error> {
    match gateway {
        Some(gateway) => gateway.next_event().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::stub::Stub;

    async fn open(stub: &Stub, name: &str) -> Link {
        Link::open(&stub.url, &Stub::token(name)).await.unwrap()
    }

    async fn texts(link: &mut Link, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < count {
            if let News::Event(event) = link.next().await {
                texts.extend(event.message().map(|message| message.text));
            }
        }
        texts
    }

    #[tokio::test]
    async fn posts_go_out_in_order_and_come_back() {
        let stub = Stub::start().await;
        let channel = stub.room(&["ana", "bob"]);
        let (mut ana, mut bob) = (open(&stub, "ana").await, open(&stub, "bob").await);
        for text in ["one", "two", "three"] {
            let post = Post { channel, text: text.into(), thread: None, key: text.into() };
            ana.carry(Want::Post(post)).await;
        }
        assert_eq!(ana.unanswered(), 3);
        assert_eq!(texts(&mut ana, 3).await, ["one", "two", "three"]);
        assert_eq!(texts(&mut bob, 3).await, ["one", "two", "three"]);
    }

    #[tokio::test]
    async fn what_is_lost_on_the_way_is_filled_in_order_and_once() {
        let stub = Stub::start().await;
        let channel = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        stub.lose_every(3);
        let posted: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        for text in &posted {
            stub.post(channel, "ana", text);
        }
        stub.lose_every(0);
        stub.post(channel, "ana", "last");
        let heard = texts(&mut bob, 21).await;
        assert_eq!((&heard[..20], heard[20].as_str()), (&posted[..], "last"));
    }

    #[tokio::test]
    async fn a_cut_connection_comes_back_by_itself() {
        let stub = Stub::start().await;
        let channel = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        stub.cut_gateway();
        assert!(matches!(bob.next().await, News::Down));
        stub.post(channel, "ana", "while away");
        assert!(matches!(bob.next().await, News::Up { anew: false }));
        assert_eq!(texts(&mut bob, 1).await, ["while away"]);
    }

    #[tokio::test]
    async fn a_forgotten_session_misses_nothing_either() {
        let stub = Stub::start().await;
        let channel = stub.room(&["ana", "bob"]);
        let mut bob = open(&stub, "bob").await;
        stub.post(channel, "ana", "before");
        assert_eq!(texts(&mut bob, 1).await, ["before"]);
        stub.forget_sessions();
        stub.cut_gateway();
        stub.post(channel, "ana", "while away");
        assert_eq!(texts(&mut bob, 1).await, ["while away"]);
    }
}
