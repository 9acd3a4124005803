//! `colink load`: measures a server and fails if it loses, repeats or reorders a message.
//!
//! In reading order: [`args`] (what to measure), [`server`] (starts one and reads its cost through [`procfs`]), [`mod@bench`]
//! (users and rooms), [`dial`] (opens connections), [`fleet`] (receives), [`sender`] (sends on a schedule), [`scenario`]
//! (one file each), [`floor`] (the same bytes by plain writes), [`report`].
//!
//! The generator shares the machine with the server, so it is frugal: no client library on the hot path, one thread that
//! receives, one system call for whatever waits, numbers found by their bytes. The load is open: each message has a time
//! at which it is meant to be sent, whatever became of the ones before, and its latency counts from then.

mod args;
mod bench;
mod dial;
mod fleet;
mod floor;
mod frames;
mod procfs;
mod prometheus;
mod report;
mod scenario;
mod sender;
mod server;
mod stats;

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;

use anyhow::{Context, Result, bail};

pub use args::{LoadArgs, Scenario};
pub(super) use server::LIMITS;

use bench::Bench;
use report::Report;

/// Runs the chosen scenarios and reports; an error if a message was lost, came twice or came out of order.
pub async fn run(args: LoadArgs) -> Result<()> {
    // Each connection is an open file, here and in the server that inherits the limit.
    rlimit::increase_nofile_limit(u64::MAX).context("cannot raise the limit of open files")?;
    let mut bench = Bench::open(args).await?;
    let mut report = Report::new(&bench);
    let runs = bench.args.nodes.clone();
    for scenario in bench.args.chosen() {
        for nodes in &runs {
            bench.server.restart_as(usize::from(*nodes)).await?;
            let mut rows = scenario::run(&mut bench, scenario).await?;
            if runs != [1] {
                rows.iter_mut()
                    .for_each(|row| row.scenario += &format!(" on {nodes} node{}", if *nodes == 1 { "" } else { "s" }));
            }
            report.rows.extend(rows);
        }
    }

    let json_on_stdout = bench.args.json.as_deref() == Some(Path::new("-"));
    if json_on_stdout {
        report.table(&mut stderr().lock(), stderr().is_terminal())?;
        writeln!(stdout(), "{}", report.json()?)?;
    } else {
        report.table(&mut stdout().lock(), stdout().is_terminal())?;
    }
    if let Some(file) = bench.args.json.as_deref().filter(|_| !json_on_stdout) {
        std::fs::write(file, report.json()?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &bench.args.html {
        std::fs::write(file, report.html()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let faults = report.faults();
    if !faults.is_empty() {
        bail!("the server did not keep its promise: {}", faults.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::stub::Stub;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    /// A second of everything, as small as it gets, against the stub.
    async fn load(stub: &Stub, more: &[&str]) -> Result<serde_json::Value> {
        drop(stub.client("root").await);
        let file = std::env::temp_dir().join(format!("load-test-{}.json", getrandom::u64().unwrap()));
        let (token, json) = (Stub::token("root"), file.display().to_string());
        let mut words = vec!["load", "--url", &stub.url, "--admin-token", &token, "--json", &json];
        words.extend("--duration 0.3 --warm-up 0.1 --members 5 --senders 2 --rooms 2 --room-members 3".split(' '));
        words.extend("--connections 8 --messages 60 --readers 2 --clients 6 --missed 4 --corpus 50 --corpus-rooms 4 --seen-rooms 2".split(' '));
        words.extend(more);
        let outcome = run(Cli::parse_from(words).load).await;
        let report = std::fs::read(&file).context("no report").and_then(|text| Ok(serde_json::from_slice(&text)?));
        drop(std::fs::remove_file(&file));
        outcome.and(report)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_scenario_runs_without_a_fault_on_a_server_that_keeps_its_promise() {
        let stub = Stub::start().await;
        let html = std::env::temp_dir().join(format!("load-test-{}.html", getrandom::u64().unwrap()));
        let report = load(&stub, &["--html", &html.display().to_string(), "--rate", "200"]).await.unwrap();
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 16);
        for row in rows {
            assert_eq!(row["lost"].as_u64().unwrap() + row["duplicates"].as_u64().unwrap(), 0, "{row}");
        }
        let fanout = rows.iter().find(|row| row["scenario"].as_str().unwrap().starts_with("fanout")).unwrap();
        assert!(fanout["receive"]["count"].as_u64().unwrap() > 50, "{fanout}");
        assert!(fanout["times_floor"].is_null(), "the stub's processor time is not known");
        assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
        drop(std::fs::remove_file(&html));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lost_delivery_fails_the_run() {
        let stub = Stub::start().await;
        stub.lose_every(50);
        let error = load(&stub, &["fanout", "--rate", "200"]).await.unwrap_err().to_string();
        assert!(error.contains("lost"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn saturation_finds_a_rate_and_halves_it() {
        let stub = Stub::start().await;
        let report = load(&stub, &["fanout", "--saturate", "--window", "4,8"]).await.unwrap();
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        let rate = |row: usize| rows[row]["messages_per_s"].as_f64().unwrap();
        assert!(rate(1) < rate(0), "{} {}", rate(0), rate(1));
    }
}
