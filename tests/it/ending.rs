//! How sessions end: with their sign-in, with their node, and with the patience of whoever is flooded.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::socket::{CLOSE, Socket};
use crate::world::{Person, World, eventually, within};

impl Person {
    /// Returns the same person with a sign-in that lasts this long.
    async fn for_seconds(&self, expires_in_s: i64) -> Person {
        let path = format!("/v1/users/{}/tokens", self.id());
        let made = self.http.post(&path, &json!({"expires_in_s": expires_in_s})).await.good();
        self.with_token(made["token"].as_str().unwrap())
    }

    /// Opens a session without a socket; returns its queue.
    async fn queue(&self) -> String {
        let made = self.http.post("/v1/events/register", &json!({})).await.good();
        made["queue_id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_a_poll_and_a_stream_end_with_their_sign_in() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let mut lasting = ana.connects().await;
    let brief = ana.for_seconds(1).await;
    let (mut socket, polled, streamed) = (brief.connects().await, brief.queue().await, brief.queue().await);
    let poll = format!("/v1/events?queue_id={polled}&last_event_id=1&timeout_s=60");
    let stream = format!("/v1/events/stream?queue_id={streamed}");
    let stream = brief.http.begin("GET", &stream, &[], "".into()).await;
    let stream = async {
        let chunks = http_body_util::BodyExt::into_data_stream(stream.into_body()).collect::<Vec<_>>();
        let bytes: Vec<u8> = chunks.await.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    };
    let all = async { tokio::join!(socket.closes_with_reason(), brief.http.get(&poll), stream) };
    let (closed, poll, stream) = within("all three to end", all).await;
    assert_eq!(closed, (4014, "session revoked".to_owned()));
    assert_eq!(poll.code(), "queue_gone");
    assert!(stream.ends_with("event: close\ndata: {\"code\":4014}\n\n"), "{stream}");
    assert_eq!(ana.http.get(&format!("/v1/events?queue_id={polled}&last_event_id=1")).await.code(), "queue_gone");
    assert_eq!(lasting.everything().await, Vec::<Value>::new(), "another sign-in of the same user goes on");
    let mut again = brief.opens().await;
    again.asks("resume", json!({"token": brief.token, "session_id": socket.session, "s": 1})).await;
    assert_eq!(again.closes().await, 4004);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_in_spite_of_rate_limited_is_4008_and_may_resume() {
    let world = World::with(|config| {
        config.gateway.commands_per_minute = 1;
        config.gateway.commands_burst = 2;
        config.gateway.refusals_per_minute = 3;
    })
    .await;
    let ana = world.user("ana").await;
    let mut flood = ana.connects().await;
    let mut errors = Vec::new();
    for kind in ["time.travel", "pin.add", "typing.start", "time.travel", "pin.add"] {
        errors.push(flood.call(kind, json!({})).await["error"].clone());
    }
    assert_eq!(errors, ["unknown_type", "invalid_request", "rate_limited", "rate_limited", "rate_limited"]);
    flood.asks("time.travel", json!({})).await;
    assert_eq!(flood.closes_with_reason().await, (4008, "rate limited".to_owned()));
    let (mut again, resumed) = ana.resumes(json!({"session_id": flood.session, "s": 1})).await;
    assert_eq!(resumed["d"]["mode"], "buffer", "the session goes on, and so does its count");
    again.asks("time.travel", json!({})).await;
    assert_eq!(again.closes().await, 4008);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_4012_and_a_client_that_leaves_its_connection_gets_1001_back() {
    let world = World::start().await;
    let mut newer = Socket::open(&world.url, &[("sec-websocket-protocol", "colink.v9, chat")]).await;
    assert_eq!(newer.closes_with_reason().await, (4012, "unsupported protocol version".to_owned()));
    let ana = world.user("ana").await;
    let mut screen = ana.connects().await;
    screen.send_frame(true, CLOSE, &1001u16.to_be_bytes()).await;
    assert_eq!(screen.closes_with_reason().await, (1001, "going away".to_owned()));
    let (_, resumed) = ana.resumes(json!({"session_id": screen.session, "s": 1})).await;
    assert_eq!(resumed["d"]["mode"], "buffer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_serves_on_until_its_clients_have_moved() {
    let mut world = World::with(|config| config.server.drain_s = 600).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let (mut hers, mut his, mut late) = (ana.connects().await, bob.connects().await, ana.opens().await);
    let mut client = bob.gateway().await;
    let (url, queue) = (world.url.clone(), bob.queue().await);
    let path = format!("/v1/events?queue_id={queue}&last_event_id=1&timeout_s=60");
    let polls = bob.clone();
    let poll = tokio::spawn(async move { polls.http.get(&path).await });
    eventually("the poll to wait", || async {
        let sessions = world.app().hub.directory.all_sessions();
        sessions.len() == 4 && sessions.iter().all(|session| session.queue.attached())
    })
    .await;
    let hub = world.app().hub.clone();
    let stop = tokio::spawn(async move { world.stop().await });
    for socket in [&mut hers, &mut his] {
        let asked = socket.until("reconnect").await;
        assert!((0..300_000).contains(&asked["d"]["after_ms"].as_i64().unwrap()), "{asked}");
    }
    assert_eq!(within("the poll", poll).await.unwrap().good()["events"][0]["type"], "reconnect");
    let said = hers.call("message.send", json!({"channel_id": general, "text": "still here"})).await;
    assert_eq!(said["ok"], true, "{said}");
    assert_eq!(his.until("message.created").await["d"]["text"], "still here");
    assert_eq!(ana.http.get("/ready").await.status, 503);
    assert!(Socket::try_open(&url, &[]).await.is_err_and(|answer| answer.contains(" 503 ")), "no new connection");
    assert_eq!(ana.http.post("/v1/events/register", &json!({})).await.code(), "unavailable");
    late.asks("identify", json!({"token": ana.token})).await;
    assert_eq!(late.closes_with_reason().await, (4011, "draining".to_owned()));
    assert!(!stop.is_finished() && !hub.closing.is_cancelled());
    for mut socket in [hers, his] {
        socket.send_frame(true, CLOSE, &1001u16.to_be_bytes()).await;
        assert_eq!(socket.closes().await, 1001);
    }
    let heard = within("the client's event", client.next_event()).await.unwrap();
    assert_eq!(heard.kind, "message.created");
    drop(client);
    within("the node to stop", stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_move_is_closed_with_1012_and_waited_for() {
    let mut world = World::with(|config| config.server.drain_s = 1).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let (mut stays, silent, mut moves) = (ana.connects().await, ana.opens().await, bob.gateway().await);
    let hub = world.app().hub.clone();
    let (_, moved, closed) =
        tokio::join!(world.stop(), within("the client to move", moves.next_event()), stays.closes_with_reason());
    assert_eq!(closed, (1012, "restart".to_owned()));
    let moved = moved.unwrap_err();
    assert!(moved.may_come_back() && moved.to_string().contains("1001"), "{moved}");
    drop(silent);
    eventually("all connections to be gone", || async { hub.connections.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_clients_stops_at_once() {
    let mut world = World::with(|config| config.server.drain_s = 600).await;
    drop(world.user("ana").await.connects().await);
    world.stop().await;
}
