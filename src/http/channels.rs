//! Channels and what is in them, as REST reads it. What changes them are commands.

use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::auth::Nothing;
use super::endpoint::{Params, Rendered};
use super::error::Refused;
use crate::actors::Hub;
use crate::clock::Timestamp;
use crate::domain::channel::{Channel, Member, Membership, channel_name};
use crate::domain::command::Principal;
use crate::domain::error::{Refusal, invalid, not_found};
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::message::{Edit, Message};
use crate::domain::permission::{self, Action, may_make_channels};
use crate::protocol::push;
use crate::storage::cache::PageKey;
use crate::storage::channels::{self, Facts, Listed};
use crate::storage::messages::{self, More, Page, Saved};
use crate::storage::personal::{self, Draft, Thread};
use crate::storage::replica::{self, Ask};
use crate::storage::{Db, End, LATEST, StoreError, events};

/// How many entries a page has if nobody says.
const PAGE: i64 = 50;

/// A page of a longer list.
#[derive(Serialize, JsonSchema)]
pub struct List<T> {
    /// The entries.
    pub items: Vec<T>,
    /// What to ask with for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Which page of a list.
#[derive(Deserialize, JsonSchema)]
pub struct Paging {
    /// The `next_cursor` of the page before.
    #[serde(default)]
    pub cursor: Option<String>,
    /// How many entries, 1 to 200; 50, if left out.
    #[serde(default)]
    pub limit: Option<i64>,
}

/// Returns how many entries a page has.
pub fn page_size(hub: &Hub, asked: Option<i64>) -> Result<i64, Refusal> {
    let most = i64::from(hub.config.limits.page_max);
    match asked.unwrap_or(PAGE.min(most)) {
        limit if (1..=most).contains(&limit) => Ok(limit),
        _ => Err(invalid(format!("limit is between 1 and {most}"))),
    }
}

impl Paging {
    /// Reads a cursor that is an identifier.
    pub fn cursor<T: FromStr>(&self) -> Result<Option<T>, Refusal> {
        let parse = |text: &String| text.parse().map_err(|_| not_given());
        self.cursor.as_ref().map(parse).transpose()
    }
}

/// Reads a cursor that is a name, whose form `check` knows; before all names, if there is none.
pub fn name_cursor(cursor: Option<&str>, check: impl Fn(&str) -> Result<String, Refusal>) -> Result<&str, Refusal> {
    let Some(cursor) = cursor else { return Ok("") };
    if check(cursor).is_ok_and(|name| name == cursor) { Ok(cursor) } else { Err(not_given()) }
}

/// The longest text to look for, in bytes.
const QUERY_MAX: usize = 200;

/// Reads what to look for; anything, if nothing is given.
pub fn sought(query: Option<&str>) -> Result<&str, Refusal> {
    let query = query.unwrap_or("").trim();
    if query.len() > QUERY_MAX || query.contains('\0') {
        return Err(invalid(format!("query has at most {QUERY_MAX} bytes, and no NUL")));
    }
    Ok(query)
}

fn not_given() -> Refusal {
    invalid("cursor is none that this list gave")
}

/// The cursor of a list that is ordered by time: the time of a page's last entry, and which entry that is.
pub struct ByTime<T>(pub Timestamp, pub T);

impl<T: FromStr> FromStr for ByTime<T> {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, entry) = text.split_once('_').ok_or(())?;
        let at = at.parse().ok().filter(|at| (0..=LATEST.0).contains(at)).ok_or(())?;
        Ok(ByTime(Timestamp(at), entry.parse().map_err(drop)?))
    }
}

/// A place in a channel, as it stands in a cursor.
struct Place(ChannelId, i64);

impl FromStr for Place {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (channel, seq) = text.split_once('_').ok_or(())?;
        Ok(Place(channel.parse().map_err(drop)?, seq.parse().map_err(drop)?))
    }
}

