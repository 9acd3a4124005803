//! The terminal of a chat: keys in, screens out. It is restored on every way out, a panic and a signal among them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use crossterm::event::Event;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::app::App;
use super::link::Link;
use super::rows::Look;
use super::screen::draw;
use super::talk::{News, Want};
use crate::cli::terminal;
use crate::clock::Clock;
use crate::domain::id::ChannelId;

/// A busy channel is drawn no more often than this.
const FRAME: Duration = Duration::from_millis(30);
/// How often time is looked at, for what expires.
const TICK: Duration = Duration::from_millis(250);

/// Runs until the user leaves or the hub ends the session for good.
pub(super) async fn run(link: &mut Link, mut app: App, place: Option<ChannelId>, clock: &Clock) -> Result<ExitCode> {
    let look = Look { zone: zone(), colours: terminal::colours() };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let (mut terminal, mut keys, restore) = terminal::take()?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wants = app.begin(place);
    let (mut stale, mut next_frame) = (true, Instant::now());
    let over = loop {
        for want in wants.drain(..) {
            if want == Want::Quit {
                drop(restore);
                return Ok(ExitCode::SUCCESS);
            }
            link.carry(want).await;
        }
        let now = clock.now();
        tokio::select! {
            news = link.next() => {
                if let News::Over(why) = news {
                    break why;
                }
                wants = app.take(news, now);
            }
            key = keys.recv() => match key {
                Some(Event::Key(key)) => wants = app.press(key, now),
                Some(Event::Paste(text)) => wants = app.write(&text, now),
                Some(_) => {}
                None => break "the terminal is gone".to_owned(),
            },
            () = sleep_until(next_frame), if stale => {
                terminal.draw(|frame| draw(frame, &mut app, look))?;
                next_frame = Instant::now() + FRAME;
                stale = false;
                wants = app.tick(now);
                continue;
            }
            _ = tick.tick() => wants = app.tick(now),
            _ = terminate.recv() => wants = vec![Want::Quit],
            _ = hangup.recv() => wants = vec![Want::Quit],
            _ = interrupt.recv() => wants = vec![Want::Quit],
        }
        stale = true;
    };
    drop(restore);
    bail!(over)
}

/// Returns the zone of this machine in seconds east of Greenwich; Greenwich, if it cannot be told.
fn zone() -> i64 {
    let output = std::process::Command::new("date").arg("+%z").output();
    output.ok().and_then(|output| offset(&String::from_utf8_lossy(&output.stdout))).unwrap_or(0)
}

/// Reads `+0530`.
fn offset(text: &str) -> Option<i64> {
    let number: i64 = text.trim().parse().ok()?;
    Some(number / 100 * 3_600 + number % 100 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_on_both_sides_of_greenwich() {
        assert_eq!(offset("+0530\n"), Some(19_800));
        assert_eq!(offset("-0330"), Some(-12_600));
        assert_eq!(offset("EST"), None);
    }
}
