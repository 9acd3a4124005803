//! What the store promises, run on SQLite and, where `COLINK_TEST_POSTGRES` names a server, on Postgres too.
//!
//! Each test opens a database of its own: a temporary file, or `CREATE DATABASE` on the server.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use sqlx::postgres::PgConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::accounts::{Account, Ended, NO_ANSWER, Proof, Pruned, SYSTEM};
use super::apply::Scope;
use super::catch_up::{self, CatchUp};
use super::messages::Page;
use super::tokens::{Secret, Token};
use super::writer::{Limits, Reply, Work, Writer};
use super::{
    Db, Dialect, Options, PAGE_BYTES, Store, StoreError, apply, channels, events, last_seen, messages, on, personal,
    tokens, users,
};
use crate::clock::{Clock, Timestamp};
use crate::domain::channel::{Channel, ChannelKind, ChannelRole, Membership, Posting};
use crate::domain::command::{self, Command, Invite, Principal};
use crate::domain::error::{Code, Refusal};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, NodeId, StreamId, TokenId, UserId};
use crate::domain::message::{Message, Sent};
use crate::domain::text::TEXT_MAX;
use crate::domain::user::{Role, User};

/// How long anything may take that happens at all.
const LIMIT: Duration = Duration::from_secs(20);
/// How long an answer of the writer may take.
const PATIENCE: Duration = Duration::from_secs(2);

struct World {
    store: Store,
    writer: Writer,
    told: Arc<Mutex<Vec<Event>>>,
    /// Whether it was said that something may be stored that was not told.
    in_doubt: Arc<AtomicBool>,
    /// Wakes whoever waits for something to be told.
    news: Arc<Notify>,
    clock: Clock,
    url: String,
    _dir: tempfile::TempDir,
}

/// Returns a URL of a new, empty database; nothing if there is no Postgres to test on.
async fn new_database(dialect: Dialect, dir: &std::path::Path) -> Option<String> {
    if dialect == Dialect::Sqlite {
        return Some(format!("sqlite://{}", dir.join("test.db").display()));
    }
    let server = std::env::var("COLINK_TEST_POSTGRES").ok()?;
    let name = format!("contract_{}", UserId::new(Clock::default().now()).0.simple());
    let pool = sqlx::PgPool::connect(&server).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    Some(format!("{base}/{name}"))
}

impl World {
    async fn open(dialect: Dialect) -> Option<World> {
        World::with(dialect, |_| {}).await
    }

    async fn with(dialect: Dialect, change: impl FnOnce(&mut Options)) -> Option<World> {
        let dir = tempfile::tempdir().unwrap();
        let url = new_database(dialect, dir.path()).await?;
        let mut options = Options::new(&url);
        change(&mut options);
        Some(World::on(url, &options, dir).await)
    }

    /// Opens a world on the database at `url`, which is reached as `options` say.
    async fn on(url: String, options: &Options, dir: tempfile::TempDir) -> World {
        let store = Store::open(options).await.unwrap();
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
        let (told, news) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let in_doubt = Arc::<AtomicBool>::default();
        let sink = {
            let (told, news, in_doubt) = (told.clone(), news.clone(), in_doubt.clone());
            Arc::new(move |committed: super::writer::Committed| {
                told.lock().unwrap().extend(committed.events);
                in_doubt.fetch_or(committed.in_doubt, Ordering::SeqCst);
                news.notify_one();
            })
        };
        let clock = Clock::manual(Timestamp(1_790_000_000_000_000));
        let limits = Limits { queue: 4_096, batch: 256, patience: PATIENCE, statement: LIMIT };
        let node = NodeId::new(clock.now());
        let (writer, _) =
            Writer::start(store.clone(), clock.clone(), node, limits, sink, CancellationToken::new()).unwrap();
        World { store, writer, told, in_doubt, news, clock, url, _dir: dir }
    }

    async fn user(&self, name: &str, role: Role) -> Principal {
        let add = Account::Add { name: name.into(), display_name: None, role, password_hash: None, first: false };
        let reply = self.writer.write(SYSTEM, Work::Account(add), None).await.unwrap();
        let user: User = serde_json::from_str(&reply.json).unwrap();
        Principal { user_id: user.id, role, token_id: TokenId::new(self.clock.now()) }
    }

    async fn ask(&self, who: Principal, command: impl Into<Command>) -> Result<Reply, Refusal> {
        let command = command.into();
        let key = match &command {
            Command::SendMessage(c) => c.client_msg_id.clone(),
            _ => None,
        };
        self.writer.write(who, Work::Command(command), key).await
    }

    async fn get<T: DeserializeOwned>(&self, who: Principal, command: impl Into<Command>) -> T {
        serde_json::from_str(&self.ask(who, command).await.unwrap().json).unwrap()
    }

    async fn channel(&self, who: Principal, name: &str, members: &[Principal]) -> ChannelId {
        let members = members.iter().map(|m| m.user_id).collect();
        let create = command::CreateChannel {
            name: name.into(),
            private: false,
            topic: String::new(),
            purpose: String::new(),
            members,
        };
        self.get::<Channel>(who, create).await.id
    }

