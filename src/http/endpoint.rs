//! What a URL is made of: a method, a path, what goes in and comes out, and one handler.
//!
//! Three kinds: [`command`] (most of them: the body and the path together are a command of the domain), [`query`],
//! [`public`] and [`stream`] (reads), and [`action`], [`keyed_action`] and [`open`] for what is neither, such as signing in.
//! Each knows its schemas, so the OpenAPI document is made from the same table that the router is made from.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::auth;
use super::error::Refused;
use super::serve::origin;
use crate::actors::Hub;
use crate::domain::command::{Principal, Spec, key_fits};
use crate::domain::error::{Code, Refusal, invalid};
use crate::domain::id::{ChannelId, InviteId, StreamId, TokenId, UserId};
use crate::storage::accounts::{Account, NO_ANSWER, SYSTEM};
use crate::storage::writer::{Reply, Work};

/// Adds an endpoint to the router.
type Add = Box<dyn Fn(Router<Arc<Hub>>) -> Router<Arc<Hub>> + Send + Sync>;

type Schemas = fn(&mut SchemaGenerator) -> Schema;

const JSON: &str = "application/json";

/// One URL.
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path, parameters in braces.
    pub path: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Whether it needs a signed-in caller.
    pub signed_in: bool,
    /// Whether it takes an `Idempotency-Key`.
    pub takes_key: bool,
    /// The schema of the body, if it takes one.
    pub body: Option<Schemas>,
    /// The schema of the query, if it takes one.
    pub query: Option<Schemas>,
    /// The schema of the answer.
    pub reply: Schemas,
    /// The media type of the answer.
    pub media: &'static str,
    /// The status of success.
    pub status: StatusCode,
    /// The command behind it, if it is one.
    pub command: Option<&'static str>,
    pub(super) add: Add,
}

/// What a read answers with: a value to be rendered, or [`Rendered`] JSON.
pub trait Answer: Send {
    /// The type that the reference describes.
    type Shown: JsonSchema;

    /// Returns the JSON.
    fn into_json(self) -> Bytes;
}

impl<T: Serialize + JsonSchema + Send> Answer for T {
    type Shown = T;

    fn into_json(self) -> Bytes {
        serde_json::to_vec(&self).expect("an answer has only string keys").into()
    }
}

/// A `T` that was rendered before.
pub struct Rendered<T>(pub Bytes, pub PhantomData<fn() -> T>);

impl<T: JsonSchema> Answer for Rendered<T> {
    type Shown = T;

    fn into_json(self) -> Bytes {
        self.0
    }
}

