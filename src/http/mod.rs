//! REST and the gateway: every URL on one page.
//!
//! [`endpoints`] is the table that the router and the OpenAPI document are made from; [`router`] adds what is no
//! resource: the WebSocket, health, metrics, the reference. A handler is thin: who asks, one command or one query, the
//! answer. Errors become problem details in one place, the outermost layer.

pub mod admin;
pub mod auth;
pub mod channels;
pub mod endpoint;
pub mod error;
pub mod fallback;
pub mod openapi;
pub mod operator;
pub mod search;
pub mod serve;
pub mod stall;
pub mod users;
pub mod ws;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use endpoint::{Endpoint, action, command, json_response, keyed_action, open, public, query, stream, waiting_query};
use error::Refused;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use tracing::Instrument as _;

use crate::actors::Hub;
use crate::actors::trace::{Asked, is_traceparent};
use crate::config::Server;
use crate::domain::command as c;
use crate::domain::error::{Code, Refusal, invalid};
use crate::domain::id::EventId;
use crate::telemetry;

/// Every resource, in the order of the reference.
#[must_use]
pub fn endpoints() -> Vec<Endpoint> {
    let (ok, made) = (StatusCode::OK, StatusCode::CREATED);
    let (put, post, patch, delete) = (Method::PUT, Method::POST, Method::PATCH, Method::DELETE);
    vec![
        // Signing in and out.
        open::<auth::Login, auth::SignedIn, _, _>("/v1/auth/login", ok, "Signs in with a password", auth::login),
        open::<auth::SignUp, auth::SignedIn, _, _>(
            "/v1/auth/signup",
            ok,
            "Makes an account with an invitation",
            auth::sign_up,
        ),
        action::<_, auth::Nothing, _, _>(
            post.clone(),
            "/v1/auth/logout",
            ok,
            "Ends the caller's sign-in",
            auth::logout,
        ),
        action::<_, auth::Nothing, _, _>(
            put.clone(),
            "/v1/auth/password",
            ok,
            "Changes the caller's password and ends all sign-ins",
            auth::change_password,
        ),
        query("/v1/auth/sessions", "Lists the caller's sign-ins", auth::sessions),
        keyed_action::<_, auth::Nothing, _, _>(
            delete.clone(),
            "/v1/auth/sessions/{token_id}",
            ok,
            "Ends one of the caller's sign-ins",
            auth::end_session,
        ),
        // Users.
        query("/v1/users", "Lists users by handle", users::list),
        command::<c::CreateUser>(post.clone(), "/v1/users", made, "Makes an account (administrators)"),
        query("/v1/users/me", "Returns the caller", users::me),
        command::<c::UpdateProfile>(patch.clone(), "/v1/users/me", ok, "Changes the caller's profile"),
        command::<c::SetStatus>(put.clone(), "/v1/users/me/status", ok, "Sets or clears the caller's custom status"),
        command::<c::SetPresence>(put.clone(), "/v1/users/me/presence", ok, "Chooses how the caller is shown"),
        query("/v1/users/{user_id}", "Returns a user", users::one),
        command::<c::SetUserRole>(put.clone(), "/v1/users/{user_id}/role", ok, "Gives a user a role (administrators)"),
        command::<c::DeactivateUser>(
            post.clone(),
            "/v1/users/{user_id}/deactivate",
            ok,
            "Deactivates an account (administrators)",
        ),
        command::<c::ReactivateUser>(
            post.clone(),
            "/v1/users/{user_id}/reactivate",
            ok,
            "Brings an account back (administrators)",
        ),
        keyed_action::<_, auth::MadeToken, _, _>(
            post.clone(),
            "/v1/users/{user_id}/tokens",
            made,
            "Makes a token for oneself, or for others (administrators)",
            auth::make_token,
        ),
        query("/v1/presence", "Returns who of some users is online", users::presence),
        query("/v1/invites", "Lists open invitations (administrators)", auth::invites),
        command::<c::CreateInvite>(post.clone(), "/v1/invites", made, "Makes an invitation (administrators)"),
        command::<c::RevokeInvite>(
            delete.clone(),
            "/v1/invites/{invite_id}",
            ok,
            "Ends an invitation (administrators)",
        ),
        // Channels.
        query("/v1/channels", "Lists the caller's channels, with what is unread", channels::mine),
        command::<c::CreateChannel>(post.clone(), "/v1/channels", made, "Makes a channel"),
        query("/v1/channels/browse", "Lists public channels by name", channels::browse),
        command::<c::OpenDirect>(
            post.clone(),
            "/v1/channels/direct",
            ok,
            "Opens a direct message or group, the one there is if there is one",
        ),
        query("/v1/channels/{channel_id}", "Returns a channel", channels::one),
        command::<c::UpdateChannel>(
            patch.clone(),
            "/v1/channels/{channel_id}",
            ok,
            "Changes name, topic, purpose or who may post",
        ),
        command::<c::ArchiveChannel>(post.clone(), "/v1/channels/{channel_id}/archive", ok, "Archives a channel"),
        command::<c::UnarchiveChannel>(
            post.clone(),
            "/v1/channels/{channel_id}/unarchive",
            ok,
            "Takes a channel out of the archive",
        ),
        command::<c::JoinChannel>(post.clone(), "/v1/channels/{channel_id}/join", ok, "Joins a public channel"),
        command::<c::LeaveChannel>(post.clone(), "/v1/channels/{channel_id}/leave", ok, "Leaves a channel"),
        query("/v1/channels/{channel_id}/members", "Lists a channel's members", channels::members),
        command::<c::InviteMember>(
            post.clone(),
            "/v1/channels/{channel_id}/members",
            ok,
            "Brings somebody into a channel",
        ),
        command::<c::RemoveMember>(
            delete.clone(),
            "/v1/channels/{channel_id}/members/{user_id}",
            ok,
            "Removes somebody from a channel",
        ),
        command::<c::SetChannelRole>(
            put.clone(),
            "/v1/channels/{channel_id}/members/{user_id}/role",
            ok,
            "Gives a member a role in a channel",
        ),
        command::<c::MarkRead>(
            put.clone(),
            "/v1/channels/{channel_id}/read",
            ok,
            "Marks a channel read up to an event",
        ),
        command::<c::MarkUnread>(
            put.clone(),
            "/v1/channels/{channel_id}/unread",
            ok,
            "Marks a channel unread from a message on",
        ),
        command::<c::SetChannelPreferences>(
            put.clone(),
            "/v1/channels/{channel_id}/preferences",
            ok,
            "Mutes a channel or chooses what to be told of",
        ),
        command::<c::SetDraft>(
            put.clone(),
            "/v1/channels/{channel_id}/draft",
            ok,
            "Keeps a draft; an empty text removes it",
        ),
        query("/v1/channels/{channel_id}/pins", "Lists a channel's pinned messages", channels::pins),
        query(
            "/v1/channels/{channel_id}/events",
            "Returns a channel's events behind a number",
            channels::channel_events,
        ),
        // Messages.
        query("/v1/channels/{channel_id}/messages", "Returns a page of a channel's history", channels::history),
        command::<c::SendMessage>(
            post.clone(),
            "/v1/channels/{channel_id}/messages",
            made,
            "Posts a message or a reply",
        ),
        query("/v1/channels/{channel_id}/messages/{seq}", "Returns a message and its permalink", channels::message_at),
        command::<c::EditMessage>(
            patch,
            "/v1/channels/{channel_id}/messages/{seq}",
            ok,
            "Edits a message of one's own",
        ),
        command::<c::DeleteMessage>(
            delete.clone(),
            "/v1/channels/{channel_id}/messages/{seq}",
            ok,
            "Deletes a message",
        ),
        query("/v1/channels/{channel_id}/messages/{seq}/edits", "Returns a message's earlier texts", channels::edits),
        query("/v1/channels/{channel_id}/messages/{seq}/replies", "Returns a thread's replies", channels::replies),
        command::<c::AddReaction>(
            put.clone(),
            "/v1/channels/{channel_id}/messages/{seq}/reactions/{emoji}",
            ok,
            "Reacts to a message",
        ),
        command::<c::RemoveReaction>(
            delete.clone(),
            "/v1/channels/{channel_id}/messages/{seq}/reactions/{emoji}",
            ok,
            "Takes a reaction back",
        ),
        command::<c::AddPin>(put.clone(), "/v1/channels/{channel_id}/messages/{seq}/pin", ok, "Pins a message"),
        command::<c::RemovePin>(delete.clone(), "/v1/channels/{channel_id}/messages/{seq}/pin", ok, "Removes a pin"),
        command::<c::AddSaved>(
            put.clone(),
            "/v1/channels/{channel_id}/messages/{seq}/saved",
            ok,
            "Saves a message for later",
        ),
        command::<c::RemoveSaved>(
            delete.clone(),
            "/v1/channels/{channel_id}/messages/{seq}/saved",
            ok,
            "Removes a message from the saved ones",
        ),
        command::<c::FollowThread>(
            put.clone(),
            "/v1/channels/{channel_id}/threads/{thread_seq}/follow",
            ok,
            "Follows a thread",
        ),
        command::<c::UnfollowThread>(
            delete,
            "/v1/channels/{channel_id}/threads/{thread_seq}/follow",
            ok,
            "Stops following a thread",
        ),
        command::<c::MarkThreadRead>(
            put.clone(),
            "/v1/channels/{channel_id}/threads/{thread_seq}/read",
            ok,
            "Marks a thread read up to a reply",
        ),
        command::<c::MarkThreadUnread>(
            put,
            "/v1/channels/{channel_id}/threads/{thread_seq}/unread",
            ok,
            "Marks a thread unread from a reply on",
        ),
        query(
            "/v1/channels/{channel_id}/threads/{thread_seq}",
            "Returns a thread: what is unread in it, and whether the caller follows it",
            channels::thread,
        ),
        query("/v1/saved", "Lists the caller's saved messages, newest first", channels::saved),
        query("/v1/drafts", "Lists the caller's drafts", channels::drafts),
        query("/v1/threads", "Lists the threads that the caller follows", channels::threads),
        query("/v1/search/messages", "Finds messages that the caller may read", search::messages),
        // Administration.
        query("/v1/admin/cluster", "Returns the nodes and how they stand (administrators)", admin::cluster),
        // Events, and how they come without WebSockets.
        query(
            "/v1/streams/{stream_id}/events",
            "Returns events of a channel, of one's own stream, or of the workspace's",
            channels::stream_events,
        ),
        keyed_action::<_, fallback::Registered, _, _>(
            post.clone(),
            "/v1/events/register",
            made,
            "Opens a session for long-poll or server-sent events",
            fallback::register,
        ),
        waiting_query("/v1/events", "Waits for a session's next events, on the node that has it", fallback::poll),
        action::<_, fallback::Polled, _, _>(
            post,
            "/v1/events",
            ok,
            "Waits for a session's next events; a node that does not have it goes on behind the cursors",
            fallback::poll_anywhere,
        ),
        stream::<fallback::Stream, _, _>(
            "/v1/events/stream",
            "Sends a session's events as they come: `id` is `s`, `data` is the frame",
            fallback::stream,
        ),
        public("/v1/gateway", "Says where the WebSocket is", gateway),
    ]
}

