//! The bus over Redis: pub/sub and nothing else, no keys, so that flushing or evicting them means nothing to it.
//!
//! A node listens to two channels, `{name}:all` and `{name}:node:{its id}`. A message on the wire is the sender's id, 16
//! bytes, and what it says; by the id a node knows its own and does not hear them.
//!
//! One task, the [`Keeper`], has two connections. By the first it publishes all that waits as one pipeline. The
//! second is subscribed. Every 500 ms it publishes an echo to its own channel: as long as that comes back, the bus is up,
//! whatever the connections look like. A server that is paused, a connection that is open at one end alone, a network
//! that lets through one direction: each ends the echo. Then both connections are made anew, with a growing wait between
//! tries, for ever.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, PubSubStream};
use ::redis::io::tcp::TcpSettings;
use ::redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use ::redis::{RedisError, Value};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Body, Bus, Incoming, MESSAGE_MAX, To, count_dropped, count_published, hand_over, set_up};
use crate::domain::id::NodeId;

/// How often a node speaks to itself.
const ECHO: Duration = Duration::from_millis(500);
/// How long a node takes the bus for up without hearing itself.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a connection may take to be made, a sentinel to answer, and a pipeline to be taken.
const DEADLINE: Duration = Duration::from_secs(1);
/// The wait after the first failure; it doubles with each that follows, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A pipeline takes in no more when it has as many messages, or bytes.
const PIPELINE_MESSAGES: u64 = 512;
const PIPELINE_BYTES: usize = 1_024 * 1_024;
/// Each reason why the bus is down is logged once, and no more than so many until it is up again.
const REASONS: usize = 8;
/// The sender's id at the beginning of a message.
const SENDER: usize = 16;

/// What a node needs to know to join.
#[derive(Clone)]
pub struct Settings {
    /// Where Redis is, in one of the forms that [`SettingsError`] names. It may hold a password and is never shown.
    pub url: String,
    /// The cluster's name, with which its pub/sub channels begin, so that clusters can share a Redis.
    pub name: String,
    /// Who joins.
    pub node: NodeId,
    /// How many messages may wait, on the way out and before the reader.
    pub queue: usize,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, name, node, queue } = self;
        f.debug_struct("Settings").field("name", name).field("node", node).field("queue", queue).finish_non_exhaustive()
    }
}

/// A URL that is no good. It says what is wrong and how it should look, and not what was there: that may be a secret.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; the forms are redis://[user:password@]host[:port][/db], rediss://… for TLS, \
     redis-sentinel://[user:password@]host:port,host:port/SERVICE[/db] and \
     redis-cluster://[user:password@]host:port,host:port"
)]
pub struct SettingsError(&'static str);

/// Joins the bus. A Redis that is away is no error: the node tries for ever, and [`Bus::up`] is false until then.
///
/// # Errors
/// Only for a URL that is no good.
///
/// # Panics
/// Outside of a Tokio runtime, where nothing could keep the connections.
pub fn join(settings: Settings) -> Result<(Bus, Incoming), SettingsError> {
    let servers = Servers::parse(&settings.url)?;
    let (outgoing, waiting) = mpsc::channel(settings.queue.max(1));
    let (incoming, reader) = mpsc::channel(settings.queue.max(1));
    let (watched, up) = watch::channel(false);
    set_up(&watched, false);
    let place = Place { name: settings.name, node: settings.node, incoming };
    let mut keeper = Keeper { servers, place, waiting, up: watched, told: Vec::new(), times: 0 };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let stopped = stop.clone();
    tasks.spawn(async move {
        stopped.run_until_cancelled(keeper.keep()).await;
    });
    tasks.close();
    let link = Link(Arc::new(Inner { outgoing, up, stop, tasks }));
    Ok((Bus(Body::Redis(link)), reader))
}

/// A node's place on the bus, as its clients have it.
#[derive(Clone, Debug)]
pub(super) struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outgoing: mpsc::Sender<(To, Bytes)>,
    up: watch::Receiver<bool>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Link {
    pub(super) fn publish(&self, to: To, message: Bytes) -> bool {
        if !*self.0.up.borrow() {
            count_dropped("down", 1);
            return false;
        }
        let has_room = self.0.outgoing.try_send((to, message)).is_ok();
        if !has_room {
            count_dropped("full", 1);
        }
        has_room
    }

    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.0.up.clone()
    }

    pub(super) async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.wait().await;
    }
}

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer within {} ms", DEADLINE.as_millis())]
    Late,
    #[error("what is published does not come back")]
    Silent,
    #[error("the connection ended")]
    Ended,
    #[error("this sentinel knows no such service")]
    Unknown,
    #[error("the server that this sentinel names is a replica")]
    Replica,
}

