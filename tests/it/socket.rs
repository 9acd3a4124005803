//! The gateway as bytes: a WebSocket that writes what it is told to, well-formed or not.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::world::within;

/// The opcodes of RFC 6455.
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// What comes off the wire.
#[derive(Debug)]
pub(crate) enum Incoming {
    Text(String),
    Pong(Vec<u8>),
    Closed(u16, String),
    /// The socket ended without a close frame.
    Cut,
}

/// One connection.
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Frames that came while a reply was awaited.
    aside: VecDeque<Value>,
    next_id: u64,
    /// The session, once there is one.
    pub(crate) session: String,
    /// The `s` of the last numbered frame that was read.
    pub(crate) s: i64,
}

impl Socket {
    /// Shakes hands.
    pub(crate) async fn open(url: &str, headers: &[(&str, &str)]) -> Socket {
        match Socket::try_open(url, headers).await {
            Ok(socket) => socket,
            Err(answer) => panic!("no WebSocket: {answer}"),
        }
    }

    /// Shakes hands over a connection whose end here holds little, so that the server soon has to wait.
    pub(crate) async fn open_narrow(url: &str) -> Socket {
        let narrow = TcpSocket::new_v4().unwrap();
        narrow.set_recv_buffer_size(4_096).unwrap();
        let address = url.trim_start_matches("http://").parse().unwrap();
        let stream = within("the connection", narrow.connect(address)).await.unwrap();
        Socket::over(stream, url, &[]).await.unwrap_or_else(|answer| panic!("no WebSocket: {answer}"))
    }

    /// Shakes hands; returns the answer if that is a refusal.
    pub(crate) async fn try_open(url: &str, headers: &[(&str, &str)]) -> Result<Socket, String> {
        let stream = within("the connection", TcpStream::connect(url.trim_start_matches("http://"))).await.unwrap();
        Socket::over(stream, url, headers).await
    }

    /// Shakes hands over a connection; returns the answer if that is a refusal.
    pub(crate) async fn over(mut stream: TcpStream, url: &str, headers: &[(&str, &str)]) -> Result<Socket, String> {
        let authority = url.trim_start_matches("http://");
        let mut request = format!(
            "GET /v1/ws HTTP/1.1\r\nhost: {authority}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        let offers = headers.iter().any(|(name, _)| *name == "sec-websocket-protocol");
        for (name, value) in headers.iter().chain((!offers).then_some(&("sec-websocket-protocol", "colink.v1"))) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        within("the handshake", async {
            stream.set_nodelay(true).unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut buffer = Vec::new();
            let end = loop {
                if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
                if stream.read_buf(&mut buffer).await.unwrap() == 0 {
                    return Err(String::from_utf8_lossy(&buffer).into_owned());
                }
            };
            if !buffer.starts_with(b"HTTP/1.1 101") {
                return Err(String::from_utf8_lossy(&buffer).into_owned());
            }
            buffer.drain(..end);
            let (aside, session) = (VecDeque::new(), String::new());
            Ok(Socket { stream, buffer, aside, next_id: 100, session, s: 0 })
        })
        .await
    }

    /// Identifies and takes `ready`, which it returns.
    pub(crate) async fn identifies(&mut self, token: &str) -> Value {
        self.send(&json!({"id": 1, "type": "identify", "d": {"token": token}})).await;
        let ready = self.next().await;
        assert_eq!(ready["type"], "ready", "{ready}");
        self.session = ready["d"]["session_id"].as_str().unwrap().to_owned();
        ready
    }

    /// Sends a JSON message.
    pub(crate) async fn send(&mut self, frame: &Value) {
        self.send_frame(true, TEXT, frame.to_string().as_bytes()).await;
    }

    /// Sends one frame, masked as a client must.
    pub(crate) async fn send_frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        self.send_bytes(&frame(fin, opcode, payload)).await;
    }

