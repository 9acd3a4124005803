use super::*;
use crate::clock::Timestamp;
use crate::protocol::push::Encoded;

const BOUNDS: Bounds = Bounds { events: 8, bytes: 1_000, ring: 32, window: Duration::from_secs(300) };

fn stream(n: i64) -> StreamId {
    StreamId(uuid::Uuid::from_u128(n as u128))
}

fn batch(of: i64, seqs: std::ops::RangeInclusive<i64>) -> Arc<Batch> {
    let frames = seqs.map(|seq| Encoded { seq, reaction: false, tail: Bytes::from(format!("{of}:{seq}")) }).collect();
    Batch::new(stream(of), frames, None)
}

fn drain(queue: &Queue) -> Vec<String> {
    let mut out = Vec::new();
    queue.take(1, usize::MAX, |s, bytes| {
        let text = std::str::from_utf8(bytes).unwrap();
        out.push(s.map_or(text.to_owned(), |s| format!("{s}/{text}")));
    });
    out
}

#[test]
fn events_are_numbered_when_they_are_taken_and_resumed_by_number() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.push(&batch(1, 1..=2));
    queue.push_control("reply");
    queue.push(&batch(2, 1..=1));
    assert_eq!(drain(&queue), ["reply", "2/1:1", "3/1:2", "4/2:1"]);
    queue.detach(1);
    queue.push(&batch(1, 3..=3));
    assert_eq!(queue.resume(1, 3), Some(2));
    assert_eq!(drain(&queue), ["4/2:1", "5/1:3"]);
    assert!(queue.acknowledge(5));
    assert_eq!(queue.resume(1, 3), None, "what was acknowledged is gone");
    assert_eq!(queue.resume(1, 5), Some(0));
    assert_eq!(queue.resume(1, 6), None, "nobody was sent this");
    assert!(!queue.acknowledge(6));
}

/// Returns the ranges that a numbered `lagged` tells of.
fn lag_of(frame: &str) -> Option<serde_json::Value> {
    let (_, tail) = frame.split_once('/')?;
    let told: serde_json::Value = serde_json::from_str(&format!("{{{tail}")).ok()?;
    (told["type"] == "lagged").then(|| told["d"].clone())
}

#[test]
fn a_slow_reader_loses_its_busiest_stream_and_is_told_which_range() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.push(&batch(2, 7..=7));
    for seq in 1..=20 {
        queue.push(&batch(1, seq..=seq));
    }
    queue.push(&batch(2, 8..=8));
    let out = drain(&queue);
    assert_eq!(out[..2], ["2/2:7", "3/2:8"]);
    assert!(out[2].starts_with("4/") && out[2].contains("lagged"), "{}", out[2]);
    assert!(out[2].contains(r#""from":1,"to":20"#), "{}", out[2]);
    queue.push(&batch(1, 21..=21));
    assert_eq!(drain(&queue), ["5/1:21"], "afterwards it flows again");
}

#[test]
fn the_log_goes_out_before_what_waits_and_is_read_as_it_is_taken() {
    let queue = Queue::new(Bounds { ring: 128, ..BOUNDS }, 1, stream(9));
    let room = || {
        let mut cx = Context::from_waker(Waker::noop());
        queue.poll_room(&mut cx)
    };
    queue.push(&batch(1, 72..=72));
    queue.expect_pages(71);
    assert!(drain(&queue).is_empty(), "what waits comes behind the log");
    queue.push_page(Some(batch(1, 1..=60)), 60);
    assert_eq!(room(), Poll::Ready(true));
    queue.push_page(Some(batch(1, 61..=70)), 10);
    assert_eq!(room(), Poll::Pending, "that is enough");
    assert_eq!(drain(&queue).len(), 70);
    assert_eq!(room(), Poll::Ready(true));
    queue.detach(1);
    assert_eq!(queue.resume(1, 69), Some(12), "the second page again, what is not read yet, and what waits");
    queue.push_page(None, 1);
    let out = drain(&queue);
    assert_eq!((out.len(), out[9].as_str()), (11, "71/1:70"));
    assert_eq!(out[10], "72/1:72", "a page that may no longer be read stands for nothing");
    queue.close(CloseCode::Revoked);
    assert_eq!(room(), Poll::Ready(false));
}

#[test]
fn a_lag_tells_channels_from_other_streams() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    for seq in 1..=20 {
        queue.push(&batch(9, seq..=seq));
    }
    let told = lag_of(&drain(&queue)[0]);
    let ranges = serde_json::json!({"channels": {}, "streams": {stream(9).to_string(): {"from": 1, "to": 20}}});
    assert_eq!(told, Some(ranges));
}

#[test]
fn a_session_nobody_reads_keeps_a_bounded_amount() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.detach(1);
    for seq in 1..=40 {
        queue.push(&batch(1, seq..=seq));
    }
    assert_eq!(queue.resume(1, 1), None);
}

#[test]
fn a_retired_queue_is_resumed_by_nobody_and_one_in_use_is_not_retired() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    assert!(!queue.retire(0), "a connection has it");
    assert_eq!(queue.resume(2, 1), Some(0));
    assert!(!queue.retire(1), "another connection has it by now");
    assert!(queue.retire(2));
    assert_eq!(queue.resume(3, 1), None);
}

