//! Reads the frames of a client: bytes in, whole messages out. What it promises stands in the module above.

use std::borrow::Cow;

use fastwebsockets::{CloseCode, OpCode, unmask};

use super::{CONTROL_MAX, Incoming, Limits, WireError};

/// The longest header of a frame of a client, in bytes: two, a 64-bit length, the mask.
const HEAD_MAX: usize = 14;

/// A frame whose header is read.
struct Frame {
    opcode: OpCode,
    fin: bool,
    /// Turned so that its first byte belongs to the next byte of the payload.
    mask: [u8; 4],
    len: usize,
    /// Bytes of the payload that came with earlier reads; they stand at the end of `Reader::held`.
    got: usize,
}

/// Reads the frames of one client. It owns no memory while nothing is unfinished.
pub struct Reader {
    limits: Limits,
    /// A header that is cut off, and how much of it there is.
    head: [u8; HEAD_MAX],
    head_len: u8,
    /// The frame that is cut off.
    frame: Option<Frame>,
    /// Frames so far of the message that is not complete; 0 if there is none.
    fragments: u32,
    /// That message's bytes, unmasked; behind them those of a control frame that is cut off.
    held: Vec<u8>,
    finished: u64,
    closed: bool,
}

impl Reader {
    /// Makes a reader for a new connection.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Reader {
            limits,
            head: [0; HEAD_MAX],
            head_len: 0,
            frame: None,
            fragments: 0,
            held: Vec::new(),
            finished: 0,
            closed: false,
        }
    }

    /// Takes the next item from the front of `input`, which it moves forward and partly overwrites.
    ///
    /// Returns `None` once `input` is used up; what it ended in the middle of is kept. After an error the connection
    /// has to be closed with [`WireError::close_code`]; from then on, and after a close frame, all input is dropped.
    pub fn next<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Incoming<'a>>, WireError> {
        if self.closed {
            *input = &mut [];
            return Ok(None);
        }
        let outcome = self.advance(input);
        if matches!(outcome, Err(_) | Ok(Some(Incoming::Close { .. }))) {
            self.closed = true;
            self.head_len = 0;
            self.frame = None;
            self.fragments = 0;
            self.held = Vec::new();
        }
        outcome
    }

    /// Returns the number of the message or frame that has begun and is not complete, if there is one.
    ///
    /// It stays the same for as long as it is the same message, whatever control frames come in between: seeing one
    /// number for too long is a client that sends too slowly.
    #[must_use]
    pub fn unfinished(&self) -> Option<u64> {
        let partial = self.head_len > 0 || self.frame.is_some() || self.fragments > 0;
        partial.then_some(self.finished)
    }

    /// Returns whether a message or frame has begun and is not complete.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.unfinished().is_some()
    }

    /// Returns the bytes of memory that are kept for what is unfinished.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.capacity()
    }

    fn advance<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Incoming<'a>>, WireError> {
        loop {
            let mut frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.read_head(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            let missing = frame.len - frame.got;
            let payload = cut(input, missing);
            unmask(payload, frame.mask);
            if payload.len() < missing {
                self.hold(payload, &frame);
                frame.got += payload.len();
                frame.mask.rotate_left(payload.len() % 4);
                self.frame = Some(frame);
                return Ok(None);
            }
            if let Some(item) = self.finish(&frame, payload)? {
                return Ok(Some(item));
            }
        }
    }

    /// Takes a header from the front of `input`, or keeps its beginning.
    fn read_head(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, WireError> {
        if self.head_len == 0 {
            if let Some((frame, size)) = self.parse_head(input)? {
                cut(input, size);
                return Ok(Some(self.accept(frame)));
            }
            // Less than a header: `parse_head` needs at most HEAD_MAX bytes.
            let rest = cut(input, HEAD_MAX);
            self.head[..rest.len()].copy_from_slice(rest);
            self.head_len = rest.len() as u8;
            return Ok(None);
        }
        while let [byte] = *cut(input, 1) {
            self.head[usize::from(self.head_len)] = byte;
            self.head_len += 1;
            if let Some((frame, _)) = self.parse_head(&self.head[..usize::from(self.head_len)])? {
                self.head_len = 0;
                return Ok(Some(self.accept(frame)));
            }
        }
        Ok(None)
    }

    fn accept(&mut self, frame: Frame) -> Frame {
        if is_data(frame.opcode) {
            self.fragments = self.fragments.saturating_add(1);
        }
        frame
    }

    /// Reads a header and its size; `None` if there is only a part of it.
    ///
    /// The checks go byte by byte, so that a header fails the same whether it comes whole or in parts.
    fn parse_head(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, WireError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(WireError::ReservedBits);
        }
        let opcode = OpCode::try_from(first & 0x0f).map_err(|_| WireError::ReservedOpcode)?;
        let fin = first & 0x80 != 0;
        match opcode {
            OpCode::Continuation if self.fragments == 0 => return Err(WireError::NothingToContinue),
            OpCode::Continuation if self.limits.max_fragments != 0 && self.fragments >= self.limits.max_fragments => {
                return Err(WireError::TooManyFragments);
            }
            OpCode::Text | OpCode::Binary if self.fragments > 0 => return Err(WireError::Interleaved),
            OpCode::Binary => return Err(WireError::Binary),
            OpCode::Close | OpCode::Ping | OpCode::Pong if !fin => return Err(WireError::FragmentedControl),
            _ => {}
        }

        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(WireError::Unmasked);
        }
        let short = second & 0x7f;
        if !is_data(opcode) && usize::from(short) > CONTROL_MAX {
            return Err(WireError::LongControl);
        }
        let (len, size) = match short {
            126 => {
                let Some(&long) = bytes[2..].first_chunk::<2>() else { return Ok(None) };
                let len = u64::from(u16::from_be_bytes(long));
                if len < 126 {
                    return Err(WireError::LongLength);
                }
                (len, 4)
            }
            127 => {
                let Some(&long) = bytes[2..].first_chunk::<8>() else { return Ok(None) };
                let len = u64::from_be_bytes(long);
                if len >> 63 != 0 {
                    return Err(WireError::NegativeLength);
                }
                if len <= u64::from(u16::MAX) {
                    return Err(WireError::LongLength);
                }
                (len, 10)
            }
            len => (u64::from(len), 2),
        };
        let len = usize::try_from(len).map_err(|_| WireError::TooBig)?;
        if is_data(opcode) {
            // No control frame is open while a header is read: all that is held is the message.
            let whole = self.held.len().checked_add(len).ok_or(WireError::TooBig)?;
            if self.limits.max_message != 0 && whole > self.limits.max_message {
                return Err(WireError::TooBig);
            }
        }

        let Some(&mask) = bytes[size..].first_chunk::<4>() else { return Ok(None) };
        Ok(Some((Frame { opcode, fin, mask, len, got: 0 }, size + 4)))
    }

    /// Keeps bytes of a frame. Memory doubles as they come, up to what the frame or the limit allows.
    fn hold(&mut self, bytes: &[u8], frame: &Frame) {
        let needed = self.held.len() + bytes.len();
        if needed > self.held.capacity() {
            let missing = frame.len - frame.got - bytes.len();
            let most = if frame.fin || self.limits.max_message == 0 {
                needed.saturating_add(missing)
            } else {
                self.limits.max_message
            };
            let wanted = needed.saturating_mul(2).min(most).max(needed);
            self.held.reserve_exact(wanted - self.held.len());
        }
        self.held.extend_from_slice(bytes);
    }

    /// Makes an item of a frame whose payload ends with `payload`; a fragment that is not the last makes none.
    fn finish<'a>(&mut self, frame: &Frame, payload: &'a mut [u8]) -> Result<Option<Incoming<'a>>, WireError> {
        let item = if is_data(frame.opcode) {
            if !frame.fin {
                self.hold(payload, frame);
                return Ok(None);
            }
            let text = if self.held.is_empty() {
                utf8(Cow::Borrowed(payload))?
            } else {
                self.hold(payload, frame);
                utf8(Cow::Owned(std::mem::take(&mut self.held)))?
            };
            self.fragments = 0;
            Incoming::Text(text)
        } else {
            let payload = if frame.got == 0 {
                Cow::Borrowed(&*payload)
            } else {
                let message = self.held.len() - frame.got;
                self.held.extend_from_slice(payload);
                let whole = self.held[message..].to_vec();
                self.held.truncate(message);
                Cow::Owned(whole)
            };
            match frame.opcode {
                OpCode::Ping => Incoming::Ping(payload),
                OpCode::Pong => Incoming::Pong(payload),
                _ => close(payload)?,
            }
        };
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        if self.fragments == 0 {
            self.finished += 1;
        }
        Ok(Some(item))
    }
}