/// Makes the router.
pub fn router(hub: Arc<Hub>) -> Router {
    let mut router = Router::new();
    for endpoint in endpoints() {
        router = (endpoint.add)(router);
    }
    router
        .route("/v1/ws", get(ws::upgrade))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/docs", get(openapi::page))
        .route("/operator", post(operator::run))
        .route("/c/{channel_id}/{seq}", get(permalink))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/", get(|| async { Redirect::temporary("/v1/docs") }))
        .fallback(|| async { Refused(nothing_here()) })
        .method_not_allowed_fallback(|| async {
            Refused(Refusal::new(Code::MethodNotAllowed, "this URL does not take that method"))
        })
        .layer(middleware::from_fn_with_state(hub.clone(), outermost))
        .with_state(hub)
}

/// How many requests may come at once, how many of these are left, and the seconds until all are there again.
static RATE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Bounds every request, names it, turns refusals into problem details, and tells how much the caller may still ask.
async fn outermost(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&hub, &request);
    let standings = auth::Standings::default();
    request.extensions_mut().insert(standings.clone());
    let server = &hub.config.server;
    let waits = ["/v1/events", "/v1/events/stream"].contains(&request.uri().path());
    let too_large = too_large(server, &request);
    // Whatever is logged on the way is logged under the request's name, on other nodes, too.
    let parent = traceparent(&request);
    let span = tracing::error_span!("request", request.id = %id, trace.parent = parent.as_deref());
    let asked = Asked::Http { id: id.as_str().into(), parent };
    let answered = asked.scope(next.run(request).instrument(span));
    let mut response = if let Some(refusal) = too_large {
        Refused(refusal).into_response()
    } else if waits || server.request_timeout_ms == 0 {
        answered.await
    } else {
        let limit = Duration::from_millis(server.request_timeout_ms);
        let late = "no answer in time: repeat the request with the same key";
        tokio::time::timeout(limit, answered)
            .await
            .unwrap_or_else(|_| Refused(Refusal::new(Code::Timeout, late)).into_response())
    };
    let refused = response.extensions_mut().remove::<Refused>();
    // The router refuses some paths by itself, such as one that is not UTF-8.
    let by_router = || response.status().is_client_error().then(|| Refused(invalid("the URL is malformed")));
    if let Some(Refused(refusal)) = refused.or_else(by_router) {
        if refusal.code == Code::Internal {
            tracing::error!(request.id = %id, error = %refusal, "a request failed");
        }
        response = error::problem(&refusal, &id);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(standing) = standings.0.get() {
        headers.insert(RATE_HEADERS[0].clone(), standing.limit.into());
        headers.insert(RATE_HEADERS[1].clone(), standing.left.into());
        headers.insert(RATE_HEADERS[2].clone(), HeaderValue::from(standing.full_in.as_secs_f64().ceil() as u64));
    }
    response
}

