//! Connections: accepted within a bound, served as HTTP/1.1 within limits, and closed in order.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Extensions;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use crate::actors::Hub;

/// Where a connection comes from.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

/// Returns the address that a request comes from.
pub fn peer(extensions: &Extensions) -> IpAddr {
    extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip())
}

/// Serves until `stop` is cancelled, then finishes the requests that are running.
pub async fn serve(hub: Arc<Hub>, listener: TcpListener, stop: CancellationToken) {
    let router = super::router(hub.clone());
    let most = hub.config.server.max_connections;
    let places = Arc::new(Semaphore::new(if most == 0 { Semaphore::MAX_PERMITS } else { most }));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: serving those who are here frees some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            metrics::counter!("colink_connections_refused_total").increment(1);
            continue;
        };
        let (router, hub, stop) = (router.clone(), hub.clone(), stop.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            connection(hub, router, stream, from, stop, Arc::new(place)).await;
        });
    }
    connections.close();
    let _ = tokio::time::timeout(Duration::from_secs(hub.config.server.drain_s.max(1)), connections.wait()).await;
}

/// A connection's place among those allowed. A WebSocket takes it along.
pub type Place = Arc<tokio::sync::OwnedSemaphorePermit>;

async fn connection(
    hub: Arc<Hub>,
    router: Router,
    stream: TcpStream,
    from: SocketAddr,
    stop: CancellationToken,
    place: Place,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(Peer(from));
        request.extensions_mut().insert(place.clone());
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let server = &hub.config.server;
    let mut builder = http1::Builder::new();
    // What is over the limits is read up to here, so that the router can say so; beyond, hyper answers a bare 431.
    let (most_bytes, most_headers) = (4 * server.max_header_bytes, 256);
    builder.timer(TokioTimer::new()).max_buf_size(most_bytes).max_headers(most_headers).half_close(false);
    if server.header_timeout_ms > 0 {
        builder.header_read_timeout(Duration::from_millis(server.header_timeout_ms));
    }
    let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(served);
    tokio::select! {
        _ = served.as_mut() => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}
