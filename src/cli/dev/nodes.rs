//! The nodes: this program, several times, on one Postgres and one Redis.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::Signal;

use super::process::{Process, leashed};
use super::services::free_port;
use crate::app::Running;
use crate::cli::load::LIMITS;
use crate::client::Client;
use crate::config::Config;

/// How long one may take to answer. The first makes the tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may take to stop.
const FAREWELL: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(25);

/// What all nodes have in common.
pub(super) struct Common {
    /// Where each has a directory and a log.
    pub(super) dir: PathBuf,
    /// `database.url`
    pub(super) postgres: String,
    /// `cluster.redis`
    pub(super) redis: String,
    /// More of the configuration, as `section.key=value`.
    pub(super) settings: Vec<String>,
}

/// One node, which may run or not.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) url: String,
    listen: String,
    data: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// Makes the node with a number, from 1, that listens on `port`; on any, if that is 0.
    pub(super) fn new(n: usize, port: u16, common: &Common) -> Result<Node> {
        let port = if port == 0 { free_port()? } else { port };
        let (name, listen) = (format!("hub-{n}"), format!("127.0.0.1:{port}"));
        let (url, data) = (format!("http://{listen}"), common.dir.join(&name));
        let log = common.dir.join(format!("{name}.log"));
        Ok(Node { name, url, listen, data, log, process: None })
    }

    /// Starts it; [`Node::ready`] waits until it answers.
    pub(super) fn start(&mut self, common: &Common) -> Result<()> {
        let mut command = leashed(&std::env::current_exe()?);
        command.args(["serve", "--listen", &self.listen, "--data"]).arg(&self.data).current_dir(&common.dir);
        // What surrounds this is meant for other servers.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COLINK_")) {
            command.env_remove(name);
        }
        // Not as options: these can be seen by all users of the machine.
        command.env("COLINK_DATABASE__URL", &common.postgres).env("COLINK_CLUSTER__REDIS", &common.redis);
        command.env("COLINK_CLUSTER__NODE", &self.name);
        let mild = LIMITS.iter().map(|limit| format!("{limit}=0"));
        let own = ["log.format=text", "server.drain_s=3"].map(str::to_owned);
        for setting in mild.chain(own).chain(common.settings.iter().cloned()) {
            command.args(["--set", &setting]);
        }
        self.process = Some(Process::start(command, &self.log)?);
        Ok(())
    }

    /// Waits until it answers and may be used.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let client = Client::new(&self.url)?.with_timeout(Duration::from_secs(2));
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = client.text("/ready").await {
            let Some(process) = &mut self.process else { bail!("{} was not started", self.name) };
            if process.has_ended() || Instant::now() > deadline {
                bail!("{} does not start: {error}\n{}", self.name, process.last_words());
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Returns whether it runs; nothing, if it was killed here.
    pub(super) fn runs(&mut self) -> Option<bool> {
        Some(!self.process.as_mut()?.has_ended())
    }

    /// Kills it with SIGKILL if it runs, and starts it if it does not.
    pub(super) fn toggle(&mut self, common: &Common) -> Result<()> {
        if self.runs() == Some(true) {
            self.process = None;
            return Ok(());
        }
        self.start(common)
    }

    /// Returns a client that is let in by the operator's door, if it runs.
    pub(super) fn operator(&self) -> Option<Client> {
        let running = Running::read(&self.data)?;
        Some(Client::new(&running.url).ok()?.with_token(running.operator_token))
    }

    /// Returns the configuration of a command for it.
    pub(super) fn config(&self) -> Config {
        let mut config = Config::default();
        config.server.data = self.data.clone();
        config
    }

    /// Asks it to stop.
    pub(super) fn begin_to_stop(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::TERM);
        }
    }

    /// Waits until it has stopped.
    pub(super) async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.end(FAREWELL).await;
        }
    }
}