fn is_data(opcode: OpCode) -> bool {
    matches!(opcode, OpCode::Text | OpCode::Binary | OpCode::Continuation)
}

/// Takes up to `len` bytes from the front of `input`.
fn cut<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let all = std::mem::take(input);
    let (front, rest) = all.split_at_mut(len.min(all.len()));
    *input = rest;
    front
}

fn utf8(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, str>, WireError> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| WireError::NotUtf8),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| WireError::NotUtf8),
    }
}

fn close(payload: Cow<'_, [u8]>) -> Result<Incoming<'_>, WireError> {
    if payload.is_empty() {
        return Ok(Incoming::Close { code: None, reason: Cow::Borrowed("") });
    }
    let Some(&code) = payload.first_chunk::<2>() else { return Err(WireError::BadClose) };
    let code = u16::from_be_bytes(code);
    if !CloseCode::from(code).is_allowed() {
        return Err(WireError::BadClose);
    }
    let reason = match payload {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[2..]),
        Cow::Owned(bytes) => Cow::Owned(bytes[2..].to_vec()),
    };
    Ok(Incoming::Close { code: Some(code), reason: utf8(reason)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::writer::header;
    use super::*;

    const LIMITS: Limits = Limits { max_message: 1_000, max_fragments: 8 };
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A masked frame as a client sends it; `first` is FIN, the reserved bits and the opcode.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        header(OpCode::Text, payload.len(), &mut out);
        out[0] = first;
        out[1] |= 0x80;
        out.extend_from_slice(&MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    fn owned(item: Incoming<'_>) -> Incoming<'static> {
        match item {
            Incoming::Text(text) => Incoming::Text(text.into_owned().into()),
            Incoming::Ping(payload) => Incoming::Ping(payload.into_owned().into()),
            Incoming::Pong(payload) => Incoming::Pong(payload.into_owned().into()),
            Incoming::Close { code, reason } => Incoming::Close { code, reason: reason.into_owned().into() },
        }
    }

    /// Feeds one read, of which nothing remains afterwards, and checks the bound on memory.
    fn feed(reader: &mut Reader, bytes: &[u8], items: &mut Vec<Incoming<'static>>) -> Result<(), WireError> {
        let mut scratch = bytes.to_vec();
        let mut input = scratch.as_mut_slice();
        let outcome = loop {
            match reader.next(&mut input) {
                Ok(Some(item)) => items.push(owned(item)),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        assert!(outcome.is_err() || input.is_empty());
        assert!(reader.held_bytes() <= reader.limits.max_message + CONTROL_MAX);
        assert!(reader.is_partial() || reader.held_bytes() == 0);
        outcome
    }

    fn read(reads: &[&[u8]]) -> (Vec<Incoming<'static>>, Result<(), WireError>) {
        let (mut reader, mut items) = (Reader::new(LIMITS), Vec::new());
        for bytes in reads {
            if let Err(error) = feed(&mut reader, bytes, &mut items) {
                return (items, Err(error));
            }
        }
        (items, Ok(()))
    }

    /// Checks that `bytes` fail with `error`, fed whole and byte by byte.
    fn fails(bytes: &[u8], error: WireError) {
        assert_eq!(read(&[bytes]).1, Err(error));
        assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()).1, Err(error));
    }

    fn text(text: &str) -> Incoming<'static> {
        Incoming::Text(text.to_owned().into())
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        let masked_hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&[&masked_hello]), (vec![text("Hello")], Ok(())));
        let masked_pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&[&masked_pong]), (vec![Incoming::Pong(b"Hello".into())], Ok(())));
        fails(&[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f], WireError::Unmasked);
    }

    #[test]
    fn a_whole_text_is_lent_without_a_copy() {
        let mut scratch = [frame(0x81, b"one"), frame(0x81, "zwölf".as_bytes())].concat();
        let mut input = scratch.as_mut_slice();
        let mut reader = Reader::new(LIMITS);
        assert!(matches!(reader.next(&mut input), Ok(Some(Incoming::Text(Cow::Borrowed("one"))))));
        assert!(matches!(reader.next(&mut input), Ok(Some(Incoming::Text(Cow::Borrowed("zwölf"))))));
        assert_eq!(reader.next(&mut input), Ok(None));
        assert!(!reader.is_partial());
    }

    #[test]
    fn fragments_are_joined_and_pings_pass_between_them() {
        let bytes = [
            frame(0x01, "Gr\u{fc}".as_bytes().split_at(3).0),
            frame(0x89, b"?"),
            frame(0x00, "\u{fc}".as_bytes().split_at(1).1),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"n"),
            frame(0x81, b"."),
        ]
        .concat();
        let expected = vec![Incoming::Ping(b"?".into()), Incoming::Pong(b"".into()), text("Grün"), text(".")];
        assert_eq!(read(&[&bytes]), (expected.clone(), Ok(())));
        assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), (expected, Ok(())));
    }

    #[test]
    fn each_breach_of_the_protocol_has_its_error() {
        for bit in [0x10, 0x20, 0x40] {
            fails(&frame(0x81 | bit, b""), WireError::ReservedBits);
        }
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            fails(&frame(0x80 | opcode, b""), WireError::ReservedOpcode);
        }
        for opcode in [8, 9, 10] {
            fails(&frame(opcode, b""), WireError::FragmentedControl);
            fails(&frame(0x80 | opcode, &[0; 126]), WireError::LongControl);
            fails(&[0x80 | opcode, 0], WireError::Unmasked);
        }
        fails(&frame(0x80, b"x"), WireError::NothingToContinue);
        fails(&[frame(0x81, b"x"), frame(0x80, b"x")].concat(), WireError::NothingToContinue);
        fails(&[frame(0x01, b"x"), frame(0x81, b"x")].concat(), WireError::Interleaved);
        fails(&[frame(0x01, b"x"), frame(0x82, b"x")].concat(), WireError::Interleaved);
        fails(&frame(0x82, b"x"), WireError::Binary);
        fails(&[0x81, 0xfe, 0, 125], WireError::LongLength);
        fails(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], WireError::LongLength);
        fails(&[0x81, 0xff, 0x80, 0, 0, 0, 0, 1, 0, 0], WireError::NegativeLength);
        fails(&frame(0x81, &[0xff]), WireError::NotUtf8);
        fails(&frame(0x81, &[b'x', 0xc3]), WireError::NotUtf8);
        fails(&[frame(0x01, &[0xc3]), frame(0x80, b"x")].concat(), WireError::NotUtf8);
        let many = [frame(0x01, b""), frame(0x00, b"").repeat(7), frame(0x80, b"")].concat();
        fails(&many, WireError::TooManyFragments);
    }

    #[test]
    fn a_close_frame_is_checked_and_ends_the_reading() {
        let closed = |code, reason: &str| Incoming::Close { code, reason: reason.to_owned().into() };
        let last = [frame(0x88, b"\x03\xe8bye"), frame(0x81, b"too late"), vec![0xff; 9]].concat();
        assert_eq!(read(&[&last, &last]), (vec![closed(Some(1_000), "bye")], Ok(())));
        let last_words = (vec![closed(Some(1_000), "bye")], Ok(()));
        assert_eq!(read(&last.chunks(1).collect::<Vec<_>>()), last_words);
        assert_eq!(read(&[&frame(0x88, b"")]), (vec![closed(None, "")], Ok(())));
        assert_eq!(read(&[&frame(0x88, &4_000_u16.to_be_bytes())]), (vec![closed(Some(4_000), "")], Ok(())));
        fails(&frame(0x88, b"\x03"), WireError::BadClose);
        for code in [0_u16, 999, 1_004, 1_005, 1_006, 1_015, 1_016, 2_999, 5_000, 65_535] {
            fails(&frame(0x88, &code.to_be_bytes()), WireError::BadClose);
        }
        fails(&frame(0x88, b"\x03\xe8\xff"), WireError::NotUtf8);
    }

    #[test]
    fn a_message_may_be_as_long_as_the_limit_and_no_longer() {
        let most = "x".repeat(1_000);
        assert_eq!(read(&[&frame(0x81, most.as_bytes())]), (vec![text(&most)], Ok(())));
        fails(&frame(0x81, &[b'x'; 1_001]), WireError::TooBig);
        let halves = [frame(0x01, &[b'x'; 500]), frame(0x89, &[0; 125]), frame(0x80, &[b'x'; 501])].concat();
        fails(&halves, WireError::TooBig);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_at_the_header_without_the_mask() {
        fails(&[0x81, 0xfe, 0x03, 0xe9], WireError::TooBig);
        fails(&[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], WireError::TooBig);
    }

    #[test]
    fn a_header_alone_reserves_nothing_and_memory_follows_the_bytes() {
        let limits = Limits { max_message: 64 * 1_024, max_fragments: 8 };
        let (mut reader, mut items) = (Reader::new(limits), Vec::new());
        let bytes = frame(0x81, &[b'x'; 60_000]);
        feed(&mut reader, &bytes[..8], &mut items).unwrap();
        assert_eq!(reader.held_bytes(), 0);
        feed(&mut reader, &bytes[8..108], &mut items).unwrap();
        assert!((100..=200).contains(&reader.held_bytes()));
        feed(&mut reader, &bytes[108..59_000], &mut items).unwrap();
        assert!((58_992..=60_000).contains(&reader.held_bytes()));
        feed(&mut reader, &bytes[59_000..], &mut items).unwrap();
        assert_eq!(reader.held_bytes(), 0, "the memory went with the item");
        assert_eq!(items, [text(&"x".repeat(60_000))]);
    }

    #[test]
    fn an_error_gives_the_memory_back_and_ends_the_reading() {
        let (mut reader, mut items) = (Reader::new(LIMITS), Vec::new());
        feed(&mut reader, &frame(0x01, b"half"), &mut items).unwrap();
        assert!(reader.held_bytes() >= 4);
        assert_eq!(feed(&mut reader, &frame(0x82, b""), &mut items), Err(WireError::Interleaved));
        assert_eq!((reader.held_bytes(), reader.is_partial()), (0, false));
        feed(&mut reader, &frame(0x81, b"x"), &mut items).unwrap();
        assert_eq!(items, []);
    }

    #[test]
    fn zero_is_no_limit() {
        let limits = Limits { max_message: 0, max_fragments: 0 };
        let mut reader = Reader::new(limits);
        let mut bytes = [frame(0x01, b"x"), frame(0x00, b"x").repeat(100_000), frame(0x80, b"x")].concat();
        let mut input = bytes.as_mut_slice();
        assert_eq!(reader.next(&mut input), Ok(Some(text(&"x".repeat(100_002)))));
    }

    #[test]
    fn the_number_of_an_unfinished_message_outlives_the_pings_inside_it() {
        let (mut reader, mut items) = (Reader::new(LIMITS), Vec::new());
        let mut step = |bytes: &[u8]| {
            feed(&mut reader, bytes, &mut items).unwrap();
            reader.unfinished()
        };
        assert_eq!(step(b""), None);
        assert_eq!(step(&[0x01]), Some(0));
        assert_eq!(step(&frame(0x01, b"a")[1..]), Some(0));
        assert_eq!(step(&frame(0x89, b"a")), Some(0));
        assert_eq!(step(&frame(0x80, b"b")[..3]), Some(0));
        assert_eq!(step(&frame(0x80, b"b")[3..]), None);
        assert_eq!(step(&frame(0x89, b"a")[..4]), Some(1));
        let ping_and_next = [&frame(0x89, b"a")[4..], &frame(0x81, b"c")[..3]].concat();
        assert_eq!(step(&ping_and_next), Some(2), "another message has begun in the same read");
    }

    #[test]
    fn an_idle_reader_is_small() {
        assert!(size_of::<Reader>() <= 128, "{}", size_of::<Reader>());
    }

    /// A message in fragments with pings between them, or a control frame, with the items it makes.
    fn sent() -> impl Strategy<Value = (Vec<u8>, Vec<Incoming<'static>>)> {
        let fragment = (prop::collection::vec(any::<u8>(), 0..40), prop::option::of(0..126_usize));
        let message = ("\\PC{0,160}", prop::collection::vec(fragment, 0..7)).prop_map(|(string, cuts)| {
            let (mut bytes, mut items, mut rest, mut first) = (Vec::new(), Vec::new(), string.as_bytes(), 0x01);
            for (size, ping) in cuts {
                let (part, behind) = rest.split_at(size.len().min(rest.len()));
                bytes.extend(frame(first, part));
                (rest, first) = (behind, 0x00);
                if let Some(len) = ping {
                    bytes.extend(frame(0x89, &vec![7; len]));
                    items.push(Incoming::Ping(vec![7; len].into()));
                }
            }
            bytes.extend(frame(0x80 | first, rest));
            items.push(text(&string));
            (bytes, items)
        });
        let pong = prop::collection::vec(any::<u8>(), 0..126)
            .prop_map(|payload| (frame(0x8a, &payload), vec![Incoming::Pong(payload.into())]));
        prop_oneof![3 => message, 1 => pong]
    }

    /// Splits `bytes` at the given places, taken modulo what is left.
    fn split<'a>(mut bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut reads = Vec::new();
        for cut in cuts {
            let (front, rest) = bytes.split_at(cut % (bytes.len() + 1));
            reads.push(front);
            bytes = rest;
        }
        reads.push(bytes);
        reads
    }

    proptest! {
        #[test]
        fn the_splits_between_reads_change_nothing(
            sent in prop::collection::vec(sent(), 0..6),
            cuts in prop::collection::vec(0..200_usize, 0..30),
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let items: Vec<_> = sent.into_iter().flat_map(|(_, items)| items).collect();
            prop_assert_eq!(read(&split(&bytes, &cuts)), (items.clone(), Ok(())));
            prop_assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), (items, Ok(())));
        }

        #[test]
        fn random_bytes_do_no_harm_and_fail_the_same_in_parts(
            frames in prop::collection::vec((prop::sample::select(vec![0x81, 0x01, 0x00, 0x80, 0x89, 0x88, 0x82, 0x91]),
                prop::collection::vec(any::<u8>(), 0..300)), 0..12),
            noise in prop::collection::vec(any::<u8>(), 0..60),
            ascii in any::<bool>(),
            cuts in prop::collection::vec(0..200_usize, 0..30),
        ) {
            let mut bytes = Vec::new();
            for (first, mut payload) in frames {
                if ascii {
                    payload.iter_mut().for_each(|byte| *byte &= 0x7f);
                }
                bytes.extend(frame(first, &payload));
            }
            bytes.extend(noise);
            let whole = read(&[&bytes]);
            prop_assert_eq!(&whole, &read(&split(&bytes, &cuts)));
            prop_assert_eq!(&whole, &read(&bytes.chunks(1).collect::<Vec<_>>()));
        }
    }
}
