//! The server under load: one that is started here and ends with the run, or one that runs already.
//!
//! One that is started here knows of its surroundings only what the options say: neither `COLINK_…` variables nor a
//! `config.toml` lead it to a database that is in use.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::args::LoadArgs;
use super::procfs::Watched;
use crate::client::{Address, Client};

/// Limits protect a server from what a load generator does; these are off on one that is started here.
const LIMITS: [&str; 5] = [
    "gateway.commands_per_minute",
    "gateway.identifies_per_minute",
    "limits.messages_per_minute",
    "limits.requests_per_minute",
    "auth.logins_per_minute",
];

/// A server that can be measured.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) address: SocketAddr,
    pub(super) admin_token: String,
    pub(super) watched: Watched,
    own: Option<Own>,
}

/// What is needed to start a server again, and to leave nothing behind.
struct Own {
    program: PathBuf,
    dir: PathBuf,
    settings: Vec<String>,
    address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Starts a server, or addresses the one that `args` name.
    pub(super) async fn open(args: &LoadArgs) -> Result<Server> {
        let postgres = args.database.as_deref().is_some_and(is_local_postgres);
        if let (Some(url), Some(token)) = (&args.url, &args.admin_token) {
            let at = Address::parse(url)?;
            let mut found =
                (at.host.as_str(), at.port).to_socket_addrs().with_context(|| format!("cannot find {url}"))?;
            let address = found.find(SocketAddr::is_ipv4).with_context(|| format!("{url} has no IPv4 address"))?;
            let watched = Watched { pid: args.server_pid, postgres };
            return Ok(Server { url: url.clone(), address, admin_token: token.clone(), watched, own: None });
        }

        let mut own = Own::prepare(args)?;
        let admin_token = own.make_admin()?;
        let pid = own.start()?;
        let mut server = Server {
            url: format!("http://{}", own.address),
            address: own.address,
            admin_token,
            watched: Watched { pid: Some(pid), postgres },
            own: Some(own),
        };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Returns a client that speaks as the administrator.
    pub(super) fn admin(&self) -> Result<Client> {
        Ok(Client::new(&self.url)?.with_token(&self.admin_token))
    }

    /// Starts the server anew, so that a scenario finds its memory as it was at the start; does nothing to one that
    /// was running before.
    pub(super) async fn restart(&mut self) -> Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        own.stop();
        self.watched.pid = Some(own.start()?);
        self.wait_until_ready().await
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
        let client = self.admin()?.with_timeout(Duration::from_secs(2));
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = client.me().await {
            let ended = self.own.as_mut().is_some_and(Own::has_ended);
            if ended || Instant::now() > deadline {
                let log = self.own.as_ref().map(Own::log_tail).unwrap_or_default();
                bail!("the server does not answer at {}: {error}\n{log}", self.url);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(())
    }
}

fn is_local_postgres(url: &str) -> bool {
    url.starts_with("postgres")
        && ["@127.0.0.1", "@localhost", "@/", "//127.0.0.1", "//localhost", "host=/", "host=%2F"]
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
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        Ok(Own { program, dir, settings, address: address.context("cannot find a free port")?, child: None })
    }

    /// Runs a command of the server's program and returns one field of its JSON answer.
    fn ask(&self, words: &[&str], field: &str) -> Result<String> {
        let shown = words.join(" ");
        let output = self.command(words).output().with_context(|| format!("cannot run {}", self.program.display()))?;
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

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--data").arg(&self.dir).current_dir(&self.dir).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COLINK_")) {
            command.env_remove(name);
        }
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    fn start(&mut self) -> Result<u32> {
        let log =
            File::options().create(true).append(true).open(self.log()).context("cannot write the server's log")?;
        let listen = self.address.to_string();
        let child = self
            .command(&["serve", "--listen", &listen])
            .args(LIMITS.iter().flat_map(|limit| ["--set".to_owned(), format!("{limit}=0")]))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = child.id();
        self.child = Some(child);
        Ok(pid)
    }

    /// Kills the server: what it acknowledged must survive that anyway.
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
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

    #[test]
    fn only_a_postgres_on_this_machine_is_counted() {
        assert!(is_local_postgres("postgres://colink@127.0.0.1:5432/colink"));
        assert!(is_local_postgres("postgresql://localhost/colink"));
        assert!(!is_local_postgres("postgres://colink@db.example/colink"));
        assert!(!is_local_postgres("sqlite://colink.db"));
    }
}
