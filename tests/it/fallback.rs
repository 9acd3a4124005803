//! The gateway without WebSockets: long-poll and server-sent events, and moving between them.

use colink::domain::id::ChannelId;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::http::Answer;
use crate::world::{Person, World, eventually, nobody, within};

impl Person {
    /// Opens a session without a socket; returns its queue.
    pub(crate) async fn registers(&self) -> String {
        let made = self.http.post("/v1/events/register", &json!({})).await.good();
        assert_eq!((&made["last_event_id"], &made["ready"]["type"]), (&json!(1), &json!("ready")));
        assert_eq!(made["ready"]["d"]["session_id"], made["queue_id"]);
        made["queue_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn polls(&self, queue: &str, last: i64, timeout_s: u64) -> Answer {
        self.http.get(&format!("/v1/events?queue_id={queue}&last_event_id={last}&timeout_s={timeout_s}")).await
    }
}

/// Makes a channel and waits until all of it was told: a session that is opened behind that hears nothing of it.
async fn general(world: &World, ana: &Person, bob: &Person) -> ChannelId {
    let mut witness = bob.connects().await;
    let general = world.channel("general", &[ana, bob]).await;
    let mut awaited = vec!["channel.created", "channel.listed", "user.channel_added"];
    while !awaited.is_empty() {
        let told = witness.next().await;
        awaited.retain(|kind| told["type"] != *kind);
    }
    general
}

fn texts(polled: &Value) -> Vec<&str> {
    polled["events"].as_array().unwrap().iter().filter_map(|event| event["d"]["text"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_waits_and_brings_events_in_order() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = general(&world, &ana, &bob).await;
    let queue = bob.registers().await;
    let nothing = bob.polls(&queue, 1, 0).await.good();
    assert_eq!(nothing, json!({"events": [], "last_event_id": 1}));
    let (polled, _) = tokio::join!(bob.polls(&queue, 1, 30), ana.says(general, "one"));
    let polled = polled.good();
    assert_eq!((texts(&polled), &polled["last_event_id"]), (vec!["one"], &json!(2)));
    ana.says(general, "two").await;
    ana.says(general, "three").await;
    let mut last = 2;
    let mut got = Vec::new();
    while got.len() < 2 {
        let polled = bob.polls(&queue, last, 10).await.good();
        got.extend(texts(&polled).iter().map(ToString::to_string));
        last = polled["last_event_id"].as_i64().unwrap();
    }
    assert_eq!((got, last), (vec!["two".to_owned(), "three".to_owned()], 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for_again_and_what_was_acknowledged_is_gone() {
    let world = World::start().await;
    let (ana, bob, eve) = (world.user("ana").await, world.user("bob").await, world.user("eve").await);
    let general = general(&world, &ana, &bob).await;
    let queue = bob.registers().await;
    for n in 1..=3 {
        ana.says(general, &n.to_string()).await;
        // One at a time, so that each is a batch of its own.
        bob.polls(&queue, n, 10).await.good();
    }
    let again = bob.polls(&queue, 3, 10).await.good();
    assert_eq!(texts(&again), ["3"], "the answer may have been lost: it comes again");
    assert_eq!(bob.polls(&queue, 1, 0).await.code(), "queue_gone", "older ones were acknowledged");
    assert_eq!(bob.polls(&queue, 99, 0).await.code(), "queue_gone");
    assert_eq!(bob.polls(&nobody().to_string(), 1, 0).await.code(), "queue_gone");
    assert_eq!(eve.polls(&queue, 3, 0).await.code(), "queue_gone", "somebody else's queue is nobody's");
    assert_eq!(world.stranger().get("/v1/events").await.code(), "unauthenticated");
    assert_eq!(bob.http.get("/v1/events?queue_id=x&last_event_id=1").await.code(), "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_behind_the_last_event_id() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = general(&world, &ana, &bob).await;
    let queue = bob.registers().await;
    let path = format!("/v1/events/stream?queue_id={queue}");
    let mut first = bob.http.begin("GET", &path, &[], "".into()).await.into_body().into_data_stream();
    ana.says(general, "one").await;
    let chunk = within("an event", first.next()).await.unwrap().unwrap();
    let chunk = String::from_utf8(chunk.to_vec()).unwrap();
    let data = chunk.strip_prefix("id: 2\ndata: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("one event");
    assert_eq!(serde_json::from_str::<Value>(data).unwrap()["d"]["text"], "one");
    drop(first);
    ana.says(general, "two").await;
    let response = bob.http.begin("GET", &path, &[("last-event-id", "2")], "".into()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut second = response.into_body().into_data_stream();
    let chunk = within("the missed event", second.next()).await.unwrap().unwrap();
    assert!(chunk.starts_with(b"id: 3\n") && String::from_utf8_lossy(&chunk).contains("two"), "{chunk:?}");
    // A second stream takes over, and the first ends with the reason.
    let _third = bob.http.begin("GET", &path, &[("last-event-id", "3")], "".into()).await;
    let rest = within("the end of the stream", second.collect::<Vec<_>>()).await;
    let rest: Vec<u8> = rest.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
    assert!(String::from_utf8_lossy(&rest).contains("event: close\ndata: {\"code\":4009}"), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_moves_to_a_socket_and_back_within_its_session() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = general(&world, &ana, &bob).await;
    let queue = bob.registers().await;
    ana.says(general, "one").await;
    let polled = bob.polls(&queue, 1, 10).await.good();
    assert_eq!(texts(&polled), ["one"]);
    ana.says(general, "two").await;
    let (mut socket, resumed) = bob.resumes(json!({"session_id": queue, "s": 2})).await;
    assert_eq!((&resumed["d"]["mode"], &resumed["d"]["session_id"]), (&json!("buffer"), &json!(queue)));
    assert_eq!(socket.until("message.created").await["d"]["text"], "two");
    ana.says(general, "three").await;
    assert_eq!(socket.until("message.created").await["s"], 4);
    drop(socket);
    ana.says(general, "four").await;
    let mut last = 4;
    let mut got: Vec<String> = Vec::new();
    while got.is_empty() {
        let polled = bob.polls(&queue, last, 10).await.good();
        got.extend(texts(&polled).iter().map(ToString::to_string));
        last = polled["last_event_id"].as_i64().unwrap();
    }
    assert_eq!((got, last), (vec!["four".to_owned()], 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_waits_ends_with_the_node_and_with_the_sign_in() {
    let mut world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let (hers, his) = (ana.registers().await, bob.registers().await);
    let wait = |person: &Person, queue: &String| {
        let (person, queue) = (person.clone(), queue.clone());
        tokio::spawn(async move { person.polls(&queue, 1, 60).await })
    };
    let (hers, his) = (wait(&ana, &hers), wait(&bob, &his));
    eventually("both polls to wait", || async {
        let sessions = world.app().hub.directory.all_sessions();
        sessions.len() == 2 && sessions.iter().all(|session| session.queue.attached())
    })
    .await;
    assert_eq!(bob.http.post("/v1/auth/logout", &json!({})).await.status, 200);
    assert_eq!(within("his poll to end", his).await.unwrap().code(), "queue_gone");
    world.stop().await;
    let answer = within("her poll to end", hers).await.unwrap();
    assert!(answer.status == 200 || answer.code() == "queue_gone", "{}", answer.text());
}
