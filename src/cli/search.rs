//! `search`: the index that messages are found by.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::Settings;
use super::door::Door;
use crate::app;
use crate::clock::Clock;
use crate::consumers::Consumer as _;
use crate::consumers::indexer::Indexer;
use crate::consumers::remote_indexer;
use crate::storage::search::Status;
use crate::storage::search::embedded::Embedded;
use crate::storage::search::index::Index;

/// How often it is looked how far a build is.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub(super) enum SearchCommand {
    /// Show how many messages the search index has
    #[command(after_help = "Examples:\n  colink search status\n  colink search status --json")]
    Status {
        #[command(flatten)]
        settings: Settings,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the search index anew from the database
    #[command(
        after_help = "Also while the server runs. An index of OpenSearch is searched on until the new one has everything, and \
                      is then put in its place. A node's own is filled again where it is: until it has everything, searches \
                      find less and say so (\"complete\": false).\n\nExamples:\n  colink search rebuild\n  \
                      colink search rebuild --data /var/lib/colink"
    )]
    Rebuild(Settings),
}

pub(super) async fn run(command: SearchCommand) -> Result<()> {
    match command {
        SearchCommand::Status { settings, json } => {
            let door = Door::open(settings.load()?).await?;
            let status = match door.search(false).await? {
                Some(status) => status,
                None => app::open_search(&door.config).await?.status(&door.store).await?,
            };
            if json {
                println!("{}", serde_json::to_string(&status)?);
            } else {
                let Status { kind, messages, stored, building } = status;
                let state = if building { ", which is being built" } else { "" };
                println!("{messages} of {stored} messages are in the {kind} index{state}");
            }
        }
        SearchCommand::Rebuild(settings) => {
            let door = Door::open(settings.load()?).await?;
            let bar = bar();
            if door.config.search.opensearch.expose().is_empty() && door.search(true).await?.is_some() {
                watch(&door, &bar).await?;
            } else {
                rebuild(&door, &bar).await?;
            }
            bar.finish_and_clear();
            eprintln!("the search index is built");
        }
    }
    Ok(())
}

/// Watches the server that runs build its own.
async fn watch(door: &Door, bar: &ProgressBar) -> Result<()> {
    loop {
        let status = door.search(false).await?.context("the server stopped: it goes on when it starts again")?;
        if !status.building {
            return Ok(());
        }
        show(bar, status.messages, status.stored);
        tokio::time::sleep(LOOK).await;
    }
}

/// Builds it from here.
async fn rebuild(door: &Door, bar: &ProgressBar) -> Result<()> {
    match app::open_search(&door.config).await?.index() {
        Index::Remote(index) => {
            let told = |messages, all| show(bar, messages, all);
            remote_indexer::rebuild(door.store.clone(), index, &Clock::default(), told).await?;
        }
        Index::Embedded(index) => {
            let stored = crate::storage::search::rows::count(&mut door.store.read().await?).await?;
            index.ask_for_rebuild();
            let shown = tokio::spawn(show_until_dropped(index.clone(), bar.clone(), stored));
            let built = Indexer::new(door.store.clone(), index.clone()).begin().await;
            shown.abort();
            built?;
        }
    }
    Ok(())
}

async fn show_until_dropped(index: Arc<Embedded>, bar: ProgressBar, stored: u64) {
    loop {
        show(&bar, index.built(), stored);
        tokio::time::sleep(LOOK).await;
    }
}

fn show(bar: &ProgressBar, messages: u64, all: u64) {
    bar.set_length(all.max(messages));
    bar.set_position(messages);
}

/// Returns a bar, which shows only on a terminal.
fn bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}").expect("the template is valid");
    ProgressBar::new(0).with_message("messages").with_style(style)
}
