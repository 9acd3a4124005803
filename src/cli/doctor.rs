//! `doctor`: looks for what would keep the server from running well, and says what to do.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Settings;
use crate::app::{self, Running};
use crate::client::Client;
use crate::storage::{Store, StoreError};

/// How a check ended.
enum Finding {
    Good(String),
    /// It works, but not as well as it could.
    Weak(String),
    Bad(String),
}

pub(super) async fn run(settings: Settings) -> Result<ExitCode> {
    let config = settings.load()?;
    let data = &config.server.data;
    let mut findings = vec![
        ("configuration", Finding::Good("every key is understood and in range".into())),
        ("data directory", data_directory(data)),
        ("fsync", fsync(data)),
        ("open files", open_files(config.server.max_connections)),
    ];
    findings.extend(database(&config).await.into_iter().map(|finding| ("database", finding)));
    findings.push(("server", server(data, config.server.listen).await));
    let mut bad = false;
    for (what, finding) in &findings {
        let (mark, colour, text) = match finding {
            Finding::Good(text) => ("ok  ", "32", text),
            Finding::Weak(text) => ("weak", "33", text),
            Finding::Bad(text) => ("BAD ", "31", text),
        };
        bad |= matches!(finding, Finding::Bad(_));
        if std::io::stdout().is_terminal() {
            println!("\x1b[{colour}m{mark}\x1b[0m {what:<15} {text}");
        } else {
            println!("{mark} {what:<15} {text}");
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn data_directory(data: &Path) -> Finding {
    match app::make_data_dir(data).and_then(|()| Ok(probe(data, 0)?)) {
        Ok(_) => Finding::Good(format!("{} can be written", data.display())),
        Err(error) => Finding::Bad(format!("{error:#}")),
    }
}

/// Writes and syncs a small file `times`; returns how long the median took.
fn probe(data: &Path, times: usize) -> std::io::Result<Duration> {
    let path = data.join("doctor.tmp");
    let mut file = std::fs::File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..times {
        file.write_all(&[0; 512])?;
        let start = Instant::now();
        file.sync_data()?;
        took.push(start.elapsed());
    }
    std::fs::remove_file(&path)?;
    took.sort_unstable();
    Ok(took.get(times / 2).copied().unwrap_or_default())
}

fn fsync(data: &Path) -> Finding {
    match probe(data, 51) {
        Ok(took) if took < Duration::from_micros(20) => {
            Finding::Weak(format!("{took:?} is faster than disks are: does this one lie about syncing?"))
        }
        Ok(took) if took < Duration::from_millis(20) => Finding::Good(format!("{took:?} each: a send takes about two")),
        Ok(took) => Finding::Weak(format!("{took:?} each: every send waits for two; a faster disk helps most")),
        Err(error) => Finding::Bad(error.to_string()),
    }
}

fn open_files(wanted: usize) -> Finding {
    let have = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(0);
    if have >= wanted as u64 {
        return Finding::Good(format!("{have} allowed"));
    }
    Finding::Weak(format!(
        "{have} allowed, server.max_connections is {wanted}: raise `ulimit -n` (LimitNOFILE= in systemd)"
    ))
}

async fn database(config: &crate::config::Config) -> Vec<Finding> {
    let store = match Store::open(&app::store_options(config)).await {
        Ok(store) => store,
        Err(error) => return vec![Finding::Bad(error.to_string())],
    };
    let looked = async { Ok::<_, StoreError>((store.version().await?, store.weaknesses().await?)) };
    match looked.await {
        Ok((version, weaknesses)) => {
            let good = Finding::Good(format!("{version}, durable"));
            std::iter::once(good).chain(weaknesses.into_iter().map(|weakness| Finding::Weak(weakness.advice))).collect()
        }
        Err(error) => vec![Finding::Bad(error.to_string())],
    }
}

async fn server(data: &Path, listen: std::net::SocketAddr) -> Finding {
    if let Some(running) = Running::read(data) {
        let health = async { Client::new(&running.url)?.get::<serde_json::Value>("/health").await };
        return match health.await {
            Ok(_) => Finding::Good(format!("runs at {} (process {})", running.url, running.pid)),
            Err(error) => Finding::Bad(format!("runs (process {}) and does not answer: {error}", running.pid)),
        };
    }
    if let Some(left) = Running::left_behind(data) {
        return Finding::Weak(format!("was killed: it left {} behind, which the next start removes", left.display()));
    }
    match std::net::TcpListener::bind(listen) {
        Ok(_) => Finding::Good(format!("does not run; {listen} is free")),
        Err(error) => Finding::Bad(format!("does not run, and {listen} cannot be had: {error}")),
    }
}
