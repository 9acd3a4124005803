//! An event as others get it: the value and the headers of a record. `docs/EVENTS.md` tells of both, `docs/event.schema.json`
//! is the value's schema.
//!
//! It follows CloudEvents 1.0 in the Kafka protocol binding's binary mode: the attributes are headers, the value is the event's own.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::event::Event;
use crate::domain::id::{EventId, StreamId, UserId};

/// The version of the value's schema. Fields may be added under the same version; whoever reads passes over those it does not know.
pub const VERSION: u32 = 1;

/// The value of a record.
#[derive(Serialize)]
struct Value<'a> {
    version: u32,
    id: EventId,
    kind: &'a str,
    stream_id: StreamId,
    seq: i64,
    actor_id: Option<UserId>,
    at: crate::clock::Timestamp,
    payload: &'a RawValue,
}

/// Returns the value of an event's record: a JSON object.
///
/// # Errors
/// Its payload is no JSON.
pub fn value(event: &Event) -> Result<String, serde_json::Error> {
    let payload: &RawValue = serde_json::from_str(&event.payload)?;
    let Event { stream, seq, id, kind, actor, at, .. } = event;
    serde_json::to_string(&Value {
        version: VERSION,
        id: *id,
        kind: kind.as_str(),
        stream_id: *stream,
        seq: *seq,
        actor_id: *actor,
        at: *at,
        payload,
    })
}

/// Returns the headers of an event's record.
#[must_use]
pub fn headers(event: &Event) -> [(&'static str, String); 7] {
    [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", event.id.to_string()),
        ("ce_source", "/colink".to_owned()),
        ("ce_type", format!("colink.{}.v{VERSION}", event.kind.as_str())),
        ("ce_subject", event.stream.to_string()),
        ("ce_time", event.at.to_string()),
        ("content-type", "application/json".to_owned()),
    ]
}
