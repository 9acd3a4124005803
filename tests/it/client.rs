//! The typed client against a whole node: what it misses while it is away, and what it must not.

use std::collections::HashSet;

use colink::client::{Client, Event, Gateway, Options, Start, Step};
use colink::domain::command as c;
use colink::domain::id::{ChannelId, StreamId};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use crate::world::{Person, World, message, within};

/// A client that follows every rule of the protocol, as `examples/tail.rs` does.
struct Tail {
    gateway: Gateway,
    client: Client,
    told: Vec<Event>,
}

impl Tail {
    async fn of(world: &World, person: &Person, options: Options) -> Tail {
        let gateway = Gateway::connect(&world.url, &person.token, options).await.unwrap();
        let client = Client::new(&world.url).unwrap().with_token(&person.token);
        Tail { gateway, client, told: Vec::new() }
    }

    async fn resume(&mut self) {
        within("the resume", self.gateway.resume()).await.unwrap();
    }

    /// Takes what comes next, gaps and all.
    async fn take(&mut self) {
        let event = self.gateway.next_event().await.unwrap();
        match self.gateway.cursors.offer(&event) {
            Step::Apply => self.told.push(event),
            Step::Drop => {}
            Step::Gap { stream, after } => {
                let missed = self.client.missed(stream, after).await.unwrap();
                let next = missed.into_iter().filter(|event| self.gateway.cursors.offer(event) == Step::Apply);
                self.told.extend(next);
            }
        }
    }

    /// Takes what comes until this was said in each of the channels.
    async fn hears(&mut self, text: &str, channels: &[ChannelId]) {
        let mut missing: HashSet<ChannelId> = channels.iter().copied().collect();
        let mut looked = 0;
        within(text, async {
            loop {
                for event in &self.told[looked..] {
                    if event.message().is_some_and(|message| message.text == text) {
                        missing.remove(&event.channel_id.unwrap());
                    }
                }
                looked = self.told.len();
                if missing.is_empty() {
                    return;
                }
                self.take().await;
            }
        })
        .await;
    }

