//! `store copy`: takes a whole hub from one database to another.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Settings;
use crate::app::{self, Running};
use crate::storage::copy::{self, Phase, Report, Step};
use crate::storage::partition;

#[derive(Subcommand)]
pub(super) enum StoreCommand {
    /// Copy a hub from one database to another, SQLite or Postgres, also while it is served
    Copy(Box<CopyArgs>),
    /// Make an empty Postgres database ready for hundreds of gigabytes: messages and events in partitions
    Partition(Box<PartitionArgs>),
}

#[derive(Args)]
#[command(after_help = "\
Then copy a hub into it: colink store copy, or Postgres' own logical replication. docs/OPERATIONS.md tells of both.")]
pub(super) struct PartitionArgs {
    /// The empty database: postgres://USER@HOST/DATABASE [default: COLINK_COPY_TO]
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// How many partitions each of the two tables has: some tens of gigabytes each are good
    #[arg(long, default_value_t = 32, value_name = "N")]
    partitions: u32,
    /// What was meant for an option: it may be a URL with a password, so it is not repeated in an error.
    #[arg(hide = true)]
    astray: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  colink store copy --from sqlite:///var/lib/colink/colink.db --to postgres://colink@db/colink
  COLINK_COPY_TO_FILE=/run/secrets/new-url colink store copy --data /var/lib/colink
  colink store copy --from postgres://colink@db/colink --to sqlite:///srv/colink.db
  colink store copy --verify --from … --to …         only compare

A first run may take place while a server runs on the source: it copies the hub as it is at that moment. No server \
starts on such a copy yet. Stop the server on the source and run the same command again: it brings over what has \
changed and completes the copy. After a run that was cut short the same command goes on, too.

Other users of this machine can see the command line, so keep passwords out of it. COLINK_COPY_FROM and COLINK_COPY_TO \
name the databases, too; COLINK_COPY_FROM_FILE and COLINK_COPY_TO_FILE name files with the URLs in them; PGPASSFILE (by \
default ~/.pgpass) and PGPASSWORD give the password to a URL without one.")]
pub(super) struct CopyArgs {
    /// What to copy: sqlite://PATH or postgres://USER@HOST/DATABASE [default: COLINK_COPY_FROM, or the configured database]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Where to [default: COLINK_COPY_TO, or the configured database if --from names another]
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// Only compare the two, and write nothing
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    settings: Settings,
    /// What was meant for an option: it may be a URL with a password, so it is not repeated in an error.
    #[arg(hide = true)]
    astray: Vec<String>,
}

pub(super) async fn run(command: StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Copy(args) => copy(*args).await,
        StoreCommand::Partition(args) => partition(*args).await,
    }
}

async fn partition(args: PartitionArgs) -> Result<()> {
    if !args.astray.is_empty() {
        bail!("name the database by --to");
    }
    let Some(to) = given(args.to.as_ref(), "COLINK_COPY_TO")? else {
        bail!("name the database by --to, COLINK_COPY_TO or COLINK_COPY_TO_FILE");
    };
    partition::partition(&to, args.partitions).await?;
    println!("messages and events have partitions: copy a hub into this database, by `colink store copy` or otherwise");
    Ok(())
}

async fn copy(args: CopyArgs) -> Result<()> {
    if !args.astray.is_empty() {
        bail!("name the databases by --from and --to");
    }
    let (from, to) = ends(&args)?;
    let progress = Progress::new();
    let watch = |step| progress.hear(step);
    let started = Instant::now();
    let copied = match args.verify {
        true => Box::pin(copy::verify(&from, &to, &watch)).await,
        false => Box::pin(copy::copy(&from, &to, &watch)).await,
    };
    progress.bar.finish_and_clear();
    let report = copied?;
    tell(&report, args.verify, started.elapsed())?;
    Ok(())
}

