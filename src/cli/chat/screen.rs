//! How the model looks: channels on the left, messages on the right, below them who is typing and the line being written.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::app::App;
use super::room::Loaded;
use super::rows::{DIM, Look, at, of_entry, unsent};
use super::text::{clean, cut, one_line, width, wrap};
use crate::domain::channel::ChannelKind;
use crate::domain::id::UserId;
use crate::domain::user::Presence;

/// Below this width there is no list of channels.
const NARROW: u16 = 50;
const LIST: u16 = 22;
/// How many rows the line being written takes at most.
const INPUT_ROWS: usize = 5;

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
        let current = Some(m.channel.id) == app.current;
        // What is on the screen is as good as read.
        let seen = current && room.scroll == 0;
        let (mentions, unread) = if seen { (0, 0) } else { (m.mention_count, m.unread_count) };
        let count = match (mentions, unread) {
            (0, 0) => String::new(),
            (0, unread) => format!(" {unread}"),
            (mentions, unread) => format!(" @{mentions} {unread}"),
        };
        let private = if m.channel.kind == ChannelKind::Private { " ⚿" } else { "" };
        let title = one_line(&app.title(room));
        let name = cut(&format!("{dot}{title}{private}"), columns.saturating_sub(width(&count)));
        let style = if mentions > 0 {
            look.loud()
        } else if unread > 0 && !m.muted {
            Style::new().add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
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
        Some(Presence::Unknown) => "? ",
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

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;
    use crate::cli::chat::world::World;

    fn look() -> Look {
        Look { zone: 3_600, colours: true }
    }

    fn shows(world: &mut World, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &mut world.app, look())).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_conversation_is_drawn() {
        let mut world = World::in_general();
        let (general, random) = (world.general, world.random);
        let first = world.bob_says(general, "good morning 🎉");
        world.replies(general, first, "to you too");
        world.happens(general, "reaction.added", &json!({"message_seq": first, "user_id": world.bob, "emoji": "wave"}));
        world.bob_says(random, "lunch?");
        world.app.write("hello", world.now);
        insta::assert_snapshot!(shows(&mut world, 60, 10), @r##"
        "@ana                 │#general                              "
        "#general             │                                      "
        "#random            1 │                                      "
        "○ bob                │                                      "
        "                     │                                      "
        "                     │13:00 bob: good morning 🎉            " Hidden by multi-width symbols: [(47, " ")]
        "                     │      :wave: 1  1 reply               "
        "                     │13:00   ↳ bob to bob: to you too      "
        "                     │                                      "
        "                     │> hello                               "
        "##);
    }

    #[test]
    fn any_size_is_drawn() {
        let mut world = World::in_general();
        let general = world.general;
        world.bob_says(general, "日本語 and a_very_long_word_without_an_end\n\n👨‍👩‍👧 \x1b[2J");
        world.app.panel.push("something to say".into());
        world.app.write("written 日本\nsecond", world.now);
        for width in 1..60 {
            for height in 1..8 {
                assert!(!shows(&mut world, width, height).contains('\x1b'));
            }
        }
    }

    #[test]
    fn scrolling_stops_at_the_top_and_new_messages_do_not_move_the_view() {
        let mut world = World::in_general();
        let general = world.general;
        for n in 0..30 {
            world.bob_says(general, &format!("line {n}"));
        }
        shows(&mut world, 40, 10);
        assert!(!world.app.at_top);
        world.room(general).scroll = 10;
        let before = shows(&mut world, 40, 10);
        world.bob_says(general, "news");
        let after = shows(&mut world, 40, 10);
        assert!(before.contains("line 19") && after.contains("line 19") && !after.contains("news"), "{after}");
        world.room(general).scroll = 1_000;
        assert!(shows(&mut world, 40, 10).contains("line 0"));
        assert!(world.app.at_top);
        assert_eq!(world.room(general).scroll, 24);
    }

    #[test]
    fn without_colours_there_are_none() {
        let mut world = World::in_general();
        let general = world.general;
        world.bob_says(general, "@channel hello");
        world.app.online = false;
        let mut terminal = Terminal::new(TestBackend::new(60, 10)).unwrap();
        terminal.draw(|frame| draw(frame, &mut world.app, Look { zone: 0, colours: false })).unwrap();
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    }
}
