//! How sessions end: with their sign-in, with their node, and with the patience of whoever is flooded.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::socket::{CLOSE, Socket};
use crate::world::{Person, World, within};

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
