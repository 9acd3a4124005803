//! Channels and their members, as rows.

use super::apply::Scope;
use super::{Db, StoreError, by_dialect, from_row, holds, on, personal};
use crate::domain::channel::{Channel, ChannelKind, ChannelRole, Member, Membership};
use crate::domain::id::{ChannelId, UserId};
use crate::domain::permission::{ChannelFacts, Standing};
use crate::domain::user::Role;

/// Stands in `mentions.user_id` for everybody: `@channel` and `@here`.
pub(super) const EVERYBODY: UserId = UserId(uuid::Uuid::nil());

macro_rules! channel_of {
    ($row:ident) => {
        Channel {
            id: $row.try_get("id")?,
            kind: $row.try_get("kind")?,
            name: $row.try_get("name")?,
            topic: $row.try_get("topic")?,
            purpose: $row.try_get("purpose")?,
            posting: $row.try_get("posting")?,
            created_by: $row.try_get("created_by")?,
            created_at: $row.try_get("created_at")?,
            archived_at: $row.try_get("archived_at")?,
            last_seq: $row.try_get("last_seq")?,
            last_message_no: $row.try_get("last_message_no")?,
        }
    };
}

from_row!(Channel, row => channel_of!(row));

from_row!(Membership, row => {
    let channel = channel_of!(row);
    let read_no: i64 = row.try_get("read_no")?;
    Membership {
        unread_count: (channel.last_message_no - read_no).max(0),
        channel,
        role: row.try_get("role")?,
        read_seq: row.try_get("read_seq")?,
        mention_count: row.try_get("mention_count")?,
        muted: row.try_get("muted")?,
        notify: row.try_get("notify")?,
        with: Vec::new(),
    }
});

from_row!(Member, row => Member {
    user_id: row.try_get("user_id")?,
    role: row.try_get("role")?,
    joined_at: row.try_get("joined_at")?,
});

macro_rules! columns {
    () => {
        "c.id, c.kind, c.name, c.topic, c.purpose, c.posting, c.created_by, c.created_at, c.archived_at, s.last_seq, \
         s.last_message_no"
    };
}

macro_rules! membership {
    () => {
        concat!("SELECT ", columns!(), ", m.role, m.read_seq, m.read_no, m.muted, m.notify, \
            (SELECT COUNT(DISTINCT x.seq) FROM mentions x WHERE x.channel_id = c.id \
              AND x.user_id IN (m.user_id, $2) AND x.seq > m.read_seq AND x.message_no IS NOT NULL) AS mention_count \
            FROM members m JOIN channels c ON c.id = m.channel_id JOIN streams s ON s.id = c.id ")
    };
}

/// Returns a channel.
pub async fn by_id(db: &mut Db, id: ChannelId) -> Result<Option<Channel>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM channels c JOIN streams s ON s.id = c.id WHERE c.id = $1");
    Ok(on!(db, c => sqlx::query_as(sql).bind(id).fetch_optional(c).await?))
}

/// Returns the public or private channel with a name.
pub async fn by_name(db: &mut Db, name: &str) -> Result<Option<Channel>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM channels c JOIN streams s ON s.id = c.id WHERE c.name = $1");
    Ok(on!(db, c => sqlx::query_as(sql).bind(name).fetch_optional(c).await?))
}

/// Returns the direct message or group that a key names.
pub async fn by_direct_key(db: &mut Db, key: &str) -> Result<Option<Channel>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM channels c JOIN streams s ON s.id = c.id WHERE c.direct_key = $1");
    Ok(on!(db, c => sqlx::query_as(sql).bind(key).fetch_optional(c).await?))
}

/// Returns public and private channels by name, those behind `after`, at most `limit`: for the operator alone.
pub async fn list(db: &mut Db, after: &str, limit: i64) -> Result<Vec<Channel>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM channels c JOIN streams s ON s.id = c.id \
        WHERE c.kind IN ('public', 'private') AND c.name > $1 ORDER BY c.name LIMIT $2"
    );
    Ok(on!(db, c => sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await?))
}

/// A public channel as whoever looks for one sees it.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Listed {
    /// The channel.
    #[serde(flatten)]
    pub channel: Channel,
    /// How many are in it.
    pub member_count: i64,
    /// Whether the caller is.
    pub joined: bool,
}

