//! The newest page of a long channel, over keep-alive connections that each wait for their answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Look;
use crate::cli::load::bench::Bench;
use crate::cli::load::fleet::Fleet;
use crate::cli::load::report::Row;
use crate::cli::load::sender::{Pace, Pen, Sending};
use crate::cli::load::stats::{Latency, histogram};
use crate::domain::id::ChannelId;

/// Messages on a page.
const PAGE: u32 = 50;

pub(super) async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let room = bench.room(0..2).await?;
    fill(bench, room, bench.args.messages).await?;

    let hub = bench.server.node(0);
    let request = Arc::new(format!(
        "GET /v1/channels/{room}/messages?limit={PAGE} HTTP/1.1\r\nHost: {hub}\r\nAuthorization: Bearer {}\r\n\r\n",
        bench.people[0].token
    ));
    let warm_up = Duration::from_secs_f64(bench.args.warm_up);
    read_all(hub, &request, bench.args.readers, warm_up).await?;
    let before = Look::before(bench).await?;
    let time = Duration::from_secs_f64(bench.args.duration);
    let (latencies, bytes) = read_all(hub, &request, bench.args.readers, time).await?;
    let after = Look::after(bench).await?;

    let requests = latencies.len() as f64;
    let per_second = requests / after.seconds_since(&before);
    let mut row = Row {
        scenario: format!("history {} of {}", PAGE, bench.args.messages),
        load: format!("{} readers", bench.args.readers),
        messages_per_s: None,
        reply: Latency::of(&latencies),
        ..Row::default()
    };
    row.figure("requests_per_s", per_second);
    row.note = format!("{per_second:.0} pages a second of {:.1} KB", bytes as f64 / requests.max(1.0) / 1_000.0);
    if let Some(cpu) = after.cpu_since(&before) {
        row.figure("cpu_ms_per_request", cpu / requests.max(1.0) * 1_000.0);
        row.note += &format!(", {:.2} ms CPU each", cpu / requests.max(1.0) * 1_000.0);
    }
    Ok(vec![row])
}

/// Posts so many messages as fast as they are taken.
async fn fill(bench: &Bench, room: ChannelId, messages: u64) -> Result<()> {
    let fleet = Fleet::start(1, bench.ticks)?;
    let joined = bench.connect(vec![bench.dial(0, room)]).await?;
    let pens = fleet.add(joined, |_| true).await?;
    let pens = pens.into_iter().map(|conn| Pen::new(conn, bench.template(room))).collect::<Result<Vec<_>>>()?;
    let pace = Pace::Window { messages: 256, receivers: 1 };
    let sending = Sending::start(pens, pace, messages, Arc::clone(&fleet.progress), bench.ticks)?;
    let deadline = Instant::now() + Duration::from_secs(120);
    while fleet.progress.acked.load(Ordering::Relaxed) < messages {
        let refused = fleet.progress.refused.load(Ordering::Relaxed);
        ensure!(refused == 0, "{refused} messages were refused: are the limits off?");
        ensure!(Instant::now() < deadline, "the channel could not be filled in two minutes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sending.stop()?;
    Ok(())
}

async fn read_all(
    hub: SocketAddr,
    request: &Arc<String>,
    readers: usize,
    time: Duration,
) -> Result<(Histogram<u64>, u64)> {
    let mut reading = JoinSet::new();
    for _ in 0..readers {
        reading.spawn(read_one(hub, Arc::clone(request), time));
    }
    let (mut all, mut bytes) = (histogram(), 0);
    while let Some(outcome) = reading.join_next().await {
        let (latencies, read) = outcome??;
        all.add(&latencies)?;
        bytes += read;
    }
    Ok((all, bytes))
}

async fn read_one(hub: SocketAddr, request: Arc<String>, time: Duration) -> Result<(Histogram<u64>, u64)> {
    let mut stream = TcpStream::connect(hub).await?;
    stream.set_nodelay(true)?;
    let (mut latencies, mut bytes) = (histogram(), 0);
    let mut buffer = Vec::with_capacity(65_536);
    let started = Instant::now();
    while started.elapsed() < time {
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        buffer.clear();
        let whole = loop {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the server hung up");
            if let Some(whole) = answer_length(&buffer)?
                && buffer.len() >= whole
            {
                break whole;
            }
        };
        bytes += whole as u64;
        latencies.saturating_record(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok((latencies, bytes))
}

/// Returns the length of an answer, head and body; `None` while its head is not all there.
fn answer_length(buffer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..end]).context("the answer has no head")?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if !status.contains(" 200 ") {
        bail!("the server answered {status}");
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    Ok(Some(end + 4 + length.context("the answer has no length")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_an_answer_is_in_its_head() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(answer_length(head).unwrap(), Some(head.len() + 5));
        assert_eq!(answer_length(&head[..20]).unwrap(), None);
        assert!(answer_length(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n").is_err());
    }
}