impl Paging {
    /// Reads the cursor of a list that is ordered by time and then by place.
    fn end(&self) -> Result<Option<End>, Refusal> {
        Ok(self.cursor::<ByTime<Place>>()?.map(|ByTime(at, Place(channel, seq))| (at, channel, seq)))
    }
}

fn end_of(at: Timestamp, channel: ChannelId, seq: i64) -> String {
    format!("{}_{channel}_{seq}", at.0)
}

/// Cuts a list that was read one entry too long.
pub fn cut<T>(mut items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> String) -> List<T> {
    let limit = usize::try_from(limit).unwrap_or(0);
    let more = items.len() > limit;
    items.truncate(limit);
    list((items, more), cursor)
}

/// Makes a list of entries and whether there are more.
fn list<T>((items, more): (Vec<T>, bool), cursor: impl Fn(&T) -> String) -> List<T> {
    let next_cursor = if more { items.last().map(cursor) } else { None };
    List { items, next_cursor }
}

/// Returns what decides about a caller and a channel that the caller may read.
async fn readable(hub: &Hub, caller: Principal, channel: ChannelId) -> Result<Facts, Refused> {
    let facts = hub.facts(caller.user_id, channel).await?;
    permission::allows(facts.who, Action::Read, facts.channel)?;
    Ok(facts)
}

/// Reads something of a channel for who may read it when that is done: the right is looked at last, so that who was put out
/// meanwhile is not shown what was said since. Whether they may is also the first that they are told.
async fn read_of<T>(
    hub: &Hub,
    caller: Principal,
    channel: ChannelId,
    read: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    let found = read.await;
    readable(hub, caller, channel).await?;
    found
}

/// `GET /v1/channels`
pub async fn mine(hub: Arc<Hub>, caller: Principal, _: Params, paging: Paging) -> Result<List<Membership>, Refused> {
    let limit = page_size(&hub, paging.limit)?;
    let mut db = hub.store.read().await?;
    let found = channels::of_user(&mut db, caller.user_id, paging.cursor()?, limit + 1).await?;
    Ok(cut(found, limit, |membership| membership.channel.id.to_string()))
}

/// Which public channels.
#[derive(Deserialize, JsonSchema)]
pub struct Browse {
    /// Those whose name, topic or purpose holds this text; all, if left out.
    #[serde(default)]
    query: Option<String>,
    /// Whether to show those that are archived, too.
    #[serde(default)]
    archived: bool,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// How many entries, 1 to 200; 50, if left out.
    #[serde(default)]
    limit: Option<i64>,
}

/// `GET /v1/channels/browse`
pub async fn browse(hub: Arc<Hub>, caller: Principal, _: Params, ask: Browse) -> Result<List<Listed>, Refused> {
    may_make_channels(caller.role)?;
    let limit = page_size(&hub, ask.limit)?;
    let (query, after) = (sought(ask.query.as_deref())?, name_cursor(ask.cursor.as_deref(), channel_name)?);
    let mut db = hub.store.read().await?;
    let found = channels::find(&mut db, caller.user_id, query, ask.archived, after, limit + 1).await?;
    Ok(cut(found, limit, |listed| listed.channel.name.clone().unwrap_or_default()))
}

/// A channel, with the caller's place in it if there is one.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Seen {
    /// The caller is in it.
    Inside(Box<Membership>),
    /// The caller only looks at it.
    Outside(Box<Channel>),
}

/// `GET /v1/channels/{channel_id}`
pub async fn one(hub: Arc<Hub>, caller: Principal, path: Params, _: Nothing) -> Result<Seen, Refused> {
    let id = path.channel()?;
    let read = async {
        let mut db = hub.store.read().await?;
        if let Some(membership) = channels::membership(&mut db, caller.user_id, id).await? {
            return Ok(Seen::Inside(Box::new(membership)));
        }
        let channel = channels::by_id(&mut db, id).await?.ok_or_else(|| not_found("channel"))?;
        Ok(Seen::Outside(Box::new(channel)))
    };
    read_of(&hub, caller, id, read).await
}

