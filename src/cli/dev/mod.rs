//! `dev cluster`: several nodes on this machine, as plain processes, to look at.
//!
//! | file | what it is |
//! |---|---|
//! | [`process`] | a process that is gone when this one is |
//! | [`services`] | a Postgres and a Redis of the cluster's own |
//! | [`nodes`] | the nodes |
//! | [`talk`] | a demo team that talks, and counts what it hears |
//! | [`watch`] | asks the nodes how they are |
//! | [`sight`], [`screen`] | what is seen, what happened, and how it looks |
//! | [`face`] | the terminal, or lines where there is none |

mod face;
mod nodes;
mod process;
mod screen;
mod services;
mod sight;
mod talk;
mod watch;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::face::{Face, Press};
use self::nodes::{Common, Node};
use self::services::Service;
use self::talk::Talk;
use self::watch::Watch;
use super::seed;

/// How often the nodes are asked how they are.
const LOOK: Duration = Duration::from_secs(1);
/// The most news that are kept.
const NEWS: usize = 1_000;

#[derive(Subcommand)]
pub(super) enum DevCommand {
    /// Run several nodes on this machine, as plain processes, with a live view of what they do
    Cluster(ClusterArgs),
}

const EXAMPLES: &str = "\
Examples:
  Three nodes on a Postgres and a Redis of their own, and a team that says five things a second:
    colink dev cluster --talk 5
  Five nodes that are still there the next time:
    colink dev cluster --nodes 5 --data-dir ~/cluster
  On servers that run already:
    colink dev cluster --postgres postgres://colink@localhost/dev --redis redis://localhost

In the view, 1 to 9 kill a node with SIGKILL, or start it again; r and p do the same to the
cluster's own Redis and Postgres; q stops all in order. Without a terminal, what happens is
printed line by line, and the same keys are read from the input, one a line.

The demo team is there (ana, bob, cleo, dan and eva, password `colink-demo`; ana is an
administrator), the nodes listen for this machine alone, and limits of rates are off. With its
own services it needs `initdb`, `postgres` and `redis-server`; as root, a user `postgres`, too.

More load than a team's talk, while it runs:
  TOKEN=$(colink token add --user ana --data DIR/hub-1)
  colink load rooms --rate 200 --url http://127.0.0.1:8081 --admin-token $TOKEN";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ClusterArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// The port of the first node; the others have those behind it. 0 takes any that are free
    #[arg(long, value_name = "PORT", default_value_t = 8081, value_parser = clap::value_parser!(u16).range(..=65_527))]
    port: u16,
    /// A Postgres to use rather than one of its own, as in database.url: the demo team is put there, so none that matters
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// A Redis to use rather than one of its own, as in cluster.redis
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Where everything is kept, logs among it, and found the next time [default: a new directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Have the demo team say so many things a second, up to 100
    #[arg(long, value_name = "RATE", value_parser = talk_rate)]
    talk: Option<f64>,
    /// Set a key of the nodes' configuration, such as gateway.inflight=128
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print line by line, also on a terminal
    #[arg(long)]
    plain: bool,
}

fn talk_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=100.0).contains(rate));
    rate.ok_or_else(|| "a number of 0.01 to 100".to_owned())
}

pub(super) async fn run(command: DevCommand) -> Result<ExitCode> {
    let DevCommand::Cluster(args) = command;
    let mut stop = Stop::new()?;
    let starting = Box::pin(Cluster::start(&args));
    let Some(started) = stop.unless_told(starting).await else { return Ok(ExitCode::FAILURE) };
    let mut cluster = started?;
    let watched = cluster.show(args.plain, &mut stop).await;
    cluster.talk = None;
    face::say("stopping");
    // Told once more, it is killed.
    stop.unless_told(cluster.stop()).await;
    watched.map(|()| ExitCode::SUCCESS)
}

/// The signals that end this.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> Result<Stop> {
        let of = |kind| signal(kind);
        Ok(Stop([of(SignalKind::terminate())?, of(SignalKind::interrupt())?, of(SignalKind::hangup())?]))
    }

    async fn told(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// Does some work to its end, unless it is told to stop before.
    async fn unless_told<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.told() => None,
        }
    }
}

/// All that runs. Dropping it kills all of it, the nodes first.
struct Cluster {
    talk: Option<Talk>,
    nodes: Vec<Node>,
    common: Common,
    redis: Service,
    postgres: Service,
    _dir: Option<Temporary>,
}