/// Returns the URLs of source and target. One of them may be the configuration's.
fn ends(args: &CopyArgs) -> Result<(String, String)> {
    let from = given(args.from.as_ref(), "COLINK_COPY_FROM")?;
    let to = given(args.to.as_ref(), "COLINK_COPY_TO")?;
    let configured = || -> Result<String> {
        let mut config = args.settings.load()?;
        // A server may have its database from elsewhere than this command has its own.
        if let Some(running) = Running::read(&config.server.data) {
            (config.database.url, config.database.pooled) = (running.database.into(), running.pooled);
        }
        if config.database.pooled {
            bail!("a copy takes one long transaction, and no pooler's: name the database itself by --from or --to");
        }
        Ok(app::store_options(&config).url)
    };
    match (from, to) {
        (Some(from), Some(to)) => Ok((from, to)),
        (Some(from), None) => Ok((from, configured()?)),
        (None, Some(to)) => Ok((configured()?, to)),
        (None, None) => bail!("name the target by --to, COLINK_COPY_TO or COLINK_COPY_TO_FILE"),
    }
}

/// Returns what an option, a variable, or the file that another variable names has for a URL.
fn given(option: Option<&String>, variable: &str) -> Result<Option<String>> {
    let of = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let by_file = format!("{variable}_FILE");
    match (option.cloned().or_else(|| of(variable)), of(&by_file)) {
        (Some(url), _) => Ok(Some(url)),
        (None, Some(file)) => {
            let url = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}, of {by_file}"))?;
            Ok(Some(url.trim().to_owned()))
        }
        (None, None) => Ok(None),
    }
}

/// Shows how far it is: a bar on a terminal, elsewhere a line a table.
struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    fn new() -> Progress {
        let bar = ProgressBar::new(0).with_message("opening the databases");
        let style = ProgressStyle::with_template("{msg:43} {bar:20} {percent:>3} %, {human_pos} rows, {eta} left");
        bar.set_style(style.expect("the template is right"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar, lines: !std::io::stderr().is_terminal() }
    }

    fn hear(&self, step: Step) {
        match step {
            Step::Planned(rows) => self.bar.set_length(rows),
            Step::Read(rows) => self.bar.inc(rows),
            Step::Begun(phase, table) => {
                let doing = match phase {
                    Phase::Clear => "looking for what is gone from",
                    Phase::Copy => "copying",
                    Phase::Compare => "comparing",
                };
                if self.lines {
                    eprintln!("{doing} {table}");
                }
                self.bar.set_message(format!("{doing} {table}"));
            }
        }
    }
}

/// Tells what was found and done, and what comes next.
fn tell(report: &Report, verified: bool, took: Duration) -> Result<()> {
    let [from, to] = &report.places;
    println!("from  {from}\nto    {to}\n");
    println!("{:16} {:>12} {:>12}  SHA-256 of the rows", "table", "source", "target");
    for found in &report.tables {
        let (source, target) = (&found.source, &found.target);
        let same = if source == target { "the same" } else { "NOT THE SAME" };
        println!("{:16} {:>12} {:>12}  {} {same}", found.table, source.rows, target.rows, &source.hash[..16]);
    }
    let rows: u64 = report.tables.iter().map(|found| found.source.rows).sum();
    let (seconds, rate) = (took.as_secs_f64(), rows as f64 / took.as_secs_f64().max(0.001));
    println!("\n{rows} rows in {seconds:.1} s ({rate:.0} rows/s)");
    if !verified {
        println!("{} were written, {} were removed, all others were there", report.written, report.removed);
    }
    if let Some((table, row)) = report.difference() {
        let then = if verified { "" } else { ", and no server starts on it" };
        bail!("the target is not the same as the source{then}: the first row that differs is in {table}, {row}");
    }
    if verified {
        println!("source and target are the same");
    } else if report.served {
        println!(
            "\nA server ran on the source, or may have: what it wrote since this run began is not in the copy, and no \
             server starts on the copy yet.\nStop the server, then run the same command again: it brings over what has \
             changed."
        );
    } else {
        println!(
            "\nThe copy is complete: no server ran on the source.\nStart the server with the target as its \
             `database.url`, and do not start one on the source again."
        );
    }
    Ok(())
}
