//! Several nodes on one database: what happens on one is heard on all, whatever becomes of the bus between them.

use std::collections::BTreeMap;

use colink::bus::memory::Network;
use colink::clock::Clock;
use colink::config::Config;
use colink::domain::command as c;
use colink::domain::id::{ChannelId, StreamId};
use colink::domain::user::Role;
use serde_json::{Value, json};

use crate::forward::{Forward, listen};
use crate::logs::lines_with;
use crate::socket::Socket;
use crate::world::{Person, World, eventually, new_postgres_database, postgres_is_there, within};

/// Nodes, and the network between them.
pub(crate) struct Nodes {
    pub(crate) nodes: Vec<World>,
    database: String,
    clock: Clock,
    pub(crate) network: Network,
}

impl std::ops::Index<usize> for Nodes {
    type Output = World;

    fn index(&self, at: usize) -> &World {
        &self.nodes[at]
    }
}

impl Nodes {
    /// Starts three nodes, if there is a Postgres for them.
    pub(crate) async fn start(change: impl Fn(&mut Config)) -> Option<Nodes> {
        Nodes::at(Clock::default(), change).await
    }

    /// Starts three nodes that learn of each other's commits by the sweep, too, or by the bus alone.
    async fn that(sweep: bool) -> Option<Nodes> {
        Nodes::start(|config| {
            if !sweep {
                by_bus_alone(config);
            }
        })
        .await
    }

    /// Starts three nodes that tell the time by a clock.
    pub(crate) async fn at(clock: Clock, change: impl Fn(&mut Config)) -> Option<Nodes> {
        if !postgres_is_there() {
            return None;
        }
        let database = new_postgres_database().await;
        let mut nodes = Nodes { nodes: Vec::new(), database, clock, network: Network::default() };
        for _ in 0..3 {
            nodes.one_more(&change).await;
        }
        nodes.see_each_other().await;
        Some(nodes)
    }

    /// Starts another node.
    pub(crate) async fn one_more(&mut self, change: impl Fn(&mut Config)) {
        let named = |config: &mut Config| {
            config.cluster.node = format!("hub-{}", self.nodes.len());
            change(config);
        };
        let node = World::joins(&self.database, &self.network, self.clock.clone(), named).await;
        self.nodes.push(node);
    }

    async fn see_each_other(&self) {
        for node in &self.nodes {
            let cluster = node.app().hub.cluster.as_ref().unwrap();
            eventually("the nodes to see each other", || async { cluster.reachable() == self.nodes.len() - 1 }).await;
        }
    }

    /// Cuts a node off the network, or puts it back.
    pub(crate) fn cut(&self, at: usize, cut: bool) {
        self.network.cut(self[at].app().hub.id, cut);
    }

    /// Makes channels until each node owns one; returns them in the order of the nodes.
    pub(crate) async fn channels(&self, people: &[&Person]) -> Vec<ChannelId> {
        let mut owned = vec![None; self.nodes.len()];
        for n in 0.. {
            if owned.iter().all(Option::is_some) {
                break;
            }
            let made = self[0].channel(&format!("room-{n}"), people).await;
            let owner = |node: &World| node.app().hub.cluster.as_ref().unwrap().owns(made.into());
            let at = self.nodes.iter().position(owner).expect("one of them owns it");
            owned[at].get_or_insert(made);
        }
        owned.into_iter().flatten().collect()
    }
}

/// Never sweeps: what is heard came by the bus.
fn by_bus_alone(config: &mut Config) {
    config.cluster.sweep_ms = 60_000;
    config.cluster.sweep_degraded_ms = 60_000;
}

/// Reads messages of a channel until there are so many; returns their numbers and texts.
async fn hears(socket: &mut Socket, channel: ChannelId, count: usize) -> Vec<(i64, String)> {
    let mut heard = Vec::new();
    while heard.len() < count {
        let event = socket.until("message.created").await;
        if event["channel_id"] == json!(channel) {
            heard.push((event["seq"].as_i64().unwrap(), event["d"]["text"].as_str().unwrap().to_owned()));
        }
    }
    heard
}

