//! `cluster`: how the nodes that share a database stand.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::io::IsTerminal as _;

use anyhow::Result;
use clap::Subcommand;

use super::Settings;
use super::door::Door;
use crate::actors::cluster::status::{Standing, Status};

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Show the nodes: who is there, what each owns, and what the cluster had to mend
    #[command(
        after_help = "Asks the server that runs on the data directory.\n\nExamples:\n  colink cluster status\n  \
                            colink cluster status --data /var/lib/colink --json"
    )]
    Status {
        #[command(flatten)]
        settings: Settings,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: ClusterCommand) -> Result<()> {
    let ClusterCommand::Status { settings, json } = command;
    let status = Door::cluster_status(&settings.load()?).await?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

fn print(status: &Status) {
    let kind = if status.clustered { "a node of a cluster" } else { "a server by itself" };
    let degraded = if status.degraded { ", degraded: what others write is heard a little later" } else { "" };
    println!("{} is {kind}{degraded}", status.node);
    let width = status.nodes.iter().map(|node| node.name.len()).max().unwrap_or(0).max(4);
    let colour = std::io::stdout().is_terminal();
    println!(
        "\n{:<width$}  {:<11}  {:>8}  {:>8}  {:>6}  {:>10}  {:>6}  {:>9}  {:>6}  {:>8}",
        "node", "state", "sessions", "channels", "epoch", "taken over", "fenced", "forwarded", "beside", "repaired"
    );
    for node in &status.nodes {
        let (state, code) = match node.state {
            Standing::This => ("this", "32"),
            Standing::Up => ("up", "32"),
            Standing::Unreachable => ("unreachable", "33"),
            Standing::Gone => ("gone", "31"),
        };
        let state = format!("{state:<11}");
        let state = if colour { format!("\x1b[{code}m{state}\x1b[0m") } else { state };
        let report = &node.report;
        println!(
            "{:<width$}  {state}  {:>8}  {:>8}  {:>6}  {:>10}  {:>6}  {:>9}  {:>6}  {:>8}",
            node.name,
            report.sessions,
            node.owned_channels,
            node.newest_epoch,
            report.taken_over,
            report.fenced,
            report.forwarded,
            report.beside,
            report.repaired,
        );
    }
    for weakness in &status.database {
        println!("\nthe database: {}", weakness.advice);
    }
}
