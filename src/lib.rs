//! Colink, a self-hosted realtime collaboration hub.
pub mod clock;
pub mod domain;
pub mod storage;
pub mod protocol;
