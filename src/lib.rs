//! Colink, a self-hosted realtime collaboration hub.
pub mod cli;
pub mod client;
pub mod clock;
pub mod domain;
