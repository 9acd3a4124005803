//! A node as another one knows it: of that other one there is only what it says by the bus, and nothing that it should do.

use std::time::Duration;

use colink::actors::cluster::envelope::{Beat, Message, Ran, Run, Seal};
use colink::actors::directory::Credit;
use colink::bus::memory::Network;
use colink::bus::{Bus, Incoming, To};
use colink::clock::Clock;
use colink::config::Config;
use colink::domain::command::Principal;
use colink::domain::error::{Code, Refusal};
use colink::domain::id::{ChannelId, NodeId, TokenId, UserId};
use colink::domain::user::Role;
use colink::storage::tokens::Revoked;
use colink::storage::{Store, nodes};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::task::JoinSet;

use crate::socket::Socket;
use crate::world::{Person, World, eventually, new_postgres_database, postgres_is_there, within};

/// The other node, which beats until it is dropped.
struct Peer {
    id: NodeId,
    bus: Bus,
    incoming: Incoming,
    seal: Seal,
    secret: Vec<u8>,
    _beats: JoinSet<()>,
}

/// A node, and the other one.
struct Two {
    node: World,
    peer: Peer,
    network: Network,
    database: String,
}

impl Two {
    /// Starts the node, if there is a Postgres for it, and waits until it knows the other one.
    async fn start(change: impl FnOnce(&mut Config)) -> Option<Two> {
        if !postgres_is_there() {
            return None;
        }
        let (network, database) = (Network::default(), new_postgres_database().await);
        let node = World::joins(&database, &network, Clock::default(), change).await;
        let hub = node.app().hub.clone();
        let secret = nodes::secret(&mut hub.store.read().await.unwrap(), &[0; 32]).await.unwrap();
        let id = NodeId::new(hub.clock.now());
        let ((bus, incoming), seal) = (network.join(id), Seal::new(id, &secret));
        let mut beats = JoinSet::new();
        let (voice, words) = (bus.clone(), seal.clone());
        beats.spawn(async move {
            let mut often = tokio::time::interval(Duration::from_millis(100));
            loop {
                often.tick().await;
                let name = "other".to_owned();
                let beat = Beat { name, leaves: false, cut_off: false, presence: 0, sent_ms: Some(1) };
                voice.publish(To::Everyone, words.seal(To::Everyone, &Message::Beat(beat)));
            }
        });
        let cluster = hub.cluster.clone().unwrap();
        eventually("the other node to be known", || async { cluster.reachable() == 1 }).await;
        let peer = Peer { id, bus, incoming, seal, secret, _beats: beats };
        Some(Two { node, peer, network, database })
    }

    fn id(&self) -> NodeId {
        self.node.app().hub.id
    }

    /// Cuts the node off the other one.
    fn cut(&self) {
        self.network.cut(self.id(), true);
    }

    /// Makes channels until the other node owns one.
    async fn channel_of_peer(&self, owner: &Person) -> ChannelId {
        for n in 0.. {
            let made = self.node.channel(&format!("room-{n}"), &[owner]).await;
            if !self.node.app().hub.cluster.as_ref().unwrap().owns(made.into()) {
                return made;
            }
        }
        unreachable!("it has its share")
    }
}

impl Peer {
    fn says(&self, to: To, message: &Message) {
        assert!(self.bus.publish(to, self.seal.seal(to, message)));
    }

    /// Waits for what it is told.
    async fn hears<T>(&mut self, what: impl Fn(Message) -> Option<T>) -> T {
        within("the other node to be told", async {
            loop {
                let heard = self.incoming.recv().await.expect("it is on the bus");
                if let Some(found) = what(self.seal.open(&heard).unwrap().message) {
                    return found;
                }
            }
        })
        .await
    }

    /// Waits for a command.
    async fn is_asked(&mut self) -> Run {
        let run = |message| if let Message::Run(run) = message { Some(run) } else { None };
        self.hears(run).await
    }
}

