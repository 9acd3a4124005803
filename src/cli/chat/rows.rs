//! How an entry of a channel's history looks: its rows, in the width there is.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::app::App;
use super::room::{Entry, Room};
use super::text::{clean, one_line, width, wrap};
use crate::clock::Timestamp;
use crate::domain::id::UserId;
use crate::domain::message::Message;

/// Where the text of messages starts: behind the time.
const INDENT: usize = 6;

const NAMES: [Color; 6] = [Color::Cyan, Color::Green, Color::Magenta, Color::Blue, Color::LightRed, Color::LightYellow];

/// How to draw: the zone to show times in, and whether in colours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Seconds east of Greenwich.
    pub(super) zone: i64,
    /// Whether colours are wanted; without them, emphasis is bold, dim and reversed.
    pub(super) colours: bool,
}

impl Look {
    pub(super) fn ink(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn loud(self) -> Style {
        self.ink(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    fn of(self, user: UserId) -> Style {
        let sum: usize = user.0.as_bytes()[8..].iter().map(|byte| usize::from(*byte)).sum();
        self.ink(NAMES[sum % NAMES.len()]).add_modifier(Modifier::BOLD)
    }

    fn clock(self, at: Timestamp) -> String {
        let minutes = (at.seconds() + self.zone).div_euclid(60).rem_euclid(24 * 60);
        format!("{:02}:{:02}", minutes / 60, minutes % 60)
    }

    pub(super) fn day(self, at: Timestamp) -> Option<time::Date> {
        time::OffsetDateTime::from_unix_timestamp(at.seconds() + self.zone).ok().map(|at| at.date())
    }
}

pub(super) const DIM: Style = Style::new().add_modifier(Modifier::DIM);

/// Returns when an entry was made.
pub(super) fn at(entry: &Entry) -> Timestamp {
    match entry {
        Entry::Message(message) => message.created_at,
        Entry::Note { at, .. } => *at,
    }
}

/// Returns the rows of an entry.
pub(super) fn of_entry(app: &App, look: Look, columns: usize, room: &Room, entry: &Entry) -> Vec<Line<'static>> {
    match entry {
        Entry::Message(message) => of_message(app, look, columns, room, message),
        Entry::Note { by, what, at } => {
            let text = format!("{} {} {what}", look.clock(*at), app.name(*by));
            wrap(&one_line(&text), columns).into_iter().map(|row| Line::styled(row, DIM)).collect()
        }
    }
}

fn of_message(app: &App, look: Look, columns: usize, room: &Room, message: &Message) -> Vec<Line<'static>> {
    let to = &message.mentions;
    let to_me = to.channel || to.here || to.users.contains(&app.me.id);
    let name = app.name(message.author_id).to_owned();
    let arrow = message.thread_seq.map(|seq| match room.entries.get(&seq) {
        Some(Entry::Message(parent)) => format!("  ↳ {} to {}: ", name, app.name(parent.author_id)),
        _ => format!("  ↳ {name}: "),
    });
    let lead = arrow.unwrap_or_else(|| format!("{name}: "));
    let indent = INDENT + if message.thread_seq.is_some() { 4 } else { 0 };
    let (text, style) = match (message.deleted_at, to_me) {
        (Some(_), _) => ("(deleted)".to_owned(), DIM),
        (None, true) => (clean(&message.text), look.loud()),
        (None, false) => (clean(&message.text), Style::new()),
    };
    let edited = if message.edited_at.is_some() && message.deleted_at.is_none() { " (edited)" } else { "" };

    let room_for_text = columns.saturating_sub(indent).max(8);
    let first = columns.saturating_sub(INDENT + width(&lead)).max(8);
    let mut rows = Vec::new();
    // The first row is shorter by the name: it is broken alone, and the rest of the text anew.
    let text = format!("{text}{edited}");
    let head = wrap(&text, first).into_iter().next().unwrap_or_default();
    let rest = text.get(head.len()..).unwrap_or_default().trim_start_matches(' ');
    let rest = rest.strip_prefix('\n').unwrap_or(rest);
    rows.push(Line::from(vec![
        Span::styled(format!("{} ", look.clock(message.created_at)), DIM),
        Span::styled(lead, look.of(message.author_id)),
        Span::styled(head, style),
    ]));
    if !rest.is_empty() {
        let margin = " ".repeat(indent);
        rows.extend(wrap(rest, room_for_text).into_iter().map(|row| Line::styled(format!("{margin}{row}"), style)));
    }
    let mut below: Vec<String> =
        message.reactions.iter().map(|r| format!(":{}: {}", one_line(&r.emoji), r.users.len())).collect();
    if message.reply_count > 0 {
        below.push(if message.reply_count == 1 {
            "1 reply".into()
        } else {
            format!("{} replies", message.reply_count)
        });
    }
    if message.pinned {
        below.push("pinned".to_owned());
    }
    if !below.is_empty() {
        let margin = " ".repeat(indent);
        let under = wrap(&below.join("  "), room_for_text);
        rows.extend(under.into_iter().map(|row| Line::styled(format!("{margin}{row}"), DIM)));
    }
    rows
}

/// Returns the rows of what the hub has not answered yet.
pub(super) fn unsent(room: &Room, columns: usize) -> Vec<Line<'static>> {
    let rows = room.unsent.iter().flat_map(|post| wrap(&format!("  …   {}", clean(&post.text)), columns));
    rows.map(|row| Line::styled(row, DIM)).collect()
}
