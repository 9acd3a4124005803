//! Opens gateway connections by hand: a socket, the upgrade, hello, and identify or resume.
//!
//! What comes back is the bare socket and the bytes read too far, for a receiver that keeps almost nothing beside it.

use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::frames::{self, CLOSE, PING, PONG, TEXT, Walk};
use crate::domain::id::{ChannelId, UserId};

/// A user of the load, with a token.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) id: UserId,
    pub(super) token: String,
}

/// A place that a connection had before it was cut.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) session_id: String,
    pub(super) s: i64,
    pub(super) channel: ChannelId,
    pub(super) seq: i64,
}

/// Whom to connect.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    /// The user's number.
    pub(super) person: usize,
    /// The node to connect to.
    pub(super) hub: SocketAddr,
    pub(super) token: String,
    /// The one channel that is watched.
    pub(super) channel: ChannelId,
    /// Where to go on, for a resume.
    pub(super) from: Option<Place>,
}

/// An open session.
pub(super) struct Joined {
    pub(super) stream: StdStream,
    /// Bytes that were read and not yet looked at.
    pub(super) carry: Vec<u8>,
    pub(super) person: usize,
    pub(super) place: Place,
    /// Whether the server could not go on where the session stood.
    pub(super) anew: bool,
}

/// What kind of frame this is.
#[derive(Deserialize)]
struct Glance {
    #[serde(rename = "type", default)]
    kind: String,
    s: Option<i64>,
    #[serde(default = "yes")]
    ok: bool,
}

fn yes() -> bool {
    true
}

fn glance(text: &[u8]) -> Result<Glance> {
    serde_json::from_slice(text).with_context(|| format!("cannot read {}", String::from_utf8_lossy(text)))
}

#[derive(Deserialize)]
struct Ready {
    #[serde(default)]
    s: i64,
    d: ReadyState,
}

#[derive(Deserialize)]
struct ReadyState {
    session_id: String,
    #[serde(default)]
    channels: Vec<Head>,
}

#[derive(Deserialize)]
struct Resumed {
    d: ResumedAt,
}

#[derive(Deserialize)]
struct ResumedAt {
    session_id: String,
    s: i64,
}

#[derive(Deserialize)]
struct Head {
    id: ChannelId,
    last_seq: i64,
}

/// Connects everybody, at most `in_flight` at a time.
pub(super) async fn connect_all(dials: Vec<Dial>, in_flight: usize, mut done: impl FnMut()) -> Result<Vec<Joined>> {
    let connecting = stream::iter(dials).map(|dial| async move {
        tokio::time::timeout(Duration::from_secs(60), connect(dial)).await.context("connecting took a minute")?
    });
    let mut joined: Vec<Joined> = connecting.buffer_unordered(in_flight).inspect_ok(|_| done()).try_collect().await?;
    joined.sort_by_key(|joined| joined.person);
    Ok(joined)
}

/// Connects one.
pub(super) async fn connect(dial: Dial) -> Result<Joined> {
    let mut raw = Raw::open(dial.hub, source(dial.hub, dial.person)).await?;
    let hello = raw.next_text().await?;
    ensure!(glance(&hello)?.kind == "hello", "no hello: {}", String::from_utf8_lossy(&hello));
    let identify = json!({"id": 1, "type": "identify", "d": {
        "token": dial.token, "client": {"name": "load", "version": env!("CARGO_PKG_VERSION")}, "intents": ["messages"],
    }});
    match &dial.from {
        None => raw.say(&identify).await?,
        Some(from) => {
            let cursors = json!({ from.channel.to_string(): from.seq });
            let d = json!({"token": dial.token, "session_id": from.session_id, "s": from.s, "cursors": cursors});
            raw.say(&json!({"id": 1, "type": "resume", "d": d})).await?;
        }
    }

    let (mut held, mut anew) = (Vec::new(), false);
    loop {
        let text = raw.next_text().await?;
        let Glance { kind, s, ok } = glance(&text)?;
        if kind == "ready" {
            let ready: Ready = serde_json::from_slice(&text).context("cannot read the first state")?;
            let head = ready.d.channels.iter().find(|head| head.id == dial.channel);
            let head = head.with_context(|| format!("user {} is not in channel {}", dial.person, dial.channel))?;
            // After a resume that failed, what was missed stays missed: the count of the lost shows it.
            let seq = dial.from.as_ref().map_or(head.last_seq, |from| from.seq);
            let place = Place { session_id: ready.d.session_id, s: ready.s, channel: dial.channel, seq };
            return raw.finish(held, dial.person, place, anew);
        }
        if kind == "resumed" {
            // Another node goes on under numbers of its own.
            let resumed: Resumed = serde_json::from_slice(&text).context("cannot read how it goes on")?;
            let mut place = dial.from.context("resumed without asking to")?;
            (place.session_id, place.s) = (resumed.d.session_id, resumed.d.s);
            return raw.finish(held, dial.person, place, anew);
        }
        if kind == "invalid_session" {
            anew = true;
            raw.say(&identify).await?;
        } else if s.is_some() {
            // Replayed before the server said that it would.
            server_frame(&mut held, &text);
        } else if !ok {
            bail!("user {} was refused: {}", dial.person, String::from_utf8_lossy(&text));
        }
    }
}

