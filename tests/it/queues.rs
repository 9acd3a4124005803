//! Sessions without a socket: how many, how long a poll waits, and how a stream is read on.

use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::world::{Person, World, within};

/// Opens a session without a socket; returns its queue.
async fn registers(who: &Person) -> String {
    let made = who.http.post("/v1/events/register", &json!({})).await.good();
    made["queue_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_too_many_is_refused_unless_an_idle_one_makes_way() {
    let world = World::with(|config| config.gateway.sessions_per_user = 1).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let _socket = ana.connects().await;
    let refused = ana.http.post("/v1/events/register", &json!({})).await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited".to_owned()));
    assert_eq!(refused.header("retry-after"), "60");
    // Nobody waits at his first queue.
    let (first, second) = (registers(&bob).await, registers(&bob).await);
    let poll = |queue: &str| format!("/v1/events?queue_id={queue}&last_event_id=1&timeout_s=0");
    assert_eq!(bob.http.get(&poll(&first)).await.code(), "queue_gone");
    assert_eq!(bob.http.get(&poll(&second)).await.code(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_may_ask_to_wait_as_long_as_it_likes() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let queue = registers(&bob).await;
    let path = format!("/v1/events?queue_id={queue}&last_event_id=1&timeout_s={}", u64::MAX);
    let members = [&ana];
    let (polled, _) = tokio::join!(bob.http.get(&path), world.channel("general", &members));
    assert_ne!(polled.good()["events"], json!([]), "it waits for the longest that it may");
    for timeout_s in ["-1", "1.5", "soon"] {
        let path = format!("/v1/events?queue_id={queue}&last_event_id=1&timeout_s={timeout_s}");
        assert_eq!(bob.http.get(&path).await.code(), "invalid_request", "{timeout_s}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_the_header_says_and_shows_that_it_lives() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let queue = registers(&bob).await;
    for name in ["one", "two", "three"] {
        world.channel(name, &[&ana]).await;
    }
    let path = format!("/v1/events/stream?queue_id={queue}&last_event_id=1");
    let read = async |headers: &[(&str, &str)]| {
        bob.http.begin("GET", &path, headers, "".into()).await.into_body().into_data_stream()
    };
    let mut text = String::new();
    let mut stream = read(&[]).await;
    while !text.contains("three") {
        text += str::from_utf8(&within("the events", stream.next()).await.unwrap().unwrap()).unwrap();
    }
    let ids: Vec<i64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(ids.len() >= 3 && ids[0] == 2, "without the header, the parameter counts: {text}");
    let last = ids[ids.len() - 1];
    let mut stream = read(&[("last-event-id", &(last - 1).to_string())]).await;
    let chunk = within("what is behind the header", stream.next()).await.unwrap().unwrap();
    let text = str::from_utf8(&chunk).unwrap();
    assert!(text.starts_with(&format!("id: {last}\n")) && text.contains("three"), "the header goes first: {text}");
    // Longer than any other wait: a quiet stream says so every 15 s.
    let chunk = tokio::time::timeout(Duration::from_secs(40), stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(chunk, ": alive\n\n");
}
