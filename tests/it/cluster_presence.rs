//! Who is there, seen from other nodes than the one that they are on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use colink::actors::cluster::envelope::{Message, Seal};
use colink::actors::cluster::status::Standing;
use colink::bus::{Bus, Incoming, To};
use colink::domain::command as c;
use colink::domain::id::{NodeId, UserId};
use colink::domain::user::PresenceMode;
use colink::storage::nodes;
use serde_json::{Value, json};

use crate::away::{shown, watches};
use crate::cluster::Nodes;
use crate::socket::{CLOSE, Socket};
use crate::world::{Person, eventually, standing_clock, within};

async fn shows(person: &Person, mode: PresenceMode) {
    let _: Value = person.does(c::SetPresence { mode, until: None }).await;
}

/// Says goodbye for good.
async fn leaves(mut device: Socket) {
    device.send_frame(true, CLOSE, &1_000u16.to_be_bytes()).await;
    device.closes().await;
}

impl Nodes {
    /// Ends a node as if it were killed: it says nothing any more, and its row stays.
    async fn kill(&self, at: usize) {
        self[at].app().hub.stop().await;
    }

    /// Waits until the first node counts another one as gone.
    async fn is_gone(&self, at: usize) {
        let hub = &self[0].app().hub;
        let gone = self[at].app().hub.id;
        eventually("the node to be gone", || async {
            let status = Box::pin(hub.cluster_status()).await.unwrap();
            status.nodes.iter().any(|node| node.id == gone && node.state == Standing::Gone)
        })
        .await;
    }

    /// Lets people come to the second node, whom somebody watches on the first; returns that screen and their devices.
    async fn crowd(&self, ana: &Person, size: usize) -> (Socket, Vec<Person>, Vec<Socket>) {
        let (mut people, mut devices) = (Vec::new(), Vec::new());
        for n in 0..size {
            people.push(self[0].user(&format!("user-{n}")).await.at(&self[1]));
        }
        let ids: Vec<UserId> = people.iter().map(Person::id).collect();
        let mut screen = ana.connects().await;
        screen.call("presence.subscribe", json!({"user_ids": ids})).await;
        told(&mut screen, &people, "offline").await;
        for person in &people {
            devices.push(person.connects().await);
        }
        told(&mut screen, &people, "online").await;
        (screen, people, devices)
    }
}

