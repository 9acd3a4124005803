//! The composition root: from a configuration to a running node, and back down in order.
//!
//! Up: store, schema, writer and actors, listener. Down: sessions are asked to reconnect and are served until they have,
//! requests finish, what waits is written, the store closes. It is down after `server.drain_s` and [`BEYOND_DRAIN`] at the
//! latest, whatever hangs.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::actors::{GOODBYE_MAX, Hub, Joins, STOPPED_WITHIN};
use crate::bus::memory::Network;
use crate::bus::redis;
use crate::clock::Clock;
use crate::config::{Config, Search};
use crate::consumers::Consumers;
use crate::consumers::follow::Ground;
use crate::consumers::indexer::Indexer;
use crate::consumers::kafka::{Relay, Topic};
use crate::consumers::remote_indexer::RemoteIndexer;
use crate::domain::id::NodeId;
use crate::http;
use crate::storage::lock::Lock;
use crate::storage::search::Engine;
use crate::storage::search::index::Index;
use crate::storage::search::opensearch::Remote;
use crate::storage::tokens::Secret;
use crate::storage::{Options, Store, postgres};
use crate::telemetry;

/// A running node.
pub struct App {
    /// What its parts share.
    pub hub: Arc<Hub>,
    /// Where it listens.
    pub address: SocketAddr,
    consumers: Arc<Consumers>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    data: PathBuf,
    _locks: (File, File, Lock),
}

/// What a running server leaves in its data directory for the command line, readable by its owner alone.
#[derive(Serialize, Deserialize)]
pub struct Running {
    /// Where the server is reached from this machine.
    pub url: String,
    /// The operator's secret of this run.
    pub operator_token: String,
    /// The server's `database.url`, which it may have from elsewhere than a command has its own.
    pub database: String,
    /// The server's `database.pooled`.
    #[serde(default)]
    pub pooled: bool,
    /// The server's process.
    pub pid: u32,
}

const RUNNING: &str = "running.json";
/// The folder of the search index in the data directory.
const SEARCH: &str = "search";

impl Running {
    /// Returns what the server that runs on a data directory left there. One that was killed leaves it behind, but no longer
    /// holds it.
    pub fn read(data: &Path) -> Option<Running> {
        let mut file = File::open(data.join(RUNNING)).ok()?;
        if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return None;
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Returns what a server that was killed left in a data directory.
    #[must_use]
    pub fn left_behind(data: &Path) -> Option<PathBuf> {
        let path = data.join(RUNNING);
        (path.exists() && Running::read(data).is_none()).then_some(path)
    }

    /// Writes it, and holds it as long as the file is kept.
    fn write(&self, data: &Path) -> Result<File> {
        let path = data.join(RUNNING);
        let _ = std::fs::remove_file(&path);
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file)
    }
}

/// Returns the address of the store: what the configuration says, or the file in the data directory.
#[must_use]
pub fn store_options(config: &Config) -> Options {
    let url = config.database.url.expose();
    let url = if url.is_empty() {
        format!("sqlite://{}", config.server.data.join("colink.db").display())
    } else {
        url.to_owned()
    };
    let ms = Duration::from_millis;
    let database = &config.database;
    Options {
        url,
        connections: database.connections,
        timeout: ms(database.timeout_ms),
        statement: ms(database.statement_timeout_ms),
        lock: ms(database.lock_timeout_ms),
        replica: Some(database.replica_url.expose().to_owned()).filter(|url| !url.is_empty()),
        pooled: database.pooled,
    }
}

/// Makes the data directory, readable by its owner alone.
pub fn make_data_dir(data: &Path) -> Result<()> {
    if data.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(data).with_context(|| format!("cannot make the data directory {}", data.display()))
}

