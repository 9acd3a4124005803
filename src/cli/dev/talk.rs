//! The demo team's talk: one session each, spread over the nodes, which says something now and then and counts what it
//! hears. Whoever loses their node goes on at the next one: nothing is said twice, and nothing is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::sight::Talked;
use crate::cli::seed;
use crate::client::{Client, Error, Event, Gateway, Options, Step};
use crate::domain::command::{CreateChannel, SendMessage};
use crate::domain::error::Code;
use crate::domain::id::{ChannelId, UserId};

/// How many rooms they talk in: enough for each node to own some.
const ROOMS: usize = 12;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait before the next node is tried.
const PAUSE: Duration = Duration::from_millis(200);

/// The talk, as long as it is kept.
pub(super) struct Talk {
    counts: Arc<Counts>,
    _people: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    said: AtomicU64,
    heard: [AtomicU64; seed::NAMES.len()],
}

impl Talk {
    /// Has the team say `rate` messages a second, all together.
    pub(super) async fn start(urls: &[String], rate: f64) -> Result<Talk> {
        let (mut clients, mut ids) = (Vec::new(), Vec::new());
        for name in seed::NAMES {
            let mut client = Client::new(&urls[0])?;
            let login = client.login(name, seed::PASSWORD).await;
            let login = login.with_context(|| format!("{name} of the demo team cannot sign in"))?;
            ids.push(login.user.id);
            clients.push((client, login.token));
        }
        let rooms = make_rooms(&clients[0].0, &ids).await.context("cannot make the rooms to talk in")?;
        let (rooms, counts) = (Arc::<[ChannelId]>::from(rooms), Arc::<Counts>::default());
        let prefix = format!("talk-{:08x}", getrandom::u32().context("no random numbers")?);
        let mut people = Vec::new();
        for (n, (_, token)) in clients.into_iter().enumerate() {
            let at = n % urls.len();
            let gateway = Gateway::connect(&urls[at], &token, options()).await?;
            let (urls, prefix) = (urls.to_vec(), prefix.clone());
            let (rooms, counts) = (Arc::clone(&rooms), Arc::clone(&counts));
            people.push(Person { n, urls, at, token, gateway, prefix, rooms, counts, numbered: 0, unsaid: None });
        }
        // All are there before the first one says something.
        let every = Duration::from_secs_f64(people.len() as f64 / rate);
        let mut tasks = JoinSet::new();
        for person in people {
            tasks.spawn(person.talk(every));
        }
        Ok(Talk { counts, _people: tasks })
    }

    /// Returns how it goes.
    pub(super) fn talked(&self) -> Talked {
        // In this order: what is heard was said.
        let heard = self.counts.heard.iter().map(|heard| heard.load(Ordering::Acquire)).min().unwrap_or(0);
        Talked { said: self.counts.said.load(Ordering::Acquire), heard }
    }
}

fn options() -> Options {
    Options { name: "colink dev".to_owned(), timeout: PATIENCE, ..Options::default() }
}

/// Returns the rooms, in which the whole team is; they may be there from an earlier run.
async fn make_rooms(ana: &Client, team: &[UserId]) -> Result<Vec<ChannelId>, Error> {
    let names: Vec<String> = (1..=ROOMS).map(|n| format!("talk-{n}")).collect();
    for name in &names {
        let (topic, purpose) = (String::new(), "What `colink dev cluster --talk` says".to_owned());
        let room = CreateChannel { name: name.clone(), private: false, topic, purpose, members: team.to_vec() };
        match ana.create_channel(&room).await {
            Err(error) if error.code() != Some(Code::Conflict.as_str()) => return Err(error),
            _ => {}
        }
    }
    let mine = ana.my_channels().await?;
    let is_room = |name: &Option<String>| name.as_ref().is_some_and(|name| names.contains(name));
    Ok(mine.into_iter().filter(|mine| is_room(&mine.channel.name)).map(|mine| mine.channel.id).collect())
}

/// One of the team.
struct Person {
    n: usize,
    urls: Vec<String>,
    /// At which of them it is.
    at: usize,
    token: String,
    gateway: Gateway,
    /// With which the keys of this run begin.
    prefix: String,
    rooms: Arc<[ChannelId]>,
    counts: Arc<Counts>,
    numbered: usize,
    /// A message that was not acknowledged yet.
    unsaid: Option<SendMessage>,
}

impl Person {
    async fn talk(mut self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                event = self.gateway.next_event() => match event {
                    Ok(event) => self.hear(&event).await,
                    Err(error) => Err(error),
                },
                _ = ticks.tick() => self.say().await,
            };
            if done.is_err() {
                self.move_on().await;
            }
        }
    }

    /// Says what is next, or again what was not acknowledged, with the same key.
    async fn say(&mut self) -> Result<(), Error> {
        let message = match self.unsaid.take() {
            Some(message) => message,
            None => self.next_message(),
        };
        self.unsaid = Some(message.clone());
        match self.gateway.call(message).await {
            Ok(_) => {
                self.unsaid = None;
                self.counts.said.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            // It is tried again at its next turn.
            Err(Error::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn next_message(&mut self) -> SendMessage {
        self.numbered += 1;
        let (n, numbered) = (self.n, self.numbered);
        SendMessage {
            channel_id: self.rooms[(n + numbered) % self.rooms.len()],
            client_msg_id: Some(format!("{}-{n}-{numbered}", self.prefix)),
            text: format!("{} says {numbered}", seed::NAMES[n]),
            thread_seq: None,
            also_in_channel: false,
        }
    }

    async fn hear(&mut self, event: &Event) -> Result<(), Error> {
        match self.gateway.cursors.offer(event) {
            Step::Apply => self.count(event),
            Step::Drop => {}
            Step::Gap { stream, after } => {
                let client = Client::new(&self.urls[self.at])?.with_token(&self.token).with_timeout(PATIENCE);
                for event in client.events(stream, after).await? {
                    if self.gateway.cursors.offer(&event) == Step::Apply {
                        self.count(&event);
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&self, event: &Event) {
        #[derive(Deserialize)]
        struct Keyed {
            client_msg_id: Option<String>,
        }
        if event.kind != "message.created" {
            return;
        }
        let key = event.data::<Keyed>().ok().and_then(|message| message.client_msg_id);
        if key.is_some_and(|key| key.starts_with(&self.prefix)) {
            self.counts.heard[self.n].fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Goes to the next node that takes it, and goes on there where it stood.
    async fn move_on(&mut self) {
        let mut from = Some(self.gateway.position());
        loop {
            self.at = (self.at + 1) % self.urls.len();
            let url = &self.urls[self.at];
            let come = match from.clone() {
                Some(from) => Gateway::resume_from(url, &self.token, options(), from).await,
                None => Gateway::connect(url, &self.token, options()).await,
            };
            match come {
                Ok(gateway) => return self.gateway = gateway,
                Err(error) if error.begins_anew() => from = None,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}
