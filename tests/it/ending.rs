//! How sessions end: with their sign-in, with their node, and with the patience of whoever is flooded.

use std::time::{Duration, Instant};

use colink::app::BEYOND_DRAIN;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::socket::{CLOSE, Incoming, PING, Socket, TEXT, frame};
use crate::world::{Database, Person, World, eventually, postgres_is_there, time_passes, within};

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
async fn a_client_that_is_gone_before_ready_leaves_nothing_in_use() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    for _ in 0..20 {
        let mut hasty = Socket::open(&world.url, &[]).await;
        hasty.asks("identify", json!({"token": ana.token})).await;
        // With `hello` unread, so that the system cuts the connection instead of ending it.
        drop(hasty);
    }
    let hub = &world.app().hub;
    eventually("all connections to be gone", || async { hub.connections.is_empty() }).await;
    assert!(hub.directory.all_sessions().iter().all(|session| !session.queue.attached()));
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
async fn a_goodbye_ends_the_session() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    for payload in [&1000u16.to_be_bytes()[..], &[]] {
        let mut screen = ana.connects().await;
        screen.send_frame(true, CLOSE, payload).await;
        assert_eq!(screen.closes().await, 1000);
        eventually("the session to end", || async { world.app().hub.directory.sessions_alive() == 0 }).await;
        let (mut again, resumed) = ana.resumes(json!({"session_id": screen.session, "s": 1})).await;
        assert_eq!(resumed["d"]["mode"], "log", "{payload:?}");
        again.send_frame(true, CLOSE, payload).await;
        assert_eq!(again.closes().await, 1000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_said_while_the_server_wrote_is_heard_before_it_is_judged() {
    let world = World::with(|config| {
        config.gateway.heartbeat_interval_ms = 1_000;
        config.gateway.message_timeout_ms = 4_000;
        config.gateway.write_stall_ms = 0;
        config.gateway.queue_events = 100_000;
        config.gateway.queue_bytes = 64 << 20;
    })
    .await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let asks = json!({"id": 7, "type": "user.set_status", "d": {}}).to_string();
    let asks = frame(true, TEXT, asks.as_bytes());
    let (head, tail) = asks.split_at(20);
    let mut screens = Vec::new();
    for _ in 0..8 {
        let mut screen = Socket::open_narrow(&world.url).await;
        assert_eq!(screen.next().await["type"], "hello");
        screen.identifies(&bob.token).await;
        screen.send_bytes(&[&frame(true, PING, b"")[..], head].concat()).await;
        while !matches!(screen.read().await, Incoming::Pong(_)) {}
        screens.push(screen);
    }
    // Each of these bytes becomes two: together more than the system's own buffers take.
    let text = "\"".repeat(40_000);
    let mut last = 0;
    for _ in 0..72 {
        last = ana.says(general, &text).await;
    }
    for screen in &mut screens {
        screen.send_bytes(tail).await;
    }
    // Nothing can be waited for in place of the time that a client may be silent, or take for a message.
    for _ in 0..18 {
        time_passes(250).await;
        for screen in &mut screens {
            screen.send(&json!({"type": "heartbeat"})).await;
        }
    }
    let heard = screens.into_iter().map(|mut screen| {
        tokio::spawn(async move {
            while screen.until("message.created").await["seq"] != last {}
            assert_eq!(screen.reply(7).await["ok"], true);
        })
    });
    for heard in heard.collect::<Vec<_>>() {
        heard.await.unwrap();
    }
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
async fn a_node_stops_in_time_whatever_hangs() {
    if !postgres_is_there() {
        return;
    }
    let mut world = World::on(Database::Postgres, |config| {
        config.server.request_timeout_ms = 0;
        config.database.timeout_ms = 600_000;
        config.database.statement_timeout_ms = 0;
        config.database.lock_timeout_ms = 600_000;
    })
    .await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let stays = ana.connects().await;
    let database = world.app().hub.config.database.url.expose().to_owned();
    let mut other = PgConnection::connect(&database).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    let path = format!("/v1/channels/{general}/messages");
    let (reads, writes, to) = (ana.clone(), ana.clone(), path.clone());
    let hanging = [
        tokio::spawn(async move { reads.http.get(&path).await }),
        tokio::spawn(async move { writes.http.post(&to, &json!({"text": "hi"})).await }),
    ];
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut other).await.unwrap() < 2 {}
    let since = Instant::now();
    world.stop().await;
    let took = since.elapsed();
    assert!(took < BEYOND_DRAIN + Duration::from_millis(500), "{took:?}");
    drop((stays, hanging));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_clients_stops_at_once() {
    let mut world = World::with(|config| config.server.drain_s = 600).await;
    drop(world.user("ana").await.connects().await);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_tokens_are_counted_by_address_and_attempts_by_connection() {
    let world = World::with(|config| config.gateway.identifies_per_minute = 2).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    ana.connects().await;
    for n in 0..20 {
        let mut stranger = ana.opens().await;
        stranger.asks("identify", json!({"token": format!("clk_{n}")})).await;
        assert_eq!(stranger.closes().await, 4004, "{n}");
    }
    let mut stranger = ana.opens().await;
    for _ in 0..2 {
        let refused = stranger.call("identify", json!({"token": "clk_x"})).await;
        assert_eq!(refused["error"], "rate_limited", "{refused}");
        assert!(refused["retry_after"].as_f64().unwrap() > 0.0);
    }
    stranger.asks("identify", json!({"token": "clk_x"})).await;
    assert_eq!(stranger.closes().await, 4008, "one connection has no more attempts than a minute has");
    let header = format!("Bearer {}", bob.token);
    let refused = Socket::try_open(&world.url, &[("authorization", &header)]).await;
    assert!(refused.is_err_and(|answer| answer.contains(" 429 ")), "not looked up now");
    ana.connects().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_waits_when_the_connection_ends_comes_on_the_next() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    for n in 0..20 {
        let mut first = ana.connects().await;
        let id = first.asks("message.send", json!({"channel_id": general, "text": format!("{n}")})).await;
        let (session, resume) =
            (first.session.clone(), json!({"token": ana.token, "session_id": first.session, "s": 1}));
        let mut second = ana.opens().await;
        second.send(&json!({"id": 1, "type": "resume", "d": resume})).await;
        let resumed = second.until("resumed").await;
        assert_eq!((&resumed["d"]["mode"], &resumed["d"]["session_id"]), (&json!("buffer"), &json!(session)));
        let mut answers = 0;
        while let Incoming::Text(text) = first.read().await {
            answers += usize::from(text.contains(&format!("\"reply_to\":{id},")));
        }
        // Behind the answer, if the request was read before the connection was taken over.
        let read = json!({"id": 5_000, "type": "channel.mark_read", "d": {"channel_id": general, "seq": 1}});
        second.send(&read).await;
        second.reply(5_000).await;
        answers += second.everything().await.iter().filter(|frame| frame["reply_to"] == id).count();
        let page = ana.http.get(&format!("/v1/channels/{general}/messages?limit=1")).await.items();
        let text = n.to_string();
        let stored = page.iter().filter(|message| message["text"] == text.as_str()).count();
        assert_eq!(answers, stored, "one answer, on the one or on the other");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_are_in_work_than_allowed_however_many_come_at_once() {
    let world = World::with(|config| config.gateway.inflight = 2).await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let mut bytes = Vec::new();
    let identify = json!({"id": 1, "type": "identify", "d": {"token": ana.token}});
    bytes.extend(frame(true, TEXT, identify.to_string().as_bytes()));
    for id in 100..300 {
        let send = json!({"id": id, "type": "message.send", "d": {"channel_id": general, "text": "hi"}});
        bytes.extend(frame(true, TEXT, send.to_string().as_bytes()));
    }
    let mut flood = ana.opens().await;
    let hub = world.app().hub.clone();
    let (done, finished) = tokio::sync::oneshot::channel::<()>();
    let watching = std::thread::spawn(move || {
        let (mut most, mut finished) = (0, finished);
        while finished.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            let sessions = hub.directory.all_sessions();
            most = most.max(sessions.iter().map(|session| session.queue.in_flight()).max().unwrap_or(0));
        }
        most
    });
    flood.send_bytes(&bytes).await;
    for id in 100..300 {
        assert_eq!(flood.reply(id).await["ok"], true);
    }
    done.send(()).unwrap();
    let most = watching.join().unwrap();
    assert!((1..=2).contains(&most), "{most}");
}
