//! The gateway's wire, version 1: what `docs/PROTOCOL.md` describes, as types.
//!
//! [`wire`] is RFC 6455 framing without I/O, [`client`] what clients send, [`server`] what the server sends by itself,
//! [`push`] events encoded once for all receivers, [`close`] why a connection ends.

pub mod client;
pub mod close;
pub mod push;
pub mod server;
pub mod wire;
