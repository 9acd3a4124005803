//! Decodes any bytes as the body of any command: no panic, and what is accepted can be written again.
#![no_main]

use colink::domain::command::Command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&pick, body)) = data.split_first() else { return };
    let Ok(body) = std::str::from_utf8(body) else { return };
    let name = Command::NAMES[usize::from(pick) % Command::NAMES.len()];
    if let Some(Ok(command)) = Command::decode(name, body) {
        assert_eq!(command.name(), name);
        assert!(!command.body().is_empty());
    }
});
