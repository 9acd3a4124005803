//! REST as a client sees it: one request on one connection, every header in sight.

use colink::domain::command::Command;
use colink::http::endpoint::Endpoint;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::within;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads the body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{} is no JSON: {}", self.status, self.text()))
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns a header, empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the stable code of a refusal; `ok` if it is none.
    pub(crate) fn code(&self) -> String {
        if self.status < 300 { "ok".to_owned() } else { self.json()["code"].as_str().unwrap_or("none").to_owned() }
    }

    /// Returns the body of a success.
    pub(crate) fn good(&self) -> Value {
        assert!(self.status < 300, "{}: {}", self.status, self.text());
        self.json()
    }

    /// Returns the entries of a list.
    pub(crate) fn items(&self) -> Vec<Value> {
        self.good()["items"].as_array().unwrap().clone()
    }
}

/// A node's REST, for one caller.
#[derive(Clone)]
pub(crate) struct Http {
    authority: String,
    token: Option<String>,
}

impl Http {
    pub(crate) fn new(url: &str, token: Option<&str>) -> Http {
        Http { authority: url.trim_start_matches("http://").to_owned(), token: token.map(str::to_owned) }
    }

    /// Reads.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Bytes::new()).await
    }

    /// Sends JSON.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    /// Posts JSON.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, body).await
    }

    /// Carries a command out at the URL that the table of endpoints has for it.
    pub(crate) async fn command(&self, command: &Command, key: Option<&str>) -> Answer {
        let (method, path, body) = request_of(command);
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        self.send(&method, &path, &headers, body.to_string().into()).await
    }

    /// Sends anything.
    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let response = self.begin(method, path, headers, body).await;
        let (head, body) = response.into_parts();
        let body = within(path, body.collect()).await.unwrap().to_bytes().to_vec();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// Sends anything and returns as soon as the head of the answer is there.
    pub(crate) async fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(path).header("host", &self.authority);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        within(&format!("{method} {path}"), async {
            let stream = TcpStream::connect(&self.authority).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        })
        .await
    }

    /// Writes bytes as they are and returns everything that comes back until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        within("the answer to raw bytes", async {
            let mut stream = TcpStream::connect(&self.authority).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            // A reset behind the answer is an end too.
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        })
        .await
    }
}

/// Returns method, path and body of a command.
pub(crate) fn request_of(command: &Command) -> (String, String, Value) {
    let mut body: Value = serde_json::from_str(&command.body()).unwrap();
    let endpoint: Endpoint = colink::http::endpoints()
        .into_iter()
        .find(|e| e.command == Some(command.name()))
        .expect("every command has one");
    let fields = body.as_object_mut().unwrap();
    let part = |part: &str| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        Some(name) => match fields.remove(name).expect("the path names a field") {
            Value::String(text) => escaped(&text),
            other => other.to_string(),
        },
        None => part.to_owned(),
    };
    let path: Vec<String> = endpoint.path.split('/').map(part).collect();
    (endpoint.method.to_string(), path.join("/"), body)
}

/// Percent-encodes a part of a path or query.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
