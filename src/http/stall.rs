//! A socket that gives up on a peer who takes nothing: an answer that nobody reads would hold its memory and its connection
//! for ever.
//!
//! Only a write that waits is timed, and any byte taken starts the time anew: a stream of events that is silent, and a
//! reader that is slow, are left alone. A WebSocket has the like of its own (`gateway.write_stall_ms`) and takes the bare
//! socket out ([`Patient::into_inner`]).

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A socket whose writes fail when they stall. It is patient, but not for ever.
#[derive(Debug)]
pub struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Wraps a socket whose peer may take nothing for as long as `patience`; for ever, if that is zero.
    pub fn new(stream: TcpStream, patience: Duration) -> Self {
        Patient { stream, patience, waiting: None }
    }

    /// Returns the bare socket.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    /// Passes on what came of a write; fails if it has waited for too long.
    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() || self.patience.is_zero() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        metrics::counter!("colink_stalled_answers_total").increment(1);
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(patience: Duration) -> (Patient, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Patient::new(listener.accept().await.unwrap().0, patience), client)
    }

    #[tokio::test]
    async fn a_write_that_nobody_takes_fails() {
        let (mut server, _client) = pair(Duration::from_millis(50)).await;
        let error = server.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_reader_who_takes_something_is_waited_for_anew() {
        let (mut server, mut client) = pair(Duration::from_secs(3_600)).await;
        assert!(server.waiting.is_none());
        let (piece, mut written) = (vec![0; 1 << 20], 0);
        let mut now = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(taken) = Pin::new(&mut server).poll_write(&mut now, &piece) {
            written += taken.unwrap();
        }
        assert!(server.waiting.is_some());
        let mut read = vec![0; written + 1];
        let (wrote, took) = tokio::join!(server.write_all(b"!"), client.read_exact(&mut read));
        assert!(wrote.is_ok() && took.is_ok() && server.waiting.is_none());
    }
}
