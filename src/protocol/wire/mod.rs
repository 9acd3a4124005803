//! WebSocket frames as a server reads and writes them (RFC 6455), without any I/O.
//!
//! A connection reads into a buffer that it borrows for the moment and hands the bytes to [`Reader::next`] until that
//! returns `None`; the buffer is then free for another connection. A text that lies whole in the buffer is unmasked in
//! place and lent out: no copy, no allocation. Only what is unfinished is kept, and that memory goes back to the
//! allocator with the item. Frames of the server are appended to a buffer by the `write_` functions. Reading is in
//! `reader.rs`, writing in `writer.rs`.
//!
//! Invariants, each with a test:
//! - What is kept is at most [`Limits::max_message`] bytes, or [`CONTROL_MAX`] more while a control frame is cut inside
//!   a fragmented message. A header never reserves anything: memory grows with the bytes that have come.
//! - The limit is on the whole message, however fragmented, and a frame that would pass it is refused at its header.
//! - How the bytes are split between reads changes neither the items nor the error.
//! - After an error or a close frame nothing is kept and nothing more is read.

mod reader;
mod writer;

use std::borrow::Cow;

use fastwebsockets::CloseCode;

pub use reader::Reader;
pub use writer::{text_header, write_close, write_ping, write_pong, write_text};

/// The longest payload of a control frame, in bytes (RFC 6455, 5.5).
pub const CONTROL_MAX: usize = 125;

/// What a client may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The longest message in bytes, over all its fragments; 0 means no limit.
    pub max_message: usize,
    /// The most frames of one message; 0 means no limit.
    pub max_fragments: u32,
}

/// What a client said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// A whole message.
    Text(Cow<'a, str>),
    /// A ping, to be answered by [`write_pong`] with the same bytes.
    Ping(Cow<'a, [u8]>),
    /// A pong; nothing has to follow.
    Pong(Cow<'a, [u8]>),
    /// The end, to be answered by [`write_close`]; nothing after it is read.
    Close {
        /// Why, if the client said so.
        code: Option<u16>,
        /// Why, for people.
        reason: Cow<'a, str>,
    },
}

/// Why a connection has to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Reserved bits are set, though no extension was agreed on.
    #[error("frame with reserved bits set")]
    ReservedBits,
    /// The opcode has no meaning.
    #[error("frame with a reserved opcode")]
    ReservedOpcode,
    /// A client has to mask what it sends.
    #[error("frame is not masked")]
    Unmasked,
    /// A control frame has a payload over [`CONTROL_MAX`].
    #[error("control frame over 125 bytes")]
    LongControl,
    /// A control frame is only a part.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A continuation without a message to continue.
    #[error("continuation frame without a message")]
    NothingToContinue,
    /// A message begins before the last one is complete.
    #[error("message inside a fragmented message")]
    Interleaved,
    /// The length is written in more bytes than it needs.
    #[error("frame length is not in its shortest form")]
    LongLength,
    /// The top bit of a 64-bit length is set.
    #[error("frame length has its top bit set")]
    NegativeLength,
    /// A close frame has one byte, or a code that may not be sent.
    #[error("close frame without a valid code")]
    BadClose,
    /// The hub speaks text only.
    #[error("binary message")]
    Binary,
    /// A text, or the reason of a close frame, is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// The message is over [`Limits::max_message`].
    #[error("message is too big")]
    TooBig,
    /// The message is over [`Limits::max_fragments`].
    #[error("message has too many fragments")]
    TooManyFragments,
}

impl WireError {
    /// Returns the code to close the connection with (RFC 6455, 7.4.1).
    #[must_use]
    pub fn close_code(self) -> u16 {
        let code = match self {
            WireError::ReservedBits
            | WireError::ReservedOpcode
            | WireError::Unmasked
            | WireError::LongControl
            | WireError::FragmentedControl
            | WireError::NothingToContinue
            | WireError::Interleaved
            | WireError::LongLength
            | WireError::NegativeLength
            | WireError::BadClose => CloseCode::Protocol,
            WireError::Binary => CloseCode::Unsupported,
            WireError::NotUtf8 => CloseCode::Invalid,
            WireError::TooBig | WireError::TooManyFragments => CloseCode::Size,
        };
        code.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_to_close_with_fits_the_breach() {
        assert_eq!(WireError::Unmasked.close_code(), 1002);
        assert_eq!(WireError::BadClose.close_code(), 1002);
        assert_eq!(WireError::Binary.close_code(), 1003);
        assert_eq!(WireError::NotUtf8.close_code(), 1007);
        assert_eq!(WireError::TooBig.close_code(), 1009);
        assert_eq!(WireError::TooManyFragments.close_code(), 1009);
    }
}
