//! What the nodes of this process log, for the few tests that look at it.

use std::sync::{Arc, Mutex, Once};

/// What is listened for, and the lines that have it.
type Kept = Vec<(&'static str, Arc<Mutex<String>>)>;

static KEPT: Mutex<Kept> = Mutex::new(Vec::new());
static STARTED: Once = Once::new();

/// Keeps the lines that have a word which no other test logs, of what is logged from now on.
pub(crate) fn lines_with(word: &'static str) -> Arc<Mutex<String>> {
    STARTED.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::new("info,colink=debug");
        let lines = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter).with_writer(|| Line);
        tracing::subscriber::set_global_default(lines.finish()).expect("nobody else listens to the log");
    });
    let lines = Arc::<Mutex<String>>::default();
    KEPT.lock().unwrap().push((word, lines.clone()));
    lines
}

struct Line;

impl std::io::Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        for (_, lines) in KEPT.lock().unwrap().iter().filter(|(word, _)| text.contains(word)) {
            lines.lock().unwrap().push_str(&text);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
