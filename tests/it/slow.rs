//! One reader that does not read: it slows nobody, is told what it missed, and is let go when it stays away.

use colink::domain::command as c;
use serde_json::{Value, json};

use crate::protocol::Shown;
use crate::socket::Incoming;
use crate::world::{LIMIT, Person, World, within};

const READERS: usize = 50;
/// Of 30 kB each: more than the system's own buffers take.
const MESSAGES: i64 = 250;

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_slows_nobody_and_is_told_what_it_missed() {
    let world = World::with(|config| {
        config.gateway.queue_events = 64;
        config.gateway.queue_bytes = 65_536;
        config.gateway.write_stall_ms = 0;
        config.gateway.heartbeat_interval_ms = 600_000;
    })
    .await;
    let (ana, stalled) = (world.user("ana").await, world.user("stalled").await);
    let mut readers = Vec::new();
    for n in 0..READERS {
        readers.push(world.user(&format!("reader{n}")).await);
    }
    let people: Vec<&Person> = [&ana, &stalled].into_iter().chain(&readers).collect();
    let busy = world.channel("busy", &people).await;
    let quiet = world.channel("quiet", &[&ana, &stalled]).await;
    let mut asleep = stalled.connects().await;

    let mut tasks = Vec::new();
    for reader in &readers {
        let mut socket = reader.connects().await;
        tasks.push(tokio::spawn(async move {
            let last = format!("\"seq\":{},", MESSAGES + 1);
            let mut count = 0;
            while let Incoming::Text(text) = socket.read().await {
                assert!(!text.contains("\"lagged\""), "who reads is not behind");
                count += 1;
                if text.contains(&last) {
                    return count;
                }
            }
            panic!("closed");
        }));
    }
    let text = "x".repeat(30_000);
    let sending = async {
        for n in 0..MESSAGES {
            ana.says(busy, &text).await;
            if n == MESSAGES / 2 {
                ana.says(quiet, "still here").await;
            }
        }
        for task in tasks {
            assert_eq!(task.await.unwrap(), MESSAGES, "each reader has each message once");
        }
    };
    tokio::time::timeout(LIMIT * 3, sending).await.expect("nobody waits for the one who sleeps");

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
    assert_eq!((&range["from"], &range["to"]), (&json!(last + 1), &json!(MESSAGES + 1)));
    let mut shape = Shown::default();
    shape.add(&json!({"type": lagged["type"], "d": {"channels": {busy.to_string(): {"from": 0, "to": 0}}}}));
    assert_eq!(lagged.as_object().unwrap().len(), 2);
    insta::assert_snapshot!(shape.text(), @r#"{"d":{"channels":{"[id 1]":{"from":0,"to":0}}},"type":"lagged"}"#);

    let mut have = last;
    while have < MESSAGES + 1 {
        let page = stalled.http.get(&format!("/v1/channels/{busy}/events?after_seq={have}&limit=1000")).await;
        for event in page.items() {
            assert_eq!(event["seq"], have + 1);
            have += 1;
        }
    }
    ana.says(busy, "and on it goes").await;
    let next = asleep.until("message.created").await;
    assert_eq!((&next["seq"], &next["d"]["text"]), (&json!(MESSAGES + 2), &json!("and on it goes")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lag_of_the_own_stream_is_named_as_a_stream() {
    let world = World::with(|config| {
        config.gateway.queue_events = 16;
        config.gateway.queue_bytes = 65_536;
        config.gateway.write_stall_ms = 0;
        config.gateway.heartbeat_interval_ms = 600_000;
    })
    .await;
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
    let path = format!("/v1/streams/{}/events?after_seq={last}&limit=1000", bob.id());
    assert_eq!(bob.http.get(&path).await.items().last().unwrap()["seq"], range["to"]);
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
    let stalls = || async { world.stranger().get("/metrics").await.text().contains("code=\"4010\"") };
    within("the server to give up", async {
        while !stalls().await {
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
