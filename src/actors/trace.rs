//! What a request is called in the logs, on every node that it comes to.
//!
//! A request over REST has an id, and may bring the trace that it is a part of; one on a session is called after the session
//! and its own number there. Whoever sends a command on its way does so within [`Asked::scope`]; where it is handed to
//! another node, that is told its name.

use std::fmt;
use std::sync::Arc;

use crate::domain::id::SessionId;

tokio::task_local! {
    static ASKED: Asked;
}

/// A request, by what it is called.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Over REST.
    Http {
        /// Its id.
        id: Arc<str>,
        /// The `traceparent` that came with it, see W3C's Trace Context.
        parent: Option<Arc<str>>,
    },
    /// On a session, with the number that the client gave it.
    Session(SessionId, Option<u64>),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asked::Http { id, .. } => f.write_str(id),
            Asked::Session(session, Some(id)) => write!(f, "{session}.{id}"),
            Asked::Session(session, None) => write!(f, "{session}"),
        }
    }
}

impl Asked {
    /// Does work for this request.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        ASKED.scope(self, work).await
    }

    /// Does work for this request that waits for nothing.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        ASKED.sync_scope(self, work)
    }

    /// Returns the request that the calling task works for, if it is one.
    #[must_use]
    pub fn current() -> Option<Asked> {
        ASKED.try_with(Asked::clone).ok()
    }

    /// Returns the trace that it is a part of.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        match self {
            Asked::Http { parent, .. } => parent.as_deref(),
            Asked::Session(..) => None,
        }
    }
}

/// Returns whether a text is a `traceparent` as W3C's Trace Context writes it: `00-{32 hex}-{16 hex}-{2 hex}`, neither of the
/// first two of zeros alone.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { return false };
    let is_hex = |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_something = |part: &str| part.bytes().any(|b| b != b'0');
    is_hex(version, 2)
        && version != "ff"
        && is_hex(trace, 32)
        && is_something(trace)
        && is_hex(span, 16)
        && is_something(span)
        && is_hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_as_the_standard_has_it() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn whoever_works_for_a_request_knows_its_name() {
        assert!(Asked::current().is_none());
        let asked = Asked::Http { id: "one".into(), parent: Some("trace".into()) };
        let (name, parent) = asked
            .scope(async {
                let now = Asked::current().unwrap();
                (now.to_string(), now.parent().map(str::to_owned))
            })
            .await;
        assert_eq!((name.as_str(), parent.as_deref()), ("one", Some("trace")));
        let session = SessionId(uuid::Uuid::nil());
        let name = Asked::Session(session, Some(7)).sync_scope(|| Asked::current().unwrap().to_string());
        assert_eq!(name, format!("{session}.7"));
        assert!(Asked::current().is_none());
    }
}