/// The longest path, in bytes: twice what the longest of the API's takes with every letter escaped.
const PATH_MAX: usize = 2_048;
/// The most headers of a request.
const HEADERS_MAX: usize = 100;

/// Refuses a request whose head is over a limit. The HTTP library is given room for more, for it answers without a word.
fn too_large(server: &Server, request: &Request) -> Option<Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let (most, longest_query) = (server.max_header_bytes, server.max_query_bytes);
    let lines: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if uri.path().len() > PATH_MAX {
        return Some(Refusal::new(Code::UriTooLong, format!("the path is longer than {PATH_MAX} bytes")));
    }
    if longest_query > 0 && uri.query().is_some_and(|query| query.len() > longest_query) {
        return Some(Refusal::new(Code::TooLarge, format!("the query is longer than {longest_query} bytes")));
    }
    if lines + uri.path().len() + uri.query().map_or(0, str::len) > most {
        return Some(Refusal::new(Code::HeadersTooLarge, format!("the request's head is longer than {most} bytes")));
    }
    if headers.len() > HEADERS_MAX {
        let why = format!("the request has {} headers: at most {HEADERS_MAX} are read", headers.len());
        return Some(Refusal::new(Code::HeadersTooLarge, why));
    }
    None
}

/// A caller may name its requests itself, so that they are found in several logs.
fn request_id(hub: &Hub, request: &Request) -> String {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let fits = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match given.filter(fits) {
        Some(id) => id.to_owned(),
        None => EventId::new(hub.clock.now()).0.simple().to_string(),
    }
}