/// Makes a response of a write's answer; one that repeats an earlier answer says so.
pub fn reply_response(status: StatusCode, reply: Reply) -> Response {
    let mut response = json_response(status, reply.json.into());
    if reply.duplicate {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    response
}

/// Makes a response of rendered JSON.
pub fn json_response(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// The parameters of a path, and the address that the request comes from.
#[derive(Debug)]
pub struct Params(HashMap<String, String>, IpAddr);

impl Params {
    fn get<T: FromStr>(&self, name: &str) -> Result<T, Refusal> {
        let text = self.0.get(name).map_or("", String::as_str);
        text.parse().map_err(|_| invalid(format!("{name} in the path is malformed")))
    }

    /// Returns the address that the request comes from.
    pub fn origin(&self) -> IpAddr {
        self.1
    }

    /// Returns the channel that the path names.
    pub fn channel(&self) -> Result<ChannelId, Refusal> {
        self.get("channel_id")
    }

    /// Returns the user that the path names.
    pub fn user(&self) -> Result<UserId, Refusal> {
        self.get("user_id")
    }

    /// Returns the stream that the path names.
    pub fn stream(&self) -> Result<StreamId, Refusal> {
        self.get("stream_id")
    }

    /// Returns the sign-in that the path names.
    pub fn token(&self) -> Result<TokenId, Refusal> {
        self.get("token_id")
    }

    /// Returns the event that the path names.
    pub fn seq(&self) -> Result<i64, Refusal> {
        self.get("seq")
    }

    /// Returns the message that the path names, on which a thread hangs.
    pub fn thread_seq(&self) -> Result<i64, Refusal> {
        self.get("thread_seq")
    }

    /// Checks the form of every parameter and returns them as JSON.
    fn into_json(self) -> Result<Map<String, Value>, Refusal> {
        let mut fields = Map::new();
        for (name, text) in &self.0 {
            let value = match name.as_str() {
                "seq" | "thread_seq" => Value::from(self.get::<i64>(name)?),
                "channel_id" => Value::from(self.get::<ChannelId>(name)?.to_string()),
                "user_id" => Value::from(self.get::<UserId>(name)?.to_string()),
                "invite_id" => Value::from(self.get::<InviteId>(name)?.to_string()),
                _ => Value::from(text.as_str()),
            };
            fields.insert(name.clone(), value);
        }
        Ok(fields)
    }
}

fn filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).expect("every endpoint has a method that the router knows")
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A command: the fields of the body and the parameters of the path together.
pub fn command<C: Spec>(method: Method, path: &'static str, status: StatusCode, summary: &'static str) -> Endpoint {
    let on_method = filter(&method);
    let handler = move |State(hub): State<Arc<Hub>>, Path(path): Path<HashMap<String, String>>, request: Request| {
        run_command::<C>(hub, path, request, status)
    };
    Endpoint {
        method,
        path,
        summary,
        signed_in: true,
        takes_key: true,
        body: Some(schema_of::<C>),
        query: None,
        reply: schema_of::<C::Reply>,
        media: JSON,
        status,
        command: Some(C::NAME),
        add: Box::new(move |router| router.route(path, on(on_method, handler))),
    }
}

async fn run_command<C: Spec>(
    hub: Arc<Hub>,
    path: HashMap<String, String>,
    request: Request,
    status: StatusCode,
) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    let path = Params(path, origin(&parts.extensions));
    let caller = auth::caller(&hub, &parts).await?;
    let key = idempotency_key(&parts.headers)?;
    let mut fields = body_fields(&hub, &parts.headers, body).await?;
    fields.extend(path.into_json()?);
    let command: C = read(Value::Object(fields))?;
    hub.note_active_elsewhere(caller.user_id);
    let reply = hub.run(caller, command.into(), key).await?;
    Ok(reply_response(status, reply))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().map_err(|_| invalid("the Idempotency-Key header has characters beyond ASCII"))?;
    Ok(Some(text.to_owned()))
}

/// An idempotency key, and the SHA-256 of the request that it is bound to.
pub struct Key {
    /// The key.
    pub text: String,
    /// What it is bound to.
    pub hash: [u8; 32],
}

impl Key {
    fn of(parts: &Parts, fields: &Value) -> Result<Option<Key>, Refusal> {
        let Some(text) = idempotency_key(&parts.headers)? else { return Ok(None) };
        key_fits("idempotency key", &text)?;
        let request = format!("{} {}\n{fields}", parts.method, parts.uri.path());
        Ok(Some(Key { text, hash: Sha256::digest(request).into() }))
    }
}

/// Has account work done for a caller: once, if they gave a key.
pub async fn write(hub: &Hub, caller: Principal, account: Account, key: Option<Key>) -> Result<Reply, Refusal> {
    let work = match key {
        Some(Key { text: key, hash }) => Work::Once { account: Box::new(account), key, hash },
        None => Work::Account(account),
    };
    hub.writer.write(caller, work, None).await
}

/// A repeat waits for the first request with its key; those whose keys fall together wait for one another.
static TURNS: [Mutex<()>; 64] = [const { Mutex::const_new(()) }; 64];

/// Does what only this node's memory knows of, or gives the first answer to its key. The answer is kept right behind it,
/// not with it: if the server dies in between, so does what was done, and a repeat does it again.
pub async fn once(
    hub: &Hub,
    caller: Principal,
    key: Option<Key>,
    run: impl Future<Output = Result<String, Refused>>,
) -> Result<Reply, Refused> {
    let Some(Key { text: key, hash }) = key else { return Ok(Reply { json: run.await?, duplicate: false }) };
    let user = caller.user_id;
    let turn = Sha256::digest(format!("{user}{key}"))[0];
    let _turn = TURNS[usize::from(turn) % TURNS.len()].lock().await;
    let look = Account::FirstAnswer { user, key: key.clone(), hash };
    let first = hub.writer.write(SYSTEM, Work::Account(look), None).await?;
    if first.json != NO_ANSWER {
        return Ok(Reply { duplicate: true, ..first });
    }
    let json = run.await?;
    let keep = Account::KeepAnswer { user, key, hash, response: json.clone() };
    if let Err(error) = hub.writer.write(SYSTEM, Work::Account(keep), None).await {
        // It is done, so whoever asked is told; only who does not hear of it and repeats has it done twice.
        tracing::warn!(user.id = %user, %error, "cannot keep an answer for its idempotency key");
    }
    Ok(Reply { json, duplicate: false })
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_json::from_value(value).map_err(|e| invalid(e.to_string()))
}

