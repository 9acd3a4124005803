//! What the server sends by itself, besides events: greetings, replies, and where the client stands.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;

use crate::domain::channel::Membership;
use crate::domain::error::Refusal;
use crate::domain::id::{SessionId, StreamId};
use crate::domain::user::User;

fn frame(kind: &str, d: &serde_json::Value) -> String {
    format!(r#"{{"type":"{kind}","d":{d}}}"#)
}

/// Greets a connection.
#[must_use]
pub fn hello(node: &str, heartbeat_interval_ms: u64, max_frame: usize) -> String {
    let d = json!({"node": node, "heartbeat_interval_ms": heartbeat_interval_ms, "max_frame": max_frame,
        "server_version": env!("CARGO_PKG_VERSION")});
    frame("hello", &d)
}

/// The state that a new session starts from.
#[derive(Debug, Serialize)]
pub struct Ready<'a> {
    /// The session, to resume.
    pub session_id: SessionId,
    /// How long it can be resumed from memory.
    pub resume_window_s: u64,
    /// Who is signed in.
    pub user: &'a User,
    /// The newest event of the user's own stream.
    pub user_seq: i64,
    /// The newest event of the workspace's stream.
    pub workspace_seq: i64,
    /// The user's channels, at most 1,000.
    pub channels: &'a [Membership],
    /// Where `GET /v1/channels` goes on, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels_next_cursor: Option<String>,
}

/// Opens a session. Its `s` is 1.
#[must_use]
pub fn ready(ready: &Ready<'_>) -> String {
    format!(r#"{{"s":1,"type":"ready","d":{}}}"#, serde_json::to_string(ready).expect("ready has only string keys"))
}

/// Answers a heartbeat.
pub const HEARTBEAT_ACK: &str = r#"{"type":"heartbeat_ack"}"#;

/// Where replayed events came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// This node's memory, by `s`.
    Buffer,
    /// The durable log, by `cursors`.
    Log,
}

/// Tells that a session goes on: `replayed` events follow, nothing was missed.
#[must_use]
pub fn resumed(session: SessionId, s: i64, replayed: usize, mode: Mode) -> String {
    frame("resumed", &json!({"session_id": session, "s": s, "replayed": replayed, "mode": mode}))
}

/// Tells that a session cannot go on: read what is behind `sync_from` over REST, then identify.
#[must_use]
pub fn invalid_session(sync_from: &HashMap<StreamId, i64>) -> String {
    frame("invalid_session", &json!({"resumable": false, "sync_from": sync_from}))
}

/// Tells which events were not sent, first and last of each stream: channels, and beside them the user's own stream and
/// the workspace's. The frame is numbered like an event, so this is what comes behind `{"s":N,`.
#[must_use]
pub fn lagged(missed: &HashMap<StreamId, (i64, i64)>, own: StreamId) -> String {
    let (mut channels, mut streams) = (serde_json::Map::new(), serde_json::Map::new());
    for (id, (from, to)) in missed {
        let of_channel = *id != own && *id != StreamId::WORKSPACE;
        let ranges = if of_channel { &mut channels } else { &mut streams };
        ranges.insert(id.to_string(), json!({"from": from, "to": to}));
    }
    let mut d = json!({"channels": channels});
    if !streams.is_empty() {
        d["streams"] = streams.into();
    }
    format!(r#""type":"lagged","d":{d}}}"#)
}

/// Asks the client to move to another connection.
#[must_use]
pub fn reconnect(resume_url: &str, after_ms: u64) -> String {
    frame("reconnect", &json!({"resume_url": resume_url, "after_ms": after_ms}))
}

/// Answers a request with what it brought about, given as JSON.
#[must_use]
pub fn reply(to: u64, d: &str) -> String {
    format!(r#"{{"reply_to":{to},"ok":true,"d":{d}}}"#)
}

#[derive(Serialize)]
struct Refused<'a> {
    reply_to: Option<u64>,
    ok: bool,
    error: &'static str,
    message: &'a str,
    temporary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<f64>,
}

/// Answers a request that was refused.
#[must_use]
pub fn refused(to: Option<u64>, refusal: &Refusal) -> String {
    let refused = Refused {
        reply_to: to,
        ok: false,
        error: refusal.code.as_str(),
        message: &refusal.message,
        temporary: refusal.code.temporary(),
        retry_after: refusal.retry_after.map(|seconds| (seconds * 1_000.0).ceil() / 1_000.0),
    };
    serde_json::to_string(&refused).expect("a refusal has only string keys")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::UserId;

    #[test]
    fn a_lag_names_channels_and_the_other_streams_apart() {
        let stream = |n: u128| StreamId::from(UserId(uuid::Uuid::from_u128(n)));
        let text = |missed: &[(StreamId, (i64, i64))]| lagged(&missed.iter().copied().collect(), stream(1));
        let (own, channel) = ((stream(1), (3, 4)), (stream(2), (5, 9)));
        insta::assert_snapshot!(text(&[own, channel]), @r#""type":"lagged","d":{"channels":{"00000000-0000-0000-0000-000000000002":{"from":5,"to":9}},"streams":{"00000000-0000-0000-0000-000000000001":{"from":3,"to":4}}}}"#);
        insta::assert_snapshot!(text(&[(StreamId::WORKSPACE, (1, 1))]), @r#""type":"lagged","d":{"channels":{},"streams":{"00000000-0000-7000-8000-000000000001":{"from":1,"to":1}}}}"#);
    }

    #[test]
    fn a_state_with_more_channels_than_it_lists_says_where_to_go_on() {
        let user = serde_json::json!({"id": uuid::Uuid::nil(), "name": "ana", "display_name": "Ana", "title": "",
            "timezone": "", "role": "member", "bot": false, "presence_mode": "auto",
            "created_at": "2026-01-31T12:00:00Z"});
        let state = Ready {
            session_id: SessionId(uuid::Uuid::nil()),
            resume_window_s: 300,
            user: &serde_json::from_value(user).unwrap(),
            user_seq: 4,
            workspace_seq: 2,
            channels: &[],
            channels_next_cursor: Some("the last one's id".to_owned()),
        };
        insta::assert_snapshot!(ready(&state), @r#"{"s":1,"type":"ready","d":{"session_id":"00000000-0000-0000-0000-000000000000","resume_window_s":300,"user":{"id":"00000000-0000-0000-0000-000000000000","name":"ana","display_name":"Ana","role":"member","presence_mode":"auto","created_at":"2026-01-31T12:00:00Z"},"user_seq":4,"workspace_seq":2,"channels":[],"channels_next_cursor":"the last one's id"}}"#);
    }
}
