//! The server under load: one or more nodes that are started here and end with the run, or one that runs already.
//!
//! One that is started here knows of its surroundings only what the options say: neither `COLINK_…` variables nor a
//! `config.toml` lead it to a database that is in use.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::args::LoadArgs;
use super::procfs::Watched;
use crate::actors::cluster::status::{Node, Standing, Status};
use crate::client::{Address, Client};

/// Limits protect a server from what a load generator does; these are off on one that is started here.
pub(in crate::cli) const LIMITS: [&str; 5] = [
    "gateway.commands_per_minute",
    "gateway.identifies_per_minute",
    "limits.messages_per_minute",
    "limits.requests_per_minute",
    "auth.logins_per_minute",
];

/// A server that can be measured.
pub(super) struct Server {
    /// That of the first node.
    pub(super) url: String,
    /// Those of all nodes.
    addresses: Vec<SocketAddr>,
    pub(super) admin_token: String,
    pub(super) watched: Watched,
    own: Option<Own>,
}

/// What is needed to start a server again, and to leave nothing behind.
struct Own {
    program: PathBuf,
    dir: PathBuf,
    settings: Vec<String>,
    redis: Option<String>,
    /// Those of as many nodes as there will ever be.
    addresses: Vec<SocketAddr>,
    children: Vec<Child>,
}

impl Server {
    /// Starts a server, or addresses the one that `args` name.
    pub(super) async fn open(args: &LoadArgs) -> Result<Server> {
        let postgres = args.database.as_deref().is_some_and(is_local_postgres);
        let redis = args.redis.as_deref().is_some_and(is_local_redis);
        if args.nodes.iter().any(|nodes| *nodes > 1) && (args.redis.is_none() || !is_postgres(args)) {
            bail!("several nodes share a Postgres and a Redis: name them by --database and --redis");
        }
        if let (Some(url), Some(token)) = (&args.url, &args.admin_token) {
            let at = Address::parse(url)?;
            let mut found =
                (at.host.as_str(), at.port).to_socket_addrs().with_context(|| format!("cannot find {url}"))?;
            let address = found.find(SocketAddr::is_ipv4).with_context(|| format!("{url} has no IPv4 address"))?;
            let watched = Watched { pids: args.server_pid.into_iter().collect(), postgres, redis };
            let addresses = vec![address];
            return Ok(Server { url: url.clone(), addresses, admin_token: token.clone(), watched, own: None });
        }

        let mut own = Own::prepare(args)?;
        let admin_token = own.make_admin()?;
        let pids = own.start(1)?;
        let mut server = Server {
            url: format!("http://{}", own.addresses[0]),
            addresses: own.addresses[..1].to_vec(),
            admin_token,
            watched: Watched { pids, postgres, redis },
            own: Some(own),
        };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Returns a client that speaks as the administrator.
    pub(super) fn admin(&self) -> Result<Client> {
        Ok(Client::new(&self.url)?.with_token(&self.admin_token))
    }

    /// Returns the address of the node that somebody with this number connects to.
    pub(super) fn node(&self, number: usize) -> SocketAddr {
        self.addresses[number % self.addresses.len()]
    }

    /// Returns how many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.addresses.len()
    }

    /// Starts the server anew, so that a scenario finds its memory as it was at the start; does nothing to one that
    /// was running before.
    pub(super) async fn restart(&mut self) -> Result<()> {
        self.restart_as(self.nodes()).await
    }

