//! Search, as REST asks for it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use time::UtcOffset;

use super::channels::page_size;
use super::endpoint::Params;
use super::error::Refused;
use crate::actors::Hub;
use crate::domain::command::Principal;
use crate::domain::error::invalid;
use crate::domain::search::query::Query;
use crate::domain::search::wanted::Sort;
use crate::storage::search::{Answer, Ask, Cursor};

/// What is looked for.
#[derive(Deserialize, JsonSchema)]
pub struct Asked {
    /// Words, `"phrases"`, `begin*`, and `from:` `in:` `before:` `after:` `on:` `has:` `is:` `mentions:`; `-` in front of any: not that.
    q: String,
    /// What comes first: `relevance` (if left out), `newest` or `oldest`.
    #[serde(default)]
    sort: Sort,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// How many messages, 1 to 200; 50, if left out.
    #[serde(default)]
    limit: Option<i64>,
    /// By how many minutes the caller's days begin before those of UTC: 60 in Berlin in winter; 0, if left out.
    #[serde(default)]
    utc_offset_min: i32,
}

/// `GET /v1/search/messages`
pub async fn messages(hub: Arc<Hub>, caller: Principal, _: Params, asked: Asked) -> Result<Answer, Refused> {
    let limit = usize::try_from(page_size(&hub, asked.limit)?).unwrap_or(1);
    let offset = UtcOffset::from_whole_seconds(asked.utc_offset_min.saturating_mul(60))
        .ok()
        .filter(|offset| offset.whole_hours().abs() <= 18)
        .ok_or_else(|| invalid("utc_offset_min is between -1080 and 1080"))?;
    let now = hub.clock.now();
    let query = Query::parse(&asked.q, now, offset)?;
    let cursor = asked.cursor.as_deref().map(str::parse::<Cursor>).transpose();
    let fits = |cursor: &Cursor| matches!(cursor, Cursor::Offset(..)) == (asked.sort == Sort::Relevance);
    let cursor = cursor.ok().filter(|cursor| cursor.as_ref().is_none_or(fits));
    let cursor = cursor.ok_or_else(|| invalid("cursor is none that this search gave"))?;
    let ask = Ask { query, sort: asked.sort, cursor, limit };
    Ok(hub.search.messages(&hub.store, caller, ask, now).await?)
}
