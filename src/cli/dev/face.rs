//! Where people see it: the whole terminal, or lines.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Result;
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::DefaultTerminal;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::screen::{Page, draw};
use super::sight::Sight;
use crate::cli::terminal::{self, Restore};

/// How often lines say how everything stands, also if nothing happens.
const SUMMARY: Duration = Duration::from_secs(10);

/// Says how starting and stopping go on.
pub(super) fn say(what: &str) {
    // It goes on even if nobody reads it any more.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// What somebody wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Press {
    Quit,
    /// Kill a node, or start it: its number, from 0.
    Node(usize),
    Redis,
    Postgres,
}

impl Press {
    fn of(key: char) -> Option<Press> {
        match key {
            'q' => Some(Press::Quit),
            'r' => Some(Press::Redis),
            'p' => Some(Press::Postgres),
            '1'..='9' => Some(Press::Node(key as usize - '1' as usize)),
            _ => None,
        }
    }
}

/// Where it is shown, and where the keys come from.
pub(super) struct Face {
    keys: String,
    kind: Kind,
}

enum Kind {
    Screen { terminal: DefaultTerminal, presses: mpsc::Receiver<Event>, _restore: Restore },
    Lines { input: Option<Lines<BufReader<Stdin>>>, summed_up: Option<Instant> },
}

impl Face {
    /// Takes the terminal if there is one; `keys` tells which key does what.
    pub(super) fn take(plain: bool, keys: String) -> Result<Face> {
        let on_a_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let kind = if on_a_terminal && !plain {
            let (terminal, presses, restore) = terminal::take()?;
            Kind::Screen { terminal, presses, _restore: restore }
        } else {
            say(&format!("keys, one a line: {keys}"));
            let input = Some(BufReader::new(tokio::io::stdin()).lines());
            Kind::Lines { input, summed_up: None }
        };
        Ok(Face { keys, kind })
    }

    /// Shows what is seen, and all that happened, of which the last `fresh` were not shown before; returns whether somebody
    /// still reads it.
    pub(super) fn show(&mut self, sight: &Sight, news: &[(u64, String)], fresh: usize) -> Result<bool> {
        match &mut self.kind {
            Kind::Screen { terminal, .. } => {
                let page = Page { sight, news, keys: &self.keys, colours: terminal::colours() };
                terminal.draw(|frame| draw(frame, &page))?;
                Ok(true)
            }
            Kind::Lines { summed_up, .. } => {
                let mut lines: Vec<String> =
                    news[news.len() - fresh..].iter().map(|(at, what)| format!("{at:>5} s  {what}")).collect();
                if summed_up.is_none_or(|at| at.elapsed() >= SUMMARY) {
                    *summed_up = Some(Instant::now());
                    lines.push(format!("         {}", sight.summary()));
                }
                print(&lines)
            }
        }
    }

    /// Waits for a key that means something. May be cancelled without losing one.
    pub(super) async fn press(&mut self) -> Press {
        loop {
            let press = match &mut self.kind {
                Kind::Screen { presses, .. } => match presses.recv().await {
                    Some(Event::Key(key)) => of_key(key),
                    Some(_) => None,
                    // The terminal is gone.
                    None => Some(Press::Quit),
                },
                Kind::Lines { input, .. } => match next_line(input).await {
                    Ok(Some(line)) => line.trim().chars().next().and_then(Press::of),
                    // The input's end is not the end.
                    Ok(None) | Err(_) => {
                        *input = None;
                        None
                    }
                },
            };
            if let Some(press) = press {
                return press;
            }
        }
    }
}

async fn next_line(input: &mut Option<Lines<BufReader<Stdin>>>) -> std::io::Result<Option<String>> {
    match input {
        Some(lines) => lines.next_line().await,
        None => std::future::pending().await,
    }
}

fn of_key(key: KeyEvent) -> Option<Press> {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Press::Quit),
        KeyCode::Char(key) => Press::of(key),
        _ => None,
    }
}

/// Prints lines; returns whether somebody still reads them.
fn print(lines: &[String]) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match lines.iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let plain = |key| of_key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
        assert_eq!((plain('1'), plain('9')), (Some(Press::Node(0)), Some(Press::Node(8))));
        assert_eq!(
            (plain('q'), plain('r'), plain('p')),
            (Some(Press::Quit), Some(Press::Redis), Some(Press::Postgres))
        );
        assert_eq!((plain('0'), plain('c')), (None, None));
        assert_eq!(of_key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Press::Quit));
    }
}
