//! Line mode: each line of the input is sent to one channel, and what happens there is printed a line at a time.
//!
//! Own messages are printed too, when they come back: the output is the channel's order. The input's end is not the end:
//! first every line has been answered, and printed.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::app::App;
use super::link::Link;
use super::talk::{News, Post, Want};
use super::text::clean;
use crate::client::Event;
use crate::clock::Clock;
use crate::domain::id::{ChannelId, MessageId, UserId};
use crate::domain::user::Presence;

/// How many lines are on their way before the input is read on.
const WAITING: usize = 64;
/// How long what was sent may take to come back.
const ECHO: Duration = Duration::from_secs(10);
/// How long to go on trying without a connection.
const PATIENCE: Duration = Duration::from_mins(5);

struct Plain {
    app: App,
    channel: ChannelId,
    presence: std::collections::HashMap<UserId, Presence>,
    /// The newest event that was shown, and the newest own message that was answered.
    shown: i64,
    answered: i64,
}

/// Runs until the input has ended and all of it is in the channel; with `follow`, until it is told to stop.
pub(super) async fn run(link: &mut Link, app: App, channel: ChannelId, follow: bool) -> Result<ExitCode> {
    link.set_patience(PATIENCE);
    let clock = Clock::default();
    let mut plain = Plain { app, channel, presence: std::collections::HashMap::new(), shown: 0, answered: 0 };
    link.carry(Want::Members(channel)).await;
    let mut lines: Option<Lines<BufReader<Stdin>>> = Some(BufReader::new(tokio::io::stdin()).lines());
    let mut deadline = None;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        let done = lines.is_none() && !follow && link.unanswered() == 0;
        if done && plain.shown >= plain.answered {
            return Ok(ExitCode::SUCCESS);
        }
        if done && deadline.is_none() {
            deadline = Some(Instant::now() + ECHO);
        }
        let late = deadline.unwrap_or_else(Instant::now);
        tokio::select! {
            line = next_line(&mut lines), if lines.is_some() && link.unanswered() < WAITING => match line? {
                Some(text) if text.trim().is_empty() => {}
                Some(text) => {
                    let key = MessageId::new(clock.now()).to_string();
                    link.carry(Want::Post(Post { channel, text, thread: None, key })).await;
                }
                None => lines = None,
            },
            news = link.next() => {
                let (wants, rows) = plain.take(news, &clock)?;
                if !print(&rows)? {
                    return Ok(ExitCode::SUCCESS);
                }
                for want in wants {
                    link.carry(want).await;
                }
            }
            // The end that one with `follow` waits for; anything else was cut short.
            _ = terminate.recv() => return Ok(if done || follow { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            _ = interrupt.recv() => return Ok(if done || follow { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            () = sleep_until(late), if deadline.is_some() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn next_line(lines: &mut Option<Lines<BufReader<Stdin>>>) -> std::io::Result<Option<String>> {
    match lines {
        Some(lines) => lines.next_line().await,
        None => std::future::pending().await,
    }
}

/// Prints rows; returns whether somebody still reads them.
fn print(rows: &[String]) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    let written = rows.iter().try_for_each(|row| writeln!(out, "{row}")).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

#[derive(Deserialize)]
struct OfUser {
    user_id: UserId,
    #[serde(default)]
    presence: Option<Presence>,
}

#[derive(Deserialize)]
struct Changed {
    #[serde(default)]
    text: String,
}

impl Plain {
    /// Takes news; returns what is to be done and what is to be printed.
    fn take(&mut self, news: News, clock: &Clock) -> Result<(Vec<Want>, Vec<String>)> {
        let mut rows = Vec::new();
        match &news {
            News::Over(why) => bail!("{why}"),
            News::Unposted { post, why } => bail!("cannot send `{}`: {why}", clean(&post.text)),
            News::Posted { seq, .. } => self.answered = self.answered.max(*seq),
            News::Members { members, .. } => {
                let me = self.app.me.id;
                let others = members.iter().map(|member| member.0).filter(|user| *user != me).collect();
                return Ok((vec![Want::Watch(others)], rows));
            }
            News::Event(event) => rows = self.show(event),
            _ => {}
        }
        let wants = self.app.take(news, clock.now());
        // Whom to watch is decided here: the members of the channel.
        Ok((wants.into_iter().filter(|want| *want == Want::Refresh).collect(), rows))
    }

    fn show(&mut self, event: &Event) -> Vec<String> {
        if event.kind == "presence" {
            return self.show_presence(event);
        }
        if event.channel_id != Some(self.channel) {
            return Vec::new();
        }
        if let Some(seq) = event.seq {
            self.shown = self.shown.max(seq);
        }
        if let Some(message) = event.message() {
            let text = clean(&message.text).replace('\n', "\n    ");
            return vec![format!("{}: {text}", self.app.name(message.author_id))];
        }
        let who = event.data::<OfUser>().ok().map(|of| of.user_id).or(event.actor_id);
        let name = who.map_or("somebody", |user| self.app.name(user));
        let happened = match event.kind.as_str() {
            "typing" => "is typing".to_owned(),
            "member.joined" => "came in".to_owned(),
            "member.left" => "left".to_owned(),
            "message.deleted" => "deleted a message".to_owned(),
            "message.updated" => {
                let text = event.data::<Changed>().map(|changed| changed.text).unwrap_or_default();
                format!("edited: {}", clean(&text).replace('\n', "\n    "))
            }
            _ => return Vec::new(),
        };
        vec![format!("* {name} {happened}")]
    }

    fn show_presence(&mut self, event: &Event) -> Vec<String> {
        let Ok(OfUser { user_id, presence: Some(presence) }) = event.data() else { return Vec::new() };
        let before = self.presence.insert(user_id, presence).unwrap_or(Presence::Offline);
        if before == presence {
            return Vec::new();
        }
        let name = self.app.name(user_id);
        vec![match presence {
            Presence::Unknown => format!("* whether {name} is there is not known at present"),
            _ => format!("* {name} is {presence}"),
        }]
    }
}
