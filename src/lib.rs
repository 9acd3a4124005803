//! Colink, a self-hosted realtime collaboration hub.
pub mod clock;
pub mod config;
pub mod domain;
pub mod protocol;
pub mod storage;