/// `GET /v1/channels/{channel_id}/members`
pub async fn members(hub: Arc<Hub>, caller: Principal, path: Params, paging: Paging) -> Result<List<Member>, Refused> {
    let id = path.channel()?;
    let limit = page_size(&hub, paging.limit)?;
    let read = async {
        let mut db = hub.store.read().await?;
        let found = channels::members(&mut db, id, paging.cursor::<UserId>()?, limit + 1).await?;
        Ok(cut(found, limit, |member| member.user_id.to_string()))
    };
    read_of(&hub, caller, id, read).await
}

/// Which part of a history: at most one of the three.
#[derive(Deserialize, JsonSchema)]
pub struct HistoryQuery {
    /// How many messages, 1 to 200; 50, if left out.
    #[serde(default)]
    limit: Option<i64>,
    /// Those right before this event.
    #[serde(default)]
    before_seq: Option<i64>,
    /// Those right after this event.
    #[serde(default)]
    after_seq: Option<i64>,
    /// Those around this event.
    #[serde(default)]
    around_seq: Option<i64>,
}

impl HistoryQuery {
    /// Returns the page that is asked for, if any is.
    fn page(&self) -> Result<Option<Page>, Refusal> {
        let page = match (self.before_seq, self.after_seq, self.around_seq) {
            (None, None, None) => return Ok(None),
            (Some(seq), None, None) => Page::Before(seq),
            (None, Some(seq), None) => Page::After(seq),
            (None, None, Some(seq)) => Page::Around(seq),
            _ => return Err(invalid("give at most one of before_seq, after_seq, around_seq")),
        };
        let (Page::Before(seq) | Page::After(seq) | Page::Around(seq)) = page else { return Ok(Some(page)) };
        if seq < 0 { Err(invalid("before_seq, after_seq and around_seq are not below 0")) } else { Ok(Some(page)) }
    }
}

/// Messages, oldest first.
#[derive(Serialize, JsonSchema)]
pub struct Messages {
    /// The messages.
    pub items: Vec<Message>,
    /// Whether there are more in the direction asked for; with `around_seq`, in either.
    pub has_more: bool,
    /// With `around_seq`: whether there are older ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_older: Option<bool>,
    /// With `around_seq`: whether there are newer ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_newer: Option<bool>,
}

impl Messages {
    fn of((items, more): (Vec<Message>, More)) -> Self {
        let both = more.older.is_some() && more.newer.is_some();
        let (has_older, has_newer) = (more.older.filter(|_| both), more.newer.filter(|_| both));
        Messages { items, has_more: more.any(), has_older, has_newer }
    }
}

/// `GET /v1/channels/{channel_id}/messages`: top-level messages.
pub async fn history(
    hub: Arc<Hub>,
    caller: Principal,
    path: Params,
    query: HistoryQuery,
) -> Result<Rendered<Messages>, Refused> {
    let channel = path.channel()?;
    let page = query.page()?.unwrap_or(Page::Newest);
    let limit = page_size(&hub, query.limit)?;
    let facts = readable(&hub, caller, channel).await?;
    let key = PageKey { channel, page, limit, head: hub.cache.head(facts.head) };
    if let Some(bytes) = hub.cache.page(&key) {
        return Ok(Rendered(bytes, PhantomData));
    }
    let mark = hub.cache.mark();
    let ask = Ask { channel, thread: None, page, limit };
    let found = replica::history(&hub.store, facts.head, ask).await;
    // As [`read_of`].
    let after = readable(&hub, caller, channel).await?;
    let found = found?;
    let bytes = serde_json::to_vec(&Messages::of(found)).expect("messages have only string keys");
    // Boxed, so that no more is kept than there is.
    let bytes = Bytes::from(bytes.into_boxed_slice());
    // A page that holds what was said since is for those alone who may read now: it is kept under no earlier head.
    if after.head == facts.head {
        hub.cache.keep_page(mark, key, bytes.clone());
    }
    Ok(Rendered(bytes, PhantomData))
}

