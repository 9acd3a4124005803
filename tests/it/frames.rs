//! RFC 6455 as a client may break it, cut it up or drag it out.

use serde_json::json;

use crate::socket::{BINARY, CLOSE, CONTINUATION, Incoming, PING, TEXT, frame};
use crate::world::{World, time_passes, within};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_frame_is_1002() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let mut reserved = frame(true, TEXT, b"{}");
    reserved[0] |= 0x40;
    let mut unmasked = vec![0x81, 2];
    unmasked.extend(b"{}");
    let interleaved = [frame(false, TEXT, b"{"), frame(true, TEXT, b"{}")].concat();
    for (what, bytes) in [
        ("reserved bits", reserved),
        ("no mask", unmasked),
        ("a reserved opcode", frame(true, 3, b"")),
        ("a long ping", frame(true, PING, &[0; 126])),
        ("a fragmented ping", frame(false, PING, b"")),
        ("nothing to continue", frame(true, CONTINUATION, b"")),
        ("a message within a message", interleaved),
        ("a close frame of one byte", frame(true, CLOSE, &[3])),
        ("a close code that may not be sent", frame(true, CLOSE, &1_006u16.to_be_bytes())),
        ("a length that is too long", vec![0x81, 0xfe, 0, 2, 0, 0, 0, 0, b'{', b'}']),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let mut socket = ana.connects().await;
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.closes().await, 1002, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_is_1003_broken_utf8_is_1007_and_a_goodbye_is_answered() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    for (fin, opcode, payload, code) in [
        (true, BINARY, &b"{}"[..], 1003),
        (true, TEXT, &[b'"', 0xff, b'"'][..], 1007),
        (true, TEXT, &[0xed, 0xa0, 0x80][..], 1007),
        (true, CLOSE, &[3, 232, 0xff][..], 1007),
        (true, CLOSE, &[3, 232][..], 1000),
        (true, CLOSE, &[][..], 1000),
    ] {
        let (mut fresh, mut open) = (ana.opens().await, ana.connects().await);
        for socket in [&mut fresh, &mut open] {
            socket.send_frame(fin, opcode, payload).await;
            assert_eq!(socket.closes().await, code, "{opcode} {payload:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_big_is_1009_however_it_is_cut() {
    let world = World::with(|config| {
        config.gateway.max_message_bytes = 4_096;
        config.gateway.max_fragments = 8;
        config.gateway.message_timeout_ms = 200;
    })
    .await;
    let ana = world.user("ana").await;
    let whole = frame(true, TEXT, &[b' '; 5_000]);
    // Only the header of a huge frame: nothing may be reserved for it.
    let header = vec![0x81, 0xff, 0, 0, 0, 255, 255, 255, 255, 255, 1, 2, 3, 4];
    let mut parts = frame(false, TEXT, &[b' '; 1_024]);
    (0..4).for_each(|_| parts.extend(frame(false, CONTINUATION, &[b' '; 1_024])));
    let mut crumbs = frame(false, TEXT, b"{");
    (0..8).for_each(|_| crumbs.extend(frame(false, CONTINUATION, b"")));
    for (what, bytes) in [("whole", whole), ("a header", header), ("parts", parts), ("crumbs", crumbs)] {
        let mut socket = ana.connects().await;
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.closes().await, 1009, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_never_ends_is_1009_even_with_pings_in_between() {
    let world = World::with(|config| {
        config.gateway.max_fragments = 0;
        config.gateway.message_timeout_ms = 300;
    })
    .await;
    let ana = world.user("ana").await;
    let (mut crumbs, mut half) = (ana.connects().await, ana.connects().await);
    half.send_bytes(&[0x81]).await;
    crumbs.send_frame(false, TEXT, b"{").await;
    let flood = async {
        loop {
            tokio::select! {
                end = crumbs.read() => match end {
                    Incoming::Pong(_) => {}
                    end => return end,
                },
                () = time_passes(20) => {}
            }
            crumbs.send_bytes(&[frame(false, CONTINUATION, b""), frame(true, PING, b"")].concat()).await;
        }
    };
    let (flood, half) = within("both to be closed", async { tokio::join!(flood, half.closes()) }).await;
    assert!(matches!(flood, Incoming::Closed(1009, _)), "{flood:?}");
    assert_eq!(half, 1009, "half a header is a message too");
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_and_pings_between_them_are_understood() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let mut socket = ana.opens().await;
    let identify = json!({"id": 1, "type": "identify", "d": {"token": ana.token, "unknown": {"a": []}}}).to_string();
    let (head, tail) = identify.as_bytes().split_at(20);
    socket.send_frame(false, TEXT, head).await;
    socket.send_frame(true, PING, b"are you there").await;
    assert!(matches!(socket.read().await, Incoming::Pong(payload) if payload == b"are you there"));
    for byte in frame(true, CONTINUATION, tail) {
        socket.send_bytes(&[byte]).await;
    }
    assert_eq!(socket.next().await["type"], "ready");
}