#[test]
fn ephemeral_frames_are_merged() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    let user = crate::domain::id::UserId::new(Timestamp(1));
    for n in 0..5 {
        queue.push_ephemeral(Ephemeral::Presence(user), Bytes::from(format!("{n}")));
    }
    assert_eq!(drain(&queue), ["4"]);
}

#[test]
fn a_revoked_session_is_given_nothing_more() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.push(&batch(1, 1..=2));
    assert_eq!(drain(&queue).len(), 2);
    assert_eq!(queue.resume(1, 1), Some(2), "to be sent again");
    queue.push(&batch(1, 3..=3));
    queue.push_control("reply");
    queue.close(CloseCode::RateLimited);
    queue.close(CloseCode::Revoked);
    queue.push(&batch(1, 4..=4));
    queue.push_control("reply");
    let taken = queue.take(1, usize::MAX, |_, frame| panic!("{frame:?}"));
    assert_eq!(taken, Taken { close: Some(CloseCode::Revoked), ..Taken::default() });
    queue.detach(1);
    assert_eq!(queue.resume(2, 1), None);
}

#[test]
fn what_waits_goes_out_before_another_goodbye_and_nothing_comes_behind_it() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.push(&batch(1, 1..=1));
    queue.close(CloseCode::Restart);
    queue.push(&batch(1, 2..=2));
    assert_eq!(drain(&queue), ["2/1:1"]);
    assert_eq!(queue.take(1, usize::MAX, |_, _| {}).close, Some(CloseCode::Restart));
}

#[test]
fn a_lag_that_was_lost_on_the_way_is_told_again() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    for seq in 1..=20 {
        queue.push(&batch(1, seq..=seq));
    }
    let told = drain(&queue);
    assert!(told.len() == 1 && lag_of(&told[0]).is_some(), "{told:?}");
    queue.detach(1);
    assert_eq!(queue.resume(1, 1), Some(1));
    assert_eq!(drain(&queue), told);
    assert!(queue.acknowledge(2));
    assert_eq!(queue.resume(1, 2), Some(0));
}

#[test]
fn a_lag_that_was_not_told_yet_is_no_memory_to_resume_from() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    for seq in 1..=20 {
        queue.push(&batch(1, seq..=seq));
    }
    assert_eq!(queue.resume(2, 1), None, "another connection, while the first is stuck");
    queue.detach(1);
    assert_eq!(queue.resume(2, 1), None);
}

#[test]
fn too_many_bytes_drop_the_stream_with_the_most_of_them() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    let big = |of, seq, len: usize| {
        let tail = Bytes::from("x".repeat(len));
        Batch::new(stream(of), vec![Encoded { seq, reaction: false, tail }], None)
    };
    for seq in 1..=3 {
        queue.push(&batch(1, seq..=seq));
    }
    queue.push(&big(2, 1, 950));
    queue.push(&big(3, 1, 300));
    let out = drain(&queue);
    assert_eq!(out[..3], ["2/1:1", "3/1:2", "4/1:3"], "the small ones stay");
    assert_eq!((out.len(), out[3].len()), (5, 302));
    assert_eq!(lag_of(&out[4]).unwrap()["channels"].as_object().unwrap().len(), 1);
    // Several streams have to go for one that is large alone.
    for of in 1..=3 {
        queue.push(&big(of, 9, 300));
    }
    queue.push(&big(4, 9, 1_001));
    let lag = lag_of(drain(&queue).last().unwrap()).unwrap();
    assert_eq!(lag["channels"].as_object().unwrap().len(), 1, "{lag}");
}

#[test]
fn the_ring_is_bounded_in_bytes() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    for seq in 1..=10 {
        let tail = Bytes::from("x".repeat(900));
        queue.push(&Batch::new(stream(1), vec![Encoded { seq, reaction: false, tail }], None));
        drain(&queue);
    }
    assert_eq!(queue.resume(1, 6), None, "five of them are over four times the bytes that may wait");
    assert_eq!(queue.resume(1, 7), Some(4));
}

#[test]
fn what_a_resume_promised_is_not_shed() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.detach(1);
    for seq in 1..=20 {
        queue.push(&batch(1, seq..=seq));
    }
    assert_eq!(queue.resume(1, 1), Some(20));
    queue.push(&batch(1, 21..=21));
    let out = drain(&queue);
    assert_eq!((out.len(), out[20].as_str()), (21, "22/1:21"), "{out:?}");
}

#[test]
fn a_resume_promises_no_more_than_memory_holds() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    for seq in 1..=20 {
        queue.push(&batch(1, seq..=seq));
        drain(&queue);
    }
    queue.detach(1);
    for seq in 21..=40 {
        queue.push(&batch(1, seq..=seq));
    }
    assert_eq!(queue.resume(1, 1), None, "20 again and 20 more are over 32");
    assert_eq!(queue.resume(1, 15), Some(26));
    let out = drain(&queue);
    assert_eq!((out.len(), out[0].as_str(), out[25].as_str()), (26, "16/1:15", "41/1:40"));
    assert_eq!(queue.resume(1, 15), Some(26), "all of it can be lost once more");
}

