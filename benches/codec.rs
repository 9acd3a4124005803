//! Costs of the wire format: reading and writing one frame of 300 bytes, the size of a usual message.

use std::hint::black_box;

use colink::protocol::wire::{Incoming, Limits, Reader, write_text};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const LEN: usize = 300;

fn codec(criterion: &mut Criterion) {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![0x81, 0x80 | 126, (LEN >> 8) as u8, LEN as u8];
    frame.extend_from_slice(&mask);
    frame.extend((0..LEN).map(|at| b'x' ^ mask[at % 4]));

    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes(LEN as u64));

    let mut reader = Reader::new(Limits { max_message: 65_536, max_fragments: 64 });
    let mut scratch = frame.clone();
    group.bench_function("decode a masked text of 300 bytes", |bencher| {
        bencher.iter(|| {
            scratch.copy_from_slice(&frame);
            let mut input = scratch.as_mut_slice();
            let Ok(Some(Incoming::Text(text))) = reader.next(&mut input) else { panic!("the frame is a text") };
            black_box(text.len())
        });
    });

    let text = [b'x'; LEN];
    let mut out = Vec::with_capacity(LEN + 10);
    group.bench_function("encode a text of 300 bytes", |bencher| {
        bencher.iter(|| {
            out.clear();
            write_text(&[black_box(&text)], &mut out);
            black_box(out.len())
        });
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
