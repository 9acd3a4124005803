//! REST: one method for each thing that programs ask most, and `get`/`post`/… for the rest.
//!
//! A [`Client`] keeps one connection alive and opens another only while that one is busy. When the kept connection turns
//! out to be gone, a request that the server cannot have seen, or that does no harm twice, is sent again on a new one;
//! any other failure is reported.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpStream;

use super::connection::random_fraction;
use super::wire::Event;
use super::{Address, Error, Result, broken, malformed, timed_out};
use crate::clock::Timestamp;
use crate::domain::channel::{Channel, Membership};
use crate::domain::command::CreateChannel;
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::message::{Message, Sent};
use crate::domain::user::{Role, User};

/// The largest answer read, in bytes.
const ANSWER_MAX: usize = 64 << 20;

type Connection = SendRequest<Full<Bytes>>;

/// A hub's REST interface, with the token of one user. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    token: Option<String>,
    timeout: Duration,
    idle: Arc<Mutex<Option<Connection>>>,
}

/// A fresh sign-in.
#[derive(Clone, Debug, Deserialize)]
pub struct Login {
    /// The bearer token.
    pub token: String,
    /// Who signed in.
    pub user: User,
    /// When the token ends.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// One page of a list.
#[derive(Clone, Debug, Deserialize)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page starts, if there is one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// Which messages of a channel to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// The newest.
    Newest,
    /// Those before a `seq`.
    Before(i64),
    /// Those behind a `seq`.
    After(i64),
    /// Those on both sides of a `seq`.
    Around(i64),
}

/// Messages of a channel, oldest first.
#[derive(Clone, Debug, Deserialize)]
pub struct History {
    /// The messages.
    pub items: Vec<Message>,
    /// Whether there are more in that direction.
    pub has_more: bool,
}

/// Events of a stream, oldest first.
#[derive(Clone, Debug, Deserialize)]
pub struct Events {
    /// The events.
    pub items: Vec<Event>,
    /// The number of the stream's newest event.
    pub head: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    detail: String,
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

impl Client {
    /// Addresses the hub at `url`, such as `http://127.0.0.1:8080`. Connects with the first request.
    pub fn new(url: &str) -> Result<Self> {
        let address = Address::parse(url)?;
        Ok(Client { address, token: None, timeout: Duration::from_secs(30), idle: Arc::default() })
    }

    /// Signs every request with a bearer token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sets how long a request may take; 30 seconds unless set.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Signs in and keeps the token for what follows.
    pub async fn login(&mut self, name: &str, password: &str) -> Result<Login> {
        let login: Login = self.post("/v1/auth/login", &json!({ "name": name, "password": password })).await?;
        self.token = Some(login.token.clone());
        Ok(login)
    }

    /// Returns the user whose token this is.
    pub async fn me(&self) -> Result<User> {
        self.get("/v1/users/me").await
    }

    /// Returns every user of the workspace.
    pub async fn users(&self) -> Result<Vec<User>> {
        self.all("/v1/users").await
    }

    /// Returns the channels that the user is in.
    pub async fn my_channels(&self) -> Result<Vec<Membership>> {
        self.all("/v1/channels").await
    }

    /// Makes a channel, the user its owner.
    pub async fn create_channel(&self, channel: &CreateChannel) -> Result<Channel> {
        self.post("/v1/channels", channel).await
    }

    /// Returns at most `limit` messages of a channel, oldest first.
    pub async fn messages(&self, channel: ChannelId, window: Window, limit: u32) -> Result<History> {
        let part = match window {
            Window::Newest => String::new(),
            Window::Before(seq) => format!("&before_seq={seq}"),
            Window::After(seq) => format!("&after_seq={seq}"),
            Window::Around(seq) => format!("&around_seq={seq}"),
        };
        self.get(&format!("/v1/channels/{channel}/messages?limit={limit}{part}")).await
    }

    /// Returns everything that happened in a channel or another stream behind `after`, oldest first.
    pub async fn events(&self, stream: impl Into<StreamId>, after: i64) -> Result<Vec<Event>> {
        let stream = stream.into();
        let mut events: Vec<Event> = Vec::new();
        loop {
            let after = events.last().and_then(|event| event.seq).unwrap_or(after);
            let page = self.events_page(stream, after, 1_000).await?;
            let last = page.items.last().and_then(|event| event.seq);
            events.extend(page.items);
            if last.is_none_or(|seq| seq >= page.head) {
                return Ok(events);
            }
        }
    }

