//! One reader that does not read: it slows nobody, is told what it missed, and is let go when it stays away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use colink::config::Config;
use colink::domain::command as c;
use colink::domain::id::StreamId;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::protocol::Shown;
use crate::socket::{Incoming, Socket};
use crate::world::{Person, World, eventually, within};

/// The others, and on how many sockets each of them reads.
const PEOPLE: usize = 20;
const SOCKETS: usize = 50;
/// Of 30 kB each: more than the system's own buffers take.
const LONG: i64 = 150;
/// And then some that everybody hears, so many at a time.
const SHORT: i64 = 48;
const ROUND: i64 = 16;

/// Little waits for a slow reader, who is not closed for it.
fn patient(config: &mut Config) {
    config.gateway.queue_events = 64;
    config.gateway.queue_bytes = 65_536;
    config.gateway.write_stall_ms = 0;
    config.gateway.heartbeat_interval_ms = 600_000;
    config.gateway.sessions_per_user = 0;
}

/// Connects with little room for what is not read.
async fn narrow(url: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(url.trim_start_matches("http://").parse().unwrap()).await.unwrap()
}

/// Reads a stream's log behind an event up to its end, and sees that nothing is missing.
async fn reads_on(person: &Person, stream: impl Into<StreamId>, mut last: i64) -> i64 {
    let stream = stream.into();
    loop {
        let page = person.http.get(&format!("/v1/streams/{stream}/events?after_seq={last}&limit=1000")).await;
        for event in page.items() {
            assert_eq!(event["seq"], last + 1);
            last += 1;
        }
        if page.json()["head"] == last {
            return last;
        }
    }
}

