//! Users, as REST reads them. What changes them are commands.

use std::collections::HashMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auth::{Items, Nothing};
use super::channels::{List, cut, name_cursor, page_size, sought};
use super::endpoint::Params;
use super::error::Refused;
use crate::actors::Hub;
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::error::{invalid, not_found, unavailable};
use crate::domain::id::UserId;
use crate::domain::user::{Presence, User, handle};
use crate::storage::{last_seen, users};

/// Which users.
#[derive(Deserialize, JsonSchema)]
pub struct Find {
    /// Those whose handle or display name holds this text; all, if left out.
    #[serde(default)]
    query: Option<String>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// How many entries, 1 to 200; 50, if left out.
    #[serde(default)]
    limit: Option<i64>,
}

/// `GET /v1/users`: a guest sees those who share a channel with them.
pub async fn list(hub: Arc<Hub>, caller: Principal, _: Params, ask: Find) -> Result<List<User>, Refused> {
    let limit = page_size(&hub, ask.limit)?;
    let (query, after) = (sought(ask.query.as_deref())?, name_cursor(ask.cursor.as_deref(), handle)?);
    let mut db = hub.store.read().await?;
    let found = users::list_seen_by(&mut db, caller, query, after, limit + 1).await?;
    Ok(cut(found, limit, |user| user.name.clone()))
}

/// `GET /v1/users/me`
pub async fn me(hub: Arc<Hub>, caller: Principal, _: Params, _: Nothing) -> Result<User, Refused> {
    let mut db = hub.store.read().await?;
    Ok(users::by_id(&mut db, caller.user_id).await?.ok_or_else(|| not_found("user"))?)
}

/// `GET /v1/users/{user_id}`
pub async fn one(hub: Arc<Hub>, caller: Principal, path: Params, _: Nothing) -> Result<User, Refused> {
    let id = path.user()?;
    if users::seen_by(&hub.store, caller, vec![id]).await?.is_empty() {
        return Err(not_found("user").into());
    }
    let mut db = hub.store.read().await?;
    Ok(users::by_id(&mut db, id).await?.ok_or_else(|| not_found("user"))?)
}

/// Whose presence.
#[derive(Deserialize, JsonSchema)]
pub struct PresenceQuery {
    /// Identifiers, separated by commas; at most 500.
    user_ids: String,
}

/// What others see of a user.
#[derive(Serialize, JsonSchema)]
pub struct Seen {
    /// The user.
    pub user_id: UserId,
    /// Online, away, dnd, unknown or offline.
    pub presence: Presence,
    /// When they last did something while they were there, to about a minute; of who is offline or unknown, and ever was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<Timestamp>,
}

/// `GET /v1/presence`
pub async fn presence(
    hub: Arc<Hub>,
    caller: Principal,
    _: Params,
    query: PresenceQuery,
) -> Result<Items<Seen>, Refused> {
    let most = hub.config.presence.subscriptions;
    let mut ids = Vec::new();
    for text in query.user_ids.split(',').filter(|text| !text.is_empty()) {
        ids.push(text.trim().parse::<UserId>().map_err(|_| invalid("user_ids has an entry that is no identifier"))?);
    }
    if most > 0 && ids.len() > most {
        return Err(invalid(format!("user_ids has more than {most} entries")).into());
    }
    let ids = users::seen_by(&hub.store, caller, ids).await?;
    let seen = hub.directory.ask_presence(ids).await.ok_or_else(|| unavailable("presence is not known now"))?;
    let gone = seen.iter().filter(|(_, presence)| *presence <= Presence::Unknown).map(|(user, _)| *user).collect();
    let last = last_seen_of(&hub, gone).await?;
    let item = |(user_id, presence)| Seen { user_id, presence, last_seen_at: last.get(&user_id).copied() };
    Ok(Items { items: seen.into_iter().map(item).collect() })
}

/// Returns when users last did something, by the store, and by what is not stored yet.
async fn last_seen_of(hub: &Hub, users: Vec<UserId>) -> Result<HashMap<UserId, Timestamp>, Refused> {
    if users.is_empty() {
        return Ok(HashMap::new());
    }
    let mut db = hub.store.read().await?;
    let stored = last_seen::of(&mut db, &users).await?;
    drop(db);
    let mut last: HashMap<UserId, Timestamp> = HashMap::new();
    for (user, at) in stored.into_iter().chain(hub.directory.last_seen_here(users).await) {
        let known = last.entry(user).or_insert(at);
        *known = at.max(*known);
    }
    Ok(last)
}
