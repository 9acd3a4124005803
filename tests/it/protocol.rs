//! The wire: every frame that the server sends, as it is, and every code that it closes with.
//!
//! The frames stand in `snapshots/`; identifiers are numbered by first appearance, times and addresses are left out.

use std::collections::HashMap;

use colink::domain::channel::ChannelRole;
use colink::domain::command as c;
use colink::domain::event::EventKind;
use colink::domain::id::StreamId;
use colink::domain::user::Role;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::socket::{Incoming, PING, Socket, TEXT, frame};
use crate::world::{Person, World, eventually, message, nobody, time_passes, within};

/// Renders frames for a snapshot, one a line.
#[derive(Default)]
pub(crate) struct Shown {
    ids: HashMap<String, usize>,
    lines: Vec<String>,
}

impl Shown {
    pub(crate) fn add(&mut self, frame: &Value) {
        let frame = self.redacted("", frame);
        self.lines.push(frame.to_string());
    }

    pub(crate) fn text(self) -> String {
        self.lines.join("\n")
    }

    fn redacted(&mut self, key: &str, value: &Value) -> Value {
        match value {
            _ if ["ts", "node", "resume_url", "server_version", "retry_after", "after_ms", "s", "code"]
                .contains(&key) =>
            {
                format!("[{key}]").into()
            }
            Value::String(text) if uuid::Uuid::parse_str(text).is_ok() => self.number(text).into(),
            Value::String(text) if text.len() > 18 && text.ends_with('Z') && text.contains("T") => "[time]".into(),
            Value::Array(items) => items.iter().map(|item| self.redacted("", item)).collect(),
            Value::Object(fields) => {
                let mut shown = Map::new();
                for (key, value) in fields {
                    let name = if uuid::Uuid::parse_str(key).is_ok() { self.number(key) } else { key.clone() };
                    shown.insert(name, self.redacted(key, value));
                }
                shown.into()
            }
            other => other.clone(),
        }
    }

