//! Clients that send too much, or read nothing: each is bounded, and nobody else notices.
//!
//! A server of its own, with every rate switched off, so that only the bounds of memory hold; its size is read from /proc.

use std::collections::BTreeSet;
use std::path::Path;

use colink::client::{Client, Gateway, Options};
use colink::domain::command::SendMessage;
use colink::domain::id::ChannelId;
use colink::domain::text::TEXT_MAX;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::binary::{Serving, run_json};
use crate::http::Http;
use crate::socket::{CONTINUATION, Incoming, PING, Socket, TEXT, frame};
use crate::world::{LIMIT, Person, World, eventually, message, within};

const MIB: usize = 1_024 * 1_024;
/// How much is sent in each way, if the server takes it.
const FLOOD: usize = 8 * MIB;
/// How much larger the server may be after all of it.
const GROWTH: usize = 24 * MIB;
/// The same after pages: what is remembered of them, and what is being made.
const PAGES: usize = 64 * MIB;

struct Flooded {
    server: Serving,
    token: String,
    room: ChannelId,
}

impl Flooded {
    async fn start(data: &Path) -> Flooded {
        let off = [
            "gateway.commands_per_minute",
            "gateway.identifies_per_minute",
            "limits.messages_per_minute",
            "limits.requests_per_minute",
        ];
        let mut args: Vec<String> = off.iter().flat_map(|key| ["--set".to_owned(), format!("{key}=0")]).collect();
        let patience = ["--set", "gateway.heartbeat_interval_ms=600000", "--set", "gateway.write_stall_ms=1000"];
        args.extend(patience.map(str::to_owned));
        let server = Serving::start(data, &args.iter().map(String::as_str).collect::<Vec<_>>());
        run_json(data, &["user", "add", "ana", "--admin"]);
        let token = run_json(data, &["token", "add", "--user", "ana"])["token"].as_str().unwrap().to_owned();
        let room = run_json(data, &["channel", "add", "room", "--member", "ana"])["id"].as_str().unwrap().parse();
        Flooded { server, token, room: room.unwrap() }
    }

    async fn connects(&self) -> Socket {
        let mut socket = Socket::open(&self.server.url, &[]).await;
        socket.next().await;
        socket.identifies(&self.token).await;
        socket
    }

