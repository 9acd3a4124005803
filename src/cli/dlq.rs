//! `dlq`: events that a consumer of the log gave up on, its dead letters.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

use anyhow::{Result, bail};
use clap::Subcommand;

use super::Settings;
use super::door::Door;
use crate::domain::id::StreamId;
use crate::storage::accounts::Account;
use crate::storage::consumers::dead_letters;

/// The most that are shown.
const SHOWN: i64 = 1_000;

#[derive(Subcommand)]
pub(super) enum DlqCommand {
    /// Show which events were put aside, by whom and why
    #[command(after_help = "Examples:\n  colink dlq list\n  colink dlq list --consumer relay --json")]
    List {
        #[command(flatten)]
        settings: Settings,
        /// Of this consumer alone, such as relay
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Have events handed on once more
    #[command(
        after_help = "The server that runs the consumer does it within ten seconds. What fails again is listed again.\n\n\
                            Examples:\n  colink dlq redrive --all\n  colink dlq redrive --all --consumer relay\n  \
                            colink dlq redrive 01931b66-0b1a-7b0e-8c5b-7b0f3f1d2c11 42"
    )]
    Redrive {
        /// The event's stream
        #[arg(requires = "seq", required_unless_present = "all")]
        stream: Option<uuid::Uuid>,
        /// The event's number there
        seq: Option<i64>,
        /// All of them
        #[arg(long, conflicts_with = "stream")]
        all: bool,
        /// To this consumer alone
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
}

pub(super) async fn run(command: DlqCommand) -> Result<()> {
    match command {
        DlqCommand::List { settings, consumer, json } => {
            let door = Door::open(settings.load()?).await?;
            let mut db = door.store.read().await?;
            let dead = dead_letters(&mut db, consumer.as_deref(), SHOWN).await?;
            if json {
                println!("{}", serde_json::to_string(&dead)?);
                return Ok(());
            }
            if dead.is_empty() {
                eprintln!("no event was put aside");
                return Ok(());
            }
            println!("{:<10}  {:<36}  {:>8}  {:>5}  {:<27}  why", "consumer", "stream", "seq", "tries", "at");
            for letter in &dead {
                let again = if letter.again { " (about to be tried again)" } else { "" };
                println!(
                    "{:<10}  {:<36}  {:>8}  {:>5}  {:<27}  {}{again}",
                    letter.consumer,
                    letter.stream_id.to_string(),
                    letter.seq,
                    letter.tries,
                    letter.at.to_string(),
                    letter.reason
                );
            }
            if dead.len() as i64 == SHOWN {
                eprintln!("these are the oldest {SHOWN}; there may be more");
            }
        }
        DlqCommand::Redrive { stream, seq, all: _, consumer, settings } => {
            let door = Door::open(settings.load()?).await?;
            let event = stream.map(StreamId).zip(seq);
            let redriven: u64 = door.account(Account::Redrive { consumer, event }).await?;
            if redriven == 0 && event.is_some() {
                bail!("this event was not put aside: `colink dlq list` shows those that were");
            }
            let events = if redriven == 1 { "event is" } else { "events are" };
            println!("{redriven} {events} tried again by the server that runs the consumer");
        }
    }
    Ok(())
}
