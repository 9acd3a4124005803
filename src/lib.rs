//! Colink, a self-hosted realtime collaboration hub.
pub mod actors;
pub mod clock;
pub mod config;
pub mod domain;
pub mod http;
pub mod protocol;
pub mod storage;
pub mod telemetry;
