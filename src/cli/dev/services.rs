//! A Postgres and a Redis of the cluster's own, from the programs of this machine.
//!
//! Nobody else on the machine can use them: Postgres listens on a socket in a directory of its own, Redis wants a password
//! that is made anew at every start.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::process::{Process, find, leashed};
use crate::client::escaped;
use crate::config::Config;
use crate::storage::Store;

/// How long one may take to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one may take to stop.
const FAREWELL: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);

/// Returns a port that nobody listens on.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// A server that was started here, or one that runs elsewhere.
pub(super) struct Service {
    /// What the nodes reach it by.
    pub(super) url: String,
    own: Option<Own>,
}

struct Own {
    /// The program with its options, as which user, and where.
    program: PathBuf,
    options: Vec<OsString>,
    user: Option<(u32, u32)>,
    dir: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    /// Until then it is started again if it ends: what it had before its death may still be in use.
    trying: Instant,
    stops_by: Signal,
}

impl Service {
    /// Names one that runs already.
    pub(super) fn elsewhere(url: String) -> Service {
        Service { url, own: None }
    }

    /// Makes a Postgres in `dir`, unless there is one, and starts it.
    pub(super) async fn postgres(dir: &Path) -> Result<Service> {
        let hint = "install postgresql, or name one by --postgres URL";
        let Some(bin) = postgres_bin() else { bail!("there is no Postgres on this machine: {hint}") };
        let (place, log) = (dir.join("postgres"), dir.join("postgres.log"));
        let user = match rustix::process::geteuid().is_root() {
            true => Some(user("postgres").context(
                "Postgres does not run as root, and there is no user `postgres`: run this as another user, or name a \
                 Postgres by --postgres URL",
            )?),
            false => None,
        };
        make_private(&place)?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&place, Some(uid), Some(gid)).context("cannot give Postgres its directory")?;
        }
        let data = place.join("data");
        let own = |program: PathBuf, options: Vec<OsString>| Own {
            program,
            options,
            user,
            dir: place.clone(),
            log: log.clone(),
            process: None,
            trying: Instant::now() + PATIENCE,
            stops_by: Signal::INT,
        };
        if fs::metadata(data.join("PG_VERSION")).is_err() {
            let words = ["-U", "colink", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-D"].map(OsString::from);
            let options = words.into_iter().chain([data.clone().into()]).collect();
            let made = own(bin.join("initdb"), options).command().output().context("cannot run initdb")?;
            if !made.status.success() {
                // Half of it is worse than none.
                drop(fs::remove_dir_all(&data));
                bail!(
                    "cannot make a Postgres in {}: {}",
                    place.display(),
                    String::from_utf8_lossy(&made.stderr).trim()
                );
            }
        }
        let words = ["-c", "listen_addresses=", "-c", "max_connections=200", "-D"].map(OsString::from);
        let options = words.into_iter().chain([data.into(), "-k".into(), place.clone().into()]).collect();
        let mut own = own(bin.join("postgres"), options);
        let url = format!("postgres://colink@localhost/postgres?host={}", escaped(&place.display().to_string()));
        own.start()?;
        let mut service = Service { url, own: Some(own) };
        service.wait_for_postgres().await?;
        Ok(service)
    }

    async fn wait_for_postgres(&mut self) -> Result<()> {
        let mut config = Config::default();
        config.database.url = self.url.clone().into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let opened = async {
                let store = Store::open(&crate::app::store_options(&config)).await?;
                let answered = store.version().await;
                store.close().await;
                anyhow::Ok(answered?)
            };
            let Err(error) = opened.await else { return Ok(()) };
            self.tend()?;
            if Instant::now() > deadline {
                bail!("Postgres does not start: {error}\n{}", self.last_words());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Starts a Redis that keeps nothing.
    pub(super) fn redis(dir: &Path) -> Result<Service> {
        let hint = "install redis-server, or name one by --redis URL";
        let Some(program) = find("redis-server") else { bail!("there is no Redis on this machine: {hint}") };
        let (port, place, conf) = (free_port()?, dir.join("redis"), dir.join("redis/redis.conf"));
        make_private(&place)?;
        let password = format!("{:016x}", getrandom::u64().context("no random numbers")?);
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nrequirepass {password}\nsave \"\"\nappendonly no\nmaxmemory 64mb\ndaemonize no\n"
        );
        drop(fs::remove_file(&conf));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&conf);
        file.and_then(|mut file| file.write_all(settings.as_bytes()))
            .with_context(|| format!("cannot write {}", conf.display()))?;
        let mut own = Own {
            program,
            options: vec!["redis.conf".into()],
            user: None,
            dir: place,
            log: dir.join("redis.log"),
            process: None,
            trying: Instant::now() + PATIENCE,
            stops_by: Signal::TERM,
        };
        own.start()?;
        Ok(Service { url: format!("redis://:{password}@127.0.0.1:{port}"), own: Some(own) })
    }

    /// Returns whether it was started here.
    pub(super) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Returns whether it runs; of one that runs elsewhere, nothing is known.
    pub(super) fn runs(&mut self) -> Option<bool> {
        let own = self.own.as_mut()?;
        Some(own.process.as_mut().is_some_and(|process| !process.has_ended()))
    }

    /// Kills it with SIGKILL if it runs, and starts it if it does not.
    pub(super) fn toggle(&mut self) -> Result<()> {
        let runs = self.runs();
        let Some(own) = &mut self.own else { return Ok(()) };
        if runs == Some(true) {
            own.process = None;
            own.trying = Instant::now();
            return Ok(());
        }
        own.trying = Instant::now() + PATIENCE;
        own.start()
    }

    /// Starts it again if it ended in the middle of its start.
    pub(super) fn tend(&mut self) -> Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let Some(process) = &mut own.process else { return Ok(()) };
        if process.has_ended() && Instant::now() < own.trying { own.start() } else { Ok(()) }
    }

    fn last_words(&self) -> String {
        let process = self.own.as_ref().and_then(|own| own.process.as_ref());
        process.map(Process::last_words).unwrap_or_default()
    }

    /// Stops it in order.
    pub(super) async fn stop(&mut self) {
        let Some(own) = &mut self.own else { return };
        if let Some(process) = own.process.take() {
            process.signal(own.stops_by);
            process.end(FAREWELL).await;
        }
    }
}

impl Own {
    fn command(&self) -> Command {
        let mut command = leashed(&self.program);
        command.args(&self.options).current_dir(&self.dir);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn start(&mut self) -> Result<()> {
        self.process = Some(Process::start(self.command(), &self.log)?);
        Ok(())
    }
}

/// Makes a directory that only its owner can look into, unless it is there.
fn make_private(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Finds the newest Postgres, where Debian, Fedora and a shell have it.
fn postgres_bin() -> Option<PathBuf> {
    let mut bins: Vec<(u32, PathBuf)> = Vec::new();
    for (above, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        for entry in fs::read_dir(above).into_iter().flatten().flatten() {
            let version = entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            bins.extend(version.map(|version| (version, entry.path().join("bin"))));
        }
    }
    bins.retain(|(_, bin)| bin.join("initdb").is_file() && bin.join("postgres").is_file());
    bins.sort();
    let by_path = || Some(find("initdb")?.canonicalize().ok()?.parent()?.to_owned());
    bins.pop().map(|(_, bin)| bin).or_else(by_path)
}

/// Returns the numbers of a user and of their group.
fn user(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = users.lines().find(|line| line.starts_with(&format!("{name}:")))?.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