/// Reads the body within its bound: a JSON object, or nothing at all.
async fn body_fields(hub: &Hub, headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Refusal> {
    let most = hub.config.server.max_body_bytes;
    let json = headers.get(header::CONTENT_TYPE).is_none_or(|t| t.as_bytes().starts_with(b"application/json"));
    let body = axum::body::to_bytes(body, most)
        .await
        .map_err(|_| Refusal::new(Code::TooLarge, format!("the body is larger than {most} bytes or was cut off")))?;
    if body.is_empty() {
        return Ok(Map::new());
    }
    if !json {
        return Err(Refusal::new(Code::NotJson, "the body must be application/json"));
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(invalid("the body must be a JSON object")),
        Err(error) => Err(invalid(format!("the body is not JSON: {error}"))),
    }
}

/// A read, which does not wait for longer than the database may take.
pub fn query<Q, A, F, Fut>(path: &'static str, summary: &'static str, run: F) -> Endpoint
where
    Q: DeserializeOwned + JsonSchema + Send + 'static,
    A: Answer,
    F: Fn(Arc<Hub>, Principal, Params, Q) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<A, Refused>> + Send,
{
    waiting_query(path, summary, move |hub: Arc<Hub>, caller, path, query| {
        let answer = run(hub.clone(), caller, path, query);
        async move { hub.store.in_time(answer).await }
    })
}

/// A read that waits for as long as it likes.
pub fn waiting_query<Q, A, F, Fut>(path: &'static str, summary: &'static str, run: F) -> Endpoint
where
    Q: DeserializeOwned + JsonSchema + Send + 'static,
    A: Answer,
    F: Fn(Arc<Hub>, Principal, Params, Q) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<A, Refused>> + Send,
{
    let handler = move |State(hub): State<Arc<Hub>>, Path(path): Path<HashMap<String, String>>, request: Request| {
        let run = run.clone();
        async move {
            let (parts, _) = request.into_parts();
            let caller = auth::caller(&hub, &parts).await?;
            let query = read_query::<Q>(&parts)?;
            let answer = run(hub, caller, Params(path, origin(&parts.extensions)), query).await?;
            Ok::<_, Refused>(json_response(StatusCode::OK, answer.into_json()))
        }
    };
    Endpoint {
        method: Method::GET,
        path,
        summary,
        signed_in: true,
        takes_key: false,
        body: None,
        query: Some(schema_of::<Q>),
        reply: schema_of::<A::Shown>,
        media: JSON,
        status: StatusCode::OK,
        command: None,
        add: Box::new(move |router| router.route(path, on(MethodFilter::GET, handler.clone()))),
    }
}

/// A read for anybody, of what this node knows by itself.
pub fn public<A, F>(path: &'static str, summary: &'static str, run: F) -> Endpoint
where
    A: Answer,
    F: Fn(&Hub) -> A + Clone + Send + Sync + 'static,
{
    let handler = move |State(hub): State<Arc<Hub>>| {
        let answer = run(&hub).into_json();
        async move { json_response(StatusCode::OK, answer) }
    };
    Endpoint {
        method: Method::GET,
        path,
        summary,
        signed_in: false,
        takes_key: false,
        body: None,
        query: None,
        reply: schema_of::<A::Shown>,
        media: JSON,
        status: StatusCode::OK,
        command: None,
        add: Box::new(move |router| router.route(path, on(MethodFilter::GET, handler.clone()))),
    }
}

/// A read that goes on as server-sent events. The handler takes the request as it is.
pub fn stream<Q, F, Fut>(path: &'static str, summary: &'static str, run: F) -> Endpoint
where
    Q: JsonSchema + 'static,
    F: Fn(State<Arc<Hub>>, Request) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Refused>> + Send + 'static,
{
    Endpoint {
        method: Method::GET,
        path,
        summary,
        signed_in: true,
        takes_key: false,
        body: None,
        query: Some(schema_of::<Q>),
        reply: schema_of::<String>,
        media: "text/event-stream",
        status: StatusCode::OK,
        command: None,
        add: Box::new(move |router| router.route(path, on(MethodFilter::GET, run.clone()))),
    }
}

/// Reads a query string.
pub fn read_query<Q: DeserializeOwned>(parts: &Parts) -> Result<Q, Refusal> {
    axum::extract::Query::<Q>::try_from_uri(&parts.uri)
        .map(|query| query.0)
        .map_err(|error| invalid(format!("the query is malformed: {}", error.body_text())))
}

/// What neither is a command nor a read, for a signed-in caller.
///
/// It takes no key: it ends the sign-in that a repeat would come by, it carries a secret, of which nothing is kept that
/// could be guessed at, or it may be done as often as one likes.
pub fn action<B, R, F, Fut>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    run: F,
) -> Endpoint
where
    B: DeserializeOwned + JsonSchema + Send + 'static,
    R: JsonSchema + 'static,
    F: Fn(Arc<Hub>, Principal, Params, B) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Refused>> + Send + 'static,
{
    let run = move |hub, caller, path, body, _: Option<Key>| run(hub, caller, path, body);
    any_action::<B, R, _, _>(method, path, status, summary, false, run)
}