    /// The server's resident memory, in bytes.
    fn size(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.server.pid())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
    }

    /// Sends a piece again and again, reading nothing, until enough was sent or the server takes no more.
    async fn floods(&self, piece: &[u8]) -> Socket {
        let mut socket = self.connects().await;
        let many = piece.repeat(MIB / piece.len() + 1);
        for _ in 0..FLOOD / many.len() {
            // A server that reads no more is one that holds no more.
            if timeout(LIMIT / 20, socket.push(&many)).await.is_err() {
                break;
            }
        }
        socket
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_flood_makes_the_server_grow_or_others_wait() {
    let data = tempfile::tempdir().unwrap();
    let world = Flooded::start(data.path()).await;
    let room = world.room;
    let others = Gateway::connect(&world.server.url, &world.token, Options::default()).await.unwrap();
    let says = |text: &str| SendMessage { ..message(room, text) };
    let request =
        |kind: &str, d: Value| frame(true, TEXT, json!({"id": 1, "type": kind, "d": d}).to_string().as_bytes());
    let users: Vec<_> = (0..500).map(|_| room).collect();
    let small = [frame(false, TEXT, b"{"), frame(false, CONTINUATION, b"").repeat(60)].concat();
    let whole = [small, frame(true, CONTINUATION, br#""id":1,"type":"time.travel"}"#)].concat();
    let floods = [
        ("typing", request("typing.start", json!({"channel_id": room}))),
        ("presence", request("presence.subscribe", json!({"user_ids": users}))),
        ("what is not known", request("time.travel", json!({}))),
        ("heartbeats", frame(true, TEXT, br#"{"type":"heartbeat"}"#)),
        ("pings", frame(true, PING, &[b'x'; 125])),
        ("fragments", whole),
        ("reads", request("channel.mark_read", json!({"channel_id": room, "seq": 1}))),
    ];
    // Once around before it is measured: buffers, caches and the allocator's own take what they take.
    others.call(says("before")).await.unwrap();
    drop(world.floods(&floods[0].1).await);
    let before = world.size();
    for (what, piece) in &floods {
        let flood = world.floods(piece).await;
        let now = world.size();
        assert!(now < before + GROWTH, "{what}: from {} to {} MiB", before / MIB, now / MIB);
        within(what, others.call(says(what))).await.unwrap();
        drop(flood);
    }
    let client = Client::new(&world.server.url).unwrap().with_token(&world.token);
    assert!(client.me().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_never_reads_is_4010() {
    let data = tempfile::tempdir().unwrap();
    let world = Flooded::start(data.path()).await;
    let ask = frame(true, TEXT, br#"{"id":1,"type":"time.travel"}"#);
    let mut socket = world.floods(&ask).await;
    eventually("the server to give up", || async {
        Client::new(&world.server.url).unwrap().text("/metrics").await.unwrap().contains("{code=\"4010\"} 1")
    })
    .await;
    while matches!(socket.read().await, Incoming::Text(_)) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_sign_in_leave_nothing_behind() {
    let data = tempfile::tempdir().unwrap();
    let world = Flooded::start(data.path()).await;
    let stranger = Http::new(&world.server.url, None);
    let long = "x".repeat(MIB - 1_024);
    let guess = |n: usize| {
        let body = json!({"name": format!("{n}{long}"), "password": "wrong password"});
        let stranger = &stranger;
        async move { stranger.post("/v1/auth/login", &body).await.code() }
    };
    assert_eq!(guess(0).await, "unauthenticated");
    let before = world.size();
    for n in 1..=2 * GROWTH / MIB {
        assert_eq!(guess(n).await, "unauthenticated");
    }
    let now = world.size();
    assert!(now < before + GROWTH, "from {} to {} MiB", before / MIB, now / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_longest_messages_are_cut_and_forgotten() {
    let data = tempfile::tempdir().unwrap();
    let world = Flooded::start(data.path()).await;
    let (room, ana) = (world.room, Http::new(&world.server.url, Some(&world.token)));
    let longest = "\"".repeat(TEXT_MAX);
    for _ in 0..200 {
        ana.command(&message(room, &longest).into(), None).await.good();
    }
    let history = async |before: i64| {
        let page = ana.get(&format!("/v1/channels/{room}/messages?limit=200&before_seq={before}")).await;
        assert!(page.body.len() < 3 * MIB, "{} MiB of history", page.body.len() / MIB);
        page
    };
    let events = async |after: i64| {
        let page = ana.get(&format!("/v1/streams/{room}/events?limit=1000&after_seq={after}")).await;
        assert!(page.body.len() < 3 * MIB, "{} MiB of events", page.body.len() / MIB);
        page
    };
    // What the index takes of them is not counted here.
    let last = history(i64::MAX).await.items().last().unwrap()["created_at"].as_str().unwrap().to_owned();
    eventually("the index has them", || async {
        let found = ana.get("/v1/search/messages?q=-nothing&limit=1").await.good();
        found["indexed_through"].as_str().is_some_and(|time| time > last.as_str())
    })
    .await;
    let before = world.size();
    for n in 0..100 {
        // Every one of these is the newest page, by another name.
        history(1_000_000_000 + n).await;
        events(n).await;
        let now = world.size();
        assert!(now < before + PAGES, "from {} to {} MiB", before / MIB, now / MIB);
    }

    // What was cut off is on the next page.
    let seq = |message: &Value| message["seq"].as_i64().unwrap();
    let (mut seen, mut from) = (0, 1_000);
    loop {
        let page = history(from).await;
        let items = page.items();
        (seen, from) = (seen + items.len(), seq(&items[0]));
        if page.json()["has_more"] == false {
            break;
        }
    }
    assert_eq!((seen, from), (200, 2));
    let mut last = 0;
    loop {
        let page = events(last).await;
        for event in page.items() {
            assert_eq!(seq(&event), last + 1);
            last += 1;
        }
        if page.json()["head"] == last {
            break;
        }
    }
    assert_eq!(last, 201);
}

/// Sends 64 messages in one piece, and again those that were refused for the moment; returns why they were.
async fn posts_at_once(ana: &Person, room: ChannelId) -> BTreeSet<String> {
    let send = |n: u64| {
        let d = json!({"channel_id": room, "text": format!("text {n}"), "client_msg_id": format!("key-{n}")});
        frame(true, TEXT, json!({"id": n, "type": "message.send", "d": d}).to_string().as_bytes())
    };
    let mut socket = ana.connects().await;
    let (mut left, mut reasons): (BTreeSet<u64>, _) = ((0..64).collect(), BTreeSet::new());
    while !left.is_empty() {
        let asked = std::mem::take(&mut left);
        socket.send_bytes(&asked.iter().flat_map(|n| send(*n)).collect::<Vec<u8>>()).await;
        for n in asked {
            let reply = socket.reply(n).await;
            if reply["ok"] == false {
                assert_eq!((&reply["error"], &reply["temporary"]), (&json!("unavailable"), &json!(true)), "{reply}");
                reasons.insert(reply["message"].as_str().unwrap().to_owned());
                left.insert(n);
            }
        }
    }
    let stored = ana.http.get(&format!("/v1/channels/{room}/messages?limit=200")).await.items();
    let texts: BTreeSet<&str> = stored.iter().map(|message| message["text"].as_str().unwrap()).collect();
    assert_eq!((stored.len(), texts.len()), (64, 64), "each is stored once");
    reasons
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_with_too_much_to_do_refuses_and_its_neighbour_does_not() {
    let world = World::with(|config| config.channels.mailbox = 16).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let (busy, quiet) = (world.channel("busy", &[&ana]).await, world.channel("quiet", &[&bob]).await);
    let talks = async {
        for n in 0..20 {
            bob.says(quiet, &format!("text {n}")).await;
        }
    };
    let (reasons, ()) = tokio::join!(posts_at_once(&ana, busy), talks);
    assert_eq!(reasons, BTreeSet::from(["this channel has more to do than it can: slow down".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_with_too_much_to_write_refuses() {
    // With room for what the server writes by itself.
    let world = World::with(|config| (config.database.batch, config.database.queue) = (1, 4)).await;
    let ana = world.user("ana").await;
    let room = world.channel("room", &[&ana]).await;
    let reasons = posts_at_once(&ana, room).await;
    assert_eq!(reasons, BTreeSet::from(["the server has more to write than it can: slow down".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_most_are_closed_and_those_before_are_served() {
    let world = World::with(|config| config.server.max_connections = 3).await;
    let ana = world.user("ana").await;
    let (mut one, mut two) = (ana.connects().await, ana.connects().await);
    let connects = || TcpStream::connect(world.url.trim_start_matches("http://"));
    let asks = async || {
        let mut stream = connects().await.unwrap();
        let mut answer = String::new();
        // One that is closed at once may be reset.
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\r\n").await;
        let _ = within("an answer or an end", stream.read_to_string(&mut answer)).await;
        answer.starts_with("HTTP/1.1 200")
    };
    let mut third = connects().await.unwrap();
    for _ in 0..100 {
        assert!(!asks().await);
    }
    assert!(one.call("nonsense", json!({})).await["error"] == "unknown_type");
    third.write_all(b"GET /health HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("the third's answer", third.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    eventually("its place to be free", asks).await;
    assert!(two.call("nonsense", json!({})).await["error"] == "unknown_type");
}