/// Posts, and does not wait for the answer.
async fn posts(socket: &mut Socket, channel: ChannelId, text: &str) -> u64 {
    socket.asks("message.send", json!({"channel_id": channel, "text": text, "client_msg_id": text})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_is_done_before_what_was_asked_later() {
    for cuts in [false, true] {
        let inflight = if cuts { 100 } else { 1 };
        let Some(mut two) = Two::start(|config| config.cluster.inflight = inflight).await else { return };
        let ana = two.node.user("ana").await;
        let room = two.channel_of_peer(&ana).await;
        let mut socket = ana.connects().await;
        let first = posts(&mut socket, room, "one").await;
        two.peer.is_asked().await;
        if cuts {
            two.cut();
        }
        let second = posts(&mut socket, room, "two").await;
        for (id, seq) in [(first, 2), (second, 3)] {
            let reply = socket.reply(id).await;
            assert_eq!(reply["d"]["seq"], seq, "{reply}, cut off: {cuts}");
        }
    }
}
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_might_be_said_again_is_not_carried_out() {
    let Some(mut two) = Two::start(|_| ()).await else { return };
    let ana = two.node.user("ana").await;
    let room = two.node.channel("room", &[&ana]).await;
    let (me, from) = (two.id(), two.peer.id);
    let token_id = TokenId::new(two.node.app().hub.clock.now());
    let caller = Principal { user_id: ana.id(), role: Role::Member, token_id };
    let run = |number, text: &str| {
        let body = json!({"channel_id": room, "text": text}).to_string();
        Run::new(number, 2_000, caller, "message.send", body, text.to_owned())
    };
    // As releases said it that gave messages no numbers.
    let d = serde_json::to_string(&run(1, "unnumbered").sent(1)).unwrap();
    let text = format!(r#"{{"v":1,"from":"{from}","to":"{me}","kind":"run","d":{d}}}"#);
    let mac = Hmac::<Sha256>::new_from_slice(&two.peer.secret).unwrap().chain_update(&text).finalize().into_bytes();
    assert!(two.peer.bus.publish(To::Node(me), [&mac[..16], text.as_bytes()].concat().into()));
    for run in [run(2, "of some time"), run(3, "fine").sent(1)] {
        two.peer.says(To::Node(me), &Message::Run(run));
    }
    for (number, is_done) in [(1, false), (2, false), (3, true)] {
        let ran = two.peer.hears(|message| if let Message::Ran(ran) = message { Some(ran) } else { None }).await;
        assert_eq!(ran.number, number);
        match ran.result().expect("it is known") {
            Ok(_) => assert!(is_done, "{number}"),
            Err(refusal) => assert_eq!((is_done, refusal.code), (false, Code::Timeout), "{number}"),
        }
    }
    let said = ana.http.get(&format!("/v1/channels/{room}/messages")).await.items();
    assert_eq!(said.iter().map(|message| &message["text"]).collect::<Vec<_>>(), ["fine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_is_over_when_the_database_says_so_or_says_nothing() {
    let without_sweep = |config: &mut Config| {
        (config.cluster.sweep_ms, config.cluster.sweep_degraded_ms) = (60_000, 60_000);
    };
    let Some(two) = Two::start(without_sweep).await else { return };
    let (ana, bob, eve) = (two.node.user("ana").await, two.node.user("bob").await, two.node.user("eve").await);
    let (mut anas, mut bobs, mut eves) = (ana.connects().await, bob.connects().await, eve.connects().await);
    let ended = |user: UserId| Message::Revoked(vec![Revoked { user, token: None }]);

    // A node that nobody hears ends one; of the other it is said as it may have been when it was so.
    let named = |config: &mut Config| config.cluster.node = "apart".to_owned();
    let apart = World::joins(&two.database, &Network::default(), Clock::default(), named).await;
    eve.at(&apart).http.post("/v1/auth/logout", &json!({})).await.good();
    two.peer.says(To::Everyone, &ended(ana.id()));
    two.peer.says(To::Everyone, &ended(eve.id()));
    assert_eq!(eves.closes().await, 4014);
    assert_eq!(anas.everything().await, Vec::<Value>::new(), "she is still there");

    let Store::Postgres { readers, .. } = &two.node.app().hub.store else { panic!("this is Postgres") };
    readers.close().await;
    two.peer.says(To::Everyone, &ended(bob.id()));
    assert_eq!(bobs.closes().await, 4014);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_comes_back_to_a_full_channel_is_in_doubt() {
    let Some(mut two) = Two::start(|config| config.channels.mailbox = 16).await else { return };
    let ana = two.node.user("ana").await;
    let room = two.channel_of_peer(&ana).await;
    let mut socket = ana.connects().await;
    let slot = two.node.app().hub.directory.slot_or_new(room.into());
    let mut places = Vec::new();
    eventually("all places of the channel to be taken", || {
        places.extend(std::iter::from_fn(|| Credit::take(&slot, 16)));
        std::future::ready(places.len() == 16)
    })
    .await;

    let not_there = posts(&mut socket, room, "one").await;
    let number = two.peer.is_asked().await.number;
    let ran = Message::Ran(Ran::new(number, Err(Refusal::new(Code::Timeout, "I do not know"))));
    two.peer.says(To::Node(two.id()), &ran);
    assert_eq!(socket.reply(not_there).await["error"], "timeout", "the other node may have done it");

    let lost = posts(&mut socket, room, "two").await;
    two.peer.is_asked().await;
    two.cut();
    assert_eq!(socket.reply(lost).await["error"], "timeout");
    let only_here = posts(&mut socket, room, "three").await;
    assert_eq!(socket.reply(only_here).await["error"], "unavailable", "nobody else was asked");
}
