//! Which messages of a node came already. Pure.
//!
//! A node numbers what it says; most of it comes in that order, some of it a little later. Whoever can write to the bus can say
//! again what was said, but not under another number: the number is sealed.

const WORDS: usize = 16;
/// How far behind the newest a message may come; older ones are taken for ones that came.
const WINDOW: u64 = 64 * WORDS as u64;

/// The numbers that came from one node.
#[derive(Default)]
pub(super) struct Came {
    newest: u64,
    /// The newest is the last bit of the first word, the one before it the next.
    seen: [u64; WORDS],
}

impl Came {
    /// Notes a number; returns whether it is new.
    pub(super) fn is_new(&mut self, number: u64) -> bool {
        if number > self.newest {
            self.shift(number - self.newest);
            self.newest = number;
        }
        let behind = self.newest - number;
        if behind >= WINDOW {
            return false;
        }
        let (word, bit) = ((behind / 64) as usize, 1 << (behind % 64));
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }

    fn shift(&mut self, by: u64) {
        if by >= WINDOW {
            self.seen = [0; WORDS];
            return;
        }
        let (words, bits) = ((by / 64) as usize, by % 64);
        for at in (0..WORDS).rev() {
            let word = |at: Option<usize>| at.map_or(0, |at| self.seen[at]);
            let (here, below) = (word(at.checked_sub(words)), word(at.checked_sub(words + 1)));
            self.seen[at] = if bits == 0 { here } else { here << bits | below >> (64 - bits) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_number_is_new_once() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut came, mut taken, mut newest) = (Came::default(), BTreeSet::new(), 0_u64);
        for _ in 0..100_000 {
            let ahead = if random.u8(..) == 0 { 5_000 } else { 100 };
            let number = (newest + random.u64(..ahead)).saturating_sub(random.u64(..1_500)).max(1);
            newest = newest.max(number);
            let expected = newest - number < WINDOW && taken.insert(number);
            assert_eq!(came.is_new(number), expected, "{number} of {newest}");
        }
        assert!(taken.len() > 10_000);
    }

    #[test]
    fn any_number_is_a_number() {
        let mut came = Came::default();
        for (number, is_new) in
            [(0, true), (0, false), (u64::MAX, true), (u64::MAX, false), (1, false), (u64::MAX - 9, true)]
        {
            assert_eq!(came.is_new(number), is_new, "{number}");
        }
    }
}
