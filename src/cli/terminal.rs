//! A terminal that is drawn on whole: it is restored on every way out, a panic and a signal among them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use crossterm::event::{self, DisableBracketedPaste, EnableBracketedPaste, Event};
use crossterm::execute;
use ratatui::DefaultTerminal;
use tokio::sync::mpsc;

/// How soon the reading of keys ends after it is told to.
const TICK: Duration = Duration::from_millis(250);

/// Puts the terminal back when it is dropped.
pub(super) struct Restore {
    stop: Arc<AtomicBool>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // If the terminal is gone there is nothing to restore.
        drop(execute!(io::stdout(), DisableBracketedPaste));
        drop(ratatui::try_restore());
    }
}

/// Takes the terminal: what is drawn on, the keys as they are pressed, and what puts it back.
pub(super) fn take() -> Result<(DefaultTerminal, mpsc::Receiver<Event>, Restore)> {
    let stop = Arc::new(AtomicBool::new(false));
    // Also has a panic restore the terminal before it is told of.
    let terminal = ratatui::try_init().context("cannot use the terminal")?;
    let restore = Restore { stop: Arc::clone(&stop) };
    execute!(io::stdout(), EnableBracketedPaste)?;
    Ok((terminal, read_keys(stop), restore))
}

/// Returns whether colours are wanted, see no-color.org.
pub(super) fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Reads keys on a thread of their own, as reading blocks. It ends within a tick of being told to.
fn read_keys(stop: Arc<AtomicBool>) -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(256);
    tokio::task::spawn_blocking(move || {
        while !stop.load(Ordering::Acquire) {
            let key = match event::poll(TICK) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let Ok(key) = key else { return };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    keys
}