from_row!(Listed, row => Listed {
    channel: sqlx::FromRow::from_row(row)?,
    member_count: row.try_get("member_count")?,
    joined: row.try_get("joined")?,
});

/// Returns public channels by name, those behind `after` whose name, topic or purpose holds `query`, at most `limit`; those
/// that are archived only if asked for.
pub async fn find(
    db: &mut Db,
    user: UserId,
    query: &str,
    archived: bool,
    after: &str,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        ", (SELECT COUNT(*) FROM members m WHERE m.channel_id = c.id) AS member_count, \
         EXISTS (SELECT 1 FROM members m WHERE m.channel_id = c.id AND m.user_id = $1) AS joined \
         FROM channels c JOIN streams s ON s.id = c.id WHERE c.kind = 'public' AND c.name > $2 \
         AND ($3 OR c.archived_at IS NULL) AND (c.name LIKE $4 ESCAPE '!' OR LOWER(c.topic) LIKE $4 ESCAPE '!' \
         OR LOWER(c.purpose) LIKE $4 ESCAPE '!') ORDER BY c.name LIMIT $5"
    );
    Ok(
        on!(db, c => sqlx::query_as(sql).bind(user).bind(after).bind(archived).bind(holds(query)).bind(limit).fetch_all(c)
        .await?),
    )
}

/// Returns a user's channels, those behind `after` (by identifier), at most `limit`.
pub async fn of_user(
    db: &mut Db,
    user: UserId,
    after: Option<ChannelId>,
    limit: i64,
) -> Result<Vec<Membership>, StoreError> {
    let sql = concat!(membership!(), "WHERE m.user_id = $1 AND c.id > $3 ORDER BY c.id LIMIT $4");
    let after = after.unwrap_or(ChannelId(uuid::Uuid::nil()));
    let mut found: Vec<Membership> = on!(db, c => sqlx::query_as(sql).bind(user).bind(EVERYBODY).bind(after).bind(limit)
        .fetch_all(c).await?);
    name_others(db, user, &mut found).await?;
    Ok(found)
}

/// Fills in who else is in the direct messages and groups among a user's channels.
async fn name_others(db: &mut Db, user: UserId, found: &mut [Membership]) -> Result<(), StoreError> {
    let direct: Vec<ChannelId> =
        found.iter().map(|m| &m.channel).filter(|c| c.kind.is_direct()).map(|c| c.id).collect();
    if direct.is_empty() {
        return Ok(());
    }
    let direct = serde_json::to_string(&direct).expect("identifiers are strings");
    let sql = by_dialect!(db,
        postgres: "SELECT channel_id, user_id FROM members WHERE user_id <> $1 AND channel_id = \
                   ANY(ARRAY(SELECT value::uuid FROM json_array_elements_text($2::json))) ORDER BY channel_id, user_id",
        sqlite: "SELECT channel_id, user_id FROM members WHERE user_id <> $1 AND channel_id IN \
                 (SELECT unhex(value, '-') FROM json_each($2)) ORDER BY channel_id, user_id",
    );
    let rows: Vec<(ChannelId, UserId)> = on!(db, c => sqlx::query_as(sql).bind(user).bind(direct).fetch_all(c).await?);
    for membership in found {
        let start = rows.partition_point(|row| row.0 < membership.channel.id);
        let others = rows[start..].iter().take_while(|row| row.0 == membership.channel.id);
        membership.with = others.map(|row| row.1).collect();
    }
    Ok(())
}

/// Returns a user's place in one channel.
pub async fn membership(db: &mut Db, user: UserId, channel: ChannelId) -> Result<Option<Membership>, StoreError> {
    let sql = concat!(membership!(), "WHERE m.user_id = $1 AND m.channel_id = $3");
    let found: Option<Membership> =
        on!(db, c => sqlx::query_as(sql).bind(user).bind(EVERYBODY).bind(channel).fetch_optional(c).await?);
    let Some(found) = found else { return Ok(None) };
    let mut found = [found];
    name_others(db, user, &mut found).await?;
    let [found] = found;
    Ok(Some(found))
}

