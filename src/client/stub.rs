//! A hub small enough to hold in one hand: what the client and the load generator are tested against.
//!
//! It speaks the protocol's main road (identify, resume by cursors, send, events) out of a vector in memory, knows
//! nothing of rights or limits, and can be told to misbehave.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, Role, WebSocket, upgrade};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Client;
use crate::clock::{Clock, Timestamp};
use crate::domain::id::{ChannelId, UserId};

/// A running stub; everything it spawned ends with it.
pub(crate) struct Stub {
    pub(crate) url: String,
    hub: Arc<Hub>,
    _accepting: JoinSet<()>,
}

#[derive(Default)]
struct Hub {
    clock: Clock,
    /// Every delivery with this number (1, 2, …) modulo the value is dropped; 0 drops none.
    lose_every: AtomicUsize,
    deliveries: AtomicUsize,
    /// So many requests are still to be answered with 503.
    failing: AtomicUsize,
    state: Mutex<State>,
    http: Mutex<JoinSet<()>>,
    sockets: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    users: BTreeMap<String, UserId>,
    rooms: HashMap<ChannelId, Room>,
    sessions: HashMap<String, Session>,
}

#[derive(Default)]
struct Room {
    members: Vec<UserId>,
    events: Vec<String>,
}

struct Session {
    user: UserId,
    out: mpsc::Sender<String>,
    s: i64,
}

