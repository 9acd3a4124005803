//! A typed client for Colink: REST by [`Client`], the realtime gateway by [`Gateway`].
//!
//! ```no_run
//! # async fn story() -> Result<(), colink::client::Error> {
//! use colink::client::{Client, Gateway, Options, Step};
//!
//! let client = Client::new("http://127.0.0.1:8080")?.with_token("secret");
//! let mut gateway = Gateway::connect("http://127.0.0.1:8080", "secret", Options::default()).await?;
//! let event = gateway.next_event().await?;
//! match gateway.cursors.offer(&event) {
//!     Step::Apply => println!("{} in {:?}", event.kind, event.channel_id),
//!     Step::Drop => {}
//!     Step::Gap { channel_id, after } => println!("{:?}", client.events(channel_id, after).await?),
//! }
//! # Ok(()) }
//! ```
//!
//! Delivery is at least once; [`Cursors`] is the rule that makes the effect exactly once. A connection that ends says by
//! [`Error::may_come_back`] whether [`Gateway::resume`] is worth a try.
//!
//! There is no TLS here: it ends at the reverse proxy. An `https` or `wss` address is refused with a sentence.

mod address;
mod connection;
mod cursor;
mod gateway;
mod rest;
mod socket;
#[cfg(test)]
pub(crate) mod stub;
mod wire;

use std::io;

pub use cursor::{Cursors, Step};
pub use gateway::{Gateway, Options, Position, Start};
pub use rest::{Client, Events, History, Login, Page, Window};
pub use wire::{ChannelHead, Event, Ready};

pub(crate) use address::Address;

/// The usual result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something did not work, by what the caller would do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server understood and said no. Change the request, or wait if `retry_after` is given.
    #[error("{message} ({code})")]
    Refused {
        /// The stable code, such as `not_found`.
        code: String,
        /// One sentence for people.
        message: String,
        /// The HTTP status; absent on the gateway.
        status: Option<u16>,
        /// Seconds after which the same request may succeed.
        retry_after: Option<f64>,
    },
    /// The network failed. Whether the request took effect is not known: repeat it with the same `client_msg_id`.
    #[error("connection to the hub failed: {0}")]
    Io(#[from] io::Error),
    /// The gateway connection was closed.
    #[error("gateway closed: {code} {reason}")]
    Closed {
        /// The close code: 1000-1015 by RFC 6455, 4000 and up by the hub.
        code: u16,
        /// The reason that came with it.
        reason: String,
    },
    /// The other side does not speak this protocol, or the address cannot be used.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// Returns whether connecting again and resuming makes sense.
    #[must_use]
    pub fn may_come_back(&self) -> bool {
        match self {
            Error::Io(_) => true,
            Error::Closed { code, .. } => !matches!(code, 1009 | 4003 | 4004 | 4012 | 4013 | 4014),
            Error::Refused { retry_after, .. } => retry_after.is_some(),
            Error::Protocol(_) => false,
        }
    }

    /// Returns the stable code of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// The connection is over without a close frame.
fn cut(reason: &str) -> Error {
    Error::Closed { code: 1006, reason: reason.to_owned() }
}

/// Wraps what another layer reports about the connection.
fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Io(io::Error::other(error))
}

fn timed_out(what: &str) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("{what} took too long")))
}

fn malformed(what: &str, error: &serde_json::Error) -> Error {
    Error::Protocol(format!("cannot read {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_close_codes_invite_back() {
        let closed = |code| Error::Closed { code, reason: String::new() }.may_come_back();
        for code in [1001, 1006, 1012, 4000, 4007, 4009, 4010, 4011] {
            assert!(closed(code), "{code}");
        }
        for code in [4004, 4012, 4013, 4014] {
            assert!(!closed(code), "{code}");
        }
    }
}
