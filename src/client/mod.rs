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
//!     Step::Gap { stream, after } => println!("{:?}", client.missed(stream, after).await?),
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
pub(crate) use rest::escaped;

use crate::domain::error::Code;
use crate::protocol::close::{CloseCode, ComeBack};

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
    /// Returns whether connecting or asking again makes sense. Of a close, the protocol's table decides; a code that is not
    /// in it, such as 1006 for a connection that was cut, does not keep anybody away. Of a refusal, the table of errors and
    /// whether it says when.
    #[must_use]
    pub fn may_come_back(&self) -> bool {
        match self {
            Error::Io(_) => true,
            Error::Closed { code, .. } => CloseCode::of(*code).is_none_or(|code| code.come_back() != ComeBack::No),
            Error::Refused { code, retry_after, .. } => retry_after.is_some() || is_temporary(code),
            Error::Protocol(_) => false,
        }
    }

    /// Returns whether to identify anew instead of resuming.
    #[must_use]
    pub fn begins_anew(&self) -> bool {
        let Error::Closed { code, .. } = self else { return false };
        CloseCode::of(*code).is_some_and(|code| code.come_back() == ComeBack::Identify)
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

/// Returns whether the same request may succeed later, which the hub or a proxy before it says by this code.
fn is_temporary(code: &str) -> bool {
    let known = Code::ALL.iter().find(|known| known.as_str() == code);
    known.map_or(code.starts_with("http_5"), |known| known.temporary())
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
    fn the_table_of_close_codes_says_who_comes_back() {
        let closed = |code| Error::Closed { code, reason: String::new() };
        for code in CloseCode::ALL {
            let (error, next) = (closed(code.code()), code.come_back());
            assert_eq!(
                (error.may_come_back(), error.begins_anew()),
                (next != ComeBack::No, next == ComeBack::Identify)
            );
        }
        for code in [1005, 1006, 4999] {
            assert!(closed(code).may_come_back() && !closed(code).begins_anew(), "{code}");
        }
    }

    #[test]
    fn the_table_of_errors_says_what_may_succeed_later() {
        let refused = |code: &str| Error::Refused {
            code: code.to_owned(),
            message: String::new(),
            status: None,
            retry_after: None,
        };
        for code in Code::ALL {
            assert_eq!(refused(code.as_str()).may_come_back(), code.temporary(), "{}", code.as_str());
        }
        assert!(refused("http_502").may_come_back() && !refused("http_404").may_come_back(), "what a proxy says");
    }
}