/// The servers to try, one after the other; the one that did last stands first.
struct Servers {
    list: Vec<ConnectionInfo>,
    /// With it the list is of sentinels, which know where the master of that name is; user, password and database are
    /// the master's. Without it each of the list will do: there is one, or they are nodes of a Redis Cluster. There,
    /// "a client can subscribe to every node and can also publish to every other node. The cluster will make sure that
    /// published messages are forwarded as needed" (redis.io, Redis cluster specification, "Publish/Subscribe").
    service: Option<String>,
}

impl Servers {
    fn parse(url: &str) -> Result<Servers, SettingsError> {
        let (scheme, rest) = url.split_once("://").ok_or(SettingsError("no Redis URL"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), authority),
        };
        let several = |db: &str| {
            let list = hosts.split(',').map(|host| server(&format!("redis://{login}{host}/{db}")));
            list.collect::<Result<Vec<_>, _>>()
        };
        match scheme {
            "redis" | "rediss" => Ok(Servers { list: vec![server(url)?], service: None }),
            "redis-cluster" if path.is_empty() => Ok(Servers { list: several("")?, service: None }),
            "redis-cluster" => Err(SettingsError("a Redis Cluster has no other database than 0")),
            "redis-sentinel" => {
                let (service, db) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err(SettingsError("the URL does not say which service to ask the sentinels for"));
                }
                Ok(Servers { list: several(db)?, service: Some(service.to_owned()) })
            }
            _ => Err(SettingsError("no scheme of a Redis URL")),
        }
    }

    /// Takes the password out of what a server said, in case it repeats what it did not understand.
    fn conceal(&self, text: String) -> String {
        match self.list.first().and_then(|server| server.redis_settings().password()) {
            Some(password) if !password.is_empty() => text.replace(password, "…"),
            _ => text,
        }
    }
}

