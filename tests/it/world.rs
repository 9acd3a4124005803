//! A node to test, and the people in it.
//!
//! ```ignore
//! let world = World::start().await;
//! let (ana, bob) = (world.user("ana").await, world.user("bob").await);
//! let general = world.channel("general", &[&ana, &bob]).await;
//! let mut screen = bob.connects().await;
//! ana.says(general, "hi").await;
//! assert_eq!(screen.until("message.created").await["d"]["text"], "hi");
//! ```

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use colink::actors::channel::room::UNKNOWN;
use colink::actors::presence::PresenceMsg;
use colink::app::App;
use colink::bus::memory::Network;
use colink::client::{Gateway, Options};
use colink::clock::{Clock, Timestamp};
use colink::config::Config;
use colink::domain::channel::Channel;
use colink::domain::command::{self as c, Command};
use colink::domain::id::{ChannelId, StreamId, TokenId, UserId};
use colink::domain::user::{Role, User};
use colink::http::auth::hash_password;
use colink::storage::accounts::{Account, Proof, SYSTEM};
use colink::storage::events;
use colink::storage::tokens::{Secret, Token};
use colink::storage::writer::Work;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::http::{Answer, Http};
use crate::socket::Socket;

/// The longest that anything may take that happens at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// Everybody's password, for whom has one.
pub(crate) const PASSWORD: &str = "correct horse";

