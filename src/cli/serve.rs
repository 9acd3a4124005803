//! `serve`: runs the server until it is told to stop.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Settings, seed};
use crate::app::App;
use crate::config::{Config, LogFormat};
use crate::domain::user::{Role, User};
use crate::http::auth::hash_password;
use crate::storage::accounts::{Account, SYSTEM};
use crate::storage::tokens::Secret;
use crate::storage::users;
use crate::storage::writer::Work;
use crate::telemetry;

#[derive(Args)]
#[command(after_help = "Examples:\n  colink serve\n  colink serve --listen 0.0.0.0:8080 --data /var/lib/colink\n  \
                        colink serve --set database.url=postgres://colink@localhost/colink")]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: Settings,
    /// Where to listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Start with a demo team that is already talking
    #[arg(long)]
    demo: bool,
}

pub(super) fn run(args: ServeArgs) -> Result<ExitCode> {
    let mut config = args.settings.load()?;
    if let Some(listen) = args.listen {
        config.server.listen = listen;
    }
    let format = match config.log.format {
        LogFormat::Auto => None,
        LogFormat::Text => Some(telemetry::Format::Text),
        LogFormat::Json => Some(telemetry::Format::Json),
    };
    telemetry::start_logging(&config.log.level, format);
    // One connection is one file descriptor: as many as the system gives.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.server.threads > 0 {
        builder.worker_threads(config.server.threads);
    }
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(serve(config, args.demo));
    // A thread that looks up a name, or hashes a password, is not waited for.
    runtime.shutdown_background();
    outcome
}

/// The signals that tell a server to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one and returns its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn serve(config: Config, demo: bool) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let app = tokio::select! {
        app = App::start(config) => app?,
        signal = signals.next() => {
            tracing::info!(signal, "stopping before the start is over");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let serving = async {
        if demo {
            seed::fill(&app).await.context("cannot make the demo team")?;
        }
        welcome(&app, demo).await?;
        app.hub.failed.cancelled().await;
        anyhow::Ok(())
    };
    let told = tokio::select! {
        failed = serving => Err(failed),
        signal = signals.next() => Ok(signal),
    };
    let code = match told {
        Ok(signal) => {
            tracing::info!(signal, "stopping: sessions are asked to reconnect and what waits is written");
            Ok(ExitCode::SUCCESS)
        }
        Err(Ok(())) => {
            tracing::error!("stopping: something failed that does not come back, so the server has to be started anew");
            Ok(ExitCode::FAILURE)
        }
        // It is said by whoever ends with it.
        Err(Err(error)) => Err(error),
    };
    tokio::select! {
        () = app.stop() => code,
        _ = signals.next() => Ok(ExitCode::FAILURE),
    }
}

/// Says where the server is and how to sign in.
async fn welcome(app: &App, demo: bool) -> Result<()> {
    let url = app.hub.config.server.url();
    println!("Colink {} listens on {url}", env!("CARGO_PKG_VERSION"));
    println!("  database   {}", app.hub.store.version().await?);
    println!("  data       {}", app.hub.config.server.data.display());
    println!("  reference  {url}/v1/docs");
    let mut db = app.hub.store.read().await?;
    let accounts = users::count(&mut db).await?;
    drop(db);
    if demo {
        let chat = typed("chat", &app.hub.config);
        println!("\nA demo team is here: {}, password `{}`.", seed::NAMES.join(", "), seed::PASSWORD);
        println!("Talk from two terminals:\n  {chat} --user ana\n  {chat} --user bob");
    } else if accounts == 0 {
        first_admin(app).await?;
    }
    Ok(())
}

/// Returns a command for this server, as it can be typed where the server was started.
fn typed(words: &str, config: &Config) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "colink".to_owned());
    let data = &config.server.data;
    if *data == Config::default().server.data {
        return format!("{program} {words}");
    }
    format!("{program} {words} --data {}", data.display())
}

/// Makes the first administrator where a person sees the password; it is printed once and kept nowhere.
async fn first_admin(app: &App) -> Result<()> {
    let typed = |words: &str| typed(words, &app.hub.config);
    if !std::io::stdout().is_terminal() {
        println!("\nThere is no account yet: make one with `{}`.", typed("user add NAME --admin --password-stdin"));
        return Ok(());
    }
    let password = Secret::generate("").0[..16].to_owned();
    let hash = hash_password(&app.hub.config.auth, &password)?;
    let add = Account::Add {
        name: "admin".into(),
        display_name: None,
        role: Role::Admin,
        password_hash: Some(hash),
        first: true,
    };
    let reply = app.hub.writer.write(SYSTEM, Work::Account(add), None).await?;
    let admin: User = serde_json::from_str(&reply.json)?;
    println!("\nThe first administrator was made. This is shown once:");
    println!("  name       {}\n  password   {password}", admin.name);
    println!("Sign in:     {} --user {}", typed("chat"), admin.name);
    println!("Others:      {}\n          or {}", typed("user add NAME --password-stdin"), typed("user invite"));
    Ok(())
}