    /// Returns the numbers that were applied of a stream.
    fn numbers(&self, stream: impl Into<StreamId>) -> Vec<i64> {
        let stream = stream.into();
        self.told.iter().filter(|event| event.stream() == Some(stream)).filter_map(|event| event.seq).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_more_channels_than_a_message_names_resumes_from_memory_and_from_the_log() {
    let mut world = World::with(|config| config.gateway.max_message_bytes = 1_024).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut channels = Vec::new();
    for n in 0..60 {
        channels.push(world.channel(&format!("channel-{n}"), &[&ana, &bob]).await);
    }
    let mut tail = Tail::of(&world, &bob, Options::default()).await;
    tail.resume().await;
    assert!(matches!(tail.gateway.start, Start::Resumed(_)), "{:?}", tail.gateway.start);
    let session = tail.gateway.position().session_id;
    tail.resume().await;
    assert_eq!(tail.gateway.position().session_id, session, "memory needs no cursors");

    world.restart().await;
    for channel in &channels {
        ana.says(*channel, "missed").await;
    }
    tail.resume().await;
    assert!(matches!(tail.gateway.start, Start::Resumed(_)), "{:?}", tail.gateway.start);
    tail.hears("missed", &channels).await;
    for channel in channels {
        assert_eq!(tail.numbers(channel), [2], "once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_in_no_channel_yet_hears_of_the_first_one_from_its_beginning() {
    let mut world = World::start().await;
    let (ana, bot) = (world.user("ana").await, world.user("bot").await);
    let mut tail = Tail::of(&world, &bot, Options::default()).await;
    world.restart().await;
    let first = world.channel("first", &[&ana, &bot]).await;
    ana.says(first, "missed").await;
    tail.resume().await;
    assert!(matches!(tail.gateway.start, Start::Resumed(_)), "{:?}", tail.gateway.start);
    ana.says(first, "live").await;
    tail.hears("live", &[first]).await;
    assert_eq!(tail.numbers(first), [1, 2, 3]);
    assert_eq!(tail.numbers(bot.id()), [1], "what its own stream says");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_begins_anew_reads_channels_that_it_came_into_from_their_beginning() {
    let mut world = World::with(|config| config.gateway.replay_events = 5).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut tail = Tail::of(&world, &bob, Options::default()).await;
    world.restart().await;
    for n in 2..10 {
        ana.says(general, &n.to_string()).await;
    }
    let later = world.channel("later", &[&ana, &bob]).await;
    ana.says(later, "early").await;
    ana.says(later, "late").await;
    tail.resume().await;
    assert!(matches!(tail.gateway.start, Start::Anew), "{:?}", tail.gateway.start);
    tail.hears("late", &[later]).await;
    tail.hears("9", &[general]).await;
    assert_eq!(tail.numbers(later), [1, 2, 3]);
    assert_eq!(tail.numbers(general), (2..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_channels_that_it_comes_into_from_the_event_that_brought_it_in() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut tail = Tail::of(&world, &bob, Options::default()).await;
    for n in 0..30 {
        let channel = world.channel(&format!("channel-{n}"), &[&ana]).await;
        ana.says(channel, "before").await;
        ana.invites(channel, &bob).await;
        ana.says(channel, "after").await;
        tail.hears("after", &[channel]).await;
        assert_eq!(tail.numbers(channel), [3, 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_intents_leave_out_hides_no_channel_that_the_client_came_into_meanwhile() {
    let mut world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let seq = ana.says(general, "like this").await;
    let options = Options { intents: vec!["messages".to_owned()], ..Options::default() };
    let mut tail = Tail::of(&world, &bob, options).await;
    world.restart().await;
    for emoji in ["tada", "eyes", "rocket"] {
        let _: Value = ana.does(c::AddReaction { channel_id: general, seq, emoji: emoji.into() }).await;
    }
    let later = world.channel("later", &[&ana, &bob]).await;
    ana.says(later, "missed").await;
    tail.resume().await;
    assert!(matches!(tail.gateway.start, Start::Resumed(_)), "{:?}", tail.gateway.start);
    tail.hears("missed", &[later]).await;
    assert_eq!(tail.numbers(later), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_names_a_thousand_channels_and_the_client_reads_the_rest() {
    const CHANNELS: usize = 1_001;
    let world = World::start().await;
    let ana = world.user("ana").await;
    let make = |n: usize| {
        let ana = &ana;
        async move {
            let name = format!("channel-{n}");
            let (topic, purpose) = (String::new(), String::new());
            let command = c::CreateChannel { name, private: true, topic, purpose, members: Vec::new() };
            let made = ana.tries(command).await.good();
            Ok::<ChannelId, ()>(serde_json::from_value(made["id"].clone()).unwrap())
        }
    };
    let channels: Vec<ChannelId> =
        stream::iter(0..CHANNELS).map(make).buffer_unordered(32).try_collect().await.unwrap();

    let mut socket = ana.opens().await;
    let ready = socket.identifies(&ana.token).await;
    assert_eq!(ready["d"]["channels"].as_array().unwrap().len(), 1_000);
    let cursor = ready["d"]["channels_next_cursor"].as_str().expect("there are more");
    let rest = ana.http.get(&format!("/v1/channels?cursor={cursor}")).await.items();
    assert_eq!(rest.len(), 1, "{rest:?}");

    let tail = Tail::of(&world, &ana, Options::default()).await;
    assert_eq!(tail.gateway.ready.as_ref().unwrap().channels.len(), CHANNELS);
    for channel in channels {
        assert_eq!(tail.gateway.cursors.get(channel), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_acknowledges_what_it_took_so_that_the_hub_may_forget_it() {
    let world = World::with(|config| config.gateway.heartbeat_interval_ms = 600_000).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut tail = Tail::of(&world, &bob, Options::default()).await;
    for n in 1..=256 {
        ana.says(general, &n.to_string()).await;
    }
    tail.hears("256", &[general]).await;
    // What is asked after the acknowledgement is answered after it.
    let session = tail.gateway.position().session_id;
    tail.gateway.call(message(general, "answered")).await.unwrap();
    let (_, resumed) = bob.resumes(json!({"session_id": session, "s": 250, "cursors": {}})).await;
    assert_eq!(resumed["d"]["mode"], "log", "it is forgotten: {resumed}");
}
