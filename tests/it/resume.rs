//! Coming back: from memory by `s`, from the log by cursors, or honestly anew. Never a gap, never twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use colink::client::{Client, Gateway, Options, Start, Step};
use colink::clock::Clock;
use colink::domain::command as c;
use colink::domain::id::{ChannelId, SessionId, StreamId};
use colink::domain::user::{Presence, PresenceMode, Role};
use serde_json::{Value, json};

use crate::binary::{Serving, run_json};
use crate::http::Http;
use crate::socket::Socket;
use crate::world::{Database, LIMIT, Person, World, eventually, message, nobody, on_both, within};

/// Returns the numbers and texts of messages, in order.
fn texts(frames: &[Value]) -> Vec<String> {
    frames.iter().filter_map(|frame| Some(frame["d"]["text"].as_str()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_replays_exactly_what_comes_behind_s() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut screen = bob.connects().await;
    for n in 1..=5 {
        ana.says(general, &n.to_string()).await;
    }
    let mut seen = Vec::new();
    for _ in 1..=5 {
        seen.push(screen.until("message.created").await);
    }
    let session = screen.session.clone();
    drop(screen);
    let mut other = bob.connects().await;
    for n in 6..=8 {
        ana.says(general, &n.to_string()).await;
        // What one session was told waits in the other.
        other.until("message.created").await;
    }
    let at = |n: usize| seen[n]["s"].as_i64().unwrap();
    for (from, expected) in [(at(4), 3), (at(2), 5), (1, 8)] {
        let (mut screen, resumed) = bob.resumes(json!({"session_id": session, "s": from})).await;
        assert_eq!(resumed["d"]["mode"], "buffer", "{resumed}");
        assert_eq!(resumed["d"]["replayed"], expected);
        for n in 0..expected {
            let frame = screen.next().await;
            assert_eq!(frame["s"], from + 1 + n, "dense");
            assert_eq!(frame["d"]["text"], (8 - expected + n + 1).to_string());
            if let Some(before) = seen.iter().find(|before| before["s"] == frame["s"]) {
                assert_eq!(*before, frame, "the same number is the same event");
            }
        }
        assert!(screen.everything().await.is_empty());
    }
    // What was acknowledged is gone from memory, and the log has it.
    let (mut screen, _) = bob.resumes(json!({"session_id": session, "s": 9})).await;
    screen.send(&json!({"type": "heartbeat", "s": 9})).await;
    screen.until("heartbeat_ack").await;
    drop(screen);
    let from = json!({"session_id": session, "s": 2, "cursors": {general.to_string(): 2}});
    let (mut screen, resumed) = bob.resumes(from).await;
    assert_eq!((&resumed["d"]["mode"], &resumed["d"]["replayed"]), (&json!("log"), &json!(7)));
    assert_eq!(texts(&screen.everything().await), ["2", "3", "4", "5", "6", "7", "8"]);
}

on_both! {
    a_restarted_node_replays_from_the_log(database) {
        let mut world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let random = world.channel("random", &[&ana, &bob]).await;
        let mut screen = bob.connects().await;
        let seq = ana.says(general, "seen").await;
        screen.until("message.created").await;
        ana.says(general, "missed").await;
        ana.says(random, "missed too").await;
        let session = screen.session.clone();
        world.restart().await;
        ana.says(general, "missed later").await;
        let cursors = json!({general.to_string(): seq, random.to_string(): 1, bob.id().to_string(): 2});
        let (mut screen, resumed) = bob.resumes(json!({"session_id": session, "s": 2, "cursors": cursors})).await;
        assert_eq!((&resumed["type"], &resumed["d"]["mode"]), (&json!("resumed"), &json!("log")));
        assert_ne!(resumed["d"]["session_id"], session, "a new session, to resume by the next time");
        assert_eq!(resumed["d"]["replayed"], 3);
        // Delivery is at least once: what is replayed may come live too, and a client drops it by `seq`.
        let mut told: HashMap<String, Vec<String>> = HashMap::new();
        let mut applied: HashMap<String, i64> = HashMap::new();
        ana.says(general, "live").await;
        while told.values().map(Vec::len).sum::<usize>() < 4 {
            let frame = screen.until("message.created").await;
            let channel = frame["channel_id"].as_str().unwrap().to_owned();
            let (seq, last) = (frame["seq"].as_i64().unwrap(), applied.entry(channel.clone()).or_default());
            if seq > *last {
                *last = seq;
                told.entry(channel).or_default().push(frame["d"]["text"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(told[&general.to_string()], ["missed", "missed later", "live"]);
        assert_eq!(told[&random.to_string()], ["missed too"]);
        // And the new session resumes from memory.
        let (session, s) = (resumed["d"]["session_id"].clone(), screen.s);
        drop(screen);
        let (_, resumed) = bob.resumes(json!({"session_id": session, "s": s})).await;
        assert_eq!(resumed["d"]["mode"], "buffer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_time_is_over_goes_on_from_the_log() {
    let world = World::with(|config| config.gateway.resume_window_s = 0).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let session = bob.connects().await.session;
    ana.says(general, "missed").await;
    let from = json!({"session_id": session, "s": 1, "cursors": {general.to_string(): 1}});
    eventually("the session to end with its connection", || async {
        let (mut screen, resumed) = bob.resumes(from.clone()).await;
        assert_eq!(screen.until("message.created").await["d"]["text"], "missed", "either way nothing is lost");
        resumed["d"]["mode"] == "log"
    })
    .await;
}

/// Waits until nobody is connected.
async fn all_are_away(world: &World) {
    let away = || async { world.app().hub.directory.all_sessions().iter().all(|session| !session.queue.attached()) };
    eventually("all connections to be noticed as cut", away).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_more_than_memory_holds_reads_it_from_the_log() {
    let world = World::with(|config| config.gateway.ring_events = 256).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let session = bob.connects().await.session;
    all_are_away(&world).await;
    for n in 1..=300 {
        ana.says(general, &n.to_string()).await;
    }
    let from = json!({"session_id": session, "s": 1, "cursors": {general.to_string(): 1}});
    let (mut screen, resumed) = bob.resumes(from).await;
    assert_eq!((&resumed["d"]["mode"], &resumed["d"]["replayed"]), (&json!("log"), &json!(300)), "{resumed}");
    for n in 1..=300 {
        assert_eq!(screen.until("message.created").await["d"]["text"], n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_too_long_ago_is_not_replayed() {
    let clock = Clock::manual(Clock::default().now());
    let world = World::at(Database::Sqlite, clock.clone(), |config| config.gateway.replay_days = 7).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    ana.says(general, "long ago").await;
    let from = json!({"session_id": nobody(), "s": 1, "cursors": {general.to_string(): 1}});
    clock.advance(Duration::from_hours(6 * 24));
    let (_, resumed) = bob.resumes(from.clone()).await;
    assert_eq!((&resumed["d"]["mode"], &resumed["d"]["replayed"]), (&json!("log"), &json!(1)), "{resumed}");
    clock.advance(Duration::from_hours(2 * 24));
    let (_, invalid) = bob.resumes(from).await;
    let sync_from = json!({general.to_string(): 2});
    assert_eq!((&invalid["type"], &invalid["d"]["sync_from"]), (&json!("invalid_session"), &sync_from), "{invalid}");
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_that_changed_meanwhile_is_told_to_who_comes_back() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let mut screen = bob.connects().await;
    screen.call("presence.subscribe", json!({"user_ids": [ana.id()]})).await;
    assert_eq!(screen.until("presence").await["d"]["presence"], "offline");
    let (session, s) = (screen.session.clone(), screen.s);
    drop(screen);
    all_are_away(&world).await;
    let seen = || async { world.app().hub.directory.ask_presence(vec![ana.id()]).await.unwrap()[0].1 };
    let _hers = ana.connects().await;
    eventually("her to be seen", || async { seen().await == Presence::Online }).await;
    let (mut screen, resumed) = bob.resumes(json!({"session_id": session, "s": s})).await;
    assert_eq!(resumed["d"]["mode"], "buffer");
    assert_eq!(screen.until("presence").await["d"]["presence"], "online");
    // And to who goes on by polls, once.
    drop(screen);
    eventually("him to be away", || async {
        !world.app().hub.directory.session(id(&session)).unwrap().queue.attached()
    })
    .await;
    let _: Value = ana.does(c::SetPresence { mode: PresenceMode::Dnd, until: None }).await;
    eventually("her to be seen as she wants", || async { seen().await == Presence::Dnd }).await;
    let mut last = s;
    let path = |last: i64, wait: u8| format!("/v1/events?queue_id={session}&last_event_id={last}&timeout_s={wait}");
    let told = loop {
        let polled = bob.http.get(&path(last, 10)).await.good();
        last = polled["last_event_id"].as_i64().unwrap();
        let events = polled["events"].as_array().unwrap().clone();
        if let Some(told) = events.into_iter().find(|frame| frame["type"] == "presence") {
            break told;
        }
    };
    assert_eq!(told["d"]["presence"], "dnd");
    // The change itself may still be on its way; behind that there is nothing, and a poll would wait.
    let mut quiet = false;
    for _ in 0..20 {
        let polled = bob.http.get(&path(last, 1)).await.good();
        last = polled["last_event_id"].as_i64().unwrap();
        quiet = polled["events"] == json!([]);
        if quiet {
            break;
        }
    }
    assert!(quiet, "polls are told the same again and again");
}

fn id(session: &str) -> SessionId {
    session.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_to_replay_is_said_and_identify_works_on_the_same_socket() {
    let mut world = World::with(|config| config.gateway.replay_events = 10).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    for n in 0..11 {
        ana.says(general, &n.to_string()).await;
    }
    world.restart().await;
    let (mut screen, invalid) =
        bob.resumes(json!({"session_id": nobody(), "s": 1, "cursors": {general.to_string(): 1}})).await;
    assert_eq!(
        invalid,
        json!({"type": "invalid_session", "d": {"resumable": false, "sync_from": {general.to_string(): 12}}})
    );
    let ready = screen.identifies(&bob.token).await;
    assert_eq!(ready["d"]["channels"][0]["last_seq"], 12);
    ana.says(general, "on it goes").await;
    assert_eq!(screen.until("message.created").await["seq"], 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_session_gives_nothing_away() {
    let world = World::start().await;
    let (ana, bob, eve) = (world.user("ana").await, world.user("bob").await, world.user("eve").await);
    let secret = world.private("secret", &[&ana, &bob]).await;
    let screen = bob.connects().await;
    ana.says(secret, "not for eve").await;
    let cursors = json!({secret.to_string(): 0, bob.id().to_string(): 0});
    let (mut hers, answer) = eve.resumes(json!({"session_id": screen.session, "s": 1, "cursors": cursors})).await;
    assert_eq!((&answer["d"]["mode"], &answer["d"]["replayed"]), (&json!("log"), &json!(0)), "{answer}");
    assert_ne!(answer["d"]["session_id"], screen.session);
    ana.says(secret, "nor this").await;
    assert!(hers.everything().await.is_empty());
    let mut screen = screen;
    assert_eq!(screen.until("message.created").await["d"]["text"], "not for eve", "his goes on undisturbed");
    // Nor does another sign-in of the same user take a session over.
    let other = bob.with_token(&world.token(bob.id()).await);
    let (_, answer) = other.resumes(json!({"session_id": screen.session, "s": 1})).await;
    assert_eq!(answer["d"]["mode"], "log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_takes_over_and_the_old_one_is_closed() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut old = bob.connects().await;
    let (mut new, resumed) = bob.resumes(json!({"session_id": old.session, "s": 1})).await;
    assert_eq!(resumed["d"]["mode"], "buffer");
    assert_eq!(old.closes().await, 4009);
    ana.says(general, "hi").await;
    assert_eq!(new.until("message.created").await["d"]["text"], "hi");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_replays_nothing_of_the_workspace() {
    let world = World::start().await;
    let guest = world.person("gus", Role::Guest).await;
    world.user("hidden").await;
    let cursors = json!({StreamId::WORKSPACE.to_string(): 0});
    let (mut screen, resumed) = guest.resumes(json!({"session_id": nobody(), "s": 1, "cursors": cursors})).await;
    let told = screen.everything().await;
    assert!(!format!("{resumed}{told:?}").contains("hidden"), "a guest does not learn who else is there: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_was_lost_since_the_handshake_counts_in_a_resume() {
    let world = World::start().await;
    let (boss, bob) = (world.person("boss", Role::Admin).await, world.user("bob").await);
    let bearer = format!("Bearer {}", bob.token);
    let mut screen = Socket::open(&world.url, &[("authorization", &bearer)]).await;
    assert_eq!(screen.next().await["type"], "hello");
    let _: Value = boss.does(c::SetUserRole { user_id: bob.id(), role: Role::Guest }).await;
    world.user("hidden").await;
    let cursors = json!({StreamId::WORKSPACE.to_string(): 0});
    screen.asks("resume", json!({"session_id": nobody(), "s": 1, "cursors": cursors})).await;
    let (resumed, told) = (screen.next().await, screen.everything().await);
    assert_eq!(resumed["d"]["mode"], "log");
    assert!(!format!("{resumed}{told:?}").contains("hidden"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_goes_on_after_a_resume_from_the_log() {
    let mut world = World::with(|config| config.gateway.heartbeat_interval_ms = 1_000).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut gateway = bob.gateway().await;
    for n in 0..5 {
        ana.says(general, &n.to_string()).await;
        applies_next(&mut gateway).await;
    }
    let before = gateway.position().session_id;
    world.restart().await;
    within("the resume", gateway.resume()).await.unwrap();
    assert!(matches!(gateway.start, Start::Resumed(0)), "{:?}", gateway.start);
    assert_ne!(gateway.position().session_id, before, "the session that it goes on with");
    // Its heartbeats tell numbers of the new session, which forgets what they acknowledge.
    ana.says(general, "on it goes").await;
    applies_next(&mut gateway).await;
    let session = world.app().hub.directory.session(gateway.position().session_id).unwrap();
    eventually("its heartbeat", || async { session.queue.kept() == 0 }).await;
    ana.says(general, "and on").await;
    applies_next(&mut gateway).await;
}

/// Waits for an event that is next; `ready` may have counted some that come behind it.
async fn applies_next(gateway: &mut Gateway) {
    loop {
        let event = within("an event", gateway.next_event()).await.unwrap();
        match gateway.cursors.offer(&event) {
            Step::Apply => return,
            Step::Drop => {}
            gap @ Step::Gap { .. } => panic!("{gap:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_absence_is_replayed_as_it_is_read_and_never_told_as_a_lag() {
    let mut world = World::with(|config| {
        config.gateway.queue_events = 16;
        // Four times this is kept for the resume: all that the sockets' own buffers may hold.
        config.gateway.queue_bytes = 4 << 20;
        config.gateway.heartbeat_interval_ms = 600_000;
        config.gateway.write_stall_ms = 0;
    })
    .await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let text = "x".repeat(30_000);
    // More than the sockets' own buffers take.
    for _ in 0..300 {
        ana.says(general, &text).await;
    }
    world.restart().await;
    let from = json!({"session_id": nobody(), "s": 1, "cursors": {general.to_string(): 1}});
    let (mut screen, resumed) = bob.resumes(from).await;
    assert_eq!((&resumed["d"]["mode"], &resumed["d"]["replayed"]), (&json!("log"), &json!(300)));
    ana.says(general, "live").await;
    for seq in 2..=100 {
        assert_eq!(screen.next().await["seq"], seq);
    }
    // Cut in the middle, it goes on where it was.
    let (session, s) = (resumed["d"]["session_id"].clone(), screen.s);
    drop(screen);
    let (mut screen, resumed) = bob.resumes(json!({"session_id": session, "s": s})).await;
    assert_eq!(resumed["d"]["mode"], "buffer", "{resumed}");
    let mut last = 100;
    while last < 302 {
        let frame = screen.next().await;
        let seq = frame["seq"].as_i64().unwrap_or_else(|| panic!("no lag: {frame}"));
        assert!(seq <= last + 1, "{seq} behind {last}");
        last = last.max(seq);
    }
    assert!(screen.everything().await.iter().all(|frame| frame["type"] != "lagged"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_misses_nothing_of_its_own_stream_the_workspace_and_channels_it_came_into() {
    let mut world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut gateway = bob.gateway().await;
    let client = Client::new(&world.url).unwrap().with_token(&bob.token);
    ana.says(general, "seen").await;
    let mut told = Vec::new();
    until_told(&mut gateway, &client, &mut told, "message.created").await;
    world.restart().await;
    let (later, left) = (world.channel("later", &[&ana, &bob]).await, world.private("left", &[&ana, &bob]).await);
    ana.says(later, "missed in it").await;
    ana.removes(left, &bob).await;
    world.user("new").await;
    let _: Value = bob.does(c::SetDraft { channel_id: general, thread_seq: None, text: "half a".into() }).await;
    // As if this session had never been here: what it missed comes from the log.
    world.restart().await;
    within("the resume", gateway.resume()).await.unwrap();
    told.clear();
    let wanted = ["user.created", "user.draft", "user.channel_added", "user.channel_removed", "message.created"];
    for kind in wanted {
        until_told(&mut gateway, &client, &mut told, kind).await;
    }
    let of = |channel: ChannelId| told.iter().filter(move |(stream, ..)| *stream == channel.into());
    let seqs: Vec<i64> = of(later).map(|(_, seq, _)| *seq).collect();
    assert_eq!(seqs, [1, 2], "all of the new channel, in order: {told:?}");
    assert_eq!(of(left).count(), 0, "{told:?}");
    let unique: std::collections::HashSet<_> = told.iter().map(|(stream, seq, _)| (*stream, *seq)).collect();
    assert_eq!(unique.len(), told.len(), "nothing twice");
}

/// Applies what comes, gaps and all, until an event of this kind was applied.
async fn until_told(gateway: &mut Gateway, client: &Client, told: &mut Vec<(StreamId, i64, String)>, kind: &str) {
    within(kind, async {
        while told.iter().all(|(_, _, told)| told != kind) {
            let event = gateway.next_event().await.unwrap();
            let events = match gateway.cursors.offer(&event) {
                Step::Apply => vec![event],
                Step::Drop => continue,
                Step::Gap { stream, after } => {
                    let missed = client.missed(stream, after).await.unwrap();
                    missed.into_iter().filter(|event| gateway.cursors.offer(event) == Step::Apply).collect()
                }
            };
            told.extend(events.into_iter().filter_map(|e| Some((e.stream()?, e.seq?, e.kind))));
        }
    })
    .await;
}

const SENDERS: usize = 20;
const EACH: usize = 25;

on_both! {
    nothing_is_missed_or_applied_twice_while_the_reader_comes_and_goes(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let mut senders = Vec::new();
        for n in 0..SENDERS {
            senders.push(world.user(&format!("sender{n}")).await);
        }
        let reader = world.user("reader").await;
        let people: Vec<&Person> = [&ana, &reader].into_iter().chain(&senders).collect();
        let general = world.channel("general", &people).await;
        let mut gateway = reader.gateway().await;
        let sent = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = senders.into_iter().map(|person| tokio::spawn(post(person, general, sent.clone()))).collect();

        let total = (SENDERS * EACH) as i64;
        let (mut applied, mut reconnects) = (Vec::new(), 0);
        let reading = async {
            while applied.len() < SENDERS * EACH {
                let event = match gateway.next_event().await {
                    Ok(event) => event,
                    Err(error) => panic!("{error}"),
                };
                match gateway.cursors.offer(&event) {
                    Step::Apply => applied.extend(event.message().map(|m| (m.seq, m.text))),
                    Step::Drop => {}
                    Step::Gap { stream, after } => panic!("a gap behind {after} of {stream}"),
                }
                if applied.len() / 31 > reconnects {
                    reconnects += 1;
                    gateway = come_back(&reader, &world, gateway, reconnects).await;
                }
            }
        };
        tokio::time::timeout(LIMIT * 3, reading).await.expect("all of it arrives");
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(sent.load(Ordering::Relaxed), SENDERS * EACH);
        assert_eq!(applied.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (2..=total + 1).collect::<Vec<_>>());
        let mut texts: Vec<&String> = applied.iter().map(|(_, text)| text).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), SENDERS * EACH, "each message once");
        assert!(reconnects >= 10);
    }
}

async fn post(person: Person, channel: ChannelId, sent: Arc<AtomicUsize>) {
    let gateway = person.gateway().await;
    for n in 0..EACH {
        let text = format!("{} {n}", person.user.name);
        gateway.call(c::SendMessage { ..message(channel, &text) }).await.unwrap();
        sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reconnects: over the living connection, after cutting it, or as if the session were gone.
async fn come_back(reader: &Person, world: &World, mut gateway: Gateway, turn: usize) -> Gateway {
    match turn % 3 {
        0 => {
            gateway.resume().await.unwrap();
            gateway
        }
        1 => {
            let position = gateway.position();
            drop(gateway);
            Gateway::resume_from(&world.url, &reader.token, Options::default(), position).await.unwrap()
        }
        _ => {
            let mut position = gateway.position();
            position.session_id = SessionId(nobody().0);
            drop(gateway);
            let gateway = Gateway::resume_from(&world.url, &reader.token, Options::default(), position).await.unwrap();
            assert!(matches!(gateway.start, Start::Resumed(_)));
            gateway
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_late_is_taken_for_no_other() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let mut gateway = ana.gateway().await;
    for n in 0..50 {
        // Asked on the old connection, perhaps answered on the new one.
        for _ in 0..5 {
            gateway.send_nowait(message(general, "hi")).await.unwrap();
        }
        gateway.resume().await.unwrap();
        let read = gateway.call(c::MarkRead { channel_id: general, seq: 1 }).await;
        assert_eq!(read.unwrap_or_else(|error| panic!("{n}: {error}")).channel.id, general);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn coming_back_to_another_node_costs_two_reads_at_most() {
    let data = tempfile::tempdir().unwrap();
    let first = Serving::start(data.path(), &[]);
    run_json(data.path(), &["user", "add", "ana", "--admin"]);
    let token = run_json(data.path(), &["token", "add", "--user", "ana"])["token"].as_str().unwrap().to_owned();
    let ana = Client::new(&first.url).unwrap().with_token(&token);
    let mut channels = Vec::new();
    for n in 0..12 {
        let (name, members) = (format!("room-{n}"), Vec::new());
        let create = c::CreateChannel { name, private: true, topic: String::new(), purpose: String::new(), members };
        channels.push(ana.create_channel(&create).await.unwrap().id);
    }
    let tokens: Vec<String> = (0..10)
        .map(|_| run_json(data.path(), &["token", "add", "--user", "ana"])["token"].as_str().unwrap().to_owned())
        .collect();
    let gateway = Gateway::connect(&first.url, &token, Options::default()).await.unwrap();
    let position = gateway.position();
    for channel in &channels {
        for n in 0..4 {
            ana.send(*channel, &n.to_string(), None).await.unwrap();
        }
    }
    drop(first);

    let second = Serving::start(data.path(), &[]);
    let reads = async || {
        let metrics = Http::new(&second.url, None).get("/metrics").await.text();
        let read = |what: &str| {
            let name = format!("colink_database_reads_total{{for=\"{what}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse::<usize>().unwrap()
        };
        read("sign_ins") + read("sessions")
    };
    let before = reads().await;
    for token in &tokens {
        let mut gateway = Gateway::resume_from(&second.url, token, Options::default(), position.clone()).await.unwrap();
        assert!(matches!(&gateway.start, Start::Resumed(48)), "{:?}", gateway.start);
        for _ in 0..48 {
            let event = within("what was missed", gateway.next_event()).await.unwrap();
            assert_eq!(gateway.cursors.offer(&event), Step::Apply);
        }
    }
    assert_eq!(reads().await - before, 2 * tokens.len());
}
