//! A node as another one knows it: of that other one there is only what it says by the bus, and nothing that it should do.

use std::time::Duration;

use colink::actors::cluster::envelope::{Beat, Message, Run, Seal};
use colink::bus::memory::Network;
use colink::bus::{Bus, Incoming, To};
use colink::clock::Clock;
use colink::config::Config;
use colink::domain::id::{ChannelId, NodeId};
use colink::storage::nodes;
use serde_json::json;
use tokio::task::JoinSet;

use crate::socket::Socket;
use crate::world::{Person, World, eventually, new_postgres_database, postgres_is_there, within};

/// The other node, which beats until it is dropped.
struct Peer {
    _bus: Bus,
    incoming: Incoming,
    seal: Seal,
    _beats: JoinSet<()>,
}

/// A node, and the other one.
struct Two {
    node: World,
    peer: Peer,
    network: Network,
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
        let peer = Peer { _bus: bus, incoming, seal, _beats: beats };
        Some(Two { node, peer, network })
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
