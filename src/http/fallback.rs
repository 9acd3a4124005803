//! The gateway without WebSockets: long-poll and server-sent events, on the same sessions.
//!
//! A client registers a session, then asks for what comes behind the last event it has (long-poll) or lets it stream
//! (SSE). `last_event_id` is the gateway's `s`. Commands go over REST. A client may go over to a WebSocket inside a
//! session by `resume`, and back.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::JoinError;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument as _;

use super::auth;
use super::endpoint::{Answer as _, Key, Params, json_response, once, read_query, reply_response};
use super::error::{Refused, refusal};
use super::ws::next_connection;
use crate::actors::Hub;
use crate::actors::session::queue::{Taken, text_of};
use crate::actors::session::resume::Resumed;
use crate::actors::session::{Attached, OpenError};
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal, invalid, unavailable};
use crate::domain::id::{SessionId, StreamId};
use crate::protocol::client::{Intent, Resume};

/// The longest that a poll waits, in seconds.
const POLL_MAX_S: u64 = 60;
/// About how much one answer carries.
const ANSWER: usize = 256 * 1_024;
/// How often a quiet stream shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a session is to be sent.
#[derive(Deserialize, JsonSchema)]
pub struct Register {
    /// Some of `messages`, `reactions`, `typing`, `presence`; all, if left out.
    #[serde(default)]
    intents: Option<Vec<Intent>>,
}

/// A registered session.
#[derive(Serialize, JsonSchema)]
pub struct Registered {
    /// The session's identifier.
    pub queue_id: SessionId,
    /// Where to begin.
    pub last_event_id: i64,
    /// The `ready` frame, as on the gateway.
    #[schemars(with = "serde_json::Value")]
    pub ready: Box<RawValue>,
}

fn gone() -> Refusal {
    let why = "this node does not have the queue, or no longer what you missed: ask by POST with your cursors, or register anew";
    Refusal::new(Code::QueueGone, why)
}

fn failed(_: JoinError) -> Refusal {
    Refusal::new(Code::Internal, "the server failed on this request")
}

fn not_opened(error: OpenError) -> Refusal {
    match error {
        OpenError::TooMany => Refusal::new(Code::RateLimited, "too many sessions: end one first").retry_after(60.0),
        OpenError::Store(error) => refusal(error),
    }
}

/// `POST /v1/events/register`
pub async fn register(
    hub: Arc<Hub>,
    caller: Principal,
    _: Params,
    body: Register,
    key: Option<Key>,
) -> Result<Response, Refused> {
    let opening = async move { once(&hub, caller, key, open(&hub, caller, body)).await };
    // To its end even if the caller hangs up: who repeats it with the same key is answered the same.
    let opened = tokio::spawn(opening.in_current_span()).await;
    Ok(reply_response(StatusCode::CREATED, opened.map_err(failed)??))
}

/// Opens a session and returns it as JSON.
async fn open(hub: &Arc<Hub>, caller: Principal, body: Register) -> Result<String, Refused> {
    if hub.draining.is_cancelled() {
        return Err(unavailable("this node is being drained: connect to another").into());
    }
    let opening = Box::pin(hub.open_session(caller, body.intents.as_deref(), next_connection()));
    let (session, ready) = hub.store.in_time(opening).await.map_err(not_opened)?;
    let ready = RawValue::from_string(ready).map_err(|_| unavailable("cannot read the state"))?;
    let body = Registered { queue_id: session.id, last_event_id: 1, ready };
    Ok(serde_json::to_string(&body).expect("an answer has only string keys"))
}

/// Which events.
#[derive(Deserialize, JsonSchema)]
pub struct Poll {
    /// The session.
    queue_id: SessionId,
    /// The last event applied.
    last_event_id: i64,
    /// How long to wait for one, at most 60 seconds; 30, if left out.
    #[serde(default)]
    timeout_s: Option<u64>,
}

/// Which events, and from where to go on if this node does not have the session.
#[derive(Deserialize, JsonSchema)]
pub struct PollAnywhere {
    /// The session.
    queue_id: SessionId,
    /// The last event applied.
    last_event_id: i64,
    /// The last `seq` applied of each stream, as in the gateway's `resume`.
    #[serde(default)]
    #[schemars(with = "HashMap<String, i64>")]
    cursors: HashMap<StreamId, i64>,
    /// What a new session is to be sent; all, if left out.
    #[serde(default)]
    intents: Option<Vec<Intent>>,
    /// How long to wait for one, at most 60 seconds; 30, if left out.
    #[serde(default)]
    timeout_s: Option<u64>,
}

/// What came.
#[derive(Serialize, JsonSchema)]
pub struct Polled {
    /// The session to ask for from now on, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<SessionId>,
    /// Frames as on the gateway, in order; none, if the time ran out.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub events: Vec<Box<RawValue>>,
    /// The last event among them: what to ask with next.
    pub last_event_id: i64,
}

/// Holds a session for one request.
struct Held {
    session: Attached,
    _counted: TaskTrackerToken,
}

impl Held {
    async fn of(hub: &Hub, caller: Principal, id: SessionId, last: i64) -> Result<Held, Refusal> {
        let session = hub.directory.session(id).filter(|s| s.user_id == caller.user_id && !s.ended());
        let session = session.ok_or_else(gone)?;
        hub.check_sign_in(&session).await;
        session.queue.acknowledge(last);
        let (session, _) = hub.take_up(&session, next_connection(), last).ok_or_else(gone)?;
        Ok(Held { session, _counted: hub.connections.token() })
    }

