//! `health`: asks the server of a data directory whether it answers, for whoever looks after its process. An image without
//! a shell has nothing else to ask with.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::Settings;
use crate::app::Running;
use crate::client::Client;

/// A server that takes longer is not well.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    settings: Settings,
    /// Ask for more: whether the database answers, and the server is not stopping
    #[arg(long)]
    ready: bool,
}

pub(super) async fn run(args: HealthArgs) -> Result<()> {
    let data = args.settings.load()?.server.data;
    let Some(running) = Running::read(&data) else { bail!("no server runs on {}", data.display()) };
    let path = if args.ready { "/ready" } else { "/health" };
    let client = Client::new(&running.url)?.with_timeout(PATIENCE);
    let answer = client.text(path).await.with_context(|| format!("{}{path}", running.url))?;
    println!("{answer}");
    Ok(())
}