/// Returns a channel's members by identifier, those behind `after`, at most `limit`.
pub async fn members(
    db: &mut Db,
    channel: ChannelId,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<Member>, StoreError> {
    let sql =
        "SELECT user_id, role, joined_at FROM members WHERE channel_id = $1 AND user_id > $2 ORDER BY user_id LIMIT $3";
    let after = after.unwrap_or(UserId(uuid::Uuid::nil()));
    Ok(on!(db, c => sqlx::query_as(sql).bind(channel).bind(after).bind(limit).fetch_all(c).await?))
}

/// Returns the identifiers of all members of a channel: the audience of its events.
pub async fn member_ids(db: &mut Db, channel: ChannelId) -> Result<Vec<UserId>, StoreError> {
    let sql = "SELECT user_id FROM members WHERE channel_id = $1";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(channel).fetch_all(c).await?))
}

/// What decides about one user and one channel.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Where the user stands.
    pub who: Standing,
    /// What the channel is.
    pub channel: ChannelFacts,
    /// Where the channel's head was when this was read.
    pub head: i64,
}

from_row!(Facts, row => Facts {
    who: Standing { role: row.try_get::<Role, _>("role")?, channel_role: row.try_get::<Option<ChannelRole>, _>("channel_role")? },
    channel: ChannelFacts {
        kind: row.try_get::<ChannelKind, _>("kind")?,
        posting: row.try_get("posting")?,
        archived: row.try_get::<Option<crate::clock::Timestamp>, _>("archived_at")?.is_some(),
    },
    head: row.try_get("last_seq")?,
});

/// Returns what decides about an active user and a channel; nothing if either is not there.
pub async fn facts(db: &mut Db, user: UserId, channel: ChannelId) -> Result<Option<Facts>, StoreError> {
    let sql = "SELECT u.role, m.role AS channel_role, c.kind, c.posting, c.archived_at, s.last_seq FROM users u \
               JOIN channels c ON c.id = $2 JOIN streams s ON s.id = c.id LEFT JOIN members m ON m.channel_id = c.id AND m.user_id = u.id \
               WHERE u.id = $1 AND u.deactivated_at IS NULL";
    Ok(on!(db, c => sqlx::query_as(sql).bind(user).bind(channel).fetch_optional(c).await?))
}

/// Takes the row locks of members on Postgres, in the order given.
pub(super) async fn lock_places(db: &mut Db, places: &[(ChannelId, UserId)]) -> Result<(), StoreError> {
    if let Db::Postgres(connection) = db {
        let sql = "SELECT 1 FROM members JOIN unnest($1::uuid[], $2::uuid[]) AS p(c, u) \
                   ON channel_id = p.c AND user_id = p.u ORDER BY channel_id, user_id FOR NO KEY UPDATE OF members";
        let (channels, users): (Vec<uuid::Uuid>, Vec<uuid::Uuid>) = places.iter().map(|(c, u)| (c.0, u.0)).unzip();
        sqlx::query(sql).bind(channels).bind(users).execute(&mut **connection).await?;
    }
    Ok(())
}

/// Returns what decides about the operator and a channel; nothing if it is not there.
pub(super) async fn facts_for_operator(db: &mut Db, channel: ChannelId) -> Result<Option<Facts>, StoreError> {
    let facts = |c: Channel| {
        let channel = ChannelFacts { kind: c.kind, posting: c.posting, archived: c.archived_at.is_some() };
        Facts { who: Standing::OPERATOR, channel, head: c.last_seq }
    };
    Ok(by_id(db, channel).await?.map(facts))
}

/// Inserts a channel whose name or direct key is free; returns whether it was.
pub(super) async fn insert(
    scope: &mut Scope<'_>,
    channel: &Channel,
    direct_key: Option<&str>,
) -> Result<bool, StoreError> {
    let sql = "INSERT INTO channels (id, kind, name, topic, purpose, posting, direct_key, created_by, created_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel.id).bind(channel.kind).bind(&channel.name)
        .bind(&channel.topic).bind(&channel.purpose).bind(channel.posting).bind(direct_key).bind(channel.created_by)
        .bind(channel.created_at).execute(db).await?.rows_affected());
    Ok(rows == 1)
}

/// Writes back what of a channel can change.
pub(super) async fn update(scope: &mut Scope<'_>, channel: &Channel) -> Result<(), StoreError> {
    let sql = "UPDATE channels SET name = $2, topic = $3, purpose = $4, posting = $5, archived_at = $6 WHERE id = $1";
    on!(scope.db, db => { sqlx::query(sql).bind(channel.id).bind(&channel.name).bind(&channel.topic).bind(&channel.purpose)
        .bind(channel.posting).bind(channel.archived_at).execute(db).await?; });
    Ok(())
}

