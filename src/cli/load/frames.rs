//! Frames at the least cost: headers are walked in place, and the few numbers that matter are found by their bytes.
//!
//! A message's text carries the time it was meant to be sent (`~t` and sixteen digits of microseconds), so that what a
//! receiver measures needs no table. A command's `id` is that same time, so neither does its reply.

use std::time::Instant;

use crate::domain::id::ChannelId;

/// Stands before the time in a text. No identifier, number or time has a tilde.
const MARK: &[u8] = b"~t";
/// Added to every time, so that it has sixteen digits and can stand as a JSON number.
const ORIGIN: u64 = 1_000_000_000_000_000;
const TIME_DIGITS: usize = 16;

/// Microseconds of one process's steady clock, always sixteen digits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    base: Instant,
}

impl Ticks {
    pub(super) fn start() -> Self {
        Ticks { base: Instant::now() }
    }

    pub(super) fn now(self) -> u64 {
        ORIGIN + u64::try_from(self.base.elapsed().as_micros()).unwrap_or(0)
    }
}

/// Appends a client's frame. It is masked, as RFC 6455 wants, with a key of zeros, which changes no byte.
pub(super) fn put(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// The opcodes that a server sends.
pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// Walks the whole frames at the front of a buffer.
pub(super) struct Walk<'a> {
    buffer: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(buffer: &'a [u8]) -> Self {
        Walk { buffer, at: 0 }
    }

    /// Returns how many bytes the frames so far took, headers included.
    pub(super) fn consumed(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Walk<'a> {
    /// The opcode and the payload.
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let left = &self.buffer[self.at..];
        let (first, second) = (*left.first()?, *left.get(1)?);
        let (head, len): (usize, usize) = match second & 0x7f {
            126 => (4, usize::from(u16::from_be_bytes(left.get(2..4)?.try_into().ok()?))),
            127 => (10, usize::try_from(u64::from_be_bytes(left.get(2..10)?.try_into().ok()?)).ok()?),
            len => (2, usize::from(len)),
        };
        let payload = left.get(head..head.checked_add(len)?)?;
        self.at += head + len;
        Some((first & 0x0f, payload))
    }
}

/// What a frame says, as far as it is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// An event of a channel; `intended` is there if it is one of our messages.
    Event { s: i64, seq: i64, intended: Option<u64> },
    /// An event of another stream, or the first state.
    Aside { s: i64 },
    /// A reply to the command that was meant to be sent at this time.
    Reply { intended: u64, ok: bool },
    /// Events were left out for the receiver to pull.
    Lagged,
    /// Anything else.
    Other,
}

/// Reads frames; remembers where in the last one the numbers stood, since the next one looks the same.
#[derive(Default)]
pub(super) struct Scanner {
    seq_at: usize,
    mark_at: usize,
}

impl Scanner {
    pub(super) fn read(&mut self, payload: &[u8]) -> Said {
        if let Some(rest) = payload.strip_prefix(b"{\"s\":") {
            return self.event(payload, rest);
        }
        if let Some(rest) = payload.strip_prefix(b"{\"reply_to\":") {
            let ok = rest.get(TIME_DIGITS..).is_some_and(|rest| rest.starts_with(b",\"ok\":true"));
            return Said::Reply { intended: number(rest), ok };
        }
        Said::Other
    }

    fn event(&mut self, payload: &[u8], rest: &[u8]) -> Said {
        let s = number(rest) as i64;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let Some(kind) = rest[digits..].strip_prefix(b",\"type\":\"") else { return Said::Aside { s } };
        let ours = kind.starts_with(b"message.created\"");
        let quote = if ours { 15 } else { kind.iter().position(|byte| *byte == b'"').unwrap_or(0) };
        if kind.starts_with(b"lagged\"") {
            return Said::Lagged;
        }
        if !kind[quote..].starts_with(b"\",\"channel_id\"") {
            return Said::Aside { s };
        }
        let Some(seq_at) = find(payload, b"\"seq\":", self.seq_at) else { return Said::Aside { s } };
        self.seq_at = seq_at;
        let seq = number(&payload[seq_at + 6..]) as i64;
        let mark = if ours { find(payload, MARK, self.mark_at) } else { None };
        let intended = mark.map(|at| {
            self.mark_at = at;
            number(&payload[at + MARK.len()..])
        });
        Said::Event { s, seq, intended }
    }
}

/// Finds `needle`, first around where it stood last time.
fn find(hay: &[u8], needle: &[u8], hint: usize) -> Option<usize> {
    let at = |start: usize| hay.get(start..).is_some_and(|rest| rest.starts_with(needle));
    for start in [hint, hint + 1, hint.wrapping_sub(1)] {
        if at(start) {
            return Some(start);
        }
    }
    hay.windows(needle.len()).position(|window| window == needle)
}