    /// Sends bytes as they are. That the server closed in the meantime shows with the next read.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = within("the server to read", self.stream.write_all(bytes)).await;
    }

    /// Sends bytes for as long as that takes.
    pub(crate) async fn push(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Asks for a command and returns its reply; what else comes is set aside.
    pub(crate) async fn call(&mut self, kind: &str, d: Value) -> Value {
        let id = self.asks(kind, d).await;
        self.reply(id).await
    }

    /// Asks for a command and returns its number.
    pub(crate) async fn asks(&mut self, kind: &str, d: Value) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&json!({"id": id, "type": kind, "d": d})).await;
        id
    }

    /// Waits for the reply to a command; what else comes is set aside.
    pub(crate) async fn reply(&mut self, id: u64) -> Value {
        if let Some(at) = self.aside.iter().position(|frame| frame["reply_to"] == id) {
            return self.aside.remove(at).unwrap();
        }
        loop {
            let frame = self.read_json().await;
            if frame["reply_to"] == id {
                return frame;
            }
            self.aside.push_back(frame);
        }
    }

    /// Returns the next message.
    pub(crate) async fn next(&mut self) -> Value {
        match self.aside.pop_front() {
            Some(frame) => frame,
            None => self.read_json().await,
        }
    }

    /// Returns the next message of a type, dropping what comes before it.
    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// Reads once, whatever has come, and returns the messages in it: each is there as a whole.
    pub(crate) async fn read_once(&mut self) -> Vec<Value> {
        assert!(self.buffer.is_empty() && self.aside.is_empty(), "all that came before was read");
        let mut bytes = vec![0; 1_024 * 1_024];
        let n = within("bytes from the server", self.stream.read(&mut bytes)).await.unwrap();
        self.buffer.extend_from_slice(&bytes[..n]);
        let mut all = Vec::new();
        while let Some((opcode, payload)) = take_frame(&mut self.buffer) {
            assert_eq!(opcode, TEXT);
            all.push(serde_json::from_slice(&payload).unwrap());
        }
        assert!(self.buffer.is_empty(), "a message was cut");
        all
    }

    /// Returns everything that was sent before this call, by a heartbeat that the server answers behind it.
    pub(crate) async fn everything(&mut self) -> Vec<Value> {
        // Replies go out before events: a second beat comes behind what waited at the first.
        let mut all = Vec::new();
        for _ in 0..2 {
            self.send(&json!({"type": "heartbeat"})).await;
            loop {
                let frame = self.next().await;
                if frame["type"] == "heartbeat_ack" {
                    break;
                }
                all.push(frame);
            }
        }
        all
    }

    /// Checks that nothing of a type was sent before this call.
    pub(crate) async fn heard_no(&mut self, kind: &str) {
        let all = self.everything().await;
        assert!(all.iter().all(|frame| frame["type"] != kind), "{all:?}");
    }

    async fn read_json(&mut self) -> Value {
        loop {
            match self.read().await {
                Incoming::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    self.s = frame["s"].as_i64().unwrap_or(self.s);
                    return frame;
                }
                Incoming::Pong(_) => {}
                end => panic!("wanted a message, got {end:?}"),
            }
        }
    }

    /// Waits for the end and returns its code; 1006 if the socket just closed.
    pub(crate) async fn closes(&mut self) -> u16 {
        self.closes_with_reason().await.0
    }

    /// Waits for the end and returns why.
    pub(crate) async fn closes_with_reason(&mut self) -> (u16, String) {
        loop {
            match self.read().await {
                Incoming::Closed(code, reason) => return (code, reason),
                Incoming::Cut => return (1006, String::new()),
                Incoming::Text(_) | Incoming::Pong(_) => {}
            }
        }
    }

    /// Reads one frame.
    pub(crate) async fn read(&mut self) -> Incoming {
        within("a frame from the server", async {
            loop {
                if let Some((opcode, payload)) = take_frame(&mut self.buffer) {
                    return match opcode {
                        TEXT => Incoming::Text(String::from_utf8(payload).unwrap()),
                        PONG => Incoming::Pong(payload),
                        CLOSE => Incoming::Closed(
                            u16::from_be_bytes([payload[0], payload[1]]),
                            String::from_utf8_lossy(&payload[2..]).into_owned(),
                        ),
                        other => panic!("the server sent opcode {other}"),
                    };
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return Incoming::Cut,
                    Ok(_) => {}
                }
            }
        })
        .await
    }
}

/// Makes a masked frame.
pub(crate) fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 77, 177, 217];
    let mut bytes = vec![if fin { 0x80 | opcode } else { opcode }];
    match payload.len() {
        len @ 0..126 => bytes.push(0x80 | len as u8),
        len @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Takes one frame of the server off the front, if it is whole.
fn take_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (first, second) = (*buffer.first()?, *buffer.get(1)?);
    assert_eq!(first & 0xf0, 0x80, "the server's frames are whole and have no reserved bits");
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (len, head) = match second {
        126 => (usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(buffer.get(2..10)?.try_into().unwrap()) as usize, 10),
        len => (usize::from(len), 2),
    };
    if buffer.len() < head + len {
        return None;
    }
    let payload = buffer[head..head + len].to_vec();
    buffer.drain(..head + len);
    Some((first & 0x0f, payload))
}
