//! The commands of the binary.
//!
//! Each file is one command or a family of them. Results go to standard output, everything else to standard error.
//! Exit codes: 0 done, 1 failed, 2 bad usage, 78 (EX_CONFIG of sysexits.h) a configuration that cannot be used.

mod admin;
mod chat;
mod cluster;
mod config;
mod dev;
mod dlq;
mod doctor;
mod door;
mod health;
pub mod load;
mod search;
mod seed;
mod serve;
mod store;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, Sources};

/// EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

#[derive(Parser)]
#[command(
    name = "colink",
    version,
    about = "A self-hosted realtime collaboration hub",
    after_help = "Examples:\n  colink serve                      a whole server on 127.0.0.1:8080, data in ./data\n  \
                  colink serve --demo               the same with a team that is already talking\n  \
                  colink chat --user ana            talk in the terminal\n  \
                  colink user add ana --admin       make an account\n\n\
                  Every option of config.toml can be set by --set section.key=value or COLINK_SECTION__KEY.",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::ServeArgs),
    /// Bring the database's schema up to date
    Migrate(Settings),
    /// Fill the database with a demo team; running it again changes nothing
    Seed(Settings),
    /// Talk in the terminal
    Chat(Box<chat::ChatArgs>),
    /// Measure a server under load
    Load(Box<load::LoadArgs>),
    /// Check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Manage accounts
    #[command(subcommand)]
    User(admin::UserCommand),
    /// Manage channels
    #[command(subcommand)]
    Channel(admin::ChannelCommand),
    /// Manage tokens
    #[command(subcommand)]
    Token(admin::TokenCommand),
    /// Look after a cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// See to events that could not be handed on
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Look after the search index
    #[command(subcommand)]
    Search(search::SearchCommand),
    /// Move the data
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// See a cluster on this machine
    #[command(subcommand)]
    Dev(dev::DevCommand),
    /// Look for what would keep the server from running well
    Doctor(Settings),
    /// Ask the server of a data directory whether it answers
    Health(health::HealthArgs),
}

/// Where the configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Settings {
    /// The configuration file [default: COLINK_CONFIG, or ./config.toml if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the server keeps its data [default: data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Set a key of the configuration, such as gateway.inflight=128
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// Puts the configuration together.
    fn load(&self) -> Result<Config, ConfigErrors> {
        let mut config = Config::load(&Sources::of_process(self.config.clone(), self.set.clone()))?;
        if let Some(data) = &self.data {
            config.server.data = data.clone();
        }
        config.validate()?;
        Ok(config)
    }
}

/// Runs the command that the process was started with.
#[expect(clippy::print_stderr, reason = "errors are what the command line says")]
pub fn main() -> ExitCode {
    crate::app::choose_crypto();
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<ConfigErrors>() {
            Some(errors) => {
                eprintln!("{errors}");
                ExitCode::from(EX_CONFIG)
            }
            None => {
                eprintln!("colink: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Chat(args) => block_on(1, chat::run(*args)),
        Command::Load(args) => block_on(2, load::run(*args)),
        Command::Migrate(settings) => block_on(1, admin::migrate(settings)),
        Command::Seed(settings) => block_on(1, seed::run(settings)),
        Command::Config(command) => config::run(command),
        Command::User(command) => block_on(1, admin::user(command)),
        Command::Channel(command) => block_on(1, admin::channel(command)),
        Command::Token(command) => block_on(1, admin::token(command)),
        Command::Cluster(command) => block_on(1, cluster::run(command)),
        Command::Dlq(command) => block_on(1, dlq::run(command)),
        Command::Search(command) => block_on(2, search::run(command)),
        Command::Store(command) => block_on(1, store::run(command)),
        Command::Dev(command) => block_on(2, dev::run(command)),
        Command::Doctor(settings) => block_on(1, doctor::run(settings)),
        Command::Health(args) => block_on(1, health::run(args)),
    }
}

/// Runs a command on a runtime of its own.
fn block_on<T: Into<Outcome>>(
    threads: usize,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let outcome = runtime.block_on(work)?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(outcome.into().0)
}

/// How a command ended.
struct Outcome(ExitCode);

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Outcome(ExitCode::SUCCESS)
    }
}

impl From<ExitCode> for Outcome {
    fn from(code: ExitCode) -> Self {
        Outcome(code)
    }
}
