//! Decodes any text as a message of a client: no panic, and a command that is accepted is written and read as the same.
#![no_main]

use colink::domain::command::Command;
use colink::domain::text;
use colink::protocol::client::{self, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let Ok(frame) = client::decode(input) else { return };
    let Ok(Request::Command(command)) = frame.request else { return };
    // What is kept with an idempotency key, and compared with a repeat.
    let again = Command::decode(command.name(), &command.body());
    assert_eq!(again, Some(Ok(command.clone())));
    if let (Ok(()), Command::SendMessage(message)) = (command.validate(), &command) {
        assert!(text::mentions(&message.text).names.len() <= text::MENTIONS_MAX);
    }
});
