//! A Postgres and a Redis of the harness's own, to be killed, stopped and started again.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Row as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::process::{Process, command, find};

/// How long a service may take to start.
const LIMIT: Duration = Duration::from_secs(30);

/// Returns a port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns what is missing to run the harness, if anything is.
pub(crate) fn missing() -> Option<&'static str> {
    if postgres_bin().is_none() {
        return Some("no Postgres here: install postgresql");
    }
    find("redis-server").is_none().then_some("no Redis here: install redis-server")
}

fn postgres_bin() -> Option<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|dir| dir.path().join("bin"));
    let mut bins: Vec<PathBuf> = versions.filter(|bin| bin.join("initdb").exists()).collect();
    bins.sort();
    bins.pop().or_else(|| Some(Path::new(&find("initdb")?).parent()?.to_owned()))
}

/// A change of a stream's row, as the trigger that the harness installs saw it; in the order of the commits of each stream.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) stream: uuid::Uuid,
    /// The node that made it, by the role with which it signs in to Postgres.
    pub(crate) who: String,
    pub(crate) old_owner: Option<uuid::Uuid>,
    pub(crate) owner: Option<uuid::Uuid>,
    pub(crate) old_epoch: i64,
    pub(crate) epoch: i64,
    pub(crate) old_seq: i64,
    pub(crate) seq: i64,
    /// In microseconds since 1970.
    pub(crate) at: i64,
}

impl sqlx::FromRow<'_, PgRow> for Change {
    fn from_row(row: &PgRow) -> sqlx::Result<Change> {
        Ok(Change {
            stream: row.try_get("stream")?,
            who: row.try_get("who")?,
            old_owner: row.try_get("old_owner")?,
            owner: row.try_get("owner")?,
            old_epoch: row.try_get("old_epoch")?,
            epoch: row.try_get("epoch")?,
            old_seq: row.try_get("old_seq")?,
            seq: row.try_get("seq")?,
            at: row.try_get("at")?,
        })
    }
}

/// The database server.
pub(crate) struct Postgres {
    dir: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Makes a cluster with a role for each node in `dir`, and starts it.
    pub(crate) async fn new(dir: &Path) -> Postgres {
        let (dir, port) = (dir.join("postgres"), free_port());
        fs::create_dir(&dir).unwrap();
        if crate::process::is_root() {
            let owner = std::process::Command::new("chown").arg("postgres").arg(&dir).status().unwrap();
            assert!(owner.success(), "there is no user postgres");
        }
        let initdb = postgres_bin().unwrap().join("initdb");
        let mut make = command(initdb.to_str().unwrap(), Some("postgres"));
        make.args(["-U", "colink", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "-D"]);
        let made = make.arg(dir.join("data")).current_dir(&dir).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut postgres = Postgres { dir, port, process: None };
        postgres.start().await;
        for sql in [
            "CREATE DATABASE faults",
            "CREATE ROLE hub_0 SUPERUSER LOGIN",
            "CREATE ROLE hub_1 SUPERUSER LOGIN",
            "CREATE ROLE hub_2 SUPERUSER LOGIN",
        ] {
            let mut db = sqlx::PgConnection::connect(&postgres.address("colink", "postgres")).await.unwrap();
            sqlx::query(sql).execute(&mut db).await.unwrap();
        }
        postgres
    }

    fn address(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns what a node connects to.
    pub(crate) fn url(&self, role: &str) -> String {
        self.address(role, "faults")
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&mut self) {
        let program = postgres_bin().unwrap().join("postgres");
        let mut postgres = command(program.to_str().unwrap(), Some("postgres"));
        postgres.arg("-D").arg(self.dir.join("data")).arg("-k").arg(&self.dir).args(["-h", "127.0.0.1", "-p"]);
        postgres.arg(self.port.to_string()).args(["-c", "max_connections=200"]).current_dir(&self.dir);
        let log = self.dir.with_file_name("postgres.log");
        let mut process = Process::start(postgres, &log);
        let (address, deadline) = (self.address("colink", "postgres"), Instant::now() + LIMIT);
        while let Err(error) = sqlx::PgConnection::connect(&address).await {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(
                !process.has_ended() && Instant::now() < deadline,
                "Postgres does not start ({error}):\n{}",
                said()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
    }

    /// Kills it with SIGKILL, and all its backends.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    async fn connect(&self) -> sqlx::PgConnection {
        sqlx::PgConnection::connect(&self.url("colink")).await.unwrap()
    }

    /// Notes every change of a stream's row from now on: who wrote, under which epoch, up to which number.
    pub(crate) async fn watch_streams(&self) {
        let mut db = self.connect().await;
        for sql in [
            "CREATE TABLE fault_log (n BIGSERIAL, at TIMESTAMPTZ, stream UUID, who TEXT, old_owner UUID, owner UUID, \
             old_epoch BIGINT, epoch BIGINT, old_seq BIGINT, seq BIGINT)",
            "CREATE FUNCTION fault_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fault_log (at, stream, \
             who, old_owner, owner, old_epoch, epoch, old_seq, seq) VALUES (clock_timestamp(), NEW.id, session_user, \
             OLD.owner, NEW.owner, OLD.owner_epoch, NEW.owner_epoch, OLD.last_seq, NEW.last_seq); RETURN NULL; END $$",
            "CREATE TRIGGER fault_note AFTER UPDATE ON streams FOR EACH ROW EXECUTE FUNCTION fault_note()",
        ] {
            sqlx::query(sql).execute(&mut db).await.unwrap();
        }
    }

    /// Returns all changes of these streams.
    pub(crate) async fn changes(&self, streams: &[uuid::Uuid]) -> Vec<Change> {
        let sql = "SELECT stream, who, old_owner, owner, old_epoch, epoch, old_seq, seq, \
                   (EXTRACT(EPOCH FROM at) * 1000000)::bigint AS at FROM fault_log WHERE stream = ANY($1) ORDER BY n";
        sqlx::query_as(sql).bind(streams).fetch_all(&mut self.connect().await).await.unwrap()
    }

    /// Returns which stream is owned by which node, by the node's name.
    pub(crate) async fn owners(&self) -> Vec<(uuid::Uuid, String)> {
        let sql = "SELECT s.id, n.name FROM streams s JOIN nodes n ON n.id = s.owner";
        sqlx::query_as(sql).fetch_all(&mut self.connect().await).await.unwrap()
    }
}

/// What the nodes reach each other by.
pub(crate) struct Redis {
    dir: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Redis {
    pub(crate) async fn new(dir: &Path) -> Redis {
        let mut redis = Redis { dir: dir.to_owned(), port: free_port(), process: None };
        redis.start().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn start(&mut self) {
        let mut redis = command(&find("redis-server").unwrap(), None);
        redis.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        redis.args(["--maxmemory", "64mb", "--dir"]).arg(&self.dir);
        self.process = Some(Process::start(redis, &self.dir.join("redis.log")));
        let deadline = Instant::now() + LIMIT;
        while self.ask("PING").await.is_none() {
            assert!(Instant::now() < deadline, "Redis does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ask(&self, words: &str) -> Option<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        stream.write_all(format!("{words}\r\n").as_bytes()).await.ok()?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.ok()?;
        Some(())
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it in the middle of whatever it does, or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.process.as_ref().unwrap().signal(if paused { Signal::STOP } else { Signal::CONT });
    }

    pub(crate) async fn flush(&self) {
        self.ask("FLUSHALL").await.expect("a Redis that runs can be flushed");
    }
}
