//! The nodes: the real program, three times, on one Postgres and one Redis.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use colink::client::Client;
use rustix::process::Signal;

use crate::disk::Disk;
use crate::process::{Process, command, find};
use crate::services::{Postgres, Redis, free_port};
use crate::spaces::Space;

/// How long a node may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(30);

/// Limits protect a server from what this harness does; the ring and the queues are small, so that readers lag and are sent
/// to the log.
const SETTINGS: [&str; 16] = [
    "gateway.commands_per_minute=0",
    "gateway.identifies_per_minute=0",
    "gateway.sessions_per_user=0",
    "gateway.heartbeat_interval_ms=5000",
    "gateway.queue_events=256",
    "gateway.ring_events=256",
    "limits.messages_per_minute=0",
    "limits.requests_per_minute=0",
    "auth.logins_per_minute=0",
    "auth.argon2_memory_kib=8",
    "auth.argon2_iterations=1",
    "database.connections=4",
    "server.drain_s=3",
    "server.max_connections=0",
    "log.format=text",
    "log.level=warn",
];

/// One node, which may run or not.
pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) name: String,
    listen: String,
    dir: PathBuf,
    data: PathBuf,
    set: Vec<(&'static str, String)>,
    /// Another release to run.
    program: Option<PathBuf>,
    /// What it is put into when it starts.
    pub(crate) space: Option<Arc<Space>>,
    process: Option<Process>,
}

impl Node {
    /// Makes one of the cluster's.
    pub(crate) fn new(n: usize, dir: &Path, postgres: &Postgres, redis: &Redis) -> Node {
        let mut node = Node::named(format!("hub-{n}"), dir);
        node.set.push(("COLINK_CLUSTER__REDIS", redis.url()));
        node.set.push(("COLINK_DATABASE__URL", postgres.url(&format!("hub_{n}"))));
        node
    }

    /// Makes one that has nobody beside it, with SQLite on a disk.
    pub(crate) fn alone(disk: &Disk) -> Node {
        let mut node = Node::named("alone".to_owned(), &disk.seen_from_outside());
        (node.data, node.space) = (disk.dir.join("alone/data"), Some(disk.space.clone()));
        node
    }

    fn named(name: String, dir: &Path) -> Node {
        let listen = format!("127.0.0.1:{}", free_port());
        let dir = dir.join(&name);
        fs::create_dir_all(&dir).unwrap();
        let set = vec![("COLINK_SERVER__LISTEN", listen.clone()), ("COLINK_CLUSTER__NODE", name.clone())];
        let (url, data) = (format!("http://{listen}"), dir.join("data"));
        Node { url, name, listen, dir, data, set, program: None, space: None, process: None }
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen.parse().expect("it is an address")
    }

    /// Has another release run from its next start on, or this one.
    pub(crate) fn run_as(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    fn prepare(&self, command: &mut Command, words: &[&str]) {
        command.args(words).arg("--data").arg(&self.data).current_dir(&self.dir);
        for setting in SETTINGS {
            command.arg("--set").arg(setting);
        }
        command.envs(self.set.iter().map(|(name, value)| (name, value))).env("RUST_BACKTRACE", "0");
    }

    fn inside(&self, command: Command) -> Command {
        match &self.space {
            Some(space) => space.enter(&command),
            None => command,
        }
    }

    fn ask(&self, words: &[&str]) -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_colink"));
        self.prepare(&mut command, words);
        let output = self.inside(command).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Makes an administrator and returns a token of theirs.
    pub(crate) fn make_admin(&self) -> String {
        self.ask(&["user", "add", "root", "--admin", "--json"]);
        self.ask(&["token", "add", "--user", "root", "--json"])["token"].as_str().unwrap().to_owned()
    }

    /// Starts it; [`Node::ready`] waits until it answers.
    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it with more in its environment.
    pub(crate) fn start_with(&mut self, environment: &[(&str, String)]) {
        let program = self.program.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_colink")));
        let mut command = command(program.to_str().unwrap(), None);
        self.prepare(&mut command, &["serve"]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start(self.inside(command), &self.dir.join("log")));
    }

    /// Waits until it answers.
    pub(crate) async fn ready(&mut self) {
        let client = Client::new(&self.url).unwrap().with_timeout(Duration::from_secs(2));
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = client.text("/ready").await {
            let ended = self.process.as_mut().unwrap().has_ended();
            assert!(!ended && Instant::now() < deadline, "{} did not start ({error}):\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it in the middle of whatever it does, or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.process.as_ref().unwrap().signal(if paused { Signal::STOP } else { Signal::CONT });
    }

    /// Asks it to stop in order, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::TERM);
        let deadline = Instant::now() + LIMIT;
        while !process.has_ended() {
            assert!(Instant::now() < deadline, "{} does not stop:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts all its clients' connections at once, at both ends.
    pub(crate) fn cut_clients(&self) -> bool {
        let Some(ss) = find("ss") else { return false };
        let port = self.listen.rsplit(':').next().unwrap_or_default();
        let cut = Command::new(ss).args(["-K", "-t", "-n", "sport", "=", &format!(":{port}")]).output();
        cut.is_ok_and(|output| output.status.success())
    }

    /// Returns whether it runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !process.has_ended())
    }

    /// Returns its resident memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.process.as_ref().map_or(0, Process::size)
    }

    /// Returns the value of a metric, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let client = Client::new(&self.url).unwrap().with_timeout(Duration::from_secs(5));
        let text = client.text("/metrics").await.unwrap_or_default();
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    }

    /// Returns what it logged, over all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}