    fn number(&mut self, id: &str) -> String {
        if id == StreamId::WORKSPACE.to_string() {
            return "[workspace]".to_owned();
        }
        let next = self.ids.len() + 1;
        format!("[id {}]", self.ids.entry(id.to_owned()).or_insert(next))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_with_hello_and_ready_and_every_request_is_answered() {
    let world = World::with(|config| {
        config.limits.messages_per_minute = 1;
        config.limits.messages_burst = 2;
    })
    .await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let mut shown = Shown::default();
    let mut socket = Socket::open(&world.url, &[]).await;
    shown.add(&socket.next().await);
    socket.send(&json!({"type": "heartbeat"})).await;
    shown.add(&socket.next().await);
    shown.add(&socket.identifies(&ana.token).await);
    socket.send(&json!({"type": "heartbeat", "s": 1})).await;
    shown.add(&socket.until("heartbeat_ack").await);
    let send = |text: &str| json!({"channel_id": general, "text": text, "client_msg_id": text});
    shown.add(&socket.call("message.send", send("hi")).await);
    shown.add(&socket.call("message.send", send("hi")).await);
    shown.add(&socket.call("message.send", send("too-soon")).await);
    shown.add(&socket.call("channel.mark_read", json!({"channel_id": general, "seq": 1})).await);
    shown.add(&socket.call("channel.archive", json!({"channel_id": nobody()})).await);
    shown.add(&socket.call("pin.add", json!({"channel_id": general})).await);
    shown.add(&socket.call("time.travel", json!({})).await);
    shown.add(&socket.call("identify", json!({"token": ana.token})).await);
    socket.send(&json!({"type": "time.travel"})).await;
    shown.add(&socket.until_refusal().await);
    insta::assert_snapshot!(shown.text());
}

impl Socket {
    /// Returns the next refusal of a request without a number.
    async fn until_refusal(&mut self) -> Value {
        loop {
            let frame = self.next().await;
            if frame.get("reply_to").is_some_and(Value::is_null) {
                return frame;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_event_is_told() {
    let world = World::start().await;
    let ana = world.person("ana", Role::Admin).await;
    let bob = world.user("bob").await;
    let mut socket = ana.connects().await;
    everything_happens(&ana, &bob).await;

    let mut found: HashMap<String, Value> = HashMap::new();
    while let Some(missing) = EventKind::ALL.iter().find(|kind| !found.contains_key(kind.as_str())) {
        let frame = within(missing.as_str(), socket.next()).await;
        let kind = EventKind::parse(frame["type"].as_str().unwrap()).unwrap_or_else(|| panic!("unknown: {frame}"));
        for field in frame["d"].as_object().unwrap().keys() {
            assert!(kind.fields().contains(&field.as_str()), "{} has {field}", kind.as_str());
        }
        found.entry(kind.as_str().to_owned()).or_insert(frame);
    }
    let mut shown = Shown::default();
    EventKind::ALL.iter().for_each(|kind| shown.add(&found[kind.as_str()]));
    insta::assert_snapshot!(shown.text());
}

/// Does, as an administrator, whatever there is an event for.
async fn everything_happens(ana: &Person, bob: &Person) {
    let cleo = c::CreateUser { name: "cleo".into(), display_name: None, role: Role::Member, bot: true };
    let cleo: Value = ana.does(cleo).await;
    let cleo = serde_json::from_value(cleo["id"].clone()).unwrap();
    let status = c::SetStatus { emoji: "palm_tree".into(), text: "away".into(), until: None };
    let _: Value = ana.does(status).await;

    let create = c::CreateChannel {
        name: "general".into(),
        private: false,
        topic: "all of it".into(),
        purpose: String::new(),
        members: vec![bob.id(), cleo],
    };
    let made: Value = ana.does(create).await;
    let id = serde_json::from_value(made["id"].clone()).unwrap();
    let first = c::SendMessage { client_msg_id: Some("key-1".into()), ..message(id, "hello @bob and @channel") };
    let first: Value = ana.does(first).await;
    let seq = first["seq"].as_i64().unwrap();
    let reply = bob.replies(id, seq, "in the thread").await;
    let edit = c::EditMessage { channel_id: id, seq, text: "hello @bob".into() };
    let steps: Vec<c::Command> = vec![
        edit.into(),
        c::AddReaction { channel_id: id, seq, emoji: "+1".into() }.into(),
        c::RemoveReaction { channel_id: id, seq, emoji: "+1".into() }.into(),
        c::AddPin { channel_id: id, seq }.into(),
        c::RemovePin { channel_id: id, seq }.into(),
        c::AddSaved { channel_id: id, seq }.into(),
        c::SetDraft { channel_id: id, thread_seq: None, text: "half a thou".into() }.into(),
        c::MarkThreadRead { channel_id: id, thread_seq: seq, seq: reply }.into(),
        c::UnfollowThread { channel_id: id, thread_seq: seq }.into(),
        c::MarkUnread { channel_id: id, seq }.into(),
        c::SetChannelPreferences { channel_id: id, muted: Some(true), notify: None }.into(),
        c::UpdateChannel { channel_id: id, name: None, topic: Some("news".into()), purpose: None, posting: None }
            .into(),
        c::SetChannelRole { channel_id: id, user_id: bob.id(), role: ChannelRole::Owner }.into(),
        c::RemoveMember { channel_id: id, user_id: cleo }.into(),
        c::InviteMember { channel_id: id, user_id: cleo }.into(),
        c::DeleteMessage { channel_id: id, seq }.into(),
        c::ArchiveChannel { channel_id: id }.into(),
        c::UnarchiveChannel { channel_id: id }.into(),
        c::LeaveChannel { channel_id: id }.into(),
    ];
    for step in steps {
        let _: Value = ana.does(step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_and_presence_are_told_to_those_who_may_know() {
    let world = World::start().await;
    let (ana, bob, eve) = (world.user("ana").await, world.user("bob").await, world.user("eve").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    ana.says(general, "hi").await;
    let (mut screen, mut stranger) = (bob.connects().await, eve.connects().await);
    let mut shown = Shown::default();
    shown.add(&screen.call("presence.subscribe", json!({"user_ids": [ana.id()]})).await);
    shown.add(&screen.until("presence").await);
    let mut typist = ana.connects().await;
    shown.add(&screen.until("presence").await);
    shown.add(&typist.call("typing.start", json!({"channel_id": general})).await);
    shown.add(&screen.until("typing").await);
    typist.call("typing.start", json!({"channel_id": general, "thread_seq": 2})).await;
    shown.add(&screen.until("typing").await);
    stranger.call("typing.start", json!({"channel_id": general})).await;
    ana.says(general, "the last word").await;
    let rest = [screen.until("message.created").await];
    assert!(rest.iter().chain(&screen.everything().await).all(|frame| frame["type"] != "typing"));
    assert!(stranger.everything().await.is_empty(), "who is not in it hears nothing");
    insta::assert_snapshot!(shown.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_for_less_is_told_less() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let mut screen = bob.opens().await;
    screen.send(&json!({"type": "identify", "d": {"token": bob.token, "intents": ["typing"]}})).await;
    screen.until("ready").await;
    let mut typist = ana.connects().await;
    ana.says(general, "hi").await;
    typist.call("typing.start", json!({"channel_id": general})).await;
    let told = screen.next().await;
    assert_eq!(told["type"], "typing", "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reactions_come_to_who_asked_for_them_live_and_replayed() {
    let mut world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let (seq, emoji) = (ana.says(general, "hi").await, "+1".to_owned());
    let identify = |intents: Value| json!({"id": 1, "type": "identify", "d": {"token": bob.token, "intents": intents}});
    let (mut messages, mut reactions) = (bob.opens().await, bob.opens().await);
    messages.send(&identify(json!(["messages"]))).await;
    reactions.send(&identify(json!(["reactions"]))).await;
    for screen in [&mut messages, &mut reactions] {
        assert_eq!(screen.until("ready").await["s"], 1);
        screen.everything().await;
    }
    let _: Value = bob.does(c::AddReaction { channel_id: general, seq, emoji: emoji.clone() }).await;
    let last = ana.says(general, "bye").await;
    let (s, told) = (messages.s, messages.until("message.created").await);
    assert_eq!((&told["s"], &told["seq"]), (&json!(s + 1), &json!(last)), "`s` is dense, `seq` jumps");
    let (s, told) = (reactions.s, reactions.next().await);
    assert_eq!((&told["type"], &told["s"], &told["seq"]), (&json!("reaction.added"), &json!(s + 1), &json!(seq + 1)));
    world.restart().await;
    for (intents, kinds) in [
        (json!(["messages"]), vec!["message.created", "message.created"]),
        (json!(["reactions"]), vec!["reaction.added"]),
        (json!(["typing"]), vec![]),
    ] {
        let from = json!({"session_id": nobody(), "s": 1, "cursors": {general.to_string(): 1}, "intents": intents});
        let (mut screen, resumed) = bob.resumes(from).await;
        assert_eq!(resumed["d"]["mode"], "log");
        let told: Vec<Value> = screen.everything().await.iter().map(|frame| frame["type"].clone()).collect();
        assert_eq!(told, kinds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_intent_is_refused_on_either_door_and_a_session_keeps_those_it_has() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let intents = json!({"intents": ["messages", "gossip"]});
    assert_eq!(bob.http.post("/v1/events/register", &intents).await.code(), "invalid_request");
    let mut screen = bob.opens().await;
    let refused = screen.call("identify", json!({"token": bob.token, "intents": intents["intents"]})).await;
    assert_eq!(refused["error"], "invalid_request");
    screen.identifies(&bob.token).await;
    let from = json!({"session_id": screen.session, "s": 1, "intents": ["typing"]});
    let (mut screen, resumed) = bob.resumes(from).await;
    assert_eq!(resumed["d"]["mode"], "buffer");
    ana.says(general, "hi").await;
    screen.until("message.created").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_says_how_it_went() {
    let mut world = World::with(|config| config.gateway.replay_events = 3).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let general = world.channel("general", &[&ana, &bob]).await;
    let session = bob.connects().await.session;
    let mut other = bob.connects().await;
    ana.says(general, "missed").await;
    // What one session was told waits in the other.
    other.until("message.created").await;
    drop(other);
    let mut shown = Shown::default();
    let (mut screen, resumed) = bob.resumes(json!({"session_id": session, "s": 1})).await;
    shown.add(&resumed);
    shown.add(&screen.until("message.created").await);
    drop(screen);
    world.restart().await;
    let (mut screen, resumed) =
        bob.resumes(json!({"session_id": session, "s": 2, "cursors": {general.to_string(): 1}})).await;
    shown.add(&resumed);
    shown.add(&screen.until("message.created").await);
    drop(screen);
    for n in 0..4 {
        ana.says(general, &format!("missed {n}")).await;
    }
    world.restart().await;
    let (_, invalid) = bob.resumes(json!({"session_id": session, "s": 2, "cursors": {general.to_string(): 1}})).await;
    shown.add(&invalid);
    insta::assert_snapshot!(shown.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_asks_its_clients_to_move_and_says_restart() {
    let mut world = World::start().await;
    let mut screen = world.user("ana").await.connects().await;
    world.stop().await;
    let reconnect = screen.until("reconnect").await;
    assert!((0..3_000).contains(&reconnect["d"]["after_ms"].as_i64().unwrap()));
    let mut shown = Shown::default();
    shown.add(&reconnect);
    insta::assert_snapshot!(shown.text(), @r#"{"d":{"after_ms":"[after_ms]","resume_url":"[resume_url]"},"type":"reconnect"}"#);
    assert_eq!(screen.closes_with_reason().await, (1012, "restart".to_owned()));
}

// ---- close codes ---------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_4002_before_and_after_identify() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    for text in ["", "nonsense", "[]", "null", r#"{"id":1}"#, r#"{"type":7}"#, r#"{"id":-1,"type":"heartbeat"}"#] {
        let (mut fresh, mut open) = (ana.opens().await, ana.connects().await);
        for socket in [&mut fresh, &mut open] {
            socket.send_frame(true, TEXT, text.as_bytes()).await;
            assert_eq!(socket.closes().await, 4002, "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_before_identify_and_no_identify_in_time_are_4003() {
    let world = World::with(|config| config.gateway.identify_timeout_ms = 200).await;
    let ana = world.user("ana").await;
    let mut silent = ana.opens().await;
    let mut chatty = ana.opens().await;
    chatty.send(&json!({"type": "heartbeat"})).await;
    let mut hasty = ana.opens().await;
    hasty.asks("channel.create", json!({"name": "mine"})).await;
    let mut nameless = ana.opens().await;
    nameless.asks("identify", json!({})).await;
    for socket in [&mut silent, &mut chatty, &mut hasty, &mut nameless] {
        assert_eq!(socket.closes().await, 4003);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_token_is_4004() {
    let world = World::start().await;
    for token in ["", "clk_0", &"x".repeat(5_000)] {
        for (kind, d) in
            [("identify", json!({"token": token})), ("resume", json!({"token": token, "session_id": nobody(), "s": 1}))]
        {
            let mut socket = Socket::open(&world.url, &[]).await;
            socket.asks(kind, d).await;
            assert_eq!(socket.closes().await, 4004);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_nobody_gave_are_4007() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let general = world.channel("general", &[&ana]).await;
    let mut socket = ana.connects().await;
    socket.send(&json!({"type": "heartbeat", "s": 1_000})).await;
    assert_eq!(socket.closes().await, 4007);
    for stream in [general.into(), StreamId::from(ana.id()), StreamId::WORKSPACE] {
        for seq in [-1, 1_000, i64::MAX, i64::MIN] {
            let mut socket = ana.opens().await;
            let cursors = json!({stream.to_string(): seq});
            let resume = json!({"token": ana.token, "session_id": nobody(), "s": 1, "cursors": cursors});
            socket.asks("resume", resume).await;
            assert_eq!(socket.closes().await, 4007, "{stream}: {seq}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_in_place_of_something_else_is_a_bad_field_where_it_means_something() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let (mut fresh, mut open) = (ana.opens().await, ana.connects().await);
    for socket in [&mut fresh, &mut open] {
        for s in [json!("x"), json!(1.5), json!({}), json!(1e30)] {
            socket.send(&json!({"id": 5, "type": "time.travel", "s": s})).await;
            let code = socket.reply(5).await["error"].clone();
            assert_eq!(code, "unknown_type", "an unknown field, so ignored: {s}");
            socket.send(&json!({"id": 6, "type": "heartbeat", "s": s})).await;
            assert_eq!(socket.reply(6).await["error"], "invalid_request", "{s}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_that_come_together_are_answered_together() {
    let world = World::start().await;
    let mut screen = world.user("ana").await.connects().await;
    let beat = frame(true, TEXT, br#"{"type":"heartbeat","s":1}"#);
    let ask = frame(true, TEXT, br#"{"id":7,"type":"time.travel"}"#);
    screen.send_bytes(&[&beat[..], &beat, &beat, &ask].concat()).await;
    let mut acks = 0;
    // Whatever answers the first four is out before the answer to a later request.
    for (awaited, next) in [(7, 8), (8, 9)] {
        loop {
            let frame = screen.next().await;
            acks += usize::from(frame["type"] == "heartbeat_ack");
            if frame["reply_to"] == awaited {
                break;
            }
        }
        screen.send(&json!({"id": next, "type": "time.travel"})).await;
    }
    assert_eq!(acks, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_heartbeat_is_4009() {
    let world = World::with(|config| config.gateway.heartbeat_interval_ms = 1_000).await;
    let ana = world.user("ana").await;
    let (mut quiet, mut lively) = (ana.connects().await, ana.connects().await);
    let closed = async { quiet.closes().await };
    tokio::pin!(closed);
    // Pings show that a client lives, too.
    let code = within("the quiet one to be closed", async {
        loop {
            tokio::select! {
                code = &mut closed => break code,
                () = time_passes(200) => lively.send_frame(true, PING, b"").await,
            }
        }
    })
    .await;
    assert_eq!(code, 4009);
    assert_eq!(lively.call("user.set_status", json!({})).await["ok"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_too_many_is_4013_unless_an_idle_one_makes_way() {
    let world = World::with(|config| config.gateway.sessions_per_user = 2).await;
    let ana = world.user("ana").await;
    let (first, _second) = (ana.connects().await, ana.connects().await);
    let mut third = ana.opens().await;
    third.asks("identify", json!({"token": ana.token})).await;
    assert_eq!(third.closes().await, 4013);
    drop(first);
    eventually("the idle session to make way", || async {
        let mut fourth = ana.opens().await;
        fourth.send(&json!({"type": "identify", "d": {"token": ana.token}})).await;
        matches!(fourth.read().await, Incoming::Text(text) if text.contains("ready"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_needs_the_protocol_and_a_good_token() {
    let world = World::with(|config| config.server.allowed_origins = vec!["https://chat.example.com".into()]).await;
    let ana = world.user("ana").await;
    let cookie = format!("colink_session={}", ana.token);
    let bearer = format!("Bearer {}", ana.token);
    for (status, headers) in [
        ("400", vec![("sec-websocket-protocol", "chat, superchat")]),
        ("401", vec![("authorization", "Bearer clk_0")]),
        ("403", vec![("cookie", cookie.as_str()), ("origin", "https://evil.example")]),
        ("101", vec![("cookie", cookie.as_str()), ("origin", "https://chat.example.com")]),
        ("101", vec![("cookie", cookie.as_str()), ("origin", world.url.as_str())]),
        ("101", vec![("authorization", bearer.as_str()), ("origin", "https://evil.example")]),
        ("101", vec![("sec-websocket-protocol", "chat, colink.v1")]),
        ("101", vec![("sec-websocket-protocol", "chat"), ("sec-websocket-protocol", "colink.v1")]),
    ] {
        let opened = Socket::try_open(&world.url, &headers).await;
        let got = opened.as_ref().map_or_else(|answer| answer[9..12].to_owned(), |_| "101".to_owned());
        assert_eq!(got, status, "{headers:?}");
        if let (Ok(mut socket), true) = (opened, headers[0].0 != "sec-websocket-protocol") {
            socket.next().await;
            socket.send(&json!({"type": "identify", "d": {}})).await;
            assert_eq!(socket.next().await["type"], "ready", "the handshake brought the token");
        }
    }
    assert_eq!(ana.http.get("/v1/ws").await.code(), "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_offers_no_subprotocol_is_served() {
    let world = World::start().await;
    let authority = world.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(authority).await.unwrap();
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {authority}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("its hello", async {
        while !answer.contains(r#""type":"hello""#) {
            let mut bytes = [0; 4_096];
            let n = stream.read(&mut bytes).await.unwrap();
            assert_ne!(n, 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 101") && !answer.contains("sec-websocket-protocol"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_follows_more_people_than_allowed_and_zero_allows_any_number() {
    for (most, error) in [(1, json!("invalid_request")), (0, Value::Null)] {
        let world = World::with(|config| config.presence.subscriptions = most).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let mut screen = ana.connects().await;
        let reply = screen.call("presence.subscribe", json!({"user_ids": [ana.id(), bob.id()]})).await;
        assert_eq!(reply["error"], error, "{most}");
    }
}
