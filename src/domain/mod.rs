//! What Colink is about: users, channels, messages, and the rules between them.
//!
//! Nothing here does I/O or is async. Read [`command`] for what can be asked, [`permission`] for who may ask it,
//! [`event`] for what happens then.

pub mod channel;
pub mod command;
pub mod error;
pub mod event;
pub mod id;
pub mod message;
pub mod permission;
pub mod rate;
pub mod search;
pub mod text;
pub mod user;
