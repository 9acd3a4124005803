//! Colink, a self-hosted realtime collaboration hub.
pub mod clock;
pub mod domain;
pub mod protocol;