/// Reads messages of any channels until there are so many; returns their numbers by channel.
async fn hears_all(socket: &mut Socket, count: usize) -> BTreeMap<String, Vec<i64>> {
    let mut heard: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for _ in 0..count {
        let event = socket.until("message.created").await;
        let channel = event["channel_id"].as_str().unwrap().to_owned();
        heard.entry(channel).or_default().push(event["seq"].as_i64().unwrap());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_on_any_node_is_heard_on_all_in_one_order() {
    let Some(nodes) = Nodes::start(by_bus_alone).await else { return };
    let (ana, bob, eve) = (nodes[0].user("ana").await, nodes[0].user("bob").await, nodes[0].user("eve").await);
    let people = [&ana, &bob.at(&nodes[1]), &eve.at(&nodes[2])];
    for room in nodes.channels(&people).await {
        let mut sockets = Vec::new();
        for person in people {
            sockets.push(person.connects().await);
        }
        for n in 0..30 {
            sockets[n % 3].asks("message.send", json!({"channel_id": room, "text": format!("text {n}")})).await;
        }
        let first = hears(&mut sockets[0], room, 30).await;
        let seqs: Vec<i64> = first.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, (2..32).collect::<Vec<_>>());
        for socket in &mut sockets[1..] {
            assert_eq!(hears(socket, room, 30).await, first);
        }
        let mine: Vec<&str> =
            first.iter().map(|(_, text)| &**text).filter(|text| text[5..].parse::<i32>().unwrap() % 3 == 0).collect();
        let asked: Vec<String> = (0..30).step_by(3).map(|n| format!("text {n}")).collect();
        assert_eq!(mine, asked, "what one client asks is done in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_on_a_channel_of_another_node() {
    let Some(nodes) = Nodes::start(by_bus_alone).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await);
    for (owner, room) in nodes.channels(&[&ana]).await.into_iter().enumerate() {
        for node in &nodes.nodes {
            let (ana, bob) = (ana.at(node), bob.at(node));
            ana.invites(room, &bob).await;
            let seq = bob.says(room, "hi").await;
            let reply = ana.replies(room, seq, "hello").await;
            let _: Value = bob.does(c::EditMessage { channel_id: room, seq, text: "hi!".into() }).await;
            let _: Value = ana.does(c::AddReaction { channel_id: room, seq, emoji: "wave".into() }).await;
            let _: Value = ana.does(c::AddPin { channel_id: room, seq }).await;
            let _: Value = bob.does(c::MarkThreadRead { channel_id: room, thread_seq: seq, seq: reply }).await;
            let _: Value = ana.does(c::DeleteMessage { channel_id: room, seq: reply }).await;
            ana.removes(room, &bob).await;
            let refused = bob.tries(crate::world::message(room, "still here?")).await;
            assert_eq!((refused.status, refused.code()), (403, "forbidden".to_owned()), "owner {owner}");
            let keyed =
                c::SendMessage { client_msg_id: Some(format!("k{owner}")), ..crate::world::message(room, "once") };
            let sent: Value = ana.does(keyed).await;
            assert!(sent["seq"].as_i64().is_some());
        }
        let history = ana.http.get(&format!("/v1/channels/{room}/messages")).await.good();
        let once = history["items"].as_array().unwrap().iter().filter(|message| message["text"] == "once").count();
        assert_eq!(once, 1, "one key, one message, whichever node it is sent to");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_goes_on_and_misses_nothing() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
    let rooms = nodes.channels(&[&ana, &bob]).await;
    let (mut here, mut there) = (ana.connects().await, bob.connects().await);
    nodes.cut(1, true);
    for room in &rooms {
        for n in 0..5 {
            ana.says(*room, &format!("ana {n}")).await;
            bob.says(*room, &format!("bob {n}")).await;
        }
    }
    let (mine, theirs) = (hears_all(&mut here, 30).await, hears_all(&mut there, 30).await);
    assert_eq!(mine, theirs);
    for room in &rooms {
        assert_eq!(mine[&room.to_string()], (2..12).collect::<Vec<_>>());
    }
    nodes.cut(1, false);
    nodes.see_each_other().await;
    for room in rooms {
        bob.says(room, "back").await;
        assert_eq!(hears(&mut here, room, 1).await, hears(&mut there, room, 1).await);
    }
}

/// A way to the database that ends, with all connections, when it is stopped. Returns its URL, too.
async fn way_to(database: &str) -> (String, Forward) {
    let server = database.rsplit_once('@').and_then(|(_, rest)| Some(rest.split_once('/')?.0)).unwrap();
    let listener = listen(([127, 0, 0, 1], 0).into()).await;
    let url = database.replacen(server, &listener.local_addr().unwrap().to_string(), 1);
    let to = tokio::net::lookup_host(server).await.unwrap().next().unwrap();
    (url, Forward::start(listener, to))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_owner_without_its_database_cannot_write_others_do() {
    let Some(mut nodes) = Nodes::start(|_| ()).await else { return };
    let (url, way) = way_to(&nodes.database).await;
    nodes
        .one_more(|config| {
            config.database.url = url.clone().into();
            config.database.timeout_ms = 500;
        })
        .await;
    nodes.see_each_other().await;
    let ana = nodes[0].user("ana").await;
    let room = nodes.channels(&[&ana]).await[3];
    let mut there = ana.at(&nodes[3]).connects().await;
    ana.says(room, "one").await;
    hears(&mut there, room, 1).await;
    way.stop().await;
    // Either the sender finds out what its owner could not do, or it knows better than to ask.
    for n in 0..10 {
        ana.says(room, &format!("text {n}")).await;
    }
    let owns = |node: &World| node.app().hub.cluster.as_ref().unwrap().owns(room.into());
    eventually("another one to own it", || async { nodes.nodes[..3].iter().any(owns) && !owns(&nodes[3]) }).await;
    assert_eq!(hears(&mut there, room, 10).await.len(), 10, "the bus still brings what is said");
    let sent = there.call("message.send", json!({"channel_id": room, "text": "by others"})).await;
    assert_eq!(sent["ok"], true, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_brought_in_or_taken_out_on_another_node_hears_it_from_there_on_and_no_longer() {
    for sweeps in [false, true] {
        let Some(nodes) = Nodes::that(sweeps).await else { return };
        let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
        let mut socket = bob.connects().await;
        for room in nodes.channels(&[&ana]).await {
            if sweeps {
                nodes.cut(1, true);
            }
            ana.says(room, "before").await;
            ana.invites(room, &bob).await;
            // Of the room before, a later one may still be on its way: one's own stream is another than the channel's.
            while socket.until("user.channel_added").await["d"]["channel_id"] != json!(room) {}
            ana.says(room, "between").await;
            ana.removes(room, &bob).await;
            ana.says(room, "after").await;
            ana.invites(room, &bob).await;
            ana.says(room, "again").await;
            let heard: Vec<String> = hears(&mut socket, room, 2).await.into_iter().map(|(_, text)| text).collect();
            assert_eq!(heard, ["between", "again"]);
            ana.removes(room, &bob).await;
            nodes.cut(1, false);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_ends_on_one_node_ends_its_sockets_on_all() {
    for sweeps in [false, true] {
        let Some(nodes) = Nodes::that(sweeps).await else { return };
        let root = nodes[0].person("root", Role::Admin).await;
        let (ana, bob) = (nodes[0].user("ana").await.at(&nodes[1]), nodes[0].user("bob").await.at(&nodes[1]));
        let second = ana.with_token(&nodes[0].token(ana.id()).await);
        let (mut first, mut second) = (ana.connects().await, second.connects().await);
        let mut bobs = bob.connects().await;
        if sweeps {
            nodes.cut(1, true);
        }
        ana.at(&nodes[0]).http.post("/v1/auth/logout", &json!({})).await.good();
        assert_eq!(first.closes().await, 4014);
        assert!(second.everything().await.iter().all(|frame| frame["type"] != "reconnect"), "another sign-in goes on");
        let _: Value = root.does(c::DeactivateUser { user_id: bob.id() }).await;
        assert_eq!(bobs.closes().await, 4014);
        // What a token stands for is believed for a moment, on each node of its own.
        eventually("the token to be worth nothing", || async { bob.http.get("/v1/users/me").await.status == 401 })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_changes_on_one_node_counts_on_all() {
    for sweeps in [false, true] {
        let Some(nodes) = Nodes::that(sweeps).await else { return };
        let root = nodes[0].person("root", Role::Admin).await;
        let ana = nodes[0].user("ana").await.at(&nodes[1]);
        let mut socket = ana.connects().await;
        if sweeps {
            nodes.cut(1, true);
        }
        let _: Value = root.does(c::SetUserRole { user_id: ana.id(), role: Role::Guest }).await;
        let role = || nodes[1].app().hub.directory.sessions_of(ana.id())[0].principal().role;
        eventually("the role to change", || async { role() == Role::Guest }).await;
        let made = socket.call("channel.create", json!({"name": "mine"})).await;
        assert_eq!(made["error"], "forbidden");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_resumed_on_another_node() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await);
    for room in nodes.channels(&[&ana, &bob]).await {
        let mut socket = bob.connects().await;
        ana.says(room, "one").await;
        assert_eq!(hears(&mut socket, room, 1).await, [(2, "one".to_owned())]);
        let from = json!({"session_id": socket.session, "s": socket.s, "cursors": {room.to_string(): 2}});
        drop(socket);
        ana.at(&nodes[2]).says(room, "two").await;
        let (mut again, resumed) = bob.at(&nodes[1]).resumes(from).await;
        assert_eq!((&resumed["type"], &resumed["d"]["mode"]), (&json!("resumed"), &json!("log")));
        ana.says(room, "three").await;
        assert_eq!(hears(&mut again, room, 2).await, [(3, "two".to_owned()), (4, "three".to_owned())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_one_name_in_the_logs_of_all_nodes_that_it_comes_to() {
    let (name, trace) = ("named-by-its-client", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let lines = lines_with(name);
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let ana = nodes[0].user("ana").await;
    let rooms = nodes.channels(&[&ana]).await;
    let path = format!("/v1/channels/{}/messages", rooms[1]);
    let headers = [("content-type", "application/json"), ("x-request-id", name), ("traceparent", trace)];
    ana.http.send("POST", &path, &headers, r#"{"text":"hi"}"#.into()).await.good();
    let there = |text: &str| text.lines().any(|line| line.contains("carrying out") && line.contains(trace));
    let here = |text: &str| text.lines().any(|line| line.contains("sent a command to its owner"));
    let text = lines.lock().unwrap().clone();
    assert!(here(&text) && there(&text), "{text}");

    let mut socket = ana.connects().await;
    let lines = lines_with(socket.session.clone().leak());
    assert_eq!(socket.call("message.send", json!({"channel_id": rooms[2], "text": "hi"})).await["ok"], true);
    let text = lines.lock().unwrap().clone();
    let of_session = format!("request.id=\"{}.", socket.session);
    let there = text.lines().find(|line| line.contains("carrying out")).unwrap_or_else(|| panic!("{text}"));
    assert!(there.contains(&of_session), "{there}");
}

/// Returns the streams that a fresh session hears, with their heads.
fn cursors(ready: &Value) -> serde_json::Map<String, Value> {
    let d = &ready["d"];
    let channels = d["channels"].as_array().unwrap().iter();
    let mut cursors: serde_json::Map<String, Value> =
        channels.map(|channel| (channel["id"].as_str().unwrap().to_owned(), channel["last_seq"].clone())).collect();
    cursors.insert(d["user"]["id"].as_str().unwrap().to_owned(), d["user_seq"].clone());
    cursors.insert(StreamId::WORKSPACE.to_string(), d["workspace_seq"].clone());
    cursors
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_polls_another_node_each_time_misses_nothing_and_hears_nothing_twice() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await);
    let room = nodes[0].channel("general", &[&ana, &bob]).await;
    let made = bob.http.post("/v1/events/register", &json!({})).await.good();
    let (mut queue, mut last) = (made["queue_id"].clone(), made["last_event_id"].as_i64().unwrap());
    let mut cursors = cursors(&made["ready"]);
    let elsewhere = bob.at(&nodes[1]).polls(queue.as_str().unwrap(), last, 0).await;
    assert_eq!((elsewhere.status, elsewhere.code()), (410, "queue_gone".to_owned()));
    let mut heard = Vec::new();
    for n in 0..30 {
        if n % 3 != 2 {
            ana.at(&nodes[n % 2]).says(room, &n.to_string()).await;
        }
        let ask = json!({"queue_id": queue, "last_event_id": last, "cursors": cursors, "timeout_s": 5});
        let polled = bob.at(&nodes[n % 3]).http.post("/v1/events", &ask).await.good();
        queue = polled.get("queue_id").unwrap_or(&queue).clone();
        last = polled["last_event_id"].as_i64().unwrap();
        for event in polled["events"].as_array().unwrap() {
            let Some(seq) = event["seq"].as_i64() else { continue };
            let stream = event.get("channel_id").or(event.get("stream_id")).unwrap().as_str().unwrap();
            // As a client does: what it knows it drops, and a jump would be a loss.
            if seq > cursors[stream].as_i64().unwrap() {
                assert_eq!(seq, cursors[stream].as_i64().unwrap() + 1, "{event}");
                cursors[stream] = json!(seq);
                heard.extend(event["d"]["text"].as_str().map(str::to_owned));
            }
        }
        if heard.len() == 20 {
            break;
        }
    }
    let said: Vec<String> = (0..30).filter(|n| n % 3 != 2).map(|n| n.to_string()).collect();
    assert_eq!(heard, said);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_typing_is_told_on_all_nodes() {
    let Some(nodes) = Nodes::start(by_bus_alone).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
    for room in nodes.channels(&[&ana, &bob]).await {
        let (mut keyboard, mut screen) = (ana.connects().await, bob.connects().await);
        assert_eq!(keyboard.call("typing.start", json!({"channel_id": room})).await["ok"], true);
        assert_eq!(screen.until("typing").await["d"]["user_id"], json!(ana.id()));
        keyboard.heard_no("typing").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_on_a_node_that_leaves_is_told_things_until_it_is_gone() {
    let Some(mut nodes) = Nodes::start(by_bus_alone).await else { return };
    nodes.nodes.pop().unwrap().stop().await;
    let (root, ana) = (nodes[0].person("root", Role::Admin).await, nodes[0].user("ana").await);
    let bob = nodes[0].user("bob").await.at(&nodes[1]);
    let room = nodes[0].channel("room", &[&ana, &bob]).await;
    let (mut keyboard, mut screen) = (ana.connects().await, bob.connects().await);
    nodes[1].app().hub.drain();
    eventually("the last other node to leave", || async {
        let status = root.http.get("/v1/admin/cluster").await.good();
        status["nodes"].as_array().unwrap().iter().all(|node| node["name"] == "hub-0" || node["state"] == "gone")
    })
    .await;
    // For as long as it takes to notice that nobody else is a member.
    for n in 0..100 {
        ana.says(room, &n.to_string()).await;
    }
    assert_eq!(hears(&mut screen, room, 100).await.len(), 100);
    assert_eq!(keyboard.call("typing.start", json!({"channel_id": room})).await["ok"], true);
    assert_eq!(screen.until("typing").await["d"]["user_id"], json!(ana.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_hands_its_channels_over_and_loses_nothing() {
    let Some(mut nodes) = Nodes::start(|_| ()).await else { return };
    let (ana, bob) = (nodes[0].user("ana").await, nodes[0].user("bob").await.at(&nodes[1]));
    let rooms = nodes.channels(&[&ana, &bob]).await;
    let mut socket = bob.connects().await;
    let mut left = nodes.nodes.pop().unwrap();
    for (n, room) in rooms.iter().enumerate() {
        ana.says(*room, "before").await;
        if n == 1 {
            left.stop().await;
        }
        ana.says(*room, "after").await;
        assert_eq!(hears(&mut socket, *room, 2).await, [(2, "before".to_owned()), (3, "after".to_owned())]);
    }
    for room in rooms {
        let owners = nodes.nodes.iter().filter(|node| node.app().hub.cluster.as_ref().unwrap().owns(room.into()));
        assert_eq!(owners.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_by_itself_and_a_node_of_a_cluster_do_not_share_a_database() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut config = crate::world::config(data.path());
    config.database.url = nodes[0].app().hub.config.database.url.clone();
    let refused = Box::pin(colink::app::App::start(config)).await.err().expect("it is refused").to_string();
    assert!(refused.contains("another server runs on this database") && refused.contains("cluster.redis"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_the_nodes_and_nobody_else_does() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let (root, ana) = (nodes[0].person("root", Role::Admin).await, nodes[0].user("ana").await);
    for room in nodes.channels(&[&ana]).await {
        ana.says(room, "hi").await;
    }
    let refused = ana.http.get("/v1/admin/cluster").await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden".to_owned()));
    let status = root.http.get("/v1/admin/cluster").await.good();
    assert_eq!((&status["node"], &status["clustered"]), (&json!("hub-0"), &json!(true)));
    let of = |field: &str| -> Vec<Value> {
        status["nodes"].as_array().unwrap().iter().map(|node| node[field].clone()).collect()
    };
    assert_eq!(of("name"), ["hub-0", "hub-1", "hub-2"]);
    assert_eq!(of("state"), ["this", "up", "up"]);
    assert_eq!(of("owned_channels"), [1, 1, 1]);
    assert_eq!(of("newest_epoch"), [1, 1, 1]);
    let mine = &status["nodes"][0]["report"];
    assert_eq!((&mine["taken_over"], &mine["fenced"], &mine["beside"]), (&json!(1), &json!(0), &json!(0)));
    assert!(mine["forwarded"].as_u64().unwrap() >= 2);

    nodes.cut(1, true);
    eventually("the node to be seen as unreachable", || async {
        let status = root.http.get("/v1/admin/cluster").await.good();
        status["degraded"] == true && status["nodes"][1]["state"] == "unreachable"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_by_itself_says_so() {
    let world = World::start().await;
    let root = world.person("root", Role::Admin).await;
    let status = root.http.get("/v1/admin/cluster").await.good();
    assert_eq!((&status["clustered"], &status["nodes"].as_array().unwrap().len()), (&json!(false), &1));
    assert_eq!(status["nodes"][0]["state"], "this");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hears_nothing_any_more_says_that_it_failed() {
    let Some(nodes) = Nodes::start(|_| ()).await else { return };
    let hub = nodes[0].app().hub.clone();
    assert!(!hub.failed.is_cancelled());
    // Whoever joins under its name takes its place, as if its own way to the bus had ended.
    let _other = nodes.network.join(hub.id);
    within("the node to notice", hub.failed.cancelled()).await;
    assert!(!nodes[1].app().hub.failed.is_cancelled());
}
