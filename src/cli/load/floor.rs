//! The floor: the same bytes to as many sockets by plain blocking writes, one for each delivery, and nothing else.
//!
//! No server that writes every delivery on its own can be cheaper; one that gathers frames into one write can.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

use super::procfs::thread_cpu_seconds;

/// How long to write.
const TIME: Duration = Duration::from_secs(2);

/// Returns the writing thread's processor seconds for 1,000 deliveries of `bytes` to `sockets` receivers.
pub(super) async fn measure(sockets: usize, bytes: usize) -> Result<f64> {
    tokio::task::spawn_blocking(move || write_to(sockets, bytes)).await.context("the floor was not measured")?
}

fn write_to(sockets: usize, bytes: usize) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let (stop, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let readers = thread::spawn(move || runtime.block_on(drain(port, sockets, stopped)));
    let mut receivers = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        receivers.push(stream);
    }

    // As a server's text frame: two bytes of header and two of length.
    let frame = vec![b'x'; bytes + 4];
    round(&mut receivers, &frame)?;
    let (started, before) = (Instant::now(), thread_cpu_seconds()?);
    let mut deliveries = 0_usize;
    while started.elapsed() < TIME {
        round(&mut receivers, &frame)?;
        deliveries += receivers.len();
    }
    let used = thread_cpu_seconds()? - before;
    drop(stop);
    drop(receivers);
    readers.join().map_err(|_| anyhow!("the floor's reader panicked"))??;
    Ok(used / deliveries as f64 * 1_000.0)
}

fn round(receivers: &mut [TcpStream], frame: &[u8]) -> std::io::Result<()> {
    receivers.iter_mut().try_for_each(|receiver| receiver.write_all(frame))
}

/// Reads from so many connections until told to stop.
async fn drain(port: u16, sockets: usize, stopped: oneshot::Receiver<()>) -> Result<()> {
    let mut reading = tokio::task::JoinSet::new();
    for n in 0..sockets {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 0, 0, 2 + (n % 200) as u8), 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        reading.spawn(async move {
            let mut buffer = [0; 16_384];
            loop {
                match stream.try_read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        if stream.readable().await.is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        });
    }
    // The other end is dropped when the writing is over.
    drop(stopped.await);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_plain_write_costs_something_but_not_much() {
        let cost = super::write_to(10, 300).unwrap();
        assert!(cost > 0.0001 && cost < 0.5, "{cost} s for 1,000");
    }
}
