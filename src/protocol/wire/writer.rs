//! Writes the frames of the server: each is appended to a buffer, unmasked and whole.

use fastwebsockets::OpCode;

use super::CONTROL_MAX;

/// Appends the header of a text frame of `len` bytes, to be followed by just as many.
pub fn text_header(len: usize, out: &mut Vec<u8>) {
    header(OpCode::Text, len, out);
}

/// Appends a text frame made of `parts`, which together have to be UTF-8.
pub fn write_text(parts: &[&[u8]], out: &mut Vec<u8>) {
    let len = parts.iter().map(|part| part.len()).sum();
    out.reserve(len + 10);
    text_header(len, out);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends a ping. Of the payload at most [`CONTROL_MAX`] bytes are sent.
pub fn write_ping(payload: &[u8], out: &mut Vec<u8>) {
    control(OpCode::Ping, payload, out);
}

/// Appends the answer to a ping. Of the payload at most [`CONTROL_MAX`] bytes are sent.
pub fn write_pong(payload: &[u8], out: &mut Vec<u8>) {
    control(OpCode::Pong, payload, out);
}

/// Appends a close frame. The reason is cut at a character to the 123 bytes that there is room for.
pub fn write_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_MAX - 2)];
    header(OpCode::Close, 2 + reason.len(), out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

fn control(opcode: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    let payload = &payload[..payload.len().min(CONTROL_MAX)];
    header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

pub(super) fn header(opcode: OpCode, len: usize, out: &mut Vec<u8>) {
    out.push(0x80 | opcode as u8);
    if len < 126 {
        out.push(len as u8);
    } else if let Ok(len) = u16::try_from(len) {
        out.push(126);
        out.extend_from_slice(&len.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_are_written() {
        let mut out = Vec::new();
        write_text(&[b"Hel", b"lo"], &mut out);
        assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        write_ping(b"Hello", &mut out);
        assert_eq!(out, [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        text_header(256, &mut out);
        assert_eq!(out, [0x81, 0x7e, 0x01, 0x00]);
        out.clear();
        text_header(65_536, &mut out);
        assert_eq!(out, [0x81, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
        out.clear();
        write_close(4_010, "slow", &mut out);
        assert_eq!(out, [0x88, 0x06, 0x0f, 0xaa, b's', b'l', b'o', b'w']);
        out.clear();
        write_close(1_000, &"ü".repeat(100), &mut out);
        assert_eq!(out[..2], [0x88, 124], "cut at a character");
        out.clear();
        write_pong(&[0; 300], &mut out);
        assert_eq!(out.len(), 2 + CONTROL_MAX);
    }
}
