//! How the model looks: channels on the left, messages on the right, below them who is typing and the line being written.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::app::App;
use super::room::{Entry, Loaded, Room};
use super::text::{clean, cut, one_line, width, wrap};
use crate::clock::Timestamp;
use crate::domain::id::UserId;
use crate::domain::message::Message;
use crate::domain::user::Presence;

/// Below this width there is no list of channels.
const NARROW: u16 = 50;
const LIST: u16 = 22;
/// Where the text of messages starts: behind the time.
const INDENT: usize = 6;
const INPUT_ROWS: usize = 5;

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
    fn ink(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn loud(self) -> Style {
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

    fn day(self, at: Timestamp) -> Option<time::Date> {
        time::OffsetDateTime::from_unix_timestamp(at.seconds() + self.zone).ok().map(|at| at.date())
    }
}

const DIM: Style = Style::new().add_modifier(Modifier::DIM);

/// Draws the whole screen. Tells the model how many rows of messages there are, and keeps its scroll within them.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App, look: Look) {
    let [list, main] = if frame.area().width < NARROW {
        [Rect::default(), frame.area()]
    } else {
        Layout::horizontal([Constraint::Length(LIST), Constraint::Min(1)]).areas(frame.area())
    };
    if list.width > 0 {
        let rows = channels(app, look, usize::from(list.width) - 2);
        let at = app.rooms.iter().position(|room| Some(room.membership.channel.id) == app.current).unwrap_or(0);
        let above = (at + 2).saturating_sub(usize::from(list.height));
        let rows: Vec<Line<'_>> = rows.into_iter().skip(above).collect();
        frame.render_widget(Paragraph::new(rows).block(Block::new().borders(Borders::RIGHT).border_style(DIM)), list);
    }

    let columns = usize::from(main.width).max(1);
    let input = app.room().map_or(&app.lobby, |room| &room.input);
    let (written, before) = (clean(input.text()), clean(input.before()));
    let rows = input_rows(&written, columns);
    let row = input_rows(&before, columns).len().saturating_sub(1);
    let first = (row + 1).saturating_sub(INPUT_ROWS);
    let column = width(input_rows(&before, columns).last().map_or("", String::as_str));
    let panel: Vec<Line<'static>> = app
        .panel
        .iter()
        .flat_map(|text| wrap(&clean(text), columns))
        .map(|row| Line::styled(row, look.ink(Color::Yellow)))
        .collect();
    let [head, body, notes, status, line] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Max(u16::try_from(panel.len().min(12)).unwrap_or(12)),
        Constraint::Length(1),
        Constraint::Length(u16::try_from(rows.len().clamp(1, INPUT_ROWS)).unwrap_or(1)),
    ])
    .areas(main);

    frame.render_widget(header(app, look, columns), head);
    let shown = messages(app, look, body);
    frame.render_widget(Paragraph::new(shown), body);
    frame.render_widget(Paragraph::new(panel), notes);
    frame.render_widget(status_row(app, look), status);
    let rows: Vec<Line<'_>> = rows.into_iter().skip(first).map(Line::raw).collect();
    frame.render_widget(Paragraph::new(rows), line);
    let cursor = Position {
        x: line.x + u16::try_from(column).unwrap_or(0).min(line.width.saturating_sub(1)),
        y: line.y + u16::try_from(row - first).unwrap_or(0).min(line.height.saturating_sub(1)),
    };
    frame.set_cursor_position(cursor);
}

/// Breaks the line being written behind its mark; every grapheme keeps its place.
fn input_rows(text: &str, columns: usize) -> Vec<String> {
    // Spaces do not break here, or the cursor would jump with the word.
    let held = format!("> {text}").replace(' ', "\u{a0}");
    wrap(&held, columns.saturating_sub(1)).into_iter().map(|row| row.replace('\u{a0}', " ")).collect()
}

fn channels(app: &App, look: Look, columns: usize) -> Vec<Line<'static>> {
    let mut rows = vec![Line::styled(cut(&format!("@{}", app.me.name), columns), DIM)];
    for room in &app.rooms {
        let m = &room.membership;
        let dot = match (m.channel.kind.is_direct(), m.with.as_slice()) {
            (true, [one]) => dot(app, *one),
            _ => "",
        };
        let count = match (m.mention_count, m.unread_count) {
            (0, 0) => String::new(),
            (0, unread) => format!(" {unread}"),
            (mentions, unread) => format!(" @{mentions} {unread}"),
        };
        let private = if m.channel.kind == crate::domain::channel::ChannelKind::Private { " ⚿" } else { "" };
        let title = one_line(&app.title(room));
        let name = cut(&format!("{dot}{title}{private}"), columns.saturating_sub(width(&count)));
        let style = if m.mention_count > 0 {
            look.loud()
        } else if m.unread_count > 0 && !m.muted {
            Style::new().add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
        let current = Some(m.channel.id) == app.current;
        let style = if current { style.add_modifier(Modifier::REVERSED) } else { style };
        let gap = " ".repeat(columns.saturating_sub(width(&name) + width(&count)));
        rows.push(Line::styled(format!("{name}{gap}{count}"), style));
    }
    rows
}

