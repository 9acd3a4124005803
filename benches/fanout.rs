//! What a delivery costs without a socket: a shared batch into 1,000 queues, and out of them as frames.

use std::time::Duration;

use colink::actors::session::queue::{Bounds, Queue};
use colink::domain::id::StreamId;
use colink::protocol::push::{Batch, Encoded, head};
use colink::protocol::wire;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SESSIONS: usize = 1_000;

fn fanout(criterion: &mut Criterion) {
    let bounds = Bounds { events: 1_024, bytes: 1 << 20, ring: 4_096, window: Duration::from_secs(300) };
    let mut group = criterion.benchmark_group("fanout");
    for events in [1, 8, 32] {
        let queues: Vec<_> = (0..SESSIONS).map(|_| Queue::new(bounds, 1, StreamId::WORKSPACE)).collect();
        let frames = (0..events).map(|seq| Encoded { seq, reaction: false, tail: vec![b'x'; 400].into() });
        let batch = Batch::new(StreamId::WORKSPACE, frames.collect(), None);
        let mut s = 1;
        let mut out = Vec::with_capacity(1 << 20);
        group.throughput(Throughput::Elements(SESSIONS as u64 * events as u64));
        group.bench_function(format!("1000 sessions, {events} events a batch"), |bencher| {
            bencher.iter(|| {
                s += events;
                for queue in &queues {
                    queue.push(&batch);
                    out.clear();
                    queue.take(1, usize::MAX, |s, bytes| {
                        let mut number = Vec::with_capacity(24);
                        head(s.unwrap_or(0), &mut number);
                        wire::write_text(&[&number, bytes], &mut out);
                    });
                    queue.acknowledge(s);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, fanout);
criterion_main!(benches);