#[test]
fn who_is_told_to_slow_down_may_resume_before_that_is_out() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    queue.close(CloseCode::RateLimited);
    assert_eq!(queue.resume(2, 1), Some(0));
    assert_eq!(queue.take(2, usize::MAX, |_, _| {}).close, None);
    queue.close(CloseCode::RateLimited);
    assert!(queue.retire(2));
    assert_eq!(queue.resume(3, 1), None, "but not once the session is over");
}

#[test]
fn nobody_of_those_watched_is_left_out_however_many_they_are() {
    let queue = Queue::new(BOUNDS, 1, stream(9));
    let user = |n| crate::domain::id::UserId(uuid::Uuid::from_u128(n));
    for n in 0..3_000 {
        let channel = crate::domain::id::ChannelId(uuid::Uuid::from_u128(1));
        queue.push_ephemeral(Ephemeral::Typing(channel, user(n), None), Bytes::from("typing"));
    }
    for n in 0..3_000 {
        queue.push_ephemeral(Ephemeral::Presence(user(n)), Bytes::from("presence"));
    }
    let out = drain(&queue);
    assert_eq!(out.iter().filter(|frame| *frame == "presence").count(), 3_000);
    assert!(out.len() <= 3_000 + EPHEMERAL_MAX, "but typing is bounded");
}

proptest::proptest! {
    #[test]
    fn nothing_is_missed_and_the_bounds_hold(steps in proptest::collection::vec((0u8..8, 1i64..4), 1..200)) {
        // Few enough bytes that these, too, are too many at times.
        let bounds = Bounds { bytes: 80, ..BOUNDS };
        let queue = Queue::new(bounds, 1, stream(9));
        let mut sent = [0i64; 4];
        // What the client has applied of each stream, and which ranges it still has to fetch.
        let mut applied = [0i64; 4];
        let mut last_s = 1;
        let mut attached = true;
        let apply = |queue: &Queue, applied: &mut [i64; 4], last_s: &mut i64| {
            for text in drain(queue) {
                let (s, rest) = text.split_once('/').unwrap();
                let s = s.parse().unwrap();
                assert!(s <= *last_s + 1, "a number that was left out");
                *last_s = s;
                if let Some(lag) = lag_of(&text) {
                    for (id, range) in lag["channels"].as_object().unwrap() {
                        let n = uuid::Uuid::parse_str(id).unwrap().as_u128() as usize;
                        assert!(range["from"].as_i64().unwrap() <= applied[n] + 1);
                        applied[n] = applied[n].max(range["to"].as_i64().unwrap());
                    }
                    continue;
                }
                let (n, seq) = rest.trim().split_once(':').unwrap();
                let (n, seq): (usize, i64) = (n.parse().unwrap(), seq.parse().unwrap());
                if seq > applied[n] {
                    assert_eq!(seq, applied[n] + 1, "a gap that nobody told of");
                    applied[n] = seq;
                }
            }
        };
        for (step, n) in steps {
            match step {
                0..=2 => {
                    let seqs = sent[n as usize] + 1..=sent[n as usize] + 3;
                    // The third stream has few events, and most of the bytes.
                    let wide = |seq| format!("{:<width$}", format!("{n}:{seq}"), width = if n == 3 { 70 } else { 0 });
                    let seqs = if n == 3 { sent[3] + 1..=sent[3] + 1 } else { seqs };
                    sent[n as usize] = *seqs.end();
                    let frame = |seq| Encoded { seq, reaction: false, tail: Bytes::from(wide(seq)) };
                    queue.push(&Batch::new(stream(n), seqs.map(frame).collect(), None));
                }
                3 if attached => apply(&queue, &mut applied, &mut last_s),
                4 if attached => { queue.acknowledge(last_s); }
                5 if attached => { queue.detach(1); attached = false; }
                // Written, but lost with the connection: all of it, or what did not fit.
                6 if attached => { drain(&queue); queue.detach(1); attached = false; }
                7 if attached => { queue.take(1, 10, |_, _| {}); queue.detach(1); attached = false; }
                _ if !attached => match queue.resume(1, last_s) {
                    Some(_) => { attached = true; }
                    None => return Ok(()),
                },
                _ => {}
            }
            let inner = queue.lock();
            proptest::prop_assert!(inner.ring.events() <= bounds.ring);
            proptest::prop_assert!(inner.ring.bytes() <= bounds.ring_bytes());
            proptest::prop_assert!(!attached || inner.waiting_events <= bounds.events);
            proptest::prop_assert!(!attached || inner.waiting_bytes <= bounds.bytes);
            proptest::prop_assert!(attached || inner.waiting_events <= bounds.ring);
            proptest::prop_assert!(attached || inner.waiting_bytes <= bounds.ring_bytes());
        }
        if attached {
            apply(&queue, &mut applied, &mut last_s);
            proptest::prop_assert_eq!(applied, sent);
        }
    }
}