    /// Reads what a gap lacks: as [`Client::events`], but tries again, with growing pauses, while the hub cannot answer.
    /// Of a stream that the user may no longer read there is nothing.
    pub async fn missed(&self, stream: impl Into<StreamId>, after: i64) -> Result<Vec<Event>> {
        let (stream, mut pause) = (stream.into(), Duration::from_millis(200));
        loop {
            let error = match self.events(stream, after).await {
                Ok(events) => return Ok(events),
                Err(error) if matches!(error.code(), Some("not_found" | "forbidden")) => return Ok(Vec::new()),
                Err(error) if error.may_come_back() => error,
                Err(error) => return Err(error),
            };
            let asked = match error {
                Error::Refused { retry_after: Some(seconds), .. } => Duration::from_secs_f64(seconds.clamp(0.0, 60.0)),
                _ => Duration::ZERO,
            };
            tokio::time::sleep(asked.max(pause.mul_f64(0.5 + random_fraction() / 2.0))).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// Returns at most `limit` events of a stream behind `after`, and the number of its newest.
    pub async fn events_page(&self, stream: impl Into<StreamId>, after: i64, limit: u32) -> Result<Events> {
        let stream = stream.into();
        self.get(&format!("/v1/streams/{stream}/events?after_seq={after}&limit={limit}")).await
    }

    /// Posts a message. With a `client_msg_id`, a repeat is not stored again.
    pub async fn send(&self, channel: ChannelId, text: &str, client_msg_id: Option<&str>) -> Result<Sent> {
        let mut body = json!({ "text": text });
        if let Some(key) = client_msg_id {
            body["client_msg_id"] = key.into();
        }
        self.post(&format!("/v1/channels/{channel}/messages"), &body).await
    }

    /// Marks a channel read up to an event.
    pub async fn mark_read(&self, channel: ChannelId, seq: i64) -> Result<Membership> {
        self.put(&format!("/v1/channels/{channel}/read"), &json!({ "seq": seq })).await
    }

    /// Makes an account. For administrators.
    pub async fn create_user(&self, name: &str, role: Role) -> Result<User> {
        self.post("/v1/users", &json!({ "name": name, "role": role })).await
    }

    /// Makes a token for a user. For administrators.
    pub async fn create_token(&self, user: UserId) -> Result<String> {
        let Token { token } = self.post(&format!("/v1/users/{user}/tokens"), &json!({})).await?;
        Ok(token)
    }

    /// Asks for `path`, which starts with `/v1/`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None).await
    }

    /// Posts a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync + ?Sized)) -> Result<T> {
        self.ask(Method::POST, path, Some(encode(body)?)).await
    }

    /// Puts a body.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync + ?Sized)) -> Result<T> {
        self.ask(Method::PUT, path, Some(encode(body)?)).await
    }

