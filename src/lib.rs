//! Colink, a self-hosted realtime collaboration hub.
//!
//! The parts, in reading order:
//!
//! | part | what it is |
//! |---|---|
//! | [`domain`] | users, channels, messages, commands, events and who may do what: no I/O |
//! | [`config`] | one struct a section, put together from four layers |
//! | [`protocol`] | the gateway's wire as types: frames, pushes, close codes |
//! | [`bus`] | short messages between nodes, quick and without any promise: in memory or over Redis |
//! | [`storage`] | the truth, in SQLite or Postgres; the one writer that commits what waits together |
//! | [`actors`] | what lives in memory: channels, sessions, presence, the cluster, and who finds them |
//! | [`consumers`] | who follows the log: what happened goes on to elsewhere |
//! | [`http`] | REST and the gateway, every URL on one page |
//! | [`app`] | puts it all together |
//! | [`client`] | a typed client, which the examples, the terminal chat and the tests share |
//! | [`cli`] | the commands of the binary, the terminal chat and the load generator among them |
//! | [`clock`], [`telemetry`] | the time as a parameter; logs and metrics |
//!
//! A message's journey: `http::ws` reads the frame and hands it to its session (`actors::session`), which asks the router
//! (`actors::router`) for the channel's actor (`actors::channel`). That puts it into the writer's queue
//! (`storage::writer`), where it commits together with all that waits (`storage::send`): one round trip asks what decides
//! about each message, one stores number, row, event and idempotency key of all in one transaction. After the commit the
//! event goes to the channel's actor, which encodes it once (`protocol::push`) and puts the shared bytes into the queue of
//! each member's session (`actors::session::queue`); the connection's task writes all that waits there at once. The sender's answer goes the same way. `docs/ARCHITECTURE.md` tells it function by function.

pub mod actors;
pub mod app;
pub mod bus;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod consumers;
pub mod domain;
pub mod http;
pub mod protocol;
pub mod storage;
pub mod telemetry;