fn server(url: &str) -> Result<ConnectionInfo, SettingsError> {
    if url.contains('#') {
        return Err(SettingsError("a Redis URL has no fragment"));
    }
    let server = ConnectionInfo::from_str(url).map_err(|_| SettingsError("the Redis URL cannot be read"))?;
    let login = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    Ok(server.set_redis_settings(login).set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

/// Asks a sentinel where the master is.
async fn master(sentinel: &ConnectionInfo, service: &str) -> Result<ConnectionInfo, Trouble> {
    // Sentinels have no databases, and often no password. A password that nobody asks for is an error to them.
    let login = sentinel.redis_settings();
    let without = RedisConnectionInfo::default().set_skip_set_lib_name();
    let found = match ask(sentinel.clone().set_redis_settings(without), service).await {
        Err(Trouble::Redis(error)) if error.code() == Some("NOAUTH") && login.password().is_some() => {
            ask(sentinel.clone().set_redis_settings(login.clone().set_db(0)), service).await?
        }
        answer => answer?,
    };
    let (host, port) = found.ok_or(Trouble::Unknown)?;
    Ok(sentinel.clone().set_addr(ConnectionAddr::Tcp(host, port)))
}

async fn ask(sentinel: ConnectionInfo, service: &str) -> Result<Option<(String, u16)>, Trouble> {
    let answer = async {
        let mut connection = dial(&Client::open(sentinel)?).await?;
        let mut question = ::redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        Ok(question.query_async(&mut connection).await?)
    };
    timeout(DEADLINE, answer).await.map_err(|_| Trouble::Late)?
}

/// Makes a connection for commands. Whoever uses it sets the deadline.
async fn dial(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// The node on the bus: what does not change from one connection to the next.
struct Place {
    name: String,
    node: NodeId,
    incoming: mpsc::Sender<Bytes>,
}

impl Place {
    fn channel(&self, to: To) -> String {
        match to {
            To::Everyone => format!("{}:all", self.name),
            To::Node(node) => format!("{}:node:{node}", self.name),
        }
    }

    /// Adds a message to a pipeline.
    fn write(&self, pipeline: &mut ::redis::Pipeline, to: To, message: &[u8]) {
        let said = [self.node.0.as_bytes().as_slice(), message].concat();
        pipeline.cmd("PUBLISH").arg(self.channel(to)).arg(said).ignore();
    }

    /// Takes in what was published; returns whether it is this node's own.
    fn hear(&self, said: &[u8]) -> bool {
        let Some((sender, message)) = said.split_at_checked(SENDER) else {
            count_dropped("foreign", 1);
            return false;
        };
        let own = sender == self.node.0.as_bytes();
        if message.len() > MESSAGE_MAX {
            count_dropped("size", 1);
        } else if !own {
            hand_over(&self.incoming, Bytes::copy_from_slice(message));
        }
        own
    }

    /// Makes both connections, and waits until this node hears itself.
    async fn connect(&self, server: ConnectionInfo, must_be_master: bool) -> Result<Connection, Trouble> {
        let connected = async {
            let client = Client::open(server)?;
            let (mut publisher, subscriber) = tokio::try_join!(dial(&client), client.get_async_pubsub())?;
            if must_be_master && !is_master(&mut publisher).await? {
                return Err(Trouble::Replica);
            }
            let (mut sink, mut heard) = subscriber.split();
            sink.subscribe(&[self.channel(To::Everyone), self.channel(To::Node(self.node))]).await?;
            let mut echo = ::redis::pipe();
            self.write(&mut echo, To::Node(self.node), &[]);
            echo.exec_async(&mut publisher).await?;
            while !self.hear(heard.next().await.ok_or(Trouble::Ended)?.get_payload_bytes()) {}
            Ok(Connection { publisher, heard })
        };
        timeout(DEADLINE, connected).await.map_err(|_| Trouble::Late)?
    }

    /// Takes in what comes, until there is trouble: above all, until this node does not hear itself any more.
    async fn listen(&self, mut heard: PubSubStream) -> Trouble {
        let mut proved = Instant::now();
        loop {
            let message = match timeout_at(proved + PATIENCE, heard.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Trouble::Ended,
                Err(_) => return Trouble::Silent,
            };
            if self.hear(message.get_payload_bytes()) {
                proved = Instant::now();
            } else if proved.elapsed() > PATIENCE {
                return Trouble::Silent;
            }
        }
    }

    /// Publishes what waits, and the echo, until there is trouble.
    async fn talk(&self, mut publisher: MultiplexedConnection, waiting: &mut mpsc::Receiver<(To, Bytes)>) -> Trouble {
        let mut echo = tokio::time::interval(ECHO);
        echo.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pipeline = ::redis::pipe();
        loop {
            let (mut lost, mut bytes) = (Lost(0), 0);
            let mut next = tokio::select! {
                _ = echo.tick() => {
                    self.write(&mut pipeline, To::Node(self.node), &[]);
                    waiting.try_recv().ok()
                }
                first = waiting.recv() => match first {
                    Some(first) => Some(first),
                    None => return Trouble::Ended,
                },
            };
            while let Some((to, message)) = next {
                self.write(&mut pipeline, to, &message);
                lost.0 += 1;
                bytes += message.len();
                let has_room = lost.0 < PIPELINE_MESSAGES && bytes < PIPELINE_BYTES;
                next = if has_room { waiting.try_recv().ok() } else { None };
            }
            match timeout(DEADLINE, pipeline.exec_async(&mut publisher)).await {
                Ok(Ok(())) => count_published(std::mem::take(&mut lost.0)),
                Ok(Err(error)) => return error.into(),
                Err(_) => return Trouble::Late,
            }
            pipeline.clear();
        }
    }
}

/// Messages in a pipeline that nobody confirmed yet. Counts them as lost, even if the other connection ended first.
struct Lost(u64);

impl Drop for Lost {
    fn drop(&mut self) {
        count_dropped("lost", self.0);
    }
}

async fn is_master(publisher: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    let role: Vec<Value> = ::redis::cmd("ROLE").query_async(publisher).await?;
    Ok(matches!(role.first(), Some(Value::BulkString(role)) if role == b"master"))
}

/// Both connections, to the same server.
struct Connection {
    publisher: MultiplexedConnection,
    heard: PubSubStream,
}

/// Keeps a node on the bus: makes the connections, and makes them anew.
struct Keeper {
    servers: Servers,
    place: Place,
    waiting: mpsc::Receiver<(To, Bytes)>,
    up: watch::Sender<bool>,
    /// Why the bus is down, as it was logged since it was up.
    told: Vec<String>,
    /// How often the connections were made.
    times: u64,
}

/// However it ends, by a panic too: it takes [`Incoming`] along, by whose end the node knows.
impl Drop for Keeper {
    fn drop(&mut self) {
        set_up(&self.up, false);
    }
}

impl Keeper {
    async fn keep(&mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let reason = match self.connect().await {
                Ok(connection) => {
                    self.rise();
                    let since = Instant::now();
                    let trouble = self.serve(connection).await;
                    if since.elapsed() > LONGEST_WAIT {
                        wait = FIRST_WAIT;
                    }
                    trouble.to_string()
                }
                Err(reason) => reason,
            };
            self.fall(reason);
            sleep(some_of(wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Connects to the first server that does, or says what each of them did.
    async fn connect(&mut self) -> Result<Connection, String> {
        let mut reasons = Vec::new();
        for at in 0..self.servers.list.len() {
            let address = self.servers.list[at].addr().to_string();
            match self.connect_by(at).await {
                Ok(connection) => {
                    self.servers.list[..=at].rotate_right(1);
                    return Ok(connection);
                }
                Err(trouble) => reasons.push(format!("{address}: {trouble}")),
            }
        }
        Err(reasons.join("; "))
    }

    async fn connect_by(&self, at: usize) -> Result<Connection, Trouble> {
        let server = &self.servers.list[at];
        match &self.servers.service {
            // A failover ends the connections to the old master, so that it is asked for then. Its sentinels may not have
            // heard of the new one yet: a replica would take in what is published, and nobody would hear it.
            Some(service) => self.place.connect(master(server, service).await?, true).await,
            None => self.place.connect(server.clone(), false).await,
        }
    }

    async fn serve(&mut self, connection: Connection) -> Trouble {
        tokio::select! {
            trouble = self.place.talk(connection.publisher, &mut self.waiting) => trouble,
            trouble = self.place.listen(connection.heard) => trouble,
        }
    }

    fn rise(&mut self) {
        if self.times > 0 {
            metrics::counter!("colink_bus_reconnects_total").increment(1);
        }
        self.times += 1;
        self.told.clear();
        tracing::info!("the bus is up");
        set_up(&self.up, true);
    }

    fn fall(&mut self, reason: String) {
        set_up(&self.up, false);
        // It would only be late.
        while self.waiting.try_recv().is_ok() {
            count_dropped("down", 1);
        }
        let reason = self.servers.conceal(reason);
        if self.told.len() < REASONS && !self.told.contains(&reason) {
            tracing::warn!(error = %reason, "the bus is down; trying again until it is back");
            self.told.push(reason);
        }
    }
}

/// Returns between half of a time and all of it, so that nodes that failed together do not come back together.
fn some_of(time: Duration) -> Duration {
    let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    time.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_url_is_read() {
        let read = |url: &str| {
            let servers = Servers::parse(url).unwrap();
            let hosts: Vec<String> = servers.list.iter().map(|server| server.addr().to_string()).collect();
            let login = servers.list[0].redis_settings().clone();
            let text = |word: Option<&str>| word.unwrap_or("-").to_owned();
            (hosts.join(" "), text(login.username()), text(login.password()), login.db(), servers.service)
        };
        let owned = |hosts: &str, user: &str, password: &str, db, service: Option<&str>| {
            (hosts.to_owned(), user.to_owned(), password.to_owned(), db, service.map(str::to_owned))
        };
        assert_eq!(read("redis://localhost"), owned("localhost:6379", "-", "-", 0, None));
        assert_eq!(read("redis://ana:p%40ss@[::1]:7000/3"), owned("::1:7000", "ana", "p@ss", 3, None));
        assert_eq!(read("rediss://:secret@redis.example"), owned("redis.example:6379", "-", "secret", 0, None));
        assert_eq!(
            read("redis-sentinel://ana:secret@a:26379,b:26380/colink/2"),
            owned("a:26379 b:26380", "ana", "secret", 2, Some("colink"))
        );
        assert_eq!(read("redis-cluster://:secret@a:7000,b:7001/"), owned("a:7000 b:7001", "-", "secret", 0, None));
        let tls = Servers::parse("rediss://redis.example").unwrap();
        assert!(matches!(tls.list[0].addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
    }

    #[test]
    fn a_url_that_is_no_good_is_refused_without_being_shown() {
        let bad = [
            "",
            "localhost:6379",
            "http://:hunter2@localhost",
            "redis://:hunter2@",
            "redis://:hunter2@localhost:port",
            "redis://:hunter2@localhost/db",
            "rediss://:hunter2@localhost/#insecure",
            "redis-sentinel://:hunter2@localhost:26379",
            "redis-sentinel://:hunter2@localhost:26379,/colink",
            "redis-cluster://:hunter2@localhost:7000/1",
            "redis-cluster://:hunter2@",
        ];
        for url in bad {
            let error = Servers::parse(url).map(|_| ()).expect_err(url);
            let told = format!("{error} {error:?}");
            assert!(told.contains("redis-sentinel://[user:password@]host:port"), "{url}: {told}");
            assert!(!told.contains("hunter2"), "{url}: {told}");
        }
        let settings = Settings {
            url: "redis://:hunter2@localhost".to_owned(),
            name: "colink".to_owned(),
            node: NodeId(uuid::Uuid::nil()),
            queue: 1,
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn a_wait_has_jitter_and_bounds() {
        for _ in 0..100 {
            let wait = some_of(LONGEST_WAIT);
            assert!(wait >= LONGEST_WAIT / 2 && wait <= LONGEST_WAIT, "{wait:?}");
        }
    }
}