/// Adds a member who has read everything so far; returns whether they were not in it yet.
pub(super) async fn add_member(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    user: UserId,
    role: ChannelRole,
) -> Result<bool, StoreError> {
    let sql = "INSERT INTO members (channel_id, user_id, role, joined_at, read_seq, read_no) \
               SELECT $1, $2, $3, $4, last_seq, last_message_no FROM streams WHERE id = $1 \
               ON CONFLICT (channel_id, user_id) DO NOTHING";
    // SQLite reads "ON CONFLICT" behind a bare SELECT as a join constraint; the WHERE above tells them apart.
    let now = scope.now;
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(user).bind(role).bind(now).execute(db).await?
        .rows_affected());
    Ok(rows == 1)
}

/// Puts people into a channel that was just made, in one statement however many they are.
pub(super) async fn add_first_members(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    people: &[(UserId, ChannelRole)],
) -> Result<(), StoreError> {
    let people = serde_json::to_string(people).expect("lists have no keys");
    let sql = by_dialect!(scope.db,
        postgres: "INSERT INTO members (channel_id, user_id, role, joined_at) \
                   SELECT $1, (value ->> 0)::uuid, value ->> 1, $3 FROM json_array_elements($2::json)",
        sqlite: "INSERT INTO members (channel_id, user_id, role, joined_at) \
                 SELECT $1, unhex(value ->> 0, '-'), value ->> 1, $3 FROM json_each($2)",
    );
    let now = scope.now;
    on!(scope.db, db => { sqlx::query(sql).bind(channel).bind(people).bind(now).execute(db).await?; });
    Ok(())
}

/// Removes a member and what they kept about the channel; returns whether they were in it.
pub(super) async fn remove_member(scope: &mut Scope<'_>, channel: ChannelId, user: UserId) -> Result<bool, StoreError> {
    let rows = on!(scope.db, db => sqlx::query("DELETE FROM members WHERE channel_id = $1 AND user_id = $2")
        .bind(channel).bind(user).execute(db).await?.rows_affected());
    on!(scope.db, db => { sqlx::query("DELETE FROM thread_follows WHERE channel_id = $1 AND user_id = $2")
        .bind(channel).bind(user).execute(db).await?; });
    personal::remove_drafts(scope, user, channel, None).await?;
    Ok(rows == 1)
}

/// Sets a member's role; returns whether they are in the channel.
pub(super) async fn set_role(
    scope: &mut Scope<'_>,
    channel: ChannelId,
    user: UserId,
    role: ChannelRole,
) -> Result<bool, StoreError> {
    let sql = "UPDATE members SET role = $3 WHERE channel_id = $1 AND user_id = $2";
    let rows = on!(scope.db, db => sqlx::query(sql).bind(channel).bind(user).bind(role).execute(db).await?
        .rows_affected());
    Ok(rows == 1)
}

/// Returns a member's role, and whether their account is active.
pub(super) async fn rank(
    db: &mut Db,
    channel: ChannelId,
    user: UserId,
) -> Result<Option<(ChannelRole, bool)>, StoreError> {
    let sql = "SELECT m.role, u.deactivated_at IS NULL FROM members m JOIN users u ON u.id = m.user_id \
               WHERE m.channel_id = $1 AND m.user_id = $2";
    Ok(on!(db, c => sqlx::query_as(sql).bind(channel).bind(user).fetch_optional(c).await?))
}

/// Returns whether a channel has an active owner besides one user.
pub(super) async fn has_another_owner(db: &mut Db, channel: ChannelId, but: UserId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM members m JOIN users u ON u.id = m.user_id WHERE m.channel_id = $1 \
               AND m.role = 'owner' AND m.user_id <> $2 AND u.deactivated_at IS NULL)";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(channel).bind(but).fetch_one(c).await?))
}

/// Returns whether an active user is in a channel besides one.
pub(super) async fn has_another_member(db: &mut Db, channel: ChannelId, but: UserId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM members m JOIN users u ON u.id = m.user_id WHERE m.channel_id = $1 \
               AND m.user_id <> $2 AND u.deactivated_at IS NULL)";
    Ok(on!(db, c => sqlx::query_scalar(sql).bind(channel).bind(but).fetch_one(c).await?))
}