/// Waits until each of them was told to be so once, and nothing else was told of any.
async fn told(screen: &mut Socket, people: &[Person], presence: &str) {
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    for _ in people {
        let word = screen.until("presence").await["d"].clone();
        assert_eq!(word["presence"], presence);
        *words.entry(word["user_id"].to_string()).or_default() += 1;
    }
    assert!(words.len() == people.len() && words.values().all(|words| *words == 1), "{words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_on_one_node_is_seen_on_the_others_as_they_are() {
    let Some(mut nodes) = Nodes::start(|_| ()).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
    let mut screen = watches(&ana, &bob).await;
    let laptop = bob.connects().await;
    screen.sees(&bob, "online").await;
    for (mode, presence) in [(PresenceMode::Away, "away"), (PresenceMode::Dnd, "dnd"), (PresenceMode::Auto, "online")] {
        shows(&bob.at(&nodes[2]), mode).await;
        screen.sees(&bob, presence).await;
        assert_eq!(shown(&ana, &bob).await, presence);
    }
    nodes.one_more(|_| ()).await;
    let late = ana.at(&nodes[3]);
    eventually("a node that is started later to know", || async { shown(&late, &bob).await == "online" }).await;

    let phone = bob.at(&nodes[2]).connects().await;
    eventually("the phone to be seen", || async { shown(&bob.at(&nodes[1]), &bob).await == "online" }).await;
    leaves(laptop).await;
    shows(&bob, PresenceMode::Dnd).await;
    assert_eq!(
        screen.until("presence").await["d"]["presence"],
        "dnd",
        "the phone is there: nobody is told that one went"
    );
    leaves(phone).await;
    screen.sees(&bob, "offline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_something_by_another_node_is_not_idle() {
    let clock = standing_clock();
    let Some(nodes) = Nodes::at(clock.clone(), |config| config.presence.idle_after_s = 300).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
    let mut screen = watches(&ana, &bob).await;
    let _device = bob.connects().await;
    screen.sees(&bob, "online").await;
    clock.advance(Duration::from_secs(300));
    nodes[1].looks_for_idle();
    screen.sees(&bob, "away").await;
    bob.at(&nodes[2]).http.ask("PATCH", "/v1/users/me", &json!({})).await.good();
    screen.sees(&bob, "online").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_node_that_cannot_be_heard_it_is_unknown_who_is_there_until_it_is_heard_again() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let (ana, bob, eve) = (nodes[0].user("ana").await, nodes[0].user("bob").await, nodes[0].user("eve").await);
    let (bob, eve) = (bob.at(&nodes[1]), eve.at(&nodes[1]));
    let (mut of_bob, mut of_eve) = (watches(&ana, &bob).await, watches(&ana, &eve).await);
    let (_bobs, eves) = (bob.connects().await, eve.connects().await);
    let _other = eve.at(&nodes[2]).connects().await;
    of_bob.sees(&bob, "online").await;
    of_eve.sees(&eve, "online").await;
    eventually("her other device to be seen", || async { shown(&ana, &eve).await == "online" }).await;
    nodes.cut(1, true);
    of_bob.sees(&bob, "unknown").await;
    assert_eq!(shown(&ana, &bob).await, "unknown");
    assert_eq!(shown(&ana, &eve).await, "online", "she is elsewhere, too");
    assert_eq!(shown(&bob, &bob).await, "online", "a node knows its own");
    shows(&bob, PresenceMode::Dnd).await;
    leaves(eves).await;
    nodes.cut(1, false);
    assert_eq!(of_bob.until("presence").await["d"]["presence"], "dnd", "nobody is told what was before");
    of_eve.heard_no("presence").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_node_dies_and_its_clients_come_back_elsewhere_nobody_hears_of_it() {
    let Some(nodes) = Nodes::start(|config| config.presence.linger_s = 3_600).await else { return };
    let ana = nodes[0].user("ana").await;
    let (mut screen, people, _devices) = nodes.crowd(&ana, 24).await;
    nodes.kill(1).await;
    let mut devices = Vec::new();
    for person in &people {
        devices.push(person.at(&nodes[2]).connects().await);
    }
    nodes.is_gone(1).await;
    screen.heard_no("presence").await;
    shows(&people[0].at(&nodes[2]), PresenceMode::Dnd).await;
    assert_eq!(screen.until("presence").await["d"], json!({"user_id": people[0].id(), "presence": "dnd"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_clients_who_come_back_late_each_is_told_once_to_have_gone_and_once_to_have_come() {
    let Some(nodes) = Nodes::start(|config| config.presence.linger_s = 1).await else { return };
    let ana = nodes[0].user("ana").await;
    let (mut screen, people, _devices) = nodes.crowd(&ana, 24).await;
    nodes.kill(1).await;
    nodes.is_gone(1).await;
    told(&mut screen, &people, "offline").await;
    let mut devices = Vec::new();
    for person in &people {
        devices.push(person.at(&nodes[2]).connects().await);
    }
    told(&mut screen, &people, "online").await;
    screen.heard_no("presence").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_on_a_node_that_stopped_is_offline_and_was_last_seen_there() {
    let Some(mut nodes) = Nodes::start(|config| config.presence.linger_s = 0).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
    let mut screen = watches(&ana, &bob).await;
    let _device = bob.connects().await;
    screen.sees(&bob, "online").await;
    nodes.nodes[1].stop().await;
    screen.sees(&bob, "offline").await;
    let seen = ana.http.get(&format!("/v1/presence?user_ids={},{}", bob.id(), ana.id())).await.items();
    assert!(seen[0]["last_seen_at"].is_string(), "{seen:?}");
    assert_eq!(seen[1].get("last_seen_at"), None, "she is there");
}

/// Somebody on the bus whom the nodes take for one of them.
struct Ear {
    bus: Bus,
    incoming: Incoming,
    seal: Seal,
}

impl Ear {
    async fn of(nodes: &Nodes) -> Ear {
        let hub = &nodes[0].app().hub;
        let id = NodeId::new(hub.clock.now());
        let (bus, incoming) = nodes.network.join(id);
        let secret = nodes::secret(&mut hub.store.read().await.unwrap(), &[0; 32]).await.unwrap();
        Ear { bus, incoming, seal: Seal::new(id, &secret) }
    }

    fn asks(&self, node: NodeId) {
        self.bus.publish(To::Node(node), self.seal.seal(To::Node(node), &Message::PresenceAsk));
    }

    /// Waits until it is told of all users; returns how often it was.
    async fn told(&mut self) -> usize {
        let mut told = 0;
        let waits = async {
            while told == 0 {
                let first = self.incoming.recv().await.expect("it is on the bus");
                let messages = std::iter::once(first).chain(std::iter::from_fn(|| self.incoming.try_recv().ok()));
                let read = messages.filter_map(|message| self.seal.open(&message).ok());
                told = read.filter(|read| matches!(read.message, Message::PresenceAll(_))).count();
            }
        };
        within("all users to be told of", waits).await;
        told
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_asks_again_and_again_for_all_users_of_another_is_told_once_a_second() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let (mut one, mut other) = (Ear::of(&nodes).await, Ear::of(&nodes).await);
    let asked = nodes[0].app().hub.id;
    let started = Instant::now();
    (0..500).for_each(|_| one.asks(asked));
    other.asks(asked);
    assert_eq!(other.told().await, 1);
    let mut answers = 0;
    while answers < 2 {
        answers += one.told().await;
    }
    let seconds = started.elapsed().as_secs();
    assert!(answers as u64 <= seconds + 1, "told {answers} times in {seconds} s");
}
