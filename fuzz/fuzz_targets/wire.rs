//! Feeds the frame reader any bytes in any splits: it keeps its bound, and the splits change neither items nor error.
#![no_main]

use colink::protocol::wire::{CONTROL_MAX, Limits, Reader, WireError};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { max_message: 512, max_fragments: 8 };

/// Returns the items, printed, and the error that ended them.
fn read<'a>(reads: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, Option<WireError>) {
    let (mut reader, mut items) = (Reader::new(LIMITS), Vec::new());
    for bytes in reads {
        let mut scratch = bytes.to_vec();
        let mut input = scratch.as_mut_slice();
        loop {
            match reader.next(&mut input) {
                Ok(Some(item)) => items.push(format!("{item:?}")),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
        assert!(reader.held_bytes() <= LIMITS.max_message + CONTROL_MAX);
        assert!(reader.is_partial() || reader.held_bytes() == 0);
    }
    (items, None)
}

// The first byte counts the reads before the last, the next ones are their lengths, the rest is what the client sends.
fuzz_target!(|input: &[u8]| {
    let Some((&count, rest)) = input.split_first() else { return };
    let (cuts, bytes) = rest.split_at(usize::from(count).min(rest.len()));
    let (mut rest, mut reads) = (bytes, Vec::new());
    for cut in cuts {
        let (front, behind) = rest.split_at(usize::from(*cut).min(rest.len()));
        reads.push(front);
        rest = behind;
    }
    reads.push(rest);
    assert_eq!(read(reads.into_iter()), read(std::iter::once(bytes)));
});
