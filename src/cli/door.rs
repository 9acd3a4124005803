//! How the command line reaches the data: through the server that runs on it, or directly if none does.
//!
//! A running server must hear of every change, or its readers would not; so it is asked to make it. The lock on the data
//! directory tells which it is.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::actors::cluster::status::Status as ClusterStatus;
use crate::app::{self, Holder, Running};
use crate::client::Client;
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::command::{Command, Principal, Spec};
use crate::domain::id::{NodeId, TokenId};
use crate::domain::user::User;
use crate::http::operator::Order;
use crate::storage::accounts::{Account, SYSTEM};
use crate::storage::lock::Lock;
use crate::storage::search::Status;
use crate::storage::writer::{Limits, Work, Writer};
use crate::storage::{Options, Store, users};

/// The way to the data.
pub(super) struct Door {
    /// For reads; both ways read the store.
    pub(super) store: Store,
    /// The configuration.
    pub(super) config: Config,
    way: Way,
}

enum Way {
    Running(Client),
    Stopped { writer: Writer, _locks: (File, Lock) },
}

impl Door {
    /// Opens the way to the data that `config` names.
    pub(super) async fn open(mut config: Config) -> Result<Door> {
        let data = &config.server.data;
        let lock = match app::hold_data_dir(data, PATIENCE).await? {
            Holder::Us(lock) => lock,
            Holder::Server(running) => {
                let client = Client::new(&running.url)?.with_token(&running.operator_token);
                (config.database.url, config.database.pooled) = (running.database.into(), running.pooled);
                return Ok(Door { store: app::open_store(&config).await?, config, way: Way::Running(client) });
            }
            Holder::Other => bail!(
                "a server is starting or stopping on {}, or another command has it: try again in a moment",
                data.display()
            ),
        };
        let Some(database_lock) =
            Lock::take(&app::store_options(&config), !config.cluster.redis.expose().is_empty()).await?
        else {
            bail!(
                "a server with another data directory runs on this database and has to hear of it: name its directory \
                 by --data"
            );
        };
        let store = app::open_store(&config).await?;
        let Options { timeout: patience, statement, .. } = app::store_options(&config);
        let limits = Limits { queue: config.database.queue, batch: config.database.batch, patience, statement };
        let nobody_listens = Arc::new(|_| ());
        let clock = Clock::default();
        let node = NodeId::new(clock.now());
        let (writer, _) = Writer::start(store.clone(), clock, node, limits, nobody_listens, CancellationToken::new())?;
        let way = Way::Stopped { writer, _locks: (lock, database_lock) };
        Ok(Door { store, config, way })
    }

    /// Asks the server that runs on the data directory how its cluster is.
    pub(super) async fn cluster_status(config: &Config) -> Result<ClusterStatus> {
        let data = &config.server.data;
        let Some(running) = Running::read(data) else {
            bail!("no server runs on {}: start it, or name a running one's directory by --data", data.display());
        };
        let client = Client::new(&running.url)?.with_token(&running.operator_token);
        serde_json::from_str(&order(&client, &Order::Cluster).await?).context("the answer is not understood")
    }

    /// Asks the server that runs how its search index is, and to make it anew; nothing, if none runs.
    pub(super) async fn search(&self, rebuild: bool) -> Result<Option<Status>> {
        let Way::Running(client) = &self.way else { return Ok(None) };
        let answer = order(client, &Order::Search { rebuild }).await?;
        Ok(Some(serde_json::from_str(&answer).context("the answer is not understood")?))
    }

    /// Has account work done.
    pub(super) async fn account<T: DeserializeOwned>(&self, account: Account) -> Result<T> {
        let json = match &self.way {
            Way::Stopped { writer, .. } => writer.write(SYSTEM, Work::Account(account), None).await?.json,
            Way::Running(client) => order(client, &Order::Account(account)).await?,
        };
        serde_json::from_str(&json).context("the answer is not understood")
    }

    /// Has a command carried out in a user's name.
    pub(super) async fn command<C: Spec, T: DeserializeOwned>(
        &self,
        user: &User,
        command: C,
        key: Option<String>,
    ) -> Result<T> {
        self.carry_out(Some(user), command.into(), key).await
    }

    /// Has a command carried out in the operator's own name.
    pub(super) async fn operate<C: Spec, T: DeserializeOwned>(&self, command: C) -> Result<T> {
        self.carry_out(None, command.into(), None).await
    }

    async fn carry_out<T: DeserializeOwned>(
        &self,
        user: Option<&User>,
        command: Command,
        key: Option<String>,
    ) -> Result<T> {
        command.validate()?;
        let json = match &self.way {
            Way::Stopped { writer, .. } => {
                let of =
                    |user: &User| Principal { user_id: user.id, role: user.role, token_id: TokenId(uuid::Uuid::nil()) };
                writer.write(user.map_or(SYSTEM, of), Work::Command(command), key).await?.json
            }
            Way::Running(client) => {
                let d = serde_json::value::RawValue::from_string(command.body())?;
                let user = user.map(|user| user.id);
                order(client, &Order::Command { user, name: command.name().to_owned(), d, key }).await?
            }
        };
        serde_json::from_str(&json).context("the answer is not understood")
    }

    /// Returns the user with a name.
    pub(super) async fn user(&self, name: &str) -> Result<User> {
        let mut db = self.store.read().await?;
        let found = users::by_name(&mut db, &name.to_lowercase()).await?;
        found.with_context(|| format!("there is no user `{name}`: `colink user list` shows who there is"))
    }

    /// Returns an active administrator, the first one made.
    pub(super) async fn an_admin(&self) -> Result<User> {
        let mut db = self.store.read().await?;
        match users::first_admin(&mut db).await? {
            Some(user) => Ok(user),
            None => bail!("there is no administrator yet: make one with `colink user add NAME --admin`"),
        }
    }
}

/// How long a command waits for another one, or for a server that starts or stops.
const PATIENCE: Duration = Duration::from_secs(30);

async fn order(client: &Client, order: &Order) -> Result<String> {
    let answer: serde_json::Value = client.post("/operator", order).await?;
    Ok(answer.to_string())
}