/// An [`action`] that is done once, if the caller gives a key.
pub fn keyed_action<B, R, F, Fut>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    run: F,
) -> Endpoint
where
    B: DeserializeOwned + JsonSchema + Send + 'static,
    R: JsonSchema + 'static,
    F: Fn(Arc<Hub>, Principal, Params, B, Option<Key>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Refused>> + Send + 'static,
{
    any_action::<B, R, _, _>(method, path, status, summary, true, run)
}

fn any_action<B, R, F, Fut>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    takes_key: bool,
    run: F,
) -> Endpoint
where
    B: DeserializeOwned + JsonSchema + Send + 'static,
    R: JsonSchema + 'static,
    F: Fn(Arc<Hub>, Principal, Params, B, Option<Key>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Refused>> + Send + 'static,
{
    let on_method = filter(&method);
    let handler = move |State(hub): State<Arc<Hub>>, Path(path): Path<HashMap<String, String>>, request: Request| {
        let run = run.clone();
        async move {
            let (parts, body) = request.into_parts();
            let caller = auth::caller(&hub, &parts).await?;
            let fields = Value::Object(body_fields(&hub, &parts.headers, body).await?);
            let key = if takes_key { Key::of(&parts, &fields)? } else { None };
            run(hub, caller, Params(path, origin(&parts.extensions)), read(fields)?, key).await
        }
    };
    Endpoint {
        method,
        path,
        summary,
        signed_in: true,
        takes_key,
        body: Some(schema_of::<B>),
        query: None,
        reply: schema_of::<R>,
        media: JSON,
        status,
        command: None,
        add: Box::new(move |router| router.route(path, on(on_method, handler.clone()))),
    }
}

/// What anybody may ask, such as signing in. The handler gets the caller's address.
pub fn open<B, R, F, Fut>(path: &'static str, status: StatusCode, summary: &'static str, run: F) -> Endpoint
where
    B: DeserializeOwned + JsonSchema + Send + 'static,
    R: JsonSchema + 'static,
    F: Fn(Arc<Hub>, IpAddr, B) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Refused>> + Send,
{
    let handler = move |State(hub): State<Arc<Hub>>, request: Request| {
        let run = run.clone();
        async move {
            let (parts, body) = request.into_parts();
            auth::same_origin(&hub, &parts.headers)?;
            let from = origin(&parts.extensions);
            let body = read(Value::Object(body_fields(&hub, &parts.headers, body).await?))?;
            run(hub, from, body).await
        }
    };
    Endpoint {
        method: Method::POST,
        path,
        summary,
        signed_in: false,
        takes_key: false,
        body: Some(schema_of::<B>),
        query: None,
        reply: schema_of::<R>,
        media: JSON,
        status,
        command: None,
        add: Box::new(move |router| router.route(path, on(MethodFilter::POST, handler.clone()))),
    }
}