/// Returns the address to connect from. Loopback has many, so that no one runs out of ports.
fn source(hub: SocketAddr, person: usize) -> Option<Ipv4Addr> {
    let spread = u8::try_from(person % 200).unwrap_or(0);
    hub.ip().is_loopback().then(|| Ipv4Addr::new(127, 0, 0, 2 + spread))
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

/// Appends a frame as a server sends it.
fn server_frame(out: &mut Vec<u8>, payload: &[u8]) {
    let mut masked = Vec::with_capacity(payload.len() + 14);
    frames::put(&mut masked, TEXT, payload);
    masked[1] &= 0x7f;
    let head = masked.len() - payload.len() - 4;
    out.extend_from_slice(&masked[..head]);
    out.extend_from_slice(payload);
}

/// A socket whose frames are read one by one.
struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    async fn open(hub: SocketAddr, source: Option<Ipv4Addr>) -> Result<Raw> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = source {
            socket.bind((source, 0).into()).with_context(|| format!("cannot connect from {source}"))?;
        }
        let mut stream = socket.connect(hub).await.with_context(|| format!("cannot connect to {hub}"))?;
        stream.set_nodelay(true)?;
        // The key may be any: the answer to it is not looked at.
        let request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: {hub}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: bG9hZCBnZW5lcmF0b3IhIQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: colink.v1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut raw = Raw { stream, buffer: Vec::with_capacity(1_024) };
        let end = loop {
            if let Some(end) = find(&raw.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            raw.more().await?;
        };
        let first = String::from_utf8_lossy(&raw.buffer[..end]).lines().next().unwrap_or_default().to_owned();
        ensure!(first.contains(" 101 "), "the server did not open a WebSocket: {first}");
        raw.buffer.drain(..end);
        Ok(raw)
    }

    async fn more(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the server hung up");
        Ok(())
    }

    async fn say(&mut self, frame: &serde_json::Value) -> Result<()> {
        let mut bytes = Vec::new();
        frames::put(&mut bytes, TEXT, frame.to_string().as_bytes());
        Ok(self.stream.write_all(&bytes).await?)
    }

    async fn next_text(&mut self) -> Result<Vec<u8>> {
        loop {
            let mut walk = Walk::new(&self.buffer);
            let Some((opcode, payload)) = walk.next() else {
                self.more().await?;
                continue;
            };
            let payload = payload.to_vec();
            let consumed = walk.consumed();
            self.buffer.drain(..consumed);
            match opcode {
                TEXT => return Ok(payload),
                CLOSE => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    bail!("the server closed with {code} {}", String::from_utf8_lossy(payload.get(2..).unwrap_or(&[])));
                }
                PING => {
                    let mut pong = Vec::new();
                    frames::put(&mut pong, PONG, &payload);
                    self.stream.write_all(&pong).await?;
                }
                _ => {}
            }
        }
    }

    fn finish(self, mut held: Vec<u8>, person: usize, place: Place, anew: bool) -> Result<Joined> {
        held.extend_from_slice(&self.buffer);
        Ok(Joined { stream: self.stream.into_std()?, carry: held, person, place, anew })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn people_come_from_many_addresses_of_this_machine() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let hub = listener.local_addr().unwrap();
        for (person, from) in [(0, [127, 0, 0, 2]), (1, [127, 0, 0, 3]), (199, [127, 0, 0, 201]), (200, [127, 0, 0, 2])]
        {
            let source = source(hub, person);
            let dialling = tokio::spawn(async move { Raw::open(hub, source).await.map(drop) });
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(peer.ip(), Ipv4Addr::from(from));
            drop(stream);
            assert!(dialling.await.unwrap().is_err(), "nobody answered");
        }
    }

    #[test]
    fn a_hub_elsewhere_is_dialled_from_wherever_the_system_says() {
        assert_eq!(source("192.0.2.1:80".parse().unwrap(), 7), None);
    }
}
