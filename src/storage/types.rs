//! How the domain's types stand in the two databases.
//!
//! Identifiers are `UUID` in Postgres and 16 bytes in SQLite; times are `TIMESTAMPTZ` and whole microseconds; the texts
//! of enums are `TEXT` in both. The domain itself knows nothing of this.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::sqlite::{SqliteTypeInfo, SqliteValueRef};
use sqlx::{Database, Decode, Encode, Postgres, Sqlite, Type};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::domain::channel::{ChannelKind, ChannelRole, Notify, Posting};
use crate::domain::id::{ChannelId, EventId, InviteId, MessageId, NodeId, SessionId, StreamId, TokenId, UserId};
use crate::domain::user::{PresenceMode, Role};

type PgBuffer = <Postgres as Database>::ArgumentBuffer;
type SqliteBuffer = <Sqlite as Database>::ArgumentBuffer;

/// Stores `$type` in each database as another type that it already knows.
macro_rules! stored_as {
    ($inner:ty, $($type:ident),* ; $to:expr, $from:expr) => {$(
        stored_as!(@one Postgres, PgBuffer, PgTypeInfo, PgValueRef, $inner, $type, $to, $from);
        stored_as!(@one Sqlite, SqliteBuffer, SqliteTypeInfo, SqliteValueRef, $inner, $type, $to, $from);
    )*};
    (@one $db:ident, $buffer:ident, $info:ident, $value:ident, $inner:ty, $type:ident, $to:expr, $from:expr) => {
        impl Type<$db> for $type {
            fn type_info() -> $info {
                <$inner as Type<$db>>::type_info()
            }
            fn compatible(ty: &$info) -> bool {
                <$inner as Type<$db>>::compatible(ty)
            }
        }
        impl Encode<'_, $db> for $type {
            fn encode_by_ref(&self, buffer: &mut $buffer) -> Result<IsNull, BoxDynError> {
                let to: fn(&$type) -> $inner = $to;
                <$inner as Encode<'_, $db>>::encode(to(self), buffer)
            }
        }
        impl Decode<'_, $db> for $type {
            fn decode(value: $value<'_>) -> Result<Self, BoxDynError> {
                let from: fn($inner) -> Result<$type, BoxDynError> = $from;
                from(<$inner as Decode<'_, $db>>::decode(value)?)
            }
        }
    };
}

stored_as!(Uuid, UserId, ChannelId, MessageId, StreamId, EventId, SessionId, TokenId, InviteId, NodeId;
    |id| id.0, |uuid| Ok(uuid.into()));
// Of these the schema says which values there are.
stored_as!(String, Role, ChannelKind, ChannelRole;
    |text| text.as_str().to_owned(), |text| text.parse().map_err(|e: String| e.into()));
// Of these a newer release may have stored others: what it lets people do is then what the least of ours does.
stored_as!(String, Posting; |text| text.as_str().to_owned(), |text| Ok(known_posting(&text)));
stored_as!(String, PresenceMode; |text| text.as_str().to_owned(), |text| Ok(text.parse().unwrap_or(PresenceMode::Auto)));
stored_as!(String, Notify; |text| text.as_str().to_owned(), |text| Ok(text.parse().unwrap_or(Notify::All)));

fn known_posting(text: &str) -> Posting {
    text.parse().unwrap_or(Posting::Owners)
}

/// Reads a posting policy out of JSON as out of a row.
pub(super) fn posting<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Posting, D::Error> {
    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(json)?;
    Ok(known_posting(&text))
}

macro_rules! from_uuid {
    ($($type:ident),*) => {$(
        impl From<Uuid> for $type {
            fn from(uuid: Uuid) -> Self {
                $type(uuid)
            }
        }
    )*};
}
from_uuid!(UserId, ChannelId, MessageId, StreamId, EventId, SessionId, TokenId, InviteId, NodeId);

/// Microseconds from 1970-01-01 to 2000-01-01, where Postgres starts to count.
pub(super) const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("TIMESTAMPTZ")
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgBuffer) -> Result<IsNull, BoxDynError> {
        <i64 as Encode<'_, Postgres>>::encode(self.0 - POSTGRES_EPOCH, buffer)
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => Ok(Timestamp(<i64 as Decode<'_, Postgres>>::decode(value)? + POSTGRES_EPOCH)),
            PgValueFormat::Text => Err("times are read in binary form".into()),
        }
    }
}

impl Type<Sqlite> for Timestamp {
    fn type_info() -> SqliteTypeInfo {
        <i64 as Type<Sqlite>>::type_info()
    }
    fn compatible(ty: &SqliteTypeInfo) -> bool {
        <i64 as Type<Sqlite>>::compatible(ty)
    }
}

impl Encode<'_, Sqlite> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut SqliteBuffer) -> Result<IsNull, BoxDynError> {
        <i64 as Encode<'_, Sqlite>>::encode(self.0, buffer)
    }
}

impl Decode<'_, Sqlite> for Timestamp {
    fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
        <i64 as Decode<'_, Sqlite>>::decode(value).map(Timestamp)
    }
}
