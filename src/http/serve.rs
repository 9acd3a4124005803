//! Connections: accepted within a bound, served as HTTP/1.1 within limits, and closed in order, or when their peer takes
//! nothing of an answer any more ([`super::stall`]). Each request is told which
//! address it comes from, behind trusted proxies too.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Extensions, HeaderMap};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::stall::Patient;
use crate::actors::Hub;
use crate::config::{Config, Network};

/// Where a request comes from.
#[derive(Clone, Copy)]
struct Origin(IpAddr);

/// Returns the address that a request comes from: the peer's, or what a trusted proxy says of it.
pub fn origin(extensions: &Extensions) -> IpAddr {
    extensions.get::<Origin>().map_or(IpAddr::from([0, 0, 0, 0]), |origin| origin.0)
}

/// Follows `X-Forwarded-For` from its end, where the nearest proxy wrote, back to the first address that is no trusted
/// proxy. What stands before that one, and what a stranger sends, may be made up.
fn forwarded(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut address = peer.to_canonical();
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        for hop in value.to_str().unwrap_or("").rsplit(',') {
            if !is_trusted(address) {
                return address;
            }
            let hop = hop.trim();
            // Some proxies write the port too.
            let with_port = || hop.parse::<SocketAddr>().map(|at| at.ip());
            let Ok(before) = hop.parse::<IpAddr>().or_else(|_| with_port()) else { return address };
            address = before.to_canonical();
        }
    }
    address
}

/// Serves until `stop` is cancelled, then finishes the requests that are running, however long they take.
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
            let _ = notice_when_gone(&stream, &hub.config);
            connection(hub, router, stream, from, stop, Arc::new(place)).await;
        });
    }
    connections.close();
    connections.wait().await;
}

/// How long a peer may be gone without a word: its machine lost its power, or its network.
const GONE: Duration = Duration::from_secs(28);
/// A peer that says nothing is asked by the system after so long, and again so often and so many times: in all, [`GONE`].
const ASKED: (Duration, Duration, u32) = (Duration::from_secs(12), Duration::from_secs(4), 4);

/// Has the system end a connection whose peer is gone: one that answers nothing when it is asked, or does not confirm what was
/// sent. The latter holds for a peer that is there and takes nothing, too, so it is left out where the operator grants those more.
fn notice_when_gone(stream: &TcpStream, config: &Config) -> std::io::Result<()> {
    let (socket, (after, every, times)) = (SockRef::from(stream), ASKED);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(times))?;
    #[cfg(target_os = "linux")]
    if [config.server.write_stall_ms, config.gateway.write_stall_ms]
        .iter()
        .all(|stall| *stall > 0 && Duration::from_millis(*stall) < GONE)
    {
        socket.set_tcp_user_timeout(Some(GONE))?;
    }
    Ok(())
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
    let shared = hub.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        let origin = forwarded(from.ip(), request.headers(), &shared.config.server.trusted_proxies);
        request.extensions_mut().insert(Origin(origin));
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
    let patient = Patient::new(stream, Duration::from_millis(server.write_stall_ms));
    let served = builder.serve_connection(TokioIo::new(patient), service).with_upgrades();
    tokio::pin!(served);
    tokio::select! {
        _ = served.as_mut() => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_notices_a_peer_that_is_gone_within_28_s() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let mut config = Config::default();
        for (stall_ms, gives_up) in [(20_000, Some(GONE)), (28_000, None), (0, None)] {
            config.server.write_stall_ms = stall_ms;
            let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (stream, _) = accepted.expect("a connection");
            notice_when_gone(&stream, &config).expect("a socket takes these options");
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().expect("an option"));
            let after = socket.tcp_keepalive_time().expect("an option");
            let every = socket.tcp_keepalive_interval().expect("an option");
            let times = socket.tcp_keepalive_retries().expect("an option");
            assert_eq!(after + every * times, GONE);
            if cfg!(target_os = "linux") {
                assert_eq!(socket.tcp_user_timeout().expect("an option"), gives_up, "{stall_ms}");
            }
        }
        let defaults = Config::default();
        assert!(Duration::from_millis(defaults.server.write_stall_ms.max(defaults.gateway.write_stall_ms)) < GONE);
    }

    #[test]
    fn only_what_trusted_proxies_say_is_believed() {
        let trusted: Vec<Network> = ["10.0.0.0/8", "::1"].map(|text| text.parse().expect("a network")).to_vec();
        let from = |peer: &str, said: &[&str]| -> String {
            let mut headers = HeaderMap::new();
            for value in said {
                headers.append("x-forwarded-for", value.parse().expect("a header"));
            }
            forwarded(peer.parse().expect("an address"), &headers, &trusted).to_string()
        };
        assert_eq!(from("198.51.100.7", &["203.0.113.9"]), "198.51.100.7", "a stranger's word");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 203.0.113.9, 10.2.2.2"]), "203.0.113.9", "the first is made up");
        assert_eq!(from("10.0.0.1", &["1.1.1.1", "203.0.113.9"]), "203.0.113.9", "several headers are one list");
        assert_eq!(from("10.0.0.1", &["203.0.113.9:4711"]), "203.0.113.9");
        assert_eq!(from("::1", &["[2001:db8::9]:4711"]), "2001:db8::9");
        assert_eq!(from("::ffff:10.0.0.1", &["203.0.113.9, unknown"]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3", "all of them are proxies");
    }
}
