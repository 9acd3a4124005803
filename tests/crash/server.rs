//! The real program, to be killed: its process, its data and how to reach it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use colink::client::Client;
use sqlx::Connection as _;

use crate::topic::{Row, STORED, unique};

/// Limits protect a server from what this test does; the queues and the ring are small, so that readers lag, overflow and
/// are sent to the log.
const SETTINGS: [&str; 16] = [
    "gateway.commands_per_minute=0",
    "gateway.identifies_per_minute=0",
    "gateway.sessions_per_user=0",
    "gateway.heartbeat_interval_ms=1000",
    "gateway.queue_events=64",
    "gateway.ring_events=256",
    "gateway.replay_events=1500",
    "limits.messages_per_minute=0",
    "limits.requests_per_minute=0",
    "auth.logins_per_minute=0",
    "auth.argon2_memory_kib=8",
    "auth.argon2_iterations=1",
    "channels.idle_stop_s=1",
    "database.connections=4",
    "log.format=text",
    "log.level=warn",
];

/// A server on a database of its own.
pub(crate) struct Server {
    pub(crate) url: String,
    /// The brokers and the topic of events, where there are any.
    pub(crate) relays_to: Option<(String, String)>,
    address: SocketAddr,
    dir: tempfile::TempDir,
    database: Option<Postgres>,
    child: Option<Child>,
}

/// A database on the server that `COLINK_TEST_POSTGRES` names. Dropped with the test.
struct Postgres {
    server: String,
    name: String,
    url: String,
}

impl Server {
    /// Makes a server that stores in SQLite, or in a new database of the Postgres server at `postgres`.
    pub(crate) async fn new(postgres: Option<&str>) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let database = match postgres {
            Some(server) => Some(Postgres::create(server, address.port()).await),
            None => None,
        };
        let brokers = std::env::var("COLINK_TEST_KAFKA").ok();
        assert!(brokers.is_some() || std::env::var("CI").is_err(), "CI runs it with Kafka: set COLINK_TEST_KAFKA");
        let relays_to = brokers.map(|brokers| (brokers, unique("crash")));
        Server { url: format!("http://{address}"), relays_to, address, dir, database, child: None }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_colink"));
        command.args(words).arg("--data").arg(self.dir.path()).stdin(Stdio::null()).current_dir(self.dir.path());
        let database = self.database.iter().map(|database| format!("database.url={}", database.url));
        let relay = self.relays_to.iter().flat_map(|(brokers, topic)| {
            [format!("kafka.brokers={brokers}"), format!("kafka.topic={topic}"), "kafka.partitions=3".to_owned()]
        });
        for setting in SETTINGS.iter().map(|setting| (*setting).to_owned()).chain(database).chain(relay) {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// Makes an administrator and returns a token of theirs.
    pub(crate) fn make_admin(&self) -> String {
        self.ask(&["user", "add", "root", "--admin", "--json"]);
        self.ask(&["token", "add", "--user", "root", "--json"])["token"].as_str().unwrap().to_owned()
    }

    fn ask(&self, words: &[&str]) -> serde_json::Value {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("server.log")).unwrap();
        let listen = self.address.to_string();
        let mut command = self.command(&["serve", "--listen", &listen]);
        let child = command.env("RUST_BACKTRACE", "0").stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.child = Some(child.unwrap());
        let client = Client::new(&self.url).unwrap().with_timeout(Duration::from_secs(2));
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = client.text("/ready").await {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it did not start ({error}):\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills it with SIGKILL, whatever it is doing.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends all that it has open at Postgres but its lock, whatever is being done there. On SQLite there is nothing to cut.
    pub(crate) async fn cut_database(&self) {
        if let Some(Postgres { server, name, .. }) = &self.database {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'colink'";
            let mut postgres = sqlx::PgConnection::connect(server).await.unwrap();
            sqlx::query(cut).bind(name).execute(&mut postgres).await.unwrap();
        }
    }

    /// Returns every event that is stored.
    pub(crate) async fn events(&self) -> Vec<Row> {
        match &self.database {
            Some(Postgres { url, .. }) => {
                let mut postgres = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query_as(STORED).fetch_all(&mut postgres).await.unwrap()
            }
            None => {
                let file = self.dir.path().join("colink.db");
                let mut sqlite =
                    sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
                sqlx::query_as(STORED).fetch_all(&mut sqlite).await.unwrap()
            }
        }
    }

    /// Returns what it logged, over all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// Kills it and removes its database.
    pub(crate) async fn remove(mut self) {
        self.kill();
        if let Some(database) = self.database.take() {
            database.remove().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Postgres {
    async fn create(server: &str, port: u16) -> Postgres {
        let name = format!("crash_{}_{port}", std::process::id());
        let (base, _) = server.rsplit_once('/').unwrap();
        let database = Postgres { server: server.to_owned(), url: format!("{base}/{name}"), name };
        database.run("CREATE DATABASE").await;
        database
    }

    async fn remove(self) {
        // Connections of the killed server may linger.
        self.run("DROP DATABASE IF EXISTS").await;
    }

    async fn run(&self, verb: &str) {
        let force = if verb.starts_with("DROP") { " WITH (FORCE)" } else { "" };
        let sql = format!("{verb} {}{force}", self.name);
        let pool = sqlx::PgPool::connect(&self.server).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        pool.close().await;
    }
}