/// Reads the digits at the front.
fn number(bytes: &[u8]) -> u64 {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u64, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

/// One room's `message.send`, written once; only the numbers in it change.
pub(super) struct Template {
    frame: Vec<u8>,
    times: Vec<usize>,
    counters: Vec<usize>,
}

impl Template {
    /// Makes the frame for messages of `size` bytes. With a `run`, each has a `client_msg_id` that no other run uses.
    pub(super) fn new(channel: ChannelId, size: usize, run: Option<&str>) -> Self {
        const TIME: &str = "1000000000000000";
        const COUNT: &str = "00000000";
        let mut text = format!("~t{TIME}.{COUNT} ");
        text.extend(std::iter::repeat_n("lorem ipsum ", size / 12 + 1));
        text.truncate(size.max(28));
        let text = text.trim_end().replace(' ', "_");
        let key = run.map(|run| format!(r#","client_msg_id":"{run}-{TIME}.{COUNT}""#)).unwrap_or_default();
        let json =
            format!(r#"{{"id":{TIME},"type":"message.send","d":{{"channel_id":"{channel}","text":"{text}"{key}}}}}"#);
        let mut frame = Vec::new();
        put(&mut frame, TEXT, json.as_bytes());
        let all = |needle: &str| {
            let windows = frame.windows(needle.len()).enumerate();
            windows.filter(|(_, window)| *window == needle.as_bytes()).map(|(at, _)| at).collect::<Vec<_>>()
        };
        let times = all(TIME);
        let counters = all(&format!(".{COUNT}")).into_iter().map(|at| at + 1).collect();
        Template { frame, times, counters }
    }

    /// Returns the frame of message `n`, meant to be sent at `intended`.
    pub(super) fn fill(&mut self, intended: u64, n: u64) -> &[u8] {
        for at in &self.times {
            digits(&mut self.frame[*at..at + TIME_DIGITS], intended);
        }
        for at in &self.counters {
            digits(&mut self.frame[*at..at + 8], n);
        }
        &self.frame
    }
}

fn digits(into: &mut [u8], mut number: u64) {
    for place in into.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Returns a heartbeat that acknowledges everything up to `s`.
pub(super) fn heartbeat(s: i64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(48);
    put(&mut frame, TEXT, format!(r#"{{"type":"heartbeat","s":{s}}}"#).as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    /// A server's frame: without a mask.
    fn frame(payload: &str) -> Vec<u8> {
        let len = payload.len();
        let mut head = if len < 126 { vec![0x81, len as u8] } else { vec![0x81, 126, (len >> 8) as u8, len as u8] };
        head.extend_from_slice(payload.as_bytes());
        head
    }

    #[test]
    fn frames_are_walked_and_a_half_one_is_left() {
        let mut buffer = [frame("one"), frame(&"x".repeat(300)), frame("three")].concat();
        let whole = buffer.len();
        buffer.extend_from_slice(&frame("half")[..3]);
        let mut walk = Walk::new(&buffer);
        let lengths: Vec<usize> = walk.by_ref().map(|(_, payload)| payload.len()).collect();
        assert_eq!((lengths, walk.consumed()), (vec![3, 300, 5], whole));
    }

    #[test]
    fn every_cut_of_a_frame_waits_for_the_rest() {
        for payload in ["short".to_owned(), "x".repeat(200)] {
            let whole = frame(&payload);
            for cut in 0..whole.len() {
                assert!(Walk::new(&whole[..cut]).next().is_none(), "{cut}");
            }
        }
    }

    #[test]
    fn numbers_are_found_wherever_they_stand() {
        let mut scanner = Scanner::default();
        for (s, seq) in [(1, 9), (9, 10), (10, 999), (11, 1_000)] {
            let text = format!(
                r#"{{"s":{s},"type":"message.created","channel_id":"c","seq":{seq},"d":{{"text":"~t1000000000000042.00000007_x"}}}}"#
            );
            let said = scanner.read(text.as_bytes());
            assert_eq!(said, Said::Event { s, seq, intended: Some(1_000_000_000_000_042) });
        }
        let other = scanner.read(br#"{"s":3,"type":"user.read","stream_id":"u","seq":5,"d":{}}"#);
        assert_eq!(other, Said::Aside { s: 3 });
        assert_eq!(scanner.read(br#"{"s":4,"type":"lagged","d":{}}"#), Said::Lagged);
        assert_eq!(scanner.read(br#"{"type":"heartbeat_ack"}"#), Said::Other);
    }

    #[test]
    fn a_reply_carries_the_time_of_its_command() {
        let mut scanner = Scanner::default();
        let said = scanner.read(br#"{"reply_to":1000000000000042,"ok":true,"d":{}}"#);
        assert_eq!(said, Said::Reply { intended: 1_000_000_000_000_042, ok: true });
        let said = scanner.read(br#"{"reply_to":1000000000000042,"ok":false,"error":"x"}"#);
        assert_eq!(said, Said::Reply { intended: 1_000_000_000_000_042, ok: false });
    }

    #[test]
    fn a_template_is_a_valid_command_with_its_numbers() {
        let channel = ChannelId::new(Timestamp(1));
        let mut template = Template::new(channel, 200, Some("run1"));
        let frame = template.fill(1_000_000_000_123_456, 78).to_vec();
        // Byte for byte after the header: the mask is zero.
        let json: serde_json::Value = serde_json::from_slice(&frame[8..]).unwrap();
        assert_eq!(json["id"], 1_000_000_000_123_456_u64);
        assert_eq!(json["d"]["client_msg_id"], "run1-1000000000123456.00000078");
        let text = json["d"]["text"].as_str().unwrap();
        assert_eq!(text.len(), 200);
        assert!(text.starts_with("~t1000000000123456.00000078"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_walked_and_scanned_without_a_panic(bytes in proptest::collection::vec(0_u8.., 0..600)) {
            let mut scanner = Scanner::default();
            for (_, payload) in Walk::new(&bytes) {
                scanner.read(payload);
            }
            scanner.read(&[b"{\"s\":1,\"type\":\"", &bytes[..]].concat());
        }
    }
}
