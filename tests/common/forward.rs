//! An address that stays where it is, whatever serves behind it: the part that a virtual address or a proxy in front of a
//! database plays.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Takes connections at an address.
pub(crate) async fn listen(at: SocketAddr) -> TcpListener {
    TcpListener::bind(at).await.unwrap()
}

/// Carries connections from one address to another, until it is dropped.
pub(crate) struct Forward(JoinHandle<()>);

impl Forward {
    /// Carries what comes to a listener to an address.
    pub(crate) fn start(listener: TcpListener, to: SocketAddr) -> Forward {
        Forward(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, to));
                while connections.try_join_next().is_some() {}
            }
        }))
    }

    /// Ends it and all its connections; the address is free then.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn carry(mut near: TcpStream, to: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    let small = near.set_nodelay(true).and(far.set_nodelay(true));
    if small.is_ok() {
        // However it ends, both ends of it do.
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}