/// Waits for something that has to happen, and says what did not.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done,
        Err(_) => panic!("after {LIMIT:?} still waiting for {what}"),
    }
}

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    within(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Lets real time go by, for what is about time itself.
pub(crate) async fn time_passes(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Which database is below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
}

/// Makes one test for each database out of one body.
macro_rules! on_both {
    ($($name:ident($database:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($database: $crate::world::Database) $body

            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                Box::pin(body($crate::world::Database::Sqlite)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                if $crate::world::postgres_is_there() {
                    Box::pin(body($crate::world::Database::Postgres)).await;
                }
            }
        }
    )*};
}
pub(crate) use on_both;

/// Returns whether there is a Postgres to test on.
pub(crate) fn postgres_is_there() -> bool {
    let there = std::env::var("COLINK_TEST_POSTGRES").is_ok();
    assert!(there || std::env::var("CI").is_err(), "CI runs every test on Postgres: set COLINK_TEST_POSTGRES");
    there
}

/// Returns a clock that stands until it is moved.
pub(crate) fn standing_clock() -> Clock {
    Clock::manual(Timestamp(1_790_000_000_000_000))
}

/// Returns the settings of a test: passwords are cheap, nothing is limited, any port will do.
pub(crate) fn config(data: &Path) -> Config {
    let mut config = Config::default();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.server.data = data.to_owned();
    config.server.drain_s = 0;
    config.database.connections = 4;
    config.auth.argon2_memory_kib = 8;
    config.auth.argon2_iterations = 1;
    config.auth.logins_per_minute = 0;
    config.gateway.commands_per_minute = 0;
    config.gateway.identifies_per_minute = 0;
    config.limits.messages_per_minute = 0;
    config.limits.requests_per_minute = 0;
    config.presence.merge_ms = 1;
    config
}

pub(crate) async fn new_postgres_database() -> String {
    let server = std::env::var("COLINK_TEST_POSTGRES").expect("there is a Postgres");
    let name = format!("it_{}", UserId::new(Clock::default().now()).0.simple());
    let pool = sqlx::PgPool::connect(&server).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    pool.close().await;
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

/// Sends a node's way to its Postgres by a pooler in transaction mode; returns whether there is one.
pub(crate) fn by_pooler(config: &mut Config) -> bool {
    let Ok(pooler) = std::env::var("COLINK_TEST_PGBOUNCER") else {
        return false;
    };
    let (base, _) = pooler.rsplit_once('/').unwrap();
    let (_, database) = config.database.url.expose().rsplit_once('/').unwrap();
    (config.database.url, config.database.pooled) = (format!("{base}/{database}").into(), true);
    true
}

/// A running node with a directory of its own.
pub(crate) struct World {
    /// Where it is reached.
    pub(crate) url: String,
    config: Config,
    app: Option<App>,
    _data: tempfile::TempDir,
}

impl World {
    /// Starts a node.
    pub(crate) async fn start() -> World {
        World::with(|_| ()).await
    }

    /// Starts a node with other settings.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> World {
        World::on(Database::Sqlite, change).await
    }

    /// Starts a node on an empty database.
    pub(crate) async fn on(database: Database, change: impl FnOnce(&mut Config)) -> World {
        World::at(database, Clock::default(), change).await
    }

    /// Starts a node that tells the time by a clock.
    pub(crate) async fn at(database: Database, clock: Clock, change: impl FnOnce(&mut Config)) -> World {
        let data = tempfile::tempdir().unwrap();
        let mut config = config(data.path());
        if database == Database::Postgres {
            config.database.url = new_postgres_database().await.into();
        }
        change(&mut config);
        config.validate().expect("the test's settings are valid");
        let app = Box::pin(App::start_at(config.clone(), clock)).await.unwrap();
        World { url: format!("http://{}", app.address), config, app: Some(app), _data: data }
    }

    /// Starts a node that is one of several, which share a database and a network.
    pub(crate) async fn joins(
        database: &str,
        network: &Network,
        clock: Clock,
        change: impl FnOnce(&mut Config),
    ) -> World {
        let data = tempfile::tempdir().unwrap();
        let mut config = config(data.path());
        config.database.url = database.to_owned().into();
        change(&mut config);
        config.validate().expect("the test's settings are valid");
        let app = Box::pin(App::start_on(config.clone(), clock, Some(network))).await.unwrap();
        World { url: format!("http://{}", app.address), config, app: Some(app), _data: data }
    }

    /// Takes a node that was started by hand.
    pub(crate) fn of(app: App, data: tempfile::TempDir) -> World {
        World { url: format!("http://{}", app.address), config: app.hub.config.clone(), app: Some(app), _data: data }
    }

    /// Returns the node itself.
    pub(crate) fn app(&self) -> &App {
        self.app.as_ref().expect("the node runs")
    }

    /// Stops the node.
    pub(crate) async fn stop(&mut self) {
        if let Some(app) = self.app.take() {
            within("the node to stop", Box::pin(app.stop())).await;
        }
    }

    /// Stops the node and starts another on the same data and address.
    pub(crate) async fn restart(&mut self) {
        let listen = self.app().address;
        self.stop().await;
        self.starts_again(listen).await;
    }

    /// Changes what the next node that is started here is told.
    pub(crate) fn changes<T>(&mut self, change: impl FnOnce(&mut Config) -> T) -> T {
        change(&mut self.config)
    }

    /// Starts a node where one was stopped.
    pub(crate) async fn starts_again(&mut self, listen: std::net::SocketAddr) {
        self.config.server.listen = listen;
        self.app = Some(Box::pin(App::start(self.config.clone())).await.unwrap());
    }

    /// Returns REST as a stranger has it.
    pub(crate) fn stranger(&self) -> Http {
        Http::new(&self.url, None)
    }

    /// Makes a member.
    pub(crate) async fn user(&self, name: &str) -> Person {
        self.person(name, Role::Member).await
    }

    /// Makes somebody with a role.
    pub(crate) async fn person(&self, name: &str, role: Role) -> Person {
        let hub = &self.app().hub;
        let hash = hash_password(&hub.config.auth, PASSWORD).unwrap();
        let add = Account::Add { name: name.into(), display_name: None, role, password_hash: Some(hash), first: false };
        let reply = hub.writer.write(SYSTEM, Work::Account(add), None).await.unwrap();
        let user: User = serde_json::from_str(&reply.json).unwrap();
        self.settles(&[StreamId::WORKSPACE]).await;
        let token = self.token(user.id).await;
        Person { http: Http::new(&self.url, Some(&token)), url: self.url.clone(), user, token }
    }

    /// Signs a user in once more.
    pub(crate) async fn token(&self, user: UserId) -> String {
        let hub = &self.app().hub;
        let (now, label) = (hub.clock.now(), "test".to_owned());
        let token = Token { id: TokenId::new(now), label, created_at: now, expires_at: None, slides: false };
        let Secret(secret) = Secret::generate("clk_");
        let sign_in = Account::SignIn { user, proof: Proof::Operator, token, hash: Secret::hash(&secret) };
        hub.writer.write(SYSTEM, Work::Account(sign_in), None).await.unwrap();
        secret
    }

    /// Ends the statuses whose time is over, as the housekeeping does every so often.
    pub(crate) async fn ends_statuses(&self) {
        self.app().hub.writer.write(SYSTEM, Work::Account(Account::EndStatuses), None).await.unwrap();
    }

    /// Looks for idle users, as the presence tracker does every so often.
    pub(crate) fn looks_for_idle(&self) {
        self.app().hub.directory.tell_presence(PresenceMsg::Sweep);
    }

    /// Makes a public channel with these people, the first its owner.
    pub(crate) async fn channel(&self, name: &str, people: &[&Person]) -> ChannelId {
        self.makes(name, false, people).await
    }

    /// Makes a private channel with these people, the first its owner.
    pub(crate) async fn private(&self, name: &str, people: &[&Person]) -> ChannelId {
        self.makes(name, true, people).await
    }

    async fn makes(&self, name: &str, private: bool, people: &[&Person]) -> ChannelId {
        let made = people[0].makes(name, private, &people[1..]).await;
        let own = people.iter().map(|person| StreamId::from(person.id()));
        let streams: Vec<StreamId> = own.chain([made.into(), StreamId::WORKSPACE]).collect();
        self.settles(&streams).await;
        made
    }

    /// Waits until what happened on these streams was told to all who are there: who comes from now on hears none of it.
    async fn settles(&self, streams: &[StreamId]) {
        let hub = &self.app().hub;
        for stream in streams {
            let head = events::head(&mut hub.store.read().await.unwrap(), *stream).await.unwrap();
            let all_told = || {
                // Of a stream without a slot, or of which nothing was handed on yet, nothing is on its way.
                let delivered = hub.directory.slot(*stream).map(|slot| slot.delivered.load(Ordering::Acquire));
                delivered.is_none_or(|delivered| delivered == UNKNOWN || delivered >= head)
            };
            within("what happened to be told", async {
                while !all_told() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }
}

/// Somebody with a token.
#[derive(Clone)]
pub(crate) struct Person {
    /// Their REST.
    pub(crate) http: Http,
    /// Their account.
    pub(crate) user: User,
    /// Their token.
    pub(crate) token: String,
    url: String,
}

impl Person {
    pub(crate) fn id(&self) -> UserId {
        self.user.id
    }

    /// Returns the same person with another token.
    pub(crate) fn with_token(&self, token: &str) -> Person {
        Person { http: Http::new(&self.url, Some(token)), token: token.to_owned(), ..self.clone() }
    }

    /// Returns the same person at another node.
    pub(crate) fn at(&self, world: &World) -> Person {
        Person { http: Http::new(&world.url, Some(&self.token)), url: world.url.clone(), ..self.clone() }
    }

    /// Opens a session of the typed client.
    pub(crate) async fn gateway(&self) -> Gateway {
        Gateway::connect(&self.url, &self.token, Options::default()).await.unwrap()
    }

    /// Opens a socket and identifies.
    pub(crate) async fn connects(&self) -> Socket {
        let mut socket = self.opens().await;
        socket.identifies(&self.token).await;
        socket
    }

    /// Opens a socket and takes its hello.
    pub(crate) async fn opens(&self) -> Socket {
        let mut socket = Socket::open(&self.url, &[]).await;
        assert_eq!(socket.next().await["type"], "hello");
        socket
    }

    /// Opens a socket and resumes; returns what the server says to it.
    pub(crate) async fn resumes(&self, from: Value) -> (Socket, Value) {
        let mut socket = self.opens().await;
        let mut d = from;
        d["token"] = json!(self.token);
        socket.send(&json!({"id": 1, "type": "resume", "d": d})).await;
        let answer = socket.next().await;
        (socket, answer)
    }

    /// Has a command carried out over REST, whatever comes of it.
    pub(crate) async fn tries(&self, command: impl Into<Command>) -> Answer {
        self.http.command(&command.into(), None).await
    }

    /// Has a command carried out that has to succeed.
    pub(crate) async fn does<T: DeserializeOwned>(&self, command: impl Into<Command>) -> T {
        let command = command.into();
        let answer = self.http.command(&command, None).await;
        assert!(answer.status < 300, "{} of {}: {}", command.name(), self.user.name, answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn makes(&self, name: &str, private: bool, others: &[&Person]) -> ChannelId {
        let members = others.iter().map(|person| person.id()).collect();
        let (topic, purpose) = (String::new(), String::new());
        let made: Channel = self.does(c::CreateChannel { name: name.into(), private, topic, purpose, members }).await;
        made.id
    }

    /// Posts; returns the number.
    pub(crate) async fn says(&self, channel: ChannelId, text: &str) -> i64 {
        let sent: Value = self.does(message(channel, text)).await;
        sent["seq"].as_i64().unwrap()
    }

    /// Replies in a thread; returns the number.
    pub(crate) async fn replies(&self, channel: ChannelId, thread: i64, text: &str) -> i64 {
        let sent: Value = self.does(c::SendMessage { thread_seq: Some(thread), ..message(channel, text) }).await;
        sent["seq"].as_i64().unwrap()
    }

    /// Brings somebody in.
    pub(crate) async fn invites(&self, channel_id: ChannelId, who: &Person) {
        let _: Value = self.does(c::InviteMember { channel_id, user_id: who.id() }).await;
    }

    /// Removes somebody.
    pub(crate) async fn removes(&self, channel_id: ChannelId, who: &Person) {
        let _: Value = self.does(c::RemoveMember { channel_id, user_id: who.id() }).await;
    }

    /// Opens the direct message with somebody.
    pub(crate) async fn writes_to(&self, who: &Person) -> ChannelId {
        let channel: Channel = self.does(c::OpenDirect { user_ids: vec![who.id()] }).await;
        channel.id
    }
}

/// Makes the command that posts a text.
pub(crate) fn message(channel_id: ChannelId, text: &str) -> c::SendMessage {
    c::SendMessage { channel_id, client_msg_id: None, text: text.into(), thread_seq: None, also_in_channel: false }
}

/// An identifier that nothing has.
pub(crate) fn nobody() -> UserId {
    UserId(TokenId::new(Timestamp(1)).0)
}