/// Returns the trace that a request says it is a part of.
fn traceparent(request: &Request) -> Option<Arc<str>> {
    let given = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    given.filter(|text| is_traceparent(text)).map(Arc::from)
}

/// Where the WebSocket is, and how it is spoken.
#[derive(Serialize, JsonSchema)]
pub struct Gateway {
    /// Where to connect.
    url: String,
    /// Where to connect to resume a session.
    resume_url: String,
    /// How frames may be written.
    encodings: Vec<&'static str>,
    /// How frames may be compressed.
    compress: Vec<&'static str>,
    /// How often the client shows that it lives.
    heartbeat_interval_ms: u64,
}

/// `GET /v1/gateway`
fn gateway(hub: &Hub) -> Gateway {
    let (url, heartbeat_interval_ms) = (hub.config.server.gateway_url(), hub.config.gateway.heartbeat_interval_ms);
    Gateway { resume_url: url.clone(), url, encodings: vec!["json"], compress: Vec::new(), heartbeat_interval_ms }
}

/// The thread that a permalink leads into.
#[derive(serde::Deserialize)]
struct InThread {
    thread: Option<i64>,
}

/// `GET /c/{channel_id}/{seq}`, for a reply with `?thread={thread_seq}`: a permalink leads to the message and what stands
/// around it.
async fn permalink(Path((channel, seq)): Path<(String, i64)>, Query(InThread { thread }): Query<InThread>) -> Redirect {
    Redirect::temporary(&match thread {
        Some(thread) => format!("/v1/channels/{channel}/messages/{thread}/replies?around_seq={seq}"),
        None => format!("/v1/channels/{channel}/messages?around_seq={seq}"),
    })
}

/// `GET /health`: the process runs. Never touches anything else.
async fn health() -> Response {
    json_response(StatusCode::OK, r#"{"status":"ok"}"#.into())
}

/// `GET /ready`: this node may be sent requests.
async fn ready(State(hub): State<Arc<Hub>>) -> Response {
    let database = tokio::time::timeout(Duration::from_secs(3), hub.store.version()).await;
    let database = matches!(database, Ok(Ok(_)));
    let draining = hub.draining.is_cancelled();
    let status = if database && !draining { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"ready": status == StatusCode::OK, "node": hub.node, "draining": draining,
        "checks": {"database": database}});
    json_response(status, body.to_string().into())
}

fn nothing_here() -> Refusal {
    Refusal::new(Code::NotFound, "there is nothing at this URL")
}

/// `GET /metrics`: in Prometheus' text format.
async fn metrics(State(hub): State<Arc<Hub>>) -> Result<Response, Refused> {
    if !hub.config.metrics.enabled {
        return Err(nothing_here().into());
    }
    let text = telemetry::render_metrics().unwrap_or_default();
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