    /// Patches with a body.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync + ?Sized)) -> Result<T> {
        self.ask(Method::PATCH, path, Some(encode(body)?)).await
    }

    /// Deletes. Use `()` where no body comes back.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::DELETE, path, None).await
    }

    /// Reads a list to its end, page by page.
    pub async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut page: Page<T> = self.get(path).await?;
        let mut items = page.items;
        while let Some(cursor) = page.next_cursor {
            let joint = if path.contains('?') { '&' } else { '?' };
            page = self.get(&format!("{path}{joint}cursor={}", escaped(&cursor))).await?;
            items.append(&mut page.items);
        }
        Ok(items)
    }

    /// Returns the text at `path`, such as `/metrics`.
    pub async fn text(&self, path: &str) -> Result<String> {
        let body = self.exchange(Method::GET, path, None).await?;
        String::from_utf8(body.into()).map_err(|_| Error::Protocol(format!("{path} is not UTF-8")))
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<T> {
        let answer = self.exchange(method, path, body).await?;
        let answer = if answer.is_empty() { b"null" } else { &answer[..] };
        serde_json::from_slice(answer).map_err(|error| malformed(path, &error))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes> {
        let request = self.request(method, path, body)?;
        let answer = async {
            let (response, connection) = self.send_on_a_connection(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(broken)?.to_bytes();
            self.keep(connection);
            if head.status.is_success() { Ok(body) } else { Err(refused(head.status, &head.headers, &body)) }
        };
        tokio::time::timeout(self.timeout, answer).await.map_err(|_| timed_out(path))?
    }

    fn request(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.authority())
            .header(USER_AGENT, concat!("colink/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| Error::Protocol(format!("cannot ask for {path}: {error}")))
    }

    async fn send_on_a_connection(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<hyper::body::Incoming>, Connection)> {
        while let Some(mut kept) = self.take_kept() {
            if kept.ready().await.is_err() {
                continue;
            }
            let again = request.method().is_idempotent().then(|| request.clone());
            match kept.try_send_request(request).await {
                Ok(response) => return Ok((response, kept)),
                Err(mut failed) => match failed.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(failed.into_error())),
                },
            }
        }
        let mut fresh = self.connect().await?;
        let response = fresh.send_request(request).await.map_err(broken)?;
        Ok((response, fresh))
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the sender: what breaks on the connection is reported by the request that notices.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take_kept(&self) -> Option<Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, connection: Connection) {
        if !connection.is_closed() {
            *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        }
    }
}

fn encode(body: &(impl Serialize + ?Sized)) -> Result<Bytes> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| Error::Protocol(format!("cannot encode: {error}")))
}

/// Reads an RFC 9457 problem, or makes do with the status if something else answered.
fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let Problem { code, detail } = serde_json::from_slice(body).unwrap_or_default();
    let code = if code.is_empty() { format!("http_{}", status.as_u16()) } else { code };
    let message = if detail.is_empty() { status.to_string() } else { detail };
    let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Error::Refused { code, message, status: Some(status.as_u16()), retry_after }
}

/// Escapes what goes into a path or a query, by RFC 3986.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::stub::Stub;

    #[tokio::test]
    async fn a_request_survives_the_end_of_the_kept_connection() {
        let stub = Stub::start().await;
        let client = stub.client("ana").await;
        assert_eq!(client.me().await.unwrap().name, "ana");
        stub.cut_http();
        assert_eq!(client.me().await.unwrap().name, "ana");
    }

    #[tokio::test]
    async fn a_problem_becomes_a_refusal() {
        let stub = Stub::start().await;
        let stranger = Client::new(&stub.url).unwrap();
        let error = stranger.me().await.unwrap_err();
        assert_eq!(error.code(), Some("unauthenticated"));
        assert!(matches!(error, Error::Refused { status: Some(401), .. }));
    }

    #[tokio::test]
    async fn what_is_sent_is_read_back() {
        let stub = Stub::start().await;
        let ana = stub.client("ana").await;
        let room = stub.room(&["ana"]);
        let sent = ana.send(room, "hello", Some("key-1")).await.unwrap();
        let history = ana.messages(room, Window::Newest, 50).await.unwrap();
        assert_eq!(history.items.last().unwrap().seq, sent.seq);
        assert_eq!(ana.events(room, sent.seq - 1).await.unwrap().len(), 1);
        assert_eq!(ana.my_channels().await.unwrap()[0].channel.id, room);
    }

    #[tokio::test]
    async fn a_gap_is_read_as_soon_as_the_hub_can_answer_and_given_up_where_the_user_may_not_read() {
        let stub = Stub::start().await;
        let ana = stub.client("ana").await;
        let room = stub.room(&["ana"]);
        stub.post(room, "ana", "missed");
        stub.fail_next(2);
        assert_eq!(ana.missed(room, 0).await.unwrap()[0].message().unwrap().text, "missed");
        let elsewhere = ChannelId::new(Timestamp(1));
        assert!(ana.missed(elsewhere, 0).await.unwrap().is_empty());
        let stranger = Client::new(&stub.url).unwrap();
        assert_eq!(stranger.missed(room, 0).await.unwrap_err().code(), Some("unauthenticated"));
    }

    #[test]
    fn cursors_and_emoji_are_escaped() {
        assert_eq!(escaped("a/b=1 "), "a%2Fb%3D1%20");
        assert_eq!(escaped("+1"), "%2B1");
        assert_eq!(escaped("🎉"), "%F0%9F%8E%89");
    }
}