    async fn membership(&self, who: Principal, channel: ChannelId) -> Membership {
        let mut db = self.store.read().await.unwrap();
        channels::membership(&mut db, who.user_id, channel).await.unwrap().unwrap()
    }

    /// Returns a connection that writes past the writer.
    async fn apart(&self) -> Db {
        Store::open(&Options::new(&self.url)).await.unwrap().write().await.unwrap()
    }

    /// Checks that what was told is stored, each once.
    async fn all_told_is_stored(&self, db: &mut Db, when: &str) {
        let sql = "SELECT stream_id, seq FROM events ORDER BY stream_id, seq";
        let stored: Vec<(StreamId, i64)> = on!(db, c => sqlx::query_as(sql).fetch_all(c).await.unwrap());
        let mut told: Vec<(StreamId, i64)> =
            self.told.lock().unwrap().iter().map(|event| (event.stream, event.seq)).collect();
        told.sort_unstable();
        let stored: std::collections::BTreeSet<_> = stored.into_iter().collect();
        assert!(told.iter().all(|event| stored.contains(event)), "{when}");
        assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{when}");
    }

    async fn log(&self, stream: impl Into<StreamId>) -> Vec<Event> {
        let mut db = self.store.read().await.unwrap();
        events::after(&mut db, stream.into(), 0, 100_000).await.unwrap()
    }
}

/// Opens a connection to a world on Postgres, past its pools.
async fn beside(world: &World) -> PgConnection {
    <PgConnection as sqlx::Connection>::connect(&world.url).await.unwrap()
}

async fn sql(db: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(db).await.unwrap();
}

/// Asks a yes-or-no question until the answer is yes.
async fn until(db: &mut PgConnection, question: &'static str) {
    let asked = async {
        while !sqlx::query_scalar::<_, bool>(question).fetch_one(&mut *db).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| panic!("still not: {question}"));
}

fn says(channel: ChannelId, text: &str, key: Option<&str>) -> command::SendMessage {
    command::SendMessage {
        channel_id: channel,
        client_msg_id: key.map(str::to_owned),
        text: text.into(),
        thread_seq: None,
        also_in_channel: false,
    }
}

/// Reads a page of a channel, or of a thread; returns whether there are more in the direction asked for.
async fn page(
    db: &mut Db,
    thread: Option<i64>,
    channel: ChannelId,
    page: Page,
    limit: i64,
) -> Result<(Vec<Message>, bool), StoreError> {
    let (found, more) = messages::history(db, channel, thread, page, limit).await?;
    Ok((found, more.any()))
}

/// Opens a world on Postgres as a large hub has it: its large tables in partitions, and by way of a pooler in transaction mode, if
/// there is one to test with.
async fn on_a_large_postgres() -> Option<World> {
    let dir = tempfile::tempdir().unwrap();
    let url = new_database(Dialect::Postgres, dir.path()).await?;
    super::partition::partition(&url, 4).await.unwrap();
    let options = by_pooler(&url).unwrap_or_else(|| Options::new(&url));
    Some(World::on(url, &options, dir).await)
}

/// Returns how a database is reached by way of a pooler in transaction mode, if there is one to test with.
fn by_pooler(url: &str) -> Option<Options> {
    let Ok(pooler) = std::env::var("COLINK_TEST_PGBOUNCER") else {
        eprintln!("skipped: COLINK_TEST_PGBOUNCER is not set");
        return None;
    };
    let ((base, _), (_, database)) = (pooler.rsplit_once('/').unwrap(), url.rsplit_once('/').unwrap());
    Some(Options { pooled: true, ..Options::new(format!("{base}/{database}")) })
}

/// Makes one test for each database out of one body.
macro_rules! on_both {
    ($($name:ident($world:ident) $body:block)*) => { on_both! { @also {} $($name($world) $body)* } };
    (@also $more:tt $($name:ident($world:ident) $body:block)*) => {$(
        mod $name {
            use super::*;
            async fn body($world: World) $body

            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                body(World::open(Dialect::Sqlite).await.unwrap()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                if let Some(world) = on_postgres(|_| {}).await {
                    body(world).await;
                }
            }

            on_both! { @unpack $more }
        }
    )*};
    (@unpack { $($more:item)* }) => { $($more)* };
}

/// The same, and one for a large Postgres.
macro_rules! everywhere {
    ($($tests:tt)*) => {
        on_both! {
            @also {
                #[tokio::test(flavor = "multi_thread")]
                async fn large() {
                    if let Some(world) = on_a_large_postgres().await {
                        body(world).await;
                    }
                }
            }
            $($tests)*
        }
    };
}

mod copy;
mod cost;
mod failures;
mod log;
mod migrations;
mod owners;
mod partition;
mod people;
mod pooler;
mod races;
mod remembered;
mod rooms;
mod silence;
mod talk;
mod wire;

/// Opens a world on Postgres, if there is one to test on.
async fn on_postgres(change: impl FnOnce(&mut Options)) -> Option<World> {
    let world = World::with(Dialect::Postgres, change).await;
    if world.is_none() {
        assert!(std::env::var("CI").is_err(), "CI runs every test on Postgres: set COLINK_TEST_POSTGRES");
        eprintln!("skipped: COLINK_TEST_POSTGRES is not set");
    }
    world
}
