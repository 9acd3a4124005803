//! A way to Postgres that can be cut: at a round trip of choice, before the request arrives or before the answer does. Or it
//! goes silent, as if the machine behind it lost its power: what is connected stays so, and hears nothing any more.

use std::sync::{Arc, Mutex};

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Where to cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cut {
    /// How many round trips to let through first.
    pub(super) trips: usize,
    /// What to lose: the answer of the trip, or its request.
    pub(super) answer: bool,
}

/// The way, which lasts as long as the runtime.
#[derive(Clone, Default)]
pub(super) struct Wire {
    plan: Arc<Mutex<Option<Cut>>>,
    /// Cancelled when what is connected now goes silent.
    silence: Arc<Mutex<CancellationToken>>,
}

impl Wire {
    /// Makes a way to the server of `url`; returns the URL that goes by it, too.
    pub(super) fn to(url: &str) -> (Wire, String) {
        let server: PgConnectOptions = url.parse().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let by_wire = server.clone().host("127.0.0.1").port(port).to_url_lossy().to_string();
        let wire = Wire::default();
        let carrier = wire.clone();
        tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect((server.get_host(), server.get_port())).await.unwrap();
                let carrier = carrier.clone();
                tokio::spawn(async move { carrier.carry(client, server).await });
            }
        });
        (wire, by_wire)
    }

    /// Plans a cut, once.
    pub(super) fn plan(&self, cut: Cut) {
        *self.plan.lock().unwrap() = Some(cut);
    }

    /// Has every connection that there is carry nothing any more. Those that are made from now on do.
    pub(super) fn go_silent(&self) {
        std::mem::take(&mut *self.silence.lock().unwrap()).cancel();
    }

    /// Gives up the plan; returns whether it was carried out before.
    pub(super) fn was_cut(&self) -> bool {
        self.plan.lock().unwrap().take().is_none()
    }

    /// Carries bytes until an end, or the planned cut, closes both sides.
    async fn carry(&self, mut client: TcpStream, mut server: TcpStream) {
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
        let (mut request, mut answer) = (vec![0; 64 * 1_024], vec![0; 64 * 1_024]);
        let mut asked = false;
        let silence = self.silence.lock().unwrap().clone();
        loop {
            tokio::select! {
                () = silence.cancelled() => return std::future::pending().await,
                read = from_client.read(&mut request) => {
                    let Ok(read @ 1..) = read else { return };
                    let begins = !std::mem::replace(&mut asked, true);
                    if begins && self.is_due(false) || to_server.write_all(&request[..read]).await.is_err() {
                        return;
                    }
                }
                read = from_server.read(&mut answer) => {
                    let Ok(read @ 1..) = read else { return };
                    let begins = std::mem::replace(&mut asked, false);
                    if begins && self.is_due(true) || to_client.write_all(&answer[..read]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Returns whether to cut at this request or answer, which begins.
    fn is_due(&self, answer: bool) -> bool {
        let mut plan = self.plan.lock().unwrap();
        let Some(cut) = plan.as_mut() else { return false };
        if cut.trips == 0 && cut.answer == answer {
            *plan = None;
            return true;
        }
        if answer {
            cut.trips = cut.trips.saturating_sub(1);
        }
        false
    }
}
