//! One connection that sends and waits for the acknowledgement: mostly the disk, so the disk is measured beside it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use super::Look;
use crate::cli::load::bench::Bench;
use crate::cli::load::dial::{Joined, connect};
use crate::cli::load::frames::{Said, Scanner, TEXT, Template, Ticks, Walk, heartbeat};
use crate::cli::load::report::Row;
use crate::cli::load::stats::{Latency, histogram};

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let room = bench.room(0..1).await?;
    let joined = connect(bench.dial(0, room)).await?;
    let (template, ticks) = (bench.template(room), bench.ticks);
    let dir = bench.server.data().map(Path::to_owned).or_else(|| bench.args.dir.clone());
    let dir = dir.unwrap_or_else(std::env::temp_dir);
    let time = Duration::from_secs_f64(bench.args.duration);

    let before = Look::before(bench).await?;
    let acks = tokio::task::spawn_blocking(move || send_and_wait(joined, template, ticks, time)).await??;
    let after = Look::after(bench).await?;
    let syncs = tokio::task::spawn_blocking(move || sync(&dir, time.min(Duration::from_secs(3)))).await??;

    let latency = Latency::of(&acks);
    let disk = Latency::of(&syncs);
    let mut row = Row {
        scenario: "ack".to_owned(),
        load: "one at a time".to_owned(),
        messages_per_s: Some(acks.len() as f64 / after.seconds_since(&before)),
        cpu_ms_per_message: after.cpu_since(&before).map(|cpu| cpu / acks.len().max(1) as f64 * 1_000.0),
        ack: latency.clone(),
        ..Row::default()
    };
    if let (Some(latency), Some(disk)) = (latency, disk) {
        row.figure("fdatasync_p50_ms", disk.p50);
        row.figure("times_fdatasync", latency.p50 / disk.p50);
        row.note =
            format!("fdatasync p50 {:.3} ms: an acknowledgement is {:.1} of them", disk.p50, latency.p50 / disk.p50);
    }
    Ok(vec![row])
}

fn send_and_wait(joined: Joined, mut template: Template, ticks: Ticks, time: Duration) -> Result<Histogram<u64>> {
    let Joined { mut stream, mut carry, place, .. } = joined;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut latencies = histogram();
    let mut scanner = Scanner::default();
    let mut buffer = vec![0; 65_536];
    let (started, mut s, mut acked, mut n) = (Instant::now(), place.s, place.s, 0);
    while started.elapsed() < time {
        let sent = ticks.now();
        stream.write_all(template.fill(sent, n))?;
        n += 1;
        let mut waiting = true;
        while waiting {
            let read = stream.read(&mut buffer).context("no acknowledgement came")?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            carry.extend_from_slice(&buffer[..read]);
            let mut walk = Walk::new(&carry);
            for (_, payload) in walk.by_ref().filter(|(opcode, _)| *opcode == TEXT) {
                match scanner.read(payload) {
                    Said::Reply { intended, ok: true } if intended == sent => waiting = false,
                    Said::Reply { ok: false, .. } => bail!("refused: {}", String::from_utf8_lossy(payload)),
                    Said::Event { s: number, .. } | Said::Aside { s: number } => s = number,
                    _ => {}
                }
            }
            let consumed = walk.consumed();
            carry.drain(..consumed);
        }
        latencies.saturating_record(ticks.now() - sent);
        if s - acked >= 256 {
            acked = s;
            stream.write_all(&heartbeat(s))?;
        }
    }
    Ok(latencies)
}

/// Measures what the disk takes to keep a page for good.
fn sync(dir: &Path, time: Duration) -> Result<Histogram<u64>> {
    let path = dir.join(format!("fdatasync-{}", std::process::id()));
    let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut latencies = histogram();
    let started = Instant::now();
    while started.elapsed() < time {
        file.write_all(&[0; 4_096])?;
        let before = Instant::now();
        file.sync_data()?;
        latencies.saturating_record(u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    std::fs::remove_file(&path)?;
    Ok(latencies)
}