fn dot(app: &App, user: UserId) -> &'static str {
    match app.presence.get(&user) {
        Some(Presence::Online) => "● ",
        Some(Presence::Dnd) => "⊖ ",
        Some(Presence::Away) => "◐ ",
        Some(Presence::Offline) | None => "○ ",
    }
}

fn header(app: &App, look: Look, columns: usize) -> Paragraph<'static> {
    let Some(room) = app.room() else { return Paragraph::new("colink") };
    let m = &room.membership;
    let mut text = match m.channel.kind.is_direct() && !m.with.is_empty() {
        true => m
            .with
            .iter()
            .map(|user| format!("{}{}", dot(app, *user), person(app, *user)))
            .collect::<Vec<_>>()
            .join("  "),
        false => app.title(room),
    };
    let topic = if m.channel.topic.is_empty() { &m.channel.purpose } else { &m.channel.topic };
    if m.channel.archived_at.is_some() {
        text.push_str(" (archived)");
    }
    if !topic.is_empty() {
        text = format!("{text} — {topic}");
    }
    Paragraph::new(cut(&one_line(&text), columns)).style(look.ink(Color::Cyan).add_modifier(Modifier::BOLD))
}

fn person(app: &App, user: UserId) -> String {
    let status = app.users.get(&user).and_then(|user| user.status.as_ref());
    let status = status.map(|status| match status.emoji.as_str() {
        "" => format!(" ({})", status.text),
        emoji => format!(" (:{emoji}: {})", status.text),
    });
    format!("{}{}", app.name(user), status.unwrap_or_default())
}

fn status_row(app: &App, look: Look) -> Line<'static> {
    let mut spans = Vec::new();
    if !app.online {
        spans.push(Span::styled("reconnecting… ", look.ink(Color::Red).add_modifier(Modifier::BOLD)));
    }
    if let Some(room) = app.room() {
        if room.scroll > 0 {
            spans.push(Span::styled(format!("↓ {} rows below ", room.scroll), DIM));
        }
        if room.loaded == Loaded::Asked {
            spans.push(Span::styled("loading… ", DIM));
        }
        let names: Vec<String> = room.typing().iter().map(|user| app.name(*user).to_owned()).collect();
        match names.as_slice() {
            [] => {}
            [one] => spans.push(Span::styled(format!("{one} is typing…"), DIM)),
            [one, two] => spans.push(Span::styled(format!("{one} and {two} are typing…"), DIM)),
            many => spans.push(Span::styled(format!("{} people are typing…", many.len()), DIM)),
        }
    }
    Line::from(spans)
}

/// Returns the rows of the channel that is shown which fit on the screen.
fn messages(app: &mut App, look: Look, body: Rect) -> Vec<Line<'static>> {
    let (height, columns) = (usize::from(body.height), usize::from(body.width));
    app.page = height;
    let Some(room) = app.room() else { return Vec::new() };
    let newest = room.entries.keys().next_back().copied().unwrap_or(0);
    let mut scroll = room.scroll;
    if scroll > 0 && newest > room.drawn {
        // What came in below must not push up what is being read.
        scroll += room
            .entries
            .range(room.drawn + 1..)
            .map(|(_, entry)| of_entry(app, look, columns, room, entry).len())
            .sum::<usize>();
    }
    let mut rows: Vec<Line<'static>> = unsent(room, columns).into_iter().rev().collect();
    let mut complete = true;
    let mut later: Option<time::Date> = None;
    for entry in room.entries.values().rev() {
        let day = look.day(at(entry));
        if let Some(later) = later.filter(|later| Some(*later) != day) {
            rows.push(Line::styled(format!("— {later} —"), DIM));
        }
        later = day;
        if rows.len() >= height + scroll {
            complete = false;
            break;
        }
        rows.extend(of_entry(app, look, columns, room, entry).into_iter().rev());
    }
    let most = rows.len().saturating_sub(height);
    let scroll = scroll.min(most);
    let at_top = complete && scroll >= most;
    let mut shown: Vec<Line<'static>> = rows.into_iter().skip(scroll).take(height).collect();
    shown.reverse();
    let above = height.saturating_sub(shown.len());
    app.at_top = at_top;
    if let Some(room) = app.room_mut() {
        (room.scroll, room.drawn) = (scroll, newest);
    }
    std::iter::repeat_n(Line::default(), above).chain(shown).collect()
}

fn at(entry: &Entry) -> Timestamp {
    match entry {
        Entry::Message(message) => message.created_at,
        Entry::Note { at, .. } => *at,
    }
}

fn of_entry(app: &App, look: Look, columns: usize, room: &Room, entry: &Entry) -> Vec<Line<'static>> {
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

fn unsent(room: &Room, columns: usize) -> Vec<Line<'static>> {
    let rows = room.unsent.iter().flat_map(|post| wrap(&format!("  …   {}", clean(&post.text)), columns));
    rows.map(|row| Line::styled(row, DIM)).collect()
}