    /// Goes on in a new session with what the log has behind the cursors, as a `resume` does on any node.
    async fn from_log(hub: &Arc<Hub>, caller: Principal, asked: PollAnywhere) -> Result<Held, Refused> {
        if hub.draining.is_cancelled() {
            return Err(unavailable("this node is being drained: ask another").into());
        }
        let PollAnywhere { queue_id: session_id, last_event_id: s, cursors, intents, .. } = asked;
        let resume = Resume { token: None, session_id, s, cursors, intents }.bounded()?;
        let resumed = hub.store.in_time(hub.resume_session(caller, &resume, next_connection())).await;
        match resumed.map_err(not_opened)? {
            Resumed::Yes { session, .. } => Ok(Held { session, _counted: hub.connections.token() }),
            Resumed::No { .. } => Err(gone().into()),
            Resumed::BadCursor => Err(invalid("a cursor is negative, or above what there is of its stream").into()),
        }
    }

    async fn work(&self) {
        std::future::poll_fn(|cx| self.session.queue.poll_work(self.session.connection(), cx)).await;
    }

    /// Takes what waits, about as much as one answer carries.
    fn take(&self, write: impl FnMut(Option<i64>, &[u8])) -> Taken {
        self.session.queue.take(self.session.connection(), ANSWER, write)
    }
}

/// `GET /v1/events`
pub async fn poll(hub: Arc<Hub>, caller: Principal, _: Params, query: Poll) -> Result<Polled, Refused> {
    let held = Held::of(&hub, caller, query.queue_id, query.last_event_id).await?;
    wait(&hub, &held, query.last_event_id, query.timeout_s).await
}

/// `POST /v1/events`: a poll that any node can answer.
pub async fn poll_anywhere(
    hub: Arc<Hub>,
    caller: Principal,
    _: Params,
    asked: PollAnywhere,
) -> Result<Response, Refused> {
    let (last, timeout_s) = (asked.last_event_id, asked.timeout_s);
    let polled = match Held::of(&hub, caller, asked.queue_id, last).await {
        Ok(held) => wait(&hub, &held, last, timeout_s).await?,
        Err(_) => {
            let held = Box::pin(Held::from_log(&hub, caller, asked)).await?;
            let queue_id = Some(held.session.id);
            Polled { queue_id, ..wait(&hub, &held, held.session.queue.last_s(), timeout_s).await? }
        }
    };
    Ok(json_response(StatusCode::OK, polled.into_json()))
}

/// Waits for events of a session.
async fn wait(hub: &Hub, held: &Held, last_event_id: i64, timeout_s: Option<u64>) -> Result<Polled, Refused> {
    // Only if something changed: a poll that always had something to bring would never wait.
    if held.session.queue.take_unheard() {
        hub.show_presence(&held.session);
    }
    let wait = Duration::from_secs(timeout_s.unwrap_or(30).min(POLL_MAX_S));
    let deadline = tokio::time::Instant::now() + wait;
    let mut polled = Polled { queue_id: None, events: Vec::new(), last_event_id };
    loop {
        let taken = held.take(|s, bytes| {
            let text = String::from_utf8(text_of(s, bytes)).unwrap_or_default();
            polled.events.extend(RawValue::from_string(text));
            polled.last_event_id = s.unwrap_or(polled.last_event_id);
        });
        if taken.close.is_some() && polled.events.is_empty() {
            return Err(gone().into());
        }
        if !polled.events.is_empty() {
            return Ok(polled);
        }
        tokio::select! {
            () = held.work() => {}
            () = hub.watch_sign_in(&held.session) => {}
            () = tokio::time::sleep_until(deadline) => return Ok(polled),
        }
    }
}

/// Which session to stream.
#[derive(Deserialize, JsonSchema)]
pub struct Stream {
    /// The session.
    queue_id: SessionId,
    /// The last event applied; the `Last-Event-ID` header goes before it.
    #[serde(default)]
    last_event_id: Option<i64>,
}

/// `GET /v1/events/stream`: server-sent events, `id` is the gateway's `s`.
pub async fn stream(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Refused> {
    let (parts, _) = request.into_parts();
    let caller = auth::caller(&hub, &parts).await?;
    let query: Stream = read_query(&parts)?;
    let header = parts.headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let last = header.or(query.last_event_id).unwrap_or(1);
    let held = Held::of(&hub, caller, query.queue_id, last).await?;
    hub.show_presence(&held.session);
    let chunks = stream::unfold(Some((held, hub)), |state| async {
        let (held, hub) = state?;
        let chunk = next_chunk(&held, &hub).await;
        match chunk {
            Chunk::More(bytes) => Some((Ok::<_, Infallible>(bytes), Some((held, hub)))),
            Chunk::Last(bytes) => Some((Ok(bytes), None)),
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

enum Chunk {
    More(Bytes),
    Last(Bytes),
}

async fn next_chunk(held: &Held, hub: &Hub) -> Chunk {
    loop {
        let mut out = Vec::new();
        let taken = held.take(|s, bytes| {
            if let Some(s) = s {
                out.extend_from_slice(format!("id: {s}\n").as_bytes());
            }
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(&text_of(s, bytes));
            out.extend_from_slice(b"\n\n");
        });
        if let Some(code) = taken.close {
            out.extend_from_slice(format!("event: close\ndata: {{\"code\":{}}}\n\n", code.code()).as_bytes());
            return Chunk::Last(out.into());
        }
        if !out.is_empty() {
            return Chunk::More(out.into());
        }
        tokio::select! {
            () = held.work() => {}
            () = hub.watch_sign_in(&held.session) => {}
            () = tokio::time::sleep(KEEP_ALIVE) => return Chunk::More(Bytes::from_static(b": alive\n\n")),
        }
    }
}
