//! `/v1/ws`: one task a connection, between the socket and the session's queue.
//!
//! fastwebsockets shakes hands, here; from then on the socket is bare and `protocol::wire` reads and writes its frames
//! within bounds (docs/adr/0004). `greeting.rs` is what happens until a session is open, `connection.rs` what happens then.

mod connection;
mod greeting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::auth;
use super::error::Refused;
use super::serve::{Place, origin};
use super::stall::Patient;
use crate::actors::Hub;
use crate::domain::error::{Refusal, invalid, unavailable};
use crate::protocol::close::CloseCode;
use connection::Connection;
use greeting::whose;

/// The subprotocol.
const SUBPROTOCOL: &str = "colink.v1";
/// What the name of every version begins with.
const ANY_VERSION: &str = "colink.v";
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Returns the number of a new connection, of whatever transport. None is 0.
pub(super) fn next_connection() -> u64 {
    CONNECTIONS.fetch_add(1, Ordering::Relaxed)
}

/// Shakes hands and starts the connection's task.
pub async fn upgrade(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Refused> {
    let (parts, _) = request.into_parts();
    let mut request = axum::http::Request::from_parts(parts, ());
    if !fastwebsockets::upgrade::is_upgrade_request(&request) {
        return Err(invalid("this is a WebSocket: connect with ws:// or wss://, subprotocol colink.v1").into());
    }
    if hub.draining.is_cancelled() {
        return Err(unavailable("this node is being drained: connect to another").into());
    }
    let from = origin(request.extensions());
    let chosen = subprotocol(request.headers())?;
    let spoken = chosen.as_deref().is_none_or(|name| name == SUBPROTOCOL);
    let known = match auth::token_of(request.headers()) {
        Some((token, from_cookie)) => {
            if from_cookie {
                auth::same_origin(&hub, request.headers())?;
            }
            Some(whose(&hub, from, &token).await?)
        }
        None => None,
    };
    let place = request.extensions_mut().remove::<Place>();
    let (response, upgraded) = fastwebsockets::upgrade::upgrade(&mut request)
        .map_err(|error| invalid(format!("the WebSocket handshake is malformed: {error}")))?;
    hub.clone().connections.spawn(async move {
        // Boxed: the states of the handshake would otherwise weigh on every idle connection.
        let Some((stream, early)) = Box::pin(bare(upgraded)).await else { return };
        drop(request);
        let connection = Box::new(Connection::new(hub, stream, from, place));
        if spoken {
            connection.run(known, early).await;
        } else {
            Box::pin(connection.finish(CloseCode::Version.into())).await;
        }
    });
    let mut response = response.map(|_| Body::empty());
    if let Some(name) = chosen.and_then(|name| HeaderValue::try_from(name).ok()) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok(response)
}

/// Chooses among the subprotocols that a client offers: ours, or else another version of it, which is then closed with
/// 4012. A page in a browser sees the code of a close, but not why a handshake failed.
fn subprotocol(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    // Several headers are one list (RFC 6455, 11.3.4).
    let offered = || headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    if offered().next().is_none() {
        return Ok(None);
    }
    let names = || offered().flat_map(|names| names.to_str().unwrap_or("").split(',').map(str::trim));
    let chosen = names().find(|name| *name == SUBPROTOCOL).or_else(|| names().find(|n| n.starts_with(ANY_VERSION)));
    let none = || invalid("none of the offered subprotocols is spoken here: offer colink.v1");
    chosen.map(|name| Some(name.to_owned())).ok_or_else(none)
}

/// Takes the bare socket out of the HTTP machinery, with what was read too early.
async fn bare(upgraded: fastwebsockets::upgrade::UpgradeFut) -> Option<(TcpStream, Bytes)> {
    let websocket = upgraded.await.ok()?;
    let parts = websocket.into_inner().into_inner().downcast::<TokioIo<Patient>>().ok()?;
    Some((parts.io.into_inner().into_inner(), parts.read_buf))
}