/// Reads a room that `heard` counts for all, and sees that each message comes once and in order.
async fn keeps_up(mut socket: Socket, first: i64, last: i64, heard: Arc<AtomicUsize>) {
    for seq in first..=last {
        let event = socket.next().await;
        assert_eq!(
            (&event["type"], &event["seq"]),
            (&json!("message.created"), &json!(seq)),
            "who reads is not behind"
        );
        heard.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stalled_reader_among_a_thousand_slows_nobody_and_is_told_what_it_missed() {
    // Both ends of each socket are this process's.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let world = World::with(patient).await;
    let (ana, stalled) = (world.user("ana").await, world.user("stalled").await);
    let mut readers = Vec::new();
    for n in 0..PEOPLE {
        readers.push(world.user(&format!("reader{n}")).await);
    }
    let people: Vec<&Person> = [&ana, &stalled].into_iter().chain(&readers).collect();
    let busy = world.channel("busy", &people).await;
    let quiet = world.channel("quiet", &[&ana, &stalled]).await;
    let mut asleep = Socket::over(narrow(&world.url).await, &world.url, &[]).await.unwrap();
    assert_eq!(asleep.next().await["type"], "hello");
    asleep.identifies(&stalled.token).await;
    let long = "x".repeat(30_000);
    for n in 0..LONG {
        ana.says(busy, &long).await;
        if n == LONG / 2 {
            ana.says(quiet, "still here").await;
        }
    }

    let opening = (0..PEOPLE * SOCKETS).map(|n| readers[n % PEOPLE].connects());
    let sockets: Vec<Socket> = futures_util::stream::iter(opening).buffer_unordered(SOCKETS).collect().await;
    let heard: Arc<AtomicUsize> = Arc::default();
    let (first, last) = (LONG + 2, LONG + SHORT + 1);
    let tasks: Vec<_> =
        sockets.into_iter().map(|socket| tokio::spawn(keeps_up(socket, first, last, heard.clone()))).collect();
    for sent in 1..=SHORT {
        ana.says(busy, "and a short one").await;
        if sent % ROUND == 0 {
            let all = PEOPLE * SOCKETS * usize::try_from(sent).unwrap();
            eventually("all but one to hear it", || async { heard.load(Ordering::Relaxed) == all }).await;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    // All of that happened while the one was asleep: not closed, and behind.
    let sessions = world.app().hub.directory.sessions_of(stalled.id());
    assert!(matches!(&sessions[..], [session] if session.queue.attached() && !session.ended()));

    let head = last;
    let (mut last, mut quiet_told) = (1, false);
    let lagged = loop {
        let frame = asleep.next().await;
        match frame["type"].as_str().unwrap() {
            "lagged" => break frame,
            "message.created" if frame["channel_id"] == json!(quiet) => quiet_told = true,
            "message.created" => {
                assert_eq!(frame["seq"], last + 1, "what comes before the notice has no hole");
                last += 1;
            }
            other => panic!("unexpected {other}"),
        }
    };
    assert!(quiet_told, "only the busiest channel is shed");
    assert_eq!(lagged["d"]["channels"].as_object().unwrap().len(), 1);
    let range = &lagged["d"]["channels"][busy.to_string()];
    assert_eq!((&range["from"], &range["to"]), (&json!(last + 1), &json!(head)));
    assert_eq!(lagged["s"].as_i64(), Some(asleep.s));
    let mut shown = lagged.clone();
    // How far it was is a matter of the moment.
    for end in ["from", "to"] {
        shown["d"]["channels"][busy.to_string()][end] = json!(0);
    }
    let mut shape = Shown::default();
    shape.add(&shown);
    insta::assert_snapshot!(shape.text(), @r#"{"d":{"channels":{"[id 1]":{"from":0,"to":0}}},"s":"[s]","type":"lagged"}"#);

    assert!(last <= LONG, "it was behind before the others came");
    assert_eq!(reads_on(&stalled, busy, last).await, head);
    ana.says(busy, "and on it goes").await;
    let next = asleep.until("message.created").await;
    assert_eq!((&next["seq"], &next["d"]["text"]), (&json!(head + 1), &json!("and on it goes")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lag_of_the_own_stream_is_named_as_a_stream() {
    let world = World::with(patient).await;
    let bob = world.user("bob").await;
    let general = world.channel("general", &[&bob]).await;
    let mut asleep = bob.connects().await;
    for n in 0..250 {
        let text = format!("{n}{}", "x".repeat(30_000));
        let _: Value = bob.does(c::SetDraft { channel_id: general, thread_seq: None, text }).await;
    }
    let mut last = 0;
    let lagged = loop {
        let frame = asleep.next().await;
        if frame["type"] == "lagged" {
            break frame;
        }
        if frame["stream_id"] == json!(bob.id()) {
            last = frame["seq"].as_i64().unwrap();
        }
    };
    let range = &lagged["d"]["streams"][bob.id().to_string()];
    assert_eq!((&lagged["d"]["channels"], &range["from"]), (&json!({}), &json!(last + 1)), "{lagged}");
    assert_eq!(range["to"], reads_on(&bob, bob.id(), last).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_stalls_too_long_is_4010_and_the_session_can_be_resumed() {
    let world = World::with(|config| {
        config.gateway.write_stall_ms = 200;
        config.gateway.heartbeat_interval_ms = 600_000;
        config.gateway.ring_events = 100_000;
        config.gateway.queue_bytes = 64 << 20;
        config.gateway.queue_events = 100_000;
    })
    .await;
    let (ana, stalled) = (world.user("ana").await, world.user("stalled").await);
    let busy = world.channel("busy", &[&ana, &stalled]).await;
    let mut asleep = stalled.connects().await;
    let session = asleep.session.clone();
    let text = "x".repeat(30_000);
    let mut last = 1;
    let waits = || async { world.stranger().get("/metrics").await.text().contains("{code=\"4010\"} 0") };
    within("the server to give up", async {
        while waits().await {
            last = ana.says(busy, &text).await;
        }
    })
    .await;
    let mut seen = 1;
    let end = loop {
        match asleep.read().await {
            Incoming::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                seen = frame["s"].as_i64().unwrap();
            }
            end => break end,
        }
    };
    assert!(matches!(end, Incoming::Closed(4010, _)), "{end:?}");
    let (mut awake, resumed) = stalled.resumes(json!({"session_id": session, "s": seen})).await;
    assert_eq!(resumed["d"]["mode"], "buffer");
    loop {
        let frame = awake.until("message.created").await;
        if frame["seq"] == last {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_is_given_up_and_a_silent_stream_is_not() {
    const ASKED: usize = 20;
    let world = World::with(|config| config.server.write_stall_ms = 200).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let room = world.channel("room", &[&ana]).await;
    let quiet = world.channel("quiet", &[&ana, &bob]).await;
    let queue = bob.http.post("/v1/events/register", &json!({})).await.good()["queue_id"].clone();
    let path = format!("/v1/events/stream?queue_id={}", queue.as_str().unwrap());
    let mut silent = bob.http.begin("GET", &path, &[], Bytes::new()).await;
    let long = "x".repeat(40_000);
    for _ in 0..30 {
        ana.says(room, &long).await;
    }
    let mut stalled = narrow(&world.url).await;
    let request = format!(
        "GET /v1/channels/{room}/messages HTTP/1.1\r\nhost: hub\r\nauthorization: Bearer {}\r\n\r\n",
        ana.token
    );
    stalled.write_all(request.repeat(ASKED).as_bytes()).await.unwrap();
    eventually("the server to give up", || async {
        world.stranger().get("/metrics").await.text().contains("\ncolink_stalled_answers_total 1")
    })
    .await;
    let mut read = Vec::new();
    // A reset is an end too.
    let _ = within("the end", stalled.read_to_end(&mut read)).await;
    assert!(read.len() < ASKED * long.len() * 20, "{} bytes", read.len());

    ana.says(quiet, "and on it goes").await;
    let event = within("an event", silent.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert!(String::from_utf8_lossy(&event).contains("and on it goes"));
}
