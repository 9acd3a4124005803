//! A Postgres and a Redis of the harness's own, to be killed, stopped and started again.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Row as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::disk::Disk;
use crate::process::{Process, Silent, command, find};
use crate::spaces::{Space, run, script};

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
    /// The directory of its data: in `dir`, or on a disk of its own.
    data: PathBuf,
    space: Option<Arc<Space>>,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Makes a cluster with a role for each node in `dir`, and starts it.
    pub(crate) async fn new(dir: &Path) -> Postgres {
        let mut postgres = Postgres::place(dir.join("postgres"), free_port());
        let mut make = postgres.program("initdb");
        make.args(["-U", "colink", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "-D"]);
        make.arg(&postgres.data);
        run(make);
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

    /// Makes room for one.
    fn place(dir: PathBuf, port: u16) -> Postgres {
        fs::create_dir(&dir).unwrap();
        if crate::process::is_root() {
            let mut own = Command::new("chown");
            own.arg("postgres").arg(&dir);
            run(own);
        }
        let data = dir.join("data");
        Postgres { dir, data, space: None, port, process: None }
    }

    /// Begins a command that runs one of its programs.
    fn program(&self, name: &str) -> Command {
        let program = postgres_bin().unwrap().join(name);
        let mut command = command(program.to_str().unwrap(), Some("postgres"));
        command.current_dir(&self.dir);
        command
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns where it listens.
    pub(crate) fn local(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Makes a standby, for which every commit waits from now on.
    pub(crate) async fn stand_by(&self) -> Postgres {
        let mut number = 1;
        while self.dir.with_file_name(format!("postgres-{number}")).exists() {
            number += 1;
        }
        let mut standby = Postgres::place(self.dir.with_file_name(format!("postgres-{number}")), free_port());
        let mut copy = standby.program("pg_basebackup");
        copy.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "colink",
            "-R",
            "-c",
            "fast",
            "-X",
            "stream",
        ]);
        copy.arg("--no-sync").arg("-D").arg(&standby.data);
        run(copy);
        standby.start().await;
        let mut db = self.connect().await;
        for sql in ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"] {
            sqlx::query(sql).execute(&mut db).await.unwrap();
        }
        let deadline = Instant::now() + LIMIT;
        let waits = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'";
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut db).await.unwrap() == 0 {
            assert!(Instant::now() < deadline, "the standby does not get there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        standby
    }

    /// Makes a standby the one that is written to.
    pub(crate) async fn promote(&self) {
        let promoted: bool =
            sqlx::query_scalar("SELECT pg_promote()").fetch_one(&mut self.connect().await).await.unwrap();
        assert!(promoted, "the standby is not promoted");
    }

    /// Takes the data of another one that was stopped, and goes on with it.
    pub(crate) async fn replace_by(&mut self, other: Postgres) {
        (self.dir, self.data) = (other.dir, other.data);
        self.start().await;
    }

    /// Stops, and goes on with its tables on another disk, or where they were. Its log stays where it is.
    pub(crate) async fn move_to(&mut self, disk: Option<&Disk>) {
        self.stop().await;
        let (from, home, log) = (self.data.clone(), self.dir.join("data"), self.dir.join("log"));
        match disk {
            Some(disk) => {
                let seen = disk.seen_from_outside().join("data");
                let (old, new) = (home.display(), seen.display());
                run(script(&format!(
                    "mv {old}/pg_wal {0}; ln -s {0} {old}/pg_wal; cp -a {old} {new}; rm -r {old}",
                    log.display()
                )));
                (self.data, self.space) = (disk.dir.join("data"), Some(disk.space.clone()));
            }
            None => {
                let seen = format!("/proc/{}/root{}", self.space.take().unwrap().holder(), from.display());
                let home_is = home.display();
                run(script(&format!(
                    "cp -a {seen} {home_is}; rm {home_is}/pg_wal; mv {} {home_is}/pg_wal",
                    log.display()
                )));
                self.data = home;
            }
        }
        self.start().await;
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
        let mut postgres = self.program("postgres");
        postgres.arg("-D").arg(&self.data).arg("-k").arg(&self.dir).args(["-h", "127.0.0.1", "-p"]);
        postgres.arg(self.port.to_string()).args(["-c", "max_connections=200"]);
        if let Some(space) = &self.space {
            postgres = space.enter(&postgres);
        }
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

    /// Takes it away without a word: connections stay open, and nothing comes by them.
    pub(crate) fn fall_silent(&mut self) -> Silent {
        self.process.take().unwrap().fall_silent()
    }

    /// Stops it in order.
    pub(crate) async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::INT);
        let deadline = Instant::now() + LIMIT;
        while !process.has_ended() {
            assert!(Instant::now() < deadline, "Postgres does not stop");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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

    pub(crate) fn port(&self) -> u16 {
        self.port
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
