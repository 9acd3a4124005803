//! Identifiers: one newtype for each kind of thing, so that a bare `Uuid` never crosses a function.
//!
//! All are UUID version 7 (RFC 9562): the time comes first, so new rows land at the end of an index.

use serde::{Deserialize, Serialize};
use uuid::{NoContext, Uuid};

use crate::clock::Timestamp;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Makes a new identifier that sorts by `now`.
            #[must_use]
            pub fn new(now: Timestamp) -> Self {
                let micros = u64::try_from(now.0).unwrap_or(0);
                let nanos = u32::try_from(micros % 1_000_000).unwrap_or(0) * 1_000;
                Self(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, micros / 1_000_000, nanos)))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "format": "uuid"})
            }
        }
    )*};
}

ids! {
    /// A person or a bot.
    UserId;
    /// A public or private channel, a direct message or a group.
    ChannelId;
    /// A message; within its channel the `seq` names it too.
    MessageId;
    /// A sequence of events: a channel's, a user's own, or the workspace's.
    StreamId;
    /// One event of a stream, the same on every surface that shows it.
    EventId;
    /// A gateway session, which outlives its connections.
    SessionId;
    /// A sign-in: the record behind a token.
    TokenId;
    /// An invitation to the workspace.
    InviteId;
    /// A run of a node: new with each start.
    NodeId;
}

impl StreamId {
    /// The workspace's own stream: users come and go, public channels are made.
    pub const WORKSPACE: StreamId = StreamId(Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001));
}

impl From<ChannelId> for StreamId {
    fn from(channel: ChannelId) -> Self {
        StreamId(channel.0)
    }
}

impl From<UserId> for StreamId {
    fn from(user: UserId) -> Self {
        StreamId(user.0)
    }
}

impl From<StreamId> for ChannelId {
    fn from(stream: StreamId) -> Self {
        ChannelId(stream.0)
    }
}

impl From<StreamId> for UserId {
    fn from(stream: StreamId) -> Self {
        UserId(stream.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_identifiers_sort_behind_earlier_ones() {
        let first = MessageId::new(Timestamp(1_000_000));
        let second = MessageId::new(Timestamp(2_000_000));
        assert!(first < second);
        assert_eq!(first.to_string().parse::<MessageId>().unwrap(), first);
    }
}