/// A directory that is removed when it is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed stays among the temporary files.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Makes the directory of everything. Postgres, which root runs as another user, has to come through.
fn make_dir(wanted: Option<&PathBuf>) -> Result<(PathBuf, Option<Temporary>)> {
    let new = || std::env::temp_dir().join(format!("colink-dev-{}", std::process::id()));
    let dir = std::path::absolute(wanted.cloned().unwrap_or_else(new))?;
    let mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
    // One that is there already is somebody else's, but for --data-dir.
    let made = DirBuilder::new().recursive(wanted.is_some()).mode(mode).create(&dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    let temporary = wanted.is_none().then(|| Temporary(dir.clone()));
    Ok((dir, temporary))
}

impl Cluster {
    async fn start(args: &ClusterArgs) -> Result<Cluster> {
        let (dir, temporary) = make_dir(args.data_dir.as_ref())?;
        face::say(&format!("everything is in {}", dir.display()));
        let postgres = match &args.postgres {
            Some(url) => Service::elsewhere(url.clone()),
            None => {
                face::say("starting Postgres");
                Service::postgres(&dir).await?
            }
        };
        let redis = match &args.redis {
            Some(url) => Service::elsewhere(url.clone()),
            None => Service::redis(&dir)?,
        };
        let (urls, settings) = ((postgres.url.clone(), redis.url.clone()), args.set.clone());
        let common = Common { dir, postgres: urls.0, redis: urls.1, settings };
        let mut cluster = Cluster { talk: None, nodes: Vec::new(), common, redis, postgres, _dir: temporary };
        for n in 1..=u16::from(args.nodes) {
            let port = if args.port == 0 { 0 } else { args.port + n - 1 };
            cluster.nodes.push(Node::new(usize::from(n), port, &cluster.common)?);
        }
        // The first makes the tables.
        for n in 0..cluster.nodes.len() {
            face::say(&format!("starting {}", cluster.nodes[n].name));
            cluster.nodes[n].start(&cluster.common)?;
            if n == 0 {
                cluster.nodes[n].ready().await?;
            }
        }
        for node in &mut cluster.nodes {
            node.ready().await?;
            face::say(&format!("{} is at {}", node.name, node.url));
        }
        seed::plant_through(cluster.nodes[0].config()).await.context("cannot make the demo team")?;
        face::say(&format!("a demo team is here: {}, password `{}`", seed::NAMES.join(", "), seed::PASSWORD));
        if let Some(rate) = args.talk {
            let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
            cluster.talk = Some(Talk::start(&urls, rate).await?);
        }
        Ok(cluster)
    }

    /// Shows what happens until it is told to stop.
    async fn show(&mut self, plain: bool, stop: &mut Stop) -> Result<()> {
        let (mut watch, began) = (Watch::default(), Instant::now());
        let mut sight = watch.look(self).await;
        let keys = self.keys();
        let mut face = Face::take(plain, keys)?;
        face.show(&sight, &[], 0)?;
        let mut news: Vec<(u64, String)> = Vec::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                press = face.press() => match press {
                    Press::Quit => return Ok(()),
                    press => self.take(press)?,
                },
                () = stop.told() => return Ok(()),
            }
            self.postgres.tend()?;
            self.redis.tend()?;
            let now = watch.look(self).await;
            let at = began.elapsed().as_secs();
            let fresh = now.news(&sight);
            let count = fresh.len();
            news.extend(fresh.into_iter().map(|what| (at, what)));
            news.drain(..news.len().saturating_sub(NEWS));
            sight = now;
            if !face.show(&sight, &news, count)? {
                return Ok(());
            }
        }
    }

    fn keys(&self) -> String {
        let mut keys = format!("q quit   1-{} kill -9 a node, or start it", self.nodes.len());
        for (service, key) in [(&self.redis, "   r Redis"), (&self.postgres, "   p Postgres")] {
            if service.is_own() {
                keys.push_str(key);
            }
        }
        keys
    }

    fn take(&mut self, press: Press) -> Result<()> {
        match press {
            Press::Node(n) => match self.nodes.get_mut(n) {
                Some(node) => node.toggle(&self.common),
                None => Ok(()),
            },
            Press::Redis => self.redis.toggle(),
            Press::Postgres => self.postgres.toggle(),
            Press::Quit => Ok(()),
        }
    }

    /// Stops all in order: the nodes, and then what they stand on.
    async fn stop(&mut self) {
        self.nodes.iter().for_each(Node::begin_to_stop);
        for node in &mut self.nodes {
            node.stop().await;
        }
        self.redis.stop().await;
        self.postgres.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    #[test]
    fn the_options_hold_together() {
        Cli::command().debug_assert();
        let args = Cli::parse_from(["cluster", "--talk", "5"]).cluster;
        assert_eq!((args.nodes, args.port, args.talk), (3, 8081, Some(5.0)));
        for wrong in [["--nodes", "0"], ["--nodes", "10"], ["--talk", "0"], ["--talk", "NaN"]] {
            assert!(Cli::try_parse_from([&["cluster"], &wrong[..]].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_directory_that_nobody_named_is_removed_and_one_that_was_is_kept() {
        let (dir, temporary) = make_dir(None).unwrap();
        assert!(dir.is_dir() && make_dir(None).is_err(), "somebody else may have put something there");
        drop(temporary);
        assert!(!dir.exists());
        let place = tempfile::tempdir().unwrap();
        let named = place.path().join("a/b");
        drop(make_dir(Some(&named)).unwrap());
        assert_eq!(make_dir(Some(&named)).unwrap().0, named);
    }
}
