//! Colink, a self-hosted realtime collaboration hub.
pub mod client;
pub mod clock;
pub mod domain;