/// A message and its address.
#[derive(Serialize, JsonSchema)]
pub struct Linked {
    /// The message.
    #[serde(flatten)]
    pub message: Message,
    /// Where people find it.
    pub permalink: String,
}

async fn message(db: &mut Db, channel: ChannelId, seq: i64) -> Result<Message, StoreError> {
    Ok(messages::one(db, channel, seq).await?.ok_or_else(|| not_found("message"))?)
}

/// `GET /v1/channels/{channel_id}/messages/{seq}`
pub async fn message_at(hub: Arc<Hub>, caller: Principal, path: Params, _: Nothing) -> Result<Linked, Refused> {
    let (channel, seq) = (path.channel()?, path.seq()?);
    let read = async { Ok(message(&mut hub.store.read().await?, channel, seq).await?) };
    let message = read_of(&hub, caller, channel, read).await?;
    let thread = message.thread_seq.map(|thread| format!("?thread={thread}")).unwrap_or_default();
    let permalink = format!("{}/c/{channel}/{seq}{thread}", hub.config.server.url());
    Ok(Linked { message, permalink })
}

/// `GET /v1/channels/{channel_id}/messages/{seq}/edits`
pub async fn edits(hub: Arc<Hub>, caller: Principal, path: Params, paging: Paging) -> Result<List<Edit>, Refused> {
    let (channel, seq) = (path.channel()?, path.seq()?);
    let limit = page_size(&hub, paging.limit)?;
    let after = paging.cursor()?.unwrap_or(0);
    let read = async {
        let mut db = hub.store.read().await?;
        message(&mut db, channel, seq).await?;
        Ok(messages::edits(&mut db, channel, seq, after, limit).await?)
    };
    let found = read_of(&hub, caller, channel, read).await?;
    Ok(list(found, |edit| edit.edit_seq.to_string()))
}

/// `GET /v1/channels/{channel_id}/messages/{seq}/replies`: from the first on, if nothing is asked for.
pub async fn replies(hub: Arc<Hub>, caller: Principal, path: Params, query: HistoryQuery) -> Result<Messages, Refused> {
    let (channel, seq) = (path.channel()?, path.seq()?);
    let facts = readable(&hub, caller, channel).await?;
    let limit = page_size(&hub, query.limit)?;
    let page = query.page()?.unwrap_or(Page::After(0));
    let read = async {
        message(&mut hub.store.read().await?, channel, seq).await?;
        let ask = Ask { channel, thread: Some(seq), page, limit };
        Ok(Messages::of(replica::history(&hub.store, facts.head, ask).await?))
    };
    read_of(&hub, caller, channel, read).await
}

/// `GET /v1/channels/{channel_id}/threads/{thread_seq}`
pub async fn thread(hub: Arc<Hub>, caller: Principal, path: Params, _: Nothing) -> Result<Thread, Refused> {
    let (channel, seq) = (path.channel()?, path.thread_seq()?);
    let read = async {
        let mut db = hub.store.read().await?;
        Ok(personal::thread(&mut db, caller.user_id, channel, seq).await?.ok_or_else(|| not_found("message"))?)
    };
    read_of(&hub, caller, channel, read).await
}

/// `GET /v1/channels/{channel_id}/pins`
pub async fn pins(hub: Arc<Hub>, caller: Principal, path: Params, paging: Paging) -> Result<List<Message>, Refused> {
    let channel = path.channel()?;
    let limit = page_size(&hub, paging.limit)?;
    let end = paging.cursor()?.map(|ByTime(at, seq)| (at, seq));
    let read = async { Ok(messages::pinned(&mut hub.store.read().await?, channel, end, limit).await?) };
    let found = read_of(&hub, caller, channel, read).await?;
    let List { items, next_cursor } = list(found, |pin| format!("{}_{}", pin.pinned_at.0, pin.message.seq));
    Ok(List { items: items.into_iter().map(|pin| pin.message).collect(), next_cursor })
}