    /// Starts the server anew as so many nodes.
    pub(super) async fn restart_as(&mut self, nodes: usize) -> Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        own.stop();
        self.watched.pids = own.start(nodes)?;
        self.addresses = own.addresses[..nodes].to_vec();
        self.wait_until_ready().await
    }

    /// Returns the metrics of all nodes, one page behind the other; nothing if it does not show them to this administrator.
    pub(super) async fn metrics(&self) -> Result<Option<String>> {
        let mut pages = String::new();
        for address in &self.addresses {
            let url = if self.own.is_some() { format!("http://{address}") } else { self.url.clone() };
            let Ok(page) = Client::new(&url)?.with_token(&self.admin_token).text("/metrics").await else {
                return Ok(None);
            };
            pages += &page;
        }
        Ok(Some(pages))
    }

    /// Returns the folder that the server writes to, if it is known.
    pub(super) fn data(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.dir.as_path())
    }

    /// Returns how the server is described in a report.
    pub(super) fn describe(&self) -> String {
        match &self.own {
            Some(own) => format!("{} serve", own.program.display()),
            None => self.url.clone(),
        }
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let urls = match &self.own {
            Some(own) => {
                own.addresses[..own.children.len()].iter().map(|address| format!("http://{address}")).collect()
            }
            None => vec![self.url.clone()],
        };
        for url in &urls {
            let client = Client::new(url)?.with_token(&self.admin_token).with_timeout(Duration::from_secs(2));
            while let Err(error) = self.answers(&client, urls.len()).await {
                let ended = self.own.as_mut().is_some_and(Own::has_ended);
                if ended || Instant::now() > deadline {
                    let log = self.own.as_ref().map(Own::log_tail).unwrap_or_default();
                    bail!("the server does not answer at {url}: {error:#}\n{log}");
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        Ok(())
    }

    /// Asks a node who the administrator is, and of several whether it hears all others.
    async fn answers(&self, client: &Client, nodes: usize) -> Result<()> {
        client.me().await?;
        if nodes > 1 {
            let status: Status = client.get("/v1/admin/cluster").await?;
            let hears = |node: &&Node| matches!(node.state, Standing::This | Standing::Up);
            let alive = status.nodes.iter().filter(hears).count();
            ensure!(alive == nodes, "it hears {alive} of {nodes} nodes");
        }
        Ok(())
    }
}

fn is_postgres(args: &LoadArgs) -> bool {
    args.database.as_deref().is_some_and(|url| url.starts_with("postgres"))
}

fn is_local_postgres(url: &str) -> bool {
    url.starts_with("postgres") && is_local(url)
}

fn is_local_redis(url: &str) -> bool {
    url.starts_with("redis") && is_local(url)
}

fn is_local(url: &str) -> bool {
    ["@127.0.0.1", "@localhost", "@/", "//127.0.0.1", "//localhost", "host=/", "host=%2F"]
        .iter()
        .any(|here| url.contains(here))
}

impl Own {
    fn prepare(args: &LoadArgs) -> Result<Own> {
        // It runs in a folder of its own, where other paths than whole ones lead elsewhere.
        let program = match &args.server_bin {
            Some(program) if program.components().count() > 1 => std::path::absolute(program)?,
            Some(program) => program.clone(),
            None => std::env::current_exe().context("cannot find this program")?,
        };
        let parent = std::path::absolute(args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
        let dir = parent.join(format!("colink-load-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let database = args.database.iter().map(|url| format!("database.url={url}"));
        let settings = database.chain(args.settings.iter().cloned()).collect();
        let most = args.nodes.iter().copied().max().unwrap_or(1);
        // All at once, so that no two are the same.
        let free = (0..most).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>();
        let addresses = free.and_then(|free| free.iter().map(TcpListener::local_addr).collect());
        let addresses = addresses.context("cannot find a free port")?;
        Ok(Own { program, dir, settings, redis: args.redis.clone(), addresses, children: Vec::new() })
    }

    /// Runs a command of the server's program and returns one field of its JSON answer.
    fn ask(&self, words: &[&str], field: &str) -> Result<String> {
        let shown = words.join(" ");
        let output =
            self.command(words, 0).output().with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            bail!("`{shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("`{shown}` did not answer with JSON"))?;
        let value = answer[field].as_str().with_context(|| format!("`{shown}` did not answer with `{field}`"))?;
        Ok(value.to_owned())
    }

    /// Makes the administrator who prepares users and rooms. The name is new: a database may have seen other runs.
    fn make_admin(&self) -> Result<String> {
        let name = format!("load-admin-{:08x}", getrandom::u32().context("no random numbers")?);
        self.ask(&["user", "add", &name, "--admin", "--json"], "id")?;
        self.ask(&["token", "add", "--user", &name, "--json"], "token")
    }

    fn command(&self, words: &[&str], node: usize) -> Command {
        let mut command = Command::new(&self.program);
        let data = if node == 0 { self.dir.clone() } else { self.dir.join(format!("node-{node}")) };
        command.args(words).arg("--data").arg(data).current_dir(&self.dir).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COLINK_")) {
            command.env_remove(name);
        }
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// Starts so many nodes; one is no cluster.
    fn start(&mut self, nodes: usize) -> Result<Vec<u32>> {
        for node in 0..nodes {
            let log =
                File::options().create(true).append(true).open(self.log()).context("cannot write the server's log")?;
            let listen = self.addresses[node].to_string();
            let limits = LIMITS.iter().map(|limit| format!("{limit}=0"));
            let cluster = self.redis.iter().filter(|_| nodes > 1).flat_map(|redis| {
                let name = format!("cluster.name=load-{}", std::process::id());
                [format!("cluster.redis={redis}"), name, format!("cluster.node=node-{node}")]
            });
            let settings: Vec<String> = limits.chain(cluster).collect();
            let child = self
                .command(&["serve", "--listen", &listen], node)
                .args(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]))
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("cannot start {}", self.program.display()))?;
            self.children.push(child);
        }
        Ok(self.children.iter().map(Child::id).collect())
    }

    /// Kills the server: what it acknowledged must survive that anyway.
    fn stop(&mut self) {
        for mut child in self.children.drain(..) {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn has_ended(&mut self) -> bool {
        self.children.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop();
        // What cannot be removed stays in the folder for temporary files.
        drop(fs::remove_dir_all(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    #[tokio::test]
    async fn a_server_that_does_not_start_is_reported_with_its_log() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("colink");
        let script = "#!/bin/sh\ncase $1 in serve) echo \"cannot listen: $*\"; exit 1;; *) echo '{\"id\":\"1\",\"token\":\"t\"}';; esac\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (program, data) = (program.display().to_string(), dir.path().display().to_string());
        let args: Cli = clap::Parser::parse_from(["load", "--server-bin", &program, "--dir", &data]);
        let error = Server::open(&args.load).await.err().unwrap().to_string();
        assert!(error.contains("cannot listen: serve --listen 127.0.0.1:"), "{error}");
        assert!(error.contains("--set gateway.commands_per_minute=0"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "its folder is removed");
    }

    #[tokio::test]
    async fn several_nodes_need_what_they_share() {
        for missing in [&[][..], &["--redis", "redis://127.0.0.1"], &["--database", "postgres://127.0.0.1/colink"]] {
            let words = [&["load", "--nodes", "1,3"], missing].concat();
            let args: Cli = clap::Parser::parse_from(words);
            let error = Server::open(&args.load).await.err().unwrap().to_string();
            assert!(error.contains("--database and --redis"), "{error}");
        }
    }

    #[test]
    fn only_a_postgres_on_this_machine_is_counted() {
        assert!(is_local_postgres("postgres://colink@127.0.0.1:5432/colink"));
        assert!(is_local_postgres("postgresql://localhost/colink"));
        assert!(!is_local_postgres("postgres://colink@db.example/colink"));
        assert!(!is_local_postgres("sqlite://colink.db"));
    }
}