impl Stub {
    pub(crate) async fn start() -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(Hub::default());
        let mut accepting = JoinSet::new();
        let serving = Arc::clone(&hub);
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let hub = Arc::clone(&serving);
                let answer = service_fn(move |request| Arc::clone(&hub).answer(request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                serving.http.lock().unwrap().spawn(async move { drop(connection.with_upgrades().await) });
            }
        });
        Stub { url, hub, _accepting: accepting }
    }

    pub(crate) fn token(name: &str) -> String {
        format!("token-{name}")
    }

    pub(crate) async fn client(&self, name: &str) -> Client {
        self.hub.user(name);
        Client::new(&self.url).unwrap().with_token(Stub::token(name))
    }

    pub(crate) fn room(&self, names: &[&str]) -> ChannelId {
        let members = names.iter().map(|name| self.hub.user(name)).collect();
        self.hub.open_room(members)
    }

    pub(crate) fn post(&self, room: ChannelId, name: &str, text: &str) {
        let author = self.hub.user(name);
        self.hub.post(room, author, text).unwrap();
    }

    pub(crate) fn lose_every(&self, n: usize) {
        self.hub.lose_every.store(n, Ordering::Relaxed);
    }

    pub(crate) fn fail_next(&self, n: usize) {
        self.hub.failing.store(n, Ordering::Relaxed);
    }

    pub(crate) fn cut_http(&self) {
        self.hub.http.lock().unwrap().abort_all();
    }

    pub(crate) fn cut_gateway(&self) {
        self.hub.sockets.lock().unwrap().abort_all();
    }

    pub(crate) fn forget_sessions(&self) {
        self.hub.state().sessions.clear();
    }
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn user(&self, name: &str) -> UserId {
        let now = self.clock.now();
        *self.state().users.entry(name.to_owned()).or_insert_with(|| UserId::new(now))
    }

    fn user_of(&self, token: &str) -> Option<(String, UserId)> {
        let name = token.strip_prefix("token-")?;
        let id = *self.state().users.get(name)?;
        Some((name.to_owned(), id))
    }

    fn open_room(&self, members: Vec<UserId>) -> ChannelId {
        let id = ChannelId::new(self.clock.now());
        self.state().rooms.insert(id, Room { members, events: Vec::new() });
        id
    }

    fn post(&self, room: ChannelId, author: UserId, text: &str) -> Option<Value> {
        let now = self.clock.now();
        let mut state = self.state();
        let State { rooms, sessions, .. } = &mut *state;
        let at = rooms.get_mut(&room).filter(|at| at.members.contains(&author))?;
        let seq = at.events.len() + 1;
        let text = Value::from(text);
        let tail = format!(
            r#""type":"message.created","channel_id":"{room}","seq":{seq},"event_id":"{room}","actor_id":"{author}","at":"{now}","d":{{"id":"{room}","message_no":{seq},"author_id":"{author}","text":{text},"created_at":"{now}"}}}}"#
        );
        at.events.push(format!("{{{tail}"));
        for session in sessions.values_mut().filter(|session| at.members.contains(&session.user)) {
            let lose_every = self.lose_every.load(Ordering::Relaxed);
            let number = self.deliveries.fetch_add(1, Ordering::Relaxed) + 1;
            session.s += 1;
            if lose_every == 0 || !number.is_multiple_of(lose_every) {
                drop(session.out.try_send(format!(r#"{{"s":{},{tail}"#, session.s)));
            }
        }
        Some(json!({"channel_id": room, "seq": seq, "message_id": room, "ts": "1.000001", "duplicate": false}))
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.uri().path() == "/v1/ws" {
            let (response, socket) = upgrade::upgrade(&mut request).unwrap();
            let hub = Arc::clone(&self);
            let session = async move { drop(hub.talk(socket.await.unwrap().into_inner()).await) };
            self.sockets.lock().unwrap().spawn(session);
            return Ok(response.map(|_| Full::default()));
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let token = head.headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let query = head.uri.query().unwrap_or_default();
        if head.uri.path() == "/metrics" {
            return Ok(Response::new(Full::from("")));
        }
        let fails = self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let answer = match token.and_then(|token| self.user_of(token)) {
            Some(_) if fails => Err((503, "unavailable")),
            Some((name, user)) => self.rest(&head.method, head.uri.path(), query, &body, (&name, user)),
            None => Err((401, "unauthenticated")),
        };
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err((status, code)) => (status, json!({"code": code, "detail": code, "status": status})),
        };
        Ok(Response::builder().status(status).body(Full::from(body.to_string())).unwrap())
    }

    fn rest(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        body: &Value,
        (name, user): (&str, UserId),
    ) -> Result<Value, (u16, &'static str)> {
        let number = |key: &str| {
            let value =
                query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse::<usize>().ok());
            value.unwrap_or(0)
        };
        let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
        match (method.as_str(), &parts[..]) {
            ("GET", ["users", "me"]) => Ok(user_json(name, user)),
            ("POST", ["users"]) => {
                let name = body["name"].as_str().unwrap();
                Ok(user_json(name, self.user(name)))
            }
            ("POST", ["users", id, "tokens"]) => {
                let state = self.state();
                let (name, _) =
                    state.users.iter().find(|(_, user)| user.to_string() == *id).ok_or((404, "not_found"))?;
                Ok(json!({ "token": Stub::token(name) }))
            }
            ("GET", ["channels"]) => {
                let state = self.state();
                let mine = state.rooms.iter().filter(|(_, room)| room.members.contains(&user));
                Ok(json!({"items": mine.map(|(id, room)| channel_json(*id, user, room)).collect::<Vec<_>>()}))
            }
            ("POST", ["channels"]) => {
                let mut members: Vec<UserId> = serde_json::from_value(body["members"].clone()).unwrap_or_default();
                members.push(user);
                let id = self.open_room(members);
                Ok(channel_json(id, user, &self.state().rooms[&id]))
            }
            ("POST", ["channels", id, "messages"]) => {
                let text = body["text"].as_str().unwrap_or_default();
                self.post(id.parse().unwrap(), user, text).ok_or((404, "not_found"))
            }
            ("GET", ["search", "messages"]) => {
                let is_sought =
                    |event: &&String| !query.contains("probe") || event.contains(query.rsplit("q=").next().unwrap());
                let state = self.state();
                let total = state.rooms.values().flat_map(|room| &room.events).filter(is_sought).count();
                Ok(json!({"items": [], "total": total, "indexed_through": self.clock.now(), "complete": true}))
            }
            ("GET", ["channels" | "streams", id, list]) => {
                let state = self.state();
                let room = state.rooms.get(&id.parse().unwrap()).ok_or((404, "not_found"))?;
                let events: Vec<Value> = room.events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
                let behind: Vec<Value> = events.into_iter().skip(number("after_seq")).collect();
                if *list == "events" {
                    return Ok(json!({"items": behind, "head": room.events.len()}));
                }
                let newest = behind.len().saturating_sub(number("limit"));
                let items: Vec<Value> = behind[newest..].iter().map(message_json).collect();
                Ok(json!({"items": items, "has_more": newest > 0}))
            }
            _ => Err((404, "not_found")),
        }
    }

    async fn talk(
        self: Arc<Self>,
        stream: TokioIo<hyper::upgrade::Upgraded>,
    ) -> Result<(), fastwebsockets::WebSocketError> {
        let (read, mut write) = tokio::io::split(stream);
        let mut read =
            FragmentCollector::new(WebSocket::after_handshake(tokio::io::join(read, tokio::io::sink()), Role::Server));
        let (out, mut outgoing) = mpsc::channel::<String>(100_000);
        let mut writer = JoinSet::new();
        writer.spawn(async move {
            while let Some(text) = outgoing.recv().await {
                let mut frame = match text.strip_prefix("close ") {
                    Some(code) => Frame::close(code.parse().unwrap(), b""),
                    None => Frame::text(Payload::Owned(text.into_bytes())),
                };
                let mut bytes = Vec::new();
                if write.write_all(frame.write(&mut bytes)).await.is_err() {
                    return;
                }
            }
        });
        let say = |text: String| drop(out.try_send(text));
        say(json!({"type": "hello", "d": {"node": "stub", "heartbeat_interval_ms": 30_000}}).to_string());
        let mut user = None;
        loop {
            let frame = read.read_frame().await?;
            if frame.opcode != OpCode::Text {
                return Ok(());
            }
            let frame: Value = serde_json::from_slice(&frame.payload).unwrap();
            let (id, d) = (&frame["id"], &frame["d"]);
            match frame["type"].as_str().unwrap() {
                "identify" | "resume" => {
                    let Some((name, found)) = self.user_of(d["token"].as_str().unwrap()) else {
                        say("close 4004".to_owned());
                        writer.join_next().await;
                        return Ok(());
                    };
                    self.begin(&name, found, d, &out);
                    user = Some(found);
                }
                "heartbeat" => say(json!({"type": "heartbeat_ack"}).to_string()),
                "message.send" => {
                    let room = d["channel_id"].as_str().unwrap().parse().unwrap();
                    let sent = self.post(room, user.unwrap(), d["text"].as_str().unwrap());
                    say(match sent {
                        Some(sent) => format!(r#"{{"reply_to":{id},"ok":true,"d":{sent}}}"#),
                        None => format!(
                            r#"{{"reply_to":{id},"ok":false,"error":"not_found","message":"channel not found"}}"#
                        ),
                    });
                }
                _ => {}
            }
        }
    }

    fn begin(&self, name: &str, user: UserId, d: &Value, out: &mpsc::Sender<String>) {
        let mut state = self.state();
        let State { rooms, sessions, .. } = &mut *state;
        if let Some(id) = d["session_id"].as_str() {
            let Some(mut session) = sessions.remove(id) else {
                drop(out.try_send(
                    json!({"type": "invalid_session", "d": {"resumable": false, "sync_from": {}}}).to_string(),
                ));
                return;
            };
            // As a hub that replays the log: the session that goes on is a new one.
            (session.out, session.s) = (out.clone(), 1);
            let id = UserId::new(Timestamp(1)).to_string();
            let missed: Vec<&String> = rooms
                .iter()
                .filter_map(|(id, room)| Some((d["cursors"][id.to_string()].as_u64()?, room)))
                .flat_map(|(seen, room)| &room.events[seen as usize..])
                .collect();
            drop(out.try_send(
                json!({"type": "resumed", "d": {"session_id": id, "s": 1, "replayed": missed.len(), "mode": "log"}})
                    .to_string(),
            ));
            for event in missed {
                session.s += 1;
                drop(out.try_send(format!(r#"{{"s":{},{}"#, session.s, &event[1..])));
            }
            sessions.insert(id, session);
            return;
        }
        let id = UserId::new(Timestamp(1)).to_string();
        let mine = rooms.iter().filter(|(_, room)| room.members.contains(&user));
        let channels: Vec<Value> = mine.map(|(id, room)| json!({"id": id, "last_seq": room.events.len()})).collect();
        let d = json!({"session_id": id, "user": user_json(name, user), "channels": channels});
        drop(out.try_send(format!(r#"{{"s":1,"type":"ready","d":{d}}}"#)));
        sessions.insert(id, Session { user, out: out.clone(), s: 1 });
    }
}

fn user_json(name: &str, id: UserId) -> Value {
    json!({"id": id, "name": name, "display_name": name, "role": "member", "presence_mode": "auto",
        "created_at": "2026-01-01T00:00:00Z"})
}

fn channel_json(id: ChannelId, user: UserId, room: &Room) -> Value {
    json!({"id": id, "kind": "public", "name": "room", "posting": "everyone", "created_by": user,
        "created_at": "2026-01-01T00:00:00Z", "last_seq": room.events.len(), "last_message_no": room.events.len(),
        "role": "member", "read_seq": 0, "unread_count": 0, "mention_count": 0, "muted": false, "notify": "all"})
}

fn message_json(event: &Value) -> Value {
    let mut message = event["d"].clone();
    message["channel_id"] = event["channel_id"].clone();
    message["seq"] = event["seq"].clone();
    message
}