/// Which events of a stream.
#[derive(Deserialize, JsonSchema)]
pub struct EventsQuery {
    /// Those behind this one.
    #[serde(default)]
    after_seq: i64,
    /// How many at most, 1 to 1,000; 200, if left out. Fewer come if they are long: go on as long as the last one is not
    /// the head.
    #[serde(default)]
    limit: Option<i64>,
}

/// Events in order: what repairs a gap.
#[derive(Serialize, JsonSchema)]
pub struct Events {
    /// The events, as on the gateway but without `s`.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub items: Vec<Box<RawValue>>,
    /// The number of the stream's newest event.
    pub head: i64,
}

/// `GET /v1/channels/{channel_id}/events`: for the channel's members.
pub async fn channel_events(
    hub: Arc<Hub>,
    caller: Principal,
    path: Params,
    query: EventsQuery,
) -> Result<Events, Refused> {
    let channel = path.channel()?;
    read_of(&hub, caller, channel, events_of(&hub, channel.into(), query)).await
}

/// `GET /v1/streams/{stream_id}/events`: the caller's own stream, the workspace's, or a channel's.
pub async fn stream_events(
    hub: Arc<Hub>,
    caller: Principal,
    path: Params,
    query: EventsQuery,
) -> Result<Events, Refused> {
    let stream = path.stream()?;
    if stream == StreamId::WORKSPACE {
        may_make_channels(caller.role)?;
    } else if stream != caller.user_id.into() {
        return read_of(&hub, caller, stream.into(), events_of(&hub, stream, query)).await;
    }
    events_of(&hub, stream, query).await
}

async fn events_of(hub: &Hub, stream: StreamId, query: EventsQuery) -> Result<Events, Refused> {
    let limit = query.limit.unwrap_or(200);
    if !(1..=1_000).contains(&limit) {
        return Err(invalid("limit is between 1 and 1000").into());
    }
    let mut db = hub.store.read().await?;
    let head = events::head(&mut db, stream).await?;
    if query.after_seq < 0 || query.after_seq > head {
        return Err(invalid(format!("after_seq is between 0 and {head}, the newest event")).into());
    }
    let found = events::after(&mut db, stream, query.after_seq, limit).await?;
    Ok(Events { items: found.iter().map(push::object).collect(), head })
}

/// `GET /v1/drafts`
pub async fn drafts(hub: Arc<Hub>, caller: Principal, _: Params, paging: Paging) -> Result<List<Draft>, Refused> {
    let limit = page_size(&hub, paging.limit)?;
    let mut db = hub.store.read().await?;
    let found = personal::drafts(&mut db, caller.user_id, paging.end()?, limit).await?;
    Ok(list(found, |draft| end_of(draft.updated_at, draft.channel_id, draft.thread_seq.unwrap_or(0))))
}

/// `GET /v1/saved`
pub async fn saved(hub: Arc<Hub>, caller: Principal, _: Params, paging: Paging) -> Result<List<Saved>, Refused> {
    let limit = page_size(&hub, paging.limit)?;
    let mut db = hub.store.read().await?;
    let found = messages::saved(&mut db, caller.user_id, paging.end()?, limit).await?;
    Ok(list(found, |saved| end_of(saved.saved_at, saved.message.channel_id, saved.message.seq)))
}

/// `GET /v1/threads`: those with the newest replies.
pub async fn threads(hub: Arc<Hub>, caller: Principal, _: Params, paging: Paging) -> Result<List<Thread>, Refused> {
    let limit = page_size(&hub, paging.limit)?;
    let mut db = hub.store.read().await?;
    let found = personal::followed(&mut db, caller.user_id, paging.end()?, limit + 1).await?;
    Ok(cut(found, limit, |thread| end_of(thread.last_at, thread.channel_id, thread.thread_seq)))
}