/// Takes the data directory for this process; nothing if another one has it. What a server that was killed left there
/// about itself is gone then.
fn lock_data_dir(data: &Path) -> Result<Option<File>> {
    make_data_dir(data)?;
    let path = data.join("colink.lock");
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            let _ = std::fs::remove_file(data.join(RUNNING));
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Who has a data directory.
pub enum Holder {
    /// This process, as long as it keeps the file.
    Us(File),
    /// A server that runs.
    Server(Running),
    /// A command, or a server that starts or stops, and for longer than was waited.
    Other,
}

const AGAIN: Duration = Duration::from_millis(20);

/// Takes the data directory for this process, or finds the server that has it. Waits at most `patience` for whoever gives
/// it back in a moment.
pub async fn hold_data_dir(data: &Path, patience: Duration) -> Result<Holder> {
    let since = Instant::now();
    let mut told = false;
    loop {
        if let Some(lock) = lock_data_dir(data)? {
            return Ok(Holder::Us(lock));
        }
        if let Some(running) = Running::read(data) {
            return Ok(Holder::Server(running));
        }
        if since.elapsed() >= patience {
            return Ok(Holder::Other);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!("waiting for a command, or a server that starts or stops, which has {}", data.display());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// How long a start waits for a command that has the data directory, or for a server that stops on it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the store and brings its schema up to date.
pub async fn open_store(config: &Config) -> Result<Store> {
    make_data_dir(&config.server.data)?;
    let store = Store::open(&store_options(config)).await?;
    store.migrate().await?;
    Ok(store)
}

/// Chooses the cryptography of TLS connections; to be called first thing in every process.
pub fn choose_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl App {
    /// Starts a node.
    pub async fn start(config: Config) -> Result<App> {
        App::start_at(config, Clock::default()).await
    }

    /// Starts a node that tells the time by `clock`.
    pub async fn start_at(config: Config, clock: Clock) -> Result<App> {
        App::start_on(config, clock, None).await
    }

    /// Starts a node that is one of several in this process, which share a network in its memory.
    pub async fn start_on(mut config: Config, clock: Clock, network: Option<&Network>) -> Result<App> {
        choose_crypto();
        telemetry::start_metrics();
        let data = config.server.data.clone();
        let lock = match hold_data_dir(&data, PATIENCE).await? {
            Holder::Us(lock) => lock,
            Holder::Server(_) => bail!(
                "another server runs on the data directory {}: stop it, or give this one another --data",
                data.display()
            ),
            Holder::Other => bail!(
                "a command has the data directory {}, or another server starts or stops on it: try again in a moment",
                data.display()
            ),
        };
        let clustered = network.is_some() || !config.cluster.redis.expose().is_empty();
        let Some(database_lock) = Lock::take(&store_options(&config), clustered).await? else {
            bail!(
                "another server runs on this database: stop it, or give this one a database of its own (database.url); \
                 servers that are to share it all need cluster.redis"
            );
        };
        let store = open_store(&config).await?;
        for postgres::Weakness { setting, advice } in store.weaknesses().await? {
            tracing::warn!(setting, "{advice}");
            metrics::gauge!("colink_database_weak", "setting" => setting).set(1.0);
        }
        let listen = config.server.listen;
        let listener = listen_on(listen).with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        config.server.listen = address;
        let operator = Secret::generate("clo_");
        let node = node_name(&config, address);
        let id = NodeId::new(clock.now());
        let joins = match network {
            Some(network) => {
                let (bus, incoming) = network.join(id);
                Some(Joins { id, bus, incoming })
            }
            None if config.cluster.redis.expose().is_empty() => None,
            None => {
                let cluster = &config.cluster;
                let (url, name) = (cluster.redis.expose().to_owned(), cluster.name.clone());
                let settings = redis::Settings { url, name, node: id, queue: cluster.queue };
                let (bus, incoming) = redis::join(settings).context("cannot use cluster.redis")?;
                Some(Joins { id, bus, incoming })
            }
        };
        let search = Arc::new(open_search(&config).await?);
        let data = config.server.data.clone();
        let (database, pooled) = (config.database.url.expose().to_owned(), config.database.pooled);
        let hub = Hub::start(config, node, clock, store, search, Secret::hash(&operator.0), joins).await?;
        let consumers = Arc::new(start_consumers(&hub)?);
        let told = consumers.clone();
        let _ = hub.on_events.set(Box::new(move |events| told.tell(events)));
        let (url, pid) = (local_url(address), std::process::id());
        let running = Running { url, operator_token: operator.0, database, pooled, pid }.write(&data)?;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(http::serve::serve(hub.clone(), listener, stop.clone()));
        Ok(App { hub, address, consumers, stop, serving, data, _locks: (lock, running, database_lock) })
    }

    /// Stops the node in order: nothing that was accepted is lost. Clients and requests share one time, `server.drain_s` and
    /// what a goodbye takes: what a client that stays has used up, a request that hangs does not get.
    pub async fn stop(self) {
        let App { hub, consumers, stop, mut serving, data, _locks, .. } = self;
        let by = Instant::now() + Duration::from_secs(hub.config.server.drain_s) + GOODBYE_MAX;
        let _ = std::fs::remove_file(data.join(RUNNING));
        hub.drain();
        let requests = async {
            hub.closing.cancelled().await;
            stop.cancel();
            if timeout_at(by.into(), &mut serving).await.is_err() {
                tracing::info!("stopping without an answer to every request");
                serving.abort();
            }
        };
        // What is committed from now on is for another node's, or for the next start.
        let consumers = timeout_at(by.into(), consumers.stop());
        let _ = tokio::join!(hub.drained(), hub.left(), requests, consumers);
        hub.stop().await;
        if timeout(CLOSED_WITHIN, hub.store.close()).await.is_err() {
            tracing::info!("stopping without a goodbye to the database");
        }
    }
}

/// How long the store may take to close: whoever still waits for the database keeps a connection.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// How long a stop takes beyond `server.drain_s` at most.
pub const BEYOND_DRAIN: Duration = GOODBYE_MAX.saturating_add(STOPPED_WITHIN).saturating_add(CLOSED_WITHIN);

/// Opens the search index, or addresses that of OpenSearch.
pub async fn open_search(config: &Config) -> Result<Engine> {
    let Search { memory_mb, opensearch, index } = config.search.clone();
    if !opensearch.expose().is_empty() {
        let patience = Duration::from_millis(config.database.timeout_ms);
        return Ok(Engine::remote(
            Remote::new(opensearch.expose(), &index, patience).context("cannot use search.opensearch")?,
        ));
    }
    let folder = config.server.data.join(SEARCH);
    let opened = tokio::task::spawn_blocking(move || Engine::embedded(&folder, memory_mb)).await?;
    opened.with_context(|| format!("cannot open the search index in {SEARCH} of server.data"))
}

/// Starts what follows the log.
fn start_consumers(hub: &Arc<Hub>) -> Result<Consumers> {
    let (cluster, ear) = (hub.cluster.clone(), hub.cluster.clone());
    let mut consumers = Consumers::on(Ground {
        store: hub.store.clone(),
        writer: hub.writer.clone(),
        clock: hub.clock.clone(),
        runs_here: Arc::new(move |consumer| cluster.as_ref().is_none_or(|cluster| cluster.owns(consumer))),
        is_degraded: Arc::new(move || ear.as_ref().is_some_and(|cluster| cluster.is_degraded())),
    });
    match hub.search.index() {
        Index::Embedded(index) => consumers.start(Indexer::new(hub.store.clone(), index.clone())),
        Index::Remote(index) => {
            consumers.start(RemoteIndexer::new(hub.store.clone(), hub.clock.clone(), index.clone()))
        }
    }
    let kafka = &hub.config.kafka;
    if !kafka.brokers.is_empty() {
        let topic = Topic {
            brokers: kafka.brokers.clone(),
            name: kafka.topic.clone(),
            partitions: kafka.partitions,
            replication: kafka.replication,
            buffer_mb: kafka.buffer_mb,
        };
        consumers.start(Relay::new(topic).context("cannot use kafka.brokers")?);
    }
    Ok(consumers)
}

/// Returns what a node is called.
fn node_name(config: &Config, address: SocketAddr) -> String {
    if !config.cluster.node.is_empty() {
        return config.cluster.node.clone();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}-{}", address.port())
}

/// How many connections may wait to be accepted: who finds this full tries again after a whole second. Linux takes
/// `net.core.somaxconn` (4,096) if that is less.
const BACKLOG: u32 = 4_096;

fn listen_on(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is started anew need not wait for the old one's connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Returns how this machine reaches a server that listens on `address`.
fn local_url(address: SocketAddr) -> String {
    let host = match address {
        SocketAddr::V4(at) if at.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], at.port())),
        SocketAddr::V6(at) if at.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], at.port())),
        at => at,
    };
    format!("http://{host}")
}
