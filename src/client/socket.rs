//! The WebSocket under a session, in two halves: fastwebsockets reads frames from one, its frames go out on the other.

use fastwebsockets::{FragmentCollector, Frame as WsFrame, OpCode, Payload, Role, WebSocket, handshake};
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, body::Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncWriteExt, Join, ReadHalf, Sink, WriteHalf};
use tokio::net::TcpStream;

use super::wire::Frame;
use super::{Address, Error, Result, broken};

type Stream = TokioIo<Upgraded>;
/// The half that frames come from.
pub(super) type Reading = FragmentCollector<Join<ReadHalf<Stream>, Sink>>;
/// The half that frames go to.
pub(super) type Writing = WriteHalf<Stream>;

/// A WebSocket that is open.
pub(super) struct Socket {
    pub(super) read: Reading,
    pub(super) write: Writing,
}

impl Socket {
    pub(super) async fn connect(address: &Address) -> Result<Socket> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        let request = Request::get("/v1/ws")
            .header(HOST, address.authority())
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "upgrade")
            .header(SEC_WEBSOCKET_KEY, handshake::generate_key())
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_PROTOCOL, "colink.v1")
            .body(Empty::<Bytes>::new())
            .map_err(broken)?;
        let (websocket, _) = handshake::client(&TokioExecutor::new(), request, stream).await.map_err(broken)?;
        let (read, write) = tokio::io::split(websocket.into_inner());
        // What the reader would answer by itself goes nowhere: the owner of the other half answers.
        let mut read = WebSocket::after_handshake(tokio::io::join(read, tokio::io::sink()), Role::Client);
        read.set_auto_close(false);
        read.set_auto_pong(false);
        Ok(Socket { read: FragmentCollector::new(read), write })
    }

    pub(super) async fn next(&mut self) -> Result<Frame> {
        loop {
            match receive(&mut self.read).await? {
                Incoming::Text(text) => return Frame::decode(&text),
                Incoming::Ping(data) => write(&mut self.write, OpCode::Pong, data).await?,
            }
        }
    }

    pub(super) async fn say(&mut self, frame: &serde_json::Value) -> Result<()> {
        write(&mut self.write, OpCode::Text, frame.to_string().into_bytes()).await
    }
}

/// What matters of what comes in.
pub(super) enum Incoming {
    /// One JSON frame.
    Text(String),
    /// A ping, to be answered with the same bytes.
    Ping(Vec<u8>),
}

/// Reads the next frame. Not cancel-safe.
pub(super) async fn receive(read: &mut Reading) -> Result<Incoming> {
    loop {
        let frame = read.read_frame().await.map_err(broken)?;
        match frame.opcode {
            OpCode::Text => {
                let text = String::from_utf8(frame.payload.to_vec()).map_err(broken)?;
                return Ok(Incoming::Text(text));
            }
            OpCode::Ping => return Ok(Incoming::Ping(frame.payload.to_vec())),
            OpCode::Close => return Err(closed(&frame.payload)),
            _ => {}
        }
    }
}

fn closed(payload: &[u8]) -> Error {
    let (code, reason) = match payload {
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned()),
        _ => (1005, String::new()),
    };
    Error::Closed { code, reason }
}

/// Writes one frame, masked as a client must.
pub(super) async fn write(to: &mut Writing, opcode: OpCode, payload: Vec<u8>) -> Result<()> {
    let mut bytes = Vec::with_capacity(payload.len() + 14);
    let mut frame = WsFrame::new(true, opcode, None, Payload::Owned(payload));
    frame.mask();
    to.write_all(frame.write(&mut bytes)).await?;
    Ok(to.flush().await?)
}
